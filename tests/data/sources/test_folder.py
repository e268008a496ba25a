"""One's own folder: finding joints in every format, whose image it is, splits, pairs, and what is rejected why."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from posegen.data.formats.posegan_csv import HEADER
from posegen.data.listing import Listing, Source
from posegen.data.sources.folder import Folder
from posegen.data.sources.pairs import held_out, ordered_pairs, read_pairs_csv, usable_rows
from tests.conftest import SHARED_DATA

TFJS = SHARED_DATA / "open/tfjs-models/derived_256x256"
NAMES = tuple(f"{person}_{number}.jpg" for person in ("anna", "ben", "carl") for number in range(3))
COCO_POINTS = [float(number) for point in range(17) for number in (10 + point, 20 + point, 2)]


def make_images(folder: Path, names=NAMES) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")


def csv(path: Path, names, x: int = 10) -> Path:
    path.write_text(f"{HEADER}\n" + "".join(f"{name}: {[20] * 18}: {[x] * 18}\n" for name in names))
    return path


def openpose(folder: Path, names) -> Path:
    for name in names:
        file = folder / f"{name.rpartition('.')[0]}_keypoints.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"version": 1.2, "people": [{"pose_keypoints_2d": [10, 20, 1] * 18}]}))
    return folder


def coco(path: Path, names) -> Path:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": image["id"], "keypoints": COCO_POINTS, "area": 1} for image in images]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def pair_list(path: Path, pairs) -> None:
    path.write_text("from,to\n" + "".join(f"{source},{target}\n" for source, target in pairs))


def split_of(listing: Listing) -> dict[str, str]:
    return {entry.name: entry.split for entry in listing.entries}


def reasons(listing: Listing) -> dict[str, str]:
    return {reject.name: reject.reason for reject in listing.rejects}


@pytest.fixture
def root(tmp_path):
    make_images(tmp_path / "images")
    return tmp_path


class TestFindingJoints:
    @pytest.mark.parametrize("place", ["", "images"])
    def test_images_in_images_or_in_the_root(self, tmp_path, place):
        make_images(tmp_path / place)
        csv(tmp_path / "joints.csv", NAMES)
        listing = Folder(tmp_path).listing()
        assert tuple(entry.name for entry in listing.entries) == NAMES
        assert listing.rejects == []
        assert Path(listing.entries[0].path) == tmp_path / place / NAMES[0]

    def test_it_is_a_source_that_gives_the_bytes(self, root):
        csv(root / "joints.csv", NAMES)
        source: Source = Folder(root)
        image = source.load(source.listing().entries[0])
        assert image.encoded == b"an image"
        assert image.joints.tolist() == [[10, 20]] * 18

    def test_the_order_of_preference_and_the_note(self, root):
        """Everything is there; the preferred one is taken away again and again."""
        coco(root / "annotations" / "person_keypoints.json", NAMES)
        (root / "results.json").write_text(
            json.dumps([{"image_id": name, "keypoints": COCO_POINTS, "score": 1} for name in NAMES])
        )
        openpose(root / "poses", NAMES)
        csv(root / "all.csv", NAMES)
        halves = [csv(root / "own-annotation-train.csv", NAMES[:6]), csv(root / "own-annotation-test.csv", NAMES[6:])]
        expected = [
            (
                halves,
                "Joints: own-annotation-train.csv, own-annotation-test.csv (pose-gan CSV). Also there and not used: ",
            ),
            ([root / "all.csv"], "Joints: all.csv (pose-gan CSV). Also"),
            ([root / "poses"], "Joints: poses (OpenPose JSON). Also"),
            ([root / "annotations"], "Joints: person_keypoints.json (COCO person keypoints JSON). Also"),
            ([root / "results.json"], "Joints: results.json (COCO keypoint results JSON)."),
        ]
        for paths, start in expected:
            listing = Folder(root).listing()
            assert listing.notes[0].startswith(start)
            assert tuple(entry.name for entry in listing.entries) == NAMES
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ValueError, match=r"no joints found in .*pose-gan CSV.*OpenPose.*COCO"):
            Folder(root).listing()

    @pytest.mark.parametrize("relative", [True, False])
    def test_joints_that_are_asked_for(self, root, relative):
        csv(root / "all.csv", NAMES)
        asked = openpose(root / "poses", NAMES)
        listing = Folder(root, joints=Path("poses") if relative else asked).listing()
        assert listing.notes[0] == "Joints: poses (OpenPose JSON), as asked for."
        assert len(listing.entries) == 9

    def test_openpose_files_beside_the_images_and_below(self, tmp_path):
        names = [f"{person}/{number}.png" for person in ("anna", "ben") for number in (1, 2)]
        make_images(tmp_path, names)
        openpose(tmp_path, names)
        listing = Folder(tmp_path, joints=tmp_path).listing()
        assert [entry.identity for entry in listing.entries] == ["anna", "anna", "ben", "ben"]

    def test_coco_names_with_folders_and_ids(self, tmp_path):
        make_images(tmp_path / "images", ["COCO_val2014_000000000136.jpg", "p_1.jpg", "q_1.jpg", "q_2.jpg"])
        path = coco(tmp_path / "a.json", ["images/p_1.jpg", "C:\\data\\q_1.jpg", "q_2.jpg"])
        content = json.loads(path.read_text())
        content["annotations"].append({"image_id": 136, "keypoints": COCO_POINTS})
        path.write_text(json.dumps(content))
        pair_list(tmp_path / "pairs-train.csv", [("q_1.jpg", "q_2.jpg")])
        listing = Folder(tmp_path).listing()
        assert {entry.name for entry in listing.entries} >= {"COCO_val2014_000000000136.jpg", "p_1.jpg", "q_1.jpg"}
        assert listing.rejects == []

    def test_missing_joints_and_a_wrong_layout_are_errors(self, root):
        csv(root / "all.csv", NAMES)
        with pytest.raises(ValueError, match=r"nowhere\.json' does not exist"):
            Folder(root, joints=Path("nowhere.json")).listing()
        with pytest.raises(ValueError, match="Expected one of body_18, body_25, body_25b"):
            Folder(root, layout="body_26").listing()
        with pytest.raises(
            ValueError, match=r"layout 'body_25b' is for OpenPose's points, but the joints are all\.csv"
        ):
            Folder(root, layout="body_25b").listing()
        openpose(root / "poses", NAMES)
        with pytest.raises(ValueError, match="expected 75 numbers"):
            Folder(root, joints=Path("poses"), layout="body_25b").listing()


class TestRejects:
    def test_images_without_joints_and_joints_without_images(self, root):
        make_images(root / "images", ["anna_9.jpg", "phone.HEIC"])
        csv(root / "all.csv", [*NAMES, "dora_1.jpg"])
        listing = Folder(root).listing()
        assert reasons(listing) == {
            "anna_9.jpg": "no joints",
            "dora_1.jpg": "no image",
            "phone.HEIC": "unsupported image format",
        }
        assert len(listing.entries) == 9

    def test_a_name_that_fits_two_images_and_two_names_that_fit_one(self, root):
        make_images(root / "images", ["x/same_1.jpg", "y/same_1.jpg", "x/once_1.jpg"])
        file = csv(root / "all.csv", [*NAMES, "same_1.jpg", "once_1.jpg", "y/same_1.jpg"])
        file.write_text(f"{file.read_text()}x/once_1.jpg: {[20] * 18}: {[11] * 18}\n")
        listing = Folder(root, identity="([a-z]+)_").listing()
        assert reasons(listing) == {
            "same_1.jpg": "no image",
            "x/once_1.jpg": "duplicate name",
            "x/same_1.jpg": "no joints",
        }
        assert "fits x/same_1.jpg, y/same_1.jpg: name it by its path" in listing.rejects[0].detail

    def test_a_row_that_is_there_twice(self, root):
        file = csv(root / "all.csv", NAMES)
        file.write_text(f"{file.read_text()}{NAMES[0]}: {[20] * 18}: {[11] * 18}\n")
        listing = Folder(root).listing()
        assert reasons(listing) == {NAMES[0]: "duplicate name"}
        assert "line 2" in listing.rejects[0].detail
        assert "line 11" in listing.rejects[0].detail

    def test_hidden_files_and_folders_are_passed_over(self, root):
        make_images(root / "images", [".trash/anna_9.jpg", "._anna_1.jpg"])
        csv(root / "all.csv", NAMES)
        listing = Folder(root).listing()
        assert listing.rejects == []
        assert len(listing.entries) == 9

    def test_nothing_fits(self, root):
        csv(root / "all.csv", ["one.png", "two.png", "three.png", "four.png"])
        expected = r"images are \['anna_0\.jpg', .*joints of \['one\.png', 'two\.png', 'three\.png'\]"
        with pytest.raises(ValueError, match=expected):
            Folder(root).listing()

    def test_no_root_and_no_image(self, tmp_path):
        with pytest.raises(ValueError, match="is not a folder"):
            Folder(tmp_path / "nowhere").listing()
        with pytest.raises(ValueError, match=r"holds no image. Expected files that end with \.jpg"):
            Folder(tmp_path).listing()
        make_images(tmp_path, ["a.heic"])
        with pytest.raises(ValueError, match=r"There are a\.heic, which must be turned into one of these"):
            Folder(tmp_path).listing()


class TestIdentity:
    def listing(self, root, names, **settings):
        make_images(root, names)
        csv(root / "all.csv", names)
        return Folder(root, **settings).listing()

    def identities(self, listing):
        return {entry.name: entry.identity for entry in listing.entries}

    def test_the_text_before_the_first_underscore(self, tmp_path):
        listing = self.listing(tmp_path, [*NAMES, "nobody.jpg"])
        assert self.identities(listing) == {name: name[:-6] for name in NAMES}
        assert reasons(listing) == {"nobody.jpg": "no identity"}
        assert listing.notes[1] == "Identity: the text before the first '_' of the name, 3 in all."

    def test_sub_folders_one_a_person(self, tmp_path):
        names = [
            f"photos/{split}/{person}/IMG_{n}.jpg" for split in ("train", "val") for person in "ab" for n in (1, 2)
        ]
        listing = self.listing(tmp_path / "images", names)
        assert self.identities(listing) == {name: name.split("/")[2] for name in names}
        assert listing.notes[1] == "Identity: the sub-folder's name, 2 in all."

    def test_one_sub_folder_for_all_says_nothing(self, tmp_path):
        names = [f"photos/train/{name}" for name in NAMES]
        assert set(self.identities(self.listing(tmp_path, names)).values()) == {"anna", "ben", "carl"}

    def test_a_regular_expression(self, tmp_path):
        names = [
            f"fashionMENJackets_Vestsid0000{item}0{colour}_{n}front.jpg"
            for item in "12"
            for colour in "12"
            for n in "ab"
        ]
        listing = self.listing(tmp_path, [*names, "else.jpg"], identity=r"id(\d+)_")
        assert Counter(entry.identity for entry in listing.entries) == dict.fromkeys(
            ("0000101", "0000102", "0000201", "0000202"), 2
        )
        assert reasons(listing) == {"else.jpg": "no identity"}

    @pytest.mark.parametrize(
        ("identity", "message"),
        [
            ("(", "is not a regular expression"),
            ("id", "has no group"),
            ("(zebra)", "no image with joints has an identity"),
        ],
    )
    def test_expressions_that_cannot_work(self, tmp_path, identity, message):
        with pytest.raises(ValueError, match=message):
            self.listing(tmp_path, NAMES, identity=identity)

    def test_the_view_is_a_market_camera(self, tmp_path):
        listing = self.listing(tmp_path, ["1_c2s1_1.jpg", "1_c3s1_1.jpg", "2_x.jpg", "2_y.jpg"])
        assert [entry.view for entry in listing.entries] == ["c2", "c3", "", ""]


class TestSplits:
    def test_whole_identities_are_held_out(self, root):
        csv(root / "all.csv", NAMES)
        listing = Folder(root).listing()
        people = {entry.identity: entry.split for entry in listing.entries}
        assert Counter(people.values()) == {"train": 2, "test": 1}
        assert all(people[entry.identity] == entry.split for entry in listing.entries)
        assert listing.notes[2] == "Splits: 1 of 3 identities that can be paired are held out for testing."
        assert listing.pairs == {}
        assert split_of(Folder(root, test_share=0.7).listing()) != split_of(listing)

    def test_an_identity_that_cannot_be_paired_is_not_tested(self, root):
        make_images(root / "images", [f"lone{number}_0.jpg" for number in range(20)])
        csv(root / "all.csv", [*NAMES, *(f"lone{number}_0.jpg" for number in range(20))])
        testing = {entry.identity for entry in Folder(root, test_share=0.9).listing().entries if entry.split == "test"}
        assert len(testing) == 2
        assert testing < {"anna", "ben", "carl"}

    def test_the_choice_depends_on_names_only_and_is_stable(self):
        people = [str(number) for number in range(100)]
        chosen = held_out(people, 0.1)
        assert len(chosen) == 10
        assert held_out(people[::-1], 0.1) == chosen
        assert len(held_out([*people, "new"], 0.1) - chosen) <= 1
        assert len(held_out(["a", "b"], 0.99)) == 1

    def test_one_identity_is_a_clear_message(self, tmp_path):
        make_images(tmp_path, NAMES[:3])
        csv(tmp_path / "all.csv", NAMES[:3])
        with pytest.raises(ValueError, match=r"only the identity 'anna' can be paired.*3 images.*pairs-train\.csv"):
            Folder(tmp_path).listing()
        pair_list(tmp_path / "pairs-train.csv", [(NAMES[0], NAMES[1])])
        pair_list(tmp_path / "pairs-test.csv", [(NAMES[0], NAMES[2])])
        listing = Folder(tmp_path).listing()
        assert [(entry.name, entry.split) for entry in listing.entries] == [
            (NAMES[0], "train"),
            (NAMES[0], "test"),
            (NAMES[1], "train"),
            (NAMES[2], "test"),
        ]
        assert listing.notes[-1].startswith("Identities in both splits: 1.")

    def test_no_pair_at_all_is_a_clear_message(self, tmp_path):
        names = ["a_1.jpg", "b_1.jpg"]
        make_images(tmp_path, names)
        csv(tmp_path / "all.csv", names)
        with pytest.raises(ValueError, match=r"no two images can be paired.*2 images with joints, 2 of them"):
            Folder(tmp_path).listing()

    def test_annotation_files_are_splits_when_both_are_there(self, root):
        csv(root / "annotation-train.csv", NAMES[:6])
        assert Counter(split_of(Folder(root).listing()).values()) == {"train": 3, "test": 3}
        csv(root / "annotation-train.csv", NAMES[:5])
        csv(root / "annotation-test.csv", NAMES[5:])
        listing = Folder(root).listing()
        assert [split_of(listing)[name] for name in NAMES] == ["train"] * 5 + ["test"] * 4
        assert listing.notes[2] == "Splits: those of the annotation files."

    @pytest.mark.parametrize("kind", ["csv", "openpose", "coco"])
    def test_pair_lists_are_splits_in_every_format(self, root, kind):
        {"csv": csv, "openpose": openpose, "coco": coco}[kind](root / f"joints.{kind}".replace("coco", "json"), NAMES)
        training = [(NAMES[0], NAMES[1]), (NAMES[4], NAMES[3])]
        pair_list(root / "pairs-train.csv", training)
        pair_list(root / "pairs-test.csv", [("anna_2", "anna_1"), ("anna_2.jpg", "gone_1.jpg")])
        listing = Folder(root).listing()
        assert dict(listing.pairs) == {"train": training, "test": [("anna_2.jpg", "anna_1.jpg")]}
        assert {(entry.name, entry.split) for entry in listing.entries} == {
            *((name, "train") for pair in training for name in pair),
            ("anna_2.jpg", "test"),
            ("anna_1.jpg", "test"),
        }
        assert reasons(listing) == {
            **dict.fromkeys((NAMES[5], *NAMES[6:]), "in no pair list"),
            "gone_1.jpg": "no image",
        }
        assert "pairs-test.csv: 1 of 2 pairs are left out" in listing.notes[-1]

    def test_one_pair_list_leaves_the_rest_to_the_other_split(self, root):
        csv(root / "all.csv", NAMES)
        pair_list(root / "pairs-test.csv", [(NAMES[0], NAMES[1])])
        listing = Folder(root).listing()
        assert [name for name, split in split_of(listing).items() if split == "test"] == list(NAMES[:2])
        assert list(listing.pairs) == ["test"]

    def test_a_pair_of_two_identities_is_an_error(self, root):
        csv(root / "all.csv", NAMES)
        pair_list(root / "pairs-train.csv", [(NAMES[0], NAMES[5])])
        with pytest.raises(ValueError, match="joins two identities, 'anna' and 'ben'"):
            Folder(root).listing()

    @pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
    def test_shares_that_make_no_sense(self, root, share):
        with pytest.raises(ValueError, match="test_share must lie between 0 and 1"):
            Folder(root, test_share=share).listing()

    def test_two_lists_for_one_split_are_an_error(self, root):
        csv(root / "all.csv", NAMES)
        for name in ("a-pairs-train.csv", "b-pairs-train.csv"):
            pair_list(root / name, [(NAMES[0], NAMES[1])])
        with pytest.raises(ValueError, match=r"ends with 'pairs-train\.csv', found a-pairs-train\.csv, b-pairs-train"):
            Folder(root).listing()


def test_the_fingerprint_follows_images_joints_and_settings(root):
    csv(root / "all.csv", NAMES)
    seen = [Folder(root).listing().fingerprint]
    assert Folder(root).listing().fingerprint == seen[0]
    seen.append(Folder(root, identity="([a-z])").listing().fingerprint)
    (root / "images" / NAMES[0]).write_bytes(b"a longer image")
    seen.append(Folder(root).listing().fingerprint)
    csv(root / "all.csv", NAMES, x=11)
    seen.append(Folder(root).listing().fingerprint)
    assert len(set(seen)) == 4


@pytest.mark.skipif(not TFJS.exists(), reason="the shared tfjs-models images are not here")
@pytest.mark.parametrize("joints", [None, "openpose_body18", "person_keypoints.json"])
def test_real_images_have_the_same_pairs_in_three_formats(joints):
    source = Folder(TFJS, joints=None if joints is None else TFJS / joints)
    listing = source.listing()
    assert {split: len(pairs) for split, pairs in listing.pairs.items()} == {"train": 11_772, "test": 708}
    assert listing.pairs["test"] == read_pairs_csv(TFJS / "pairs-test.csv")
    assert Counter(entry.split for entry in listing.entries) == {"train": 148, "test": 37}
    assert listing.rejects == []
    for split, count in (("train", 11_772), ("test", 708)):
        entries = [entry for entry in listing.entries if entry.split == split]
        assert len(ordered_pairs([entries[row].group for row in usable_rows(entries)])) == count
    assert source.load(listing.entries[0]).encoded.startswith(b"\xff\xd8")
