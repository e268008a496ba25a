"""Loss curves: ticks, running means and scaled points worked out by hand."""

import math
from itertools import pairwise

import pytest

from posegen.report.drawing import HEIGHT, POINTS, WIDTH, charts, round_ticks, running_mean


def points(polyline: str) -> list[tuple[float, float]]:
    return [tuple(float(number) for number in point.split(",")) for point in polyline.split()]


def test_running_mean():
    assert running_mean([1, 3, 5, 7], 2) == [1, 2, 4, 6]
    assert running_mean([1, 3, 5], 1) == [1, 3, 5]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]), (0, 1000, ["0", "200", "400", "600", "800", "1000"]),
     (-0.03, 0.02, ["-0.03", "-0.02", "-0.01", "0", "0.01", "0.02"])],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert [label for _, label in round_ticks(low, high, 5)] == expected


def test_a_straight_line_is_drawn_straight_from_left_to_right():
    (chart,) = charts([{"step": step, "generator/l1": step / 10} for step in range(1, 11)])
    drawn = points(chart.raw)
    assert chart.title == "generator/l1"
    assert (drawn[0][0], drawn[-1][0]) == (0, WIDTH)
    assert drawn[0][1] > drawn[-1][1]  # y grows downwards
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(drawn)]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.02)


def test_everything_stays_inside_the_plot():
    curve = [{"step": step, "critic/real": math.sin(step) * (100 if step == 7 else 1)} for step in range(500)]
    (chart,) = charts(curve)
    for x, y in points(chart.raw) + points(chart.smooth):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert all(0 <= tick.at <= WIDTH for tick in chart.x_ticks)
    assert all(0 <= tick.at <= HEIGHT for tick in chart.y_ticks)


def test_terms_that_come_late_or_are_not_finite():
    curve = [{"step": 1, "a": 1.0}, {"step": 2, "a": math.nan, "b": 2.0}, {"step": 3, "a": 3.0, "b": 2.0, "c": 1.0}]
    drawn = charts(curve)
    assert [chart.title for chart in drawn] == ["a", "b"]  # one value is no curve
    assert all("nan" not in chart.raw + chart.smooth for chart in drawn)


def test_long_curves_are_thinned_and_keep_their_end():
    (chart,) = charts([{"step": step, "a": float(step)} for step in range(10 * POINTS + 3)])
    drawn = points(chart.smooth)
    assert len(drawn) <= POINTS
    assert drawn[-1][0] == WIDTH


def test_no_curve():
    assert charts([]) == []
