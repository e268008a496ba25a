"""A depth buffer in numpy: triangles to the nearest surface at every pixel, all triangles at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Fragments(NamedTuple):
    """The visible surface, one row a covered pixel, each pixel at most once."""

    pixel: Int[np.ndarray, " n"]  # row * width + column
    triangle: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "n 3"]  # barycentric weights of the triangle's three corners at the pixel's centre
    nearness: Float[np.ndarray, " n"]  # interpolated third coordinate


def rasterize(
    vertices: Float[np.ndarray, "v 3"], triangles: Int[np.ndarray, "t 3"], height: int, width: int
) -> Fragments:
    """The nearest triangle at every pixel centre (whole numbers), by the usual barycentric test.

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
    chosen = _nearest(row[inside] * width + column[inside], nearness, height * width)
    return Fragments(
        (row[inside] * width + column[inside])[chosen], number[owner[chosen]], weights[chosen], nearness[chosen]
    )


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
    """Every pixel of every triangle's bounding box inside the picture, as (triangle, column, row)."""
    limits = np.array((width - 1, height - 1))
    low = np.maximum(np.ceil(corners[:, :, :2].min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners[:, :, :2].max(axis=1)), limits).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    counts = extent[:, 0] * extent[:, 1]
    owner = np.repeat(np.arange(len(corners)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(place, extent[owner, 0])
    return owner, column + low[owner, 0], row + low[owner, 1]


def _nearest(pixel: np.ndarray, nearness: np.ndarray, pixels: int) -> np.ndarray:
    """Indices of each pixel's nearest candidate: written from far to near, so that the last one stays."""
    order = np.argsort(nearness, kind="stable")
    winner = np.full(pixels, -1)
    winner[pixel[order]] = order
    return winner[winner >= 0]
