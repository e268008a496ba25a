import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from posegen.batch import COLUMNS
from posegen.catalog import override, system, variants
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.reconstruction import l1
from posegen.stage import Canvas
from posegen.systems.pix2pix import CONDITION, PIX2PIX, PatchDiscriminator, UNet, halvings, normalisation
from posegen.training.step import build_trainer
from tests.systems.conftest import waves
from tests.systems.small import count, counts, double, outputs_of, terms_of, total, with_settings

SIZE = (64, 32)
CANVAS = Canvas(SIZE, Discs(radius=2.0))
DEEP = (64, 64)  # six halvings: the fewest with dropout


@pytest.fixture
def batch():
    return columns(SIZE)


def columns(size):
    """Two pairs in float64, as this system's stage reads them."""
    height, width = size
    joints = (waves((4, 18, 2), 3.0) + 1) / 2 * torch.tensor([width, height], dtype=torch.float64)
    poses = Discs(radius=2.0)(joints, waves((4, 18), 4.0) > -0.5, *size)
    return {
        "source_image": waves((2, 3, *size), 0.0),
        "target_image": waves((2, 3, *size), 1.0),
        "source_pose": poses[:2],
        "target_pose": poses[2:],
    }


def small_stage(variant="full", size=SIZE):
    (stage,) = system("pix2pix", "market1501", variant, size).stages
    return with_settings(stage, width=2, discriminator_width=2)


def bits(network):
    return [value.clone() for value in network.state_dict().values()]


@pytest.mark.parametrize(("channels", "expected"), [(3, 54_413_955), (21, 54_432_387), (CONDITION, 54_450_819)])
def test_the_released_u_nets_parameter_counts(channels, expected):
    with torch.device("meta"):
        assert count(UNet(channels=channels, width=64, depth=8, dropout=0.5)) == expected


@pytest.mark.parametrize(("channels", "expected"), [(6, 2_768_705), (24, 2_787_137), (CONDITION + 3, 2_805_569)])
def test_the_released_discriminators_parameter_counts(channels, expected):
    with torch.device("meta"):
        assert count(PatchDiscriminator(channels=channels, width=64, depth=3)) == expected


@pytest.mark.parametrize(
    ("dataset", "generator", "discriminator"),
    [("market1501", 29_280_899, 2_805_569), ("deepfashion", 54_450_819, 2_805_569), ("synthetic", 1_052_835, 52_945)],
)
def test_parameter_counts(dataset, generator, discriminator):
    assert counts(system("pix2pix", dataset)) == [{"generator": generator, "discriminator": discriminator}]


@pytest.mark.parametrize(
    ("depth", "side", "logits"), [(3, 256, 30), (3, 128, 14), (3, 64, 6), (3, 24, 1), (2, 64, 14), (1, 64, 30)]
)
def test_the_discriminators_patches(depth, side, logits):
    with torch.device("meta"):
        discriminator = PatchDiscriminator(channels=6, width=2, depth=depth)
        assert discriminator(torch.empty(1, 6, side, side)).shape == (1, 1, logits, logits)


