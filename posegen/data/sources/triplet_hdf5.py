"""The HDF5 files of the WGAN-triplet authors (Gupta, Pandey, Patel 2018): DeepFashion as pairs of images with maps.

`DF_train_data/DF_train.hdf5` and `DF_test_data/DF_test.hdf5`, each with `total_pairs.txt` ("cnt:N") beside it, as their
`Prepare_data/data_prep.py` writes them. Group `Data_{i}` is a pair, 0 the condition and 1 the target: `image_raw_0/1`
(256, 256, 3) uint8, RGB since they were opened by Pillow; `pose_r8_0/1` (256, 256, 18), 1 on a solid disc of radius 8
around each joint, else 0; `pose_mask_r8_0/1`, which is not read: pose masks are drawn from the joints, as elsewhere.

The files name neither images nor people, so these are our choices. An image is identified by its stored bytes; one
library stores equal images equally, so these are one image here. An identity, and a group, is a connected component:
images that a chain of pairs joins. Where all pairs of a person are there, that is the person; mirrored images, which
the training file holds as well, form components of their own. Two people who share an image, byte for byte, merge.

Joints are the discs' centres, in whole pixels, as the authors drew them: their copy of PG2's DeepFashion converter
takes the first candidate of each joint, of any person (see `pg2_pickles`).
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from posegen.data import reasons
from posegen.data.formats import NOBODY, Pose
from posegen.data.formats.images import folder_names
from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.pairs import SPLITS, shared_note

RADIUS = 8  # of the discs, in pixels
_SIDES = (0, 1)


class _Pairs(NamedTuple):
    """The content of a file: pairs of images by digest, each image's first occurrence, rejects and notes."""

    pairs: list[tuple[bytes, bytes]]
    names: dict[bytes, str]
    rejects: list[Reject]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TripletHdf5:
    """The pairs of both files, in their order. An image is called by its first occurrence, `Data_12_0`.

    A listing reads the images' stored bytes one by one and keeps a digest of each; joints are read with the images, in
    the tasks. Only the root is pickled to these, and each process opens a file once.
    """

    root: Path
    name: ClassVar[str] = "triplet-hdf5"

    def listing(self) -> Listing:
        """List all images and pairs. Raises ValueError if h5py or a file is missing, or a file is of another kind."""
        files = {split: self._file(split) for split in SPLITS}
        read = {split: _read_pairs(file, split) for split, file in files.items()}
        identities = _components([pair for found in read.values() for pair in found.pairs])
        entries = [
            Entry(name, split, identities[digest], identities[digest], "", str(files[split]))
            for split, found in read.items()
            for digest, name in found.names.items()
        ]
        pairs = {split: [(found.names[a], found.names[b]) for a, b in found.pairs] for split, found in read.items()}
        rejects = [reject for found in read.values() for reject in found.rejects]
        notes = [note for found in read.values() for note in found.notes]
        listing = Listing(entries, "", rejects, pairs, (*notes, *_about(entries)))
        sizes = {str(file): file.stat().st_size for file in files.values()}
        digest = hashlib.sha256(fingerprint(self.name, listing, sizes).encode())
        for found in read.values():
            digest.update(b"".join(found.names))
        return replace(listing, fingerprint=digest.hexdigest())

    def load(self, entry: Entry) -> LoadedImage:
        """Return the image as PNG, which is lossless, and the joints of its pose map.

        Raises ValueError(reason, detail) if it cannot be read or its map is not drawn with discs.
        """
        group, _, side = entry.name.rpartition("_")
        try:
            stored = _open_file(entry.path)[group]
            pixels, maps = stored[f"image_raw_{side}"][()], stored[f"pose_r8_{side}"][()]
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(reasons.UNREADABLE, f"{entry.path}, {entry.name}: {error}") from None
        pose = _pose(maps, entry.name)
        _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return LoadedImage(encoded.tobytes(), pose.joints, pose.visible)

    def _file(self, split: str) -> Path:
        file = self.root / f"DF_{split}_data" / f"DF_{split}.hdf5"
        if not file.is_file():
            raise ValueError(
                f"'{self.root}' lacks {file.relative_to(self.root)}; there is {folder_names(self.root)}. "
                "Expected the files that the triplet authors' data_prep.py writes: DF_train_data/DF_train.hdf5 and "
                "DF_test_data/DF_test.hdf5, each with total_pairs.txt beside it."
            )
        return file.absolute()


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "the data set 'triplet-hdf5' is read with h5py, which is not installed: pip install 'posegen[hdf5]'."
        ) from None
    return h5py


@lru_cache(maxsize=4)
def _open_file(path: str) -> Any:
    """Open a file for reading, once in a process."""
    return _import_h5py().File(path, "r")


def _read_pairs(path: Path, split: str) -> _Pairs:
    library = _import_h5py()
    try:
        with library.File(path, "r") as file:
            count, notes = _count(path, len(file))
            return _digested(file, count, split, notes)
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file that can be read (cut off or another kind): {error}") from None


def _count(path: Path, groups: int) -> tuple[int, tuple[str, ...]]:
    """Return the number of pairs to take: that in `total_pairs.txt`, or all without it."""
    total = path.with_name("total_pairs.txt")
    if not total.is_file():
        return groups, (f"{path.name}: all {groups:,} pairs, since there is no total_pairs.txt beside it.",)
    if not (found := re.fullmatch(r"\s*cnt:\s*(\d+)\s*", content := total.read_text(errors="replace"))):
        raise ValueError(f"{total}: expected 'cnt:' and the number of pairs, found {content[:40]!r}")
    count = int(found[1])
    if not 0 < count <= groups:
        raise ValueError(
            f"{total} says {count:,} pairs, and {path.name} holds {groups:,}. The file is incomplete, or is another "
            "one: make it again, or remove total_pairs.txt to take the pairs that are there."
        )
    left = f"{path.name}: the first {count:,} of {groups:,} pairs, as total_pairs.txt says."
    return count, (left,) if count < groups else ()


