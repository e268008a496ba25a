import dataclasses
import math
from pathlib import Path

import pytest
import torch

from posegen.batch import COLUMNS
from posegen.catalog import system, variants
from posegen.data.geometry.limb_warps import limb_warps
from posegen.data.geometry.pose_maps import Gaussians
from posegen.losses.reconstruction import l1, nearest_neighbour_loss
from posegen.stage import UsesPretrained
from posegen.systems.defgan import DEFGAN, Generation, SampleNorm, halvings, patch_grid
from posegen.training.step import build_trainer
from tests.systems.small import CANVAS, SIZE, counts, double, outputs_of, terms_of, total, with_settings

CPU = torch.device("cpu")
# A person of 32x16 pixels who stands, and one who strides with an arm raised; the second's left ear is hidden.
STANDING = (
    (8, 3), (8, 7), (5, 7), (4, 12), (4, 16), (11, 7), (12, 12), (12, 16), (6, 16),
    (6, 22), (6, 29), (10, 16), (10, 22), (10, 29), (7, 2), (9, 2), (6, 3), (10, 3),
)  # fmt: skip
STRIDING = (
    (7, 4), (7, 8), (4, 8), (2, 11), (1, 14), (10, 8), (13, 6), (14, 2), (6, 17),
    (4, 23), (2, 29), (9, 17), (11, 22), (13, 28), (6, 3), (8, 3), (5, 4), (9, 4),
)  # fmt: skip


@pytest.fixture
def batch(batch):
    """The usual images with two people whose limbs are all there, in each other's pose."""
    poses = torch.tensor([STANDING, STRIDING], dtype=torch.float64)
    visible = torch.ones(2, 18, dtype=torch.bool)
    visible[1, 17] = False
    maps = Gaussians(sigma=1.5)
    swapped = {"source_joints": poses, "source_visible": visible}
    swapped |= {"target_joints": poses.flip(0), "target_visible": visible.flip(0)}
    drawn = {f"{r}_pose": maps(swapped[f"{r}_joints"], swapped[f"{r}_visible"], *SIZE) for r in ("source", "target")}
    return batch | swapped | drawn


def small_stage(variant="full", **fields) -> Generation:
    (stage,) = system("defgan", "market1501", variant).stages
    assert isinstance(stage, Generation)
    small = {"width": 2, "discriminator_width": 2, "discriminator_halvings": 3, "features": "random-vgg19"}
    return with_settings(stage, **{**small, **fields})


@pytest.mark.parametrize(
    ("dataset", "variant", "generator"),
    [
        ("market1501", "full", 61_109_085),
        ("deepfashion", "full", 82_080_611),
        ("market1501", "baseline", 36_072_533),
        ("deepfashion", "baseline", 48_655_449),
        ("market1501", "dsc", 61_109_085),
        ("deepfashion", "perc", 82_080_611),
    ],
)
def test_parameter_counts(dataset, variant, generator):
    assert counts(system("defgan", dataset, variant)) == [{"generator": generator, "discriminator": 2_803_782}]


@pytest.mark.parametrize(("dataset", "patches"), [("market1501", 3 * 1), ("deepfashion", 7 * 7)])
def test_the_discriminators_patches(dataset, patches):
    described = system("defgan", dataset)
    (stage,) = described.stages
    assert math.prod(patch_grid(described.size, stage.discriminator_halvings)) == patches
    with torch.device("meta"):
        discriminator = stage.networks(described.canvas)["discriminator"]
        assert discriminator(torch.empty(2, 42, *described.size)).shape == (2, patches)


def test_published_settings():
    full, large = (system("defgan", dataset).stages[0] for dataset in ("market1501", "deepfashion"))
    assert (full.training.steps, full.training.batch_size, full.window, full.content_weight) == (90_000, 4, 3, 0.01)
    assert (large.training.steps, large.training.batch_size, large.window, large.content_weight) == (90_000, 2, 5, 0.01)
    assert full.content_layer == large.content_layer == "block1_conv2"
    for dataset in ("market1501", "deepfashion"):
        baseline, dsc, perc = (system("defgan", dataset, variant).stages[0] for variant in ("baseline", "dsc", "perc"))
        assert (baseline.skips, dsc.skips, perc.skips) == ("plain", "deformable", "deformable")
        assert [s.training.batch_size for s in (baseline, dsc, perc)] == [4, 4, 4]
        assert [(s.content_layer, s.window, s.content_weight) for s in (baseline, dsc, perc)] == [
            ("pixels", 1, 100.0), ("pixels", 1, 100.0), ("block2_conv1", 1, 0.5),
        ]  # fmt: skip
    for player in full.players:
        assert (player.optimizer, player.lr, player.betas, player.repeats) == ("adam", 2e-4, (0.5, 0.999), 1)
    assert [player.name for player in full.players] == ["discriminator", "generator"]
    assert [system("defgan", dataset).pose_maps.sigma for dataset in ("market1501", "deepfashion")] == [6.0, 6.0]


