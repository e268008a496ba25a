"""Shards to batches: memory-mapped files, pairs drawn by (seed, draw), images decoded in threads.

A raw batch is what is copied to the device: "pair" int64 (b,), places in the split's list of pairs, and for the roles
source and target "_image" uint8 (b, H, W, 3) RGB, "_joints" float32 (b, 18, 2) in pixels, "_visible" bool (b, 18),
"_pose_mask" and "_person_mask" uint8 (b, H, W) of 0 and 1; and "rotation" float32 (b,), degrees in (-180, 180].
"""

from collections import deque
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from torch import Tensor

from posegen.data.loading.collate import Filling, wanted_columns
from posegen.data.loading.sampler import Draws, Plan, whole_plan, windowed_plan
from posegen.data.shards.mapping import Shards
from posegen.data.shards.out_of_core import WindowedOrder

__all__ = ["Shards", "listed_batches", "share_of", "training_batches"]

_AHEAD = 2  # batches being decoded while one is used: enough to hide uneven ones, little enough to hold in memory


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
    """Raw batches of training pairs, one for each number in `draws`: this rank's slice (`share_of`) of a global batch.

    Draw d takes the places d * batch_size .. (d + 1) * batch_size - 1 of an endless stream of permutations, one an
    epoch. Pairs and flips depend on (seed, d) and the place in the global batch only, so any number of workers sees the
    same pairs in the same order, and a run that goes on at d sees what an uninterrupted one would have seen
    (MosaicML Streaming's elastic determinism). With `flip`, half of the pairs are mirrored, both images together and
    left and right joints exchanged: our choice, where PG2 stores mirrored images with poses of their own.

    With `window`, in bytes (`windows.window_bytes`), the order keeps to windows of shards, and those of two windows at
    most are mapped; without, all are.

    `columns` names what is read of `posegen.batch.COLUMNS`; joints and visible always come, other names are not the
    loader's. Closing the iterator ends its threads. Raises ValueError for a batch that has not a pair for each rank,
    for columns that the data do not have, and where there are no training pairs.
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
    filling = _filling(shards, columns, pin_memory)
    drawn = Draws(
        numbers=draws, batch_size=batch_size, own=share_of(batch_size, rank, world_size), seed=seed, flip=flip
    )
    if window is None:
        return _batches(filling, whole_plan(drawn, shards.split("train")), threads)
    index = shards.index("train")
    order = WindowedOrder([(shard.total_bytes, shard.pairs) for shard in index.shards], window, seed)
    return _batches(filling, windowed_plan(drawn, order, index, partial(shards.opened, "train")), threads)


def share_of(batch_size: int, rank: int, world_size: int) -> slice:
    """The places of a global batch that a rank takes: as even as can be, the first ranks one more where it must be."""
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
    """Raw batches of the pairs named by their places in the split's list, in that order, never mirrored.

    The last batch may be smaller. Raises ValueError for places that do not exist and for columns as above.
    """
    places = shards.checked_pairs(split, pairs)
    parts = (places[start : start + batch_size] for start in range(0, len(places), batch_size))
    return _batches(_filling(shards, columns, pin_memory), (shards.runs(split, part) for part in parts), threads)


def _filling(shards: Shards, columns: Collection[str], pin_memory: bool) -> Filling:
    wanted = wanted_columns(columns)
    lacking = wanted - shards.columns
    if lacking:
        raise ValueError(
            f"the shards in {shards.folder} have no {', '.join(sorted(lacking))}; they have "
            f"{', '.join(sorted(shards.columns))}."
        )
    return Filling(shards.size, wanted, pin_memory)


def _batches(filling: Filling, plan: Plan, threads: int) -> Generator[dict[str, Tensor], None, None]:
    """Filled batches in the order of the plan, each split over the threads, the next ones filled ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="posegen-loader")
    waiting: deque[tuple[dict[str, Tensor], list[Future[None]]]] = deque()
    try:
        for runs in plan:
            count = sum(len(run.at) for run in runs)
            batch, step = filling.empty(count), -(-count // threads)
            parts = [part for run in runs for part in run.cut(step)]
            waiting.append((batch, [pool.submit(filling.fill, batch, part) for part in parts]))
            if len(waiting) > _AHEAD:
                yield _filled(*waiting.popleft())
        while waiting:
            yield _filled(*waiting.popleft())
    finally:
        plan.close()
        pool.shutdown(cancel_futures=True)


def _filled(batch: dict[str, Tensor], parts: list[Future[None]]) -> dict[str, Tensor]:
    for part in parts:
        part.result()
    return batch
