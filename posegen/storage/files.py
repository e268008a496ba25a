"""Files that are complete or not there, on storage that may fail for a while.

A file is written under another name, brought to the disk, then put in its place at once. Storage that is full, busy or
away for a moment is tried again; what stays impossible becomes a message for the user.
"""

import errno
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
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 60.0  # seconds that a write is tried again, where nothing else is said
PATIENCE_VARIABLE = "POSEGEN_PATIENCE"  # the same, for every write of a process and of those that it starts
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between two tries; each is twice the one before
LEFT_BEHIND = 3600.0  # seconds after which a temporary file that nobody touches counts as a killed writer's
TEMPORARY = ".*.tmp"  # what the names of all temporary files and folders match

FULL = (errno.ENOSPC, errno.EDQUOT)
LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)
AWAY = (
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.EREMOTEIO, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN),
)
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of mounts that cannot be asked to wait for their disk
PASSING = frozenset((*FULL, errno.EROFS, *AWAY))  # a disk that met an error, or a server that moves, is read-only


class StorageFailed(ValueError):
    """Something could not be written, in words for the user. Its message is all that it holds, so it pickles."""


def patiently(
    write: Callable[[], T],
    path: Path | str,
    *,
    warn: Callable[[str], None] | None = None,
    patience: float | None = None,
) -> T:
    """Carries out a write of `path`; where the storage fails in a way that may pass, again and again for a while.

    A place on remote storage is given as text, and may be read as well as written.

    `write` must be one that can be repeated: best under a temporary name, with the renaming as its last act. `warn`
    hears once, at the first failure, what cannot be written and why; else the log of this module does. `patience` is in
    seconds; without it POSEGEN_PATIENCE says, else 60.

    Raises StorageFailed where it fails for longer than that, and at once where waiting does not help (no permission).
    Other errors of `write` pass through.
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
    """What POSEGEN_PATIENCE says, else 60 s; a value that is no number is one, too."""
    try:
        return float(os.environ.get(PATIENCE_VARIABLE, PATIENCE))
    except ValueError:
        return PATIENCE


def storage_failure(error: BaseException) -> OSError | None:
    """The failure of the storage that an error tells of, or None.

    Beside OSError itself: safetensors' errors, which end with the system's number, and torch's, which have no number
    but sometimes come after an OSError.
    """
    if isinstance(error, OSError):
        return error
    if numbered := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(numbered[1]), os.strerror(int(numbered[1])))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save's writer
        before = error.__context__
        return before if isinstance(before, OSError) else _of_words(str(error))
    return None


def _of_words(text: str) -> OSError:
    """A failure that a text names by the system's words; one without a number where it names none."""
    words = (text.partition("strerror: ")[2].splitlines() or [""])[0].strip()
    number = next((number for number in errno.errorcode if os.strerror(number) == words), None)
    return OSError(number, words) if number else OSError("the file could not be written whole")


def may_pass(failure: OSError) -> bool:
    """Whether a failure of the storage may pass: by its number; those without one come from remote storage and may."""
    return failure.errno in PASSING or failure.errno is None


def reason_of(failure: OSError) -> str:
    """A failure of the storage in the system's words."""
    if failure.errno is not None and failure.errno in errno.errorcode:
        return os.strerror(failure.errno)
    return str(failure) or type(failure).__name__


def _told(path: Path | str, failure: OSError) -> str:
    if isinstance(path, str):
        return f"{path} cannot be reached: {reason_of(failure)}"
    room = _room(path) if failure.errno in (*FULL, None) else ""
    return f"{path} cannot be written: {reason_of(failure)}{room}"


def _room(path: Path) -> str:
    """How much is free where a path is or would be, in brackets; empty where that cannot be told."""
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
    """Makes a folder and tries to write into it, without patience: to be asked before anything starts.

    Raises StorageFailed where it cannot be written to.
    """
    patiently(lambda: _try_to_write(folder), folder, patience=0.0)


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder / "writable")
    try:
        temporary.write_bytes(b"posegen")
        to_disk(temporary)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that no other process on any host takes, and that matches TEMPORARY."""
    writer = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def write_whole(path: Path, write: Callable[[Path], object], *, patience: float | None = None) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in its place at once. Makes its folder.

    `write` may be called again where the storage fails for a moment: see `patiently`. Raises StorageFailed where it
    goes on failing; then nothing of the attempt is left.
    """
    patiently(lambda: _write_once(path, write), path, patience=patience)


def _write_once(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Waits until a file is on its disk. Some storage only says now that it is full; and a power cut after the renaming
    must not leave an empty file under the final name."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in NO_FSYNC:
                raise


def leftovers(folder: Path, *, older_than: float = LEFT_BEHIND) -> Iterator[Path]:
    """Temporary files and folders anywhere under `folder` that nobody has touched for so many seconds."""
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
    """Removes what killed writers left under `folder`; gives how many there were."""
    found = list(leftovers(folder, older_than=older_than))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    return len(found)


def remove_whole(folder: Path) -> None:
    """Removes a folder at once, by another name first: killed in between, it leaves nothing that looks complete."""
    if folder.is_dir():
        hidden = temporary_beside(folder)
        patiently(lambda: os.replace(folder, hidden), folder)
        shutil.rmtree(hidden, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any], *, patience: float | None = None) -> None:
    """Write a JSON file, complete or not at all: see `write_whole`."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)), patience=patience)


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; None where there is no such file or it does not hold one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def digest(*parts: Any) -> str:
    """A short fingerprint of JSON-like values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
