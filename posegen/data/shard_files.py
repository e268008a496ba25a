"""The files of a shards folder: their names, their columns, and writing them so that they are complete or not there.

<split>-00000.arrow        pictures, whole groups; one record batch, uncompressed, so that it can be memory-mapped
<split>-00000.pairs.arrow  ordered pairs of rows of that shard
<split>-00000.json         what became of the shard's entries; written last, so a shard without it does not count
manifest.json              everything that was counted; written last of all, so a folder without it is not complete
rejects.parquet            what was not used, and why
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from posegen.files import read_json, write_whole

SCHEMA_VERSION = 2
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


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a complete folder of shards; None where it or a shard is missing or its schema is another."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest.get("schema_version") != SCHEMA_VERSION:
        return None
    named = [name for shard in manifest["shards"] for name in (shard["file"], shard["pairs_file"])]
    return manifest if all((folder / name).is_file() for name in named) else None


def write_arrow(path: Path, schema: pa.Schema, columns: Mapping[str, pa.Array]) -> None:
    """Write columns as one record batch of an Arrow IPC file, complete or not at all."""
    batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)

    write_whole(path, write)


def read_arrow(path: Path) -> pa.RecordBatch:
    """The one record batch of a file of `write_arrow`, memory-mapped: nothing is read before it is used."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
