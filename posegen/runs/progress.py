"""Progress of a run: live bars in a terminal, plain lines elsewhere; every line is also written to the run's log."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from posegen.evaluation.metrics import IMAGE_SCORES, JOINT_SCORES
from posegen.storage import files
from posegen.storage.files import reason_of

PLAIN_EVERY = 10.0  # seconds between two lines of one task without a terminal
SHOWN_TERMS = 4  # loss terms beside the progress of a stage
BUFFERED_LINES = 1000  # of the log, while its file cannot be written


@dataclass
class _Task:
    total: int
    started: float = field(default_factory=time.monotonic)
    printed: float = 0.0
    bar: rich_progress.TaskID | None = None
    marks: deque = field(default_factory=lambda: deque(maxlen=60))  # (time, done)
    finished: bool = False


class _RunLog(logging.Handler):
    """Appends lines to a file; those that cannot be written are kept until the next one that can."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._path, self._warn, self._warned = path, warn, False
        self._buffer: deque[str] = deque(maxlen=BUFFERED_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._buffer.append(f"{self.format(record)}\n")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(self._buffer)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"the log {self._path} cannot be written: {reason_of(error)}; going on without it")
            return
        self._buffer.clear()


class _ShowWarnings(logging.Handler):
    """Shows the warnings of the storage about writes that are retried."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


class Progress:
    """A context manager that shows the progress of named tasks.

    A screen that cannot be written to is skipped. A log that cannot be written to is reported once on the screen; its
    lines are buffered and written when it can be.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._log = logging.getLogger("posegen")
        self._storage = _ShowWarnings(self._show_warning)
        self._tasks: dict[str, _Task] = {}
        columns = (
            rich_progress.TextColumn("{task.description:<14}"),
            rich_progress.BarColumn(24),
            rich_progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        )
        self._bars = rich_progress.Progress(
            *columns,
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[text]}"),
            console=self.console,
        )

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._bars.start()
        logging.getLogger(files.__name__).addHandler(self._storage)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(files.__name__).removeHandler(self._storage)
        with suppress(OSError):
            self._bars.stop()

    def log_to(self, path: Path) -> None:
        """Append every line from now on to this file too, with the time."""
        self._log.addHandler(_RunLog(path, self._show_warning))
        self._log.setLevel(logging.INFO)
        self._log.propagate = False

    def info(self, text: str) -> None:
        """Print and log a line."""
        self._print(text)
        self._log.info(text)

    def table(self, table: Table) -> None:
        """Print a table."""
        self._print(table)

    def warn(self, text: str) -> None:
        """Print and log a warning."""
        self._show_warning(text)
        self._log.warning(text)

    def _show_warning(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _print(self, shown: str | Table, style: str | None = None) -> None:
        """Print a line or a table, unless the screen is a file on a full disk or a closed terminal."""
        with suppress(OSError):
            if isinstance(shown, Table):
                self.console.print(shown)
            else:
                self.console.print(shown, markup=False, style=style, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total` pieces of `what`, with `text` beside it."""
        task = self._tasks.setdefault(what, _Task(total))
        task.total = total
        task.marks.append((time.monotonic(), done))
        line = "  ".join(part for part in (self._pace(task, done), text) if part)
        if self.console.is_terminal:
            if task.bar is None:
                task.bar = self._bars.add_task(what, total=total, text="")
            self._bars.update(task.bar, completed=done, total=total, text=line)
        due = time.monotonic() - task.printed > PLAIN_EVERY
        if (due or done >= total) and not task.finished:
            task.printed, task.finished = time.monotonic(), done >= total
            line = f"{what:<14} {done:>7}/{total}  {line}"
            self._log.info(line)
            if not self.console.is_terminal:
                self._print(line)

    @staticmethod
    def _pace(task: _Task, done: int) -> str:
        (first_time, first_done), (last_time, last_done) = task.marks[0], task.marks[-1]
        if last_time <= first_time or last_done <= first_done:
            return ""
        rate = (last_done - first_done) / (last_time - first_time)
        left = max(0, round((task.total - done) / rate))
        return f"{rate:.1f}/s" + (f"  {left // 60}:{left % 60:02d} left" if left else "")


def terms_text(terms: dict[str, float]) -> str:
    """Return the first loss terms of a row, without sums and gradients, which only the curves show."""
    shown = [(k, v) for k, v in terms.items() if not k.endswith(("/total", "/gradient"))][:SHOWN_TERMS]
    return "  ".join(f"{name} {value:.3g}" for name, value in shown)


def score_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Return tables of the main scores and the baselines', from metrics.json's content: images, joints, stages' images.

    Each table that has scores, narrow enough for a terminal of 80 columns.
    """
    kinds = [[name for name in names if name in metrics["scores"]] for names in (IMAGE_SCORES, JOINT_SCORES)]
    title = f"scores on {metrics['pairs']:,} test pairs"
    tables = [_score_table(metrics, names, title) for names in kinds if names]
    if not metrics.get("stages"):
        return tables
    table = Table("", "mask_l1", "95 % interval", title="images before the result", title_justify="left")
    for name, scores in metrics["stages"].items():
        interval = metrics["stage_intervals"][name]["mask_l1"]
        ends = " to ".join(f"{end:.4g}" for end in interval) if interval else "–"
        table.add_row(name, "–" if scores["mask_l1"] is None else f"{scores['mask_l1']:.4g}", ends)
    return [*tables, table]


def _score_table(metrics: Mapping[str, Any], names: Sequence[str], title: str) -> Table:
    table = Table("", *names, title=title, title_justify="left")
    for label, scores in {"result": metrics["scores"], **metrics["baselines"]}.items():
        if any(name in scores for name in names):
            values = ("–" if scores[name] is None else f"{scores[name]:.4g}" for name in names)
            table.add_row(label, *values, style="bold" if label == "result" else "")
    return table
