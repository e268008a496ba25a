"""DeepFashion: one mapping of three spellings, clothes as groups, splits, lists, the crop, and what is rejected why."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from posegen.data.formats.images import open_image
from posegen.data.formats.posegan_csv import HEADER
from posegen.data.listing import Listing, Reject, Source
from posegen.data.shards.making import ShardSettings, Work, make_shard, prepare
from posegen.data.sources.deepfashion import CROPPED, DeepFashion, Name, parse_name
from posegen.data.sources.pairs import ordered_pairs
from tests.conftest import SHARED_DATA

LISTS = SHARED_DATA / "open/pose-transfer-lists"
needs_lists = pytest.mark.skipif(not LISTS.exists(), reason="the shared DeepFashion name lists are not here")


def names(*spelled: str) -> list[Name]:
    return [name for text in spelled if (name := parse_name(text))]


TRAIN = names(
    "WOMEN/Blouses_Shirts/id_00000001/02_1_front",
    "WOMEN/Blouses_Shirts/id_00000001/02_2_side",
    "WOMEN/Blouses_Shirts/id_00000001/03_1_front",
    "MEN/Jackets_Vests/id_00000007/01_7_additional",
    "MEN/Suiting/id_00000007/01_4_full",
    "WOMEN/Blouses_Shirts/id_00000001/03_3_back",
)
TEST = names("WOMEN/Dresses/id_00000002/02_3_back", "WOMEN/Dresses/id_00000002/02_6_flat")


def pose_gan(name: Name) -> str:
    return f"fasion{name.gender}{name.category}id{name.clothes}_{name.number}{name.view}"


def patn(name: Name) -> str:
    return f"fashion{name.gender}{str(name).split('/')[1]}id{name.clothes}_{name.number}{name.view}"


def dashed(name: Name) -> str:
    return str(name).replace("/", "-")


SPELLINGS: dict[str, Callable[[Name], str]] = {"official": str, "dashed": dashed, "pose_gan": pose_gan, "patn": patn}
PLACES = {"official": "img", "dashed": "images", "pose_gan": "fasion-dataset/all", "patn": ""}


def jpeg(width: int = 256, height: int = 256) -> bytes:
    """An image whose columns differ, so that a crop shows where it was cut."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    left = (256 - width) // 2
    return cv2.imencode(".jpg", pixels[:height, left : left + width])[1].tobytes()


IMAGE = jpeg()


