"""Deformable GAN's deformable skip connection: features moved body part by body part, and the maximum over the parts.

Source: Siarohin et al. 2018, section 3.2, and its released code (AffineTransformLayer, which warps first and masks in
the target's frame). Where both differ, the released code is followed, but for the interpolation: it samples the
nearest pixel, because that is the default of the TensorFlow operation that it calls; ours is bilinear unless told
otherwise. That operation's gradient is an approximation too: it warps the gradient with the inverse transform, and
fails where there is none. Here the gradient is the exact adjoint of the sampling, for every transform.

The naive implementation warps and masks one copy of the features per part. Here pixels outside a part's mask are never
sampled, and the backward pass only needs the index of the winning part, one byte per value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

Interpolation = Literal["bilinear", "nearest"]
Aggregate = Literal["max", "average"]
Flat = Float[Tensor, "pixels channels"]  # all pixels of a batch, row by row: channels_last memory without a copy
Winners = UInt8[Tensor, "pixels channels"]
PartMasks = Bool[Tensor, "parts batch rows columns"]

# Winners of the maximum in the order of comparison: a later one has to be strictly greater.
NOBODY, BACKGROUND, FIRST_PART = 0, 1, 2  # the zero of an uncovered part; the undeformed features; then all parts
MOST_PARTS = 256 - FIRST_PART


def deformable_skip(
    features: Float[Tensor, "batch channels rows columns"],
    *,
    transforms: Float[Tensor, "batch parts 2 3"],
    masks: Bool[Tensor, "batch parts height width"],
    present: Bool[Tensor, "batch parts"],
    aggregate: Aggregate = "max",
    interpolation: Interpolation = "bilinear",
    mask_frame: Literal["target", "source"] = "target",
    background: bool = False,
) -> Float[Tensor, "batch channels rows columns"]:
    """Compute d(F) = max over h of M_h * F(T_h(p)): the source's features, each part moved to its target position.

    `transforms` take (x, y, 1) of the target image to (x, y) of the source image, in pixels of the image, whose
    size is that of `masks`; whole numbers are pixel centres. For features s_x and s_y times smaller, x' = a x + b y + c
    becomes x' = a x + (s_y / s_x) b y + c / s_x, likewise y': with both ratios equal, only translations change. Masks
    take the pixel floor(i * height / rows). Features outside the image are 0. Parts that are not `present` are dropped:
    their transforms are not read, and their warped features are 0 everywhere.

    Every pixel of every part takes part in the maximum, with 0 outside its mask, so that with 10 parts the result is
    hardly ever negative: for identity transforms and a torso mask of ones it is max(F, 0). The gradient of a value goes
    to one part: to the first of those that share the maximum, and to none where that is 0, as ReLU's.

    - `aggregate="average"`: the sum of the masked warps over the number of masks on the pixel, dropped parts' masks
      included (released code, warp_agg "avg"); 0 under no mask.
    - `interpolation="nearest"`: halves are rounded away from zero, as the released code's operation does.
    - `mask_frame="source"`: the features are masked first and warped then (the paper's equation); a pixel counts as
      under a mask where any of the pixels that it is sampled from is, and dropped parts count nowhere.
    - `background`: the features as they are, as one more term (the paper's h = 0), under a mask of ones.

    Positions are computed in float64, sums in float32 at least. The result has the features' dtype and is in
    channels_last memory. Gradients reach only the features, and only first-order ones. Raises ValueError if shapes do
    not fit or there are no or over 254 parts.
    """
    _check_shapes(features, transforms, masks, present)
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.no_grad():
        plan = _plan(features, transforms.double(), masks, present, mask_frame, interpolation)
        covering = _at_size(masks, features).sum(1) if mask_frame == "target" else plan.active.sum(0)
    pixels = features.to(dtype).permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    if aggregate == "max":
        result: Tensor = _Maximum.apply(pixels, plan, background)  # pyright: ignore
    else:
        total: Tensor = _Sum.apply(pixels, plan)  # pyright: ignore
        count = (covering.reshape(-1, 1) + background).clamp(min=1)
        result = (total + pixels if background else total) / count
    batch, _, rows, columns = features.shape
    return result.unflatten(0, (batch, rows, columns)).permute(0, 3, 1, 2).to(features.dtype)


def _check_shapes(features: Tensor, transforms: Tensor, masks: Tensor, present: Tensor) -> None:
    batch, parts = features.shape[0], present.shape[-1]
    if (
        (features.ndim, masks.ndim) != (4, 4)
        or transforms.shape != (batch, parts, 2, 3)
        or masks.shape[:2] != (batch, parts)
        or present.shape != (batch, parts)
    ):
        raise ValueError(
            f"shapes do not fit: features {tuple(features.shape)}, transforms {tuple(transforms.shape)}, masks "
            f"{tuple(masks.shape)}, present {tuple(present.shape)}; give features (batch, channels, rows, columns), "
            "transforms (batch, parts, 2, 3), masks (batch, parts, height, width) and present (batch, parts)"
        )
    if not 1 <= parts <= MOST_PARTS:
        raise ValueError(f"{parts} parts were given: between 1 and {MOST_PARTS} can be warped")


@dataclass(frozen=True)
class _Plan:
    """Pixels of the parts to sample and their transforms, from which both passes compute their samples."""

    active: PartMasks  # the pixels to sample
    transforms: Float[Tensor, "parts*batch 2 3"]  # between feature maps: (column, row, 1) to (column, row)
    source_masks: Bool[Tensor, "parts*batch*rows*columns"] | None  # where features are masked before warping
    interpolation: Interpolation
    dtype: torch.dtype  # of the weights


@dataclass(frozen=True)
class _Samples:
    """Pixels of some parts in order, each a weighted sum of source pixels."""

    parts: list[tuple[int, int]]  # index and number of samples of each part
    numbers: Int[Tensor, " samples"]  # the part of each
    targets: Int[Tensor, " samples"]  # rows of the flat features
    sources: Int[Tensor, "samples taps"]
    weights: Float[Tensor, "samples taps"]

    def is_whole(self, pixels: int) -> bool:
        """Return True for a single part on all pixels, which then are in order."""
        return len(self.parts) == 1 and len(self.targets) == pixels


def _plan(
    features: Tensor, transforms: Tensor, masks: Tensor, present: Tensor, mask_frame: str, interpolation: Interpolation
) -> _Plan:
    dtype = torch.promote_types(features.dtype, torch.float32)
    ratios = (masks.shape[3] / features.shape[3], masks.shape[2] / features.shape[2])
    ratio = transforms.new_tensor(ratios)  # in x and y
    scaled = torch.cat([transforms[..., :2] * (ratio / ratio[:, None]), transforms[..., 2:] / ratio[:, None]], dim=-1)
    between_maps = scaled.transpose(0, 1).flatten(0, 1)
    small = (_at_size(masks, features) & present[:, :, None, None]).transpose(0, 1).contiguous()
    if mask_frame == "target":
        return _Plan(small, between_maps, None, interpolation, dtype)
    everywhere = present.T[:, :, None, None].expand_as(small)
    moved = _moved(_Plan(everywhere, between_maps, small.flatten(), interpolation, dtype))
    return _Plan(moved, between_maps, small.flatten(), interpolation, dtype)


def _moved(plan: _Plan) -> PartMasks:
    """Masks of the source moved to the target: pixels sampled at least partly from under the mask."""
    moved = torch.zeros(plan.active.shape, dtype=torch.bool, device=plan.active.device)
    for samples in _groups(plan):
        moved.flatten(1)[samples.numbers, samples.targets] = (samples.weights != 0).any(1)
    return moved


def _at_size(masks: Tensor, features: Tensor) -> Tensor:
    """Take pixel floor(i * height / rows) for row i, likewise columns: TensorFlow's resize_nearest_neighbor."""
    (height, width), (rows, columns) = masks.shape[2:], features.shape[2:]
    if (height, width) == (rows, columns):
        return masks
    taken_rows = torch.arange(rows, device=masks.device) * height // rows
    taken_columns = torch.arange(columns, device=masks.device) * width // columns
    return masks[:, :, taken_rows[:, None], taken_columns]


def _groups(plan: _Plan) -> Iterator[_Samples]:
    """Yield the samples of all parts in order, grouped so that a group has no more samples than there are pixels.

    So memory is that of one part with a full mask, and many small parts form one group. Fake tensors have no values to
    count: each part is then a group of all pixels.
    """
    pixels = plan.active[0].numel()
    if is_fake(plan.active):
        for part in range(len(plan.active)):
            where = torch.zeros(4, pixels, dtype=torch.int64, device=plan.active.device)
            yield _samples(plan, [(part, pixels)], *where)
        return
    waiting: list[tuple[int, int]] = []
    for part, count in enumerate(plan.active.flatten(1).sum(1).tolist()):
        if waiting and count + sum(size for _, size in waiting) > pixels:
            yield _group(plan, waiting)
            waiting = []
        if count:
            waiting.append((part, count))
    if waiting:
        yield _group(plan, waiting)


def _group(plan: _Plan, parts: list[tuple[int, int]]) -> _Samples:
    first, last = parts[0][0], parts[-1][0]
    numbers, *where = plan.active[first : last + 1].nonzero().unbind(1)
    return _samples(plan, parts, numbers + first, *where)


def _samples(
    plan: _Plan, parts: list[tuple[int, int]], numbers: Tensor, batch: Tensor, row: Tensor, column: Tensor
) -> _Samples:
    _, batches, rows, columns = plan.active.shape
    images = numbers * batches + batch
    transform = plan.transforms.flatten(1).index_select(0, images).T
    x = torch.addcmul(torch.addcmul(transform[2], transform[0], column), transform[1], row)
    y = torch.addcmul(torch.addcmul(transform[5], transform[3], column), transform[4], row)
    taken_columns, column_weights = _taps(x, columns, plan)
    taken_rows, row_weights = _taps(y, rows, plan)
    starts = batch[:, None] * rows + taken_rows
    sources = (starts[:, :, None] * columns + taken_columns[:, None, :]).flatten(1)
    weights = (row_weights[:, :, None] * column_weights[:, None, :]).flatten(1)
    if plan.source_masks is not None:
        weights = weights * plan.source_masks[sources + (numbers * (batches * rows * columns))[:, None]]
    return _Samples(parts, numbers, (batch * rows + row) * columns + column, sources, weights)


def _taps(position: Tensor, length: int, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Along one axis, the pixels that a position is sampled from and their weights: 0 for those outside.

    Non-finite positions are outside too: a part with a degenerate transform gives zeros.
    """
    position = position.nan_to_num(nan=-1).clamp(-1, length)
    if plan.interpolation == "nearest":
        taken = (position + torch.copysign(position.new_tensor(0.5), position)).trunc()[:, None]
        weights = torch.ones_like(taken, dtype=plan.dtype)
    else:
        before = position.floor()
        part_after = (position - before).to(plan.dtype)
        taken = torch.stack([before, before + 1], dim=1)
        weights = torch.stack([1 - part_after, part_after], dim=1)
    inside = taken.clamp(0, length - 1)
    return inside.long(), weights * (inside == taken)


def _sampled(pixels: Flat, samples: _Samples) -> Float[Tensor, "samples channels"]:
    return F.embedding_bag(samples.sources, pixels, per_sample_weights=samples.weights, mode="sum")


def _spread(gradient: Float[Tensor, "samples channels"], samples: _Samples, pixels: int) -> Flat:
    """Adjoint of `_sampled`: source pixels sum the gradients of their samples, in a fixed order, without collisions."""
    taps = samples.sources.shape[1]
    sources = samples.sources.flatten().int()
    order = sources.sort(stable=True).indices
    counts = sources.new_zeros(pixels).index_add_(0, sources, torch.ones_like(sources))
    offsets = counts.cumsum(0) - counts
    weights = samples.weights.flatten().index_select(0, order)
    return F.embedding_bag(order // taps, gradient, offsets, per_sample_weights=weights, mode="sum")


def _rows(table: Tensor, samples: _Samples) -> Tensor:
    """Rows of the table at the samples' targets: the table itself if they are all its rows in order."""
    return table if samples.is_whole(len(table)) else table.index_select(0, samples.targets)


def _total(terms: Iterator[Flat], like: Flat) -> Flat:
    """Sum of the terms, accumulated in the first one's memory."""
    total = next(terms, None)
    if total is None:
        return torch.zeros_like(like)
    for term in terms:
        total += term
    return total


class _Sum(torch.autograd.Function):
    """The sum over the parts of their warped features."""

    @staticmethod
    def forward(ctx: Any, pixels: Flat, plan: _Plan) -> Flat:
        ctx.plan = plan
        total = torch.zeros_like(pixels, memory_format=torch.contiguous_format)
        for samples in _groups(plan):
            values = _sampled(pixels, samples)
            if samples.is_whole(len(total)):
                total += values
            else:
                total.index_add_(0, samples.targets, values)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Flat) -> tuple[Flat, None]:  # pyright: ignore
        gradient = gradient.contiguous()
        terms = (_spread(_rows(gradient, samples), samples, len(gradient)) for samples in _groups(ctx.plan))
        return _total(terms, gradient), None


class _Maximum(torch.autograd.Function):
    """The maximum over the parts of their warped features, 0 where one is not active, and the background if asked."""

    @staticmethod
    def forward(ctx: Any, pixels: Flat, plan: _Plan, background: bool) -> Flat:
        # Before the parts: 0 where some part is not active, -inf where all are, and the background.
        floor = torch.zeros_like(pixels[:, :1]).masked_fill_(plan.active.all(0).reshape(-1, 1), -torch.inf)
        best = floor.expand_as(pixels).contiguous()
        winner = torch.full_like(best, NOBODY, dtype=torch.uint8)
        if background:
            _compete(best, winner, BACKGROUND, pixels, None)
        for samples in _groups(plan):
            values, begin = _sampled(pixels, samples), 0
            for part, count in samples.parts:
                taken = slice(begin, begin + count)
                _compete(best, winner, FIRST_PART + part, values[taken], samples.targets[taken])
                begin += count
        ctx.plan, ctx.background = plan, background
        ctx.save_for_backward(winner)
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Flat) -> tuple[Flat, None, None]:  # pyright: ignore
        (winner,) = ctx.saved_tensors
        return _total(_shares(gradient.contiguous(), winner, ctx.plan, ctx.background), gradient), None, None


def _shares(gradient: Flat, winner: Winners, plan: _Plan, background: bool) -> Iterator[Flat]:
    """Yield the features' gradient through the background and each group of parts, where they won."""
    if background:
        yield (winner == BACKGROUND).to(gradient.dtype).mul_(gradient)
    for samples in _groups(plan):
        won = _rows(winner, samples) == (samples.numbers + FIRST_PART).to(torch.uint8)[:, None]
        yield _spread(won.to(gradient.dtype).mul_(_rows(gradient, samples)), samples, len(gradient))


def _compete(best: Flat, winner: Winners, number: int, values: Tensor, targets: Tensor | None) -> None:
    """Take over where the values are greater; `targets` are their rows, all of them in order if None.

    Numbers grow from call to call, so that the new winner is a maximum too: masked writes take ten times longer.
    """
    if targets is None or len(targets) == len(best):
        torch.maximum(winner, (values > best).view(torch.uint8) * number, out=winner)
        torch.maximum(best, values, out=best)
        return
    current = best.index_select(0, targets)
    winners = (values > current).view(torch.uint8) * number
    winner.index_copy_(0, targets, torch.maximum(winner.index_select(0, targets), winners))
    best.index_copy_(0, targets, torch.maximum(current, values))
