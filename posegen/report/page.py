"""Write the report of a scored run: a self-contained page with images, scores, loss curves, plan and commands.

report/index.html         images and styles inlined; nothing is fetched
report/sample_sheet.png   the fixed draw of pairs as one image
report/fingerprint.json   written last: present if and only if the report is complete
"""

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pyarrow.parquet as pq

from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import (
    BASELINES,
    EVERY,
    METRICS,
    POSE_BASELINES,
    POSE_METRICS,
    STAGE_METRIC,
    ranking_metric,
)
from posegen.inference import Trained
from posegen.report.drawing import HEAT_FULL, HEIGHT, SMALL, WIDTH, charts, data_uri, sheet
from posegen.report.panels import SEED, chosen_rows, every_view, make_cases
from posegen.storage.files import write_json, write_whole
from posegen.training.checkpoints import latest_checkpoint, read_curve

HEADLINES = ("mask_l1", "ssim", "mask_ssim", "psnr", "pose_error")
CASE_SCORES = ("mask_l1", "ssim", "mask_ssim", "psnr", "l1", "pose_error")
PACKAGES = ("posegen", "torch", "ray", "numpy", "opencv-python", "scikit-image", "pyarrow", "simplejpeg", "safetensors")
SHOWN_ELSEWHERE = ("stages", "paper")  # keys of the plan
SECTIONS = {"best": "The best", "worst": "The worst", "fixed": "A fixed draw"}
HERE = Path(__file__).parent


