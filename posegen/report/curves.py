"""Loss curves as what a vector drawing needs: scaled points, a running mean, round ticks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 150  # of the plot's area, in the drawing's units
POINTS = 400  # drawn of a curve at most
SMOOTHING = 0.05  # part of the curve that the running mean looks back over


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One term against the step. `raw` and `smooth` are polylines' points, y downwards, in WIDTH x HEIGHT."""

    title: str
    last: str  # the running mean at the end
    raw: str
    smooth: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def charts(curve: Sequence[Mapping[str, float]]) -> list[Chart]:
    """One chart for every term of a stage's curve, rows of {"step": n, "<player>/<term>": value}.

    Values that are missing or not finite are left out; a term with fewer than two values has no chart.
    """
    terms = dict.fromkeys(name for row in curve for name in row if name != "step")
    series = {
        name: [(row["step"], row[name]) for row in curve if math.isfinite(row.get(name, math.nan))] for name in terms
    }
    return [_chart(name, points) for name, points in series.items() if len(points) > 1]


def _chart(title: str, points: Sequence[tuple[float, float]]) -> Chart:
    steps, values = [step for step, _ in points], [value for _, value in points]
    smooth = running_mean(values, max(1, round(len(values) * SMOOTHING)))
    low, high = _span(values)
    left, right = steps[0], max(steps[-1], steps[0] + 1)

    def polyline(heights: Sequence[float]) -> str:
        every = math.ceil(len(heights) / POINTS)
        kept = list(zip(steps, heights, strict=True))[::-every][::-1]
        return " ".join(
            f"{(x - left) / (right - left) * WIDTH:.1f},{(high - y) / (high - low) * HEIGHT:.1f}" for x, y in kept
        )

    return Chart(
        title=title,
        last=f"{smooth[-1]:.4g}",
        raw=polyline([min(max(value, low), high) for value in values]),
        smooth=polyline([min(max(value, low), high) for value in smooth]),
        x_ticks=[Tick((x - left) / (right - left) * WIDTH, label) for x, label in round_ticks(left, right, 6)],
        y_ticks=[Tick((high - y) / (high - low) * HEIGHT, label) for y, label in round_ticks(low, high, 4)],
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: all values but the highest and lowest hundredth, and a little room."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    low, high = ordered[cut], ordered[-1 - cut]
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and of the up to `window` - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def round_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high], and how to print them."""
    exact = (high - low) / count
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(n * step, f"{n * step:.6g}") for n in range(first, last + 1)]
