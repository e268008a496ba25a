import json
import sys
from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar

import cv2
import numpy as np
import pyarrow.parquet as parquet
import pytest
import ray

from posegen.data import reasons
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Entry, Listing, LoadedImage, Reject
from posegen.data.masks import pose_mask, unpack
from posegen.data.shards import preparing as shards
from posegen.data.shards.making import Work, make_shard, plan_works, prepare
from posegen.data.shards.manifest import ShardSummary, read_arrow
from posegen.data.shards.preparing import ShardSettings, read_manifest, write_shards
from posegen.data.sources.pairs import with_validation
from posegen.data.sources.synthetic import SyntheticPeople
from posegen.storage.store import Store
from tests.conftest import SHARED_DATA

HEIGHT, WIDTH = 64, 32
SETTINGS = ShardSettings(size=(HEIGHT, WIDTH), images_per_shard=4)
SUBSET = SHARED_DATA / "research/market1501-subset"


def drawn_jpeg(name, height=HEIGHT, width=WIDTH):
    random = np.random.default_rng(list(name.encode()))
    coarse = random.integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(coarse, (width, height)))[1].tobytes()


def entry(name, group, split="train", **changes):
    """An image whose 18 joints are all inside it."""
    joints = np.random.default_rng(list(name.encode())).uniform(2, 30, (18, 2)).astype(np.float32)
    made = Entry(name, split, group, identity=group, view="c1", path="", joints=joints, visible=np.ones(18, bool))
    return made._replace(**changes)


@dataclass(frozen=True)
class Drawn:
    """Images drawn from their names; what a name begins with is what is wrong with it."""

    name: ClassVar[str] = "drawn"
    entries: tuple[Entry, ...]
    pairs: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    rejects: tuple[Reject, ...] = ()
    forbidden: bool = False  # an image is loaded although its shard is there

    def listing(self):
        pairs = {split: list(given) for split, given in self.pairs}
        return Listing(list(self.entries), fingerprint="listed", rejects=list(self.rejects), pairs=pairs)

    def load(self, entry):
        assert not self.forbidden, f"{entry.name} is loaded again"
        image = drawn_jpeg(entry.name)
        if entry.name.startswith("truncated"):
            image = image[:-30]
        if entry.name.startswith("gone"):
            raise ValueError("unreadable file", f"{entry.name} is not there")
        if entry.name.startswith("large"):
            image = drawn_jpeg(entry.name, 2 * HEIGHT, 2 * WIDTH)
        return LoadedImage(image, entry.joints, entry.visible)


def without(joint):
    visible = np.ones(18, bool)
    visible[joint] = False
    return visible


TEST_ENTRIES = tuple(entry(name, "z", "test") for name in ("t0", "t1"))


def through_json(summary):
    return ShardSummary.from_json(json.loads(json.dumps(summary.to_json())))


@pytest.fixture
def in_place(monkeypatch):
    """Tasks run here, one after another, their summaries going through JSON as they do from run to run."""
    monkeypatch.setattr(shards, "_made", lambda works, make: map(through_json, map(make, works)))


@pytest.fixture
def tmp_path(tmp_path):
    """Where a run's shards are."""
    folder = tmp_path / "shards"
    folder.mkdir()
    return folder


def write(source, folder, settings=SETTINGS, fingerprint="first", told=None, listing=None):
    progress = (lambda *_: None) if told is None else (lambda *what: told.append(what))
    listing = source.listing() if listing is None else listing
    assert folder.name == "shards"
    return write_shards(
        source, Store.of(folder.parent), settings, listing=listing, fingerprint=fingerprint, progress=progress
    )


def stored_rejects(folder):
    return [Reject(**row) for row in parquet.read_table(folder / "rejects.parquet").to_pylist()]


def stored_pairs(folder, manifest, split):
    """The split's pairs by name, in their order."""
    found = []
    for shard in manifest.shards:
        if shard.split == split:
            names = read_arrow(folder / shard.file).column("name").to_pylist()
            for pair in read_arrow(folder / shard.pairs_file).to_pylist():
                found.append((pair["order"], names[pair["source"]], names[pair["target"]]))
    return [(source, target) for _, source, target in sorted(found)]


BAD_ENTRIES = (
    entry("good0", "a"),
    entry("good1", "a"),
    entry("good1", "a"),
    entry("truncated", "a"),
    entry("gone", "a"),
    entry("infinite", "a", joints=np.full((18, 2), np.inf, np.float32)),
    entry("not-a-number", "a", joints=np.full((18, 2), np.nan, np.float32)),
    entry("no-hip", "a", visible=without(TORSO[2])),
    entry("nothing", "a", visible=np.zeros(18, bool)),
    entry("junk", "a", distractor=True),
    entry("single", "b"),
    entry("survivor", "c"),
    entry("truncated-too", "c"),
    *TEST_ENTRIES,
)


