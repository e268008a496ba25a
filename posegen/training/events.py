"""Where a stage's workers and controller leave messages, and the driver takes them. Imports little: it is a process.

What interrupted a stage's training, and when it is no use to try again.

A stage goes on from its last checkpoint as often as workers or machines are lost. It stops where the same failure came
three times at the same step (a poisoned step: an image, a batch or a machine that another try does not cure), or where
many failures in a row brought no checkpoint.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store


class Board:
    """Where workers and controller leave messages and the driver takes them: an actor without a CPU of its own."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, object]] = []
        self._answers: dict[int, bool] = {}
        self._attempts = Attempts()
        self._given_up = ""

    def post(self, kind: str, content: object) -> None:
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, object]]:
        messages, self._messages = self._messages, []
        return messages

    def answer(self, step: int, goes_on: bool) -> None:
        self._answers[step] = goes_on

    def answered(self, step: int) -> bool | None:
        """The answer to the judgement of a step, given once; None while there is none."""
        return self._answers.pop(step, None)

    def begins(self, step: int, workers: int) -> int:
        """As `Attempts.begins`; the driver is told."""
        careful_until = self._attempts.begins(step, workers)
        self.post("begins", (step, workers, self._attempts.record()))
        return careful_until

    def at(self, step: int) -> None:
        self._attempts.at(step)

    def raised(self, step: int, what: str) -> None:
        self._attempts.raised(step, what)

    def failed(self, what: str, preempted: bool, died: bool) -> None:
        failure = self._attempts.failed(what, preempted=preempted, died=died)
        self.post("failed", (failure, self._attempts.record()))

    def give_up(self, why: str) -> None:
        """The storage takes nothing: no further attempt is made. The driver is told."""
        self._given_up = why
        self.post("storage_failed", why)

    def verdict(self) -> str:
        """Why it is no use to try again; "" where it is."""
        return self._given_up or verdict(self._attempts.failures)


Record = dict[str, Any]  # {"failures": [a failure's fields], "lost_steps": n}: what failures.json says

FILE = "failures.json"  # in a stage's folder
SAME = 3  # failures of one kind at one step that end a stage
FRUITLESS = 10  # failures without a checkpoint between them that end a stage
CAREFUL = 50  # steps past a failure's in which every step is announced before it is carried out

ADVICE = (" Some common causes include", " This is typically caused by")  # Ray's and gloo's, whatever happened
VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")  # addresses, process and node ids, times


@dataclass(frozen=True)
class Failure:
    """One interruption of a stage."""

    step: int  # that was being carried out, counted from 1; 0 before the first
    resumed: int  # the step of the checkpoint that the failed attempt had begun from
    what: str  # the first worker's error, one line
    workers: int  # of the failed attempt
    preempted: bool = False  # a machine was taken away, with notice or without

    @property
    def kind(self) -> str:
        """The error without what differs from one try to the next."""
        return VARYING.sub("#", self.what)


def one_line(error: Exception) -> str:
    """What an error says at last: of several lines the last one holds the cause. Without advice that always follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else repr(error)
    for advice in ADVICE:
        said = said.partition(advice)[0]
    return said


def verdict(failures: Sequence[Failure]) -> str:
    """Why it is no use to try again, in words; "" where it is."""
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
    """Steps that were carried out more than once: from the checkpoint gone on from to the failed step.

    `resumed` are the steps from which it went on after each failure.
    """
    return sum(max(0, f.step - 1 - again) for f, again in zip(failures, resumed, strict=False))


class Attempts:
    """The attempts at a stage, as its workers tell of them. Lives in the board's process."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.resumed: list[int] = []  # where each attempt but the first began
        self._step, self._start, self._workers, self._under_way = 0, 0, 0, False
        self._said: tuple[int, str] | None = None  # the first error that a worker itself told of, and its step

    def begins(self, step: int, workers: int) -> int:
        """An attempt begins from a checkpoint's step. Gives the step up to which each one is to be announced.

        Where the attempt before did not fail, Ray ended it: a machine was taken away, or there is room for more.
        """
        if self._under_way:
            resized = f"the number of workers changed from {self._workers} to {workers}"
            self.failed(resized if workers != self._workers else "a machine was taken away", preempted=True)
        self._start, self._step, self._workers, self._said = step, step, workers, None
        self._under_way = True
        if self.failures:
            self.resumed.append(step)
        return max((failure.step for failure in self.failures), default=-CAREFUL) + CAREFUL

    def at(self, step: int) -> None:
        self._step = max(self._step, step)

    def raised(self, step: int, what: str) -> None:
        """A worker's own error: the first one counts, for the others' follow from it."""
        if self._said is None:
            self._said = (step, what)

    def failed(self, what: str, *, preempted: bool = False, died: bool = False) -> Failure:
        """An attempt has ended; `what` is what was seen of it from outside.

        Where a worker `died`, that is the cause, and what the others told of follows from it.
        """
        step, said = (self._step, what) if died or self._said is None else self._said
        failure = Failure(step, self._start, said, self._workers, preempted)
        self.failures.append(failure)
        self._said, self._under_way = None, False
        return failure

    def record(self) -> Record:
        failures = [asdict(failure) for failure in self.failures]
        return {"failures": failures, "lost_steps": lost_steps(self.failures, self.resumed)}


def joined(before: Record, record: Record) -> Record:
    """The record of a stage over several commands."""
    return {name: before[name] + record[name] for name in ("failures", "lost_steps")}


def read_failures(folder: Path) -> Record:
    """What interrupted a stage, by its folder."""
    return read_json(folder / FILE) or {"failures": [], "lost_steps": 0}


def write_failures(store: Store, place: str, record: Record) -> None:
    """Keeps what interrupted a stage whose folder within the run is `place`."""
    write_json(store.folder / place / FILE, record)
    store.publish(f"{place}/{FILE}")
