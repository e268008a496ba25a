import math
import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from posegen.batch import COLUMNS
from posegen.catalog import override, system, variants
from posegen.data.geometry.pose_maps import Gaussians
from posegen.stage import Canvas, UsesPretrained
from posegen.systems.vsa import (
    VSA,
    Analogy,
    AnalogyGenerator,
    PoseDiscriminator,
    check_size,
    rests,
    unpooling_convolution,
)
from posegen.training.step import build_trainer
from tests.systems.conftest import waves
from tests.systems.small import CANVAS, SIZE, count, counts, double, outputs_of, terms_of, total, with_settings

CPU = torch.device("cpu")


def small_stage(variant="full", **fields) -> Analogy:
    (stage,) = system("vsa", "market1501", variant, SIZE).stages
    assert isinstance(stage, Analogy)
    return with_settings(stage, **{"width": 2, "discriminator_width": 2, "features": "random-vgg19", **fields})


def bits(network):
    return [value.clone() for value in network.state_dict().values()]


def by_hand(kernel, channels):
    """Weights and biases of a chain of convolutions."""
    return sum((kernel**2 * inner + 1) * outer for inner, outer in pairwise(channels))


@pytest.mark.parametrize(("joints", "expected"), [(32, 5_222_915), (18, 5_214_851)])
def test_the_generators_parameters_by_its_layers(joints, expected):
    """Layer by layer as model_analogy.py lists them; it has 32 joints."""
    image = by_hand(3, (3, 64, 64, 128, 128, 256, 256, 256))
    pose = by_hand(3, (joints, 64, 64, 128, 128, 256, 256, 256))
    decoded = by_hand(3, (256, 256, 256, 128, 128, 64, 64, 3))
    with torch.device("meta"):
        assert count(AnalogyGenerator(width=64, joints=joints)) == image + pose + decoded == expected


@pytest.mark.parametrize(
    ("size", "places", "expected"),
    [((128, 128), 8 * 8, 4_369_921), ((128, 64), 8 * 4, 4_353_537), ((256, 256), 16 * 16, 4_468_225)],
)
def test_the_discriminators_parameters_by_its_layers(size, places, expected):
    normalisation = 2 * (128 + 256 + 512)
    with torch.device("meta"):
        discriminator = PoseDiscriminator(size=size, width=64)
        assert discriminator(torch.empty(2, 3, *size), torch.empty(2, 18, *size)).shape == (2,)
    convolutions = by_hand(5, (3 + 18, 64, 128, 256, 512))
    assert count(discriminator) == convolutions + normalisation + 512 * places + 1 == expected


@pytest.mark.parametrize(("dataset", "discriminator"), [("market1501", 4_353_537), ("deepfashion", 4_468_225)])
def test_parameter_counts(dataset, discriminator):
    assert counts(system("vsa", dataset)) == [{"generator": 5_214_851, "discriminator": discriminator}]


def test_unpooling_and_deconvolving_is_one_transposed_convolution():
    """Against ops.py: UnPooling2x2ZeroFilled, then conv2d_transpose of stride 1."""
    layer, features = unpooling_convolution(3).double(), waves((2, 3, 4, 5), 0.0)
    unpooled = torch.zeros(2, 3, 8, 10, dtype=torch.float64)
    for row in range(4):
        for column in range(5):
            unpooled[:, :, 2 * row, 2 * column] = features[:, :, row, column]
    expected = F.conv_transpose2d(unpooled, layer.weight, layer.bias, stride=1, padding=1)
    torch.testing.assert_close(layer(features), expected)


def test_a_deconvolution_of_stride_one_is_a_convolution_with_its_kernel_turned():
    features, kernel = waves((1, 3, 4, 5), 0.0), waves((3, 2, 3, 3), 1.0)
    turned = kernel.transpose(0, 1).flip(2, 3)
    torch.testing.assert_close(F.conv_transpose2d(features, kernel, padding=1), F.conv2d(features, turned, padding=1))


def test_the_pose_encoder_is_shared_and_only_the_difference_counts(batch):
    """With the target pose equal to the source pose, the decoder sees the image's features alone."""
    generator = double(small_stage())["generator"]
    source, pose = batch["source_image"], batch["source_pose"]
    torch.testing.assert_close(generator(source, pose, pose), generator.decoder(generator.image_encoder(source)))
    before, after = generator.pose_encoder(batch["source_pose"]), generator.pose_encoder(batch["target_pose"])
    analogy = generator.decoder(generator.image_encoder(source) + after - before)
    torch.testing.assert_close(generator(source, batch["source_pose"], batch["target_pose"]), analogy)


