"""Tubes of elliptical rings along a line, the mesh that joins them, and its rasterizer: a depth buffer in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Points = Float[np.ndarray, "rings 3"]


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A grid of vertices, rings by points around. `part` names its body part and `tile` its texture.

    `around` and `along` are the texture coordinates, 0 to 1, of the grid's columns and rows. Two-sided tubes are open
    cloth or hair whose inner side can be seen.
    """

    part: str
    tile: str
    vertices: Float[np.ndarray, "rings places 3"]
    around: Float[np.ndarray, " places"]
    along: Float[np.ndarray, " rings"]
    two_sided: bool = False


@dataclass(frozen=True)
class Mesh:
    """Joined tubes. Per vertex: position, outward unit normal, texture coordinates; per triangle: corners, tube."""

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    texture: Float[np.ndarray, "v 2"]
    triangles: Int[np.ndarray, "t 3"]
    tube: Int[np.ndarray, " t"]


class Fragments(NamedTuple):
    """The visible surface: one row per covered pixel."""

    pixel: Int[np.ndarray, " n"]  # row * width + column
    triangle: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "n 3"]  # barycentric weights of the triangle's three corners at the pixel's centre
    nearness: Float[np.ndarray, " n"]  # interpolated third coordinate


def loft(
    part: str,
    tile: str,
    centres: Points,
    left: Points,
    forward: Points,
    along: Float[np.ndarray, " rings"],
    *,
    places: int = 14,
    squareness: float = 1.0,
    two_sided: bool = False,
) -> Tube:
    """Return the tube through rings with half axes `left` and `forward` (as long as the ring's half width and depth).

    It runs from the back over the right, the front and the left to the back again, so that texture column 0.5 is in
    front. `squareness` below 1 makes the ellipses fuller (a superellipse's exponent).
    """
    cosine, sine = _circle(places, squareness)
    vertices = centres[:, None] - cosine[None, :, None] * forward[:, None] - sine[None, :, None] * left[:, None]
    around = np.linspace(0, 1, places + 1)
    return Tube(part=part, tile=tile, vertices=vertices, around=around, along=along, two_sided=two_sided)


def join(tubes: Sequence[Tube]) -> Mesh:
    """Join tubes into one mesh whose triangles are wound so that the outside is in front."""
    vertices, normals, texture, triangles, owner, first = [], [], [], [], [], 0
    for number, tube in enumerate(tubes):
        rings, places, _ = tube.vertices.shape
        outward, sign = _normals(tube.vertices)
        vertices.append(tube.vertices.reshape(-1, 3))
        normals.append(outward.reshape(-1, 3))
        texture.append(np.stack(np.broadcast_arrays(tube.around[None], tube.along[:, None]), axis=-1).reshape(-1, 2))
        corners = _grid_triangles(rings, places)
        triangles.append((corners if sign > 0 else corners[:, ::-1]) + first)
        owner.append(np.full(len(corners), number))
        first += rings * places
    return Mesh(*(np.concatenate(pieces) for pieces in (vertices, normals, texture, triangles, owner)))


@lru_cache(maxsize=64)
def _circle(places: int, squareness: float) -> tuple[np.ndarray, np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, places + 1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.sign(cosine) * np.abs(cosine) ** squareness, np.sign(sine) * np.abs(sine) ** squareness


@lru_cache(maxsize=256)
def _grid_triangles(rings: int, places: int) -> np.ndarray:
    """Two triangles for every cell of a grid whose vertices are numbered row by row."""
    corner = (np.arange(rings - 1)[:, None] * places + np.arange(places - 1)).ravel()
    upper = np.stack((corner, corner + 1, corner + places), axis=1)
    lower = np.stack((corner + 1, corner + places + 1, corner + places), axis=1)
    return np.concatenate((upper, lower))


def _normals(vertices: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit normals that point away from the rings' middles, and the sign of the grid's own orientation."""
    around, along = np.empty_like(vertices), np.empty_like(vertices)
    around[:, 1:-1] = vertices[:, 2:] - vertices[:, :-2]
    around[:, 0] = around[:, -1] = vertices[:, 1] - vertices[:, -2]
    along[1:-1] = vertices[2:] - vertices[:-2]
    along[0], along[-1] = vertices[1] - vertices[0], vertices[-1] - vertices[-2]
    normals = around[..., [1, 2, 0]] * along[..., [2, 0, 1]] - around[..., [2, 0, 1]] * along[..., [1, 2, 0]]
    outside = vertices - vertices[:, :-1].mean(axis=1, keepdims=True)
    sign = 1.0 if np.einsum("rpk,rpk->", normals, outside) >= 0 else -1.0
    return sign * normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12), sign


def rasterize(
    vertices: Float[np.ndarray, "v 3"], triangles: Int[np.ndarray, "t 3"], height: int, width: int
) -> Fragments:
    """Find the nearest triangle at every pixel centre (whole numbers), by the usual barycentric test.

    `vertices` are x, y in pixels and a nearness that grows towards the camera. Both windings are drawn. Of two
    surfaces that are equally near, the later triangle wins.
    """
    corners = vertices[triangles]
    planes, drawable = _barycentric_planes(corners)
    corners, planes, number = corners[drawable], planes[drawable], np.flatnonzero(drawable)
    owner, column, row = _candidates(corners, height, width)
    plane = planes[owner]
    first = plane[:, 0] * column + plane[:, 1] * row + plane[:, 2]
    second = plane[:, 3] * column + plane[:, 4] * row + plane[:, 5]
    inside = np.flatnonzero((first >= 0) & (second >= 0) & (first + second <= 1))
    owner, first, second = owner[inside], first[inside], second[inside]
    weights = np.stack((first, second, 1 - first - second), axis=1)
    nearness = np.einsum("nk,nk->n", weights, corners[owner, :, 2])
    pixel = row[inside] * width + column[inside]
    order = np.argsort(nearness, kind="stable")
    winner = np.full(height * width, -1)
    winner[pixel[order]] = order  # written from far to near, so that the nearest one stays
    chosen = winner[winner >= 0]
    return Fragments(pixel[chosen], number[owner[chosen]], weights[chosen], nearness[chosen])


def _barycentric_planes(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the first two barycentric weights as functions of x, y, 1; and which triangles have an area."""
    (x0, y0), (x1, y1), (x2, y2) = corners[:, 0, :2].T, corners[:, 1, :2].T, corners[:, 2, :2].T
    area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2)
    drawable = np.abs(area) > 1e-9
    scale = 1 / np.where(drawable, area, 1)
    first = ((y1 - y2) * scale, (x2 - x1) * scale)
    second = ((y2 - y0) * scale, (x0 - x2) * scale)
    planes = [(along_x, along_y, -along_x * x2 - along_y * y2) for along_x, along_y in (first, second)]
    return np.stack([*planes[0], *planes[1]], axis=1), drawable


def _candidates(corners: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pixel of every triangle's bounding box inside the image, as (triangle, column, row)."""
    limits = np.array((width - 1, height - 1))
    low = np.maximum(np.ceil(corners[:, :, :2].min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners[:, :, :2].max(axis=1)), limits).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    counts = extent[:, 0] * extent[:, 1]
    owner = np.repeat(np.arange(len(corners)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(place, extent[owner, 0])
    return owner, column + low[owner, 0], row + low[owner, 1]
