"""DeepFashion's in-shop images (Liu et al. 2016), 256x256: the data set of PG2, Deformable GAN, VDG and PATN.

The images lie as they are distributed or in flat folders, named in one of four spellings:

- official: `img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg`
- DeepFashion-MultiModal: `WOMEN-Blouses_Shirts-id_00000001-02_1_front.jpg`
- pose-gan (Deformable GAN, its split_fasion_dataset.py; "fasion" is its spelling), without the category's underscores:
  `fasionWOMENBlousesShirtsid0000000102_1front.jpg`
- PATN (its train.lst and test.lst), which keeps them: `fashionWOMENBlouses_Shirtsid0000000102_1front.jpg`

Joints: pose-gan's public files (`fasion-annotation-{train,test}.csv`), PATN's (`fasion-resize-annotation-...`, for
images cut to a width of 176, so that x = x256 - 40), or any others that `find_annotations` finds.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg

from posegen.data import reasons
from posegen.data.formats import Pose, check_unit, visible_files
from posegen.data.formats.annotations import AnnotationFiles, find_annotations, read_annotations
from posegen.data.formats.images import READABLE, folder_names, image_size, image_sizes, open_image, read_image
from posegen.data.formats.matching import match_poses
from posegen.data.formats.posegan_csv import POSE_GAN
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, count_reasons, fingerprint
from posegen.data.sources.pairs import SPLITS, empty_split, shared_identities, with_given_pairs

WHOLE, CROPPED = (256, 256), (256, 176)  # height, width of the images, before and after the crop
BORDER = 40  # pixels that the crop takes from the left and from the right

LAYOUTS = (
    "'img' as DeepFashion has it (img/WOMEN/Dresses/id_00000002/02_1_front.jpg), or images called "
    "fasionWOMENDressesid0000000202_1front.jpg (pose-gan) or fashionWOMENDressesid0000000202_1front.jpg (PATN)"
)
ANNOTATIONS = (
    "fasion-annotation-train.csv and fasion-annotation-test.csv (pose-gan), or fasion-resize-annotation-train.csv and "
    "fasion-resize-annotation-test.csv (PATN)"
)
FLAT = "flat"  # the view of a garment without a person
NO_NAME = "no DeepFashion name"
FLAT_PHOTO = "flat garment photo"
OTHER_SIZE = "image of another size"
NO_SPLIT = "in no split list"

_OFFICIAL = re.compile(r"(?:.*/)?(WOMEN|MEN)/([A-Za-z_]+)/id_(\d{8})/(\d{2})_(\d+)_([a-z]+)(?:\.\w+)?")
_DASHED = re.compile(r"(?:.*/)?(WOMEN|MEN)-([A-Za-z_]+)-id_(\d{8})-(\d{2})_(\d+)_([a-z]+)(?:\.\w+)?")
_RENAMED = re.compile(r"(?:.*/)?fash?ion(WOMEN|MEN)([A-Za-z_]+?)id(\d{8})(\d{2})_(\d+)([a-z]+)(?:\.\w+)?")
_NEXT_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")  # where "BlousesShirts" has lost its underscore


class Name(NamedTuple):
    """An image's name in any spelling, without the file's suffix. Names sort by their fields in this order."""

    gender: str  # "WOMEN" or "MEN"
    category: str  # without underscores: "BlousesShirts"
    item: str  # eight digits
    colour: str  # two digits: the number of the item's colour
    number: int  # the view's: 1 front, 2 side, 3 back, 4 full, 6 flat, 7 additional
    view: str  # the view's word: "front"

    @property
    def clothes(self) -> str:
        """Item and colour, ten digits: one set of clothes. An item may lie in two categories."""
        return self.item + self.colour

    def __str__(self) -> str:
        """Return the official spelling: `WOMEN/Blouses_Shirts/id_00000001/02_1_front`."""
        category = _NEXT_WORD.sub("_", self.category)
        return f"{self.gender}/{category}/id_{self.item}/{self.colour}_{self.number}_{self.view}"


def parse_name(text: str) -> Name | None:
    """Parse a name in any spelling, also after a path or with a suffix; None if it is no DeepFashion name."""
    path = text.replace("\\", "/")
    if (found := _OFFICIAL.fullmatch(path) or _DASHED.fullmatch(path) or _RENAMED.fullmatch(path)) is None:
        return None
    gender, category, item, colour, number, view = found.groups()
    return Name(gender, category.replace("_", ""), item, colour, int(number), view)


class ImagePaths(NamedTuple):
    """The path of each image, the files' sizes in bytes by path, and rejects."""

    paths: dict[Name, Path]
    sizes: dict[str, int]
    rejects: list[Reject]


