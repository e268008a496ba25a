"""The lattice's filter and the mean field against comparing all pixels with all others, and what both must keep."""

import numpy as np
import pytest

from posegen.data.mean_field import Crf, PermutohedralFilter, appearance_filter, mean_field, smoothness_filter


def dense(features):
    """The kernel between all points, as the definition has it."""
    return np.exp(-np.square(features[:, None] - features[None]).sum(axis=-1) / 2)


def means(kernel, values):
    return (kernel @ values.ravel() / kernel.sum(axis=1)).reshape(values.shape)


def places(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2)


def dense_mean_field(image, log_odds, crf):
    """`mean_field` by its definition: two kernels over all pairs of pixels."""
    height, width = log_odds.shape
    where, scale = places(height, width), max(height, width) / crf.side
    alike = np.concatenate(
        [where / (crf.appearance_place * scale), image.reshape(-1, 3) / crf.appearance_colour], axis=1
    )
    kernels = (
        (crf.appearance_weight, dense(alike)),
        (crf.smoothness_weight, dense(where / crf.smoothness_place / scale)),
    )
    person = 1 / (1 + np.exp(-log_odds))
    for _ in range(crf.iterations):
        messages = sum(weight * (2 * means(kernel, person) - 1) for weight, kernel in kernels)
        person = 1 / (1 + np.exp(-log_odds - messages))
    return person


def image_of_two(height=24, width=16, noise=2.0):
    """A reddish left half and a bluish right one, with noise."""
    random = np.random.default_rng(3)
    image = np.empty((height, width, 3))
    image[:, : width // 2], image[:, width // 2 :] = (180, 60, 50), (40, 70, 170)
    return (image + random.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("dimensions", "span"), [(1, 30.0), (2, 8.0), (3, 4.0), (5, 2.0)])
def test_the_lattice_filters_nearly_as_the_gaussian(dimensions: int, span: float):
    random = np.random.default_rng(dimensions)
    features = random.uniform(0, span, (1000, dimensions))
    values, lattice = np.sin(features[:, 0]), PermutohedralFilter(features)
    found, expected = lattice(values) / lattice(np.ones(1000)), means(dense(features), values)
    assert np.abs(found - expected).mean() < 0.03
    assert np.corrcoef(found, expected)[0, 1] > 0.97


def test_the_lattice_is_linear_and_far_points_do_not_meet():
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(0, 1, (50, 3)), random.normal(100, 1, (50, 3))])
    lattice = PermutohedralFilter(features)
    one, other = random.normal(size=(2, 100))
    np.testing.assert_allclose(lattice(2 * one - other), 2 * lattice(one) - lattice(other), atol=1e-12)
    first = np.repeat([1.0, 0.0], 50)
    assert (lattice(first)[:50] > 0).all()
    assert not lattice(first)[50:].any()


def test_coinciding_points_share_one_mean():
    lattice = PermutohedralFilter(np.ones((4, 5)))
    np.testing.assert_allclose(lattice(np.array([0.0, 1.0, 1.0, 2.0])) / lattice(np.ones(4)), 1.0)


def test_the_filters_are_the_crfs_kernels():
    image, crf = image_of_two(noise=1.0), Crf()
    values = np.random.default_rng(1).random((24, 16))
    where, scale = places(24, 16), 24 / 500
    near = means(dense(where / (3 * scale)), values)
    np.testing.assert_allclose(smoothness_filter((24, 16), crf)(values), near, atol=1e-3)
    alike = np.concatenate([where / (160 * scale), image.reshape(-1, 3) / 3], axis=1)
    assert np.abs(appearance_filter(image, crf)(values) - means(dense(alike), values)).mean() < 0.02


@pytest.mark.parametrize("crf", [Crf(), Crf(appearance_place=60, appearance_colour=8, smoothness_place=20)])
def test_the_mean_field_is_that_of_all_pairs_of_pixels(crf: Crf):
    image = image_of_two()
    log_odds = np.random.default_rng(2).normal(0, 1.5, (24, 16))
    log_odds[:, :8] += 1
    log_odds[:, 8:] -= 1
    found, expected = mean_field(image, log_odds, crf), dense_mean_field(image, log_odds, crf)
    assert np.abs(found - expected).mean() < 0.02
    assert ((found > 0.5) == (expected > 0.5)).mean() > 0.98


def test_wrong_pixels_follow_what_looks_like_them_and_the_edge_stays():
    image = image_of_two()
    log_odds = np.full((24, 16), -1.0)
    log_odds[:, :8] = 1
    wrong = np.random.default_rng(4).random((24, 16)) < 0.2
    log_odds[wrong] *= -1
    person = mean_field(image, log_odds) > 0.5
    assert person[:, :8].all()
    assert not person[:, 8:].any()


def test_without_weights_every_pixel_stays_by_itself():
    log_odds = np.random.default_rng(5).normal(size=(24, 16))
    alone = mean_field(image_of_two(), log_odds, Crf(appearance_weight=0, smoothness_weight=0))
    np.testing.assert_allclose(alone, 1 / (1 + np.exp(-log_odds)))


def test_exchanging_the_labels_exchanges_the_result():
    log_odds = np.random.default_rng(6).normal(size=(24, 16))
    person = mean_field(image_of_two(), log_odds)
    np.testing.assert_allclose(mean_field(image_of_two(), -log_odds), 1 - person, atol=1e-9)
