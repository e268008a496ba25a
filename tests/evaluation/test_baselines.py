"""The baselines: exact transforms, a slow twin, and images that can be worked out by hand."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from posegen.data.geometry.joints import TORSO
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import MEAN_SAMPLES, Pose, align_torso, mean_image, similarity_transform

SQUARE = np.array([[10, 10], [20, 10], [10, 30], [20, 30]], dtype=np.float32)


def pose(torso: np.ndarray) -> Pose:
    joints, visible = np.full((18, 2), 999, dtype=np.float32), np.zeros(18, dtype=bool)
    joints[list(TORSO)], visible[list(TORSO)] = torso, True
    return Pose(joints, visible)


def applied(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_transform_recovers_rotation_scale_and_shift():
    angle, scale, shift = np.deg2rad(30), 1.5, np.array([7.0, -3.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity_transform(SQUARE, (SQUARE @ turn.T + shift).astype(np.float64))
    np.testing.assert_allclose(matrix, np.column_stack([turn, shift]), atol=1e-9)


def test_transform_of_the_same_points_is_the_identity():
    np.testing.assert_allclose(similarity_transform(SQUARE, SQUARE), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_transform_is_the_least_squares_solution():
    """Slow twin: x' = a x - b y + c, y' = b x + a y + d as one linear system in (a, b, c, d)."""
    random = np.random.default_rng(3)
    for _ in range(20):
        source, target = random.normal(size=(2, 4, 2)) * 20
        rows = [row for x, y in source for row in ([x, -y, 1, 0], [y, x, 0, 1])]
        a, b, c, d = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)[0]
        np.testing.assert_allclose(similarity_transform(source, target), [[a, -b, c], [b, a, d]], rtol=1e-8, atol=1e-8)


def test_transform_never_reflects():
    mirrored = SQUARE * [-1, 1]
    matrix = similarity_transform(SQUARE, mirrored)
    assert matrix is not None
    assert np.linalg.det(matrix[:, :2]) > 0


def test_transform_is_invertible():
    random = np.random.default_rng(5)
    source = random.normal(size=(4, 2))
    target = applied(np.array([[0.6, -0.8, 4], [0.8, 0.6, 5]]), source)
    there, back = similarity_transform(source, target), similarity_transform(target, source)
    np.testing.assert_allclose(applied(back, applied(there, source)), source, atol=1e-9)


@pytest.mark.parametrize("swapped", [False, True])
def test_points_in_one_place_have_no_transform(swapped):
    sets = [SQUARE, np.ones((4, 2), dtype=np.float32)]
    assert similarity_transform(*(sets[::-1] if swapped else sets)) is None


def test_moved_torso_shifts_whole_pixels_exactly_and_continues_the_border():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    moved = align_torso(image, pose(SQUARE), pose(SQUARE + np.array([3, -2])))
    np.testing.assert_array_equal(moved[:38, 3:], image[2:, :27])
    np.testing.assert_array_equal(moved[:38, 0], image[2:, 0])
    np.testing.assert_array_equal(moved[39, 3:], image[39, :27])


def test_moved_torso_puts_the_torso_on_the_targets():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    cv2.circle(image, (20, 30), 2, (255, 255, 255), -1)  # at the lower right corner of the square
    target = applied(np.array([[0, -1.2, 60], [1.2, 0, 8]]), SQUARE)
    moved = align_torso(image, pose(SQUARE), pose(target))
    rows, columns = np.nonzero(moved[..., 0] > 128)
    np.testing.assert_allclose([columns.mean(), rows.mean()], target[3], atol=0.6)


@pytest.mark.parametrize("joint", TORSO)
def test_unknown_torso_joint_moves_nothing(joint):
    known, lacking = pose(SQUARE), pose(SQUARE)
    lacking.visible[joint] = False
    image = np.zeros((40, 30, 3), dtype=np.uint8)
    assert align_torso(image, known, lacking) is None
    assert align_torso(image, lacking, known) is None
    assert align_torso(image, known, known) is not None


class FakeShards(Shards):
    """Training images that are in memory."""

    def __init__(self, images: np.ndarray):
        self.held = images

    def image_count(self, split: str) -> int:
        return len(self.held) if split == "train" else 0

    def images(self, split: str, rows: Sequence[int]) -> np.ndarray:
        return self.held[np.asarray(rows)]


def test_mean_image_of_few_is_the_mean_of_all():
    images = np.random.default_rng(0).integers(0, 256, (250, 4, 3, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mean_image(FakeShards(images)), np.rint(images.mean(axis=0)))


def test_mean_image_of_many_is_a_repeatable_draw():
    images = np.zeros((MEAN_SAMPLES * 2, 1, 1, 3), dtype=np.uint8)
    images[:MEAN_SAMPLES] = 200
    first, second = mean_image(FakeShards(images)), mean_image(FakeShards(images))
    np.testing.assert_array_equal(first, second)
    assert 90 < first[0, 0, 0] < 110  # about half of the draw


def test_no_training_image_is_told():
    with pytest.raises(ValueError, match="no training image"):
        mean_image(FakeShards(np.zeros((0, 4, 3, 3), dtype=np.uint8)))
