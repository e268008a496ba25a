import dataclasses
import math

import pytest
import torch
from torch import nn

from posegen.batch import COLUMNS
from posegen.catalog import override, system
from posegen.data.geometry.joints import MIRROR
from posegen.data.geometry.pose_maps import Gaussians
from posegen.stage import StepDecay
from posegen.systems.hourglass import (
    HOURGLASS,
    Estimation,
    Hourglass,
    Residual,
    StackedHourglass,
    decode,
    heat_map_loss,
    rotate,
)
from tests.systems.conftest import waves
from tests.systems.small import SIZE, count, counts, double, outputs_of, terms_of

READ = ("target_image", "target_joints", "target_visible")


def small(**fields):
    """A stage that a test can afford, without chance."""
    fixed = {"stacks": 2, "width": 8, "depth": 2, "stem_stride": 2, "rotation": 0.0, "scaling": 0.0}
    return Estimation(**{**fixed, **fields})


def hourglass(dataset, size=None):
    return system("hourglass", dataset, size=size)


def convolution(inputs, outputs, side):
    return inputs * outputs * side**2 + outputs


def residual(inputs, outputs):
    half = outputs // 2
    norms = 2 * (inputs + half + half)
    layers = convolution(inputs, half, 1) + convolution(half, half, 3) + convolution(half, outputs, 1)
    return norms + layers + (convolution(inputs, outputs, 1) if inputs != outputs else 0)


def by_hand(*, joints, stacks, width, depth):
    """What the released layers add up to: a level has three residuals, the innermost one four."""
    stem = convolution(3, width // 4, 7) + 2 * width // 4 + residual(width // 4, width // 2)
    stem += residual(width // 2, width // 2) + residual(width // 2, width)
    each = (3 * depth + 1) * residual(width, width)
    each += residual(width, width) + convolution(width, width, 1) + 2 * width + convolution(width, joints, 1)
    merges = convolution(width, width, 1) + convolution(joints, width, 1)
    return stem + stacks * each + (stacks - 1) * merges


@pytest.mark.parametrize(
    ("stacks", "joints", "published"), [(8, 16, 25_434_112), (2, 16, 6_570_400), (8, 18, 25_441_808)]
)
def test_the_published_forms_parameters(stacks, joints, published):
    """The released code has 32,819,328 and 8,429,088, with the skip convolutions that it never calls."""
    with torch.device("meta"):
        network = StackedHourglass(joints=joints, stacks=stacks, width=256, depth=4, stem_stride=4)
    assert count(network) == by_hand(joints=joints, stacks=stacks, width=256, depth=4) == published
    uncalled = convolution(256, 256, 1) * 14 * stacks + convolution(128, 128, 1)
    assert uncalled == {8: 7_385_216, 2: 1_858_688}[stacks]


@pytest.mark.parametrize(
    ("dataset", "expected"), [("market1501", 25_441_808), ("deepfashion", 25_441_808), ("synthetic", 342_020)]
)
def test_parameter_counts(dataset, expected):
    assert counts(hourglass(dataset)) == [{"estimator": expected}]


@pytest.mark.parametrize(
    ("size", "stride", "depth", "cells"),
    [
        ((256, 256), 4, 4, (64, 64)),
        ((256, 176), 4, 4, (64, 44)),
        ((128, 64), 2, 4, (64, 32)),
        ((128, 64), 4, 4, (32, 16)),
        ((64, 32), 2, 3, (32, 16)),
        ((36, 20), 4, 2, (9, 5)),
    ],
)
def test_a_heat_map_has_a_cell_for_each_stride(size, stride, depth, cells):
    with torch.device("meta"):
        network = StackedHourglass(joints=18, stacks=2, width=8, depth=depth, stem_stride=stride)
        assert network(torch.empty(1, 3, *size)).shape == (1, 2, 18, *cells)
    stage = small(stem_stride=stride, depth=depth)
    assert stage.heat_maps(torch.zeros(1, 18, 2), torch.ones(1, 18, dtype=torch.bool), size).shape[2:] == cells


@pytest.mark.parametrize(
    ("dataset", "size"), [("market1501", (128, 64)), ("deepfashion", (256, 256)), ("human36m", (256, 256))]
)
def test_published_settings(dataset, size):
    described = hourglass(dataset)
    (stage,) = described.stages
    assert (described.size, described.image, described.joints) == (size, "", "estimated_joints")
    assert (stage.stacks, stage.width, stage.depth, stage.sigma) == (8, 256, 4, 1)
    assert (stage.rotation, stage.scaling, stage.training.batch_size, stage.training.steps) == (30, 0.25, 16, 200_000)
    (player,) = stage.players
    assert (player.optimizer, player.lr, player.betas) == ("adam", 1e-3, (0.9, 0.999))
    rates = [player.lr * player.schedule.factor(step) for step in (0, 99_999, 100_000, 199_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 2e-4, 2e-4])


def test_step_decay():
    schedule = StepDecay(start=3, share=0.2)
    assert [schedule.factor(step) for step in range(5)] == [1, 1, 1, 0.2, 0.2]


@pytest.mark.parametrize("dataset", [*HOURGLASS.presets, "synthetic-views"])
def test_the_stage_is_wired(dataset):
    assert hourglass(dataset).wiring_errors(set(COLUMNS)) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (127, 64),
            "stem of stride 2 and hourglasses of depth 4: .*multiples of 2, at least 32, such as 128x64",
        ),
        ((126, 30), "such as 126x32"),
        ((258, 256), "multiples of 4, at least 64, such as 256x256"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(size, message):
    with pytest.raises(ValueError, match=message):
        hourglass("folder", size=size)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("width", 30, "estimation.width is 30; it must be a multiple of 4"),
        ("stacks", 0, "it must be at least 1"),
        ("depth", 5, "at least 64"),
        ("stem_stride", 3, "expected one of 2, 4"),
        ("rotation", 200.0, "at least 0 and at most 180"),
        ("scaling", 1.0, "less than 1"),
        ("sigma", 0.0, "greater than 0"),
    ],
)
def test_fields_out_of_range_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        override(system("hourglass", "synthetic"), {f"estimation.{path}": value})


