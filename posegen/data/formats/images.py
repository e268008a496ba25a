"""Image files: finding them, matching names to them, decoding them strictly, fitting them to the training size.

An image is what OpenCV's `imread` shows, with the camera's orientation (EXIF) applied, because that is what pose
estimators are run on. The loader's JPEG decoder does not rotate images, so rotated ones are stored upright.
"""

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from posegen.data import reasons
from posegen.data.formats import walk

_PNG_START = b"\x89PNG"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_DIRECT_COLOURS = ("Gray", "YCbCr", "RGB")  # the colour spaces that every libjpeg-turbo converts to RGB


class Opened(NamedTuple):
    """A decoded image: RGB uint8 (height, width, 3), and bytes that `decode_into` decodes to them, or None."""

    pixels: UInt8[ndarray, "height width 3"]
    stored: bytes | None


class Fitted(NamedTuple):
    """An image of the training size: its encoded bytes, and the factors (x, y) by which it was stretched."""

    encoded: bytes
    scale: tuple[float, float]
    encoded_again: bool


def open_image(encoded: bytes) -> Opened:
    """Decode an image in any format that OpenCV reads; grey, CMYK, 16-bit and transparent ones become plain RGB.

    Raises ValueError(reason, detail) if it is truncated, damaged or not an image.
    """
    if _is_jpeg(encoded):
        return _open_jpeg(encoded)
    if encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS:  # also under another suffix
        raise ValueError(reasons.UNSUPPORTED, "HEIC or AVIF: turn it into JPEG or PNG first")
    if encoded.startswith(_PNG_START) and not _has_png_end(encoded):
        raise ValueError(reasons.DAMAGED, "the PNG has no end")
    return Opened(_by_opencv(encoded), encoded if encoded.startswith(_PNG_START) else None)