class NamedPoses(NamedTuple):
    """Poses with the split of their file (None: without split), in file order, and rejects."""

    poses: dict[Name, tuple[Pose, str | None]]
    rejects: list[Reject]


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
        if empty := empty_split(listing):
            raise ValueError(
                f"'{self.root}' has no image for the split '{empty[0]}': {len(entries):,} images in the other one; "
                f"left out: {count_reasons(listing.rejects)}. Expected images that the {empty[0]} annotation file, or "
                f"{empty[0]}.lst, names."
            )
        pair_lists = find_pair_lists(self.root, joint_files)
        listing = with_given_pairs(listing, pair_lists, lambda label: (name := parse_name(label)) and str(name))
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
        first = list(islice((images.paths[name] for name in posed.poses if name in images.paths), 20))
        found = next((size for path in first if (size := image_size(path))), None)
        if found is None:
            raise ValueError(f"none of the first images can be read, such as {', '.join(map(str, first[:3]))}.")
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
        shift = BORDER * (_made_for_crop(posed, joint_files) - (self.size == CROPPED))
        if not shift:
            return posed, []
        poses: dict[Name, tuple[Pose, str | None]] = {}
        for name, ((joints, visible), split) in posed.poses.items():
            moved = np.where(visible[:, None], joints + np.array((shift, 0), np.float32), joints)  # missing ones stay
            poses[name] = Pose(moved, visible), split
        side = "right" if shift > 0 else "left"
        note = f"The joints are moved {abs(shift)} pixels to the {side}, for images of {_by_width(self.size)} pixels."
        return posed._replace(poses=poses), [note]

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
                rejects.append(Reject(str(name), "train", NO_SPLIT, "train.lst and test.lst do not name it"))
            elif name.view == FLAT and not self.flat_photos:
                rejects.append(Reject(str(name), split, FLAT_PHOTO))
            else:
                path = str(images.paths[name])
                entries.append(Entry(str(name), split, name.clothes, name.clothes, name.view, path, *pose))
        return entries, rejects


def _check_match(
    root: Path, images: ImagePaths, posed: NamedPoses, joint_files: AnnotationFiles, lists: Mapping[Name, str] | None
) -> None:
    if not images.paths.keys() & posed.poses.keys():
        called, known = ([str(name) for name in islice(names, 3)] for names in (images.paths, posed.poses))
        raise ValueError(
            f"no image in '{root}' has joints in {joint_files}: images are called {called}, joints are of {known}."
        )
    if lists is None and any(split is None for _, split in joint_files.files):
        raise ValueError(
            f"nothing says which images are for training and which for testing: the joints are {joint_files}. "
            "Expected annotation files called *-annotation-train.csv and *-annotation-test.csv, or train.lst and "
            f"test.lst (a name a line) in '{root}'."
        )
    if lists is not None and not images.paths.keys() & posed.poses.keys() & lists.keys():
        raise ValueError(f"train.lst and test.lst in '{root}' name no image that is there with joints.")


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
        if name not in used and (official := str(name)) not in refused:
            rejects.setdefault(official, Reject(official, split or "train", reason, detail))
    return list(rejects.values())


