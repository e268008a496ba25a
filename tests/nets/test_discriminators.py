import math

import pytest
import torch
from torch import nn

from posegen.nets.convolutional import DcganDiscriminator


def test_layers_at_the_published_sizes():
    def widths(size):
        return [layer.out_channels for layer in DcganDiscriminator(size=size).modules() if isinstance(layer, nn.Conv2d)]

    with torch.device("meta"):
        assert widths((128, 64)) == [64, 128, 256, 512]
        assert widths((256, 256)) == [64, 128, 256, 512, 512]


def test_the_first_layer_is_not_normalised():
    layers = [type(layer) for layer in DcganDiscriminator(size=(64, 32), width=4).features]
    rest = [nn.Sequential, nn.BatchNorm2d, nn.LeakyReLU]
    assert layers == [nn.Sequential, nn.LeakyReLU, *rest, *rest]


def test_without_normalisation_a_score_is_the_images_own():
    torch.manual_seed(0)
    discriminator = DcganDiscriminator(size=(64, 32), width=4, normalised=False).double()
    images = torch.rand(4, 3, 64, 32).double()
    layers = [type(layer) for layer in discriminator.features]
    assert layers == [nn.Sequential, nn.LeakyReLU] * 3
    torch.testing.assert_close(discriminator(images)[:2], discriminator(images[:2]))


def test_one_logit_a_image():
    assert DcganDiscriminator(size=(32, 16), channels=6, width=4)(torch.rand(5, 6, 32, 16)).shape == (5,)


def test_batch_statistics_in_evaluation_too():
    torch.manual_seed(0)
    discriminator, images = DcganDiscriminator(size=(32, 16), width=4), torch.rand(4, 3, 32, 16)
    trained = discriminator.train()(images)
    assert torch.equal(discriminator.eval()(images), trained)
    assert not list(discriminator.buffers())
    assert not torch.allclose(discriminator(images[:2]), trained[:2], atol=1e-3)


def test_initialisation_is_uniform_with_deviation_0_02():
    discriminator = DcganDiscriminator(size=(64, 32), width=32)
    for layer in discriminator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.weight.abs().max().item() <= 0.02 * math.sqrt(3) + 1e-9
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
            assert layer.eps == 1e-5
