"""What the report says in numbers: the system's means beside the baselines', from metrics.json's content."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from posegen.metrics.baselines import BASELINES
from posegen.metrics.measures import METRICS
from posegen.report.cases import RANKED_BY


def best_baseline(metric: str, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The baseline that does best by a metric, and its mean; None where no baseline has one."""
    means = {name: metrics["baselines"][name][metric] for name in BASELINES}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return None
    name = (max if METRICS[metric].higher else min)(known, key=lambda name: known[name])
    return name, known[name]


def comparison(metric: str, metrics: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The system's mean beside the best baseline's, in words, and whether it is the better one.

    A ratio, except for decibels and where one of the two is not above zero: there a ratio says nothing, and the
    difference is given.
    """
    best, mine = best_baseline(metric, metrics), metrics["scores"][metric]
    if best is None or mine is None:
        return None
    better = mine > best[1] if METRICS[metric].higher else mine < best[1]
    if METRICS[metric].unit == "dB" or min(mine, best[1]) <= 0:
        return f"{mine - best[1]:+.2f} {METRICS[metric].unit}".strip(), better
    return f"{mine / best[1]:.2f} ×", better


def _bars(metric: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system and the baselines as lengths from 0 to 100, zero and the largest value being the ends."""
    values = {"result": metrics["scores"][metric]} | {name: metrics["baselines"][name][metric] for name in BASELINES}
    top = max((value for value in values.values() if value is not None), default=0.0)
    return [
        {"name": name, "text": score_text(metric, value), "length": 100 * max(value or 0.0, 0.0) / (top or 1.0)}
        for name, value in values.items()
    ]


def headline(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a card of the page's head says about one metric."""
    best, compared = best_baseline(metric, metrics), comparison(metric, metrics)
    return {
        "metric": METRICS[metric],
        "value": score_text(metric, metrics["scores"][metric]),
        "ratio": compared[0] if compared else "",
        "better": bool(compared and compared[1]),
        "against": best[0] if best else "",
        "bars": _bars(metric, metrics),
    }


def score_row(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the scores' table: the system and every baseline, the best of them marked."""
    means = [metrics["scores"][metric], *(metrics["baselines"][name][metric] for name in BASELINES)]
    intervals = [metrics["intervals"][metric], *(metrics["baseline_intervals"][name][metric] for name in BASELINES)]
    known = [mean for mean in means if mean is not None]
    best = (max if METRICS[metric].higher else min)(known, default=None)
    cells = [
        {
            "text": score_text(metric, mean),
            "interval": " – ".join(score_text(metric, end) for end in interval) if interval else "",
            "best": mean is not None and mean == best,
        }
        for mean, interval in zip(means, intervals, strict=True)
    ]
    compared = comparison(metric, metrics)
    return {"metric": METRICS[metric], "cells": cells, "ratio": compared[0] if compared else "–"}


def score_text(metric: str, value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if METRICS[metric].unit == "dB" else f"{value:.3f}"


def wins(table: Mapping[str, np.ndarray]) -> int | None:
    """Percentage of the pairs on which the result has a lower mask-L1 than every baseline; None where none counts."""
    rivals = np.stack([table[f"{name}.{RANKED_BY}"] for name in BASELINES])
    counted = np.isfinite(table[RANKED_BY]) & np.isfinite(rivals).all(axis=0)
    if not counted.any():
        return None
    return round(100 * float((table[RANKED_BY] < rivals.min(axis=0))[counted].mean()))
