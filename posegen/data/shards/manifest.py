"""The files of a shards folder: names, columns, the manifest, and atomic writes.

<split>-00000.arrow        images, whole groups; one record batch, uncompressed, so that it can be memory-mapped
<split>-00000.pairs.arrow  ordered pairs of rows of that shard
<split>-00000.json         the shard's `ShardSummary`; written last, so a shard without it does not count
manifest.json              the `Manifest`; written last of all, so a folder without it is not complete
rejects.parquet            the images and pairs that are not used, with the reasons

`SplitIndex` finds images and pairs of a split in its shards by the manifest alone, without opening a shard.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from posegen.data.listing import Reject
from posegen.storage.files import read_json, write_whole

SCHEMA_VERSION = 4
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"

IMAGES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("azimuth", pa.float32()),  # degrees; null where unknown
        pa.field("image", pa.large_binary(), nullable=False),  # JPEG or PNG of the training size
        pa.field("joints", pa.list_(pa.float32(), 36), nullable=False),  # x0, y0, x1, y1, ... in pixels
        pa.field("visible", pa.list_(pa.uint8(), 18), nullable=False),
        pa.field("pose_mask", pa.binary(), nullable=False),  # as pose_masks.pack
        pa.field("person_mask", pa.binary()),  # the same; null where unknown
    ]
)
PAIRS = pa.schema(
    [
        pa.field("source", pa.int32(), nullable=False),  # rows of the shard
        pa.field("target", pa.int32(), nullable=False),
        pa.field("order", pa.int64(), nullable=False),  # increases along the split's list; not always by one
    ]
)
REJECT_COLUMNS = pa.schema([(name, pa.string()) for name in ("name", "split", "reason", "detail")])


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard in the manifest: its two files and what they hold."""

    split: str
    file: str  # of the images
    pairs_file: str
    bytes: int  # of `file`
    pairs_bytes: int
    rows: int  # images
    pairs: int
    order: list[int]  # first and last "order" of the pairs; empty without pairs

    @property
    def total_bytes(self) -> int:
        """Return the bytes of both files."""
        return self.bytes + self.pairs_bytes

    @classmethod
    def from_json(cls, content: Any) -> "ShardEntry":
        """Return the entry in parsed JSON. Raises ValueError that names a missing or wrong field."""
        return cls(**_checked_fields(cls, content, "a shard of the manifest"))


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """The result of making one shard, counts included, as its task returns it."""

    made_from: Mapping[str, Any]  # `making.made_from`
    split: str
    number: int
    images: int  # entries of the listing
    rows: int  # stored images
    groups: int
    pairs: int
    order: list[int]  # as in `ShardEntry`
    bytes: list[int]  # of the file of images and of the file of pairs; 0 without rows
    person_masks: int  # images that have one
    azimuths: int
    notes: Mapping[str, int]  # images, by note of `reasons`
    rejects: list[Reject]

    @property
    def stem(self) -> str:
        """Return the name of the shard's files, without ending."""
        return shard_stem(self.split, self.number)

    @property
    def entry(self) -> ShardEntry:
        """Return the shard's entry in the manifest."""
        return ShardEntry(
            split=self.split,
            file=f"{self.stem}.arrow",
            pairs_file=f"{self.stem}.pairs.arrow",
            bytes=self.bytes[0],
            pairs_bytes=self.bytes[1],
            rows=self.rows,
            pairs=self.pairs,
            order=self.order,
        )

    @classmethod
    def from_json(cls, content: Any) -> "ShardSummary":
        """Return the summary in parsed JSON. Raises ValueError that names a missing or wrong field."""
        found = _checked_fields(cls, content, "a shard's summary")
        found["rejects"] = [Reject(*reject) for reject in found["rejects"]]
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON's types."""
        return {**vars(self), "rejects": [list(reject) for reject in self.rejects]}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete folder of shards: what they are made from, and all counts."""

    schema_version: int
    fingerprint: str  # of data and settings
    source: str  # fingerprint of the listing
    settings: Mapping[str, Any]  # `making.ShardSettings`
    columns: list[str]  # of "person_mask" and "azimuth", those that every image has
    counts: Mapping[str, Mapping[str, int]]  # "images", "usable", "groups" and "pairs" of each split
    rejects: Mapping[str, int]  # by reason
    notes: Mapping[str, int]  # images, by note
    shards: list[ShardEntry]

    @property
    def made_from(self) -> dict[str, Any]:
        """Return the fields that decide the shards' content (`making.made_from`)."""
        return {name: getattr(self, name) for name in ("schema_version", "fingerprint", "source", "settings")}

    def shards_of(self, split: str) -> list[ShardEntry]:
        """Return the shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    @classmethod
    def from_json(cls, content: Any) -> "Manifest":
        """Return the manifest in parsed JSON. Raises ValueError that names a missing or wrong field."""
        found = _checked_fields(cls, content, "the manifest of the shards")
        found["shards"] = [ShardEntry.from_json(shard) for shard in found["shards"]]
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON's types."""
        return {**vars(self), "shards": [vars(shard) for shard in self.shards]}


@cache
def _field_types(of: type) -> dict[str, Any]:
    return {field.name: get_origin(field.type) or field.type for field in fields(of)}


