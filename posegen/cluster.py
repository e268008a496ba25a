"""The Ray cluster that a run uses: the one that is there, or a small one on this machine. Its chatter stays in logs."""

import logging
import math
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private.state import state as ray_state
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen.amounts import Workers
from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

GROUP = "ray.io/node-group"  # the label that an autoscaler gives to its nodes
OBJECT_STORE = 512 * 2**20  # bytes, on a cluster of our own: only small rows go through the object store


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS or of `ray start` on this host, or starts one. Does nothing when connected.

    Another run's own cluster on this machine is left alone: it ends with that run. ValueError, with what to do, where
    the cluster does not answer or does not take this process's token.
    """
    if ray.is_initialized():
        return
    _check_that_it_answers()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "3")  # each poll costs a small machine CPU time
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        _init(quiet)
    except (AuthenticationError, ConnectionError) as error:
        raise ValueError(why_refused(error)) from error
    _quiet_ray_data()


def _init(quiet: Mapping[str, Any]) -> None:
    try:
        ray.init(object_store_memory=OBJECT_STORE, **quiet)
    except ValueError:  # a cluster that is there already has its memory
        ray.init(**quiet)


def why_refused(error: BaseException) -> str:
    """What a user can do about a cluster that does not let us in."""
    told = []
    cause: BaseException | None = error
    while cause is not None:
        told.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    if not any("Authentication" in text or "InvalidAuthToken" in text for text in told):
        return f"the Ray cluster cannot be joined: {error}. Look at `ray status` on its head."
    mode = os.environ.get("RAY_AUTH_MODE", "")
    where = f"the file {token_file()}" if not os.environ.get("RAY_AUTH_TOKEN") else "RAY_AUTH_TOKEN"
    there = where == "RAY_AUTH_TOKEN" or token_file().is_file()
    copy = "Copy ~/.ray/auth_token from the machine that started the cluster (`ray up` does), or run this on its head"
    if not there:
        return f"the Ray cluster asks for a token, and there is no {where[4:]}. {copy}."
    if mode.lower() != "token":
        return (
            f"the Ray cluster asks for a token; there is one here, but RAY_AUTH_MODE is {mode or 'not set'}. "
            "export RAY_AUTH_MODE=token"
        )
    return f"the Ray cluster asks for a token, and {where} holds another one. {copy}."


def token_file() -> Path:
    """Where Ray looks for the token that opens a cluster."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def _check_that_it_answers() -> None:
    """ValueError where a cluster is named and nobody is there: Ray itself would try for minutes."""
    named = os.environ.get("RAY_ADDRESS", "")
    started = _started_here()
    address = named or (started.read_text().strip() if started.is_file() else "")
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        how = f"RAY_ADDRESS={named} was given" if named else f"{started} says that a Ray cluster runs at {address}"
        remedy = "unset RAY_ADDRESS" if named else f"remove {started}"
        raise ValueError(
            f"{how}, and nothing answers there ({error}). Start the cluster, or {remedy} to use this machine alone."
        ) from None


