"""Whole sweeps of `flows/tune_vdg.py`, as a user starts them: small, the embedded people, a cluster of two CPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from posegen.evaluation.metrics import METRICS
from posegen.storage.store import Store
from posegen.training.checkpoints import latest_checkpoint, read_curve
from posegen.tuning.content import final_comparison
from posegen.tuning.results import Trial, TrialFolder
from tests.test_pipeline import wait_for

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
TRIALS, BUDGET = 4, 40
ALL_FREE = "2.0"  # CPUs, and no placement group
SMALL = [
    "data.train_people=8", "data.test_people=3", "data.images_per_person=8",
    "coarse.width=4", "coarse.steps=20", "coarse.batch_size=4",
    "refinement.width=4", "refinement.discriminator_width=4", "refinement.batch_size=4",
]  # fmt: skip
JOINING = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # otherwise a driver joins only with the cluster's token
}
HOST = """
import ray, sys
context = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=512 * 2**20, log_to_driver=False)
print("ANSWER", context.address_info["gcs_address"], flush=True)
for _ in sys.stdin:
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    print("ANSWER", ray.available_resources().get("CPU", 0), *sorted(states - {"REMOVED"}), flush=True)
"""


class Cluster:
    """A cluster of two CPUs in a process of its own, which outlives the drivers that join it."""

    def __init__(self) -> None:
        environment = {**os.environ, **JOINING, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST], stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.address = self._line()

    def _line(self) -> str:
        """The next answer; Ray says things in between."""
        assert self.process.stdout is not None
        return next(line for line in self.process.stdout if line.startswith("ANSWER")).removeprefix("ANSWER").strip()

    def free(self) -> str:
        """Free CPUs, and the states of placement groups that are not gone, after half a minute or once all is free."""
        assert self.process.stdin is not None
        answer = ""
        for _ in range(30):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            answer = self._line()
            if answer == ALL_FREE:
                break
            time.sleep(1)
        return answer


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    started.process.wait(timeout=60)


def start(cluster: Cluster, run: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **JOINING, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address}
    environment.pop("MLFLOW_TRACKING_URI", None)
    flow = [sys.executable, str(ROOT / "flows" / "tune_vdg.py"), "--run", str(run), "--budget", str(BUDGET)]
    people = ["--validation-share", "0.3", "--validation-pairs", "12", "--pairs", "12"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*flow, *people, *more, "--set", *SMALL], stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def trials(run: Path) -> list[Trial]:
    return TrialFolder(Store.of(run), "trials").read()


class Swept:
    """A sweep whose driver was killed after its first finished trial, and that the same command then ended."""

    def __init__(self, run: Path, cluster: Cluster) -> None:
        self.run, self.cluster = run, cluster
        command = ("--trials", str(TRIALS))
        first = start(cluster, run, *command)
        wait_for(lambda: any(trial.ended for trial in trials(run)), first)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        self.before = {trial.number: trial for trial in trials(run) if trial.ended}
        self.files = self._files()
        self.output = finish(start(cluster, run, *command))
        self.free = cluster.free()
        self.again = finish(start(cluster, run, *command))

    def _files(self) -> dict[Path, int]:
        ended = [TrialFolder(Store.of(self.run), "trials").path(number) for number in self.before]
        return {path: path.stat().st_mtime_ns for home in ended for path in home.rglob("*") if path.is_file()}

    def rewritten(self) -> list[Path]:
        kept = self._files()
        return [path for path, written in self.files.items() if kept.get(path) != written]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Swept:
    return Swept(tmp_path_factory.mktemp("sweeps") / "killed", cluster)


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(swept: Swept):
    assert 0 < len(swept.before) < TRIALS, "it was killed at the wrong time"
    assert swept.rewritten() == []
    assert "shards: done already" in swept.output
    assert "coarse: done already" in swept.output
    after = trials(swept.run)
    assert [trial.number for trial in after] == list(range(TRIALS))
    assert all(trial.state in ("finished", "stopped") for trial in after)
    assert [after[number] for number in swept.before] == list(swept.before.values())


def test_the_same_command_then_does_nothing(swept: Swept):
    assert "all of it is done already" in swept.again
    assert "starting Ray" not in swept.again


def test_nothing_is_left_on_the_cluster(swept: Swept):
    assert swept.free == ALL_FREE


def test_the_first_trial_has_the_papers_weights_and_trials_train_stage_ii_alone(swept: Swept):
    first, *others = trials(swept.run)
    assert first.settings["refinement.alpha"] == 0.5
    assert all(trial.settings != first.settings for trial in others)
    for trial in (first, *others):
        home = TrialFolder(Store.of(swept.run), "trials").path(trial.number)
        assert [path.name for path in (home / "stages").iterdir()] == ["refinement"]
        latest = latest_checkpoint(home / "stages" / "refinement")
        assert latest is not None
        assert int(latest.name.removeprefix("checkpoint_")) == trial.step
        validated = [row for row in read_curve(latest) if "validation/mask_ssim" in row]
        assert [row["step"] for row in validated] == [row["step"] for row in trial.validations]
        assert set(trial.validations[-1]) == {"step", *METRICS} if trial.state == "finished" else {"step", "mask_ssim"}
        assert (trial.step == BUDGET) == (trial.state == "finished")
        assert trial.step in (10, 20, 40)  # the rungs and the end


def nested(run: Path) -> tuple[MlflowClient, Run, dict[str, Run]]:
    saved = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(saved["uri"])
    parent = client.get_run(saved["runs"]["pipeline"])
    found = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    names = [run.data.tags["mlflow.runName"] for run in found]
    assert len(names) == len(set(names)), "a run for each"
    return client, parent, dict(zip(names, found, strict=True))


def test_mlflow_has_a_nested_run_for_every_trial_and_the_best_is_tagged(swept: Swept):
    client, parent, runs = nested(swept.run)
    assert parent.info.status == "FINISHED"
    best = json.loads((swept.run / "best.json").read_text())["found"]["trial"]
    for trial in trials(swept.run):
        run = runs[f"trial-{trial.number:04d}"]
        assert run.info.status == "FINISHED"
        assert run.data.params == {k: str(v) for k, v in {**trial.settings, "seed": trial.seed}.items()}
        history = client.get_metric_history(run.info.run_id, "validation/mask_ssim")
        assert [(m.step, m.value) for m in history] == [(row["step"], row["mask_ssim"]) for row in trial.validations]
        losses = client.get_metric_history(run.info.run_id, "generator/total")
        assert [m.step for m in losses] == list(range(1, trial.step + 1))
        assert run.data.metrics["mask_ssim"] == trial.score("mask_ssim")
        assert run.data.tags["posegen.best"] == ("true" if trial.number == best else "false")
        assert run.data.tags["posegen.state"] == trial.state
        assert [f.path for f in client.list_artifacts(run.info.run_id, "samples")] == ["samples/sample_sheet.png"]
    assert {f.path for f in client.list_artifacts(parent.info.run_id, "report")} == {
        "report/best.json", "report/tune.html"
    }  # fmt: skip


def test_the_best_trial_is_compared_with_the_papers_on_the_test_people(swept: Swept):
    from posegen.runs.options import Options
    from posegen.tuning.options import SweepOptions, sweep_for

    best = json.loads((swept.run / "best.json").read_text())
    finished = [trial for trial in trials(swept.run) if trial.state == "finished"]
    highest = max(finished, key=lambda trial: trial.score("mask_ssim") or 0)
    assert best["settings"].items() >= dict(highest.settings).items()
    options = Options(run=swept.run, set=SMALL, pairs=12)
    sweep = sweep_for(options, SweepOptions(trials=TRIALS, budget=BUDGET, validation_share=0.3, validation_pairs=12))
    compared = final_comparison(sweep)
    assert compared is not None
    assert compared["seeds"] == [1, 2, 3]
    assert compared["pairs"] == 12
    assert compared["verdict"] in swept.output.replace("\n", " ")
    page = (swept.run / "report" / "tune.html").read_text()
    assert compared["verdict"].replace("'", "&#39;") in page


def test_the_best_settings_are_taken_by_the_pipeline(swept: Swept):
    best = json.loads((swept.run / "best.json").read_text())
    flow = [sys.executable, str(ROOT / "flows" / "full_pipeline.py"), "--dry-run"]
    done = subprocess.run(
        [*flow, "--settings", str(swept.run / "best.json")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert f"refinement.alpha = {best['settings']['refinement.alpha']}" in done.stdout
    assert "refinement: 240 steps" in done.stdout


@pytest.mark.long
def test_a_trial_that_diverges_or_whose_worker_dies_does_not_end_the_sweep(cluster: Cluster, tmp_path: Path):
    space = tmp_path / "space.py"
    space.write_text('from ray import tune\nSPACE = {"refinement.lr": tune.choice([5e-4, 1e30])}\n')
    run = tmp_path / "sweep"
    words = ("--trials", "3", "--space", str(space), "--search", "grid", "--seeds", "0", "--scheduler", "none")
    process = start(cluster, run, *words)
    wait_for(lambda: any(trial.validations for trial in trials(run)), process)
    workers = [p for p in psutil.Process(cluster.process.pid).children(recursive=True) if "RayTrainWorker" in name(p)]
    for worker in workers[:1]:
        worker.kill()
    output = finish(process)
    states = {trial.settings["refinement.lr"]: trial for trial in trials(run) if trial.number}
    assert states[5e-4].state == "finished"
    assert states[1e30].state == "diverged"
    assert "stopped at step" in states[1e30].why
    assert "diverged" in output
    assert cluster.free() == ALL_FREE
    _, _, runs = nested(run)
    assert {name: run.info.status for name, run in runs.items() if name.startswith("trial")} == {
        f"trial-{t.number:04d}": "FAILED" if t.state == "diverged" else "FINISHED" for t in trials(run)
    }


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
