"""COCO's JSON files: person keypoints, and keypoint results (detections with a score)."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from posegen.data.formats import (
    NOBODY,
    Annotations,
    Pose,
    Size,
    collect_poses,
    confident_pose,
    load_json,
    parse_points,
    visible_files,
)
from posegen.data.geometry.joints import JOINTS, LAYOUT_OF, Layout, from_layout, layout_by_names

COCO, COCO_RESULTS = "COCO person keypoints JSON", "COCO keypoint results JSON"
_PERSON = re.compile(r"person|people|human|pedestrian|body|pose|player|model|\bm[ae]n\b|\bwom[ae]n\b", re.IGNORECASE)


class _Candidate(NamedTuple):
    """One of the people in an image. The highest rank is taken, the first of equals; known points come first."""

    known: bool
    rank: float
    pose: Pose
    image: int | str


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's keypoints: any annotation has some."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(annotations, list) and any(isinstance(a, dict) and "keypoints" in a for a in annotations)


def is_coco_results(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's keypoint results, as AlphaPose writes them, too."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and "keypoints" in first and "image_id" in first


def read_coco(path: Path) -> Annotations:
    """Read COCO keypoints: points by the names of their category, known where their flag is not 0.

    A category without names has COCO's 17 points, or those of Halpe and others by their number. Categories without a
    known joint are passed over and counted in the notes, and so are others than people where one is called a person.
    The neck is between the shoulders where no point is called so. Of several people in an image the largest by `area`
    (or by `bbox`) that has a known point is taken; crowds and annotations without `keypoints` are skipped. A listed
    image without people has no visible joint.
    """
    content = load_json(path)
    if not (isinstance(content, dict) and isinstance(annotations := content.get("annotations"), list)):
        raise ValueError(f"{path}: expected COCO person keypoints, an object with the lists 'images' and 'annotations'")
    names, sizes = _image_names(content, path)
    layouts, titles = _category_layouts(content, path)
    best: dict[str, _Candidate] = {}
    passed_over: Counter[str] = Counter()
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        _require(annotation, "image_id", (int, str), where)
        if "keypoints" not in annotation or annotation["keypoints"] == [] or annotation.get("iscrowd"):
            continue
        category = _key(annotation.get("category_id"))
        if category in titles and category not in layouts:
            passed_over[titles[category]] += 1
            continue
        _keep_better(best, annotation, _area(annotation, where), where, layouts.get(category))
    if not best:
        raise ValueError(
            f"{path}: expected annotations with 'keypoints', found none (is it a file of boxes or captions?)"
            + (f" {_passed_over(passed_over)[0]}" if passed_over else "")
        )
    listed = [(name, f"images with id {key}", best.pop(key).pose if key in best else NOBODY) for key, name in names]
    unlisted = [(_name_by_id(c.image), f"image_id {key}", c.pose) for key, c in best.items()]
    return collect_poses(COCO, [*listed, *unlisted], sizes=sizes, notes=_passed_over(passed_over))


def _passed_over(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(
        f"{count:,} annotations of the category '{name}' are passed over: it is no person with known joints."
        for name, count in counts.items()
    )


def _key(value: Any) -> str:
    """The text of an id: files mix 1 and "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _category_layouts(content: dict[str, Any], path: Path) -> tuple[dict[str, Layout | None], dict[str, str]]:
    """Return the order of points of each category of people (None: by their number), and the titles of all categories.

    Raises ValueError for names that are no points of a person in a category of people.
    """
    categories = [c for c in content.get("categories") or [] if isinstance(c, dict) and "id" in c]
    titles = {_key(c["id"]): str(c.get("name", c["id"])) for c in categories}
    named = {
        _key(c["id"]): c["keypoints"] for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]
    }
    parsed = {key: layout_by_names(list(map(str, names))) for key, names in named.items()}
    people = {key: each for key, each in parsed.items() if any(row >= 0 for row in each[0].rows)}
    persons = {key for key, title in titles.items() if _PERSON.search(title)}
    if len(people) > 1 and persons & set(people):
        people = {key: each for key, each in people.items() if key in persons}
    for key, (_, unknown) in people.items():
        if unknown:
            raise ValueError(
                f"{path}: the category '{titles[key]}' has points with unknown names: {', '.join(unknown)}. Expected "
                f"{', '.join(JOINTS)}, or points of feet, hands, face and spine. Call them so in 'categories'."
            )
    if people:
        return {key: layout for key, (layout, _) in people.items()}, titles
    unnamed = [key for key in titles if key not in named]
    chosen = [key for key in unnamed if key in persons] or unnamed
    if named and not chosen:
        names = "; ".join(f"'{titles[key]}': {', '.join(map(str, each))}" for key, each in named.items())
        raise ValueError(f"{path}: no category has points with known names ({names}). Expected {', '.join(JOINTS)}.")
    return dict.fromkeys(chosen), titles


