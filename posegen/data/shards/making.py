"""Making one shard from the entries of whole groups, and dividing a listing into shards. Without Ray."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy import ndarray

from posegen.data import reasons
from posegen.data.formats.images import fit, open_image, scaled_joints
from posegen.data.geometry.joints import TORSO
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, Source
from posegen.data.masks import Estimate, pack, person_mask, pose_mask
from posegen.data.shards.manifest import IMAGES, PAIRS, SCHEMA_VERSION, ShardSummary, shard_stem, write_arrow
from posegen.data.sources.pairs import ordered_pairs
from posegen.storage.files import write_json

COORDINATE_LIMIT = 1e5  # pixels; joints beyond it are no coordinates of any image, and drawing them would not end


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings of the stored images. Radius 4 is PG2's at both of its sizes; the rest is our choice."""

    size: tuple[int, int]  # height, width in pixels
    mask_radius: int = 4  # pixels
    images_per_shard: int = 2000  # a larger group is a shard of its own
    jpeg_quality: int = 95  # of images that had to be resized
    person_masks: Literal["own", "estimated"] = "own"  # of the data set alone, or missing ones estimated
    person_network: str = ""  # of estimated masks: first digits of the sha256 of the network's file; "" is GrabCut


def made_from(listing: Listing, settings: ShardSettings, *, fingerprint: str) -> dict[str, Any]:
    """Return the record of what shards are made from; those with the same record need not be made again."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "source": listing.fingerprint,
        "settings": {**asdict(settings), "size": list(settings.size)},
    }


@dataclass(frozen=True)
class Work:
    """Input of one shard: entries, group by group, and the given pairs among them (None: pair by the rule).

    A given pair is (index in the split's list, source name, target name).
    """

    split: str
    number: int
    entries: tuple[Entry, ...]
    pairs: tuple[tuple[int, str, str], ...] | None = None

    @property
    def stem(self) -> str:
        """Return the name of the shard's files, without ending."""
        return shard_stem(self.split, self.number)


class Row(NamedTuple):
    """One image as it is stored, with its notes."""

    entry: Entry
    image: bytes
    joints: ndarray  # float32 (18, 2), pixels of the stored image; -1 where they were not finite
    visible: ndarray  # bool (18,)
    pose_mask: bytes
    person_mask: bytes | None
    notes: tuple[str, ...]


class Pairs(NamedTuple):
    """Pairs of rows (n, 2), and their "order" (n,) in the split."""

    rows: ndarray
    order: ndarray


def make_shard(
    work: Work,
    source: Source,
    folder: Path,
    settings: ShardSettings,
    made_from: Mapping,
    *,
    estimate: Estimate = person_mask,
) -> ShardSummary:
    """Write the files of one shard and return its summary, which is written last and holds `made_from`.

    Without a usable image, only the summary is written. An image that cannot be read or used becomes a reject.

    Args:
        work: Entries and given pairs.
        source: Loads the images.
        folder: The folder of the shards.
        settings: Size and masks of the stored images.
        made_from: The record of `made_from`, kept in the summary.
        estimate: Makes the person masks that the source lacks, if the settings ask for it.
    """
    rows, rejects = _usable_rows(work, source, settings, estimate)
    pairs, lost = _pairs(work, rows)
    files = folder / f"{work.stem}.arrow", folder / f"{work.stem}.pairs.arrow"
    if rows:
        write_arrow(files[0], IMAGES, _image_columns(rows))
        source, target = pairs.rows.astype(np.int32).T
        order = pa.array(pairs.order.astype(np.int64))
        write_arrow(files[1], PAIRS, {"source": pa.array(source), "target": pa.array(target), "order": order})
    summary = ShardSummary(
        made_from=made_from,
        split=work.split,
        number=work.number,
        images=len(work.entries),
        rows=len(rows),
        groups=len({row.entry.group for row in rows}),
        pairs=len(pairs.order),
        order=pairs.order[[0, -1]].tolist() if len(pairs.order) else [],
        bytes=[file.stat().st_size for file in files] if rows else [0, 0],
        person_masks=sum(row.person_mask is not None for row in rows),
        azimuths=sum(math.isfinite(row.entry.azimuth) for row in rows),
        notes=Counter(note for row in rows for note in row.notes),
        rejects=[*rejects, *lost],
    )
    write_json(folder / f"{work.stem}.json", summary.to_json())
    return summary


def _usable_rows(
    work: Work, source: Source, settings: ShardSettings, estimate: Estimate
) -> tuple[list[Row], list[Reject]]:
    listed = {name for _, *names in work.pairs or () for name in names}
    rows, rejects = [], []
    for entry in work.entries:
        try:
            rows.append(prepare(entry, source, settings, listed=entry.name in listed, estimate=estimate))
        except (ValueError, OSError, cv2.error) as error:
            rejects.append(_reject(entry, error))
    members = Counter(row.entry.group for row in rows)
    alone = [row.entry for row in rows if members[row.entry.group] == 1]
    rejects += [Reject(entry.name, entry.split, reasons.ALONE, entry.group) for entry in alone]
    return [row for row in rows if members[row.entry.group] > 1], rejects


def _reject(entry: Entry, error: Exception) -> Reject:
    if isinstance(error, ValueError):
        reason, *details = [str(argument) for argument in error.args] or [reasons.UNREADABLE]
        return Reject(entry.name, entry.split, reason, " ".join(details))
    return Reject(entry.name, entry.split, reasons.UNREADABLE, str(error))


def prepare(
    entry: Entry, source: Source, settings: ShardSettings, *, listed: bool, estimate: Estimate = person_mask
) -> Row:
    """Load, check, fit and mask one image.

    A person mask that the data set lacks is estimated on the stored image, if the settings ask for it.

    Args:
        entry: The image.
        source: Loads it.
        settings: Size and masks of the stored image.
        listed: Whether a given pair names the image, so that it need not fit the pairing rule.
        estimate: Estimates the person mask.

    Raises:
        ValueError: (reason, detail), the reason one of `reasons` or the source's own.
    """
    if entry.distractor and not listed:
        raise ValueError(reasons.DISTRACTOR)
    image = source.load(entry)
    visible = np.asarray(image.visible, bool)
    if not listed:
        if not visible.any():
            raise ValueError(reasons.NO_JOINTS)
        if not visible[list(TORSO)].all():
            raise ValueError(reasons.NO_TORSO)
    height, width = settings.size
    fitted = fit(image.encoded, height=height, width=width, jpeg_quality=settings.jpeg_quality)
    joints = scaled_joints(np.asarray(image.joints, np.float32), fitted.scale)
    sane = np.abs(known := joints[visible]) < COORDINATE_LIMIT  # false for NaN
    if not sane.all():
        raise ValueError(reasons.NOT_FINITE, f"{(~sane.all(axis=1)).sum()} of {len(known)} visible joints")
    mask = _own_mask(image, height, width)
    estimated = mask is None and settings.person_masks == "estimated"
    if estimated:
        mask = estimate(open_image(fitted.encoded).pixels, joints, visible)
    notes = {
        reasons.RESIZED: fitted.scale != (1.0, 1.0),
        reasons.ENCODED_AGAIN: fitted.encoded_again and fitted.scale == (1.0, 1.0),
        # Pixels reach half a pixel around their integer centres.
        reasons.OUTSIDE: bool(((known < -0.5) | (known >= (width - 0.5, height - 0.5))).any()),
        reasons.LISTED_ANYWAY: entry.distractor or not visible[list(TORSO)].all(),
        reasons.ESTIMATED_MASK: estimated,
    }
    return Row(
        entry=entry,
        image=fitted.encoded,
        joints=np.where(np.isfinite(joints), joints, np.float32(-1)),
        visible=visible,
        pose_mask=pack(pose_mask(joints, visible, height=height, width=width, radius=settings.mask_radius)),
        person_mask=None if mask is None else pack(mask),
        notes=tuple(note for note, holds in notes.items() if holds),
    )


def _own_mask(image: LoadedImage, height: int, width: int) -> ndarray | None:
    if image.person_mask is None:
        return None
    mask = (image.person_mask > 0).astype(np.float32)
    if mask.shape != (height, width):
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
    return (mask >= 0.5).astype(np.uint8)


def _pairs(work: Work, rows: Sequence[Row]) -> tuple[Pairs, list[Reject]]:
    if work.pairs is None:
        pairs = ordered_pairs([row.entry.group for row in rows])
        return Pairs(pairs, (work.number << 32) + np.arange(len(pairs))), []
    index = {row.entry.name: number for number, row in enumerate(rows)}
    made = [pair for pair in work.pairs if pair[1] in index and pair[2] in index]
    kept = {order for order, _, _ in made}
    lost = [
        Reject(",".join(pair[1:]), work.split, reasons.PAIR_OF_REJECTED) for pair in work.pairs if pair[0] not in kept
    ]
    numbers = np.array([(index[source], index[target]) for _, source, target in made], np.int64).reshape(-1, 2)
    return Pairs(numbers, np.array([order for order, _, _ in made], np.int64)), lost


def _image_columns(rows: Sequence[Row]) -> dict[str, pa.Array]:
    entries = [row.entry for row in rows]
    joints = np.stack([row.joints for row in rows]).astype(np.float32)
    visible = np.stack([row.visible for row in rows]).astype(np.uint8)
    return {
        "name": pa.array([entry.name for entry in entries], pa.string()),
        "identity": pa.array([entry.identity for entry in entries], pa.string()),
        "group": pa.array([entry.group for entry in entries], pa.string()),
        "view": pa.array([entry.view for entry in entries], pa.string()),
        "azimuth": pa.array([entry.azimuth for entry in entries], pa.float32(), from_pandas=True),
        "image": pa.array([row.image for row in rows], pa.large_binary()),
        "joints": pa.FixedSizeListArray.from_arrays(pa.array(joints.reshape(-1)), 36),
        "visible": pa.FixedSizeListArray.from_arrays(pa.array(visible.reshape(-1)), 18),
        "pose_mask": pa.array([row.pose_mask for row in rows], pa.binary()),
        "person_mask": pa.array([row.person_mask for row in rows], pa.binary()),
    }


def plan_works(listing: Listing, images_per_shard: int) -> tuple[list[Work], list[Reject]]:
    """Divide a listing into shards of whole groups of one split, and reject entries before an image is opened.

    Groups keep the order of the listing; they share a shard as long as it stays within `images_per_shard`. Rejects:
    entries with a repeated name in their split, given pairs that join two groups or name an unknown image.
    """
    works, rejects = [], []
    for split in sorted({entry.split for entry in listing.entries} | set(listing.pairs)):
        entries, repeated = _first_of_each_name(entry for entry in listing.entries if entry.split == split)
        packs = list(_packs(entries, images_per_shard))
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


def _packs(entries: Sequence[Entry], images_per_shard: int) -> Iterator[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    pack: list[Entry] = []
    for members in groups.values():
        if pack and len(pack) + len(members) > images_per_shard:
            yield pack
            pack = []
        pack.extend(members)
    if pack:
        yield pack


def _spread(
    split: str, given: Sequence[tuple[str, str]], packs: Sequence[Sequence[Entry]]
) -> tuple[list[tuple[tuple[int, str, str], ...]], list[Reject]]:
    """Return the given pairs of each pack, with their indices in the list; and the impossible ones as rejects."""
    home = {entry.name: (number, entry.group) for number, pack in enumerate(packs) for entry in pack}
    spread: list[list[tuple[int, str, str]]] = [[] for _ in packs]
    rejects = []
    for number, (source, target) in enumerate(given):
        if source not in home or target not in home:
            rejects.append(Reject(f"{source},{target}", split, reasons.PAIR_OF_REJECTED))
        elif home[source] != home[target]:
            rejects.append(Reject(f"{source},{target}", split, reasons.PAIR_ACROSS_GROUPS))
        else:
            spread[home[source][0]].append((number, source, target))
    return [tuple(pairs) for pairs in spread], rejects
