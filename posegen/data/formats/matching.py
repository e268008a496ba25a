"""Matching annotations to images on disk, and their joints to the pixels of these."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from posegen.data import reasons
from posegen.data.formats import MISSING, PIXELS, Annotations, Pose, Size, check_unit, same_pose, to_pixels
from posegen.data.formats.annotations import BY_NAME, AnnotationFiles, read_annotations
from posegen.data.formats.images import ImageIndex, image_size
from posegen.data.formats.per_image import DRESSCODE, DRESSCODE_SIZE
from posegen.data.listing import Reject

ImageKey = TypeVar("ImageKey", bound=Hashable)
ASPECT = 0.02  # least relative difference of two shapes; less is rounding


@dataclass(frozen=True)
class PosedImages:
    """Poses by image, for each split of the annotation files (None: without split), and the rejects."""

    poses: dict[str | None, dict[str, Pose]]
    rejects: list[Reject]
    notes: tuple[str, ...] = ()

    @cached_property
    def names(self) -> set[str]:
        """All images that have a pose."""
        return {name for poses in self.poses.values() for name in poses}


def pose_images(
    annotation_files: AnnotationFiles,
    images: ImageIndex,
    layout: str | None,
    *,
    folder: Path,
    unit: str | None = None,
) -> PosedImages:
    """Read the files and match each annotation to an image, by path, name or name without suffix.

    Joints are brought to pixels of the image on disk: from fractions, and from the size that a file gives.

    Args:
        annotation_files: The files of one format.
        images: The images by name, as paths in `folder`.
        layout: As for `read_annotations`.
        folder: The images' folder.
        unit: One of `UNITS`; None takes the format's own, and refuses pixels that look like fractions.

    Raises:
        ValueError: As `read_annotations` does, and where images have another shape than their file says.
    """
    poses: dict[str | None, dict[str, Pose]] = {}
    rejects: list[Reject] = []
    notes: tuple[str, ...] = ()
    key = BY_NAME[annotation_files.format].key if annotation_files.format in BY_NAME else None
    for path, split in annotation_files.files:
        annotations = read_annotations(path, layout, format=key)
        annotations = replace(annotations, unit=unit) if unit else check_unit(annotations, path, settable=True)

        def find(label: str, path: Path = path) -> Sequence[str]:
            beside = (path.parent / label).absolute()
            inside = beside.relative_to(folder).as_posix() if beside.is_relative_to(folder) else ""
            return [inside] if inside and images.has(inside) else images.find(label)

        if annotations.format == DRESSCODE:
            # An image x_0 has the annotation x_2.
            names = {name: name if find(name) else re.sub(r"_2$", "_0", name) for name in annotations.poses}
            annotations = replace(annotations, poses={names[name]: pose for name, pose in annotations.poses.items()})
        matched, labels, refused = match_poses(annotations, find, split=split or "train", file=path.name)
        fitted, note, misfits = _in_pixels(annotations, matched, labels, folder, split or "train")
        poses[split] = (poses.get(split) or {}) | fitted
        rejects += refused + misfits
        notes += annotations.notes + note
    return PosedImages(poses, rejects, notes)


def _in_pixels(
    annotations: Annotations, poses: dict[str, Pose], labels: Mapping[str, str], folder: Path, split: str
) -> tuple[dict[str, Pose], tuple[str, ...], list[Reject]]:
    """Bring poses to pixels of their images; return them, notes, and rejects of images of another shape."""
    dresscode = annotations.format == DRESSCODE
    if annotations.unit == PIXELS and not annotations.sizes and not dresscode:
        return poses, (), []
    fitted, rejects = dict(poses), []
    scaled: list[str] = []
    for image, pose in poses.items():
        size = image_size(folder / image)
        if size is None:
            continue  # rejected when it is decoded
        own = Size(size[1], size[0])
        given = annotations.sizes.get(labels[image], own)
        if dresscode and abs(own.width / own.height - DRESSCODE_SIZE[0] / DRESSCODE_SIZE[1]) < ASPECT:
            given = Size(*DRESSCODE_SIZE)
        factors = np.array([own.width / given.width, own.height / given.height], np.float32)
        rounding = 1 / min(own.width, own.height, given.width, given.height)
        if abs(factors[0] / factors[1] - 1) > max(ASPECT, rounding):
            rejects.append(Reject(image, split, reasons.OTHER_SHAPE, f"annotated for {given}, the image is {own}"))
            del fitted[image]
            continue
        if given != own:
            scaled.append(f"'{image}' is {own}, annotated for {given}")
        if given != own or annotations.unit != PIXELS:
            joints = to_pixels(pose.joints, annotations.unit, given) * factors
            fitted[image] = Pose(np.where(pose.visible[:, None], joints, MISSING).astype(np.float32), pose.visible)
    if len(rejects) > len(poses) / 10:
        raise ValueError(
            f"{len(rejects):,} of {len(poses):,} images have another shape than their annotation says, for example "
            f"'{rejects[0].name}': {rejects[0].detail} (width x height). Annotate these images, or give the images "
            "that were annotated."
        )
    notes = [f"Joints are given as {annotations.unit} of the image."] if annotations.unit != PIXELS else []
    if scaled:
        notes.append(f"Joints of {len(scaled):,} images are scaled with them: {scaled[0]}, for example.")
    return fitted, tuple(notes), rejects


def mismatches(rejects: Iterable[Reject], images: Sequence[str]) -> str:
    """Describe in a sentence how many annotations fit no image or several, with an example of both sides; or ""."""
    lost = [reject for reject in rejects if reject.reason == reasons.NO_IMAGE]
    several = [reject for reject in lost if ", fits " in reject.detail]
    none = len(lost) - len(several)
    parts = []
    if none:
        first = next(reject.name for reject in lost if ", fits " not in reject.detail)
        parts.append(f"{none:,} names fit no image ('{first}', and images are {', '.join(map(repr, images[:3]))})")
    if several:
        parts.append(f"{len(several):,} fit several ('{several[0].name}' is {several[0].detail})")
    return f"Of the annotations, {' and '.join(parts)}." if parts else ""


def match_poses(
    annotations: Annotations,
    find: Callable[[str], Sequence[ImageKey]],
    *,
    split: str,
    file: str,
    unknown: str = "",
) -> tuple[dict[ImageKey, Pose], dict[ImageKey, str], list[Reject]]:
    """Match annotations to images.

    An image that is annotated twice with different joints is rejected, since either may be wrong; so is an annotation
    that fits no image, or several.

    Args:
        annotations: Poses by the names that the file uses.
        find: Returns the images that a name may mean.
        split: The split of the rejects.
        file: The annotation file's name, for the rejects.
        unknown: An addition to the rejects of names that fit no image.

    Returns:
        The pose of each image, its label, and the rejects.
    """
    labels: dict[ImageKey, list[str]] = {}
    rejects: list[Reject] = []
    for label in (*annotations.poses, *annotations.duplicates):
        found = find(label)
        if len(found) == 1:
            labels.setdefault(found[0], []).append(label)
        else:
            fits = f", fits {', '.join(map(str, found[:3]))}: name it by its path" if found else unknown
            rejects.append(Reject(printable(label), split, reasons.NO_IMAGE, f"named in {file}{fits}"))
    poses: dict[ImageKey, Pose] = {}
    for image, named in labels.items():
        given = [annotations.poses.get(name) for name in named]
        first = given[0]
        if first is not None and all(pose is not None and same_pose(pose, first) for pose in given):
            poses[image] = first
        else:
            where = annotations.duplicates.get(named[0], f"{file}: {', '.join(named)}")
            rejects.append(Reject(str(image), split, reasons.DUPLICATE, where))
    return poses, {image: labels[image][0] for image in poses}, rejects


def printable(name: str) -> str:
    """Return a file name with the bytes that are no UTF-8 escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
