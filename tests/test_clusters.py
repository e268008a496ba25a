"""The cluster files: Ray's own schema, the rules that all of them keep, and what travels with a submitted job."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent
AWS, ONPREM, GCP = ROOT / "cluster.yaml", ROOT / "clusters" / "onprem.yaml", ROOT / "clusters" / "gcp.yaml"
KUBERAY = ROOT / "clusters" / "kuberay.yaml"
LAUNCHED = (AWS, ONPREM, GCP)
OPEN_PORTS = (22,)
each_launched = pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.name)


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    """KubeRay's settings and cluster."""
    settings, cluster = yaml.safe_load_all(KUBERAY.read_text())
    return settings, cluster


def commands(file: Path, kind: str) -> list[str]:
    return load(file)[f"{kind}_start_ray_commands"]


@each_launched
def test_ray_up_accepts_the_file(file: Path):
    prepared = prepare_config(load(file))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@each_launched
def test_the_schema_can_refuse(file: Path):
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config({**prepare_config(load(file)), "head_comands": []})


@each_launched
def test_run_storage_and_mlflow_are_near_the_top_and_marked(file: Path):
    lines = file.read_text().splitlines()
    marks = [number for number, line in enumerate(lines) if "FILL IN: run storage, MLflow server" in line]
    assert len(marks) == 1
    block = "\n".join(lines[marks[0] : marks[0] + 10])
    assert "export POSEGEN_RUNS=" in block
    assert "export MLFLOW_TRACKING_URI=" in block
    assert marks[0] < 35


@each_launched
def test_the_set_up_is_the_same_but_for_what_is_filled_in(file: Path):
    """First step: the environment of all processes. The others: read by shells, made, filled."""
    first, *others = load(file)["setup_commands"]
    assert others == load(AWS)["setup_commands"][1:]
    settings = [line.strip() for line in first.splitlines() if "#" not in line]
    filled = ("export POSEGEN_RUNS=", "export MLFLOW_TRACKING_URI=")
    kept = [line for line in settings if not line.startswith(filled)]
    assert len(settings) - len(kept) == 2
    assert kept == [
        "mkdir -p ~/.ray && cat > ~/.ray/posegen.sh <<'END'",
        "export POSEGEN_ENVIRONMENT=$HOME/posegen-environment",
        "export POSEGEN_CACHE=$HOME/.cache/posegen",
        "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0",
        'export PATH="$POSEGEN_ENVIRONMENT/bin:$PATH"',
        "END",
    ]


@each_launched
def test_the_token_travels_and_nothing_large_does(file: Path):
    mounts = load(file)["file_mounts"]
    assert mounts == load(AWS)["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    for remote, local in mounts.items():
        if "auth_token" not in remote:
            assert (ROOT / local).exists(), local
    assert "." not in mounts.values()


@each_launched
def test_the_dashboard_listens_on_the_head_alone(file: Path):
    start = " ".join(commands(file, "head"))
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start
    assert "--dashboard-host" not in " ".join(commands(file, "worker"))


@each_launched
def test_a_host_where_ray_never_ran_is_not_told_to_stop_it(file: Path):
    """`ray stop` ends every Ray process that it sees."""
    for kind in ("head", "worker"):
        stops = [command for command in commands(file, kind) if "ray stop" in command]
        assert stops == ["[ ! -e /tmp/ray/ray_current_cluster ] || ray stop"]


def test_no_port_but_ssh_is_opened():
    assert "IpPermissions" not in load(AWS)["provider"]["security_group"]  # Ray's own rules: ssh, and within the group
    for file in LAUNCHED:
        opened = re.findall(r"(?i)(?:FromPort|allowed_ports|hostPort|nodePort)\D+(\d+)", file.read_text())
        assert all(int(port) in OPEN_PORTS for port in opened), file


@pytest.mark.parametrize(("file", "cloud"), [(AWS, "aws"), (GCP, "gcp")], ids=["aws", "gcp"])
def test_the_head_stays_and_spot_workers_come_and_go(file: Path, cloud: str):
    types = load(file)["available_node_types"]
    head, spot = types["head"], types["spot_gpu"]
    assert (head["max_workers"], head["resources"]) == (0, {"CPU": 0})
    assert (spot["min_workers"], spot["max_workers"]) == (0, load(file)["max_workers"])
    markets = {name: str(each["node_config"]).lower() for name, each in types.items()}
    assert "spot" in markets["spot_gpu"]
    assert "spot" not in markets["head"]
    watcher = f"posegen watch-preemption --cloud {cloud}"
    assert watcher in " ".join(commands(file, "worker"))
    assert watcher not in " ".join(commands(file, "head"))


def test_hosts_of_ones_own_use_the_autoscaler_that_can_start_them():
    assert any("RAY_enable_autoscaler_v2=0 ray start --head" in command for command in commands(ONPREM, "head"))


def test_every_node_gets_versions_that_posegen_takes():
    pinned = [
        line for line in (ROOT / "clusters" / "versions.txt").read_text().splitlines() if not line.startswith("#")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(found) for found in project["dependencies"]]
    ranges = {requirement.name: requirement.specifier for requirement in needed}
    versions = dict(line.split("==") for line in pinned)
    assert {"ray", "torch", "numpy", "pyarrow", "opencv-python", "mlflow"} == set(versions)
    for name, version in versions.items():
        assert version in ranges[name], f"{name}=={version}, and pyproject.toml has {ranges[name]}"
    said = {found for file in (*LAUNCHED, KUBERAY, ROOT / "clusters" / "Dockerfile") for found in ray_versions(file)}
    assert said == {versions["ray"]}


def ray_versions(file: Path) -> list[str]:
    return re.findall(r"(?:ray\[default\]==|rayVersion: |rayproject/ray:)(\d+\.\d+\.\d+)", file.read_text())


def test_kuberay_asks_for_a_token_and_opens_nothing():
    _, cluster = manifests()
    spec = cluster["spec"]
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not re.search("hostNetwork|hostPort|NodePort|LoadBalancer|Ingress", KUBERAY.read_text())


def test_kuberay_has_a_head_without_gpu_and_workers_that_come_and_go():
    _, cluster = manifests()
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0 < workers["maxReplicas"]
    assert "nvidia.com/gpu" not in str(container(spec["headGroupSpec"])["resources"])
    assert container(workers)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_kuberay_pod_gets_storage_tracking_and_its_cache():
    settings, cluster = manifests()
    assert {"POSEGEN_RUNS", "MLFLOW_TRACKING_URI", "POSEGEN_CACHE"} <= set(settings["data"])
    assert all(isinstance(value, str) for value in settings["data"].values())
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        assert container(group)["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        mounted = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert set(mounted) == volumes
        assert settings["data"]["POSEGEN_CACHE"] in mounted.values()


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def test_a_submitted_job_takes_code_and_neither_data_nor_runs(tmp_path: Path):
    """As `ray job submit --working-dir .` packs the folder."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    code = ["posegen/cli.py", "posegen/report/page.html", "flows/full_pipeline.py", "tune_spaces/vdg.py"]
    code += ["pyproject.toml", "best.json", "mine.py"]
    left = ["runs/a/shards/0.arrow", "Market-1501/a.jpg", "weights/vgg.pth", "mlflow.db", "mlruns/0/meta.yaml"]
    left += [".git/config", "posegen/__pycache__/a.pyc", "tests/test_a.py", "report.tar", ".venv/bin/python"]
    for name in (*code, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
    packed = [name for name in ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")]
    assert sorted(packed) == sorted(code)
