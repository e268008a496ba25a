"""Encoded images: decoded strictly, fitted to the training size, encoded again only where that must be.

An image is what OpenCV's `imread` shows, with the camera's orientation (EXIF) applied, because that is what pose
estimators are run on. The loader's JPEG decoder does not turn images, so turned ones are stored upright.

Image files on disk: finding them, telling which one a name means, reading their bytes, their fingerprint.
"""

import hashlib
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from numpy import ndarray

from posegen.data import reasons
from posegen.data.listing import Entry, Listing
from posegen.data.reasons import DAMAGED

_PNG_START = b"\x89PNG"
_PNG_END = b"IEND\xaeB`\x82"
_DIRECT_COLOURS = ("Gray", "YCbCr", "RGB")  # the colour spaces that every libjpeg-turbo turns into RGB


class Opened(NamedTuple):
    """A decoded image: RGB uint8 (height, width, 3), and whether `decode_into` reads the same from the same bytes."""

    pixels: UInt8[ndarray, "height width 3"]
    storable: bool


class Fitted(NamedTuple):
    """An image of the training size: its bytes, and the factors (x, y) by which it was stretched."""

    image: bytes
    scale: tuple[float, float]
    encoded_again: bool


def open_image(image: bytes) -> Opened:
    """Decode an image of any kind that OpenCV reads; grey, CMYK, 16-bit and transparent ones become plain RGB.

    Raises ValueError(reason, detail) where it is truncated, damaged or no image.
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
        raise ValueError(DAMAGED, "OpenCV reads no image from it")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def fit(image: bytes, *, height: int, width: int, jpeg_quality: int) -> Fitted:
    """The image at (height, width): untouched bytes where it has that size already, else stretched and a JPEG again.

    Stretching averages areas where it shrinks both ways and is linear else (our choice). JPEGs keep the full colour
    resolution (4:4:4), because small images suffer from coarser colour twice. Raises what `open_image` raises.
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
    """Joints of a stretched image. Whole numbers are pixel centres, as for OpenCV: x' = (x + 1/2) scale - 1/2."""
    if scale == (1.0, 1.0):
        return joints
    return ((joints + 0.5) * np.array(scale) - 0.5).astype(np.float32)


def decode_into(image: bytes | memoryview, out: UInt8[ndarray, "height width 3"]) -> None:
    """Decode a stored JPEG or PNG as RGB into `out`, which must have its size. JPEGs decode without the GIL."""
    if _is_jpeg(image):
        decoded = simplejpeg.decode_jpeg(image, colorspace="RGB", strict=True, buffer=out)
        assert decoded.shape == out.shape, f"stored image of {decoded.shape} in shards of {out.shape}"
    else:
        out[...] = _by_opencv(image)


READABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what OpenCV decodes everywhere
UNREADABLE = (".heic", ".heif", ".avif", ".gif")


def image_sizes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Sizes in bytes of the files below `folder` with one of the suffixes (in any case), by path inside it, sorted.

    Hidden files and folders are passed over; a link that leads nowhere has the size -1.
    """
    sizes: dict[str, int] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and file.lower().endswith(suffixes):
                path = Path(parent, file)
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size if path.exists() else -1
    return dict(sorted(sizes.items()))


def read_image(path: Path) -> bytes:
    """The file's bytes, of whatever kind: they are checked where the image is decoded.

    Raises ValueError("unreadable file", detail).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(reasons.UNREADABLE, f"{path}: {error.strerror}") from None
    if not content:
        raise ValueError(reasons.UNREADABLE, f"{path} is empty")
    return content


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image file in pixels, or None where it cannot be read."""
    content = path.read_bytes() if path.is_file() else b""
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if pixels is None else pixels.shape[:2]


class ImageIndex:
    """Which image a name means: its path or the end of it, with or without the suffix, or its COCO image id."""

    def __init__(self, names: Collection[str]) -> None:
        self.first_names = list(names)[:3]
        self._whole: dict[str, list[str]] = {}  # by the full path inside the folder
        self._ends: dict[str, list[str]] = {}  # by every shorter or equal path that it ends with
        self._numbers: dict[str, list[str]] = {}  # by the id of COCO's own file names, twelve digits
        for name in names:
            stem = name.rpartition(".")[0]
            self._whole.setdefault(name, []).append(name)
            self._whole.setdefault(stem, []).append(name)
            for end in (*_path_ends(name), *_path_ends(stem)):
                self._ends.setdefault(end, []).append(name)
            if number := re.fullmatch(r"(?:COCO_\w+_)?(\d{1,12})", stem.rpartition("/")[2]):
                self._numbers.setdefault(number[1].zfill(12), []).append(name)

    def only(self, name: str) -> str | None:
        """The image that `name` means, or None where it fits none or several."""
        found = self.find(name)
        return found[0] if len(found) == 1 else None

    def find(self, name: str) -> list[str]:
        """The images that `name` may mean; the first rule that gives any decides, and more than one is ambiguous."""
        name = name.replace("\\", "/")
        for found in (self._whole.get(name), self._ends.get(name)):
            if found:
                return found
        for end in _path_ends(name):
            if end in self._whole:
                return self._whole[end]
        return self._numbers.get(name, [])


def _path_ends(path: str) -> list[str]:
    """'a/b/c' -> 'a/b/c', 'b/c', 'c'."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def fingerprint(reader: str, listing: Listing, sizes: Mapping[str, int]) -> str:
    """SHA-256 over everything that a listing says and the files' sizes, by entry path.

    Our choice: sizes are read without opening a file, and neither times nor absolute paths count, so a copy of the data
    has the same fingerprint. An image replaced by another one of the same size goes unseen.
    """
    digest = hashlib.sha256(reader.encode())
    for entry in listing.entries:
        digest.update(repr((*_text(entry), sizes[entry.path])).encode())
        for array in (entry.joints, entry.visible):
            digest.update(b"" if array is None else array.tobytes())
    for reject in listing.rejects:
        digest.update(repr(tuple(reject)[:3]).encode())
    for split, pairs in sorted(listing.pairs.items()):
        digest.update(repr((split, pairs)).encode())
    return digest.hexdigest()


def _text(entry: Entry) -> tuple[str | bool | float, ...]:
    turned = () if math.isnan(entry.azimuth) else (entry.azimuth,)
    return (entry.name, entry.split, entry.group, entry.identity, entry.view, entry.distractor, *turned)