def test_a_residual_of_zero_weights_is_the_skip():
    layer, features = Residual(8, 8).double(), waves((2, 8, 5, 3), 0.0)
    for parameter in layer.layers.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(layer(features), features)


@pytest.mark.parametrize("sides", [(8, 4), (7, 5), (9, 3)])
def test_an_hourglass_by_hand(sides):
    """With residuals that give their input: x, and the blocks' largest values of every level, repeated."""
    layer, features = Hourglass(width=2, depth=2).double(), waves((1, 2, *sides), 0.0)
    for module in layer.modules():
        if isinstance(module, Residual):
            for parameter in module.layers.parameters():
                nn.init.zeros_(parameter)
    expected = features.clone()
    for row in range(sides[0]):
        for column in range(sides[1]):
            for block in (2, 4):
                top, left = row // block * block, column // block * block
                expected[..., row, column] += features[..., top : top + block, left : left + block].amax(dim=(2, 3))
    torch.testing.assert_close(layer(features), expected)


def test_a_later_hourglass_sees_the_maps_and_the_features_of_the_one_before(batch):
    network = double(small())["estimator"].eval()
    before = network(batch["target_image"])
    for merge in (network.merge_maps[0], network.merge_features[0]):
        nn.init.zeros_(merge.weight)
        after = network(batch["target_image"])
        assert torch.equal(after[:, 0], before[:, 0])
        assert not torch.allclose(after[:, 1], before[:, 1])
        before = after


def test_heat_maps_have_their_peak_in_the_cell_of_the_joint():
    """Pixels 0 and 1 are the first cell, whose centre is at pixel 1/2; 4.5 is the centre of the third."""
    joints = torch.tensor([0.5, 4.5], dtype=torch.float64).expand(1, 18, 2)
    maps = small().heat_maps(joints, torch.ones(1, 18, dtype=torch.bool), SIZE)
    assert maps[0, 0, 2, 0] == 1
    assert maps[0, 0, 2, 1].item() == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 1, 1].item() == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("stride", [2, 4])
def test_decoding_gives_back_the_joints_to_a_quarter_of_a_cell(stride):
    stage = small(stem_stride=stride)
    inside = torch.tensor([31.0 - stride, 63.0 - stride], dtype=torch.float64)
    joints = (waves((5, 18, 2), 0.0) + 1) / 2 * inside + stride / 2 - 0.5
    found, confidence = decode(stage.heat_maps(joints, torch.ones(5, 18, dtype=torch.bool), (64, 32)), stride)
    cells = (joints + 0.5) / stride - 0.5
    border = (cells < 0.5) | (cells > torch.tensor([32, 64]) / stride - 1.5)
    errors = (found - joints).abs() / stride
    assert errors[~border].max() <= 0.25 + 1e-9
    assert errors[border].max() <= 0.5 + 1e-9
    assert confidence.min() > math.exp(-0.25) - 1e-9  # the peak is at most half a cell away, in x and in y
    assert confidence.max() <= 1


