"""Events of a stage's training, the actor that queues them for the driver, and the record of its interruptions.

An interrupted stage resumes from its last checkpoint as often as workers or machines are lost. It stops after three
equal failures at the same step (an image, a batch or a machine that a retry does not cure), and after many failures in
a row without a new checkpoint.

The actor is a process of its own, so this module imports neither torch nor Ray.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

Record = dict[str, Any]  # {"failures": [a failure's fields], "lost_steps": n}: the content of failures.json

FILE = "failures.json"  # in a stage's folder
SAME = 3  # failures of one kind at one step that end a stage
FRUITLESS = 10  # failures without a checkpoint between them that end a stage
CAREFUL = 50  # steps past a failure's during which every step is announced before it is carried out

ADVICE = (" Some common causes include", " This is typically caused by")  # Ray's and gloo's, whatever happened
VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")  # addresses, process and node ids, times


@dataclass(frozen=True)
class Failure:
    """One interruption of a stage."""

    step: int  # that was being carried out, counted from 1; 0 before the first
    resumed: int  # step of the checkpoint from which the failed attempt had started
    what: str  # the first worker's error, one line
    workers: int  # of the failed attempt
    preempted: bool = False  # a machine was taken away, with notice or without

    @property
    def kind(self) -> str:
        """The error without the parts that vary between attempts."""
        return VARYING.sub("#", self.what)


@dataclass(frozen=True)
class WorkerJoined:
    """A worker is ready to train."""

    world_size: int
    rank: int
    host: str


@dataclass(frozen=True)
class AttemptStarted:
    """All workers resume from a step."""

    step: int
    workers: int
    record: Record


@dataclass(frozen=True)
class StepReached:
    """Live progress: the mean terms up to a step."""

    step: int
    terms: dict[str, float]


@dataclass(frozen=True)
class RowsLogged:
    """The curve's rows since the last checkpoint."""

    rows: list[dict[str, float]]


@dataclass(frozen=True)
class Validated:
    """Validation scores after a step; the worker waits for an answer whether to continue."""

    step: int
    scores: dict[str, float]


@dataclass(frozen=True)
class WarningRaised:
    """A message for the user."""

    message: str


@dataclass(frozen=True)
class AttemptFailed:
    """An attempt was interrupted."""

    failure: Failure
    record: Record


@dataclass(frozen=True)
class NonFiniteFound:
    """A term, a gradient or a score is not finite: the stage ends."""

    message: str


@dataclass(frozen=True)
class RetriesExhausted:
    """Another attempt would not help: the stage ends."""

    reason: str


@dataclass(frozen=True)
class StorageUnavailable:
    """The run's storage cannot be written: the stage ends."""

    reason: str


Event = (
    WorkerJoined
    | AttemptStarted
    | StepReached
    | RowsLogged
    | Validated
    | WarningRaised
    | AttemptFailed
    | NonFiniteFound
    | RetriesExhausted
    | StorageUnavailable
)


def one_line(error: Exception) -> str:
    """Return an error's last line, which holds the cause, without advice that always follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else repr(error)
    for advice in ADVICE:
        said = said.partition(advice)[0]
    return said


def stop_reason(failures: Sequence[Failure]) -> str:
    """Return why another attempt would not help; "" if it may."""
    tries = [failure for failure in failures if not failure.preempted]
    last = tries[-SAME:]
    if len(last) == SAME and len({(failure.step, failure.kind) for failure in last}) == 1:
        return (
            f"the same failure came {SAME} times at step {last[-1].step}, so another try would not help: "
            f"{last[-1].what.rstrip('.')}. Look at the batch of that step, or at the machine that it ran on"
        )
    fruitless = tries[-FRUITLESS:]
    if len(fruitless) == FRUITLESS and len({failure.resumed for failure in fruitless}) == 1:
        seen = "; ".join(dict.fromkeys(failure.what for failure in fruitless))
        return f"{FRUITLESS} failures in a row brought no new checkpoint: {seen}"
    return ""


def lost_steps(failures: Sequence[Failure], resumed: Sequence[int]) -> int:
    """Return the number of repeated steps: from each checkpoint resumed from to the failed step.

    `resumed` holds the steps from which training resumed after each failure.
    """
    return sum(max(0, f.step - 1 - again) for f, again in zip(failures, resumed, strict=False))


def merge_records(before: Record, record: Record) -> Record:
    """Return the record of a stage over several commands."""
    return {name: before[name] + record[name] for name in ("failures", "lost_steps")}


def read_failures(folder: Path) -> Record:
    """Read the record of interruptions from a stage's folder."""
    return read_json(folder / FILE) or {"failures": [], "lost_steps": 0}