def _digested(file: Any, count: int, split: str, notes: tuple[str, ...]) -> _Pairs:
    pairs: list[tuple[bytes, bytes]] = []
    names: dict[bytes, str] = {}
    rejects: list[Reject] = []
    for number in range(count):
        group = f"Data_{number}"
        try:
            digests = [_digest(image) for image in _images(file, group)]
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            rejects.append(Reject(group, split, reasons.NO_IMAGE, str(error)))
            continue
        for side, digest in zip(_SIDES, digests, strict=True):
            names.setdefault(digest, f"{group}_{side}")
        pairs.append((digests[0], digests[1]))
    if not pairs:
        why = f" {rejects[0].name}: {rejects[0].detail}" if rejects else ""
        raise ValueError(f"{file.filename}: none of its {count:,} pairs can be read.{why}")
    return _Pairs(pairs, names, rejects, notes)


def _images(file: Any, name: str) -> list[Any]:
    """Return both images of a pair, unread. Raises ValueError if one, or its map, is missing or of another shape."""
    group = file[name]
    images = [group.get(f"image_raw_{side}") for side in _SIDES]
    for side, stored in zip(_SIDES, images, strict=True):
        image, maps = (getattr(each, "shape", ()) for each in (stored, group.get(f"pose_r8_{side}")))
        if len(image) != 3 or image[2] != 3 or maps != (*image[:2], len(JOINTS)):
            raise ValueError(
                f"expected image_raw_{side} (height, width, 3) and pose_r8_{side} (height, width, {len(JOINTS)}), "
                f"found the shapes {image} and {maps}"
            )
        if stored.dtype != np.uint8:
            raise ValueError(f"expected image_raw_{side} of uint8, found {stored.dtype}")
    return images


def _digest(image: Any) -> bytes:
    """Hash the bytes as they are stored, without unpacking them: 0.25 ms of CPU an image instead of 0.65 ms."""
    digest = hashlib.sha256(repr((image.shape, image.chunks, image.compression)).encode())
    if image.chunks is None:
        digest.update(image[()].tobytes())
    else:
        for chunk in image.iter_chunks():
            digest.update(image.id.read_direct_chunk(tuple(side.start for side in chunk))[1])
    return digest.digest()[:16]


def _components(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Return the connected component of each image, as a number of six digits."""
    rows: dict[bytes, int] = {}
    joined = np.array([[rows.setdefault(digest, len(rows)) for digest in pair] for pair in pairs])
    graph = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(rows), len(rows)))
    _, labels = connected_components(graph, directed=False)
    return {digest: f"{label:06d}" for digest, label in zip(rows, labels.tolist(), strict=True)}


def _about(entries: list[Entry]) -> Iterator[str]:
    images = {split: sum(entry.split == split for entry in entries) for split in SPLITS}
    people = len({entry.identity for entry in entries})
    yield (
        f"Images: {images['train']:,} for training and {images['test']:,} for testing, identified by their bytes; "
        f"identities: the {people:,} sets of images that pairs join."
    )
    yield from shared_note(entries)


def _pose(maps: ndarray, name: str) -> Pose:
    """Return the joints of maps (height, width, 18). Raises ValueError(reason, detail) if one is not a disc."""
    joints, visible = NOBODY.joints.copy(), NOBODY.visible.copy()
    drawn = np.ascontiguousarray((maps == 1).transpose(2, 0, 1))
    if np.count_nonzero(maps) != np.count_nonzero(drawn):
        raise ValueError(reasons.NO_DISC, f"{name}: its pose maps hold other values than 0 and 1")
    for joint, disc in enumerate(drawn):
        if disc.any():
            centre = disc_centre(disc)
            if centre is None:
                raise ValueError(reasons.NO_DISC, f"{name}: the map of joint {joint} ({JOINTS[joint]})")
            joints[joint], visible[joint] = centre, True
    return Pose(joints, visible)


def disc_centre(drawn: Bool[ndarray, "height width"], radius: int = RADIUS) -> tuple[int, int] | None:
    """Return the pixel (x, y) whose solid disc, cut off at the borders, equals what is drawn, or None.

    PG2's disc: all pixels at a distance of at most `radius`. At least a quarter of it lies in the image, so no two
    centres draw the same in an image larger than the disc.
    """
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if not len(rows):
        return None
    height, width = drawn.shape
    for y in range(max(rows[-1] - radius, 0), min(rows[0] + radius, height - 1) + 1):
        for x in range(max(columns[-1] - radius, 0), min(columns[0] + radius, width - 1) + 1):
            if _is_disc(drawn, x, y, radius):
                return x, y
    return None


def _is_disc(drawn: ndarray, x: int, y: int, radius: int) -> bool:
    """Return whether the disc about (x, y) is drawn, if all that is drawn lies within `radius` rows and columns."""
    height, width = drawn.shape
    top, left = max(y - radius, 0), max(x - radius, 0)
    bottom, right = min(y + radius + 1, height), min(x + radius + 1, width)
    rows, columns = np.ogrid[top - y : bottom - y, left - x : right - x]
    return np.array_equal(drawn[top:bottom, left:right], rows**2 + columns**2 <= radius**2)
