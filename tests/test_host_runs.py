"""Whole runs on three hosts: workers on two of them, a host that loses its power or its network, a head that does.

The hosts are those of `hosts.py`, the cluster is brought up by `ray up clusters/onprem.yaml`.
"""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posegen.training.checkpoints import latest_checkpoint, read_progress
from tests.hosts import ONPREM, Cluster, Hosts, what_is_missing

MISSING = what_is_missing()
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

STEPS, INTERVAL = 160, 10  # of the second stage: enough that a host can be lost while it runs
OPTIONS = [
    "--workers", "2", "--pairs", "10", "--checkpoint-every", str(INTERVAL),
    "--set", "data.train_people=6", "data.test_people=2", "data.images_per_person=8",
    "coarse.width=4", "coarse.steps=20", "coarse.batch_size=4",
    "refinement.width=4", "refinement.discriminator_width=4", f"refinement.steps={STEPS}", "refinement.batch_size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    quick |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # three hosts' threads share this machine's cores
    with Hosts(3) as hosts, Cluster(hosts, folder, runs=folder / "runs", environment=quick) as cluster:
        yield cluster


def scores(run: Path) -> dict[str, float]:
    return json.loads((run / "scores" / "metrics.json").read_text())["scores"]


def failures(run: Path) -> dict:
    path = run / "stages" / "refinement" / "failures.json"
    return json.loads(path.read_text()) if path.is_file() else {"failures": [], "lost_steps": 0}


def reached(run: Path) -> int:
    latest = latest_checkpoint(run / "stages" / "refinement")
    return read_progress(latest).step if latest else 0


def workers(run: Path) -> list[str]:
    """The hosts of the second stage's workers, as the run's log names them last."""
    log = (run / "pipeline.log").read_text() if (run / "pipeline.log").is_file() else ""
    found = re.findall(r"refinement: 2 workers on (.*)", log)
    return found[-1].split(", ") if found else []


class Running:
    """A run on the head, in a thread; `finish` gives what it printed."""

    def __init__(self, cluster: Cluster, run: Path) -> None:
        words = " ".join(["python flows/full_pipeline.py --run", str(run), *OPTIONS])
        self._command = f"cd {ONPREM.parent.parent} && {words}; echo exit $?"
        self._cluster, self.output = cluster, ""
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def _go(self) -> None:
        self.output = self._cluster.exec(self._command, check=False, timeout=1200)

    def wait_until(self, happened: Callable[[], object]) -> None:
        for _ in range(1200):
            if happened():
                return
            assert self._thread.is_alive(), self.output
            time.sleep(0.25)
        raise AssertionError("it did not happen within 300 s")

    def finish(self) -> str:
        self._thread.join(1200)
        assert self.output.rstrip().endswith("exit 0"), self.output
        return self.output


def number(host: str) -> int:
    return int(host.removeprefix("posegen"))


def worker_beside_the_head(run: Path) -> int:
    """The number of a host that trains and is not the head."""
    return next(number(host) for host in workers(run) if number(host) != 1)


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> Path:
    """A run that nothing interrupts, by `ray submit`."""
    run = cluster.folder / "runs" / "whole"
    flow = str(ONPREM.parent.parent / "flows" / "full_pipeline.py")
    cluster.ray("submit", str(cluster.file), flow, "--", "--run", str(run), *OPTIONS, timeout=900)
    return run


def begun(whole: Path, name: str) -> Path:
    """A run of the same settings whose shards and first stage are those of the whole one."""
    run = whole.parent / name
    for done in ("shards", "stages/coarse"):
        shutil.copytree(whole / done, run / done)
    shutil.copy(whole / "plan.json", run / "plan.json")
    return run


def test_two_workers_train_on_two_hosts_as_on_one(cluster: Cluster, whole: Path):
    assert len(set(workers(whole))) == 2, workers(whole)
    assert (whole / "report" / "index.html").is_file()
    alone = cluster.folder / "runs" / "one-host"
    own = "env -u RAY_ADDRESS RAY_TMPDIR=/tmp/ray/alone"
    own += " RAY_OVERRIDE_RESOURCES='{\"CPU\": 4}'"  # as many threads a worker as two hosts of two have
    flow = f"python flows/full_pipeline.py --run {alone} {' '.join(OPTIONS)}"
    cluster.hosts.run(2, f"cd {ONPREM.parent.parent} && {own} {flow}", timeout=900)
    assert scores(alone) == pytest.approx(scores(whole), abs=1e-4)


def test_a_host_that_loses_its_power_costs_an_interval_at_most(cluster: Cluster, whole: Path):
    run = begun(whole, "killed")
    running = Running(cluster, run)
    running.wait_until(lambda: reached(run) >= INTERVAL)
    lost = worker_beside_the_head(run)
    cluster.hosts.kill(lost)
    assert reached(run) < STEPS, "it was too late to kill"
    running.finish()
    assert scores(run) == pytest.approx(scores(whole), abs=1e-4)
    kept = failures(run)
    assert kept["failures"], "the lost host is counted"
    assert kept["lost_steps"] <= INTERVAL * len(kept["failures"])
    assert f"Interruptions: {len(kept['failures'])}" in (run / "report" / "index.html").read_text()
    cluster.hosts.boot(lost)
    wait_for_nodes(cluster, 3)


def test_a_host_that_is_cut_off_and_comes_back_breaks_nothing(cluster: Cluster, whole: Path):
    run = begun(whole, "cut")
    running = Running(cluster, run)
    running.wait_until(lambda: reached(run) >= INTERVAL)
    lost = worker_beside_the_head(run)
    cluster.hosts.cut(lost)
    assert reached(run) < STEPS, "it was too late to cut"
    time.sleep(60)
    cluster.hosts.mend(lost)
    running.finish()
    assert scores(run) == pytest.approx(scores(whole), abs=1e-4)
    assert failures(run)["failures"]
    wait_for_nodes(cluster, 3)


def test_a_head_that_loses_its_power_goes_on_from_the_last_checkpoint(cluster: Cluster, whole: Path):
    run = begun(whole, "head")
    running = Running(cluster, run)
    running.wait_until(lambda: reached(run) >= INTERVAL)
    cluster.hosts.kill(1)
    before = reached(run)
    assert before < STEPS, "it was too late to kill"
    cluster.hosts.boot(1)
    cluster.ray("up", str(cluster.file), "--no-config-cache", "-y")
    wait_for_nodes(cluster, 3)
    output = Running(cluster, run).finish()
    assert "coarse: done already" in output
    assert scores(run) == pytest.approx(scores(whole), abs=1e-4)


def wait_for_nodes(cluster: Cluster, count: int) -> None:
    for _ in range(120):
        if cluster.nodes() == count:
            return
        time.sleep(2)
    raise AssertionError(f"{cluster.nodes()} hosts are in the cluster, not {count}")
