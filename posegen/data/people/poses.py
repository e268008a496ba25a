"""What people do: families of natural poses, each a function of a random generator. All angles are our choice."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from posegen.data.people.skeleton import SIDES, Arm, Leg, Pose


def walking(rng: np.random.Generator) -> Pose:
    """Any phase of a walk: legs in opposition, arms against the legs, the swinging leg's knee bent."""
    return _gait(rng.uniform(0, 2 * np.pi), stride=rng.uniform(16, 27), swing=rng.uniform(30, 52), elbow=18, lean=3)


def running(rng: np.random.Generator) -> Pose:
    """Any phase of an easy run, with bent elbows."""
    return _gait(rng.uniform(0, 2 * np.pi), stride=rng.uniform(28, 36), swing=75, elbow=85, lean=8)


def standing(rng: np.random.Generator) -> Pose:
    """At ease: arms hang, the weight more or less on one leg."""
    arms = {side: _hanging_arm(rng) for side in SIDES}
    slack = rng.uniform(0, 22) * (rng.uniform() < 0.5)
    legs = {side: Leg(abduction=rng.uniform(1.5, 6), turnout=rng.uniform(4, 16)) for side in SIDES}
    resting = str(rng.choice(list(SIDES)))
    legs[resting] = replace(legs[resting], flexion=0.6 * slack, knee=4 + slack)
    return _with_head(rng, Pose(arms=arms, legs=legs, bend=rng.uniform(-3, 3), twist=rng.uniform(-8, 8)))


def hands_on_hips(rng: np.random.Generator) -> Pose:
    """Both hands, or one, at the waist."""
    akimbo = Arm(flexion=-18, abduction=rng.uniform(40, 50), twist=rng.uniform(66, 76), elbow=rng.uniform(84, 96))
    return _with_arms(rng, akimbo, both=0.6)


def waving(rng: np.random.Generator) -> Pose:
    """One upper arm level or above, the forearm up."""
    wave = Arm(flexion=90, abduction=rng.uniform(50, 85), twist=0, elbow=rng.uniform(70, 115))
    return _with_arms(rng, wave, both=0.0)


def reaching_up(rng: np.random.Generator) -> Pose:
    """Arms above the head."""
    raised = Arm(flexion=rng.uniform(150, 172), abduction=rng.uniform(8, 24), twist=10, elbow=rng.uniform(10, 55))
    return _with_arms(rng, raised, both=0.6)


def holding(rng: np.random.Generator) -> Pose:
    """Forearms before the body, as with a telephone, a cup or folded hands."""
    held = Arm(flexion=rng.uniform(5, 32), abduction=6, twist=rng.uniform(10, 48), elbow=rng.uniform(70, 112))
    return _with_arms(rng, held, both=0.5)


def calling(rng: np.random.Generator) -> Pose:
    """A hand at the ear."""
    call = Arm(flexion=rng.uniform(40, 60), abduction=rng.uniform(24, 34), twist=26, elbow=rng.uniform(134, 142))
    return _with_arms(rng, call, both=0.0)


def striding(rng: np.random.Generator) -> Pose:
    """Legs apart, arms a little out."""
    spread = rng.uniform(8, 16)
    legs = {side: Leg(abduction=spread, turnout=rng.uniform(8, 20), knee=rng.uniform(2, 12)) for side in SIDES}
    arms = {side: replace(_hanging_arm(rng), abduction=rng.uniform(14, 32)) for side in SIDES}
    return _with_head(rng, Pose(arms=arms, legs=legs))


# How often each family is drawn: pedestrians mostly walk and stand.
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
    """A pose of a family drawn by `FAMILIES`."""
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
    return Arm(
        flexion=rng.uniform(-8, 10),
        abduction=rng.uniform(9, 17),
        twist=rng.uniform(5, 45),
        elbow=rng.uniform(6, 28),
    )


def _with_arms(rng: np.random.Generator, arm: Arm, *, both: float) -> Pose:
    """A standing or walking person whose one arm, or both with the chance `both`, is as given."""
    body = standing(rng) if rng.uniform() < 0.6 else walking(rng)
    first = str(rng.choice(list(SIDES)))
    chosen = set(SIDES) if rng.uniform() < both else {first}
    arms = {side: arm if side in chosen else body.arms[side] for side in SIDES}
    return _with_head(rng, replace(body, arms=arms))


def _with_head(rng: np.random.Generator, pose: Pose) -> Pose:
    return replace(pose, head_turn=float(rng.normal(0, 14)), head_nod=float(rng.uniform(-6, 14)))
