"""Annotation files: telling their formats apart, finding them in a folder, matching their poses to images.

A new format is one file beside this one, with a reader that returns `Annotations`, and one row in `FORMATS`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

from posegen.data import reasons
from posegen.data.formats import Annotations, Pose, load_json
from posegen.data.formats.coco import COCO, COCO_RESULTS, is_coco, is_coco_results, read_coco, read_coco_results
from posegen.data.formats.images import ImageIndex
from posegen.data.formats.openpose import OPENPOSE, is_openpose, read_openpose
from posegen.data.formats.pg2_pickles import PEAKS, PG2_PICKLES, SUBSETS, is_peaks_file, peaks_files, read_pg2_poses
from posegen.data.formats.posegan_csv import HEADER, POSE_GAN, is_pose_gan_csv, read_pose_gan_csv
from posegen.data.listing import Reject

ImageKey = TypeVar("ImageKey", bound=Hashable)


class AnnotationFormat(NamedTuple):
    """A format of annotation files."""

    name: str
    description: str  # for messages
    matches: Callable[[Path, bytes], bool]  # by the path and the first 4,096 bytes without leading whitespace
    read: Callable[[Path], Annotations]


# The first format that matches a file is its format.
FORMATS = (
    AnnotationFormat(POSE_GAN, f"first line {HEADER}", is_pose_gan_csv, read_pose_gan_csv),
    AnnotationFormat(OPENPOSE, "a folder with a file for each image, key 'people'", is_openpose, read_openpose),
    AnnotationFormat(COCO, "keys 'images' and 'annotations'", is_coco, read_coco),
    AnnotationFormat(COCO_RESULTS, "a list with 'image_id' and 'keypoints'", is_coco_results, read_coco_results),
    AnnotationFormat(
        PG2_PICKLES, f"{PEAKS}*.p with its {SUBSETS}*.p, also in a folder PoseFiltered", is_peaks_file, read_pg2_poses
    ),
)
_UNDERSTOOD = ", ".join(f"{each.name} ({each.description})" for each in FORMATS)


class AnnotationFiles(NamedTuple):
    """Annotation files (or one folder) of one format, each with its split, or None where it has none."""

    format: str
    files: tuple[tuple[Path, str | None], ...]

    def __str__(self) -> str:
        return f"{', '.join(path.name for path, _ in self.files)} ({self.format})"


@dataclass(frozen=True)
class PosedImages:
    """Poses by image, for each split of the annotation files (None: without split), and the rejects."""

    poses: dict[str | None, dict[str, Pose]]
    rejects: list[Reject]

    @cached_property
    def names(self) -> set[str]:
        """All images that have a pose."""
        return {name for poses in self.poses.values() for name in poses}


def detect_format(path: Path) -> str | None:
    """Return the name of a file's format, by its first bytes and the keys in it; None if it is in none of `FORMATS`."""
    found = _format_of(path)
    return found.name if found else None


def _format_of(path: Path) -> AnnotationFormat | None:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((each for each in FORMATS if each.matches(path, head)), None)


def read_annotations(path: Path, layout: str | None = None) -> Annotations:
    """Read a file in any of `FORMATS`, or a folder of OpenPose's files.

    `layout` is the order of OpenPose's points ("body_18", "body_25", "body_25b"); None decides by their number.
    Raises ValueError for a file in no known format, and as the readers do.
    """
    if not path.exists():
        raise ValueError(f"joints file or folder '{path}' does not exist. Understood are: {_UNDERSTOOD}.")
    found = None if path.is_dir() else _format_of(path)
    if path.is_dir() or (found and found.name == OPENPOSE):
        return read_openpose(path, layout)
    if found:
        return found.read(path)
    if path.suffix.lower() == ".csv":
        return read_pose_gan_csv(path)  # raises for its header
    if path.suffix.lower() == ".json":
        load_json(path)  # raises if malformed
    raise ValueError(f"{path} is in no format that is understood. These are: {_UNDERSTOOD}.")


def find_annotations(root: Path, joints: Path | None) -> tuple[AnnotationFiles, str]:
    """Find the annotation files to read, and describe in a sentence which were taken and which others are there.

    A given `joints` is a file, or a folder that is searched; it may be relative to `root`. Without it the first of
    these in `root` is taken: `annotation-train.csv` and `annotation-test.csv` (also with a prefix, as pose-gan has
    it); another pose-gan CSV; a sub-folder with OpenPose's files, or `root` itself; a COCO file in `root` or
    `root/annotations`; COCO results there; PG2's pickles. Raises ValueError where there is none.
    """
    if joints is not None:
        given = _given(joints if joints.exists() else root / joints)
        return given, f"Joints: {given}, as asked for."
    found = _search(root)
    if not found:
        raise ValueError(
            f"no joints found in '{root}'. Expected one of: {_UNDERSTOOD}. Or give their file or folder (`joints`)."
        )
    note = f"Joints: {found[0]}."
    if found[1:]:
        note += f" Also there and not used: {'; '.join(map(str, found[1:]))}. Choose with `joints`."
    return found[0], note


