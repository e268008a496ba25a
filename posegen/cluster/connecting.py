"""Joining a Ray cluster, or starting a small one on this machine, with Ray's messages kept in its logs."""

import logging
import math
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

OBJECT_STORE = 512 * 2**20  # bytes, on a cluster started here: only small rows go through the object store


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or of `ray start` on this host, or start one. Idempotent.

    A cluster that another run started for itself on this machine is not joined: it ends with that run. Raises
    ValueError, with the remedy, where the cluster does not answer or refuses this process's token.
    """
    if ray.is_initialized():
        return
    _check_that_it_answers()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "3")  # each poll costs a small machine CPU time
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        try:
            ray.init(object_store_memory=OBJECT_STORE, log_to_driver=False, logging_level=logging.ERROR)
        except ValueError:  # an existing cluster has its memory already
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError) as error:
        raise ValueError(why_refused(error)) from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends."""
    ray.shutdown()


def why_refused(error: BaseException) -> str:
    """Return the reason why a cluster cannot be joined, with the remedy."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    if not any("Authentication" in text or "InvalidAuthToken" in text for text in causes):
        return f"the Ray cluster cannot be joined: {error}. Look at `ray status` on its head."
    mode, given = os.environ.get("RAY_AUTH_MODE", ""), bool(os.environ.get("RAY_AUTH_TOKEN"))
    copy = "Copy ~/.ray/auth_token from the machine that started the cluster (`ray up` does), or run this on its head"
    if not given and not token_file().is_file():
        return f"the Ray cluster asks for a token, and there is no file {token_file()}. {copy}."
    if mode.lower() != "token":
        return (
            f"the Ray cluster asks for a token; there is one here, but RAY_AUTH_MODE is {mode or 'not set'}. "
            "export RAY_AUTH_MODE=token"
        )
    source = "RAY_AUTH_TOKEN" if given else f"the file {token_file()}"
    return f"the Ray cluster asks for a token, and {source} holds another one. {copy}."


def token_file() -> Path:
    """Return the path from which Ray reads the cluster's token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _check_that_it_answers() -> None:
    """Raise ValueError where the cluster's address does not answer: Ray itself would retry for minutes."""
    given = os.environ.get("RAY_ADDRESS", "")
    started = _started_here()
    address = given or (started.read_text().strip() if started.is_file() else "")
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        source = f"RAY_ADDRESS={given} was given" if given else f"{started} says that a Ray cluster runs at {address}"
        remedy = "unset RAY_ADDRESS" if given else f"remove {started}"
        raise ValueError(
            f"{source}, and nothing answers there ({error}). Start the cluster, or {remedy} to use this machine alone."
        ) from None


def _started_here() -> Path:
    """Return the file in which `ray start` writes its cluster's address."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")


def slots_here(device: str) -> int | None:
    """Return the number of workers that a cluster started by `connect` would hold: one per CPU, or one per GPU.

    None where `connect` would join a cluster, whose size is not known yet.
    """
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ or _started_here().is_file():
        return None
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    return gpus or (0 if device == "cuda" else os.cpu_count())


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the placement of an actor that must outlive all other nodes: on the node of the process that starts it."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def check_shared(store: Store, folders: Sequence[Path]) -> None:
    """Check that all nodes can access the run and the folders.

    A node can access the run where it reads a file that this process writes there. Raises ValueError with the nodes and
    what they do not see.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    name = f"seen-{uuid.uuid4().hex}"
    write_json(store.folder / name, {"seen": name})
    store.publish(name)
    try:
        answers = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0)(_unseen).options(scheduling_strategy=there)
            answers[node["NodeManagerHostname"]] = task.remote(store, name, [*folders])
        blind = {host: missing for host, answer in answers.items() if (missing := ray.get(answer))}
    finally:
        store.remove(name)
    if blind:
        listed = "\n  ".join(f"{host}: {', '.join(missing)}" for host, missing in blind.items())
        raise ValueError(
            f"the cluster has {len(nodes)} nodes, and not all of them see what they need:\n  {listed}\nGive a run that "
            "every node reaches: --run s3://bucket/runs/mine, or a folder on a disk that all of them mount under the "
            "same path; and images and weights on such a disk too."
        )


