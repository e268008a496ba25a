"""Convolutional blocks, as PG2's U-Nets have them, and discriminators with one logit an image.

Widths grow linearly with depth; other systems build their generators from these blocks.

Source: PG2's released models.py and models256.py. All convolutions are 3x3 with ReLU unless said otherwise, without
normalisation or dropout; weights are Xavier-uniform, biases zero (the defaults of TF-slim). Strided convolutions pad
as TensorFlow's SAME does: one pixel more at the bottom and right than at the top and left.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Images

Features = Float[Tensor, "batch _ _ _"]  # batch, channels, rows, columns


def level_count(size: tuple[int, int]) -> int:
    """Return the number of levels of PG2's G1 for a (height, width) in pixels: N = log2(height) - 2, rounded down.

    128 pixels give 5, 256 give 6 (PG2, section 4); the image is halved N - 1 times. Raises ValueError if the
    height is below 32 or a side cannot be halved that often, naming sizes that can.
    """
    height, width = size
    if height < 32:
        raise ValueError(f"size {height}x{width} (height x width) is too small: the height must be at least 32 pixels")
    levels = math.floor(math.log2(height)) - 2
    step = 2 ** (levels - 1)
    if height % step or width % step or width < step:
        rows, below = max(step, round(height / step) * step), width // step * step
        near = [f"{rows}x{columns}" for columns in dict.fromkeys((below, -(-width // step) * step)) if columns > 0]
        raise ValueError(
            f"size {height}x{width} (height x width) cannot be halved {levels - 1} times, as a network for height "
            f"{height} must: both sides must be multiples of {step}, such as {' or '.join(near)}"
        )
    return levels


def bottleneck_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the smallest feature map: 8x4 for 128x64, 8x8 for 256x256."""
    step = 2 ** (level_count(size) - 1)
    return size[0] // step, size[1] // step


def initialise(network: nn.Module, draw: Callable[[Tensor], object] = nn.init.xavier_uniform_) -> None:
    """Draw the weights of a network's convolutions and linear layers, one after the other, and set biases to zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def all_features(levels: Iterable[nn.Module], inputs: Features) -> list[Tensor]:
    """Return the features of levels of which each takes those of the one before, the first one's first."""
    return list(accumulate(levels, lambda features, level: level(features), initial=inputs))[1:]


def convolution(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the image's size; the kernel is odd."""
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)


def halving_convolution(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Sequential:
    """Return a convolution of stride 2, padded as TensorFlow's SAME: by 0 and 1 for kernel 3, 1 and 2 for kernel 5."""
    before = (kernel - 2) // 2
    after = kernel - 2 - before
    pad = nn.ZeroPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(channels_in, channels_out, kernel, stride=2))


def upsample(features: Features) -> Features:
    """Double the size by nearest neighbour."""
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


class ResidualBlock(nn.Module):
    """x + relu(conv(relu(conv(x)))): ReLU after both convolutions and none after the addition, as PG2's models.py."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels)

    def forward(self, features: Features) -> Features:
        """Map (batch, channels, rows, columns) to the same shape."""
        return features + F.relu(self.second(F.relu(self.first(features))))


class ResidualEncoder(nn.Module):
    """The encoder of PG2's G1: residual blocks of width * (k + 1) channels, convolutions of stride 2 between."""

    def __init__(self, *, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.stem = convolution(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width * (k + 1)) for k in range(levels))
        self.halvings = nn.ModuleList(halving_convolution(width * k, width * (k + 1)) for k in range(1, levels))

    def forward(self, image: Features) -> list[Tensor]:
        """Return each level's features (batch, width * (k + 1), height / 2^k, width / 2^k), the finest first."""
        features = [self.blocks[0](F.relu(self.stem(image)))]
        for halve, block in zip(self.halvings, list(self.blocks)[1:], strict=True):
            features.append(block(F.relu(halve(features[-1]))))
        return features


class ResidualDecoder(nn.Module):
    """The decoder of PG2's G1: at each level the skip is concatenated, then a residual block at that width.

    Between levels PG2 upsamples and then convolves 1x1 with ReLU. A 1x1 convolution does not mix pixels, so here
    it comes before the upsampling: the same numbers at a quarter of the cost. No final tanh.
    """

    def __init__(self, *, width: int, levels: int) -> None:
        super().__init__()
        joined = [width * (levels + 1)] + [2 * width * k for k in range(levels - 1, 0, -1)]
        self.blocks = nn.ModuleList(ResidualBlock(channels) for channels in joined)
        self.narrowings = nn.ModuleList(
            convolution(joined[i], width * (levels - 1 - i), kernel=1) for i in range(levels - 1)
        )
        self.image = convolution(joined[-1], 3)

    def forward(self, bottleneck: Features, skips: Sequence[Tensor]) -> Images:
        """Return an image from `bottleneck` (batch, width, rows, columns) and the features of a `ResidualEncoder`."""
        features = self.blocks[0](torch.cat([bottleneck, skips[-1]], dim=1))
        for narrow, block, skip in zip(self.narrowings, list(self.blocks)[1:], reversed(skips[:-1]), strict=True):
            features = block(torch.cat([upsample(F.relu(narrow(features))), skip], dim=1))
        return self.image(features)


