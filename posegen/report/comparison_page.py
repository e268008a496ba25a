"""Render a comparison of scored runs: tables for the terminal, a CSV file, or a self-contained HTML page.

The page shows the fixed draw of pairs with the results of every run, taken from their reports.
"""

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from posegen.data.loading.dataset import Shards
from posegen.data.shards.manifest import read_manifest
from posegen.evaluation.comparison import Comparison, Difference, ScoredRun, differing_settings
from posegen.evaluation.metrics import EVERY, IMAGE_SCORES, JOINT_SCORES
from posegen.report.drawing import SMALL, AnyImage, cut_sheet, data_uri
from posegen.report.page import best_mean, score_cell, shown, template
from posegen.report.panels import Panel, chosen_rows, given_panels
from posegen.storage.files import digest, read_json, write_whole

Means = Mapping[str, Any]


def check_output(path: Path | None) -> None:
    """Raise ValueError unless the path is None or ends with .html or .csv."""
    if path is not None and path.suffix not in (".html", ".csv"):
        raise ValueError(f"--output {path} was given; expected a file that ends with .html or .csv.")


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a page (.html) or a table (.csv). Raises ValueError for any other suffix."""
    check_output(path)
    if path.suffix == ".csv":
        write_whole(path, lambda temporary: _write_csv(comparison, temporary))
    else:
        page = _page(comparison)
        write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def tables(comparison: Comparison) -> list[Table]:
    """Return tables for the terminal: scores of images, and scores of joints."""
    kinds = [[name for name in names if name in comparison.metrics] for names in (IMAGE_SCORES, JOINT_SCORES)]
    return [_table(comparison, names) for names in kinds if names]


def _table(comparison: Comparison, names: Sequence[str]) -> Table:
    pairs = comparison.runs[0].metrics["pairs"]
    title = f"{pairs:,} test pairs; compared with the first run (better, same or worse)"
    table = Table("", *names, title=title, title_justify="left")
    for index, run in enumerate(comparison.runs):
        means, intervals = run.metrics["scores"], run.metrics["intervals"]
        cells = [_cell(means, intervals, name, comparison.differences.get((index, name))) for name in names]
        label = f"{comparison.labels[index]}\n{run.system} {run.variant}\n{_steps(run)}"
        table.add_row(label.strip(), *cells, end_section=True)
    for label, (means, intervals) in comparison.baselines.items():
        if any(name in means for name in names):
            table.add_row(label, *(_cell(means, intervals, name, None) for name in names), style="dim")
    return table


def _steps(run: ScoredRun) -> str:
    return f"{' + '.join(f'{count:,}' for count in run.steps.values())} steps" if run.steps else ""


def _cell(means: Means, intervals: Means, name: str, difference: Difference | None) -> str:
    """Return the lines of a cell: the mean, its interval and the outcome against the first run."""
    if means.get(name) is None:
        return "–"
    lines = [f"{means[name]:.4g}"]
    lines += [" – ".join(f"{end:.3g}" for end in intervals[name])] if intervals.get(name) else []
    return "\n".join([*lines, *([difference.outcome] if difference else [])])


def _write_csv(comparison: Comparison, path: Path) -> None:
    """Write one row per run, then per baseline: each score, its interval and the difference from the first run."""
    parts = ("", "_low", "_high", "_minus_first", "_minus_first_low", "_minus_first_high", "_outcome")
    head = ["run", "system", "variant", "steps", *(f"{name}{part}" for name in comparison.metrics for part in parts)]
    rows: list[list[Any]] = []
    for index, run in enumerate(comparison.runs):
        steps = sum(run.steps.values()) or None
        scores = _csv_cells(comparison, run.metrics["scores"], run.metrics["intervals"], index)
        rows.append([comparison.labels[index], run.system, run.variant, steps, *scores])
    for label, (means, intervals) in comparison.baselines.items():
        rows.append([f"baseline {label}", None, None, None, *_csv_cells(comparison, means, intervals, 0)])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def _csv_cells(comparison: Comparison, means: Means, intervals: Means, index: int) -> list[Any]:
    cells: list[Any] = []
    for name in comparison.metrics:
        difference = comparison.differences.get((index, name))
        cells += [means.get(name), *(intervals.get(name) or [None, None])]
        cells += [difference.mean, *difference.interval, difference.outcome] if difference else [None] * 4
    return cells


def _page(comparison: Comparison) -> str:
    samples, notes = fixed_samples(comparison)
    first = comparison.runs[0]
    return template("compare.html", {"data_uri": data_uri, "shown": shown}).render(
        comparison=comparison,
        first=first.metrics,
        dataset=first.settings.get("dataset", ""),
        metrics=[EVERY[name] for name in comparison.metrics],
        rows=_rows(comparison),
        steps=[_steps(run) for run in comparison.runs],
        notes=[*comparison.notes, *notes],
        differing=differing_settings(comparison.runs),
        samples=samples,
        small=SMALL,
        written=datetime.now(UTC),
    )


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of the page's table: runs, then baselines, with the best mean of each score marked."""
    runs = zip(comparison.labels, comparison.runs, strict=True)
    named = [(label, run.metrics["scores"], run.metrics["intervals"]) for label, run in runs]
    named += [(label, means, intervals) for label, (means, intervals) in comparison.baselines.items()]
    best = {name: best_mean(name, [means.get(name) for _, means, _ in named]) for name in comparison.metrics}
    rows = []
    for index, (label, means, intervals) in enumerate(named):
        cells = [
            score_cell(name, means.get(name), intervals.get(name), best[name])
            | {"difference": _difference_cell(name, comparison.differences.get((index, name)))}
            for name in comparison.metrics
        ]
        rows.append({"label": label, "run": index if index < len(comparison.runs) else None, "cells": cells})
    return rows