@pytest.mark.parametrize(
    ("peak", "neighbours", "expected"),
    [
        ((3, 5), {}, (3.0, 5.0)),
        ((3, 5), {(4, 5): 0.5}, (3.25, 5.0)),
        ((3, 5), {(2, 5): 0.5, (3, 6): 0.2, (3, 4): 0.1}, (2.75, 5.25)),
        ((0, 5), {(1, 5): 0.5, (0, 4): 0.5}, (0.0, 4.75)),  # at the border there are no two neighbours
        ((7, 15), {(6, 15): 0.5, (7, 14): 0.5}, (7.0, 15.0)),
    ],
)
@pytest.mark.parametrize("stride", [2, 4])
def test_a_joint_moves_a_quarter_of_a_cell_to_the_higher_neighbour(peak, neighbours, expected, stride):
    maps = torch.zeros(1, 18, 16, 8, dtype=torch.float64)
    for (x, y), value in {**neighbours, peak: 0.75}.items():
        maps[0, 4, y, x] = value
    joints, confidence = decode(maps, stride)
    assert joints[0, 4].tolist() == [(cell + 0.5) * stride - 0.5 for cell in expected]
    assert (confidence[0, 4], confidence[0, 0]) == (0.75, 0)


def test_confidence_stays_between_nought_and_one():
    maps = torch.full((1, 18, 4, 4), -0.5)
    maps[0, 1, 2, 2] = 1.5
    assert decode(maps, 2)[1].unique().tolist() == [0, 1]


def test_the_last_hourglass_is_decoded(batch):
    stage = small(mirrored_too=False)
    networks = double(stage)
    networks["estimator"].eval()
    joints, confidence = decode(networks["estimator"](batch["target_image"])[:, 1], 2)
    outputs = outputs_of(stage, networks, {"target_image": batch["target_image"]})
    assert list(outputs) == list(stage.writes)
    assert torch.equal(outputs["estimated_joints"], joints)
    assert torch.equal(outputs["estimated_confidence"], confidence)


@pytest.mark.parametrize("mirrored_too", [True, False])
def test_with_the_mirrored_image_the_estimate_mirrors_exactly(batch, mirrored_too):
    stage = small(mirrored_too=mirrored_too)
    networks = double(stage)
    networks["estimator"].eval()
    one, other = (
        outputs_of(stage, networks, {"target_image": image})["estimated_joints"]
        for image in (batch["target_image"], batch["target_image"].flip(3))
    )
    mirrored = other[:, MIRROR] * torch.tensor([-1, 1]) + torch.tensor([SIZE[1] - 1, 0])
    assert torch.allclose(mirrored, one) == mirrored_too


def test_the_loss_by_hand(batch):
    """Networks that give nothing: the mean square of the wanted maps over the joints that are known."""
    stage = small(stacks=3)
    wanted = Gaussians(sigma=1.0)((batch["target_joints"] + 0.5) / 2 - 0.5, batch["target_visible"], 16, 8)
    squares = [wanted[image, joint].square().mean() for image, joint in batch["target_visible"].nonzero().tolist()]
    terms = terms_of(stage, "generator", {"estimator": Nothing(3)}, batch)
    assert list(terms) == ["stack_1", "stack_2", "stack_3"]
    for term in terms.values():
        torch.testing.assert_close(term.value, torch.stack(squares).mean())
        assert term.weight == pytest.approx(1 / 3)


