"""Files of one image each that pose estimators other than OpenPose write: mmpose, DressCode, MediaPipe, Ultralytics.

Each reader takes a folder, with its sub-folders, or a single file. The image's name is the file's path in the folder
without the suffix. Of several people the one with the highest sum of confidences is taken.
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from posegen.data.formats import (
    FRACTION,
    NOBODY,
    PIXELS,
    Annotations,
    Pose,
    collect_poses,
    confident_pose,
    load_json,
    parse_points,
    read_text,
    visible_files,
    visible_json,
    walk,
)
from posegen.data.formats.openpose import most_confident
from posegen.data.geometry.joints import LAYOUT_OF, Layout, from_layout, layout_by_names

MMPOSE, DRESSCODE = "mmpose predictions JSON", "DressCode keypoints JSON"
MEDIAPIPE, ULTRALYTICS = "MediaPipe landmarks JSON", "Ultralytics pose labels"
DRESSCODE_SIZE = (384, 512)  # width and height for which DressCode gives its keypoints
_LANDMARKS = ("pose_landmarks", "poseLandmarks", "landmarks", "landmark")
_MANY = tuple(count for count in LAYOUT_OF if count != 25)


def _named_files(path: Path, files: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return the image's name and the file, for each in a folder, or for a single file."""
    if path.is_file():
        return [(path.stem, path)]
    return [(file.relative_to(path).as_posix().removesuffix(file.suffix), file) for file in files]


def _instances(content: Any) -> list[Any] | None:
    """Return mmpose's instances: the list itself, its only element, or `instance_info`; None if there are none."""
    if isinstance(content, dict):
        content = content.get("instance_info")
    while isinstance(content, list) and len(content) == 1 and isinstance(content[0], list):
        content = content[0]
    if not isinstance(content, list) or not all(isinstance(each, dict) and "keypoints" in each for each in content):
        return None
    return content


def is_mmpose(content: Any) -> bool:
    """Return whether the content of a JSON file is that of mmpose's inferencer for one image."""
    instances = _instances(content)
    return bool(instances) and "keypoint_scores" in instances[0]


def read_mmpose(path: Path) -> Annotations:
    """Read the predictions of mmpose's inferencer: `keypoints` [[x, y], ...] and `keypoint_scores` of each instance.

    Points are named by `meta_info`, where the file has it, or else told by their number (17, 26, 133 ...). Raises
    ValueError for malformed files.
    """
    return collect_poses(
        MMPOSE, ((name, str(file), _mmpose_pose(file)) for name, file in _named_files(path, visible_json(path)))
    )


def _mmpose_pose(file: Path) -> Pose:
    content = load_json(file)
    instances = _instances(content)
    if instances is None:
        raise ValueError(f"{file}: expected mmpose's predictions, a list of objects with 'keypoints'")
    names = content.get("meta_info", {}).get("keypoint_id2name", {}) if isinstance(content, dict) else {}
    layout = layout_by_names(list(names.values()))[0] if names else None
    people = []
    for number, person in enumerate(instances):
        points, scores = person["keypoints"], person.get("keypoint_scores")
        if isinstance(points, list) and isinstance(scores, list) and len(points) == len(scores):
            points = [[*point[:2], score] for point, score in zip(points, scores, strict=True)]
        people.append(parse_points(points, [layout.points] if layout else _MANY, f"{file}[{number}].keypoints"))
    if layout is None:
        return most_confident(people)
    best = max((from_layout(points, layout) for points in people), key=lambda each: each[1].sum(), default=None)
    return NOBODY if best is None else confident_pose(*best)


def is_dresscode(content: Any) -> bool:
    """Return whether the content of a JSON file is that of DressCode: one list of 18 points of 4 numbers."""
    points = content.get("keypoints") if isinstance(content, dict) else None
    return isinstance(points, list) and bool(points) and all(isinstance(p, list) and len(p) in (3, 4) for p in points)


def read_dresscode(path: Path) -> Annotations:
    """Read DressCode's `keypoints`: 18 points (x, y, confidence, index) in the order of OpenPose.

    Its images end with `_0` and its files with `_2`. Raises ValueError for malformed files.
    """
    return collect_poses(
        DRESSCODE, ((name, str(file), _dresscode_pose(file)) for name, file in _named_files(path, visible_json(path)))
    )


def _dresscode_pose(file: Path) -> Pose:
    content = load_json(file)
    if not is_dresscode(content):
        raise ValueError(f"{file}: expected DressCode's object with the list 'keypoints' of 18 points")
    points = parse_points(content["keypoints"], [18], f"{file}: keypoints")
    points[(points[:, :2] < 0).any(axis=1), 2] = 0  # -1 is a missing joint
    return confident_pose(points[:, :2], points[:, 2])