def _given(path: Path) -> AnnotationFiles:
    if not path.is_dir():
        kind = detect_format(path) if path.is_file() else None
        return AnnotationFiles(kind or "unknown format", ((path, None),))
    found = _search(path)
    if not found:
        raise ValueError(f"no joints found in '{path}'. Expected one of: {_UNDERSTOOD}.")
    return AnnotationFiles(OPENPOSE, ((path, None),)) if found[0].format == OPENPOSE else found[0]


def _search(folder: Path) -> list[AnnotationFiles]:
    """Return all annotation files there, the preferred first."""
    halves = [(path, split) for split in ("train", "test") if (path := split_file(folder, f"annotation-{split}.csv"))]
    whole = halves if len(halves) == 2 else [(path, None) for path, _ in halves]
    found = [AnnotationFiles(POSE_GAN, tuple(whole))] if whole else []
    taken = {path for path, _ in halves}
    single = [(path, detect_format(path)) for path in sorted(folder.glob("*.csv")) if path not in taken]
    openpose = [(path, OPENPOSE) for path in _openpose_folders(folder)]
    objects = [
        (path, detect_format(path)) for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    ]
    for kind, files in ((POSE_GAN, single), (OPENPOSE, openpose), (COCO, objects), (COCO_RESULTS, objects)):
        found += [AnnotationFiles(kind, ((path, None),)) for path, name in files if name == kind]
    pickles = peaks_files(folder)
    if None in pickles or len(pickles) == 1:  # a file of all images; a single split's file is read without split, too
        found.append(AnnotationFiles(PG2_PICKLES, ((pickles.get(None) or next(iter(pickles.values())), None),)))
    elif pickles:
        found.append(AnnotationFiles(PG2_PICKLES, tuple((path, split) for split, path in pickles.items())))
    return found


def split_file(folder: Path, ending: str) -> Path | None:
    """Return the file called `ending`, or else the only one whose name ends with `-` and it, or None.

    Raises:
        ValueError: If several names end so.
    """
    if (folder / ending).exists():
        return folder / ending
    found = sorted(folder.glob(f"*-{ending}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"expected one file in '{folder}' that ends with '{ending}', found {names}: call one '{ending}'."
        )
    return found[0] if found else None


def _openpose_folders(folder: Path) -> list[Path]:
    children = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    firsts = [(child, next(child.rglob("*.json"), None)) for child in children]
    firsts.append((folder, min(folder.glob("*.json"), default=None)))
    return [parent for parent, file in firsts if file and detect_format(file) == OPENPOSE]


def pose_images(annotation_files: AnnotationFiles, images: ImageIndex, layout: str | None) -> PosedImages:
    """Read the files and match each annotation to an image, by path, name or name without suffix.

    Rejects as `match_poses` does; raises ValueError as `read_annotations` does.
    """
    poses: dict[str | None, dict[str, Pose]] = {}
    rejects: list[Reject] = []
    for path, split in annotation_files.files:
        annotations = read_annotations(path, layout)
        poses[split], refused = match_poses(annotations, images.find, split=split or "train", file=path.name)
        rejects += refused
    return PosedImages(poses, rejects)


def match_poses(
    annotations: Annotations,
    find: Callable[[str], Sequence[ImageKey]],
    *,
    split: str,
    file: str,
    unknown: str = "",
) -> tuple[dict[ImageKey, Pose], list[Reject]]:
    """Match annotations to images.

    An image that is annotated twice is rejected, since either annotation may be wrong; so is an annotation that fits
    no image, or several.

    Args:
        annotations: Poses by the names that the file uses.
        find: Returns the images that a name may mean.
        split: The split of the rejects.
        file: The annotation file's name, for the rejects.
        unknown: An addition to the rejects of names that fit no image.

    Returns:
        The pose of each image, and the rejects.
    """
    labels: dict[ImageKey, list[str]] = {}
    rejects: list[Reject] = []
    for label in (*annotations.poses, *annotations.duplicates):
        found = find(label)
        if len(found) == 1:
            labels.setdefault(found[0], []).append(label)
        else:
            fits = f", fits {', '.join(map(str, found[:3]))}: name it by its path" if found else unknown
            rejects.append(Reject(label, split, reasons.NO_IMAGE, f"named in {file}{fits}"))
    poses: dict[ImageKey, Pose] = {}
    for image, named in labels.items():
        if len(named) == 1 and named[0] in annotations.poses:
            poses[image] = annotations.poses[named[0]]
        else:
            where = annotations.duplicates.get(named[0], f"{file}: {', '.join(named)}")
            rejects.append(Reject(str(image), split, reasons.DUPLICATE, where))
    return poses, rejects
