"""PG2's pickles: who of several people is taken, which files stand for which split, both readers, the real subset."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.annotations import find_annotations
from posegen.data.formats.pg2_pickles import PG2_PICKLES, pairs_pickle, peaks_files, read_pg2_pairs, read_pg2_poses
from posegen.data.formats.posegan_csv import HEADER, read_pose_gan_csv
from posegen.data.sources.folder import Folder
from posegen.data.sources.market1501 import Market1501
from posegen.data.sources.pairs import read_pairs, read_pairs_csv
from tests.conftest import SHARED_DATA
from tests.data.formats.test_restricted_pickles import Runs, python_2_array

SUBSET = SHARED_DATA / "research/market1501-subset"
DERIVED = SUBSET / "pg2_pickles_derived"
MARKET = "Market-1501_PoseFiltered/all_peaks_dic_Market-1501"


def person(ids, total=10.0):
    """A person's row: ids of the 18 joints, -1 where not given."""
    return [*(ids.get(joint, -1) for joint in range(18)), total, len(ids)]


def parts(**candidates):
    """18 lists of candidates; joint 3 is `joint3`."""
    return [candidates.get(f"joint{joint}", []) for joint in range(18)]


def one_person(x=10, y=20):
    """Everything that the files have on an image of one whole person, who stands about (x, y)."""
    candidates = [[(x + joint, y + joint, 0.9, joint)] for joint in range(18)]
    return candidates, np.array([person({joint: joint for joint in range(18)})], float)


def write(peaks: Path, images, protocol=2) -> Path:
    """The two files of images, {name: (candidates, people)}."""
    peaks.parent.mkdir(parents=True, exist_ok=True)
    subsets = peaks.with_name(peaks.name.replace("all_peaks", "subsets"))
    peaks.write_bytes(pickle.dumps({name: found for name, (found, _) in images.items()}, protocol))
    subsets.write_bytes(pickle.dumps({name: people for name, (_, people) in images.items()}, protocol))
    return peaks


def pose_of(folder, candidates, people):
    return read_pg2_poses(write(folder / "all_peaks_dic_a.p", {"a.jpg": (candidates, people)})).poses["a.jpg"]


class TestWhoIsTaken:
    def test_the_person_with_the_largest_total(self, tmp_path):
        candidates = parts(
            joint0=[(1, 2, 0.9, 0), (3, 4, 0.1, 1)], joint4=[(5, 6, 0.9, 2)], joint17=[(7.5, 8.25, 1, 3)]
        )
        people = np.array([person({0: 0, 4: 2}, 5.0), person({0: 1, 17: 3}, 7.0), person({0: 0}, 7.0)])
        pose = pose_of(tmp_path, candidates, people)
        assert np.flatnonzero(pose.visible).tolist() == [0, 17]
        assert pose.joints[[0, 4, 17]].tolist() == [[3, 4], [-1, -1], [7.5, 8.25]]
        assert pose.joints.dtype == np.float32

    def test_nobody_was_put_together_so_each_first_candidate_counts(self, tmp_path):
        candidates = parts(joint0=[(1, 2, 0.1, 0), (3, 4, 0.9, 1)], joint4=[(5, 6, 0.9, 2)])
        for people in (np.zeros((0, 20)), np.zeros(0), [], np.array([person({0: 1}, -1.0)])):
            pose = pose_of(tmp_path, candidates, people)
            assert pose.joints[[0, 4, 5]].tolist() == [[1, 2], [5, 6], [-1, -1]]
            assert np.flatnonzero(pose.visible).tolist() == [0, 4]

    def test_zero_is_a_coordinate_and_no_candidate_is_no_joint(self, tmp_path):
        pose = pose_of(tmp_path, parts(joint5=[(0, 0, 0.5, 0)]), np.array([person({5: 0})]))
        assert np.flatnonzero(pose.visible).tolist() == [5]
        pose = pose_of(tmp_path, parts(), np.zeros((0, 20)))
        assert not pose.visible.any()
        assert (pose.joints == -1).all()

    def test_numbers_beyond_any_float_do_not_end_the_reading(self, tmp_path):
        pose = pose_of(tmp_path, parts(joint5=[(10**400, float("nan"), 0.5, 0)]), np.array([person({5: 0})]))
        assert pose.visible[5]
        assert not np.isfinite(pose.joints[5]).any()

    @pytest.mark.parametrize("seed", range(8))
    def test_equal_to_a_plain_twin_of_pg2s_rule(self, tmp_path, seed):
        random = np.random.default_rng(seed)
        counts = random.integers(0, 4, 18)
        ids = iter(range(100))
        candidates = [[(*random.integers(0, 64, 2).tolist(), 0.5, next(ids)) for _ in range(n)] for n in counts]
        people = np.array(
            [
                person({j: found[random.integers(len(found))][3] for j, found in enumerate(candidates) if found}, total)
                for total in random.integers(1, 4, random.integers(0, 4))
            ]
        ).reshape(-1, 20)
        pose = pose_of(tmp_path, candidates, people)
        best, score = None, -1
        for row in people.tolist():
            if row[-2] > score:
                best, score = row, row[-2]
        for joint, found in enumerate(candidates):
            kept = found[:1] if best is None else [one for one in found if one[3] in best[:18]][-1:]
            assert pose.visible[joint] == bool(kept)
            assert pose.joints[joint].tolist() == (list(kept[0][:2]) if kept else [-1, -1])