def test_nothing_skips_the_bottleneck():
    """Three halvings: 16x16 features of 256 channels for 128x128 pixels."""
    with torch.device("meta"):
        generator = AnalogyGenerator(width=64)
        features = generator.image_encoder(torch.empty(1, 3, 128, 128))
        assert features.shape == (1, 256, 16, 16)
        assert generator.decoder(features).shape == (1, 3, 128, 128)


@pytest.mark.parametrize("size", [(128, 128), (128, 64), (64, 32), (256, 256), (256, 176), (32, 16)])
def test_sizes_that_fit(size):
    check_size(size)
    with torch.device("meta"):
        networks = small_stage().networks(Canvas(size, Gaussians(sigma=2.0)))
        given = [torch.empty(1, channels, *size) for channels in (3, 18, 18)]
        assert networks["generator"](*given).shape == (1, 3, *size)
        assert networks["discriminator"](*given[:2]).shape == (1,)


@pytest.mark.parametrize(
    ("size", "near"), [((100, 50), "96x48"), ((16, 16), "32x16"), ((128, 72), "128x64"), ((8, 8), "32x16")]
)
def test_sizes_that_do_not_fit_are_told_with_one_that_does(size, near):
    with pytest.raises(ValueError, match=f"multiples of 16, the height at least 32, such as {near}"):
        system("vsa", "folder", size=size)
    check_size(tuple(int(side) for side in near.split("x")))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("margin", 0.5, "analogy.margin is 0.5; it must be at least 0 and less than 0.5"),
        ("feature_weight", -1.0, "it must be at least 0"),
        ("adversarial_weight", -0.1, "it must be at least 0"),
    ],
)
def test_fields_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        override(system("vsa", "synthetic"), {f"analogy.{field}": value})


@pytest.mark.parametrize("name", [("vsa", "market1501", "predicted"), ("vsa", "marked1501")])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="There are: "):
        system(*name)


@pytest.mark.parametrize("dataset", [*sorted(VSA.presets), "synthetic-views"])
@pytest.mark.parametrize("variant", variants("vsa"))
def test_the_stage_is_wired(dataset, variant):
    assert system("vsa", dataset, variant).wiring_errors(set(COLUMNS)) == []


def test_published_settings():
    for dataset, sigma in (("market1501", 2.0), ("deepfashion", 4.0)):
        described = system("vsa", dataset)
        (stage,) = described.stages
        assert described.pose_maps == Gaussians(sigma=sigma)
        training = stage.training
        assert (training.steps, training.batch_size, training.flip) == (100_000, 8, False)
        assert (stage.width, stage.discriminator_width) == (64, 64)
        assert (stage.feature_weight, stage.adversarial_weight, stage.margin) == (1.0, 1.0, 0.3)
        assert [player.name for player in stage.players] == ["generator", "discriminator"]
        for player in stage.players:
            assert (player.optimizer, player.lr, player.betas, player.repeats) == ("adam", 1e-4, (0.5, 0.999), 1)
            assert player.schedule.factor(99_999) == 1


def test_what_stands_in_is_told():
    full, without = (system("vsa", "market1501", variant) for variant in ("full", "no-features"))
    assert isinstance(full.stages[0], UsesPretrained)
    assert full.stand_ins() == without.stand_ins() == []
    (words,) = override(full, {"analogy.features": "random-vgg19"}).stand_ins()
    assert "random-vgg19" in words
    assert "features" not in double(small_stage("no-features"))


@pytest.mark.parametrize("variant", variants("vsa"))
def test_every_variant_trains(variant, batch):
    stage = small_stage(variant)
    networks = double(stage)
    outputs = outputs_of(stage, networks, batch)
    assert {name: tuple(column.shape) for name, column in outputs.items()} == {"analogy_image": (2, 3, *SIZE)}
    assert outputs["analogy_image"].abs().max() <= 1
    for player in stage.players:
        total(terms_of(stage, player.name, networks, batch)).backward()
        for name in player.nets:
            # A bias before batch normalisation changes nothing, so its gradient may be zero.
            assert all(p.grad.abs().sum() > 0 for p in networks[name].parameters() if p.ndim > 1)
            networks[name].zero_grad()


