"""Atomic writes on storage that may fail for a while.

A file is written under a temporary name, flushed to the disk, and renamed. Writes to storage that is full, busy or
unreachable are retried; a lasting failure becomes a message for the user.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 60.0  # seconds during which a write is retried, by default
PATIENCE_VARIABLE = "POSEGEN_PATIENCE"  # the same, for all writes of a process and of its children
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between two attempts; each is twice the one before
LEFT_BEHIND = 3600.0  # seconds after which an unchanged temporary file counts as a killed writer's
TEMPORARY = ".*.tmp"  # pattern of the names of all temporary files and folders

FULL = (errno.ENOSPC, errno.EDQUOT)
LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)
AWAY = (
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.EREMOTEIO, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN),
)
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of mounts without fsync
PASSING = frozenset((*FULL, errno.EROFS, *AWAY))  # a disk after an error, or a server that moves, is read-only


class StorageFailed(ValueError):
    """A file could not be written; the message is for the user. It holds nothing else, so it pickles."""


def patiently(
    write: Callable[[], T],
    path: Path | str,
    *,
    warn: Callable[[str], None] | None = None,
    patience: float | None = None,
) -> T:
    """Call `write`, and retry it for a while where the storage fails in a way that may pass.

    Args:
        write: The write, or the read of remote storage. It must be repeatable: best under a temporary name that is
            renamed last.
        path: The path that is written, or the URI.
        warn: Receives one message at the first failure; the log of this module by default.
        patience: Seconds during which it is retried; POSEGEN_PATIENCE or 60 by default.

    Raises:
        StorageFailed: It failed for longer than that, or in a way that does not pass (no permission). Errors of other
            kinds are not caught.
    """
    patience = _patience() if patience is None else patience
    pause, deadline = FIRST_PAUSE, None
    while True:
        try:
            return write()
        except Exception as error:
            failure = storage_failure(error)
            if failure is None:
                raise
            left = patience if deadline is None else deadline - time.monotonic()
            if left <= 0 or not may_pass(failure):
                raise StorageFailed(_failed(path, failure, patience if may_pass(failure) else 0.0)) from error
        if deadline is None:
            deadline = time.monotonic() + patience
            (warn or logging.getLogger(__name__).warning)(f"{_told(path, failure)}; trying again for {patience:.0f} s")
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)


def _patience() -> float:
    """Return POSEGEN_PATIENCE in seconds; absent or invalid values fall back to 60 s."""
    try:
        return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE))
    except ValueError:
        return PATIENCE


def storage_failure(error: BaseException) -> OSError | None:
    """Return the failure of the storage that an error reports, or None.

    Besides OSError itself: safetensors' errors, which end with the system's error number, and torch.save's, which have
    none but may follow an OSError.
    """
    if isinstance(error, OSError):
        return error
    if numbered := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(numbered[1]), os.strerror(int(numbered[1])))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save's writer
        before = error.__context__
        return before if isinstance(before, OSError) else OSError("the file could not be written whole")
    return None


def may_pass(failure: OSError) -> bool:
    """Return whether a failure may pass: by its number; those without one come from remote storage and may."""
    return failure.errno in PASSING or failure.errno is None


def reason_of(failure: OSError) -> str:
    """Return the system's words for a failure's number, which are shorter than pyarrow's; else its own."""
    if failure.errno is not None and failure.errno in errno.errorcode:
        return os.strerror(failure.errno)
    return str(failure) or type(failure).__name__


def _told(path: Path | str, failure: OSError) -> str:
    if isinstance(path, str):
        return f"{path} cannot be reached: {reason_of(failure)}"
    room = _room(path) if failure.errno in (*FULL, None) else ""
    return f"{path} cannot be written: {reason_of(failure)}{room}"


def _room(path: Path) -> str:
    """Return the free space on a path's disk, in brackets; empty where it is unknown."""
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    with suppress(OSError):
        if there is not None:
            return f" ({shutil.disk_usage(there).free:,} bytes are free there)"
    return ""


def _failed(path: Path | str, failure: OSError, waited: float) -> str:
    advice = "See that the storage answers again"
    if failure.errno in FULL:
        advice = "Free space there"
    elif not may_pass(failure) or failure.errno in LOCKED:
        advice = "See that it can be written to"
    tried = f" It was tried for {waited:.0f} s." if waited else ""
    return (
        f"{_told(path, failure)}.{tried} {advice}, or write elsewhere (--run). "
        "What was written before is whole, and the same command goes on from there."
    )


def check_writable(folder: Path) -> None:
    """Make a folder and check that a file can be written there. Raises StorageFailed at once where it cannot."""

    def attempt() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_file(folder / "writable") as temporary:
            temporary.write_bytes(b"posegen")
            to_disk(temporary)

    patiently(attempt, folder, patience=0.0)


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and remove the file where it is still there at the end."""
    temporary = temporary_beside(path)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a hidden name in the folder of `path` that matches TEMPORARY and is unique over processes and hosts."""
    writer = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def write_whole(path: Path, write: Callable[[Path], object], *, patience: float | None = None) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it to `path`. Makes the folder.

    `write` is called again where the storage fails for a moment: see `patiently`. Raises StorageFailed where it keeps
    failing; then nothing of the attempt is left.
    """

    def attempt() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_file(path) as temporary:
            write(temporary)
            to_disk(temporary)
            os.replace(temporary, path)

    patiently(attempt, path, patience=patience)


def to_disk(path: Path) -> None:
    """Wait until a file is on its disk.

    Some storage only reports here that it is full, and a power cut after renaming must not leave an empty file.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in NO_FSYNC:
                raise


def leftovers(folder: Path, *, older_than: float = LEFT_BEHIND) -> Iterator[Path]:
    """Yield the temporary files and folders under `folder` that have not changed for so many seconds."""
    now = time.time()
    for parent, folders, files in os.walk(folder):
        temporary = [name for name in (*folders, *files) if Path(name).match(TEMPORARY)]
        folders[:] = [name for name in folders if name not in temporary]
        for path in (Path(parent, name) for name in temporary):
            with suppress(OSError):
                inside = path.iterdir() if path.is_dir() else ()
                if now - max(each.stat().st_mtime for each in (path, *inside)) > older_than:
                    yield path


def remove_leftovers(folder: Path, *, older_than: float = LEFT_BEHIND) -> int:
    """Remove the files that killed writers left under `folder`; return their number."""
    found = list(leftovers(folder, older_than=older_than))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    return len(found)


def remove_whole(folder: Path) -> None:
    """Remove a folder, renaming it first: a process killed meanwhile leaves nothing that looks complete."""
    if folder.is_dir():
        hidden = temporary_beside(folder)
        patiently(lambda: os.replace(folder, hidden), folder)
        shutil.rmtree(hidden, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any], *, patience: float | None = None) -> None:
    """Write a JSON file by `write_whole`."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)), patience=patience)


def read_json(path: Path) -> dict | None:
    """Return the object in a JSON file, None where there is no such file or it holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the kernel's lock on a file, which is made where it is absent, and yield its descriptor.

    The kernel releases it when the process ends in any way. Raises BlockingIOError where another holder has it and
    `wait` is False, and OSError where the storage has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)


def digest(*parts: Any) -> str:
    """A short fingerprint of JSON-like values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
