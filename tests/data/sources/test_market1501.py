"""Market-1501: entries in annotation order, pair lists, rejects with reasons, and the real subset."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.posegan_csv import HEADER
from posegen.data.listing import Reject, Source
from posegen.data.sources import market1501, pairs
from posegen.data.sources.market1501 import Market1501, camera
from posegen.data.sources.pairs import ordered_pairs, read_pairs_csv, usable_rows
from tests.conftest import SHARED_DATA

SUBSET = SHARED_DATA / "research/market1501-subset"
TRAIN = ("0007_c3s1_000551_02.jpg", "0002_c1s1_000451_03.jpg", "0007_c1s2_000001_01.jpg", "0002_c2s1_000776_01.jpg")
TEST = ("0009_c1s1_000001_01.jpg", "-1_c3s2_000002_01.jpg", "0000_c1s1_000003_01.jpg", "0009_c6s4_000004_01.jpg")


def row(name: str, x: int = 10) -> str:
    return f"{name}: {[20] * 18}: {[x] * 18}\n"


@pytest.fixture
def root(tmp_path):
    for split, names in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"bounding_box_{split}").mkdir()
        for name in names:
            (tmp_path / f"bounding_box_{split}" / name).write_bytes(b"an image")
        rows = "".join(row(name) for name in names)
        (tmp_path / f"market-annotation-{split}.csv").write_text(f"{HEADER}\n{rows}")
    return tmp_path


def add_rows(root, split, text):
    with (root / f"market-annotation-{split}.csv").open("a") as file:
        file.write(text)


def test_entries_stand_in_annotation_order_with_all_that_their_names_say(root):
    source = Market1501(root)
    assert isinstance(pickle.loads(pickle.dumps(source)), Market1501)
    listing = source.listing()
    assert tuple(entry.name for entry in listing.entries) == TRAIN + TEST
    first = listing.entries[0]
    assert (first.split, first.identity, first.group, first.view) == ("train", "0007", "0007", "c3")
    assert Path(first.path).is_absolute()
    assert first.joints.tolist() == [[10, 20]] * 18
    assert [entry.name for entry in listing.entries if entry.distractor] == list(TEST[1:3])
    assert listing.entries[5].identity == "-1"
    assert listing.rejects == []
    assert source.load(first).encoded == b"an image"


def test_it_is_a_source(root):
    source: Source = Market1501(root)
    assert source.name == "market1501"


@pytest.mark.parametrize(("name", "view"), [(TRAIN[0], "c3"), ("0007_c12s3_1.jpg", "c12"), ("0007.jpg", "")])
def test_the_camera_is_read_from_the_name(name, view):
    assert camera(name) == view


def test_images_and_rows_that_have_no_partner_are_rejected(root):
    (root / "bounding_box_train" / "0003_c1s1_000001_01.jpg").write_bytes(b"unknown")
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"no image")
    (root / "bounding_box_train" / ".hidden.jpg").write_bytes(b"no image")
    add_rows(root, "train", 2 * row("0004_c1s1_000001_01.jpg") + row(TRAIN[0], x=3))
    listing = Market1501(root).listing()
    assert [reject[:3] for reject in listing.rejects] == [
        ("0003_c1s1_000001_01.jpg", "train", "no joints"),
        (TRAIN[0], "train", "duplicate name"),
        ("0004_c1s1_000001_01.jpg", "train", "no image"),
    ]
    assert TRAIN[0] not in {entry.name for entry in listing.entries}
    assert "line 2" in listing.rejects[1].detail


def test_pair_lists_are_honoured(root):
    given = [(TRAIN[3], TRAIN[1]), (TRAIN[0], TRAIN[2])]
    lines = "".join(f"{source},{target}\n" for source, target in given)
    (root / "market-pairs-train.csv").write_text(f"from,to\n{lines}{TRAIN[1]},0002_c9s9_1.jpg\n")
    listing = Market1501(root).listing()
    assert dict(listing.pairs) == {"train": given}
    assert Reject("0002_c9s9_1.jpg", "train", "no image", "named in market-pairs-train.csv") in listing.rejects
    assert any("1 of 3 pairs are left out" in note for note in listing.notes)


def test_the_published_draw_is_taken_where_there_are_enough_pairs(root, monkeypatch):
    assert "test" not in Market1501(root).listing().pairs
    names = [f"0001_c1s1_{frame:06d}_01.jpg" for frame in range(111)]  # 111 x 110 + 2 pairs
    for name in names:
        (root / "bounding_box_test" / name).write_bytes(b"an image")
    add_rows(root, "test", "".join(map(row, names)))
    listing = Market1501(root).listing()
    ordered = [(TEST[0], TEST[3]), (TEST[3], TEST[0])]
    ordered += [(source, target) for source in names for target in names if source != target]
    drawn = np.random.RandomState(0).choice(len(ordered), 12_000, replace=False)
    assert listing.pairs["test"] == [ordered[place] for place in drawn]
    assert listing.notes == (
        "Test pairs: 12,000 drawn with seed 0 from 12,212 ordered pairs: not the published ones, which are drawn from "
        "257,198.",
    )
    assert "train" not in listing.pairs


def test_the_fingerprint_is_that_of_the_content(root, tmp_path_factory):
    first = Market1501(root).listing().fingerprint
    copy = tmp_path_factory.mktemp("copy") / "market"
    shutil.copytree(root, copy)
    assert Market1501(copy).listing().fingerprint == first
    changes = {first}
    (copy / "bounding_box_train" / TRAIN[0]).write_bytes(b"another image")
    changes.add(Market1501(copy).listing().fingerprint)
    (copy / "market-pairs-train.csv").write_text(f"from,to\n{TRAIN[0]},{TRAIN[2]}\n")
    changes.add(Market1501(copy).listing().fingerprint)
    (copy / "market-annotation-test.csv").write_text(f"{HEADER}\n" + "".join(row(name, x=11) for name in TEST))
    changes.add(Market1501(copy).listing().fingerprint)
    add_rows(copy, "train", row("0004_c1s1_000001_01.jpg"))
    changes.add(Market1501(copy).listing().fingerprint)
    assert len(changes) == 5


def test_images_that_cannot_be_read_are_rejected_when_loaded(root):
    entries = Market1501(root).listing().entries
    (root / "bounding_box_train" / TRAIN[0]).write_bytes(b"")
    (root / "bounding_box_train" / TRAIN[1]).unlink()
    for entry in entries[:2]:
        with pytest.raises(ValueError, match="unreadable file") as caught:
            Market1501(root).load(entry)
        reason, detail = caught.value.args
        assert reason == "unreadable file"
        assert entry.name in detail


def test_a_link_that_leads_nowhere_is_listed_and_cannot_be_loaded(root):
    image = root / "bounding_box_train" / TRAIN[0]
    image.unlink()
    image.symlink_to(root / "nowhere.jpg")
    entry = Market1501(root).listing().entries[0]
    with pytest.raises(ValueError, match="unreadable file"):
        Market1501(root).load(entry)


def test_missing_folders_and_files_are_named(root):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder\. Expected one with bounding_box_train"):
        Market1501(root / "nowhere").listing()
    (root / "market-annotation-test.csv").unlink()
    with pytest.raises(ValueError, match=r"lacks market-annotation-test\.csv; there is bounding_box_test, bounding"):
        Market1501(root).listing()


def test_empty_folders_and_names_that_never_meet_are_errors(root):
    for name in TRAIN:
        (root / "bounding_box_train" / name).unlink()
    with pytest.raises(ValueError, match="holds no image"):
        Market1501(root).listing()
    (root / "bounding_box_train" / "else.jpg").write_bytes(b"an image")
    with pytest.raises(ValueError, match=r"images are called \['else\.jpg'\], rows \['0007_c3s1_000551_02\.jpg'"):
        Market1501(root).listing()


def test_a_malformed_row_names_file_and_line(root):
    add_rows(root, "test", "0009_c1s1_000001_02.jpg: [1, 2]: [3, 4]\n")
    with pytest.raises(ValueError, match=r"market-annotation-test\.csv, line 6: expected a list of 18 numbers for y"):
        Market1501(root).listing()


def test_the_published_numbers_are_pose_gans():
    assert pairs.PUBLISHED_TEST_PAIRS == 12_000
    assert market1501.PUBLISHED_CANDIDATES == 257_198


@pytest.mark.skipif(not SUBSET.exists(), reason="the shared Market-1501 subset is not here")
class TestRealSubset:
    def test_counts(self):
        listing = Market1501(SUBSET).listing()
        assert Counter(entry.split for entry in listing.entries) == {"train": 1747, "test": 199}
        assert listing.rejects == []
        assert listing.notes == ()
        assert len(listing.pairs["train"]) == 45_648
        assert listing.pairs["test"] == read_pairs_csv(SUBSET / "market-pairs-test.csv")
        assert len(listing.pairs["test"]) == 100

    def test_the_rule_makes_the_given_training_pairs_row_for_row(self):
        listing = Market1501(SUBSET).listing()
        entries = [entry for entry in listing.entries if entry.split == "train"]
        rows = usable_rows(entries)
        assert len(rows) == 1554
        ruled = rows[ordered_pairs([entries[row].group for row in rows])]
        assert [(entries[source].name, entries[target].name) for source, target in ruled] == listing.pairs["train"]

    def test_images_are_the_files_bytes(self):
        source = Market1501(SUBSET)
        entry = source.listing().entries[0]
        image = source.load(entry)
        assert image.encoded == (SUBSET / "bounding_box_train" / entry.name).read_bytes()
        assert image.encoded.startswith(b"\xff\xd8")
        assert (image.joints == entry.joints).all()
