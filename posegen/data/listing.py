"""What a data source returns: a listing of its images, what was rejected, the pairs, and images with their joints."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np


class LoadedImage(NamedTuple):
    """A loaded image: its encoded bytes, its joints and, where the data set has it, its person mask."""

    encoded: bytes  # in any format that `open_image` decodes
    joints: np.ndarray  # float32 (18, 2), x, y in pixels
    visible: np.ndarray  # bool (18,)
    person_mask: np.ndarray | None = None  # uint8 (height, width), 0 or 1


class Entry(NamedTuple):
    """One image of a listing: metadata only, no pixels.

    `joints` is float32 (18, 2), x and y in pixels of the stored image, OpenPose order; `visible` is bool (18,).
    Both are None where the image has yet to be drawn (the synthetic data set) or read (pose maps).
    """

    name: str  # unique within its split
    split: str  # "train", "test" or, in a listing with a validation split, "validation"
    group: str  # images of one group may be paired
    identity: str
    view: str  # camera or azimuth; "" where unknown
    path: str  # file to read; "" for an image that is drawn
    joints: np.ndarray | None = None
    visible: np.ndarray | None = None
    distractor: bool = False  # never paired (Market-1501's -1 and 0000)
    azimuth: float = math.nan  # of the camera, degrees, counter-clockwise seen from above; NaN where unknown

    def loaded(self, encoded: bytes) -> LoadedImage:
        """Return the encoded image with the joints of this entry, which must be known."""
        assert self.joints is not None
        assert self.visible is not None
        return LoadedImage(encoded, self.joints, self.visible)


class Reject(NamedTuple):
    """An image or annotation that cannot be used: `reason` is one of `reasons`, `detail` is free text."""

    name: str
    split: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Listing:
    """Everything that a source knows before an image is opened.

    `pairs` holds, for a split, the given ordered pairs of names in their given order; a split that is not in it is
    paired by the rule: all ordered pairs of usable images within a group. `fingerprint` changes whenever the listed
    content would. `notes` are sentences for the user about the reader's own decisions.
    """

    entries: list[Entry]
    fingerprint: str
    rejects: list[Reject] = field(default_factory=list)
    pairs: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A data source: a frozen dataclass that can be pickled to Ray tasks."""

    name: ClassVar[str]

    def listing(self) -> Listing:
        """List all images, on the driver. Raises ValueError, worded for the user, where nothing is usable."""
        ...

    def load(self, entry: Entry) -> LoadedImage:
        """Read one image and its joints, in a task. Raises ValueError(reason, detail) for an image to be rejected."""
        ...


def count_reasons(rejects: Iterable[Reject]) -> str:
    """Return the number of rejects by reason, the most frequent first, as text; "nothing" if there are none."""
    counts = Counter(reject.reason for reject in rejects)
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "nothing"


def fingerprint(reader: str, listing: Listing, sizes: Mapping[str, int]) -> str:
    """Return the SHA-256 of the listing (without notes and details) and of the files' sizes by entry path.

    Our choice: sizes are read without opening a file, and neither times nor absolute paths count, so a copy of the data
    has the same fingerprint. An image replaced by another one of the same size goes unnoticed.
    """
    digest = hashlib.sha256(reader.encode())
    for entry in listing.entries:
        azimuth = () if math.isnan(entry.azimuth) else (entry.azimuth,)
        named = (entry.name, entry.split, entry.group, entry.identity, entry.view, entry.distractor, *azimuth)
        digest.update(repr((*named, sizes[entry.path])).encode())
        for array in (entry.joints, entry.visible):
            digest.update(b"" if array is None else array.tobytes())
    for reject in listing.rejects:
        digest.update(repr(tuple(reject)[:3]).encode())
    for split, pairs in sorted(listing.pairs.items()):
        digest.update(repr((split, pairs)).encode())
    return digest.hexdigest()
