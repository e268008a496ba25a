"""Images shown by the report: panels of a pair, the cases (best, worst, fixed draw), and every view of some groups.

A system that predicts joints and makes no image is drawn on the target image: the predicted skeleton is the result, the
true one the target, and both together the difference.

The views of a group are shown where the shards know the cameras' azimuths, as in Multistage's figure 9: one source
image to every other view, results above true images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posegen.data.loading.dataset import Shards, listed_batches
from posegen.evaluation.metrics import Pose, Uint8Image, ranking_metric, to_uint8
from posegen.evaluation.scoring import stage_images, synthesized
from posegen.inference import Trained
from posegen.report.drawing import both_skeletons, difference_heatmap, enlargement, silhouette, skeleton, skeleton_over
from posegen.stage import System

FIXED = 12  # pairs of the fixed draw
EXTREME = 8  # pairs of the best, and of the worst
GROUPS = 4  # groups of which every view is shown
SEED = 0

Raw = Mapping[str, Tensor]  # a batch of the shards
Arrays = Mapping[str, np.ndarray]  # the same as arrays
Columns = Mapping[str, Tensor]  # the same on the device, with the stages' outputs
Table = Mapping[str, np.ndarray]  # columns of pairs.parquet


@dataclass(frozen=True)
class Panel:
    """A labelled image of a case; a `drawn` one has a higher resolution than the images."""

    label: str
    role: str  # "given", "stage", "result", "target" or "difference"
    image: Uint8Image
    drawn: bool = False


@dataclass(frozen=True)
class Case:
    """A pair with the scores and panels shown of it."""

    pair: int
    source: str
    target: str
    scores: dict[str, float]
    panels: list[Panel]


@dataclass(frozen=True)
class View:
    """Another view of a group: rotation from the source's camera in degrees, generated and true image."""

    rotation: float  # in (-180, 180], counter-clockwise seen from above
    made: Uint8Image
    true: Uint8Image


@dataclass(frozen=True)
class ViewRow:
    """A source and every other view of its group, ordered by rotation."""

    name: str
    source: Uint8Image
    views: list[View]


def chosen_rows(table: Table) -> dict[str, list[int]]:
    """Return rows of the scores to show: "best", "worst" (the worst one first), and a "fixed" draw by seed 0.

    The fixed draw depends only on the number of scored pairs, so it is the same in every run on the same data.
    """
    order = ranked(table)
    fixed = np.sort(np.random.default_rng(SEED).permutation(len(table["pair"]))[:FIXED])
    return {"best": _varied(table, order), "worst": _varied(table, order[::-1]), "fixed": fixed.tolist()}


def ranked(table: Table) -> list[int]:
    """Return rows of the scores, best first by mask-L1 (the pose error without images), then by pair.

    Rows without that score are left out.
    """
    values = table[ranking_metric(table.keys())]
    order = np.lexsort((table["pair"], values))
    return order[np.isfinite(values[order])].tolist()


def _varied(table: Table, order: Sequence[int]) -> list[int]:
    """Return `EXTREME` rows in the given order: the first of each person, then the first of the others."""
    first_of = {table["person"][row]: index for index, row in reversed(list(enumerate(order)))}
    firsts = sorted(first_of.values())
    rest = [index for index in range(len(order)) if index not in set(firsts)]
    return [order[index] for index in sorted([*firsts, *rest][:EXTREME])]


def make_cases(
    trained: Trained, shards: Shards, table: Table, rows: Sequence[int], metrics: Sequence[str]
) -> list[Case]:
    """Synthesize the pairs of some rows of the scores again and return their cases in order."""
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


def panels(system: System, raw: Raw, columns: Columns) -> list[list[Panel]]:
    """Return the panels of every pair of a batch. The last three are the result, the target and the difference."""
    arrays = _arrays(raw)
    stages = {name: _finite_uint8(column) for name, column in stage_images(system, columns).items()}
    images = _finite_uint8(columns[system.image]) if system.image else None
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
    """Return the result of every pair at the system's size; without images, the predicted skeleton on the target."""
    if system.image:
        return list(_finite_uint8(columns[system.image]))
    arrays = _arrays(raw)
    poses = _predicted(system, arrays, columns)
    return [skeleton_over(image, pose, 1) for image, pose in zip(arrays["target_image"], poses, strict=True)]


def given_panels(shards: Shards, split: str, pairs: Sequence[int]) -> list[list[Panel]]:
    """Return the panels of pairs of a split without results: source image, target pose, target."""
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
    """Return the inputs of a pair, and predicted joints next to those of both images."""
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
        Panel("difference", "difference", difference_heatmap(result, target)),
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
    """Return the predicted poses with the scored joints visible: those known in the target."""
    joints = columns[system.joints].float().cpu().numpy()
    visible = arrays["target_visible"] & np.isfinite(joints).all(axis=2)
    return [Pose(*pose) for pose in zip(joints, visible, strict=True)]


def _known_pose(arrays: Arrays, role: str, index: int) -> Pose:
    return Pose(arrays[f"{role}_joints"][index], arrays[f"{role}_visible"][index])


def _pose_panel(label: str, pose: Pose, size: tuple[int, int]) -> Panel:
    return Panel(label, "given", skeleton(pose, *size, enlargement(size[0])), drawn=True)


def _arrays(raw: Raw) -> dict[str, np.ndarray]:
    return {name: column.numpy() for name, column in raw.items()}


def _finite_uint8(images: Tensor) -> np.ndarray:
    return to_uint8(torch.nan_to_num(images.float()))


def every_view(trained: Trained, shards: Shards) -> list[ViewRow]:
    """Return rows for `GROUPS` groups of test views drawn by `SEED`; none where the shards do not know the azimuths.

    The source of the n-th row is the n-th view of its group by azimuth (modulo the number of views), so that sources
    are seen from several sides. The draw depends only on the test pairs: it is the same in every run on the same data.
    """
    if "rotation" not in shards.columns:
        return []
    groups = list(pairs_by_group(shards).values())
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(groups))[:GROUPS]).tolist()
    return [_row(trained, shards, groups[index][n % len(groups[index])]) for n, index in enumerate(drawn)]


def pairs_by_group(shards: Shards) -> dict[str, list[list[int]]]:
    """Return the test pairs of each source, by group; the sources of a group ordered by azimuth.

    A group lies within one shard, so shards are read one after the other.
    """
    groups: dict[str, list[list[int]]] = {}
    for test, _, pairs in shards.pieces("test"):
        by_source: dict[int, list[int]] = {}
        sources, _ = test.pair_rows(np.arange(test.pair_count))
        for pair, source in zip(pairs.tolist(), sources.tolist(), strict=True):
            by_source.setdefault(source, []).append(pair)
        for source in sorted(by_source, key=lambda row: (test.azimuths[row], row)):
            groups.setdefault(test.group(source), []).append(by_source[source])
    return dict(sorted(groups.items()))


def _row(trained: Trained, shards: Shards, pairs: list[int]) -> ViewRow:
    """Synthesize the pairs of one source."""
    views, sources = [], []
    for raw, columns in synthesized(trained, shards, pairs):
        shown = (raw["rotation"].tolist(), result_images(trained.system, raw, columns), raw["target_image"].numpy())
        views += [View(*each) for each in zip(*shown, strict=True)]
        sources += list(raw["source_image"].numpy())
    name = shards.pair_names("test", pairs[:1])[0][0]
    return ViewRow(name, sources[0], sorted(views, key=lambda view: view.rotation))
