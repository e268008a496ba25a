"""One's own recordings of a person by several calibrated cameras at once, for the systems that turn the view.

A take is a folder; a group is one instant of it, the frames of one number, and its views are the cameras. The layout is
close to Pose2Sim's: images or videos of each camera, OpenPose's joints, and a calibration file (see `calibration`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from posegen.data import reasons
from posegen.data.formats import MISSING, Pose, check_unit
from posegen.data.formats.calibration import FORMATS, plain_name, read_azimuths
from posegen.data.formats.images import (
    LARGEST,
    READABLE,
    Part,
    Square,
    folder_names,
    image_sizes,
    parse_part,
    part_sizes,
    read_part,
    square_around,
)
from posegen.data.formats.openpose import read_openpose
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.folder import check_settings
from posegen.data.sources.pairs import SPLITS, empty_split, held_out

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
EXPECTED = (
    f"a calibration file ({FORMATS}) and a folder for each take, with each camera's images in TAKE/CAMERA/*.jpg or "
    "its video TAKE/CAMERA.mp4 (also in TAKE/images or TAKE/videos), and OpenPose's JSON files in TAKE/CAMERA_json "
    "(also in TAKE/pose)"
)
_CALIBRATIONS = ("*.qca.txt", "calibration.json")
_BESIDE = (
    "calibration",
    "images",
    "videos",
    "pose",
)  # folders in the root or in a take that are neither takes nor cameras
STRAY = 0.01  # share of a view's frames whose joints may lie outside the crop on a side: estimators make outliers

Item = TypeVar("Item")


class Refused(NamedTuple):
    """A part of a view that cannot be used: an image, an annotation or all of it (`frame` is None)."""

    frame: int | None
    reason: str
    detail: str


@dataclass(frozen=True)
class View:
    """One camera's recording of one take: a video, or an image a frame, with poses by frame and rejects."""

    take: str
    camera: str  # name of its folder or file
    video: Path | None
    images: Mapping[int, Path]
    poses: Mapping[int, Pose]
    refused: tuple[Refused, ...]

    def path(self, frame: int) -> Path:
        """Return the file that holds the frame."""
        return self.video or self.images[frame]


def find_calibration(root: Path, given: Path | None) -> Path:
    """Return the given file, which may be relative to `root`, else the only one in `root` or `root/calibration`.

    Raises ValueError if there is none, or several.
    """
    if given is not None:
        return given if given.is_file() else root / given
    found = [path for folder in (root, root / "calibration") for kind in _CALIBRATIONS for path in folder.glob(kind)]
    if len(found) != 1:
        there = ", ".join(path.name for path in sorted(found)) or "none"
        raise ValueError(
            f"expected one calibration file in '{root}' or its folder 'calibration' ({FORMATS}); there is {there}. Or "
            "say which one: --set data.calibration=FILE."
        )
    return found[0]


def find_views(root: Path, layout: str | None) -> list[View]:
    """Find the views of all takes that have joints or images. Raises ValueError if there is none, and as readers do."""
    if not root.is_dir():
        raise ValueError(f"'{root}' is not a folder. Expected one with {EXPECTED}.")
    takes = [path for path in sorted(root.absolute().iterdir()) if path.is_dir() and _is_own(path.name)]
    views = [view for take in takes for view in _views(take, layout)]
    if not views:
        raise ValueError(f"'{root}' holds no take. Expected {EXPECTED}; there is {folder_names(root)}.")
    return views


def _is_own(name: str) -> bool:
    return not name.startswith(".") and name not in _BESIDE


def _views(take: Path, layout: str | None) -> list[View]:
    joints = {re.sub(r"_json$", "", path.name): path for path in _folders(take, "pose") if any(path.glob("*.json"))}
    files = [path for folder in (take, take / "videos") if folder.is_dir() for path in sorted(folder.iterdir())]
    videos = {path.stem: path for path in files if path.suffix.lower() in VIDEOS and path.is_file()}
    images = {path.name: path for path in _folders(take, "images") if image_sizes(path, READABLE)}
    names = {plain_name(name): name for name in (*videos, *images, *joints)}
    return [
        _view(take.name, name, _of(name, joints), _of(name, videos), _of(name, images), layout)
        for name in sorted(names.values())
    ]


def _of(name: str, found: Mapping[str, Path]) -> Path | None:
    return next((path for other, path in found.items() if plain_name(other) == plain_name(name)), None)


def _folders(take: Path, inside: str) -> list[Path]:
    """Return the cameras' folders in a take, or in its folder `inside`."""
    children = [path for parent in (take, take / inside) if parent.is_dir() for path in sorted(parent.iterdir())]
    return [path for path in children if path.is_dir() and _is_own(path.name)]