def make_images(
    root: Path, wanted: Iterable[Name], spelling: str = "patn", *, suffix: str = ".jpg", image: bytes = IMAGE
) -> None:
    for name in wanted:
        path = root / PLACES[spelling] / (SPELLINGS[spelling](name) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


def row(name: Name, spelling: str = "patn", *, x: int = 128, y: int = 100) -> str:
    path = SPELLINGS[spelling](name)
    return f"{path}.jpg: {[y] * 17 + [-1]}: {[x] * 17 + [-1]}\n"


def annotate(root: Path, split: str, rows: Iterable[str], prefix: str = "fasion") -> None:
    (root / f"{prefix}-annotation-{split}.csv").write_text(f"{HEADER}\n{''.join(rows)}")


def make_root(root: Path, images: str = "patn", spelling: str = "patn", prefix: str = "fasion", x: int = 128) -> Path:
    root.mkdir(exist_ok=True)
    make_images(root, [*TRAIN, *TEST], images)
    for split, wanted in (("train", TRAIN), ("test", TEST)):
        annotate(root, split, [row(name, spelling, x=x) for name in wanted], prefix)
    return root


def split_lists(root: Path, train: Iterable[Name], test: Iterable[Name]) -> None:
    for split, wanted in (("train", train), ("test", test)):
        (root / f"{split}.lst").write_text("".join(f"{patn(name)}.jpg\n" for name in wanted))


def pair_list(root: Path, split: str, pairs: Iterable[tuple[str, str]], prefix: str = "fasion") -> None:
    lines = "".join(f"{source},{target}\n" for source, target in pairs)
    (root / f"{prefix}-pairs-{split}.csv").write_text(f"from,to\n{lines}")


def called(listing: Listing, split: str) -> list[str]:
    return [entry.name for entry in listing.entries if entry.split == split]


def rejected(listing: Listing) -> dict[str, str]:
    return {reject.name: reject.reason for reject in listing.rejects}


def pairs_by_rule(listing: Listing, split: str) -> list[tuple[str, str]]:
    entries = [entry for entry in listing.entries if entry.split == split]
    pairs = ordered_pairs([entry.group for entry in entries])
    return [(entries[source].name, entries[target].name) for source, target in pairs]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


class TestNames:
    @pytest.mark.parametrize(
        "text",
        [
            "WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg",
            "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg",
            "C:\\data\\img\\WOMEN\\Blouses_Shirts\\id_00000001\\02_1_front.png",
            "/data/fasionWOMENBlousesShirtsid0000000102_1front.jpg",
            "fashionWOMENBlouses_Shirtsid0000000102_1front.PNG",
            "train/fashionWOMENBlouses_Shirtsid0000000102_1front",
        ],
    )
    def test_all_spellings_mean_the_same(self, text: str):
        name = Name("WOMEN", "BlousesShirts", "00000001", "02", 1, "front")
        assert parse_name(text) == name
        assert name.clothes == "0000000102"

    def test_they_are_written_back(self):
        name = Name("WOMEN", "BlousesShirts", "00000001", "02", 1, "front")
        assert str(name) == "WOMEN/Blouses_Shirts/id_00000001/02_1_front"
        assert pose_gan(name) == "fasionWOMENBlousesShirtsid0000000102_1front"
        assert patn(name) == "fashionWOMENBlouses_Shirtsid0000000102_1front"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "0002_c1s1_000451_03.jpg",
            "WOMEN/Dresses/id_0000002/02_1_front.jpg",
            "KIDS/Dresses/id_00000002/02_1_front.jpg",
            "WOMEN/id_00000002/02_1_front.jpg",
            "fashionWOMENDressesid000000020_1front.jpg",
            "fashionWOMENDressesid0000000202_front.jpg",
            "fashionWOMENDressesid0000000202_1front_vis.jpg",
        ],
    )
    def test_other_names_are_none(self, text: str):
        assert parse_name(text) is None


