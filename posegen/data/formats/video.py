"""Frames of videos, and square parts of images: how an entry names them, and how they are read."""

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from posegen.data import reasons
from posegen.data.formats.images import open_image, read_image

FORWARD = 100  # frames that are decoded on the way rather than sought (our choice): a seek starts at a whole image
OPEN_VIDEOS = 32  # kept open in a process, for a group's views take turns
LARGEST = 10_000  # pixels; a larger square is no crop of any video, but a mistake in its joints


class Square(NamedTuple):
    """A square part of an image in whole pixels; its left upper corner may lie outside."""

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
    """The part that a text names."""
    found = re.fullmatch(r"(.*)#(?:frame=(\d+)&)?xywh=(-?\d+),(-?\d+),(\d+),\d+", text, re.DOTALL)
    assert found is not None, f"no part of an image: {text}"
    path, frame, *numbers = found.groups()
    return Part(Path(path), None if frame is None else int(frame), Square(*map(int, numbers)))


def part_sizes(parts: Collection[str]) -> dict[str, int]:
    """Sizes in bytes of the files that hold the parts, by the parts' texts; -1 where a link leads nowhere."""
    paths = {text: parse_part(text).path for text in parts}
    sizes = {path: path.stat().st_size if path.is_file() else -1 for path in set(paths.values())}
    return {text: sizes[path] for text, path in paths.items()}


def square_around(low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], margin: float) -> Square:
    """The smallest square of whole pixels around a box of coordinates and `margin` pixels more on each side.

    `low` and `high` are x and y; whole numbers are the centres of pixels, so that a pixel reaches half a one around.
    """
    middle, reach = (low + high) / 2, float((high - low).max()) / 2 + margin
    left, top = (int(edge) for edge in np.floor(middle - reach + 0.5))
    right, bottom = (int(edge) for edge in np.floor(middle + reach + 0.5))
    return Square(left, top, max(right - left, bottom - top) + 1)


def cut_out(pixels: UInt8[np.ndarray, "height width 3"], square: Square) -> UInt8[np.ndarray, "side side 3"]:
    """The square part; what lies outside of the image is black."""
    height, width = pixels.shape[:2]
    left, top, side = square
    (x, right), (y, bottom) = np.clip([left, left + side], 0, width), np.clip([top, top + side], 0, height)
    out = np.zeros((side, side, 3), np.uint8)
    out[y - top : bottom - top, x - left : right - left] = pixels[y:bottom, x:right]
    return out


def read_part(part: Part) -> bytes:
    """The part as BMP, so that it is encoded only once, for its shard.

    Raises ValueError(reason, detail) where the file cannot be read, is damaged, or has no such frame.
    """
    pixels = _read_image(part.path) if part.frame is None else _opened(part.path).frame(part.frame)
    return cv2.imencode(".bmp", cut_out(pixels, part.square))[1].tobytes()


def _read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    content = read_image(path)
    return cv2.cvtColor(open_image(content).pixels, cv2.COLOR_RGB2BGR)


class _Video:
    """An open video that is read forwards; a frame that lies behind, or far ahead, is sought."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_ANY, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise ValueError(reasons.UNREADABLE, f"{path}: OpenCV opens no video there")
        self._next = 0

    def frame(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """A frame in OpenCV's order of colours. Raises ValueError(reason, detail) where the video does not have it."""
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
def _opened(path: Path) -> _Video:
    return _Video(path)
