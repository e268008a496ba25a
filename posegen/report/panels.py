"""The images that are shown of a pair: what is given, what stages make of it, the result, the target, the difference.

A system that predicts joints and makes no image has the target image as its canvas: with the predicted skeleton as
the result, with the true one as the target, and with both on it as the difference.

The pairs that a report shows: the best, the worst and a fixed draw, with their scores and panels.

One source image to every other view of its group: what the system makes of it above the true images.

Where the shards know the azimuths of cameras. Multistage's figure 9 shows its system so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posegen.data.loading.dataset import Shards, listed_batches
from posegen.evaluation.baselines import Pose, Uint8Image
from posegen.evaluation.metrics import deciding, to_uint8
from posegen.evaluation.scoring import stage_images, synthesized
from posegen.inference import Trained
from posegen.report.drawing import both_skeletons, difference, enlargement, silhouette, skeleton, skeleton_over
from posegen.stage import System

Raw = Mapping[str, Tensor]  # a batch of the shards
Arrays = Mapping[str, np.ndarray]
Columns = Mapping[str, Tensor]  # the same on the device, with the stages' outputs


@dataclass(frozen=True)
class Panel:
    """One image of a case, under the name of what it is. A `drawn` one has a finer grid than the images have."""

    label: str
    role: str  # "given", "stage", "result", "target" or "difference"
    image: Uint8Image
    drawn: bool = False


def panels(system: System, raw: Raw, columns: Columns) -> list[list[Panel]]:
    """The panels of every pair of a batch. The last three are the result, the target and the difference."""
    arrays = _arrays(raw)
    stages = {name: _images(column) for name, column in stage_images(system, columns).items()}
    images = _images(columns[system.image]) if system.image else None
    poses = _predicted(system, arrays, columns) if system.joints else []
    return [
        [
            *_given(system, arrays, index, poses[index] if poses else None),
            *(Panel(name.replace("_", " "), "stage", images[index]) for name, images in stages.items()),
            *(_pose_results(arrays, index, poses[index]) if images is None else _results(arrays, index, images[index])),
        ]
        for index in range(len(arrays["pair"]))
    ]


def result_images(system: System, raw: Raw, columns: Columns) -> list[Uint8Image]:
    """The result of every pair at the system's size; without an image, the predicted skeleton on the target."""
    if system.image:
        return list(_images(columns[system.image]))
    arrays = _arrays(raw)
    poses = _predicted(system, arrays, columns)
    return [skeleton_over(image, pose, 1) for image, pose in zip(arrays["target_image"], poses, strict=True)]


def given_panels(shards: Shards, split: str, pairs: Sequence[int]) -> list[list[Panel]]:
    """Pairs of a split without results: the source image, the target pose, the target."""
    columns = {"source_image", "target_image"}
    (raw,) = listed_batches(shards, split, columns=columns, batch_size=len(pairs), pairs=pairs)
    arrays = _arrays(raw)
    return [
        [
            Panel("source", "given", arrays["source_image"][index]),
            _pose_panel("target pose", _known_pose(arrays, "target", index), shards.size),
            Panel("target", "target", arrays["target_image"][index]),
        ]
        for index in range(len(pairs))
    ]


def _given(system: System, arrays: Arrays, index: int, predicted: Pose | None) -> list[Panel]:
    """What the system is given of a pair, and the joints that it predicts beside those of both images."""
    read = {column for stage in system.stages for column in stage.reads}
    shown = [Panel("source", "given", arrays["source_image"][index])]
    if not system.image:
        return shown if any(column.startswith("source_") for column in read) else []
    if predicted is not None:
        shown.append(_pose_panel("source pose", _known_pose(arrays, "source", index), system.size))
        shown.append(_pose_panel("predicted pose", predicted, system.size))
    shown.append(_pose_panel("target pose", _known_pose(arrays, "target", index), system.size))
    if predicted is not None and "target_person_mask" in arrays.keys() & read:
        shown.append(Panel("target mask", "given", silhouette(arrays["target_person_mask"][index])))
    return shown


def _results(arrays: Arrays, index: int, result: Uint8Image) -> list[Panel]:
    target = arrays["target_image"][index]
    return [
        Panel("result", "result", result),
        Panel("target", "target", target),
        Panel("difference", "difference", difference(result, target)),
    ]


def _pose_results(arrays: Arrays, index: int, predicted: Pose) -> list[Panel]:
    image, true = arrays["target_image"][index], _known_pose(arrays, "target", index)
    scale = enlargement(image.shape[0])
    return [
        Panel("estimated pose", "result", skeleton_over(image, predicted, scale), drawn=True),
        Panel("true pose", "target", skeleton_over(image, true, scale), drawn=True),
        Panel("overlay", "difference", both_skeletons(image, predicted, true, scale), drawn=True),
    ]


def _predicted(system: System, arrays: Arrays, columns: Columns) -> list[Pose]:
    """The predicted poses; drawn of them is what is scored, the joints that the target knows."""
    joints = columns[system.joints].float().cpu().numpy()
    seen = arrays["target_visible"] & np.isfinite(joints).all(axis=2)
    return [Pose(*pose) for pose in zip(joints, seen, strict=True)]


