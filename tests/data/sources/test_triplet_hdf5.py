"""The triplet authors' HDF5 files: discs back to joints, images known by their bytes, identities as components."""

import dataclasses
import pickle
import re
import sys
from collections import Counter
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from posegen.data.formats.images import open_image
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Source
from posegen.data.shards.making import ShardSettings, make_shard, plan_works
from posegen.data.shards.manifest import read_arrow
from posegen.data.sources.pairs import with_validation
from posegen.data.sources.triplet_hdf5 import TripletHdf5, disc_centre
from posegen.runs.options import Options, plan_for

SIDE = 64


def drawn(x: int, y: int, height: int = SIDE, width: int = SIDE, radius: int = 8) -> np.ndarray:
    """A disc as PG2 draws it: pixel by pixel, those in the image at a distance of at most the radius."""
    disc = np.zeros((height, width))
    for row in range(y - radius, y + radius + 1):
        for column in range(x - radius, x + radius + 1):
            near = np.sqrt(float((row - y) ** 2 + (column - x) ** 2)) <= radius
            if near and 0 <= row < height and 0 <= column < width:
                disc[row, column] = 1
    return disc


def image(name: str) -> np.ndarray:
    random = np.random.default_rng(list(name.encode()))
    return cv2.resize(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), (SIDE, SIDE))


def joints(name: str) -> np.ndarray:
    """18 joints of the image, some of them near a border; -1 where there is none."""
    random = np.random.default_rng(list(name.encode()))
    made = random.integers(0, SIDE, (18, 2))
    made[[joint for joint in np.flatnonzero(random.random(18) < 0.2) if joint not in TORSO]] = -1
    return made


def maps(name: str) -> np.ndarray:
    nothing = np.zeros((SIDE, SIDE))
    return np.stack([drawn(x, y) if x >= 0 else nothing for x, y in joints(name).tolist()], axis=2)


def write(root: Path, split: str, pairs, said: int | None = -1, **storage) -> Path:
    """A file of pairs of names as the authors write it; `said` is what total_pairs.txt says, None leaves it out."""
    folder = root / f"DF_{split}_data"
    folder.mkdir(parents=True)
    with h5py.File(folder / f"DF_{split}.hdf5", "w") as file:
        for number, pair in enumerate(pairs):
            group = file.create_group(f"Data_{number}")
            for side, name in enumerate(pair):
                kept = {"compression": "gzip", **storage}
                group.create_dataset(f"image_raw_{side}", data=image(name), **kept)
                group.create_dataset(f"pose_mask_r8_{side}", data=np.zeros((SIDE, SIDE, 1), np.int64), **kept)
                group.create_dataset(f"pose_r8_{side}", data=maps(name), **kept)
    if said is not None:
        (folder / "total_pairs.txt").write_text(f"cnt:{len(pairs) if said == -1 else said}")
    return folder / f"DF_{split}.hdf5"


# Two people in training, the first in a chain: a-b, b-c; and one in testing.
TRAIN = (("b", "a"), ("x", "y"), ("b", "c"), ("y", "x"))
TEST = (("p", "q"), ("q", "p"))


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    return tmp_path


class TestDiscs:
    def test_every_centre_of_a_image_is_found_again(self):
        height, width = 19, 21  # whole discs, and discs cut off at every border and corner
        for y in range(height):
            for x in range(width):
                disc = drawn(x, y, height, width).astype(bool)
                assert disc_centre(disc) == (x, y)

    def test_a_whole_disc_has_197_pixels_and_its_mean_is_the_centre(self):
        disc = drawn(30, 20).astype(bool)
        assert disc.sum() == 197
        assert np.argwhere(disc).mean(axis=0).tolist() == [20, 30]
        assert disc_centre(disc) == (30, 20)

    @pytest.mark.parametrize("change", ["less", "more", "two", "square", "smaller", "outside"])
    def test_what_is_no_disc_has_no_centre(self, change):
        disc = drawn(30, 20).astype(bool)
        if change == "less":
            disc[20, 30] = False
        if change == "more":
            disc[12, 22] = True
        if change == "two":
            disc |= drawn(50, 40).astype(bool)
        if change == "square":
            disc[12:29, 22:39] = True
        if change == "smaller":
            disc = drawn(30, 20, radius=4).astype(bool)
        if change == "outside":
            disc = drawn(-3, 20).astype(bool)
        assert disc_centre(disc) is None

    def test_nothing_has_no_centre(self):
        assert disc_centre(np.zeros((SIDE, SIDE), bool)) is None


