"""A comparison of scored runs as one reads it: tables in the terminal, a CSV file, or a page that needs nothing else.

The page shows the fixed draw of pairs with the result of every run, taken from their reports.
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
from posegen.evaluation.comparison import Comparison, Difference, ScoredRun, settings_apart
from posegen.evaluation.metrics import EVERY, IMAGE_SCORES, JOINT_SCORES
from posegen.report.drawing import SMALL, AnyImage, cut_sheet, data_uri
from posegen.report.page import shown, template
from posegen.report.panels import Panel, chosen_rows, given_panels
from posegen.report.score_table import interval_text, score_text
from posegen.storage.files import digest, read_json, write_whole
from posegen.storage.store import Store

Means = Mapping[str, Any]


def check_output(path: Path | None) -> None:
    """Raise ValueError for a file that is neither a page nor a table."""
    if path is not None and path.suffix not in (".html", ".csv"):
        raise ValueError(f"--output {path} was given; expected a file that ends with .html or .csv.")


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes a page (.html) or a table (.csv). Raises ValueError for a file of another kind."""
    check_output(path)
    if path.suffix == ".csv":
        write_whole(path, lambda temporary: _write_csv(comparison, temporary))
        return
    page = _page(comparison)
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def tables(comparison: Comparison) -> list[Table]:
    """The comparison for a terminal: scores of images, and scores of joints."""
    kinds = [[name for name in names if name in comparison.metrics] for names in (IMAGE_SCORES, JOINT_SCORES)]
    return [_table(comparison, names) for names in kinds if names]


def _table(comparison: Comparison, names: Sequence[str]) -> Table:
    pairs = comparison.runs[0].metrics["pairs"]
    title = f"{pairs:,} test pairs; better, same or worse: than the first run"
    table = Table("", *names, title=title, title_justify="left")
    for place, run in enumerate(comparison.runs):
        differences = {name: comparison.differences.get((place, name)) for name in names}
        cells = [_cell(run.metrics["scores"], run.metrics["intervals"], name, differences[name]) for name in names]
        about = f"{comparison.labels[place]}\n{run.system} {run.variant}\n{_steps(run)}"
        table.add_row(about.strip(), *cells, end_section=True)
    for label, (means, intervals) in comparison.baselines.items():
        if any(name in means for name in names):
            table.add_row(label, *(_cell(means, intervals, name, None) for name in names), style="dim")
    return table


def _steps(run: ScoredRun) -> str:
    return f"{' + '.join(f'{count:,}' for count in run.steps.values())} steps" if run.steps else ""


def _cell(means: Means, intervals: Means, name: str, apart: Difference | None) -> str:
    """A mean, its interval below it, and below that whether it differs from the first run's."""
    if means.get(name) is None:
        return "–"
    lines = [f"{means[name]:.4g}"]
    lines += [" – ".join(f"{end:.3g}" for end in intervals[name])] if intervals.get(name) else []
    return "\n".join([*lines, *([apart.outcome] if apart else [])])