def _known_pose(arrays: Arrays, role: str, index: int) -> Pose:
    return Pose(arrays[f"{role}_joints"][index], arrays[f"{role}_visible"][index])


def _pose_panel(label: str, pose: Pose, size: tuple[int, int]) -> Panel:
    return Panel(label, "given", skeleton(pose, *size, enlargement(size[0])), drawn=True)


def _arrays(raw: Raw) -> dict[str, np.ndarray]:
    return {name: column.numpy() for name, column in raw.items()}


def _images(image: Tensor) -> np.ndarray:
    return to_uint8(torch.nan_to_num(image.float()))


FIXED = 12  # pairs of the fixed draw
EXTREME = 8  # of the best and of the worst
SEED = 0

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One test pair with everything that is shown of it."""

    pair: int
    source: str
    target: str
    scores: dict[str, float]
    panels: list[Panel]


def ranked(table: Table) -> list[int]:
    """Rows of the scores, best first by what decides and then by number; those without that score are left out.

    That is mask-L1, and the pose error of a system that makes no image.
    """
    values = table[deciding(table.keys())]
    order = np.lexsort((table["pair"], values))
    return order[np.isfinite(values[order])].tolist()


def chosen_rows(table: Table) -> dict[str, list[int]]:
    """Rows of the scores to show: "best" first, "worst" (the worst one first), and a "fixed" draw by seed 0.

    The fixed draw depends on the number of scored pairs alone, so it is the same pairs in every run on the same data.
    """
    order = ranked(table)
    fixed = np.sort(np.random.default_rng(SEED).permutation(len(table["pair"]))[:FIXED])
    return {"best": _varied(table, order), "worst": _varied(table, order[::-1]), "fixed": fixed.tolist()}


def _varied(table: Table, order: Sequence[int]) -> list[int]:
    """The first `EXTREME` rows of an order, one a person where there are so many persons, still in that order."""
    first_of = {table["person"][row]: place for place, row in reversed(list(enumerate(order)))}
    places = sorted(first_of.values())
    rest = [place for place in range(len(order)) if place not in set(places)]
    return [order[place] for place in sorted([*places, *rest][:EXTREME])]


def make_cases(
    trained: Trained, shards: Shards, table: Table, rows: Sequence[int], metrics: Sequence[str]
) -> list[Case]:
    """The cases of some rows of the scores, in their order, synthesized again."""
    cases, left = [], iter(rows)
    for raw, columns in synthesized(trained, shards, [int(table["pair"][row]) for row in rows]):
        for shown in panels(trained.system, raw, columns):
            row = next(left)
            cases.append(
                Case(
                    pair=int(table["pair"][row]),
                    source=str(table["source"][row]),
                    target=str(table["target"][row]),
                    scores={name: float(table[name][row]) for name in metrics},
                    panels=shown,
                )
            )
    return cases


GROUPS = 4


@dataclass(frozen=True)
class View:
    """Another view of a group: how far its camera is from the source's in degrees, what was made, and the truth."""

    rotation: float  # in (-180, 180], counter-clockwise seen from above
    made: Uint8Image
    true: Uint8Image


@dataclass(frozen=True)
class ViewRow:
    """A source and every other view of its group, by rotation."""

    name: str
    source: Uint8Image
    views: list[View]


def every_view(trained: Trained, shards: Shards) -> list[ViewRow]:
    """`GROUPS` groups of test views drawn by `SEED`; empty where the shards do not know the azimuths.

    The source of the n-th row is the n-th view of its group by azimuth (counted round and round), so that sources are
    seen from several sides. The draw depends on the test pairs alone: it is the same in every run on the same data.
    """
    if "rotation" not in shards.columns:
        return []
    groups = pairs_by_group(shards)
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(groups))[:GROUPS])
    sources = [list(groups.values())[place] for place in drawn.tolist()]
    return [_row(trained, shards, each[number % len(each)]) for number, each in enumerate(sources)]


def pairs_by_group(shards: Shards) -> dict[str, list[list[int]]]:
    """Places of the test pairs of each source, by group; the sources of a group in the order of their azimuths.

    A group lies in one shard, so shards are looked at one after the other.
    """
    groups: dict[str, list[list[int]]] = {}
    for test, _, places in shards.pieces("test"):
        by_source: dict[int, list[int]] = {}
        sources, _ = test.pair_rows(np.arange(test.pair_count))
        for place, source in zip(places.tolist(), sources.tolist(), strict=True):
            by_source.setdefault(source, []).append(place)
        for source in sorted(by_source, key=lambda row: (test.azimuths[row], row)):
            groups.setdefault(test.group(source), []).append(by_source[source])
    return dict(sorted(groups.items()))


def _row(trained: Trained, shards: Shards, pairs: list[int]) -> ViewRow:
    """The pairs of one source, synthesized."""
    views, sources = [], []
    for raw, columns in synthesized(trained, shards, pairs):
        shown = (raw["rotation"].tolist(), result_images(trained.system, raw, columns), raw["target_image"].numpy())
        views += [View(*each) for each in zip(*shown, strict=True)]
        sources += list(raw["source_image"].numpy())
    name = shards.pair_names("test", pairs[:1])[0][0]
    return ViewRow(name, sources[0], sorted(views, key=lambda view: view.rotation))
