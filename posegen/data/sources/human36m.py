"""Human3.6M (Ionescu et al. 2014): four calibrated cameras around one person, for the systems that turn the view.

The videos lie as they are distributed (`S1/Videos/Directions 1.54138969.mp4`, 50 frames a second, 1000x1000 or
1000x1002); the joints are VideoPose3D's files, which are not part of posegen either. A group is one instant: a subject,
an action, a frame. Its views are the cameras, at azimuths of about 69.6, -70.9, 109.5 and -115.7 degrees (S1; each
subject has its own). So rotations between them are about 40, 45, 135 to 140 and 175 degrees, never multiples of 90.

The split is the usual one by subject, and the square crop that of Villegas et al. 2017, one a video, around all joints.
Which frames are taken is our choice.

The published calibration of the four cameras is that of VideoPose3D's `common/h36m_dataset.py`, float32, taken from the
data set: lenses in pixels; orientations as quaternions (w, x, y, z) from the camera to the world; translations, which
are the cameras' positions, in millimetres, z up. Each subject was recorded with a calibration of its own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from posegen.data import reasons
from posegen.data.formats import MISSING
from posegen.data.formats.calibration import Camera, Lens, azimuth, project, rotation_matrix
from posegen.data.formats.images import (
    LARGEST,
    Part,
    Square,
    folder_names,
    parse_part,
    part_sizes,
    read_part,
    square_around,
)
from posegen.data.formats.restricted import read_plain_npz
from posegen.data.geometry.joints import HUMAN36M_17, from_layout
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.pairs import empty_split
from posegen.storage.files import read_json

SPLIT_OF = {"S1": "train", "S5": "train", "S6": "train", "S7": "train", "S8": "train", "S9": "test", "S11": "test"}
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
_EXAMPLE = (
    '{"cameras": {"54138969": {"focal_length": [x, y], "center": [x, y], "radial_distortion": [k1, k2, k3], '
    '"tangential_distortion": [p1, p2]}, ...}, "subjects": {"S1": {"54138969": {"orientation": [w, x, y, z], '
    '"translation": [x, y, z]}, ...}, ...}}'
)
JOINTS_2D, JOINTS_3D = "data_2d_h36m_gt.npz", "data_3d_h36m.npz"  # the first of these that is there
EXPECTED = (
    "S1/Videos/Directions 1.54138969.mp4 and so on (the official videos of S1, S5, S6, S7, S8, S9 and S11), and "
    f"VideoPose3D's {JOINTS_2D} or {JOINTS_3D}"
)
_ORDERS = {"h36m": "human36m_17", "coco": "coco_17"}  # `layout_name` in VideoPose3D's files of 2D joints

Cameras = Mapping[str, Mapping[str, Camera]]  # by subject and name


class VideoName(NamedTuple):
    """The name of a video: a subject, an action as VideoPose3D calls it, a camera."""

    subject: str
    action: str
    camera: str


@dataclass(frozen=True)
class JointsFile:
    """A file of joints: the order of its points, one of `joints.LAYOUTS`, and recordings by subject and action.

    A recording holds points in pixels by camera, in the order of the cameras (None where there are none), or points in
    metres (frames, points, 3).
    """

    path: Path
    layout: str
    recordings: Mapping[str, Mapping[str, Any]]

    def actions(self, cameras: Cameras) -> Iterator[dict[VideoName, np.ndarray]]:
        """Yield the points (frames, points, 2) in pixels by video, action by action, of subjects with cameras."""
        for subject in [subject for subject in cameras if subject in self.recordings]:
            for action, found in sorted(self.recordings[subject].items()):
                views = _views(found, cameras[subject], self.layout, f"{self.path}: {subject}, {action}")
                yield {VideoName(subject, action, camera): points for camera, points in views.items()}


@dataclass(frozen=True)
class Human36M:
    """The official videos below `root`, and VideoPose3D's joints.

    Attributes:
        root: The data set's folder.
        joints: The file of joints, in pixels or in metres. None takes `data_2d_h36m_gt.npz` or `data_3d_h36m.npz` in
            the root.
        cameras: A JSON file of cameras, as `read_cameras` reads it. None takes `cameras.json` in the root, or else the
            published numbers.
        stride: Every `stride`-th frame is taken (our choice: 25, two instants a second).
        pad: Villegas' 20 pixels of the video on each side of the joints; a square is black outside the video.
    """

    root: Path
    joints: Path | None = None
    cameras: Path | None = None
    stride: int = 25
    pad: int = 20
    name: ClassVar[str] = "human36m"
    size: ClassVar[tuple[int, int]] = (256, 256)  # default of the images in the shards

    def listing(self) -> Listing:
        """List all instants of both splits. Raises ValueError for a missing or malformed folder or file."""
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 (every frame), not {self.stride}.")
        if self.pad < 0:
            raise ValueError(f"pad must be at least 0 (pixels of the video), not {self.pad}.")
        videos = find_videos(self.root)
        joints = read_joints(self.root, self.joints)
        cameras, cameras_note = self._cameras()
        posed: set[VideoName] = set()
        entries: list[Entry] = []
        rejects: list[Reject] = []
        for views in joints.actions(cameras):
            found, refused = self._instants(views, videos, cameras, joints.layout)
            posed |= views.keys()
            entries += found
            rejects += refused
        unused = _unused([video for video in videos if video not in posed], joints, cameras)
        listing = Listing(entries, "", [*rejects, *unused])
        if empty := empty_split(listing):
            split, left_out = empty
            subjects = ", ".join(subject for subject, of in SPLIT_OF.items() if of == split)
            raise ValueError(
                f"'{self.root}' has no video with joints for the split '{split}', which is the subjects {subjects}; "
                f"left out: {left_out}. Expected {EXPECTED}."
            )
        sides = [parse_part(entry.path).square.side for entry in entries]
        crop_note = f"Crops: a square a video around all joints, {min(sides)} to {max(sides)} pixels a side."
        notes = (f"Joints: {joints.path.name} ({joints.layout}).", cameras_note, crop_note)
        sizes = part_sizes([entry.path for entry in entries])
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes), notes=notes)

    def load(self, entry: Entry) -> LoadedImage:
        """Read the crop of the frame, in the video's own pixels, as BMP. Raises ValueError(reason, detail)."""
        return entry.loaded(read_part(parse_part(entry.path)))

    def _cameras(self) -> tuple[Cameras, str]:
        path = self.cameras
        if path is not None:
            path = path if path.is_file() else self.root / path
        elif (self.root / "cameras.json").is_file():
            path = self.root / "cameras.json"
        source = "the published ones" if path is None else f"those of {path.name}"
        cameras = {subject: placed for subject, placed in read_cameras(path).items() if subject in SPLIT_OF}
        return cameras, f"Cameras: {source}."

    def _instants(
        self, views: Mapping[VideoName, np.ndarray], videos: Mapping[VideoName, Path], cameras: Cameras, layout: str
    ) -> tuple[list[Entry], list[Reject]]:
        """Return the entries of an action's videos, every `stride`-th frame, instant by instant, and rejects."""
        entries: list[list[Entry]] = []
        rejects: list[Reject] = []
        for video, points in views.items():
            square = _square(points, layout, self.pad)
            if video not in videos or square is None:
                reason = reasons.NO_CROP if video in videos else reasons.NO_VIDEO
                rejects.append(_reject(video, reason, f"joints of {len(points):,} frames"))
                continue
            direction = azimuth(cameras[video.subject][video.camera].position, np.zeros(3))
            frames, whole = range(0, len(points), self.stride), Part(videos[video], 0, square)
            entries.append(_entries(video, frames, points[frames], whole, layout=layout, azimuth=direction))
        return [entry for instant in zip_longest(*entries) for entry in instant if entry is not None], rejects


