"""Reconstruction losses: L1, L1 under a mask, and a differentiable SSIM.

Images are RGB in [-1, 1] unless said otherwise; generators end linearly, so generated images may lie outside.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from posegen.batch import Images, Masks, Scalar

SIGMA = 1.5  # of SSIM's Gaussian window, in pixels (Wang et al. 2004)
RADIUS = 5  # the window has 2 * 5 + 1 = 11 taps: scikit-image cuts the Gaussian at 3.5 sigma


def l1(
    generated: Float[Tensor, "batch channels height width"], target: Float[Tensor, "batch channels height width"]
) -> Scalar:
    """Return mean |G - I| over batch, channels and pixels, of images or features: in [0, 2] for images within range."""
    return (generated - target).abs().mean()


def masked_l1(generated: Images, target: Images, mask: Masks) -> Scalar:
    """Return mean(|G - I| * M): the divisor is all pixels, not the mask's area, so a mask of ones gives `l1`.

    PG2's released trainer.py adds it to `l1`: mean |G - I| + mean(|G - I| M) = mean(|G - I| (1 + M)), the paper's pose
    mask loss up to its normalisation.
    """
    return ((generated - target).abs() * mask).mean()


def area_l1(generated: Images, target: Images, mask: Masks) -> Scalar:
    """Return sum(|G - I| M) / sum(M) of each image, averaged over channels and batch: in [0, 2] for images in range.

    Multistage's L_fg with the person's mask M, and L_bg with 1 - M (slides): each region is divided by its own area, so
    that a small person counts as much as a large one. A mask of ones gives `l1`. The slides' sum over a pixel's
    channels is a mean here, so that the value compares with `l1`: our choice, a third of theirs. An image without
    such pixels adds 0.
    """
    sums = ((generated - target).abs().mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3))
    return (sums / mask.sum(dim=(1, 2, 3)).clamp(min=1)).mean()


def masked_ssim_loss(generated: Images, target: Images, mask: Masks, *, mask_weight: float) -> Scalar:
    """Return 1 - SSIM(G (1 + w M), I (1 + w M)), the mean over the batch: in [0, 2], 0 where both are equal.

    VDG's L_SSIM^mask (slides, "Training losses"): both images are weighted before the comparison, with w = 1. Three
    things are our choice, because the slides do not say: the form 1 - SSIM; that images are mapped to [0, 1] first,
    because SSIM's luminance term supposes values of one sign; and the data range 1 + w, the largest weighted value.
    """
    weight = 1 + mask_weight * mask
    first, second = (generated + 1) / 2 * weight, (target + 1) / 2 * weight
    return 1 - ssim(first, second, data_range=1 + mask_weight).mean()


def ssim(
    first: Float[Tensor, "batch channels height width"],
    second: Float[Tensor, "batch channels height width"],
    *,
    data_range: float,
) -> Float[Tensor, " batch"]:
    """Compute the SSIM of each pair of images (Wang et al. 2004, equation 13), in [-1, 1]; 1 for equal ones.

    SSIM = (2 mu_x mu_y + c1) (2 s_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (s_x^2 + s_y^2 + c2)), c1 = (0.01 L)^2,
    c2 = (0.03 L)^2, L the data range; means and (co)variances under a Gaussian window of sigma 1.5 and 11 x 11 taps,
    averaged over the window's positions within the image (5 pixels fewer at each side) and over the channels. Equal to
    scikit-image's `structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    Computed in float32 at least, whatever the autocast. Raises ValueError for images smaller than the window.
    """
    window = 2 * RADIUS + 1
    if min(first.shape[-2:]) < window:
        raise ValueError(
            f"SSIM needs images of at least {window}x{window} pixels, its window; these have "
            f"{first.shape[-2]}x{first.shape[-1]}: use larger images, or turn SSIM off"
        )
    dtype = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        x, y = first.to(dtype), second.to(dtype)
        rows, columns = (_window_matrix(side, x) for side in x.shape[-2:])
        # Means as two products: several times faster than convolutions of one channel, forward and backward.
        mean_x, mean_y, square_x, square_y, product = rows @ torch.stack([x, y, x * x, y * y, x * y]) @ columns.T
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        luminance = (2 * means + c1) / (squares + c1)
        structure = (2 * (product - means) + c2) / (square_x + square_y - squares + c2)
        return (luminance * structure).mean(dim=(1, 2, 3))


def _window_matrix(length: int, like: Tensor) -> Float[Tensor, "places length"]:
    """Row i holds the window's weights around pixel i + RADIUS; every row sums to 1."""
    pixels = torch.arange(length, device=like.device)
    offsets = pixels - pixels[RADIUS : length - RADIUS, None]
    weights = torch.exp(offsets.to(like.dtype).square() / (-2 * SIGMA**2)) * (offsets.abs() <= RADIUS)
    return weights / weights.sum(dim=1, keepdim=True)
