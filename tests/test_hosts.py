"""`ray up` on three hosts, and what the doctor says there: all well, other versions, no token, a lost host."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import ONPREM, Cluster, Hosts, what_is_missing

MISSING = what_is_missing()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts in one cluster, brought up by `ray up`. A folder in each host's own home is on its PYTHONPATH."""
    folder = tmp_path_factory.mktemp("cluster")
    path = {"PYTHONPATH": f"{Path.home()}/other:{ONPREM.parent.parent}"}
    with Hosts(3) as hosts, Cluster(hosts, folder, runs=folder / "runs", environment=path) as cluster:
        yield cluster


def doctor(cluster: Cluster, *, before: str = "", words: str = "") -> tuple[int, str]:
    """The doctor's exit code and lines, on the head."""
    out = cluster.exec(f"{before} posegen doctor {words}; echo exit $?", check=False)
    found = re.search(r"exit (\d+)\s*$", out)
    assert found, out
    return int(found[1]), out


def failures(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("FAILED")]


def test_all_is_well_on_a_cluster_that_ray_up_made(cluster: Cluster):
    code, out = doctor(cluster)
    assert code == 0, out
    assert not failures(out)
    assert "3 in the cluster" in out
    for number, address in enumerate(cluster.hosts.addresses, start=1):
        assert f"posegen{number} ({address})" in out
    for check in ("nodes", "token", "versions", "storage", "gpus", "clocks", "disks", "mlflow"):
        assert re.search(rf"^ok       {check}", out, re.MULTILINE), out
    assert not list(Path(cluster.folder, "runs").glob(".posegen-doctor-*"))


def test_shells_and_jobs_know_run_storage_and_token(cluster: Cluster):
    show = "python -c \"import os; print(os.environ['POSEGEN_RUNS'], os.environ['RAY_AUTH_MODE'])\""
    expected = f"{cluster.folder}/runs token"
    assert expected in cluster.ray("exec", str(cluster.file), show)
    script = cluster.folder / "show.py"
    script.write_text("import os\nprint(os.environ['POSEGEN_RUNS'], os.environ['RAY_AUTH_MODE'])\n")
    assert expected in cluster.ray("submit", str(cluster.file), str(script))
    assert expected in cluster.exec(f"ray job submit --working-dir {cluster.folder} --no-wait -- true && {show}")
    assert expected in cluster.exec(f"cd {ONPREM.parent.parent} && ray job submit --working-dir . -- {show}")


def test_only_the_token_opens_the_dashboard_and_only_on_the_head(cluster: Cluster):
    head = cluster.hosts.addresses[0]
    ask = "curl -s -o /dev/null -w '%{http_code}'"
    assert cluster.exec(f"{ask} http://127.0.0.1:8265/api/jobs/", check=False).strip() in ("401", "403")
    assert cluster.hosts.run(2, f"{ask} --max-time 5 http://{head}:8265/api/jobs/", check=False).strip() == "000"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("mv ~/.ray/auth_token ~/.ray/kept;", "there is no file .*auth_token"),
        ("cp ~/.ray/auth_token ~/.ray/kept; echo -n other > ~/.ray/auth_token;", "holds another one"),
        ("cp ~/.ray/auth_token ~/.ray/kept; export RAY_AUTH_MODE=disabled;", "RAY_AUTH_MODE is disabled"),
    ],
    ids=["no token", "wrong token", "switched off"],
)
def test_a_refused_token_is_one_line_with_its_remedy(cluster: Cluster, before: str, words: str):
    try:
        code, out = doctor(cluster, before=before)
    finally:
        cluster.exec("mv ~/.ray/kept ~/.ray/auth_token")
    assert code == 1
    (line,) = failures(out)
    assert re.match(f"FAILED   join .*asks for a token.*{words}", line)
    assert "Traceback" not in out


def test_a_node_with_other_versions_is_named(cluster: Cluster):
    package = "~/other/numpy-1.0.0.dist-info"
    cluster.hosts.run(3, f"mkdir -p {package}; printf 'Name: numpy\\nVersion: 1.0.0\\n' > {package}/METADATA")
    try:
        code, out = doctor(cluster)
    finally:
        cluster.hosts.run(3, "rm -r ~/other")
    assert code == 1
    (line,) = failures(out)
    assert line.startswith(f"FAILED   versions  numpy is 1.0.0 on posegen3 ({cluster.hosts.addresses[2]}), ")


def test_a_folder_that_each_host_has_for_itself_is_no_run_storage(cluster: Cluster):
    """Homes are private here, so what one host writes below its own is on no other."""
    for number in (1, 2, 3):
        cluster.hosts.run(number, "mkdir -p ~/runs")
    code, out = doctor(cluster, words="--run ~/runs --root ~/runs")
    assert code == 1
    lines = failures(out)
    assert len(lines) == 2, out
    for number in (2, 3):
        assert any(f"posegen{number} " in line and "does not read what was written here" in line for line in lines)


def test_a_notice_of_the_cloud_drains_the_node_that_gets_it(cluster: Cluster):
    """The watcher as cluster.yaml starts it, on host 3, with a metadata server there that gives a notice."""
    repository = ONPREM.parent.parent
    address = cluster.hosts.addresses[2]
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 90))
    page = json.dumps({"action": "terminate", "time": end})
    server = (
        f"import sys; sys.path.insert(0, '{repository}'); from tests.cluster.test_preemption import Cloud\n"
        f"c = Cloud(); "
        f"c.pages['/latest/meta-data/spot/instance-action'] = '{page}'; "
        "print(c.address, flush=True); c.serve_forever()"
    ).replace('"', '\\"')
    started = (
        f'setsid nohup python -c "{server}" </dev/null >~/address 2>&1 & '
        "until grep -q http ~/address; do sleep 0.2; done; "
        "timeout 60 posegen watch-preemption --cloud aws --endpoint $(grep -o 'http.*' ~/address) 2>&1"
    )
    busy = (
        "import ray, time; from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On; "
        "ray.init(log_to_driver=False); "
        f"node = next(n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == '{address}'); "
        "work = ray.remote(num_cpus=1, scheduling_strategy=On(node, soft=False))(lambda: time.sleep(45)).remote(); "
        "seen = [time.sleep(1) or ray._private.state.state.get_draining_nodes() for _ in range(40)]; "
        "print('drained', any(node in each for each in seen))"
    )
    cluster.exec(f'setsid nohup python -W ignore -c "{busy}" </dev/null >~/busy 2>&1 & sleep 8')
    said = cluster.hosts.run(3, started, timeout=90)
    assert f"AWS will terminate this spot node at {end}" in said
    assert re.search(r"this node is drained; it ends in \d+ s", said), said
    assert "drained True" in cluster.exec("until grep -q drained ~/busy; do sleep 1; done; cat ~/busy", timeout=90)


def test_a_host_that_loses_its_power_is_missed_and_set_up_again_after_it(cluster: Cluster):
    address = cluster.hosts.addresses[1]
    wait_until(lambda: address in alive(cluster))
    cluster.hosts.kill(2)
    wait_until(lambda: address not in alive(cluster))
    _, out = doctor(cluster)
    assert address not in out
    assert cluster.hosts.addresses[0] in out
    cluster.hosts.boot(2)
    wait_until(lambda: address in alive(cluster))


def alive(cluster: Cluster) -> str:
    return cluster.exec("ray list nodes --filter state=ALIVE", check=False)


def wait_until(holds, *, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain"
        time.sleep(2)