def _split_notes(entries: list[Entry], posed: NamedPoses, lists: Mapping[Name, str] | None) -> list[str]:
    moved = sum(split not in (None, (lists or {}).get(name, split)) for name, (_, split) in posed.poses.items())
    other = f" {moved:,} of their names are in the other split's annotation file." if moved else ""
    notes = [f"Splits: those of {'the annotation files' if lists is None else 'train.lst and test.lst'}.{other}"]
    if count := shared_identities(entries):
        notes.append(f"Clothes (item and colour) in both splits: {count:,}. The scores say less about other clothes.")
    return notes


def find_images(root: Path) -> ImagePaths:
    """Find the images in `root/img`, else in `root/train` and `root/test`, else anywhere below `root`.

    An image found in several folders is rejected, and so is a name in none of the spellings. Raises ValueError if no
    image is left.
    """
    if not root.is_dir():
        raise ValueError(f"DeepFashion root '{root}' is not a folder. Expected one with {LAYOUTS}; and {ANNOTATIONS}.")
    whole = root.absolute()
    folders = [whole / "img"] if (whole / "img").is_dir() else [whole / split for split in SPLITS]
    folders = folders if all(folder.is_dir() for folder in folders) else [whole]
    sizes = {folder / path: size for folder in folders for path, size in image_sizes(folder, READABLE).items()}
    found: dict[Name, list[Path]] = {}
    rejects = []
    for path in sizes:
        if name := parse_name(path.as_posix()):
            found.setdefault(name, []).append(path)
        else:
            rejects.append(Reject(path.relative_to(whole).as_posix(), "train", NO_NAME))
    if not sizes:
        raise ValueError(
            f"DeepFashion root '{root}' holds no image; there is {folder_names(root)}. Expected {LAYOUTS}; and "
            f"{ANNOTATIONS}."
        )
    if not found:
        raise ValueError(
            f"none of the {len(sizes):,} images in '{root}' has a DeepFashion name; they are called "
            f"{[reject.name for reject in rejects[:3]]}. Expected {LAYOUTS}. Images with names of their own are a "
            "folder (--dataset folder)."
        )
    if all(len(paths) > 1 for paths in found.values()):
        twice = ", ".join(map(str, next(iter(found.values()))))
        raise ValueError(
            f"every image in '{root}' lies there more than once, such as {twice}: keep one folder of images below the "
            "root, or call the two that are meant 'train' and 'test'."
        )
    rejects += [
        Reject(str(name), "train", reasons.DUPLICATE, ", ".join(map(str, paths)))
        for name, paths in found.items()
        if len(paths) > 1
    ]
    paths = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
    return ImagePaths(paths, {str(path): size for path, size in sizes.items()}, rejects)


def deepfashion_joint_files(root: Path, joints: Path | None) -> tuple[AnnotationFiles, str]:
    """Find the annotation files to read, and describe them in a sentence.

    These are `joints` if given; else the pair `*-annotation-{train,test}.csv` in the root, of two the one without
    "resize" in its name; else those that `find_annotations` finds. Raises ValueError if there are several.
    """
    found = [files for files in _split_files(root, "annotation").values() if len(files) == len(SPLITS)]
    if joints is not None or not found:
        return find_annotations(root, joints)
    taken = [files for files in found if not is_resized(files.values())] or found
    if len(taken) > 1:
        names = ", ".join(path.name for files in taken for path in files.values())
        raise ValueError(f"expected one pair of annotation files in '{root}', found {names}: take the others away.")
    joint_files = AnnotationFiles(POSE_GAN, tuple((taken[0][split], split) for split in SPLITS))
    others = [files[split].name for files in found if files is not taken[0] for split in SPLITS]
    unused = f" Also there and not used: {', '.join(others)}." if others else ""
    return joint_files, f"Joints: {joint_files}.{unused}"