def write_report(
    folder: Path,
    *,
    trained: Trained,
    data: Shards,
    scores: Path,
    stages: Path,
    plan: Mapping[str, Any],
    reproduce: Sequence[str],
    fingerprint: str,
) -> Path:
    """Write the report of a scored run and return the path of its page.

    Args:
        folder: Folder to write into; created if needed.
        trained: The system and its networks.
        data: The shards.
        scores: Folder of the run's scores.
        stages: Folder with a folder of checkpoints per stage.
        plan: Content of plan.json. Nested mappings are shown as tables; "system", "variant", "dataset" and "stages"
            (mappings with "name", "settings" and "parameters") are laid out separately.
        reproduce: Command lines that reproduce the report.
        fingerprint: Digest of all inputs, stored with the report.

    Raises:
        ValueError: The run is not scored.
    """
    if not (scores / "metrics.json").is_file():
        raise ValueError(f"{scores} has no metrics.json: the run is not scored. Run `posegen evaluate` on it first.")
    metrics, columns = json.loads((scores / "metrics.json").read_text()), pq.read_table(scores / "pairs.parquet")
    table = {name: columns[name].to_numpy() for name in columns.column_names}
    scored = _among(CASE_SCORES, metrics)
    cases = {name: make_cases(trained, data, table, rows, scored) for name, rows in chosen_rows(table).items()}
    checkpoints = {stage.name: latest_checkpoint(stages / stage.name) for stage in trained.system.stages}
    curves = {name: charts(read_curve(checkpoint)) if checkpoint else [] for name, checkpoint in checkpoints.items()}
    content = {"fingerprint": fingerprint, "plan": plan, "reproduce": reproduce, "manifest": data.manifest}
    content |= {"size": trained.system.size, "paper": trained.system.paper, "cases": cases, "curves": curves}
    page = _render(content | {"views": every_view(trained, data)} | _score_content(metrics, table))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fingerprint.json").unlink(missing_ok=True)
    rows = [[panel.image for panel in case.panels] for case in cases["fixed"]]
    image = cv2.cvtColor(sheet(rows, max(SMALL, data.size[0])), cv2.COLOR_RGB2BGR)
    png = cv2.imencode(".png", image)[1].tobytes()
    write_whole(folder / "sample_sheet.png", lambda path: path.write_bytes(png))
    write_whole(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_json(folder / "fingerprint.json", {"fingerprint": fingerprint})
    return folder / "index.html"


def _among(wanted: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """Return the wanted scores that a system has; all of its scores if it makes no images."""
    if not any(name in metrics["scores"] for name in METRICS):
        return list(metrics["scores"])
    return [name for name in wanted if name in metrics["scores"]]


def _score_content(metrics: Mapping[str, Any], table: Mapping[str, np.ndarray]) -> dict[str, Any]:
    scored = [name for name in EVERY if name in metrics["scores"]]
    return {
        "metrics": metrics,
        "headlines": [headline(n, metrics) for n in _among(HEADLINES, metrics) if metrics["scores"][n] is not None],
        "rows": [score_row(name, metrics) for name in scored],
        "stages": stage_rows(metrics),
        "win_percentage": win_percentage(table),
        "ranked_by": EVERY[ranking_metric(scored)],
        "all_metrics": {name: EVERY[name] for name in scored},
        "baselines": {name: _baseline_text(name, scored) for name in metrics["baselines"]},
    }


def _baseline_text(baseline: str, scored: Sequence[str]) -> str:
    """Describe a baseline of images, of joints or of both, depending on the scores."""
    texts = {BASELINES[baseline]: METRICS, POSE_BASELINES.get(baseline, ""): POSE_METRICS}
    return "; of joints: ".join(text for text, metrics in texts.items() if text and metrics.keys() & set(scored))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings and sequences of mappings to dotted paths, as `--set` takes them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        parts = value if isinstance(value, Mapping) else {}
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            parts = {str(index): item for index, item in enumerate(value)}
        if parts:
            flat |= {f"{name}.{path}": inner for path, inner in flattened(parts).items()}
        else:
            flat[name] = value
    return flat


def shown(value: Any) -> str:
    """Format a setting for reading."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)


def _render(content: Mapping[str, Any]) -> str:
    nested = {name: flattened(value) for name, value in content["plan"].items() if isinstance(value, Mapping)}
    flat = {name: value for name, value in content["plan"].items() if name not in {*nested, *SHOWN_ELSEWHERE}}
    filters = {
        "data_uri": data_uri,
        "shown": shown,
        "score": lambda value, name: score_text(name, value),
        "degrees": lambda angle: f"{angle:+.1f}°".replace("-", "−"),
    }
    return template("page.html", filters).render(
        content,
        general=flat,
        groups=nested,
        flattened=flattened,
        sections=SECTIONS,
        images=any(name in METRICS for name in content["all_metrics"]),
        case_seed=SEED,
        most_views=max((len(row.views) + 1 for row in content["views"]), default=1),
        panels=max(len(case.panels) for case in content["cases"]["fixed"]),
        small=SMALL,
        heat_full=HEAT_FULL,
        plot={"width": WIDTH, "height": HEIGHT},
        versions=_versions(),
        written=datetime.now(UTC),
    )


def template(name: str, filters: Mapping[str, Callable[..., str]], *, folder: Path = HERE) -> jinja2.Template:
    """Return a page's template from `folder` with its own filters; it may include files of this folder.

    Everything is escaped, and an undefined variable is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


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


def headline(metric: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a card in the page's header.

    The system and the baselines are bars with lengths from 0 to 100, where 100 is the largest value.
    """
    rivals = {name: scores[metric] for name, scores in metrics["baselines"].items() if metric in scores}
    values = {"result": metrics["scores"][metric]} | rivals
    top = max((value for value in values.values() if value is not None), default=0.0)
    mean, best = metrics["scores"][metric], best_baseline(metric, metrics)
    ratio = against_best_baseline(metric, metrics, mean)
    return {
        "metric": EVERY[metric],
        "value": score_text(metric, mean),
        "ratio": ratio[0] if ratio else "",
        "better": bool(ratio and ratio[1]),
        "against": best[0] if best else "",
        "bars": [
            {"name": name, "text": score_text(metric, value), "length": 100 * max(value or 0.0, 0.0) / (top or 1.0)}
            for name, value in values.items()
        ],
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