def _entries(
    video: VideoName, frames: Sequence[int], points: np.ndarray, whole: Part, *, layout: str, azimuth: float
) -> list[Entry]:
    """Return a video's entries, joints in pixels of the crop. Motion capture knows all points."""
    joints, confidence = from_layout(np.concatenate([points, np.ones_like(points[..., :1])], axis=-1), layout)
    visible = confidence > 0
    joints = np.where(visible[..., None], joints - whole.square[:2], MISSING).astype(np.float32)
    return [
        Entry(
            name=f"{instant}.{video.camera}",
            split=SPLIT_OF[video.subject],
            group=instant,
            identity=video.subject,
            view=video.camera,
            path=str(whole._replace(frame=frame)),
            joints=joints[row],
            visible=visible[row],
            azimuth=azimuth,
        )
        for row, frame in enumerate(frames)
        for instant in [f"{video.subject}/{video.action}/{frame:06d}"]
    ]


def _square(points: Float[np.ndarray, "frames points 2"], layout: str, pad: int) -> Square | None:
    """Return the square around all joints of a video: Human3.6M's 17, so that files of 17 and 32 crop alike."""
    body = points[:, list(HUMAN36M_17)] if layout == "human36m_32" else points
    finite = body[np.isfinite(body).all(axis=-1)]
    square = square_around(finite.min(axis=0), finite.max(axis=0), pad) if len(finite) else None
    return square if square is not None and square.side <= LARGEST else None


