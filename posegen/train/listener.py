"""The driver's side of a stage that trains elsewhere: it hears of steps, rows, judgements and interruptions."""

import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from posegen.files import StorageFailed
from posegen.train.checkpoint import Curve
from posegen.train.failures import FILE, Failure, Record, joined, read_failures, write_failures
from posegen.train.task import Task

LISTEN_EVERY = 0.25  # seconds between two looks at the board

Show = Callable[[int, dict[str, float]], None]  # (step, terms)
Decide = Callable[[int, dict[str, float]], bool]  # (step, the judge's scores) -> whether to train further


class Listener:
    """Takes the board's messages while a stage trains, and once more at its end."""

    def __init__(
        self,
        board: Any,
        task: Task,
        log_rows: Callable[[Curve], None],
        show: Show,
        warn: Callable[[str], None],
        say: Callable[[str], None],
        decide: Decide,
    ) -> None:
        self.stopped = self.hopeless = self.storage_failed = ""
        self._board, self._task, self._warn, self._say = board, task, warn, say
        self._hosts: dict[int, str] = {}  # of the workers that have joined, by rank
        self._log_rows, self._show, self._decide = log_rows, show, decide
        self._before = read_failures(task.store.fetch(f"{task.place}/{FILE}").parent)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def why_ended(self) -> str:
        """Why the stage ended before its last step, in words; "" where it did not."""
        return self.stopped or self.storage_failed or self.hopeless

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._take()

    def _listen(self) -> None:
        while not self._done.wait(LISTEN_EVERY):
            self._take()

    def _take(self) -> None:
        try:
            messages = ray.get(self._board.take.remote())
        except ray.exceptions.RayError:  # the cluster is going away; what ends the run says so
            return
        for kind, content in messages:
            getattr(self, f"_on_{kind}")(content)

    def _on_joined(self, content: tuple[int, int, str]) -> None:
        world_size, rank, host = content
        self._hosts[rank] = host
        if world_size > 1 and len(self._hosts) == world_size:
            hosts = ", ".join(self._hosts[each] for each in sorted(self._hosts))
            self._say(f"{self._task.stage.name}: {world_size} workers on {hosts}")
        if len(self._hosts) == world_size:
            self._hosts = {}

    def _on_step(self, content: tuple[int, dict[str, float]]) -> None:
        self._show(*content)

    def _on_rows(self, rows: Curve) -> None:
        try:
            self._log_rows(rows)
        except Exception as error:  # a tracking failure never ends a training
            self._warn(f"tracking failed, training goes on: {error!r}")

    def _on_stopped(self, why: str) -> None:
        self.stopped = why

    def _on_hopeless(self, why: str) -> None:
        self.hopeless = why

    def _on_storage_failed(self, why: str) -> None:
        self.storage_failed = why

    def _on_judged(self, content: tuple[int, dict[str, float]]) -> None:
        self._board.answer.remote(content[0], self._decide(*content))

    def _on_warning(self, text: str) -> None:
        self._warn(text)

    def _on_failed(self, content: tuple[Failure, Record]) -> None:
        failure, record = content
        self._hosts = {}  # of those that had joined, not all live
        self._keep(record)
        at = f"at step {failure.step} of {self._task.stage.steps}"
        self._warn(
            f"{self._task.stage.name} was interrupted {at} ({failure.what}); going on from the last checkpoint. "
            f"Interruption {len(record['failures'])} of this stage"
        )

    def _on_begins(self, content: tuple[int, int, Record]) -> None:
        step, workers, record = content
        if record["failures"]:
            self._keep(record)
            self._warn(
                f"{self._task.stage.name} goes on from step {step} with {workers} worker(s); {record['lost_steps']} "
                "steps repeated in all"
            )

    def _keep(self, record: Record) -> None:
        """Storage that fails here must not end the listening: trials wait for answers."""
        try:
            write_failures(self._task.store, self._task.place, joined(self._before, record))
        except StorageFailed as error:
            self._warn(f"the interruption is not kept: {error}")
