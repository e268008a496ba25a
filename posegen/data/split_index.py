"""Where the pictures and pairs of a split lie in its shards, told by the manifest without opening a shard."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Int
from numpy import ndarray


class SplitIndex:
    """Shards are numbered from 0 as the manifest has them; pictures and pairs are counted within a shard or a split.

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
    def picture_count(self) -> int:
        return int(self._rows[-1])

    @property
    def pair_count(self) -> int:
        return int(self._pairs[-1])

    def first_row(self, shard: int) -> int:
        """The row in the split of a shard's first picture."""
        return int(self._rows[shard])

    def rows(self, rows: Int[ndarray, " n"]) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
        """The shards of pictures given by their rows in the split, and their rows there."""
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
