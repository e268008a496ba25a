"""A clothed body around a skeleton: trunk, limbs, hands, shoes, skirt, rucksack and hair as tubes.

The tables below are cross sections of an average body in metres, measured by eye; our choice.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from posegen.data.sources.synthetic.mesh import Tube, loft
from posegen.data.sources.synthetic.skeleton import SIDES, Proportions, Skeleton
from posegen.data.sources.synthetic.wardrobe import Look

# Height above the hips as a share of the spine; half width, half depth, shift forward.
TRUNK = np.array((
    (-0.16, 0.166, 0.112, -0.012),
    (0.00, 0.164, 0.112, -0.012),
    (0.15, 0.150, 0.102, -0.004),
    (0.35, 0.136, 0.094, 0.004),
    (0.52, 0.144, 0.102, 0.006),
    (0.68, 0.158, 0.112, 0.006),
    (0.82, 0.164, 0.104, 0.000),
    (0.90, 0.160, 0.090, -0.006),
    (0.95, 0.148, 0.078, -0.010),
    (1.00, 0.120, 0.068, -0.010),
    (1.035, 0.084, 0.060, -0.006),
    (1.06, 0.060, 0.054, -0.004),
))  # fmt: skip
# Position along the limb (0 to 1 on the upper bone, 1 to 2 on the lower one) and radius.
ARM = np.array((
    (-0.11, 0.004), (-0.10, 0.024), (-0.07, 0.038), (-0.02, 0.048), (0.05, 0.053), (0.16, 0.052), (0.32, 0.049),
    (0.55, 0.045), (0.80, 0.041), (0.93, 0.040), (1.07, 0.040), (1.25, 0.041), (1.5, 0.037), (1.75, 0.030),
    (1.95, 0.025), (2.02, 0.024),
))  # fmt: skip
LEG = np.array((
    (-0.10, 0.045), (0.0, 0.066), (0.12, 0.082), (0.22, 0.087), (0.32, 0.085), (0.55, 0.075), (0.80, 0.062),
    (0.93, 0.057), (1.07, 0.055), (1.2, 0.056), (1.38, 0.059), (1.6, 0.049), (1.8, 0.039), (1.94, 0.036), (2.04, 0.036),
))  # fmt: skip
# Distance below the wrist; half thickness, half breadth.
HAND = np.array((
    (-0.015, 0.018, 0.024), (0.02, 0.018, 0.034), (0.055, 0.020, 0.043), (0.085, 0.018, 0.042), (0.115, 0.014, 0.036),
    (0.145, 0.011, 0.029), (0.165, 0.008, 0.018), (0.17, 0.001, 0.002),
))  # fmt: skip
# Distance before the ankle; half breadth, half height, height of the middle below the ankle.
SHOE = np.array((
    (-0.072, 0.002, 0.004, -0.055), (-0.066, 0.026, 0.026, -0.054), (-0.04, 0.037, 0.040, -0.044),
    (0.0, 0.040, 0.046, -0.040), (0.045, 0.043, 0.038, -0.050), (0.09, 0.047, 0.029, -0.058),
    (0.13, 0.048, 0.023, -0.063), (0.165, 0.042, 0.019, -0.066), (0.187, 0.026, 0.014, -0.070),
    (0.195, 0.002, 0.004, -0.074),
))  # fmt: skip
# Height above the middle of the head; half width, half depth, shift forward.
HEAD = np.array((
    (0.121, 0.002, 0.003, -0.008), (0.117, 0.022, 0.028, -0.008), (0.105, 0.045, 0.058, -0.007),
    (0.080, 0.065, 0.083, -0.004), (0.045, 0.074, 0.094, 0.000), (0.005, 0.073, 0.092, 0.003),
    (-0.035, 0.067, 0.082, 0.011), (-0.065, 0.059, 0.068, 0.024), (-0.090, 0.048, 0.050, 0.038),
    (-0.108, 0.034, 0.032, 0.050), (-0.118, 0.016, 0.016, 0.057), (-0.121, 0.001, 0.001, 0.058),
))  # fmt: skip
THIGH = 0.11  # distance of a skirt from the thigh bones
# Height above the hips as a share of the spine; half width, half depth.
PACK = np.array((
    (0.94, 0.01, 0.01), (0.93, 0.085, 0.045), (0.85, 0.125, 0.075), (0.6, 0.135, 0.085), (0.35, 0.140, 0.090),
    (0.2, 0.130, 0.080), (0.14, 0.09, 0.05), (0.135, 0.01, 0.01),
))  # fmt: skip


class Cut(NamedTuple):
    """A haircut: where the hair ends, in metres above the middle of the head, and its thickness."""

    front: float
    side: float
    back: float
    thickness: float
    flare: float = 0.0  # how much thicker at the lower end


CUTS: dict[str, Cut] = {
    "buzz": Cut(0.078, 0.015, -0.055, 0.004),
    "short": Cut(0.074, 0.012, -0.070, 0.012),
    "parted": Cut(0.066, 0.004, -0.075, 0.017),
    "bob": Cut(0.066, -0.100, -0.120, 0.020, 0.016),
    "long": Cut(0.070, -0.170, -0.270, 0.017, 0.014),
    "bun": Cut(0.072, 0.004, -0.070, 0.009),
    "ponytail": Cut(0.072, 0.004, -0.070, 0.009),
    "curly": Cut(0.062, -0.040, -0.085, 0.032, 0.012),
    "cap": Cut(0.046, 0.026, 0.010, 0.012),
}


def dress(skeleton: Skeleton, proportions: Proportions, look: Look) -> list[Tube]:
    """Return all tubes of a clothed person in body space; paired parts are named by side."""
    tubes = [_trunk(skeleton, proportions, look), _hips(skeleton, proportions, look), _neck(skeleton)]
    for side, sign in SIDES.items():
        tubes += [_arm(skeleton, proportions, look, side), _hand(skeleton, side)]
        tubes += [_leg(skeleton, proportions, look, side), _shoe(skeleton, look, side), _ear(skeleton, side, sign)]
    tubes += [_head(skeleton, proportions), _nose(skeleton)]
    tubes.append(_hair(skeleton, proportions, CUTS[look.hair_style]))
    if look.hair_style == "bun":
        tubes.append(_hanging(skeleton, start=(0, 0.075, -0.10), drop=0.07, radius=0.042))
    if look.hair_style == "ponytail":
        tubes.append(_hanging(skeleton, start=(0, 0.055, -0.105), drop=0.26, radius=0.033))
    if look.hair_style == "cap":
        tubes.append(_peak(skeleton))
    if look.bottom.kind in ("skirt", "dress") or look.top.coat:
        tubes.append(_skirt(skeleton, proportions, look))
    if look.pack is not None:
        tubes.append(_pack(skeleton, proportions))
    return tubes


def _spine(skeleton: Skeleton, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on the spine, and left and forward directions there: of the pelvis below, of the chest above."""
    share = np.clip((heights - 0.1) / 0.6, 0, 1)[:, None]
    chest, pelvis = skeleton.frames["chest"], skeleton.frames["pelvis"]
    left, forward = (_unit(pelvis[:, axis] * (1 - share) + chest[:, axis] * share) for axis in (0, 2))
    return heights[:, None] * skeleton.joint("neck"), left, forward


