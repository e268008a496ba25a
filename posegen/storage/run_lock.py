"""One process at a time works on a run: a kernel lock in its folder, and a lease beside what lies at a URI."""

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from posegen.storage.files import StorageFailed, check_writable, locked, read_json, write_json
from posegen.storage.store import Store

LEASE = "lease.json"  # {"owner": ..., "who": "host, process n", "until": seconds since 1970}
LASTS = 60.0  # seconds after which the lease of a lost machine expires
RENEWED_EVERY = 15.0  # seconds
SETTLES = 1.0  # seconds after which one's own lease is read again: of two concurrent writers, one finds the other's


@contextmanager
def run_lock(store: Store, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a run. A killed process's hold ends at once, at a URI at most `LASTS` seconds later.

    Raises ValueError where another process holds it, or took it over while this one was suspended.
    """
    with _locked(store.folder, store.uri):
        if not store.remote:
            yield
            return
        with _leased(store, say):
            yield


def refresh(store: Store, wanted: Callable[[str], bool]) -> None:
    """Fetch the `wanted` files of a run at a URI, unless a process on this node holds the run: then they are here."""
    if not store.remote:
        return
    try:
        with _locked(store.folder, store.uri):
            store.fetch(wanted=wanted)
    except StorageFailed:
        raise
    except ValueError:  # held
        return


@contextmanager
def _locked(folder: Path, place: str) -> Iterator[None]:
    check_writable(folder)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError:
            raise ValueError(f"another process is at work on {place}. Wait for it, or give another --run.") from None
        except OSError as error:  # some network storage has no locks
            raise ValueError(f"{folder} cannot be locked: {error.strerror}. Give a --run on other storage.") from error
        yield


@contextmanager
def _leased(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    owner = uuid.uuid4().hex
    _wait_for_lease(store, say)
    _write(store, owner)
    time.sleep(SETTLES)
    if not _owns(store, owner):
        raise _taken(store, _read(store) or {})
    ended, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_renew, args=(store, owner, ended, lost), daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        who = (_read(store) or {}).get("who", "another process")
        raise ValueError(
            f"{who} took over {store.uri} while this process was suspended or cut off for more than {LASTS:.0f} s. "
            "This process stops; the other one continues the run."
        ) from None
    finally:
        ended.set()
        thread.join()
        if not lost.is_set() and _owns(store, owner):
            store.remove(LEASE)


def _renew(store: Store, owner: str, ended: threading.Event, lost: threading.Event) -> None:
    """Renew the lease until `ended`; if it is another's or gone, set `lost` and interrupt this process, as Ctrl-C does.

    A process that was suspended may find that its lease has expired and the run has another owner.
    """
    while not ended.wait(RENEWED_EVERY):
        try:
            if not _owns(store, owner):
                lost.set()
                os.kill(os.getpid(), signal.SIGINT)
                return
            _write(store, owner)
        except (OSError, ValueError):  # storage is unreachable; the run's own writes report it
            continue


def _owns(store: Store, owner: str) -> bool:
    return (_read(store) or {}).get("owner") == owner


def _wait_for_lease(store: Store, say: Callable[[str], None]) -> None:
    """Wait until the last holder's lease has expired without being renewed."""
    held = _read(store)
    if held is None or held["until"] <= time.time():
        return
    say(f"{held['who']} was at work on {store.uri}; waiting to see whether it still is (at most {LASTS:.0f} s)")
    while time.time() < held["until"]:
        time.sleep(SETTLES)
        now = _read(store)
        if now is None:
            return
        if now["until"] != held["until"]:
            raise _taken(store, now)


def _taken(store: Store, held: dict[str, Any]) -> ValueError:
    who = held.get("who", "another process")
    return ValueError(f"{who} is at work on {store.uri}. Wait for it, or give another --run.")


def _read(store: Store) -> dict[str, Any] | None:
    return read_json(store.fetch(LEASE)) if store.has(LEASE) else None


def _write(store: Store, owner: str) -> None:
    who = f"process {os.getpid()} on {socket.gethostname()}"
    write_json(store.folder / LEASE, {"owner": owner, "who": who, "until": time.time() + LASTS})
    store.publish(LEASE)