def _write_csv(comparison: Comparison, path: Path) -> None:
    """One row a run, then one a baseline: every score with its interval, and the difference from the first run."""
    parts = ("", "_low", "_high", "_minus_first", "_minus_first_low", "_minus_first_high", "_outcome")
    head = ["run", "system", "variant", "steps", *(f"{name}{part}" for name in comparison.metrics for part in parts)]
    rows: list[list[Any]] = []
    for place, run in enumerate(comparison.runs):
        steps = sum(run.steps.values()) or None
        scores = _csv_cells(comparison, run.metrics["scores"], run.metrics["intervals"], place)
        rows.append([comparison.labels[place], run.system, run.variant, steps, *scores])
    for label, (means, intervals) in comparison.baselines.items():
        rows.append([f"baseline {label}", None, None, None, *_csv_cells(comparison, means, intervals, 0)])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def _csv_cells(comparison: Comparison, means: Means, intervals: Means, place: int) -> list[Any]:
    cells: list[Any] = []
    for name in comparison.metrics:
        apart = comparison.differences.get((place, name))
        cells += [means.get(name), *(intervals.get(name) or [None, None])]
        cells += [apart.mean, *apart.interval, apart.outcome] if apart else [None] * 4
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
        apart=settings_apart(comparison.runs),
        samples=samples,
        small=SMALL,
        written=datetime.now(UTC),
    )


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of the page's table: runs and then baselines, the best mean of each score marked."""
    runs = zip(comparison.labels, comparison.runs, strict=True)
    named = [(label, run.metrics["scores"], run.metrics["intervals"]) for label, run in runs]
    named += [(label, means, intervals) for label, (means, intervals) in comparison.baselines.items()]
    best = {name: _best(name, [means.get(name) for _, means, _ in named]) for name in comparison.metrics}
    rows = []
    for place, (label, means, intervals) in enumerate(named):
        cells = [
            {
                "text": score_text(name, means.get(name)),
                "interval": interval_text(name, intervals.get(name)),
                "best": means.get(name) is not None and means[name] == best[name],
                "apart": _apart(name, comparison.differences.get((place, name))),
            }
            for name in comparison.metrics
        ]
        rows.append({"label": label, "run": place if place < len(comparison.runs) else None, "cells": cells})
    return rows


def _best(metric: str, means: Sequence[float | None]) -> float | None:
    known = [mean for mean in means if mean is not None]
    return (max if EVERY[metric].higher else min)(known, default=None)


def _apart(metric: str, difference: Difference | None) -> dict[str, str] | None:
    if difference is None:
        return None
    digits = 3 if EVERY[metric].unit else 4
    mean, low, high = (f"{value:+.{digits}f}".replace("-", "−") for value in (difference.mean, *difference.interval))
    kind = {"better": "good", "worse": "bad", "same": ""}[difference.outcome]
    return {"mean": mean, "interval": f"{low} to {high}", "outcome": difference.outcome, "kind": kind}


def fixed_samples(comparison: Comparison) -> tuple[list[list[Panel]], list[str]]:
    """Pairs of the fixed draw: source, target pose, every run's result, target; and notes on what cannot be shown.

    What is given comes from the first run whose shards are there, results come from the runs' own reports.
    """
    first = comparison.runs[0]
    prepared = next((run.store for run in comparison.runs if _has_shards(run.store)), None)
    if prepared is None:
        return [], ["no images are shown: no run has shards of this version in its folder"]
    pairs = first.table["pair"][chosen_rows(first.table)["fixed"]].tolist()
    shards = Shards.of(prepared)
    runs = zip(comparison.labels, comparison.runs, strict=True)
    made = {label: _results(run, len(pairs), shards.size) for label, run in runs}
    samples = [
        [
            *panels[:-1],
            *(Panel(label, "result", results[place]) for label, results in made.items() if results is not None),
            panels[-1],
        ]
        for place, panels in enumerate(given_panels(shards, first.metrics["split"], pairs))
    ]
    return samples, [
        f"no images of {label} are shown, for it has no report of these scores: posegen report --run {run.place}"
        for (label, results), run in zip(made.items(), comparison.runs, strict=True)
        if results is None
    ]


def _has_shards(store: Store) -> bool:
    return read_manifest(store.folder / "shards", sizes=store.sizes("shards")) is not None


def _results(run: ScoredRun, count: int, size: tuple[int, int]) -> list[AnyImage] | None:
    """The results of the fixed draw, cut from the report's sample sheet; None where there is no report of these scores.

    The last three columns of a sheet are the result, the target and the difference.
    """
    written = read_json(run.folder / "report" / "fingerprint.json") or {}
    if written.get("fingerprint") != digest(run.metrics["fingerprint"], "report"):
        return None
    sheet = cv2.imread(str(run.folder / "report" / "sample_sheet.png"), cv2.IMREAD_COLOR)
    if sheet is None:
        return None
    height = max(SMALL, size[0])
    image = cv2.cvtColor(sheet, cv2.COLOR_BGR2RGB).astype(np.uint8)
    rows = cut_sheet(image, height, round(size[1] * height / size[0]))
    return [row[-3] for row in rows] if len(rows) == count else None
