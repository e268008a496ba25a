"""What the page of a sweep shows, and how its values are read."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posegen.evaluation.baselines import Uint8Image
from posegen.evaluation.metrics import EVERY, Metric
from posegen.report.panels import Panel
from posegen.training.trials import Trial, Value


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Everything that the page shows but images. A dotted path is a searched field's; steps are of one trial."""

    about: Mapping[
        str, Any
    ]  # system, variant, dataset, paper, size, stand_ins, budget (steps), search, scheduler, seed
    metrics: Sequence[str]  # what trials are judged by; the first one decides which is best
    space: Mapping[str, str]  # dotted path -> the distribution in words; "one of ..." is drawn with even distances
    logarithmic: Collection[str]  # paths whose axis is logarithmic
    rungs: Sequence[int]  # steps at which a trial may be stopped
    trials: Sequence[Trial]
    best: int | None  # number of the best trial; None where none was judged to the end
    front: Collection[int]  # numbers of the trials on the Pareto front, of several metrics
    paper: Mapping[str, Value]  # the paper's values of the searched paths
    validation: Mapping[str, int]  # pairs, persons: what trials are judged on
    shared: Mapping[str, Any]  # stages trained once for all trials, their steps, and the steps saved by that
    final: Mapping[str, Any] | None  # the best beside the paper's on the test split; None where not made yet
    command: Sequence[str]  # command lines that go on, or make it again
    tracking: str  # the command that opens MLflow; "" where nothing is tracked
    settings: Mapping[str, Any]  # every setting by dotted path

    @property
    def paths(self) -> list[str]:
        return list(self.space)

    @property
    def metric(self) -> Metric:
        """The one that decides."""
        return EVERY[self.metrics[0]]

    @property
    def papers_trial(self) -> Trial | None:
        """The trial whose searched settings are the paper's."""
        asked = {path: self.paper.get(path) for path in self.paths}
        return next((t for t in self.trials if asked and {p: t.settings.get(p) for p in asked} == asked), None)


@dataclass(frozen=True)
class Row:
    """One fixed validation pair, and what the shown trials make of it."""

    source: str
    target: str
    given: Sequence[Panel]  # source, target pose, target
    made: Mapping[int, Uint8Image]  # by the number of the trial


def is_finite(value: Any) -> bool:
    """Whether it is a number with a place on an axis; yes and no are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_text(value: Any, digits: int = 4) -> str:
    """A setting as one reads it, numbers rounded to some digits."""
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
    """The last judged value of a score; None where there is none or it is not finite."""
    value = trial.score(metric)
    return value if is_finite(value) else None
