"""The order of training pairs where a node's disk does not hold all shards: windows of shards, one after the other.

An epoch permutes the shards by (seed, epoch), cuts them into windows of so many bytes, and permutes the pairs within
each. A window is half of the cache's limit, so that the next one is fetched while one is used. The order depends on the
manifest, the window's bytes and the seed alone: not on workers, and not on what lies in the cache.

A node's copies of shards, in bounded disk, shared by all its processes and runs.

    <cache>/shards/<fingerprint of the manifest>/train-00000.arrow
                                                 .train-00000.arrow.lock   held by the process that fetches the file
    <cache>/shards/.lock                         held while room is made

A file is there when it has the manifest's size. Before one is fetched, the files that were not used for longest are
removed, of all runs, until it fits. Removing one that a process has mapped is harmless: Linux keeps its bytes until it
is let go, so the disk in use may exceed the limit by what is mapped. While a file is fetched, its lock file is as long
as the file will be (a hole, which takes no disk): this is how other processes count what is on its way. The lock of a
process that was killed is free, and what it left is removed by the next who makes room or fetches the file.
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
    """Bytes of a window of training shards under a cache's limit; None where all of them fit, or nothing limits them.

    Where it is a number, it decides the order of the pairs, so it belongs to what a stage's training depends on.
    """
    total = sum(shard.total_bytes for shard in manifest.shards_of("train"))
    return None if limit is None or total <= limit else max(1, limit // 2)


def window_words(manifest: Manifest, limit: int | None) -> str | None:
    """What the user is told of windows under a cache's limit in bytes; None where there are none."""
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
    """An epoch's windows of at most `window` bytes, but of at least one shard: numbers of shards, in ascending order.

    `sizes` are the bytes of the shards by number.
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


class Turn(NamedTuple):
    """One use of a window: the how manieth of which epoch. Turns compare in the order in which they come."""

    epoch: int
    number: int


class Stretch(NamedTuple):
    """Places of the endless stream that lie in one turn."""

    places: slice  # of the places asked for
    turn: Turn
    shards: tuple[int, ...]
    pairs: Int[ndarray, " n"]  # counted within the window


@dataclass(frozen=True, eq=False)
class WindowedOrder:
    """An endless stream of training pairs, epoch after epoch, window after window."""

    shards: Sequence[tuple[int, int]]  # bytes and pairs of the split's shards, by number
    window: int  # bytes
    seed: int

    @cached_property
    def epoch_pairs(self) -> int:
        """Pairs of an epoch."""
        return sum(pairs for _, pairs in self.shards)

    def turn(self, place: int) -> Turn:
        """The turn in which a place of the stream lies."""
        epoch, within = divmod(place, self.epoch_pairs)
        return Turn(epoch, int(np.searchsorted(_epoch(self, epoch).starts, within, side="right")) - 1)

    def after(self, turn: Turn) -> Turn:
        """The turn that follows."""
        last = turn.number + 1 == len(_epoch(self, turn.epoch).windows)
        return Turn(turn.epoch + 1, 0) if last else Turn(turn.epoch, turn.number + 1)

    def shards_of(self, turn: Turn) -> tuple[int, ...]:
        return _epoch(self, turn.epoch).windows[turn.number]

    def stretches(self, start: int, stop: int) -> Iterator[Stretch]:
        """What the places start .. stop - 1 of the stream are, turn by turn."""
        place = start
        while place < stop:
            turn = self.turn(place)
            epoch = _epoch(self, turn.epoch)
            first, end = (turn.epoch * self.epoch_pairs + int(epoch.starts[turn.number + more]) for more in (0, 1))
            order = _pair_order(end - first, self.seed, turn)
            part = slice(place - first, min(stop, end) - first)
            here = slice(place - start, min(stop, end) - start)
            yield Stretch(here, turn, epoch.windows[turn.number], order[part])
            place = end


class _Epoch(NamedTuple):
    windows: list[tuple[int, ...]]
    starts: Int[ndarray, " windows_and_one"]  # of the windows' pairs in the epoch


@lru_cache(maxsize=4)
def _epoch(order: WindowedOrder, epoch: int) -> _Epoch:
    sizes = {number: size for number, (size, pairs) in enumerate(order.shards) if pairs}  # others need no disk
    cut = windows(sizes, order.window, seed=order.seed, epoch=epoch)
    counts = [sum(order.shards[number][1] for number in window) for window in cut]
    return _Epoch(cut, np.cumsum([0, *counts]))


@lru_cache(maxsize=2)
def _pair_order(count: int, seed: int, turn: Turn) -> Int[ndarray, " count"]:
    return random_stream(seed, PAIRS_OF_WINDOW, *turn).permutation(count)


FETCHED_AT_ONCE = 4  # files: one stream from an object store does not fill a node's network
TRIES = 20  # to map a file before others, for want of room, have removed it
PAUSE = 0.05  # seconds between two looks for room that other fetches hold


@dataclass(frozen=True)
class ShardCache:
    """Shards of a run's store, copied to this node as they are needed. Pickles to other nodes.

    `limit` bounds the bytes of all runs' shards in the node's cache; None: everything asked for is kept.
    """

    store: Store
    name: str = "shards"  # of the folder in the store
    limit: int | None = None  # bytes

    @staticmethod
    def of(store: Store, *, name: str = "shards", limit: int | None = None) -> "ShardCache | None":
        """The cache of a run, or None where its shards are mapped in place: in a folder, without a limit."""
        return ShardCache(store, name, limit) if store.remote or limit is not None else None

    def manifest(self) -> Manifest | None:
        """The manifest as the store has it now; None where it has none of this version."""
        return manifest_alone(self.store.fetch(f"{self.name}/{MANIFEST}").parent)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the manifest."""
        content = self.store.fetch(f"{self.name}/{MANIFEST}").read_bytes()
        return blake2b(content, digest_size=8).hexdigest()

    @property
    def folder(self) -> Path:
        """Where this node keeps its copies."""
        return _root() / self.fingerprint

    def check(self, manifest: Manifest) -> None:
        """Raises ValueError where a shard alone is larger than the limit, or the disk has no room for the copies."""
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
        """This node's copy of a file of `size` bytes, fetched where it is not there, and marked as just used.

        Of processes that ask at once, one fetches and the others wait. Raises ValueError where the store's file is
        missing or has another size.
        """
        assert self.limit is None or size <= self.limit, f"{file} is larger than the cache: `check` tells the user"
        target = self.folder / file
        if _used(target, size):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock_of(target)) as lock:
            if not _used(target, size):
                os.ftruncate(lock, 0)  # one who was killed may have announced the file
                _remove_unfinished(target)
                while not self._room_made(lock, size):
                    time.sleep(PAUSE)
                try:
                    self._copy(target, size)
                finally:
                    _remove_unfinished(target, but=size)
                    os.ftruncate(lock, 0)
        return target

    def read(self, file: str, size: int) -> pa.RecordBatch:
        """The record batch of a file of `size` bytes, memory-mapped; it stays readable when its file is removed."""
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
        """Fetches files (bytes by name) that are not there, several at once, and marks all as used.

        Returns when all are there; once `stop` is set, after those that are on their way. For a background thread.
        """
        missing = [file for file, size in files.items() if not _used(self.folder / file, size)]

        def fetch(file: str) -> None:
            if not stop.is_set():
                self.path(file, files[file])

        with ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="posegen-shards") as pool:
            list(pool.map(fetch, missing))

    def _room_made(self, lock: int, size: int) -> bool:
        """Whether a file now fits, and is announced by the length of its lock file; else others are on their way."""
        if self.limit is None:
            return True
        root = _root()
        with locked(root / ".lock"):
            coming = {_target_of(file.path): _coming(file) for file in _files(root, ".lock") if file.size}
            copies = sorted(_files(root, ".arrow"))  # after those that are coming: one that ends meanwhile is in both
            held = sum((coming | {copy.path: copy.size for copy in copies}).values())
            for copy in copies:
                if held + size <= self.limit:
                    break
                if coming.get(copy.path):  # just fetched, and still being looked at
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
        if not _used(target, size):
            raise ValueError(
                f"{self.store.at(name)} {found}: the shards are damaged or are being made again. Make them again "
                f"(`posegen shards`)."
            )


