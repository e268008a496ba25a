"""Reconstruction losses: L1, L1 under a mask, and a differentiable SSIM.

Images are RGB in [-1, 1] unless said otherwise; generators end linearly, so generated images may lie outside.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

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


LARGEST_WINDOW = 15  # 15 * 15 offsets still fit into one byte per pixel
BLOCK_ELEMENTS = 2**18  # compared at a time, 1 MiB in float32: they stay in a core's cache for all offsets
BLOCK_ELEMENTS_ON_DEVICES = 2**23  # except on the CPU: many small kernels would cost more than memory

Features = Float[Tensor, "batch channels rows columns"]
PerPixel = Float[Tensor, "batch rows columns"]
Pixels = Float[Tensor, "images lines columns channels"]  # a block of features, laid out pixel by pixel
Surroundings = Float[Tensor, "images lines_around columns_around channels"]
Winners = UInt8[Tensor, "images lines columns"]  # the offset of the nearest neighbour, counted row by row
Places = Int64[Tensor, " pixels"]  # of a block's pixels in its surroundings, counted through all images
Block = tuple[slice, slice]  # of the batch, and of the rows


def nearest_neighbour_loss(generated: Features, target: Features, *, window: int) -> Scalar:
    """Return mean over batch and pixels p of min over q in N(p) of sum over channels |g(p) - t(q)|; 0 for equal maps.

    Deformable GAN, equation 7 and its released `nn_loss`. N(p) is the window x window neighbourhood of p as far as it
    lies within the image; g are the generated image's features, t the real one's. The paper writes a sum over the
    pixels; we follow the code, to whose mean the published weight of 0.01 belongs. The paper's windows are 3 and 5;
    window 1 is the plain L1 times the number of channels.

    Where several q are nearest the first counts, from the top row down and from left to right within a row (our choice;
    the released code's framework divides the gradient among them). Where a difference is 0 its gradient is 0, as for
    `torch.abs`. Sums over channels are in float32 at least, whatever the features' type, and so is the result.

    The backward pass needs the features and one byte per pixel, the offset of its nearest neighbour, not
    window * window shifted copies. Second-order gradients are not defined.

    Raises ValueError for a window that is not an odd number from 1 to 15, and for features of different shapes.
    """
    if window not in range(1, LARGEST_WINDOW + 1, 2):
        raise ValueError(
            f"the nearest-neighbour loss takes windows of an odd number of pixels from 1 to {LARGEST_WINDOW} "
            f"(3 and 5 in the paper, 1 for a plain L1), not {window}: give one of these"
        )
    if generated.shape != target.shape:
        raise ValueError(
            "the nearest-neighbour loss compares feature maps of one shape; the generated ones have "
            f"{tuple(generated.shape)} and the target's {tuple(target.shape)}: take both from the same layer"
        )
    return _NearestDistances.apply(generated, target, window).mean()


class _NearestDistances(torch.autograd.Function):
    """(g, t, window) -> min over q in N(p) of sum over channels |g(p) - t(q)|, for every pixel p."""

    @staticmethod
    def forward(ctx, generated: Features, target: Features, window: int) -> PerPixel:
        batch, _, rows, columns = generated.shape
        dtype = torch.promote_types(torch.promote_types(generated.dtype, target.dtype), torch.float32)
        distances = generated.new_empty((batch, rows, columns), dtype=dtype)
        winners = generated.new_empty((batch, rows, columns), dtype=torch.uint8)
        for block in _blocks(generated):
            costs = _costs(_pixels(generated, block, dtype), _surroundings(target, block, window, dtype), window)
            distances[block], winners[block] = costs.min(dim=0)
        ctx.save_for_backward(generated, target, winners)
        ctx.window, ctx.accuracy = window, dtype
        return distances

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: the decorator hides the name of ctx
        ctx: Any, gradient: PerPixel
    ) -> tuple[Features | None, Features | None, None]:
        generated, target, winners = ctx.saved_tensors
        of_generated = torch.empty_like(generated) if ctx.needs_input_grad[0] else None
        of_target = torch.zeros_like(target) if ctx.needs_input_grad[1] else None
        for block in _blocks(generated):
            slopes = _pixels(generated, block, ctx.accuracy)
            around = _surroundings(target, block, ctx.window, ctx.accuracy)
            nearest = _nearest_pixels(winners[block], around, ctx.window)
            slopes = slopes - around.flatten(0, 2).index_select(0, nearest).view_as(slopes)
            slopes = slopes.sign_().mul_(gradient[block].unsqueeze(-1))
            if of_generated is not None:
                of_generated[block[0], :, block[1]] = slopes.permute(0, 3, 1, 2)
            if of_target is not None:
                _subtract_scattered(of_target, block, slopes, nearest, around, ctx.window)
        return of_generated, of_target, None


def _blocks(features: Features) -> Iterator[Block]:
    """Yield slices of the batch and of the rows that cover the features: several small images, or some rows of one."""
    batch, channels, rows, columns = features.shape
    pixels = (BLOCK_ELEMENTS if features.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICES) // channels
    images, height = max(1, pixels // (rows * columns)), max(1, pixels // columns)
    for image in range(0, batch, images):
        for row in range(0, rows, height):
            yield slice(image, min(image + images, batch)), slice(row, min(row + height, rows))


def _pixels(features: Features, block: Block, dtype: torch.dtype) -> Pixels:
    """A block of the features, laid out pixel by pixel."""
    return features[block[0], :, block[1]].permute(0, 2, 3, 1).to(dtype).contiguous()


def _surroundings(features: Features, block: Block, window: int, dtype: torch.dtype) -> Surroundings:
    """Block with half a window more at each side: infinite outside the image, so never the nearest."""
    images, (wanted, there, columns) = block[0], _with_margin(features, block, window)
    count, channels, margin = images.stop - images.start, features.shape[1], 2 * (window // 2)
    shape = (count, block[1].stop - block[1].start + margin, features.shape[3] + margin, channels)
    around = features.new_full(shape, torch.inf, dtype=dtype)
    around[:, wanted, columns] = features[images, :, there].permute(0, 2, 3, 1)
    return around


def _with_margin(features: Features, block: Block, window: int) -> tuple[slice, slice, slice]:
    """Slices of a block's surroundings within the image: rows of the surroundings, of the image, and columns."""
    radius, first = window // 2, block[1].start - window // 2
    there = slice(max(first, 0), min(block[1].stop + radius, features.shape[2]))
    return slice(there.start - first, there.stop - first), there, slice(radius, radius + features.shape[3])


def _costs(own: Pixels, around: Surroundings, window: int) -> Float[Tensor, "offsets images lines columns"]:
    """sum over channels |g(p) - t(p + offset)|, offsets in rows from the top left."""
    rows, columns = own.shape[1:3]
    costs, difference = own.new_empty((window**2, *own.shape[:3])), torch.empty_like(own)
    for offset, cost in enumerate(costs):
        top, left = divmod(offset, window)
        torch.sub(own, around[:, top : top + rows, left : left + columns], out=difference)
        torch.sum(difference.abs_(), dim=-1, out=cost)
    return costs


def _nearest_pixels(winners: Winners, around: Surroundings, window: int) -> Places:
    """Index of each pixel's nearest neighbour among all pixels of the block's surroundings."""
    _, rows, columns, _ = around.shape
    images, own_rows, own_columns = (torch.arange(length, device=winners.device) for length in winners.shape)
    top_left = (images[:, None, None] * rows + own_rows[:, None]) * columns + own_columns
    offsets = winners.long()
    return (top_left + offsets // window * columns + offsets % window).flatten()


def _subtract_scattered(
    total: Features, block: Block, slopes: Pixels, nearest: Places, around: Surroundings, window: int
) -> None:
    """Subtract each pixel's slope from the total at its nearest neighbour: the adjoint of picking the neighbours."""
    places = nearest[:, None].expand(-1, slopes.shape[-1])
    gathered = torch.zeros_like(around).flatten(0, 2).scatter_add_(0, places, slopes.flatten(0, 2)).view_as(around)
    wanted, there, columns = _with_margin(total, block, window)
    total[block[0], :, there] -= gathered[:, wanted, columns].permute(0, 3, 1, 2)