@pytest.mark.parametrize(("depth", "seen"), [(1, 16), (2, 34), (3, 70)])
def test_what_a_logit_sees(depth, seen):
    """The pixels on which one logit depends. Normalisation, which sees the whole image, is taken out."""
    discriminator = PatchDiscriminator(channels=1, width=2, depth=depth).double()
    for index, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.GroupNorm):
            discriminator.layers[index] = nn.Identity()
        elif isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    image = torch.ones(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = discriminator(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, columns = image.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (seen, seen)
    assert len(rows) == seen * seen


@pytest.mark.parametrize(
    ("size", "times"),
    [((256, 256), 8), ((128, 64), 6), ((64, 32), 5), ((512, 512), 8), ((256, 160), 5), ((256, 176), 4), ((32, 32), 5)],
)
def test_halvings(size, times):
    assert halvings(size) == times


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 50), "size 100x50 .*multiples of 16, at least 32, such as 96x48 or 112x64"),
        ((128, 72), "such as 128x64 or 128x80"),
        ((250, 170), "such as 240x160 or 256x176"),
        ((32, 16), "such as 32x32;"),
        ((8, 8), "such as 32x32;"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused_with_sizes_that_can(size, message):
    with pytest.raises(ValueError, match=message):
        system("pix2pix", "folder", size=size)


def test_the_sizes_that_are_named_do_fit():
    for size in ((96, 48), (112, 64), (128, 80), (240, 160), (256, 176), (32, 32)):
        stage = small_stage(size=size)
        images = {name: torch.zeros(1, c, *size) for name, c in (("source_image", 3), ("target_image", 3))}
        images |= {name: torch.zeros(1, 18, *size) for name in ("source_pose", "target_pose")}
        networks = stage.networks(Canvas(size, Discs(radius=2.0)))
        assert outputs_of(stage, networks, images)["translated_image"].shape == (1, 3, *size)
        assert torch.isfinite(total(terms_of(stage, "discriminator", networks, images)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("discriminator_depth", 4, "leaves no patch of an image of 64x32; it must be at most 3"),
        ("discriminator_depth", 0, "it must be at least 1"),
        ("dropout", 1.0, "translation.dropout is 1.0; it must be at least 0 and less than 1"),
        ("l1_weight", -1.0, "it must be at least 0"),
    ],
)
def test_fields_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        override(system("pix2pix", "synthetic"), {f"translation.{field}": value})


@pytest.mark.parametrize("dataset", sorted(PIX2PIX.presets))
@pytest.mark.parametrize("variant", variants("pix2pix"))
def test_the_stage_is_wired(dataset, variant):
    assert system("pix2pix", dataset, variant).wiring_errors(set(COLUMNS)) == []


def test_published_settings():
    for dataset in ("market1501", "deepfashion"):
        (stage,) = system("pix2pix", dataset).stages
        assert (stage.width, stage.discriminator_width, stage.discriminator_depth) == (64, 64, 3)
        assert (stage.l1_weight, stage.dropout) == (100, 0.5)
        discriminator, generator = stage.players
        assert (discriminator.name, generator.name) == ("discriminator", "generator")
        for player in (discriminator, generator):
            assert (player.optimizer, player.lr, player.betas) == ("adam", 2e-4, (0.5, 0.999))
            steps = [round(share * stage.training.steps) for share in (0, 0.5, 0.75, 1)]
            assert [player.schedule.factor(step) for step in steps] == [1, 1, 0.5, 0]


@pytest.mark.parametrize("dataset", sorted(PIX2PIX.presets))
def test_the_conditional_gan_alone_is_played_at_one_rate(dataset):
    (full,), (alone,) = (system("pix2pix", dataset, variant).stages for variant in ("full", "cgan"))
    assert alone == with_settings(full, l1_weight=0.0, lr=alone.training.discriminator_lr)


@pytest.mark.parametrize("variant", variants("pix2pix"))
def test_every_variant_trains(variant, batch):
    stage = small_stage(variant)
    networks = double(stage, CANVAS)
    outputs = outputs_of(stage, networks, batch)
    assert {name: tuple(column.shape) for name, column in outputs.items()} == {"translated_image": (2, 3, *SIZE)}
    for player in stage.players:
        total(terms_of(stage, player.name, networks, batch)).backward()
        assert all(p.grad.abs().sum() > 0 for name in player.nets for p in networks[name].parameters())
        for network in networks.values():
            network.zero_grad()


def test_the_image_depends_on_every_column_of_the_condition(batch):
    stage = small_stage()
    networks = double(stage, CANVAS)
    image = outputs_of(stage, networks, batch)["translated_image"]
    assert image.abs().max() < 1
    for column in ("source_image", "source_pose", "target_pose"):
        changed = outputs_of(stage, networks, {**batch, column: -batch[column]})["translated_image"]
        assert not torch.allclose(changed, image)


@pytest.mark.parametrize("column", ["source_image", "source_pose", "target_pose", "target_image"])
def test_the_discriminator_sees_the_condition_with_the_image(column, batch):
    stage = small_stage()
    networks = double(stage, CANVAS)
    networks["generator"] = Still(waves((2, 3, *SIZE), 2.0))
    before = terms_of(stage, "discriminator", networks, batch)
    after = terms_of(stage, "discriminator", networks, {**batch, column: -batch[column]})
    assert not torch.allclose(after["real"].value, before["real"].value)
    assert torch.equal(after["fake"].value, before["fake"].value) == (column == "target_image")


class Still(nn.Module):
    """A generator that gives the same image whatever the condition."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, condition):
        return self.image


def test_a_image_does_not_depend_on_those_made_with_it(batch):
    """What instance normalisation gives: batch normalisation at the paper's batch of one."""
    stage = small_stage()
    networks = double(stage, CANVAS)
    alone = {name: value[:1] for name, value in batch.items()}
    first = outputs_of(stage, networks, batch)["translated_image"][:1]
    torch.testing.assert_close(outputs_of(stage, networks, alone)["translated_image"], first)


def test_normalisation_is_batch_normalisation_at_a_batch_of_one():
    layer, twin = normalisation(2).double(), nn.BatchNorm2d(2).double()
    layer.load_state_dict({"weight": torch.tensor([0.5, 2.0]), "bias": torch.tensor([1.0, -1.0])})
    twin.load_state_dict(layer.state_dict(), strict=False)
    features = waves((1, 2, 4, 6), 0.0)
    torch.testing.assert_close(layer(features), twin(features))


def test_an_undecided_discriminator_costs_log_two(batch):
    stage = small_stage()
    networks = double(stage, CANVAS)
    for parameter in networks["discriminator"].parameters():
        parameter.data.zero_()
    discriminator, generator = (terms_of(stage, player, networks, batch) for player in ("discriminator", "generator"))
    assert [term.value.item() for term in discriminator.values()] == pytest.approx([math.log(2)] * 2)
    assert generator["adversarial"].value.item() == pytest.approx(math.log(2))
    assert total(discriminator).item() == pytest.approx(math.log(2))  # 0.5 (real + fake)


@pytest.mark.parametrize(("variant", "weight"), [("full", 100.0), ("cgan", 0.0)])
def test_the_generators_loss(variant, weight, batch):
    stage = small_stage(variant)
    networks = double(stage, CANVAS)
    terms = terms_of(stage, "generator", networks, batch)
    expected = l1(outputs_of(stage, networks, batch)["translated_image"], batch["target_image"])
    torch.testing.assert_close(terms["l1"].value, expected)
    torch.testing.assert_close(total(terms), terms["adversarial"].value + weight * expected)


def test_each_move_changes_its_own_network_alone():
    trainer = build_trainer(small_stage(), CANVAS, seed=0, device=torch.device("cpu"))
    data = {name: column.float() for name, column in columns(SIZE).items()}
    before = {name: bits(network) for name, network in trainer.bare.items()}
    for step, (player, other) in enumerate((("discriminator", "generator"), ("generator", "discriminator"))):
        kept = bits(trainer.bare[other])
        only = next(each for each in trainer.stage.players if each.name == player)
        trainer._update(only, step, data)
        assert all(map(torch.equal, bits(trainer.bare[other]), kept))
        assert not any(map(torch.equal, bits(trainer.bare[player]), before[player]))


def test_initial_weights():
    torch.manual_seed(0)
    network = UNet(channels=CONDITION, width=16, depth=6, dropout=0.5)
    convolutions = torch.cat([p.flatten() for n, p in network.named_parameters() if p.ndim == 4])
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.GroupNorm)])
    offsets = torch.cat([p for n, p in network.named_parameters() if n.endswith("bias")])
    assert (convolutions.mean().item(), convolutions.std().item()) == pytest.approx((0, 0.02), abs=1e-4)
    assert (scales.mean().item(), scales.std().item()) == pytest.approx((1, 0.02), abs=3e-3)
    assert not offsets.any()


