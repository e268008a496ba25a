"""Speed of the loader: `python benchmarks/loader.py --height 256 --width 256 --pictures 2000`.

Makes shards of made-up photographs in a temporary folder, then reads training batches with the columns that VDG trains
on, and prints pairs/s for numbers of decoding threads.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cyclopts
import ray
from photos import Photos

from posegen.data.loader import Shards, training_batches
from posegen.data.shards import ShardSettings, write_shards
from posegen.storage import Store

COLUMNS = ("source_image", "target_image", "source_joints", "target_joints", "target_pose_mask")


def main(
    pictures: int = 4000,
    height: int = 128,
    width: int = 64,
    batch_size: int = 64,
    seconds: float = 4.0,
    threads: Sequence[int] = (1, 2),
    flip: bool = True,
) -> None:
    """Read for some seconds with each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        _make_shards(Path(folder), pictures, (height, width))
        shards = Shards(Path(folder, "shards"))
        for count in threads:
            rate, by_processor = pairs_per_second(shards, batch_size, seconds, count, flip)
            print(
                f"{height}x{width}, batches of {batch_size}, {count} threads: {rate:,.0f} pairs/s, "
                f"{by_processor:,.0f} in a second of one core"
            )


def _make_shards(folder: Path, pictures: int, size: tuple[int, int]) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    source = Photos(folder / "photos", pictures, size)
    write_shards(
        source,
        Store.of(folder),
        ShardSettings(size=size),
        listing=source.listing(),
        fingerprint="benchmark",
        progress=lambda *_: None,
    )
    ray.shutdown()


def pairs_per_second(shards: Shards, batch_size: int, seconds: float, threads: int, flip: bool) -> tuple[float, float]:
    """Pairs a second by the clock, and by the processor time of all threads, which other programs disturb less.

    The first ten batches are not counted.
    """
    batches = training_batches(
        shards, columns=COLUMNS, batch_size=batch_size, seed=0, draws=range(10**9), flip=flip, threads=threads
    )
    for _ in range(10):
        next(batches)
    begin, worked, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < begin + seconds:
        count += len(next(batches)["pair"])
    rates = count / (time.perf_counter() - begin), count / (time.process_time() - worked)
    batches.close()
    return rates


if __name__ == "__main__":
    cyclopts.run(main)
