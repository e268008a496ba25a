"""Shards through a node's cache: the same batches, images and means as from a mapped folder, in bounded disk."""

import shutil
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch

from posegen.data.loading.dataset import Shards, listed_batches, training_batches
from posegen.data.shards.mapping import MappedSplit
from posegen.data.shards.out_of_core import ShardCache, window_bytes
from posegen.evaluation.metrics import mean_image, mean_pose
from posegen.report.panels import pairs_by_group
from posegen.storage.store import Store, cache_folder
from tests.conftest import Blocks, shards_of

ALL = {f"{role}_{kind}" for role in ("source", "target") for kind in ("image", "pose_mask", "person_mask")}
PAIRS = 72  # of training: 6 people, 4 images each, every person a shard


@dataclass(frozen=True, kw_only=True)
class MixedBlocks(Blocks):
    """Pairs are given by lists that go from person to person."""

    def listing(self):
        listing = super().listing()
        names = {split: [e.name for e in listing.entries if e.split == split] for split in ("train", "test")}
        given = {
            split: [(source, f"{source[:4]}_{(int(source[5]) + step) % 4}.png") for step in (1, 2, 3) for source in all]
            for split, all in names.items()
        }
        return replace(listing, pairs=given)


@pytest.fixture(scope="module", params=[Blocks, MixedBlocks], ids=["rule", "mixed list"])
def run(request, tmp_path_factory):
    """A run with one person a shard."""
    folder = tmp_path_factory.mktemp("run")
    shards_of(request.param(people=9), folder / "shards", images_per_shard=4)
    return folder


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(run):
    """Mapped in place."""
    return Shards(run / "shards")


def largest(shards):
    return max(shard.total_bytes for shard in shards.manifest.shards)


def through_cache(run, limit):
    cache = ShardCache.of(Store.of(run), limit=limit)
    assert cache is not None
    return Shards(run / "shards", cache)


def train(shards, draws, *, window, batch_size=8, seed=1, **options):
    return list(
        training_batches(
            shards, columns=ALL, batch_size=batch_size, seed=seed, draws=draws, flip=True, window=window, **options
        )
    )


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def cached_bytes():
    """Of the files that were there at one moment; some may be removed before they are looked at."""
    sizes = []
    for path in list((cache_folder() / "shards").glob("*/*.arrow")):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def cached_files():
    return {path.name for path in (cache_folder() / "shards").glob("*/*.arrow")}


def test_training_in_bounded_disk_equals_that_from_a_folder(run, shards):
    limit = 4 * largest(shards)
    window = window_bytes(shards.manifest, limit)
    batches = training_batches(
        through_cache(run, limit), columns=ALL, batch_size=8, seed=1, draws=range(27), flip=True, window=window
    )
    for expected, batch in zip(train(shards, range(27), window=window), batches, strict=True):
        assert_equal(batch, expected)
        assert cached_bytes() <= limit
    assert len([name for name in cached_files() if "pairs" not in name]) <= 4