@pytest.mark.parametrize(("depth", "places"), [(4, []), (5, []), (6, [1]), (7, [1, 2]), (8, [1, 2, 3])])
def test_dropout_stands_between_the_innermost_and_the_fourth_block(depth, places):
    """Places on the way up, of which 0 is the innermost."""
    with torch.device("meta"):
        network = UNet(channels=3, width=64, depth=depth, dropout=0.5)
    found = [place for place, up in enumerate(network.up) if any(isinstance(m, nn.Dropout) for m in up)]
    assert found == places
    assert all(network.up[place][1].out_channels == 512 for place in places)


def test_dropout_is_the_only_noise_and_evaluation_has_none():
    stage, data = small_stage(size=DEEP), columns(DEEP)
    networks = double(stage, Canvas(DEEP, Discs(radius=2.0)))

    def draw():
        return outputs_of(stage, networks, data)["translated_image"]

    assert not torch.equal(draw(), draw())
    networks["generator"].eval()
    evaluated = draw()
    assert torch.equal(draw(), evaluated)
    still = with_settings(stage, dropout=0.0).networks(Canvas(DEEP, Discs(radius=2.0)))["generator"].double()
    still.load_state_dict(networks["generator"].state_dict())
    assert torch.equal(outputs_of(stage, {"generator": still}, data)["translated_image"], evaluated)


def test_without_a_block_for_dropout_there_is_no_noise(batch):
    stage = small_stage()
    networks = double(stage, CANVAS)
    assert torch.equal(*(outputs_of(stage, networks, batch)["translated_image"] for _ in range(2)))


# The terms of the second step of training, in float64 on the CPU. With 5 halvings there is no dropout, so that they
# depend on no random generator.
GOLDEN = {
    "full": {
        "discriminator/real": 0.97845918,
        "discriminator/fake": 0.47448376,
        "discriminator/total": 0.72647148,
        "discriminator/gradient": 0.77624308,
        "generator/adversarial": 0.93206567,
        "generator/l1": 0.72177523,
        "generator/total": 73.109589,
        "generator/gradient": 12.593643,
    },
    "cgan": {
        "discriminator/real": 0.97845918,
        "discriminator/fake": 0.47555178,
        "discriminator/total": 0.72700548,
        "discriminator/gradient": 0.77322616,
        "generator/adversarial": 0.92991108,
        "generator/l1": 0.72455329,
        "generator/total": 0.92991108,
        "generator/gradient": 0.22899396,
    },
}


@pytest.mark.parametrize("variant", variants("pix2pix"))
def test_golden_steps(variant, golden):
    stage = with_settings(small_stage(variant), lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage, CANVAS) == pytest.approx(GOLDEN[variant], rel=1e-5)


def test_the_guide_quotes_what_is_there():
    """docs/adding_a_paper.md walks through this system: each of its quotes is in the code, but for indentation."""
    root = Path(__file__).parents[2]
    files = ("posegen/systems/pix2pix.py", "posegen/catalog.py", "tune_spaces/pix2pix.py")
    code = [unindented((root / file).read_text()) for file in files]
    quotes = re.findall(
        r"^```python\n(.*?)^```$", (root / "docs/adding_a_paper.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert quotes
    assert [quote for quote in quotes if not any(unindented(quote) in text for text in code)] == []


def unindented(text):
    return "\n".join(line.strip() for line in text.strip().splitlines())
