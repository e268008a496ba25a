"""The files of a Human3.6M folder: the official videos, VideoPose3D's joints in pixels or metres, and the cameras.

The published calibration of the four cameras is that of VideoPose3D's `common/h36m_dataset.py`, float32, taken from the
data set: lenses in pixels; orientations as quaternions (w, x, y, z) from the camera to the world; translations, which
are the cameras' positions, in millimetres, z up. Each subject was recorded with a calibration of its own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.formats.calibration import Camera, Lens, project, rotation_matrix
from posegen.data.formats.images import folder_names
from posegen.data.formats.restricted import read_plain_npz
from posegen.storage.files import read_json

CAMERAS = {
    "54138969": {
        "focal_length": [1145.0494, 1143.7811],
        "center": [512.5415, 515.4515],
        "radial_distortion": [-0.20709892, 0.24777518, -0.0030751503],
        "tangential_distortion": [-0.0009756989, -0.0014244716],
    },
    "55011271": {
        "focal_length": [1149.6757, 1147.5917],
        "center": [508.84863, 508.0649],
        "radial_distortion": [-0.19421363, 0.24040854, 0.0068199756],
        "tangential_distortion": [-0.0016190266, -0.0027408944],
    },
    "58860488": {
        "focal_length": [1149.1407, 1148.799],
        "center": [519.81586, 501.40265],
        "radial_distortion": [-0.20833819, 0.255488, -0.0024604974],
        "tangential_distortion": [0.001484387, -0.0007599993],
    },
    "60457274": {
        "focal_length": [1145.5114, 1144.7739],
        "center": [514.9682, 501.88202],
        "radial_distortion": [-0.19838409, 0.21832368, -0.008947807],
        "tangential_distortion": [-0.0005872056, -0.001813362],
    },
}

_PLACEMENTS = {  # a camera a row, in the order above: orientation, translation
    "S1": [
        ([0.14070565, -0.15007018, -0.7552408, 0.62232804], [1841.107, 4955.2847, 1563.4454]),
        ([0.6157188, -0.7648363, -0.14833826, 0.11794741], [1761.2786, -5078.007, 1606.265]),
        ([0.14651473, -0.14647852, 0.76530236, -0.60941756], [-1846.7777, 5215.0464, 1491.9724]),
        ([0.58340085, -0.7853162, 0.14548823, -0.14749594], [-1794.7897, -3722.699, 1574.8927]),
    ],
    "S5": [
        ([0.14673772, -0.16237096, -0.7551893, 0.6178939], [2097.3916, 4880.945, 1605.7324]),
        ([0.61597586, -0.7626792, -0.15728192, 0.1189815], [2031.7008, -5167.933, 1612.9231]),
        ([0.14291371, -0.12907842, 0.7678385, -0.6110143], [-1620.5948, 5171.6587, 1496.437]),
        ([0.592048, -0.7814218, 0.12747486, -0.15036418], [-1637.1737, -3867.3174, 1547.0332]),
    ],
    "S6": [
        ([0.13378978, -0.15692396, -0.75710905, 0.61988795], [1935.4518, 4950.2456, 1618.0839]),
        ([0.61471975, -0.7628813, -0.16174768, 0.11819245], [1969.804, -5128.739, 1632.7788]),
        ([0.15299481, -0.13529131, 0.76460963, -0.6112781], [-1769.5964, 5185.3613, 1476.9934]),
        ([0.59161013, -0.7804774, 0.1283227, -0.15615939], [-1721.6687, -3884.1313, 1540.4879]),
    ],
    "S7": [
        ([0.14352418, -0.16313368, -0.75483286, 0.6188825], [1974.513, 4926.3545, 1597.8326]),
        ([0.6141673, -0.76382625, -0.15966456, 0.117792994], [1937.0585, -5119.79, 1631.5665]),
        ([0.1455006, -0.12874816, 0.76605165, -0.61271393], [-1741.8112, 5208.2495, 1464.8246]),
        ([0.5912848, -0.78217643, 0.12445474, -0.15196487], [-1734.7106, -3832.4214, 1548.583]),
    ],
    "S8": [
        ([0.14110588, -0.15589868, -0.75619173, 0.61964405], [2150.6519, 4896.161, 1611.9047]),
        ([0.61696017, -0.7647668, -0.1484635, 0.11158158], [2219.9656, -5148.453, 1613.0441]),
        ([0.1471444, -0.1337712, 0.76701283, -0.61003697], [-1571.2216, 5137.0186, 1498.1761]),
        ([0.59278244, -0.78258705, 0.12147816, -0.14631996], [-1476.9133, -3896.7412, 1547.9722]),
    ],
    "S9": [
        ([0.15540588, -0.15548216, -0.75320953, 0.6199595], [2044.4585, 4935.117, 1481.2275]),
        ([0.6187845, -0.7634735, -0.14132239, 0.11933968], [1990.9597, -5123.8105, 1568.8048]),
        ([0.13357827, -0.13671005, 0.76894546, -0.61007386], [-1670.9922, 5211.986, 1528.388]),
        ([0.5879399, -0.7823407, 0.14276144, -0.1479487], [-1696.0435, -3827.0999, 1591.4127]),
    ],
    "S11": [
        ([0.15232472, -0.1544232, -0.75475633, 0.619107], [2098.4402, 4926.5547, 1500.2786]),
        ([0.61894494, -0.7600917, -0.15300633, 0.12552583], [2083.1824, -4912.173, 1561.0786]),
        ([0.14943229, -0.15650228, 0.7681234, -0.60263044], [-1609.8153, 5177.336, 1537.8967]),
        ([0.58942515, -0.7818877, 0.13991211, -0.14715362], [-1590.738, -3854.169, 1578.0176]),
    ],
}  # fmt: skip
SUBJECTS = {
    subject: {
        camera: {"orientation": orientation, "translation": translation}
        for camera, (orientation, translation) in zip(CAMERAS, placements, strict=True)
    }
    for subject, placements in _PLACEMENTS.items()
}
_LENS_SIZES = {"focal_length": 2, "center": 2, "radial_distortion": 3, "tangential_distortion": 2}
_EXAMPLE = (
    '{"cameras": {"54138969": {"focal_length": [x, y], "center": [x, y], "radial_distortion": [k1, k2, k3], '
    '"tangential_distortion": [p1, p2]}, ...}, "subjects": {"S1": {"54138969": {"orientation": [w, x, y, z], '
    '"translation": [x, y, z]}, ...}, ...}}'
)
_PLACEMENT_SIZES = {"orientation": 4, "translation": 3}


def read_cameras(path: Path | None) -> dict[str, dict[str, Camera]]:
    """Read the cameras by subject and camera name, positions in metres; None returns the published ones.

    A file is JSON with `cameras` and `subjects` like `CAMERAS` and `SUBJECTS` here; the order of its cameras is that of
    the 2D joints. Raises ValueError, naming the file and the entry, for anything else.
    """
    content = {"cameras": CAMERAS, "subjects": SUBJECTS} if path is None else _content(path)
    lenses = {
        name: Lens(**{key: _numbers(lens, key, size, f"{path}: cameras.{name}") for key, size in _LENS_SIZES.items()})
        for name, lens in content["cameras"].items()
    }
    placed: dict[str, dict[str, Camera]] = {}
    for subject, cameras in content["subjects"].items():
        where = f"{path}: subjects.{subject}"
        if unknown := [name for name in cameras if name not in lenses]:
            raise ValueError(f"{where}.{unknown[0]}: this camera is not among 'cameras': {', '.join(lenses)}")
        there = [name for name in lenses if name in cameras]
        placed[subject] = {name: _camera(lenses[name], cameras[name], f"{where}.{name}") for name in there}
    return placed


def _content(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the file and check that both of its parts are mappings of mappings."""
    content = read_json(path) or {}
    for part in (content.get("cameras"), content.get("subjects")):
        if not isinstance(part, dict) or not part or not all(isinstance(each, dict) for each in part.values()):
            found = f"an object with {', '.join(content) or 'nothing'}" if path.is_file() else "no such file"
            raise ValueError(f"{path}: expected JSON with Human3.6M's cameras, {_EXAMPLE}; found {found}.")
    return content


