"""PG2's pickles: the people that its pose estimator found (`all_peaks_dic_*`, `subsets_dic_*`) and its pair lists.

`all_peaks_dic_*.p` holds, for each image's name, 18 lists of candidates (x, y, score, id), x and y in pixels;
`subsets_dic_*.p` an array (people, 20) an image: the ids of a person's 18 joints (-1: none), the total score and the
number of joints. `p_pairs_*.p` is a list of pairs of names. They are read by `restricted`, which runs nothing.

Choice of the person (PG2's `convert_market.py`, `_get_valid_peaks`): the row with the largest total score,
the first of equals, and of each joint the last candidate whose id is in that row; where no row has a total score above
-1, the first candidate of each joint. PG2's `convert_DF.py` finds the same and then returns the unfiltered candidates,
so its joints are the first ones, of any person, and joints that the person does not have appear. Here DeepFashion is
read as Market-1501 is: we take that for a slip, and the paper knows of one person an image.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posegen.data.formats import MISSING, Annotations, Pose, visible_files
from posegen.data.formats.restricted import PickledArray, read_plain_pickle, text
from posegen.data.geometry.joints import JOINTS

PG2_PICKLES = "PG2 pickles"
PEAKS, SUBSETS = "all_peaks_dic_", "subsets_dic_"
_TOTAL_SCORE = -2  # column of a person's row
_COLUMNS = len(JOINTS) + 2
_NOT_READ = ("flip", "samples", "seq")  # PG2's files of mirrored images, and of images for figures


class _Candidate(NamedTuple):
    x: float
    y: float
    key: float


def is_peaks_file(path: Path, head: bytes = b"") -> bool:
    """Return whether a file has the name of PG2's files of candidates; its content does not count."""
    return path.name.startswith(PEAKS) and path.suffix == ".p"


def peaks_files(root: Path) -> dict[str | None, Path]:
    """Return the candidates' files of `root` by split; None is the file of all images.

    They lie in `root`, or else in its folder `PoseFiltered` or `..._PoseFiltered`, with the split in their names
    (`all_peaks_dic_Market-1501_train.p`, `..._test_clean.p`, `all_peaks_dic_DeepFashion.p`). Those of mirrored images
    are skipped: images are mirrored in training. Raises ValueError where a split has several.
    """
    found: dict[str | None, Path] = {}
    for path in _first_of(root, f"{PEAKS}*.p"):
        words = set(re.split(r"[_\W]", path.stem.lower()))
        if not words & set(_NOT_READ):
            split = next((split for split in ("train", "test") if split in words), None)
            if split in found:
                raise ValueError(
                    f"expected one file '{PEAKS}*.p' in '{path.parent}' for {split or 'all images'}, found "
                    f"{found[split].name} and {path.name}: move one away."
                )
            found[split] = path
    return found


def pairs_pickle(root: Path, split: str) -> Path | None:
    """Return `p_pairs_{split}.p` in `root` or beside the candidates, or None."""
    return next(iter(_first_of(root, f"p_pairs_{split}.p")), None)


def _first_of(root: Path, pattern: str) -> list[Path]:
    """Return the files in the first of the folders that has any."""
    folders = [root, root / "PoseFiltered", *sorted(root.glob("*_PoseFiltered"))]
    return next((found for folder in folders if (found := visible_files(folder, pattern))), [])


def read_pg2_poses(peaks: Path) -> Annotations:
    """Read the poses of a candidates' file and the `subsets_dic_*` beside it, sorted by name, as PG2 lists images.

    Pixels are kept as they are (PG2 truncates them to whole ones).

    Raises:
        ValueError: If a file is missing, is another kind of pickle or asks for more than plain data, or if the two
            files do not name the same images.
    """
    subsets = peaks.with_name(peaks.name.replace(PEAKS, SUBSETS, 1))
    if not subsets.is_file() or subsets == peaks:
        raise ValueError(
            f"'{peaks}' has no '{subsets.name}' beside it, which assigns the candidates to people: add PG2's file."
        )
    candidates, people = _by_name(peaks, "lists of candidates"), _by_name(subsets, "arrays of people")
    if strangers := [name for name in candidates if name not in people]:
        raise ValueError(
            f"{subsets}: {len(strangers):,} of the {len(candidates):,} images in {peaks.name} are not in it, "
            f"{strangers[:3]}: the two files are from different runs."
        )
    poses = {
        name: _pose(_candidates(candidates[name], f"{peaks}: '{name}'"), _people(people[name], f"{subsets}: '{name}'"))
        for name in sorted(candidates)
    }
    return Annotations(PG2_PICKLES, poses, {})


