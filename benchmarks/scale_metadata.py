"""The driver's part of a data set, of names and joints alone, and what is known of its shards without opening one."""

import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Cost, measured

from posegen.catalog import system
from posegen.data.listing import Entry, Listing, Reject, fingerprint
from posegen.data.random_streams import epoch_order, epoch_pairs
from posegen.data.shards import preparing as making
from posegen.data.shards.making import ShardSettings, Work, made_from, plan_works
from posegen.data.shards.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    ShardSummary,
    file_sizes,
    manifest_alone,
    read_manifest,
    shard_stem,
)
from posegen.data.shards.mapping import Shards
from posegen.data.shards.out_of_core import ShardCache, WindowedOrder
from posegen.data.sources.folder import Folder
from posegen.data.sources.pairs import with_validation
from posegen.data.sources.synthetic import SyntheticPeople
from posegen.runs.plan import Plan
from posegen.storage.files import write_json
from posegen.storage.store import Store

GROUP = 20  # images of a person
SETTINGS = ShardSettings(size=(128, 64))
IMAGE_BYTES, PAIR_BYTES = 3300, 16  # of a made-up shard, about what real ones take
BATCH = 64
LIMIT = 10**9  # bytes of the cache that a made-up manifest is opened with


class Parts:
    """Named pieces of work, one after the other, with what each took."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        result, self.costs[name] = measured(work)
        return result


def made_up_listing(images: int) -> Listing:
    """Entries as a reader makes them: each with joints of its own, names and paths of usual length."""
    return Listing(list(_entries(images)), "made up")


def _entries(images: int) -> Iterator[Entry]:
    joints, visible = np.random.default_rng(0).random((64, 18, 2), np.float32) * 64, np.ones(18, bool)
    for number in range(images):
        person = f"{number // GROUP:07d}"
        name = f"{person}_c{number % 6}s1_{number:09d}_00.jpg"
        split = "test" if number // GROUP % 10 == 9 else "train"
        path = f"/data/images/bounding_box_{split}/{name}"
        yield Entry(name, split, person, person, f"c{number % 6}", path, joints[number % 64].copy(), visible.copy())


def metadata(images: int) -> dict[str, Cost]:
    """From entries to the manifest, without an image."""
    part = Parts()
    listing = part("listing of entries", lambda: made_up_listing(images))
    sizes = {entry.path: 2500 for entry in listing.entries}
    part("fingerprint of the listing", lambda: fingerprint("made-up", listing, sizes))
    part("a validation split", lambda: with_validation(listing, 0.1))
    works, _ = part("plan_works", lambda: plan_works(listing, SETTINGS.images_per_shard))
    part("pickles of all works", lambda: [pickle.dumps(work) for work in works])
    print(f"{images:,} images: the first work takes {len(pickle.dumps(works[0])):,} bytes pickled", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.of(folder)
        place = store.folder / making.FOLDER
        place.mkdir()
        summaries = [_summary(work) for work in works]
        for work, summary in zip(works, summaries, strict=True):
            write_json(place / f"{work.stem}.json", summary.to_json())
        sizes = file_sizes(summary.entry for summary in summaries)
        part("summaries read again", lambda: making._finished(place, works, _made_from(), sizes))
        part("rejects and manifest", lambda: making._conclude(store, "made-up", _made_from(), [], summaries))
        part("manifest read", lambda: read_manifest(place, sizes=sizes))
    return part.costs


def _made_from() -> dict:
    return made_from(Listing([], "0" * 64), SETTINGS, fingerprint="0123456789abcdef")


def _summary(work: Work) -> ShardSummary:
    """As of a shard whose every hundredth image was rejected."""
    count = len(work.entries)
    return ShardSummary(
        made_from=_made_from(),
        split=work.split,
        number=work.number,
        images=count,
        rows=count,
        groups=count // GROUP,
        pairs=count * (GROUP - 1),
        order=[0, count * (GROUP - 1) - 1],
        bytes=[count * IMAGE_BYTES, count * (GROUP - 1) * PAIR_BYTES],
        person_masks=0,
        azimuths=0,
        notes={},
        rejects=[Reject(entry.name, work.split, "no joint is visible") for entry in work.entries[::100]],
    )


def reader(images: int) -> dict[str, Cost]:
    """The listing of a folder of one's own images (empty files, which are not opened) with pose-gan's annotation."""
    part = Parts()
    with tempfile.TemporaryDirectory() as folder:
        lines = ["name:keypoints_y:keypoints_x"]
        for number in range(images):
            name = f"p{number // GROUP}_{number}.jpg"
            Path(folder, name).touch()
            lines.append(f"{name}: {list(range(18))}: {list(range(18))}")
        Path(folder, "annotation.csv").write_text("\n".join(lines) + "\n")
        part("listing of a folder", lambda: Folder(root=Path(folder)).listing())
    return part.costs


def made_up_manifest(shards: int) -> Manifest:
    """Of as many training shards of 2,000 images, nearly, and one of each other split."""
    rows = SETTINGS.images_per_shard
    pairs = rows * (GROUP - 1)
    entries = [
        ShardEntry(
            split=split,
            file=f"{shard_stem(split, number)}.arrow",
            pairs_file=f"{shard_stem(split, number)}.pairs.arrow",
            bytes=rows * IMAGE_BYTES + number % 1000,
            pairs_bytes=pairs * PAIR_BYTES,
            rows=rows,
            pairs=pairs,
            order=[number * pairs, (number + 1) * pairs - 1],
        )
        for split, count in (("test", 1), ("train", shards))
        for number in range(count)
    ]
    return Manifest(**_made_from(), columns=[], counts={}, rejects={}, notes={}, shards=entries)


def manifest(shards: int) -> dict[str, Cost]:
    """What opening a data set of so many shards takes, and the order of an epoch in windows."""
    part, content = Parts(), made_up_manifest(shards)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, making.FOLDER)
        part("manifest written", lambda: write_json(place / MANIFEST, content.to_json()))
        part("manifest read", lambda: manifest_alone(place))
        cache = ShardCache(Store.of(folder), limit=LIMIT)
        opened = part("Shards opened through a cache", lambda: Shards(place, cache))
        index = part("index of the training split", lambda: opened.index("train"))
        order = WindowedOrder([(s.total_bytes, s.pairs) for s in index.shards], LIMIT // 2, 0)
        part("windows of an epoch", lambda: order.window_at(0))
        start = index.pair_count // 2
        part("first draw in a window", lambda: list(order.slices(start, start + BATCH)))
        part(
            "every other draw, in 1,000",
            lambda: [list(order.slices(start + n, start + n + 64)) for n in range(1000)],
        )
        places = np.random.default_rng(0).integers(0, index.pair_count, BATCH)
        part("pairs found in shards, 1,000 draws", lambda: [index.pairs(places) for _ in range(1000)])
    return part.costs


def listed_files(shards: int) -> dict[str, Cost]:
    """`Plan.steps` on a folder with the files of so many shards; these are holes, for only their sizes are read."""
    part, content = Parts(), made_up_manifest(shards)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, making.FOLDER)
        place.mkdir()
        for name, size in file_sizes(content.shards).items():
            with open(place / name, "wb") as file:
                file.truncate(size)
            if not name.endswith(".pairs.arrow"):
                (place / f"{name.removesuffix('.arrow')}.json").touch()
        write_json(place / MANIFEST, content.to_json())
        plan = Plan(
            store=Store.of(folder),
            system=system("vdg", "synthetic"),
            dataset="made-up",
            source=SyntheticPeople(),
            listing=Listing([], "made up"),
            shard_settings=SETTINGS,
        )
        part("Plan.steps with all files", plan.steps)
    return part.costs


def order(images: int) -> dict[str, Cost]:
    """The order of all pairs of an epoch, where no windows bound it."""
    part, pairs = Parts(), images * (GROUP - 1)
    part("permutation of an epoch's pairs", lambda: epoch_order(pairs, 0, 0))
    places = np.arange(BATCH)
    part(
        "1,000 draws from it",
        lambda: [epoch_pairs(pairs, 0, places + n * BATCH) for n in range(min(1000, pairs // BATCH))],
    )
    return part.costs
