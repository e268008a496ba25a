"""Folders of synchronized views: takes, the images or videos of their cameras, and the joints in these.

One's own recordings of a person by several calibrated cameras at once, for the systems that turn people.

A take is a folder; a group is one instant of it, the frames of one number, and its views are the cameras. The layout is
near to Pose2Sim's: `view_folders` has it, `camera_files` the calibration.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from posegen.data import reasons
from posegen.data.formats.calibration import FORMATS, plain_name, read_azimuths
from posegen.data.formats.images import READABLE, fingerprint, image_sizes
from posegen.data.formats.keypoint_files import MISSING, Pose, read_openpose
from posegen.data.formats.video import LARGEST, Part, Square, parse_part, part_sizes, read_part, square_around
from posegen.data.listing import Entry, Listing, LoadedImage, Reject
from posegen.data.sources.folder import check_settings
from posegen.data.sources.splits import SPLITS, held_out

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
EXPECTED = (
    f"a calibration file ({FORMATS}) and a folder for each take, with each camera's images in TAKE/CAMERA/*.jpg or "
    "its video TAKE/CAMERA.mp4 (also in TAKE/images or TAKE/videos), and OpenPose's JSON files in TAKE/CAMERA_json "
    "(also in TAKE/pose)"
)
_CALIBRATIONS = ("*.qca.txt", "calibration.json")
_BESIDE = ("calibration", "images", "videos", "pose")  # folders in the root or in a take that are no take and no camera


Item = TypeVar("Item")


class Refused(NamedTuple):
    """What of a view cannot be used: an image, an annotation or all of it (`frame` is None)."""

    frame: int | None
    reason: str
    detail: str


@dataclass(frozen=True)
class View:
    """What one camera saw in one take: a video, or an image a frame, with poses by frame, and what is not usable."""

    take: str
    camera: str  # as its folder or file is called
    video: Path | None
    images: Mapping[int, Path]
    poses: Mapping[int, Pose]
    refused: tuple[Refused, ...]

    def path(self, frame: int) -> Path:
        """The file that holds the frame."""
        return self.video or self.images[frame]


def find_calibration(root: Path, given: Path | None) -> Path:
    """The given file, which may be relative to `root`, else the only one in `root` or `root/calibration`.

    Raises ValueError where there is none, or several.
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
    """All views of all takes that have joints or images. Raises ValueError where there is no take, as readers do."""
    if not root.is_dir():
        raise ValueError(f"'{root}' is not a folder. Expected one with {EXPECTED}.")
    takes = [path for path in sorted(root.absolute().iterdir()) if path.is_dir() and _is_own(path.name)]
    views = [view for take in takes for view in _views(take, layout)]
    if not views:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"'{root}' holds no take. Expected {EXPECTED}; there is {there}.")
    return views


def _is_own(name: str) -> bool:
    return not name.startswith(".") and name not in _BESIDE


def _views(take: Path, layout: str | None) -> list[View]:
    joints, videos, images = _joint_folders(take), _videos(take), _image_folders(take)
    names = {plain_name(name): name for name in (*videos, *images, *joints)}
    return [
        _view(take.name, name, _of(name, joints), _of(name, videos), _of(name, images), layout)
        for name in sorted(names.values())
    ]


def _of(name: str, found: Mapping[str, Path]) -> Path | None:
    return next((path for other, path in found.items() if plain_name(other) == plain_name(name)), None)


def _folders(take: Path, inside: Iterable[str]) -> list[Path]:
    parents = [take, *(take / name for name in inside)]
    children = [path for parent in parents if parent.is_dir() for path in sorted(parent.iterdir())]
    return [path for path in children if path.is_dir() and _is_own(path.name)]


def _joint_folders(take: Path) -> dict[str, Path]:
    found = [path for path in _folders(take, ["pose"]) if any(path.glob("*.json"))]
    return {re.sub(r"_json$", "", path.name): path for path in found}


def _image_folders(take: Path) -> dict[str, Path]:
    return {path.name: path for path in _folders(take, ["images"]) if image_sizes(path, READABLE)}


