"""Which entries and which given pairs make which shard: the driver's part, names and joints only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from posegen.data import reasons
from posegen.data.rows import Entry, Listing, Reject
from posegen.data.shard_making import Work


def plan_works(listing: Listing, pictures_per_shard: int) -> tuple[list[Work], list[Reject]]:
    """Works of whole groups of one split, and what is rejected before a picture is opened.

    Groups come in the order in which the listing first names them; they share a shard as long as it stays within
    `pictures_per_shard`. Rejects: entries whose name their split has already, given pairs that join two groups or name
    a picture that the listing does not have.
    """
    works, rejects = [], []
    for split in sorted({entry.split for entry in listing.entries} | set(listing.pairs)):
        entries, repeated = _first_of_each_name(entry for entry in listing.entries if entry.split == split)
        packs = list(_packs(entries, pictures_per_shard))
        given = listing.pairs.get(split)
        pairs, lost = ([None] * len(packs), []) if given is None else _spread(split, given, packs)
        works += [Work(split, number, tuple(pack), pairs[number]) for number, pack in enumerate(packs)]
        rejects += repeated + lost
    return works, rejects


def _first_of_each_name(entries: Iterable[Entry]) -> tuple[list[Entry], list[Reject]]:
    first: dict[str, Entry] = {}
    rejects = []
    for entry in entries:
        if first.setdefault(entry.name, entry) is not entry:
            rejects.append(Reject(entry.name, entry.split, reasons.DUPLICATE, entry.path))
    return list(first.values()), rejects


def _packs(entries: Sequence[Entry], pictures_per_shard: int) -> Iterator[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    pack: list[Entry] = []
    for members in groups.values():
        if pack and len(pack) + len(members) > pictures_per_shard:
            yield pack
            pack = []
        pack.extend(members)
    if pack:
        yield pack


def _spread(
    split: str, given: Sequence[tuple[str, str]], packs: Sequence[Sequence[Entry]]
) -> tuple[list[tuple[tuple[int, str, str], ...]], list[Reject]]:
    """The given pairs of each pack, with their places in the list; and those that no pack can have."""
    home = {entry.name: (number, entry.group) for number, pack in enumerate(packs) for entry in pack}
    spread: list[list[tuple[int, str, str]]] = [[] for _ in packs]
    rejects = []
    for place, (source, target) in enumerate(given):
        if reason := _impossible(source, target, home):
            rejects.append(Reject(f"{source},{target}", split, reason))
        else:
            spread[home[source][0]].append((place, source, target))
    return [tuple(pairs) for pairs in spread], rejects


def _impossible(source: str, target: str, home: Mapping[str, tuple[int, str]]) -> str | None:
    if source not in home or target not in home:
        return reasons.PAIR_OF_REJECTED
    return reasons.PAIR_ACROSS_GROUPS if home[source] != home[target] else None
