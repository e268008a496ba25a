"""Speed and memory of making shards: `python benchmarks/preprocessing.py --images 40000`.

Prints images/s over everything that follows the first finished shard, bytes an image, and the highest memory of the
processes that Ray starts (their proportional set size). Run it at ten times the images to see that memory stays.
"""

import os
import tempfile
import threading
import time
from pathlib import Path

import cyclopts
import ray
from photos import DISTINCT, Photos

from posegen.data.shards.preparing import ShardSettings, write_shards
from posegen.storage.store import Store


def main(images: int = 20_000, height: int = 128, width: int = 64, cpus: int = 2, per_shard: int = 2000) -> None:
    """Make shards of made-up photographs in a temporary folder."""
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Photos(Path(folder, "photos"), images, (height, width))
        settings = ShardSettings(size=(height, width), images_per_shard=per_shard)
        times: list[tuple[float, int]] = []
        with PeakMemory() as memory:
            write_shards(
                source,
                Store.of(folder),
                settings,
                listing=source.listing(),
                fingerprint="benchmark",
                progress=lambda _, done, __: times.append((time.perf_counter(), done)),
            )
        jpegs = sum(path.stat().st_size for path in source.folder.iterdir()) / DISTINCT
        stored = sum(path.stat().st_size for path in Path(folder, "shards").iterdir()) / images
    ray.shutdown()
    (begin, _), (first, skipped), (end, done) = times[0], times[1], times[-1]
    print(f"{images:,} images of {height}x{width} on {cpus} CPUs: {done / (end - begin):,.0f} images/s in all")
    if done > skipped:
        print(f"steady, after the first shard: {(done - skipped) / (end - first):,.0f} images/s")
    print(f"JPEG {jpegs:,.0f} bytes, stored {stored:,.0f} bytes an image: {stored / jpegs:.2f}")
    print(f"highest memory of all of Ray's processes: {memory.highest / 2**20:,.0f} MiB")


class PeakMemory:
    """The highest proportional set size of all descendants of this process, looked up twice a second."""

    def __enter__(self) -> "PeakMemory":
        self.highest = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.highest = max(self.highest, sum(map(_memory, _descendants())))


def _descendants() -> list[Path]:
    parents: dict[str, str] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[status.parent.name] = status.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    own = str(os.getpid())
    chosen = {own}
    while added := {child for child, parent in parents.items() if parent in chosen and child not in chosen}:
        chosen |= added
    return [Path("/proc", process) for process in chosen - {own}]


def _memory(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    cyclopts.run(main)
