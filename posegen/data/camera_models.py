"""Calibrated cameras: projection with Human3.6M's lens distortion, and azimuths around a point of the scene."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# The two level axes for each axis that may point up, such that the first, the second and up are right-handed.
LEVEL_AXES = {"x": (1, 2), "y": (2, 0), "z": (0, 1), "-x": (2, 1), "-y": (0, 2), "-z": (1, 0)}


class Lens(NamedTuple):
    """The inside of a camera: float64 arrays, the first two in pixels."""

    focal_length: np.ndarray  # (2,)
    center: np.ndarray  # (2,), x and y where the optical axis meets the picture
    radial_distortion: np.ndarray  # (3,)
    tangential_distortion: np.ndarray  # (2,)


class Camera(NamedTuple):
    """A lens, its place in the world (3,), and the rotation (3, 3) from the world to the camera's own axes.

    These are x to the right of the picture, y down, z forward.
    """

    lens: Lens
    place: np.ndarray
    rotation: np.ndarray


def rotation_matrix(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """The rotation of a quaternion (w, x, y, z), which need not have the length 1."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def project(camera: Camera, points: Float[np.ndarray, "*points 3"]) -> Float[np.ndarray, "*points 2"]:
    """Points of the world in pixels of the picture; NaN where a point is not in front of the camera.

    Human3.6M's own model, as VideoPose3D's `project_to_2d` has it, so that its published 2D joints come out: with
    u = (x/z, y/z) kept within [-1, 1], r2 = |u|^2, radial k and tangential p,

        u' = u (1 + k1 r2 + k2 r2^2 + k3 r2^3 + p.u) + p r2,    pixels = f u' + c.

    OpenCV's model has p in the other order and 2 p.u for p.u: the two differ by f u (p.u), a fraction of a pixel.
    """
    lens, own = camera.lens, (points - camera.place) @ camera.rotation.T
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = np.where(own[..., 2:] > 0, np.clip(own[..., :2] / own[..., 2:], -1, 1), np.nan)
    squared = (flat**2).sum(axis=-1, keepdims=True)
    powers = np.concatenate([squared, squared**2, squared**3], axis=-1)
    factor = 1 + (lens.radial_distortion * powers).sum(axis=-1, keepdims=True)
    factor = factor + (lens.tangential_distortion * flat).sum(axis=-1, keepdims=True)
    return lens.focal_length * (flat * factor + lens.tangential_distortion * squared) + lens.center


def azimuth(place: Float[np.ndarray, "3"], around: Float[np.ndarray, "3"], up: str = "z") -> float:
    """The direction of a place seen from a point, in degrees in (-180, 180], counter-clockwise seen from above.

    Where z points up this is atan2(y, x). `up` is one of `LEVEL_AXES`.
    """
    first, second = (place - around)[list(LEVEL_AXES[up])]
    return math.degrees(math.atan2(second, first))


def scene_center(places: Float[np.ndarray, "cameras 3"], axes: Float[np.ndarray, "cameras 3"] | None) -> np.ndarray:
    """What the cameras look at: the point nearest to all optical axes, by least squares; `axes` are unit vectors.

    Without axes, or where these are almost parallel, the mean of the places (our choice).
    """
    if axes is None:
        return places.mean(axis=0)
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # what of a vector is at right angles to the axis
    total = across.sum(axis=0)
    if np.linalg.cond(total) > 1e4:
        return places.mean(axis=0)
    return np.linalg.solve(total, (across @ places[:, :, None]).sum(axis=0))[:, 0]
