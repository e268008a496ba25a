"""The report: one page that needs nothing else, with the images, the scores, the curves, the plan and the way back.

report/index.html         images and styles inside; nothing is fetched
report/sample_sheet.png   the fixed draw of pairs as one image
report/fingerprint.json   written last: it is there when, and only when, the report is complete

The pages' templates: everything is escaped, and what is not given is an error.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pyarrow.parquet as pq

from posegen.data.loading.dataset import Shards
from posegen.evaluation.baselines import BASELINES
from posegen.evaluation.metrics import EVERY, METRICS, POSE_BASELINES, POSE_METRICS, deciding
from posegen.inference import Trained
from posegen.report.drawing import HEAT_FULL, HEIGHT, SMALL, WIDTH, charts, data_uri, sheet
from posegen.report.panels import SEED, Case, chosen_rows, every_view, make_cases
from posegen.report.score_table import headline, score_row, score_text, stage_rows, wins
from posegen.storage.files import write_json, write_whole
from posegen.training.checkpoints import latest_checkpoint, read_curve

HEADLINES = ("mask_l1", "ssim", "mask_ssim", "psnr", "pose_error")
CASE_SCORES = ("mask_l1", "ssim", "mask_ssim", "psnr", "l1", "pose_error")
PACKAGES = ("posegen", "torch", "ray", "numpy", "opencv-python", "scikit-image", "pyarrow", "simplejpeg", "safetensors")
SHOWN_ELSEWHERE = ("stages", "paper")  # of the plan
SECTIONS = {"best": "The best", "worst": "The worst", "fixed": "A fixed draw"}


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
    """Writes the report of a scored run into `folder` and gives the page's path.

    `plan` is shown as it is, nested mappings as tables; "system", "variant", "dataset" and "stages" (mappings with
    "name", "settings" and "parameters") have their own places. `reproduce` are the command lines that make it again.
    Raises ValueError where the run is not scored.
    """
    metrics, table = _read_scores(scores)
    chosen = chosen_rows(table)
    scored = _among(CASE_SCORES, metrics)
    cases = {name: make_cases(trained, data, table, rows, scored) for name, rows in chosen.items()}
    curves = {stage.name: _stage_charts(stages / stage.name) for stage in trained.system.stages}
    about = {"fingerprint": fingerprint, "plan": plan, "reproduce": reproduce, "manifest": data.manifest}
    about |= {"size": trained.system.size, "paper": trained.system.paper, "cases": cases, "curves": curves}
    about |= {"views": every_view(trained, data)}
    page = _render(about | _numbers(metrics, table))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fingerprint.json").unlink(missing_ok=True)
    write_whole(folder / "sample_sheet.png", lambda path: path.write_bytes(_sheet_png(cases["fixed"], data.size[0])))
    write_whole(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_json(folder / "fingerprint.json", {"fingerprint": fingerprint})
    return folder / "index.html"


def _read_scores(scores: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not (scores / "metrics.json").is_file():
        raise ValueError(f"{scores} has no metrics.json: the run is not scored. Run `posegen evaluate` on it first.")
    table = pq.read_table(scores / "pairs.parquet")
    return json.loads((scores / "metrics.json").read_text()), {n: table[n].to_numpy() for n in table.column_names}


def _among(wanted: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """Those of some scores that a system has; of one without images all that it has."""
    if not any(name in metrics["scores"] for name in METRICS):
        return list(metrics["scores"])
    return [name for name in wanted if name in metrics["scores"]]


def _numbers(metrics: Mapping[str, Any], table: Mapping[str, np.ndarray]) -> dict[str, Any]:
    scored = [name for name in EVERY if name in metrics["scores"]]
    return {
        "metrics": metrics,
        "headlines": [headline(n, metrics) for n in _among(HEADLINES, metrics) if metrics["scores"][n] is not None],
        "rows": [score_row(name, metrics) for name in scored],
        "stages": stage_rows(metrics),
        "wins": wins(table),
        "deciding": EVERY[deciding(scored)],
        "all_metrics": {name: EVERY[name] for name in scored},
        "baselines": {name: _meaning(name, scored) for name in metrics["baselines"]},
    }


def _meaning(baseline: str, scored: Sequence[str]) -> str:
    """What a baseline is, of images and of joints, as far as these are scored."""
    meanings = {BASELINES[baseline]: METRICS, POSE_BASELINES.get(baseline, ""): POSE_METRICS}
    return "; of joints: ".join(words for words, metrics in meanings.items() if words and metrics.keys() & set(scored))


def _stage_charts(folder: Path) -> list:
    checkpoint = latest_checkpoint(folder)
    return charts(read_curve(checkpoint)) if checkpoint else []


def _sheet_png(cases: Sequence[Case], height: int) -> bytes:
    rows = [[panel.image for panel in case.panels] for case in cases]
    image = cv2.cvtColor(sheet(rows, max(SMALL, height)), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings and sequences of mappings by dotted path, the notation that `--set` takes."""
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
    """A setting as one reads it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)


def _render(about: Mapping[str, Any]) -> str:
    nested = {name: flattened(value) for name, value in about["plan"].items() if isinstance(value, Mapping)}
    flat = {name: value for name, value in about["plan"].items() if name not in {*nested, *SHOWN_ELSEWHERE}}
    filters = {
        "data_uri": data_uri,
        "shown": shown,
        "score": lambda value, name: score_text(name, value),
        "degrees": lambda angle: f"{angle:+.1f}°".replace("-", "−"),
    }
    return template("page.html", filters).render(
        about,
        general=flat,
        groups=nested,
        flattened=flattened,
        sections=SECTIONS,
        images=any(name in METRICS for name in about["all_metrics"]),
        case_seed=SEED,
        most_views=max((len(row.views) + 1 for row in about["views"]), default=1),
        panels=max(len(case.panels) for case in about["cases"]["fixed"]),
        small=SMALL,
        heat_full=HEAT_FULL,
        plot={"width": WIDTH, "height": HEIGHT},
        versions=_versions(),
        written=datetime.now(UTC),
    )


HERE = Path(__file__).parent


def template(name: str, filters: Mapping[str, Callable[..., str]], *, folder: Path = HERE) -> jinja2.Template:
    """Return a page's template from `folder` with its own filters; it may include files of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
