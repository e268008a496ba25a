"""What one node of a cluster has. `posegen doctor` sends this module to every node by value, source and all.

So it holds what needs nothing but Python's standard library: on the node, posegen may be absent or another version, and
that is what is to be found out. What cannot be had is None or a text in the answer, never an exception.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "ray": ("ray",),
    "torch": ("torch",),
    "pyarrow": ("pyarrow",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    "posegen": ("posegen",),
}
FROM_DRIVER = "from-the-driver"


def gather(storage: str, probe: str, node: str, folders: Sequence[str]) -> dict[str, Any]:
    """The facts of the node that this runs on.

    `probe` is the folder below the run storage that the driver made for this check; a file of the node's own name is
    left there. `folders` are looked at, not into.
    """
    return {
        "python": platform.python_version(),
        "versions": {name: _version(names) for name, names in PACKAGES.items()},
        "code": code_of("posegen"),
        "reads": _attempt(lambda: read(storage, f"{probe}/{FROM_DRIVER}")),
        "writes": _attempt(lambda: write(storage, f"{probe}/{node}", node)),
        "folders": {folder: entries(folder) for folder in folders},
        "gpus": _gpus_of_torch(),
        "cache": disk(os.environ.get("POSEGEN_CACHE") or "~/.cache/posegen"),
        "temporary": disk(next((word[11:] for word in sys.argv if word.startswith("--temp-dir=")), "/tmp/ray")),
        "token": os.environ.get("RAY_AUTH_MODE") == "token",
    }


def clock() -> float:
    """UNIX time of the node, in seconds."""
    return time.time()


def write(storage: str, name: str, text: str) -> None:
    """Writes a file into a folder or URI whose folders are there already."""
    if "://" not in storage:
        Path(storage, name).write_text(text)
        return
    filesystem, path = _filesystem(storage)
    with filesystem.open_output_stream(f"{path}/{name}") as stream:
        stream.write(text.encode())


def read(storage: str, name: str) -> str:
    """Reads a file of a folder or URI."""
    if "://" not in storage:
        return Path(storage, name).read_text()
    filesystem, path = _filesystem(storage)
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        return stream.read().decode()


def make_folder(storage: str, name: str) -> None:
    """Makes a folder in a folder or URI, with all above it."""
    if "://" not in storage:
        Path(storage, name).mkdir(parents=True)
        return
    filesystem, path = _filesystem(storage)
    filesystem.create_dir(f"{path}/{name}", recursive=True)


def remove_folder(storage: str, name: str) -> None:
    """Removes a folder of a folder or URI with all in it."""
    if "://" not in storage:
        shutil.rmtree(Path(storage, name))
        return
    filesystem, path = _filesystem(storage)
    filesystem.delete_dir(f"{path}/{name}")


def entries(folder: str) -> int | None:
    """How many files and folders are directly in a folder, hidden ones aside; None where it is no folder."""
    try:
        return sum(not name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return None


def disk(folder: str) -> dict[str, Any]:
    """Bytes free and in all where a folder is, or would be made."""
    path = Path(folder).expanduser().absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    usage = shutil.disk_usage(there)
    return {"path": str(path), "free": usage.free, "total": usage.total}


def code_of(package: str) -> str | None:
    """The first digits of a hash over a package's Python files, which it does not import; None where it is absent."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    digest = hashlib.sha256()
    folder = Path(found.origin).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _filesystem(uri: str):
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path.rstrip("/")


def _attempt(what) -> str:
    """The empty text where something works, else the error in words."""
    try:
        what()
    except Exception as error:  # pyarrow's errors are of many kinds, and all are findings
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _gpus_of_torch() -> int | str:
    """How many GPUs torch sees, in a process of its own; or why it cannot say."""
    environment = dict(os.environ)
    if not environment.get("CUDA_VISIBLE_DEVICES"):  # Ray hides them from what reserves none
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", "import torch; print('seen', torch.cuda.device_count())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}"
    said = done.stdout.split()
    last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return int(said[said.index("seen") + 1]) if "seen" in said else last
