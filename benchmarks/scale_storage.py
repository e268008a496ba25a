"""Shards that are really made and read, and Ray's share of it."""

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from loader import COLUMNS
from measuring import Cost, bytes_in, in_child, mapped, measured, print_growth, slope
from photos import Photos
from scale_metadata import made_up_listing

from posegen.data.listing import Source
from posegen.data.loading.dataset import Shards, training_batches
from posegen.data.shards import preparing as making
from posegen.data.shards.making import Work, made_from, make_shard, plan_works
from posegen.data.shards.manifest import PAIRS, Manifest, ShardSummary, read_arrow, write_arrow
from posegen.data.shards.out_of_core import ShardCache, window_bytes
from posegen.data.shards.preparing import Progress, ShardSettings, write_shards
from posegen.storage.store import Store, cache_folder

SIZE = (128, 64)
SHARDS = 24  # at least, of a small data set; a larger one has the usual 2,000 images in each
BATCH = 64
FIRST = 10  # batches that are not counted


def start_ray(cpus: int) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=300 * 2**20, log_to_driver=False
    )


def tasks(shards: Sequence[int], images: int, cpus: int) -> None:
    """Prints the driver's cost of running so many empty works."""
    print_growth("shard", {count: in_child(_tasks, count, images, cpus) for count in shards})


def _tasks(shards: int, images: int, cpus: int) -> dict[str, Cost]:
    entries = tuple(made_up_listing(images).entries)
    works = [Work("train", number, entries) for number in range(shards)]
    start_ray(cpus)
    begin = time.perf_counter()
    _, cost = measured(lambda: sum(1 for _ in making._made(works, _nothing)))
    wall = time.perf_counter() - begin
    print(f"{shards:,} tasks: {wall:.1f} s by the clock, {wall / shards * 1e3:.1f} ms a task", flush=True)
    ray.shutdown()
    return {"tasks, the driver's part": cost, "tasks, by the clock": Cost(wall, wall, 0, 0)}


def _nothing(work: Work) -> ShardSummary:
    return ShardSummary(
        made_from={},
        split=work.split,
        number=work.number,
        images=0,
        rows=0,
        groups=0,
        pairs=0,
        order=[],
        bytes=[0, 0],
        person_masks=0,
        azimuths=0,
        notes={},
        rejects=[],
    )


def stored(images: Sequence[int], cpus: int, seconds: float) -> None:
    """Makes data sets of these sizes and reads them, and prints a line of amounts for each and the slopes."""
    found = {}
    for count in images:
        found[count] = in_child(_stored, count, cpus, seconds, count == max(images))
        print(f"{count:,} images: " + ", ".join(f"{k} {v:,.4g}" for k, v in found[count].items()), flush=True)
    shared = [name for name in found[min(images)] if all(name in each for each in found.values())]
    for name in shared:
        print(f"slope of {name}: {slope(images, [found[count][name] for count in images]):.2f}")