@needs_lists
class TestPublishedLists:
    @pytest.fixture(scope="class")
    def listed(self) -> dict[str, list[str]]:
        return {split: (LISTS / f"{split}.lst").read_text().split() for split in ("train", "test")}

    def test_every_name_goes_through_every_spelling_and_back(self, listed):
        texts = [*listed["train"], *listed["test"]]
        parsed = names(*texts)
        assert len(texts) == len(parsed) == len(set(parsed)) == 52_712
        assert [f"{patn(name)}.jpg" for name in parsed] == texts
        for spell in (str, pose_gan):
            spelled = [spell(name) for name in parsed]
            assert names(*spelled) == parsed
            assert len(set(spelled)) == 52_712  # two images never fall together

    def test_what_occurs(self, listed):
        parsed = [name for texts in listed.values() for text in texts if (name := parse_name(text))]
        assert Counter((name.number, name.view) for name in parsed) == {
            (1, "front"): 12_861,
            (2, "side"): 10_923,
            (3, "back"): 10_661,
            (4, "full"): 6_670,
            (6, "flat"): 683,
            (7, "additional"): 10_914,
        }
        assert len({name.item for name in parsed}) == 7_982
        assert len({(name.gender, name.category) for name in parsed}) == 23

    def test_pairs_of_the_same_clothes_and_why_not_by_the_first_underscore(self, listed):
        """Without joints nothing is left out: PATN's 8,570 test pairs are what the joints leave of these 12,860."""

        def count(groups: Iterable[str]) -> int:
            return len(ordered_pairs(list(groups)))

        def clothes(text: str) -> str:
            name = parse_name(text)
            return name.clothes if name else ""

        assert count(map(clothes, listed["test"])) == 12_860
        assert count(map(clothes, listed["train"])) == 155_588
        assert count(text.partition("_")[0] for text in listed["test"]) == 1_210_044

    def test_all_layouts_and_spellings_give_the_same(self, listed, tmp_path):
        """Some hundred images: the same entries, pairs and fingerprint, whoever named the files."""
        some = {"train": names(*sorted(listed["train"])[:300]), "test": names(*sorted(listed["test"])[:100])}
        listings = []
        for place in SPELLINGS:
            for spelling in ("pose_gan", "patn"):
                root = tmp_path / f"{place}-{spelling}"
                root.mkdir()
                make_images(root, [*some["train"], *some["test"]], place)
                for split, wanted in some.items():
                    prefix = {"pose_gan": "fasion", "patn": "fashion"}[spelling]
                    annotate(root, split, [row(name, spelling) for name in wanted], prefix)
                listings.append(DeepFashion(root).listing())
        assert len({listing.fingerprint for listing in listings}) == 1
        for listing in listings:
            assert called(listing, "train") == [str(name) for name in some["train"]]
            assert called(listing, "test") == [str(name) for name in some["test"]]
            assert pairs_by_rule(listing, "test") == pairs_by_rule(listings[0], "test")
            assert listing.rejects == []
        assert {e.identity for e in listings[0].entries} == {n.clothes for split in some.values() for n in split}


class TestLayouts:
    @pytest.mark.parametrize("images", SPELLINGS)
    @pytest.mark.parametrize("spelling", ["pose_gan", "patn"])
    @pytest.mark.parametrize("prefix", ["fasion", "fashion"])
    def test_entries_stand_in_annotation_order_with_all_that_their_names_say(self, tmp_path, images, spelling, prefix):
        source: Source = DeepFashion(make_root(tmp_path, images, spelling, prefix))
        listing = pickle.loads(pickle.dumps(source)).listing()
        assert called(listing, "train") == [str(name) for name in TRAIN]
        assert called(listing, "test") == [str(name) for name in TEST]
        assert listing.rejects == []
        first = listing.entries[0]
        assert (first.split, first.group, first.identity, first.view) == ("train", "0000000102", "0000000102", "front")
        assert Path(first.path).is_absolute()
        assert first.joints is not None
        assert first.joints.tolist() == [[128, 100]] * 17 + [[-1, -1]]
        assert source.load(first).encoded == IMAGE

    def test_pairs_are_all_ordered_pairs_of_an_item_in_one_colour(self, root):
        listing = DeepFashion(root).listing()
        same = [{TRAIN[0], TRAIN[1]}, {TRAIN[2], TRAIN[5]}, {TRAIN[3], TRAIN[4]}]  # the last in two categories
        expected = {(str(a), str(b)) for pair in same for a, b in permutations(pair)}
        assert set(pairs_by_rule(listing, "train")) == expected
        assert dict(listing.pairs) == {}
        naive = [patn(name).partition("_")[0] for name in TRAIN]  # all four "fashionWOMENBlouses" would be paired
        assert len(ordered_pairs(naive)) == 4 * 3

    def test_flat_folders_of_training_and_test_are_taken_before_others(self, tmp_path):
        make_images(tmp_path / "train", TRAIN)
        make_images(
            tmp_path / "test", TEST, suffix=".png", image=cv2.imencode(".png", np.zeros((256, 256)))[1].tobytes()
        )
        make_images(tmp_path / "fashion_resize", TRAIN, image=jpeg(176))
        annotate(tmp_path, "train", map(row, TRAIN))
        annotate(tmp_path, "test", map(row, TEST))
        source = DeepFashion(tmp_path)
        listing = source.listing()
        assert len(listing.entries) == len([*TRAIN, *TEST])
        assert listing.rejects == []
        assert source.load(listing.entries[-1]).encoded.startswith(b"\x89PNG")

    def test_one_folder_called_train_is_a_folder_like_others(self, tmp_path):
        make_root(tmp_path)
        (tmp_path / "train").mkdir()
        for name in TRAIN[:3]:
            (tmp_path / f"{patn(name)}.jpg").rename(tmp_path / "train" / f"{patn(name)}.jpg")
        listing = DeepFashion(tmp_path).listing()
        assert len(listing.entries) == len([*TRAIN, *TEST])
        assert listing.rejects == []

    def test_a_image_in_two_places_is_rejected(self, tmp_path):
        make_root(tmp_path)
        make_images(tmp_path, TRAIN[:1], "pose_gan")
        listing = DeepFashion(tmp_path).listing()
        assert rejected(listing) == {str(TRAIN[0]): "duplicate name"}
        assert "fasion-dataset/all" in listing.rejects[0].detail
        assert called(listing, "train") == [str(name) for name in TRAIN[1:]]
        make_images(tmp_path, [*TRAIN, *TEST], "pose_gan")
        with pytest.raises(ValueError, match=r"lies there more than once.*keep one folder"):
            DeepFashion(tmp_path).listing()

    def test_the_fingerprint_is_that_of_the_content(self, tmp_path):
        changes = {DeepFashion(make_root(tmp_path / "one")).listing().fingerprint}
        copy = make_root(tmp_path / "copy", images="official", spelling="pose_gan")
        assert {DeepFashion(copy).listing().fingerprint} == changes
        changes.add(DeepFashion(copy, crop="176x256").listing().fingerprint)
        changes.add(DeepFashion(copy, flat_photos=False).listing().fingerprint)
        make_images(copy, TRAIN[:1], "official", image=jpeg() + b" ")
        changes.add(DeepFashion(copy).listing().fingerprint)
        assert len(changes) == 4