def _unseen(store: Store, name: str, folders: Sequence[Path]) -> list[str]:
    found = read_json(store.fetch(name)) if store.has(name) else None
    missing = [] if found == {"seen": name} else [f"the run {store.uri}"]
    return missing + [str(folder) for folder in folders if not folder.exists()]


NODE_GROUP = "ray.io/node-group"  # label that an autoscaler gives to its nodes


@dataclass(frozen=True)
class Workers:
    """Number of training workers: one number, or as many as the cluster holds between a minimum and a maximum."""

    fewest: int = 1
    most: int = 1

    @staticmethod
    def parse(text: str) -> "Workers":
        """Read '4' or '2:8'. Raises ValueError for anything else."""
        fewest, colon, most = text.partition(":")
        numbers = [fewest, most if colon else fewest]
        if not all(number.isdecimal() and int(number) > 0 for number in numbers) or int(numbers[0]) > int(numbers[1]):
            raise ValueError(
                f"--workers {text} was given; expected a number of at least 1, such as 4, or the fewest and the most, "
                "such as 2:8."
            )
        return Workers(*map(int, numbers))

    @property
    def elastic(self) -> bool:
        """Whether the number follows the cluster's size."""
        return self.fewest < self.most

    def __str__(self) -> str:
        return f"{self.fewest}:{self.most}" if self.elastic else str(self.most)


def resources() -> tuple[list[float], list[float]]:
    """Return the CPUs and the GPUs of every living node, and of every node that an autoscaler may still start."""
    from ray._private.state import state

    living = [node for node in ray.nodes() if node["Alive"]]
    config = state.get_cluster_config()
    groups = [(each.name, dict(each.resources), each.max_count) for each in config.node_group_configs] if config else []
    nodes = [node["Resources"] for node in living]
    nodes += coming(groups, [node["Labels"].get(NODE_GROUP, "") for node in living])
    return [node.get("CPU", 0.0) for node in nodes], [node.get("GPU", 0.0) for node in nodes]


def coming(groups: Sequence[tuple[str, dict[str, float], int]], living: Sequence[str]) -> list[dict[str, float]]:
    """Return the resources of the nodes that an autoscaler may still start.

    Args:
        groups: Each node group's name, resources of one node, and maximum number of nodes; -1 for no limit, which
            counts as one node more than there are.
        living: The group of each living node.
    """
    nodes = []
    for name, each, most in groups:
        there = sum(group == name for group in living)
        nodes += [each] * (max(0, most - there) if most >= 0 else 1)
    return nodes


def slots(use_gpu: bool) -> int:
    """Return the number of training workers that the connected cluster can hold: one per GPU, or one per CPU."""
    cpus, gpus = resources()
    return int(sum(gpus)) if use_gpu else sum(math.floor(node) for node in cpus)


def resolve_device(device: str) -> str:
    """Return 'cuda' or 'cpu'; 'auto' is a GPU where the connected cluster has one."""
    return ("cuda" if sum(resources()[1]) else "cpu") if device == "auto" else device


def cpus_per_worker(workers: int, cpus: Sequence[float]) -> int:
    """Return the most whole CPUs per worker on nodes with the given CPUs. Raises ValueError where there are too few."""
    for share in range(int(max(cpus, default=0)), 0, -1):
        if sum(math.floor(node / share) for node in cpus) >= workers:
            return share
    raise ValueError(
        f"--workers {workers} was given, but the cluster has {int(sum(cpus))} CPUs on {len(cpus)} node(s), "
        f"and each worker takes at least one. Give --workers {max(1, int(sum(cpus)))} or fewer."
    )


def threads_per_worker(workers: int, *, use_gpu: bool) -> int:
    """Return the CPUs per worker: an even share, counting as many workers as the cluster holds.

    Raises ValueError where it holds none.
    """
    return cpus_per_worker(max(1, min(workers, slots(use_gpu))), resources()[0])


def check_room(workers: Workers, device: str) -> None:
    """Check that the connected cluster holds the fewest of the workers. Raises ValueError where it does not."""
    cpus, gpus = resources()
    cpus_per_worker(workers.fewest, cpus)
    if device == "cuda" and sum(gpus) < workers.fewest:
        raise ValueError(
            f"--device cuda with --workers {workers} needs {workers.fewest} GPUs; the cluster has {int(sum(gpus))}. "
            "Give fewer --workers, or --device cpu."
        )
