"""Content of the sweep page: records, comparison, sample images, formatted values, and the geometry of its charts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from scipy.stats import spearmanr

from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import EVERY, Metric, Uint8Image
from posegen.report.drawing import Tick, round_ticks
from posegen.report.panels import Panel, given_panels
from posegen.runs.pipeline import tracking_address
from posegen.tuning.plan import SweepPlan
from posegen.tuning.ray_tune import rungs
from posegen.tuning.results import Comparison, Trial, Value, compare_over_seeds, pareto_front, ranked
from posegen.tuning.trainable import read_samples, sample_pairs


@dataclass(frozen=True, kw_only=True)
class SweepContent:
    """Everything on the page except images. Paths are dotted paths of searched fields; steps are per trial."""

    about: Mapping[str, Any]
    # system, variant, dataset, paper, size, stand_ins, budget (steps), search, scheduler, seed
    metrics: Sequence[str]  # of validation; the first one decides which trial is best
    space: Mapping[str, str]  # path -> the distribution in words; "one of ..." gets an axis with even distances
    logarithmic: Collection[str]  # paths with a logarithmic axis
    rungs: Sequence[int]  # steps at which a trial may be stopped
    trials: Sequence[Trial]
    best: int | None  # number of the best trial; None if none finished
    front: Collection[int]  # numbers of the trials on the Pareto front, with several metrics
    paper: Mapping[str, Value]  # the paper's values of the searched paths
    validation: Mapping[str, int]  # pairs, persons
    shared: Mapping[str, Any]  # stages trained once for all trials, their steps, and the steps saved
    final: Comparison | None  # best against paper on the test split; None before it is made
    command: Sequence[str]  # command lines that resume or repeat the sweep
    tracking: str  # the command that opens MLflow; "" without tracking
    settings: Mapping[str, Any]  # every setting by dotted path

    @property
    def paths(self) -> list[str]:
        """The searched paths."""
        return list(self.space)

    @property
    def metric(self) -> Metric:
        """The metric that decides which trial is best."""
        return EVERY[self.metrics[0]]

    @property
    def papers_trial(self) -> Trial | None:
        """The trial with the paper's values of all searched settings."""
        asked = {path: self.paper.get(path) for path in self.paths}
        return next((t for t in self.trials if asked and {p: t.settings.get(p) for p in asked} == asked), None)


@dataclass(frozen=True)
class SampleRow:
    """One fixed validation pair with the results of the shown trials."""

    source: str
    target: str
    given: Sequence[Panel]  # source, target pose, target
    results: Mapping[int, Uint8Image]  # by trial number


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_text(value: Any, digits: int = 4) -> str:
    """Format a setting for reading, numbers rounded to some digits."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item, digits) for item in value) or "none"
    if isinstance(value, int) or (is_finite(value) and value.is_integer() and abs(value) < 1e6):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def score_of(trial: Trial, metric: str) -> float | None:
    """Return the last validation's value of a score, or None if it is missing or not finite."""
    value = trial.score(metric)
    return value if is_finite(value) else None


def sweep_content(plan: SweepPlan, trials: Sequence[Trial], best: Trial, command: Sequence[str]) -> SweepContent:
    """Gather the page's content from a sweep's records."""
    system, shards = plan.base.system, plan.base.open_shards()
    pairs = plan.pairs("validation")
    front = pareto_front(trials, plan.metrics) if len(plan.metrics) > 1 else []
    shared = [stage.name for stage in system.stages[: plan.first]]
    return SweepContent(
        about={
            "system": system.name,
            "variant": system.variant,
            "dataset": plan.base.dataset,
            "paper": system.paper,
            "size": list(system.size),
            "budget": plan.budget,
            "search": plan.search,
            "scheduler": plan.scheduler,
            "seed": plan.base.seed,
            "stand_ins": system.stand_ins(),
        },
        metrics=plan.metrics,
        space=plan.space.descriptions(),
        logarithmic=plan.space.logarithmic(),
        rungs=rungs(plan.budget) if plan.scheduler == "asha" else [],
        trials=trials,
        best=best.number,
        front=[trial.number for trial in front],
        paper=plan.paper,
        validation={"pairs": len(pairs), "persons": _persons(shards, "validation", pairs)},
        shared={"stages": shared, "steps": plan.steps_shared, "saved": plan.steps_saved},
        final=final_comparison(plan),
        command=command,
        tracking=tracking_address(plan.run),
        settings=plan.settings,
    )