@pytest.mark.parametrize("dataset", sorted(DEFGAN.presets))
@pytest.mark.parametrize("variant", variants("defgan"))
def test_the_stage_is_wired(dataset, variant):
    assert system("defgan", dataset, variant).wiring_errors(set(COLUMNS)) == []


@pytest.mark.parametrize(
    ("size", "expected"), [((128, 64), 5), ((256, 256), 6), ((64, 32), 4), ((256, 176), 4), ((32, 16), 3)]
)
def test_halvings(size, expected):
    assert halvings(size) == expected


def test_the_crop_of_deepfashion_fits():
    described = system("defgan", "deepfashion", "full", (256, 176))
    patches = math.prod(patch_grid((256, 176), 5))
    with torch.device("meta"):
        networks = described.stages[0].networks(described.canvas)
        assert networks["discriminator"](torch.empty(1, 42, 256, 176)).shape == (1, patches)
        levels = networks["generator"].pose_encoder(torch.empty(1, 18, 256, 176))
    assert tuple(levels[-1].shape) == (1, 512, 16, 11)


@pytest.mark.parametrize("size", [(100, 50), (16, 16), (64, 36)])
def test_sizes_that_do_not_fit_are_told_with_one_that_does(size):
    with pytest.raises(ValueError, match=r"multiples of 8, the height at least 32, such as") as told:
        halvings(size)
    near = tuple(int(side) for side in str(told.value).rpartition(" ")[2].split("x"))
    assert halvings(near) >= 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": 4}, "must be odd"),
        ({"content_layer": "pixels"}, "1 for pixels"),
        ({"discriminator_halvings": 5}, "no patch is left"),
        ({"dropout": 1.5}, "generation.dropout is 1.5"),
        ({"content_weight": -1.0}, "generation.content_weight is -1"),
    ],
)
def test_settings_that_do_not_fit_are_told(fields, words):
    with pytest.raises(ValueError, match=words):
        small_stage(**fields).networks(CANVAS)


def test_the_norm_is_over_the_whole_sample():
    norm, features = SampleNorm(), torch.tensor([[1.0, 3.0], [10.0, 50.0]]).view(2, 2, 1, 1)
    expected = torch.tensor([[-1 / 1.001, 1 / 1.001], [-20 / 20.001, 20 / 20.001]]).view(2, 2, 1, 1)
    torch.testing.assert_close(norm(features), expected)
    norm.gain.data.fill_(2.0)
    norm.offset.data.fill_(0.5)
    torch.testing.assert_close(norm(features), 2 * expected + 0.5)


@pytest.mark.parametrize("variant", variants("defgan"))
def test_every_variant_trains(variant, batch):
    stage = small_stage(variant)
    networks = double(stage)
    outputs = outputs_of(stage, networks, batch)
    assert {name: tuple(column.shape) for name, column in outputs.items()} == {"generated_image": (2, 3, *SIZE)}
    assert outputs["generated_image"].abs().max() <= 1
    for player in stage.players:
        total(terms_of(stage, player.name, networks, batch)).backward()
        for name in player.nets:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in networks[name].parameters()), name


@pytest.mark.parametrize("fields", [{"aggregate": "average"}, {"interpolation": "nearest"}, {"geometry": "paper"}])
def test_every_way_of_deforming_trains_and_differs(fields, batch):
    usual, other = small_stage(dropout=0.0), small_stage(dropout=0.0, **fields)
    networks, others = double(usual), double(other)
    first, second = outputs_of(usual, networks, batch), outputs_of(other, others, batch)
    assert not torch.allclose(first["generated_image"], second["generated_image"])
    total(terms_of(other, "generator", others, batch)).backward()
    assert all(p.grad is not None for p in others["generator"].parameters())


def test_source_equals_target_leaves_the_positive_features(batch):
    """d(F) = max(F, 0) wherever the torso's mask is one, which is everywhere."""
    stage = small_stage()
    generator = double(stage)["generator"]
    joints, visible = batch["source_joints"], torch.ones(2, 18, dtype=torch.bool)
    warps = limb_warps(joints, visible, joints, visible, SIZE)
    assert warps.present.all()
    features = generator.appearance_encoder(torch.cat([batch["source_image"], batch["source_pose"]], dim=1))
    for level in features[:3]:
        torch.testing.assert_close(generator._deformed(level, warps), level.clamp(min=0), atol=1e-9, rtol=1e-9)


def test_the_person_moves_with_the_joints(batch):
    """A target pose moved by whole pixels moves the deformed features alike."""
    stage = small_stage()
    generator = double(stage)["generator"]
    visible, joints = batch["source_visible"], batch["source_joints"]
    moved = limb_warps(joints, visible, joints + torch.tensor([2.0, 0.0], dtype=torch.float64), visible, SIZE)
    features = torch.rand(2, 3, *SIZE, dtype=torch.float64)
    deformed = generator._deformed(features, moved)
    torch.testing.assert_close(deformed[..., 2:], features[..., :-2], atol=1e-6, rtol=1e-6)
    assert deformed[..., :2].abs().max() < 1e-6


