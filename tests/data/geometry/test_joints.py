"""Joint orders: what each layout's points become."""

import numpy as np
import pytest

from posegen.data.geometry.joints import (
    HUMAN36M_17,
    JOINTS,
    LAYOUTS,
    LIMBS,
    MIRROR,
    TORSO,
    from_layout,
    looks_like_body_25,
)

BOTH_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_NAMES = ["nose", *(f"{side}_{part}" for part in BOTH_SIDES for side in ("left", "right"))]
BODY_25_NAMES = [
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("middle_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
]


def numbered(count: int) -> np.ndarray:
    """Point i at (i, 100 + i), known with confidence 1."""
    return np.array([(point, 100 + point, 1) for point in range(count)], dtype=np.float64)


def test_the_mirror_exchanges_left_and_right_names_and_is_its_own_inverse():
    exchange = {"left": "right", "right": "left"}
    for joint, name in enumerate(JOINTS):
        side, underscore, part = name.partition("_")
        assert JOINTS[MIRROR[joint]] == (f"{exchange[side]}_{part}" if underscore else name)
        assert MIRROR[MIRROR[joint]] == joint


def test_torso_and_limbs_are_what_their_names_say():
    assert [JOINTS[joint] for joint in TORSO] == ["right_shoulder", "left_shoulder", "right_hip", "left_hip"]
    assert len(set(LIMBS)) == 23
    assert set(sum(LIMBS, ())) == set(range(18))


@pytest.mark.parametrize(
    ("layout", "names"),
    [("body_18", JOINTS), ("body_25", BODY_25_NAMES), ("body_25b", COCO_NAMES), ("coco_17", COCO_NAMES)],
)
def test_every_joint_comes_from_the_point_of_its_name(layout, names):
    joints, confidence = from_layout(numbered(LAYOUTS[layout].points), layout)
    assert (confidence == 1).all()
    for joint, name in enumerate(JOINTS):
        if name in names:
            assert joints[joint].tolist() == [names.index(name), 100 + names.index(name)]


HUMAN36M_NAMES = [
    *("hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("spine", "neck", "nose", "head", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_shoulder", "right_elbow", "right_wrist"),
]


@pytest.mark.parametrize(("layout", "places"), [("human36m_17", range(17)), ("human36m_32", HUMAN36M_17)])
def test_human36m_has_no_eyes_and_ears_and_calls_neck_and_ankles_otherwise(layout, places):
    people = np.stack([numbered(LAYOUTS[layout].points)] * 2)
    joints, confidence = from_layout(people, layout)
    assert confidence.tolist() == [[1] * 14 + [0] * 4] * 2
    for joint, name in enumerate(JOINTS[:14]):
        place = places[HUMAN36M_NAMES.index(name)]
        assert joints[:, joint].tolist() == [[place, 100 + place]] * 2


def test_videopose3d_keeps_17_of_the_32_points():
    removed = {4, 5, 9, 10, 11, 16, *range(20, 25), *range(28, 32)}
    assert sorted({*HUMAN36M_17} | removed) == list(range(32))
    assert len(HUMAN36M_17) == 17


@pytest.mark.parametrize("layout", ["body_25b", "coco_17"])
def test_the_neck_is_the_middle_of_the_shoulders(layout):
    points = numbered(LAYOUTS[layout].points)
    points[5], points[6] = (10, 40, 0.5), (30, 20, 0.25)
    joints, confidence = from_layout(points, layout)
    assert joints[1].tolist() == [20, 30]
    assert confidence[1] == 0.25
    points[6, 2] = 0
    assert from_layout(points, layout)[1][1] == 0


def test_a_confidence_below_zero_or_not_a_number_is_unknown():
    points = numbered(18)
    points[3, 2], points[4, 2] = -1, np.nan
    confidence = from_layout(points, "body_18")[1]
    assert confidence[[3, 4]].tolist() == [0, 0]
    assert (np.delete(confidence, [3, 4]) == 1).all()


def test_body_25_is_known_by_the_middle_of_its_hips():
    person = numbered(25)
    person[1], person[9], person[12], person[8] = (50, 10, 1), (45, 60, 1), (55, 60, 1), (51, 60, 1)
    assert looks_like_body_25(person[None])
    person[8] = (90, 40, 1)
    assert not looks_like_body_25(person[None])
    assert looks_like_body_25(np.stack([person, person * 0]) * [1, 1, 0])  # nobody is seen: nothing speaks against it
