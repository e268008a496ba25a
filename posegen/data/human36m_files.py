"""The files of a Human3.6M folder: the official videos, and VideoPose3D's joints, in pixels or in metres."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.camera_models import Camera, project
from posegen.data.plain_npz import read_plain_npz

JOINTS_2D, JOINTS_3D = "data_2d_h36m_gt.npz", "data_3d_h36m.npz"  # the first of these that is there
EXPECTED = (
    "S1/Videos/Directions 1.54138969.mp4 and so on (the official videos of S1, S5, S6, S7, S8, S9 and S11), and "
    f"VideoPose3D's {JOINTS_2D} or {JOINTS_3D}"
)
_NEW_NAMES = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog"}  # VideoPose3D's "consistent naming convention"
_ORDERS = {"h36m": "human36m_17", "coco": "coco_17"}  # `layout_name` in VideoPose3D's files of 2D joints

Cameras = Mapping[str, Mapping[str, Camera]]  # by subject and name


class VideoName(NamedTuple):
    """What is seen in a video: a subject, an action as VideoPose3D calls it, a camera."""

    subject: str
    action: str
    camera: str


class Action(NamedTuple):
    """One action of one subject: points (frames, points, 2) by camera, in pixels of the videos."""

    subject: str
    action: str
    views: dict[str, np.ndarray]


@dataclass(frozen=True)
class JointsFile:
    """A file of joints: which order of `joints.LAYOUTS` its points have, and what was recorded, by subject and action.

    A recording holds points in pixels by camera, in the order of the cameras (None where there are none), or points in
    metres (frames, points, 3).
    """

    path: Path
    layout: str
    recordings: Mapping[str, Mapping[str, Any]]

    def actions(self, cameras: Cameras) -> Iterator[Action]:
        """All actions of the subjects that have cameras, sorted, with what each camera sees."""
        for subject in [subject for subject in cameras if subject in self.recordings]:
            for action, found in sorted(self.recordings[subject].items()):
                place = f"{self.path}: {subject}, {action}"
                yield Action(subject, action, _views(found, cameras[subject], self.layout, place))


def find_videos(root: Path) -> dict[VideoName, Path]:
    """The official videos below `root` by what is in them; those of all cameras in one picture (`_ALL`) are not taken.

    Raises ValueError where there is none.
    """
    if not root.is_dir():
        raise ValueError(f"Human3.6M root '{root}' is not a folder. Expected one with {EXPECTED}.")
    found = {}
    for path in sorted(root.absolute().glob("S*/Videos/*.mp4")):
        name = re.fullmatch(r"(.+)\.([^.]+)\.mp4", path.name)
        if name and path.is_file() and not name[1].startswith("_ALL"):
            action = name[1]
            for old, new in _NEW_NAMES.items():
                action = action.replace(old, new)
            found[VideoName(path.parts[-3], action, name[2])] = path
    if not found:
        there = sorted(path.name for path in root.iterdir())[:8]
        raise ValueError(
            f"Human3.6M root '{root}' has no videos. Expected {EXPECTED}; there is {', '.join(there) or 'nothing'}."
        )
    return found


def read_joints(root: Path, joints: Path | None) -> JointsFile:
    """The joints of `joints`, which may be relative to `root`, else of `JOINTS_2D` or `JOINTS_3D` in `root`.

    Raises ValueError where there is no such file, and for one that is not as VideoPose3D writes it.
    """
    if joints is None:
        path = next((root / name for name in (JOINTS_2D, JOINTS_3D) if (root / name).is_file()), None)
        if path is None:
            there = ", ".join(sorted(each.name for each in root.glob("*.npz"))) or "no npz file"
            raise ValueError(
                f"Human3.6M root '{root}' has no joints. Expected VideoPose3D's {JOINTS_2D} or {JOINTS_3D}; there is "
                f"{there}. Or say where they are: --set data.joints=FILE."
            )
    else:
        path = joints if joints.is_file() else root / joints
        if not path.is_file():
            raise ValueError(f"joints file '{joints}' does not exist. Expected VideoPose3D's npz file of joints.")
    return _read(path)


def _read(path: Path) -> JointsFile:
    content = read_plain_npz(path)
    key = next((key for key in ("positions_2d", "positions_3d") if key in content), None)
    if key is None:
        raise ValueError(f"{path}: expected an array 'positions_2d' or 'positions_3d', found {', '.join(content)}")
    recordings = content[key]
    if not isinstance(recordings, dict) or not all(isinstance(actions, dict) for actions in recordings.values()):
        raise ValueError(f"{path}: expected '{key}' to be a dict of subjects, each a dict of actions")
    order = _order(content.get("metadata"), path) if key == "positions_2d" else _order_3d(recordings, path)
    return JointsFile(path, order, recordings)


def _order(metadata: object, path: Path) -> str:
    """By the name in the file; VideoPose3D's own projections have none, and Human3.6M's 17 joints."""
    name = metadata.get("layout_name", "h36m") if isinstance(metadata, dict) else "h36m"
    if name not in _ORDERS:
        raise ValueError(f"{path}: the joints are in the order '{name}'. Understood are {', '.join(_ORDERS)}.")
    return _ORDERS[name]


def _order_3d(recordings: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """By the number of points of the first recording."""
    first = next((found for actions in recordings.values() for found in actions.values()), None)
    points = first.shape[1] if isinstance(first, np.ndarray) and first.ndim == 3 else None
    if points not in (17, 32):
        raise ValueError(f"{path}: expected arrays (frames, 32, 3) or (frames, 17, 3), found {_shape(first)}")
    return f"human36m_{points}"


def _views(found: Any, cameras: Mapping[str, Camera], order: str, place: str) -> dict[str, np.ndarray]:
    points = int(order.rpartition("_")[2])
    if isinstance(found, np.ndarray) and found.dtype != object and found.ndim == 3:
        _check_points(found, (points, 3), place)
        return {name: project(camera, found.astype(np.float64)) for name, camera in cameras.items()}
    if not isinstance(found, list | tuple | np.ndarray) or len(found) != len(cameras):
        raise ValueError(f"{place}: expected points for each of {len(cameras)} cameras, found {_shape(found)}")
    views = {name: view for name, view in zip(cameras, found, strict=True) if view is not None}
    for name, view in views.items():
        _check_points(view, (points, 2), f"{place}, {name}")
    return {name: view.astype(np.float64) for name, view in views.items()}


def _check_points(found: Any, shape: tuple[int, int], place: str) -> None:
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape[1:] != shape:
        raise ValueError(f"{place}: expected an array (frames, {shape[0]}, {shape[1]}), found {_shape(found)}")


def _shape(found: Any) -> str:
    return f"an array {found.shape}" if isinstance(found, np.ndarray) else f"{type(found).__name__}: {str(found)[:60]}"