class TestJoints:
    def test_uncropped_annotations_are_preferred_and_others_named(self, root):
        for split, wanted in (("train", TRAIN), ("test", TEST)):
            annotate(root, split, [row(name, x=88) for name in wanted], "fasion-resize")
        notes = DeepFashion(root).listing().notes
        assert notes[0] == (
            "Joints: fasion-annotation-train.csv, fasion-annotation-test.csv (pose-gan CSV). Also there and not used: "
            "fasion-resize-annotation-train.csv, fasion-resize-annotation-test.csv."
        )

    def test_two_pairs_of_annotation_files_are_an_error(self, root):
        for split, wanted in (("train", TRAIN), ("test", TEST)):
            annotate(root, split, map(row, wanted), "fashion")
        with pytest.raises(ValueError, match=r"one pair of annotation files .*fashion-annotation-train\.csv"):
            DeepFashion(root).listing()

    def test_one_annotation_file_needs_the_lists(self, root):
        for split in ("train", "test"):
            (root / f"fasion-annotation-{split}.csv").unlink()
        (root / "all.csv").write_text(f"{HEADER}\n{''.join(map(row, [*TRAIN, *TEST]))}")
        with pytest.raises(ValueError, match=r"nothing says which .*all\.csv.*Expected .*train\.lst and test\.lst"):
            DeepFashion(root).listing()
        split_lists(root, TRAIN, TEST)
        listing = DeepFashion(root).listing()
        assert called(listing, "test") == [str(name) for name in TEST]
        assert DeepFashion(root, joints=Path("all.csv")).listing().fingerprint == listing.fingerprint

    def test_no_annotation_is_an_error_that_names_the_formats(self, root):
        for split in ("train", "test"):
            (root / f"fasion-annotation-{split}.csv").unlink()
        with pytest.raises(ValueError, match=r"no joints found in .*pose-gan CSV"):
            DeepFashion(root).listing()

    def test_images_and_rows_without_a_partner_are_rejected(self, root):
        new = names(
            "MEN/Pants/id_00000009/01_1_front", "MEN/Pants/id_00000009/01_2_side", "MEN/Pants/id_00000009/01_3_back"
        )
        make_images(root, [new[0], new[2]])
        (root / "holiday.jpg").write_bytes(IMAGE)
        unnamed = row(new[0]).replace(patn(new[0]), "holiday")
        annotate(
            root,
            "train",
            [*map(row, [*TRAIN, new[1]]), row(new[2]), row(new[2], "pose_gan").replace(": [", ": [1", 1), unnamed],
        )
        listing = DeepFashion(root).listing()
        assert called(listing, "train") == [str(name) for name in TRAIN]
        assert [reject[:3] for reject in listing.rejects] == [
            ("holiday.jpg", "train", "no DeepFashion name"),
            ("holiday.jpg", "train", "no image"),
            (str(new[2]), "train", "duplicate name"),
            (str(new[0]), "train", "no joints"),
            (str(new[1]), "train", "no image"),
        ]

    def test_fractions_are_refused_with_a_remedy_that_this_source_has(self, root):
        shares = [f"{patn(name)}.jpg: {[0.25] * 18}: {[0.5] * 18}\n" for name in TEST]
        annotate(root, "test", shares)
        with pytest.raises(ValueError, match=r"look like fractions.* Write them in pixels \(OpenPose"):
            DeepFashion(root).listing()

    def test_a_malformed_row_names_file_and_line(self, root):
        annotate(root, "test", [row(TEST[0]), f"{patn(TEST[1])}.jpg: [1]: [2]\n"])
        with pytest.raises(ValueError, match=r"fasion-annotation-test\.csv, line 3: expected a list of 18 numbers"):
            DeepFashion(root).listing()


