"""The doctor's checks on hand-made facts, his questions on one machine, and how a refused cluster is told."""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from posegen import cli
from posegen.cluster.connecting import why_refused
from posegen.cluster.doctor import (
    ClusterFacts,
    Finding,
    Node,
    collect,
    findings,
    mlflow_error,
    probe_folder,
)
from posegen.cluster.doctor.collect import Disk, NodeFacts

GIB = 2**30
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6", "posegen": "0.1.0"}
WELL = NodeFacts(
    versions={**VERSIONS, "posegen's code": "1a2b3c4d"},
    reads="",
    writes="",
    folders={"/data": 5},
    gpus=2,
    cache=Disk("/cache", free=100 * GIB, total=200 * GIB),
    temporary=Disk("/tmp/ray", free=100 * GIB, total=200 * GIB),
    token=True,
)
NODE = Node("left (10.0.0.2)", gpus=2, facts=WELL, ahead=0.002, doubt=0.001)
HEALTHY = ClusterFacts(driver=WELL, nodes=[NODE, replace(NODE, name="right (10.0.0.3)")], folders=["/data"])


def other(**versions: str | None) -> dict[str, Any]:
    return {"versions": {**WELL.versions, **versions}}


def judged(**changes: Any) -> list[Finding]:
    """The findings that are not ok where the node `right` has other facts."""
    right = replace(HEALTHY.nodes[1], facts=replace(WELL, **changes))
    return wrong(replace(HEALTHY, nodes=[NODE, right]))


def wrong(facts: ClusterFacts) -> list[Finding]:
    return [finding for finding in findings(facts) if finding.state != "ok"]


def test_a_healthy_cluster_has_one_good_line_a_check():
    found = findings(HEALTHY)
    assert {finding.state for finding in found} == {"ok"}
    checks = ["nodes", "token", "versions", "storage", "folders", "gpus", "clocks", "disks", "mlflow"]
    assert [finding.check for finding in found] == checks
    assert str(found[1]).startswith("ok       token     the cluster asks")


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        (other(numpy="1.26.0"), "FAILED", "numpy is 1.26.0 on right (10.0.0.3), 2.4.6"),
        (other(posegen=None), "FAILED", "posegen is absent on right"),
        (
            other(**{"posegen's code": "ffff0000"}),
            "FAILED",
            "posegen's code is ffff0000 on right (10.0.0.3), 1a2b3c4d here",
        ),
        (other(python="3.12.1"), "FAILED", "python is 3.12.1 on right"),
        (other(python="3.11.9"), "warning", "python is 3.11.9 on right"),
        ({"reads": "FileNotFoundError: x"}, "FAILED", "right (10.0.0.3) does not read what was written here"),
        ({"writes": "PermissionError: x"}, "FAILED", "right (10.0.0.3) cannot write (PermissionError: x)"),
        ({"folders": {"/data": None}}, "FAILED", "/data: not there on right (10.0.0.3), 5 entries here"),
        ({"folders": {"/data": 4}}, "FAILED", "/data: 4 entries on right (10.0.0.3), 5 entries here"),
        ({"gpus": 1}, "FAILED", "Ray counts 2 on right (10.0.0.3), torch sees 1"),
        ({"gpus": 3}, "warning", "--num-gpus=3"),
        ({"gpus": "ImportError: libcudart"}, "FAILED", "torch does not start on right (10.0.0.3): ImportError"),
        ({"cache": Disk("/cache", GIB, 200 * GIB)}, "FAILED", "1.0 GiB free for the cache /cache"),
        ({"cache": Disk("/cache", 9 * GIB, 200 * GIB)}, "warning", "set POSEGEN_CACHE"),
        ({"temporary": Disk("/t", 4 * GIB, 100 * GIB)}, "FAILED", "4% free for Ray's /t"),
        ({"temporary": Disk("/t", 8 * GIB, 100 * GIB)}, "warning", "8% free for Ray's /t"),
        ({"token": False}, "warning", "right (10.0.0.3) ask for none"),
    ],
)
def test_what_one_node_has_otherwise_is_one_line(changes: dict[str, Any], state: str, words: str):
    (finding,) = judged(**changes)
    assert finding.state == state
    assert words in finding.text


