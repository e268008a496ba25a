"""A whole sweep whose run lies on an S3 server: killed once, gone on with, and found done by another node."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posegen.storage.store import Store
from posegen.training.checkpoints import fetch_newest, read_curve
from posegen.tuning.results import Trial, TrialFolder
from tests.test_pipeline import wait_for
from tests.test_sweep import JOINING, ROOT, Cluster

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

BUDGET = 8
PLACE = "s3://runs/searched"
SMALL = [
    "data.train_people=8", "data.test_people=3", "data.images_per_person=8", "shards.images_per_shard=8",
    "coarse.width=4", "coarse.steps=8", "coarse.batch_size=4",
    "refinement.width=4", "refinement.discriminator_width=4", "refinement.batch_size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose workers keep their copies where no driver looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSEGEN_CACHE", str(tmp_path_factory.mktemp("workers")))
        started = Cluster()
    yield started
    started.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    started.process.wait(timeout=60)


def start(home: Path, **environment: str) -> subprocess.Popen[str]:
    """The sweep's command; `home` is a node's cache."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, **JOINING, "PYTHONPATH": str(ROOT), "POSEGEN_CACHE": str(home), **environment}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "posegen.cli", "tune", "vdg", "--run", PLACE, "--budget", str(BUDGET)]
    command += ["--trials", "3", "--scheduler", "asha", "--seeds", "0"]
    command += ["--validation-share", "0.3", "--validation-pairs", "6", "--pairs", "6", "--cache-gb", "0.001"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--set", *SMALL], cwd=home, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def trials(store: Store) -> list[Trial]:
    """The trials as the run has them, fetched to the node that this process is."""
    store.fetch("trials", wanted=lambda inside: inside.endswith("/trial.json"))
    return TrialFolder(store, "trials").read()


def test_a_killed_sweep_goes_on_and_another_node_finds_it_done(
    cluster: Cluster, two_nodes: Callable[[str], None], tmp_path: Path
):
    store, joined = Store.of(PLACE), {"RAY_ADDRESS": cluster.address}
    two_nodes("looking")
    first = start(tmp_path / "first", **joined)
    wait_for(lambda: any(trial.ended for trial in trials(store)), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = {trial.number: trial for trial in trials(store) if trial.ended}
    assert 0 < len(before) < 3, "it was killed at the wrong time"
    output = finish(start(tmp_path / "second", **joined))  # on another node: nothing of it is there
    assert "was at work on" in output
    assert "shards: done already" in output
    assert "coarse: done already" in output
    again = finish(start(tmp_path / "third", **joined))
    assert "all of it is done already" in again
    assert "starting Ray" not in again
    after = trials(store)
    assert [trial.state in ("finished", "stopped") for trial in after] == [True] * 3
    assert [after[number] for number in before] == list(before.values())
    for trial in after:
        check_trial(store, trial)
    assert {"sweep.json", "best.json", "plan.json", "report/tune.html", "mlflow.db"} <= store.sizes().keys()
    assert not [name for name in store.sizes() if name.startswith((".tune", "lease"))]
    best = json.loads(store.fetch("best.json").read_text())
    assert best["found"]["sweep"] == PLACE


def check_trial(store: Store, trial: Trial) -> None:
    """What the run has of a trial: its record, its images, its one checkpoint."""
    place = f"trials/{trial.number:04d}"
    files = store.sizes(place)
    stage = f"stages/refinement/checkpoint_{trial.step:08d}"
    named = {"trial.json", "samples.png", "sample_sheet.png", f"{stage}/stage.json", f"{stage}/networks.safetensors"}
    assert named <= files.keys()
    assert ("pairs.parquet" in files) == (trial.state == "finished")
    assert len([name for name in files if name.endswith("stage.json")]) == 1
    newest = fetch_newest(store, f"{place}/stages/refinement")
    assert newest is not None
    validated = [row for row in read_curve(newest) if "validation/mask_ssim" in row]
    assert [row["step"] for row in validated] == [row["step"] for row in trial.validations]
