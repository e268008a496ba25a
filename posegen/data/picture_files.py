"""Picture files on disk: finding them, telling which one a name means, reading their bytes, their fingerprint."""

import hashlib
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import cv2
import numpy as np

from posegen.data import reasons
from posegen.data.rows import Entry, Listing

READABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what OpenCV decodes everywhere
UNREADABLE = (".heic", ".heif", ".avif", ".gif")


def picture_sizes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
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


def read_picture(path: Path) -> bytes:
    """The file's bytes, of whatever kind: they are checked where the picture is decoded.

    Raises ValueError("unreadable file", detail).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(reasons.UNREADABLE, f"{path}: {error.strerror}") from None
    if not content:
        raise ValueError(reasons.UNREADABLE, f"{path} is empty")
    return content


def picture_size(path: Path) -> tuple[int, int] | None:
    """Height and width of a picture file in pixels, or None where it cannot be read."""
    content = path.read_bytes() if path.is_file() else b""
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if pixels is None else pixels.shape[:2]


class PictureIndex:
    """Which picture a name means: its path or the end of it, with or without the suffix, or its COCO image id."""

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
        """The picture that `name` means, or None where it fits none or several."""
        found = self.find(name)
        return found[0] if len(found) == 1 else None

    def find(self, name: str) -> list[str]:
        """The pictures that `name` may mean; the first rule that gives any decides, and more than one is ambiguous."""
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
    has the same fingerprint. A picture replaced by another one of the same size goes unseen.
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
