"""The facts that `posegen doctor` checks: one small task on every node, a file written and read by each."""

import os
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen.cluster.connecting import connect, slots_here
from posegen.cluster.doctor import collect
from posegen.cluster.doctor.checks import ClusterFacts, Node

PATIENCE = 180.0  # seconds for all nodes to answer: torch loads slowly from a slow disk
PINGS = 5


def examine(run: str | None = None, mlflow: str | None = None, folders: Sequence[str] = ()) -> ClusterFacts:
    """Join the cluster, or start a small one, and collect the facts of every node.

    `run` and `mlflow` default to POSEGEN_RUNS and MLFLOW_TRACKING_URI. Raises ValueError, with the reason, where a
    cluster cannot be joined.
    """
    storage = run or os.environ.get("POSEGEN_RUNS") or "runs"
    storage = storage.rstrip("/") if "://" in storage else str(Path(storage).expanduser().absolute())
    mlflow = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    folders = [str(Path(folder).absolute()) for folder in folders]
    joined = slots_here("cpu") is None
    connect()
    with _probe_folder(storage) as (probe, error):
        nodes = _ask(storage, probe, folders)
        driver = collect.gather(storage, probe, "driver", folders)
    return ClusterFacts(driver, nodes, folders, joined, storage, error, mlflow, mlflow_error(mlflow))


def mlflow_error(uri: str | None) -> str:
    """Return the error of an MLflow server, "" where it answers or the URI names no server."""
    if not uri or not uri.startswith(("http://", "https://")):
        return ""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


@contextmanager
def _probe_folder(storage: str) -> Iterator[tuple[str, str]]:
    """Yield the name of a temporary folder in the run storage, and why it cannot be used ("" where it can)."""
    probe = f".posegen-doctor-{uuid.uuid4().hex[:8]}"
    new = "://" not in storage and not Path(storage).exists()
    error = collect.attempt(lambda: make_folder(storage, probe))
    error = error or collect.attempt(lambda: collect.write(storage, f"{probe}/{collect.FROM_DRIVER}", probe))
    try:
        yield probe, error
    finally:
        with suppress(Exception):  # failing storage is a finding by then
            remove_folder(storage, probe)
            if new:
                Path(storage).rmdir()


def make_folder(storage: str, name: str) -> None:
    """Make a folder in a path or URI, with its parents."""
    filesystem, path = fs.FileSystem.from_uri(storage)
    filesystem.create_dir(f"{path}/{name}", recursive=True)


def remove_folder(storage: str, name: str) -> None:
    """Remove a folder of a path or URI with its contents."""
    filesystem, path = fs.FileSystem.from_uri(storage)
    filesystem.delete_dir(f"{path}/{name}")


def _ask(storage: str, probe: str, folders: Sequence[str]) -> list[Node]:
    """Return every living node with its answers."""
    living = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    cloudpickle.register_pickle_by_value(collect)  # posegen may be absent on a node, or another version
    try:
        gather = ray.remote(num_cpus=0, max_retries=0)(collect.gather)
        clock = ray.remote(num_cpus=0, max_retries=0)(collect.clock)
        on = {node: {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in living}
        sent = {node: gather.options(**on[node]).remote(storage, probe, node, folders) for node in living}
        ray.wait(list(sent.values()), num_returns=len(sent), timeout=PATIENCE)
        answers = {node: _answer(answer, clock.options(**on[node])) for node, answer in sent.items()}
    finally:
        cloudpickle.unregister_pickle_by_value(collect)
    return [
        Node(
            name=f"{info['NodeManagerHostname']} ({info['NodeManagerAddress']})",
            gpus=info["Resources"].get("GPU", 0.0),
            seen=not collect.attempt(lambda node=node: collect.read(storage, f"{probe}/{node}")),
            **answers[node],
        )
        for node, info in living.items()
    ]


def _answer(answer: ray.ObjectRef, clock: Any) -> Mapping[str, Any]:
    """Return a node's facts and its clock's offset, or the reason why it does not answer."""
    try:
        facts, pings = ray.get(answer, timeout=1), []
        for _ in range(PINGS):
            before = time.time()
            there: Any = ray.get(clock.remote(), timeout=30)
            after = time.time()
            pings.append(((after - before) / 2, there - (before + after) / 2))
    except GetTimeoutError:
        return {"trouble": f"nothing in {PATIENCE:.0f} s"}
    except RayError as error:
        return {"trouble": str(error).strip().splitlines()[-1].split(" lease_id=")[0].rstrip(".")}
    doubt, ahead = min(pings)
    return {"facts": facts, "ahead": ahead, "doubt": doubt}