class PlainBlock(nn.Module):
    """Two convolutions with ReLU, without a residual connection."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out)
        self.second = convolution(channels_out, channels_out)

    def forward(self, features: Features) -> Features:
        """Map (batch, channels_in, rows, columns) to channels_out at the same size."""
        return F.relu(self.second(F.relu(self.first(features))))


class PlainEncoder(nn.Module):
    """The encoder of PG2's G2: plain blocks of width * (k + 1) channels; strided convolutions keep their width."""

    def __init__(self, *, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.stem = convolution(channels, width)
        self.blocks = nn.ModuleList(PlainBlock(width * max(k, 1), width * (k + 1)) for k in range(levels))
        self.halvings = nn.ModuleList(halving_convolution(width * k, width * k) for k in range(1, levels))

    def forward(self, image: Features) -> list[Tensor]:
        """Return each level's features (batch, width * (k + 1), height / 2^k, width / 2^k), the finest first."""
        features = [self.blocks[0](F.relu(self.stem(image)))]
        for halve, block in zip(self.halvings, list(self.blocks)[1:], strict=True):
            features.append(block(F.relu(halve(features[-1]))))
        return features


class PlainDecoder(nn.Module):
    """The decoder of PG2's G2: [skip,] plain block of `width` channels, nearest upsampling; no final tanh.

    As in the released code the deepest features are concatenated with themselves, being bottom and skip at once.
    `full_resolution_skip` gives the last block a skip, as in models256.py's `AfterNoise`; models.py's `After2Noise`,
    the Market-1501 model, has none.
    """

    def __init__(self, *, width: int, levels: int, full_resolution_skip: bool) -> None:
        super().__init__()
        self.full_resolution_skip = full_resolution_skip
        below = [width * levels] + [width] * (levels - 1)
        skips = [width * (k + 1) for k in range(levels - 1, 0, -1)] + [width * full_resolution_skip]
        self.blocks = nn.ModuleList(PlainBlock(a + b, width) for a, b in zip(below, skips, strict=True))
        self.image = convolution(width, 3)

    def forward(self, skips: Sequence[Tensor]) -> Images:
        """Return an image (a difference map in PG2) from a `PlainEncoder`'s list of features."""
        features = skips[-1]
        for k in range(len(skips) - 1, -1, -1):
            used = k > 0 or self.full_resolution_skip
            features = self.blocks[len(skips) - 1 - k](torch.cat([features, skips[k]], dim=1) if used else features)
            features = upsample(features) if k else features
        return self.image(features)


class DcganDiscriminator(nn.Module):
    """DCGAN's discriminator as PG2's released wgan_gp.py builds it, with weights U(-0.02 sqrt(3), 0.02 sqrt(3)).

    5x5 convolutions of stride 2 with LeakyReLU 0.2, widths 64, 128, 256, 512 and again 512, as many as bring the
    image to 8 rows (4 for 128x64, 5 for 256x256), batch normalisation on all but the first, then one linear unit.
    The normalisation always uses the batch's own statistics, in evaluation too, and eps 1e-5: so an image's score
    depends on which others are scored with it, and what is scored together matters. `normalised=False` leaves it out
    (for critics with clipped weights), and an image's score is its own.
    """

    def __init__(self, *, size: tuple[int, int], channels: int = 3, width: int = 64, normalised: bool = True) -> None:
        super().__init__()
        widths = [width * min(2**k, 8) for k in range(level_count(size) - 1)]
        layers: list[nn.Module] = []
        for k, (inner, outer) in enumerate(zip([channels, *widths], widths, strict=False)):
            layers.append(halving_convolution(inner, outer, kernel=5))
            if normalised and k > 0:
                layers.append(nn.BatchNorm2d(outer, track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
        rows, columns = bottleneck_size(size)
        self.features = nn.Sequential(*layers)
        self.logit = nn.Linear(widths[-1] * rows * columns, 1)
        limit = 0.02 * math.sqrt(3)  # a standard deviation of 0.02
        initialise(self, partial(nn.init.uniform_, a=-limit, b=limit))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Return one logit an image; above zero is real."""
        return self.logit(self.features(images).flatten(1)).squeeze(1)
