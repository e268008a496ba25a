"""Training where a node's disk does not hold all shards: the order of pairs by windows of shards, and the shard cache.

An epoch permutes the shards by (seed, epoch), cuts them into windows of a given number of bytes, and permutes the pairs
within each. A window is half of the cache's limit, so that the next one is fetched while one is used. The order depends
on the manifest, the window's bytes and the seed alone: not on workers, and not on the content of the cache.

The cache holds a node's copies of shards in bounded disk, shared by all its processes and runs:

    <cache>/shards/<fingerprint of the manifest>/train-00000.arrow
                                                 .train-00000.arrow.lock   held by the process that fetches the file
    <cache>/shards/.lock                         held while room is made

A file is complete when it has the manifest's size. Before one is fetched, the least recently used files of all runs
are removed until it fits. Removing a mapped file is harmless: Linux keeps its bytes until it is unmapped, so the disk
in use may exceed the limit by the mapped bytes. While a file is fetched, its lock file is as long as the file will be
(a hole, which takes no disk), so that other processes can count pending bytes. The lock of a killed process is free,
and its leftovers are removed by the next process that makes room or fetches the file.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from posegen.data.random_streams import PAIRS_OF_WINDOW, SHARDS_OF_EPOCH, random_stream
from posegen.data.shards.manifest import MANIFEST, Manifest, file_sizes, manifest_alone, read_arrow
from posegen.storage.files import StorageFailed, locked
from posegen.storage.store import Store, cache_folder


def window_bytes(manifest: Manifest, limit: int | None) -> int | None:
    """Return the bytes of a window of training shards under a cache's limit; None if all fit, or without a limit.

    A number decides the order of the pairs, so a stage's training depends on it.
    """
    total = sum(shard.total_bytes for shard in manifest.shards_of("train"))
    return None if limit is None or total <= limit else max(1, limit // 2)


def describe_windows(manifest: Manifest, limit: int | None) -> str | None:
    """Return a message about the windows under a cache's limit in bytes; None without windows."""
    window = window_bytes(manifest, limit)
    if window is None or limit is None:
        return None
    sizes = [shard.total_bytes for shard in manifest.shards_of("train")]
    mean = sum(sizes) / len(sizes)
    return (
        f"training pairs keep to windows of about {max(1, int(window / mean)):,} of {len(sizes):,} shards: the data "
        f"set ({sum(sizes) / 1e9:,.1f} GB) is larger than --cache-gb {limit / 1e9:g}"
    )


