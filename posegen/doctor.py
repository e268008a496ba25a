"""Is the cluster fit for a long run? One line a check, with what to do where something is wrong.

The checks are pure functions of facts, which examination.py gathers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CLOCK_WARNING, CLOCK_FAILED = 2.0, 60.0  # seconds
CACHE_WARNING, CACHE_FAILED = 20 * 2**30, 2 * 2**30  # bytes
TEMPORARY_WARNING, TEMPORARY_FAILED = 0.10, 0.05  # shares free; below the second Ray stores no objects
COPY = "Put it on shared storage, or on every node at the same path."

State = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    state: State
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.check:<9} {self.text}"


@dataclass(frozen=True)
class Node:
    """A node of the cluster, and what it said."""

    name: str
    gpus: float = 0.0  # as Ray counts
    facts: Mapping[str, Any] | None = None  # of `node_facts.gather`; None where it did not answer
    trouble: str = ""  # why it did not
    ahead: float = 0.0  # seconds that its clock is ahead of the driver's
    doubt: float = 0.0  # seconds, half of the quickest answer's time


@dataclass(frozen=True)
class Facts:
    """All that the checks look at."""

    driver: Mapping[str, Any]  # of `node_facts.gather`, without run storage
    nodes: Sequence[Node]
    joined: bool = True  # False: a small cluster was started for this check
    storage: str = "runs"
    storage_error: str = ""  # why the driver cannot use it
    unread: Sequence[str] = ()  # nodes that wrote, and the driver sees nothing of it
    mlflow: str | None = None
    mlflow_error: str = ""
    folders: Sequence[str] = ()  # data and weights


def findings(facts: Facts) -> list[Finding]:
    """Every check's lines, in reading order."""
    checks = (nodes, token, versions, storage, folders, gpus, clocks, disks, mlflow)
    return [finding for check in checks for finding in check(facts)]


def nodes(facts: Facts) -> list[Finding]:
    """Who is in the cluster, and who does not answer."""
    silent = [
        Finding("FAILED", "nodes", f"{node.name} did not answer: {node.trouble}. `ray status` tells who is up.")
        for node in facts.nodes
        if node.facts is None
    ]
    gpus = sum(node.gpus for node in facts.nodes)
    if not facts.joined:
        text = "no cluster is running here: started one on this machine alone for these checks, as a run would"
    else:
        text = f"{len(facts.nodes)} in the cluster, {gpus:g} GPUs: {', '.join(node.name for node in facts.nodes)}"
    return [Finding("ok", "nodes", text), *silent]


def token(facts: Facts) -> list[Finding]:
    """Whether the cluster asks for a token. That this process has the right one shows in having joined."""
    if not facts.joined:
        return []
    open_nodes = [node.name for node in _answered(facts) if not _of(node)["token"]]
    if not open_nodes:
        return [Finding("ok", "token", "the cluster asks for a token, and this process has it")]
    text = f"{', '.join(open_nodes)} ask for none: who reaches their ports can run programs. Start Ray with "
    return [Finding("warning", "token", f"{text}RAY_AUTH_MODE=token, as cluster.yaml does.")]


def versions(facts: Facts) -> list[Finding]:
    """Python, packages and posegen's code: the same everywhere, the driver's."""
    here = _versions(facts.driver)
    wrong = []
    for node in _answered(facts):
        there = _versions(_of(node))
        for name in here:
            if here[name] != there[name]:
                wrong.append(_difference(name, here[name], there[name], node.name))
    if wrong:
        return wrong
    text = ", ".join(f"{name} {version}" for name, version in here.items())
    return [Finding("ok", "versions", f"{text} on all nodes")]


def _versions(facts: Mapping[str, Any]) -> dict[str, str | None]:
    return {"python": facts["python"], **facts["versions"], "posegen's code": facts["code"]}


def _difference(name: str, here: str | None, there: str | None, node: str) -> Finding:
    text = f"{name} is {there or 'absent'} on {node}, {here or 'absent'} here."
    if name == "python" and here and there and here.split(".")[:2] == there.split(".")[:2]:
        return Finding("warning", "versions", text)
    remedy = "`ray up` installs on every node what clusters/versions.txt names and the posegen of this folder."
    return Finding("FAILED", "versions", f"{text} {remedy}")


def storage(facts: Facts) -> list[Finding]:
    """Whether every node reads and writes where the runs lie, and all mean the same place."""
    where = f"run storage {facts.storage}"
    if facts.storage_error:
        text = f"{where} cannot be used from here: {facts.storage_error}. Set POSEGEN_RUNS or --run, and its access."
        return [Finding("FAILED", "storage", text)]
    wrong = []
    for node in _answered(facts):
        reads, writes = _of(node)["reads"], _of(node)["writes"]
        if reads:
            wrong.append(f"{node.name} does not read what was written here ({reads})")
        elif writes:
            wrong.append(f"{node.name} cannot write ({writes})")
        elif node.name in facts.unread:
            wrong.append(f"what {node.name} writes is not seen here")
    remedy = "Mount one shared folder there on all nodes, or use a URI such as s3://bucket/runs with access on each."
    if wrong:
        return [Finding("FAILED", "storage", f"{where}: {each}. {remedy}") for each in wrong]
    return [Finding("ok", "storage", f"{where}: written and read from every node")]