def _videos(take: Path) -> dict[str, Path]:
    files = [path for folder in (take, take / "videos") if folder.is_dir() for path in sorted(folder.iterdir())]
    return {path.stem: path for path in files if path.suffix.lower() in VIDEOS and path.is_file()}


def _view(
    take: str, camera: str, joints: Path | None, video: Path | None, images: Path | None, layout: str | None
) -> View:
    folder = images if video is None else None
    files = [] if folder is None else [folder / name for name in image_sizes(folder, READABLE)]
    shown, unclear = _by_frame((path.stem, path) for path in files)
    annotations = None if joints is None else read_openpose(joints, layout)
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
    """The items by frame, in order, and the names that have no number, or one that another name has too.

    A name's number is its last digits: 4 in "cam01.0004" and in "cam01_000000000004".
    """
    found: dict[int | None, list[tuple[str, Item]]] = {}
    for name, item in named:
        digits = re.findall(r"\d+", name)
        found.setdefault(int(digits[-1]) if digits else None, []).append((name, item))
    single = {frame: items[0][1] for frame, items in found.items() if frame is not None and len(items) == 1}
    unclear = [name for frame, items in found.items() if frame not in single for name, _ in items]
    return dict(sorted(single.items())), unclear


STRAY = 0.01  # the share of a view's frames whose joints the crop need not hold on a side: estimators go astray


@dataclass(frozen=True)
class SynchronizedViews:
    """The takes below `root`, with OpenPose's joints and a calibration file.

    `calibration` is that file; None takes the only one in the root. `layout` is the order of OpenPose's points where
    their number does not tell it ("body_25b"). `identity` is a regular expression that is searched in a take's name,
    and whose first group is the person; None takes the take's name. Of several people in an image the one with the
    highest sum of confidences is taken, in each view for itself: nothing checks that all views show the same person.

    Frames are taken whose number is a multiple of `stride`. Images are cut to one square a view of a take, around
    its joints, with `margin` of their extent on each side (our choice; all but the farthest `STRAY` of the frames on a
    side); what of the square lies outside of the image is black.

    `test` names the takes, or the people, for testing. Without it whole people are held out, about the share
    `test_share` and at least one, chosen by a hash of their names.
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
    size: ClassVar[tuple[int, int]] = (256, 256)  # of the images in the shards, where no other is asked for

    def listing(self) -> Listing:
        """All instants of both splits. Raises ValueError where a folder or file is missing or does not parse."""
        self._check_settings()
        views = find_views(self.root, self.layout)
        file = find_calibration(self.root, self.calibration)
        azimuths = read_azimuths(file)
        people = self._people({view.take for view in views})
        splits, split_note = self._splits(people)
        entries: list[Entry] = []
        rejects: list[Reject] = []
        for view in views:
            who = _Who(people.get(view.take, ""), splits.get(view.take, "train"), azimuths.get(plain_name(view.camera)))
            square = _square(view.poses.values(), self.margin)
            refused = [*view.refused, *_unusable(view, who, square)]
            rejects += [_reject(view, who.split, one) for one in refused if (one.frame or 0) % self.stride == 0]
            if who.person and who.azimuth is not None and square is not None:
                entries += _entries(view, who, square, self.stride)
        entries.sort(key=lambda entry: entry.group)  # an instant's views stay in their order
        listing = Listing(entries, "", rejects)
        _check_splits(self.root, listing)
        sizes = part_sizes([entry.path for entry in entries])
        turns = ", ".join(f"{name} {azimuth:.1f}" for name, azimuth in azimuths.items())
        notes = (f"Cameras: azimuths by {file.name} in degrees: {turns}.", split_note)
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes), notes=notes)

    def load(self, entry: Entry) -> LoadedImage:
        """The crop of the image or frame, in its own pixels, as BMP. Raises ValueError(reason, detail)."""
        assert entry.joints is not None
        assert entry.visible is not None
        return LoadedImage(read_part(parse_part(entry.path)), entry.joints, entry.visible)

    def _check_settings(self) -> None:
        check_settings(layout=self.layout, identity=self.identity, test_share=self.test_share)
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 (every frame), not {self.stride}.")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0 (a share of the joints' extent), not {self.margin}.")

    def _people(self, takes: Collection[str]) -> dict[str, str]:
        """The person of each take that has one."""
        if self.identity is None:
            return {take: take for take in sorted(takes)}
        found = {take: re.search(self.identity, take) for take in sorted(takes)}
        return {take: match[1] for take, match in found.items() if match and match[1]}

    def _splits(self, people: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """The split of each take, and what decided."""
        known = sorted({*people, *people.values()})
        if unknown := [name for name in self.test if name not in known]:
            raise ValueError(f"test names {', '.join(unknown)}; the takes and people are {', '.join(known)}.")
        named = sorted(set(people.values()))
        if not self.test and len(named) < 2:
            raise ValueError(
                f"the takes are of {len(named)} people ({', '.join(named) or 'nobody'}), so nobody can be held out for "
                "testing. Give takes of another person, or say which takes are for testing: --set data.test=TAKE."
            )
        testing = set(self.test) or held_out(named, self.test_share)
        splits = {take: "test" if {take, person} & testing else "train" for take, person in people.items()}
        trained, tested = ({people[take] for take in splits if splits[take] == split} for split in SPLITS)
        warning = " The scores say little about other people: some are in both splits." if trained & tested else ""
        return splits, f"Splits: tested are {', '.join(take for take in splits if splits[take] == 'test')}.{warning}"


class _Who(NamedTuple):
    """Whose a view is ("" where unknown), its split, and its camera's azimuth in degrees, where that is known."""

    person: str
    split: str
    azimuth: float | None


