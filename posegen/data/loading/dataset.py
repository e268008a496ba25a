"""Shards to batches: memory-mapped files, pairs drawn by (seed, draw), images decoded in threads.

A raw batch is what is copied to the device: "pair" int64 (b,), indices into the split's list of pairs, and for the
roles source and target "_image" uint8 (b, H, W, 3) RGB, "_joints" float32 (b, 18, 2) in pixels, "_visible" bool
(b, 18), "_pose_mask" and "_person_mask" uint8 (b, H, W) of 0 and 1; and "rotation" float32 (b,), degrees in
(-180, 180].
"""

from collections import deque
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from torch import Tensor

from posegen.data.loading.collate import Collate, wanted_columns
from posegen.data.loading.sampler import Sampler
from posegen.data.shards.mapping import PairSlice, Shards
from posegen.data.shards.out_of_core import WindowedOrder

__all__ = ["Shards", "listed_batches", "share_of", "training_batches"]

PREFETCHED = 2  # batches being decoded while one is used: enough to hide uneven ones, little enough to hold in memory


def training_batches(
    shards: Shards,
    *,
    columns: Collection[str],
    batch_size: int,
    seed: int,
    draws: range,
    rank: int = 0,
    world_size: int = 1,
    flip: bool,
    window: int | None = None,
    threads: int = 2,
    pin_memory: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield raw batches of training pairs, one for each number in `draws`.

    Draw d takes the positions d * batch_size .. (d + 1) * batch_size - 1 of an endless stream of permutations, one an
    epoch. Pairs and flips depend on (seed, d) and the index in the global batch only, so any number of workers sees
    the same pairs in the same order, and a run resumed at d sees the same batches as an uninterrupted one
    (MosaicML Streaming's elastic determinism). Closing the iterator ends its threads.

    Args:
        shards: Complete shards.
        columns: Names of `posegen.batch.COLUMNS` to read. Joints and visible are always read, other names ignored.
        batch_size: Pairs of a global batch.
        seed: Decides order and flips.
        draws: Numbers of the batches.
        rank: The worker, which gets its share (`share_of`) of each global batch.
        world_size: Number of workers.
        flip: Mirror half of the pairs, both images together and left and right joints exchanged: our choice, where PG2
            stores mirrored images with poses of their own.
        window: Bytes of a window of shards (`out_of_core.window_bytes`) that the order keeps to, so that those of two
            windows at most are mapped. By default, all shards are.
        threads: Threads that decode images.
        pin_memory: Whether the batches lie in pinned memory.

    Raises:
        ValueError: A batch has fewer pairs than ranks, the data lack a column, or there are no training pairs.
    """
    if not 0 <= rank < world_size <= batch_size:
        raise ValueError(
            f"a global batch of {batch_size} pairs cannot be shared by {world_size} workers (rank {rank}): each takes "
            "at least one of them."
        )
    if seed < 0:
        raise ValueError(f"the seed is {seed}, and must be 0 or more.")
    if not shards.pair_count("train"):
        raise ValueError(f"{shards.folder} has no training pairs.")
    collate, share = _collate(shards, columns, pin_memory), share_of(batch_size, rank, world_size)
    sampler = Sampler(draws=draws, batch_size=batch_size, share=share, seed=seed, flip=flip)
    if window is None:
        return _batches(collate, sampler.permuted(shards.split("train")), threads)
    index = shards.index("train")
    order = WindowedOrder([(shard.total_bytes, shard.pairs) for shard in index.shards], window, seed)
    return _batches(collate, sampler.windowed(order, index, partial(shards.opened, "train")), threads)


def share_of(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the slice of a global batch for a rank: as even as possible, the first ranks have one more if needed."""
    each, more = divmod(batch_size, world_size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def listed_batches(
    shards: Shards,
    split: str,
    *,
    columns: Collection[str],
    batch_size: int,
    pairs: Sequence[int],
    threads: int = 2,
    pin_memory: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield raw batches of pairs, given by their indices in the split's list, in that order, never mirrored.

    Args:
        shards: Complete shards.
        split: The split of the pairs.
        columns: As of `training_batches`.
        batch_size: Pairs of a batch; the last one may be smaller.
        pairs: Indices in the split's list.
        threads: As of `training_batches`.
        pin_memory: As of `training_batches`.

    Raises:
        ValueError: An index does not exist, or the data lack a column.
    """
    indices = shards.checked_pairs(split, pairs)
    parts = (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))
    slices = (shards.pair_slices(split, part) for part in parts)
    return _batches(_collate(shards, columns, pin_memory), slices, threads)


def _collate(shards: Shards, columns: Collection[str], pin_memory: bool) -> Collate:
    wanted = wanted_columns(columns)
    lacking = wanted - shards.columns
    if lacking:
        raise ValueError(
            f"the shards in {shards.folder} have no {', '.join(sorted(lacking))}; they have "
            f"{', '.join(sorted(shards.columns))}."
        )
    return Collate(shards.size, wanted, pin_memory)


def _batches(
    collate: Collate, sampled: Generator[list[PairSlice], None, None], threads: int
) -> Generator[dict[str, Tensor], None, None]:
    """Yield collated batches in order, each split over the threads, with the next ones prefetched."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="posegen-loader")
    waiting: deque[tuple[dict[str, Tensor], list[Future[None]]]] = deque()
    try:
        for slices in sampled:
            count = sum(len(part.at) for part in slices)
            batch, size = collate.empty(count), -(-count // threads)
            parts = [smaller for part in slices for smaller in part.cut(size)]
            waiting.append((batch, [pool.submit(collate.fill, batch, part) for part in parts]))
            if len(waiting) > PREFETCHED:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        sampled.close()
        pool.shutdown(cancel_futures=True)


def _finished(batch: dict[str, Tensor], parts: list[Future[None]]) -> dict[str, Tensor]:
    for part in parts:
        part.result()
    return batch
