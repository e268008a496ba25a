"""Frames of videos and square parts of images: their names in a listing, and reading them."""

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
