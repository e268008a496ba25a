"""The order of training pairs where a node's disk does not hold all shards: windows of shards, one after the other.

An epoch permutes the shards by (seed, epoch), cuts them into windows of so many bytes, and permutes the pairs within
each. A window is half of the cache's limit, so that the next one is fetched while one is used. The order depends on the
manifest, the window's bytes and the seed alone: not on workers, and not on what lies in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from posegen.data.draws import PAIRS_OF_WINDOW, SHARDS_OF_EPOCH, random_stream


def shard_bytes(shard: Mapping) -> int:
    """Bytes of the files of one of the manifest's shards."""
    return shard["bytes"] + shard["pairs_bytes"]


def window_bytes(manifest: Mapping, limit: int | None) -> int | None:
    """Bytes of a window of training shards under a cache's limit; None where all of them fit, or nothing limits them.

    Where it is a number, it decides the order of the pairs, so it belongs to what a stage's training depends on.
    """
    total = sum(shard_bytes(shard) for shard in _training(manifest))
    return None if limit is None or total <= limit else max(1, limit // 2)


def window_words(manifest: Mapping, limit: int | None) -> str | None:
    """What the user is told of windows under a cache's limit in bytes; None where there are none."""
    window = window_bytes(manifest, limit)
    if window is None or limit is None:
        return None
    sizes = [shard_bytes(shard) for shard in _training(manifest)]
    mean = sum(sizes) / len(sizes)
    return (
        f"training pairs keep to windows of about {max(1, int(window / mean)):,} of {len(sizes):,} shards: the data "
        f"set ({sum(sizes) / 1e9:,.1f} GB) is larger than --cache-gb {limit / 1e9:g}"
    )


def _training(manifest: Mapping) -> list[Mapping]:
    return [shard for shard in manifest["shards"] if shard["split"] == "train"]


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