@pytest.mark.parametrize(
    ("ahead", "doubt", "state"),
    [(0.5, 0.0, None), (3.0, 0.1, "warning"), (3.0, 1.5, None), (-61.0, 0.1, "FAILED"), (61.0, 2.0, "warning")],
)
def test_clocks_count_beyond_what_the_way_leaves_open(ahead: float, doubt: float, state: str | None):
    found = wrong(replace(HEALTHY, nodes=[NODE, replace(NODE, name="right", ahead=ahead, doubt=doubt)]))
    assert [finding.state for finding in found] == ([state] if state else [])
    if state:
        assert ("behind" if ahead < 0 else "ahead") in found[0].text


def test_storage_that_nobody_shares_is_found_though_all_can_write():
    (finding,) = wrong(replace(HEALTHY, nodes=[NODE, replace(HEALTHY.nodes[1], seen=False)]))
    assert "what right (10.0.0.3) writes is not seen here" in finding.text
    assert "Mount one shared folder" in finding.text
    (finding,) = wrong(replace(HEALTHY, storage_error="OSError: no bucket"))
    assert "cannot be used from here: OSError: no bucket" in finding.text


def test_a_silent_node_is_named_and_the_others_are_judged():
    found = wrong(replace(HEALTHY, nodes=[NODE, Node("right", 1, trouble="nothing in 180 s")]))
    assert [str(finding)[:28] for finding in found] == ["FAILED   nodes     right did"]


def test_mlflow_is_asked_and_a_file_is_no_server():
    (finding,) = wrong(replace(HEALTHY, mlflow="http://x:5000", mlflow_error="refused"))
    assert (finding.state, finding.check) == ("FAILED", "mlflow")
    (finding,) = wrong(replace(HEALTHY, mlflow="sqlite:////tmp/mlflow.db"))
    assert finding.state == "warning"
    assert not wrong(replace(HEALTHY, mlflow="sqlite:////tmp/mlflow.db", nodes=[NODE]))


class Healthy(BaseHTTPRequestHandler):
    """An MLflow server that is well."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def tracking_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_mlflow_server_answers_or_why_not(tracking_server: str):
    assert mlflow_error(f"{tracking_server}/") == ""
    assert "404" in mlflow_error(f"{tracking_server}/elsewhere")
    assert "refused" in mlflow_error("http://127.0.0.1:9")
    assert mlflow_error(None) == mlflow_error("sqlite:////tmp/mlflow.db") == ""


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_storage_is_written_and_read_by_path_and_by_uri(tmp_path: Path, scheme: str):
    storage = f"{scheme}{tmp_path}"
    with probe_folder(storage) as (probe, error):
        assert not error
        collect.write(storage, f"{probe}/one", "text")
        assert (tmp_path / probe / "one").read_text() == collect.read(storage, f"{probe}/one") == "text"
    assert not list(tmp_path.iterdir())


def test_a_node_without_posegen_answers_from_the_standard_library(tmp_path: Path):
    """By value, into a Python that sees none of our packages, as on a node that has another posegen or none."""
    import ray.cloudpickle.cloudpickle as bare  # the unpickling side needs this one file

    sent = (
        "import ray.cloudpickle as c\nfrom posegen.cluster.doctor import collect\nc.register_pickle_by_value(collect)\n"
        "open('task', 'wb').write(c.dumps(collect.gather))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", sent], cwd=tmp_path, check=True, timeout=60, env=environment)
    code = (
        f"import importlib.util as u, pickle, sys, types\n"
        f"sys.modules['ray'] = types.ModuleType('ray'); sys.modules['ray.cloudpickle'] = types.ModuleType('c')\n"
        f"spec = u.spec_from_file_location('ray.cloudpickle.cloudpickle', {bare.__file__!r})\n"
        f"module = u.module_from_spec(spec); sys.modules[spec.name] = module; spec.loader.exec_module(module)\n"
        f"facts = pickle.load(open('task', 'rb'))('{tmp_path}', 'none', 'n', ['{tmp_path}', '/nowhere'])\n"
        f"v = facts.versions; print(v['posegen'], list(v.values())[-1], facts.reads[:17], facts.gpus, facts.folders)\n"
        f"open('answer', 'wb').write(module.dumps(facts))"
    )
    command = [sys.executable, "-S", "-E", "-c", code]  # -S: no site-packages, -E: no PYTHONPATH
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("None None FileNotFoundError"), done.stdout + done.stderr
    assert "'/nowhere': None" in done.stdout
    answer = pickle.loads((tmp_path / "answer").read_bytes())  # its class comes with it
    assert answer.folders["/nowhere"] is None
    assert answer.cache.free > 0


class AuthenticationError(Exception):
    """As Ray's."""


