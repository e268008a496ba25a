"""The four cameras of Human3.6M: published calibration, and the same from a JSON file.

The numbers are those of VideoPose3D's `common/h36m_dataset.py`, float32, which has them from the data set: lenses in
pixels; orientations as quaternions (w, x, y, z) from the camera to the world; translations, which are the cameras'
places, in millimetres, z up. Each subject was recorded with a calibration of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.camera_models import Camera, Lens, rotation_matrix
from posegen.files import read_json

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
    """The cameras by subject and camera name, places in metres; None gives the published ones.

    A file is JSON with `cameras` and `subjects` as `CAMERAS` and `SUBJECTS` here have them; the order of its cameras is
    that of the 2D joints. Raises ValueError, naming the file and the entry, for anything else.
    """
    content = {"cameras": CAMERAS, "subjects": SUBJECTS} if path is None else _content(path)
    lenses = {
        name: Lens(**{key: _numbers(lens, key, size, f"{path}: cameras.{name}") for key, size in _LENS_SIZES.items()})
        for name, lens in content["cameras"].items()
    }
    placed: dict[str, dict[str, Camera]] = {}
    for subject, cameras in content["subjects"].items():
        place = f"{path}: subjects.{subject}"
        if unknown := [name for name in cameras if name not in lenses]:
            raise ValueError(f"{place}.{unknown[0]}: this camera is not among 'cameras': {', '.join(lenses)}")
        there = [name for name in lenses if name in cameras]
        placed[subject] = {name: _camera(lenses[name], cameras[name], f"{place}.{name}") for name in there}
    return placed


def _content(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The file, with both of its parts known to be mappings of mappings."""
    content = read_json(path) or {}
    for part in (content.get("cameras"), content.get("subjects")):
        if not isinstance(part, dict) or not part or not all(isinstance(each, dict) for each in part.values()):
            found = f"an object with {', '.join(content) or 'nothing'}" if path.is_file() else "no such file"
            raise ValueError(f"{path}: expected JSON with Human3.6M's cameras, {_EXAMPLE}; found {found}.")
    return content


def _camera(lens: Lens, placed: Any, place: str) -> Camera:
    found = {key: _numbers(placed, key, size, place) for key, size in _PLACEMENT_SIZES.items()}
    if not found["orientation"].any():
        raise ValueError(f"{place}.orientation: expected a quaternion that is not zero")
    return Camera(lens, found["translation"] / 1000, rotation_matrix(found["orientation"]).T)


def _numbers(holder: Any, key: str, size: int, place: str) -> np.ndarray:
    values = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(values, list) or len(values) != size or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{place}.{key}: expected a list of {size} numbers, found {str(values)[:80]}")
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{place}.{key}: expected finite numbers, found {values}")
    return array