def test_an_undecided_discriminator_costs_log_two(batch):
    stage = small_stage()
    networks = double(stage)
    for parameter in networks["discriminator"].parameters():
        parameter.data.zero_()
    terms = terms_of(stage, "discriminator", networks, batch) | terms_of(stage, "generator", networks, batch)
    assert [terms[name].value.item() for name in ("real", "fake", "adversarial")] == pytest.approx([math.log(2)] * 3)
    assert [terms[name].weight for name in ("real", "fake", "adversarial")] == [1, 1, 1]


@pytest.mark.parametrize("variant", variants("defgan"))
def test_the_content_loss_by_its_definition(variant, batch):
    stage = small_stage(variant, dropout=0.0)
    networks = double(stage)
    generated, target = outputs_of(stage, networks, batch)["generated_image"], batch["target_image"]
    features = networks.get("features", lambda images: images)
    expected = {
        "full": lambda: nearest_neighbour_loss(features(generated), features(target), window=3),
        "perc": lambda: l1(features(generated), features(target)),
    }.get(variant, lambda: l1(generated, target))
    content = terms_of(stage, "generator", networks, batch)["content"]
    torch.testing.assert_close(content.value, expected())
    assert content.weight == {"full": 0.01, "perc": 0.5}.get(variant, 100.0)


def test_features_are_fixed_and_only_where_the_content_loss_has_any():
    assert {variant: small_stage(variant).pretrained for variant in variants("defgan")} == {
        "full": "vgg19", "baseline": "", "dsc": "", "perc": "vgg19",
    }  # fmt: skip
    assert isinstance(small_stage(), UsesPretrained)
    assert small_stage("dsc").fixed_networks(Path()) == {}
    trainer = build_trainer(small_stage(), CANVAS, seed=0, device=CPU)
    assert sorted(trainer.bare) == ["discriminator", "generator"]
    assert sorted(trainer.networks) == ["discriminator", "features", "generator"]
    assert not any(p.requires_grad for p in trainer.networks["features"].parameters())
    assert not trainer.networks["features"].training


def test_a_random_network_in_its_stead_is_said():
    described = system("defgan")
    random = dataclasses.replace(described, stages=(small_stage(),))
    assert random.stand_ins() == [
        "the losses of stage 'generation' compare features of random-vgg19, a fixed random network: vgg19 is absent"
    ]
    assert described.stand_ins() == []
    assert dataclasses.replace(described, stages=(small_stage("dsc"),)).stand_ins() == []


@pytest.mark.parametrize(("player", "other"), [("discriminator", "generator"), ("generator", "discriminator")])
def test_a_move_leaves_the_others_networks_alone(player, other, batch):
    stage = small_stage()
    trainer = build_trainer(stage, CANVAS, seed=0, device=CPU)
    for network in trainer.networks.values():
        network.double()
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in trainer.networks.items()}
    trainer._update(next(p for p in stage.players if p.name == player), 0, batch)
    changed = {
        name: any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))
        for name, net in trainer.networks.items()
    }
    assert changed == {player: True, other: False, "features": False}


# The terms of the second step of training, in float64 on the CPU.
GOLDEN = {
    "full": {
        "discriminator/real": 0.69194627,
        "discriminator/fake": 0.69422257,
        "discriminator/total": 1.3861688,
        "discriminator/gradient": 0.0065546204,
        "generator/adversarial": 0.69387865,
        "generator/content": 41.304462,
        "generator/total": 1.1069232,
        "generator/gradient": 0.42357165,
    },
    "baseline": {
        "discriminator/real": 0.69167018,
        "discriminator/fake": 0.6946004,
        "discriminator/total": 1.3862705,
        "discriminator/gradient": 0.0053435389,
        "generator/adversarial": 0.69310802,
        "generator/content": 0.76981497,
        "generator/total": 77.674606,
        "generator/gradient": 51.495072,
    },
    "dsc": {
        "discriminator/real": 0.69194627,
        "discriminator/fake": 0.69422323,
        "discriminator/total": 1.3861694,
        "discriminator/gradient": 0.0064574415,
        "generator/adversarial": 0.69387978,
        "generator/content": 0.71307164,
        "generator/total": 72.001045,
        "generator/gradient": 65.393952,
    },
    "perc": {
        "discriminator/real": 0.69194627,
        "discriminator/fake": 0.69421887,
        "discriminator/total": 1.3861651,
        "discriminator/gradient": 0.00684791,
        "generator/adversarial": 0.69387102,
        "generator/content": 0.9269402,
        "generator/total": 1.1573411,
        "generator/gradient": 0.21491279,
    },
}


@pytest.mark.parametrize("variant", variants("defgan"))
def test_golden_steps(variant, golden):
    stage = small_stage(variant, dropout=0.0, lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN[variant], rel=1e-5)
