"""DeepFashion's in-shop images (Liu et al. 2016), 256x256: the data set of PG2, Deformable GAN, VDG and PATN.

The images lie as they are distributed (`img/WOMEN/Dresses/id_00000002/02_1_front.jpg`) or in flat folders with the
names of pose-gan or PATN, which `files` maps onto each other. The joints are the public annotation files of
pose-gan (`fasion-annotation-{train,test}.csv`) or PATN (`fasion-resize-annotation-{train,test}.csv`, whose images are
cut to a width of 176, so that x = x256 - 40), or any others that `find_annotations` finds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np
import simplejpeg

from posegen.data import reasons
from posegen.data.formats import Pose
from posegen.data.formats.annotations import AnnotationFiles
from posegen.data.formats.images import image_size, open_image, read_image
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, count_reasons, fingerprint
from posegen.data.sources.deepfashion.files import (
    FLAT,
    ImagePaths,
    Name,
    NamedPoses,
    deepfashion_joint_files,
    find_images,
    find_pair_lists,
    is_resized,
    parse_name,
    read_poses,
    read_split_lists,
)
from posegen.data.sources.pairs import with_given_pairs
from posegen.data.sources.splits import empty_split, shared_identities

WHOLE, CROPPED = (256, 256), (256, 176)  # height, width of the images, before and after the crop
BORDER = 40  # pixels that the crop takes from the left and from the right

FLAT_PHOTO = "flat garment photo"
OTHER_SIZE = "image of another size"
NO_SPLIT = "in no split list"


@dataclass(frozen=True)
class DeepFashion:
    """The images of `root`, in any layout and spelling; entries are called by their official path without suffix.

    A group is an item in one colour (ten digits), as PATN pairs them, and so is an identity: clothes, not a person. A
    view is the name's word ("front"). Entries stand in the order of the annotation files, on which the order of the
    pairs depends. A pair list in the root (`fasion-pairs-train.csv`) is honoured; without one the rule pairs. The split
    is that of `train.lst` and `test.lst` where these are in the root, else that of the annotation file.

    Attributes:
        root: The data set's folder.
        joints: The annotation file or folder. None takes the published ones, or searches for others.
        flat_photos: Keep photos of a garment alone. The papers leave out only images that lack a shoulder or hip, so
            they are kept by default; an estimator sometimes sees a person in one.
        crop: "176x256" (width x height, PATN's) takes 40 pixels from the left and the right of every image and moves
            the joints; those that are then outside are kept. Images that have that size already are taken as they are.
    """

    root: Path
    joints: Path | None = None
    flat_photos: bool = True
    crop: Literal["none", "176x256"] = "none"
    name: ClassVar[str] = "deepfashion"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that `load` returns."""
        return WHOLE if self.crop == "none" else CROPPED

    def listing(self) -> Listing:
        """List both splits. Raises ValueError for a missing or malformed folder or file."""
        images = find_images(self.root)
        joint_files, joints_note = deepfashion_joint_files(self.root, self.joints)
        posed = read_poses(joint_files)
        lists = read_split_lists(self.root)
        _check_match(self.root, images, posed, joint_files, lists)
        posed, moved_note = self._moved(images, posed, joint_files)
        entries, refused = self._entries(images, posed, lists or {})
        unused = _unused(images, posed, joint_files, lists or {})
        listing = Listing(entries, "", [*images.rejects, *posed.rejects, *refused, *unused])
        _check_entries(self.root, listing)
        listing = with_given_pairs(listing, find_pair_lists(self.root, joint_files), _official)
        notes = (joints_note, *moved_note, *_split_notes(entries, posed, lists), *listing.notes)
        return replace(listing, notes=notes, fingerprint=fingerprint(self.name, listing, images.sizes))

    def load(self, entry: Entry) -> LoadedImage:
        """Read the file's bytes; a cropped image as BMP, so that it is compressed only once, for its shard.

        Raises ValueError(reason, detail) if it cannot be read, is damaged, or has neither size.
        """
        encoded = read_image(Path(entry.path))
        size = _encoded_size(encoded)
        if size == WHOLE and self.size == CROPPED:
            pixels = open_image(encoded).pixels[:, BORDER:-BORDER]
            encoded = cv2.imencode(".bmp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
        elif size != self.size:
            raise ValueError(OTHER_SIZE, f"{_by_width(size)} pixels (width x height), expected {_by_width(self.size)}")
        return entry.loaded(encoded)

    def _moved(
        self, images: ImagePaths, posed: NamedPoses, joint_files: AnnotationFiles
    ) -> tuple[NamedPoses, list[str]]:
        """Return the poses in pixels of the images that `load` returns, and a note if they were moved."""
        self._check_size(_first_size(images.paths[name] for name in posed.poses if name in images.paths))
        shift = BORDER * (_made_for_crop(posed, joint_files) - (self.size == CROPPED))
        if not shift:
            return posed, []
        poses = {name: (_shifted(pose, shift), split) for name, (pose, split) in posed.poses.items()}
        side = "right" if shift > 0 else "left"
        note = f"The joints are moved {abs(shift)} pixels to the {side}, for images of {_by_width(self.size)} pixels."
        return replace(posed, poses=poses), [note]

    def _check_size(self, found: tuple[int, int]) -> None:
        if found not in (WHOLE, CROPPED):
            raise ValueError(
                f"the images in '{self.root}' are {_by_width(found)} pixels (width x height). Expected 256x256, to "
                "which the public joints belong (DeepFashion's img, not img_highres), or 176x256. Images of another "
                r"size with joints of their own are a folder: --dataset folder --set 'data.identity=id_?(\d{8}.?\d\d)'."
            )
        if found == CROPPED and self.size == WHOLE:
            raise ValueError(
                f"the images in '{self.root}' are 176x256 pixels (width x height) and would be stretched to 256x256. "
                "Give --set data.crop=176x256, which takes them as they are, or the images of 256x256."
            )

    def _entries(
        self, images: ImagePaths, posed: NamedPoses, lists: Mapping[Name, str]
    ) -> tuple[list[Entry], list[Reject]]:
        entries: list[Entry] = []
        rejects: list[Reject] = []
        for name, (pose, given) in posed.poses.items():
            split = lists.get(name) if lists else given
            if name not in images.paths:
                continue
            if split is None:
                rejects.append(Reject(name.official(), "train", NO_SPLIT, "train.lst and test.lst do not name it"))
            elif name.view == FLAT and not self.flat_photos:
                rejects.append(Reject(name.official(), split, FLAT_PHOTO))
            else:
                path = str(images.paths[name])
                entries.append(Entry(name.official(), split, name.clothes, name.clothes, name.view, path, *pose))
        return entries, rejects


def _check_match(
    root: Path, images: ImagePaths, posed: NamedPoses, joint_files: AnnotationFiles, lists: Mapping[Name, str] | None
) -> None:
    if not images.paths.keys() & posed.poses.keys():
        raise ValueError(
            f"no image in '{root}' has joints in {joint_files}: images are called {_first(images.paths)}, joints "
            f"are of {_first(posed.poses)}."
        )
    if lists is None and any(split is None for _, split in joint_files.files):
        raise ValueError(
            f"nothing says which images are for training and which for testing: the joints are {joint_files}. "
            "Expected annotation files called *-annotation-train.csv and *-annotation-test.csv, or train.lst and "
            f"test.lst (a name a line) in '{root}'."
        )
    if lists is not None and not images.paths.keys() & posed.poses.keys() & lists.keys():
        raise ValueError(f"train.lst and test.lst in '{root}' name no image that is there with joints.")


def _check_entries(root: Path, listing: Listing) -> None:
    if empty := empty_split(listing):
        split, _ = empty
        raise ValueError(
            f"'{root}' has no image for the split '{split}': {len(listing.entries):,} images in the other one; left "
            f"out: {count_reasons(listing.rejects)}. Expected images that the {split} annotation file, or {split}.lst, "
            "names."
        )


def _first(names: Iterable[Name]) -> list[str]:
    return [name.official() for name in islice(names, 3)]


def _first_size(paths: Iterable[Path]) -> tuple[int, int]:
    """Return height and width of the first of twenty images that can be read."""
    first = list(islice(paths, 20))
    size = next((size for path in first if (size := image_size(path))), None)
    if size is None:
        raise ValueError(f"none of the first images can be read, such as {', '.join(map(str, first[:3]))}.")
    return size


def _by_width(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _made_for_crop(posed: NamedPoses, joint_files: AnnotationFiles) -> bool:
    """Return whether the joints are for 176x256, by the files' names. Raises ValueError if the joints contradict.

    People stand in the middle of their images: the median x is near 128 or near 88.
    """
    cropped = is_resized(path for path, _ in joint_files.files)
    known = [pose.joints[pose.visible, 0] for pose, _ in posed.poses.values()]
    median = float(np.median(np.concatenate(known))) if any(len(x) for x in known) else np.nan
    middle, other = (size[1] / 2 for size in ((CROPPED, WHOLE) if cropped else (WHOLE, CROPPED)))
    if abs(median - other) < abs(median - middle):
        raise ValueError(
            f"{joint_files}: by the name these joints are for images {2 * middle:g} pixels wide, but their median x, "
            f"{median:g}, is near the middle of {2 * other:g}. Put 'resize' into the names of files whose x is "
            "x256 - 40 (fasion-resize-annotation-train.csv), and only of these."
        )
    return cropped


def _shifted(pose: Pose, shift: int) -> Pose:
    """Return the pose with its visible joints moved along x. Missing ones stay (-1, -1)."""
    moved = pose.joints + np.array((shift, 0), np.float32)
    return Pose(np.where(pose.visible[:, None], moved, pose.joints), pose.visible)


def _encoded_size(encoded: bytes) -> tuple[int, int]:
    """Return height and width, of a JPEG by its header alone."""
    if not encoded.startswith(b"\xff\xd8"):
        return open_image(encoded).pixels.shape[:2]
    try:
        height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        return int(height), int(width)
    except ValueError as error:
        raise ValueError(reasons.DAMAGED, str(error)) from None


def _unused(
    images: ImagePaths, posed: NamedPoses, joint_files: AnnotationFiles, lists: Mapping[Name, str]
) -> list[Reject]:
    """Reject images without an annotation, annotations without an image, and listed names with neither."""
    refused = {reject.name for reject in (*images.rejects, *posed.rejects)}
    found = [
        *((name, lists.get(name), reasons.NOT_ANNOTATED, f"not named in {joint_files}") for name in images.paths),
        *((name, split, reasons.NO_IMAGE, f"named in {joint_files}") for name, (_, split) in posed.poses.items()),
        *((name, split, reasons.NO_IMAGE, f"named in {split}.lst") for name, split in lists.items()),
    ]
    used = images.paths.keys() & posed.poses.keys()
    rejects: dict[str, Reject] = {}
    for name, split, reason, detail in found:
        if name not in used and (official := name.official()) not in refused:
            rejects.setdefault(official, Reject(official, split or "train", reason, detail))
    return list(rejects.values())


def _official(label: str) -> str | None:
    name = parse_name(label)
    return name.official() if name else None


def _split_notes(entries: list[Entry], posed: NamedPoses, lists: Mapping[Name, str] | None) -> list[str]:
    notes = ["Splits: those of the annotation files."]
    if lists is not None:
        moved = sum(split not in (None, lists.get(name, split)) for name, (_, split) in posed.poses.items())
        other = f" {moved:,} of their names are in the other split's annotation file." if moved else ""
        notes = [f"Splits: those of train.lst and test.lst.{other}"]
    if count := shared_identities(entries):
        notes.append(f"Clothes (item and colour) in both splits: {count:,}. The scores say less about other clothes.")
    return notes
