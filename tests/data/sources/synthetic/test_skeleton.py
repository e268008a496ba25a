"""The skeleton: rotations by hand, bone lengths that no pose changes, left and right where they belong."""

import numpy as np
import pytest

from posegen.data.geometry.joints import JOINTS, MIRROR
from posegen.data.sources.synthetic.skeleton import (
    FAMILIES,
    SIDES,
    Arm,
    Leg,
    Pose,
    Proportions,
    pose_skeleton,
    random_pose,
    random_proportions,
    turn,
)

STRAIGHT = Pose(
    arms={side: Arm(flexion=0.0, abduction=0.0, twist=0.0, elbow=0.0) for side in SIDES},
    legs={side: Leg(flexion=0.0, abduction=0.0, turnout=0.0, knee=0.0) for side in SIDES},
    lean=0.0,
)
BONES = (
    ("shoulder", "elbow", "upper_arm"),
    ("elbow", "wrist", "forearm"),
    ("hip", "knee", "thigh"),
    ("knee", "ankle", "shin"),
)


def test_turns_follow_the_right_hand():
    np.testing.assert_allclose(turn(0, 90.0) @ (0, 1, 0), (0, 0, 1), atol=1e-12)
    np.testing.assert_allclose(turn(1, 90.0) @ (0, 0, 1), (1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(turn(2, 90.0) @ (1, 0, 0), (0, 1, 0), atol=1e-12)


def test_a_straight_person_stands_as_the_proportions_say():
    proportions = Proportions()
    skeleton = pose_skeleton(proportions, STRAIGHT)
    np.testing.assert_allclose(skeleton.joint("neck"), (0, proportions.spine, 0), atol=1e-12)
    np.testing.assert_allclose(skeleton.joint("left_hip"), (proportions.hip, 0, 0), atol=1e-12)
    down = proportions.thigh + proportions.shin
    np.testing.assert_allclose(skeleton.joint("right_ankle"), (-proportions.hip, -down, 0), atol=1e-12)
    np.testing.assert_allclose(skeleton.joints[list(MIRROR)] * (-1, 1, 1), skeleton.joints, atol=1e-12)


def test_an_arm_lifted_forward_and_a_knee_bent_go_where_they_should():
    proportions = Proportions()
    arms = {**STRAIGHT.arms, "left": Arm(flexion=90.0, abduction=0.0, twist=0.0, elbow=0.0)}
    legs = {**STRAIGHT.legs, "right": Leg(flexion=0.0, abduction=0.0, turnout=0.0, knee=90.0)}
    skeleton = pose_skeleton(proportions, Pose(arms=arms, legs=legs, lean=0.0))
    reach = skeleton.joint("left_wrist") - skeleton.joint("left_shoulder")
    np.testing.assert_allclose(reach, (0, 0, proportions.upper_arm + proportions.forearm), atol=1e-12)
    shin = skeleton.joint("right_ankle") - skeleton.joint("right_knee")
    np.testing.assert_allclose(shin, (0, 0, -proportions.shin), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_bones_keep_their_lengths_in_every_pose(seed: int):
    rng = np.random.default_rng(seed)
    proportions = random_proportions(rng)
    skeleton = pose_skeleton(proportions, random_pose(rng))
    straight = pose_skeleton(proportions, STRAIGHT)
    for side in SIDES:
        for start, end, length in BONES:
            bone = skeleton.joint(f"{side}_{end}") - skeleton.joint(f"{side}_{start}")
            assert np.linalg.norm(bone) == pytest.approx(getattr(proportions, length))
        for joint in ("shoulder", "ear"):
            near = "neck" if joint == "shoulder" else "nose"
            lengths = [np.linalg.norm(one.joint(f"{side}_{joint}") - one.joint(near)) for one in (skeleton, straight)]
            assert lengths[0] == pytest.approx(lengths[1])


def test_every_family_gives_finite_different_poses_and_the_chances_sum_to_one():
    assert sum(FAMILIES.values()) == pytest.approx(1)
    for family in FAMILIES:
        first, second = (pose_skeleton(Proportions(), family(np.random.default_rng(seed))) for seed in (1, 2))
        assert np.isfinite(first.joints).all()
        assert np.abs(first.joints - second.joints).max() > 0.01, family.__name__
    assert len(JOINTS) == len(first.joints)