def _reject(video: VideoName, reason: str, detail: str) -> Reject:
    return Reject(
        f"{video.subject}/{video.action}.{video.camera}", SPLIT_OF.get(video.subject, "train"), reason, detail
    )


def _unused(unposed: Sequence[VideoName], joints: JointsFile, cameras: Cameras) -> list[Reject]:
    """Reject videos without joints, subjects without joints or cameras, and subjects in neither split."""
    file = joints.path.name
    missing = [subject for subject in SPLIT_OF if subject not in joints.recordings or subject not in cameras]
    others = [subject for subject in joints.recordings if subject not in SPLIT_OF]
    return [
        *(_reject(video, reasons.VIDEO_NOT_ANNOTATED, f"not in {file}") for video in unposed),
        *(Reject(each, SPLIT_OF[each], reasons.NO_SUBJECT, f"not in {file}, or without cameras") for each in missing),
        *(Reject(subject, "train", reasons.UNKNOWN_SUBJECT, f"in {file}") for subject in others),
    ]


def read_cameras(path: Path | None) -> dict[str, dict[str, Camera]]:
    """Read the cameras by subject and camera name, positions in metres; None returns the published ones.

    A file is JSON with `cameras` and `subjects` like `CAMERAS` and `SUBJECTS` here; the order of its cameras is that of
    the 2D joints. Raises ValueError, naming the file and the entry, for anything else.
    """
    content: dict[str, Any] = {"cameras": CAMERAS, "subjects": SUBJECTS} if path is None else read_json(path) or {}
    for part in (content.get("cameras"), content.get("subjects")):
        if not isinstance(part, dict) or not part or not all(isinstance(each, dict) for each in part.values()):
            there = path is not None and path.is_file()
            found = f"an object with {', '.join(content) or 'nothing'}" if there else "no such file"
            raise ValueError(f"{path}: expected JSON with Human3.6M's cameras, {_EXAMPLE}; found {found}.")
    sizes = {"focal_length": 2, "center": 2, "radial_distortion": 3, "tangential_distortion": 2}
    lenses = {
        name: Lens(**{key: _numbers(lens, key, size, f"{path}: cameras.{name}") for key, size in sizes.items()})
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


def _camera(lens: Lens, placed: Any, where: str) -> Camera:
    orientation = _numbers(placed, "orientation", 4, where)
    translation = _numbers(placed, "translation", 3, where)
    if not orientation.any():
        raise ValueError(f"{where}.orientation: expected a quaternion that is not zero")
    return Camera(lens, translation / 1000, rotation_matrix(orientation).T)


def _numbers(holder: Any, key: str, size: int, where: str) -> np.ndarray:
    values = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(values, list) or len(values) != size or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{where}.{key}: expected a list of {size} numbers, found {str(values)[:80]}")
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}.{key}: expected finite numbers, found {values}")
    return array


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
            action = name[1].replace("TakingPhoto", "Photo").replace("WalkingDog", "WalkDog")  # VideoPose3D's names
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
    if key == "positions_3d":
        first = next((found for actions in recordings.values() for found in actions.values()), None)
        points = first.shape[1] if isinstance(first, np.ndarray) and first.ndim == 3 else None
        if points not in (17, 32):
            raise ValueError(f"{path}: expected arrays (frames, 32, 3) or (frames, 17, 3), found {_shape(first)}")
        return JointsFile(path, f"human36m_{points}", recordings)
    metadata = content.get("metadata")
    name = metadata.get("layout_name", "h36m") if isinstance(metadata, dict) else "h36m"  # projections have no name
    if name not in _ORDERS:
        raise ValueError(f"{path}: the joints are in the order '{name}'. Understood are {', '.join(_ORDERS)}.")
    return JointsFile(path, _ORDERS[name], recordings)


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
