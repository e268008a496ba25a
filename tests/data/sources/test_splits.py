"""A validation split: who is held out, what becomes of given pairs, and what cannot be."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from posegen.data import reasons
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Entry, Listing, Reject
from posegen.data.shards.making import plan_works
from posegen.data.sources.pairs import held_out, shared_identities, with_validation

JOINTS = np.full((18, 2), 10, np.float32)
ALL = np.ones(18, bool)
NO_HIP = np.arange(18) != TORSO[2]


def images(identity, count=2, split="train", **changes) -> list[Entry]:
    """Usable images of one identity."""
    made = Entry("", split, group=identity, identity=identity, view="", path="", joints=JOINTS, visible=ALL)
    return [made._replace(name=f"{identity}_{number}", **changes) for number in range(count)]


def people(count, split="train", first=0, **changes) -> list[Entry]:
    """Two images each of people who are called by their number."""
    return [entry for number in range(first, first + count) for entry in images(f"{number:04d}", 2, split, **changes)]


def identities(listing, split) -> set[str]:
    return {entry.identity for entry in listing.entries if entry.split == split}


TWENTY = Listing([*people(20), *people(5, "test", first=20)], "listed", notes=("before",))


@pytest.mark.parametrize("joints", ["known", "still to be made"])
@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.25, 5), (0.001, 1), (0.999, 19)])
def test_the_share_of_the_training_identities_is_held_out_whole(share, count, joints):
    unmade = [entry._replace(joints=None, visible=None) for entry in TWENTY.entries]
    given = TWENTY if joints == "known" else dataclasses.replace(TWENTY, entries=unmade)
    listing = with_validation(given, share)
    split = {name: identities(listing, name) for name in ("train", "validation", "test")}
    assert {name: len(who) for name, who in split.items()} == {"train": 20 - count, "validation": count, "test": 5}
    assert len(set().union(*split.values())) == 25  # so they are disjoint
    assert split["test"] == identities(TWENTY, "test")
    assert split["validation"] == held_out(identities(TWENTY, "train"), share)


def test_entries_keep_their_order_and_all_but_their_split():
    listing = with_validation(TWENTY, 0.3)
    moved = [entry.split == "validation" for entry in listing.entries]
    assert sum(moved) == 12
    for before, after, held in zip(TWENTY.entries, listing.entries, moved, strict=True):
        assert after == before._replace(split=after.split)
        assert held or after.split == before.split
    assert shared_identities(listing.entries) == 0


def test_the_choice_does_not_depend_on_the_order_of_the_entries():
    random = np.random.default_rng(0)
    expected = identities(with_validation(TWENTY, 0.3), "validation")
    for _ in range(5):
        entries = [TWENTY.entries[place] for place in random.permutation(len(TWENTY.entries))]
        assert identities(with_validation(Listing(entries, ""), 0.3), "validation") == expected


def test_who_cannot_be_paired_is_tested_on_or_is_a_distractor_is_not_held_out():
    barred = [
        *images("alone", 1),
        *images("no hip", 1),
        *images("no hip", 3, visible=NO_HIP)[1:],
        *(entry._replace(group=entry.name) for entry in images("two groups")),
        *images("both"),
        *images("both", 1, "test"),
        *images("junk", 4, distractor=True),
        *images("junk at times", 2),
        *images("junk at times", 3, distractor=True)[2:],
        *images("unmade", 1, joints=None, visible=None),
    ]
    listing = with_validation(Listing([*people(3), *barred], ""), 0.9)
    assert len(identities(listing, "validation")) == 2
    assert identities(listing, "validation") < {"0000", "0001", "0002"}
    assert [entry for entry in listing.entries if entry in barred] == barred
    assert shared_identities(listing.entries) == 1


def test_the_fingerprint_follows_the_share_and_the_notes_say_it():
    prints = [with_validation(TWENTY, share).fingerprint for share in (0.1, 0.1000000001, 0.2)]
    assert len({*prints, TWENTY.fingerprint}) == 4
    assert with_validation(TWENTY, 0.1).fingerprint == prints[0]
    others = dataclasses.replace(TWENTY, fingerprint="other")
    assert with_validation(others, 0.1).fingerprint not in prints
    assert with_validation(TWENTY, 0.1).notes == (
        "before",
        "Validation: 2 of 20 training identities that can be paired and are not tested on are held out.",
    )


def test_given_training_pairs_follow_their_images():
    (chosen,) = held_out({"0000", "0001", "0002"}, 0.3)
    stays, other = sorted({"0000", "0001", "0002"} - {chosen})
    kept = [(f"{stays}_1", f"{stays}_0"), (f"{other}_0", f"{other}_1"), (f"{stays}_0", f"{other}_0")]
    moved = [(f"{chosen}_1", f"{chosen}_0"), (f"{chosen}_0", f"{chosen}_1")]
    unknown = [("who", "else"), (f"{chosen}_0", "who")]
    crossing = (f"{chosen}_0", f"{stays}_0")
    tested = [("0003_0", "0003_1")]
    training = [moved[0], kept[0], unknown[0], crossing, kept[1], moved[1], kept[2], unknown[1]]
    given = Listing(
        [*people(3), *people(1, "test", first=3)], "", [Reject("before", "train", reasons.NO_IMAGE)],
        {"train": training, "test": tested},
    )  # fmt: skip
    listing = with_validation(given, 0.3)
    assert listing.pairs == {
        "train": [kept[0], unknown[0], *kept[1:]],
        "validation": [*moved, unknown[1]],
        "test": tested,
    }
    assert listing.rejects == [*given.rejects, Reject(",".join(crossing), "train", reasons.PAIR_ACROSS_SPLITS)]
    planned = {work.split: work.pairs for work in plan_works(listing, 100)[0]}
    assert [pair[1:] for pair in planned["validation"] or ()] == moved


def test_validation_is_paired_by_the_rule_where_no_given_pair_is_of_it():
    chosen = held_out({"0000", "0001", "0002"}, 0.3)
    (stays, *_) = sorted({"0000", "0001", "0002"} - chosen)
    given = [(f"{stays}_0", f"{stays}_1")]
    tested = [("t_0", "t_1")]
    for pairs in ({"train": given}, {"test": tested}, {"train": given, "test": tested}, {}):
        assert with_validation(Listing(people(3), "", pairs=pairs), 0.3).pairs == pairs


def test_names_stay_unique_within_a_split():
    """Test images may be called as training images are, as those of the embedded people."""
    named = people(4)
    tested = [entry._replace(split="test", identity=f"test-{entry.identity}") for entry in named]
    listing = with_validation(Listing([*named, *tested], ""), 0.5)
    names = Counter((entry.split, entry.name) for entry in listing.entries)
    assert set(names.values()) == {1}
    assert identities(listing, "validation") == held_out(identities(Listing(named, ""), "train"), 0.5)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_an_error(share):
    with pytest.raises(ValueError, match=f"must lie between 0 and 1 .*, not be {share}"):
        with_validation(TWENTY, share)


def test_too_few_identities_are_an_error_that_says_what_there_is():
    entries = [*people(3), *images("alone", 1), *people(2, "test", first=1)]
    match = (
        r"share 0.1 .* and 1 qualify: there are 4 training identities, 3 of them with two .*, 2 of these also tested"
    )
    with pytest.raises(ValueError, match=match):
        with_validation(Listing(entries, ""), 0.1)
    with pytest.raises(ValueError, match="0 qualify: there are 0 training identities"):
        with_validation(Listing([], ""), 0.1)


def test_a_second_validation_split_is_our_mistake():
    with pytest.raises(AssertionError, match="already"):
        with_validation(with_validation(TWENTY, 0.1), 0.1)
