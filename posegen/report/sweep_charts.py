"""The axes and charts of a sweep's page as what vector drawings need: places, polylines, ticks, colours."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from posegen.report.drawing import Tick, round_ticks
from posegen.report.sweep_content import Sweep, is_finite, score_of, value_text
from posegen.training.trials import Trial, Value

SCATTER, CURVES = (320, 190), (800, 300)  # width and height of the plots, in the drawings' units
NEAR, APART, TALL = 150, 280, 270  # of the parallel coordinates: least and most from axis to axis, and their height
WHOLE = 840  # that the parallel coordinates fill, where the distances allow
ROOM = 0.05  # of an axis beyond the lowest and the highest value
FAR = 3  # quartile distances beyond the quartiles: scores farther off are drawn at the axis's end
CORRELATED = 5  # trials that a rank correlation needs


@dataclass(frozen=True)
class Axis:
    """Where a value lies between the low end, 0, and the high end, 1. `Tick.at` is on the same scale."""

    low: float = 0.0
    high: float = 1.0
    ticks: Sequence[Tick] = ()
    logarithmic: bool = False
    names: Sequence[str] = ()  # of one whose values have no distances: they are spread evenly

    def place(self, value: Any) -> float | None:
        """A value beyond an end is put there; None for one that is missing or has no place."""
        if self.names:
            name = value_text(value)
            return (self.names.index(name) + 0.5) / len(self.names) if name in self.names else None
        if not is_finite(value) or (self.logarithmic and value <= 0):
            return None
        low, high, here = (math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return min(max((here - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Scatter:
    """One point a trial: its number, x, y. Lengths in SCATTER, y downwards."""

    path: str  # or what else is on the x axis
    y: str
    note: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[tuple[int, float, float]]
    paper: float | None = None  # x of the paper's value
    front: str = ""  # a polyline's points


@dataclass(frozen=True)
class Upright:
    """One axis of the parallel coordinates, with its marks from the top; lengths in the distance of axes and TALL."""

    path: str
    at: float
    ticks: Sequence[Tick]
    paper: float | None


@dataclass(frozen=True)
class Learning:
    """A trial's score as it was judged: a polyline's points and the last of them, in CURVES, y downwards."""

    trial: int
    points: str
    end: tuple[float, float]


def number_axis(low: float, high: float, *, whole: bool = False) -> Axis:
    """A linear axis of round ticks with a little room; of whole ticks for whole numbers."""
    room = ROOM * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    marks = [(at, value_text(float(label), 6)) for at, label in round_ticks(low, high, 5)]
    return Axis(low, high, [Tick((x - low) / (high - low), t) for x, t in marks if not whole or x == round(x)])


def logarithmic_axis(low: float, high: float) -> Axis:
    """Ticks at the powers of ten, and at their doubles and halves where there are fewer than three powers."""
    room = 10 ** (ROOM * math.log10(high / low) or 0.3)
    axis = Axis(low / room, high * room, logarithmic=True)
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    powers = [10.0**n for n in range(first, last + 1, max(1, (last - first) // 6))]
    inside = [x for x in powers if axis.low <= x <= axis.high]
    if len(inside) < 3:
        inside = [x * factor for x in powers for factor in (1, 2, 5) if axis.low <= x * factor <= axis.high]
    return Axis(axis.low, axis.high, [Tick(axis.place(x) or 0.0, value_text(x)) for x in inside], logarithmic=True)


def named_axis(values: Collection[Value]) -> Axis:
    """Each value's middle in its even share of the axis: numbers by size, then words by their letters."""
    ordered = sorted(values, key=lambda value: (not is_finite(value), value if is_finite(value) else 0, str(value)))
    names = list(dict.fromkeys(value_text(value) for value in ordered))
    return Axis(ticks=[Tick((n + 0.5) / len(names), name) for n, name in enumerate(names)], names=names)


