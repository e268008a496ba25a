"""The files of a DeepFashion folder (Liu et al. 2016): images, annotations, split lists and pair lists.

In-shop images are named in three spellings:

- official: `img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg`
- pose-gan (Deformable GAN, its split_fasion_dataset.py; "fasion" is its spelling), without the category's underscores:
  `fasionWOMENBlousesShirtsid0000000102_1front.jpg`
- PATN (its train.lst and test.lst), which keeps them: `fashionWOMENBlouses_Shirtsid0000000102_1front.jpg`
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from posegen.data import reasons
from posegen.data.formats import Pose
from posegen.data.formats import visible_files
from posegen.data.formats.annotations import AnnotationFiles, find_annotations, read_annotations
from posegen.data.formats.images import READABLE, folder_names, image_sizes
from posegen.data.formats.matching import match_poses
from posegen.data.formats.posegan_csv import POSE_GAN
from posegen.data.listing import Reject
from posegen.data.sources.splits import SPLITS

NO_NAME = "no DeepFashion name"

LAYOUTS = (
    "'img' as DeepFashion has it (img/WOMEN/Dresses/id_00000002/02_1_front.jpg), or images called "
    "fasionWOMENDressesid0000000202_1front.jpg (pose-gan) or fashionWOMENDressesid0000000202_1front.jpg (PATN)"
)
ANNOTATIONS = (
    "fasion-annotation-train.csv and fasion-annotation-test.csv (pose-gan), or fasion-resize-annotation-train.csv and "
    "fasion-resize-annotation-test.csv (PATN)"
)
FLAT = "flat"  # the view of a garment without a person

_OFFICIAL = re.compile(r"(?:.*/)?(WOMEN|MEN)/([A-Za-z_]+)/id_(\d{8})/(\d{2})_(\d+)_([a-z]+)(?:\.\w+)?")
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
        return self.official()

    def official(self) -> str:
        """Return `WOMEN/Blouses_Shirts/id_00000001/02_1_front`."""
        category = _NEXT_WORD.sub("_", self.category)
        return f"{self.gender}/{category}/id_{self.item}/{self.colour}_{self.number}_{self.view}"

    def pose_gan(self) -> str:
        """Return `fasionWOMENBlousesShirtsid0000000102_1front`."""
        return f"fasion{self.gender}{self.category}id{self.clothes}_{self.number}{self.view}"

    def patn(self) -> str:
        """Return `fashionWOMENBlouses_Shirtsid0000000102_1front`."""
        category = _NEXT_WORD.sub("_", self.category)
        return f"fashion{self.gender}{category}id{self.clothes}_{self.number}{self.view}"


def parse_name(text: str) -> Name | None:
    """Parse a path or name in any spelling, with or without a suffix; None if it is no DeepFashion name.

    Anything before the name in a path is ignored.
    """
    path = text.replace("\\", "/")
    found = _OFFICIAL.fullmatch(path) or _RENAMED.fullmatch(path)
    if found is None:
        return None
    gender, category, item, colour, number, view = found.groups()
    return Name(gender, category.replace("_", ""), item, colour, int(number), view)


@dataclass(frozen=True)
class ImagePaths:
    """The path of each image, the files' sizes in bytes by path, and rejects."""

    paths: dict[Name, Path]
    sizes: dict[str, int]
    rejects: list[Reject]


@dataclass(frozen=True)
class NamedPoses:
    """Poses with the split of their file (None: without split), in file order, and rejects."""

    poses: dict[Name, tuple[Pose, str | None]]
    rejects: list[Reject]


