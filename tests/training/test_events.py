"""Events between workers, controller and driver."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from posegen.training import events
from posegen.training.events import EventQueue, read_failures
from posegen.training.launch import EventLoop
from tests.training.test_loop import task


def test_the_actors_module_imports_neither_torch_nor_ray_nor_mlflow():
    code = "import sys, posegen.training.events; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "set()"


def test_events_are_drained_once_in_order_with_the_records_of_attempts():
    queue = EventQueue()
    assert queue.start_attempt(0, 2) == 0
    queue.put(events.StepReached(3, {"generator/l1": 0.5}))
    queue.reach(5)
    queue.fail_attempt("killed", preempted=False, died=True)
    started, reached, failed = queue.drain()
    assert isinstance(failed, events.AttemptFailed)
    assert started == events.AttemptStarted(0, 2, {"failures": [], "lost_steps": 0})
    assert reached == events.StepReached(3, {"generator/l1": 0.5})
    assert (failed.failure.step, failed.record["failures"][0]["what"]) == (5, "killed")
    assert queue.drain() == []


def test_an_answer_is_taken_once():
    queue = EventQueue()
    assert queue.take_answer(4) is None
    queue.answer(4, False)
    assert (queue.take_answer(4), queue.take_answer(4)) == (False, None)


def test_after_a_storage_failure_no_further_attempt_is_made():
    queue = EventQueue()
    assert queue.stop_reason() == ""
    queue.put(events.StorageUnavailable("the disk is full"))
    assert queue.stop_reason() == "the disk is full"


FAILURE = events.Failure(step=5, resumed=3, what="killed", workers=2)
RECORD = {"failures": [vars(FAILURE)], "lost_steps": 1}


class Driver:
    """An event loop whose callbacks keep what they receive."""

    def __init__(self, run: Path) -> None:
        self.seen: list[Any] = []
        answers = SimpleNamespace(remote=lambda *answer: self.seen.append(("answer", *answer)))
        self.loop = EventLoop(
            SimpleNamespace(answer=answers),
            task(run / "shards", run, steps=8),
            log_rows=lambda rows: self.seen.append(("rows", rows)),
            show=lambda step, terms: self.seen.append(("step", step, terms)),
            warn=lambda text: self.seen.append(("warning", text)),
            say=lambda text: self.seen.append(("said", text)),
            decide=lambda step, scores: step < 4,
        )


HANDLED = [
    (events.WorkerJoined(2, 1, "b"), [("said", "tug: 2 workers on a, b")]),
    (events.StepReached(3, {"l1": 0.5}), [("step", 3, {"l1": 0.5})]),
    (events.RowsLogged([{"step": 3.0}]), [("rows", [{"step": 3.0}])]),
    (events.Validated(4, {"ssim": 0.5}), [("answer", 4, False)]),
    (events.WarningRaised("careful"), [("warning", "careful")]),
    (
        events.AttemptFailed(FAILURE, RECORD),
        [
            (
                "warning",
                "tug was interrupted at step 5 of 8 (killed); resuming from the last checkpoint. "
                "Interruption 1 of this stage",
            )
        ],
    ),
    (
        events.AttemptStarted(3, 2, RECORD),
        [("warning", "tug resumes from step 3 with 2 worker(s); 1 steps repeated in all")],
    ),
    (events.AttemptStarted(0, 2, {"failures": [], "lost_steps": 0}), []),
    (events.NonFiniteFound("nan"), []),
    (events.RetriesExhausted("again"), []),
    (events.StorageUnavailable("full"), []),
]


@pytest.mark.parametrize(("event", "expected"), HANDLED, ids=lambda value: type(value).__name__)
def test_every_event_reaches_its_receiver(tmp_path: Path, event: events.Event, expected: list):
    driver = Driver(tmp_path)
    driver.loop.handle(events.WorkerJoined(2, 0, "a"))
    assert driver.seen == []
    driver.loop.handle(event)
    assert driver.seen == expected
    ends = isinstance(event, events.NonFiniteFound | events.RetriesExhausted | events.StorageUnavailable)
    assert bool(driver.loop.why_ended) == ends
    kept = getattr(event, "record", {"failures": [], "lost_steps": 0})
    assert read_failures(tmp_path / "tug") == kept


def test_no_event_is_left_out_above():
    assert {type(event) for event, _ in HANDLED} == set(get_args(events.Event))