def _started_here() -> Path:
    """The file in which `ray start` writes its cluster's address."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")


def slots_here(device: str) -> int | None:
    """Workers that the cluster holds which `connect` would start: one a CPU, or one a GPU.

    None where it would join a cluster, whose size is not known yet.
    """
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ or _started_here().is_file():
        return None
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    return gpus or (0 if device == "cuda" else os.cpu_count())


def _quiet_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where an actor runs that must outlive every other node: beside the process that starts it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def disconnect() -> None:
    """Leaves the cluster; one that we started ends."""
    ray.shutdown()


def resources() -> tuple[list[float], list[float]]:
    """CPUs and GPUs of every living node, and of every node that an autoscaler may still bring."""
    living = [node for node in ray.nodes() if node["Alive"]]
    config = ray_state.get_cluster_config()
    groups = [(each.name, dict(each.resources), each.max_count) for each in config.node_group_configs] if config else []
    nodes = [node["Resources"] for node in living] + coming(groups, [node["Labels"].get(GROUP, "") for node in living])
    return [node.get("CPU", 0.0) for node in nodes], [node.get("GPU", 0.0) for node in nodes]


def coming(groups: Sequence[tuple[str, dict[str, float], int]], living: Sequence[str]) -> list[dict[str, float]]:
    """The nodes that an autoscaler may still bring: those of groups (name, a node's resources, most), less the living.

    A group without a limit (-1) counts as one node more than it has.
    """
    nodes = []
    for name, each, most in groups:
        there = sum(group == name for group in living)
        nodes += [each] * (max(0, most - there) if most >= 0 else 1)
    return nodes


def cpus_per_worker(workers: int, cpus: Sequence[float]) -> int:
    """The most whole CPUs that each worker can have on nodes with so many CPUs. ValueError where they don't fit."""
    for share in range(int(max(cpus, default=0)), 0, -1):
        if sum(math.floor(node / share) for node in cpus) >= workers:
            return share
    raise ValueError(
        f"--workers {workers} was given, but the cluster has {int(sum(cpus))} CPUs on {len(cpus)} node(s), "
        f"and each worker takes at least one. Give --workers {max(1, int(sum(cpus)))} or fewer."
    )


def memory_per_slot(slots: int) -> int:
    """The most bytes of Ray's memory resource that each of so many slots can reserve, each within one node."""
    nodes = [node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]]
    shares = sorted({math.floor(memory / count) for memory in nodes for count in range(1, slots + 1)}, reverse=True)
    return next((s for s in shares if s > 0 and sum(int(memory // s) for memory in nodes) >= slots), 1)


def slots(use_gpu: bool) -> int:
    """How many training workers the connected cluster can hold: one a GPU, or one a CPU."""
    cpus, gpus = resources()
    return int(sum(gpus)) if use_gpu else sum(math.floor(node) for node in cpus)


def threads_per_worker(workers: int, *, use_gpu: bool) -> int:
    """CPUs of each worker: an even share of the cluster's, as far as it has room for so many.

    Raises ValueError where it has not room for one.
    """
    return cpus_per_worker(max(1, min(workers, slots(use_gpu))), resources()[0])


def check_room(workers: Workers, device: str) -> None:
    """Raises ValueError, worded for the user, where the connected cluster cannot hold the fewest of the workers."""
    cpus, gpus = resources()
    cpus_per_worker(workers.fewest, cpus)
    if device == "cuda" and sum(gpus) < workers.fewest:
        raise ValueError(
            f"--device cuda with --workers {workers} needs {workers.fewest} GPUs; the cluster has {int(sum(gpus))}. "
            "Give fewer --workers, or --device cpu."
        )


def check_shared(store: Store, folders: Sequence[Path]) -> None:
    """Raises ValueError, worded for the user, where a node of the cluster does not see the run or one of the folders.

    A node sees the run where it can read what this process writes there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    name = f"seen-{uuid.uuid4().hex}"
    write_json(store.folder / name, {"seen": name})
    store.publish(name)
    try:
        looks = {node["NodeManagerHostname"]: _look(node["NodeID"], store, name, folders) for node in nodes}
        blind = {host: missing for host, look in looks.items() if (missing := ray.get(look))}
    finally:
        store.remove(name)
    if blind:
        listed = "\n  ".join(f"{host}: {', '.join(missing)}" for host, missing in blind.items())
        raise ValueError(
            f"the cluster has {len(nodes)} nodes, and not all of them see what they need:\n  {listed}\nGive a run that "
            "every node reaches: --run s3://bucket/runs/mine, or a folder on a disk that all of them mount under the "
            "same path; and images and weights on such a disk too."
        )


def _look(node: str, store: Store, name: str, folders: Sequence[Path]) -> Any:
    """A task on a node: what it does not see."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(_unseen).options(scheduling_strategy=there).remote(store, name, [*folders])


def _unseen(store: Store, name: str, folders: Sequence[Path]) -> list[str]:
    found = read_json(store.fetch(name)) if store.has(name) else None
    missing = [] if found == {"seen": name} else [f"the run {store.uri}"]
    return missing + [str(folder) for folder in folders if not folder.exists()]


def resolve_device(device: str) -> str:
    """'cuda' or 'cpu': 'auto' takes a GPU where the connected cluster has one."""
    return ("cuda" if sum(resources()[1]) else "cpu") if device == "auto" else device
