"""Shards of a split, all or some, as one list of pictures and one list of pairs, read through memory maps."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray


class MappedSplit:
    """Pictures by row and pairs by their place in the list, counted over the shards that are mapped.

    Encoded pictures and masks stay in the files until they are touched; joints and azimuths (166 bytes a picture) and
    pair numbers (8 bytes a pair, 16 where a given list mixes the shards) are held in memory.
    """

    def __init__(self, pictures: Sequence[pa.RecordBatch], pairs: Sequence[pa.RecordBatch]) -> None:
        """The shards' two files, mapped, in the order of the manifest."""
        self._batches = pictures
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
    def picture_count(self) -> int:
        return int(self._starts[-1])

    @property
    def pair_count(self) -> int:
        return len(self._source)

    def pair_rows(self, pairs: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """Rows of the source and of the target pictures of pairs, given by their places in the split's list."""
        stored = pairs if self._listed is None else self._listed[pairs]
        return self._source[stored], self._target[stored]

    def name(self, row: int) -> str:
        return self._text("name", row)

    def group(self, row: int) -> str:
        return self._text("group", row)

    def identities(self) -> dict[str, str]:
        """The identity of every picture, by name."""
        names, identities = (
            [text for batch in self._batches for text in batch.column(column).to_pylist()]
            for column in ("name", "identity")
        )
        return dict(zip(names, identities, strict=True))

    def _text(self, column: str, row: int) -> str:
        shard, place = self._find(row)
        return self._batches[shard].column(column)[place].as_py()

    def image(self, row: int) -> memoryview:
        """The encoded picture."""
        shard, place = self._find(row)
        return self._binary["image"][shard][place]

    def mask(self, kind: str, row: int) -> memoryview:
        """The packed "pose_mask" or "person_mask"."""
        shard, place = self._find(row)
        return self._binary[kind][shard][place]

    def _find(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, int(row - self._starts[shard])


class _BinaryColumn:
    """The values of a binary column as views of the mapped file, without an Arrow object for each."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, data = column.buffers()
        wide = pa.types.is_large_binary(column.type)
        self._offsets = np.frombuffer(offsets, np.int64 if wide else np.int32)
        self._data = memoryview(data if data is not None else b"").cast("B")

    def __getitem__(self, row: int) -> memoryview:
        return self._data[self._offsets[row] : self._offsets[row + 1]]


def _values(column: pa.Array) -> ndarray:
    """A numeric or fixed-size list column as a flat view."""
    return (column.flatten() if pa.types.is_fixed_size_list(column.type) else column).to_numpy()