def _difference_cell(metric: str, difference: Difference | None) -> dict[str, str] | None:
    if difference is None:
        return None
    digits = 3 if EVERY[metric].unit else 4
    mean, low, high = (f"{value:+.{digits}f}".replace("-", "−") for value in (difference.mean, *difference.interval))
    kind = {"better": "good", "worse": "bad", "same": ""}[difference.outcome]
    return {"mean": mean, "interval": f"{low} to {high}", "outcome": difference.outcome, "kind": kind}


def fixed_samples(comparison: Comparison) -> tuple[list[list[Panel]], list[str]]:
    """Return the panels of the fixed draw (source, target pose, every run's result, target), and notes on missing ones.

    Sources and targets come from the first run with shards, results from the runs' own reports.
    """
    first = comparison.runs[0]
    stores = (run.store for run in comparison.runs)
    with_shards = (s for s in stores if read_manifest(s.folder / "shards", sizes=s.sizes("shards")) is not None)
    store = next(with_shards, None)
    if store is None:
        return [], ["no images are shown: no run has shards of this version in its folder"]
    pairs = first.table["pair"][chosen_rows(first.table)["fixed"]].tolist()
    shards = Shards.of(store)
    results = [_results(run, len(pairs), shards.size) for run in comparison.runs]
    labelled = list(zip(comparison.labels, comparison.runs, results, strict=True))
    samples = [
        [
            *panels[:-1],
            *(Panel(label, "result", images[index]) for label, _, images in labelled if images is not None),
            panels[-1],
        ]
        for index, panels in enumerate(given_panels(shards, first.metrics["split"], pairs))
    ]
    return samples, [
        f"no images of {label} are shown: it has no report of these scores; run posegen report --run {run.uri}"
        for label, run, images in labelled
        if images is None
    ]


def _results(run: ScoredRun, count: int, size: tuple[int, int]) -> list[AnyImage] | None:
    """Cut the results of the fixed draw from the report's sample sheet; None if no report of these scores exists.

    The last three columns of a sheet are the result, the target and the difference.
    """
    report = run.folder / "report"
    written = read_json(report / "fingerprint.json") or {}
    if written.get("fingerprint") != digest(run.metrics["fingerprint"], "report"):
        return None
    sheet = cv2.imread(str(report / "sample_sheet.png"), cv2.IMREAD_COLOR)
    if sheet is None:
        return None
    height = max(SMALL, size[0])
    image = cv2.cvtColor(sheet, cv2.COLOR_BGR2RGB).astype(np.uint8)
    rows = cut_sheet(image, height, round(size[1] * height / size[0]))
    return [row[-3] for row in rows] if len(rows) == count else None
