"""Pairs of images: the rule of pose-gan's `create_pairs_dataset`, its published test pairs, and given pair lists."""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from posegen.data import reasons
from posegen.data.formats.pg2_pickles import read_pg2_pairs
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Entry, Listing, Reject, count_reasons

PUBLISHED_TEST_PAIRS = 12_000


def usable_rows(entries: Sequence[Entry]) -> Int[np.ndarray, " usable"]:
    """Return the rows of the entries that may be paired: shoulders and hips known, joints finite, no distractor.

    This is pose-gan's `create_pairs_dataset`, except that known joints must be finite (our choice). Entries whose
    joints are not known yet are left out.
    """
    rows = np.array([row for row, entry in enumerate(entries) if entry.joints is not None], dtype=np.int64)
    if not len(rows):
        return rows
    joints = np.stack([np.asarray(entries[row].joints) for row in rows])
    visible = np.stack([np.asarray(entries[row].visible) for row in rows])
    finite = (np.isfinite(joints).all(axis=2) | ~visible).all(axis=1)
    allowed = np.array([not entries[row].distractor for row in rows])
    return rows[visible[:, list(TORSO)].all(axis=1) & finite & allowed]


def ordered_pairs(groups: Sequence[str]) -> Int[np.ndarray, "pairs 2"]:
    """Return all ordered pairs (source row, target row) of different rows of one group.

    Groups come in the order of their first rows, and the rows of each in the order of `itertools.permutations`: the
    order in which pose-gan lists them, on which its random test pairs depend.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for rows in members.values():
        count = len(rows)
        targets = np.broadcast_to(np.array(rows, dtype=np.int64), (count, count))[~np.eye(count, dtype=bool)]
        pairs.append(np.stack([np.repeat(np.array(rows, dtype=np.int64), count - 1), targets], axis=1))
    return np.concatenate(pairs)


def published_draw(count: int) -> Int[np.ndarray, "12000"]:
    """Return the indices of the 12,000 published test pairs among `count` ordered pairs (Market-1501: 257,198).

    pose-gan draws them by pandas' `sample` with random_state 0, which is this permutation of numpy's old generator.
    Raises ValueError if there are fewer than 12,000.
    """
    if count < PUBLISHED_TEST_PAIRS:
        raise ValueError(f"the published test pairs are {PUBLISHED_TEST_PAIRS}, and there are only {count}")
    return np.random.RandomState(0).choice(count, PUBLISHED_TEST_PAIRS, replace=False)


def read_pairs_csv(path: Path) -> list[tuple[str, str]]:
    """Read the (source, target) names of a pair list: comma-separated, first line `from,to`, as pose-gan writes it.

    Raises ValueError, naming the file and line, if it is malformed or has no pairs.
    """
    pairs: list[tuple[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            if (header := [field.strip() for field in next(rows, [])]) != ["from", "to"]:
                raise ValueError(f"{path}, line 1: expected the header 'from,to', found {','.join(header)[:80]!r}")
            for row in rows:
                if len(row) != 2 and row:
                    found = ",".join(row)[:80]
                    raise ValueError(f"{path}, line {rows.line_num}: expected two names 'from,to', found {found!r}")
                if row:
                    pairs.append((row[0].strip(), row[1].strip()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a comma-separated text file in UTF-8 ({error})") from None
    if not pairs:
        raise ValueError(f"{path}: expected pairs of image names after the header, found none")
    return pairs


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read the (source, target) names of a pair list: PG2's pickle if it ends with `.p`, else comma-separated.

    Raises ValueError as `read_pg2_pairs` and `read_pairs_csv` do.
    """
    return read_pg2_pairs(path) if path.suffix == ".p" else read_pairs_csv(path)


class GivenPairs(NamedTuple):
    """A pair list in the names of the entries, rejects for the names that have no entry, and notes for the user."""

    pairs: list[tuple[str, str]]
    rejects: list[Reject]
    notes: tuple[str, ...]