def read_coco_results(path: Path) -> Annotations:
    """Read COCO keypoint results: detections with `image_id`, points and `score`; the best score of each image.

    Points are told by their number: COCO's 17, Halpe's 26 ... Results name no files. The names are taken from the first
    other JSON file in the folder whose `images` list has any of the ids; without one an image is called by its id: an
    integer in twelve digits, as COCO's own files, or text. A detection without a known point is taken only where there
    is no other.
    """
    detections = load_json(path)
    if not isinstance(detections, list) or not detections:
        raise ValueError(f"{path}: expected COCO keypoint results, a list with at least one detection")
    best: dict[str, _Candidate] = {}
    for number, detection in enumerate(detections):
        where = f"{path}[{number}]"
        _require(detection, "image_id", (int, str), where)
        _require(detection, "score", (int, float), where)
        _keep_better(best, detection, float(detection["score"]), where)
    names, sizes = _names_from_neighbours(path, best)
    poses = ((names.get(key, _name_by_id(c.image)), f"image_id {key}", c.pose) for key, c in best.items())
    return collect_poses(COCO_RESULTS, poses, sizes=sizes)


def _names_from_neighbours(path: Path, ids: Iterable[str]) -> tuple[dict[str, str], dict[str, Size]]:
    wanted = set(ids)
    for other in visible_files(path.parent, "*.json"):
        if other != path and b'"file_name"' in other.read_bytes():
            content = load_json(other)
            names, sizes = _image_names(content, other) if isinstance(content, dict) else ([], {})
            if wanted & {key for key, _ in names}:
                return dict(names), sizes
    return {}, {}


def _image_names(content: dict[str, Any], path: Path) -> tuple[list[tuple[str, str]], dict[str, Size]]:
    """Return the images' (id, file name), and the sizes that the file gives them, by name."""
    images = content.get("images")
    if not isinstance(images, list):
        raise ValueError(f"{path}: expected the list 'images' with 'id' and 'file_name'")
    for number, image in enumerate(images):
        _require(image, "id", (int, str), f"{path}: images[{number}]")
        _require(image, "file_name", (str,), f"{path}: images[{number}]")
    if twice := [key for key, count in Counter(_key(image["id"]) for image in images).items() if count > 1]:
        raise ValueError(
            f"{path}: expected an id of its own for each of 'images', found {', '.join(twice[:3])} more than once"
        )
    sizes = {
        image["file_name"]: Size(image["width"], image["height"])
        for image in images
        if all(type(image.get(side)) in (int, float) and image[side] > 0 for side in ("width", "height"))
    }
    return [(_key(image["id"]), image["file_name"]) for image in images], sizes


def _name_by_id(key: int | str) -> str:
    return key if isinstance(key, str) else f"{int(key):012d}"


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


def _keep_better(
    best: dict[str, _Candidate], person: dict[str, Any], rank: float, where: str, layout: Layout | None = None
) -> None:
    counts = [layout.points] if layout else [17, 26, 33, 133, 136]
    points = parse_points(person.get("keypoints"), counts, f"{where}.keypoints")
    pose = confident_pose(*from_layout(points, layout or LAYOUT_OF[len(points)]))
    candidate, key = _Candidate(bool(pose.visible.any()), rank, pose, person["image_id"]), _key(person["image_id"])
    if key not in best or candidate[:2] > best[key][:2]:
        best[key] = candidate
