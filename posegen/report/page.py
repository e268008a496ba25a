"""Write the report of a scored run: a self-contained page with images, scores, loss curves, plan and commands.

report/index.html         images and styles inlined; nothing is fetched
report/sample_sheet.png   the fixed draw of pairs as one image
report/fingerprint.json   written last: present if and only if the report is complete
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
from posegen.evaluation.baselines import BASELINES, POSE_BASELINES
from posegen.evaluation.metrics import EVERY, METRICS, POSE_METRICS, ranking_metric
from posegen.inference import Trained
from posegen.report.drawing import HEAT_FULL, HEIGHT, SMALL, WIDTH, charts, data_uri, sheet
from posegen.report.panels import SEED, Case, chosen_rows, every_view, make_cases
from posegen.report.score_table import headline, score_row, score_text, stage_rows, win_percentage
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
    metrics, table = _read_scores(scores)
    scored = _among(CASE_SCORES, metrics)
    cases = {name: make_cases(trained, data, table, rows, scored) for name, rows in chosen_rows(table).items()}
    checkpoints = {stage.name: latest_checkpoint(stages / stage.name) for stage in trained.system.stages}
    curves = {name: charts(read_curve(checkpoint)) if checkpoint else [] for name, checkpoint in checkpoints.items()}
    content = {"fingerprint": fingerprint, "plan": plan, "reproduce": reproduce, "manifest": data.manifest}
    content |= {"size": trained.system.size, "paper": trained.system.paper, "cases": cases, "curves": curves}
    page = _render(content | {"views": every_view(trained, data)} | _score_content(metrics, table))
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