class TestSplits:
    def test_a_name_in_both_annotation_files_is_an_error(self, root):
        annotate(root, "test", [row(name, "pose_gan") for name in (*TEST, TRAIN[2])])
        with pytest.raises(ValueError, match=r"1 images are in two of .*id_00000001/03_1_front.*take them out"):
            DeepFashion(root).listing()

    def test_lists_in_the_root_decide(self, root):
        split_lists(root, [*TRAIN[:2], *TEST], TRAIN[2:5])
        listing = DeepFashion(root).listing()
        assert called(listing, "train") == [str(name) for name in (*TRAIN[:2], *TEST)]
        assert called(listing, "test") == [str(name) for name in TRAIN[2:5]]
        assert listing.rejects == [
            Reject(str(TRAIN[5]), "train", "in no split list", "train.lst and test.lst do not name it")
        ]
        assert (
            "Splits: those of train.lst and test.lst. 5 of their names are in the other split's annotation file."
            in listing.notes
        )

    def test_listed_names_without_a_image_are_rejected(self, root):
        ghost = names("MEN/Pants/id_00000009/01_1_front")
        split_lists(root, TRAIN, [*TEST, *ghost])
        listing = DeepFashion(root).listing()
        assert listing.rejects == [Reject(str(ghost[0]), "test", "no image", "named in test.lst")]

    def test_lists_that_overlap_lack_their_half_or_hold_no_names_are_errors(self, root):
        split_lists(root, TRAIN, [*TEST, TRAIN[0]])
        with pytest.raises(ValueError, match=r"1 images are in two of train\.lst, test\.lst, such as WOMEN/Blouses"):
            DeepFashion(root).listing()
        (root / "test.lst").write_text(f"{patn(TEST[0])}.jpg\n\nholiday.jpg\n")
        with pytest.raises(ValueError, match=r"test\.lst, line 3: expected a name of DeepFashion, found 'holiday"):
            DeepFashion(root).listing()
        (root / "test.lst").unlink()
        with pytest.raises(ValueError, match=r"has train\.lst alone; expected train\.lst and test\.lst, or neither"):
            DeepFashion(root).listing()
        split_lists(root, [], names("MEN/Pants/id_00000009/01_1_front"))
        with pytest.raises(ValueError, match="name no image that is there with joints"):
            DeepFashion(root).listing()

    def test_clothes_in_both_splits_are_said(self, root):
        assert not any("both splits" in note for note in DeepFashion(root).listing().notes)
        split_lists(root, [*TRAIN[:3], *TRAIN[4:]], [*TEST, TRAIN[3]])
        notes = DeepFashion(root).listing().notes
        assert "Clothes (item and colour) in both splits: 1. The scores say less about other clothes." in notes


