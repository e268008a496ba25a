"""A source of made-up photographs for the benchmarks: noise at several scales, about as many bytes as real ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from posegen.data.listing import Entry, Listing, LoadedImage

DISTINCT = 500  # files; larger data sets name them again and again, which reads and decodes as often


@dataclass(frozen=True)
class Photos:
    """`images` photographs of people with 20 images each, a tenth of them for testing, from files in `folder`."""

    folder: Path
    images: int
    size: tuple[int, int]
    name: ClassVar[str] = "photos"

    def listing(self) -> Listing:
        files = self._files()
        return Listing(list(self._entries(files)), fingerprint=f"{self.images} {self.size}")

    def _entries(self, files: list[Path]) -> Iterator[Entry]:
        random = np.random.default_rng(0)
        shape = (self.size[1], self.size[0])
        for number in range(self.images):
            person = f"p{number // 20}"
            joints = (random.random((18, 2)) * shape).astype(np.float32)
            split = "test" if number // 20 % 10 == 9 else "train"
            path = str(files[number % DISTINCT])
            yield Entry(f"{number}.jpg", split, person, person, "", path, joints, np.ones(18, bool))

    def load(self, entry: Entry) -> LoadedImage:
        assert entry.joints is not None
        assert entry.visible is not None
        return LoadedImage(Path(entry.path).read_bytes(), entry.joints, entry.visible)

    def _files(self) -> list[Path]:
        random = np.random.default_rng(1)
        files = [self.folder / f"{number}.jpg" for number in range(DISTINCT)]
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            cv2.imwrite(str(file), _photo(random, *self.size), [cv2.IMWRITE_JPEG_QUALITY, 85])
        return files


def _photo(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    total = np.full((height, width, 3), 128, np.float32)
    for cell, strength in ((32, 50), (16, 25), (8, 10), (4, 4)):
        noise = random.normal(0, strength, (-(-height // cell), -(-width // cell), 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 255).astype(np.uint8)
