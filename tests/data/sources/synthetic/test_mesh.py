"""The depth buffer against a plain loop over triangles and pixels."""

import numpy as np
import pytest

from posegen.data.sources.synthetic.mesh import rasterize


def nearest_by_loops(vertices: np.ndarray, triangles: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Triangle (-1 is none) and nearness at every pixel centre, one triangle and one pixel at a time."""
    nearness, owner = np.full((height, width), -np.inf), np.full((height, width), -1)
    for number, (first, second, third) in enumerate(vertices[triangles]):
        for row in range(height):
            for column in range(width):
                system = np.array([[*corner[:2], 1.0] for corner in (first, second, third)]).T
                weights = np.linalg.solve(system, (column, row, 1.0))
                depth = weights @ (first[2], second[2], third[2])
                if (weights >= 0).all() and depth >= nearness[row, column]:
                    nearness[row, column], owner[row, column] = depth, number
    return owner, nearness


@pytest.mark.parametrize("seed", range(4))
def test_random_triangles_equal_the_plain_loop(seed: int):
    rng = np.random.default_rng(seed)
    vertices = rng.uniform((-4, -4, -1), (16, 12, 1), (21, 3))
    triangles = rng.permutation(21).reshape(7, 3)
    owner, nearness = nearest_by_loops(vertices, triangles, 9, 13)
    found = rasterize(vertices, triangles, 9, 13)
    drawn = np.full(9 * 13, -1)
    drawn[found.pixel] = found.triangle
    assert (owner >= 0).sum() > 20
    np.testing.assert_array_equal(drawn.reshape(9, 13), owner)
    np.testing.assert_allclose(found.nearness, nearness.ravel()[found.pixel], atol=1e-9)


def test_weights_give_back_the_pixel_and_each_pixel_comes_once():
    vertices = np.array([(0.0, 0.0, 1.0), (8.0, 0.0, 2.0), (0.0, 8.0, 3.0), (8.0, 8.0, 9.0)])
    triangles = np.array([(0, 1, 2), (3, 1, 2)])
    found = rasterize(vertices, triangles, 9, 9)
    places = np.einsum("nk,nkc->nc", found.weights, vertices[triangles[found.triangle]])
    np.testing.assert_allclose(places[:, 0] + 9 * places[:, 1], found.pixel, atol=1e-9)
    assert sorted(found.pixel) == list(range(81))


def test_the_nearer_of_two_surfaces_wins_whatever_their_order():
    square = np.array([(-1.0, -1.0), (20.0, -1.0), (-1.0, 20.0)])
    vertices = np.concatenate([np.column_stack((square, np.full(3, depth))) for depth in (5.0, 7.0)])
    for order, winner in (((0, 1), 1), ((1, 0), 0)):
        triangles = np.arange(6).reshape(2, 3)[list(order)]
        assert set(rasterize(vertices, triangles, 4, 4).triangle) == {winner}


def test_what_is_outside_or_has_no_area_is_not_drawn():
    vertices = np.array([(50.0, 50.0, 0.0), (60.0, 50.0, 0.0), (50.0, 60.0, 0.0), (0.0, 0.0, 0.0), (3.0, 3.0, 0.0)])
    assert len(rasterize(vertices, np.array([(0, 1, 2), (3, 4, 3)]), 4, 4).pixel) == 0