class TestListing:
    def test_images_are_known_by_their_bytes_and_people_by_their_pairs(self, root):
        listing = TripletHdf5(root).listing()
        names = {"b": "Data_0_0", "a": "Data_0_1", "x": "Data_1_0", "y": "Data_1_1", "c": "Data_2_1"}
        assert [(entry.name, entry.split) for entry in listing.entries] == [
            *((name, "train") for name in names.values()),
            ("Data_0_0", "test"),
            ("Data_0_1", "test"),
        ]
        assert listing.pairs["train"] == [(names[source], names[target]) for source, target in TRAIN]
        assert listing.pairs["test"] == [("Data_0_0", "Data_0_1"), ("Data_0_1", "Data_0_0")]
        people = [entry.identity for entry in listing.entries]
        assert people[0] == people[1] == people[4]
        assert people[2] == people[3]
        assert people[5] == people[6]
        assert len(set(people)) == 3
        assert [entry.group for entry in listing.entries] == people
        assert listing.rejects == []
        assert listing.notes == (
            "Images: 5 for training and 2 for testing, identified by their bytes; identities: the 3 sets of images "
            "that pairs join.",
        )

    def test_a_image_in_both_files_is_one_person_and_is_told(self, tmp_path):
        write(tmp_path, "train", TRAIN)
        write(tmp_path, "test", [("x", "z")])
        listing = TripletHdf5(tmp_path).listing()
        assert listing.entries[2].identity == listing.entries[-1].identity == listing.entries[-2].identity
        assert listing.notes[-1] == "Identities in both splits: 1. The scores say little about other people."

    @pytest.mark.parametrize("storage", [{"compression": None}, {"chunks": (16, 16, 1)}, {"compression_opts": 9}])
    def test_the_way_of_storing_does_not_matter(self, tmp_path, root, storage):
        write(tmp_path / "other", "train", TRAIN, **storage)
        write(tmp_path / "other", "test", TEST, **storage)
        first, other = TripletHdf5(root).listing(), TripletHdf5(tmp_path / "other").listing()
        assert first.pairs == other.pairs
        assert [entry[:4] for entry in first.entries] == [entry[:4] for entry in other.entries]

    def test_the_fingerprint_is_that_of_the_content(self, tmp_path, root):
        seen = [TripletHdf5(root).listing().fingerprint]
        assert TripletHdf5(root).listing().fingerprint == seen[0]
        for number, train in enumerate((TRAIN[:3], (*TRAIN[:3], ("x", "y")), (("b", "d"), *TRAIN[1:]))):
            write(tmp_path / str(number), "train", train)
            write(tmp_path / str(number), "test", TEST)
            seen.append(TripletHdf5(tmp_path / str(number)).listing().fingerprint)
        assert len(set(seen)) == 4

    def test_no_image_is_unpacked_and_no_map_is_read(self, root, monkeypatch):
        def forbidden(self, *_):
            raise AssertionError(f"{self.name} is read")

        monkeypatch.setattr(h5py.Dataset, "__getitem__", forbidden)
        assert len(TripletHdf5(root).listing().entries) == 7

    def test_a_validation_split_takes_whole_people_with_their_pairs(self, root):
        listing = with_validation(TripletHdf5(root).listing(), 0.4)
        held_out = {entry.name for entry in listing.entries if entry.split == "validation"}
        assert len(listing.pairs["validation"]) == 2
        assert all(name in held_out for pair in listing.pairs["validation"] for name in pair)
        assert not any(name in held_out for pair in listing.pairs["train"] for name in pair)