class Nothing(nn.Module):
    """Maps of zeros."""

    def __init__(self, stacks):
        super().__init__()
        self.stacks = stacks

    def forward(self, images):
        batch, _, height, width = images.shape
        return images.new_zeros(batch, self.stacks, 18, height // 2, width // 2)


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_unknown_joints_are_left_out_of_the_loss(batch, rotation):
    stage = small(rotation=rotation)
    networks = double(stage)

    def losses(joints):
        torch.manual_seed(1)
        terms = terms_of(stage, "generator", networks, {**batch, "target_joints": joints})
        return torch.stack([term.value for term in terms.values()])

    known, joints = batch["target_visible"], batch["target_joints"]
    assert 0 < known.sum() < known.numel()
    before = losses(joints)
    assert torch.equal(losses(torch.where(known[..., None], joints, torch.nan)), before)
    assert not torch.allclose(losses(torch.where(known[..., None], joints + 4, joints)), before)


def test_a_batch_without_any_known_joint_costs_nothing():
    maps, none = waves((2, 3, 18, 4, 4), 0.0), torch.zeros(2, 18, dtype=torch.bool)
    assert torch.equal(heat_map_loss(maps, waves((2, 18, 4, 4), 1.0), none), torch.zeros(3, dtype=torch.float64))


def test_the_losses_gradient():
    wanted, visible = waves((2, 18, 3, 2), 1.0), waves((2, 18), 2.0) > 0
    given = waves((2, 2, 18, 3, 2), 0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: heat_map_loss(maps, wanted, visible), (given,))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turning_by_right_angles_moves_pixels_as_they_are(quarters):
    images, angle = waves((1, 3, 6, 6), 0.0), torch.tensor([quarters * math.pi / 2], dtype=torch.float64)
    joints = torch.tensor([[1.0, 4.0]], dtype=torch.float64).expand(1, 18, 2)
    moved, places = rotate(images, joints, angle, torch.ones_like(angle))
    torch.testing.assert_close(moved, images.rot90(-quarters, (2, 3)))  # clockwise
    x, y = places[0, 0].round().long().tolist()
    torch.testing.assert_close(moved[0, :, y, x], images[0, :, 4, 1])


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.25), (0.0, 0.75), (30.0, 1.0), (-20.0, 1.2), (17.0, 0.8)])
def test_joints_stay_on_what_they_are_on(degrees, scale):
    """A blob in the image is found where the joint has gone, in images that are no square."""
    joints = torch.tensor([[20.0, 40.0], [14.0, 25.0]], dtype=torch.float64).repeat(9, 1)[None]
    images = Gaussians(sigma=2.0)(joints, torch.ones(1, 18, dtype=torch.bool), 64, 32)[:, :3]
    angle, factor = (torch.tensor([value], dtype=torch.float64) for value in (math.radians(degrees), scale))
    moved, places = rotate(images, joints, angle, factor)
    weights = moved[0, :2] / moved[0, :2].sum(dim=(1, 2), keepdim=True)
    rows, columns = torch.arange(64, dtype=torch.float64), torch.arange(32, dtype=torch.float64)
    centres = torch.stack([(weights.sum(1) * columns).sum(1), (weights.sum(2) * rows).sum(1)], dim=1)
    torch.testing.assert_close(centres, places[0, :2], atol=0.05, rtol=0)
    assert moved[0, 0].sum() / images[0, 0].sum() == pytest.approx(scale**2, rel=0.02)


def test_images_vary_within_the_settings():
    stage = Estimation(rotation=30.0, scaling=0.25)
    middle = torch.tensor([31.5, 31.5])
    joints = torch.stack([middle, middle + torch.tensor([0.0, 10.0])] * 9)[None].expand(200, 18, 2)
    torch.manual_seed(0)
    images, moved = stage.vary(torch.ones(200, 3, 64, 64), joints)
    arms = moved[:, 1] - moved[:, 0]
    torch.testing.assert_close(moved[:, 0], middle.expand(200, 2))
    scales, angles = arms.norm(dim=1) / 10, torch.rad2deg(torch.atan2(-arms[:, 0], arms[:, 1]))
    for values, low, high in ((scales, 0.75, 1.25), (angles, -30, 30)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    assert images.min() == 0  # grey, where the image does not reach
    still = dataclasses.replace(stage, rotation=0.0, scaling=0.0)
    assert all(map(torch.equal, still.vary(images, moved), (images, moved)))


def test_every_convolution_learns(batch):
    stage = small()
    networks = double(stage)
    torch.stack(
        [term.weight * term.value for term in terms_of(stage, "generator", networks, batch).values()]
    ).sum().backward()
    kernels = [parameter for parameter in networks["estimator"].parameters() if parameter.ndim == 4]
    assert kernels
    assert all(kernel.grad.abs().sum() > 0 for kernel in kernels)


def test_the_source_image_is_not_looked_at(batch):
    stage = small()
    networks = double(stage)
    terms_of(stage, "generator", networks, {name: batch[name] for name in READ})


def test_a_image_does_not_depend_on_those_estimated_with_it(batch):
    stage = small()
    networks = double(stage)
    networks["estimator"].eval()
    both, alone = (outputs_of(stage, networks, {"target_image": batch["target_image"][:n]}) for n in (2, 1))
    torch.testing.assert_close(both["estimated_joints"][:1], alone["estimated_joints"])


# The terms of the second step of training, in float64 on the CPU, without turning and scaling.
GOLDEN = {
    "generator/stack_1": 1.21454394,
    "generator/stack_2": 0.174218938,
    "generator/total": 0.694381416,
    "generator/gradient": 1.72543006,
}


def test_golden_steps(golden):
    assert golden(small()) == pytest.approx(GOLDEN, rel=1e-5)
