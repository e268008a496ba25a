"""What the batches of training pairs are made of, draw by draw; windows of shards are opened ahead of their turn."""

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
from posegen.data.shards.mapping import MappedSplit, Run
from posegen.data.shards.out_of_core import Turn, WindowedOrder

Plan = Generator[list[Run], None, None]
Opener = Callable[[tuple[int, ...], Event], MappedSplit]  # of shards by number; ends early once the event is set


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Which draws, and which part of each a rank takes."""

    numbers: range
    batch_size: int  # of the global batch
    own: slice  # of the global batch
    seed: int
    flip: bool

    @property
    def end(self) -> int:
        """The place of the endless stream at which the last draw ends."""
        return (self.numbers[-1] + 1) * self.batch_size if self.numbers else 0

    def start(self, draw: int) -> int:
        """The place of the endless stream at which the rank's part of a draw begins."""
        return draw * self.batch_size + self.own.start

    @property
    def share(self) -> int:
        return self.own.stop - self.own.start

    def flips(self, draw: int) -> Bool[ndarray, " share"]:
        return flips(self.batch_size, self.seed, draw, share=0.5 if self.flip else 0.0)[self.own]


def whole_plan(draws: Draws, split: MappedSplit) -> Plan:
    """Every epoch permutes all pairs of the split."""
    at = np.arange(draws.share)
    for draw in draws.numbers:
        pairs = epoch_pairs(split.pair_count, draws.seed, draws.start(draw) + at)
        yield [Run(lambda: split, at, pairs, pairs, draws.flips(draw))]


def windowed_plan(draws: Draws, order: WindowedOrder, index: SplitIndex, opener: Opener) -> Plan:
    """Every epoch goes through windows of shards; the shards of two are held: of the one in use, and of the next."""
    if not draws.numbers:
        return
    opening = _Opening(order, opener, last=order.turn(draws.end - 1))
    places = lru_cache(maxsize=2)(index.places)
    try:
        for draw in draws.numbers:
            start, flips = draws.start(draw), draws.flips(draw)
            runs = []
            for part, turn, shards, pairs in order.stretches(start, start + draws.share):
                at = np.arange(part.start, part.stop)
                runs.append(Run(opening.begun(turn).result, at, pairs, places(shards)[pairs], flips[part]))
            yield runs
    except GeneratorExit:
        opening.stop()
        raise
    finally:
        opening.end()


class _Opening:
    """Opens the shards of turns on one thread: a turn's and, ahead of time, those of the turn that follows it."""

    def __init__(self, order: WindowedOrder, opener: Opener, *, last: Turn) -> None:
        self._order, self._opener, self._last = order, opener, last
        self._stop, self._opened = Event(), dict[Turn, Future[MappedSplit]]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posegen-windows")

    def begun(self, turn: Turn) -> Future[MappedSplit]:
        """The shards of a turn that is now in use. Those before it are let go by who still reads them."""
        held = [turn, self._order.after(turn)] if turn < self._last else [turn]
        self._opened = {each: self._opened.get(each) or self._submitted(each) for each in held}
        return self._opened[turn]

    def _submitted(self, turn: Turn) -> Future[MappedSplit]:
        return self._thread.submit(self._opener, self._order.shards_of(turn), self._stop)

    def stop(self) -> None:
        """Nothing more is fetched, but for the files that are on their way."""
        self._stop.set()

    def end(self) -> None:
        """Waits for what was begun."""
        self._thread.shutdown()
