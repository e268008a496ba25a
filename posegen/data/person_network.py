"""The person's mask by a segmentation network, where the user has its file: the first half of CRF-RNN, replaced.

The network is U^2-Net for people (Qin et al., Pattern Recognition 2020) in the ONNX file that rembg publishes, run by
OpenCV. What goes in and what comes out follows rembg (sessions/base.py, u2net_human_seg.py). Our choice: the mean field
that follows, which is CRF-RNN's second half, and dropping pieces in which no joint lies, who are other people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from posegen.data.mean_field import mean_field
from posegen.data.person_masks import person_mask, pieces_with
from posegen.data.reasons import NOBODY
from posegen.weights import PRETRAINED, path_of

PERSON_NETWORK = "u2net_human_seg"  # in weights.PRETRAINED
SIDE = 320  # pixels of the square that the network sees
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
DOUBT = 0.01  # no pixel is surer than this: it may still follow its neighbours

Estimate = Callable[[ndarray, ndarray, ndarray], ndarray]  # picture, joints, visible -> mask, as `person_mask`


@dataclass(frozen=True)
class PersonNetwork:
    """Masks by the network in an ONNX file; called as `person_mask` is."""

    path: Path

    def __call__(
        self, picture: UInt8[ndarray, "height width 3"], joints: Float[ndarray, "18 2"], visible: Bool[ndarray, "18"]
    ) -> UInt8[ndarray, "height width"]:
        """1 on the person whose joints these are. Raises ValueError(reason) where the network sees nobody there."""
        probability = np.clip(self.probability(picture), DOUBT, 1 - DOUBT)
        mask = mean_field(picture, np.log(probability / (1 - probability))) > 0.5
        mask = pieces_with(_joint_pixels(joints[visible], mask.shape), mask)
        if not mask.any():
            raise ValueError(NOBODY)
        return mask

    def probability(self, picture: UInt8[ndarray, "height width 3"]) -> Float[ndarray, "height width"]:
        """What the network makes of a picture: its first output, stretched to [0, 1] as rembg does."""
        height, width = picture.shape[:2]
        net = open_network(self.path)
        square = _resized(picture, SIDE, SIDE).astype(np.float32)
        normal = (square / max(float(square.max()), 1e-6) - MEAN) / DEVIATION
        net.setInput(normal.transpose(2, 0, 1)[None].astype(np.float32))
        seen = net.forward(net.getUnconnectedOutLayersNames()[0]).reshape(SIDE, SIDE)
        low, high = float(seen.min()), float(seen.max())
        return _resized((seen - low) / max(high - low, 1e-6), height, width)


@lru_cache(maxsize=1)
def open_network(path: Path) -> cv2.dnn.Net:
    """The network in a file, once a process. Raises ValueError where OpenCV cannot read it."""
    try:
        return cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ValueError(
            f"{path} is there, but OpenCV {cv2.__version__} cannot read it ({error.err}). Take another version of "
            "OpenCV, or remove the file to have masks without a network."
        ) from None


def network_digits(weights: Path) -> str:
    """The first digits of the sha256 of the network in a folder of weights; "" where it has none.

    Raises ValueError where the file is another one, or OpenCV cannot read it.
    """
    path = path_of(PERSON_NETWORK, weights)
    if path is None:
        return ""
    open_network(path)
    return PRETRAINED[PERSON_NETWORK].sha256


def mask_estimate(digits: str, weights: Path) -> Estimate:
    """Who makes the masks: the network with those digits, or GrabCut where there are none."""
    return PersonNetwork(weights / PRETRAINED[PERSON_NETWORK].file) if digits else person_mask


def _resized(values: ndarray, height: int, width: int) -> ndarray:
    """Averaged over areas where it shrinks both ways, linear else, so that no value leaves its range."""
    shrinks = height <= values.shape[0] and width <= values.shape[1]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _joint_pixels(joints: Float[ndarray, "n 2"], size: tuple[int, ...]) -> Bool[ndarray, "height width"]:
    """Which pixels have a joint in them; joints outside the picture are left out."""
    columns, rows = np.rint(joints).astype(np.int64).T
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    pixels = np.zeros(size, bool)
    pixels[rows[inside], columns[inside]] = True
    return pixels
