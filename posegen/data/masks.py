"""The mask of the person whose joints are given, without or with a segmentation network.

The multistage paper takes its masks (f_CRF) from CRF-RNN, whose first half is a trained network. Two things replace
that half (our choice); CRF-RNN's second half, the mean field of a fully connected random field (`mean_field`), then
puts the edge where the image has one.

- `person_mask` needs joints and image alone: the limbs, as thick as people are, mark where the person surely is, may
  be, and cannot be; GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004) learns the colours of both and cuts between
  them.
- `PersonNetwork` uses U^2-Net for people (Qin et al., Pattern Recognition 2020) in the ONNX file that rembg publishes,
  if the user has it; OpenCV runs it. Input and output follow rembg (sessions/base.py, u2net_human_seg.py). Pieces
  without a joint are dropped as other people (our choice).
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray

from posegen.data.geometry.joints import LIMBS, TORSO
from posegen.data.mean_field import mean_field
from posegen.data.reasons import NOBODY, TOO_FEW_JOINTS
from posegen.nets.pretrained import PRETRAINED, path_of

_ENDS = np.array(LIMBS)
_SQUARE = np.ones((5, 5), np.uint8)


def pose_mask(
    joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], *, height: int, width: int, radius: int
) -> UInt8[ndarray, "height width"]:
    """Return 1 on the limbs of a person and 0 elsewhere.

    For each of the 23 limbs whose joints are both visible: discs of `radius` pixels at both ends and at the points
    i/n between them, i = 1 .. n-1, n = int(length / radius); then a closing (dilation, erosion) by a 5x5 square. Every
    centre is truncated to whole pixels. PG2 uses radius 4 at both of its image sizes.

    Discs of centres outside the image are clipped, not left out. The closing sees nothing beyond the border: the
    erosion does not eat the mask there, as with scikit-image, which PG2 uses. Joints that are not visible are not read.
    Time and memory grow with the limbs' lengths, so coordinates must be bounded.
    """
    stamps = np.zeros((height + 2 * radius, width + 2 * radius), np.uint8)
    centres = _stamp_centres(joints, visible, radius) + radius
    inside = ((centres >= 0) & (centres < (stamps.shape[1], stamps.shape[0]))).all(axis=1)
    stamps[centres[inside, 1], centres[inside, 0]] = 1
    discs = cv2.dilate(stamps, _disc(radius))[radius : radius + height, radius : radius + width]
    return cv2.morphologyEx(np.ascontiguousarray(discs), cv2.MORPH_CLOSE, _SQUARE)


def _stamp_centres(joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], radius: int) -> Int64[ndarray, "n 2"]:
    """Whole-pixel centres (x, y) of all discs, some of them more than once."""
    ends = joints[_ENDS[visible[_ENDS].all(axis=1)]].astype(np.float64)
    start, span = ends[:, 0], ends[:, 1] - ends[:, 0]
    pieces = (np.sqrt(np.square(span).sum(axis=1)) / radius).astype(np.int64)
    places = np.arange(1, pieces.max(initial=1))
    between = places < pieces[:, None]
    points = start[:, None] + span[:, None] * places[:, None] / np.maximum(pieces, 1)[:, None, None]
    return np.concatenate([ends.reshape(-1, 2), points[between]]).astype(np.int64)


@lru_cache
def _disc(radius: int) -> UInt8[ndarray, "side side"]:
    """All whole offsets within `radius`: 49 pixels at radius 4."""
    offsets = np.square(np.arange(-radius, radius + 1))
    return (offsets[:, None] + offsets <= radius**2).astype(np.uint8)


def pack(mask: UInt8[ndarray, "height width"]) -> bytes:
    """Pack a mask of 0 and 1 into one bit per pixel, row by row, compressed by zlib: some 200 bytes at 128x64.

    Level 1 is our choice: level 6 saves 50 bytes of an image's 2.3 kB.
    """
    return zlib.compress(np.packbits(mask).tobytes(), level=1)


def unpack(packed: Sequence[bytes | memoryview], height: int, width: int) -> UInt8[ndarray, "n height width"]:
    """Unpack masks of 0 and 1 from the output of `pack`."""
    size = -(-height * width // 8)
    bits = np.frombuffer(b"".join(map(zlib.decompress, packed)), np.uint8).reshape(len(packed), size)
    return np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width)


# Seeds and confidence, our choice: near the best of those tried on the embedded people and a photograph.
SURELY_INSIDE = 0.6  # of a part's radius, from its middle line
PERHAPS_WITHIN = 0.15  # torso lengths from a part's surface; beyond it is surely background
CUTS = 2  # GrabCut's iterations
CUT_LOG_ODDS = 1.0  # of a pixel after GrabCut and before the mean field
SURE_LOG_ODDS = 20.0
COLOURS = 5  # in GrabCut's model of either side: each side needs as many pixels

PERSON_NETWORK = "u2net_human_seg"  # in `PRETRAINED`
NETWORK_SIDE = 320  # pixels of the square that the network sees
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
DOUBT = 0.01  # least probability of either label, so that a pixel can still follow its neighbours

Estimate = Callable[[ndarray, ndarray, ndarray], ndarray]  # image, joints, visible -> mask, as `person_mask`


class Part(NamedTuple):
    """A limb as a round bar of changing thickness; lengths in torso lengths (shoulder to hip)."""

    start: int
    end: int
    start_radius: float
    end_radius: float
    beyond: float  # extension past `end` as a share of its length: hands, feet
    length: float = 0.0  # of an adult, unforeshortened; 0 if it does not give the scale


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
SIDES = (8, 9)  # in PARTS: shoulder to hip; either gives the scale
_NOSE, _SHOULDERS, _HIPS, _EYES, _EARS = 0, (2, 5), (8, 11), (14, 15), (16, 17)
NECK_RADIUS, HEAD_RADIUS, HEAD_ABOVE_NECK = 0.12, 0.20, 0.42


class Bar(NamedTuple):
    """A part in an image, in pixels."""

    start: Float[ndarray, "2"]
    end: Float[ndarray, "2"]
    start_radius: float
    end_radius: float


def person_mask(
    image: UInt8[ndarray, "height width 3"], joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]
) -> UInt8[ndarray, "height width"]:
    """Return 1 on the person with these joints and 0 elsewhere, for an RGB image; deterministic.

    Pieces that no bone runs through are dropped. Joints that are not visible are not read. Raises
    ValueError(reason, detail) if there are too few joints to locate the person.
    """
    seeds = limb_seeds(joints, visible, height=image.shape[0], width=image.shape[1])
    surely = seeds == cv2.GC_FGD
    if surely.sum() < COLOURS:
        raise ValueError(TOO_FEW_JOINTS, "no limb lies in the image")
    if np.isin(seeds, (cv2.GC_BGD, cv2.GC_PR_BGD)).sum() < COLOURS:
        return np.ones_like(seeds)
    log_odds = np.where(_cut(image, seeds), CUT_LOG_ODDS, -CUT_LOG_ODDS)
    log_odds[surely] = SURE_LOG_ODDS
    log_odds[seeds == cv2.GC_BGD] = -SURE_LOG_ODDS
    return pieces_with(surely, mean_field(image, log_odds) > 0.5)


def limb_seeds(
    joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"], *, height: int, width: int
) -> UInt8[ndarray, "height width"]:
    """Label each pixel by the limbs: cv2.GC_FGD, GC_PR_FGD (inside a limb), GC_PR_BGD (near one) or GC_BGD.

    Hidden legs are guessed: perhaps person, never surely. Raises ValueError(reason, detail) if no limb has both its
    joints, or all such limbs are points.
    """
    points = np.where(visible[:, None], joints, 0).astype(np.float64)
    torso = torso_length(points, visible)
    if torso == 0:
        raise ValueError(TOO_FEW_JOINTS, "no limb has a length: both its joints, in two places")
    depth, distance = np.full((height, width), np.inf), np.full((height, width), np.inf)
    for bar in _bars(points, visible, torso):
        from_middle, radius = _from_middle(bar, height, width)
        depth = np.minimum(depth, from_middle / radius)
        distance = np.minimum(distance, from_middle - radius)
    for bar in _hidden_legs(points, visible, torso):
        from_middle, radius = _from_middle(bar, height, width)
        distance = np.minimum(distance, from_middle - radius)
    if visible[list(TORSO)].all():  # between shoulders and hips; a twisted torso is two triangles
        inside = np.zeros((height, width), np.uint8)
        cv2.fillPoly(inside, [np.rint(points[[2, 5, 11, 8]]).astype(np.int32)], 1)
        depth[inside > 0] = distance[inside > 0] = 0
    seeds = np.full((height, width), cv2.GC_BGD, np.uint8)
    seeds[distance <= PERHAPS_WITHIN * torso] = cv2.GC_PR_BGD
    seeds[distance <= 0] = cv2.GC_PR_FGD
    seeds[depth <= SURELY_INSIDE] = cv2.GC_FGD
    return seeds


def torso_length(joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]) -> float:
    """Return the pixels from shoulder to hip, the unit of all thicknesses; 0 if unknown.

    It is the longer of the two sides, since foreshortening only shortens; without either, the largest of the estimates
    from the other limbs.
    """
    lengths = {
        number: float(np.linalg.norm(joints[part.end] - joints[part.start])) / part.length
        for number, part in enumerate(PARTS)
        if part.length and visible[[part.start, part.end]].all()
    }
    sides = [lengths[number] for number in SIDES if number in lengths]
    return max(sides or lengths.values(), default=0.0)


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
    """Guesses for legs whose knee or ankle is hidden by a skirt, a coat, a bicycle or the border.

    From the hip to the ankle, or a leg's length in the direction of the torso; from the knee straight on.
    """
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        if visible[hip] and not visible[knee]:
            end = joints[ankle] if visible[ankle] else joints[hip] - 1.7 * torso * _up(joints, visible)
            yield Bar(joints[hip], end, 0.20 * torso, 0.12 * torso)
        elif visible[hip] and not visible[ankle]:
            on = 0.95 * torso * _direction(joints[knee] - joints[hip])
            yield Bar(joints[knee], joints[knee] + on, 0.13 * torso, 0.10 * torso)


def _up(joints: ndarray, visible: ndarray) -> ndarray:
    """Direction from the hips to the shoulders; up in the image if one of the four is hidden."""
    if not visible[list(TORSO)].all():
        return np.array((0.0, -1.0))
    return _direction(joints[list(_SHOULDERS)].mean(axis=0) - joints[list(_HIPS)].mean(axis=0))


def _direction(span: ndarray) -> ndarray:
    return span / max(float(np.linalg.norm(span)), 1e-6)


def _head(joints: ndarray, visible: ndarray) -> ndarray | None:
    """Middle of the head: between both ears, else the mean of the visible joints of the face, else None."""
    if visible[list(_EARS)].all():
        return joints[list(_EARS)].mean(axis=0)
    face = [joint for joint in (_NOSE, *_EYES, *_EARS) if visible[joint]]
    return joints[face].mean(axis=0) if face else None


def _from_middle(bar: Bar, height: int, width: int) -> tuple[ndarray, ndarray]:
    """Distance of each pixel from the bar's middle line, and the bar's radius at the nearest point of it."""
    rows, columns = np.ogrid[:height, :width]
    x, y = columns - bar.start[0], rows - bar.start[1]
    along_x, along_y = bar.end - bar.start
    along = np.clip((x * along_x + y * along_y) / max(along_x**2 + along_y**2, 1e-6), 0, 1)
    radius = bar.start_radius + along * (bar.end_radius - bar.start_radius)
    return np.hypot(x - along * along_x, y - along * along_y), radius


def _cut(
    image: UInt8[ndarray, "height width 3"], seeds: UInt8[ndarray, "height width"]
) -> Bool[ndarray, "height width"]:
    """GrabCut from the seeds, with OpenCV's random generator reset because it initialises the colours."""
    cv2.setRNGSeed(0)
    labels, models = seeds.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(image, labels, None, *models, CUTS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def pieces_with(
    surely: Bool[ndarray, "height width"], mask: Bool[ndarray, "height width"]
) -> UInt8[ndarray, "height width"]:
    """Keep the connected pieces of a mask that contain a sure pixel."""
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.isin(pieces, np.unique(pieces[surely & mask])).astype(np.uint8)


@dataclass(frozen=True)
class PersonNetwork:
    """Masks by the network in an ONNX file; called as `person_mask` is."""

    path: Path

    def __call__(
        self, image: UInt8[ndarray, "height width 3"], joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]
    ) -> UInt8[ndarray, "height width"]:
        """Return 1 on the person with these joints. Raises ValueError(reason) if the network finds nobody there."""
        probability = np.clip(self.probability(image), DOUBT, 1 - DOUBT)
        mask = mean_field(image, np.log(probability / (1 - probability))) > 0.5
        mask = pieces_with(_joint_pixels(joints[visible], mask.shape), mask)
        if not mask.any():
            raise ValueError(NOBODY)
        return mask

    def probability(self, image: UInt8[ndarray, "height width 3"]) -> Float[ndarray, "height width"]:
        """Return the network's first output for an image, stretched to [0, 1] as rembg does."""
        height, width = image.shape[:2]
        net = open_network(self.path)
        square = _resized(image, NETWORK_SIDE, NETWORK_SIDE).astype(np.float32)
        normal = (square / max(float(square.max()), 1e-6) - MEAN) / DEVIATION
        net.setInput(normal.transpose(2, 0, 1)[None].astype(np.float32))
        seen = net.forward(net.getUnconnectedOutLayersNames()[0]).reshape(NETWORK_SIDE, NETWORK_SIDE)
        low, high = float(seen.min()), float(seen.max())
        return _resized((seen - low) / max(high - low, 1e-6), height, width)


