"""Baselines that need no training, scored on the same pairs: source, training mean, and the aligned source image.

Images are uint8 (height, width, 3); joints are float32 (18, 2), x and y in pixels.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from posegen.data.geometry.joints import JOINTS, TORSO
from posegen.data.loading.dataset import Shards

BASELINES = {
    "source": "the source image itself",
    "mean": "the mean of the training images",
    "similarity": "the source rotated, scaled and shifted so that its torso falls on the target's",
}
POSE_BASELINES = {
    "source": "the source's own joints; a joint unknown in the source is the mean of its known ones",
    "mean": "the mean of the training images' joints, of each joint over the images that know it",
}

MEAN_SAMPLES = 2000  # training images at most: the standard error is then about one grey level
SEED = 0

Uint8Image = UInt8[np.ndarray, "height width 3"]
MeanPose = Float[np.ndarray, "18 2"]
Points = Float[np.ndarray, "points 2"]


class Pose(NamedTuple):
    """The joints of one image, undefined where not visible."""

    joints: Float[np.ndarray, "18 2"]
    visible: Bool[np.ndarray, "18"]


def mean_image(shards: Shards) -> Uint8Image:
    """Return the mean of the training images, or of `MEAN_SAMPLES` of them drawn by `SEED`, rounded to whole levels.

    Raises ValueError where there is no training image.
    """
    count = shards.image_count("train")
    if count == 0:
        raise ValueError("there is no training image to take the mean of: the shards have no usable 'train' image")
    rows = np.sort(np.random.default_rng(SEED).permutation(count)[:MEAN_SAMPLES]).tolist()
    parts = [shards.images("train", rows[start : start + 100]).sum(axis=0) for start in range(0, len(rows), 100)]
    return np.rint(np.sum(parts, axis=0) / len(rows)).astype(np.uint8)


def similarity_transform(source: Points, target: Points) -> Float[np.ndarray, "2 3"] | None:
    """Return the rotation, scale and shift that best map `source` to `target` in least squares, without reflection.

    Umeyama 1991 in the plane, in complex numbers: with z = x + iy and points taken relative to their means, the best
    a z + b has a = sum(conj(z) w) / sum(|z|^2). Returns the matrix [[Re a, -Im a, Re b], [Im a, Re a, Im b]], or None
    where all points of either set coincide or only a scale of zero fits.
    """
    z, w = (points.astype(np.float64) @ np.array([1, 1j]) for points in (source, target))
    from_centre = z - z.mean()
    spread = np.square(np.abs(from_centre)).sum()
    a = np.vdot(from_centre, w - w.mean()) / spread if spread > 0 else 0j
    if abs(a) < 1e-6:
        return None
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_torso(image: Uint8Image, source: Pose, target: Pose) -> Uint8Image | None:
    """Warp the image by the similarity transform between the torsos' joints, replicating its border.

    Returns None where a shoulder or hip is unknown in either pose, or the transform is undefined.
    """
    torso = list(TORSO)
    if not (source.visible[torso].all() and target.visible[torso].all()):
        return None
    matrix = similarity_transform(source.joints[torso], target.joints[torso])
    if matrix is None:
        return None
    height, width = image.shape[:2]
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped.astype(np.uint8)


def source_poses(
    joints: Float[np.ndarray, "pairs 18 2"], visible: Bool[np.ndarray, "pairs 18"]
) -> Float64[np.ndarray, "pairs 18 2"]:
    """Return sources' joints as predictions; the mean of the known ones replaces those that are unknown.

    Our choice, so that every baseline is scored on the same joints and depends on the pair alone. NaN where no joint of
    a source is known.
    """
    known = np.where(visible[..., None], joints.astype(np.float64), 0.0)
    count = visible.sum(axis=1, dtype=np.float64)[:, None]
    middle = np.divide(known.sum(axis=1), count, out=np.full((len(joints), 2), np.nan), where=count > 0)
    return np.where(visible[..., None], known, middle[:, None])


def mean_pose(shards: Shards) -> MeanPose:
    """Return the mean of each joint over the training images that know it; the image's centre where none does.

    Raises ValueError where there is no training image.
    """
    if not shards.image_count("train"):
        raise ValueError("there is no training pose to take the mean of: the shards have no usable 'train' image")
    total, count = np.zeros((len(JOINTS), 2)), np.zeros((len(JOINTS), 1))
    for piece in shards.pieces("train"):
        joints, visible = piece.mapped.joints.astype(np.float64), piece.mapped.visible
        known = np.where(visible[..., None], joints, 0)
        total = np.concatenate([total[None], known]).sum(axis=0)  # image by image: the same for any pieces
        count += visible.sum(axis=0, dtype=np.float64)[:, None]
    middle = (np.array(shards.size[::-1], dtype=np.float64) - 1) / 2
    return np.divide(total, count, out=np.tile(middle, (len(JOINTS), 1)), where=count > 0)
