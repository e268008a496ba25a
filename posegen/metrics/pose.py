"""How near predicted joints come to the target's: mean distance, PCK, PCKh, and the two poses that they have to beat.

Joints are x, y in pixels of the target picture, in the order of `joints.JOINTS`; only those that the target knows
count. Every metric gives one float64 a pair, NaN where it is undefined (`Metric.undefined`) and where a predicted joint
that counts is no number.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64

from posegen.data.joints import JOINTS
from posegen.data.loader import Shards
from posegen.metrics.measures import Metric, Scores

Predicted = Float[np.ndarray, "pairs 18 2"]
Target = Float[np.ndarray, "pairs 18 2"]  # anything where not known
Known = Bool[np.ndarray, "pairs 18"]
MeanPose = Float[np.ndarray, "18 2"]

POSE_BASELINES = {
    "source": "the source's own joints; the middle of them for a joint that the source does not know",
    "mean": "the mean of the training pictures' joints, of each joint over the pictures that know it",
}

OF_THE_BOX = 0.1  # of the person's height: PCK's reach
OF_THE_HEAD = 0.5  # of the head's size: PCKh's reach
NECK, NOSE = JOINTS.index("neck"), JOINTS.index("nose")


def pose_error(predicted: Predicted, target: Target, known: Known) -> Scores:
    """Mean distance between predicted and true joints, over those that the target knows. In pixels, lower is better."""
    return _mean_of_known(_distances(predicted, target, known), known)


def pck(predicted: Predicted, target: Target, known: Known) -> Scores:
    """PCK@0.1: the share of known joints predicted within 0.1 of the person's height. In [0, 1], higher is better.

    The height is that of the box around the target's known joints, largest y minus smallest y (our choice: Yang and
    Ramanan 2013, whose score it is, take the larger side of the box, which outstretched arms make larger). A joint
    exactly that far away counts. A person of one known joint, or with all at one height, has no box: NaN.
    """
    heights = np.where(known, target[..., 1].astype(np.float64), np.nan)
    counted = known.any(axis=1)
    box = np.full(len(known), np.nan)
    box[counted] = np.nanmax(heights[counted], axis=1) - np.nanmin(heights[counted], axis=1)
    return _share_within(OF_THE_BOX * box, predicted, target, known)


def pckh(predicted: Predicted, target: Target, known: Known) -> Scores:
    """PCKh@0.5: the share of known joints predicted within half of the head's size. In [0, 1], higher is better.

    Andriluka et al. 2014 take 0.6 of the diagonal of an annotated head box. The 18 joints have no such box: our choice
    is the distance from the target's neck to its nose, as it is (about 0.09 of the person's height on the embedded
    people). NaN where one of the two is unknown or both lie in one place.
    """
    head = np.linalg.norm(target[:, NOSE].astype(np.float64) - target[:, NECK], axis=-1)
    return _share_within(
        OF_THE_HEAD * np.where(known[:, [NOSE, NECK]].all(axis=1), head, np.nan), predicted, target, known
    )


def _distances(predicted: Predicted, target: Target, known: Known) -> Float64[np.ndarray, "pairs 18"]:
    """In pixels; 0 for joints that the target does not know."""
    offsets = np.where(known[..., None], predicted, 0).astype(np.float64) - np.where(known[..., None], target, 0)
    return np.linalg.norm(offsets, axis=-1)


def _mean_of_known(values: Float64[np.ndarray, "pairs 18"], known: Known) -> Scores:
    count = known.sum(axis=1)
    return np.divide((values * known).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


def _share_within(reach: Scores, predicted: Predicted, target: Target, known: Known) -> Scores:
    distances = _distances(predicted, target, known)
    share = _mean_of_known((distances <= reach[:, None]).astype(np.float64), known)
    return np.where((reach > 0) & np.isfinite(distances).all(axis=1), share, np.nan)


_PCK = "share of the joints known in the target that are predicted within "

POSE_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="pose_error", title="pose error", unit="px", higher=False, low=0.0, high=np.inf,
            undefined="the target has no known joint", function=pose_error,
            definition="mean distance between predicted and true joints, over those known in the target",
        ),
        Metric(
            name="pck", title="PCK@0.1", unit="", higher=True, low=0.0, high=1.0,
            undefined="the target's known joints have no height", function=pck,
            definition=_PCK + f"{OF_THE_BOX} of the height of the box around those joints",
        ),
        Metric(
            name="pckh", title="PCKh@0.5", unit="", higher=True, low=0.0, high=1.0,
            undefined="the target's neck or nose is unknown, or both lie in one place", function=pckh,
            definition=_PCK + f"{OF_THE_HEAD} of the distance from its neck to its nose",
        ),
    )
}  # fmt: skip


def source_poses(joints: Predicted, visible: Known) -> Float64[np.ndarray, "pairs 18 2"]:
    """Sources' joints as predictions: the middle of the known ones stands in for those that are not known.

    Our choice, so that every baseline is judged on the same joints and depends on the pair alone. NaN where a source
    knows no joint.
    """
    known = np.where(visible[..., None], joints.astype(np.float64), 0.0)
    count = visible.sum(axis=1, dtype=np.float64)[:, None]
    middle = np.divide(known.sum(axis=1), count, out=np.full((len(joints), 2), np.nan), where=count > 0)
    return np.where(visible[..., None], known, middle[:, None])


def mean_pose(shards: Shards) -> MeanPose:
    """The mean of each joint over the training pictures that know it; the picture's middle where none does.

    Raises ValueError where there is no training picture.
    """
    if not shards.picture_count("train"):
        raise ValueError("there is no training pose to take the mean of: the shards have no usable 'train' picture")
    total, count = np.zeros((len(JOINTS), 2)), np.zeros((len(JOINTS), 1))
    for piece in shards.pieces("train"):
        joints, visible = piece.mapped.joints.astype(np.float64), piece.mapped.visible
        known = np.where(visible[..., None], joints, 0)
        total = np.concatenate([total[None], known]).sum(axis=0)  # picture by picture: the same for any pieces
        count += visible.sum(axis=0, dtype=np.float64)[:, None]
    middle = (np.array(shards.size[::-1], dtype=np.float64) - 1) / 2
    return np.divide(total, count, out=np.tile(middle, (len(JOINTS), 1)), where=count > 0)