def windows(sizes: Mapping[int, int], window: int, *, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Return the windows of an epoch: numbers of shards, in ascending order.

    `sizes` are the bytes of the shards by number. A window has at most `window` bytes, but at least one shard.
    """
    numbers = np.array(list(sizes), np.int64)
    cut: list[list[int]] = []
    filled = 0
    for number in random_stream(seed, SHARDS_OF_EPOCH, epoch).permutation(numbers).tolist():
        if not cut or filled + sizes[number] > window:
            cut.append([])
            filled = 0
        cut[-1].append(number)
        filled += sizes[number]
    return [tuple(sorted(numbers)) for numbers in cut]


class WindowIndex(NamedTuple):
    """Epoch, and index of a window within the epoch. Compares in the order of the stream."""

    epoch: int
    number: int


class WindowSlice(NamedTuple):
    """Positions of the endless stream that lie in one window."""

    positions: slice  # of the requested positions
    window: WindowIndex
    shards: tuple[int, ...]
    pairs: Int[ndarray, " n"]  # counted within the window


@dataclass(frozen=True, eq=False)
class WindowedOrder:
    """An endless stream of training pairs, epoch after epoch, window after window."""

    shards: Sequence[tuple[int, int]]  # bytes and pairs of the split's shards, by number
    window_bytes: int
    seed: int

    @cached_property
    def epoch_pairs(self) -> int:
        """Return the number of pairs of an epoch."""
        return sum(pairs for _, pairs in self.shards)

    def window_at(self, position: int) -> WindowIndex:
        """Return the window in which a position of the stream lies."""
        epoch, within = divmod(position, self.epoch_pairs)
        return WindowIndex(epoch, int(np.searchsorted(_epoch(self, epoch).starts, within, side="right")) - 1)

    def after(self, window: WindowIndex) -> WindowIndex:
        """Return the window that follows."""
        last = window.number + 1 == len(_epoch(self, window.epoch).windows)
        return WindowIndex(window.epoch + 1, 0) if last else WindowIndex(window.epoch, window.number + 1)

    def shards_of(self, window: WindowIndex) -> tuple[int, ...]:
        """Return the numbers of a window's shards."""
        return _epoch(self, window.epoch).windows[window.number]

    def slices(self, start: int, stop: int) -> Iterator[WindowSlice]:
        """Yield the positions start .. stop - 1 of the stream, window by window."""
        position = start
        while position < stop:
            window = self.window_at(position)
            epoch = _epoch(self, window.epoch)
            first, end = (window.epoch * self.epoch_pairs + int(epoch.starts[window.number + more]) for more in (0, 1))
            order = _pair_order(end - first, self.seed, window)
            part = slice(position - first, min(stop, end) - first)
            here = slice(position - start, min(stop, end) - start)
            yield WindowSlice(here, window, epoch.windows[window.number], order[part])
            position = end


class _Epoch(NamedTuple):
    windows: list[tuple[int, ...]]
    starts: Int[ndarray, " windows_and_one"]  # of the windows' pairs in the epoch


@lru_cache(maxsize=4)
def _epoch(order: WindowedOrder, epoch: int) -> _Epoch:
    sizes = {number: size for number, (size, pairs) in enumerate(order.shards) if pairs}  # others need no disk
    cut = windows(sizes, order.window_bytes, seed=order.seed, epoch=epoch)
    counts = [sum(order.shards[number][1] for number in window) for window in cut]
    return _Epoch(cut, np.cumsum([0, *counts]))


@lru_cache(maxsize=2)
def _pair_order(count: int, seed: int, window: WindowIndex) -> Int[ndarray, " count"]:
    return random_stream(seed, PAIRS_OF_WINDOW, *window).permutation(count)


PARALLEL_FETCHES = 4  # files: one stream from an object store does not fill a node's network
TRIES = 20  # attempts to map a file that other processes remove to make room
PAUSE = 0.05  # seconds between two attempts to make room while other fetches hold it


@dataclass(frozen=True)
class ShardCache:
    """Shards of a run's store, copied to this node as they are needed. Pickles to other nodes.

    `limit` bounds the bytes of all runs' shards in the node's cache; None: all requested files are kept.
    """

    store: Store
    name: str = "shards"  # of the folder in the store
    limit: int | None = None  # bytes

    @staticmethod
    def of(store: Store, *, name: str = "shards", limit: int | None = None) -> "ShardCache | None":
        """Return the cache of a run, or None if its shards are mapped in place: in a folder, without a limit."""
        return ShardCache(store, name, limit) if store.remote or limit is not None else None

    def manifest(self) -> Manifest | None:
        """Return the manifest as the store has it now; None if it has none of this version."""
        return manifest_alone(self.store.fetch(f"{self.name}/{MANIFEST}").parent)

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of the manifest."""
        content = self.store.fetch(f"{self.name}/{MANIFEST}").read_bytes()
        return blake2b(content, digest_size=8).hexdigest()

    @property
    def folder(self) -> Path:
        """Return the folder of this node's copies."""
        return _root() / self.fingerprint

    def check(self, manifest: Manifest) -> None:
        """Raise ValueError if one shard alone exceeds the limit, or the disk has no room for the copies."""
        if self.limit is not None:
            _check_largest(manifest, self.limit)
        root = _root()
        copies = list(_files(root, ".arrow"))
        total = sum(file_sizes(manifest.shards).values())
        missing = total - sum(copy.size for copy in copies if Path(copy.path).parent == self.folder)
        held = sum(copy.size for copy in copies)
        growth = missing if self.limit is None else min(self.limit, held + missing) - held
        free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.is_dir())).free
        if growth > free:
            given = "no --cache-gb was given" if self.limit is None else f"--cache-gb {self.limit / 1e9:g} was given"
            raise ValueError(
                f"{given}, and this node would copy {growth / 1e9:,.1f} GB of shards to {root}, where "
                f"{free / 1e9:,.1f} GB are free: give --cache-gb at most {(held + free) / 1e9:.1f}, or name a folder "
                f"on a larger disk by POSEGEN_CACHE."
            )

    def path(self, file: str, size: int) -> Path:
        """Return this node's copy of a file of `size` bytes, fetched if it is missing, and mark it as just used.

        If several processes need it, one fetches and the others wait. Raises ValueError if the store's file is missing
        or has another size.
        """
        assert self.limit is None or size <= self.limit, f"{file} is larger than the cache: `check` tells the user"
        target = self.folder / file
        if _touch(target, size):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")) as lock:
            if not _touch(target, size):
                os.ftruncate(lock, 0)  # a killed process may have announced the file
                _remove_unfinished(target)
                while not self._make_room(lock, size):
                    time.sleep(PAUSE)
                try:
                    self._copy(target, size)
                finally:
                    _remove_unfinished(target, but=size)
                    os.ftruncate(lock, 0)
        return target

    def read(self, file: str, size: int) -> pa.RecordBatch:
        """Map the record batch of a file of `size` bytes; it stays readable when its file is removed."""
        for _ in range(TRIES):
            path = self.path(file, size)
            try:
                return read_arrow(path)
            except FileNotFoundError:
                continue
        raise ValueError(
            f"{file} was removed {TRIES} times before it could be read: the runs on this node need more shards at once "
            f"than {_root()} may hold. Give a larger --cache-gb."
        )

    def prefetch(self, files: Mapping[str, int], stop: Event) -> None:
        """Fetch missing files (bytes by name), several at once, and mark all as used.

        Returns when all are complete; once `stop` is set, after those in progress. For a background thread.
        """
        missing = [file for file, size in files.items() if not _touch(self.folder / file, size)]

        def fetch(file: str) -> None:
            if not stop.is_set():
                self.path(file, files[file])

        with ThreadPoolExecutor(PARALLEL_FETCHES, thread_name_prefix="posegen-shards") as pool:
            list(pool.map(fetch, missing))

    def _make_room(self, lock: int, size: int) -> bool:
        """Make room for a file and announce it by the length of its lock file; False while pending files hold it."""
        if self.limit is None:
            return True
        root = _root()
        with locked(root / ".lock"):
            pending = {_target_of(file.path): _pending_bytes(file) for file in _files(root, ".lock") if file.size}
            copies = sorted(_files(root, ".arrow"))  # after pending ones: one that ends meanwhile is in both
            held = sum((pending | {copy.path: copy.size for copy in copies}).values())
            for copy in copies:
                if held + size <= self.limit:
                    break
                if pending.get(copy.path):  # just fetched, its lock still held
                    continue
                Path(copy.path).unlink(missing_ok=True)
                held -= copy.size
            if held + size > self.limit:
                return False
            os.ftruncate(lock, size)
            return True

    def _copy(self, target: Path, size: int) -> None:
        name = f"{self.name}/{target.name}"
        try:
            self.store.copy(name, target)
            found = f"has {_size(target):,} bytes, and its manifest says {size:,}"
        except StorageFailed as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            found = "is not there, although its manifest names it"
        if not _touch(target, size):
            raise ValueError(
                f"{self.store.at(name)} {found}: the shards are damaged or are being made again. Make them again "
                f"(`posegen shards`)."
            )


