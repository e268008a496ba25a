"""Pairs: the rule against a slow twin, the published draw, and lists that are right and wrong."""

from itertools import permutations

import numpy as np
import pytest

from posegen.data.formats.posegan_csv import read_pose_gan_csv
from posegen.data.listing import Entry, Reject
from posegen.data.sources.pairs import given_pairs, ordered_pairs, published_draw, read_pairs_csv, usable_rows
from tests.conftest import SHARED_DATA

ANNOTATIONS = SHARED_DATA / "research/annotations"


def entry(name: str, *, missing: tuple[int, ...] = (), distractor: bool = False, split: str = "train") -> Entry:
    visible = np.ones(18, dtype=bool)
    visible[list(missing)] = False
    group = name.partition("_")[0]
    return Entry(name, split, group, group, "", name, np.ones((18, 2), np.float32), visible, distractor)


def slow_pairs(groups):
    rows = {group: [row for row, other in enumerate(groups) if other == group] for group in dict.fromkeys(groups)}
    return [pair for members in rows.values() for pair in permutations(members, 2)]


def test_pairs_of_a_small_listing_by_hand():
    assert ordered_pairs(["b", "a", "b", "c", "b"]).tolist() == [[0, 2], [0, 4], [2, 0], [2, 4], [4, 0], [4, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_pairs_equal_the_permutations_of_every_group(seed):
    groups = [str(group) for group in np.random.default_rng(seed).integers(0, 9, size=40)]
    assert ordered_pairs(groups).tolist() == [list(pair) for pair in slow_pairs(groups)]


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "b", "c"]])
def test_no_pairs_where_nobody_is_twice_there(groups):
    assert ordered_pairs(groups).shape == (0, 2)


def test_only_a_whole_torso_is_usable_and_no_distractor():
    entries = [entry("a_1"), entry("a_2", missing=(0, 1, 14)), entry("0000_1", distractor=True)]
    entries += [entry("a_3", missing=(joint,)) for joint in (2, 5, 8, 11)]
    assert usable_rows(entries).tolist() == [0, 1]


def test_joints_that_are_not_finite_count_only_where_visible():
    known, unknown = entry("a_1"), entry("a_2", missing=(0,))
    known.joints[0], unknown.joints[0] = np.nan, np.inf
    assert usable_rows([known, unknown]).tolist() == [1]


def test_entries_without_joints_yet_are_left_out():
    made = entry("a_1")._replace(joints=None, visible=None)
    assert usable_rows([made]).tolist() == []
    assert usable_rows([made, entry("a_2")]).tolist() == [1]


def test_the_draw_is_without_replacement_and_needs_enough_pairs():
    drawn = published_draw(12_000)
    assert sorted(drawn.tolist()) == list(range(12_000))
    assert published_draw(257_198)[:3].tolist() == np.random.RandomState(0).permutation(257_198)[:3].tolist()
    with pytest.raises(ValueError, match="only 11999"):
        published_draw(11_999)


def test_a_pair_list_is_read_in_its_order(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_bytes(b"\xef\xbb\xbffrom,to\r\na_2.jpg, a_1.jpg\r\n\r\na_1.jpg,a_2.jpg\r\na_2.jpg,a_1.jpg\r\n")
    assert read_pairs_csv(file) == [("a_2.jpg", "a_1.jpg"), ("a_1.jpg", "a_2.jpg"), ("a_2.jpg", "a_1.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"pairs\.csv, line 1: expected the header 'from,to', found ''"),
        (b"a_1.jpg,a_2.jpg\n", "line 1: expected the header 'from,to', found 'a_1.jpg,a_2.jpg'"),
        (b"from,to\na,b\na,b,c\n", "line 3: expected two names 'from,to', found 'a,b,c'"),
        (b"from,to\na,b\nlonely\n", "line 3: expected two names 'from,to', found 'lonely'"),
        (b"from,to\n", "expected pairs of image names after the header, found none"),
        (b"from,to\n\xff\xfe,b\n", "not a comma-separated text file in UTF-8"),
    ],
)
def test_a_pair_list_that_does_not_parse_names_the_place(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs_csv(tmp_path / "pairs.csv")


def given(tmp_path, text, entries, known=()):
    (tmp_path / "pairs-train.csv").write_text("from,to\n" + text)
    return given_pairs(tmp_path / "pairs-train.csv", "train", entries, find=lambda name: name, known=known)


def test_pairs_that_name_what_is_not_there_are_left_out_and_counted(tmp_path):
    entries = [entry("a_1"), entry("a_2"), entry("a_3", split="test")]
    found = given(tmp_path, "a_1,a_2\na_1,a_3\na_9,a_1\na_8,a_1\na_2,a_1\n", entries, known=("a_8",))
    assert found.pairs == [("a_1", "a_2"), ("a_2", "a_1")]
    assert found.rejects == [
        Reject("a_3", "train", "no image", "named in pairs-train.csv"),
        Reject("a_9", "train", "no image", "named in pairs-train.csv"),
    ]
    assert "3 of 5 pairs are left out" in found.notes[0]
    assert given(tmp_path, "a_1,a_2\n", entries).notes == ()


def test_a_list_of_other_images_and_a_pair_of_two_people_are_errors(tmp_path):
    entries = [entry("a_1"), entry("a_2"), entry("b_1")]
    with pytest.raises(ValueError, match=r"no pair names two images.*'x_1'.*'a_1'"):
        given(tmp_path, "x_1,x_2\n", entries)
    with pytest.raises(ValueError, match="'a_1,b_1' joins two identities, 'a' and 'b'"):
        given(tmp_path, "a_1,b_1\n", entries)


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the published Market-1501 annotations are not here")
class TestPublishedLists:
    @staticmethod
    def candidates(split):
        poses = read_pose_gan_csv(ANNOTATIONS / f"market-annotation-{split}.csv").poses
        entries = [
            entry(name)._replace(visible=pose.visible, distractor=name.startswith(("-1_", "0000_")))
            for name, pose in poses.items()
        ]
        names = [entries[row].name for row in usable_rows(entries)]
        return names, ordered_pairs([name.partition("_")[0] for name in names])

    def test_the_training_pairs_are_263_632(self):
        names, pairs = self.candidates("train")
        assert len(names) == 12_116
        assert len(pairs) == 263_632

    def test_the_published_test_pairs_row_for_row(self):
        names, pairs = self.candidates("test")
        assert len(names) == 12_344
        assert len(pairs) == 257_198
        drawn = [(names[source], names[target]) for source, target in pairs[published_draw(len(pairs))]]
        assert drawn == read_pairs_csv(ANNOTATIONS / "market-pairs-test.csv")