class TestPairLists:
    @pytest.mark.parametrize("images", SPELLINGS)
    @pytest.mark.parametrize("spelling", ["pose_gan", "patn"])
    def test_they_are_honoured_in_any_spelling(self, tmp_path, images, spelling):
        root = make_root(tmp_path, images)
        given = [(TRAIN[5], TRAIN[2]), (TRAIN[1], TRAIN[0]), (TRAIN[3], TRAIN[4])]
        spell = SPELLINGS[spelling]
        pair_list(root, "train", [(f"{spell(a)}.jpg", f"{spell(b)}.jpg") for a, b in given])
        pairs = DeepFashion(root).listing().pairs
        assert dict(pairs) == {"train": [(str(a), str(b)) for a, b in given]}

    def test_pairs_of_what_is_not_there_are_left_out(self, root):
        ghost = names("WOMEN/Blouses_Shirts/id_00000001/02_4_full")[0]
        lines = [(TRAIN[0], TRAIN[1]), (TRAIN[0], ghost)]
        pair_list(root, "train", [(f"{patn(a)}.jpg", f"{patn(b)}.jpg") for a, b in lines])
        pair_list(root, "test", [(f"{patn(TEST[0])}.jpg", f"{patn(TEST[1])}.jpg")])
        listing = DeepFashion(root, flat_photos=False).listing
        with pytest.raises(ValueError, match="no pair names two images"):
            listing()
        (root / "fasion-pairs-test.csv").unlink()
        assert rejected(listing()) == {
            str(TEST[1]): "flat garment photo",
            f"{patn(ghost)}.jpg": "no image",
        }
        assert "fasion-pairs-train.csv: 1 of 2 pairs are left out" in listing().notes[-1]

    def test_pairs_of_two_colours_are_an_error(self, root):
        pair_list(root, "train", [(patn(TRAIN[0]), patn(TRAIN[2]))])
        with pytest.raises(ValueError, match=r"joins two identities, '0000000102' and '0000000103'"):
            DeepFashion(root).listing()

    def test_of_several_lists_the_annotations_own_is_taken(self, root):
        pair_list(root, "train", [(patn(TRAIN[0]), patn(TRAIN[1]))])
        pair_list(root, "train", [(patn(TRAIN[1]), patn(TRAIN[0]))], "fasion-resize")
        assert DeepFashion(root).listing().pairs["train"] == [(str(TRAIN[0]), str(TRAIN[1]))]
        (root / "fasion-pairs-train.csv").rename(root / "other-pairs-train.csv")
        with pytest.raises(ValueError, match=r"one list of train pairs .*other-pairs-train\.csv: take the others away"):
            DeepFashion(root).listing()
        (root / "other-pairs-train.csv").unlink()
        assert DeepFashion(root).listing().pairs["train"] == [(str(TRAIN[1]), str(TRAIN[0]))]


class TestFlatPhotos:
    def test_they_stay_in_and_are_left_out_when_asked(self, root):
        assert str(TEST[1]) in called(DeepFashion(root).listing(), "test")
        listing = DeepFashion(root, flat_photos=False).listing()
        assert listing.rejects == [Reject(str(TEST[1]), "test", "flat garment photo")]
        assert called(listing, "test") == [str(TEST[0])]


