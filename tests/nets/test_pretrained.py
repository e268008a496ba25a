import inspect

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from posegen.nets.pretrained import DEVIATION, MEAN, Vgg19Features, vgg19_features

SHAPES = {
    "features.0.weight": (64, 3, 3, 3),
    "features.0.bias": (64,),
    "features.2.weight": (64, 64, 3, 3),
    "features.2.bias": (64,),
    "features.5.weight": (128, 64, 3, 3),
    "features.5.bias": (128,),
    "features.7.weight": (128, 128, 3, 3),
    "classifier.6.bias": (1000,),
}
LAYERS = ["block1_conv2", "block2_conv1"]


def made_up_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def passing_weights():
    """A network whose first feature is the normalised red of the same pixel, and whose second is its negative."""
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    weights["features.0.weight"][0, 0, 1, 1], weights["features.0.weight"][1, 0, 1, 1] = 1, -1
    for layer in (2, 5):
        for feature in (0, 1):
            weights[f"features.{layer}.weight"][feature, feature, 1, 1] = 1
    return weights


def saved(path, weights, **options):
    torch.save(weights, path, **options)
    return path


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("layer", "shape"), [("block1_conv2", (2, 64, 12, 8)), ("block2_conv1", (2, 128, 6, 4))])
def test_shapes_and_range(layer, shape):
    features = vgg19_features(layer, None)(random_images(2, 3, 12, 8))
    assert features.shape == shape
    assert features.min() == 0  # after the ReLU
    assert features.max() > 0


@pytest.mark.parametrize(("layer", "count"), [("block1_conv2", 38_720), ("block2_conv1", 112_576)])
def test_parameter_counts(layer, count):
    assert sum(parameter.numel() for parameter in Vgg19Features(layer=layer).parameters()) == count


def test_names_are_those_of_torchvision():
    assert list(Vgg19Features(layer="block2_conv1").state_dict()) == list(SHAPES)[:6]
    assert list(Vgg19Features(layer="block1_conv2").state_dict()) == list(SHAPES)[:4]


def test_by_hand_through_the_first_block(tmp_path):
    path, images = saved(tmp_path / "vgg.pth", passing_weights()), random_images(2, 3, 4, 6)
    features = vgg19_features("block1_conv2", path)(images)
    red = ((images[:, 0] + 1) / 2 - MEAN[0]) / DEVIATION[0]
    torch.testing.assert_close(features[:, 0], red.clamp(min=0))
    torch.testing.assert_close(features[:, 1], (-red).clamp(min=0))
    assert not features[:, 2:].any()


def test_by_hand_through_the_pooling(tmp_path):
    path, images = saved(tmp_path / "vgg.pth", passing_weights()), random_images(2, 3, 4, 6)
    features = vgg19_features("block2_conv1", path)(images)
    red = ((images[:, 0] + 1) / 2 - MEAN[0]) / DEVIATION[0]
    largest = red.unfold(1, 2, 2).unfold(2, 2, 2).amax(dim=(-1, -2))
    torch.testing.assert_close(features[:, 0], largest.clamp(min=0))