def _view(
    take: str, camera: str, joints: Path | None, video: Path | None, images: Path | None, layout: str | None
) -> View:
    folder = images if video is None else None
    files = [] if folder is None else [folder / name for name in image_sizes(folder, READABLE)]
    shown, unclear = _by_frame((path.stem, path) for path in files)
    annotations = None if joints is None else check_unit(read_openpose(joints, layout), joints)
    poses, doubtful = _by_frame(() if annotations is None else annotations.poses.items())
    doubtful += () if annotations is None else annotations.duplicates
    refused = [Refused(None, reasons.NO_NUMBER, name) for name in unclear + doubtful]
    if joints is None:
        refused.append(Refused(None, reasons.VIDEO_NOT_ANNOTATED, f"expected a folder {camera}_json"))
    elif video is None and folder is None:
        refused.append(Refused(None, reasons.NO_VIDEO, f"joints of {len(poses):,} frames in {joints.name}"))
    elif video is None:
        refused += [
            Refused(frame, reasons.NOT_ANNOTATED, f"not in {joints.name}") for frame in shown if frame not in poses
        ]
        refused += [Refused(frame, reasons.NO_IMAGE, f"in {joints.name}") for frame in poses if frame not in shown]
    poses = {frame: pose for frame, pose in poses.items() if video is not None or frame in shown}
    return View(take, camera, video, shown, poses, tuple(refused))


def _by_frame(named: Iterable[tuple[str, Item]]) -> tuple[dict[int, Item], list[str]]:
    """Return the items by frame, in order, and the names without a number of their own.

    A name's number is its last digits: 4 in "cam01.0004" and in "cam01_000000000004".
    """
    found: dict[int | None, list[tuple[str, Item]]] = {}
    for name, item in named:
        digits = re.findall(r"\d+", name)
        found.setdefault(int(digits[-1]) if digits else None, []).append((name, item))
    single = {frame: items[0][1] for frame, items in found.items() if frame is not None and len(items) == 1}
    unclear = [name for frame, items in found.items() if frame not in single for name, _ in items]
    return dict(sorted(single.items())), unclear


