"""Reading shards through memory maps: in place, or shard by shard through the node's cache."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt8
from numpy import ndarray

from posegen.data.formats.images import decode_into
from posegen.data.shards.manifest import (
    SCHEMA_VERSION,
    SplitIndex,
    file_sizes,
    read_arrow,
    read_manifest,
    stored_version,
)
from posegen.data.shards.out_of_core import ShardCache
from posegen.storage.store import Store

ROLES = ("source", "target")
ALWAYS = ("joints", "visible")


class MappedSplit:
    """Shards of a split, all or some, as one list of images and one list of pairs.

    Encoded images and masks stay in the files until they are read; joints and azimuths (166 bytes an image) and
    pair numbers (8 bytes a pair, 16 where a given list mixes the shards) are held in memory.
    """

    def __init__(self, images: Sequence[pa.RecordBatch], pairs: Sequence[pa.RecordBatch]) -> None:
        """Index the shards' two files, mapped, in the order of the manifest."""
        self._batches = images
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._binary = {
            name: [_BinaryColumn(batch.column(name)) for batch in self._batches]
            for name in ("image", "pose_mask", "person_mask")
        }
        joints = [_values(batch.column("joints")).reshape(-1, 18, 2) for batch in self._batches]
        visible = [_values(batch.column("visible")).reshape(-1, 18) for batch in self._batches]
        azimuths = [_values(batch.column("azimuth").fill_null(np.nan)) for batch in self._batches]
        self.azimuths = np.concatenate([np.empty(0, np.float32), *azimuths])  # degrees; NaN where unknown
        self.joints = np.concatenate([np.empty((0, 18, 2), np.float32), *joints])
        self.visible = np.concatenate([np.empty((0, 18), np.uint8), *visible]).astype(bool)
        self._index_pairs(pairs)

    def _index_pairs(self, tables: Sequence[pa.RecordBatch]) -> None:
        def column(name: str, shift: ndarray) -> ndarray:
            parts = [_values(table.column(name)) + start for table, start in zip(tables, shift, strict=True)]
            return np.concatenate([np.empty(0, np.int32), *parts])

        starts = self._starts[:-1].astype(np.int32)
        self._source, self._target = column("source", starts), column("target", starts)
        order = column("order", np.zeros_like(starts))
        self._listed = None if (np.diff(order) > 0).all() else np.argsort(order)

    @property
    def image_count(self) -> int:
        """Return the number of images."""
        return int(self._starts[-1])

    @property
    def pair_count(self) -> int:
        """Return the number of pairs."""
        return len(self._source)

    def pair_rows(self, pairs: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """Return the rows of source and target images of pairs, given by their indices in the list."""
        stored = pairs if self._listed is None else self._listed[pairs]
        return self._source[stored], self._target[stored]

    def name(self, row: int) -> str:
        """Return the name of an image."""
        return self._text("name", row)

    def group(self, row: int) -> str:
        """Return the group of an image."""
        return self._text("group", row)

    def identities(self) -> dict[str, str]:
        """Return the identity of every image, by name."""
        names, identities = (
            [text for batch in self._batches for text in batch.column(column).to_pylist()]
            for column in ("name", "identity")
        )
        return dict(zip(names, identities, strict=True))

    def _text(self, column: str, row: int) -> str:
        shard, index = self._find(row)
        return self._batches[shard].column(column)[index].as_py()

    def image(self, row: int) -> memoryview:
        """Return an encoded image."""
        shard, index = self._find(row)
        return self._binary["image"][shard][index]

    def mask(self, kind: str, row: int) -> memoryview:
        """Return a packed "pose_mask" or "person_mask"."""
        shard, index = self._find(row)
        return self._binary[kind][shard][index]

    def _find(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, int(row - self._starts[shard])


@dataclass(frozen=True)
class PairSlice:
    """Pairs of one batch that lie in shards which are mapped together."""

    mapped: Callable[[], MappedSplit]  # waits for shards that are being fetched
    at: Int[ndarray, " n"]  # indices in the batch
    pairs: Int[ndarray, " n"]  # indices in the list of the mapped shards
    listed: Int[ndarray, " n"]  # indices in the split's list
    flips: Bool[ndarray, " n"]  # mirrored pairs

    def cut(self, size: int) -> Iterator["PairSlice"]:
        """Yield slices of at most `size` pairs."""
        for part in (slice(start, start + size) for start in range(0, len(self.at), size)):
            yield PairSlice(self.mapped, self.at[part], self.pairs[part], self.listed[part], self.flips[part])


class _BinaryColumn:
    """Values of a binary column as views of the mapped file, without an Arrow object for each."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, data = column.buffers()
        wide = pa.types.is_large_binary(column.type)
        self._offsets = np.frombuffer(offsets, np.int64 if wide else np.int32)
        self._data = memoryview(data if data is not None else b"").cast("B")

    def __getitem__(self, row: int) -> memoryview:
        return self._data[self._offsets[row] : self._offsets[row + 1]]


def _values(column: pa.Array) -> ndarray:
    """Return a numeric or fixed-size list column as a flat view."""
    return (column.flatten() if pa.types.is_fixed_size_list(column.type) else column).to_numpy()


class Piece(NamedTuple):
    """Shards of a split that are mapped together, with their positions in the split."""

    mapped: MappedSplit
    first_row: int  # in the split, of the first image
    places: Int[ndarray, " pairs"]  # indices of all pairs in the split's list


class Shards:
    """Complete shards: those in `folder`, memory-mapped; with a cache those of its run, each copied when first read.

    Raises ValueError if the shards are incomplete or of another version, if one alone exceeds the cache's limit, and
    if the disk has no room for the copies.
    """

    def __init__(self, folder: Path, cache: ShardCache | None = None) -> None:
        manifest = read_manifest(folder) if cache is None else cache.manifest()
        if manifest is None:
            raise _no_shards(folder, folder if cache is None else cache.store.at(cache.name))
        if cache is not None:
            cache.check(manifest)
        self.folder, self.manifest = folder, manifest
        self.size: tuple[int, int] = tuple(manifest.settings["size"])
        kinds = {"image", *ALWAYS, "pose_mask", *manifest.columns} - {"azimuth"}
        self.columns: set[str] = {f"{role}_{kind}" for role in ROLES for kind in kinds}
        self.columns |= {"rotation"} if "azimuth" in manifest.columns else set()
        self._cache = cache
        self._indices: dict[str, SplitIndex] = {}
        self._splits: dict[str, MappedSplit] = {}
        largest = max((shard.total_bytes for shard in manifest.shards), default=1)
        limit = None if cache is None else cache.limit
        self._recent = _RecentShards(None if limit is None else max(1, limit // largest))

    @classmethod
    def of(cls, store: Store, name: str = "shards", *, limit: int | None = None) -> "Shards":
        """Open the shards in folder `name` of a run: in place, or through this node's cache of `limit` bytes."""
        return cls(store.folder / name, ShardCache.of(store, name=name, limit=limit))

    def index(self, split: str) -> SplitIndex:
        """Return the index of a split; empty where the manifest has no shard of it."""
        if split not in self._indices:
            self._indices[split] = SplitIndex(self.manifest.shards_of(split), partial(self._orders, split))
        return self._indices[split]

    def split(self, split: str) -> MappedSplit:
        """Map all images and pairs of a split, for as long as this object lives. They must fit the cache's limit."""
        if split not in self._splits:
            needed, limit = (
                sum(shard.total_bytes for shard in self.index(split).shards),
                self._cache and self._cache.limit,
            )
            assert limit is None or needed <= limit, f"'{split}' takes {needed} bytes of {limit}: read it in windows"
            self._splits[split] = self.opened(split, range(len(self.index(split).shards)))
        return self._splits[split]

    def opened(self, split: str, shards: Sequence[int], stop: Event | None = None) -> MappedSplit:
        """Map shards of a split, given by number; missing files are fetched, several at once.

        Raises CancelledError once `stop` is set.
        """
        stop, entries = stop or Event(), [self.index(split).shards[shard] for shard in sorted(shards)]
        if self._cache is not None:
            self._cache.prefetch(file_sizes(entries), stop)
        if stop.is_set():
            raise CancelledError
        images = [self._read(shard.file, shard.bytes) for shard in entries]
        return MappedSplit(images, [self._read(shard.pairs_file, shard.pairs_bytes) for shard in entries])

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield a split in the order of the manifest: as one piece if it is in place, otherwise shard by shard."""
        index, every = self.index(split), range(len(self.index(split).shards))
        if self._cache is None:
            yield Piece(self.split(split), 0, index.places(every))
            return
        for shard in every:
            yield Piece(self.opened(split, [shard]), index.first_row(shard), index.places([shard]))

    def pair_slices(self, split: str, places: Int[ndarray, " n"]) -> list[PairSlice]:
        """Return pairs, given by their indices in the split's list, sliced by shard and not mirrored."""
        flips = np.zeros(len(places), bool)
        if self._cache is None:
            mapped = self.split(split)
            return [PairSlice(lambda: mapped, np.arange(len(places)), places, places, flips)]
        shards, pairs = self.index(split).pairs(places)
        return [
            PairSlice(partial(self._shard, split, shard), at, pairs[at], places[at], flips[at])
            for shard in np.unique(shards).tolist()
            for at in [np.flatnonzero(shards == shard)]
        ]

    def pair_count(self, split: str) -> int:
        """Return the number of pairs of a split."""
        return self.index(split).pair_count

    def image_count(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.index(split).image_count

    def checked_pairs(self, split: str, pairs: Sequence[int]) -> Int[ndarray, " n"]:
        """Return indices in a split's list of pairs as an array. Raises ValueError for those that do not exist."""
        return _places(pairs, self.pair_count(split), f"pairs of '{split}'")

    def pair_names(self, split: str, pairs: Sequence[int]) -> list[tuple[str, str]]:
        """Return the names (source, target) of pairs, given by their indices in the split's list."""
        names: dict[int, tuple[str, str]] = {}
        for part in self.pair_slices(split, self.checked_pairs(split, pairs)):
            mapped = part.mapped()
            rows = np.stack(mapped.pair_rows(part.pairs), axis=1).tolist()
            for place, (source, target) in zip(part.at.tolist(), rows, strict=True):
                names[place] = mapped.name(source), mapped.name(target)
        return [names[place] for place in range(len(names))]

    def images(self, split: str, rows: Sequence[int]) -> UInt8[ndarray, "n height width 3"]:
        """Return decoded RGB images of a split, given by their rows 0 .. image_count - 1."""
        places = _places(rows, self.image_count(split), f"images of '{split}'")
        images = np.empty((len(places), *self.size, 3), np.uint8)
        for image, (mapped, row) in zip(images, self._rows(split, places), strict=True):
            decode_into(mapped.image(row), image)
        return images

    def identities(self, split: str) -> dict[str, str]:
        """Return the identity of every image of a split, by name."""
        return {name: identity for piece in self.pieces(split) for name, identity in piece.mapped.identities().items()}

    def _rows(self, split: str, rows: Int[ndarray, " n"]) -> Iterator[tuple[MappedSplit, int]]:
        """Yield the mapped shards of each image, and its row in them."""
        if self._cache is None:
            yield from ((self.split(split), row) for row in rows.tolist())
            return
        for shard, row in zip(*(found.tolist() for found in self.index(split).rows(rows)), strict=True):
            yield self._shard(split, shard), row

    def _shard(self, split: str, shard: int) -> MappedSplit:
        """Map one shard; it is kept until others were used more recently."""
        return self._recent.get((split, shard), lambda: self.opened(split, [shard]))

    def _read(self, file: str, size: int) -> pa.RecordBatch:
        return read_arrow(self.folder / file) if self._cache is None else self._cache.read(file, size)

    def _orders(self, split: str) -> Int[ndarray, " pairs"]:
        files = [(shard.pairs_file, shard.pairs_bytes) for shard in self.index(split).shards]
        return np.concatenate([self._read(*file).column("order").to_numpy() for file in files])


def _no_shards(folder: Path, shown: Path | str) -> ValueError:
    version = stored_version(folder)
    if version not in (None, SCHEMA_VERSION):
        return ValueError(
            f"{shown} holds shards of version {version}, and this version of posegen reads version {SCHEMA_VERSION}: "
            f"make the run anew, in an empty folder."
        )
    return ValueError(
        f"{shown} holds no complete shards of this version: make them first (`posegen shards`), or give the folder "
        f"that has their manifest.json."
    )


def _places(places: Sequence[int], count: int, what: str) -> Int[ndarray, " n"]:
    numbers = np.asarray(places, np.int64).reshape(-1)
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        raise ValueError(f"{outside[:3].tolist()} are no {what}: there are {count:,}, counted from 0.")
    return numbers


class _RecentShards:
    """The mapped shards used last. Threads that ask for one at the same time map it once."""

    def __init__(self, count: int | None) -> None:
        self._count, self._lock = count, Lock()
        self._held: OrderedDict[tuple[str, int], Future[MappedSplit]] = OrderedDict()

    def get(self, key: tuple[str, int], opened: Callable[[], MappedSplit]) -> MappedSplit:
        with self._lock:
            is_new = key not in self._held
            future = self._held.setdefault(key, Future())
            self._held.move_to_end(key)
            while self._count is not None and len(self._held) > self._count:
                self._held.popitem(last=False)
        if is_new:
            try:
                future.set_result(opened())
            except BaseException as error:
                with self._lock:
                    self._held.pop(key, None)
                future.set_exception(error)
        return future.result()