class _CachedFile(NamedTuple):
    """A file in the cache; sorts by last use."""

    used: int  # nanoseconds
    path: str
    size: int


def _root() -> Path:
    return cache_folder() / "shards"


def _check_largest(manifest: Manifest, limit: int) -> None:
    largest = max(manifest.shards, key=lambda shard: shard.total_bytes, default=None)
    if largest is not None and largest.total_bytes > limit:
        raise ValueError(
            f"--cache-gb {limit / 1e9:g} was given, and {largest.file} with its pairs alone takes "
            f"{largest.total_bytes / 1e9:g} GB: give at least twice that, or make smaller shards by --set "
            f"shards.images_per_shard={largest.rows // 4 or 1}."
        )


def _files(root: Path, ending: str) -> Iterator[_CachedFile]:
    """Yield the files of all runs with this ending; by scandir, because there may be thousands."""
    folders = [entry.path for entry in os.scandir(root) if entry.is_dir()] if root.is_dir() else []
    for entry in (entry for folder in folders for entry in os.scandir(folder) if entry.name.endswith(ending)):
        with suppress(FileNotFoundError):
            state = entry.stat()
            yield _CachedFile(state.st_mtime_ns, entry.path, state.st_size)


def _pending_bytes(lock: _CachedFile) -> int:
    """Return the bytes of the file that a lock's holder is fetching; clear the leftovers of a killed one."""
    try:
        with locked(Path(lock.path), wait=False) as handle:
            os.ftruncate(handle, 0)
            _remove_parts(Path(_target_of(lock.path)))
            return 0
    except BlockingIOError:
        return lock.size


def _touch(path: Path, size: int) -> bool:
    """Return whether a file is complete, and mark it as used now."""
    now = time.time_ns()
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _target_of(lock: str) -> str:
    folder, _, name = lock.rpartition("/")
    return f"{folder}/{name.removeprefix('.').removesuffix('.lock')}"


def _remove_unfinished(target: Path, *, but: int = -1) -> None:
    """Remove the leftovers of an ended fetch, and the file itself unless its size is `but`."""
    _remove_parts(target)
    if _size(target) != but:
        target.unlink(missing_ok=True)


def _remove_parts(target: Path) -> None:
    for part in target.parent.glob(f".{target.name}.*.tmp"):
        part.unlink(missing_ok=True)
