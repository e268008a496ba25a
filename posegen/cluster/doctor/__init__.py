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

CHECKS = ("nodes", "token", "versions", "storage", "folders", "gpus", "clocks", "disks", "mlflow")


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


Answers = Sequence[tuple[Node, NodeFacts]]


def findings(facts: ClusterFacts) -> list[Finding]:
    """Return the lines of every check in reading order; one that found nothing wrong has its summary as `ok`."""
    answers = [(node, node.facts) for node in facts.nodes if node.facts is not None]
    found = [*_nodes(facts), *_storage(facts, answers), *_folders(facts, answers)]
    for node, said in answers:
        found += [*_versions(node, said, facts.driver), *_hardware(node, said)]
    told = {finding.check for finding in found}
    found += [Finding("ok", check, text) for check, text in _summaries(facts, answers) if check not in told]
    return sorted(found, key=lambda finding: CHECKS.index(finding.check))


def _nodes(facts: ClusterFacts) -> Iterator[Finding]:
    """The nodes and those that do not answer, missing tokens, the MLflow server."""
    text = "no cluster is running here: started one on this machine alone for these checks, as a run would"
    if facts.joined:
        total, names = sum(node.gpus for node in facts.nodes), ", ".join(node.name for node in facts.nodes)
        text = f"{len(facts.nodes)} in the cluster, {total:g} GPUs: {names}"
    yield Finding("ok", "nodes", text)
    for node in facts.nodes:
        if node.facts is None:
            text = f"{node.name} did not answer: {node.trouble}. `ray status` lists the living nodes."
            yield Finding("FAILED", "nodes", text)
    unlocked = ", ".join(node.name for node in facts.nodes if node.facts and not node.facts.token)
    if facts.joined and unlocked:
        text = f"{unlocked} ask for none: whoever reaches their ports can run programs. "
        yield Finding("warning", "token", f"{text}Start Ray with RAY_AUTH_MODE=token, as cluster.yaml does.")
    if facts.mlflow_error:
        text = f"{facts.mlflow} does not answer: {facts.mlflow_error}. Start it, or correct MLFLOW_TRACKING_URI."
        yield Finding("FAILED", "mlflow", text)
    elif facts.mlflow and not facts.mlflow.startswith(("http://", "https://")) and len(facts.nodes) > 1:
        text = f"{facts.mlflow} is no server: the node that trains may have another file there. Start `mlflow server`."
        yield Finding("warning", "mlflow", text)


def _storage(facts: ClusterFacts, answers: Answers) -> Iterator[Finding]:
    """Run storage that a node cannot use, or that is not the same on all nodes."""
    name = f"run storage {facts.storage}"
    if facts.storage_error:
        text = f"{name} cannot be used from here: {facts.storage_error}. Set POSEGEN_RUNS or --run, and its access."
        yield Finding("FAILED", "storage", text)
        return
    remedy = "Mount one shared folder there on all nodes, or use a URI such as s3://bucket/runs with access on each."
    for node, said in answers:
        if said.reads:
            text = f"{node.name} does not read what was written here ({said.reads})"
        elif said.writes:
            text = f"{node.name} cannot write ({said.writes})"
        elif not node.seen:
            text = f"what {node.name} writes is not seen here"
        else:
            continue
        yield Finding("FAILED", "storage", f"{name}: {text}. {remedy}")


def _folders(facts: ClusterFacts, answers: Answers) -> Iterator[Finding]:
    """Data and weights, which need as many entries on every node as here."""
    for folder in facts.folders:
        here = facts.driver.folders[folder]
        there = {node.name: said.folders[folder] for node, said in answers}
        wrong = [f"{_entries(n)} on {name}, {_entries(here)} here" for name, n in there.items() if n != here]
        for text in wrong if here is not None else ["not there here"]:
            remedy = "Put it on shared storage, or on every node at the same path."
            yield Finding("FAILED", "folders", f"{folder}: {text}. {remedy}")
        if here is not None and not wrong:
            yield Finding("ok", "folders", f"{folder}: {_entries(here)} on every node")


def _entries(count: int | None) -> str:
    return "not there" if count is None else f"{count:,} entries"