def test_an_undecided_discriminator_costs_log_two(batch):
    stage = small_stage()
    networks = double(stage)
    for parameter in networks["discriminator"].parameters():
        parameter.data.zero_()
    discriminator, generator = (terms_of(stage, player, networks, batch) for player in ("discriminator", "generator"))
    assert [term.value.item() for term in discriminator.values()] == pytest.approx([math.log(2)] * 3)
    assert total(discriminator).item() == pytest.approx(2 * math.log(2))  # 1 + 0.5 + 0.5
    assert generator["adversarial"].value.item() == pytest.approx(math.log(2))


def test_the_discriminators_three_pairs(batch):
    """Real: target image, target pose. Fake: generated image. Mismatch: source image, still the target pose."""
    stage = small_stage()
    networks = double(stage)
    terms = terms_of(stage, "discriminator", networks, batch)
    images = {
        "real": batch["target_image"],
        "fake": outputs_of(stage, networks, batch)["analogy_image"],
        "mismatch": batch["source_image"],
    }
    for name, sign in (("real", 1), ("fake", -1), ("mismatch", -1)):
        logits = networks["discriminator"](images[name], batch["target_pose"])
        assert terms[name].value.item() == pytest.approx(F.softplus(-sign * logits).mean().item())


def test_the_generators_loss(batch):
    stage = small_stage(feature_weight=2.0, adversarial_weight=3.0)
    networks = double(stage)
    terms = terms_of(stage, "generator", networks, batch)
    made, wanted = outputs_of(stage, networks, batch)["analogy_image"], batch["target_image"]
    image = 0.5 * F.mse_loss(made, wanted)
    features = 0.5 * F.mse_loss(networks["features"](made), networks["features"](wanted))
    adversarial = F.softplus(-networks["discriminator"](made, batch["target_pose"])).mean()
    assert terms["image"].value.item() == pytest.approx(image.item())
    assert terms["features"].value.item() == pytest.approx(features.item())
    assert total(terms).item() == pytest.approx((image + 2 * features + 3 * adversarial).item())


def test_the_generator_measures_the_discriminators_errors(batch):
    stage = small_stage()
    networks = double(stage)
    discriminator, generator = (terms_of(stage, player, networks, batch) for player in ("discriminator", "generator"))
    for name in ("real", "fake", "mismatch"):
        assert generator[name].value.item() == pytest.approx(discriminator[name].value.item())
        assert generator[name].weight == 0


class Turns:
    """Who moves, as train_h36m.py keeps it: two flags that stay down until both are."""

    def __init__(self, margin):
        self.margin, self.discriminator, self.generator = margin, True, True

    def after(self, real, fake):
        if fake < self.margin or real < self.margin:
            self.discriminator = False
        if fake > 1 - self.margin or real > 1 - self.margin:
            self.generator = False
        if not self.discriminator and not self.generator:
            self.discriminator = self.generator = True


@pytest.mark.parametrize("margin", [0.3, 0.1, 0.45])
def test_turns_are_skipped_as_by_the_released_flags(margin):
    """Ours sees terms alone, and those of a player who rested are its last ones: over many steps, the same turns."""
    draw, flags, terms, seen = random.Random(0), Turns(margin), {}, set()
    for _ in range(2000):
        players = ("discriminator", "generator")
        moves = {player: not terms or not rests(terms, player=player, margin=margin) for player in players}
        assert moves == {"discriminator": flags.discriminator, "generator": flags.generator}
        seen.add(tuple(moves.values()))
        real, fake, mismatch = (draw.uniform(0.2, 0.8) if draw.random() < 0.8 else draw.random() for _ in range(3))
        flags.after(real, 0.5 * fake + 0.5 * mismatch)
        for player in (player for player, moved in moves.items() if moved):
            terms |= {f"{player}/real": real, f"{player}/fake": fake, f"{player}/mismatch": mismatch}
    assert seen == {(True, True), (True, False), (False, True)}


@pytest.mark.parametrize(
    ("discriminator", "generator", "resting"),
    [
        ((0.5, 0.5), (0.5, 0.5), []),
        ((0.2, 0.5), (0.2, 0.5), ["discriminator"]),
        ((0.5, 0.2), (0.5, 0.6), ["discriminator"]),
        ((0.5, 0.8), (0.5, 0.8), ["generator"]),
        ((0.2, 0.8), (0.2, 0.8), []),
        ((0.2, 0.5), (0.5, 0.8), []),  # the discriminator rested, and now the generator would stop too
        ((0.5, 0.5), (0.5, 0.1), []),  # the discriminator's own errors decide about the discriminator
    ],
)
def test_who_rests(discriminator, generator, resting):
    terms = {}
    for player, (real, fake) in (("discriminator", discriminator), ("generator", generator)):
        terms |= {f"{player}/real": real, f"{player}/fake": fake, f"{player}/mismatch": fake}
    assert [player for player in ("discriminator", "generator") if rests(terms, player=player, margin=0.3)] == resting


