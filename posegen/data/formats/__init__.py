"""Poses by image name, as every reader of annotation files returns them, and the parts that these readers share.

A reader returns the 18 joints of `joints.JOINTS` under the image names that its file uses; `annotations` matches these
names to images on disk. Coordinates that are not finite are passed on, so that only their image is rejected later.
Malformed content raises a ValueError that names the file and the line or JSON path.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.geometry.joints import JOINTS

MISSING = -1.0  # both coordinates of an unknown joint


class Pose(NamedTuple):
    """One person: joints float32 (18, 2), x and y in pixels of the image, -1 where unknown; visible bool (18,)."""

    joints: np.ndarray
    visible: np.ndarray


NOBODY = Pose(np.full((len(JOINTS), 2), MISSING, dtype=np.float32), np.zeros(len(JOINTS), dtype=bool))


@dataclass(frozen=True)
class Annotations:
    """The poses of a file or folder by image name, in file order; for names that occur twice, where they occur."""

    format: str
    poses: dict[str, Pose]
    duplicates: dict[str, str]


def collect_poses(kind: str, found: Iterable[tuple[str, str, Pose]]) -> Annotations:
    """Collect (name, where, pose) of a format; a name that occurs twice keeps no pose, as either may be wrong."""
    poses: dict[str, Pose] = {}
    occurrences: dict[str, list[str]] = {}
    for name, where, pose in found:
        poses[name] = pose
        occurrences.setdefault(name, []).append(where)
    duplicates = {name: "; ".join(where) for name, where in occurrences.items() if len(where) > 1}
    return Annotations(kind, {name: pose for name, pose in poses.items() if name not in duplicates}, duplicates)


def confident_pose(joints: np.ndarray, confidence: np.ndarray) -> Pose:
    """Return the pose whose joints are visible where their confidence is above 0."""
    visible = confidence > 0
    with np.errstate(over="ignore"):
        return Pose(np.where(visible[:, None], joints, MISSING).astype(np.float32), visible)


def parse_points(values: Any, counts: list[int], where: str) -> np.ndarray:
    """Return a flat list x, y, confidence, x, ... as float64 (points, 3).

    Raises:
        ValueError: If it is not a list of numbers for one of `counts` points.
    """
    if not isinstance(values, list) or len(values) not in [3 * count for count in counts]:
        sizes = " or ".join(f"{3 * count} numbers ({count} points)" for count in counts)
        found = f"{len(values)} values" if isinstance(values, list) else repr(values)[:60]
        raise ValueError(f"{where}: expected {sizes} x, y, confidence, found {found}")
    for number, value in enumerate(values):
        if type(value) not in (int, float):
            raise ValueError(f"{where}[{number}]: expected a number, found {value!r}")
    return np.array([float(value) for value in values]).reshape(-1, 3)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises ValueError for other encodings."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, byte {error.start} is invalid") from None


def load_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError, with the line, for malformed content."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}: JSON that is too deeply nested") from None