def given_pairs(
    path: Path,
    split: str,
    entries: Sequence[Entry],
    *,
    find: Callable[[str], str | None],
    known: Collection[str],
    remedy: str = "",
) -> GivenPairs:
    """Read the pairs of a list, in its order, without those that name an image with no entry in the split.

    Args:
        path: The pair list.
        split: The split that it is for.
        entries: The entries of all splits.
        find: Returns the entry's name for a name in the list, or None.
        known: Names that are rejected already.
        remedy: What else than correcting the list helps where a pair joins two groups.

    Raises:
        ValueError: If no pair is left, or if one joins two groups.
    """
    listed = read_pairs(path)
    groups = {entry.name: entry.group for entry in entries if entry.split == split}
    names = {name: find(name) for name in dict.fromkeys(name for pair in listed for name in pair)}
    missing = [name for name, found in names.items() if found not in groups]
    pairs = [(names[source], names[target]) for source, target in listed]
    kept = [(source, target) for source, target in pairs if source in groups and target in groups]
    _check_kept(path, kept, groups, missing, remedy)
    rejects = [
        Reject(name, split, reasons.NO_IMAGE, f"named in {path.name}")
        for name in missing
        if name not in known and names[name] not in known
    ]
    left_out = len(listed) - len(kept)
    note = (
        f"{path.name}: {left_out:,} of {len(listed):,} pairs are left out: they name images that cannot be used here."
    )
    return GivenPairs(kept, rejects, (note,) if left_out else ())


def with_given_pairs(
    listing: Listing, lists: Mapping[str, Path], find: Callable[[str], str | None], remedy: str = ""
) -> Listing:
    """Return the listing with the pairs of its pair lists; `find`, `remedy` and errors are those of `given_pairs`."""
    known = {reject.name for reject in listing.rejects}
    for split, path in lists.items():
        given = given_pairs(path, split, listing.entries, find=find, known=known, remedy=remedy)
        listing = replace(
            listing,
            rejects=[*listing.rejects, *given.rejects],
            pairs={**listing.pairs, split: given.pairs},
            notes=(*listing.notes, *given.notes),
        )
    return listing


def _check_kept(
    path: Path, kept: list[tuple[str, str]], groups: dict[str, str], missing: list[str], remedy: str
) -> None:
    if not kept:
        raise ValueError(
            f"{path}: no pair names two images with joints that are here. Names without an image: {missing[:3]}, "
            f"images of this split: {list(groups)[:3]}."
        )
    for source, target in kept:
        if groups[source] != groups[target]:
            raise ValueError(
                f"{path}: the pair '{source},{target}' joins two identities, '{groups[source]}' and "
                f"'{groups[target]}'. Pairs are formed within an identity: take it out of the list{remedy}."
            )


SPLITS = ("train", "test")  # every data set has these
VALIDATION = "validation"  # only in listings returned by `with_validation`


class SplitEntries(NamedTuple):
    """Entries with their split, rejects for those without, and a note on the rule that decided."""

    entries: list[Entry]
    rejects: list[Reject]
    note: str


def split_entries(entries: Sequence[Entry], lists: Mapping[str, Collection[str]], test_share: float) -> SplitEntries:
    """Split entries by the pair lists that name them, else by the split they have, else by held-out identities.

    `lists` holds the names in each split's pair list, where there is one. An image in both lists becomes two entries.
    One in neither list and without a split goes to the split without a list, or is rejected where both have one.
    Raises ValueError if identities must be held out and fewer than two can be paired.
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
    rows = usable_rows(entries).tolist()
    usable = Counter(entries[row].identity for row in rows)
    pairable = _paired_identities(entries, rows)
    found = (
        f"{len(entries):,} images with joints, {usable.total():,} of them with both shoulders and both hips, "
        f"{len(usable):,} identities in these, {len(pairable):,} with two or more images"
    )
    if not pairable:
        raise ValueError(f"no two images can be paired: there are {found}. A pair is two images of one identity.")
    if len(pairable) == 1:
        raise ValueError(
            f"only the identity '{pairable[0]}' can be paired, so none can be held out for testing: there are "
            f"{found}. Define the identity (`identity`, a regular expression), or give `pairs-train.csv` and "
            "`pairs-test.csv` (lines from,to), which may share a person."
        )
    return pairable


def _paired_identities(entries: Sequence[Entry], rows: Iterable[int]) -> list[str]:
    """Return the identities that have two or more of these rows in one group, in order of their first rows."""
    counts = Counter((entries[row].identity, entries[row].group) for row in rows)
    return list(dict.fromkeys(identity for (identity, _), count in counts.items() if count > 1))


def held_out(identities: Collection[str], share: float) -> set[str]:
    """Return the identities to hold out: the share (at least one, not all) whose names' SHA-256 is smallest."""
    count = min(max(1, round(share * len(identities))), len(identities) - 1)
    return set(sorted(identities, key=lambda identity: hashlib.sha256(identity.encode()).digest())[:count])


