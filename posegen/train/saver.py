"""Checkpoints written in a thread while training goes on, and published where other nodes see them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from posegen.storage import Store
from posegen.train.checkpoint import KEEP, Snapshot, checkpoints, write_snapshot


class Saver:
    """Writes one snapshot after another to a stage's folder in a run; what is written counts when it is complete.

    At most one waits in memory: a snapshot that comes while another is written waits for it.
    """

    def __init__(self, store: Store, place: str, *, keep: int = KEEP, written: Callable[[Path], None] | None = None):
        """`place` is the stage's folder within the run; `written` is told, in the thread, of each checkpoint."""
        self._store, self._place, self._keep, self._written = store, place, keep, written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posegen-checkpoint")
        self._last: Future[None] | None = None

    def save(self, taken: Snapshot) -> None:
        """Has a snapshot written. Raises what made the one before fail."""
        self.wait()
        self._last = self._thread.submit(self._write, taken)

    def wait(self) -> None:
        """Returns when all that was given is written and published. Raises what made it fail."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Ends the thread, when what it is writing is done. Raises nothing: for after a failure too."""
        self._thread.shutdown()

    def _write(self, taken: Snapshot) -> None:
        folder = self._store.folder / self._place
        before = {path.name for path in checkpoints(folder)}
        final = write_snapshot(folder, taken, keep=self._keep)
        self._store.publish(f"{self._place}/{final.name}", last="stage.json")
        for gone in before - {path.name for path in checkpoints(folder)}:
            self._store.remove(f"{self._place}/{gone}")
        if self._written is not None:
            self._written(final)