class TestReading:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 5])
    def test_names_are_sorted_in_every_protocol(self, tmp_path, protocol):
        images = {name: one_person(x) for x, name in enumerate(("b.jpg", "ä.jpg", "a.jpg"))}
        found = read_pg2_poses(write(tmp_path / "all_peaks_dic_a.p", images, protocol))
        assert (found.format, found.duplicates) == (PG2_PICKLES, {})
        assert list(found.poses) == ["a.jpg", "b.jpg", "ä.jpg"]
        assert found.poses["ä.jpg"].joints[:, 0].tolist() == list(range(1, 19))

    def test_the_text_that_python_2_wrote(self, tmp_path):
        joints = b"".join(b"(lp\n(I%d\nI40\nF0.5\nI%d\ntaa" % (joint, joint) for joint in range(18))
        (tmp_path / "all_peaks_dic_a.p").write_bytes(
            b"(dp0\nS'a.jpg'\n(lp1\n" + joints.replace(b"(lp\n", b"(l") + b"s."
        )
        rows = np.array([person({0: 0, 2: 2}, 3.0), person({1: 1}, 2.0)])
        (tmp_path / "subsets_dic_a.p").write_bytes(b"(dp0\nS'a.jpg'\n" + python_2_array(rows) + b"s.")
        pose = read_pg2_poses(tmp_path / "all_peaks_dic_a.p").poses["a.jpg"]
        assert np.flatnonzero(pose.visible).tolist() == [0, 2]
        assert pose.joints[2].tolist() == [2, 40]

    def test_a_hostile_file_is_refused_and_did_nothing(self, tmp_path):
        peaks = write(tmp_path / "all_peaks_dic_a.p", {"a.jpg": one_person()})
        hostile = pickle.dumps([("a.jpg", Runs(os.system, f"touch {tmp_path / 'made'}"))], 0)
        for path in (peaks, tmp_path / "subsets_dic_a.p"):
            kept = path.read_bytes()
            path.write_bytes(hostile)
            with pytest.raises(ValueError, match=rf"{path.name}: the pickle asks for '\w+\.system'"):
                read_pg2_poses(peaks)
            path.write_bytes(kept)
        pairs = tmp_path / "p_pairs_train.p"
        pairs.write_bytes(hostile)
        with pytest.raises(ValueError, match=r"p_pairs_train\.p: the pickle asks for '\w+\.system'"):
            read_pairs(pairs)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], r"all_peaks_dic_a\.p: expected PG2's lists of candidates by image name, found \[\]"),
            ({}, "by image name"),
            ({3: parts()}, r"expected texts as image names, each once, found \[3\]"),
            ({"a.jpg": parts(), b"a.jpg": parts()}, "each once"),
            ({"a.jpg": parts()[:17]}, r"'a\.jpg': expected 18 lists of candidates, found 17"),
            ({"a.jpg": 5}, r"'a\.jpg': expected 18 lists of candidates, found 5"),
            (
                {"a.jpg": parts(joint3=[(1, 2, 3)])},
                r"'a\.jpg', joint 3: expected candidates \(x, y, score, id\), found",
            ),
            ({"a.jpg": parts(joint3=[("1", 2, 3, 4)])}, r"joint 3: expected candidates .*'1'"),
            ({"a.jpg": parts(joint3=None)}, "joint 3: expected candidates .*None"),
            (
                {"b.jpg": parts()},
                r"subsets_dic_a\.p: 1 of the 1 images in all_peaks_dic_a\.p are not in it, \['b\.jpg'\]",
            ),
        ],
    )
    def test_what_is_no_candidates_file_names_the_place(self, tmp_path, content, message):
        peaks = write(tmp_path / "all_peaks_dic_a.p", {"a.jpg": one_person()})
        peaks.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_pg2_poses(peaks)

    @pytest.mark.parametrize(
        ("people", "message"),
        [
            (
                np.zeros((1, 19)),
                r"subsets_dic_a\.p: 'a\.jpg': expected an array \(people, 20\), found the shape \(1, 19\)",
            ),
            (np.zeros(20), r"found the shape \(20,\)"),
            ([[1]], "found no array"),
        ],
    )
    def test_what_is_no_people_file_names_the_place(self, tmp_path, people, message):
        with pytest.raises(ValueError, match=message):
            pose_of(tmp_path, parts(), people)

    def test_a_missing_or_truncated_companion_is_named(self, tmp_path):
        peaks = write(tmp_path / "all_peaks_dic_a.p", {"a.jpg": one_person()})
        subsets = tmp_path / "subsets_dic_a.p"
        subsets.write_bytes(subsets.read_bytes()[:-20])
        with pytest.raises(
            ValueError, match=r"subsets_dic_a\.p: not a pickle of plain data that can be read \(cut off"
        ):
            read_pg2_poses(peaks)
        subsets.unlink()
        with pytest.raises(ValueError, match=r"has no 'subsets_dic_a\.p' beside it"):
            read_pg2_poses(peaks)