def shared_identities(entries: Sequence[Entry]) -> int:
    """Return the number of identities that have entries in both splits."""
    training, testing = ({entry.identity for entry in entries if entry.split == split} for split in SPLITS)
    return len(training & testing)


def shared_note(entries: Sequence[Entry]) -> list[str]:
    """Return a warning about identities in both splits, or nothing."""
    count = shared_identities(entries)
    return [f"Identities in both splits: {count:,}. The scores say little about other people."] if count else []


def empty_split(listing: Listing) -> tuple[str, str] | None:
    """Return the first split without entries and the counts of its rejects as text, or None."""
    for split in SPLITS:
        if not any(entry.split == split for entry in listing.entries):
            return split, count_reasons(reject for reject in listing.rejects if reject.split == split)
    return None


def with_validation(listing: Listing, share: float) -> Listing:
    """Return the listing with a share of its training identities, at least one and not all, in split "validation".

    They are chosen by `held_out` among those that can be paired in training, have no image in the test split and none
    that is a distractor, so that settings are compared on people who are in neither training nor test images. Given
    training pairs follow their images; one that joins both sides is rejected. If none falls to validation, it is paired
    by the rule. Rejects keep their split, since their identities are unknown.

    Raises ValueError if the share is not between 0 and 1, or if fewer than two identities can be held out.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"the validation share must lie between 0 and 1 (the share of training identities), not be {share}."
        )
    assert all(entry.split in SPLITS for entry in listing.entries), "the listing has a validation split already"
    candidates = _validation_candidates(listing.entries, share)
    chosen = held_out(candidates, share)
    entries = [
        entry._replace(split=VALIDATION) if entry.split == "train" and entry.identity in chosen else entry
        for entry in listing.entries
    ]
    pairs, rejects = _divided_pairs(listing.pairs, entries)
    note = (
        f"Validation: {len(chosen):,} of {len(candidates):,} training identities that can be paired and are not tested "
        "on are held out."
    )
    return replace(
        listing,
        entries=entries,
        fingerprint=f"{listing.fingerprint}+{VALIDATION}-{share}",
        rejects=[*listing.rejects, *rejects],
        pairs=pairs,
        notes=(*listing.notes, note),
    )


def _validation_candidates(entries: Sequence[Entry], share: float) -> list[str]:
    """Return the identities that may be held out. Images whose joints are not known yet count as usable."""
    training = [entry for entry in entries if entry.split == "train"]
    barred = {entry.identity for entry in entries if entry.split == "test" or entry.distractor}
    unknown = [row for row, entry in enumerate(training) if entry.joints is None]
    pairable = _paired_identities(training, [*usable_rows(training).tolist(), *unknown])
    candidates = [identity for identity in pairable if identity not in barred]
    if len(candidates) < 2:
        raise ValueError(
            f"a validation split (the share {share:g} of the training identities) needs at least two identities, one "
            f"to hold out and one to train on, and {len(candidates)} qualify: there are "
            f"{len({entry.identity for entry in training}):,} training identities, {len(pairable):,} of them with two "
            f"or more usable images, {len(pairable) - len(candidates):,} of these also tested on or distractors. "
            "Give images of more people for training only, or do without a validation split."
        )
    return candidates


def _divided_pairs(
    pairs: Mapping[str, list[tuple[str, str]]], entries: Sequence[Entry]
) -> tuple[Mapping[str, list[tuple[str, str]]], list[Reject]]:
    """Return given pairs with those of training in the split of their images, and rejects of those that join two.

    Names without an entry do not count: their pairs are rejected later, when the shards are made.
    """
    if "train" not in pairs:
        return pairs, []
    splits = {entry.name: entry.split for entry in entries if entry.split != "test"}
    divided: dict[str, list[tuple[str, str]]] = {"train": []}
    rejects = []
    for pair in pairs["train"]:
        sides = {splits[name] for name in pair if name in splits} or {"train"}
        if len(sides) > 1:
            rejects.append(Reject(",".join(pair), "train", reasons.PAIR_ACROSS_SPLITS))
        else:
            divided.setdefault(sides.pop(), []).append(pair)
    return {**pairs, **divided}, rejects