def setting_axis(values: Sequence[Value | None], *, logarithmic: bool = False, choice: bool = False) -> Axis:
    """The axis of a searched field that holds all its values; logarithmic only where all are above zero.

    Words, yes and no are spread evenly, and numbers too where they are a `choice` of a few.
    """
    known = [value for value in values if value is not None]
    if any(isinstance(value, bool | str) for value in known):
        return named_axis(known)
    numbers = [value for value in known if is_finite(value) and not isinstance(value, str)]
    if not numbers:
        return Axis()
    if logarithmic and min(numbers) > 0:
        return logarithmic_axis(min(numbers), max(numbers))
    if choice:
        return named_axis(numbers)
    return number_axis(min(numbers), max(numbers), whole=all(isinstance(value, int) for value in numbers))


def score_axis(scores: Sequence[float]) -> Axis:
    """A linear axis of all scores but those that are far off, so that one that exploded hides no other."""
    if not scores:
        return Axis()
    first, third = np.quantile(scores, (0.25, 0.75))
    far = FAR * (third - first)
    kept = [score for score in scores if first - far <= score <= third + far] or scores
    return number_axis(float(min(kept)), float(max(kept)))


def axis_of(sweep: Sweep, path: str) -> Axis:
    values = [*(trial.settings.get(path) for trial in sweep.trials), sweep.paper.get(path)]
    choice = sweep.space[path].startswith("one of")
    return setting_axis(values, logarithmic=path in sweep.logarithmic, choice=choice)


def colour(level: float, *, dark: bool) -> str:
    """Viridis, the better the farther from the ground: towards its dark end on white, its bright end on black.

    Viridis (Smith and van der Walt, 2015) is perceptually uniform and keeps its order for colour-blind people.
    """
    shade = 0.28 + 0.72 * level if dark else 0.74 - 0.68 * level
    blue, green, red = cv2.applyColorMap(np.full((1, 1), round(255 * shade), np.uint8), cv2.COLORMAP_VIRIDIS)[0, 0]
    return f"#{red:02x}{green:02x}{blue:02x}"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, ties having their mean rank; None for fewer than `CORRELATED` pairs or for equal values."""
    if len(first) < CORRELATED or min(len(set(first)), len(set(second))) < 2:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def between(sweep: Sweep) -> int:
    """From axis to axis of the parallel coordinates."""
    return max(NEAR, min(APART, WHOLE // max(1, len(sweep.paths))))


def uprights(sweep: Sweep) -> list[Upright]:
    """The axes of the parallel coordinates: one a searched path, then the first metric."""
    axes = {path: axis_of(sweep, path) for path in sweep.paths}
    values, step = sweep.paper, between(sweep)
    drawn = [
        _upright(path, step * n, axis, axis.place(values.get(path))) for n, (path, axis) in enumerate(axes.items())
    ]
    return [*drawn, _upright(sweep.metrics[0], step * len(axes), _scores_axis(sweep, sweep.metrics[0]), None)]


def _upright(path: str, at: int, axis: Axis, paper: float | None) -> Upright:
    return Upright(path, at, _down(axis, TALL), None if paper is None else TALL * (1 - paper))


def _scores_axis(sweep: Sweep, metric: str) -> Axis:
    return score_axis([score for trial in sweep.trials if (score := score_of(trial, metric)) is not None])


def _down(axis: Axis, height: float) -> list[Tick]:
    return [Tick(height * (1 - tick.at), tick.label) for tick in axis.ticks]


def _across(axis: Axis, width: float) -> list[Tick]:
    return [Tick(width * tick.at, tick.label) for tick in axis.ticks]


def parallel_lines(sweep: Sweep) -> dict[int, str]:
    """Each trial's polyline through the axes, by its number; a value that has no place is left out."""
    axes = [*(axis_of(sweep, path) for path in sweep.paths), _scores_axis(sweep, sweep.metrics[0])]
    lines, step = {}, between(sweep)
    for trial in sweep.trials:
        values = [*(trial.settings.get(path) for path in sweep.paths), score_of(trial, sweep.metrics[0])]
        places = [(n, axis.place(value)) for n, (axis, value) in enumerate(zip(axes, values, strict=True))]
        lines[trial.number] = _polyline([(step * n, TALL * (1 - at)) for n, at in places if at is not None])
    return {number: points for number, points in lines.items() if " " in points}


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _points(trials: Sequence[Trial], x: Axis, y: Axis, values: Sequence[Sequence[Any]]) -> list:
    """Trials that have both values, with the places of these."""
    places = [(trial.number, x.place(right), y.place(up)) for trial, (right, up) in zip(trials, values, strict=True)]
    return [(n, SCATTER[0] * a, SCATTER[1] * (1 - b)) for n, a, b in places if a is not None and b is not None]


