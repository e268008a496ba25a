"""What a generated image has to beat, on the same pairs: the source itself, the mean image, the moved source.

Images are uint8 (height, width, 3); joints are float32 (18, 2), x and y in pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from posegen.data.geometry.joints import TORSO
from posegen.data.loading.dataset import Shards

BASELINES = {
    "source": "the source image itself",
    "mean": "the mean of the training images",
    "similarity": "the source turned, scaled and shifted so that its torso falls on the target's",
}

MEAN_OF = 2000  # training images at most: the standard error is then about one grey level
SEED = 0

Uint8Image = UInt8[np.ndarray, "height width 3"]
Points = Float[np.ndarray, "points 2"]


class Pose(NamedTuple):
    """The joints of one image; those that are not visible are anything."""

    joints: Float[np.ndarray, "18 2"]
    visible: Bool[np.ndarray, "18"]


def mean_image(shards: Shards) -> Uint8Image:
    """The mean of the training images, or of `MEAN_OF` of them drawn by `SEED`, rounded to whole levels."""
    count = shards.image_count("train")
    if count == 0:
        raise ValueError("there is no training image to take the mean of: the shards have no usable 'train' image")
    rows = np.sort(np.random.default_rng(SEED).permutation(count)[:MEAN_OF]).tolist()
    parts = [shards.images("train", rows[start : start + 100]).sum(axis=0) for start in range(0, len(rows), 100)]
    return np.rint(np.sum(parts, axis=0) / len(rows)).astype(np.uint8)


def similarity_transform(source: Points, target: Points) -> Float[np.ndarray, "2 3"] | None:
    """The rotation, scale and shift that takes `source` nearest to `target` in least squares, without reflection.

    Umeyama 1991 in the plane, in complex numbers: with z = x + iy and points taken relative to their means, the best
    a z + b has a = sum(conj(z) w) / sum(|z|^2). Gives the matrix [[Re a, -Im a, Re b], [Im a, Re a, Im b]], or None
    where either set of points lies in one place or nothing but a scale of zero fits.
    """
    z, w = (points.astype(np.float64) @ np.array([1, 1j]) for points in (source, target))
    from_centre = z - z.mean()
    spread = np.square(np.abs(from_centre)).sum()
    a = np.vdot(from_centre, w - w.mean()) / spread if spread > 0 else 0j
    if abs(a) < 1e-6:
        return None
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def moved_torso(image: Uint8Image, source: Pose, target: Pose) -> Uint8Image | None:
    """The image moved by the similarity transform between the torsos' joints, its border continued outwards.

    None where a shoulder or hip is unknown in either pose, or the transform is undefined: the source image stands in.
    """
    torso = list(TORSO)
    if not (source.visible[torso].all() and target.visible[torso].all()):
        return None
    matrix = similarity_transform(source.joints[torso], target.joints[torso])
    if matrix is None:
        return None
    height, width = image.shape[:2]
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.uint8)
