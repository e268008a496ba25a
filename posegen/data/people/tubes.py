"""Tubes: surfaces of elliptical rings strung along a line, of which a figure is made; and their joining into a mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

Points = Float[np.ndarray, "rings 3"]


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A grid of vertices, rings by places around. `part` and `tile` name what it belongs to and how it is painted.

    `around` and `along` are the texture's coordinates from 0 to 1 of the grid's columns and rows. Two-sided tubes are
    open cloths or hair whose inner side can be seen.
    """

    part: str
    tile: str
    vertices: Float[np.ndarray, "rings places 3"]
    around: Float[np.ndarray, " places"]
    along: Float[np.ndarray, " rings"]
    two_sided: bool = False


@dataclass(frozen=True)
class Mesh:
    """Tubes joined. Per vertex: place, outward unit normal, texture coordinates; per triangle: corners and its tube."""

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    texture: Float[np.ndarray, "v 2"]
    triangles: Int[np.ndarray, "t 3"]
    tube: Int[np.ndarray, " t"]


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
    """The tube through rings with the half axes `left` and `forward` (as long as the ring's half width and depth).

    It runs from the back over the right, the front and the left to the back again, so that texture column 0.5 is in
    front. `squareness` below 1 makes the ellipses fuller (a superellipse's exponent).
    """
    cosine, sine = _circle(places, squareness)
    vertices = centres[:, None] - cosine[None, :, None] * forward[:, None] - sine[None, :, None] * left[:, None]
    around = np.linspace(0, 1, places + 1)
    return Tube(part=part, tile=tile, vertices=vertices, around=around, along=along, two_sided=two_sided)


def join(tubes: Sequence[Tube]) -> Mesh:
    """One mesh of all tubes, with the triangles of each wound so that the outside is in front."""
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
    """Unit normals that point away from the rings' middles, and the sign that the grid's own orientation had."""
    around, along = np.empty_like(vertices), np.empty_like(vertices)
    around[:, 1:-1] = vertices[:, 2:] - vertices[:, :-2]
    around[:, 0] = around[:, -1] = vertices[:, 1] - vertices[:, -2]
    along[1:-1] = vertices[2:] - vertices[:-2]
    along[0], along[-1] = vertices[1] - vertices[0], vertices[-1] - vertices[-2]
    normals = around[..., [1, 2, 0]] * along[..., [2, 0, 1]] - around[..., [2, 0, 1]] * along[..., [1, 2, 0]]
    outside = vertices - vertices[:, :-1].mean(axis=1, keepdims=True)
    sign = 1.0 if np.einsum("rpk,rpk->", normals, outside) >= 0 else -1.0
    return sign * normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12), sign