@lru_cache(maxsize=1)
def open_network(path: Path) -> cv2.dnn.Net:
    """Read the network in a file, once per process. Raises ValueError if OpenCV cannot read it."""
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ValueError(
            f"{path} is there, but OpenCV {cv2.__version__} cannot read it ({error.err}). Take another version of "
            "OpenCV, or remove the file to have masks without a network."
        ) from None


def network_digits(weights: Path) -> str:
    """Return the first digits of the sha256 of the network in a folder of weights; "" without one.

    Raises ValueError if the sha256 is wrong or OpenCV cannot read the file.
    """
    path = path_of(PERSON_NETWORK, weights)
    if path is None:
        return ""
    open_network(path)
    return PRETRAINED[PERSON_NETWORK].sha256


def mask_estimate(digits: str, weights: Path) -> Estimate:
    """Return the function that makes masks: the network with those digits, or GrabCut if they are empty."""
    return PersonNetwork(weights / PRETRAINED[PERSON_NETWORK].file) if digits else person_mask


def _resized(values: ndarray, height: int, width: int) -> ndarray:
    """Resize by area averages if both sides shrink, else linearly, so that no value leaves its range."""
    shrinks = height <= values.shape[0] and width <= values.shape[1]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _joint_pixels(joints: Float[ndarray, "n 2"], size: tuple[int, ...]) -> Bool[ndarray, "height width"]:
    """Mark the pixels that contain a joint; joints outside the image are left out."""
    columns, rows = np.rint(joints).astype(np.int64).T
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    pixels = np.zeros(size, bool)
    pixels[rows[inside], columns[inside]] = True
    return pixels
