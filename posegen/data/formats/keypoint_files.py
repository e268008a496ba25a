"""Annotation files of people's joints: pose-gan CSV, OpenPose JSON, COCO person keypoints, COCO keypoint results.

Every reader gives the 18 joints of `joints.JOINTS` by image name, as it stands in the file; which file on disk that
name means is decided by who reads the images. Numbers that are not finite are passed on: such an image is rejected
when it is prepared, and only that one. What does not parse is a ValueError with the file and the line or JSON path.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.geometry.joints import LAYOUTS, from_layout, looks_like_body_25

POSE_GAN, OPENPOSE = "pose-gan CSV", "OpenPose JSON"
COCO, COCO_RESULTS = "COCO person keypoints JSON", "COCO keypoint results JSON"
FORMATS = (
    f"{POSE_GAN} (first line name:keypoints_y:keypoints_x), {OPENPOSE} (a folder with a file for each image, key "
    f"'people'), {COCO} (keys 'images' and 'annotations'), {COCO_RESULTS} (a list with 'image_id' and 'keypoints')"
)
HEADER = "name:keypoints_y:keypoints_x"
MISSING = -1.0

_decode = json.JSONDecoder(parse_int=float).decode
_OPENPOSE_KEYS = ("pose_keypoints_2d", "pose_keypoints")  # since OpenPose 1.2; before it


class Pose(NamedTuple):
    """One person: joints float32 (18, 2), x and y in pixels of the image, -1 where unknown; visible bool (18,)."""

    joints: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Annotations:
    """The poses of a file or folder, by image name in file order; names that occur twice, and where, are apart."""

    format: str
    poses: dict[str, Pose]
    duplicates: dict[str, str]


class _Candidate(NamedTuple):
    """One of the people of an image; of several the one with the highest rank is taken, the first of equals."""

    rank: float
    pose: Pose


def read_annotations(path: Path, layout: str | None = None) -> Annotations:
    """Reads any of `FORMATS`, told apart by content. A folder is taken as OpenPose's.

    `layout` says how OpenPose's points are ordered ("body_18", "body_25", "body_25b"); None decides by their number.
    Raises ValueError for a file of another kind, and as the readers do.
    """
    if not path.exists():
        raise ValueError(f"joints file or folder '{path}' does not exist. Understood are: {FORMATS}.")
    kind = OPENPOSE if path.is_dir() else detect_format(path)
    if kind == OPENPOSE:
        return read_openpose(path, layout)
    if kind == COCO:
        return read_coco(path)
    if kind == COCO_RESULTS:
        return read_coco_results(path)
    if kind == POSE_GAN or path.suffix.lower() == ".csv":
        return read_pose_gan_csv(path)
    if path.suffix.lower() == ".json":
        _load(path)
    raise ValueError(f"{path} is in no format that is understood. These are: {FORMATS}.")


def detect_format(path: Path) -> str | None:
    """Which of the formats a file has, by its first characters and the keys in it; None where it is another."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(HEADER.encode()):
            return POSE_GAN
        if head.startswith(b"[") and b'"keypoints"' in head:
            return COCO_RESULTS
        if head.startswith(b"{") and b'"people"' in head:
            return OPENPOSE
        if head.startswith(b"{"):
            content = head + file.read()
            return COCO if b'"annotations"' in content and b'"keypoints"' in content else None
    return None


def read_pose_gan_csv(path: Path) -> Annotations:
    """pose-gan's `name: [18 y]: [18 x]`, with or without the spaces; integers or decimals in pixels.

    Only (-1, -1) is a missing joint. pose-gan takes a joint with one coordinate -1 as missing too, but the published
    176x256 list has negative x of people who are cut by the border, and the 128x64 lists have no such joint.
    """
    header, *lines = _text(path).split("\n")
    if header.strip() != HEADER:
        raise ValueError(f"{path}, line 1: expected the header '{HEADER}', found {header.strip()[:80]!r}")
    rows = [_csv_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 2) if line.strip()]
    if not rows:
        raise ValueError(f"{path}: expected rows 'name: [18 y]: [18 x]' after the header, found none")
    with np.errstate(over="ignore"):
        joints = np.array([(x, y) for _, _, y, x in rows]).astype(np.float32).transpose(0, 2, 1)
    visible = (joints != MISSING).any(axis=2)
    poses = (Pose(*pose) for pose in zip(np.ascontiguousarray(joints), visible, strict=True))
    return _annotations(POSE_GAN, ((row[0], row[1], pose) for row, pose in zip(rows, poses, strict=True)))


def _csv_row(line: str, place: str) -> tuple[str, str, list[float], list[float]]:
    parts = line.rsplit(":", 2)
    if len(parts) != 3 or not parts[0].strip():
        raise ValueError(f"{place}: expected 'name: [18 y]: [18 x]', found {line.strip()[:80]!r}")
    return parts[0].strip(), place, _coordinates(parts[1], "y", place), _coordinates(parts[2], "x", place)