def test_everything_unusable_is_counted_with_its_reason(in_place, tmp_path):
    listed = (Reject("orphan", "train", reasons.NO_IMAGE), Reject("bare", "train", "no annotation"))
    manifest = write(Drawn(BAD_ENTRIES, rejects=listed), tmp_path)
    assert manifest.rejects == {
        reasons.NO_IMAGE: 1,
        "no annotation": 1,
        reasons.DUPLICATE: 1,
        reasons.DAMAGED: 2,
        reasons.UNREADABLE: 1,
        reasons.NOT_FINITE: 2,
        reasons.NO_TORSO: 1,
        reasons.NO_JOINTS: 1,
        reasons.DISTRACTOR: 1,
        reasons.ALONE: 2,
    }
    assert manifest.counts == {
        "train": {"images": 14, "usable": 4, "groups": 1, "pairs": 2},  # 13 entries and the one without annotation
        "test": {"images": 2, "usable": 2, "groups": 1, "pairs": 2},
    }
    rejects = stored_rejects(tmp_path)
    assert len(rejects) == sum(manifest.rejects.values())
    assert {reject.name for reject in rejects if reject.reason == reasons.ALONE} == {"single", "survivor"}
    assert next(reject.detail for reject in rejects if reject.name == "gone") == "gone is not there"


def test_rows_hold_what_was_given(in_place, tmp_path):
    manifest = write(Drawn(BAD_ENTRIES), tmp_path)
    assert manifest == read_manifest(tmp_path)
    (file,) = [shard.file for shard in manifest.shards if shard.split == "test"]
    rows = read_arrow(tmp_path / file).to_pylist()
    assert [row["name"] for row in rows] == ["t0", "t1"]
    for row, given in zip(rows, TEST_ENTRIES, strict=True):
        assert row["image"] == drawn_jpeg(given.name)
        assert (row["identity"], row["group"], row["view"]) == ("z", "z", "c1")
        np.testing.assert_array_equal(np.array(row["joints"], np.float32).reshape(18, 2), given.joints)
        assert row["visible"] == [1] * 18
        assert row["person_mask"] is None
        expected = pose_mask(given.joints, given.visible, height=HEIGHT, width=WIDTH, radius=4)
        np.testing.assert_array_equal(unpack([row["pose_mask"]], HEIGHT, WIDTH)[0], expected)


def test_shards_hold_whole_groups_and_all_ordered_pairs_in_order(in_place, tmp_path):
    sizes = {"a": 3, "b": 2, "c": 6, "d": 2, "e": 2}
    names = [(f"{group}{number}", group) for number in range(6) for group, size in sizes.items() if number < size]
    entries = (*(entry(name, group) for name, group in names), *TEST_ENTRIES)
    manifest = write(Drawn(entries), tmp_path)
    rows = [shard.rows for shard in manifest.shards if shard.split == "train"]
    assert rows == [3, 2, 6, 4]  # at most four images, but for the group of six
    expected = [pair for group, size in sizes.items() for pair in permutations([f"{group}{i}" for i in range(size)], 2)]
    assert stored_pairs(tmp_path, manifest, "train") == expected
    assert manifest.counts["train"] == {"images": 15, "usable": 15, "groups": 5, "pairs": len(expected)}


def test_given_pairs_decide_in_their_order(in_place, tmp_path):
    entries = (
        *(entry(name, "a") for name in ("a0", "a1", "a2")),
        *(entry(name, "b") for name in ("b0", "b1", "truncated")),
        entry("no-hip", "b", visible=without(TORSO[2])),
        entry("junk", "b", distractor=True),
        entry("unlisted-junk", "b", distractor=True),
        *TEST_ENTRIES,
    )
    given = (("b1", "b0"), ("a0", "b0"), ("a2", "a0"), ("b0", "truncated"), ("no-hip", "junk"), ("a0", "who"))
    given = (*given, ("a0", "a2"))
    manifest = write(Drawn(entries, pairs=(("train", given),)), tmp_path)
    assert stored_pairs(tmp_path, manifest, "train") == [("b1", "b0"), ("a2", "a0"), ("no-hip", "junk"), ("a0", "a2")]
    assert {(reject.name, reject.reason) for reject in stored_rejects(tmp_path)} == {
        ("a0,b0", reasons.PAIR_ACROSS_GROUPS),
        ("a0,who", reasons.PAIR_OF_REJECTED),
        ("b0,truncated", reasons.PAIR_OF_REJECTED),
        ("truncated", reasons.DAMAGED),
        ("unlisted-junk", reasons.DISTRACTOR),
    }
    assert manifest.notes == {reasons.LISTED_ANYWAY: 2}
    assert manifest.counts["train"] == {"images": 9, "usable": 7, "groups": 2, "pairs": 4}


