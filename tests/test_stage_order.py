"""Stages that wait for one another."""

import threading

import pytest

from posegen.runs.pipeline import most_at_once, run_in_order

CHAIN = {0: frozenset(), 1: frozenset({0}), 2: frozenset({0, 1})}
DIAMOND = {0: frozenset(), 1: frozenset({0}), 2: frozenset({0}), 3: frozenset({1, 2})}


def test_how_many_are_ready_at_once():
    assert most_at_once({}) == 0
    assert most_at_once(CHAIN) == 1
    assert most_at_once(DIAMOND) == 2
    assert most_at_once({0: frozenset(), 1: frozenset(), 2: frozenset()}) == 3


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("waits", [CHAIN, DIAMOND])
def test_everything_is_done_after_what_it_waits_for(waits, at_once):
    done: list[int] = []

    def work(number: int) -> None:
        assert waits[number] <= set(done)
        done.append(number)

    run_in_order(waits, at_once, work)
    assert sorted(done) == sorted(waits)


def test_two_that_do_not_wait_for_each_other_are_under_way_together():
    meeting = threading.Barrier(2, timeout=20)

    def work(number: int) -> None:
        if number in (1, 2):
            meeting.wait()  # it would break if one began after the other's end

    run_in_order(DIAMOND, 2, work)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_failure_is_raised_and_begins_nothing_more(at_once):
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ValueError("stage 1 failed")

    with pytest.raises(ValueError, match="stage 1 failed"):
        run_in_order(DIAMOND, at_once, work)
    assert 3 not in begun
