"""Mask refinement by a fully connected conditional random field: pixels alike in position and colour share a label.

Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011, for
the two labels person and background; weights, deviations and iterations are those of CRF-RNN (Zheng et al., ICCV 2015,
its released code).

The Gaussian filter of points of a few dimensions runs on the permutohedral lattice (Adams, Baek, Davis, Fast
High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010): every point gives its value to the d + 1
corners of the lattice simplex around it (splat), neighbouring corners are blurred along each of the d + 1 axes, and
every point takes back the values of its corners (slice). Time and memory are linear in the number of points; comparing
all of them with each other would be quadratic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from scipy.sparse import csr_array

Filter = Callable[[ndarray], ndarray]  # values (height, width) to weighted means over all pixels


@dataclass(frozen=True, kw_only=True)
class Crf:
    """Two Gaussian kernels between pixels: of position and colour, which keeps edges, and of position alone.

    The deviations of positions are pixels of an image whose longer side is `side`, the largest that CRF-RNN takes, and
    shrink with smaller ones (our choice: it names them for such images only). Colours are 0 to 255.
    """

    appearance_place: float = 160.0  # theta_alpha
    appearance_colour: float = 3.0  # theta_beta
    smoothness_place: float = 3.0  # theta_gamma
    appearance_weight: float = 5.0
    smoothness_weight: float = 3.0
    iterations: int = 10
    side: int = 500


def mean_field(
    image: UInt8[ndarray, "height width 3"], log_odds: Float[ndarray, "height width"], crf: Crf | None = None
) -> Float[ndarray, "height width"]:
    """Return the probability q of the person for each pixel, from the log odds u of each pixel by itself.

    q_i = sigmoid(u_i + sum_k w_k (2 m_k,i - 1)), iterated from q_i = sigmoid(u_i). m_k,i is the mean of q over
    all pixels, weighted by kernel k at pixel i: the Potts model, with the kernels normalised as CRF-RNN does.
    """
    crf = crf or Crf()
    kernels = [
        (crf.appearance_weight, appearance_filter(image, crf)),
        (crf.smoothness_weight, smoothness_filter(log_odds.shape, crf)),
    ]
    person = _sigmoid(log_odds)
    for _ in range(crf.iterations):
        person = _sigmoid(log_odds + sum(weight * (2 * mean(person) - 1) for weight, mean in kernels))
    return person


def appearance_filter(image: UInt8[ndarray, "height width 3"], crf: Crf) -> Filter:
    """Return the filter exp(-|p_i - p_j|^2 / 2 alpha^2 - |I_i - I_j|^2 / 2 beta^2), on the permutohedral lattice."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns, rows], axis=-1) / (crf.appearance_place * max(height, width) / crf.side)
    features = np.concatenate([places, image / crf.appearance_colour], axis=-1).reshape(-1, 5)
    lattice = PermutohedralFilter(features)
    total = lattice(np.ones(height * width))
    return lambda values: (lattice(values.ravel()) / total).reshape(height, width)


def smoothness_filter(size: tuple[int, ...], crf: Crf) -> Filter:
    """Return the filter exp(-|p_i - p_j|^2 / 2 gamma^2); nothing lies beyond the image's border."""
    deviation = crf.smoothness_place * max(size) / crf.side

    def blurred(values: ndarray) -> ndarray:
        return cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_CONSTANT)

    total = blurred(np.ones(size))
    return lambda values: blurred(values) / total


class _Simplices(NamedTuple):
    """Corners around each point as integer coordinates without the last one: all of them sum to 0."""

    corners: Int[ndarray, "points corners dimensions"]
    weights: Float[ndarray, "points corners"]  # barycentric: they sum to 1