def is_resized(files: Iterable[Path]) -> bool:
    """Return whether annotation files are for images cut to 176x256, by their names: `fasion-resize-annotation-...`."""
    return any("resize" in path.name for path in files)


def _split_files(root: Path, kind: str) -> dict[str, dict[str, Path]]:
    """Return the files called `<prefix>-<kind>-<split>.csv`, or without the prefix, by prefix and split."""
    found: dict[str, dict[str, Path]] = {}
    for path in visible_files(root, f"*{kind}-*.csv"):
        if match := re.fullmatch(rf"(?:(.+)-)?{kind}-({'|'.join(SPLITS)})\.csv", path.name):
            found.setdefault(match[1] or "", {})[match[2]] = path
    return found


def read_poses(joint_files: AnnotationFiles) -> NamedPoses:
    """Read the annotation files, with rejects as in `match_poses`.

    Raises ValueError if two files name the same image, or none names any, and as `read_annotations` does.
    """
    poses: dict[Name, tuple[Pose, str | None]] = {}
    rejects: list[Reject] = []
    both: list[Name] = []
    for path, split in joint_files.files:
        found, _, refused = match_poses(
            check_unit(read_annotations(path), path),
            lambda label: [name] if (name := parse_name(label)) else [],
            split=split or "train",
            file=path.name,
            unknown=f": {NO_NAME}",
        )
        both += [name for name in found if name in poses]
        poses |= {name: (pose, split) for name, pose in found.items()}
        rejects += refused
    if both:
        raise ValueError(_in_both(both, [path.name for path, _ in joint_files.files]))
    if not poses:
        raise ValueError(
            f"{joint_files} names no image of DeepFashion, but {[reject.name for reject in rejects[:3]]}. Expected "
            f"joints of {LAYOUTS}."
        )
    return NamedPoses(poses, rejects)


def read_split_lists(root: Path) -> dict[Name, str] | None:
    """Read the split of every name in `train.lst` and `test.lst`, a name a line; None if neither is there.

    Raises ValueError if one is missing, a line is not a name, or a name is in both.
    """
    paths = {split: root / f"{split}.lst" for split in SPLITS}
    there = [path for path in paths.values() if path.exists()]
    if not there:
        return None
    if len(there) < len(paths):
        raise ValueError(f"'{root}' has {there[0].name} alone; expected train.lst and test.lst, or neither of them.")
    lists: dict[str, dict[Name, None]] = {split: {} for split in SPLITS}
    for split, path in paths.items():
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            if (name := parse_name(line.strip())) is not None:
                lists[split][name] = None
            elif line.strip():
                raise ValueError(f"{path}, line {number}: expected a name of DeepFashion, found {line.strip()[:80]!r}")
    if both := [name for name in lists["train"] if name in lists["test"]]:
        raise ValueError(_in_both(both, [path.name for path in there]))
    return {name: split for split, names in lists.items() for name in names}


def _in_both(names: list[Name], files: list[str]) -> str:
    return (
        f"{len(names):,} images are in two of {', '.join(files)}, such as {', '.join(map(str, names[:3]))}. An image "
        "is for training or for testing: take them out of one of the files."
    )


def find_pair_lists(root: Path, joint_files: AnnotationFiles) -> dict[str, Path]:
    """Find the list `*-pairs-<split>.csv` of each split; of several the one with the annotation file's prefix.

    Raises ValueError if that does not decide.
    """
    prefixes = {path.name.partition("annotation-")[0] for path, _ in joint_files.files}
    lists: dict[str, Path] = {}
    for split in SPLITS:
        found = [files[split] for files in _split_files(root, "pairs").values() if split in files]
        chosen = [path for path in found if len(found) == 1 or path.name.partition("pairs-")[0] in prefixes]
        if found and len(chosen) != 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"expected one list of {split} pairs in '{root}', found {names}: take the others away.")
        if found:
            lists[split] = chosen[0]
    return lists
