import dataclasses
import pickle
from dataclasses import dataclass

import pytest

from posegen.catalog import system
from posegen.stage import Constant, Halving, LinearDecay, Stage
from posegen.systems.vdg import LateFusionReconstruction


@dataclass(frozen=True)
class Step:
    """As much of a stage as wiring needs."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def wired(*stages, image="b", joints=""):
    described = dataclasses.replace(system("vdg"), image=image, joints=joints)
    object.__setattr__(described, "stages", stages)
    return described


FIRST, SECOND = Step("first", ("image",), ("a",)), Step("second", ("image", "a"), ("b",))


def test_stages_in_order_are_wired():
    assert wired(FIRST, SECOND).wiring_errors({"image"}) == []


def test_a_stage_cannot_read_what_comes_later():
    errors = wired(SECOND, FIRST).wiring_errors({"image"})
    assert errors == ["stage 'second' reads 'a', which nothing before it writes: ['image']"]


def test_a_column_is_written_once():
    assert wired(FIRST, SECOND).wiring_errors({"image", "a"}) == ["stage 'first' writes 'a', which exists already"]


def test_the_result_must_be_written():
    (error,) = wired(FIRST).wiring_errors({"image"})
    assert error.startswith("the result 'b' is written by no stage")


def test_every_error_is_reported():
    assert len(wired(SECOND, SECOND, image="c").wiring_errors(set())) == 6


def test_a_system_may_result_in_joints_alone_but_not_in_nothing():
    points = Step("points", ("image",), ("b_joints",))
    assert wired(points, image="", joints="b_joints").wiring_errors({"image"}) == []
    (error,) = wired(points, image="").wiring_errors({"image"})
    assert "no result" in error


def test_only_the_stages_that_feed_a_stage_come_before_it():
    """Which of them are run, frozen, while it trains."""
    aside, joint = Step("aside", ("a",), ("c",)), Step("joint", ("image",), ("d",))
    system = wired(FIRST, aside, SECOND, joint)
    assert [system.stages_before(index) for index in range(4)] == [[], [0], [0], []]
    through = wired(FIRST, Step("middle", ("a",), ("c",)), Step("last", ("c",), ("b",)))
    assert through.stages_before(2) == [0, 1]


def test_schedules():
    assert [Constant().factor(step) for step in (0, 10**6)] == [1, 1]
    assert [Halving(every=10).factor(step) for step in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    assert [LinearDecay(start=4, end=8).factor(step) for step in (0, 4, 6, 8, 9)] == [1, 1, 0.5, 0, 0]


def test_a_system_is_a_value():
    assert pickle.loads(pickle.dumps(system("vdg"))) == system("vdg")
    assert system("vdg") != system("vdg", variant="l1")
    assert isinstance(LateFusionReconstruction(), Stage)
    assert LateFusionReconstruction.name == "coarse"
    with pytest.raises(AttributeError):
        LateFusionReconstruction().width = 3
