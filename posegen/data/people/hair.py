"""Hair as a shell over the head: from the crown down to a line that runs around the face, the ears and the nape."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from posegen.data.people.skeleton import Proportions, Skeleton
from posegen.data.people.tubes import Tube, loft
from posegen.data.people.wardrobe import HairStyle


class Cut(NamedTuple):
    """Where the hair ends, in metres above the middle of the head, and how thick it lies."""

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
PLACES = 24


def hair_tubes(
    skeleton: Skeleton, proportions: Proportions, style: HairStyle, head: Float[np.ndarray, "rings 4"]
) -> list[Tube]:
    """The shell of a style over the head's table of cross sections, with its bun, tail or peak."""
    tubes = [_shell(skeleton, proportions, CUTS[style], head)]
    if style == "bun":
        tubes.append(_hanging(skeleton, start=(0, 0.075, -0.10), drop=0.07, radius=0.042))
    if style == "ponytail":
        tubes.append(_hanging(skeleton, start=(0, 0.055, -0.105), drop=0.26, radius=0.033))
    if style == "cap":
        tubes.append(_peak(skeleton))
    return tubes


def _shell(skeleton: Skeleton, proportions: Proportions, cut: Cut, table: np.ndarray) -> Tube:
    """Columns run from the crown down to the hairline of their direction; below the jaw they hang straight."""
    angles = np.linspace(0, 2 * np.pi, PLACES + 1)
    share = np.linspace(0, 1, 11)[:, None]
    top = table[0, 0] + cut.thickness
    heights = top + (_hairline(cut, angles) - top) * share**0.8
    skull = np.where(heights > -0.02, heights * table[0, 0] / top, -0.02)
    width, depth, shift = (np.interp(skull, table[::-1, 0], table[::-1, column]) for column in (1, 2, 3))
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


def _hairline(cut: Cut, angles: np.ndarray) -> np.ndarray:
    """The lower end by direction (0 is the back, pi the front): back, side and front levels, with ramps."""
    off_back = np.degrees(np.minimum(angles, 2 * np.pi - angles))
    levels = (cut.back, cut.back, cut.side, cut.side, cut.front, cut.front)
    return np.interp(off_back, (0, 55, 80, 118, 142, 180), levels)


def _hanging(skeleton: Skeleton, *, start: tuple[float, float, float], drop: float, radius: float) -> Tube:
    """A bun or a tail: a drop-shaped tube from a place at the back of the head downwards."""
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
    thickness = np.full((len(reach), 1), 0.008)
    along = np.linspace(0, 1, len(reach))
    return loft("hair", "hair", centre, frame[:, 0] * breadth, frame[:, 1] * thickness, along, places=12)
