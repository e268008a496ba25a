"""What a reader gives: a listing of images, what was wrong with them, and who may be paired with whom."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Entry(NamedTuple):
    """One image of a listing: metadata only, no pixels.

    `joints` is float32 (18, 2), x and y in pixels of the stored image, OpenPose order; `visible` is bool (18,).
    Both are None where the image has to be made first (the synthetic data set).
    """

    name: str  # unique within its split
    split: str  # "train", "test" or, of a listing that holds some out, "validation"
    group: str  # images that may be paired
    identity: str
    view: str  # camera or azimuth; "" where unknown
    path: str  # file to read; "" for an image that is made
    joints: np.ndarray | None = None
    visible: np.ndarray | None = None
    distractor: bool = False  # never paired (Market-1501's -1 and 0000)
    azimuth: float = math.nan  # of the camera, degrees, counter-clockwise seen from above; NaN where unknown


class Reject(NamedTuple):
    """An image or annotation that cannot be used, and why: `reason` is a short phrase, `detail` is free."""

    name: str
    split: str
    reason: str
    detail: str = ""


class LoadedImage(NamedTuple):
    """A loaded image: its encoded bytes, its joints and, where the data set knows it, its person mask."""

    image: bytes  # an encoded image, in any format that `image_bytes` decodes
    joints: np.ndarray  # float32 (18, 2), x, y in pixels
    visible: np.ndarray  # bool (18,)
    person_mask: np.ndarray | None = None  # uint8 (height, width), 0 or 1


@dataclass(frozen=True)
class Listing:
    """Everything that a source knows before an image is opened.

    `pairs` holds, for a split, the given ordered pairs of names in their given order; a split that is not in it is
    paired by the rule: all ordered pairs of usable images within a group. `fingerprint` changes whenever the listed
    content would. `notes` are sentences for the user: what the reader decided by itself, and why.
    """

    entries: list[Entry]
    fingerprint: str
    rejects: list[Reject] = field(default_factory=list)
    pairs: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Where images come from: a frozen dataclass that pickles to Ray tasks."""

    name: ClassVar[str]

    def listing(self) -> Listing:
        """Metadata of all images, on the driver. Raises ValueError, worded for the user, where nothing is usable."""
        ...

    def load(self, entry: Entry) -> LoadedImage:
        """One image's bytes and joints, in a task. Raises ValueError(reason, detail) for what must be rejected."""
        ...
