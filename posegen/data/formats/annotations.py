"""Annotation files: telling their formats apart, finding them in a folder, matching their poses to images.

A new format is one file beside this one, with a reader that returns `Annotations`, and one row in `FORMATS`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from posegen.data.formats import (
    Annotations,
    is_hidden,
    load_json,
    visible_files,
    walk,
)
from posegen.data.formats.coco import COCO, COCO_RESULTS, is_coco, is_coco_results, read_coco, read_coco_results
from posegen.data.formats.openpose import OPENPOSE, is_openpose, read_openpose
from posegen.data.formats.per_image import (
    DRESSCODE,
    MEDIAPIPE,
    MMPOSE,
    ULTRALYTICS,
    is_dresscode,
    is_mediapipe,
    is_mmpose,
    is_ultralytics,
    read_dresscode,
    read_mediapipe,
    read_mmpose,
    read_ultralytics,
)
from posegen.data.formats.pg2_pickles import PEAKS, PG2_PICKLES, SUBSETS, is_peaks_file, peaks_files, read_pg2_poses
from posegen.data.formats.posegan_csv import HEADER, POSE_GAN, is_pose_gan_csv, read_pose_gan_csv


class AnnotationFormat(NamedTuple):
    """A format of annotation files."""

    key: str  # for `format=`
    name: str
    description: str  # for messages
    matches: Callable[[Any], bool]  # by the content of a JSON file
    read: Callable[[Path], Annotations]
    per_image: bool = False  # a folder with a file for each image


# The first format that matches a file is its format.
FORMATS = (
    AnnotationFormat("posegan_csv", POSE_GAN, f"first line {HEADER}", lambda _: False, read_pose_gan_csv),
    AnnotationFormat(
        "openpose", OPENPOSE, "a folder with a file for each image, key 'people'", is_openpose, read_openpose, True
    ),
    AnnotationFormat("coco", COCO, "keys 'images' and 'annotations'", is_coco, read_coco),
    AnnotationFormat(
        "coco_results", COCO_RESULTS, "a list with 'image_id' and 'keypoints'", is_coco_results, read_coco_results
    ),
    AnnotationFormat("mmpose", MMPOSE, "a file for each image, 'keypoint_scores'", is_mmpose, read_mmpose, True),
    AnnotationFormat("dresscode", DRESSCODE, "a file for each image, 'keypoints'", is_dresscode, read_dresscode, True),
    AnnotationFormat("mediapipe", MEDIAPIPE, "a file for each image, 33 points", is_mediapipe, read_mediapipe, True),
    AnnotationFormat(
        "ultralytics", ULTRALYTICS, "labels/*.txt, class, box, points a line", lambda _: False, read_ultralytics, True
    ),
    AnnotationFormat(
        "pg2_pickles", PG2_PICKLES, f"{PEAKS}*.p with its {SUBSETS}*.p, also in a folder PoseFiltered",
        lambda _: False, read_pg2_poses,
    ),
)  # fmt: skip
BY_KEY = {each.key: each for each in FORMATS}
BY_NAME = {each.name: each for each in FORMATS}
_UNDERSTOOD = ", ".join(f"{each.name} ({each.description})" for each in FORMATS)


class AnnotationFiles(NamedTuple):
    """Annotation files (or one folder) of one format, each with its split, or None where it has none."""

    format: str
    files: tuple[tuple[Path, str | None], ...]

    def __str__(self) -> str:
        return f"{', '.join(path.name for path, _ in self.files)} ({self.format})"


def detect_format(path: Path) -> str | None:
    """Return the name of a file's format, by its structure; None if it is in none of `FORMATS`."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if is_pose_gan_csv(head):
        return POSE_GAN
    if is_peaks_file(path, head):
        return PG2_PICKLES
    if path.suffix == ".txt" and is_ultralytics(head):
        return ULTRALYTICS
    if head[:1] not in (b"{", b"["):
        return None
    try:
        content = load_json(path)
    except ValueError:
        return None
    return next((each.name for each in FORMATS if each.matches(content)), None)


