"""Pairs of images: the rule of pose-gan's `create_pairs_dataset`, its published test pairs, and given pair lists."""

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from posegen.data import reasons
from posegen.data.formats.pg2_pickles import read_pg2_pairs
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Entry, Listing, Reject

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
