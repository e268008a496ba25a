"""What must not grow with a data set: what is fetched, opened and sent for one step of the work."""

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from posegen.data.listing import Entry, Listing
from posegen.data.loading.dataset import Shards, training_batches
from posegen.data.shards import preparing as making
from posegen.data.shards.making import ShardSettings, plan_works
from posegen.data.shards.out_of_core import ShardCache, WindowedOrder
from posegen.data.shards.preparing import write_shards
from posegen.runs.options import open_store
from posegen.storage.store import Store, cache_folder
from tests.conftest import Blocks, shards_of

SMALL = ShardSettings(size=(64, 32), mask_radius=2, images_per_shard=4)


def listing(images: int) -> Listing:
    joints, visible = np.zeros((18, 2), np.float32), np.ones(18, bool)
    names = (f"{number:09d}.jpg" for number in range(images))
    entries = [Entry(n, "train", n[:8], n[:8], "c1", f"/data/{n}", joints.copy(), visible.copy()) for n in names]
    return Listing(entries, "made up")


def test_what_a_task_is_sent_does_not_grow_with_the_listing():
    few, many = (plan_works(listing(images), 100)[0] for images in (300, 3000))
    assert [len(few), len(many)] == [3, 30]
    assert len(pickle.dumps(few[0])) == len(pickle.dumps(many[0]))


def test_works_are_cut_at_whole_groups_and_hold_each_entry_once():
    entries = listing(1000).entries
    works, _ = plan_works(Listing(entries, "made up"), 35)
    assert [entry.name for work in works for entry in work.entries] == [entry.name for entry in entries]
    assert {len(work.entries) for work in works} == {30, 10}
    assert all(a.entries[-1].group != b.entries[0].group for a, b in pairwise(works))


def published(store: Store) -> Blocks:
    """Blocks with one person a shard, in a run at a URI."""
    source = Blocks(people=9)
    shards_of(source, store.folder / making.FOLDER, images_per_shard=4)
    store.publish(making.FOLDER, last="manifest.json")
    return source


def test_no_command_fetches_the_summaries_of_shards(s3_server, two_nodes):
    store = Store.of("s3://runs/summaries")
    published(store)
    assert any(name.startswith("train-") and name.endswith(".json") for name in store.sizes(making.FOLDER))
    two_nodes("second")
    open_store(store.uri)
    assert {path.name for path in (store.folder / making.FOLDER).iterdir()} == {"manifest.json", "rejects.parquet"}


def test_finished_shards_are_known_by_their_manifest_alone(s3_server, two_nodes):
    store = Store.of("s3://runs/finished")
    source = published(store)
    two_nodes("second")
    manifest = write_shards(
        source,
        store,
        SMALL,
        listing=source.listing(),
        fingerprint=source.name,
        progress=lambda *_: pytest.fail("nothing is left to make"),
    )
    assert len(manifest.shards) == 9
    assert [path.name for path in (store.folder / making.FOLDER).iterdir()] == ["manifest.json"]


def copies() -> set[str]:
    return {path.name for path in (cache_folder() / "shards").rglob("*.arrow")}


def test_a_split_is_opened_and_its_pairs_found_without_a_shard(tmp_path: Path, two_nodes):
    folder = shards_of(Blocks(people=9), tmp_path / "run" / "shards", images_per_shard=4)
    shards = Shards(folder, ShardCache(Store.of(tmp_path / "run"), limit=10**6))
    numbers, pairs = shards.index("train").pairs(np.array([0, 11, 12, 71]))
    assert (numbers.tolist(), pairs.tolist()) == ([0, 0, 1, 5], [0, 11, 0, 11])
    assert (shards.image_count("train"), shards.pair_count("train"), copies()) == (24, 72, set())


def test_a_draw_fetches_its_window_and_the_next_alone(tmp_path: Path, two_nodes):
    folder = shards_of(Blocks(people=30), tmp_path / "run" / "shards", images_per_shard=4)
    shards = Shards(folder, ShardCache(Store.of(tmp_path / "run"), limit=10**6))
    index = shards.index("train")
    sizes = [(shard.total_bytes, shard.pairs) for shard in index.shards]
    window = 3 * max(size for size, _ in sizes)
    order = WindowedOrder(sizes, window, seed=0)
    first = order.window_at(0)
    batches = training_batches(
        shards, columns=["source_image"], batch_size=4, seed=0, draws=range(1000), flip=False, window=window
    )
    next(batches)
    batches.close()
    two = [index.shards[number] for turn in (first, order.after(first)) for number in order.shards_of(turn)]
    assert {shard.file for shard in two[: len(order.shards_of(first))]} <= copies()
    assert copies() <= {name for shard in two for name in (shard.file, shard.pairs_file)}
    assert len(two) < len(index.shards) / 2


def test_a_process_without_room_for_a_map_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shards_of(Blocks(), tmp_path / "shards")

    def full(path: str):
        raise OSError("Memory mapping file failed: Cannot allocate memory")

    monkeypatch.setattr(pa, "memory_map", full)
    with pytest.raises(ValueError, match=r"train-00000.arrow cannot be mapped.*--cache-gb.*images_per_shard"):
        Shards(folder).split("train")
