"""The pictures that are shown of a pair: what is given, what stages make of it, the result, the target, the difference.

A system that predicts joints and makes no picture has the target picture as its canvas: with the predicted skeleton as
the result, with the true one as the target, and with both on it as the difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posegen.data.loader import Shards, listed_batches
from posegen.metrics.baselines import Picture, Pose
from posegen.metrics.measures import as_pictures
from posegen.metrics.scoring import stage_pictures
from posegen.report.drawing import both_skeletons, difference, enlargement, silhouette, skeleton, skeleton_over
from posegen.stage import System

Raw = Mapping[str, Tensor]  # a batch of the shards
Arrays = Mapping[str, np.ndarray]
Columns = Mapping[str, Tensor]  # the same on the device, with the stages' outputs


@dataclass(frozen=True)
class Panel:
    """One picture of a case, under the name of what it is. A `drawn` one has a finer grid than the pictures have."""

    label: str
    role: str  # "given", "stage", "result", "target" or "difference"
    picture: Picture
    drawn: bool = False


def panels(system: System, raw: Raw, columns: Columns) -> list[list[Panel]]:
    """The panels of every pair of a batch. The last three are the result, the target and the difference."""
    arrays = _arrays(raw)
    stages = {name: _pictures(column) for name, column in stage_pictures(system, columns).items()}
    images = _pictures(columns[system.image]) if system.image else None
    poses = _predicted(system, arrays, columns) if system.joints else []
    return [
        [
            *_given(system, arrays, index, poses[index] if poses else None),
            *(Panel(name.replace("_", " "), "stage", pictures[index]) for name, pictures in stages.items()),
            *(_pose_results(arrays, index, poses[index]) if images is None else _results(arrays, index, images[index])),
        ]
        for index in range(len(arrays["pair"]))
    ]


def result_pictures(system: System, raw: Raw, columns: Columns) -> list[Picture]:
    """The result of every pair at the system's size; without a picture, the predicted skeleton on the target."""
    if system.image:
        return list(_pictures(columns[system.image]))
    arrays = _arrays(raw)
    poses = _predicted(system, arrays, columns)
    return [skeleton_over(picture, pose, 1) for picture, pose in zip(arrays["target_image"], poses, strict=True)]


def given_panels(shards: Shards, split: str, pairs: Sequence[int]) -> list[list[Panel]]:
    """Pairs of a split without results: the source picture, the target pose, the target."""
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
    """What the system is given of a pair, and the joints that it predicts beside those of both pictures."""
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


def _results(arrays: Arrays, index: int, result: Picture) -> list[Panel]:
    target = arrays["target_image"][index]
    return [
        Panel("result", "result", result),
        Panel("target", "target", target),
        Panel("difference", "difference", difference(result, target)),
    ]


def _pose_results(arrays: Arrays, index: int, predicted: Pose) -> list[Panel]:
    picture, true = arrays["target_image"][index], _known_pose(arrays, "target", index)
    scale = enlargement(picture.shape[0])
    return [
        Panel("estimated pose", "result", skeleton_over(picture, predicted, scale), drawn=True),
        Panel("true pose", "target", skeleton_over(picture, true, scale), drawn=True),
        Panel("overlay", "difference", both_skeletons(picture, predicted, true, scale), drawn=True),
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


def _pictures(image: Tensor) -> np.ndarray:
    return as_pictures(torch.nan_to_num(image.float()))