def _coordinates(text: str, axis: str, place: str) -> list[float]:
    try:
        numbers = _decode(text.strip())
    except json.JSONDecodeError:
        numbers = None
    if not isinstance(numbers, list) or len(numbers) != 18 or any(type(number) is not float for number in numbers):
        found = f"{len(numbers)} values" if isinstance(numbers, list) else repr(text.strip()[:80])
        raise ValueError(f"{place}: expected a list of 18 numbers for {axis}, found {found}")
    return numbers


def read_openpose(path: Path, layout: str | None = None) -> Annotations:
    """OpenPose's files, one an image, in a folder and those below it (or one such file): versions 1.0 to 1.7.

    The image's name is the file's path in the folder without `_keypoints` and `.json`. Of several people the one with
    the highest sum of confidences over the 18 joints is taken; an image without anybody has no visible joint. A joint
    is missing where its confidence is 0. Without a `layout`, 25 points that do not look like BODY_25 are a ValueError.
    """
    folder = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: expected a folder with OpenPose's JSON files, found no .json in it or below")
    people = {file: _openpose_people(file, layout) for file in files}
    full = [points for found in people.values() for points in found if len(points) == 25]
    if layout is None and full and not looks_like_body_25(np.stack(full)):
        raise ValueError(
            f"{path}: the people have 25 points that do not look like OpenPose's BODY_25 (point 8 is not between the "
            "hips). Say which order they have: layout 'body_25b', or 'body_25' if they are right as they are."
        )
    poses = ((_image_name(file, folder), str(file), _best_of(found, layout)) for file, found in people.items())
    return _annotations(OPENPOSE, poses)


def _image_name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix().removesuffix(".json").removesuffix("_keypoints")


def _openpose_people(file: Path, layout: str | None) -> list[np.ndarray]:
    content = _load(file)
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise ValueError(f"{file}: expected OpenPose output, an object with the list 'people'")
    counts = sorted({18, 25} if layout is None else {LAYOUTS[layout].points})
    found = []
    for number, person in enumerate(people):
        key = next((key for key in _OPENPOSE_KEYS if isinstance(person, dict) and key in person), None)
        if key is None:
            raise ValueError(f"{file}: people[{number}] has neither '{_OPENPOSE_KEYS[0]}' nor '{_OPENPOSE_KEYS[1]}'")
        if person[key] != []:
            found.append(_points(person[key], counts, f"{file}: people[{number}].{key}"))
    return found


def _best_of(people: list[np.ndarray], layout: str | None) -> Pose:
    orders = {18: "body_18", 25: "body_25"} if layout is None else {LAYOUTS[layout].points: layout}
    converted = (from_layout(points, orders[len(points)]) for points in people)
    candidates = [_Candidate(float(confidence.sum()), _pose(joints, confidence)) for joints, confidence in converted]
    return max(candidates, key=lambda candidate: candidate.rank).pose if candidates else _nobody()


def read_coco(path: Path) -> Annotations:
    """COCO person keypoints: 17 points a person, known where their flag is not 0; the neck is made of the shoulders.

    Of several people of an image the largest by `area` (or by `bbox`) that has a known point is taken; crowds and
    annotations without `keypoints` are passed over. A listed image without anybody has no visible joint.
    """
    content = _load(path)
    if not (isinstance(content, dict) and isinstance(annotations := content.get("annotations"), list)):
        raise ValueError(f"{path}: expected COCO person keypoints, an object with the lists 'images' and 'annotations'")
    names = _image_names(content, path)
    best: dict[Any, _Candidate] = {}
    for number, annotation in enumerate(annotations):
        place = f"{path}: annotations[{number}]"
        _require(annotation, "image_id", (int, str), place)
        if "keypoints" in annotation and not annotation.get("iscrowd"):
            _keep_better(best, annotation["image_id"], _candidate(annotation, _area(annotation, place), place))
    if not best:
        raise ValueError(
            f"{path}: expected annotations with 'keypoints', found none (is it a file of boxes or captions?)"
        )
    listed = [(name, f"images with id {key}", best.pop(key).pose if key in best else _nobody()) for key, name in names]
    unlisted = [(_number_name(key), f"image_id {key}", candidate.pose) for key, candidate in best.items()]
    return _annotations(COCO, [*listed, *unlisted])


