"""Calibrated cameras: projection with Human3.6M's lens distortion, azimuths around a scene, calibration files.

Azimuths are read from two kinds of files. Qualisys' `.qca.txt` is XML: a `camera` with its name in `serial`, and in it
a `transform` with the camera's position x, y, z in the world (z up) and the rows r11 to r33 of a rotation, whose last
one is the optical axis, pointing backwards. JSON is our own format, an object by camera beside two optional keys:

    {"up": "z", "center": [0, 0, 0], "cameras": {"cam01": {"azimuth": 69.6}, ...}}
    {"cameras": {"cam01": {"position": [1.8, 5.0, 1.6]}, "cam02": {"R": [[...], [...], [...]], "t": [...]}, ...}}

`R` and `t` are OpenCV's: from the world to the camera, x to the right, y down, z forward.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np
from jaxtyping import Float

# The two level axes for each axis that may point up, such that the first, the second and up are right-handed.
LEVEL_AXES = {"x": (1, 2), "y": (2, 0), "z": (0, 1), "-x": (2, 1), "-y": (0, 2), "-z": (1, 0)}


class Lens(NamedTuple):
    """The intrinsic parameters of a camera: float64 arrays, the first two in pixels."""

    focal_length: np.ndarray  # (2,)
    center: np.ndarray  # (2,), x and y where the optical axis meets the image
    radial_distortion: np.ndarray  # (3,)
    tangential_distortion: np.ndarray  # (2,)


class Camera(NamedTuple):
    """A lens, its position in the world (3,), and the rotation (3, 3) from the world to the camera's own axes.

    These are x to the right of the image, y down, z forward.
    """

    lens: Lens
    position: np.ndarray
    rotation: np.ndarray


def rotation_matrix(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Return the rotation matrix of a quaternion (w, x, y, z) of any length but 0."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def project(camera: Camera, points: Float[np.ndarray, "*points 3"]) -> Float[np.ndarray, "*points 2"]:
    """Project points of the world to pixels of the image; NaN where a point is not in front of the camera.

    Human3.6M's own model, as VideoPose3D's `project_to_2d` has it, so that its published 2D joints come out: with
    u = (x/z, y/z) kept within [-1, 1], r2 = |u|^2, radial k and tangential p,

        u' = u (1 + k1 r2 + k2 r2^2 + k3 r2^3 + p.u) + p r2,    pixels = f u' + c.

    OpenCV's model has p in the other order and 2 p.u for p.u: the two differ by f u (p.u), a fraction of a pixel.
    """
    lens, own = camera.lens, (points - camera.position) @ camera.rotation.T
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = np.where(own[..., 2:] > 0, np.clip(own[..., :2] / own[..., 2:], -1, 1), np.nan)
    squared = (flat**2).sum(axis=-1, keepdims=True)
    powers = np.concatenate([squared, squared**2, squared**3], axis=-1)
    factor = 1 + (lens.radial_distortion * powers).sum(axis=-1, keepdims=True)
    factor = factor + (lens.tangential_distortion * flat).sum(axis=-1, keepdims=True)
    return lens.focal_length * (flat * factor + lens.tangential_distortion * squared) + lens.center


def azimuth(position: Float[np.ndarray, "3"], around: Float[np.ndarray, "3"], up: str = "z") -> float:
    """Return the direction of a position from a point, in degrees in (-180, 180], counter-clockwise from above.

    Where z points up this is atan2(y, x). `up` is one of `LEVEL_AXES`.
    """
    first, second = (position - around)[list(LEVEL_AXES[up])]
    return math.degrees(math.atan2(second, first))


def scene_center(positions: Float[np.ndarray, "cameras 3"], axes: Float[np.ndarray, "cameras 3"] | None) -> np.ndarray:
    """Return the point nearest to all optical axes, by least squares; `axes` are unit vectors.

    Without axes, or where these are almost parallel, the mean of the positions (our choice).
    """
    if axes is None:
        return positions.mean(axis=0)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # a vector's part at right angles to the axis
    total = across.sum(axis=0)
    if np.linalg.cond(total) > 1e4:
        return positions.mean(axis=0)
    return np.linalg.solve(total, (across @ positions[:, :, None]).sum(axis=0))[:, 0]


LARGEST = 10_000_000  # bytes; calibration files have some thousands
FORMATS = (
    "Qualisys' *.qca.txt, or calibration.json with {\"cameras\": {NAME: ...}}, where each camera has an 'azimuth' in "
    "degrees, a 'position' of three numbers, or 'R' and 't'"
)


class _Viewpoint(NamedTuple):
    """The position of a camera, and its optical axis as a unit vector, where that is known."""

    position: np.ndarray
    axis: np.ndarray | None = None


def plain_name(camera: str) -> str:
    """Return a camera's name for comparison, in lower-case letters and digits only: "cam_01" equals "Cam01"."""
    return re.sub(r"[^a-z0-9]", "", camera.lower())


