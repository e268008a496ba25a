import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from posegen.losses.reconstruction import area_l1, l1, masked_l1, masked_ssim_loss, ssim


def images(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_l1_by_hand():
    generated, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    generated[0, 0, 0, 0], generated[0, 2, 1, 1] = 0.6, -0.6
    assert l1(generated, target).item() == pytest.approx(1.2 / 12)


def test_masked_l1_divides_by_all_pixels():
    generated, target, mask = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    mask[0, 0, 0, 1] = 1
    assert masked_l1(generated, target, mask).item() == pytest.approx(0.5 / 4)


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_is_nothing():
    generated, target = images(2, 3, 5, 4), images(2, 3, 5, 4, seed=1)
    ones = torch.ones(2, 1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(masked_l1(generated, target, ones), l1(generated, target))
    assert masked_l1(generated, target, 0 * ones).item() == 0


def test_area_l1_by_hand():
    """2x2 pixels, the mask one of them: 0.6, and the mean of 0.1, 0.2, 0.3 outside; channels are averaged."""
    generated, target, mask = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    generated[0, :, 0, 0], mask[0, 0, 0, 0] = torch.tensor([0.3, -0.6, 0.9]), 1
    generated[0, :, 0, 1], generated[0, :, 1, 0], generated[0, :, 1, 1] = 0.1, -0.2, 0.3
    assert area_l1(generated, target, mask).item() == pytest.approx(0.6)
    assert area_l1(generated, target, 1 - mask).item() == pytest.approx(0.2)


def test_area_l1_divides_each_image_by_its_own_area():
    generated, target, mask = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0, 0], mask[1, 0, :2] = 1, 1
    assert area_l1(generated, target, mask).item() == pytest.approx(1)
    generated[1] = 0.5
    assert area_l1(generated, target, mask).item() == pytest.approx(0.75)


def test_area_l1_of_everything_is_l1_and_of_nothing_is_zero_with_a_finite_gradient():
    generated, target = images(2, 3, 5, 4).requires_grad_(), images(2, 3, 5, 4, seed=1)
    ones = torch.ones(2, 1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(area_l1(generated, target, ones), l1(generated, target))
    nothing = area_l1(generated, target, 1 - ones)
    (gradient,) = torch.autograd.grad(nothing, generated)
    assert nothing.item() == 0
    assert torch.equal(gradient, torch.zeros_like(generated))
    half = torch.cat([ones[:1], 0 * ones[1:]])  # an image without such pixels beside one with them
    assert area_l1(generated, target, half).item() == pytest.approx(l1(generated[:1], target[:1]).item() / 2)


def test_area_l1_gradients():
    generated, target = images(2, 3, 3, 2).requires_grad_(), images(2, 3, 3, 2, seed=1)
    mask = (images(2, 1, 3, 2, seed=2) > 0).double()
    assert torch.autograd.gradcheck(lambda g: area_l1(g, target, mask), generated)


@pytest.mark.parametrize("height_width", [(11, 11), (33, 20), (64, 32)])
@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_ssim_equals_scikit_image(height_width, data_range):
    first = (images(3, 3, *height_width) + 1) / 2 * data_range
    second = (first + 0.2 * data_range * images(3, 3, *height_width, seed=1)).clamp(0, data_range)
    expected = [
        structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=data_range,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim(first, second, data_range=data_range).numpy(), expected, rtol=0, atol=1e-9)


def test_ssim_is_one_for_equal_images_and_symmetric():
    first, second = images(2, 3, 16, 12), images(2, 3, 16, 12, seed=1)
    torch.testing.assert_close(ssim(first, first, data_range=2.0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ssim(first, second, data_range=2.0), ssim(second, first, data_range=2.0))


def test_ssim_of_constant_images_is_its_luminance_term():
    first, second = torch.full((1, 3, 12, 12), 0.5), torch.full((1, 3, 12, 12), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert ssim(first, second, data_range=1.0).item() == pytest.approx(expected, rel=1e-4)


def test_ssim_gradients():
    first, second = images(1, 2, 13, 12).requires_grad_(), images(1, 2, 13, 12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ssim(a, b, data_range=2.0), (first, second))


def test_ssim_is_in_float32_under_autocast():
    first, second = images(2, 3, 16, 12).float(), images(2, 3, 16, 12, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = ssim(first, second, data_range=2.0)
    assert torch.equal(under, ssim(first, second, data_range=2.0))


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match=r"at least 11x11.*these have 10x32"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32), data_range=1.0)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(TypeError):
        ssim(torch.zeros(1, 3, 16, 32), torch.zeros(1, 3, 16, 16), data_range=1.0)


def test_masked_ssim_weighs_both_images_before_comparing():
    generated, target = images(2, 3, 16, 12), images(2, 3, 16, 12, seed=1)
    mask = (images(2, 1, 16, 12, seed=2) > 0).double()
    expected = [
        1
        - structural_similarity(
            *(((x + 1) / 2 * (1 + 2 * m)).numpy() for x in (g, t)), channel_axis=0, data_range=3,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for g, t, m in zip(generated, target, mask, strict=True)
    ]  # fmt: skip
    assert masked_ssim_loss(generated, target, mask, mask_weight=2.0).item() == pytest.approx(np.mean(expected))


def test_a_mask_of_ones_scales_images_and_range_alike():
    generated, target = images(2, 3, 16, 12), images(2, 3, 16, 12, seed=1)
    ones = torch.ones(2, 1, 16, 12, dtype=torch.float64)
    with_mask = masked_ssim_loss(generated, target, ones, mask_weight=1.0)
    torch.testing.assert_close(with_mask, masked_ssim_loss(generated, target, 0 * ones, mask_weight=0.0))
    assert masked_ssim_loss(target, target, ones, mask_weight=1.0).item() == pytest.approx(0)


def test_masked_ssim_gradients():
    target, mask = images(1, 3, 12, 11, seed=1), torch.ones(1, 1, 12, 11, dtype=torch.float64)
    mask[..., :6] = 0
    generated = images(1, 3, 12, 11).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: masked_ssim_loss(g, target, mask, mask_weight=1.0), generated)
