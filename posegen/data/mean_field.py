"""Refining a mask by a fully connected conditional random field: what is alike in place and colour becomes one.

Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011, for
the two labels person and background; weights, deviations and iterations are those of CRF-RNN (Zheng et al., ICCV 2015,
its released code).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from posegen.data.permutohedral import PermutohedralFilter

Filter = Callable[[ndarray], ndarray]  # of (height, width) values: for each pixel the mean over all, weighted


@dataclass(frozen=True, kw_only=True)
class Crf:
    """The two Gaussian kernels between pixels: one of place and colour, which keeps edges, and one of place alone.

    The deviations of places are pixels of a picture whose longer side is `side`, the largest that CRF-RNN takes, and
    shrink with smaller ones (our choice: it names them for such pictures only). Colours are 0 to 255.
    """

    appearance_place: float = 160.0  # theta_alpha
    appearance_colour: float = 3.0  # theta_beta
    smoothness_place: float = 3.0  # theta_gamma
    appearance_weight: float = 5.0
    smoothness_weight: float = 3.0
    iterations: int = 10
    side: int = 500


def mean_field(
    picture: UInt8[ndarray, "height width 3"], log_odds: Float[ndarray, "height width"], crf: Crf | None = None
) -> Float[ndarray, "height width"]:
    """The probability q of the person for each pixel, from the log odds u of each pixel by itself.

    q_i = sigmoid(u_i + sum_k w_k (2 m_k,i - 1)), again and again from q_i = sigmoid(u_i). m_k,i is the mean of q over
    all pixels, weighted by kernel k at pixel i: the Potts model, with the kernels normalised as CRF-RNN does.
    """
    crf = crf or Crf()
    kernels = [
        (crf.appearance_weight, appearance_filter(picture, crf)),
        (crf.smoothness_weight, smoothness_filter(log_odds.shape, crf)),
    ]
    person = _sigmoid(log_odds)
    for _ in range(crf.iterations):
        person = _sigmoid(log_odds + sum(weight * (2 * mean(person) - 1) for weight, mean in kernels))
    return person


def appearance_filter(picture: UInt8[ndarray, "height width 3"], crf: Crf) -> Filter:
    """exp(-|p_i - p_j|^2 / 2 alpha^2 - |I_i - I_j|^2 / 2 beta^2), on the permutohedral lattice."""
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns, rows], axis=-1) / (crf.appearance_place * max(height, width) / crf.side)
    features = np.concatenate([places, picture / crf.appearance_colour], axis=-1).reshape(-1, 5)
    lattice = PermutohedralFilter(features)
    total = lattice(np.ones(height * width))
    return lambda values: (lattice(values.ravel()) / total).reshape(height, width)


def smoothness_filter(size: tuple[int, ...], crf: Crf) -> Filter:
    """exp(-|p_i - p_j|^2 / 2 gamma^2); nothing lies beyond the picture's border."""
    deviation = crf.smoothness_place * max(size) / crf.side

    def blurred(values: ndarray) -> ndarray:
        return cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_CONSTANT)

    total = blurred(np.ones(size))
    return lambda values: blurred(values) / total


def _sigmoid(log_odds: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-log_odds))