def _versions(node: Node, said: NodeFacts, driver: NodeFacts) -> Iterator[Finding]:
    """Python, packages and posegen's code that are not the driver's."""
    remedy = "`ray up` installs on every node the versions of clusters/versions.txt and the posegen of this folder."
    for name, here in driver.versions.items():
        there = said.versions[name]
        text = f"{name} is {there or 'absent'} on {node.name}, {here or 'absent'} here."
        if name == "python" and here and there and here != there and here.split(".")[:2] == there.split(".")[:2]:
            yield Finding("warning", "versions", text)
        elif here != there:
            yield Finding("FAILED", "versions", f"{text} {remedy}")


def _hardware(node: Node, said: NodeFacts) -> Iterator[Finding]:
    """GPUs that torch does not see or Ray does not count, a wrong clock, full disks."""
    seen = said.gpus
    if isinstance(seen, str):
        yield Finding("FAILED", "gpus", f"torch does not start on {node.name}: {seen}. Reinstall it.")
    elif seen < node.gpus:
        text = f"Ray counts {node.gpus:g} on {node.name}, torch sees {seen}. Look at nvidia-smi there: "
        yield Finding("FAILED", "gpus", f"{text}a driver too old for this torch, or a torch without CUDA.")
    elif seen > node.gpus:
        text = f"torch sees {seen} on {node.name}, Ray counts {node.gpus:g}: the rest stays idle. "
        yield Finding("warning", "gpus", f"{text}Start Ray there with --num-gpus={seen}.")
    off = abs(node.ahead) - node.doubt  # beyond the uncertainty of the answer's time
    if off > CLOCK_WARNING:
        text = f"{node.name} is {abs(node.ahead):.1f} s {'ahead' if node.ahead > 0 else 'behind'}. "
        state = "FAILED" if off > CLOCK_FAILED else "warning"
        yield Finding(state, "clocks", f"{text}Switch NTP on: timedatectl set-ntp true")
    cache, temporary = said.cache, said.temporary
    if cache.free < CACHE_WARNING:
        text = f"{_gib(cache.free)} free for the cache {cache.path} on {node.name}. "
        state = "FAILED" if cache.free < CACHE_FAILED else "warning"
        yield Finding(state, "disks", f"{text}Make room, or set POSEGEN_CACHE to a larger disk.")
    share = temporary.free / temporary.total
    if share < TEMPORARY_WARNING:
        text = f"{share:.0%} free for Ray's {temporary.path} on {node.name}; below 5 % Ray stores no objects. "
        state = "FAILED" if share < TEMPORARY_FAILED else "warning"
        yield Finding(state, "disks", f"{text}Make room, or `ray start --temp-dir` on a larger disk.")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _summaries(facts: ClusterFacts, answers: Answers) -> Iterator[tuple[str, str]]:
    """Each check's line where nothing is wrong."""
    if facts.joined:
        yield "token", "the cluster asks for a token, and this process has it"
    yield (
        "versions",
        ", ".join(f"{name} {version}" for name, version in facts.driver.versions.items()) + " on all nodes",
    )
    yield "storage", f"run storage {facts.storage}: written and read from every node"
    yield "gpus", f"{sum(node.gpus for node in facts.nodes):g}, as Ray counts and as torch sees"
    off, doubt = (1000 * max((abs(getattr(node, of)) for node, _ in answers), default=0) for of in ("ahead", "doubt"))
    yield "clocks", f"within {off:.0f} ms of here, ± {doubt:.0f} ms"
    cache = _gib(min((said.cache.free for _, said in answers), default=0))
    temporary = _gib(min((said.temporary.free for _, said in answers), default=0))
    yield "disks", f"at least {cache} free for the cache, {temporary} for Ray's files"
    none = "no server given: each run keeps its own record in its folder"
    yield "mlflow", f"{facts.mlflow} answers" if facts.mlflow else none


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


CLOCK_WARNING, CLOCK_FAILED = 2.0, 60.0  # seconds
CACHE_WARNING, CACHE_FAILED = 20 * 2**30, 2 * 2**30  # bytes
TEMPORARY_WARNING, TEMPORARY_FAILED = 0.10, 0.05  # shares free; below the second Ray stores no objects
