"""A dressed skeleton seen by a camera: projected, drawn through a depth buffer, shaded, with exact joints and mask.

The figure is drawn several times larger and averaged down by area. Pixel coordinates have whole numbers at the pixels'
centres. The camera is far away (parallel projection), a little above the person.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from posegen.data.body import dress
from posegen.data.fabrics import SIDE, TILES
from posegen.data.joints import JOINTS
from posegen.data.rasterizer import Fragments, rasterize
from posegen.data.skeleton import Proportions, Skeleton, turn
from posegen.data.tubes import Mesh, Tube, join
from posegen.data.wardrobe import Look

DRAWN_HEIGHT = 240  # at least this many rows are drawn, so that small pictures are as smooth as large ones


class View(NamedTuple):
    """A camera and the crop: degrees around and above the person, light's direction, and the figure's place in it.

    At azimuth 0 the camera sees the front, at 90 the person's right side (the person faces the picture's right), at
    180 the back. `fill` is the share of the picture that the figure spans; the shifts are shares of the free margin,
    -1 to 1. The light's direction points towards it: right, up, to the camera.
    """

    azimuth: float
    elevation: float = 0.0
    light: tuple[float, float, float] = (-0.4, 0.5, 0.75)
    fill: float = 0.92
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Figure:
    """A drawn person without background. `colour` is multiplied by `coverage` already."""

    colour: Float[np.ndarray, "height width 3"]  # RGB, 0 to 255
    coverage: Float[np.ndarray, "height width"]  # 0 to 1
    joints: Float[np.ndarray, "18 2"]
    visible: Bool[np.ndarray, "18"]

    @property
    def mask(self) -> UInt8[np.ndarray, "height width"]:
        """1 where the person covers at least half of the pixel."""
        return (self.coverage >= 0.5).astype(np.uint8)

    def over(self, backdrop: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of the figure before a backdrop."""
        picture = self.colour + backdrop * (1 - self.coverage[..., None])
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


# What may lie over a joint without hiding it: the parts that it joins, up to so many metres of flesh and cloth.
_LIMB_PARTS = {"wrist": "arm", "elbow": "arm", "shoulder": "arm", "hip": "leg", "knee": "leg", "ankle": "leg"}
_NEIGHBOURS = {"shoulder": ("trunk", "hair", "neck"), "hip": ("hips", "trunk", "skirt"), "knee": ("skirt",)}
_FLESH = {"shoulder": 0.125, "elbow": 0.085, "wrist": 0.065, "hip": 0.185, "knee": 0.14, "ankle": 0.10, "neck": 0.14}
_FACE_FLESH = {"nose": 0.035, "right_eye": 0.035, "left_eye": 0.035, "right_ear": 0.06, "left_ear": 0.06}


def draw_figure(
    skeleton: Skeleton, proportions: Proportions, look: Look, tiles: UInt8[np.ndarray, "tiles 128 128 3"],
    view: View, size: tuple[int, int],
) -> Figure:  # fmt: skip
    """Draws a person into a picture of `size` (height, width)."""
    tubes = dress(skeleton, proportions, look)
    mesh = join(tubes)
    factor = max(2, -(-DRAWN_HEIGHT // size[0]))
    height, width = size[0] * factor, size[1] * factor
    camera = turn(0, view.elevation) @ turn(1, view.azimuth)
    turned = mesh.vertices @ camera.T
    scale, offset = _fit(turned, view, height, width)
    vertices = turned * (scale, -scale, scale) + (*offset, 0)
    fragments = rasterize(vertices, _facing(mesh, tubes, vertices), height, width)
    colour = _shade(mesh, tubes, fragments, tiles, mesh.normals @ camera.T, view)
    depth = _planes(fragments, height, width, scale)
    colour *= _crevices(depth)[depth.covered][:, None]
    joints = skeleton.joints @ camera.T * (scale, -scale, scale) + (*offset, 0)
    visible = _visible(joints, depth, [tube.part for tube in tubes], mesh.tube, scale)
    return _reduce(colour, depth.covered, (joints[:, :2] + 0.5) / factor - 0.5, visible, size)