def final_comparison(plan: SweepPlan) -> Comparison | None:
    """Compare the best weights with the paper's on the test people; None if skipped or not done yet."""
    finals = [trial for trial in plan.finals.read() if trial.ended]
    if not finals or not plan.seeds:
        return None
    pairs = plan.pairs("test")
    persons = _persons(plan.base.open_shards(), "test", pairs)
    return compare_over_seeds(finals, plan.metrics[0], pairs=len(pairs), persons=persons)


def _persons(shards: Shards, split: str, pairs: Sequence[int]) -> int:
    identities = shards.identities(split)
    return len({identities[target] for _, target in shards.pair_names(split, pairs)})


def shown_trials(plan: SweepPlan, trials: Sequence[Trial], best: Trial) -> dict[int, str]:
    """Return the labels of the trials shown with images: the best, the paper's, and the worst finished one."""
    finished = ranked(trials, plan.metrics[0])
    papers = [trial for trial in finished if dict(trial.settings) == plan.paper]
    labelled = [("best", best), *(("paper's weights", trial) for trial in papers[:1])]
    labelled.append(("worst of the finished", finished[-1]))
    labels: dict[int, list[str]] = {}
    for label, trial in labelled:
        labels.setdefault(trial.number, []).append(label)
    return {number: ", ".join([*each, f"trial {number}"]) for number, each in labels.items()}


def sample_rows(plan: SweepPlan, shown: Mapping[int, str]) -> list[SampleRow]:
    """Return the fixed validation pairs with the images of the shown trials."""
    files = {number: plan.store.fetch(f"{plan.folder.prefix(number)}/samples.png") for number in shown}
    results = {number: read_samples(path, plan.base.system.size[1]) for number, path in files.items()}
    return [
        replace(row, results={number: images[index] for number, images in results.items()})
        for index, row in enumerate(given_rows(plan, "validation", sample_pairs(plan.pairs("validation"))))
    ]


def given_rows(plan: SweepPlan, split: str, pairs: Sequence[int]) -> list[SampleRow]:
    """Return pairs of a split without results: source image, target pose, target."""
    shards = plan.base.open_shards()
    given = given_panels(shards, split, pairs)
    return [SampleRow(*names, panels, {}) for names, panels in zip(shards.pair_names(split, pairs), given, strict=True)]


SCATTER, CURVES = (320, 190), (800, 300)  # width and height of the plots, in the drawings' units
NEAR, APART, TALL = 150, 280, 270  # parallel coordinates: least and most distance of axes, and their height
WHOLE = 840  # width that the parallel coordinates fill if the distances allow
ROOM = 0.05  # of an axis beyond the lowest and the highest value
FAR = 3  # interquartile ranges beyond the quartiles: scores farther off are drawn at the axis's end
CORRELATED = 5  # trials that a rank correlation needs


