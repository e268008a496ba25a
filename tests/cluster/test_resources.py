"""How workers share the CPUs of a cluster, by hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private.state import state

from posegen.cluster.connecting import coming, cpus_per_worker, resolve_device, resources, slots_here


@pytest.mark.parametrize(
    ("workers", "nodes", "share"),
    [
        (1, [2], 2),
        (2, [2], 1),
        (2, [2, 2, 2], 2),  # three hosts of two CPUs: two workers get a host each
        (3, [4], 1),
        (4, [8, 4], 2),  # 3 CPUs each would leave room for 2 + 1
        (3, [8, 4], 4),
        (1, [0, 16], 16),  # a head without CPUs
    ],
)
def test_workers_get_the_most_that_fits_on_the_nodes(workers: int, nodes: list[float], share: int):
    assert cpus_per_worker(workers, nodes) == share


@pytest.mark.parametrize("nodes", [[2], [1, 1], []])
def test_too_many_workers_are_refused_with_what_there_is(nodes: list[float]):
    with pytest.raises(ValueError, match=rf"--workers 3 .* {int(sum(nodes))} CPUs on {len(nodes)} node"):
        cpus_per_worker(3, nodes)


def test_nodes_that_an_autoscaler_may_bring_count_until_they_are_there():
    gpu = {"CPU": 4.0, "GPU": 1.0}
    groups = [("head", {"CPU": 0.0}, 1), ("spot", gpu, 3)]
    assert coming(groups, ["head"]) == [gpu] * 3
    assert coming(groups, ["head", "spot"]) == [gpu] * 2
    assert coming(groups, ["head", *["spot"] * 4]) == []
    assert coming([("endless", gpu, -1)], ["endless"]) == [gpu]
    assert coming([], ["", ""]) == []


@pytest.mark.parametrize("scaled", [False, True])
def test_the_living_and_the_coming_are_the_room_that_there_is(monkeypatch: pytest.MonkeyPatch, scaled: bool):
    head = {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [head, {"Alive": False}])
    group = SimpleNamespace(name="spot", resources={"CPU": 4.0, "GPU": 1.0}, max_count=2)
    config = SimpleNamespace(node_group_configs=[group]) if scaled else None
    monkeypatch.setattr(state, "get_cluster_config", lambda: config)
    assert resources() == (([2.0, 4.0, 4.0], [0.0, 1.0, 1.0]) if scaled else ([2.0], [0.0]))
    assert resolve_device("auto") == ("cuda" if scaled else "cpu")


def test_what_this_machine_holds_is_known_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert slots_here("cpu") == os.cpu_count()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").touch()
    assert slots_here("cpu") is None
    (tmp_path / "ray" / "ray_current_cluster").unlink()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert slots_here("cpu") is None
