"""OpenPose's JSON files, one an image, of versions 1.0 to 1.7."""

from pathlib import Path

import numpy as np

from posegen.data.formats import (
    NOBODY,
    Annotations,
    Pose,
    collect_poses,
    confident_pose,
    load_json,
    parse_points,
)
from posegen.data.geometry.joints import LAYOUTS, from_layout, looks_like_body_25

OPENPOSE = "OpenPose JSON"
OPENPOSE_LAYOUTS = tuple(layout for layout in LAYOUTS if layout.startswith("body"))
_KEYS = ("pose_keypoints_2d", "pose_keypoints")  # since OpenPose 1.2; before it


def is_openpose(path: Path, head: bytes) -> bool:
    """Return whether a file that begins with `head` is a JSON file of OpenPose."""
    return head.startswith(b"{") and b'"people"' in head


def read_openpose(path: Path, layout: str | None = None) -> Annotations:
    """Read OpenPose's files in a folder and below it, or a single file.

    The image's name is the file's path in the folder without `_keypoints` and `.json`. Of several people the one with
    the highest sum of confidences over the 18 joints is taken; an image without people has no visible joint. A joint
    is missing where its confidence is 0.

    Args:
        path: The folder or file.
        layout: The order of the points, one of `OPENPOSE_LAYOUTS`. None decides by their number.

    Raises:
        ValueError: If a file is malformed, or if, without a `layout`, 25 points do not look like BODY_25.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: expected a folder with OpenPose's JSON files, found no .json in it or below")
    people = {file: _read_people(file, layout) for file in files}
    full = [points for found in people.values() for points in found if len(points) == 25]
    if layout is None and full and not looks_like_body_25(np.stack(full)):
        raise ValueError(
            f"{path}: the people have 25 points that do not look like OpenPose's BODY_25 (point 8 is not between the "
            "hips). Give their order: layout 'body_25b', or 'body_25' if they are right as they are."
        )
    return collect_poses(
        OPENPOSE,
        (
            (file.relative_to(folder).as_posix().removesuffix(".json").removesuffix("_keypoints"), str(file), pose)
            for file, found in people.items()
            for pose in (_most_confident(found, layout),)
        ),
    )


def _read_people(file: Path, layout: str | None) -> list[np.ndarray]:
    content = load_json(file)
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise ValueError(f"{file}: expected OpenPose output, an object with the list 'people'")
    counts = sorted({18, 25} if layout is None else {LAYOUTS[layout].points})
    found = []
    for number, person in enumerate(people):
        key = next((key for key in _KEYS if isinstance(person, dict) and key in person), None)
        if key is None:
            raise ValueError(f"{file}: people[{number}] has neither '{_KEYS[0]}' nor '{_KEYS[1]}'")
        if person[key] != []:
            found.append(parse_points(person[key], counts, f"{file}: people[{number}].{key}"))
    return found


def _most_confident(people: list[np.ndarray], layout: str | None) -> Pose:
    """Return the person with the highest sum of confidences, the first of equals."""
    orders = {18: "body_18", 25: "body_25"} if layout is None else {LAYOUTS[layout].points: layout}
    converted = [from_layout(points, orders[len(points)]) for points in people]
    best = max(converted, key=lambda person: float(person[1].sum()), default=None)
    return NOBODY if best is None else confident_pose(*best)