def stored_identities(folder, manifest, split):
    files = [shard.file for shard in manifest.shards if shard.split == split]
    return {name for file in files for name in read_arrow(folder / file).column("identity").to_pylist()}


@pytest.mark.parametrize("given", [False, True])
def test_a_validation_split_has_shards_counts_and_pairs_of_its_own(in_place, tmp_path, given):
    entries = (*(entry(f"{group}{number}", group) for group in "abcd" for number in range(3)), *TEST_ENTRIES)
    pairs = tuple((f"{group}2", f"{group}0") for group in "dcba")
    source = Drawn(entries, pairs=(("train", pairs),) if given else ())
    listing = with_validation(source.listing(), 0.25)
    manifest = write(source, tmp_path, listing=listing)
    assert read_manifest(tmp_path) == manifest
    assert manifest.source == listing.fingerprint != source.listing().fingerprint
    (held,) = stored_identities(tmp_path, manifest, "validation")
    assert stored_identities(tmp_path, manifest, "train") == set("abcd") - {held}
    every = (
        pairs if given else [pair for group in "abcd" for pair in permutations([f"{group}{n}" for n in range(3)], 2)]
    )
    for split in ("train", "validation"):
        expected = [pair for pair in every if (pair[0][0] == held) == (split == "validation")]
        assert stored_pairs(tmp_path, manifest, split) == expected
    assert list(manifest.counts) == ["train", "test", "validation"]
    assert manifest.counts["train"] == {"images": 9, "usable": 9, "groups": 3, "pairs": 3 if given else 18}
    assert manifest.counts["validation"] == {"images": 3, "usable": 3, "groups": 1, "pairs": 1 if given else 6}


def test_a_validation_split_without_a_pair_is_an_error_that_says_why(in_place, tmp_path):
    entries = [entry(f"{group}{number}", group) for group in "ab" for number in range(2)]
    listing = with_validation(Listing([*entries, *TEST_ENTRIES], "f"), 0.5)
    spoilt = [e._replace(name=f"truncated-{e.name}") if e.split == "validation" else e for e in listing.entries]
    with pytest.raises(ValueError, match=f"no pair is left in the split 'validation'.*2 {reasons.DAMAGED}"):
        write(Drawn(()), tmp_path, listing=replace(listing, entries=spoilt))
    assert read_manifest(tmp_path) is None


def test_a_pair_across_training_and_validation_is_a_reject_and_no_image(in_place, tmp_path):
    entries = (*(entry(f"{group}{number}", group) for group in "ab" for number in range(2)), *TEST_ENTRIES)
    source = Drawn(entries, pairs=(("train", (("a0", "a1"), ("a0", "b0"), ("b1", "b0"))),))
    manifest = write(source, tmp_path, listing=with_validation(source.listing(), 0.5))
    assert manifest.rejects == {reasons.PAIR_ACROSS_SPLITS: 1}
    assert stored_rejects(tmp_path) == [Reject("a0,b0", "train", reasons.PAIR_ACROSS_SPLITS)]
    assert [manifest.counts[split]["images"] for split in ("train", "validation")] == [2, 2]


def test_embedded_people_who_are_held_out_are_stored_as_they_were(in_place, tmp_path):
    source = SyntheticPeople(train_people=3, test_people=1, images_per_person=4)
    plain = write(source, tmp_path / "plain" / "shards")
    held = write(source, tmp_path / "held" / "shards", listing=with_validation(source.listing(), 0.3))
    assert held.counts["validation"]["images"] == 4
    rows = [
        {(row["identity"], row["name"]): row for s in made.shards for row in read_arrow(folder / s.file).to_pylist()}
        for made, folder in ((plain, tmp_path / "plain" / "shards"), (held, tmp_path / "held" / "shards"))
    ]
    assert rows[0] == rows[1]


