"""Poses by image name, as every reader of annotation files returns them, and the parts that these readers share.

A reader returns the 18 joints of `joints.JOINTS` under the image names that its file uses; `annotations` matches these
names to images on disk. NaN and null are absent values: their joint is unknown. Infinite coordinates are passed on, so
that only their image is rejected later. Malformed content raises a ValueError that names the file and the line or JSON
path.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from posegen.data.geometry.joints import JOINTS

MISSING = -1.0  # both coordinates of an unknown joint
FRACTION = "fractions"  # unit of coordinates from 0 to 1 of the image's width and height
SIGNED = "signed"  # unit of coordinates from -1 to 1, 0 in the middle of the image
PIXELS = "pixels"
UNITS = (PIXELS, FRACTION, SIGNED)
TINY, NEARLY_ALL = 2.0, 0.95  # pixels; share of the people


class Pose(NamedTuple):
    """One person: joints float32 (18, 2), x and y in pixels of the image, -1 where unknown; visible bool (18,)."""

    joints: np.ndarray
    visible: np.ndarray


NOBODY = Pose(np.full((len(JOINTS), 2), MISSING, dtype=np.float32), np.zeros(len(JOINTS), dtype=bool))


class Size(NamedTuple):
    """Width and height in pixels of the image for which a file gives its coordinates."""

    width: float
    height: float

    def __str__(self) -> str:
        return f"{self.width:g}x{self.height:g}"


@dataclass(frozen=True)
class Annotations:
    """The poses of a file or folder by image name, in file order.

    Attributes:
        format: The format's title.
        poses: The pose of each name, in `unit`.
        duplicates: Names with poses that differ, and where these stand.
        unit: One of `UNITS`. Fractions and signed coordinates are of the image's size, or of that in `sizes`.
        sizes: By name, the size of the image for which the coordinates are given, where the file has it.
        notes: Sentences for the user about parts of the file that are passed over.
    """

    format: str
    poses: dict[str, Pose]
    duplicates: dict[str, str]
    unit: str = PIXELS
    sizes: Mapping[str, Size] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def collect_poses(
    kind: str,
    found: Iterable[tuple[str, str, Pose]],
    *,
    unit: str = PIXELS,
    sizes: Mapping[str, Size] | None = None,
    notes: tuple[str, ...] = (),
) -> Annotations:
    """Collect (name, where, pose) of a format.

    Joints with a coordinate that is NaN are unknown. A name that occurs twice with the same pose is kept once; with
    different poses it keeps none, as either may be wrong.
    """
    poses: dict[str, Pose] = {}
    occurrences: dict[str, list[str]] = {}
    differing: set[str] = set()
    for name, where, pose in found:
        joints, visible = pose
        absent = np.isnan(joints).any(axis=1)
        if absent.any():
            pose = Pose(np.where(absent.reshape(-1, 1), np.float32(MISSING), joints), visible & ~absent)
        if name in poses and not same_pose(poses[name], pose):
            differing.add(name)
        poses[name] = pose
        occurrences.setdefault(name, []).append(where)
    duplicates = {name: "; ".join(where) for name, where in occurrences.items() if name in differing}
    kept = {name: pose for name, pose in poses.items() if name not in duplicates}
    return Annotations(kind, kept, duplicates, unit, sizes or {}, notes)


def same_pose(one: Pose, other: Pose) -> bool:
    """Return whether two poses are equal in every joint."""
    return np.array_equal(one.joints, other.joints) and np.array_equal(one.visible, other.visible)


def check_unit(annotations: Annotations, where: Path | str, *, settable: bool = False) -> Annotations:
    """Return the annotations if their coordinates are pixels; `settable` sources read other units, too.

    Our choice: people whose joints all lie within 2 pixels of the upper left corner, and between whole numbers, are
    too many if they are 95 % of all. OpenPose writes such files with `--keypoint_scale 3` (0 to 1) and 4 (-1 to 1).

    Raises:
        ValueError: If they are fractions, with the unit and the remedy.
    """
    if annotations.unit != PIXELS and not settable:
        raise ValueError(
            f"{where}: expected coordinates in pixels, found {annotations.unit} of the image ({annotations.format}). "
            "Write them in pixels; --dataset folder reads fractions, too."
        )
    people = [pose.joints[pose.visible] for pose in annotations.poses.values() if pose.visible.any()]
    if annotations.unit != PIXELS or not people:
        return annotations
    tiny = [bool((np.abs(joints) <= TINY).all()) for joints in people]
    if sum(tiny) < NEARLY_ALL * len(people):
        return annotations
    values = np.concatenate(people)
    unit, span, scale = (SIGNED, "-1 to 1", 4) if (values < -0.01).any() else (FRACTION, "0 to 1", 3)
    x, y = values[0]
    given = f"If so, give their unit: `unit={unit}`; or write" if settable else "Write"
    raise ValueError(
        f"{where}: expected coordinates in pixels, found x {values[:, 0].min():g} to {values[:, 0].max():g} and y "
        f"{values[:, 1].min():g} to {values[:, 1].max():g} (the first joint is at {x:g}, {y:g}): these look like "
        f"fractions of the image, {span}, as OpenPose writes with --keypoint_scale {scale}. {given} "
        "them in pixels (OpenPose: --keypoint_scale 0)."
    )


def to_pixels(joints: Float[np.ndarray, "18 2"], unit: str, size: Size) -> Float[np.ndarray, "18 2"]:
    """Return coordinates of a unit in pixels of an image of a size: x w, or (x + 1) / 2 w (as OpenPose's -1 to 1)."""
    if unit == PIXELS:
        return joints
    shares = joints if unit == FRACTION else (joints + 1) / 2
    return shares * np.array(size, dtype=np.float32)


def confident_pose(joints: np.ndarray, confidence: np.ndarray) -> Pose:
    """Return the pose whose joints are visible where their confidence is above 0."""
    visible = confidence > 0
    with np.errstate(over="ignore"):
        return Pose(np.where(visible[:, None], joints, MISSING).astype(np.float32), visible)


def parse_points(values: Any, counts: Collection[int], where: str) -> np.ndarray:
    """Return points as float64 (points, 3): x, y, confidence.

    `values` is a flat list x, y, confidence, x, ... or a list of points of 2 or more numbers each, of which the third
    is the confidence (1 without it). null is NaN, and a point with NaN has the confidence 0.

    Raises:
        ValueError: If it is not a list of numbers for one of `counts` points.
    """
    flat = values
    if isinstance(values, list) and values and all(isinstance(point, list) and len(point) >= 2 for point in values):
        flat = [number for point in values for number in ([*point, 1] if len(point) == 2 else point[:3])]
    if not isinstance(flat, list) or len(flat) not in [3 * count for count in counts]:
        sizes = " or ".join(f"{3 * count} numbers ({count} points)" for count in counts)
        found = f"{len(flat)} values" if isinstance(flat, list) else repr(flat)[:60]
        raise ValueError(f"{where}: expected {sizes} x, y, confidence, found {found}")
    for number, value in enumerate(flat):
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{where}[{number}]: expected a number, found {value!r}")
    points = np.array([float("nan") if value is None else float(value) for value in flat]).reshape(-1, 3)
    points[np.isnan(points).any(axis=1), 2] = 0
    return points


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden or an editor's or archiver's: `.x`, `x~`, `#x#`, `__MACOSX`."""
    return name.startswith((".", "~$")) or name.endswith("~") or name == "__MACOSX" or (name[:1] == name[-1:] == "#")


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted by path. Hidden ones are skipped.

    Linked folders are followed, except to a folder that holds the link: a loop of links ends.
    """
    yield from _walk(folder, frozenset({os.path.realpath(folder)}))


def _walk(folder: Path, around: frozenset[str]) -> Iterator[Path]:
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            yield Path(entry.path)
        elif (real := os.path.realpath(entry.path)) not in around:
            yield from _walk(Path(entry.path), around | {real})


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files in a folder that match a pattern, sorted; hidden ones are skipped."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))


def visible_json(folder: Path) -> list[Path]:
    """Return the JSON files in a folder and below it, sorted; hidden ones are skipped."""
    return [path for path in walk(folder) if path.suffix.lower() == ".json"] if folder.is_dir() else []


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises ValueError for other encodings."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, byte {error.start} is invalid") from None


def load_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError, with the line, for malformed content. The result must not be changed."""
    status = path.stat()
    return _load_json(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)  # a format is told by its content, which is then read
def _load_json(path: Path, changed: int, size: int) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}: JSON that is too deeply nested") from None