class TestPairs:
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_in_their_order(self, tmp_path, protocol):
        path = tmp_path / "p_pairs_train.p"
        path.write_bytes(pickle.dumps([["b", "a"], ("a", "b"), ["b", "a"]], protocol))
        assert read_pairs(path) == [("b", "a"), ("a", "b"), ("b", "a")]
        path.write_bytes(b"(lp0\n(lp1\nS'b'\naS'a'\naa.")
        assert read_pg2_pairs(path) == [("b", "a")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], r"expected PG2's list of pairs of image names, found \[\]"),
            (3, "found 3"),
            ([["a", "b"], ["a"]], r"p\.p: pair 1: expected two image names, found \['a'\]"),
            ([["a", 3]], r"pair 0: expected two image names, found \['a', 3\]"),
            (["ab"], "pair 0: expected two image names, found 'ab'"),
        ],
    )
    def test_what_is_no_pair_list_names_the_place(self, tmp_path, content, message):
        (tmp_path / "p.p").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_pg2_pairs(tmp_path / "p.p")


class TestFinding:
    def test_splits_are_in_the_names_and_mirrored_ones_are_passed_over(self, tmp_path):
        for name in ("train", "train_Flip", "test_clean", "test_samples"):
            write(tmp_path / f"{MARKET}_{name}.p", {"a.jpg": one_person()})
        found = {split: path.name for split, path in peaks_files(tmp_path).items()}
        assert found == {
            "test": "all_peaks_dic_Market-1501_test_clean.p",
            "train": "all_peaks_dic_Market-1501_train.p",
        }

    @pytest.mark.parametrize("place", ["", "PoseFiltered"])
    def test_one_file_for_all(self, tmp_path, place):
        path = write(tmp_path / place / "all_peaks_dic_DeepFashion.p", {"a.jpg": one_person()})
        write(tmp_path / place / "all_peaks_dic_DeepFashion_Flip.p", {"a.jpg": one_person()})
        assert peaks_files(tmp_path) == {None: path}
        (tmp_path / place / "p_pairs_test.p").write_bytes(b"")
        assert pairs_pickle(tmp_path, "test") == tmp_path / place / "p_pairs_test.p"
        assert pairs_pickle(tmp_path, "train") is None

    def test_two_files_for_the_same_are_an_error(self, tmp_path):
        for name in ("a", "b"):
            write(tmp_path / f"all_peaks_dic_{name}.p", {"a.jpg": one_person()})
        with pytest.raises(ValueError, match=r"for all images, found all_peaks_dic_a\.p and all_peaks_dic_b\.p"):
            peaks_files(tmp_path)