def test_only_what_is_missing_is_made_again(in_place, tmp_path):
    entries = (*(entry(f"{group}{number}", group) for group in "abc" for number in range(4)), *TEST_ENTRIES)
    first, told = write(Drawn(entries), tmp_path), []
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    assert write(Drawn(entries, forbidden=True), tmp_path) == first
    (tmp_path / "train-00001.arrow").unlink()
    assert read_manifest(tmp_path) is None
    assert write(Drawn(entries), tmp_path, told=told) == first
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in tmp_path.iterdir()}
    assert {name: content for name, (_, content) in after.items()} == {n: content for n, (_, content) in before.items()}
    again = {name for name in after if after[name][0] != before[name][0] and name.startswith(("train", "test"))}
    assert again <= {"train-00001.arrow", "train-00001.pairs.arrow", "train-00001.json"}
    assert told == [("images", 10, 14), ("images", 14, 14)]


def test_interrupted_while_a_shard_is_written(in_place, tmp_path):
    entries = (*(entry(f"{group}{number}", group) for group in "ab" for number in range(4)), *TEST_ENTRIES)
    first = write(Drawn(entries), tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train-00000.json").unlink()  # it is written last, so the shard is not finished without it
    (tmp_path / "train-00000.arrow.123.tmp").write_bytes(b"half")
    told = []
    assert write(Drawn(entries), tmp_path, told=told) == first
    assert told[0] == ("images", 6, 10)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("change", ["fingerprint", "settings"])
def test_files_of_another_making_are_replaced(in_place, tmp_path, change):
    entries = (*(entry(f"{group}{number}", group) for group in "abc" for number in range(4)), *TEST_ENTRIES)
    write(Drawn(entries), tmp_path)
    (tmp_path / "notes.txt").write_text("the user's own")
    if change == "fingerprint":
        manifest = write(Drawn(entries[4:]), tmp_path, fingerprint="second")
        assert manifest.fingerprint == "second"
    else:
        manifest = write(Drawn(entries), tmp_path, settings=replace(SETTINGS, images_per_shard=8))
    named = {name for shard in manifest.shards for name in (shard.file, shard.pairs_file)}
    assert {path.name for path in tmp_path.glob("*.arrow")} == named
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_pair_is_an_error_that_says_why(in_place, tmp_path, split):
    entries = tuple(
        entry(f"{'truncated' if made == split else 'good'}{number}", "a", made)
        for made in ("train", "test")
        for number in range(3)
    )
    with pytest.raises(ValueError, match=f"no pair is left in the split '{split}'.*3 {reasons.DAMAGED}"):
        write(Drawn(entries), tmp_path)
    assert read_manifest(tmp_path) is None
    assert {reject.name for reject in stored_rejects(tmp_path)} == {f"truncated{number}" for number in range(3)}


def test_one_image_of_everybody_is_an_error_that_says_so(in_place, tmp_path):
    entries = (*(entry(f"good{number}", str(number)) for number in range(3)), *TEST_ENTRIES)
    with pytest.raises(ValueError, match=f"Of its 3 images, 3 are usable; rejected: 3 {reasons.ALONE}"):
        write(Drawn(entries), tmp_path)


def test_nothing_listed_is_an_error(in_place, tmp_path):
    with pytest.raises(ValueError, match="Of its 0 images, 0 are usable; rejected: nothing"):
        write(Drawn(()), tmp_path)


def test_wrong_sizes_are_resized_and_their_joints_follow(in_place, tmp_path):
    joints = np.full((18, 2), 20.5, np.float32)
    entries = (entry("large0", "a", joints=joints), entry("large1", "a"), entry("a0", "a"), *TEST_ENTRIES)
    manifest = write(Drawn(entries), tmp_path)
    assert manifest.notes == {reasons.RESIZED: 2}
    row = read_arrow(tmp_path / "train-00000.arrow").to_pylist()[0]
    assert row["joints"] == [10.0] * 36  # the corner of four pixels, 20 | 21, is the corner of two images' pixels
    image = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)
    large = cv2.imdecode(np.frombuffer(drawn_jpeg("large0", 2 * HEIGHT, 2 * WIDTH), np.uint8), cv2.IMREAD_COLOR)
    means = large.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    assert np.abs(image - means).mean() < 2


def test_joints_outside_are_kept_and_counted(in_place, tmp_path):
    joints = np.full((18, 2), 10, np.float32)
    inside, outside = joints.copy(), joints.copy()
    inside[0], outside[0] = (WIDTH - 0.51, -0.5), (WIDTH - 0.5, 3)
    hidden = outside.copy()
    entries = (
        entry("inside", "a", joints=inside),
        entry("outside", "a", joints=outside),
        entry("hidden", "a", joints=hidden, visible=without(0)),
        *TEST_ENTRIES,
    )
    assert write(Drawn(entries), tmp_path).notes == {reasons.OUTSIDE: 1}


