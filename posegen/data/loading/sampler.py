"""The pairs of each training batch; with windows of shards, the next window is opened while one is used."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Event

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from posegen.data.random_streams import epoch_pairs, flips
from posegen.data.shards.manifest import SplitIndex
from posegen.data.shards.mapping import MappedSplit, PairSlice
from posegen.data.shards.out_of_core import WindowedOrder, WindowIndex

OpenShards = Callable[[tuple[int, ...], Event], MappedSplit]  # by number; ends early once the event is set


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The batches to draw, and the share of one rank.

    Batch number d takes the positions d * batch_size .. (d + 1) * batch_size - 1 of an endless stream of pairs.
    """

    draws: range  # numbers of the batches
    batch_size: int  # of the global batch
    share: slice  # of the global batch
    seed: int
    flip: bool

    def permuted(self, split: MappedSplit) -> Generator[list[PairSlice], None, None]:
        """Yield batches where all shards are mapped: each epoch permutes all pairs of the split."""
        at = np.arange(self.share.stop - self.share.start)
        for draw in self.draws:
            pairs = epoch_pairs(split.pair_count, self.seed, self._start(draw) + at)
            yield [PairSlice(lambda: split, at, pairs, pairs, self._flips(draw))]

    def windowed(
        self, order: WindowedOrder, index: SplitIndex, open_shards: OpenShards
    ) -> Generator[list[PairSlice], None, None]:
        """Yield batches window by window, with the shards of the current window and of the next one mapped."""
        if not self.draws:
            return
        last = order.window_at((self.draws[-1] + 1) * self.batch_size - 1)
        prefetcher = _WindowPrefetcher(order, open_shards, last=last)
        listed = lru_cache(maxsize=2)(index.places)
        try:
            for draw in self.draws:
                start, flips, slices = self._start(draw), self._flips(draw), []
                for part in order.slices(start, start + self.share.stop - self.share.start):
                    at = np.arange(part.positions.start, part.positions.stop)
                    mapped = prefetcher.opened(part.window).result
                    pairs = listed(part.shards)[part.pairs]
                    slices.append(PairSlice(mapped, at, part.pairs, pairs, flips[part.positions]))
                yield slices
        except GeneratorExit:
            prefetcher.stop()
            raise
        finally:
            prefetcher.close()

    def _start(self, draw: int) -> int:
        """Return the position in the stream at which the rank's share of a batch begins."""
        return draw * self.batch_size + self.share.start

    def _flips(self, draw: int) -> Bool[ndarray, " share"]:
        return flips(self.batch_size, self.seed, draw, share=0.5 if self.flip else 0.0)[self.share]


class _WindowPrefetcher:
    """Opens shards on one thread: those of a window and, in advance, those of the window after it."""

    def __init__(self, order: WindowedOrder, open_shards: OpenShards, *, last: WindowIndex) -> None:
        self._order, self._open_shards, self._last = order, open_shards, last
        self._stop, self._opened = Event(), dict[WindowIndex, Future[MappedSplit]]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posegen-windows")

    def opened(self, window: WindowIndex) -> Future[MappedSplit]:
        """Return the shards of the current window; those before it are released once their readers finish."""
        held = [window, self._order.after(window)] if window < self._last else [window]
        self._opened = {
            each: self._opened.get(each)
            or self._thread.submit(self._open_shards, self._order.shards_of(each), self._stop)
            for each in held
        }
        return self._opened[window]

    def stop(self) -> None:
        """Start no further download; those in progress are finished."""
        self._stop.set()

    def close(self) -> None:
        """Wait for the windows that are being opened."""
        self._thread.shutdown()
