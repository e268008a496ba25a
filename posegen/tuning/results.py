"""Results of a sweep: the best trial, the Pareto front, and the best weights against the paper's on the test people."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from posegen.evaluation.metrics import EVERY
from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged", "failed")

Value = float | int | str | bool
Settings = Mapping[str, Value]  # dotted path -> value
Validation = Mapping[str, float]  # {"step": n, "<score>": mean over the validation pairs}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of searched settings and its outcome so far."""

    number: int
    settings: Settings
    name: str = ""  # "best" or "paper" in the final comparison
    seed: int = 0
    state: State = "waiting"
    validations: Sequence[Validation] = field(default_factory=list)  # by step, ascending
    why: str = ""  # the reason it diverged or failed
    seconds: float = 0.0  # of training, over all attempts

    @property
    def step(self) -> int:
        """The last validated step; 0 before the first."""
        return int(self.validations[-1]["step"]) if self.validations else 0

    @property
    def ended(self) -> bool:
        """Whether the trial will not train any further."""
        return self.state in ENDED

    def score(self, metric: str) -> float | None:
        """Return the last validation's value of a score, or None."""
        return self.validations[-1].get(metric) if self.validations else None

    def with_validation(self, validation: Validation) -> "Trial":
        """Return the trial with a validation appended, replacing those of the same and later steps."""
        earlier = [row for row in self.validations if row["step"] < validation["step"]]
        return replace(self, validations=[*earlier, dict(validation)])


@dataclass(frozen=True)
class TrialFolder:
    """A run's folder of trials: `0000/`, `0001/`, ... each with its trial.json, stages and sample images."""

    store: Store
    name: str  # of the folder within the run

    def prefix(self, number: int) -> str:
        """Return a trial's folder within the run."""
        return f"{self.name}/{number:04d}"

    def path(self, number: int) -> Path:
        """Return a trial's folder on this node."""
        return self.store.folder / self.prefix(number)

    def read(self) -> list[Trial]:
        """Read all trials on this node, by number; the driver, which alone writes them, has them all."""
        files = sorted((self.store.folder / self.name).glob("[0-9]*/trial.json"))
        found = [Trial(**content) for content in map(read_json, files) if content]
        return sorted(found, key=lambda trial: trial.number)

    def write(self, trial: Trial, *, patience: float | None = None) -> None:
        """Write a trial's record. Raises StorageFailed if it cannot be written for `patience` seconds."""
        content = json.loads(json.dumps(asdict(trial), default=lambda number: number.item()))
        write_json(self.path(trial.number) / "trial.json", content, patience=patience)
        self.store.publish(f"{self.prefix(trial.number)}/trial.json")


Comparison = dict[str, Any]


def best_trial(trials: Sequence[Trial], metrics: Sequence[str]) -> Trial | None:
    """Return the finished trial on the Pareto front with the best first metric, or None.

    Trials that were stopped early had less training and do not compete.
    """
    return next(iter(ranked(pareto_front(trials, metrics), metrics[0])), None)


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the finished trials that have a metric, best first; among equals the earlier first."""
    scored = [(trial.score(metric), trial) for trial in trials if trial.state == "finished"]
    known = [(score, trial) for score, trial in scored if score is not None]
    return [t for _, t in sorted(known, key=lambda pair: (-_sign(metric) * pair[0], pair[1].number))]


def pareto_front(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """Return the finished trials that no other one dominates, by number."""
    complete = [t for t in trials if t.state == "finished" and all(t.score(name) is not None for name in metrics)]
    points = {t.number: np.array([_sign(name) * float(t.score(name) or 0.0) for name in metrics]) for t in complete}

    def dominated(trial: Trial) -> bool:
        own = points[trial.number]
        return any((other >= own).all() and (other > own).any() for other in points.values())

    return [trial for trial in complete if not dominated(trial)]


def _sign(metric: str) -> int:
    return 1 if EVERY[metric].higher else -1


def compare_over_seeds(finals: Sequence[Trial], metric: str, *, pairs: int, persons: int) -> Comparison:
    """Compare every score of the best weights and the paper's seed by seed, with intervals, and a verdict by `metric`.

    Both are trained with the same seeds, so the difference is taken per seed. Intervals are Student's t over the seeds,
    95 %: what another seed would give on the same people. If the search found nothing better, `finals` has the paper's
    weights alone, and they are compared with themselves.
    """
    by_name = {name: {t.seed: t for t in finals if t.name == name} for name in ("best", "paper")}
    same = not by_name["best"]
    best, paper = by_name["best"] or by_name["paper"], by_name["paper"]
    seeds = [s for s in sorted(paper) if s in best and best[s].state == paper[s].state == "finished"]
    scored = {metric, *(name for trial in finals for row in trial.validations for name in row)}
    scores = {}
    for name in [name for name in EVERY if name in scored]:
        values = {"best": [best[s].score(name) for s in seeds], "paper": [paper[s].score(name) for s in seeds]}
        values["difference"] = [
            None if a is None or b is None else a - b for a, b in zip(values["best"], values["paper"], strict=True)
        ]
        known = {key: [value for value in each if value is not None] for key, each in values.items()}
        scores[name] = {
            key: {"values": each, "mean": sum(known[key]) / len(known[key]) if known[key] else None}
            | {"interval": interval(known[key])}
            for key, each in values.items()
        }
    difference = scores[metric]["difference"]
    low, high = sorted(_sign(metric) * end for end in difference["interval"] or (0, 0))
    outcome = "better" if low > 0 else "worse" if high < 0 else "same"
    return {
        "pairs": pairs,
        "persons": persons,
        "seeds": seeds,
        "scores": scores,
        "outcome": outcome,
        "verdict": _verdict(difference, metric, len(seeds), outcome, same),
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % confidence interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(student.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return [mean - reach, mean + reach]


def _verdict(difference: Mapping[str, Any], metric: str, seeds: int, outcome: str, same: bool) -> str:
    title = EVERY[metric].title
    if same:
        return f"No trial beat the paper's weights in {title} on the validation people: they stay the best known."
    if difference["interval"] is None:
        return f"The comparison finished with {seeds} seed(s): too few for a conclusion."
    low, high = (f"{end:+.4f}" for end in difference["interval"])
    measured = f"{difference['mean']:+.4f} in {title} on the test people, {seeds} seeds, 95 % interval {low} to {high}"
    return {
        "better": f"The best weights found are better than the paper's: {measured}.",
        "same": f"The best weights found cannot be told apart from the paper's: {measured}.",
        "worse": f"The best weights found are worse than the paper's: {measured}. Keep the paper's.",
    }[outcome]
