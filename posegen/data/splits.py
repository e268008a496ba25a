"""Which of one's own pictures are for training and which for testing."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from posegen.data import reasons
from posegen.data.pairs import usable_rows
from posegen.data.rows import Entry, Reject

SPLITS = ("train", "test")


class SplitEntries(NamedTuple):
    """Entries with their split, those that got none, and what decided, in words."""

    entries: list[Entry]
    rejects: list[Reject]
    note: str


def split_entries(entries: Sequence[Entry], lists: Mapping[str, Collection[str]], test_share: float) -> SplitEntries:
    """Entries in the split whose pair list names them; else in the one they have; else by held-out identities.

    `lists` holds the names in each split's pair list, where there is one. A picture in both lists becomes two entries.
    One in neither list and without a split goes to the split without a list, or is rejected where both have one.
    Raises ValueError where identities must be held out and there are not two that can be paired.
    """
    if lists or all(entry.split for entry in entries):
        kept = {(entry.name, split): entry for entry in entries for split in _given_splits(entry, lists)}
        named = {name for name, _ in kept}
        refused = [entry.name for entry in entries if entry.name not in named]
        rejects = [Reject(name, "train", reasons.NOT_LISTED) for name in refused]
        source = "the pair lists" if lists else "the annotation files"
        return SplitEntries(
            [entry._replace(split=split) for (_, split), entry in kept.items()], rejects, f"Splits: those of {source}."
        )
    pairable = _pairable_identities(entries)
    testing = held_out(pairable, test_share)
    split = [entry._replace(split="test" if entry.identity in testing else "train") for entry in entries]
    note = f"Splits: {len(testing)} of {len(pairable)} identities that can be paired are held out for testing."
    return SplitEntries(split, [], note)


def _given_splits(entry: Entry, lists: Mapping[str, Collection[str]]) -> Iterator[str]:
    listed = [split for split in SPLITS if entry.name in lists.get(split, ())]
    if listed:
        yield from listed
    elif entry.split:
        yield entry.split
    elif len(lists) == 1:
        yield from (split for split in SPLITS if split not in lists)


def _pairable_identities(entries: Sequence[Entry]) -> list[str]:
    usable = Counter(entries[row].identity for row in usable_rows(entries))
    pairable = [identity for identity, count in usable.items() if count > 1]
    found = (
        f"{len(entries):,} pictures with joints, {usable.total():,} of them with both shoulders and both hips, "
        f"{len(usable):,} identities in these, {len(pairable):,} with two or more pictures"
    )
    if not pairable:
        raise ValueError(f"no two pictures can be paired: there are {found}. A pair is two pictures of one identity.")
    if len(pairable) == 1:
        raise ValueError(
            f"only the identity '{pairable[0]}' can be paired, so nobody can be held out for testing: there are "
            f"{found}. Say what the identity is (`identity`, a regular expression), or give `pairs-train.csv` and "
            "`pairs-test.csv` (lines from,to), which may share a person."
        )
    return pairable


def held_out(identities: Collection[str], test_share: float) -> set[str]:
    """The identities to test on: the share of them (at least one, and not all) whose names' SHA-256 is smallest."""
    count = min(max(1, round(test_share * len(identities))), len(identities) - 1)
    return set(sorted(identities, key=lambda identity: hashlib.sha256(identity.encode()).digest())[:count])


def shared_identities(entries: Sequence[Entry]) -> int:
    """How many identities have entries in both splits."""
    training, testing = ({entry.identity for entry in entries if entry.split == split} for split in SPLITS)
    return len(training & testing)
