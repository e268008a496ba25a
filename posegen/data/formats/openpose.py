"""OpenPose's JSON files, one an image, of versions 1.0 to 1.7; and those that other tools write in its form.

ControlNet's editors write a list of one such object, with the canvas for which it was made. AlphaPose writes one file
for all images (`--format open` and `cmu`), an object of such objects by image name; `cmu` calls people bodies.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from posegen.data.formats import (
    FRACTION,
    NOBODY,
    PIXELS,
    Annotations,
    Pose,
    Size,
    collect_poses,
    confident_pose,
    load_json,
    parse_points,
    visible_json,
)
from posegen.data.geometry.joints import LAYOUT_OF, LAYOUTS, from_layout, looks_like_body_25

OPENPOSE = "OpenPose JSON"
OPENPOSE_LAYOUTS = tuple(layout for layout in LAYOUTS if layout.startswith("body"))
_KEYS = ("pose_keypoints_2d", "pose_keypoints", "joints")  # since OpenPose 1.2; before it; AlphaPose's cmu


def is_openpose(content: Any) -> bool:
    """Return whether the content of a JSON file is OpenPose's, ControlNet's or AlphaPose's."""
    if isinstance(content, list) and len(content) == 1:
        return _is_image(content[0])
    return _is_image(content) or (isinstance(content, dict) and any(map(_is_image, list(content.values())[:1])))


def _is_image(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(content.get(key), list) for key in ("people", "bodies"))


def read_openpose(path: Path, layout: str | None = None) -> Annotations:
    """Read OpenPose's files in a folder and below it, or a single file.

    The image's name is the file's path in the folder without `_keypoints` and `.json`; AlphaPose's file has the names.
    Of several people the one with the highest sum of confidences over the 18 joints is taken; an image without people
    has no visible joint. A joint is missing where its confidence is 0. ControlNet's coordinates are fractions of the
    canvas where none is above 1, as its own reader takes them.

    Args:
        path: The folder or file.
        layout: The order of the points, one of `OPENPOSE_LAYOUTS`. None decides by their number.

    Raises:
        ValueError: If a file is malformed, or if, without a `layout`, 25 points do not look like BODY_25.
    """
    folder = path if path.is_dir() else path.parent
    files = visible_json(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: expected a folder with OpenPose's JSON files, found no .json in it or below")
    read = [
        (file.relative_to(folder).as_posix().removesuffix(".json").removesuffix("_keypoints") if name is None else name,
         where, image, _read_people(image, where, layout))
        for file in files
        for name, where, image in _named(load_json(file), str(file))
    ]  # fmt: skip
    full = [points for _, _, _, people in read for points in people if len(points) == 25]
    if layout is None and full and not looks_like_body_25(np.stack(full)):
        raise ValueError(
            f"{path}: the people have 25 points that do not look like OpenPose's BODY_25 (point 8 is not between the "
            "hips). Give their order: layout 'body_25b', or 'body_25' if they are right as they are."
        )
    sizes = {
        name: Size(image["canvas_width"], image["canvas_height"])
        for name, _, image, _ in read
        if all(type(image.get(f"canvas_{side}")) in (int, float) for side in ("width", "height"))
    }
    scaled = len(sizes) == len(read) and all(
        (abs(points[:, :2]) <= 1).all() for *_, people in read for points in people
    )
    return collect_poses(
        OPENPOSE,
        ((name, where, most_confident(people, layout)) for name, where, _, people in read),
        unit=FRACTION if scaled and any(people for *_, people in read) else PIXELS,
        sizes=sizes,
    )


def _named(content: Any, file: str) -> Iterator[tuple[str | None, str, dict[str, Any]]]:
    """Yield the name (None: the file's), the position and the object with people of each image in a file."""
    if isinstance(content, dict) and not _is_image(content) and content and all(map(_is_image, content.values())):
        yield from ((name, f"{file}: {name!r}", image) for name, image in content.items())
        return
    image: Any = content[0] if isinstance(content, list) and len(content) == 1 else content
    if not _is_image(image):
        raise ValueError(f"{file}: expected OpenPose output, an object with the list 'people'")
    yield None, file, image


def _read_people(image: dict[str, Any], where: str, layout: str | None) -> list[np.ndarray]:
    counts = [18, 25, 33] if layout is None else [LAYOUTS[layout].points]
    found = []
    for number, person in enumerate(image["people"] if "people" in image else image["bodies"]):
        key = next((key for key in _KEYS if isinstance(person, dict) and key in person), None)
        if key is None:
            raise ValueError(f"{where}: people[{number}] has neither '{_KEYS[0]}' nor '{_KEYS[1]}'")
        if person[key]:
            found.append(parse_points(person[key], counts, f"{where}: people[{number}].{key}"))
    return found


def most_confident(people: Iterable[np.ndarray], layout: str | None = None) -> Pose:
    """Return the person with the highest sum of confidences, the first of equals; of points (points, 3)."""
    converted = [from_layout(points, layout or LAYOUT_OF[len(points)]) for points in people]
    best = max(converted, key=lambda person: float(person[1].sum()), default=None)
    return NOBODY if best is None else confident_pose(*best)