def find_images(root: Path) -> ImagePaths:
    """Find the images in `root/img`, else in `root/train` and `root/test`, else anywhere below `root`.

    An image found in several folders is rejected, and so is a name in none of the spellings. Raises ValueError if no
    image is left.
    """
    if not root.is_dir():
        raise ValueError(f"DeepFashion root '{root}' is not a folder. Expected one with {LAYOUTS}; and {ANNOTATIONS}.")
    sizes = {folder / path: size for folder in _folders(root) for path, size in image_sizes(folder, READABLE).items()}
    found: dict[Name, list[Path]] = {}
    rejects = []
    for path in sizes:
        if name := parse_name(path.as_posix()):
            found.setdefault(name, []).append(path)
        else:
            rejects.append(Reject(path.relative_to(root.absolute()).as_posix(), "train", NO_NAME))
    _check_found(root, list(sizes), found)
    rejects += [
        Reject(name.official(), "train", reasons.DUPLICATE, ", ".join(map(str, paths)))
        for name, paths in found.items()
        if len(paths) > 1
    ]
    paths = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
    return ImagePaths(paths, {str(path): size for path, size in sizes.items()}, rejects)


def _folders(root: Path) -> list[Path]:
    if (root / "img").is_dir():
        return [(root / "img").absolute()]
    halves = [(root / split).absolute() for split in SPLITS]
    return halves if all(half.is_dir() for half in halves) else [root.absolute()]


def _check_found(root: Path, files: list[Path], found: Mapping[Name, list[Path]]) -> None:
    if not files:
        raise ValueError(
            f"DeepFashion root '{root}' holds no image; there is {folder_names(root)}. Expected {LAYOUTS}; and "
            f"{ANNOTATIONS}."
        )
    if not found:
        names = [path.relative_to(root.absolute()).as_posix() for path in files[:3]]
        raise ValueError(
            f"none of the {len(files):,} images in '{root}' has a DeepFashion name; they are called {names}. "
            f"Expected {LAYOUTS}. Images with names of their own are a folder (--dataset folder)."
        )
    if all(len(paths) > 1 for paths in found.values()):
        twice = [str(path) for path in next(iter(found.values()))]
        raise ValueError(
            f"every image in '{root}' lies there more than once, such as {', '.join(twice)}: keep one folder of "
            "images below the root, or call the two that are meant 'train' and 'test'."
        )


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

    def find(label: str) -> list[Name]:
        name = parse_name(label)
        return [name] if name else []

    poses: dict[Name, tuple[Pose, str | None]] = {}
    rejects: list[Reject] = []
    both: list[Name] = []
    for path, split in joint_files.files:
        found, refused = match_poses(
            read_annotations(path), find, split=split or "train", file=path.name, unknown=f": {NO_NAME}"
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
    lists = {split: _read_list(path) for split, path in paths.items()}
    if both := [name for name in lists["train"] if name in lists["test"]]:
        raise ValueError(_in_both(both, [path.name for path in there]))
    return {name: split for split, names in lists.items() for name in names}


def _read_list(path: Path) -> dict[Name, None]:
    names: dict[Name, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            if (name := parse_name(line.strip())) is None:
                raise ValueError(f"{path}, line {number}: expected a name of DeepFashion, found {line.strip()[:80]!r}")
            names[name] = None
    return names


def _in_both(names: Collection[Name], files: list[str]) -> str:
    first = ", ".join(name.official() for name in list(names)[:3])
    return (
        f"{len(names):,} images are in two of {', '.join(files)}, such as {first}. An image is for training or for "
        "testing: take them out of one of the files."
    )


def find_pair_lists(root: Path, joint_files: AnnotationFiles) -> dict[str, Path]:
    """Find the list `*-pairs-<split>.csv` of each split; of several the one with the annotation file's prefix.

    Raises ValueError if that does not decide.
    """
    prefixes = {path.name.partition("annotation-")[0] for path, _ in joint_files.files}
    lists: dict[str, Path] = {}
    for split in SPLITS:
        found = [files[split] for files in _split_files(root, "pairs").values() if split in files]
        chosen = [path for path in found if path.name.partition("pairs-")[0] in prefixes] if len(found) > 1 else found
        if len(found) > 1 and len(chosen) != 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"expected one list of {split} pairs in '{root}', found {names}: take the others away.")
        if found:
            lists[split] = chosen[0]
    return lists