def write_failures(store: Store, prefix: str, record: Record) -> None:
    """Write the record of interruptions of the stage at `prefix` within the run."""
    write_json(store.folder / prefix / FILE, record)
    store.publish(f"{prefix}/{FILE}")


class EventQueue:
    """Queue of events from workers and controller to the driver, with the attempts at the stage as they report them.

    An actor without a CPU of its own.
    """

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._events: list[Event] = []
        self._answers: dict[int, bool] = {}
        self._storage_failure = ""
        self._resumed: list[int] = []  # the first step of each attempt but the first
        self._step, self._start, self._workers, self._running = 0, 0, 0, False
        self._reported: tuple[int, str] | None = None  # the first error that a worker itself reported, and its step

    def put(self, event: Event) -> None:
        """Append an event."""
        if isinstance(event, StorageUnavailable):
            self._storage_failure = event.reason  # no further attempt is made
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Return all events in order and empty the queue."""
        events, self._events = self._events, []
        return events

    def answer(self, step: int, should_continue: bool) -> None:
        """Answer the validation after a step."""
        self._answers[step] = should_continue

    def take_answer(self, step: int) -> bool | None:
        """Return the answer to the validation after a step, once; None while there is none."""
        return self._answers.pop(step, None)

    def start_attempt(self, step: int, workers: int) -> int:
        """Start an attempt from a checkpoint's step; return the step up to which each step is to be announced.

        If the attempt before did not fail, Ray ended it: a machine was taken away, or there is room for more workers.
        """
        if self._running:
            resized = f"the number of workers changed from {self._workers} to {workers}"
            self._fail(resized if workers != self._workers else "a machine was taken away", preempted=True)
        self._start, self._step, self._workers, self._reported = step, step, workers, None
        self._running = True
        if self.failures:
            self._resumed.append(step)
        self.put(AttemptStarted(step, workers, self.record()))
        return max((failure.step for failure in self.failures), default=-CAREFUL) + CAREFUL

    def reach(self, step: int) -> None:
        """Note that a step is being carried out."""
        self._step = max(self._step, step)

    def report_error(self, step: int, what: str) -> None:
        """Note a worker's own error; the first one counts, since the others' follow from it."""
        if self._reported is None:
            self._reported = (step, what)

    def fail_attempt(self, what: str, preempted: bool, died: bool) -> None:
        """End an attempt and queue the event; `what` is the error as seen from outside.

        If a worker `died`, that is the cause, and the errors that the others reported follow from it.
        """
        self.put(AttemptFailed(self._fail(what, preempted=preempted, died=died), self.record()))

    def _fail(self, what: str, *, preempted: bool, died: bool = False) -> Failure:
        step, said = (self._step, what) if died or self._reported is None else self._reported
        self.failures.append(Failure(step, self._start, said, self._workers, preempted))
        self._reported, self._running = None, False
        return self.failures[-1]

    def record(self) -> Record:
        """Return the failures and the number of repeated steps."""
        failures = [asdict(failure) for failure in self.failures]
        return {"failures": failures, "lost_steps": lost_steps(self.failures, self._resumed)}

    def stop_reason(self) -> str:
        """Return why another attempt would not help; "" if it may."""
        return self._storage_failure or stop_reason(self.failures)