def test_a_player_who_rests_keeps_its_bits_and_moves_again_when_both_would_stop(batch):
    stage = small_stage()
    trainer = build_trainer(stage, CANVAS, seed=0, device=CPU)
    data = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    trainer.step(0, lambda: data)
    trainer.last_terms = dict.fromkeys([f"{p}/{e}" for p in trainer.bare for e in ("real", "fake", "mismatch")], 0.5)
    trainer.last_terms["discriminator/real"] = 0.1
    kept = bits(trainer.bare["discriminator"])
    terms = trainer.step(1, lambda: data)
    assert all(map(torch.equal, bits(trainer.bare["discriminator"]), kept))
    assert not any(name.startswith("discriminator/") for name in terms)
    trainer.last_terms["generator/fake"] = trainer.last_terms["generator/mismatch"] = 0.9
    assert any(name.startswith("discriminator/") for name in trainer.step(2, lambda: data))
    assert not all(map(torch.equal, bits(trainer.bare["discriminator"]), kept))


def test_margin_zero_lets_nobody_rest():
    assert [player.skip_when for player in small_stage(margin=0.0).players] == [None, None]


def test_each_move_changes_its_own_network_alone(batch):
    trainer = build_trainer(small_stage(), CANVAS, seed=0, device=CPU)
    data = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    for step, (player, other) in enumerate((("discriminator", "generator"), ("generator", "discriminator"))):
        kept, before = bits(trainer.bare[other]), bits(trainer.bare[player])
        trainer._update(next(each for each in trainer.stage.players if each.name == player), step, data)
        assert all(map(torch.equal, bits(trainer.bare[other]), kept))
        assert not all(map(torch.equal, bits(trainer.bare[player]), before))


def test_losses_under_autocast_are_float32(batch):
    stage = small_stage()
    networks = {name: network.float() for name, network in double(stage).items()}
    data = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    for player in ("discriminator", "generator"):
        exact = terms_of(stage, player, networks, data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = terms_of(stage, player, networks, data)
        total(terms).backward()
        for name, term in terms.items():
            assert term.value.dtype == torch.float32
            assert term.value.item() == pytest.approx(exact[name].value.item(), rel=0.1)


def test_initial_weights():
    torch.manual_seed(0)
    described = system("vsa", "synthetic")
    networks = described.stages[0].networks(described.canvas)
    first = networks["generator"].image_encoder[0].weight
    assert first.abs().max().item() == pytest.approx(math.sqrt(6 / (9 * (3 + 16))), rel=0.05)  # Xavier-uniform's limit
    assert networks["discriminator"].logit.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for network in networks.values():
        assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


# The terms of the second step of training, in float64 on the CPU, without resting.
GOLDEN = {
    "full": {
        "generator/image": 0.4266676,
        "generator/adversarial": 0.49657613,
        "generator/features": 1.3184663,
        "generator/real": 0.49597728,
        "generator/fake": 0.93985468,
        "generator/mismatch": 0.93455434,
        "generator/total": 2.2417102,
        "generator/gradient": 0.76398506,
        "discriminator/real": 0.49597728,
        "discriminator/fake": 0.93977767,
        "discriminator/mismatch": 0.93455434,
        "discriminator/total": 1.4331433,
        "discriminator/gradient": 2.2020191,
    },
    "no-features": {
        "generator/image": 0.41834405,
        "generator/adversarial": 0.49746892,
        "generator/real": 0.49545249,
        "generator/fake": 0.93757617,
        "generator/mismatch": 0.93656349,
        "generator/total": 0.91581297,
        "generator/gradient": 0.66215021,
        "discriminator/real": 0.49545249,
        "discriminator/fake": 0.93803358,
        "discriminator/mismatch": 0.93656349,
        "discriminator/total": 1.4327511,
        "discriminator/gradient": 2.5348662,
    },
}


@pytest.mark.parametrize("variant", variants("vsa"))
def test_golden_steps(variant, golden):
    stage = small_stage(variant, margin=0.0, lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN[variant], rel=1e-5)