def _checked_fields(of: type, content: Any, what: str) -> dict[str, Any]:
    """Return the fields of a dataclass in parsed JSON. Raises ValueError that names a missing or wrong one."""
    types, content = _field_types(of), content if isinstance(content, dict) else {}
    for name, expected in types.items():
        if name not in content:
            raise ValueError(f"{what} has no field '{name}'; it has {', '.join(content) or 'none'}.")
        if not isinstance(content[name], expected):
            raise ValueError(f"{what}: the field '{name}' is {content[name]!r}, expected {expected.__name__}.")
    return {name: content[name] for name in types}


def shard_stem(split: str, number: int) -> str:
    """Return the name of a shard's files, without ending."""
    return f"{split}-{number:05d}"


def read_manifest(folder: Path, *, sizes: Mapping[str, int] | None = None) -> Manifest | None:
    """Return the manifest of a complete folder of shards; None where it or a shard is missing or its version another.

    `sizes` are the bytes of the files that the run has, by name (`Store.sizes`); by default, those in the folder.
    """
    manifest = manifest_alone(folder)
    if manifest is None:
        return None
    here = {path.name: path.stat().st_size for path in folder.glob("*.arrow")} if sizes is None else sizes
    return manifest if all(here.get(name) == size for name, size in file_sizes(manifest.shards).items()) else None


def manifest_alone(folder: Path) -> Manifest | None:
    """Return the manifest in a folder, even without its shards; None where it is missing or its version another."""
    content = read_json(folder / MANIFEST)
    return Manifest.from_json(content) if content and content.get("schema_version") == SCHEMA_VERSION else None


def stored_version(folder: Path) -> int | None:
    """Return the schema version of the manifest in a folder, whichever it is; None without a manifest."""
    return (read_json(folder / MANIFEST) or {}).get("schema_version")


def file_sizes(shards: Iterable[ShardEntry]) -> dict[str, int]:
    """Return the bytes of the files of shards, by name."""
    return {
        name: size
        for shard in shards
        for name, size in ((shard.file, shard.bytes), (shard.pairs_file, shard.pairs_bytes))
    }


def write_arrow(path: Path, schema: pa.Schema, columns: Mapping[str, pa.Array]) -> None:
    """Write columns as one record batch of an Arrow IPC file, complete or not at all."""
    batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)

    write_whole(path, write)


def read_arrow(path: Path) -> pa.RecordBatch:
    """Return the record batch of a file of `write_arrow`, memory-mapped: nothing is read before it is used.

    Raises ValueError if the process may map no further file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except OSError as error:
        if os.strerror(errno.ENOMEM) not in str(error):  # pyarrow sets no number
            raise
        raise ValueError(
            f"{path} cannot be mapped: {error}. A process may have so many maps (vm.max_map_count, 65,530 as a rule), "
            "and needs two for each shard that it reads at once. Give --cache-gb, so that training keeps to windows of "
            "shards, or make larger shards by --set shards.images_per_shard=20000."
        ) from error


class SplitIndex:
    """Positions of images and pairs in the shards of a split, which are numbered from 0 in the order of the manifest.

    Where a given list mixes the shards, indices in it are known from the "order" of all pairs (16 bytes a pair are
    held then); otherwise from the numbers of pairs alone.
    """

    def __init__(self, shards: Sequence[ShardEntry], orders: Callable[[], Int[ndarray, " pairs"]]) -> None:
        """Index the split's entries of the manifest; `orders` reads the "order" of all its pairs, as stored."""
        self.shards, self._orders = list(shards), orders
        self._rows = np.cumsum([0, *(shard.rows for shard in shards)])
        self._pairs = np.cumsum([0, *(shard.pairs for shard in shards)])
        ends = [shard.order for shard in shards if shard.pairs]
        self._mixed = any(last >= first for (_, last), (first, _) in pairwise(ends))

    @property
    def image_count(self) -> int:
        """Return the number of images."""
        return int(self._rows[-1])

    @property
    def pair_count(self) -> int:
        """Return the number of pairs."""
        return int(self._pairs[-1])

    def first_row(self, shard: int) -> int:
        """Return the row in the split of a shard's first image."""
        return int(self._rows[shard])

    def rows(self, rows: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """Return the shards of images given by their rows in the split, and their rows in these shards."""
        return _found(rows, self._rows)

    def pairs(self, places: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """Return the shards of pairs given by their indices in the split's list, and their indices in these shards."""
        return _found(self._listed[places] if self._mixed else places, self._pairs)

    def places(self, shards: Sequence[int]) -> Int[ndarray, " n"]:
        """Return the indices in the split's list of all pairs of some shards, in ascending order."""
        stored = [np.arange(self._pairs[shard], self._pairs[shard + 1]) for shard in sorted(shards)]
        numbers = np.concatenate([np.empty(0, np.int64), *stored])
        return np.sort(self._place_of[numbers]) if self._mixed else numbers

    @cached_property
    def _listed(self) -> Int[ndarray, " pairs"]:
        """Return the stored pair at each index of the list."""
        return np.argsort(self._orders())

    @cached_property
    def _place_of(self) -> Int[ndarray, " pairs"]:
        places = np.empty(self.pair_count, np.int64)
        places[self._listed] = np.arange(self.pair_count)
        return places


def _found(numbers: Int[ndarray, " n"], starts: ndarray) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
    shards = np.searchsorted(starts, numbers, side="right") - 1
    return shards, numbers - starts[shards]
