"""Facts about one node. `posegen doctor` sends this module to every node by value.

It uses the standard library alone, and pyarrow only for a URI: posegen may be absent on the node or another version,
which is one of the facts. Failures are texts or None in the answer, never exceptions.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {name: (name,) for name in ("ray", "torch", "pyarrow", "numpy")} | {
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "posegen": ("posegen",),
}
FROM_DRIVER = "from-the-driver"


@dataclass(frozen=True)
class Disk:
    """Bytes free and in total on the disk of a folder."""

    path: str
    free: int
    total: int


@dataclass(frozen=True)
class NodeFacts:
    """The answers of one node."""

    versions: Mapping[str, str | None]  # of Python, packages and posegen's code; None: absent
    reads: str  # error on reading the driver's file, "" for none
    writes: str  # error on writing a file, "" for none
    folders: Mapping[str, int | None]  # entries of each folder; None: not there
    gpus: int | str  # as torch counts, or its error
    cache: Disk
    temporary: Disk  # Ray's
    token: bool  # Ray requires one


def gather(storage: str, probe: str, node: str, folders: Sequence[str]) -> NodeFacts:
    """Return the facts of the node that this runs on. Leaves a file named `node` in the folder `probe` of `storage`."""
    versions = {
        name: next((found.version for each in names for found in metadata.distributions(name=each)), None)
        for name, names in PACKAGES.items()
    }
    return NodeFacts(
        versions={"python": platform.python_version(), **versions, "posegen's code": code_of("posegen")},
        reads=attempt(lambda: read(storage, f"{probe}/{FROM_DRIVER}")),
        writes=attempt(lambda: write(storage, f"{probe}/{node}", node)),
        folders={folder: entries(folder) for folder in folders},
        gpus=_gpus_of_torch(),
        cache=disk(os.environ.get("POSEGEN_CACHE") or "~/.cache/posegen"),
        temporary=disk(next((word[11:] for word in sys.argv if word.startswith("--temp-dir=")), "/tmp/ray")),
        token=os.environ.get("RAY_AUTH_MODE") == "token",
    )


def clock() -> float:
    """Return the node's UNIX time in seconds."""
    return time.time()


def attempt(call: Callable[[], object]) -> str:
    """Return the first line of the error that a call raises, "" for none."""
    try:
        call()
    except Exception as error:  # pyarrow raises errors of many kinds, and all are findings
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def write(storage: str, name: str, text: str) -> None:
    """Write a file into an existing folder of a path or URI."""
    with _open(storage, name, "wb") as stream:
        stream.write(text.encode())


def read(storage: str, name: str) -> str:
    """Read a file of a path or URI."""
    with _open(storage, name, "rb") as stream:
        return stream.read().decode()


def _open(storage: str, name: str, mode: str) -> Any:
    if "://" not in storage:
        return open(Path(storage, name), mode)
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(storage)
    return getattr(filesystem, {"rb": "open_input_stream", "wb": "open_output_stream"}[mode])(f"{path}/{name}")


def entries(folder: str) -> int | None:
    """Count the files and folders directly in a folder, without hidden ones. None where it is no folder."""
    try:
        return sum(not name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return None


def disk(folder: str) -> Disk:
    """Return the space of the disk on which a folder is, or would be made."""
    path = Path(folder).expanduser().absolute()
    usage = shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists()))
    return Disk(str(path), usage.free, usage.total)


def code_of(package: str) -> str | None:
    """Return the start of a hash of a package's Python files, without importing it. None where it is absent."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    folder, digest = Path(found.origin).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _gpus_of_torch() -> int | str:
    """Count torch's GPUs in a process of its own, or return its error."""
    hidden = not os.environ.get("CUDA_VISIBLE_DEVICES")  # Ray hides GPUs from tasks that reserve none
    environment = {name: v for name, v in os.environ.items() if not (hidden and name == "CUDA_VISIBLE_DEVICES")}
    command = [sys.executable, "-c", "import torch; print('seen', torch.cuda.device_count())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    if "seen " in done.stdout:
        return int(done.stdout.rpartition("seen ")[2])
    return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
