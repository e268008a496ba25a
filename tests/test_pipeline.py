"""Whole runs of `flows/full_pipeline.py`, as a user starts them: through Ray, small, on the embedded people."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as parquet
import pytest

from posegen.training.checkpoints import RAY_STATE, latest_checkpoint, read_curve

ROOT = Path(__file__).parent.parent
STEPS, INTERVAL = 160, 10  # of the second stage: enough that it can be hit while it runs
SMALL = [
    "data.train_people=6", "data.test_people=2", "data.images_per_person=8",
    "coarse.width=4", "coarse.steps=20", "coarse.batch_size=4",
    "refinement.width=4", "refinement.discriminator_width=4", f"refinement.steps={STEPS}", "refinement.batch_size=4",
]  # fmt: skip
METRICS = {"ssim", "mask_ssim", "psnr", "l1", "mask_l1"}


def command(run: Path | str, *more: str) -> list[str]:
    flow = str(ROOT / "flows" / "full_pipeline.py")
    return [
        sys.executable,
        flow,
        "--run",
        str(run),
        "--pairs",
        "10",
        "--checkpoint-every",
        str(INTERVAL),
        *more,
        "--set",
        *SMALL,
    ]


def start(run: Path | str, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    pipe = subprocess.PIPE
    return subprocess.Popen(command(run, *more), stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    for _ in range(4000):
        if happened():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("it did not happen within 200 s")


def train_workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    workers = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process)
    return workers


def networks(run: Path, stage: str) -> bytes:
    latest = latest_checkpoint(run / "stages" / stage)
    assert latest is not None
    return (latest / "networks.safetensors").read_bytes()


def test_a_run_leaves_what_the_architecture_says(uninterrupted: tuple[Path, str]):
    run, output = uninterrupted
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    for split, people in (("train", 6), ("test", 2)):
        counts = manifest["counts"][split]
        assert counts["images"] == people * 8
        assert 0 < counts["usable"] <= counts["images"]
        assert counts["pairs"] > 0
    rejected = parquet.read_table(run / "shards" / "rejects.parquet").num_rows
    assert sum(manifest["rejects"].values()) == rejected
    scores = json.loads((run / "scores" / "metrics.json").read_text())
    assert scores["pairs"] == 10
    assert set(scores["scores"]) >= METRICS
    assert all(set(baseline) >= METRICS for baseline in scores["baselines"].values())
    assert parquet.read_table(run / "scores" / "pairs.parquet").num_rows == 10
    page = (run / "report" / "index.html").read_text()
    assert "refined_image" in page or "refinement" in page
    assert str(run / "report" / "index.html") in output
    assert "mlflow ui" in output


def test_tracking_has_a_run_for_the_pipeline_and_one_for_each_stage(uninterrupted: tuple[Path, str]):
    from mlflow import MlflowClient

    run, _ = uninterrupted
    saved = json.loads((run / "mlflow.json").read_text())
    assert saved["uri"] == f"sqlite:///{run / 'mlflow.db'}"
    client = MlflowClient(saved["uri"])
    pipeline = client.get_run(saved["runs"]["pipeline"])
    assert pipeline.info.status == "FINISHED"
    assert pipeline.data.metrics["mask_l1"] > 0
    for stage, steps in (("coarse", 20), ("refinement", STEPS)):
        nested = client.get_run(saved["runs"][stage])
        assert nested.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert nested.data.params[f"{stage}.steps"] == str(steps)
        history = client.get_metric_history(nested.info.run_id, "generator/l1")
        latest = latest_checkpoint(run / "stages" / stage)
        assert latest is not None
        rows = read_curve(latest)
        assert [(m.step, m.value) for m in history] == [(row["step"], row["generator/l1"]) for row in rows]
        assert rows[-1]["step"] == steps
    assert {f.path for f in client.list_artifacts(pipeline.info.run_id, "report")} >= {"report/index.html"}


def test_the_same_command_redoes_nothing(uninterrupted: tuple[Path, str]):
    run, _ = uninterrupted
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".log"}
    output = finish(start(run))
    assert "starting Ray" not in output
    kept = ("shards", "stages", "scores", "report")
    redone = [p for p, t in files.items() if p.relative_to(run).parts[0] in kept and p.stat().st_mtime_ns != t]
    assert not redone


def test_other_settings_are_refused_with_what_differs(uninterrupted: tuple[Path, str]):
    run, _ = uninterrupted
    process = start(run, "--seed", "9")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "seed: 0 there, 9 now" in output
    assert "coarse, refinement, scores, report" in output
    assert "--update" in output
    assert "Traceback" not in output


@pytest.mark.long
def test_killed_driver_and_killed_worker_end_with_the_uninterrupted_networks(
    uninterrupted: tuple[Path, str], tmp_path: Path
):
    run = tmp_path / "killed"
    stage = run / "stages" / "refinement"
    first = start(run)
    wait_for(lambda: latest_checkpoint(stage), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    reached = latest_checkpoint(stage)
    assert reached is not None
    assert reached.name < f"checkpoint_{STEPS:08d}", "it was too late to kill"
    second = start(run)
    wait_for(lambda: train_workers(second), second)
    workers = train_workers(second)
    wait_for(lambda: latest_checkpoint(stage) != reached, second)
    for worker in workers:
        worker.kill()
    output = finish(second)
    assert "shards: done already" in output
    assert "resuming from the last checkpoint" in output
    for name in ("coarse", "refinement"):
        assert networks(run, name) == networks(uninterrupted[0], name), name
    scores = [json.loads((r / "scores" / "metrics.json").read_text())["scores"] for r in (run, uninterrupted[0])]
    assert scores[0] == scores[1]


def test_steps_one_by_one_on_the_same_folder(uninterrupted: tuple[Path, str], tmp_path: Path):
    """`posegen report` takes its options from the run, finds everything done, and clears up after a killed driver."""
    run, _ = uninterrupted
    left = run / "stages" / "coarse" / RAY_STATE
    left.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    posegen = [sys.executable, "-m", "posegen.cli"]
    done = subprocess.run(
        [*posegen, "report", "--run", str(run)], capture_output=True, text=True, env=environment, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "report: done already" in done.stdout
    assert not left.exists()
    assert "starting Ray" not in done.stdout
