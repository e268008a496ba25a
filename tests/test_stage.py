import pickle
from dataclasses import dataclass

import pytest

from posegen.data.pose_maps import Discs
from posegen.stage import Constant, Halving, LinearDecay, Stage, System
from posegen.systems.vdg import Reconstruction, vdg


@dataclass(frozen=True)
class Step:
    """As much of a stage as wiring needs."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def wired(*stages, image="b"):
    system = System(
        name="x", variant="full", paper="", size=(32, 16), pose_maps=Discs(), stages=vdg().stages, image=image
    )
    object.__setattr__(system, "stages", stages)
    return system


FIRST, SECOND = Step("first", ("picture",), ("a",)), Step("second", ("picture", "a"), ("b",))


def test_stages_in_order_are_wired():
    assert wired(FIRST, SECOND).wiring_errors({"picture"}) == []


def test_a_stage_cannot_read_what_comes_later():
    errors = wired(SECOND, FIRST).wiring_errors({"picture"})
    assert errors == ["stage 'second' reads 'a', which nothing before it writes: ['picture']"]


def test_a_column_is_written_once():
    assert wired(FIRST, SECOND).wiring_errors({"picture", "a"}) == ["stage 'first' writes 'a', which exists already"]


def test_the_result_must_be_written():
    (error,) = wired(FIRST).wiring_errors({"picture"})
    assert error.startswith("the result 'b' is written by no stage")


def test_every_error_is_reported():
    assert len(wired(SECOND, SECOND, image="c").wiring_errors(set())) == 6


def test_schedules():
    assert [Constant().factor(step) for step in (0, 10**6)] == [1, 1]
    assert [Halving(every=10).factor(step) for step in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]
    assert [LinearDecay(start=4, end=8).factor(step) for step in (0, 4, 6, 8, 9)] == [1, 1, 0.5, 0, 0]


def test_a_system_is_a_value():
    assert pickle.loads(pickle.dumps(vdg())) == vdg()
    assert vdg() != vdg(variant="l1")
    assert isinstance(Reconstruction(), Stage)
    assert Reconstruction.name == "coarse"
    with pytest.raises(AttributeError):
        Reconstruction().steps = 3