def read_pg2_pairs(path: Path) -> list[tuple[str, str]]:
    """Read the (source, target) names of a `p_pairs_*.p`, in its order.

    Raises ValueError, naming the file, if it is not a list of pairs of names or is empty, and as `restricted` does.
    """
    listed = read_plain_pickle(path)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: expected PG2's list of pairs of image names, found {reprlib.repr(listed)}")
    pairs = []
    for number, pair in enumerate(listed):
        names = [text(name) for name in pair] if isinstance(pair, list | tuple) else []
        if len(names) != 2 or names[0] is None or names[1] is None:
            raise ValueError(f"{path}: pair {number}: expected two image names, found {reprlib.repr(pair)}")
        pairs.append((names[0], names[1]))
    return pairs


def _by_name(path: Path, what: str) -> Mapping[str, Any]:
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected PG2's {what} by image name, found {reprlib.repr(content)}")
    named = {text(name): value for name, value in content.items()}
    if None in named or len(named) < len(content):
        raise ValueError(f"{path}: expected texts as image names, each once, found {reprlib.repr(list(content))}")
    return named  # pyright: ignore[reportReturnType]


def _candidates(parts: object, where: str) -> list[list[_Candidate]]:
    if not isinstance(parts, list | tuple) or len(parts) != len(JOINTS):
        found = f"{len(parts)}" if isinstance(parts, list | tuple) else reprlib.repr(parts)
        raise ValueError(f"{where}: expected {len(JOINTS)} lists of candidates, found {found}")
    return [_of_joint(found, f"{where}, joint {joint}") for joint, found in enumerate(parts)]


def _of_joint(found: object, where: str) -> list[_Candidate]:
    candidates = []
    for row in found if isinstance(found, list | tuple) else [found]:
        if not isinstance(row, list | tuple) or len(row) != 4 or not all(isinstance(value, Real) for value in row):
            raise ValueError(f"{where}: expected candidates (x, y, score, id), found {reprlib.repr(row)}")
        x, y, _, key = row
        candidates.append(_Candidate(_number(x), _number(y), _number(key)))
    return candidates


def _number(value: Any) -> float:
    """Return a float; an integer beyond its range is infinite, so that only its image is rejected."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _people(rows: object, where: str) -> np.ndarray:
    """Return (people, 20), or (0, 20) for nobody, however that was written."""
    array = rows.array if isinstance(rows, PickledArray) else np.empty(0) if rows == [] else None
    if array is None or (array.size and array.shape[1:] != (_COLUMNS,)):
        found = "no array" if array is None else f"the shape {array.shape}"
        raise ValueError(f"{where}: expected an array (people, {_COLUMNS}), found {found}")
    return array.reshape(-1, _COLUMNS).astype(np.float64)


def _pose(candidates: Sequence[Sequence[_Candidate]], people: np.ndarray) -> Pose:
    scores = np.where(people[:, _TOTAL_SCORE] > -1, people[:, _TOTAL_SCORE], -np.inf)  # false for NaN
    if np.isfinite(scores).any():
        ids = set(people[scores.argmax(), : len(JOINTS)].tolist())
        chosen = [[one for one in of_joint if one.key in ids][-1:] for of_joint in candidates]
    else:
        chosen = [of_joint[:1] for of_joint in candidates]
    joints = np.array([(one[0].x, one[0].y) if one else (MISSING, MISSING) for one in chosen])
    with np.errstate(over="ignore"):
        return Pose(joints.astype(np.float32), np.array([bool(one) for one in chosen]))
