"""The checks of `posegen doctor`: facts collected on every node by `collect`, and pure functions that judge them.

One small task runs on every node, and every node writes a file and reads those of the others. Each finding is one
line, with the remedy.
"""

import os
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from pyarrow import fs
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen.cluster.connecting import connect, slots_here
from posegen.cluster.doctor import collect
from posegen.cluster.doctor.collect import NodeFacts


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output."""

    state: Literal["ok", "warning", "FAILED"]
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.check:<9} {self.text}"


@dataclass(frozen=True)
class Node:
    """A node of the cluster with its answers."""

    name: str
    gpus: float = 0.0  # as Ray counts
    facts: NodeFacts | None = None  # None where it did not answer
    trouble: str = ""  # why it did not
    ahead: float = 0.0  # seconds that its clock is ahead of the driver's
    doubt: float = 0.0  # seconds, half of the quickest answer's time
    seen: bool = True  # the driver reads what it wrote into the run storage


@dataclass(frozen=True)
class ClusterFacts:
    """The facts of the driver and of all nodes."""

    driver: NodeFacts  # its `reads` and `writes` are not used
    nodes: Sequence[Node]
    folders: Sequence[str] = ()  # data and weights
    joined: bool = True  # False: a small cluster was started for this check
    storage: str = "runs"
    storage_error: str = ""  # why the driver cannot use it
    mlflow: str | None = None
    mlflow_error: str = ""


CHECKS = ("nodes", "token", "versions", "storage", "folders", "gpus", "clocks", "disks", "mlflow")
CLOCK_WARNING, CLOCK_FAILED = 2.0, 60.0  # seconds
CACHE_WARNING, CACHE_FAILED = 20 * 2**30, 2 * 2**30  # bytes
TEMPORARY_WARNING, TEMPORARY_FAILED = 0.10, 0.05  # shares free; below the second Ray stores no objects
PATIENCE = 180.0  # seconds for all nodes to answer: torch loads slowly from a slow disk


def findings(facts: ClusterFacts) -> list[Finding]:
    """Return the lines of every check in reading order; one that found nothing wrong has its summary as `ok`."""
    answers = [(node, node.facts) for node in facts.nodes if node.facts is not None]
    found = [*_of_cluster(facts, answers), *(line for answer in answers for line in _of_node(facts, *answer))]
    told = {finding.check for finding in found}
    found += [Finding("ok", check, text) for check, text in _summaries(facts, answers) if check not in told]
    return sorted(found, key=lambda finding: CHECKS.index(finding.check))


def _of_cluster(facts: ClusterFacts, answers: Sequence[tuple[Node, NodeFacts]]) -> Iterator[Finding]:
    """The nodes and those that do not answer, missing tokens, the MLflow server, the run storage, the folders."""
    text = "no cluster is running here: started one on this machine alone for these checks, as a run would"
    if facts.joined:
        total, names = sum(node.gpus for node in facts.nodes), ", ".join(node.name for node in facts.nodes)
        text = f"{len(facts.nodes)} in the cluster, {total:g} GPUs: {names}"
    yield Finding("ok", "nodes", text)
    for node in facts.nodes:
        if node.facts is None:
            text = f"{node.name} did not answer: {node.trouble}. `ray status` lists the living nodes."
            yield Finding("FAILED", "nodes", text)
    unlocked = ", ".join(node.name for node, said in answers if not said.token)
    if facts.joined and unlocked:
        text = f"{unlocked} ask for none: whoever reaches their ports can run programs. "
        yield Finding("warning", "token", f"{text}Start Ray with RAY_AUTH_MODE=token, as cluster.yaml does.")
    if facts.mlflow_error:
        text = f"{facts.mlflow} does not answer: {facts.mlflow_error}. Start it, or correct MLFLOW_TRACKING_URI."
        yield Finding("FAILED", "mlflow", text)
    elif facts.mlflow and not facts.mlflow.startswith(("http://", "https://")) and len(facts.nodes) > 1:
        text = f"{facts.mlflow} is no server: the node that trains may have another file there. Start `mlflow server`."
        yield Finding("warning", "mlflow", text)
    if facts.storage_error:
        text = f"cannot be used from here: {facts.storage_error}. Set POSEGEN_RUNS or --run, and its access."
        yield Finding("FAILED", "storage", f"run storage {facts.storage} {text}")
    for folder in facts.folders:
        here, *there = (
            "not there" if count is None else f"{count:,} entries"
            for count in (facts.driver.folders[folder], *(said.folders[folder] for _, said in answers))
        )
        wrong = [f"{n} on {node.name}, {here} here" for (node, _), n in zip(answers, there, strict=True) if n != here]
        for text in wrong if here != "not there" else ["not there here"]:
            remedy = "Put it on shared storage, or on every node at the same path."
            yield Finding("FAILED", "folders", f"{folder}: {text}. {remedy}")
        if here != "not there" and not wrong:
            yield Finding("ok", "folders", f"{folder}: {here} on every node")


def _of_node(facts: ClusterFacts, node: Node, said: NodeFacts) -> Iterator[Finding]:
    """Run storage that is not shared, other versions than the driver's, GPUs that torch does not see or Ray does not
    count, a wrong clock, full disks.
    """
    trouble = "" if node.seen else f"what {node.name} writes is not seen here"
    trouble = f"{node.name} cannot write ({said.writes})" if said.writes else trouble
    trouble = f"{node.name} does not read what was written here ({said.reads})" if said.reads else trouble
    if trouble and not facts.storage_error:
        text = "Mount one shared folder there on all nodes, or use a URI such as s3://bucket/runs with access on each."
        yield Finding("FAILED", "storage", f"run storage {facts.storage}: {trouble}. {text}")
    for name, here in facts.driver.versions.items():
        there = said.versions[name]
        text = f"{name} is {there or 'absent'} on {node.name}, {here or 'absent'} here."
        if name == "python" and here and there and here != there and here.split(".")[:2] == there.split(".")[:2]:
            yield Finding("warning", "versions", text)
        elif here != there:
            remedy = (
                "`ray up` installs on every node the versions of clusters/versions.txt and the posegen of this folder."
            )
            yield Finding("FAILED", "versions", f"{text} {remedy}")
    if isinstance(said.gpus, str):
        yield Finding("FAILED", "gpus", f"torch does not start on {node.name}: {said.gpus}. Reinstall it.")
    elif said.gpus < node.gpus:
        text = f"Ray counts {node.gpus:g} on {node.name}, torch sees {said.gpus}. Look at nvidia-smi there: "
        yield Finding("FAILED", "gpus", f"{text}a driver too old for this torch, or a torch without CUDA.")
    elif said.gpus > node.gpus:
        text = f"torch sees {said.gpus} on {node.name}, Ray counts {node.gpus:g}: the rest stays idle. "
        yield Finding("warning", "gpus", f"{text}Start Ray there with --num-gpus={said.gpus}.")
    off = abs(node.ahead) - node.doubt  # beyond the uncertainty of the answer's time
    if off > CLOCK_WARNING:
        text = f"{node.name} is {abs(node.ahead):.1f} s {'ahead' if node.ahead > 0 else 'behind'}. "
        state = "FAILED" if off > CLOCK_FAILED else "warning"
        yield Finding(state, "clocks", f"{text}Switch NTP on: timedatectl set-ntp true")
    if said.cache.free < CACHE_WARNING:
        text = f"{_gib(said.cache.free)} free for the cache {said.cache.path} on {node.name}. "
        state = "FAILED" if said.cache.free < CACHE_FAILED else "warning"
        yield Finding(state, "disks", f"{text}Make room, or set POSEGEN_CACHE to a larger disk.")
    share = said.temporary.free / said.temporary.total
    if share < TEMPORARY_WARNING:
        text = f"{share:.0%} free for Ray's {said.temporary.path} on {node.name}; below 5 % Ray stores no objects. "
        state = "FAILED" if share < TEMPORARY_FAILED else "warning"
        yield Finding(state, "disks", f"{text}Make room, or `ray start --temp-dir` on a larger disk.")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _summaries(facts: ClusterFacts, answers: Sequence[tuple[Node, NodeFacts]]) -> Iterator[tuple[str, str]]:
    """Each check's line where nothing is wrong."""
    if facts.joined:
        yield "token", "the cluster asks for a token, and this process has it"
    versions = ", ".join(f"{name} {version}" for name, version in facts.driver.versions.items())
    yield "versions", f"{versions} on all nodes"
    yield "storage", f"run storage {facts.storage}: written and read from every node"
    yield "gpus", f"{sum(node.gpus for node in facts.nodes):g}, as Ray counts and as torch sees"
    off, doubt = (1000 * max((abs(getattr(node, of)) for node, _ in answers), default=0) for of in ("ahead", "doubt"))
    yield "clocks", f"within {off:.0f} ms of here, ± {doubt:.0f} ms"
    cache = _gib(min((said.cache.free for _, said in answers), default=0))
    temporary = _gib(min((said.temporary.free for _, said in answers), default=0))
    yield "disks", f"at least {cache} free for the cache, {temporary} for Ray's files"
    none = "no server given: each run keeps its own record in its folder"
    yield "mlflow", f"{facts.mlflow} answers" if facts.mlflow else none


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
    with probe_folder(storage) as (probe, error):
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
def probe_folder(storage: str) -> Iterator[tuple[str, str]]:
    """Yield the name of a temporary folder in a path or URI, and why it cannot be used ("" where it can)."""
    probe = f".posegen-doctor-{uuid.uuid4().hex[:8]}"
    new = "://" not in storage and not Path(storage).exists()

    def begin() -> None:
        filesystem, path = fs.FileSystem.from_uri(storage)
        filesystem.create_dir(f"{path}/{probe}", recursive=True)
        collect.write(storage, f"{probe}/{collect.FROM_DRIVER}", probe)

    error = collect.attempt(begin)
    try:
        yield probe, error
    finally:
        with suppress(Exception):  # failing storage is a finding by then
            filesystem, path = fs.FileSystem.from_uri(storage)
            filesystem.delete_dir(f"{path}/{probe}")
            if new:
                Path(storage).rmdir()


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
        for _ in range(5):
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
