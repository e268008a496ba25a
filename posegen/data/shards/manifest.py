"""The files of a shards folder: their names, their columns, and writing them so that they are complete or not there.

<split>-00000.arrow        images, whole groups; one record batch, uncompressed, so that it can be memory-mapped
<split>-00000.pairs.arrow  ordered pairs of rows of that shard
<split>-00000.json         what became of the shard's entries; written last, so a shard without it does not count
manifest.json              everything that was counted; written last of all, so a folder without it is not complete
rejects.parquet            what was not used, and why

The manifest's entry of a shard: "split", "file" and "pairs_file" with their "bytes" and "pairs_bytes", the numbers of
its images ("rows") and "pairs", and the first and last "order" of its pairs ([] where it has none).

Where the images and pairs of a split lie in its shards, told by the manifest without opening a shard.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from posegen.storage.files import read_json, write_whole

SCHEMA_VERSION = 3
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


def shard_stem(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


def read_manifest(folder: Path, *, sizes: Mapping[str, int] | None = None) -> dict | None:
    """The manifest of a complete folder of shards; None where it or a shard is missing or its schema is another.

    `sizes` are the bytes of the files that the run has, by name (`Store.sizes`); as a rule those in the folder.
    """
    manifest = manifest_alone(folder)
    if manifest is None:
        return None
    here = {path.name: path.stat().st_size for path in folder.glob("*.arrow")} if sizes is None else sizes
    return manifest if all(here.get(name) == size for name, size in file_sizes(manifest["shards"]).items()) else None


def manifest_alone(folder: Path) -> dict | None:
    """The manifest in a folder, whether its shards are there or not; None where it is missing or its schema another."""
    manifest = read_json(folder / MANIFEST)
    return manifest if manifest is not None and manifest.get("schema_version") == SCHEMA_VERSION else None


def file_sizes(shards: Iterable[Mapping]) -> dict[str, int]:
    """The bytes of the files of some of the manifest's shards, by name."""
    return {
        name: size
        for shard in shards
        for name, size in ((shard["file"], shard["bytes"]), (shard["pairs_file"], shard["pairs_bytes"]))
    }


def write_arrow(path: Path, schema: pa.Schema, columns: Mapping[str, pa.Array]) -> None:
    """Write columns as one record batch of an Arrow IPC file, complete or not at all."""
    batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)

    write_whole(path, write)


def read_arrow(path: Path) -> pa.RecordBatch:
    """The one record batch of a file of `write_arrow`, memory-mapped: nothing is read before it is used.

    Raises ValueError where the process may map no further file.
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
    """Shards are numbered from 0 as the manifest has them; images and pairs are counted within a shard or a split.

    Where a given list mixes the shards, places in it are known from the "order" of all pairs (16 bytes a pair are
    held then); else from the numbers of pairs alone.
    """

    def __init__(self, shards: Sequence[Mapping], orders: Callable[[], Int[ndarray, " pairs"]]) -> None:
        """`shards` are the split's entries of the manifest; `orders` reads the "order" of all its pairs, as stored."""
        self.shards, self._orders = list(shards), orders
        self._rows = np.cumsum([0, *(shard["rows"] for shard in shards)])
        self._pairs = np.cumsum([0, *(shard["pairs"] for shard in shards)])
        ends = [shard["order"] for shard in shards if shard["pairs"]]
        self._mixed = any(last >= first for (_, last), (first, _) in pairwise(ends))

    @property
    def image_count(self) -> int:
        return int(self._rows[-1])

    @property
    def pair_count(self) -> int:
        return int(self._pairs[-1])

    def first_row(self, shard: int) -> int:
        """The row in the split of a shard's first image."""
        return int(self._rows[shard])

    def rows(self, rows: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """The shards of images given by their rows in the split, and their rows there."""
        return _found(rows, self._rows)

    def pairs(self, places: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """The shards of pairs given by their places in the split's list, and their places in the lists of these."""
        return _found(self._listed[places] if self._mixed else places, self._pairs)

    def places(self, shards: Sequence[int]) -> Int[ndarray, " n"]:
        """The places in the split's list of all pairs of some shards, in ascending order."""
        stored = [np.arange(self._pairs[shard], self._pairs[shard + 1]) for shard in sorted(shards)]
        numbers = np.concatenate([np.empty(0, np.int64), *stored])
        return np.sort(self._place_of[numbers]) if self._mixed else numbers

    @cached_property
    def _listed(self) -> Int[ndarray, " pairs"]:
        """Which stored pair stands at each place of the list."""
        return np.argsort(self._orders())

    @cached_property
    def _place_of(self) -> Int[ndarray, " pairs"]:
        places = np.empty(self.pair_count, np.int64)
        places[self._listed] = np.arange(self.pair_count)
        return places


def _found(numbers: Int[ndarray, " n"], starts: ndarray) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
    shards = np.searchsorted(starts, numbers, side="right") - 1
    return shards, numbers - starts[shards]