def scatters(sweep: Sweep) -> list[Scatter]:
    """One for each searched path: the first metric's score against the value."""
    name, y = sweep.metrics[0], _scores_axis(sweep, sweep.metrics[0])
    drawn = []
    for path in sweep.paths:
        x = axis_of(sweep, path)
        values = [(trial.settings.get(path), score_of(trial, name)) for trial in sweep.trials]
        at, points = x.place(sweep.paper.get(path)), _points(sweep.trials, x, y, values)
        paper = None if at is None else SCATTER[0] * at
        drawn.append(
            Scatter(path, name, _trend(sweep, path), _across(x, SCATTER[0]), _down(y, SCATTER[1]), points, paper)
        )
    return drawn


def _trend(sweep: Sweep, path: str) -> str:
    """The rank correlation of a field's values with the first metric's over the trials that finished."""
    finished = [t for t in sweep.trials if t.state == "finished" and score_of(t, sweep.metrics[0]) is not None]
    values = [trial.settings.get(path) for trial in finished]
    if not all(is_finite(value) for value in values):
        return ""
    found = rank_correlation(values, [trial.score(sweep.metrics[0]) for trial in finished])  # pyright: ignore[reportArgumentType]
    return "" if found is None else f"ρ {found:+.2f}".replace("-", "−")


def pareto(sweep: Sweep) -> Scatter | None:
    """The second metric against the first, the trials of the front joined; None of one metric."""
    if len(sweep.metrics) < 2:
        return None
    across, up = sweep.metrics[:2]
    x, y = _scores_axis(sweep, across), _scores_axis(sweep, up)
    values = [(score_of(trial, across), score_of(trial, up)) for trial in sweep.trials]
    points = _points(sweep.trials, x, y, values)
    front = _polyline(sorted((right, down) for number, right, down in points if number in sweep.front))
    return Scatter(across, up, "", _across(x, SCATTER[0]), _down(y, SCATTER[1]), points, front=front)


def learning(sweep: Sweep) -> tuple[list[Learning], list[Tick], list[Tick], list[Tick]]:
    """The first metric against the step: a line for each judged trial, ticks of both axes, and the rungs."""
    name = sweep.metrics[0]
    judged = {
        t.number: [(row["step"], row.get(name)) for row in t.judged if is_finite(row.get(name))] for t in sweep.trials
    }
    y = score_axis([score for rows in judged.values() for _, score in rows])  # pyright: ignore[reportArgumentType]
    last = max([1, sweep.about["budget"], *(step for rows in judged.values() for step, _ in rows)])
    steps = [Tick(CURVES[0] * at / last, f"{float(label):,.0f}") for at, label in round_ticks(0, last, 6)]
    rungs = [Tick(CURVES[0] * rung / last, f"{rung:,}") for rung in sweep.rungs if rung <= last]
    lines = []
    for number, rows in judged.items():
        points = [(CURVES[0] * step / last, CURVES[1] * (1 - (y.place(score) or 0.0))) for step, score in rows]
        lines += [Learning(number, _polyline(points), points[-1])] if points else []
    return lines, steps, _down(y, CURVES[1]), rungs