@dataclass(frozen=True)
class SynchronizedViews:
    """The takes below `root`, with OpenPose's joints and a calibration file.

    Of several people in an image the one with the highest sum of confidences is taken, separately in each view: that
    all views show the same person is not checked. Images are cut to one square for each view of a take, around its
    joints, except the farthest `STRAY` of the frames on a side; a square is black outside the image.

    Attributes:
        root: The folder of the takes.
        calibration: The calibration file. None takes the only one in the root.
        layout: The order of OpenPose's points where their number does not determine it ("body_25b").
        identity: A regular expression, searched in a take's name, whose first group is the person. None takes the
            take's name.
        test: The takes or people for testing. Without it whole people are held out, by a hash of their names.
        test_share: The approximate share of people, at least one, that are held out.
        stride: Frames whose number is a multiple of it are taken.
        margin: Added on each side of the joints, as a share of their extent (our choice).
    """

    root: Path
    calibration: Path | None = None
    layout: str | None = None
    identity: str | None = None
    test: tuple[str, ...] = ()
    test_share: float = 0.1
    stride: int = 1
    margin: float = 0.15
    name: ClassVar[str] = "views"
    size: ClassVar[tuple[int, int]] = (256, 256)  # default of the images in the shards

    def listing(self) -> Listing:
        """List all instants of both splits. Raises ValueError for a missing or malformed folder or file."""
        check_settings(layout=self.layout, identity=self.identity, test_share=self.test_share)
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 (every frame), not {self.stride}.")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0 (a share of the joints' extent), not {self.margin}.")
        views = find_views(self.root, self.layout)
        file = find_calibration(self.root, self.calibration)
        azimuths = read_azimuths(file)
        people = self._people({view.take for view in views})
        splits, split_note = self._splits(people)
        entries: list[Entry] = []
        rejects: list[Reject] = []
        for view in views:
            subject = _Subject(
                people.get(view.take, ""), splits.get(view.take, "train"), azimuths.get(plain_name(view.camera))
            )
            square = _square(view.poses.values(), self.margin)
            refused = [*view.refused, *_unusable(view, subject, square)]
            rejects += [_reject(view, subject.split, one) for one in refused if (one.frame or 0) % self.stride == 0]
            if subject.person and subject.azimuth is not None and square is not None:
                entries += _entries(view, subject, square, self.stride)
        entries.sort(key=lambda entry: entry.group)  # an instant's views stay in their order
        listing = Listing(entries, "", rejects)
        if empty := empty_split(listing):
            split, left_out = empty
            raise ValueError(
                f"'{self.root}' has no usable view for the split '{split}'; left out: {left_out}. Expected {EXPECTED}."
            )
        sizes = part_sizes([entry.path for entry in entries])
        degrees = ", ".join(f"{name} {azimuth:.1f}" for name, azimuth in azimuths.items())
        notes = (f"Cameras: azimuths by {file.name} in degrees: {degrees}.", split_note)
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes), notes=notes)

    def load(self, entry: Entry) -> LoadedImage:
        """Read the crop of the image or frame, in its own pixels, as BMP. Raises ValueError(reason, detail)."""
        return entry.loaded(read_part(parse_part(entry.path)))

    def _people(self, takes: Collection[str]) -> dict[str, str]:
        """Return the person of each take that has one."""
        if self.identity is None:
            return {take: take for take in sorted(takes)}
        found = {take: re.search(self.identity, take) for take in sorted(takes)}
        return {take: match[1] for take, match in found.items() if match and match[1]}

    def _splits(self, people: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """Return the split of each take, and a note."""
        known = sorted({*people, *people.values()})
        if unknown := [name for name in self.test if name not in known]:
            raise ValueError(f"test names {', '.join(unknown)}; the takes and people are {', '.join(known)}.")
        named = sorted(set(people.values()))
        if not self.test and len(named) < 2:
            raise ValueError(
                f"the takes are of {len(named)} people ({', '.join(named) or 'nobody'}), so none can be held out for "
                "testing. Add takes of another person, or name the takes for testing: --set data.test=TAKE."
            )
        testing = set(self.test) or held_out(named, self.test_share)
        splits = {take: "test" if {take, person} & testing else "train" for take, person in people.items()}
        trained, tested = ({people[take] for take in splits if splits[take] == split} for split in SPLITS)
        warning = " The scores say little about other people: some are in both splits." if trained & tested else ""
        return splits, f"Splits: tested are {', '.join(take for take in splits if splits[take] == 'test')}.{warning}"


class _Subject(NamedTuple):
    """A view's person ("" where unknown) and split, and its camera's azimuth in degrees, where known."""

    person: str
    split: str
    azimuth: float | None


def _unusable(view: View, subject: _Subject, square: Square | None) -> list[Refused]:
    """Return the reasons why a view with joints and images is not usable at all."""
    found = []
    if view.poses and not subject.person:
        found.append(Refused(None, reasons.NO_IDENTITY, view.take))
    if view.poses and subject.azimuth is None:
        found.append(Refused(None, reasons.NOT_CALIBRATED, view.camera))
    if view.poses and square is None:
        found.append(Refused(None, reasons.NO_CROP, f"{len(view.poses):,} frames"))
    return found


def _instant(view: View, frame: int) -> str:
    return f"{view.take}/{frame:06d}"


def _reject(view: View, split: str, refused: Refused) -> Reject:
    frame = view.take if refused.frame is None else _instant(view, refused.frame)
    return Reject(f"{frame}.{view.camera}", split, refused.reason, refused.detail)


def _entries(view: View, subject: _Subject, square: Square, stride: int) -> list[Entry]:
    """Return a view's entries, joints in pixels of the crop."""
    assert subject.azimuth is not None
    return [
        Entry(
            name=f"{_instant(view, frame)}.{view.camera}",
            split=subject.split,
            group=_instant(view, frame),
            identity=subject.person,
            view=view.camera,
            path=str(Part(view.path(frame), frame if view.video else None, square)),
            joints=np.where(pose.visible[:, None], pose.joints - np.array(square[:2], np.float32), np.float32(MISSING)),
            visible=pose.visible,
            azimuth=subject.azimuth,
        )
        for frame, pose in view.poses.items()
        if frame % stride == 0
    ]


def _square(poses: Iterable[Pose], margin: float) -> Square | None:
    """Return the square of a view of a take; None if no joint is finite or they lie impossibly far apart."""
    known = [pose.joints[pose.visible & np.isfinite(pose.joints).all(axis=1)] for pose in poses]
    seen = [joints.astype(np.float64) for joints in known if len(joints)]
    if not seen:
        return None
    low = np.quantile([joints.min(axis=0) for joints in seen], STRAY, axis=0)
    high = np.quantile([joints.max(axis=0) for joints in seen], 1 - STRAY, axis=0)
    square = square_around(low, high, margin * float((high - low).max()))
    return square if square.side <= LARGEST else None