def refused(monkeypatch: pytest.MonkeyPatch, home: Path, *, mode: str | None, token: bool) -> str:
    monkeypatch.setenv("HOME", str(home))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("token")
    outer = ConnectionError("Failed to connect to Ray cluster at 10.0.0.2:6379")
    outer.__cause__ = RuntimeError("Failed to connect to GCS ... InvalidAuthToken: missing or incorrect")
    return why_refused(outer)


@pytest.mark.parametrize(
    ("mode", "token", "words"),
    [
        ("token", False, "there is no file .*auth_token. Copy ~/.ray/auth_token"),
        (None, False, "there is no file"),
        (None, True, "RAY_AUTH_MODE is not set. export RAY_AUTH_MODE=token"),
        ("disabled", True, "RAY_AUTH_MODE is disabled. export RAY_AUTH_MODE=token"),
        ("token", True, "the file .*auth_token holds another one. Copy"),
    ],
)
def test_a_refused_token_is_told_with_its_remedy(monkeypatch, tmp_path: Path, mode, token: bool, words: str):
    assert re.search(words, refused(monkeypatch, tmp_path, mode=mode, token=token))


def test_other_refusals_are_told_as_they_are():
    assert "cannot be joined: no way" in why_refused(ConnectionError("no way"))


def test_a_cluster_that_is_not_there_is_a_finding_with_exit_1(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["posegen", "doctor", "--run", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert out.startswith("FAILED   join      RAY_ADDRESS=127.0.0.1:9 was given, and nothing answers there")
    assert "unset RAY_ADDRESS" in out
    assert not list(tmp_path.iterdir())


def test_the_doctor_has_help_with_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posegen", "doctor", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    for part in ("Example: posegen doctor", "--run", "--mlflow", "--root"):
        assert part in out


@pytest.mark.long
def test_on_one_machine_a_small_cluster_is_started_and_nothing_is_left(tmp_path: Path):
    command = [sys.executable, "-m", "posegen.cli", "doctor", "--run", "runs", "--root", "data"]
    (tmp_path / "data").mkdir()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:  # sockets have short names
        environment = {**_without_clusters(), "RAY_TMPDIR": short}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "started one on this machine alone" in done.stdout
    assert f"run storage {tmp_path}/runs: written and read from every node" in done.stdout
    assert not (tmp_path / "runs").exists()


def _without_clusters() -> dict[str, str]:
    taken = ("RAY_ADDRESS", "POSEGEN_RUNS", "MLFLOW_TRACKING_URI", "POSEGEN_WEIGHTS")
    return {name: value for name, value in os.environ.items() if name not in taken} | {
        "PYTHONPATH": str(Path(cli.__file__).parent.parent)
    }