def test_biases_count_and_images_are_padded_after_normalisation(tmp_path):
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    weights["features.0.weight"][0, 1] = 1  # the sum of green over 3x3 pixels
    weights["features.0.bias"][0], weights["features.2.bias"][0] = 2, 0.25
    weights["features.2.weight"][0, 0, 1, 1] = 1
    white = torch.ones(1, 3, 3, 3)
    features = vgg19_features("block1_conv2", saved(tmp_path / "vgg.pth", weights))(white)[0, 0]
    covered = torch.tensor([[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]])
    torch.testing.assert_close(features, covered * (1 - MEAN[1]) / DEVIATION[1] + 2 + 0.25)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_mean_colour_is_nothing_and_contrast_scales_the_random_networks_features(layer):
    """Without biases the network is positively homogeneous around the colour that normalisation takes off."""
    network, contrast = vgg19_features(layer, None).double(), random_images(2, 3, 8, 8).double()
    mean = 2 * torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1) - 1
    torch.testing.assert_close(network(mean.expand(2, 3, 8, 8)), 0 * network(contrast), rtol=0, atol=1e-6)
    torch.testing.assert_close(network(mean + 0.25 * contrast), 0.25 * network(mean + contrast), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layer", "stride"), [("block1_conv2", 1), ("block2_conv1", 2)])
def test_a_shifted_image_has_shifted_features(layer, stride):
    network, images = vgg19_features(layer, None).double(), random_images(1, 3, 24, 20).double()
    there, back = network(images.roll((2 * stride, -stride), (2, 3))), network(images).roll((2, -1), (2, 3))
    inner = (..., slice(5, -5), slice(4, -4))  # farther from the border than features look
    torch.testing.assert_close(there[inner], back[inner], rtol=0, atol=1e-9)
    assert not torch.allclose(there, back)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gradient_reaches_the_image_and_no_parameter(layer):
    network, images = vgg19_features(layer, None), random_images(1, 3, 8, 8).requires_grad_()
    network(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amin() > 0
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_images_stay_as_they_were():
    images = random_images(1, 3, 8, 8)
    before = images.clone()
    vgg19_features("block2_conv1", None)(images)
    assert torch.equal(images, before)


def test_evaluation_mode_is_never_left():
    network = nn.Sequential(Vgg19Features(layer="block2_conv1")).train()
    assert network.training
    assert not any(module.training for module in network[0].modules())


def test_preprocessing_moves_with_the_network_but_is_no_weight():
    network = Vgg19Features(layer="block1_conv2").to(dtype=torch.float64, device="meta")
    assert all(buffer.is_meta and buffer.dtype == torch.float64 for buffer in network.buffers())
    assert len(list(network.buffers())) == 2


def test_random_weights_are_the_same_whatever_the_seed_and_leave_it_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = vgg19_features("block2_conv1", None).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = vgg19_features("block2_conv1", None).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    shallow = vgg19_features("block1_conv2", None).state_dict()
    assert all(torch.equal(first[name], shallow[name]) for name in shallow)


def test_random_weights_are_the_same_on_every_machine():
    weights = vgg19_features("block2_conv1", None).state_dict()
    last = [weights[f"features.{layer}.weight"][-1, -1, -1].tolist() for layer in (0, 2, 5)]
    assert last[0] == pytest.approx([-0.163288, -0.019250, 0.086797], abs=1e-6)
    assert last[1] == pytest.approx([-0.023912, 0.094851, -0.083349], abs=1e-6)
    assert last[2] == pytest.approx([-0.002341, -0.048401, 0.038655], abs=1e-6)


def test_random_weights_are_he_normal():
    for module in Vgg19Features(layer="block2_conv1").features:
        if isinstance(module, nn.Conv2d):
            scaled = module.weight.flatten() * (module.in_channels * 9 / 2) ** 0.5
            assert scaled.std().item() == pytest.approx(1, rel=0.05)
            assert scaled.mean().item() == pytest.approx(0, abs=0.05)
            assert scaled.square().square().mean().item() == pytest.approx(3, rel=0.15)  # a normal's fourth moment
            assert not module.bias.any()


@pytest.mark.parametrize("zipped", [True, False], ids=["a zip file", "the older format"])
@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_read_from_a_file_of_all_of_vgg19(tmp_path, layer, zipped):
    weights = made_up_weights()
    path = saved(tmp_path / "vgg.pth", weights, _use_new_zipfile_serialization=zipped)
    read = vgg19_features(layer, path)
    for name, found in read.state_dict().items():
        assert torch.equal(found, weights[name])
    path.unlink()  # what was mapped is copied
    images = random_images(1, 3, 6, 6)
    plain = nn.functional.conv2d(
        (images + 1) / 2 / torch.tensor(DEVIATION).view(3, 1, 1)
        - (torch.tensor(MEAN) / torch.tensor(DEVIATION)).view(3, 1, 1),
        weights["features.0.weight"], weights["features.0.bias"], padding=1,
    ).relu()  # fmt: skip
    plain = nn.functional.conv2d(plain, weights["features.2.weight"], weights["features.2.bias"], padding=1).relu()
    if layer == "block2_conv1":
        plain = nn.functional.max_pool2d(plain, 2)
        plain = nn.functional.conv2d(plain, weights["features.5.weight"], weights["features.5.bias"], padding=1).relu()
    torch.testing.assert_close(read(images), plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("given", [False, True], ids=["random", "from a file"])
def test_shapes_alone_are_enough(tmp_path, given):
    path = saved(tmp_path / "vgg.pth", made_up_weights()) if given else None
    with FakeTensorMode():
        assert vgg19_features("block2_conv1", path)(torch.zeros(2, 3, 256, 256)).shape == (2, 128, 128, 128)


def test_a_file_without_the_wanted_layers_is_refused(tmp_path):
    weights = made_up_weights()
    del weights["features.5.weight"], weights["features.5.bias"]
    path = saved(tmp_path / "other.pth", weights)
    vgg19_features("block1_conv2", path)
    with pytest.raises(
        ValueError, match=r"other.pth .*features.5.weight is missing.*expected torchvision's VGG19.*128x64"
    ):
        vgg19_features("block2_conv1", path)


def test_a_file_of_another_network_is_refused(tmp_path):
    path = saved(tmp_path / "other.pth", {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(
        ValueError, match=r"features.0.weight is missing.*begins with conv1.weight\); expected torchvision"
    ):
        vgg19_features("block1_conv2", path)


@pytest.mark.parametrize(("value", "said"), [(torch.zeros(64, 3, 5, 5), "64x3x5x5"), ("words", "a str")])
def test_weights_of_other_shapes_are_refused(tmp_path, value, said):
    path = saved(tmp_path / "other.pth", {**made_up_weights(), "features.0.weight": value})
    with pytest.raises(ValueError, match=rf"features.0.weight is {said} .*expected .*features.0.weight 64x3x3x3"):
        vgg19_features("block1_conv2", path)


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04", None], ids=["empty", "text", "broken", "absent"])
def test_files_that_cannot_be_read_are_refused(tmp_path, content):
    path = tmp_path / "vgg.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"vgg.pth cannot be read as VGG19's weights \(\w+\); expected .*vgg19-dcbb9e9d.pth"
    ):
        vgg19_features("block1_conv2", path)


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds a list and no state dict; expected"):
        vgg19_features("block1_conv2", saved(tmp_path / "vgg.pth", [torch.zeros(3)]))


def test_a_file_that_would_execute_something_is_refused(tmp_path):
    path = saved(tmp_path / "vgg.pth", Vgg19Features(layer="block1_conv2"))  # a pickled object
    with pytest.raises(ValueError, match="cannot be read"):
        vgg19_features("block1_conv2", path)


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="from block1_conv2 or block2_conv1, not from 'block5_conv4': name one"):
        inspect.unwrap(Vgg19Features.__init__)(nn.Module(), layer="block5_conv4")