def _camera(lens: Lens, placed: Any, where: str) -> Camera:
    found = {key: _numbers(placed, key, size, where) for key, size in _PLACEMENT_SIZES.items()}
    if not found["orientation"].any():
        raise ValueError(f"{where}.orientation: expected a quaternion that is not zero")
    return Camera(lens, found["translation"] / 1000, rotation_matrix(found["orientation"]).T)


def _numbers(holder: Any, key: str, size: int, where: str) -> np.ndarray:
    values = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(values, list) or len(values) != size or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{where}.{key}: expected a list of {size} numbers, found {str(values)[:80]}")
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}.{key}: expected finite numbers, found {values}")
    return array


JOINTS_2D, JOINTS_3D = "data_2d_h36m_gt.npz", "data_3d_h36m.npz"  # the first of these that is there
EXPECTED = (
    "S1/Videos/Directions 1.54138969.mp4 and so on (the official videos of S1, S5, S6, S7, S8, S9 and S11), and "
    f"VideoPose3D's {JOINTS_2D} or {JOINTS_3D}"
)
_NEW_NAMES = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog"}  # VideoPose3D's "consistent naming convention"
_ORDERS = {"h36m": "human36m_17", "coco": "coco_17"}  # `layout_name` in VideoPose3D's files of 2D joints