def read_annotations(path: Path, layout: str | None = None, *, format: str | None = None) -> Annotations:
    """Read a file in any of `FORMATS`, or a folder of those that have a file for each image.

    Args:
        path: The file or folder.
        layout: The order of OpenPose's points ("body_18", "body_25", "body_25b"); None decides by their number.
        format: A key of `FORMATS`; None decides by the structure of the file, or of the first in the folder.

    Raises:
        ValueError: For a file in no known format, and as the readers do.
    """
    if not path.exists():
        raise ValueError(f"joints file or folder '{path}' does not exist. Understood are: {_UNDERSTOOD}.")
    name = BY_KEY[format].name if format else _folder_format(path) if path.is_dir() else detect_format(path)
    if name is None and path.is_dir():
        name = OPENPOSE  # raises for its files
    if name is None:
        if path.suffix.lower() == ".csv":
            name = POSE_GAN  # raises for its header
        if path.suffix.lower() == ".json":
            load_json(path)  # raises if malformed
    if name is None:
        raise ValueError(f"{path} is in no format that is understood. These are: {_UNDERSTOOD}.")
    return read_openpose(path, layout) if name == OPENPOSE else BY_NAME[name].read(path)


def _folder_format(folder: Path) -> str | None:
    """Return the format of the first annotation file in a folder or below it, of those with a file for each image."""
    first = next((file for file in walk(folder) if file.suffix.lower() in (".json", ".txt")), None)
    name = detect_format(first) if first else None
    return name if name and BY_NAME[name].per_image else None


def find_annotations(root: Path, joints: Path | None, format: str | None = None) -> tuple[AnnotationFiles, str]:
    """Find the annotation files to read, and describe in a sentence which were taken and which others are there.

    A given `joints` is a file, or a folder that is searched; it may be relative to `root`. Without it the first of
    these in `root` is taken: `annotation-train.csv` and `annotation-test.csv` (also with a prefix, as pose-gan has
    it); another pose-gan CSV; a sub-folder with a file for each image, or `root` itself; COCO files in `root`, in
    `root/annotations` or in `root/train`, `valid` and `test`, by split where they are for several; COCO results; PG2's
    pickles. With a `format`, a key of `FORMATS`, others are not looked at. Raises ValueError where there is none.
    """
    name = BY_KEY[format].name if format else None
    if joints is not None:
        given = _given(joints if joints.exists() else root / joints, name)
        return given, f"Joints: {given}, as asked for."
    found = [files for files in _search(root) if name in (None, files.format)]
    if not found:
        raise ValueError(
            f"no joints found in '{root}'. Expected one of: {_UNDERSTOOD}. Or give their file or folder (`joints`)."
            + _there(root)
        )
    note = f"Joints: {found[0]}."
    if found[1:]:
        note += f" Also there and not used: {'; '.join(map(str, found[1:]))}. Choose with `joints`."
    return found[0], note


def _there(folder: Path) -> str:
    """Describe files that might be annotations, with their first lines."""
    files = [file for ending in ("csv", "json", "txt", "p") for file in visible_files(folder, f"*.{ending}")][:3]
    lines = []
    for file in files:
        with file.open("rb") as opened:
            first = opened.read(200).removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0]
        lines.append(f" {file.name} is there, its first line is {first.decode(errors='replace').strip()[:80]!r}.")
    return "".join(lines)


def _given(path: Path, name: str | None) -> AnnotationFiles:
    if not path.is_dir():
        kind = name or (detect_format(path) if path.is_file() else None)
        return AnnotationFiles(kind or "unknown format", ((path, None),))
    if name and BY_NAME[name].per_image:
        return AnnotationFiles(name, ((path, None),))
    found = [files for files in _search(path) if name in (None, files.format)]
    if not found:
        raise ValueError(f"no joints found in '{path}'. Expected one of: {_UNDERSTOOD}.{_there(path)}")
    return AnnotationFiles(found[0].format, ((path, None),)) if BY_NAME[found[0].format].per_image else found[0]