def with_edges(root: Path, prefix: str, shift: int) -> None:
    """Joints at both edges of the crop, one beyond each, and missing ones; `shift` is what x lacks to x256."""
    xs, ys = [128] * 12 + [0, 39, 40, 255, -1, 39], [100] * 16 + [-1, 7]
    moved = [x if (x, y) == (-1, -1) else x - shift for x, y in zip(xs, ys, strict=True)]
    lists = f"{[*ys]}:{[*moved]}".replace(" ", "")
    annotate(root, "train", [f"{patn(name)}.jpg:{lists}\n" for name in TRAIN], prefix)
    annotate(root, "test", [f"{patn(name)}.jpg:{lists}\n" for name in TEST], prefix)


@pytest.fixture(params=[("fasion", 0), ("fasion-resize", 40)], ids=["x256", "x176"])
def edged(request, tmp_path: Path) -> Path:
    make_images(tmp_path, [*TRAIN, *TEST])
    with_edges(tmp_path, *request.param)
    return tmp_path


class TestCrop:
    def test_joints_are_moved_exactly_and_missing_ones_stay(self, edged):
        """Whichever frame the files are in. (39, 7) lands on x = -1 and is no missing joint; it is 1 px outside."""
        entry = DeepFashion(edged, crop="176x256").listing().entries[0]
        assert entry.joints is not None
        assert entry.visible is not None
        assert entry.joints[:, 0].tolist() == [88] * 12 + [-40, -1, 0, 215, -1, -1]
        assert entry.joints[:, 1].tolist() == [100] * 16 + [-1, 7]
        assert entry.visible.tolist() == [True] * 16 + [False, True]

    def test_without_it_joints_are_those_of_the_whole_image(self, edged):
        entry = DeepFashion(edged).listing().entries[0]
        assert entry.joints is not None
        assert entry.joints[:, 0].tolist() == [128] * 12 + [0, 39, 40, 255, -1, 39]

    def test_images_lose_their_borders_and_are_encoded_once(self, edged):
        """The shard's JPEG is byte for byte that of the cropped pixels: nothing else was encoded in between."""
        source = DeepFashion(edged, crop="176x256")
        entry = source.listing().entries[0]
        image = source.load(entry)
        whole = open_image(IMAGE).pixels
        np.testing.assert_array_equal(open_image(image.encoded).pixels, whole[:, 40:216])
        stored = prepare(entry, source, ShardSettings(size=source.size), listed=False)
        pixels = np.ascontiguousarray(whole[:, 40:216])
        encoded = simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")
        assert stored.image == encoded
        np.testing.assert_array_equal(stored.joints, entry.joints)
        assert stored.notes == ("encoded again at its size", "joints outside the image")

    def test_cropped_images_are_taken_as_they_are(self, edged):
        whole = DeepFashion(edged, crop="176x256").listing()
        make_images(edged, [*TRAIN, *TEST], image=jpeg(176))
        source = DeepFashion(edged, crop="176x256")
        listing = source.listing()
        assert source.size == CROPPED
        assert source.load(listing.entries[0]).encoded == jpeg(176)
        for mine, other in zip(listing.entries, whole.entries, strict=True):
            np.testing.assert_array_equal(mine.joints, other.joints)  # pyright: ignore
        with pytest.raises(ValueError, match=r"are 176x256 pixels .* stretched to 256x256\. Give --set data\.crop="):
            DeepFashion(edged).listing()

    def test_moved_joints_are_said(self, root):
        note = "The joints are moved 40 pixels to the left, for images of 176x256 pixels."
        assert note in DeepFashion(root, crop="176x256").listing().notes
        for split in ("train", "test"):
            (root / f"fasion-annotation-{split}.csv").rename(root / f"fasion-resize-annotation-{split}.csv")
            with_edges(root, "fasion-resize", 40)
        assert "The joints are moved 40 pixels to the right, for images of 256x256 pixels." in (
            DeepFashion(root).listing().notes
        )

    @pytest.mark.parametrize(("prefix", "x"), [("fasion", 88), ("fasion-resize", 128)])
    def test_names_that_contradict_the_joints_are_an_error(self, tmp_path, prefix, x):
        root = make_root(tmp_path, prefix=prefix, x=x)
        with pytest.raises(ValueError, match=rf"but their median x, {x}, is near the middle of {2 * x}"):
            DeepFashion(root).listing()


