"""Content of the sweep page: its records, comparison and sample images, and the formatting of values."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posegen.data.loading.dataset import Shards
from posegen.evaluation.baselines import Uint8Image
from posegen.evaluation.metrics import EVERY, Metric
from posegen.report.panels import Panel, given_panels
from posegen.runs.pipeline import tracking_address
from posegen.tuning.plan import SweepPlan
from posegen.tuning.ray_tune import rungs
from posegen.tuning.records import Trial, Value
from posegen.tuning.results import Comparison, compare_over_seeds, pareto_front, ranked
from posegen.tuning.validation import read_samples, sample_pairs


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
