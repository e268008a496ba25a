"""COCO's JSON files: person keypoints, and keypoint results (detections with a score)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from posegen.data.formats import (
    NOBODY,
    Annotations,
    Pose,
    collect_poses,
    confident_pose,
    load_json,
    parse_points,
)
from posegen.data.geometry.joints import from_layout

COCO, COCO_RESULTS = "COCO person keypoints JSON", "COCO keypoint results JSON"


class _Candidate(NamedTuple):
    """One of the people in an image. The highest rank is taken, the first of equals; known points come first."""

    known: bool
    rank: float
    pose: Pose


def is_coco(path: Path, head: bytes) -> bool:
    """Return whether a file that begins with `head` holds COCO person keypoints, by the keys anywhere in it."""
    if not head.startswith(b"{"):
        return False
    content = path.read_bytes()
    return b'"annotations"' in content and b'"keypoints"' in content


def is_coco_results(path: Path, head: bytes) -> bool:
    """Return whether a file that begins with `head` holds COCO keypoint results."""
    return head.startswith(b"[") and b'"keypoints"' in head


def read_coco(path: Path) -> Annotations:
    """Read COCO person keypoints: 17 points a person, known where their flag is not 0; the neck is between shoulders.

    Of several people in an image the largest by `area` (or by `bbox`) that has a known point is taken; crowds and
    annotations without `keypoints` are skipped. A listed image without people has no visible joint.
    """
    content = load_json(path)
    if not (isinstance(content, dict) and isinstance(annotations := content.get("annotations"), list)):
        raise ValueError(f"{path}: expected COCO person keypoints, an object with the lists 'images' and 'annotations'")
    names = _image_names(content, path)
    best: dict[Any, _Candidate] = {}
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        _require(annotation, "image_id", (int, str), where)
        if "keypoints" in annotation and not annotation.get("iscrowd"):
            _keep_better(best, annotation, _area(annotation, where), where)
    if not best:
        raise ValueError(
            f"{path}: expected annotations with 'keypoints', found none (is it a file of boxes or captions?)"
        )
    listed = [(name, f"images with id {key}", best.pop(key).pose if key in best else NOBODY) for key, name in names]
    unlisted = [(_name_by_id(key), f"image_id {key}", candidate.pose) for key, candidate in best.items()]
    return collect_poses(COCO, [*listed, *unlisted])


def read_coco_results(path: Path) -> Annotations:
    """Read COCO keypoint results: detections with `image_id`, 17 points and `score`; the best score of each image.

    Results name no files. The names are taken from the first other JSON file in the folder whose `images` list has any
    of the ids; without one an image is called by its id: an integer in twelve digits, as COCO's own files, or text. A
    detection without a known point is taken only where there is no other.
    """
    detections = load_json(path)
    if not isinstance(detections, list) or not detections:
        raise ValueError(f"{path}: expected COCO keypoint results, a list with at least one detection")
    best: dict[Any, _Candidate] = {}
    for number, detection in enumerate(detections):
        where = f"{path}[{number}]"
        _require(detection, "image_id", (int, str), where)
        _require(detection, "score", (int, float), where)
        _keep_better(best, detection, float(detection["score"]), where)
    names = _names_from_neighbours(path, best)
    poses = ((names.get(key, _name_by_id(key)), f"image_id {key}", best[key].pose) for key in best)
    return collect_poses(COCO_RESULTS, poses)


def _names_from_neighbours(path: Path, ids: Iterable[Any]) -> dict[Any, str]:
    wanted = set(ids)
    for other in sorted(path.parent.glob("*.json")):
        if other != path and b'"file_name"' in other.read_bytes():
            content = load_json(other)
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


def _name_by_id(key: int | str) -> str:
    return f"{key:012d}" if isinstance(key, int) else key


def _require(item: Any, key: str, types: tuple[type, ...], where: str) -> None:
    if not isinstance(item, dict) or not isinstance(item.get(key), types) or isinstance(item[key], bool):
        found = item.get(key) if isinstance(item, dict) else item
        kinds = {int: "a whole number", float: "a number", str: "a text"}
        expected = " or ".join(kinds[kind] for kind in types)
        raise ValueError(f"{where}: expected '{key}' to be {expected}, found {str(found)[:60]!r}")


def _area(annotation: dict[str, Any], where: str) -> float:
    if "area" in annotation:
        _require(annotation, "area", (int, float), where)
        return float(annotation["area"])
    box = annotation.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)):
        raise ValueError(f"{where}.bbox: expected four numbers x, y, width, height, found {str(box)[:60]!r}")
    return float(box[2] * box[3])


def _keep_better(best: dict[Any, _Candidate], person: dict[str, Any], rank: float, where: str) -> None:
    points = parse_points(person.get("keypoints"), [17], f"{where}.keypoints")
    pose = confident_pose(*from_layout(points, "coco_17"))
    candidate, key = _Candidate(bool(pose.visible.any()), rank, pose), person["image_id"]
    if key not in best or candidate[:2] > best[key][:2]:
        best[key] = candidate
