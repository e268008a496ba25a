"""A dressed skeleton seen by a camera: projected, drawn through a depth buffer, shaded, with exact joints and mask.

The figure is drawn several times larger and averaged down by area. Pixel coordinates have whole numbers at the pixels'
centres. The camera is far away (parallel projection), a little above the person.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from posegen.data.geometry.joints import JOINTS
from posegen.data.sources.synthetic.body import dress
from posegen.data.sources.synthetic.mesh import Fragments, Mesh, Tube, join, rasterize
from posegen.data.sources.synthetic.skeleton import Proportions, Skeleton, turn
from posegen.data.sources.synthetic.wardrobe import SIDE, TILES, Look

WIDEST = 0.97  # of the image's width that a figure may span
DRAWN_HEIGHT = 192  # at least this many rows are drawn, so that small images are as smooth as large ones


class View(NamedTuple):
    """A camera and a crop: degrees around and above the person, the light, and the figure's position in the image.

    At azimuth 0 the camera sees the front, at 90 the person's right side (the person faces the image's right), at
    180 the back. `fill` is the share of the image that the figure spans, unless `scale` gives the image
    heights per metre; the shifts are shares of the free margin, -1 to 1. The light's direction points towards it:
    right, up, to the camera.
    """

    azimuth: float
    elevation: float = 0.0
    light: tuple[float, float, float] = (-0.4, 0.5, 0.75)
    fill: float = 0.92
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float | None = None


@dataclass(frozen=True)
class Figure:
    """A drawn person without background. `colour` is premultiplied by `coverage`."""

    colour: Float[np.ndarray, "height width 3"]  # RGB, 0 to 255
    coverage: Float[np.ndarray, "height width"]  # 0 to 1
    joints: Float[np.ndarray, "18 2"]
    visible: Bool[np.ndarray, "18"]

    @property
    def mask(self) -> UInt8[np.ndarray, "height width"]:
        """Return 1 where the person covers at least half of the pixel."""
        return (self.coverage >= 0.5).astype(np.uint8)

    def over(self, backdrop: Float[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """Compose the figure over a backdrop."""
        image = self.colour + backdrop * (1 - self.coverage[..., None])
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_figure(
    skeleton: Skeleton,
    proportions: Proportions,
    look: Look,
    tiles: UInt8[np.ndarray, "tiles 128 128 3"],
    view: View,
    size: tuple[int, int],
) -> Figure:
    """Draw a person into an image of `size` (height, width)."""
    tubes = dress(skeleton, proportions, look)
    mesh = join(tubes)
    factor = max(2, -(-DRAWN_HEIGHT // size[0]))
    height, width = size[0] * factor, size[1] * factor
    camera = turn(0, view.elevation) @ turn(1, view.azimuth)
    turned = mesh.vertices @ camera.T
    scale, offset = _fit(turned, view, height, width)
    surface = _see(mesh, tubes, turned * (scale, -scale, scale) + (*offset, 0), (height, width))
    colour = _shade(mesh, surface, [TILES.index(tube.tile) for tube in tubes], tiles, camera, view.light)
    joints = skeleton.joints @ camera.T * (scale, -scale, scale) + (*offset, 0)
    visible = visible_joints(joints, surface, [tube.part for tube in tubes], scale * proportions.girth)
    drawn = np.zeros((height * width, 4), np.float32)
    drawn[surface.fragments.pixel, :3] = np.clip(colour * _crevices(surface, scale), 0, 255)
    drawn[surface.fragments.pixel, 3] = 1
    small = cv2.resize(drawn.reshape(height, width, 4), (size[1], size[0]), interpolation=cv2.INTER_AREA)
    joints = ((joints[:, :2] + 0.5) / factor - 0.5).astype(np.float32)
    return Figure(small[..., :3], small[..., 3], joints, visible)


def common_scale(
    skeleton: Skeleton, proportions: Proportions, look: Look, views: Sequence[View], size: tuple[int, int]
) -> float:
    """Return the largest `View.scale` at which the figure keeps to its share of the image in every view."""
    mesh = join(dress(skeleton, proportions, look))
    turned = ((mesh.vertices @ (turn(0, view.elevation) @ turn(1, view.azimuth)).T, view) for view in views)
    return min(_fit(vertices, view, 1.0, size[1] / size[0])[0] for vertices, view in turned)


class Surface(NamedTuple):
    """The visible surface: a fragment per covered pixel, and maps of nearness and tube."""

    fragments: Fragments
    nearness: Float[np.ndarray, "height width"]  # pixels; -inf where nothing is
    tube: Int[np.ndarray, "height width"]  # number of the tube; -1 where nothing is


def _fit(turned: np.ndarray, view: View, height: float, width: float) -> tuple[float, tuple[float, float]]:
    """Pixels per metre so that the figure spans its share of the image, and the origin in the image."""
    low, high = turned[:, :2].min(axis=0), turned[:, :2].max(axis=0)
    span = high - low
    scale = view.scale * height if view.scale else float(min(view.fill * height / span[1], WIDEST * width / span[0]))
    middle = (low + high) / 2 * (scale, -scale)
    free = (np.array((width, height)) - span * scale) / 2
    x, y = np.array((width - 1, height - 1)) / 2 + free * view.shift - middle
    return scale, (float(x), float(y))


def _see(mesh: Mesh, tubes: Sequence[Tube], vertices: np.ndarray, size: tuple[int, int]) -> Surface:
    """Fill the depth buffer. Far sides of closed tubes are left out: their near sides cover them."""
    corners = vertices[mesh.triangles, :2]
    (along_x, along_y), (aside_x, aside_y) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    two_sided = np.array([tube.two_sided for tube in tubes])[mesh.tube]
    kept = np.flatnonzero((along_x * aside_y - along_y * aside_x < 0) | two_sided)
    found = rasterize(vertices, mesh.triangles[kept], *size)
    fragments = found._replace(triangle=kept[found.triangle])
    nearness, tube = np.full(size[0] * size[1], -np.inf), np.full(size[0] * size[1], -1)
    nearness[fragments.pixel], tube[fragments.pixel] = fragments.nearness, mesh.tube[fragments.triangle]
    return Surface(fragments, nearness.reshape(size), tube.reshape(size))


def _shade(
    mesh: Mesh, surface: Surface, tile_of: Sequence[int], tiles: np.ndarray, camera: np.ndarray, light: Sequence[float]
) -> np.ndarray:
    """RGB of every fragment: its texture under a soft light from one side, darker towards the outline."""
    corners, weights = mesh.triangles[surface.fragments.triangle], surface.fragments.weights
    attributes = np.concatenate((mesh.normals @ camera.T, mesh.texture), axis=1).astype(np.float32)
    values = np.einsum("nk,nkc->nc", weights.astype(np.float32), attributes[corners])
    column, row = np.clip(values[:, 3:] * SIDE, 0, SIDE - 1).astype(np.int64).T
    painted = tiles[np.asarray(tile_of)[mesh.tube[surface.fragments.triangle]], row, column]
    normals = values[:, :3] / (np.linalg.norm(values[:, :3], axis=1, keepdims=True) + 1e-6)
    normals *= np.where(normals[:, 2:] < 0, -1, 1)
    lit = np.clip(normals @ (np.array(light, np.float32) / np.linalg.norm(light)), -0.3, 1)
    brightness = 0.54 + 0.40 * lit + 0.16 * normals[:, 2] + 0.05 * normals[:, 1]
    return painted * brightness[:, None]


def _crevices(surface: Surface, scale: float) -> np.ndarray:
    """Darkening (n, 1) where the surroundings are nearer than the surface, as under an arm that crosses the trunk.

    Luft, Colditz and Deussen 2006, "Image enhancement by unsharp masking the depth buffer", kept to the dark side.
    """
    covered = surface.tube >= 0
    depth = np.where(covered, surface.nearness, 0).astype(np.float32)
    sigma = 0.03 * scale
    share = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), sigma)
    around = cv2.GaussianBlur(depth, (0, 0), sigma) / np.maximum(share, 1e-3)
    buried = np.clip((around - depth).ravel()[surface.fragments.pixel] / scale, 0, 0.12)
    return (1 - 3.2 * buried)[:, None]


# Cover that does not hide a joint: its own limb and the parts that it joins, up to these metres.
_OWN = {"shoulder": "arm", "elbow": "arm", "wrist": "arm", "hip": "leg", "knee": "leg", "ankle": "leg"}
_NEIGHBOURS = {"shoulder": {"trunk", "hair", "neck"}, "hip": {"hips", "trunk", "skirt"}, "knee": {"skirt"}}
_HEAD = {"head", "hair", "neck", "trunk"}
_FLESH = {
    "shoulder": 0.125, "elbow": 0.085, "wrist": 0.065, "hip": 0.205, "knee": 0.14, "ankle": 0.10,
    "neck": 0.14, "nose": 0.035, "eye": 0.035, "ear": 0.06,
}  # fmt: skip


def visible_joints(
    joints: Float[np.ndarray, "18 3"], surface: Surface, parts: Sequence[str], scale: float
) -> Bool[np.ndarray, "18"]:
    """Tell which joints are visible. The rule is our choice, because a joint inside the body is never seen itself.

    A joint is hidden when the first surface on its line of sight is nearer than the joint by more than may lie over
    it: the joint's flesh and cloth (`_FLESH`, metres) where that surface is of its own limb or of a part that the
    joint joins, and 15 mm where it is of any other part. A joint outside the image is not visible.

    `joints` are x, y and nearness in pixels of `surface`; `parts` names each tube's part; `scale` is in pixels per
    metre of an average body, so that stout people have more flesh.
    """
    height, width = surface.tube.shape
    visible = np.zeros(18, bool)
    for number, name in enumerate(JOINTS):
        column, row = np.rint(joints[number, :2]).astype(int)
        if 0 <= column < width and 0 <= row < height:
            owner = int(surface.tube[row, column])
            side, _, kind = name.rpartition("_")
            own = {f"{side}_{_OWN[kind]}"} | _NEIGHBOURS.get(kind, set()) if kind in _OWN else _HEAD
            allowed = 0.015 if owner >= 0 and parts[owner] not in own else _FLESH[kind]
            visible[number] = surface.nearness[row, column] - joints[number, 2] <= allowed * scale
    return visible
