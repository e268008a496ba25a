"""What is made of interruptions: where they were, what they cost, when to stop trying."""

from pathlib import Path

import pytest

from posegen.storage.store import Store
from posegen.training.events import (
    CAREFUL,
    FRUITLESS,
    EventQueue,
    Failure,
    lost_steps,
    merge_records,
    one_line,
    read_failures,
    stop_reason,
    write_failures,
)


def failure(step: int, what: str = "broken batch", resumed: int = 0, preempted: bool = False) -> Failure:
    return Failure(step=step, resumed=resumed, what=what, workers=2, preempted=preempted)


def test_the_same_failure_at_the_same_step_thrice_is_hopeless():
    poison = [failure(57, "index 12 is out of bounds") for _ in range(3)]
    assert stop_reason(poison[:2]) == ""
    assert "the same failure came 3 times at step 57" in stop_reason(poison)
    assert "index 12 is out of bounds" in stop_reason(poison)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("worker 4711 died at 0x7f00aa", "worker 815 died at 0x7f11bb"),
        ("node 5f2e9c01aa77 is lost after 12 s", "node 01aa775f2e9c is lost after 9 s"),
    ],
)
def test_addresses_ids_and_times_do_not_make_a_failure_another(first: str, second: str):
    assert failure(1, first).kind == failure(1, second).kind
    assert stop_reason([failure(9, first), failure(9, second), failure(9, first)])


@pytest.mark.parametrize(
    "failures",
    [
        [failure(57), failure(57), failure(58)],
        [failure(57), failure(57), failure(57, "another one")],
        [failure(57), failure(57), failure(57, preempted=True)],
        [failure(57)] * 2,
    ],
    ids=["another step", "another failure", "a machine was taken away", "twice"],
)
def test_others_are_tried_again(failures: list[Failure]):
    assert stop_reason(failures) == ""


def test_many_failures_without_a_checkpoint_are_hopeless():
    various = [failure(step, resumed=40) for step in range(41, 41 + FRUITLESS)]
    assert stop_reason(various[:-1]) == ""
    assert f"{FRUITLESS} failures in a row brought no new checkpoint" in stop_reason(various)
    moving = [failure(10 * n + 1, resumed=10 * n) for n in range(3 * FRUITLESS)]
    assert stop_reason(moving) == ""


def test_lost_steps_are_those_carried_out_again():
    """Failed in step 57 after the checkpoint of step 40: 41 to 56 were carried out, and are again."""
    assert lost_steps([failure(57)], [40]) == 16
    assert lost_steps([failure(57), failure(41)], [40, 40]) == 16
    assert lost_steps([failure(57)], []) == 0, "it has not gone on yet"


def test_an_attempts_failure_is_where_the_first_worker_met_it():
    attempts = EventQueue()
    assert attempts.start_attempt(20, workers=2) == 0
    attempts.reach(25)
    attempts.report_error(27, "ValueError: broken batch")
    attempts.report_error(27, "connection closed by peer")
    attempts.fail_attempt("seen from outside", preempted=False, died=False)
    assert attempts.failures[-1] == Failure(27, 20, "ValueError: broken batch", 2)
    assert attempts.start_attempt(20, workers=2) == 27 + CAREFUL, "each step is announced until past the failure"


def test_a_worker_that_died_is_the_cause_and_not_what_the_others_say():
    attempts = EventQueue()
    attempts.start_attempt(0, workers=2)
    attempts.reach(12)
    attempts.report_error(12, "connection closed by peer")
    attempts.fail_attempt("its node has died", preempted=False, died=True)
    assert attempts.failures[-1] == Failure(12, 0, "its node has died", 2)


def test_an_attempt_that_just_begins_anew_was_ended_by_ray():
    attempts = EventQueue()
    attempts.start_attempt(0, workers=2)
    attempts.reach(33)
    attempts.start_attempt(30, workers=1)
    (changed,) = attempts.failures
    assert (changed.step, changed.what, changed.preempted) == (33, "the number of workers changed from 2 to 1", True)
    assert attempts.record()["lost_steps"] == 2


def test_what_an_error_says_is_its_last_line_without_advice():
    died = "RayActorError\n\nWorker unexpectedly exits. End of file. Some common causes include: (1) it was killed"
    assert one_line(Exception(died)) == "Worker unexpectedly exits. End of file."
    assert one_line(Exception("")) == "Exception('')"


def test_records_add_up_over_commands(tmp_path: Path):
    store = Store.of(tmp_path)
    attempts = EventQueue()
    attempts.start_attempt(0, workers=1)
    attempts.reach(5)
    attempts.fail_attempt("killed", preempted=False, died=False)
    attempts.start_attempt(0, workers=1)
    write_failures(store, "stages/coarse", attempts.record())
    before = read_failures(tmp_path / "stages" / "coarse")
    assert before == {"failures": [vars(failure(5, "killed")) | {"workers": 1}], "lost_steps": 4}
    twice = merge_records(before, attempts.record())
    assert (len(twice["failures"]), twice["lost_steps"]) == (2, 8)
    assert read_failures(tmp_path / "stages" / "refinement") == {"failures": [], "lost_steps": 0}
