"""Encoded pictures: decoded strictly, fitted to the training size, encoded again only where that must be.

A picture is what OpenCV's `imread` shows, with the camera's orientation (EXIF) applied, because that is what pose
estimators are run on. The loader's JPEG decoder does not turn pictures, so turned ones are stored upright.
"""

from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from numpy import ndarray

from posegen.data.reasons import DAMAGED

_PNG_START = b"\x89PNG"
_PNG_END = b"IEND\xaeB`\x82"
_DIRECT_COLOURS = ("Gray", "YCbCr", "RGB")  # the colour spaces that every libjpeg-turbo turns into RGB


class Opened(NamedTuple):
    """A decoded picture: RGB uint8 (height, width, 3), and whether `decode_into` reads the same from the same bytes."""

    pixels: UInt8[ndarray, "height width 3"]
    storable: bool


class Fitted(NamedTuple):
    """A picture of the training size: its bytes, and the factors (x, y) by which it was stretched."""

    image: bytes
    scale: tuple[float, float]
    encoded_again: bool


def open_image(image: bytes) -> Opened:
    """Decode a picture of any kind that OpenCV reads; grey, CMYK, 16-bit and transparent ones become plain RGB.

    Raises ValueError(reason, detail) where it is truncated, damaged or no picture.
    """
    if _is_jpeg(image):
        return _open_jpeg(image)
    if image.startswith(_PNG_START) and _PNG_END not in image[-64:]:
        raise ValueError(DAMAGED, "the PNG has no end")
    return Opened(_by_opencv(image), image.startswith(_PNG_START))


def _is_jpeg(image: bytes | memoryview) -> bool:
    return bytes(image[:2]) == b"\xff\xd8"


def _open_jpeg(image: bytes) -> Opened:
    try:
        pixels = simplejpeg.decode_jpeg(image, colorspace="RGB", strict=True)
        colour = simplejpeg.decode_jpeg_header(image)[2]
    except ValueError as error:
        raise ValueError(DAMAGED, str(error)) from None
    if colour not in _DIRECT_COLOURS:
        return Opened(_by_opencv(image), False)
    if b"Exif\0\0" in image[:65536]:
        turned, unturned = _by_opencv(image), _by_opencv(image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if not np.array_equal(turned, unturned):
            return Opened(turned, False)
    return Opened(pixels, True)


def _by_opencv(image: bytes | memoryview, flags: int = cv2.IMREAD_COLOR) -> UInt8[ndarray, "height width 3"]:
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(DAMAGED, str(error)) from None
    if pixels is None:
        raise ValueError(DAMAGED, "OpenCV reads no picture from it")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def fit(image: bytes, *, height: int, width: int, jpeg_quality: int) -> Fitted:
    """The picture at (height, width): untouched bytes where it has that size already, else stretched and a JPEG again.

    Stretching averages areas where it shrinks both ways and is linear else (our choice). JPEGs keep the full colour
    resolution (4:4:4), because small pictures suffer from coarser colour twice. Raises what `open_image` raises.
    """
    pixels, storable = open_image(image)
    old_height, old_width = pixels.shape[:2]
    if storable and (old_height, old_width) == (height, width):
        return Fitted(image, (1.0, 1.0), False)
    shrinks = height <= old_height and width <= old_width
    if (old_height, old_width) != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    encoded = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorspace="RGB", colorsubsampling="444")
    return Fitted(encoded, (width / old_width, height / old_height), True)


def scaled_joints(joints: Float[ndarray, "18 2"], scale: tuple[float, float]) -> Float[ndarray, "18 2"]:
    """Joints of a stretched picture. Whole numbers are pixel centres, as for OpenCV: x' = (x + 1/2) scale - 1/2."""
    if scale == (1.0, 1.0):
        return joints
    return ((joints + 0.5) * np.array(scale) - 0.5).astype(np.float32)


def decode_into(image: bytes | memoryview, out: UInt8[ndarray, "height width 3"]) -> None:
    """Decode a stored JPEG or PNG as RGB into `out`, which must have its size. JPEGs decode without the GIL."""
    if _is_jpeg(image):
        decoded = simplejpeg.decode_jpeg(image, colorspace="RGB", strict=True, buffer=out)
        assert decoded.shape == out.shape, f"stored picture of {decoded.shape} in shards of {out.shape}"
    else:
        out[...] = _by_opencv(image)