class TestFolder:
    NAMES = tuple(f"{who}_{number}.jpg" for who in ("anna", "ben") for number in range(3))

    def images(self, root):
        (root / "images").mkdir()
        for name in self.NAMES:
            (root / "images" / name).write_bytes(b"an image")
        return {name: one_person() for name in self.NAMES}

    def test_a_file_for_all_and_a_pair_list(self, tmp_path):
        write(tmp_path / "PoseFiltered/all_peaks_dic_mine.p", self.images(tmp_path))
        (tmp_path / "p_pairs_test.p").write_bytes(pickle.dumps([["ben_0.jpg", "ben_1.jpg"]], 0))
        listing = Folder(tmp_path).listing()
        assert listing.notes[0] == "Joints: all_peaks_dic_mine.p (PG2 pickles)."
        assert dict(listing.pairs) == {"test": [("ben_0.jpg", "ben_1.jpg")]}
        assert {entry.name: entry.split for entry in listing.entries} == {
            name: "test" if name in ("ben_0.jpg", "ben_1.jpg") else "train" for name in self.NAMES
        }
        assert listing.entries[0].joints[:2].tolist() == [[10, 20], [11, 21]]
        assert listing.rejects == []

    def test_files_of_both_splits_and_those_that_are_asked_for(self, tmp_path):
        images = self.images(tmp_path)
        for split, names in (("train", self.NAMES[:3]), ("test", self.NAMES[3:])):
            write(tmp_path / f"{MARKET}_{split}.p", {name: images[name] for name in names})
        listing = Folder(tmp_path).listing()
        assert [entry.split for entry in listing.entries] == ["test"] * 3 + ["train"] * 3
        asked, note = find_annotations(tmp_path, Path(f"{MARKET}_train.p"))
        assert (asked.format, note) == (
            PG2_PICKLES,
            "Joints: all_peaks_dic_Market-1501_train.p (PG2 pickles), as asked for.",
        )
        asked, _ = find_annotations(tmp_path, Path("Market-1501_PoseFiltered"))
        assert [split for _, split in asked.files] == ["test", "train"]

    def test_other_formats_come_first_and_pickles_are_named(self, tmp_path):
        write(tmp_path / "all_peaks_dic_mine.p", self.images(tmp_path))
        rows = "".join(f"{name}: {[20] * 18}: {[30] * 18}\n" for name in self.NAMES)
        (tmp_path / "mine.csv").write_text(f"{HEADER}\n{rows}")
        note = "Joints: mine.csv (pose-gan CSV). Also there and not used: all_peaks_dic_mine.p (PG2 pickles)."
        assert Folder(tmp_path).listing().notes[0].startswith(note)
        (tmp_path / "mine.csv").unlink()
        (tmp_path / "all_peaks_dic_mine.p").unlink()
        with pytest.raises(
            ValueError, match=r"no joints found .*PG2 pickles \(all_peaks_dic_\*\.p with its subsets_dic"
        ):
            Folder(tmp_path).listing()


TRAIN = ("0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.jpg", "0007_c1s2_000001_01.jpg", "0007_c3s1_000551_02.jpg")
TEST = ("-1_c3s2_000002_01.jpg", "0009_c1s1_000001_01.jpg", "0009_c6s4_000004_01.jpg")