class _File(NamedTuple):
    """A file in the cache; these sort by when they were last used."""

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


def _files(root: Path, ending: str) -> Iterator[_File]:
    """The files of all runs whose names end so; by scandir, for there may be thousands."""
    folders = [entry.path for entry in os.scandir(root) if entry.is_dir()] if root.is_dir() else []
    for entry in (entry for folder in folders for entry in os.scandir(folder) if entry.name.endswith(ending)):
        with suppress(FileNotFoundError):
            state = entry.stat()
            yield _File(state.st_mtime_ns, entry.path, state.st_size)


def _coming(lock: _File) -> int:
    """The bytes of the file that the holder of a lock is fetching. Clears what a killed one has left."""
    try:
        with locked(Path(lock.path), wait=False) as handle:
            os.ftruncate(handle, 0)
            _remove_parts(Path(_target_of(lock.path)))
            return 0
    except BlockingIOError:
        return lock.size


def _used(path: Path, size: int) -> bool:
    """Whether a file is there with its size; marks it as used now."""
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


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _target_of(lock: str) -> str:
    folder, _, name = lock.rpartition("/")
    return f"{folder}/{name.removeprefix('.').removesuffix('.lock')}"


def _remove_unfinished(target: Path, *, but: int = -1) -> None:
    """Removes what an ended fetch has left of a file, and the file itself where its size is not `but`."""
    _remove_parts(target)
    if _size(target) != but:
        target.unlink(missing_ok=True)


def _remove_parts(target: Path) -> None:
    for part in target.parent.glob(f".{target.name}.*.tmp"):
        part.unlink(missing_ok=True)
