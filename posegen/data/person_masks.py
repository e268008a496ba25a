"""The person's mask from joints and picture alone: f_CRF of the multistage paper, without a trained network.

The multistage paper takes its masks from CRF-RNN, whose first half is a trained network. In its place (our choice): the
limbs, as thick as people are, say where the person surely is, may be, and cannot be; GrabCut (Rother, Kolmogorov,
Blake, SIGGRAPH 2004) learns the colours of both and cuts between them; CRF-RNN's second half, the mean field of a fully
connected random field (`mean_field`), puts the edge where the picture has one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from posegen.data.joints import TORSO
from posegen.data.mean_field import mean_field
from posegen.data.reasons import TOO_FEW_JOINTS

# Seeds and confidence, our choice: of what was tried on the embedded people and a photograph, near the best for both.
SURELY_INSIDE = 0.6  # of a part's radius, from its middle line
PERHAPS_WITHIN = 0.15  # torso lengths from a part's surface; beyond it is surely background
CUTS = 2  # GrabCut's turns
CUT_LOG_ODDS = 1.0  # how far a pixel believes GrabCut before the mean field
SURE_LOG_ODDS = 20.0
COLOURS = 5  # of GrabCut's model of either side: each side needs as many pixels


class Part(NamedTuple):
    """A limb as a round bar of changing thickness; lengths in torso lengths (shoulder to hip)."""

    start: int
    end: int
    start_radius: float
    end_radius: float
    beyond: float  # how far it goes on behind `end`, in its own length: hands, feet
    length: float = 0.0  # a grown person's, unforeshortened; 0 where it says nothing


# Lengths: Drillis and Contini's body segments (1966; torso 0.288 of the height). Radii, with clothes: our choice.
PARTS = (
    Part(2, 3, 0.13, 0.10, 0.0, 0.65),
    Part(5, 6, 0.13, 0.10, 0.0, 0.65),
    Part(3, 4, 0.10, 0.07, 0.45, 0.51),
    Part(6, 7, 0.10, 0.07, 0.45, 0.51),
    Part(8, 9, 0.20, 0.13, 0.0, 0.85),
    Part(11, 12, 0.20, 0.13, 0.0, 0.85),
    Part(9, 10, 0.14, 0.09, 0.12, 0.85),
    Part(12, 13, 0.14, 0.09, 0.12, 0.85),
    Part(2, 8, 0.14, 0.17, 0.0, 1.0),
    Part(5, 11, 0.14, 0.17, 0.0, 1.0),
    Part(2, 5, 0.14, 0.14, 0.0),
    Part(8, 11, 0.19, 0.19, 0.0),
)
SIDES = (8, 9)  # of PARTS: shoulder to hip, which say the scale wherever one is there
_NOSE, _SHOULDERS, _HIPS, _EYES, _EARS = 0, (2, 5), (8, 11), (14, 15), (16, 17)
NECK_RADIUS, HEAD_RADIUS, HEAD_ABOVE_NECK = 0.12, 0.20, 0.42


class Bar(NamedTuple):
    """A part in a picture: pixels."""

    start: Float[ndarray, "2"]
    end: Float[ndarray, "2"]
    start_radius: float
    end_radius: float


def person_mask(
    picture: UInt8[ndarray, "height width 3"], joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]
) -> UInt8[ndarray, "height width"]:
    """1 on the person whose joints these are and 0 elsewhere; the same for the same picture, which is RGB.

    Pieces that no bone runs through are dropped. Joints that are not visible are not read.

    Raises ValueError(reason, detail) where the joints are too few to say where the person is.
    """
    seeds = limb_seeds(joints, visible, height=picture.shape[0], width=picture.shape[1])
    surely = seeds == cv2.GC_FGD
    if surely.sum() < COLOURS:
        raise ValueError(TOO_FEW_JOINTS, "no limb lies in the picture")
    if np.isin(seeds, (cv2.GC_BGD, cv2.GC_PR_BGD)).sum() < COLOURS:
        return np.ones_like(seeds)
    log_odds = np.where(_cut(picture, seeds), CUT_LOG_ODDS, -CUT_LOG_ODDS)
    log_odds[surely] = SURE_LOG_ODDS
    log_odds[seeds == cv2.GC_BGD] = -SURE_LOG_ODDS
    return pieces_with(surely, mean_field(picture, log_odds) > 0.5)


def limb_seeds(
    joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], *, height: int, width: int
) -> UInt8[ndarray, "height width"]:
    """What the limbs alone say of each pixel: cv2.GC_FGD, GC_PR_FGD (inside a limb), GC_PR_BGD (near one) or GC_BGD.

    Where legs are hidden, they are guessed: perhaps person, never surely.

    Raises ValueError(reason, detail) where no limb has both its joints, or all such limbs are points.
    """
    places = np.where(visible[:, None], joints, 0).astype(np.float64)
    torso = torso_length(places, visible)
    if torso == 0:
        raise ValueError(TOO_FEW_JOINTS, "no limb has a length: both its joints, in two places")
    depth, distance = np.full((height, width), np.inf), np.full((height, width), np.inf)
    for bar in _bars(places, visible, torso):
        from_middle, radius = _from_middle(bar, height, width)
        depth = np.minimum(depth, from_middle / radius)
        distance = np.minimum(distance, from_middle - radius)
    for bar in _hidden_legs(places, visible, torso):
        from_middle, radius = _from_middle(bar, height, width)
        distance = np.minimum(distance, from_middle - radius)
    if visible[list(TORSO)].all():
        inside = _filled(places[[2, 5, 11, 8]], height, width)
        depth[inside] = distance[inside] = 0
    seeds = np.full((height, width), cv2.GC_BGD, np.uint8)
    seeds[distance <= PERHAPS_WITHIN * torso] = cv2.GC_PR_BGD
    seeds[distance <= 0] = cv2.GC_PR_FGD
    seeds[depth <= SURELY_INSIDE] = cv2.GC_FGD
    return seeds


def torso_length(joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]) -> float:
    """Pixels from shoulder to hip, the unit of all thicknesses; 0 where nothing tells it.

    The longer of the two sides, since what is seen at an angle looks shorter; without both, what the longest of the
    limbs says of it.
    """
    told = {
        number: float(np.linalg.norm(joints[part.end] - joints[part.start])) / part.length
        for number, part in enumerate(PARTS)
        if part.length and visible[[part.start, part.end]].all()
    }
    sides = [told[number] for number in SIDES if number in told]
    return max(sides or told.values(), default=0.0)


def _bars(joints: ndarray, visible: ndarray, torso: float) -> Iterator[Bar]:
    for part in PARTS:
        if visible[[part.start, part.end]].all():
            start, end = joints[part.start], joints[part.end]
            yield Bar(start, end + part.beyond * (end - start), part.start_radius * torso, part.end_radius * torso)
    if visible[list(_SHOULDERS)].all():
        yield from _middle_bars(joints, visible, torso)


def _middle_bars(joints: ndarray, visible: ndarray, torso: float) -> Iterator[Bar]:
    """Spine, neck and head, from the middle of the shoulders."""
    neck, up = joints[list(_SHOULDERS)].mean(axis=0), _up(joints, visible)
    if visible[list(_HIPS)].all():
        yield Bar(neck, joints[list(_HIPS)].mean(axis=0), 0.14 * torso, 0.19 * torso)
    head = _head(joints, visible)
    if head is None:
        head = neck + HEAD_ABOVE_NECK * torso * up
    yield Bar(neck, head, 0.09 * torso, NECK_RADIUS * torso)
    yield Bar(head, head + 0.07 * torso * up, HEAD_RADIUS * torso, HEAD_RADIUS * torso)


def _hidden_legs(joints: ndarray, visible: ndarray, torso: float) -> Iterator[Bar]:
    """Where a leg may be whose knee or ankle is hidden: skirts and coats hide them, bicycles and the border too.

    From the hip to the ankle, or as long as legs are in the direction of the torso; from the knee straight on.
    """
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        if visible[hip] and not visible[knee]:
            end = joints[ankle] if visible[ankle] else joints[hip] - 1.7 * torso * _up(joints, visible)
            yield Bar(joints[hip], end, 0.20 * torso, 0.12 * torso)
        elif visible[hip] and not visible[ankle]:
            on = 0.95 * torso * _direction(joints[knee] - joints[hip])
            yield Bar(joints[knee], joints[knee] + on, 0.13 * torso, 0.10 * torso)


def _up(joints: ndarray, visible: ndarray) -> ndarray:
    """The direction from the hips to the shoulders; the picture's where one of the four is hidden."""
    if not visible[list(TORSO)].all():
        return np.array((0.0, -1.0))
    return _direction(joints[list(_SHOULDERS)].mean(axis=0) - joints[list(_HIPS)].mean(axis=0))