def _has_png_end(encoded: bytes) -> bool:
    """Return whether the chunks of a PNG (length, type, content, checksum) lead to its end; bytes may follow it."""
    position = 8
    while position + 12 <= len(encoded):
        if encoded[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + int.from_bytes(encoded[position : position + 4], "big")
    return False


def _is_jpeg(encoded: bytes | memoryview) -> bool:
    return bytes(encoded[:2]) == b"\xff\xd8"


def _open_jpeg(encoded: bytes) -> Opened:
    try:
        pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGB", strict=True)
        colour = simplejpeg.decode_jpeg_header(encoded)[2]
    except ValueError as error:
        if "ICC" in str(error) and len(plain := without_profile(encoded)) < len(encoded):
            return _open_jpeg(plain)
        raise ValueError(reasons.DAMAGED, str(error)) from None
    if colour not in _DIRECT_COLOURS:
        return Opened(_by_opencv(encoded), None)
    if b"Exif\0\0" in encoded:  # other segments before it may be of any length
        upright, unrotated = _by_opencv(encoded), _by_opencv(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if not np.array_equal(upright, unrotated):
            return Opened(upright, None)
    return Opened(pixels, encoded)


def without_profile(encoded: bytes) -> bytes:
    """Return a JPEG without its colour profile (APP2 segments before the first scan), which posegen does not apply."""
    kept, position = [encoded[:2]], 2
    while encoded[position : position + 1] == b"\xff" and encoded[position + 1 : position + 2] not in (b"", b"\xda"):
        end = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        if encoded[position + 1] != 0xE2:
            kept.append(encoded[position:end])
        position = end
    return b"".join([*kept, encoded[position:]])


def _by_opencv(encoded: bytes | memoryview, flags: int = cv2.IMREAD_COLOR) -> UInt8[ndarray, "height width 3"]:
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(reasons.DAMAGED, str(error)) from None
    if pixels is None:
        raise ValueError(reasons.DAMAGED, "OpenCV reads no image from it")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def fit(encoded: bytes, *, height: int, width: int, jpeg_quality: int) -> Fitted:
    """Return the image at (height, width): its own bytes if it has that size already, else stretched and as JPEG.

    Stretching averages areas where it shrinks both ways and is linear otherwise (our choice). JPEGs keep the full
    colour resolution (4:4:4), because small images lose most by subsampling. Raises as `open_image` does.
    """
    pixels, stored = open_image(encoded)
    old_height, old_width = pixels.shape[:2]
    if stored is not None and (old_height, old_width) == (height, width):
        return Fitted(stored, (1.0, 1.0), False)
    shrinks = height <= old_height and width <= old_width
    if (old_height, old_width) != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    stretched = simplejpeg.encode_jpeg(pixels, quality=jpeg_quality, colorspace="RGB", colorsubsampling="444")
    return Fitted(stretched, (width / old_width, height / old_height), True)


def scaled_joints(joints: Float[ndarray, "18 2"], scale: tuple[float, float]) -> Float[ndarray, "18 2"]:
    """Scale joints with their image. Whole numbers are pixel centres, as for OpenCV: x' = (x + 1/2) scale - 1/2."""
    if scale == (1.0, 1.0):
        return joints
    return ((joints + 0.5) * np.array(scale) - 0.5).astype(np.float32)


def decode_into(encoded: bytes | memoryview, out: UInt8[ndarray, "height width 3"]) -> None:
    """Decode a stored JPEG or PNG as RGB into `out`, which must have its size. JPEGs decode without the GIL."""
    if _is_jpeg(encoded):
        decoded = simplejpeg.decode_jpeg(encoded, colorspace="RGB", strict=True, buffer=out)
        assert decoded.shape == out.shape, f"stored image of {decoded.shape} in shards of {out.shape}"
    else:
        out[...] = _by_opencv(encoded)


_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that exchange the sides
READABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what OpenCV decodes everywhere
UNREADABLE = (".heic", ".heif", ".avif", ".gif")


def image_sizes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Return the sizes in bytes of the files below `folder` with one of the suffixes, sorted by path inside it.

    Suffixes match in any case. Linked folders are followed; hidden files and folders are skipped; a broken link has the
    size -1. Bytes of a name that are no UTF-8 are surrogates (`os.fsdecode`), as in no name that can be written.
    """
    files = [path for path in walk(folder) if path.name.lower().endswith(suffixes)] if folder.is_dir() else []
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size if path.exists() else -1 for path in files}
    return dict(sorted(sizes.items()))


def read_image(path: Path) -> bytes:
    """Read a file's bytes, which are checked only when they are decoded.

    Raises ValueError("unreadable file", detail).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(reasons.UNREADABLE, f"{path}: {error.strerror}") from None
    if not content:
        raise ValueError(reasons.UNREADABLE, f"{path} is empty")
    return content


def folder_names(folder: Path) -> str:
    """Return the first eight names in a folder as text, for messages; "nothing" if it is empty or no folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) or "nothing"


def image_size(path: Path) -> tuple[int, int] | None:
    """Return height and width of an image in pixels, upright (EXIF), from its header; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (width, height) if turned else (height, width)


class ImageIndex:
    """Images by name: a path or the end of it, with or without the suffix, or a COCO image id.

    Where no name fits exactly, case and Unicode form do not matter.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.first_names = list(names)[:3]
        self._whole: dict[str, list[str]] = {}  # by the full path inside the folder
        self._ends: dict[str, list[str]] = {}  # by every shorter or equal path that it ends with
        self._numbers: dict[str, list[str]] = {}  # by the id of COCO's own file names, twelve digits
        self._folded: dict[str, list[str]] = {}  # by the ends, without case and in one Unicode form
        for name in names:
            stem = name.rpartition(".")[0]
            self._whole.setdefault(name, []).append(name)
            self._whole.setdefault(stem, []).append(name)
            for end in (*_path_ends(name), *_path_ends(stem)):
                self._ends.setdefault(end, []).append(name)
                self._folded.setdefault(_fold(end), []).append(name)
            if number := re.fullmatch(r"(?:COCO_\w+_)?(\d{1,12})", stem.rpartition("/")[2]):
                self._numbers.setdefault(number[1].zfill(12), []).append(name)

    def has(self, name: str) -> bool:
        """Return whether an image has this path."""
        return name in self._whole.get(name, ())

    def only(self, name: str) -> str | None:
        """Return the image that `name` means, or None if it fits none or several."""
        found = self.find(name)
        return found[0] if len(found) == 1 else None

    def find(self, name: str) -> list[str]:
        """Return the images that `name` may mean, by the first rule that gives any; several are ambiguous."""
        name = name.replace("\\", "/")
        for found in (self._whole.get(name), self._ends.get(name)):
            if found:
                return found
        for end in _path_ends(name):
            if end in self._whole:
                return self._whole[end]
        for end in _path_ends(_fold(name)):
            if end in self._folded:
                return self._folded[end]
        return self._numbers.get(name, [])


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _path_ends(path: str) -> list[str]:
    """Return 'a/b/c', 'b/c', 'c' for 'a/b/c'."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


FORWARD = 100  # frames that are decoded rather than skipped by a seek (our choice): a seek starts at a key frame
OPEN_VIDEOS = 32  # kept open in a process, because the views of a group alternate
LARGEST = 10_000  # pixels; a larger square is a mistake in the joints


class Square(NamedTuple):
    """A square part of an image in whole pixels; its upper left corner may lie outside."""

    left: int
    top: int
    side: int


class Part(NamedTuple):
    """A square part of an image file, or of a frame of a video (`frame` counts from 0, and is None for an image).

    As text it is the path with a media fragment: `a.mp4#frame=25&xywh=-3,10,700,700`.
    """

    path: Path
    frame: int | None
    square: Square

    def __str__(self) -> str:
        left, top, side = self.square
        frame = "" if self.frame is None else f"frame={self.frame}&"
        return f"{self.path}#{frame}xywh={left},{top},{side},{side}"


def parse_part(text: str) -> Part:
    """Return the part that a text names."""
    found = re.fullmatch(r"(.*)#(?:frame=(\d+)&)?xywh=(-?\d+),(-?\d+),(\d+),\d+", text, re.DOTALL)
    assert found is not None, f"not a part of an image: {text}"
    path, frame, *numbers = found.groups()
    return Part(Path(path), None if frame is None else int(frame), Square(*map(int, numbers)))


def part_sizes(parts: Collection[str]) -> dict[str, int]:
    """Return the sizes in bytes of the files that hold the parts, by the parts' texts; -1 for a missing file."""
    paths = {text: parse_part(text).path for text in parts}
    sizes = {path: path.stat().st_size if path.is_file() else -1 for path in set(paths.values())}
    return {text: sizes[path] for text, path in paths.items()}


def square_around(low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], margin: float) -> Square:
    """Return the smallest square of whole pixels around a box of coordinates and `margin` pixels on each side.

    `low` and `high` are x and y; whole numbers are the centres of pixels, so a pixel extends half a pixel around.
    """
    middle, reach = (low + high) / 2, float((high - low).max()) / 2 + margin
    left, top = (int(edge) for edge in np.floor(middle - reach + 0.5))
    right, bottom = (int(edge) for edge in np.floor(middle + reach + 0.5))
    return Square(left, top, max(right - left, bottom - top) + 1)


def cut_out(pixels: UInt8[np.ndarray, "height width 3"], square: Square) -> UInt8[np.ndarray, "side side 3"]:
    """Return the square part of an image, black outside the image."""
    height, width = pixels.shape[:2]
    left, top, side = square
    (x, right), (y, bottom) = np.clip([left, left + side], 0, width), np.clip([top, top + side], 0, height)
    out = np.zeros((side, side, 3), np.uint8)
    out[y - top : bottom - top, x - left : right - left] = pixels[y:bottom, x:right]
    return out


def read_part(part: Part) -> bytes:
    """Read a part as BMP, so that it is compressed only once, for its shard.

    Raises ValueError(reason, detail) if the file cannot be read, is damaged, or has no such frame.
    """
    if part.frame is None:
        pixels = cv2.cvtColor(open_image(read_image(part.path)).pixels, cv2.COLOR_RGB2BGR)
    else:
        pixels = _open_video(part.path).frame(part.frame)
    return cv2.imencode(".bmp", cut_out(pixels, part.square))[1].tobytes()


class _Video:
    """An open video, read forwards; it seeks to a frame behind or far ahead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_ANY, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise ValueError(reasons.UNREADABLE, f"{path}: OpenCV cannot open it as a video")
        self._next = 0

    def frame(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read a frame as BGR. Raises ValueError(reason, detail) if the video does not have it."""
        if not self._next <= number <= self._next + FORWARD:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            self._next = number
        while self._next <= number:
            if not self._capture.grab():
                raise self._ended(number)
            self._next += 1
        decoded, pixels = self._capture.retrieve()
        if not decoded:
            raise self._ended(number)
        return np.asarray(pixels, np.uint8)

    def _ended(self, number: int) -> ValueError:
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        self._next = 0
        return ValueError(reasons.NO_FRAME, f"frame {number} of {self._path}, which says that it has {count}")


@lru_cache(maxsize=OPEN_VIDEOS)
def _open_video(path: Path) -> _Video:
    return _Video(path)
