"""Folders of synchronized views: takes, the pictures or videos of their cameras, and the joints in these."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from posegen.data import reasons
from posegen.data.camera_files import FORMATS, plain_name
from posegen.data.keypoint_files import Pose, read_openpose
from posegen.data.picture_files import READABLE, picture_sizes

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
EXPECTED = (
    f"a calibration file ({FORMATS}) and a folder for each take, with each camera's pictures in TAKE/CAMERA/*.jpg or "
    "its video TAKE/CAMERA.mp4 (also in TAKE/images or TAKE/videos), and OpenPose's JSON files in TAKE/CAMERA_json "
    "(also in TAKE/pose)"
)
_CALIBRATIONS = ("*.qca.txt", "calibration.json")
_BESIDE = ("calibration", "images", "videos", "pose")  # folders in the root or in a take that are no take and no camera


Item = TypeVar("Item")


class Refused(NamedTuple):
    """What of a view cannot be used: a picture, an annotation or all of it (`frame` is None)."""

    frame: int | None
    reason: str
    detail: str


@dataclass(frozen=True)
class View:
    """What one camera saw in one take: a video, or a picture a frame, with poses by frame, and what is not usable."""

    take: str
    camera: str  # as its folder or file is called
    video: Path | None
    pictures: Mapping[int, Path]
    poses: Mapping[int, Pose]
    refused: tuple[Refused, ...]

    def path(self, frame: int) -> Path:
        """The file that holds the frame."""
        return self.video or self.pictures[frame]


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
    """All views of all takes that have joints or pictures. Raises ValueError where there is no take, as readers do."""
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
    joints, videos, pictures = _joint_folders(take), _videos(take), _picture_folders(take)
    names = {plain_name(name): name for name in (*videos, *pictures, *joints)}
    return [
        _view(take.name, name, _of(name, joints), _of(name, videos), _of(name, pictures), layout)
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


def _picture_folders(take: Path) -> dict[str, Path]:
    return {path.name: path for path in _folders(take, ["images"]) if picture_sizes(path, READABLE)}


def _videos(take: Path) -> dict[str, Path]:
    files = [path for folder in (take, take / "videos") if folder.is_dir() for path in sorted(folder.iterdir())]
    return {path.stem: path for path in files if path.suffix.lower() in VIDEOS and path.is_file()}


def _view(
    take: str, camera: str, joints: Path | None, video: Path | None, pictures: Path | None, layout: str | None
) -> View:
    folder = pictures if video is None else None
    files = [] if folder is None else [folder / name for name in picture_sizes(folder, READABLE)]
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
        refused += [Refused(frame, reasons.NO_PICTURE, f"in {joints.name}") for frame in poses if frame not in shown]
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
