"""Speed of the loader: `python benchmarks/loader.py --height 256 --width 256 --images 2000`.

Makes shards of made-up photographs in a temporary folder, then reads training batches with the columns that VDG trains
on, and prints pairs/s for numbers of decoding threads: of shards mapped in place, of the same in windows of a quarter
of their bytes, and of such windows through a cache that holds half of them. The three take turns, so that what else
runs on the machine disturbs all of them.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cyclopts
import ray
from photos import Photos

from posegen.data.loading.dataset import Shards, training_batches
from posegen.data.shards.out_of_core import ShardCache, window_bytes
from posegen.data.shards.preparing import ShardSettings, write_shards
from posegen.storage.store import Store

COLUMNS = ("source_image", "target_image", "source_joints", "target_joints", "target_pose_mask")
SHARDS = 24  # at least: groups are kept together
TURNS = 3


def main(
    images: int = 4000,
    height: int = 128,
    width: int = 64,
    batch_size: int = 64,
    seconds: float = 4.0,
    threads: Sequence[int] = (1, 2),
    flip: bool = True,
) -> None:
    """Read each case for some seconds with each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POSEGEN_CACHE"] = str(Path(folder, "cache"))
        _make_shards(Path(folder), images, (height, width))
        cases = _cases(Path(folder))
        for count in threads:
            rates = {name: [0.0, 0.0] for name in cases}
            for name in [*cases] * TURNS:
                measured = pairs_per_second(*cases[name], batch_size, seconds / TURNS, count, flip)
                rates[name] = [total + rate / TURNS for total, rate in zip(rates[name], measured, strict=True)]
            for name, (rate, by_processor) in rates.items():
                print(
                    f"{height}x{width}, batches of {batch_size}, {count} threads, {name}: {rate:,.0f} pairs/s, "
                    f"{by_processor:,.0f} in a second of one core ({by_processor / rates['in place'][1]:.3f})"
                )


def _cases(folder: Path) -> dict[str, tuple[Shards, int | None]]:
    """Shards and windows in bytes, by name."""
    in_place = Shards(folder / "shards")
    total = sum(shard.total_bytes for shard in in_place.manifest.shards)
    cache = ShardCache(Store.of(folder), limit=total // 2)
    window = window_bytes(in_place.manifest, cache.limit)
    print(f"{len(in_place.manifest.shards)} shards of {total / 1e6:,.1f} MB, windows of {(window or 0) / 1e6:,.1f} MB")
    return {
        "in place": (in_place, None),
        "windows": (in_place, window),
        "cache and windows": (Shards(folder / "shards", cache), window),
    }


def _make_shards(folder: Path, images: int, size: tuple[int, int]) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    source = Photos(folder / "photos", images, size)
    write_shards(
        source,
        Store.of(folder),
        ShardSettings(size=size, images_per_shard=images // SHARDS),
        listing=source.listing(),
        fingerprint="benchmark",
        progress=lambda *_: None,
    )
    ray.shutdown()


def pairs_per_second(
    shards: Shards, window: int | None, batch_size: int, seconds: float, threads: int, flip: bool
) -> tuple[float, float]:
    """Pairs a second by the clock, and by the processor time of all threads, which other programs disturb less.

    The first ten batches are not counted.
    """
    batches = training_batches(
        shards,
        columns=COLUMNS,
        batch_size=batch_size,
        seed=0,
        draws=range(10**9),
        flip=flip,
        window=window,
        threads=threads,
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
