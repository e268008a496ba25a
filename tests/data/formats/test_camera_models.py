"""Projection against hand values, VideoPose3D's and OpenCV's; azimuths; what cameras look at."""

import cv2
import numpy as np
import pytest

from posegen.data.formats.calibration import LEVEL_AXES, Camera, Lens, azimuth, project, rotation_matrix, scene_center
from posegen.data.sources.human36m import read_cameras


def camera(radial=(0, 0, 0), tangential=(0, 0), place=(0, 0, 0), rotation=None) -> Camera:
    lens = Lens(*(np.array(part, float) for part in ((100, 200), (50, 60), radial, tangential)))
    return Camera(lens, np.array(place, float), np.eye(3) if rotation is None else rotation)


def test_projection_by_hand():
    points = np.array([[0, 0, 2], [0.2, -0.1, 1]], float)
    assert project(camera(), points).tolist() == [[50, 60], [70, 40]]
    assert project(camera(place=(0, 0, -1)), points[1:]).tolist() == [[60, 50]]
    # u = (0.2, -0.1), r2 = 0.05; radial 1 + 0.4 * 0.05 = 1.02
    assert project(camera(radial=(0.4, 0, 0)), points[1]) == pytest.approx([50 + 20 * 1.02, 60 - 20 * 1.02])
    # r2^2 = 0.0025, r2^3 = 0.000125
    assert project(camera(radial=(0, 4, 8)), points[1]) == pytest.approx([50 + 20 * 1.011, 60 - 20 * 1.011])
    # p.u = 0.1 * 0.2 - 0.3 * 0.1 = -0.01; p r2 = (0.005, 0.015)
    expected = [50 + 100 * (0.2 * 0.99 + 0.005), 60 + 200 * (-0.1 * 0.99 + 0.015)]
    assert project(camera(tangential=(0.1, 0.3)), points[1]) == pytest.approx(expected)


def test_far_off_the_axis_it_is_kept_at_45_degrees_and_behind_it_is_unknown():
    assert project(camera(), np.array([3.0, -2.0, 1.0])).tolist() == [150, -140]
    assert np.isnan(project(camera(), np.array([[0, 0, -1.0], [0, 0, 0]]))).all()


def test_the_published_cameras_project_as_videopose3d_does():
    """The numbers are those of its `world_to_camera` and `project_to_2d` in float64."""
    points = np.array([[0.3, -0.4, 1.5], [-0.2, 0.1, 0.05]])
    cameras = read_cameras(None)["S1"]
    found = [project(cameras[name], points) for name in ("54138969", "60457274")]
    expected = [
        [[357.50259952664123, 310.4709466905419], [487.0769183685226, 621.2336763468979]],
        [[688.4476010000325, 212.29791545767557], [471.30397521300927, 583.472230357223]],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_without_tangential_distortion_it_is_opencvs_and_with_it_differs_by_the_known_term():
    random = np.random.default_rng(0)
    points = random.uniform((-1, -1, 3), (1, 1, 6), (50, 3))
    rotation = rotation_matrix(random.normal(size=4) * (1, 0.1, 0.1, 0.1) + (3, 0, 0, 0))
    place, tangential = np.array([0.1, -0.2, -0.5]), np.array([0.003, -0.002])
    matrix = np.array([[100, 0, 50], [0, 200, 60], [0, 0, 1]], float)

    def by_opencv(p1: float, p2: float) -> np.ndarray:
        coefficients = np.array([-0.2, 0.25, p1, p2, -0.003])
        return cv2.projectPoints(points, cv2.Rodrigues(rotation)[0], -rotation @ place, matrix, coefficients)[0][:, 0]

    plain = camera((-0.2, 0.25, -0.003), (0, 0), place, rotation)
    np.testing.assert_allclose(project(plain, points), by_opencv(0, 0), atol=1e-9)
    bent = camera((-0.2, 0.25, -0.003), tangential, place, rotation)
    own = (points - place) @ rotation.T
    flat = own[:, :2] / own[:, 2:]
    term = np.array([100, 200]) * flat * (flat @ tangential)[:, None]
    assert np.abs(term).max() > 0.01
    np.testing.assert_allclose(project(bent, points) + term, by_opencv(tangential[1], tangential[0]), atol=1e-9)


def test_quaternions():
    assert np.allclose(rotation_matrix(np.array([2.0, 0, 0, 0])), np.eye(3))
    quarter = rotation_matrix(np.array([1.0, 0, 0, 1.0]))  # by 90 degrees around z
    assert np.allclose(quarter @ [1, 0, 0], [0, 1, 0])
    random = rotation_matrix(np.random.default_rng(1).normal(size=4))
    assert np.allclose(random @ random.T, np.eye(3))
    assert np.linalg.det(random) == pytest.approx(1)


def test_azimuths_are_counter_clockwise_seen_from_above():
    around = np.array([1.0, 2.0, 3.0])
    assert azimuth(around + np.array([0, 2, 9.0]), around) == 90
    assert azimuth(around + np.array([-1, -1, 0.0]), around) == -135
    for up, (first, second) in LEVEL_AXES.items():
        axes = np.eye(3)
        upwards = axes["xyz".index(up[-1])] * (-1 if up.startswith("-") else 1)
        assert np.cross(axes[first], axes[second]).tolist() == upwards.tolist(), "right-handed"
        assert azimuth(axes[second], np.zeros(3), up) == 90


def test_what_the_cameras_look_at_is_where_their_axes_meet():
    center = np.array([1.0, -2.0, 0.5])
    places = np.array([[5, 0, 2], [-3, 4, 2], [0, -6, 1.5]], float)
    axes = (center - places) / np.linalg.norm(center - places, axis=1, keepdims=True)
    assert scene_center(places, axes) == pytest.approx(center)
    assert scene_center(places, -axes) == pytest.approx(center), "an axis has no direction"
    assert scene_center(places, None) == pytest.approx(places.mean(axis=0))
    assert scene_center(places, axes[[0, 0, 0]]) == pytest.approx(places.mean(axis=0)), "they are parallel"
