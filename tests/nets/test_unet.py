import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posegen.nets.convolutional import (
    PlainDecoder,
    PlainEncoder,
    ResidualBlock,
    ResidualDecoder,
    ResidualEncoder,
    bottleneck_size,
    halving_convolution,
    initialise,
    level_count,
    upsample,
)


@pytest.mark.parametrize(
    ("size", "levels", "smallest"),
    [
        ((128, 64), 5, (8, 4)),
        ((256, 256), 6, (8, 8)),
        ((64, 32), 4, (8, 4)),
        ((192, 96), 5, (12, 6)),
        ((32, 32), 3, (8, 8)),
    ],
)
def test_levels_and_smallest_map(size, levels, smallest):
    assert level_count(size) == levels
    assert bottleneck_size(size) == smallest


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((256, 176), "multiples of 32, such as 256x160 or 256x192"),
        ((130, 64), "multiples of 16, such as 128x64"),
        ((128, 8), "multiples of 16, such as 128x16"),
        ((16, 16), "at least 32"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        level_count(size)


@pytest.mark.parametrize("kernel", [3, 5])
def test_stride_two_pads_as_tensorflow_does(kernel):
    """SAME: out[i] covers in[2 i - before] onwards, before = floor((kernel - 2) / 2); zeros outside."""
    halve = halving_convolution(1, 1, kernel).double()
    image = torch.rand(6, 8, dtype=torch.float64)
    weight, bias = halve[1].weight[0, 0].detach(), halve[1].bias.item()
    expected, before = torch.full((3, 4), bias, dtype=torch.float64), {3: 0, 5: 1}[kernel]
    for row in range(3):
        for column in range(4):
            for i in range(kernel):
                for j in range(kernel):
                    y, x = 2 * row - before + i, 2 * column - before + j
                    if 0 <= y < 6 and 0 <= x < 8:
                        expected[row, column] += weight[i, j] * image[y, x]
    torch.testing.assert_close(halve(image[None, None])[0, 0].detach(), expected)


def test_a_residual_block_of_zero_weights_is_the_identity():
    block = ResidualBlock(4)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 4, 5, 6)
    assert torch.equal(block(features), features)


def test_a_residual_block_activates_before_the_addition_only():
    block = ResidualBlock(1)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(block.second.bias, -3.0)
    features = -torch.ones(1, 1, 2, 2)
    assert torch.equal(block(features), features)  # relu(-3) = 0 is added, and the sum stays negative
    nn.init.constant_(block.second.bias, 3.0)
    assert torch.equal(block(features), features + 3)


def test_features_of_the_encoders():
    for encoder in (ResidualEncoder, PlainEncoder):
        features = encoder(channels=5, width=2, levels=3)(torch.rand(2, 5, 32, 16))
        assert [tuple(f.shape) for f in features] == [(2, 2, 32, 16), (2, 4, 16, 8), (2, 6, 8, 4)]


def test_the_decoder_equals_one_that_upsamples_before_its_narrow_convolution():
    torch.manual_seed(0)
    decoder = ResidualDecoder(width=3, levels=3).double()
    skips = ResidualEncoder(channels=3, width=3, levels=3).double()(torch.rand(2, 3, 32, 16).double())
    bottleneck = torch.rand(2, 3, 8, 4).double()
    features = bottleneck
    for i in range(3):
        features = decoder.blocks[i](torch.cat([features, skips[2 - i]], dim=1))
        if i < 2:
            features = F.relu(decoder.narrowings[i](upsample(features)))
    torch.testing.assert_close(decoder(bottleneck, skips), decoder.image(features))


@pytest.mark.parametrize("full_resolution_skip", [True, False])
def test_the_plain_decoder_uses_the_finest_features_only_when_told(full_resolution_skip):
    torch.manual_seed(0)
    decoder = PlainDecoder(width=3, levels=2, full_resolution_skip=full_resolution_skip)
    finest, coarsest = torch.rand(1, 3, 16, 8), torch.rand(1, 6, 8, 4)
    changed = not torch.equal(decoder([finest, coarsest]), decoder([finest + 1, coarsest]))
    assert changed == full_resolution_skip


def test_initialisation_is_xavier_uniform():
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(50, 30))
    initialise(network)
    for layer, fans in ((network[0], 9 * (8 + 16)), (network[1], 50 + 30)):
        limit = math.sqrt(6 / fans)
        assert 0.95 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()