def _search(folder: Path) -> list[AnnotationFiles]:
    """Return all annotation files there, the preferred first."""
    halves = [(path, split) for split in ("train", "test") if (path := split_file(folder, f"annotation-{split}.csv"))]
    whole = halves if len(halves) == 2 else [(path, None) for path, _ in halves]
    found = [AnnotationFiles(POSE_GAN, tuple(whole))] if whole else []
    taken = {path for path, _ in halves}
    single = [(path, detect_format(path)) for path in visible_files(folder, "*.csv") if path not in taken]
    children = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    folders = [(path, _folder_format(path)) for path in children]
    tops = [file for ending in ("json", "txt") for file in visible_files(folder, f"*.{ending}")]
    own = [kind for file in tops[:1] if (kind := detect_format(file)) and BY_NAME[kind].per_image]
    folders += [(folder, kind) for kind in own]
    patterns = ("*.json", "annotations/*.json", *(f"{split}/*.json" for split in _SPLITS))
    objects = [(path, detect_format(path)) for pattern in patterns for path in visible_files(folder, pattern)]
    found += [AnnotationFiles(POSE_GAN, ((path, None),)) for path, name in single if name == POSE_GAN]
    for each in FORMATS:
        if each.per_image:
            found += [AnnotationFiles(each.name, _by_split(path)) for path, name in folders if name == each.name]
    for kind in (COCO, COCO_RESULTS):
        found += _halves(kind, [path for path, name in objects if name == kind])
    pickles = peaks_files(folder)
    if None in pickles or len(pickles) == 1:  # a file of all images; a single split's file is read without split, too
        found.append(AnnotationFiles(PG2_PICKLES, ((pickles.get(None) or next(iter(pickles.values())), None),)))
    elif pickles:
        found.append(AnnotationFiles(PG2_PICKLES, tuple((path, split) for split, path in pickles.items())))
    return found


_SPLITS = {"train": "train", "test": "test", "val": "", "valid": "", "validation": ""}


def _split_of(words: str) -> str | None:
    """Return the word of a split that a name contains ("person_keypoints_train2017": "train"), or None."""
    named = [word for word in re.split(r"[^a-z]+", words.lower()) if word in _SPLITS]
    return named[0] if len(named) == 1 else None


def _halves(kind: str, paths: list[Path]) -> list[AnnotationFiles]:
    """Return one file each, or one pair of files for training and testing where all names tell their split.

    A validation file is for testing where there is none for that, else for training (our choice).
    """
    words = [_split_of(path.stem) or _split_of(path.parent.name) for path in paths]
    if len(paths) < 2 or None in words or len(set(words)) < len(words) or "train" not in words:
        return [AnnotationFiles(kind, ((path, None),)) for path in paths]
    validation = "train" if "test" in words else "test"
    return [AnnotationFiles(kind, tuple((p, _SPLITS[w] or validation) for p, w in zip(paths, words, strict=True) if w))]


def _by_split(folder: Path) -> tuple[tuple[Path, str | None], ...]:
    """Return a folder of annotations, or its folders for training and testing."""
    children = {path.name: path for path in folder.iterdir() if path.is_dir() and path.name in _SPLITS}
    loose = any(path.is_file() and not is_hidden(path.name) for path in folder.iterdir())
    if loose or "train" not in children or len(children) < 2:
        return ((folder, None),)
    validation = "train" if "test" in children else "test"
    return tuple((path, _SPLITS[name] or validation) for name, path in sorted(children.items()))


def split_file(folder: Path, ending: str) -> Path | None:
    """Return the file called `ending`, or else the only one whose name ends with `-` and it, or None.

    Raises:
        ValueError: If several names end so.
    """
    if (folder / ending).exists():
        return folder / ending
    found = visible_files(folder, f"*-{ending}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"expected one file in '{folder}' that ends with '{ending}', found {names}: call one '{ending}'."
        )
    return found[0] if found else None