def _landmark_people(content: Any) -> list[list[Any]] | None:
    """Return MediaPipe's people, each a list of 33 objects with x and y; None if the content is another."""
    for _ in range(3):
        if isinstance(content, dict):
            content = next((content[key] for key in _LANDMARKS if key in content), None)
    if not isinstance(content, list):
        return None
    people = content if content and isinstance(content[0], list) else [content]
    whole = all(
        len(person) == 33 and all(isinstance(p, dict) and {"x", "y"} <= set(p) for p in person) for person in people
    )
    return people if whole else [] if content == [] else None


def is_mediapipe(content: Any) -> bool:
    """Return whether the content of a JSON file is MediaPipe's 33 landmarks of BlazePose."""
    return bool(_landmark_people(content))


def read_mediapipe(path: Path) -> Annotations:
    """Read MediaPipe's 33 pose landmarks: objects with x, y (fractions of the image) and visibility.

    Coordinates are in pixels if any is above 2. Raises ValueError for malformed files.
    """
    found = [(name, str(file), _mediapipe_people(file)) for name, file in _named_files(path, visible_json(path))]
    tiny = all((abs(points[:, :2]) <= 2).all() for _, _, people in found for points in people)
    unit = FRACTION if tiny and any(people for *_, people in found) else PIXELS
    return collect_poses(MEDIAPIPE, ((name, where, most_confident(people)) for name, where, people in found), unit=unit)


def _mediapipe_people(file: Path) -> list[np.ndarray]:
    people = _landmark_people(load_json(file))
    if people is None:
        raise ValueError(f"{file}: expected MediaPipe's list of 33 landmarks with x and y")
    return [
        parse_points([[p["x"], p["y"], p.get("visibility", 1)] for p in person], [33], f"{file}[{number}]")
        for number, person in enumerate(people)
    ]


def is_ultralytics(head: bytes) -> bool:
    """Return whether a text file begins with a pose label of Ultralytics: class, box, and 2 or 3 numbers a point."""
    words = head.split(b"\n", 1)[0].split()
    return len(words) >= 5 + 2 * 17 and re.fullmatch(rb"\d+( -?[\d.]+(e-?\d+)?)+", b" ".join(words)) is not None


def read_ultralytics(path: Path) -> Annotations:
    """Read Ultralytics' pose labels, `class x y width height x1 y1 [v1] x2 ...` a line, fractions of the image.

    Names and number of the points are those of the `data.yaml` above (`kpt_names`, `kpt_shape`), else told by their
    number. The largest box is taken. Raises ValueError for malformed lines.
    """
    files = _named_files(
        path, [file for file in walk(path) if file.suffix == ".txt" and not file.name.startswith("classes")]
    )
    layout, dims = _described_points(path)
    read = partial(_ultralytics_pose, layout=layout, dims=dims)
    return collect_poses(ULTRALYTICS, ((name, str(file), read(file)) for name, file in files), unit=FRACTION)


def _described_points(path: Path) -> tuple[Layout | None, int | None]:
    """Return the order of the points and the numbers a point (2 or 3) by the nearest data.yaml, or None."""
    for folder in (path, *path.absolute().parents[:3]):
        for file in visible_files(folder, "*.y*ml") if folder.is_dir() else ():
            try:
                content = yaml.safe_load(read_text(file))
            except (yaml.YAMLError, ValueError):
                continue  # another file
            if isinstance(content, dict) and isinstance(shape := content.get("kpt_shape"), list) and len(shape) == 2:
                names = content.get("kpt_names")
                names = next(iter(names.values()), None) if isinstance(names, dict) else names
                layout = layout_by_names(names)[0] if isinstance(names, list) and len(names) == shape[0] else None
                return layout, int(shape[1])
    return None, None


def _ultralytics_pose(file: Path, layout: Layout | None, dims: int | None) -> Pose:
    best: tuple[float, Pose] = (-1.0, NOBODY)
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            raise ValueError(f"{file}, line {number}: expected numbers, found {line[:60]!r}") from None
        counts = {layout.points} if layout else set(LAYOUT_OF)
        each = next((d for d in ([dims] if dims else [3, 2]) if (len(values) - 5) / d in counts), None)
        if each is None:
            raise ValueError(
                f"{file}, line {number}: expected class, box and 2 or 3 numbers for {sorted(counts)} points, found "
                f"{len(values)} numbers"
            )
        points = parse_points(np.reshape(values[5:], (-1, each)).tolist(), counts, f"{file}, line {number}")
        if each == 2:
            points[(points[:, :2] == 0).all(axis=1), 2] = 0  # a point that is not labelled
        area = values[3] * values[4]
        if area > best[0]:
            best = area, confident_pose(*from_layout(points, layout or LAYOUT_OF[len(points)]))
    return best[1]
