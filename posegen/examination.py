"""The facts that `posegen doctor` judges, gathered: one small task on every node, a file written and read by each."""

import os
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen import node_facts
from posegen.cluster import connect, slots_here
from posegen.doctor import Facts, Node

PATIENCE = 180.0  # seconds for all nodes to answer: one that loads torch from a slow disk takes its time
PINGS = 5


def examine(run: str | None = None, mlflow: str | None = None, folders: Sequence[str] = ()) -> Facts:
    """Joins the cluster, or starts a small one, and asks every node.

    `run` and `mlflow` are those of POSEGEN_RUNS and MLFLOW_TRACKING_URI where not given. ValueError where there is a
    cluster that cannot be joined, with the reason.
    """
    storage = _absolute(run or os.environ.get("POSEGEN_RUNS") or "runs")
    mlflow = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    folders = [str(Path(folder).absolute()) for folder in folders]
    joined = slots_here("cpu") is None
    connect()
    probe = f".posegen-doctor-{uuid.uuid4().hex[:8]}"
    made, error = _open_probe(storage, probe)
    living = [node for node in ray.nodes() if node["Alive"]]
    answers = _ask({node["NodeID"]: (storage, probe, node["NodeID"], folders) for node in living})
    asked = [Node(_name(node), node["Resources"].get("GPU", 0.0), *answers[node["NodeID"]]) for node in living]
    unread = [] if error else [_name(node) for node in living if not _arrived(storage, probe, node["NodeID"])]
    _close_probe(storage, probe, made)
    driver = node_facts.gather(storage, probe, "driver", folders)
    return Facts(
        driver=driver,
        nodes=asked,
        joined=joined,
        storage=storage,
        storage_error=error,
        unread=unread,
        mlflow=mlflow,
        mlflow_error=mlflow_error(mlflow),
        folders=folders,
    )


def mlflow_error(uri: str | None) -> str:
    """Why an MLflow server does not answer; empty where it does, or where there is none to ask."""
    if not uri or not uri.startswith(("http://", "https://")):
        return ""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


def _absolute(storage: str) -> str:
    return storage.rstrip("/") if "://" in storage else str(Path(storage).expanduser().absolute())


def _open_probe(storage: str, probe: str) -> tuple[bool, str]:
    """Whether the run folder had to be made, and why it cannot be used ('' where it can)."""
    missing = "://" not in storage and not Path(storage).exists()
    try:
        node_facts.make_folder(storage, probe)
        node_facts.write(storage, f"{probe}/{node_facts.FROM_DRIVER}", probe)
    except Exception as error:  # pyarrow's errors are of many kinds, and all are findings
        return False, f"{type(error).__name__}: {error}".splitlines()[0]
    return missing, ""


def _close_probe(storage: str, probe: str, made: bool) -> None:
    try:
        node_facts.remove_folder(storage, probe)
        if made:
            Path(storage).rmdir()
    except Exception:  # the storage's trouble has been found by then
        return


def _arrived(storage: str, probe: str, node: str) -> bool:
    try:
        return node_facts.read(storage, f"{probe}/{node}") == node
    except Exception:  # whatever hinders reading
        return False


def _ask(questions: Mapping[str, tuple]) -> dict[str, "Answer"]:
    """What each node says, by its id."""
    cloudpickle.register_pickle_by_value(node_facts)  # posegen may be absent there, or another
    try:
        gather = ray.remote(num_cpus=0, max_retries=0)(node_facts.gather)
        clock = ray.remote(num_cpus=0, max_retries=0)(node_facts.clock)
        sent = {node: gather.options(scheduling_strategy=_on(node)).remote(*what) for node, what in questions.items()}
        ray.wait(list(sent.values()), num_returns=len(sent), timeout=PATIENCE)
        return {
            node: _answer(answer, clock.options(scheduling_strategy=_on(node)).remote) for node, answer in sent.items()
        }
    finally:
        cloudpickle.unregister_pickle_by_value(node_facts)


class Answer(NamedTuple):
    """What a node says, or why it says nothing."""

    facts: Mapping[str, Any] | None
    trouble: str = ""
    ahead: float = 0.0
    doubt: float = 0.0


def _answer(answer: ray.ObjectRef, clock: Callable[[], ray.ObjectRef]) -> Answer:
    try:
        facts = ray.get(answer, timeout=1)
        ahead, doubt = _compare_clocks(clock)
    except GetTimeoutError:
        return Answer(None, f"nothing in {PATIENCE:.0f} s")
    except RayError as error:
        return Answer(None, str(error).strip().splitlines()[-1].split(" lease_id=")[0].rstrip("."))
    return Answer(facts, ahead=ahead, doubt=doubt)


def _compare_clocks(clock: Callable[[], ray.ObjectRef]) -> tuple[float, float]:
    """Seconds that a node's clock is ahead of ours, and half the time of the quickest answer: what stays open."""
    pings = []
    for _ in range(PINGS):
        before = time.time()
        there = ray.get(clock(), timeout=30)
        after = time.time()
        pings.append(((after - before) / 2, there - (before + after) / 2))
    doubt, ahead = min(pings)
    return ahead, doubt


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _name(node: Mapping[str, Any]) -> str:
    """As people call it: host name and address."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