def _unusable(view: View, who: _Who, square: Square | None) -> list[Refused]:
    """Why nothing of a view that has joints and images can be used, if so."""
    found = []
    if view.poses and not who.person:
        found.append(Refused(None, reasons.NO_IDENTITY, view.take))
    if view.poses and who.azimuth is None:
        found.append(Refused(None, reasons.NOT_CALIBRATED, view.camera))
    if view.poses and square is None:
        found.append(Refused(None, reasons.NO_CROP, f"{len(view.poses):,} frames"))
    return found


def _called(view: View, frame: int) -> str:
    return f"{view.take}/{frame:06d}"


def _reject(view: View, split: str, refused: Refused) -> Reject:
    frame = view.take if refused.frame is None else _called(view, refused.frame)
    return Reject(f"{frame}.{view.camera}", split, refused.reason, refused.detail)


def _entries(view: View, who: _Who, square: Square, stride: int) -> list[Entry]:
    """A view's entries, joints in pixels of the crop."""
    assert who.azimuth is not None
    return [
        Entry(
            name=f"{_called(view, frame)}.{view.camera}",
            split=who.split,
            group=_called(view, frame),
            identity=who.person,
            view=view.camera,
            path=str(Part(view.path(frame), frame if view.video else None, square)),
            joints=np.where(pose.visible[:, None], pose.joints - np.array(square[:2], np.float32), np.float32(MISSING)),
            visible=pose.visible,
            azimuth=who.azimuth,
        )
        for frame, pose in view.poses.items()
        if frame % stride == 0
    ]


def _square(poses: Iterable[Pose], margin: float) -> Square | None:
    """The square of a view of a take; None where no finite joint is known, or where they lie impossibly far."""
    known = [pose.joints[pose.visible & np.isfinite(pose.joints).all(axis=1)] for pose in poses]
    seen = [joints.astype(np.float64) for joints in known if len(joints)]
    if not seen:
        return None
    low = np.quantile([joints.min(axis=0) for joints in seen], STRAY, axis=0)
    high = np.quantile([joints.max(axis=0) for joints in seen], 1 - STRAY, axis=0)
    square = square_around(low, high, margin * float((high - low).max()))
    return square if square.side <= LARGEST else None


def _check_splits(root: Path, listing: Listing) -> None:
    for split in SPLITS:
        if not any(entry.split == split for entry in listing.entries):
            counts = Counter(reject.reason for reject in listing.rejects if reject.split == split)
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "nothing"
            raise ValueError(
                f"'{root}' has no usable view for the split '{split}'; left out: {why}. Expected {EXPECTED}."
            )