class TestTotals:
    def test_fewer_are_taken_where_the_text_says_so(self, tmp_path):
        write(tmp_path, "train", TRAIN, said=2)
        write(tmp_path, "test", TEST, said=None)
        listing = TripletHdf5(tmp_path).listing()
        assert [len(pairs) for pairs in listing.pairs.values()] == [2, 2]
        assert listing.notes[:2] == (
            "DF_train.hdf5: the first 2 of 4 pairs, as total_pairs.txt says.",
            "DF_test.hdf5: all 2 pairs, since there is no total_pairs.txt beside it.",
        )

    def test_more_than_there_are_and_what_is_no_number_are_errors(self, root):
        text = root / "DF_train_data/total_pairs.txt"
        text.write_text("cnt:5")
        with pytest.raises(ValueError, match=r"total_pairs\.txt says 5 pairs, and DF_train\.hdf5 holds 4"):
            TripletHdf5(root).listing()
        text.write_text("five")
        with pytest.raises(ValueError, match=r"expected 'cnt:' and the number of pairs, found 'five'"):
            TripletHdf5(root).listing()


class TestLoading:
    def test_pixels_and_joints_come_back_exactly(self, root):
        source: Source = pickle.loads(pickle.dumps(TripletHdf5(root)))
        entries = {(entry.split, entry.name): entry for entry in source.listing().entries}
        for split, pairs in (("train", TRAIN), ("test", TEST)):
            for number, side, name in [(0, 0, pairs[0][0]), (0, 1, pairs[0][1]), (1, 0, pairs[1][0])]:
                entry = entries.get((split, f"Data_{number}_{side}"))
                if entry is None:
                    continue
                loaded, expected = source.load(entry), joints(name)
                opened = open_image(loaded.encoded)
                assert opened.stored is not None
                assert (opened.pixels == image(name)).all(), "RGB, without loss"
                assert (loaded.joints == expected).all()
                assert (loaded.visible == (expected[:, 0] >= 0)).all()
                assert (loaded.joints.dtype, loaded.visible.dtype) == (np.float32, np.bool_)

    def test_a_process_opens_a_file_once(self, root, monkeypatch):
        source = TripletHdf5(root)
        entries = source.listing().entries
        opened = Counter()
        original = h5py.File.__init__

        def counted(self, name, *arguments, **settings):
            opened.update([name] if isinstance(name, str) else [])  # h5py makes others of an open file's id
            original(self, name, *arguments, **settings)

        monkeypatch.setattr(h5py.File, "__init__", counted)
        for entry in entries:
            source.load(entry)
        assert opened == {str(root / f"DF_{split}_data/DF_{split}.hdf5"): 1 for split in ("train", "test")}

    @pytest.mark.parametrize(
        ("change", "reason", "detail"),
        [
            (
                lambda maps: maps[:, :, 3].__setitem__((slice(0, 3), slice(0, 3)), 1),
                "pose map that is not",
                r"joint \d+ \(",
            ),
            (lambda maps: maps.__imul__(0.5), "pose map that is not", "other values than 0 and 1"),
        ],
    )
    def test_maps_that_are_no_discs_are_rejected(self, root, change, reason, detail):
        with h5py.File(root / "DF_train_data/DF_train.hdf5", "a") as file:
            maps = file["Data_0/pose_r8_1"][()]
            maps[:, :, 3] = drawn(40, 40)
            change(maps)
            file["Data_0/pose_r8_1"][()] = maps
        source = TripletHdf5(root)
        with pytest.raises(ValueError, match=reason) as caught:
            source.load(source.listing().entries[1])
        assert caught.value.args[0] == "pose map that is not drawn of discs"
        assert re.search(detail, caught.value.args[1])

    def test_what_is_gone_is_rejected(self, root):
        entry = TripletHdf5(root).listing().entries[0]
        for changed in (entry._replace(name="Data_99_0"), entry._replace(path=str(root / "gone.hdf5"))):
            with pytest.raises(ValueError, match="unreadable file"):
                TripletHdf5(root).load(changed)

    def test_shards_hold_the_given_pairs_in_their_order(self, root, tmp_path):
        source, settings = TripletHdf5(root), ShardSettings(size=(SIDE, SIDE))
        (train,) = [work for work in plan_works(source.listing(), 100)[0] if work.split == "train"]
        (tmp_path / "shards").mkdir()
        summary = make_shard(train, source, tmp_path / "shards", settings, {})
        assert (summary.rows, summary.pairs, summary.rejects) == (5, 4, [])
        rows = read_arrow(tmp_path / "shards/train-00000.arrow")
        pairs = read_arrow(tmp_path / "shards/train-00000.pairs.arrow")
        names = rows["name"].to_pylist()
        made = zip(pairs["source"].to_pylist(), pairs["target"].to_pylist(), strict=True)
        assert [(names[source], names[target]) for source, target in made] == source.listing().pairs["train"]


