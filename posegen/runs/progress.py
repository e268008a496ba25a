"""Progress on the screen: live bars in a terminal, plain lines elsewhere; every line also goes to the run's log."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich import progress as rich_progress
from rich.table import Table

from posegen.evaluation.metrics import JOINT_SCORES, IMAGE_SCORES
from posegen.storage import files
from posegen.storage.files import reason_of

PLAIN_EVERY = 10.0  # seconds between two lines of one task where there is no terminal
SHOWN_TERMS = 4
WAITING_LINES = 1000  # of the log that wait for a disk that cannot be written


@dataclass
class _Work:
    total: int
    started: float = field(default_factory=time.monotonic)
    printed: float = 0.0
    bar: rich_progress.TaskID | None = None
    marks: deque = field(default_factory=lambda: deque(maxlen=60))  # (time, done)
    finished: bool = False


class _RunLog(logging.Handler):
    """Appends lines to a file that may be impossible to write for a while: then they wait, and are written later."""

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        super().__init__()
        self._path, self._complain, self._complained = path, complain, False
        self._waiting: deque[str] = deque(maxlen=WAITING_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._waiting.append(f"{self.format(record)}\n")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.writelines(self._waiting)
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._complain(f"the log {self._path} cannot be written: {reason_of(error)}; going on without it")
            return
        self._waiting.clear()


class _OnScreen(logging.Handler):
    """Shows the warnings of the storage: what is tried again."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


class Progress:
    """A context manager that shows the progress of named works, several after one another.

    Neither a screen nor a log that cannot be written to ends what is shown: the first is left out, the second is
    complained of once on the screen and goes on when it can.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._log = logging.getLogger("posegen")
        self._storage = _OnScreen(self._show_warning)
        self._works: dict[str, _Work] = {}
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
        """Everything said from now on is also appended to this file, with the time."""
        self._log.addHandler(_RunLog(path, self._show_warning))
        self._log.setLevel(logging.INFO)
        self._log.propagate = False

    def info(self, text: str) -> None:
        """One line for the user."""
        self._print(text)
        self._log.info(text)

    def table(self, table: Table) -> None:
        """A table for the user."""
        self._print(table)

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""
        self._show_warning(text)
        self._log.warning(text)

    def _show_warning(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _print(self, shown: str | Table, style: str | None = None) -> None:
        """Shows a line or a table; leaves it out where the screen is a file on a full disk, or a terminal that went."""
        with suppress(OSError):
            if isinstance(shown, Table):
                self.console.print(shown)
            else:
                self.console.print(shown, markup=False, style=style, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total` pieces of `what`; `text` is shown beside it."""
        work = self._works.setdefault(what, _Work(total))
        work.total = total
        work.marks.append((time.monotonic(), done))
        line = "  ".join(part for part in (self._pace(work, done), text) if part)
        if self.console.is_terminal:
            self._show_bar(what, work, done, line)
        due = time.monotonic() - work.printed > PLAIN_EVERY
        if (due or done >= total) and not work.finished:
            work.printed, work.finished = time.monotonic(), done >= total
            self._plain(f"{what:<14} {done:>7}/{total}  {line}")

    def _plain(self, line: str) -> None:
        self._log.info(line)
        if not self.console.is_terminal:
            self._print(line)

    def _show_bar(self, what: str, work: _Work, done: int, line: str) -> None:
        if work.bar is None:
            work.bar = self._bars.add_task(what, total=work.total, text="")
        self._bars.update(work.bar, completed=done, total=work.total, text=line)

    @staticmethod
    def _pace(work: _Work, done: int) -> str:
        (first_time, first_done), (last_time, last_done) = work.marks[0], work.marks[-1]
        if last_time <= first_time or last_done <= first_done:
            return ""
        rate = (last_done - first_done) / (last_time - first_time)
        left = max(0, round((work.total - done) / rate))
        return f"{rate:.1f}/s" + (f"  {left // 60}:{left % 60:02d} left" if left else "")


def terms_text(terms: dict[str, float]) -> str:
    """The first few terms of a row, without the sums and gradients that only the curves show."""
    shown = [(k, v) for k, v in terms.items() if not k.endswith(("/total", "/gradient"))][:SHOWN_TERMS]
    return "  ".join(f"{name} {value:.3g}" for name, value in shown)


def score_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The main scores beside the baselines', from metrics.json's content: of images, of joints, of stages' images.

    Those that there are, narrow enough for a terminal of 80 columns.
    """
    kinds = [[name for name in names if name in metrics["scores"]] for names in (IMAGE_SCORES, JOINT_SCORES)]
    title = f"scores on {metrics['pairs']:,} test pairs"
    tables = [_score_table(metrics, names, title) for names in kinds if names]
    return [*tables, *([_stage_table(metrics)] if metrics.get("stages") else [])]


def _score_table(metrics: Mapping[str, Any], names: Sequence[str], title: str) -> Table:
    table = Table("", *names, title=title, title_justify="left")
    for label, scores in {"result": metrics["scores"], **metrics["baselines"]}.items():
        if any(name in scores for name in names):
            values = ("–" if scores[name] is None else f"{scores[name]:.4g}" for name in names)
            table.add_row(label, *values, style="bold" if label == "result" else "")
    return table


def _stage_table(metrics: Mapping[str, Any]) -> Table:
    table = Table("", "mask_l1", "95 % interval", title="images before the result", title_justify="left")
    for name, scores in metrics["stages"].items():
        interval = metrics["stage_intervals"][name]["mask_l1"]
        ends = " to ".join(f"{end:.4g}" for end in interval) if interval else "–"
        table.add_row(name, "–" if scores["mask_l1"] is None else f"{scores['mask_l1']:.4g}", ends)
    return table