def test_training_from_a_uri_equals_that_from_a_folder(run, shards, s3_server, tmp_path):
    store = Store.of(f"s3://runs/{tmp_path.name}-{run.name}")
    shutil.copytree(run / "shards", store.folder / "shards")
    store.publish("shards", last="manifest.json")
    shutil.rmtree(cache_folder())
    limit = 3 * largest(shards)
    window = window_bytes(shards.manifest, limit)
    remote = Shards(store.folder / "shards", ShardCache.of(store, limit=limit))
    assert_equal(joined(train(remote, range(12), window=window)), joined(train(shards, range(12), window=window)))
    assert cached_bytes() <= limit
    assert [path.name for path in (store.folder / "shards").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("less", [1, 10_000])
def test_an_epoch_under_any_limit_holds_every_pair_once(run, shards, less):
    total = sum(shard.total_bytes for shard in shards.manifest.shards if shard.split == "train")
    limit = total - less
    window = window_bytes(shards.manifest, limit)
    cached = through_cache(run, limit)
    for epoch in range(2):
        pairs = joined(train(cached, range(9 * epoch, 9 * epoch + 9), window=window))["pair"].tolist()
        assert sorted(pairs) == list(range(PAIRS))


def test_pairs_keep_to_windows_and_are_told_by_their_places_in_the_list(shards):
    """The pair column names what was read, also where a given list mixes the shards."""
    whole = shards.split("train")
    batch = joined(train(shards, range(9), window=2 * largest(shards)))
    sources, targets = whole.pair_rows(batch["pair"].numpy())
    plain = joined(list(listed_batches(shards, "train", columns=(), batch_size=8, pairs=batch["pair"].tolist())))
    mirrored = (batch["source_joints"] != plain["source_joints"]).flatten(1).any(dim=1)
    assert 15 < int(mirrored.sum()) < 57
    for role, rows in (("source", sources), ("target", targets)):
        assert torch.equal(batch[f"{role}_joints"][~mirrored], torch.from_numpy(whole.joints[rows])[~mirrored])
    people = [whole.group(row) for row in sources.tolist()]
    assert [len(set(people[start : start + 24])) for start in (0, 24, 48)] == [2, 2, 2]
    assert all(len(set(people[start : start + 24][:8])) == 2 for start in (0, 24, 48))  # mixed, not one after another


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_batch_of_one(run, shards, world_size):
    window = 2 * largest(shards)
    alone = train(shards, range(12), window=window)
    cached = through_cache(run, 2 * window)
    ranks = [train(cached, range(12), window=window, rank=rank, world_size=world_size) for rank in range(world_size)]
    for expected, *parts in zip(alone, *ranks, strict=True):
        assert_equal(joined(parts), expected)


def test_going_on_at_a_draw_equals_never_having_stopped(run, shards):
    window = 2 * largest(shards)
    whole = train(shards, range(20), window=window)
    rest = train(through_cache(run, 2 * window), range(11, 20), window=window)
    for expected, batch in zip(whole[11:], rest, strict=True):
        assert_equal(batch, expected)
    assert train(shards, range(20, 20), window=window) == []


@pytest.mark.parametrize("batch_size", [1, 40, 100])
def test_a_batch_may_span_windows_and_epochs(run, shards, batch_size):
    """Also more windows than are held."""
    ones = joined(train(shards, range(50), window=1, batch_size=4))["pair"]
    cached = through_cache(run, largest(shards))
    many = joined(train(cached, range(200 // batch_size), window=1, batch_size=batch_size))["pair"]
    assert torch.equal(many, ones)


def test_where_all_fit_the_order_is_that_of_the_folder(run, shards):
    cached = through_cache(run, 10**9)
    assert window_bytes(shards.manifest, 10**9) is None
    assert_equal(joined(train(cached, range(12), window=None)), joined(train(shards, range(12), window=None)))
    assert joined(train(shards, range(9), window=None))["pair"].tolist() != list(range(PAIRS))


def test_training_that_does_not_fit_is_never_mapped_at_once(run, shards):
    with pytest.raises(AssertionError, match="read it in windows"):
        train(through_cache(run, 2 * largest(shards)), range(1), window=None)


def test_two_windows_are_mapped_and_what_batches_in_flight_still_read(run, shards, monkeypatch):
    alive, made = weakref.WeakSet(), MappedSplit.__init__

    def noted(self, *files):
        made(self, *files)
        alive.add(self)

    monkeypatch.setattr(MappedSplit, "__init__", noted)
    batches = training_batches(
        through_cache(run, 2 * largest(shards)),
        columns=(),
        batch_size=2,
        seed=0,
        draws=range(100),
        flip=False,
        window=largest(shards),
    )
    next(batches)
    end = time.monotonic() + 10
    while len(alive) < 2 and time.monotonic() < end:  # the next one is opened without being asked for
        time.sleep(0.01)
    assert len(alive) == 2
    assert max(len(alive) for _ in batches) <= 3


def loader_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("posegen")]


def test_threads_end_with_the_iterator(run, shards):
    window = largest(shards)
    batches = training_batches(
        through_cache(run, 2 * window), columns=ALL, batch_size=4, seed=0, draws=range(10**9), flip=True, window=window
    )
    assert len(list(islice(batches, 3))) == 3
    assert "posegen-windows_0" in loader_threads()
    batches.close()
    assert not loader_threads()


def test_nothing_is_fetched_beyond_the_last_draw(run, shards):
    train(through_cache(run, 10 * largest(shards)), range(1), window=largest(shards), batch_size=2)
    assert len({name for name in cached_files() if "pairs" not in name}) == 1


def test_a_shard_that_the_store_lacks_is_told_to_the_consumer(run, shards, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    for path in (tmp_path / "copy/shards").glob("train-*.arrow"):
        path.unlink()
    with pytest.raises(ValueError, match=r"shards/train-0000\d\..*arrow is not there"):
        train(through_cache(tmp_path / "copy", 2 * largest(shards)), range(3), window=largest(shards))
    assert not loader_threads()


def test_listed_pairs_are_read_from_the_shards_in_which_they_lie(run, shards):
    cached = through_cache(run, 2 * largest(shards))
    pairs = [35, 0, 7, 7, 20, 12]
    given = {"columns": ALL, "batch_size": 4, "pairs": pairs}
    assert_equal(
        joined(list(listed_batches(cached, "test", **given))), joined(list(listed_batches(shards, "test", **given)))
    )
    assert cached.pair_names("test", pairs) == shards.pair_names("test", pairs)
    assert cached.pair_names("test", []) == []
    assert cached_bytes() <= 2 * largest(shards)


def test_only_shards_that_are_needed_are_fetched(run, shards):
    cached = ShardCache(Store.of(run))
    list(listed_batches(Shards(run / "shards", cached), "test", columns=ALL, batch_size=2, pairs=[0]))
    images = {name for name in cached_files() if "pairs" not in name}
    assert len(images) == 1
    assert Shards(run / "shards", cached).pair_count("train") == PAIRS


def test_images_and_means_are_the_same_in_bounded_disk(run, shards):
    cached = through_cache(run, largest(shards))
    rows = [23, 0, 5, 6, 5]
    np.testing.assert_array_equal(cached.images("train", rows), shards.images("train", rows))
    np.testing.assert_array_equal(mean_image(cached), mean_image(shards))
    np.testing.assert_array_equal(mean_pose(cached), mean_pose(shards))
    assert cached.identities("test") == shards.identities("test")
    assert len(cached.identities("test")) == 12
    assert pairs_by_group(cached) == pairs_by_group(shards)
    assert cached_bytes() <= largest(shards)


def test_the_mean_pose_is_what_one_sum_gives(shards):
    """The sum over all images at once, bit for bit."""
    train = shards.split("train")
    total = np.where(train.visible[..., None], train.joints.astype(np.float64), 0).sum(axis=0)
    np.testing.assert_array_equal(mean_pose(shards), total / train.visible.sum(axis=0)[:, None])


def test_threads_that_ask_for_a_shard_at_once_map_it_once(run, monkeypatch):
    made, original = [], Shards.opened
    monkeypatch.setattr(Shards, "opened", lambda *asked: made.append(asked[1:]) or original(*asked))
    cached = through_cache(run, 10**9)
    batches = listed_batches(cached, "test", columns=ALL, batch_size=12, pairs=range(36), threads=6)
    assert sum(len(batch["pair"]) for batch in batches) == 36
    assert len(made) == 3


def test_incomplete_shards_are_told(run, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/shards holds no complete shards of this version"):
        Shards(tmp_path / "shards", ShardCache(Store.of(tmp_path)))