def _trunk_sizes(proportions: Proportions, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half width, half depth and shift forward of the trunk at heights; broad shoulders, or broad hips and a bust."""
    width, depth, shift = (np.interp(heights, TRUNK[:, 0], TRUNK[:, column]) for column in (1, 2, 3))
    upper = np.clip((heights - 0.35) / 0.4, 0, 1)
    broad = proportions.masculine - 0.5
    width = width * (1 + broad * (0.17 * upper - 0.08 * (1 - upper)) + 0.10 * broad * _bump(heights, 0.35, 0.2))
    bust = (1 - proportions.masculine) * 0.030 * _bump(heights, 0.66, 0.13)
    belly = 0.10 * max(0.0, proportions.girth - 1) * _bump(heights, 0.25, 0.3)
    return width * proportions.girth**0.7, (depth + bust / 2 + belly) * proportions.girth, shift + bust / 2 + belly / 2


def _trunk(skeleton: Skeleton, proportions: Proportions, look: Look) -> Tube:
    """The top garment, tucked into the waist or hanging over it."""
    hem = 0.2 if look.top.tucked or look.bottom.kind == "dress" else -0.13
    heights = np.concatenate(([1.06, 1.04], np.linspace(1.01, hem, 15)))
    centre, left, forward = _spine(skeleton, heights)
    width, depth, shift = _trunk_sizes(proportions, heights)
    hanging = 0.006 + 0.010 * np.clip((0.5 - heights) / 0.6, 0, 1)
    ease = (np.full(len(heights), 0.006) if hem > 0 else 0.006 + hanging)[:, None]
    half_left, half_forward = left * (width[:, None] + ease), forward * (depth[:, None] + ease)
    centre, along = centre + forward * shift[:, None], (1.06 - heights) / 1.28
    return loft("trunk", "torso", centre, half_left, half_forward, along, places=26, squareness=0.86)


def _hips(skeleton: Skeleton, proportions: Proportions, look: Look) -> Tube:
    """The bottom garment from the waist to the crotch: over a tucked top, under a hanging one."""
    heights = np.array((0.36, 0.3, 0.2, 0.1, 0.0, -0.08, -0.15, -0.20, -0.23))
    centre, left, forward = _spine(skeleton, heights)
    width, depth, shift = _trunk_sizes(proportions, heights)
    narrowing = np.array((1, 1, 1, 1, 1, 1, 0.92, 0.7, 0.2))
    ease = 0.011 if look.top.tucked else 0.003
    width, depth = (width + ease) * narrowing, (depth + ease) * narrowing
    return loft(
        "hips", "pelvis", centre + forward * shift[:, None], left * width[:, None], forward * depth[:, None],
        (0.36 - heights) / 0.6, places=26, squareness=0.86,
    )  # fmt: skip


def _neck(skeleton: Skeleton) -> Tube:
    heights = np.array((-0.02, 0.02, 0.06, 0.1, 0.15))
    top = skeleton.head - skeleton.frames["head"] @ (0, 0.03, 0.02)
    base = skeleton.joint("neck") + skeleton.frames["chest"] @ (0, 0.0, -0.002)
    centre = base + (heights[:, None] / 0.15) * (top - base)
    radius = np.array((0.070, 0.060, 0.053, 0.051, 0.050))[:, None]
    chest = skeleton.frames["chest"]
    return loft("neck", "skin", centre, chest[:, 0] * radius, chest[:, 2] * radius, heights / 0.2 + 0.1)


def _limb(skeleton: Skeleton, bones: tuple[str, str], joints: tuple[str, str, str], places: np.ndarray):
    """Centres along a bent limb and the left and forward directions there, turning smoothly at the middle joint."""
    start, middle, end = (skeleton.joint(name) for name in joints)
    share = places[:, None]
    centre = np.where(share < 1, start + share * (middle - start), middle + (share - 1) * (end - middle))
    bend = np.clip((share - 0.85) / 0.3, 0, 1)
    upper, lower = (skeleton.frames[name] for name in bones)
    left, forward = (_unit(upper[:, axis] * (1 - bend) + lower[:, axis] * bend) for axis in (0, 2))
    return centre, left, forward


def _with_step(places: np.ndarray, step: float) -> np.ndarray:
    """Positions with a pair added close around `step`, so that a hem stands out."""
    return np.sort(np.concatenate((places, (step - 0.004, step + 0.004))))


def _arm(skeleton: Skeleton, proportions: Proportions, look: Look, side: str) -> Tube:
    end = 2 * look.top.sleeve
    places = _with_step(ARM[:, 0], end) if look.top.sleeve > 0 else ARM[:, 0]
    joints = (f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist")
    centre, left, forward = _limb(skeleton, (f"{side}_upper_arm", f"{side}_forearm"), joints, places)
    radius = np.interp(places, ARM[:, 0], ARM[:, 1]) * proportions.girth * (0.9 + 0.16 * proportions.masculine)
    loose = 0.004 + 0.010 * np.clip(places / max(end, 0.5), 0, 1) if look.top.sleeve < 0.5 else 0.007 + 0.003 * places
    loose = np.minimum(loose, loose * 4 * places + 0.003)
    radius = (radius + np.where((places < end) & (places > 0), loose, 0))[:, None]
    return loft(f"{side}_arm", "sleeve", centre, left * radius, forward * radius * 1.04, np.clip(places / 2, 0, 1))


def _hand(skeleton: Skeleton, side: str) -> Tube:
    frame = skeleton.frames[f"{side}_forearm"]
    curl = np.clip(HAND[:, 0] - 0.06, 0, None)[:, None] ** 2 * 3.0
    centre = skeleton.joint(f"{side}_wrist") - HAND[:, :1] * frame[:, 1] + curl * frame[:, 2]
    left, forward = frame[:, 0] * HAND[:, 1:2], frame[:, 2] * HAND[:, 2:3]
    return loft(f"{side}_arm", "skin", centre, left, forward, np.linspace(0, 1, len(HAND)), places=10)


def _leg(skeleton: Skeleton, proportions: Proportions, look: Look, side: str) -> Tube:
    clothed = look.bottom.kind in ("trousers", "shorts")
    end = 2 * look.bottom.length if clothed else -1.0
    places = _with_step(LEG[:, 0], min(end, 2.03)) if clothed else LEG[:, 0]
    joints = (f"{side}_hip", f"{side}_knee", f"{side}_ankle")
    centre, left, forward = _limb(skeleton, (f"{side}_thigh", f"{side}_shin"), joints, places)
    radius = np.interp(places, LEG[:, 0], LEG[:, 1]) * (0.25 + 0.75 * proportions.girth)
    calf = -0.014 * _bump(places, 1.38, 0.35) - 0.006 * _bump(places, 2.0, 0.3)
    if clothed:
        straight = 0.058 + 0.022 * look.bottom.leg_width - 0.008 * np.clip(places - 1, 0, 1)
        straight = straight * min(1.0, 0.55 + 0.6 * look.bottom.leg_width) * (places > 0.3)
        loose = np.maximum(radius + 0.006 * (places > 0.1), straight)
        radius = np.where(places < end, loose + 0.012 * (look.bottom.kind == "shorts") * np.clip(places, 0, 1), radius)
    elif look.boots:
        radius = radius + 0.007 * (places > 1.52)
    centre, radius = centre + forward * calf[:, None], radius[:, None]
    return loft(f"{side}_leg", "leg", centre, left * radius, forward * radius, np.clip(places / 2, 0, 1))


def _shoe(skeleton: Skeleton, look: Look, side: str) -> Tube:
    """A tube along the foot whose rings stand upright; the texture's front is the instep."""
    frame, ankle = skeleton.frames[f"{side}_foot"], skeleton.joint(f"{side}_ankle")
    thick = 1.08 if look.boots else 1.0
    centre = ankle + SHOE[:, :1] * frame[:, 2] + SHOE[:, 3:4] * frame[:, 1]
    left, up = frame[:, 0] * SHOE[:, 1:2] * thick, frame[:, 1] * SHOE[:, 2:3] * thick
    return loft(f"{side}_leg", "shoe", centre, left, up, np.linspace(0, 1, len(SHOE)), places=14, squareness=0.8)


def _head(skeleton: Skeleton, proportions: Proportions) -> Tube:
    frame, table = skeleton.frames["head"], HEAD * proportions.head
    centre = skeleton.head + table[:, :1] * frame[:, 1] + table[:, 3:4] * frame[:, 2]
    along = (HEAD[0, 0] - HEAD[:, 0]) / (HEAD[0, 0] - HEAD[-1, 0])
    return loft("head", "head", centre, frame[:, 0] * table[:, 1:2], frame[:, 2] * table[:, 2:3], along, places=20)


def _nose(skeleton: Skeleton) -> Tube:
    frame, nose = skeleton.frames["head"], skeleton.joint("nose")
    heights = np.array((0.034, 0.02, 0.004, -0.008, -0.014))[:, None]
    reach = np.array((0.004, 0.008, 0.015, 0.014, 0.001))[:, None]
    breadth = np.array((0.006, 0.008, 0.012, 0.013, 0.002))[:, None]
    centre = nose + heights * frame[:, 1] + 0.004 * frame[:, 2]
    return loft("head", "skin", centre, frame[:, 0] * breadth, frame[:, 2] * reach, np.linspace(0, 1, 5), places=8)


def _ear(skeleton: Skeleton, side: str, sign: float) -> Tube:
    frame = skeleton.frames["head"]
    heights = np.array((0.03, 0.024, 0.005, -0.018, -0.028))[:, None]
    reach = np.array((0.001, 0.014, 0.018, 0.011, 0.001))[:, None]
    centre = skeleton.joint(f"{side}_ear") + heights * frame[:, 1] + 0.009 * sign * frame[:, 0]
    return loft("head", "skin", centre, frame[:, 0] * reach * 0.55, frame[:, 2] * reach, np.linspace(0, 1, 5), places=8)


def _skirt(skeleton: Skeleton, proportions: Proportions, look: Look) -> Tube:
    """A skirt, a dress' lower half, or a coat's tail: rings that reach around both legs and flare downwards."""
    length = 0.30 if look.top.coat else look.bottom.length * 0.84
    below = np.linspace(-0.16 if look.top.tucked or look.bottom.kind == "dress" else 0.0, length, 12)
    shares = below / proportions.thigh
    legs = [
        _limb(skeleton, (f"{side}_thigh", f"{side}_shin"), (f"{side}_hip", f"{side}_knee", f"{side}_ankle"), shares)[0]
        for side in SIDES
    ]
    width, depth, shift = _trunk_sizes(proportions, -below / proportions.spine)
    flare = 0.014 + (0.16 if look.top.coat else 0.26) * np.clip(below, 0, None)
    spread = np.abs(legs[0] - legs[1])
    half_left = np.maximum(width + flare, (spread[:, 0] / 2 + THIGH) * (below > 0))
    aside = np.sqrt(1 - np.clip(0.8 * spread[:, 0] / 2 / half_left, 0, 0.9) ** 2)
    half_forward = np.maximum(depth + 0.8 * flare, (spread[:, 2] / 2 + THIGH) / aside * (below > 0))
    lower = np.clip(below / 0.1, 0, 1)[:, None]
    centre = (legs[0] + legs[1]) / 2 * lower + np.stack((0 * below, -below, shift), axis=1) * (1 - lower)
    left, forward = np.eye(3)[0] * half_left[:, None], np.eye(3)[2] * half_forward[:, None]
    return loft(
        "skirt", "skirt", centre, left, forward, (below + 0.16) / 0.66, places=28, squareness=0.9, two_sided=True
    )


def _pack(skeleton: Skeleton, proportions: Proportions) -> Tube:
    centre, left, forward = _spine(skeleton, PACK[:, 0])
    back = (0.095 * proportions.girth + 0.6 * PACK[:, 2])[:, None]
    return loft(
        "pack", "pack", centre - forward * back, left * PACK[:, 1:2], forward * PACK[:, 2:3],
        (0.94 - PACK[:, 0]) / 0.805, places=20, squareness=0.7,
    )  # fmt: skip


def _hair(skeleton: Skeleton, proportions: Proportions, cut: Cut) -> Tube:
    """Shell of hair: columns from the crown to the hairline of their direction, hanging straight below the jaw."""
    angles = np.linspace(0, 2 * np.pi, 25)  # from the back; pi is the front
    share = np.linspace(0, 1, 11)[:, None]
    off_back = np.degrees(np.minimum(angles, 2 * np.pi - angles))
    levels = (cut.back, cut.back, cut.side, cut.side, cut.front, cut.front)
    top = HEAD[0, 0] + cut.thickness
    heights = top + (np.interp(off_back, (0, 55, 80, 118, 142, 180), levels) - top) * share**0.8
    skull = np.where(heights > -0.02, heights * HEAD[0, 0] / top, -0.02)
    width, depth, shift = (np.interp(skull, HEAD[::-1, 0], HEAD[::-1, column]) for column in (1, 2, 3))
    thick = cut.thickness * np.minimum(1, share * 6) + cut.flare * share
    hang = np.clip(-0.04 - heights, 0, None) * 0.12
    local = np.stack(
        (-np.sin(angles) * (width + thick + hang), heights, shift - np.cos(angles) * (depth + thick) - hang), axis=-1
    )
    vertices = skeleton.head + proportions.head * local @ skeleton.frames["head"].T
    return Tube(
        part="hair", tile="hair", vertices=vertices, around=angles / (2 * np.pi), along=0.02 + 0.2 * share[:, 0],
        two_sided=True,
    )  # fmt: skip


def _hanging(skeleton: Skeleton, *, start: tuple[float, float, float], drop: float, radius: float) -> Tube:
    """A bun or a tail: a drop-shaped tube from a point at the back of the head downwards."""
    share = np.linspace(0, 1, 9)[:, None]
    frame = skeleton.frames["head"]
    origin = skeleton.head + frame @ np.array(start)
    centre = origin - frame[:, 2] * 0.045 * np.sin(np.pi * share**0.7) - np.array((0, 1, 0)) * drop * share
    width = radius * np.sqrt(np.maximum(1e-3, np.sin(np.pi * (0.04 + 0.95 * share))))
    return loft("hair", "hair", centre, frame[:, 0] * width, frame[:, 2] * width, share[:, 0], places=12)


def _peak(skeleton: Skeleton) -> Tube:
    """A cap's peak: flat rings from the forehead forwards."""
    frame = skeleton.frames["head"]
    reach = np.array((0.06, 0.09, 0.13, 0.155, 0.165))[:, None]
    breadth = np.array((0.072, 0.074, 0.066, 0.046, 0.004))[:, None]
    centre = skeleton.head + reach * frame[:, 2] + (0.062 - 0.12 * (reach - 0.06)) * frame[:, 1]
    thickness = frame[:, 1] * np.full((len(reach), 1), 0.008)
    return loft("hair", "hair", centre, frame[:, 0] * breadth, thickness, np.linspace(0, 1, 5), places=12)


def _bump(values: np.ndarray, middle: float, breadth: float) -> np.ndarray:
    return np.exp(-(((values - middle) / breadth) ** 2))


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