def test_unknown_joints_may_be_anything():
    joints = np.full((18, 2), 10, np.float32)
    joints[0] = np.nan
    given = entry("a0", "a", joints=joints, visible=without(0))
    row = prepare(given, Drawn(()), SETTINGS, listed=False)
    assert row.joints[0].tolist() == [-1, -1]
    np.testing.assert_array_equal(row.joints[1:], joints[1:])


def test_absurd_coordinates_are_rejected_before_anything_is_drawn():
    joints = np.full((18, 2), 10, np.float32)
    joints[3] = 1e30
    with pytest.raises(ValueError, match=reasons.NOT_FINITE):
        prepare(entry("a0", "a", joints=joints), Drawn(()), SETTINGS, listed=False)


@dataclass(frozen=True)
class Masked:
    """Images of twice the training size with a person mask in the left half; the mask of one is perhaps unknown."""

    name: ClassVar[str] = "masked"
    both: bool

    def listing(self):
        entries = [entry(f"{split}{number}", "a", split) for split in ("train", "test") for number in range(2)]
        return Listing(entries, fingerprint=str(self.both))

    def load(self, entry):
        mask = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
        mask[:, :WIDTH] = 1
        known = self.both or entry.name != "train1"
        image = drawn_jpeg(entry.name, 2 * HEIGHT, 2 * WIDTH)
        return LoadedImage(image, entry.joints, entry.visible, mask if known else None)


def test_person_masks_are_a_column_only_where_all_images_have_one(in_place, tmp_path):
    assert write(Masked(both=True), tmp_path).columns == ["person_mask"]
    rows = read_arrow(tmp_path / "train-00000.arrow").to_pylist()
    mask = unpack([rows[0]["person_mask"]], HEIGHT, WIDTH)[0]
    assert mask[:, : WIDTH // 2].all()
    assert not mask[:, WIDTH // 2 :].any()
    manifest = write(Masked(both=False), tmp_path)
    assert manifest.columns == []
    assert manifest.notes == {reasons.RESIZED: 4, reasons.NO_PERSON_MASK: 1}


def test_planning_never_splits_a_group_and_keeps_the_listing_order():
    random = np.random.default_rng(0)
    entries = [entry(f"p{number}", str(random.integers(12))) for number in range(60)]
    works, rejects = plan_works(Listing(entries, "f"), images_per_shard=10)
    assert rejects == []
    assert sorted(e.name for work in works for e in work.entries) == sorted(e.name for e in entries)
    homes = [{e.group for e in work.entries} for work in works]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert all(len(work.entries) <= 10 or len(home) == 1 for work, home in zip(works, homes, strict=True))
    assert [work.number for work in works] == list(range(len(works)))


def test_a_shard_without_usable_images_leaves_its_summary_only(tmp_path):
    work = Work("train", 7, (entry("truncated0", "a"), entry("truncated1", "a")))
    summary = make_shard(work, Drawn(()), tmp_path, SETTINGS, {"fingerprint": "x"})
    assert [path.name for path in tmp_path.iterdir()] == ["train-00007.json"]
    assert (summary.rows, summary.pairs, len(summary.rejects)) == (0, 0, 2)


@pytest.fixture(scope="module")
def local_ray():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_ray_makes_the_same_files(local_ray, tmp_path, monkeypatch):
    entries = (*BAD_ENTRIES, *(entry(f"{group}{number}", group) for group in "def" for number in range(3)))
    told = []
    manifest = write(Drawn(entries), tmp_path / "ray" / "shards", told=told)
    total = len(entries) - 1  # the duplicate is never opened
    assert (told[0], told[-1]) == (("images", 0, total), ("images", total, total))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    monkeypatch.setattr(shards, "_made", lambda works, make: map(through_json, map(make, works)))
    assert write(Drawn(entries), tmp_path / "here" / "shards") == manifest
    for path in (tmp_path / "here" / "shards").iterdir():
        assert (tmp_path / "ray" / "shards" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.skipif(not SUBSET.is_dir(), reason=f"needs the Market-1501 subset at {SUBSET}")
def test_market_subset_gives_the_published_counts_in_little_space(in_place, tmp_path):
    from posegen.data.sources.market1501 import Market1501

    manifest = write(Market1501(SUBSET), tmp_path, settings=ShardSettings(size=(128, 64)))
    train, test = manifest.counts["train"], manifest.counts["test"]
    assert (train["images"], train["usable"], train["pairs"], test["pairs"]) == (1747, 1554, 45648, 100)
    assert sum(count for reason, count in manifest.rejects.items() if reason != reasons.ALONE) == 1747 - 1554
    jpegs = sum(path.stat().st_size for path in SUBSET.glob("bounding_box_*/*.jpg"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1.5 * jpegs
