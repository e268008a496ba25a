"""Pose masks: discs along the limbs of a person, closed; and their storage in one bit per pixel.

PG2's `_getPoseMask` (convert_market.py), drawn with OpenCV: one pixel is set at the centre of every disc, and one
dilation by the disc makes all of them at once.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray

from posegen.data.geometry.joints import LIMBS

_ENDS = np.array(LIMBS)
_SQUARE = np.ones((5, 5), np.uint8)


def pose_mask(
    joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], *, height: int, width: int, radius: int
) -> UInt8[ndarray, "height width"]:
    """Return 1 on the limbs of a person and 0 elsewhere.

    For each of the 23 limbs whose joints are both visible: discs of `radius` pixels at both ends and at the points
    i/n between them, i = 1 .. n-1, n = int(length / radius); then a closing (dilation, erosion) by a 5x5 square. Every
    centre is truncated to whole pixels. PG2 uses radius 4 at both of its image sizes.

    Discs of centres outside the image are clipped, not left out. The closing sees nothing beyond the border: the
    erosion does not eat the mask there, as with scikit-image, which PG2 uses. Joints that are not visible are not read.
    Time and memory grow with the limbs' lengths, so coordinates must be bounded.
    """
    stamps = np.zeros((height + 2 * radius, width + 2 * radius), np.uint8)
    centres = _stamp_centres(joints, visible, radius) + radius
    inside = ((centres >= 0) & (centres < (stamps.shape[1], stamps.shape[0]))).all(axis=1)
    stamps[centres[inside, 1], centres[inside, 0]] = 1
    discs = cv2.dilate(stamps, _disc(radius))[radius : radius + height, radius : radius + width]
    return cv2.morphologyEx(np.ascontiguousarray(discs), cv2.MORPH_CLOSE, _SQUARE)


def _stamp_centres(joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], radius: int) -> Int64[ndarray, "n 2"]:
    """Whole-pixel centres (x, y) of all discs, some of them more than once."""
    ends = joints[_ENDS[visible[_ENDS].all(axis=1)]].astype(np.float64)
    start, span = ends[:, 0], ends[:, 1] - ends[:, 0]
    pieces = (np.sqrt(np.square(span).sum(axis=1)) / radius).astype(np.int64)
    places = np.arange(1, pieces.max(initial=1))
    between = places < pieces[:, None]
    points = start[:, None] + span[:, None] * places[:, None] / np.maximum(pieces, 1)[:, None, None]
    return np.concatenate([ends.reshape(-1, 2), points[between]]).astype(np.int64)


@lru_cache
def _disc(radius: int) -> UInt8[ndarray, "side side"]:
    """All whole offsets within `radius`: 49 pixels at radius 4."""
    offsets = np.square(np.arange(-radius, radius + 1))
    return (offsets[:, None] + offsets <= radius**2).astype(np.uint8)


def pack(mask: UInt8[ndarray, "height width"]) -> bytes:
    """Pack a mask of 0 and 1 into one bit per pixel, row by row, compressed by zlib: some 200 bytes at 128x64.

    Level 1 is our choice: level 6 saves 50 bytes of an image's 2.3 kB.
    """
    return zlib.compress(np.packbits(mask).tobytes(), level=1)


def unpack(packed: Sequence[bytes | memoryview], height: int, width: int) -> UInt8[ndarray, "n height width"]:
    """Unpack masks of 0 and 1 from the output of `pack`."""
    size = -(-height * width // 8)
    bits = np.frombuffer(b"".join(map(zlib.decompress, packed)), np.uint8).reshape(len(packed), size)
    return np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width)
