"""The 18 joints of OpenPose (COCO-18), the limbs between them, and their left-right exchange.

Order and limbs: OpenPose's COCO model and PG2's `_getPoseMask` (convert_market.py), 0-based. x grows to the right and y
downwards, in pixels; "left" is the person's own left. Points in other orders are converted to this one.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip

TORSO = (2, 5, 8, 11)  # both shoulders and both hips: images without all of them are never paired

# The 23 limbs of PG2's pose mask; the first 13 of them and the face's four are what a skeleton drawing shows.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (1, 16), (1, 17), (8, 11), (11, 5), (8, 2), (16, 17),
)  # fmt: skip

# joints[MIRROR] are the joints of the mirrored person.
MIRROR = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)


class Layout(NamedTuple):
    """An order of body points. `rows[j]` is the index of joint j, or one of the two constants below."""

    points: int
    rows: tuple[int, ...]


SHOULDERS = -1  # the mean of the two shoulders
UNKNOWN = -2  # the order has no such point
_COCO_ROWS = (0, SHOULDERS, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)

_HALPE_ROWS = (0, 18, *_COCO_ROWS[2:])

_NO_FACE = (UNKNOWN,) * 4  # eyes and ears

# The 17 of Human3.6M's 32 points in use: the others are the ends of hands and feet, and duplicates
# (VideoPose3D removes 4, 5, 9, 10, 11, 16, 20 to 24 and 28 to 31).
HUMAN36M_17 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)

# OpenPose's own orders (its `poseParameters.cpp`) and COCO's 17 points. BODY_25B starts with COCO's 17; its upper neck
# lies higher than the neck of the other orders, so there too the neck is the mean of the shoulders.
#
# Halpe (Full-Body Human Keypoints; AlphaPose): COCO's 17, head, neck, hip and feet, 26 in all; 136 with face and hands.
# COCO-WholeBody: COCO's 17, feet, face and hands. BlazePose (MediaPipe's Pose): eyes are its points 2 and 5.
#
# Human3.6M: hip, right hip, knee, foot, left hip, knee, foot, spine, thorax, nose, head, left shoulder, elbow, wrist,
# right shoulder, elbow, wrist. Its thorax lies at the base of the neck, between the shoulders, and is OpenPose's neck;
# its nose ("Neck/Nose" in its own list, a point at the face) is the nose; its head is the top of the skull, and is left
# out, as are eyes and ears, which it does not have (our choice).
LAYOUTS = {
    "body_18": Layout(18, tuple(range(18))),
    "body_25": Layout(25, (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),
    "body_25b": Layout(25, _COCO_ROWS),
    "coco_17": Layout(17, _COCO_ROWS),
    "halpe_26": Layout(26, _HALPE_ROWS),
    "blazepose_33": Layout(33, (0, SHOULDERS, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)),
    "wholebody_133": Layout(133, _COCO_ROWS),
    "halpe_136": Layout(136, _HALPE_ROWS),
    "human36m_17": Layout(17, (9, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6, *_NO_FACE)),
    "human36m_32": Layout(32, (14, 13, 25, 26, 27, 17, 18, 19, 1, 2, 3, 6, 7, 8, *_NO_FACE)),
}


# Of orders that are told by their number of points alone.
LAYOUT_OF = {
    17: "coco_17",
    18: "body_18",
    25: "body_25",
    26: "halpe_26",
    33: "blazepose_33",
    133: "wholebody_133",
    136: "halpe_136",
}

_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}
# Other words for the joints, and words of points that posegen does not use.
_PARTS = {"sho": "shoulder", "elb": "elbow", "wri": "wrist", "kne": "knee", "ank": "ankle", "sh": "shoulder"} | {
    part: part for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "eye", "ear")
}
_UNUSED = re.compile(
    r"head|skull|crown|forehead|brow|jaw|chin|mouth|lip|face|neck|thorax|chest|sternum|spine|back|torso|belly|navel|waist"
    r"|pelvis|root|midhip|centerhip|hips?$|foot|feet|toe|heel|hand|palm|finger|thumb|index|middle|ring|pinky|little|clavicle"
    r"|collar|eye|ear"
)


def layout_by_names(names: Sequence[str]) -> tuple[Layout, list[str]]:
    """Return the order of points with names ("left_shoulder", "LShoulder", "shoulder.L"), and the unknown names.

    The neck is the point "neck", else "thorax" (as in Human3.6M's and MPII's lists, our choice), else between the
    shoulders. Points of feet, hands, face and spine are known and not used; any other name is unknown.
    """
    found: dict[str, int] = {}
    unknown = []
    for index, name in enumerate(names):
        words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name).lower())
        side = next((_SIDES[word] for word in words if word in _SIDES), "")
        rest = "".join(word for word in words if word not in _SIDES)
        if not side and rest[:1] in _SIDES and rest[1:] in _PARTS:  # "lshoulder"
            side, rest = _SIDES[rest[0]], rest[1:]
        joint = f"{side}_{_PARTS[rest]}" if side and rest in _PARTS else rest
        if joint in JOINTS or joint == "thorax":
            found.setdefault(joint, index)
        elif not _UNUSED.search(rest):
            unknown.append(name)
    neck = found.get("neck", found.get("thorax", SHOULDERS))
    rows = tuple(neck if joint == "neck" else found.get(joint, UNKNOWN) for joint in JOINTS)
    return Layout(len(names), rows), unknown


def from_layout(
    points: Float[np.ndarray, "*people points 3"], layout: str | Layout
) -> tuple[Float[np.ndarray, "*people 18 2"], Float[np.ndarray, "*people 18"]]:
    """Convert points (x, y, confidence) in one of `LAYOUTS` to the 18 joints (x, y) and their confidence; 0 is unknown.

    A neck computed from the shoulders is known if both are, with the smaller of their confidences: COCO has no neck,
    and OpenPose's own training set computes it this way.
    """
    rows = LAYOUTS[layout].rows if isinstance(layout, str) else layout.rows
    joints, confidence = points[..., list(rows), :2], points[..., list(rows), 2]
    confidence = np.where((confidence > 0) & (np.array(rows) != UNKNOWN), confidence, 0.0)
    right, left = JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")
    for joint in (joint for joint, row in enumerate(rows) if row == SHOULDERS):
        joints[..., joint, :] = (joints[..., right, :] + joints[..., left, :]) / 2
        confidence[..., joint] = np.minimum(confidence[..., right], confidence[..., left])
    return joints, confidence


def looks_like_body_25(points: Float[np.ndarray, "people 25 3"]) -> bool:
    """Check that point 8 lies between points 9 and 12, as the middle of the hips does in BODY_25 and an elbow does not.

    Our choice: the files of BODY_25 and BODY_25B cannot be told apart otherwise. The median over the people that have
    points 1, 8, 9 and 12 must stay below 0.2 of the distance from point 1 to point 8; true if nobody has them.
    """
    seen = points[(points[:, [1, 8, 9, 12], 2] > 0).all(axis=1)]
    if not len(seen):
        return True
    middle = (seen[:, 9, :2] + seen[:, 12, :2]) / 2
    torso = np.linalg.norm(seen[:, 1, :2] - seen[:, 8, :2], axis=1)
    return bool(np.median(np.linalg.norm(seen[:, 8, :2] - middle, axis=1) - 0.2 * torso) <= 0)
