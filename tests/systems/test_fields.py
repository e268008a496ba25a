from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from posegen.systems.fields import replace_fields


@dataclass(frozen=True, kw_only=True)
class Described:
    count: int = 1
    share: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    size: tuple[int, int] = (1, 2)
    widths: tuple[float, ...] = ()
    root: Path = Path()
    pattern: str | None = None
    name: str = ""

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("count", "-0", 0),
        ("count", np.int64(3), 3),
        ("share", "2", 2.0),
        ("share", np.float32(0.25), 0.25),
        ("on", "Yes", True),
        ("on", "0", False),
        ("kind", "b", "b"),
        ("size", "64, 32", (64, 32)),
        ("size", [64, 32], (64, 32)),
        ("widths", "1,2.5,3", (1.0, 2.5, 3.0)),
        ("root", "some/where", Path("some/where")),
        ("pattern", "None", None),
        ("pattern", None, None),
        ("pattern", r"(\d+)_", r"(\d+)_"),
        ("name", "12", "12"),
    ],
)
def test_values(field, given, expected):
    value = getattr(replace_fields(Described(pattern="x"), {field: given}, "data"), field)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("count", "1e3", "data.count is '1e3'; expected a whole number"),
        ("on", 1, "expected true or false"),
        ("on", 2.0, "expected true or false"),
        ("kind", "c", "expected one of a, b"),
        ("kind", None, "expected one of a, b"),
        ("size", "64", "expected 2 of values such as a whole number, separated by commas"),
        ("size", "64,32.5", "expected 2 of values"),
        ("size", 64, "expected 2 of values"),
        ("widths", "1,x", "expected any number of values such as a number, separated by commas"),
        ("pattern", 3, "data.pattern is 3; expected text or none"),
        ("root", 3, "expected a path"),
        ("name", 3, "expected text"),
        ("counts", 3, "no setting 'data.counts'. Did you mean 'data.count'. There are: data.count, data.share"),
        ("share", 3.0, "no setting 'data.share'"),
        ("count", -1, "count must not be negative"),
    ],
)
def test_what_is_refused(field, given, message):
    with pytest.raises(ValueError, match=message):
        replace_fields(Described(), {field: given}, "data", fixed=("share",) if field == "share" else ())


def test_fields_are_set_at_once():
    described = replace_fields(Described(), {"count": "3", "size": "4,5"}, "data")
    assert described == Described(count=3, size=(4, 5))