class TestMarket:
    @pytest.fixture
    def root(self, tmp_path):
        for split, names in (("train", TRAIN), ("test", TEST)):
            (tmp_path / f"bounding_box_{split}").mkdir()
            for name in names:
                (tmp_path / f"bounding_box_{split}" / name).write_bytes(b"an image")
        return tmp_path

    def write(self, root, name, names):
        write(root / name, {each: one_person() for each in names})

    def test_one_file_for_both_splits(self, root):
        self.write(root, "PoseFiltered/all_peaks_dic_Market1501.p", [*reversed(TRAIN[:3] + TEST), "0001_gone.jpg"])
        listing = Market1501(root).listing()
        assert [(entry.name, entry.split) for entry in listing.entries] == [
            *((name, "train") for name in TRAIN[:3]),
            *((name, "test") for name in TEST),
        ]
        assert [entry.name for entry in listing.entries if entry.distractor] == [TEST[0]]
        assert {(reject.name, reject.reason) for reject in listing.rejects} == {
            (TRAIN[3], "no joints"),
            ("0001_gone.jpg", "no image"),
        }
        assert listing.notes[:2] == (
            "Joints of 'train': all_peaks_dic_Market1501.p (PG2 pickles).",
            "Joints of 'test': all_peaks_dic_Market1501.p (PG2 pickles).",
        )
        assert listing.entries[0].joints[0].tolist() == [10, 20]

    def test_a_file_for_each_split_and_pose_gans_first(self, root):
        self.write(root, f"{MARKET}_train.p", TRAIN)
        self.write(root, f"{MARKET}_test_clean.p", TEST)
        assert len(Market1501(root).listing().entries) == 7
        rows = "".join(f"{name}: {[20] * 18}: {[30] * 18}\n" for name in TEST)
        (root / "market-annotation-test.csv").write_text(f"{HEADER}\n{rows}")
        listing = Market1501(root).listing()
        assert [entry.joints[0].tolist() for entry in listing.entries] == [[10, 20]] * 4 + [[30, 20]] * 3
        assert listing.notes[0].startswith("Joints of 'train'")
        assert not listing.notes[1].startswith("Joints")

    def test_pair_lists_are_honoured_where_there_is_no_csv(self, root):
        self.write(root, "all_peaks_dic_Market1501.p", TRAIN + TEST)
        given = [(TRAIN[3], TRAIN[2]), (TRAIN[0], TRAIN[1])]
        (root / "p_pairs_train.p").write_bytes(pickle.dumps([*map(list, given), [TRAIN[0], "0002_gone.jpg"]], 0))
        (root / "p_pairs_train_flip.p").write_bytes(b"is not read")
        listing = Market1501(root).listing()
        assert dict(listing.pairs) == {"train": given}
        assert any("p_pairs_train.p: 1 of 3 pairs are left out" in note for note in listing.notes)
        (root / "market-pairs-train.csv").write_text(f"from,to\n{TRAIN[0]},{TRAIN[1]}\n")
        assert dict(Market1501(root).listing().pairs) == {"train": given[1:]}

    def test_a_split_without_any_joints_file_is_named(self, root):
        self.write(root, f"{MARKET}_train.p", TRAIN)
        with pytest.raises(ValueError, match=r"lacks market-annotation-test\.csv;.*PG2's pickles, all_peaks_dic_\*\.p"):
            Market1501(root).listing()


@pytest.mark.skipif(not DERIVED.exists(), reason="the shared Market-1501 subset is not here")
class TestRealSubset:
    PEAKS = DERIVED / "PoseFiltered/all_peaks_dic_Market1501.p"

    def test_joints_are_those_of_the_csv(self):
        found, given = read_pg2_poses(self.PEAKS).poses, read_pose_gan_csv(SUBSET / "market-annotation-train.csv").poses
        assert list(found) == list(given)
        assert len(found) == 1747
        assert all((found[name].joints == pose.joints).all() for name, pose in given.items())
        assert all((found[name].visible == pose.visible).all() for name, pose in given.items())
        assert sum(int(pose.visible.sum()) for pose in found.values()) == 22_255

    def test_pairs_are_those_of_the_csv_each_in_one_order(self):
        pairs, given = read_pg2_pairs(DERIVED / "p_pairs_train.p"), read_pairs_csv(SUBSET / "market-pairs-train.csv")
        assert len(pairs) == 22_824
        assert len(given) == 45_648
        assert {*pairs, *((target, source) for source, target in pairs)} == set(given)

    def test_market_trains_from_the_pickles(self, tmp_path):
        for name in ("bounding_box_train", "bounding_box_test", "market-annotation-test.csv", "market-pairs-test.csv"):
            (tmp_path / name).symlink_to(SUBSET / name)
        shutil.copytree(DERIVED, tmp_path, dirs_exist_ok=True)
        listing, by_csv = Market1501(tmp_path).listing(), Market1501(SUBSET).listing()
        assert len(listing.pairs["train"]) == 22_824
        assert listing.pairs["test"] == by_csv.pairs["test"]
        assert listing.rejects == []
        for entry, other in zip(listing.entries, by_csv.entries, strict=True):
            assert entry[:5] == other[:5]
            assert (entry.joints == other.joints).all()
