"""Jointed 3D skeletons: from proportions and joint angles to the 18 OpenPose joints and the frame of every bone.

Body space: metres, the middle of the hips at the origin, x to the person's left, y up, z to where the pelvis faces.
A bone's frame is a rotation whose columns are the bone's own left, up and forward. Angles are in degrees.
Poses are drawn from families of natural ones (`FAMILIES`). Proportions are rounded averages of adults that vary from
person to person; these and all angles are our choice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from posegen.data.geometry.joints import JOINTS

SIDES = {"right": -1.0, "left": 1.0}
FACE = {  # offsets from the middle of the head, in its frame
    "nose": (0, -0.022, 0.09),
    "right_eye": (-0.031, 0.014, 0.073),
    "left_eye": (0.031, 0.014, 0.073),
    "right_ear": (-0.066, -0.008, -0.004),
    "left_ear": (0.066, -0.008, -0.004),
}


@dataclass(frozen=True, kw_only=True)
class Proportions:
    """Lengths of the bones in metres; `girth` and `masculine` shape the flesh around them."""

    thigh: float = 0.43
    shin: float = 0.41
    hip: float = 0.095  # from the middle of the hips to a hip
    spine: float = 0.50
    shoulder: float = 0.18  # from the neck to a shoulder
    upper_arm: float = 0.285
    forearm: float = 0.25
    head: float = 1.0  # scale of the head
    girth: float = 1.0  # scale of all thicknesses
    masculine: float = 0.5  # 0 to 1: how much wider the shoulders are than the hips


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm's angles: forward, sideways, forearm turned inwards, elbow bent. All zero hangs straight down."""

    flexion: float = 0.0
    abduction: float = 10.0
    twist: float = 20.0
    elbow: float = 14.0


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A leg's angles: forward, sideways, toes turned outwards, knee bent. All zero stands straight."""

    flexion: float = 0.0
    abduction: float = 2.5
    turnout: float = 6.0
    knee: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The angles of the whole body. `lean` is forward, `bend` and the two turns are to the person's left."""

    arms: Mapping[str, Arm]
    legs: Mapping[str, Leg]
    lean: float = 2.0
    bend: float = 0.0
    twist: float = 0.0
    head_turn: float = 0.0
    head_nod: float = 0.0


@dataclass(frozen=True)
class Skeleton:
    """A posed skeleton: `joints` (18, 3) in metres, and each bone's rotation by name ("right_thigh", "chest", ...)."""

    joints: Float[np.ndarray, "18 3"]
    frames: Mapping[str, Float[np.ndarray, "3 3"]]
    head: Float[np.ndarray, "3"]  # the middle of the head

    def joint(self, name: str) -> Float[np.ndarray, "3"]:
        """Return the position of a joint by its name in `JOINTS`."""
        return self.joints[JOINTS.index(name)]


