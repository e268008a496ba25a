"""Manifests made by hand."""

from typing import Any

from posegen.data.shards.manifest import SCHEMA_VERSION, Manifest, ShardEntry


def shard_entry(**changes: Any) -> ShardEntry:
    """A training shard of one image without pairs, but for what is given."""
    entry = {"split": "train", "file": "train.arrow", "pairs_file": "train.pairs.arrow", "bytes": 1, "pairs_bytes": 0}
    return ShardEntry(**{**entry, "rows": 1, "pairs": 0, "order": [], **changes})


def manifest_with(shards: list[ShardEntry], fingerprint: str = "f") -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        fingerprint=fingerprint,
        source="",
        settings={"size": [64, 32]},
        columns=[],
        counts={},
        rejects={},
        notes={},
        shards=shards,
    )