def _stored(images: int, cpus: int, seconds: float, through_cache: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POSEGEN_CACHE"] = str(Path(folder, "cache"))
        found = _made(Path(folder), images, cpus) | _opened(Path(folder))
        found |= _read(Shards(Path(folder, "shards")), None, seconds, "")
        if through_cache:
            found |= _bounded(Path(folder), seconds)
    return found


def _made(folder: Path, images: int, cpus: int) -> dict[str, float]:
    source = Photos(folder / "photos", images, SIZE)
    listing = source.listing()
    settings = ShardSettings(size=SIZE, images_per_shard=min(2000, images // SHARDS))
    times: list[tuple[float, int]] = []

    def progress(_: str, done: int, __: int) -> None:
        times.append((time.perf_counter(), done))

    if cpus:
        start_ray(cpus)
        store = Store.of(folder)
        manifest, cost = measured(
            lambda: write_shards(source, store, settings, listing=listing, fingerprint="benchmark", progress=progress)
        )
        ray.shutdown()
    else:
        manifest, cost = measured(lambda: made_here(folder, source, settings, progress))
    (begin, _), (first, skipped), (end, done) = times[0], times[1], times[-1]
    shards = manifest.shards
    return {
        "seconds in all": end - begin,
        "images/s after the first shard": (done - skipped) / (end - first),
        "driver's processor time": cost.processor,
        "driver's peak memory": cost.peak,
        "bytes on disk": bytes_in(folder / "shards"),
        "bytes of pairs": sum(shard.pairs_bytes for shard in shards),
        "bytes an image": bytes_in(folder / "shards") / images,
        "training pairs": manifest.counts["train"]["pairs"],
        "shards": len(shards),
    }


def made_here(folder: Path, source: Source, settings: ShardSettings, progress: Progress) -> Manifest:
    """Complete shards, one after the other in this process; the manifest."""
    place = folder / making.FOLDER
    place.mkdir(parents=True)
    listing = source.listing()
    works, rejects = plan_works(listing, settings.images_per_shard)
    record = made_from(listing, settings, fingerprint="benchmark")
    summaries, done = [], 0
    progress("images", 0, len(listing.entries))
    for work in works:
        summaries.append(make_shard(work, source, place, settings, record))
        done += len(work.entries)
        progress("images", done, len(listing.entries))
    return making._conclude(Store.of(folder), source.name, record, rejects, summaries)


def _opened(folder: Path) -> dict[str, float]:
    shards, before = Shards(folder / "shards"), mapped()
    _, cost = measured(lambda: shards.split("train"))
    return {
        "peak memory of the mapped split": cost.peak,
        "kept memory of the mapped split": cost.kept,
        "processor time to map it": cost.processor,
        "maps": mapped() - before,
    }


def _read(shards: Shards, window: int | None, seconds: float, how: str) -> dict[str, float]:
    """Pairs a second by the clock and of one core; each pair is two images."""
    batches = training_batches(
        shards, columns=COLUMNS, batch_size=BATCH, seed=0, draws=range(10**9), flip=True, window=window
    )
    _, first = measured(lambda: [next(batches) for _ in range(FIRST)])
    begin, worked, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < begin + seconds:
        count += len(next(batches)["pair"])
    wall, processor = time.perf_counter() - begin, time.process_time() - worked
    batches.close()
    return {
        f"{how}pairs/s": count / wall,
        f"{how}pairs in a second of one core": count / processor,
        f"{how}processor time of the first batches": first.processor,
        f"{how}memory of the first batches": first.peak,
    }


def _bounded(folder: Path, seconds: float) -> dict[str, float]:
    """The same through a cache of a fifth of the training shards, with the disk that it really takes."""
    training = sum(s.total_bytes for s in Shards(folder / "shards").manifest.shards if s.split == "train")
    cache = ShardCache(Store.of(folder), limit=training // 5)
    shards = Shards(folder / "shards", cache)
    with disk_used() as used:
        found = _read(shards, window_bytes(shards.manifest, cache.limit), 2 * seconds, "windows: ")
    return found | {
        "limit of the cache": cache.limit or 0,
        "most in the cache's folder": max(used.files),
        "most with what is mapped and removed": max(used.all),
    }


def most_maps() -> None:
    """Prints how many maps there was room for, and what the next one said."""
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        numbers = pa.array(range(5000))
        columns = {field.name: numbers.cast(field.type) for field in PAIRS}
        write_arrow(Path(folder, "pairs.arrow"), PAIRS, columns)
        try:
            while True:
                kept.append(read_arrow(Path(folder, "pairs.arrow")))
        except ValueError as error:
            count, told = len(kept), str(error)
            kept.clear()
    print(f"{count:,} maps, then: {told}")


class _Used:
    """Bytes seen: files of the cache, and these together with removed ones that this process still maps."""

    def __init__(self) -> None:
        self.files: list[int] = [0]
        self.all: list[int] = [0]

    def look(self) -> None:
        files = bytes_in(cache_folder() / "shards", ".arrow")
        self.files.append(files)
        self.all.append(files + sum(_removed(Path("/proc/self/maps").read_text().splitlines())))


def _removed(maps: Iterable[str]) -> Iterator[int]:
    for line in maps:
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) .*\.arrow \(deleted\)$", line):
            yield int(found[2], 16) - int(found[1], 16)


@contextmanager
def disk_used() -> Iterator[Any]:
    """Looks ten times a second."""
    used, ended = _Used(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            used.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield used
    finally:
        ended.set()
        watcher.join()
