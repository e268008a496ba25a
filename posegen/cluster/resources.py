"""The CPUs and GPUs of a cluster, and their distribution among workers. Ray is imported where a cluster is asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    import ray
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
