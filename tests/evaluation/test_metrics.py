"""Metrics against values that can be worked out by hand and against direct calls of scikit-image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from posegen.evaluation.metrics import (
    METRICS,
    PSNR_CAP,
    all_scores,
    l1,
    mask_l1,
    masked,
    psnr,
    ssim_defgan,
    ssim_pg2,
    ssim_plain,
    to_uint8,
)

SHAPE = (4, 32, 16, 3)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    target = random.integers(0, 256, SHAPE, dtype=np.uint8)
    noise = random.integers(-40, 41, SHAPE)
    mask = (random.random(SHAPE[:3]) < 0.3).astype(np.uint8)
    return (target + noise).clip(0, 255).astype(np.uint8), target, mask


def grey(level: int) -> np.ndarray:
    return np.full(SHAPE, level, dtype=np.uint8)


def test_identical_images_score_perfectly(images):
    _, target, mask = images
    scores = all_scores(target, target, mask)
    assert scores.keys() == METRICS.keys()
    for name in ("ssim", "ssim_pg2", "ssim_defgan", "mask_ssim", "mask_ssim_pg2", "mask_ssim_defgan"):
        np.testing.assert_allclose(scores[name], 1.0, rtol=1e-12)
    np.testing.assert_array_equal(scores["psnr"], PSNR_CAP)
    np.testing.assert_array_equal(scores["l1"], 0)
    np.testing.assert_array_equal(scores["mask_l1"], 0)


def test_only_the_named_scores_are_computed(images, monkeypatch):
    def refuse(*_):
        raise AssertionError("not asked for")

    every = all_scores(*images)
    for name, metric in METRICS.items():
        if name not in ("psnr", "mask_ssim"):
            monkeypatch.setitem(METRICS, name, replace(metric, function=refuse))
    some = all_scores(*images, names=("psnr", "mask_ssim"))
    assert list(some) == ["psnr", "mask_ssim"]
    for name, scores in some.items():
        np.testing.assert_array_equal(scores, every[name])


def test_an_unknown_score_is_told_with_those_that_there_are(images):
    with pytest.raises(ValueError, match=r"no score is called 'mask_ll'. Did you mean 'mask_l1'\?.* psnr, ssim,"):
        all_scores(*images, names=("ssim", "mask_ll"))


def test_constant_offset():
    """51 of 255 levels apart everywhere: L1 0.2, PSNR 10 log10(25)."""
    mask = np.ones(SHAPE[:3], dtype=np.uint8)
    np.testing.assert_allclose(l1(grey(51), grey(102)), 0.2)
    np.testing.assert_allclose(mask_l1(grey(102), grey(51), mask), 0.2)
    np.testing.assert_allclose(psnr(grey(51), grey(102)), 10 * np.log10(25))


def test_ssim_of_two_flat_images_is_the_luminance_term():
    """No variance, no covariance: SSIM = (2 a b + C1) / (a^2 + b^2 + C1) with C1 = (0.01 x 255)^2."""
    c1 = 2.55**2
    expected = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    np.testing.assert_allclose(ssim_plain(grey(50), grey(100)), expected)
    np.testing.assert_allclose(ssim_pg2(grey(50), grey(100)), expected)


def test_black_against_white():
    assert psnr(grey(0), grey(255)) == pytest.approx(np.zeros(4))
    assert l1(grey(0), grey(255)) == pytest.approx(np.ones(4))


def test_mask_l1_sees_the_inside_alone():
    """Left half 51 levels off, right half 255 off; the mask is the left half."""
    generated, target = grey(0), grey(255)
    generated[:, :, :8] = 204
    mask = np.zeros(SHAPE[:3], dtype=np.uint8)
    mask[:, :, :8] = 1
    np.testing.assert_allclose(mask_l1(generated, target, mask), 0.2)
    np.testing.assert_allclose(l1(generated, target), 0.6)


def test_mask_of_ones_is_no_mask(images):
    generated, target, _ = images
    ones = np.ones(SHAPE[:3], dtype=np.uint8)
    scores = all_scores(generated, target, ones)
    for name in ("ssim", "ssim_pg2", "ssim_defgan", "l1"):
        np.testing.assert_allclose(scores[f"mask_{name}"], scores[name], rtol=1e-12)


def test_empty_mask_is_not_a_number(images):
    generated, target, mask = images
    mask[1] = 0
    scores = all_scores(generated, target, mask)
    for name, metric in METRICS.items():
        expected = [False, "mask is empty" in metric.undefined, False, False]
        np.testing.assert_array_equal(np.isnan(scores[name]), expected, err_msg=name)


def test_masked_ssim_counts_the_black_surroundings_as_equal(images):
    generated, target, _ = images
    mask = np.zeros(SHAPE[:3], dtype=np.uint8)
    mask[:, 12:20, 6:10] = 1
    assert (masked(ssim_plain)(generated, target, mask) > ssim_plain(generated, target)).all()


def test_variants_are_the_published_calls(images):
    generated, target, _ = images
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    for index, (made, real) in enumerate(zip(generated, target, strict=True)):
        span = int(made.max()) - int(made.min())
        plain = structural_similarity(real, made, data_range=255, **gaussian)
        defgan = structural_similarity(real, made, data_range=span, **gaussian)
        pg2 = structural_similarity(real, made, channel_axis=2, win_size=7, data_range=255, use_sample_covariance=True)
        assert ssim_plain(generated, target)[index] == pytest.approx(plain, rel=1e-12)
        assert ssim_defgan(generated, target)[index] == pytest.approx(defgan, rel=1e-12)
        assert ssim_pg2(generated, target)[index] == pytest.approx(pg2, rel=1e-12)


def test_psnr_is_scikit_images(images):
    generated, target, _ = images
    expected = [peak_signal_noise_ratio(real, made) for made, real in zip(generated, target, strict=True)]
    np.testing.assert_allclose(psnr(generated, target), expected)


def test_low_contrast_images_part_the_variants(images):
    """The range of a dull image is small, and with it Def-GAN's constants: its SSIM is the lower one."""
    generated, target, _ = images
    dull, real = (100 + p // 8 for p in (generated, target))
    assert (ssim_defgan(dull, real) < ssim_plain(dull, real) - 0.01).all()


def test_flat_generated_image_has_no_range(images):
    assert np.isnan(ssim_defgan(grey(7), images[1])).all()


@pytest.mark.parametrize("name", METRICS)
def test_scores_stay_in_their_range(name, images):
    generated, target, mask = images
    for made in (generated, 255 - target, grey(0)):
        scores = METRICS[name].function(made, target, mask)
        known = scores[np.isfinite(scores)]
        assert ((known >= METRICS[name].low) & (known <= METRICS[name].high)).all()


@pytest.mark.parametrize("name", METRICS)
def test_better_direction(name, images):
    generated, target, mask = images
    near = ((3 * target.astype(int) + generated) // 4).astype(np.uint8)
    better, worse = (METRICS[name].function(made, target, mask) for made in (near, generated))
    assert ((better > worse) == METRICS[name].higher).all()


def test_images_smaller_than_the_window_are_refused():
    small = np.zeros((1, 10, 40, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels.*10x40"):
        ssim_plain(small, small)


def test_shapes_must_agree():
    with pytest.raises((ValueError, TypeError)):  # TypeError from jaxtyping's check, which only the tests switch on
        psnr(np.zeros((1, 32, 16, 3), dtype=np.uint8), np.zeros((1, 16, 32, 3), dtype=np.uint8))


def test_to_uint8_restores_every_level():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(images), levels)
    np.testing.assert_array_equal(to_uint8(images * 100)[0, 0, 0], 0)
    np.testing.assert_array_equal(to_uint8(images * 100)[0, -1, -1], 255)