class PermutohedralFilter:
    """The filter v_i -> c sum_j exp(-|f_i - f_j|^2 / 2) v_j, approximately, j = i included.

    `features` f are the points in units of the Gaussian's standard deviation. The factor c is about the same for all
    points and stays unknown: divide by the filter of ones.
    """

    def __init__(self, features: Float[ndarray, "points dimensions"]) -> None:
        points, dimensions = features.shape
        corners, weights = _simplices(features)
        codes, unit = _codes(corners.reshape(-1, dimensions))
        found, indices = np.unique(codes, return_inverse=True)
        rows = np.arange(points + 1) * (dimensions + 1)
        self._slice = csr_array((weights.ravel(), indices.ravel(), rows), shape=(points, len(found)))
        self._splat = self._slice.T.tocsr()
        # The d + 1 axes: d along one coordinate, -1 along the others.
        steps = (dimensions + 1) * np.eye(dimensions + 1, dimensions, dtype=np.int64) - 1
        self._neighbours = [_neighbours(found, int(step @ unit)) for step in steps]

    def __call__(self, values: Float[ndarray, "points"]) -> Float[ndarray, "points"]:
        """Filter one value per point."""
        held = np.append(self._splat @ values, 0.0)  # the last one stands for corners without a value
        for before, after in self._neighbours:
            held[:-1] += 0.5 * (held[before] + held[after])
        return self._slice @ held[:-1]


def _simplices(features: Float[ndarray, "points dimensions"]) -> _Simplices:
    """Simplex around each point (section 3.1 of the paper)."""
    dimensions = features.shape[1]
    lifted = _lifted(features)
    nearest = np.rint(lifted / (dimensions + 1)).astype(np.int64)
    order = np.argsort(
        nearest * (dimensions + 1) - lifted, axis=1
    )  # coordinates, the one with the largest remainder first
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(dimensions + 1), order.shape), axis=1)
    rank += nearest.sum(axis=1, keepdims=True)  # some coordinates go one up or down so that all sum to 0
    turns = (rank < 0).astype(np.int64) - (rank > dimensions)
    nearest, rank = nearest + turns, rank + turns * (dimensions + 1)
    left_over = np.empty_like(lifted)
    np.put_along_axis(left_over, rank, lifted / (dimensions + 1) - nearest, axis=1)  # in descending order
    weights = np.empty_like(lifted)
    weights[:, 0] = 1 - left_over[:, 0] + left_over[:, -1]
    weights[:, 1:] = (left_over[:, :-1] - left_over[:, 1:])[:, ::-1]
    number = np.arange(dimensions + 1)[:, None]
    low, rank = (nearest * (dimensions + 1))[:, None, :-1], rank[:, None, :-1]
    return _Simplices(low + number - (dimensions + 1) * (rank > dimensions - number), weights)


def _lifted(features: Float[ndarray, "points dimensions"]) -> Float[ndarray, "points corners"]:
    """Points in the plane of d + 1 coordinates that sum to 0, scaled so that the lattice's blur has deviation 1."""
    dimensions = features.shape[1]
    number = np.arange(1, dimensions + 1)
    scaled = features * (np.sqrt(2 / 3) * (dimensions + 1) / np.sqrt(number * (number + 1)))
    lifted = np.zeros((len(features), dimensions + 1))
    lifted[:, :-1] = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
    lifted[:, 1:] -= number * scaled
    return lifted


def _codes(corners: Int[ndarray, "n dimensions"]) -> tuple[Int[ndarray, "n"], Int[ndarray, "dimensions"]]:
    """One unique code per corner, and the amount that a step along each coordinate adds to it."""
    dimensions = corners.shape[1]
    low = corners.min(axis=0) - dimensions - 1
    spans = corners.max(axis=0) - low + dimensions + 2
    unit = np.concatenate([[1], np.cumprod(spans[:-1])])
    return (corners - low) @ unit, unit


def _neighbours(codes: Int[ndarray, "m"], step: int) -> tuple[Int[ndarray, "m"], Int[ndarray, "m"]]:
    """Indices of each corner's neighbours one step before and after it; m if there is none."""
    after = np.searchsorted(codes, codes + step)
    after[codes[np.minimum(after, len(codes) - 1)] != codes + step] = len(codes)
    before = np.full_like(after, len(codes))
    there = np.flatnonzero(after < len(codes))
    before[after[there]] = there
    return before, after


def _sigmoid(log_odds: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-log_odds))