def folders(facts: Facts) -> list[Finding]:
    """Whether data and weights are on every node, as they are here."""
    lines: list[Finding] = []
    for folder in facts.folders:
        here = facts.driver["folders"][folder]
        others = {node.name: _of(node)["folders"][folder] for node in _answered(facts)}
        wrong = [
            f"{_entries(count)} on {name}, {_entries(here)} here" for name, count in others.items() if count != here
        ]
        wrong = ["not there here"] if here is None else wrong
        lines += [Finding("FAILED", "folders", f"{folder}: {each}. {COPY}") for each in wrong] or [
            Finding("ok", "folders", f"{folder}: {_entries(here)} on every node")
        ]
    return lines


def _entries(count: int | None) -> str:
    return "not there" if count is None else f"{count:,} entries"


def gpus(facts: Facts) -> list[Finding]:
    """Whether torch can use the GPUs that Ray hands out."""
    lines = []
    for node in _answered(facts):
        seen = _of(node)["gpus"]
        if isinstance(seen, str):
            lines.append(Finding("FAILED", "gpus", f"torch does not start on {node.name}: {seen}. Install it anew."))
        elif seen < node.gpus:
            text = f"Ray counts {node.gpus:g} on {node.name}, torch sees {seen}. "
            remedy = "Look at nvidia-smi there: a driver too old for this torch, or a torch without CUDA."
            lines.append(Finding("FAILED", "gpus", text + remedy))
        elif seen > node.gpus:
            text = f"torch sees {seen} on {node.name}, Ray counts {node.gpus:g}: the rest stays idle. "
            lines.append(Finding("warning", "gpus", f"{text}Start Ray there with --num-gpus={seen}."))
    total = sum(node.gpus for node in facts.nodes)
    return lines or [Finding("ok", "gpus", f"{total:g}, as Ray counts and as torch sees")]


def clocks(facts: Facts) -> list[Finding]:
    """Whether the nodes' clocks agree with the driver's, beyond what the way there leaves open."""
    lines = []
    for node in _answered(facts):
        off = max(0.0, abs(node.ahead) - node.doubt)
        if off > CLOCK_WARNING:
            state: State = "FAILED" if off > CLOCK_FAILED else "warning"
            direction = "ahead" if node.ahead > 0 else "behind"
            text = f"{node.name} is {abs(node.ahead):.1f} s {direction}. Switch NTP on: timedatectl set-ntp true"
            lines.append(Finding(state, "clocks", text))
    most = max((abs(node.ahead) for node in _answered(facts)), default=0.0)
    doubt = max((node.doubt for node in _answered(facts)), default=0.0)
    return lines or [Finding("ok", "clocks", f"within {most * 1000:.0f} ms of here, ± {doubt * 1000:.0f} ms")]


def disks(facts: Facts) -> list[Finding]:
    """Room for the shards that a node keeps, and for Ray's own files."""
    lines = []
    for node in _answered(facts):
        cache, temporary = _of(node)["cache"], _of(node)["temporary"]
        share = temporary["free"] / temporary["total"]
        if cache["free"] < CACHE_WARNING:
            state: State = "FAILED" if cache["free"] < CACHE_FAILED else "warning"
            text = f"{_gib(cache['free'])} free for the cache {cache['path']} on {node.name}. "
            lines.append(Finding(state, "disks", f"{text}Make room, or set POSEGEN_CACHE to a larger disk."))
        if share < TEMPORARY_WARNING:
            state = "FAILED" if share < TEMPORARY_FAILED else "warning"
            text = f"{share:.0%} free for Ray's {temporary['path']} on {node.name}; below 5 % Ray stores no objects. "
            lines.append(Finding(state, "disks", f"{text}Make room, or `ray start --temp-dir` on a larger disk."))
    if lines:
        return lines
    least = [min((_of(node)[kind]["free"] for node in _answered(facts)), default=0) for kind in ("cache", "temporary")]
    return [Finding("ok", "disks", f"at least {_gib(least[0])} free for the cache, {_gib(least[1])} for Ray's files")]


def mlflow(facts: Facts) -> list[Finding]:
    """Whether the MLflow server answers."""
    if not facts.mlflow:
        return [Finding("ok", "mlflow", "no server given: each run keeps its own record in its folder")]
    if facts.mlflow_error:
        text = f"{facts.mlflow} does not answer: {facts.mlflow_error}. Start it, or correct MLFLOW_TRACKING_URI."
        return [Finding("FAILED", "mlflow", text)]
    if not facts.mlflow.startswith(("http://", "https://")) and len(facts.nodes) > 1:
        text = f"{facts.mlflow} is no server: the node that trains may have another file there. Start `mlflow server`."
        return [Finding("warning", "mlflow", text)]
    return [Finding("ok", "mlflow", f"{facts.mlflow} answers")]


def _answered(facts: Facts) -> list[Node]:
    return [node for node in facts.nodes if node.facts is not None]


def _of(node: Node) -> Mapping[str, Any]:
    assert node.facts is not None
    return node.facts


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
