"""Finding a folder's annotation files, and giving every image the pose that its annotations mean."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from posegen.data import reasons
from posegen.data.formats.images import ImageIndex
from posegen.data.formats.keypoint_files import (
    COCO,
    COCO_RESULTS,
    FORMATS,
    OPENPOSE,
    POSE_GAN,
    Annotations,
    Pose,
    detect_format,
    read_annotations,
)
from posegen.data.formats.pg2_pickles import PEAKS, PG2_PICKLES, SUBSETS, is_peaks_file, peaks_files, read_pg2_poses
from posegen.data.listing import Reject

_UNDERSTOOD = f"{FORMATS}, {PG2_PICKLES} ({PEAKS}*.p with its {SUBSETS}*.p, also in a folder PoseFiltered)"


class JointFiles(NamedTuple):
    """Annotation files (or one folder) of one format, each with the split that it stands for, if it does."""

    format: str
    files: tuple[tuple[Path, str | None], ...]

    def __str__(self) -> str:
        return f"{', '.join(path.name for path, _ in self.files)} ({self.format})"


@dataclass(frozen=True)
class PosedImages:
    """Poses by split of the annotation file (None: it stands for none) and image, and what did not fit together."""

    poses: dict[str | None, dict[str, Pose]]
    rejects: list[Reject]

    @cached_property
    def names(self) -> set[str]:
        """All images that have a pose."""
        return {name for poses in self.poses.values() for name in poses}


def find_joint_files(root: Path, joints: Path | None) -> tuple[JointFiles, str]:
    """The annotation files to read, and a sentence that says which were taken and which others are there.

    A given `joints` is a file, or a folder that is searched; it may be relative to `root`. Without it the first of
    these in `root` is taken: `annotation-train.csv` and `annotation-test.csv` (also with something before the names, as
    pose-gan has it); another pose-gan CSV; a sub-folder with OpenPose's files, or `root` itself; a COCO file in `root`
    or `root/annotations`; COCO results there; PG2's pickles. Raises ValueError where there is none.
    """
    if joints is not None:
        given = joints if joints.exists() else root / joints
        return _given(given), f"Joints: {_given(given)}, as asked for."
    found = _found(root)
    if not found:
        raise ValueError(
            f"no joints found in '{root}'. Expected one of: {_UNDERSTOOD}. Or say where they are (`joints`)."
        )
    note = f"Joints: {found[0]}."
    if found[1:]:
        note += f" Also there and not used: {'; '.join(map(str, found[1:]))}. Choose with `joints`."
    return found[0], note


def _given(path: Path) -> JointFiles:
    if not path.is_dir():
        kind = _file_format(path) if path.is_file() else None
        return JointFiles(kind or "unknown format", ((path, None),))
    found = _found(path)
    if not found:
        raise ValueError(f"no joints found in '{path}'. Expected one of: {_UNDERSTOOD}.")
    return JointFiles(OPENPOSE, ((path, None),)) if found[0].format == OPENPOSE else found[0]


def _found(folder: Path) -> list[JointFiles]:
    """Everything there, the preferred first."""
    halves = [(path, split) for split in ("train", "test") if (path := split_file(folder, f"annotation-{split}.csv"))]
    whole = halves if len(halves) == 2 else [(path, None) for path, _ in halves]
    found = [JointFiles(POSE_GAN, tuple(whole))] if whole else []
    taken = {path for path, _ in halves}
    others = [path for path in sorted(folder.glob("*.csv")) if path not in taken and detect_format(path) == POSE_GAN]
    found += [JointFiles(POSE_GAN, ((path, None),)) for path in others]
    found += [JointFiles(OPENPOSE, ((path, None),)) for path in _openpose_folders(folder)]
    objects = {
        path: detect_format(path) for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    }
    for kind in (COCO, COCO_RESULTS):
        found += [JointFiles(kind, ((path, None),)) for path, format in objects.items() if format == kind]
    return found + _pg2_pickles(folder)


def _pg2_pickles(folder: Path) -> list[JointFiles]:
    """A file for all images, or those of both splits; one of a split alone stands for none, as with the others."""
    files = peaks_files(folder)
    if None in files:
        return [JointFiles(PG2_PICKLES, ((files[None], None),))]
    if len(files) == 1:
        return [JointFiles(PG2_PICKLES, ((path, None),)) for path in files.values()]
    return [JointFiles(PG2_PICKLES, tuple((path, split) for split, path in files.items()))] if files else []


def _file_format(path: Path) -> str | None:
    return PG2_PICKLES if is_peaks_file(path) else detect_format(path)


def split_file(folder: Path, ending: str) -> Path | None:
    """The file called `ending`, or else the one whose name ends with `-` and it. Raises ValueError where several do."""
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
    found = [child for child in children if _is_openpose(next(child.rglob("*.json"), None))]
    return [*found, folder] if _is_openpose(min(folder.glob("*.json"), default=None)) else found


def _is_openpose(file: Path | None) -> bool:
    return file is not None and detect_format(file) == OPENPOSE


def pose_images(joint_files: JointFiles, images: ImageIndex, layout: str | None) -> PosedImages:
    """Reads the files and finds the image of each annotation, by path, name or name without suffix.

    An image that a file names twice is rejected, since nothing says which annotation is right; so is an annotation
    that fits no image, or several. Raises ValueError as `read_annotations` and `read_pg2_poses` do.
    """
    poses: dict[str | None, dict[str, Pose]] = {}
    rejects: list[Reject] = []
    for path, split in joint_files.files:
        annotations = read_pg2_poses(path) if joint_files.format == PG2_PICKLES else read_annotations(path, layout)
        poses[split], refused = _match(annotations, images, split or "train", path.name)
        rejects += refused
    return PosedImages(poses, rejects)


def _match(annotations: Annotations, images: ImageIndex, split: str, file: str) -> tuple[dict[str, Pose], list[Reject]]:
    labels: dict[str, list[str]] = {}  # of each image
    rejects: list[Reject] = []
    for label in (*annotations.poses, *annotations.duplicates):
        found = images.find(label)
        if len(found) == 1:
            labels.setdefault(found[0], []).append(label)
        else:
            fits = f", fits {', '.join(found[:3])}: name it by its path" if found else ""
            rejects.append(Reject(label, split, reasons.NO_IMAGE, f"named in {file}{fits}"))
    poses: dict[str, Pose] = {}
    for name, named in labels.items():
        if len(named) == 1 and named[0] in annotations.poses:
            poses[name] = annotations.poses[named[0]]
        else:
            where = annotations.duplicates.get(named[0], f"{file}: {', '.join(named)}")
            rejects.append(Reject(name, split, reasons.DUPLICATE, where))
    return poses, rejects
