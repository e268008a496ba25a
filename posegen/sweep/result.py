"""What a sweep found: the best trial, the Pareto front, and the best weights beside the paper's on the test people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from posegen.evaluation.metrics import EVERY
from posegen.training.trials import Trial

FEWEST_SEEDS = 3
Comparison = dict[str, Any]
Outcome = Literal["better", "same", "worse"]


def best_trial(trials: Sequence[Trial], metrics: Sequence[str]) -> Trial | None:
    """The finished trial with the best first metric, with several metrics among those on the front; None without one.

    Trials that were stopped early had less training: they do not compete.
    """
    return next(iter(ranked(pareto_front(trials, metrics), metrics[0])), None)


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """The finished trials that have a metric, best first; of equals the earlier first."""
    judged = [(trial.score(metric), trial) for trial in trials if trial.state == "finished"]
    known = [(score, trial) for score, trial in judged if score is not None]
    return [t for _, t in sorted(known, key=lambda pair: (-_sign(metric) * pair[0], pair[1].number))]


def pareto_front(trials: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """The finished trials that no other one beats in a metric without losing in another, by number."""
    complete = [t for t in trials if t.state == "finished" and all(t.score(name) is not None for name in metrics)]
    points = {t.number: np.array([_sign(name) * float(t.score(name) or 0.0) for name in metrics]) for t in complete}

    def beaten(trial: Trial) -> bool:
        mine = points[trial.number]
        return any((other >= mine).all() and (other > mine).any() for other in points.values())

    return [trial for trial in complete if not beaten(trial)]


def _sign(metric: str) -> int:
    return 1 if EVERY[metric].higher else -1


def compare(finals: Sequence[Trial], metric: str, *, pairs: int, persons: int) -> Comparison:
    """Every score of the best weights and of the paper's, seed by seed, with intervals, and a verdict by `metric`.

    Both are trained with the same seeds, so the difference is taken seed by seed. Intervals are Student's t over the
    seeds, 95 %: what another seed of the same people would do. Where the search found nothing better, `finals` holds
    the paper's weights alone, and they are compared with themselves.
    """
    by_name = {name: {t.seed: t for t in finals if t.name == name} for name in ("best", "paper")}
    same = not by_name["best"]
    best, paper = by_name["best"] or by_name["paper"], by_name["paper"]
    seeds = [s for s in sorted(paper) if s in best and best[s].state == paper[s].state == "finished"]
    scores = {}
    for name in _judged_by(finals, metric):
        values = {"best": [best[s].score(name) for s in seeds], "paper": [paper[s].score(name) for s in seeds]}
        values["difference"] = [_minus(a, b) for a, b in zip(values["best"], values["paper"], strict=True)]
        scores[name] = {key: _with_interval(each) for key, each in values.items()}
    outcome = _outcome(scores[metric]["difference"]["interval"], metric)
    verdict = _verdict(scores[metric]["difference"], metric, len(seeds), outcome, same)
    return {
        "pairs": pairs,
        "persons": persons,
        "seeds": seeds,
        "scores": scores,
        "outcome": outcome,
        "verdict": verdict,
    }


def _judged_by(finals: Sequence[Trial], metric: str) -> list[str]:
    """The scores that any trial has, and the one that decides."""
    judged = {metric, *(name for trial in finals for row in trial.judged for name in row)}
    return [name for name in EVERY if name in judged]


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _with_interval(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    return {"values": list(values), "mean": mean, "interval": interval(known)}


def interval(values: Sequence[float]) -> list[float] | None:
    """95 % confidence interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(student.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return [mean - reach, mean + reach]


def _outcome(difference: Sequence[float] | None, metric: str) -> Outcome:
    if difference is None:
        return "same"
    low, high = sorted(_sign(metric) * end for end in difference)
    return "better" if low > 0 else "worse" if high < 0 else "same"


def _verdict(difference: Mapping[str, Any], metric: str, seeds: int, outcome: Outcome, same: bool) -> str:
    title = EVERY[metric].title
    if same:
        return f"No trial beat the paper's weights in {title} on the validation people: they stay the best known."
    if difference["interval"] is None:
        return f"The comparison was trained to its end with {seeds} seed(s): too few to say anything."
    low, high = (f"{end:+.4f}" for end in difference["interval"])
    measured = f"{difference['mean']:+.4f} in {title} on the test people, {seeds} seeds, 95 % interval {low} to {high}"
    return {
        "better": f"The best weights found are better than the paper's: {measured}.",
        "same": f"The best weights found cannot be told apart from the paper's: {measured}.",
        "worse": f"The best weights found are worse than the paper's: {measured}. Keep the paper's.",
    }[outcome]
