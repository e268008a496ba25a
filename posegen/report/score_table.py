"""What the report says in numbers: the system's means beside the baselines', from metrics.json's content."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posegen.evaluation.baselines import BASELINES
from posegen.evaluation.metrics import EVERY, STAGE_METRIC, deciding


def best_baseline(metric: str, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The baseline that does best by a metric, and its mean; None where no baseline has one."""
    means = {name: scores.get(metric) for name, scores in metrics["baselines"].items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return None
    name = (max if EVERY[metric].higher else min)(known, key=lambda name: known[name])
    return name, known[name]


def comparison(metric: str, metrics: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The system's mean beside the best baseline's, in words, and whether it is the better one.

    A ratio, except for decibels and where one of the two is not above zero: there a ratio says nothing, and the
    difference is given.
    """
    return _compared(metric, metrics["scores"][metric], best_baseline(metric, metrics))


def _compared(metric: str, mine: float | None, best: tuple[str, float] | None) -> tuple[str, bool] | None:
    if best is None or mine is None:
        return None
    better = mine > best[1] if EVERY[metric].higher else mine < best[1]
    if EVERY[metric].unit == "dB" or min(mine, best[1]) <= 0:
        return f"{mine - best[1]:+.2f} {EVERY[metric].unit}".strip(), better
    return f"{mine / best[1]:.2f} ×", better


def stage_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mask-L1 of every image on the way, of the result and of the baselines, from metrics.json's content.

    Empty where no stage before the result makes an image.
    """
    if not metrics.get("stages"):
        return []
    means = metrics["stages"] | {"result": metrics["scores"]} | metrics["baselines"]
    intervals = metrics["stage_intervals"] | {"result": metrics["intervals"]} | metrics["baseline_intervals"]
    best = best_baseline(STAGE_METRIC, metrics)
    rows = []
    for name in (name for name, scores in means.items() if STAGE_METRIC in scores):
        compared = _compared(STAGE_METRIC, means[name][STAGE_METRIC], best)
        rows.append(
            {
                "name": name.replace("_", " "),
                "stage": name in metrics["stages"],
                "text": score_text(STAGE_METRIC, means[name][STAGE_METRIC]),
                "interval": interval_text(STAGE_METRIC, intervals[name][STAGE_METRIC]),
                "ratio": compared[0] if compared and name not in metrics["baselines"] else "",
            }
        )
    return rows


def _bars(metric: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system and the baselines as lengths from 0 to 100, zero and the largest value being the ends."""
    rivals = {name: scores[metric] for name, scores in metrics["baselines"].items() if metric in scores}
    values = {"result": metrics["scores"][metric]} | rivals
    top = max((value for value in values.values() if value is not None), default=0.0)
    return [
        {"name": name, "text": score_text(metric, value), "length": 100 * max(value or 0.0, 0.0) / (top or 1.0)}
        for name, value in values.items()
    ]


def headline(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a card of the page's head says about one metric."""
    best, compared = best_baseline(metric, metrics), comparison(metric, metrics)
    return {
        "metric": EVERY[metric],
        "value": score_text(metric, metrics["scores"][metric]),
        "ratio": compared[0] if compared else "",
        "better": bool(compared and compared[1]),
        "against": best[0] if best else "",
        "bars": _bars(metric, metrics),
    }


def score_row(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the scores' table: the system and every baseline, the best of them marked."""
    means = [scores.get(metric) for scores in (metrics["scores"], *metrics["baselines"].values())]
    intervals = [ends.get(metric) for ends in (metrics["intervals"], *metrics["baseline_intervals"].values())]
    known = [mean for mean in means if mean is not None]
    best = (max if EVERY[metric].higher else min)(known, default=None)
    cells = [
        {
            "text": score_text(metric, mean),
            "interval": interval_text(metric, interval),
            "best": mean is not None and mean == best,
        }
        for mean, interval in zip(means, intervals, strict=True)
    ]
    compared = comparison(metric, metrics)
    return {"metric": EVERY[metric], "cells": cells, "ratio": compared[0] if compared else "–"}


def score_text(metric: str, value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if EVERY[metric].unit else f"{value:.3f}"


def interval_text(metric: str, interval: Sequence[float] | None) -> str:
    return " – ".join(score_text(metric, end) for end in interval) if interval else ""


def wins(table: Mapping[str, np.ndarray]) -> int | None:
    """Percentage of the pairs on which the result beats every baseline by what decides (mask-L1, or the pose error).

    None where no pair counts.
    """
    metric = deciding(table.keys())
    rivals = np.stack([table[f"{name}.{metric}"] for name in BASELINES if f"{name}.{metric}" in table])
    counted = np.isfinite(table[metric]) & np.isfinite(rivals).all(axis=0)
    if not counted.any():
        return None
    return round(100 * float((table[metric] < rivals.min(axis=0))[counted].mean()))