@dataclass(frozen=True)
class Axis:
    """Maps values from the lower bound, 0, to the upper bound, 1. `Tick.at` has the same scale."""

    low: float = 0.0
    high: float = 1.0
    ticks: Sequence[Tick] = ()
    logarithmic: bool = False
    names: Sequence[str] = ()  # categories, spread evenly

    def position(self, value: Any) -> float | None:
        """Return a value's position, clipped to the axis; None if it is missing or cannot be placed."""
        if self.names:
            name = value_text(value)
            return (self.names.index(name) + 0.5) / len(self.names) if name in self.names else None
        if not is_finite(value) or (self.logarithmic and value <= 0):
            return None
        low, high, at = (math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return min(max((at - low) / (high - low), 0.0), 1.0)

    def upward(self, height: float) -> list[Tick]:
        """Return the ticks of a vertical axis."""
        return [Tick(height * (1 - tick.at), tick.label) for tick in self.ticks]

    def rightward(self, width: float) -> list[Tick]:
        """Return the ticks of a horizontal axis."""
        return [Tick(width * tick.at, tick.label) for tick in self.ticks]


@dataclass(frozen=True)
class Scatter:
    """One point per trial: its number, x, y; lengths in SCATTER."""

    path: str  # or the metric on the x axis
    y: str
    note: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    points: Sequence[tuple[int, float, float]]
    paper: float | None = None  # x of the paper's value
    front: str = ""  # a polyline's points


@dataclass(frozen=True)
class ParallelAxis:
    """One axis of the parallel coordinates, with its ticks from the top."""

    path: str
    at: float
    ticks: Sequence[Tick]
    paper: float | None


@dataclass(frozen=True)
class LearningCurve:
    """A trial's validation scores: a polyline's points and the last of them; lengths in CURVES."""

    trial: int
    points: str
    end: tuple[float, float]


def number_axis(low: float, high: float, *, whole: bool = False) -> Axis:
    """Return a linear axis with round ticks and a margin; `whole` keeps only ticks at whole numbers."""
    room = ROOM * (high - low)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    marks = [(at, value_text(float(label), 6)) for at, label in round_ticks(low, high, 5)]
    return Axis(low, high, [Tick((x - low) / (high - low), t) for x, t in marks if not whole or x == round(x)])


def logarithmic_axis(low: float, high: float) -> Axis:
    """Return a logarithmic axis with ticks at powers of ten; also at 2 and 5 times them if fewer than three fit."""
    room = 10 ** (ROOM * math.log10(high / low) or 0.3)
    axis = Axis(low / room, high * room, logarithmic=True)
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    powers = [10.0**n for n in range(first, last + 1, max(1, (last - first) // 6))]
    inside = [x for x in powers if axis.low <= x <= axis.high]
    if len(inside) < 3:
        inside = [x * factor for x in powers for factor in (1, 2, 5) if axis.low <= x * factor <= axis.high]
    ticks = [Tick(axis.position(x) or 0.0, value_text(x)) for x in inside]
    return Axis(axis.low, axis.high, ticks, logarithmic=True)


def named_axis(values: Collection[Value]) -> Axis:
    """Return an axis of categories in even shares: numbers by size, then words alphabetically."""
    ordered = sorted(values, key=lambda value: (not is_finite(value), value if is_finite(value) else 0, str(value)))
    names = list(dict.fromkeys(value_text(value) for value in ordered))
    return Axis(ticks=[Tick((n + 0.5) / len(names), name) for n, name in enumerate(names)], names=names)


def setting_axis(values: Sequence[Value | None], *, logarithmic: bool = False, choice: bool = False) -> Axis:
    """Return the axis of a searched field; logarithmic only if all values are positive.

    Words and booleans are spread evenly, and so are numbers that are a `choice` of a few.
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
    """Return a linear axis of all scores but outliers, so that one exploded score hides no other."""
    if not scores:
        return Axis()
    first, third = np.quantile(scores, (0.25, 0.75))
    far = FAR * (third - first)
    kept = [score for score in scores if first - far <= score <= third + far] or scores
    return number_axis(float(min(kept)), float(max(kept)))


def path_axis(content: SweepContent, path: str) -> Axis:
    """Return the axis of a searched path over all trials and the paper's value."""
    values = [*(trial.settings.get(path) for trial in content.trials), content.paper.get(path)]
    choice = content.space[path].startswith("one of")
    return setting_axis(values, logarithmic=path in content.logarithmic, choice=choice)


def _metric_axis(content: SweepContent, metric: str) -> Axis:
    return score_axis([score for trial in content.trials if (score := score_of(trial, metric)) is not None])


def colour(level: float, *, dark: bool) -> str:
    """Return viridis at a level from 0 to 1: better is darker on a white page, brighter on a black one.

    Viridis (Smith and van der Walt, 2015) is perceptually uniform and keeps its order for colour-blind people.
    """
    shade = 0.28 + 0.72 * level if dark else 0.74 - 0.68 * level
    blue, green, red = cv2.applyColorMap(np.full((1, 1), round(255 * shade), np.uint8), cv2.COLORMAP_VIRIDIS)[0, 0]
    return f"#{red:02x}{green:02x}{blue:02x}"


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's correlation, ties having their mean rank; None below `CORRELATED` pairs or for equal values."""
    if len(first) < CORRELATED or min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]


def axis_distance(content: SweepContent) -> int:
    """Return the distance between axes of the parallel coordinates."""
    return max(NEAR, min(APART, WHOLE // max(1, len(content.paths))))


def parallel_axes(content: SweepContent) -> list[ParallelAxis]:
    """Return the axes of the parallel coordinates: one per searched path, then the first metric."""
    step, metric = axis_distance(content), content.metrics[0]
    axes = []
    for index, path in enumerate(content.paths):
        axis = path_axis(content, path)
        paper = axis.position(content.paper.get(path))
        height = None if paper is None else TALL * (1 - paper)
        axes.append(ParallelAxis(path, step * index, axis.upward(TALL), height))
    return [*axes, ParallelAxis(metric, step * len(axes), _metric_axis(content, metric).upward(TALL), None)]


def parallel_lines(content: SweepContent) -> dict[int, str]:
    """Return each trial's polyline through the axes, by number; values that cannot be placed are skipped."""
    metric, step = content.metrics[0], axis_distance(content)
    axes = [*(path_axis(content, path) for path in content.paths), _metric_axis(content, metric)]
    lines = {}
    for trial in content.trials:
        values = [*(trial.settings.get(path) for path in content.paths), score_of(trial, metric)]
        positions = [axis.position(value) for axis, value in zip(axes, values, strict=True)]
        placed = [(step * n, TALL * (1 - at)) for n, at in enumerate(positions) if at is not None]
        if len(placed) > 1:
            lines[trial.number] = _polyline(placed)
    return lines


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _points(trials: Sequence[Trial], x: Axis, y: Axis, values: Sequence[Sequence[Any]]) -> list:
    """The points of the trials that have both values."""
    found = [(t.number, x.position(right), y.position(up)) for t, (right, up) in zip(trials, values, strict=True)]
    return [(n, SCATTER[0] * a, SCATTER[1] * (1 - b)) for n, a, b in found if a is not None and b is not None]


def scatters(content: SweepContent) -> list[Scatter]:
    """Return one chart per searched path: the first metric against the value."""
    name, charts = content.metrics[0], []
    y = _metric_axis(content, name)
    for path in content.paths:
        x = path_axis(content, path)
        points = _points(content.trials, x, y, [(t.settings.get(path), score_of(t, name)) for t in content.trials])
        at = x.position(content.paper.get(path))
        paper = None if at is None else SCATTER[0] * at
        ticks = x.rightward(SCATTER[0]), y.upward(SCATTER[1])
        charts.append(Scatter(path, name, _trend(content, path), *ticks, points, paper))
    return charts


def _trend(content: SweepContent, path: str) -> str:
    """The rank correlation of a field with the first metric over the finished trials."""
    scored = [(t.settings.get(path), score_of(t, content.metrics[0])) for t in content.trials if t.state == "finished"]
    known = [(value, score) for value, score in scored if score is not None]
    if not known or not all(is_finite(value) for value, _ in known):
        return ""
    found = rank_correlation(*zip(*known, strict=True))  # pyright: ignore[reportArgumentType]
    return "" if found is None else f"ρ {found:+.2f}".replace("-", "−")


def pareto(content: SweepContent) -> Scatter | None:
    """Return the second metric against the first, with the front's trials joined; None for a single metric."""
    if len(content.metrics) < 2:
        return None
    across, up = content.metrics[:2]
    x, y = _metric_axis(content, across), _metric_axis(content, up)
    points = _points(content.trials, x, y, [(score_of(t, across), score_of(t, up)) for t in content.trials])
    front = _polyline(sorted((right, down) for number, right, down in points if number in content.front))
    return Scatter(across, up, "", x.rightward(SCATTER[0]), y.upward(SCATTER[1]), points, front=front)


def learning_curves(content: SweepContent) -> tuple[list[LearningCurve], list[Tick], list[Tick], list[Tick]]:
    """Return the first metric against the step: one curve per validated trial, ticks of both axes, and the rungs."""
    name = content.metrics[0]
    scores = {
        t.number: [(row["step"], row.get(name)) for row in t.validations if is_finite(row.get(name))]
        for t in content.trials
    }
    y = score_axis([score for rows in scores.values() for _, score in rows])  # pyright: ignore[reportArgumentType]
    last = max([1, content.about["budget"], *(step for rows in scores.values() for step, _ in rows)])
    steps = [Tick(CURVES[0] * at / last, f"{float(label):,.0f}") for at, label in round_ticks(0, last, 6)]
    rungs = [Tick(CURVES[0] * rung / last, f"{rung:,}") for rung in content.rungs if rung <= last]
    lines = []
    for number, rows in scores.items():
        points = [(CURVES[0] * step / last, CURVES[1] * (1 - (y.position(score) or 0.0))) for step, score in rows]
        lines += [LearningCurve(number, _polyline(points), points[-1])] if points else []
    return lines, steps, y.upward(CURVES[1]), rungs