class TestWhatIsWrong:
    def test_a_missing_file_says_what_is_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere' lacks DF_train_data/DF_train\.hdf5; there is nothing"):
            TripletHdf5(tmp_path / "nowhere").listing()
        write(tmp_path, "train", TRAIN)
        with pytest.raises(ValueError, match=r"lacks DF_test_data/DF_test\.hdf5; there is DF_train_data"):
            TripletHdf5(tmp_path).listing()

    def test_files_that_are_cut_off_or_of_another_kind(self, root):
        file = root / "DF_train_data/DF_train.hdf5"
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], b"no HDF5", b""):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"DF_train\.hdf5: not an HDF5 file that can be read"):
                TripletHdf5(root).listing()

    def test_a_pair_that_is_not_whole_is_rejected_and_the_others_are_kept(self, root):
        with h5py.File(root / "DF_train_data/DF_train.hdf5", "a") as file:
            del file["Data_0/image_raw_1"]
            del file["Data_1/pose_r8_0"]
            file["Data_1"].create_dataset("pose_r8_0", data=np.zeros((SIDE, SIDE, 17)))
        listing = TripletHdf5(root).listing()
        assert listing.pairs["train"] == [("Data_2_0", "Data_2_1"), ("Data_3_0", "Data_3_1")]
        assert [reject[:3] for reject in listing.rejects] == [
            ("Data_0", "train", "no image"),
            ("Data_1", "train", "no image"),
        ]
        assert "found the shapes () and (64, 64, 18)" in listing.rejects[0].detail
        assert "found the shapes (64, 64, 3) and (64, 64, 17)" in listing.rejects[1].detail

    def test_no_pair_at_all_is_an_error(self, root):
        with h5py.File(root / "DF_test_data/DF_test.hdf5", "a") as file:
            for number in range(2):
                file[f"Data_{number}"].move("image_raw_0", "image")
        with pytest.raises(ValueError, match=r"none of its 2 pairs can be read\. Data_0: expected image_raw_0"):
            TripletHdf5(root).listing()

    def test_without_h5py_the_extra_is_named(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ValueError, match=r"pip install 'posegen\[hdf5\]'"):
            TripletHdf5(root).listing()


def test_the_option_takes_deepfashions_settings(root):
    plan = plan_for(Options(dataset="triplet-hdf5", root=root, system="pg2"))
    assert plan.dataset == "triplet-hdf5"
    assert plan.source == TripletHdf5(root)
    assert plan.system.size == plan.shard_settings.size == (256, 256)
    smaller = plan_for(dataclasses.replace(Options(dataset="triplet-hdf5", root=root, system="pg2"), size="64x64"))
    assert smaller.system.size == (64, 64)