def read_azimuths(path: Path) -> dict[str, float]:
    """Read the azimuth of each camera by `plain_name`, in degrees, counter-clockwise seen from above.

    Given azimuths are taken as they are. Otherwise they are the directions of the cameras' positions around `center`
    or, without it, around the point nearest to all optical axes (the mean of the positions where these are unknown).
    Raises ValueError, naming the file and the entry, for malformed content.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None or size > LARGEST:
        found = "no such file" if size is None else f"{size:,} bytes"
        raise ValueError(f"calibration file '{path}': expected {FORMATS}; there is {found}.")
    content = path.read_bytes()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _around(_by_plain_name(_read_qualisys(content, path), path), None, "z")
    return _read_json(content, path)


def _around(viewpoints: Mapping[str, _Viewpoint], center: np.ndarray | None, up: str) -> dict[str, float]:
    if center is None:
        axes = [each.axis for each in viewpoints.values() if each.axis is not None]
        positions = np.stack([each.position for each in viewpoints.values()])
        center = scene_center(positions, np.stack(axes) if len(axes) == len(viewpoints) else None)
    return {name: azimuth(each.position, center, up) for name, each in viewpoints.items()}


def _by_plain_name(cameras: Mapping[str, Any], path: Path) -> dict[str, Any]:
    named = {plain_name(name): camera for name, camera in cameras.items()}
    if len(named) != len(cameras) or "" in named:
        raise ValueError(
            f"{path}: expected cameras whose names differ in letters and digits, found {', '.join(cameras)}"
        )
    return named


def _read_qualisys(content: bytes, path: Path) -> dict[str, _Viewpoint]:
    """Read the active cameras. A document type is refused: it lets a small file grow without end, or read others."""
    viewpoints: dict[str, _Viewpoint] = {}
    camera = ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal camera
        if tag == "camera":
            camera = attributes.get("serial", "") if attributes.get("active", "1") != "0" else ""
        elif tag == "transform" and camera:
            viewpoints[camera] = _qualisys_viewpoint(attributes, f"{path}: camera '{camera}'")

    def refuse(*_: object) -> None:
        raise ValueError(
            f"{path}: the XML has a document type, which calibrations do not have. Nothing of it was read."
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}: not XML that can be read ({error})") from None
    if not viewpoints:
        raise ValueError(f"{path}: expected Qualisys' elements 'camera' with 'serial' and 'transform', found none")
    return viewpoints


def _qualisys_viewpoint(attributes: Mapping[str, str], where: str) -> _Viewpoint:
    numbers = []
    for key in ("x", "y", "z", "r31", "r32", "r33"):
        try:
            numbers.append(float(attributes.get(key, "nan")))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"{where}, transform.{key}: expected a number, found {attributes.get(key)!r}")
    axis = np.array(numbers[3:])
    if not axis.any():
        raise ValueError(f"{where}, r31 to r33: expected a direction, found zeros")
    return _Viewpoint(np.array(numbers[:3]), axis / np.linalg.norm(axis))


def _read_json(content: bytes, path: Path) -> dict[str, float]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: neither XML nor JSON ({error}). Expected {FORMATS}.") from None
    cameras = found.get("cameras") if isinstance(found, dict) else None
    if not isinstance(cameras, dict) or not cameras:
        raise ValueError(f"{path}: expected {FORMATS}; found {str(found)[:80]}")
    cameras = _by_plain_name(cameras, path)
    given = [name for name, camera in cameras.items() if isinstance(camera, dict) and "azimuth" in camera]
    if given and len(given) < len(cameras):
        raise ValueError(f"{path}: expected an azimuth for all cameras or for none, found one for {', '.join(given)}")
    if given:
        return {name: float(_numbers(each["azimuth"], (), f"{path}: {name}.azimuth")) for name, each in cameras.items()}
    if (up := found.get("up", "z")) not in LEVEL_AXES:
        raise ValueError(f"{path}: expected 'up' to be one of {', '.join(LEVEL_AXES)}, found {up!r}")
    center = _numbers(found["center"], (3,), f"{path}: center") if "center" in found else None
    return _around({name: _viewpoint(camera, f"{path}: {name}") for name, camera in cameras.items()}, center, up)


def _viewpoint(camera: Any, where: str) -> _Viewpoint:
    if isinstance(camera, dict) and "position" in camera:
        return _Viewpoint(_numbers(camera["position"], (3,), f"{where}.position"))
    if not isinstance(camera, dict) or not {"R", "t"} <= camera.keys():
        raise ValueError(f"{where}: expected 'azimuth', 'position', or 'R' and 't', found {str(camera)[:60]}")
    rotation, shift = _numbers(camera["R"], (3, 3), f"{where}.R"), _numbers(camera["t"], (3,), f"{where}.t")
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
        raise ValueError(f"{where}.R: expected a rotation, three rows of length 1 at right angles to each other")
    return _Viewpoint(-rotation.T @ shift, rotation[2])


def _numbers(values: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        kind = " x ".join(map(str, shape)) + " finite numbers" if shape else "a finite number"
        raise ValueError(f"{where}: expected {kind}, found {str(values)[:60]}")
    return array
