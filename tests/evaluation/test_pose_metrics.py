"""Scores of joints against values that can be worked out by hand, and the two baselines."""

import numpy as np
import pytest

from posegen.data.geometry.joints import JOINTS, TORSO
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import NECK, NOSE, POSE_METRICS, mean_pose, pck, pckh, pose_error, source_poses

COUNT = 3
ALL = np.ones((COUNT, 18), dtype=bool)


@pytest.fixture
def target() -> np.ndarray:
    """Persons 100 pixels high, whose nose is 20 pixels above the neck."""
    joints = np.random.default_rng(0).uniform(20, 80, (COUNT, 18, 2)).astype(np.float32)
    joints[:, NECK], joints[:, NOSE] = (50, 40), (50, 20)
    joints[:, 10, 1], joints[:, 13, 1] = 0, 100
    return joints


def moved(target: np.ndarray, *pixels: float) -> np.ndarray:
    """The n-th joint is moved to the right by the n-th number of pixels."""
    predicted = target.copy()
    predicted[:, : len(pixels), 0] += np.array(pixels, dtype=np.float32)
    return predicted


def test_the_true_pose_scores_perfectly(target):
    assert pose_error(target, target, ALL).tolist() == [0.0] * COUNT
    assert pck(target, target, ALL).tolist() == pckh(target, target, ALL).tolist() == [1.0] * COUNT


def test_the_error_is_the_mean_distance_in_pixels(target):
    predicted = target + np.array([3.0, 4.0], dtype=np.float32)
    np.testing.assert_allclose(pose_error(predicted, target, ALL), 5.0, rtol=1e-6)
    np.testing.assert_allclose(pose_error(moved(target, 9.0, 27.0), target, ALL), 36 / 18)


def test_a_tenth_of_the_height_and_half_of_the_head_still_count(target):
    """Both are 10 pixels here: 100 / 10 and 20 / 2."""
    predicted = moved(target, 9.75, 10.0, 10.25, 40.0)
    for score in (pck, pckh):
        np.testing.assert_allclose(score(predicted, target, ALL), 16 / 18)


def test_the_scores_measure_different_lengths(target):
    target[..., 1] = np.minimum(target[..., 1], 60)  # 6 pixels are a tenth of it
    predicted = moved(target, 7.0)
    np.testing.assert_allclose(pck(predicted, target, ALL), 17 / 18)
    np.testing.assert_array_equal(pckh(predicted, target, ALL), 1.0)


def test_scale_leaves_the_shares_and_scales_the_error(target):
    predicted = moved(target, 3.0, 12.0, 30.0)
    np.testing.assert_allclose(pck(predicted * 2, target * 2, ALL), pck(predicted, target, ALL))
    np.testing.assert_allclose(pckh(predicted * 2, target * 2, ALL), pckh(predicted, target, ALL))
    np.testing.assert_allclose(pose_error(predicted * 2, target * 2, ALL), 2 * pose_error(predicted, target, ALL))


@pytest.mark.parametrize("anything", [np.nan, np.inf, 1e6])
def test_joints_that_the_target_does_not_know_do_not_count(target, anything):
    known = ALL.copy()
    known[:, [10, 16]] = False
    predicted = moved(target, 9.0)
    scores = [metric.function(predicted, target, known) for metric in POSE_METRICS.values()]
    predicted[:, 10], target[:, 16] = anything, anything
    again = [metric.function(predicted, target, known) for metric in POSE_METRICS.values()]
    np.testing.assert_array_equal(scores, again)
    np.testing.assert_allclose(again[0], 9 / 16)


def test_the_box_is_that_of_known_joints(target):
    """Without the foot at 100 the person is less high, and the reach is smaller."""
    predicted = moved(target, 9.0)
    assert (pck(predicted, target, ALL) == 1).all()
    known = ALL.copy()
    known[:, 13] = False
    assert (pck(predicted, target, known) < 1).all()


def test_what_has_no_score_is_not_a_number(target):
    nothing, one, headless = ALL & False, ALL & False, ALL.copy()
    one[:, 5], headless[1, NOSE] = True, False
    assert np.isnan([metric.function(target, target, nothing) for metric in POSE_METRICS.values()]).all()
    assert pose_error(target, target, one).tolist() == [0.0] * COUNT
    assert np.isnan(pck(target, target, one)).all()
    np.testing.assert_array_equal(pckh(target, target, headless), [1, np.nan, 1])
    target[2, NECK] = target[2, NOSE]
    np.testing.assert_array_equal(pckh(target, target, ALL), [1, 1, np.nan])


def test_a_prediction_that_is_no_number_has_no_score(target):
    predicted = target.copy()
    predicted[1, 4, 0] = np.nan
    for metric in POSE_METRICS.values():
        np.testing.assert_array_equal(np.isfinite(metric.function(predicted, target, ALL)), [True, False, True])


def test_the_source_pose_keeps_what_it_knows_and_fills_with_its_middle(target):
    visible = ALL.copy()
    visible[0, 4:] = False
    target[0, 4:] = np.nan
    kept = source_poses(target, visible)
    np.testing.assert_array_equal(kept[1:], target[1:])
    np.testing.assert_array_equal(kept[0, :4], target[0, :4])
    np.testing.assert_allclose(kept[0, 4:], np.tile(target[0, :4].astype(float).mean(axis=0), (14, 1)))
    assert np.isnan(source_poses(target, ALL & False)).all()


def test_the_mean_pose_is_that_of_the_training_images(block_shards):
    shards = Shards(block_shards)
    np.testing.assert_allclose(mean_pose(shards), shards.split("train").joints.mean(axis=0), rtol=1e-5)


def test_the_mean_of_a_joint_is_over_the_images_that_know_it(block_shards):
    shards = Shards(block_shards)
    train = shards.split("train")
    nose, ear = JOINTS.index("nose"), JOINTS.index("left_ear")
    train.visible[1:, nose] = False
    train.visible[:, ear] = False
    train.joints[:, ear] = np.nan
    mean = mean_pose(shards)
    np.testing.assert_allclose(mean[nose], train.joints[0, nose])
    np.testing.assert_array_equal(mean[ear], [15.5, 31.5])  # the middle of a 64x32 image
    np.testing.assert_allclose(mean[TORSO[0]], train.joints[:, TORSO[0]].mean(axis=0), rtol=1e-5)
