"""Random numbers of the training data, as functions of the seed and of their purpose."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

PAIRS_OF_EPOCH, FLIPS, SHARDS_OF_EPOCH, PAIRS_OF_WINDOW = range(4)  # independent random streams of one seed


def random_stream(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on its arguments alone, by numpy's counter-based Philox."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, *numbers))))


@lru_cache(maxsize=2)
def epoch_order(pair_count: int, seed: int, epoch: int) -> Int[ndarray, " pair_count"]:
    """Return the permutation of all pairs in an epoch."""
    return random_stream(seed, PAIRS_OF_EPOCH, epoch).permutation(pair_count)


def epoch_pairs(pair_count: int, seed: int, positions: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Return the pairs at positions in the endless stream of permutations, one an epoch."""
    epochs = positions // pair_count
    pairs = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        pairs[here] = epoch_order(pair_count, seed, int(epoch))[positions[here] % pair_count]
    return pairs


def flips(batch_size: int, seed: int, draw: int, *, share: float) -> Bool[ndarray, " batch_size"]:
    """Return which pairs of a global batch are mirrored, each with probability `share`."""
    return random_stream(seed, FLIPS, draw).random(batch_size) < share
