"""The files of a shards folder: their names, their columns, and writing them so that they are complete or not there.

<split>-00000.arrow        pictures, whole groups; one record batch, uncompressed, so that it can be memory-mapped
<split>-00000.pairs.arrow  ordered pairs of rows of that shard
<split>-00000.json         what became of the shard's entries; written last, so a shard without it does not count
manifest.json              everything that was counted; written last of all, so a folder without it is not complete
rejects.parquet            what was not used, and why

The manifest's entry of a shard: "split", "file" and "pairs_file" with their "bytes" and "pairs_bytes", the numbers of
its pictures ("rows") and "pairs", and the first and last "order" of its pairs ([] where it has none).
"""

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from posegen.files import read_json, write_whole

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"

PICTURES = pa.schema(
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
            "shards, or make larger shards by --set shards.pictures_per_shard=20000."
        ) from error