def read_coco_results(path: Path) -> Annotations:
    """COCO keypoint results: detections with `image_id`, 17 points and `score`; of an image's several the best score.

    Results name no file. The names are taken from the first other JSON file in the folder whose `images` list has any
    of the ids; without one an image is called by its id in twelve digits, as COCO's own files are, or by an id in
    letters. A detection without any known point is taken only where there is no other.
    """
    detections = _load(path)
    if not isinstance(detections, list) or not detections:
        raise ValueError(f"{path}: expected COCO keypoint results, a list with at least one detection")
    best: dict[Any, _Candidate] = {}
    for number, detection in enumerate(detections):
        place = f"{path}[{number}]"
        _require(detection, "image_id", (int, str), place)
        _require(detection, "score", (int, float), place)
        _keep_better(best, detection["image_id"], _candidate(detection, float(detection["score"]), place))
    names = _names_beside(path, best)
    poses = ((names.get(key, _number_name(key)), f"image_id {key}", best[key].pose) for key in best)
    return _annotations(COCO_RESULTS, poses)


def _names_beside(path: Path, ids: Iterable[Any]) -> dict[Any, str]:
    wanted = set(ids)
    for other in sorted(path.parent.glob("*.json")):
        if other != path and b'"file_name"' in other.read_bytes():
            content = _load(other)
            names = dict(_image_names(content, other)) if isinstance(content, dict) else {}
            if wanted & set(names):
                return names
    return {}


def _image_names(content: dict[str, Any], path: Path) -> list[tuple[Any, str]]:
    images = content.get("images")
    if not isinstance(images, list):
        raise ValueError(f"{path}: expected the list 'images' with 'id' and 'file_name'")
    for number, image in enumerate(images):
        _require(image, "id", (int, str), f"{path}: images[{number}]")
        _require(image, "file_name", (str,), f"{path}: images[{number}]")
    if twice := [key for key, count in Counter(image["id"] for image in images).items() if count > 1]:
        raise ValueError(f"{path}: expected an id of its own for each of 'images', found {twice[:3]} more than once")
    return [(image["id"], image["file_name"]) for image in images]


def _number_name(key: int | str) -> str:
    return f"{key:012d}" if isinstance(key, int) else key


def _require(item: Any, key: str, types: tuple[type, ...], place: str) -> None:
    if not isinstance(item, dict) or not isinstance(item.get(key), types) or isinstance(item[key], bool):
        found = item.get(key) if isinstance(item, dict) else item
        kinds = {int: "a whole number", float: "a number", str: "a text"}
        expected = " or ".join(kinds[kind] for kind in types)
        raise ValueError(f"{place}: expected '{key}' to be {expected}, found {str(found)[:60]!r}")


def _area(annotation: dict[str, Any], place: str) -> float:
    if "area" in annotation:
        _require(annotation, "area", (int, float), place)
        return float(annotation["area"])
    box = annotation.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)):
        raise ValueError(f"{place}.bbox: expected four numbers x, y, width, height, found {str(box)[:60]!r}")
    return float(box[2] * box[3])


def _candidate(person: dict[str, Any], rank: float, place: str) -> _Candidate:
    points = _points(person.get("keypoints"), [17], f"{place}.keypoints")
    return _Candidate(rank, _pose(*from_layout(points, "coco_17")))


def _keep_better(best: dict[Any, _Candidate], key: Any, candidate: _Candidate) -> None:
    def order(one: _Candidate) -> tuple[bool, float]:
        return bool(one.pose.visible.any()), one.rank

    if key not in best or order(candidate) > order(best[key]):
        best[key] = candidate


def _points(values: Any, counts: list[int], place: str) -> np.ndarray:
    """A flat list x, y, confidence, x, ... as float64 (points, 3)."""
    sizes = " or ".join(f"{3 * count} numbers ({count} points)" for count in counts)
    if not isinstance(values, list) or len(values) not in [3 * count for count in counts]:
        found = f"{len(values)} values" if isinstance(values, list) else repr(values)[:60]
        raise ValueError(f"{place}: expected {sizes} x, y, confidence, found {found}")
    for number, value in enumerate(values):
        if type(value) not in (int, float):
            raise ValueError(f"{place}[{number}]: expected a number, found {value!r}")
    return np.array([float(value) for value in values]).reshape(-1, 3)


def _pose(joints: np.ndarray, confidence: np.ndarray) -> Pose:
    visible = confidence > 0
    with np.errstate(over="ignore"):
        return Pose(np.where(visible[:, None], joints, MISSING).astype(np.float32), visible)


def _nobody() -> Pose:
    return Pose(np.full((18, 2), MISSING, dtype=np.float32), np.zeros(18, dtype=bool))


def _annotations(kind: str, found: Iterable[tuple[str, str, Pose]]) -> Annotations:
    """Gathers (name, place, pose); a name that occurs twice keeps no pose, for nothing says which one is right."""
    poses: dict[str, Pose] = {}
    places: dict[str, list[str]] = {}
    for name, place, pose in found:
        poses[name] = pose
        places.setdefault(name, []).append(place)
    duplicates = {name: "; ".join(where) for name, where in places.items() if len(where) > 1}
    return Annotations(kind, {name: pose for name, pose in poses.items() if name not in duplicates}, duplicates)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, byte {error.start} is none") from None


def _load(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that is understood (too deeply nested)") from None