Cameras = Mapping[str, Mapping[str, Camera]]  # by subject and name


class VideoName(NamedTuple):
    """The name of a video: a subject, an action as VideoPose3D calls it, a camera."""

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
    """A file of joints: the order of its points, one of `joints.LAYOUTS`, and recordings by subject and action.

    A recording holds points in pixels by camera, in the order of the cameras (None where there are none), or points in
    metres (frames, points, 3).
    """

    path: Path
    layout: str
    recordings: Mapping[str, Mapping[str, Any]]

    def actions(self, cameras: Cameras) -> Iterator[Action]:
        """Yield all actions of the subjects that have cameras, sorted, with the points in each camera's pixels."""
        for subject in [subject for subject in cameras if subject in self.recordings]:
            for action, found in sorted(self.recordings[subject].items()):
                where = f"{self.path}: {subject}, {action}"
                yield Action(subject, action, _views(found, cameras[subject], self.layout, where))


def find_videos(root: Path) -> dict[VideoName, Path]:
    """Find the official videos below `root` by name, without those of all cameras in one image (`_ALL`).

    Raises ValueError if there is none.
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
        raise ValueError(f"Human3.6M root '{root}' has no videos. Expected {EXPECTED}; there is {folder_names(root)}.")
    return found


def read_joints(root: Path, joints: Path | None) -> JointsFile:
    """Read the joints in `joints`, which may be relative to `root`, else in `JOINTS_2D` or `JOINTS_3D` in `root`.

    Raises ValueError if there is no such file, or it is not as VideoPose3D writes it.
    """
    if joints is None:
        path = next((root / name for name in (JOINTS_2D, JOINTS_3D) if (root / name).is_file()), None)
        if path is None:
            there = ", ".join(sorted(each.name for each in root.glob("*.npz"))) or "no npz file"
            raise ValueError(
                f"Human3.6M root '{root}' has no joints. Expected VideoPose3D's {JOINTS_2D} or {JOINTS_3D}; there is "
                f"{there}. Or give their file: --set data.joints=FILE."
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
    """Return the order named in the file; VideoPose3D's projections name none and have Human3.6M's 17 joints."""
    name = metadata.get("layout_name", "h36m") if isinstance(metadata, dict) else "h36m"
    if name not in _ORDERS:
        raise ValueError(f"{path}: the joints are in the order '{name}'. Understood are {', '.join(_ORDERS)}.")
    return _ORDERS[name]


def _order_3d(recordings: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """Return the order by the number of points in the first recording."""
    first = next((found for actions in recordings.values() for found in actions.values()), None)
    points = first.shape[1] if isinstance(first, np.ndarray) and first.ndim == 3 else None
    if points not in (17, 32):
        raise ValueError(f"{path}: expected arrays (frames, 32, 3) or (frames, 17, 3), found {_shape(first)}")
    return f"human36m_{points}"


def _views(found: Any, cameras: Mapping[str, Camera], order: str, where: str) -> dict[str, np.ndarray]:
    points = int(order.rpartition("_")[2])
    if isinstance(found, np.ndarray) and found.dtype != object and found.ndim == 3:
        _check_points(found, (points, 3), where)
        return {name: project(camera, found.astype(np.float64)) for name, camera in cameras.items()}
    if not isinstance(found, list | tuple | np.ndarray) or len(found) != len(cameras):
        raise ValueError(f"{where}: expected points for each of {len(cameras)} cameras, found {_shape(found)}")
    views = {name: view for name, view in zip(cameras, found, strict=True) if view is not None}
    for name, view in views.items():
        _check_points(view, (points, 2), f"{where}, {name}")
    return {name: view.astype(np.float64) for name, view in views.items()}


def _check_points(found: Any, shape: tuple[int, int], where: str) -> None:
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape[1:] != shape:
        raise ValueError(f"{where}: expected an array (frames, {shape[0]}, {shape[1]}), found {_shape(found)}")


def _shape(found: Any) -> str:
    return f"an array {found.shape}" if isinstance(found, np.ndarray) else f"{type(found).__name__}: {str(found)[:60]}"