def turn(axis: int, degrees: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation about axis 0 (left), 1 (up) or 2 (forward), counter-clockwise seen from its tip."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def random_proportions(rng: np.random.Generator) -> Proportions:
    """Draw the proportions of an adult; the overall height is fixed, because images are cropped to the person."""
    masculine = float(rng.uniform())
    legs, arms = rng.normal(1.0, 0.03, 2)
    return Proportions(
        thigh=0.43 * legs,
        shin=0.41 * legs,
        hip=0.098 - 0.008 * masculine,
        shoulder=0.158 + 0.034 * masculine + rng.normal(0, 0.004),
        upper_arm=0.285 * arms,
        forearm=0.25 * arms,
        head=float(np.clip(rng.normal(1.0, 0.03), 0.94, 1.06)),
        girth=float(np.clip(rng.normal(1.0, 0.10), 0.85, 1.28)),
        masculine=masculine,
    )


def pose_skeleton(proportions: Proportions, pose: Pose) -> Skeleton:
    """Compute the forward kinematics from the middle of the hips outwards; bone lengths do not depend on the pose."""
    chest = turn(1, pose.twist) @ turn(0, pose.lean) @ turn(2, -pose.bend)
    head = chest @ turn(1, pose.head_turn) @ turn(0, pose.head_nod - pose.lean)
    frames = {"pelvis": np.eye(3), "chest": chest, "head": head}
    points = {"neck": chest @ (0, proportions.spine, 0)}
    middle = points["neck"] + chest @ (0, 0.065, 0.0) + head @ np.array((0, 0.122, 0.022)) * proportions.head
    points |= {name: middle + head @ np.array(offset) * proportions.head for name, offset in FACE.items()}
    for side, sign in SIDES.items():
        _add_arm(points, frames, pose.arms[side], proportions, side, sign)
        _add_leg(points, frames, pose.legs[side], proportions, side, sign)
    return Skeleton(np.stack([points[name] for name in JOINTS]), frames, middle)


def _add_arm(points: dict, frames: dict, arm: Arm, proportions: Proportions, side: str, sign: float) -> None:
    """Add an arm: a collar bone that rises with an arm above the horizontal, three turns at the shoulder, one elbow."""
    upper = frames["chest"] @ turn(0, -arm.flexion) @ turn(2, sign * arm.abduction) @ turn(1, -sign * arm.twist)
    raised = max(0.0, -(frames["chest"].T @ upper @ (0, -1, 0)) @ (0, -1, 0))
    collar = frames["chest"] @ turn(2, sign * 16 * raised)
    frames[f"{side}_upper_arm"], frames[f"{side}_forearm"] = upper, upper @ turn(0, -arm.elbow)
    shoulder = points["neck"] + collar @ np.array((sign * 0.985, -0.17, -0.02)) * proportions.shoulder
    elbow = shoulder + upper @ (0, -proportions.upper_arm, 0)
    points[f"{side}_shoulder"], points[f"{side}_elbow"] = shoulder, elbow
    points[f"{side}_wrist"] = elbow + frames[f"{side}_forearm"] @ (0, -proportions.forearm, 0)


def _add_leg(points: dict, frames: dict, leg: Leg, proportions: Proportions, side: str, sign: float) -> None:
    """Add a leg; its foot follows about half of the shin's pitch: flat standing, heel up behind, toes up in front."""
    thigh = turn(0, -leg.flexion) @ turn(2, sign * leg.abduction) @ turn(1, sign * leg.turnout)
    shin = thigh @ turn(0, leg.knee)
    frames[f"{side}_thigh"], frames[f"{side}_shin"] = thigh, shin
    frames[f"{side}_foot"] = turn(1, sign * leg.turnout) @ turn(0, 0.55 * (leg.knee - leg.flexion))
    hip = np.array((sign * proportions.hip, 0, 0))
    knee = hip + thigh @ (0, -proportions.thigh, 0)
    points[f"{side}_hip"], points[f"{side}_knee"] = hip, knee
    points[f"{side}_ankle"] = knee + shin @ (0, -proportions.shin, 0)


def walking(rng: np.random.Generator) -> Pose:
    """Draw any phase of a walk: legs in opposition, arms against the legs, the swinging leg's knee bent."""
    return _gait(rng.uniform(0, 2 * np.pi), stride=rng.uniform(16, 27), swing=rng.uniform(30, 52), elbow=18, lean=3)


def running(rng: np.random.Generator) -> Pose:
    """Draw any phase of an easy run, with bent elbows."""
    return _gait(rng.uniform(0, 2 * np.pi), stride=rng.uniform(28, 36), swing=75, elbow=85, lean=8)


def standing(rng: np.random.Generator) -> Pose:
    """Draw a person at ease: arms hanging, the weight more or less on one leg."""
    arms = {side: _hanging_arm(rng) for side in SIDES}
    slack = rng.uniform(0, 22) * (rng.uniform() < 0.5)
    legs = {side: Leg(abduction=rng.uniform(1.5, 6), turnout=rng.uniform(4, 16)) for side in SIDES}
    resting = str(rng.choice(list(SIDES)))
    legs[resting] = replace(legs[resting], flexion=0.6 * slack, knee=4 + slack)
    return _with_head(rng, Pose(arms=arms, legs=legs, bend=rng.uniform(-3, 3), twist=rng.uniform(-8, 8)))


def hands_on_hips(rng: np.random.Generator) -> Pose:
    """Draw a person with both hands, or one, at the waist."""
    akimbo = Arm(flexion=-18, abduction=rng.uniform(40, 50), twist=rng.uniform(66, 76), elbow=rng.uniform(84, 96))
    return _with_arms(rng, akimbo, both=0.6)


def waving(rng: np.random.Generator) -> Pose:
    """Draw a person with one upper arm level or above, the forearm up."""
    wave = Arm(flexion=90, abduction=rng.uniform(50, 85), twist=0, elbow=rng.uniform(70, 115))
    return _with_arms(rng, wave, both=0.0)


def reaching_up(rng: np.random.Generator) -> Pose:
    """Draw a person with one arm or both above the head."""
    raised = Arm(flexion=rng.uniform(150, 172), abduction=rng.uniform(8, 24), twist=10, elbow=rng.uniform(10, 55))
    return _with_arms(rng, raised, both=0.6)


def holding(rng: np.random.Generator) -> Pose:
    """Draw a person with forearms before the body, as with a telephone, a cup or folded hands."""
    held = Arm(flexion=rng.uniform(5, 32), abduction=6, twist=rng.uniform(10, 48), elbow=rng.uniform(70, 112))
    return _with_arms(rng, held, both=0.5)


def calling(rng: np.random.Generator) -> Pose:
    """Draw a person with a hand at the ear."""
    call = Arm(flexion=rng.uniform(40, 60), abduction=rng.uniform(24, 34), twist=26, elbow=rng.uniform(134, 142))
    return _with_arms(rng, call, both=0.0)


def striding(rng: np.random.Generator) -> Pose:
    """Draw a person with legs apart and arms a little out."""
    spread = rng.uniform(8, 16)
    legs = {side: Leg(abduction=spread, turnout=rng.uniform(8, 20), knee=rng.uniform(2, 12)) for side in SIDES}
    arms = {side: replace(_hanging_arm(rng), abduction=rng.uniform(14, 32)) for side in SIDES}
    return _with_head(rng, Pose(arms=arms, legs=legs))


# Probability of each family: pedestrians mostly walk and stand.
FAMILIES: dict[Callable[[np.random.Generator], Pose], float] = {
    walking: 0.36,
    standing: 0.18,
    holding: 0.12,
    hands_on_hips: 0.08,
    waving: 0.06,
    reaching_up: 0.06,
    calling: 0.05,
    striding: 0.05,
    running: 0.04,
}


def random_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose, its family by the probabilities of `FAMILIES`."""
    families = list(FAMILIES)
    return families[rng.choice(len(families), p=list(FAMILIES.values()))](rng)


def _gait(phase: float, *, stride: float, swing: float, elbow: float, lean: float) -> Pose:
    """Thighs swing as a sine; a knee bends while its thigh moves forward (the cosine's positive half)."""
    arms, legs = {}, {}
    for side, sign in SIDES.items():
        forward, advancing = sign * np.sin(phase), max(0.0, sign * np.cos(phase))
        flexion = 3 + stride * forward + 0.12 * swing * advancing
        legs[side] = Leg(flexion=flexion, knee=5 + swing * advancing, abduction=1.5)
        arms[side] = Arm(flexion=-1.05 * stride * forward, abduction=12, twist=22, elbow=elbow - 10 * forward)
    turned = 0.25 * stride * np.sin(phase)
    return Pose(arms=arms, legs=legs, lean=lean, twist=turned, head_turn=-turned)


def _hanging_arm(rng: np.random.Generator) -> Arm:
    flexion, abduction = rng.uniform(-8, 10), rng.uniform(9, 17)
    return Arm(flexion=flexion, abduction=abduction, twist=rng.uniform(5, 45), elbow=rng.uniform(6, 28))


def _with_arms(rng: np.random.Generator, arm: Arm, *, both: float) -> Pose:
    """A standing or walking person with `arm` on one side, or on both with probability `both`."""
    body = standing(rng) if rng.uniform() < 0.6 else walking(rng)
    first = str(rng.choice(list(SIDES)))
    every = rng.uniform() < both
    arms = {side: arm if every or side == first else body.arms[side] for side in SIDES}
    return _with_head(rng, replace(body, arms=arms))


def _with_head(rng: np.random.Generator, pose: Pose) -> Pose:
    return replace(pose, head_turn=float(rng.normal(0, 14)), head_nod=float(rng.uniform(-6, 14)))