def _direction(span: ndarray) -> ndarray:
    return span / max(float(np.linalg.norm(span)), 1e-6)


def _head(joints: ndarray, visible: ndarray) -> ndarray | None:
    """The head's middle: between both ears, else the mean of what is seen of the face; None of a head from behind."""
    if visible[list(_EARS)].all():
        return joints[list(_EARS)].mean(axis=0)
    face = [joint for joint in (_NOSE, *_EYES, *_EARS) if visible[joint]]
    return joints[face].mean(axis=0) if face else None


def _from_middle(bar: Bar, height: int, width: int) -> tuple[ndarray, ndarray]:
    """Of each pixel: its distance from the bar's middle line, and the bar's radius at the nearest point of it."""
    rows, columns = np.ogrid[:height, :width]
    x, y = columns - bar.start[0], rows - bar.start[1]
    along_x, along_y = bar.end - bar.start
    along = np.clip((x * along_x + y * along_y) / max(along_x**2 + along_y**2, 1e-6), 0, 1)
    radius = bar.start_radius + along * (bar.end_radius - bar.start_radius)
    return np.hypot(x - along * along_x, y - along * along_y), radius


def _filled(corners: Float[ndarray, "4 2"], height: int, width: int) -> Bool[ndarray, "height width"]:
    """Whether a pixel lies between the shoulders and the hips; a twisted torso is two triangles."""
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [np.rint(corners).astype(np.int32)], 1)
    return inside > 0


def _cut(
    picture: UInt8[ndarray, "height width 3"], seeds: UInt8[ndarray, "height width"]
) -> Bool[ndarray, "height width"]:
    """GrabCut from the seeds. It draws its first colours by OpenCV's random numbers, so these begin anew."""
    cv2.setRNGSeed(0)
    labels, models = seeds.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(picture, labels, None, *models, CUTS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def pieces_with(
    surely: Bool[ndarray, "height width"], mask: Bool[ndarray, "height width"]
) -> UInt8[ndarray, "height width"]:
    """The connected pieces of a mask that have a sure pixel: what else looks like the person is not the person."""
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.isin(pieces, np.unique(pieces[surely & mask])).astype(np.uint8)