class TestBadImages:
    def test_images_of_another_size_are_an_error_or_rejected(self, root):
        entries = DeepFashion(root).listing().entries
        Path(entries[1].path).write_bytes(jpeg(200))
        Path(entries[2].path).write_bytes(jpeg()[:300])
        Path(entries[3].path).write_bytes(b"\xff\xd8")
        Path(entries[4].path).write_bytes(b"")
        Path(entries[5].path).write_bytes(b"no image")
        for crop in ("none", "176x256"):
            source = DeepFashion(root, crop=crop)
            expected = "image of another size 200x256 pixels (width x height), expected " + (
                "256x256" if crop == "none" else "176x256"
            )
            shard = Work("train", 0, tuple(source.listing().entries[:6]))
            found = make_shard(shard, source, root, ShardSettings(size=source.size), {}).rejects
            reasons = [(reject.name, f"{reject.reason} {reject.detail}") for reject in found]
            assert reasons[0] == (entries[1].name, expected)
            damaged = "truncated or damaged image"
            assert [reject.reason for reject in found[1:5]] == [damaged, damaged, "unreadable file", damaged]
        for entry in entries:
            Path(entry.path).write_bytes(jpeg(200))
        with pytest.raises(ValueError, match=r"are 200x256 pixels .*Expected 256x256.*--dataset folder"):
            DeepFashion(root).listing()

    def test_the_first_readable_image_tells_the_size(self, root):
        entries = DeepFashion(root).listing().entries
        Path(entries[0].path).write_bytes(b"no image")
        assert DeepFashion(root).listing().entries[0].name == entries[0].name
        for entry in entries:
            Path(entry.path).write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"none of the first images can be read, such as .*id0000000102_1front"):
            DeepFashion(root).listing()

    def test_a_root_without_what_is_needed(self, tmp_path):
        with pytest.raises(ValueError, match=r"nowhere' is not a folder\. Expected one with 'img' as DeepFashion"):
            DeepFashion(tmp_path / "nowhere").listing()
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(ValueError, match=r"holds no image; there is notes\.txt\. Expected 'img'.*fasion-ann"):
            DeepFashion(tmp_path).listing()
        (tmp_path / "holiday.jpg").write_bytes(IMAGE)
        with pytest.raises(ValueError, match=r"none of the 1 images .* called \['holiday\.jpg'\].*--dataset folder"):
            DeepFashion(tmp_path).listing()

    def test_a_split_without_images_is_an_error_with_counts(self, root):
        (root / f"{patn(TEST[0])}.jpg").unlink()
        with pytest.raises(ValueError, match=r"for the split 'test': 6 images .* 1 flat garment photo, 1 no image"):
            DeepFashion(root, flat_photos=False).listing()

    def test_joints_of_other_images_are_an_error(self, tmp_path):
        make_images(tmp_path, TRAIN)
        annotate(tmp_path, "train", map(row, TEST[:1]))
        annotate(tmp_path, "test", map(row, TEST[1:]))
        with pytest.raises(ValueError, match=r"no image in .* called \['MEN/Jackets_Vests/id_00000007/01_7_additional"):
            DeepFashion(tmp_path).listing()
        for split in ("train", "test"):
            annotate(tmp_path, split, ["0002_c1s1_000451_03.jpg" + row(TEST[0])[len(patn(TEST[0])) + 4 :]])
        with pytest.raises(ValueError, match=r"names no image of DeepFashion, but \['0002_c1s1"):
            DeepFashion(tmp_path).listing()
