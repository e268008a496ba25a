"""Content of the report's score tables and cards: the system's means and the baselines', from metrics.json."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from posegen.evaluation.baselines import BASELINES
from posegen.evaluation.metrics import EVERY, STAGE_METRIC, ranking_metric


def best_mean(metric: str, means: Iterable[float | None]) -> float | None:
    """Return the best of some means, of those that are not None; None if there is none."""
    return (max if EVERY[metric].higher else min)((mean for mean in means if mean is not None), default=None)


def best_baseline(metric: str, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the baseline that is best by a metric, and its mean; None if no baseline has one."""
    means = {name: scores.get(metric) for name, scores in metrics["baselines"].items()}
    best = best_mean(metric, means.values())
    return next(((name, mean) for name, mean in means.items() if mean == best), None) if best is not None else None


def against_best_baseline(metric: str, metrics: Mapping[str, Any], mean: float | None) -> tuple[str, bool] | None:
    """Return a mean relative to the best baseline's as text, and whether it is better; None if either is missing.

    The text is a ratio, or the difference for decibels and where one of the two is not above zero.
    """
    best = best_baseline(metric, metrics)
    if best is None or mean is None:
        return None
    better = mean > best[1] if EVERY[metric].higher else mean < best[1]
    if EVERY[metric].unit == "dB" or min(mean, best[1]) <= 0:
        return f"{mean - best[1]:+.2f} {EVERY[metric].unit}".strip(), better
    return f"{mean / best[1]:.2f} ×", better


def stage_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows with the mask-L1 of every intermediate image, of the result and of the baselines.

    Empty where no stage before the result makes an image.
    """
    if not metrics.get("stages"):
        return []
    means = metrics["stages"] | {"result": metrics["scores"]} | metrics["baselines"]
    intervals = metrics["stage_intervals"] | {"result": metrics["intervals"]} | metrics["baseline_intervals"]
    rows = []
    for name in (name for name, scores in means.items() if STAGE_METRIC in scores):
        mean = means[name][STAGE_METRIC]
        ratio = None if name in metrics["baselines"] else against_best_baseline(STAGE_METRIC, metrics, mean)
        rows.append(
            {
                "name": name.replace("_", " "),
                "stage": name in metrics["stages"],
                "ratio": ratio[0] if ratio else "",
                **score_cell(STAGE_METRIC, mean, intervals[name][STAGE_METRIC]),
            }
        )
    return rows


def _bars(metric: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the system and the baselines as bars with lengths from 0 to 100, where 100 is the largest value."""
    rivals = {name: scores[metric] for name, scores in metrics["baselines"].items() if metric in scores}
    values = {"result": metrics["scores"][metric]} | rivals
    top = max((value for value in values.values() if value is not None), default=0.0)
    return [
        {"name": name, "text": score_text(metric, value), "length": 100 * max(value or 0.0, 0.0) / (top or 1.0)}
        for name, value in values.items()
    ]


def headline(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a card in the page's header."""
    mean, best = metrics["scores"][metric], best_baseline(metric, metrics)
    ratio = against_best_baseline(metric, metrics, mean)
    return {
        "metric": EVERY[metric],
        "value": score_text(metric, mean),
        "ratio": ratio[0] if ratio else "",
        "better": bool(ratio and ratio[1]),
        "against": best[0] if best else "",
        "bars": _bars(metric, metrics),
    }


def score_row(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the score table: the system and every baseline, the best of them marked."""
    means = [scores.get(metric) for scores in (metrics["scores"], *metrics["baselines"].values())]
    intervals = [ends.get(metric) for ends in (metrics["intervals"], *metrics["baseline_intervals"].values())]
    best = best_mean(metric, means)
    cells = [score_cell(metric, *ends, best) for ends in zip(means, intervals, strict=True)]
    ratio = against_best_baseline(metric, metrics, metrics["scores"][metric])
    return {"metric": EVERY[metric], "cells": cells, "ratio": ratio[0] if ratio else "–"}


def score_text(metric: str, value: float | None) -> str:
    """Format a score, a dash where it is undefined."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if EVERY[metric].unit else f"{value:.3f}"


def score_cell(
    metric: str, mean: float | None, interval: Sequence[float] | None, best: float | None = None
) -> dict[str, Any]:
    """Return the texts of a mean and its interval, and whether the mean is the best one."""
    ends = " – ".join(score_text(metric, end) for end in interval) if interval else ""
    return {"text": score_text(metric, mean), "interval": ends, "best": mean is not None and mean == best}


def win_percentage(table: Mapping[str, np.ndarray]) -> int | None:
    """Return the percentage of pairs whose result beats every baseline by mask-L1, or the pose error.

    None where no pair has these scores.
    """
    metric = ranking_metric(table.keys())
    rivals = np.stack([table[f"{name}.{metric}"] for name in BASELINES if f"{name}.{metric}" in table])
    counted = np.isfinite(table[metric]) & np.isfinite(rivals).all(axis=0)
    if not counted.any():
        return None
    return round(100 * float((table[metric] < rivals.min(axis=0))[counted].mean()))
