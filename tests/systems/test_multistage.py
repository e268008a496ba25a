import dataclasses
import math

import pytest
import torch
from torch import nn

from posegen.batch import COLUMNS
from posegen.catalog import override, system
from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.losses.reconstruction import area_l1, l1
from posegen.stage import Canvas, player_terms
from posegen.systems.multistage.networks import (
    BackgroundNetwork,
    ForegroundNetwork,
    PoseNetwork,
    cut_out,
    level_widths,
    view_code,
)
from posegen.systems.multistage.stages import MULTISTAGE, networks_of
from posegen.training.loop import _warm_start, _with_outputs
from posegen.training.step import build_trainer
from tests.systems import small
from tests.systems.conftest import waves
from tests.systems.small import counts, total, with_settings

SIZE = (32, 16)
CANVAS = Canvas(SIZE, Gaussians(sigma=6.0))
SMALL = {"width": 4, "depth": 2, "discriminator_width": 4}
SMALL_JOINT = {
    "pose_width": 8, "foreground_width": 4, "foreground_depth": 2, "background_width": 4, "background_depth": 2,
    "discriminator_width": 4,
}  # fmt: skip


@pytest.fixture
def batch():
    """Two pairs in float64 with all that the stages read and write, those of earlier stages among it."""
    return columns()


def columns():
    frame = torch.tensor([16.0, 32.0], dtype=torch.float64)
    joints = {
        role: (waves((2, 18, 2), phase) + 1) / 2 * frame
        for role, phase in (("source", 6.0), ("target", 3.0), ("predicted", 3.2))
    }
    visible = {"source": waves((2, 18), 7.0) > -0.7, "target": waves((2, 18), 4.0) > -0.5}
    known = {**visible, "predicted": visible["source"]}
    maps = {f"{role}_pose": Gaussians(sigma=2.0)(joints[role], known[role], *SIZE) for role in joints}
    return {
        **{f"{role}_joints": values for role, values in joints.items()},
        **{f"{role}_visible": values for role, values in visible.items()},
        **maps,
        "rotation": torch.tensor([40.0, -175.0], dtype=torch.float64),
        "source_image": waves((2, 3, *SIZE), 0.0),
        "target_image": waves((2, 3, *SIZE), 1.0),
        "foreground_image": waves((2, 3, *SIZE), 2.0),
        "source_person_mask": (waves((2, 1, *SIZE), 8.0) > 0.3).double(),
        "target_person_mask": (waves((2, 1, *SIZE), 5.0) > 0.3).double(),
    }


def multistage(dataset="human36m", variant="full", size=None):
    return system("multistage", dataset, variant, size)


def small_stages(variant="full"):
    fields = {"pose": {"width": 8, "dropout": 0.0}, "joint": SMALL_JOINT}
    stages = multistage("human36m", variant, SIZE).stages
    return {stage.name: with_settings(stage, **fields.get(stage.name, SMALL)) for stage in stages}


def double(stage):
    return small.double(stage, CANVAS)


def terms_of(stage, player, nets, batch, canvas=CANVAS):
    return player_terms(stage, canvas, player, nets, batch)


def bits(networks):
    return [value.clone() for network in networks.values() for value in network.state_dict().values()]


class Seen(nn.Module):
    """A discriminator that remembers what it was shown."""

    def forward(self, images):
        self.images = images
        return images.mean(dim=(1, 2, 3))


# --- what there is


def test_parameter_counts():
    described = multistage("human36m", "joint")
    found = dict(zip((stage.name for stage in described.stages), counts(described), strict=True))
    stages = {name: found[name] for name in ("pose", "foreground", "background")}
    assert stages == PARAMETERS
    assert sorted(found["joint"].values()) == sorted(n for own in stages.values() for n in own.values())


PARAMETERS = {
    "pose": {"generator": 4_285_476},
    "foreground": {"generator": 23_632_067, "discriminator": 10_925_057},
    "background": {"generator": 54_425_603, "foreground_discriminator": 10_925_057, "image_discriminator": 10_896_257},
}


@pytest.mark.parametrize("dataset", [*sorted(MULTISTAGE.presets), "synthetic-views", "views"])
@pytest.mark.parametrize("variant", MULTISTAGE.variants)
def test_the_stages_are_wired(dataset, variant):
    described = multistage(dataset, variant)
    assert described.wiring_errors(set(COLUMNS)) == []
    (error, *_) = described.wiring_errors(set(COLUMNS) - {"rotation"})
    assert "stage 'pose' reads 'rotation'" in error


def test_each_stage_reads_the_prediction_of_the_one_before():
    described = multistage("synthetic-views")
    assert [stage.name for stage in described.stages] == ["pose", "foreground", "background"]
    assert [described.stages_before(index) for index in range(3)] == [[], [0], [0, 1]]
    for stage in described.stages[1:]:
        assert "predicted_pose" in stage.reads
        assert not {"target_pose", "target_joints"} & set(stage.reads)
    assert (described.image, described.joints) == ("composed_image", "predicted_joints")


def test_only_the_networks_of_a_variant_exist():
    found = {
        variant: {stage.name: sorted(stage.networks(CANVAS)) for stage in small_stages(variant).values()}
        for variant in MULTISTAGE.variants
    }
    full = {
        "pose": ["generator"],
        "foreground": ["discriminator", "generator"],
        "background": ["foreground_discriminator", "generator", "image_discriminator"],
    }
    joint = ["background_foreground_discriminator", "background_generator", "background_image_discriminator"]
    assert found == {
        **dict.fromkeys(("full", "global-l1", "one-branch", "concatenated"), full),
        "no-adversarial": {**full, "foreground": ["generator"]},
        "one-stage": {"pose": ["generator"], "whole": ["discriminator", "generator"]},
        "one-critic": {**full, "background": ["generator", "image_discriminator"]},
        "joint": {**full, "joint": [*joint, "foreground_discriminator", "foreground_generator", "pose_generator"]},
    }


def test_the_drawing_of_poses_reaches_the_stages_that_predict_joints(batch):
    described = override(multistage("human36m", "full", SIZE), {"pose_maps.sigma": 3.5, "pose.width": 8})
    stage = described.stages[0]
    outputs = stage.outputs(described.canvas, small.double(stage, described.canvas), batch)
    expected = Gaussians(sigma=3.5)(outputs["predicted_joints"], batch["source_visible"], *SIZE)
    assert torch.equal(outputs["predicted_pose"], expected)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("foreground.alpha_f", -1.0, "it must be at least 0"),
        ("background.beta_b", -1.0, "it must be at least 0"),
        ("foreground.backdrop", 1.5, "it must be at least -1 and at most 1"),
        ("pose.blocks", 0, "it must be at least 1"),
        ("background.depth", 0, "it must be at least 1"),
        ("foreground.fusion", "sum", "one of analogy, concatenation, one-branch"),
    ],
)
def test_fields_out_of_range_are_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        override(system("multistage", "synthetic-views"), {path: value})


def test_a_size_that_cannot_be_halved_is_refused_with_sizes_that_can():
    with pytest.raises(ValueError, match="256x160 or 256x192"):
        multistage("human36m", size=(256, 176))


@pytest.mark.parametrize(
    ("size", "depth", "widths"),
    [((256, 256), 5, [4, 8, 16, 32, 32]), ((64, 32), 8, [4, 8, 16, 32, 32]), ((256, 160), 8, [4, 8, 16, 32, 32])],
)
def test_level_widths(size, depth, widths):
    assert level_widths(size, width=4, depth=depth) == widths


# --- what they do


@pytest.mark.parametrize("variant", MULTISTAGE.variants)
def test_every_variant_trains(variant, batch):
    for stage in small_stages(variant).values():
        networks = double(stage)
        assert set(stage.outputs(CANVAS, networks, batch)) == set(stage.writes)
        for player in stage.players:
            total(terms_of(stage, player.name, networks, batch)).backward()
            for name in player.nets:
                assert all(p.grad is not None and p.grad.isfinite().all() for p in networks[name].parameters())
                assert all(p.grad.abs().sum() > 0 for p in networks[name].parameters() if p.ndim > 1)
            for network in networks.values():
                network.zero_grad()


@pytest.mark.parametrize("stage", ["foreground", "background", "joint"])
def test_a_move_changes_its_own_networks_alone(stage):
    trainer = build_trainer(small_stages("joint")[stage], CANVAS, seed=0, device=torch.device("cpu"))
    data = {name: value.float() if value.is_floating_point() else value for name, value in columns().items()}
    for player in trainer.stage.players:
        own = {name: trainer.bare[name] for name in player.nets}
        others = {name: network for name, network in trainer.bare.items() if name not in own}
        before, kept = bits(own), bits(others)
        trainer._update(player, 0, data)
        assert all(map(torch.equal, bits(others), kept))
        assert not all(map(torch.equal, bits(own), before))


def test_the_view_code_is_the_true_angle():
    code = view_code(torch.tensor([0.0, 90.0, -90.0, 180.0, 30.0]))
    expected = [[0, 1], [1, 0], [-1, 0], [0, -1], [0.5, math.sqrt(3) / 2]]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", ["pose", "background", "whole"])
def test_the_rotation_matters(stage, batch):
    described = {**small_stages("one-stage"), **small_stages()}[stage]
    networks, column = double(described), described.writes[0]
    before = described.outputs(CANVAS, networks, batch)[column]
    turned = described.outputs(CANVAS, networks, {**batch, "rotation": batch["rotation"] + 90})[column]
    assert not torch.allclose(before, turned)


def test_the_pose_loss_by_hand(batch):
    """A joint that is off by 3 and 4 pixels, in units of 16: 25 / 256; one unknown to either counts nothing."""
    stage = small_stages()["pose"]
    known = torch.ones(2, 18, dtype=torch.bool)
    seen = {**batch, "source_visible": known.clone(), "target_visible": known.clone()}
    seen["source_visible"][0, 1], seen["target_visible"][1, 2] = False, False
    predicted = seen["target_joints"].clone()
    predicted[0, 0] += torch.tensor([3.0, -4.0])
    predicted[0, 1] += 100
    predicted[1, 2] += 100
    terms = stage.loss(CANVAS, "generator", {}, seen, {"predicted_joints": predicted})
    assert terms["squared_distance"].value.item() == pytest.approx(25 / 256 / 2)  # two pairs
    assert terms["squared_distance"].weight == 1
    assert terms["pixels"].value.item() == pytest.approx(5 / 34)
    assert terms["pixels"].weight == 0


def test_an_unknown_joint_may_be_anything(batch):
    stage = small_stages()["pose"]
    networks = double(stage)
    lost = {name: value.clone() for name, value in batch.items()}
    for role in ("source", "target"):
        lost[f"{role}_joints"][~batch[f"{role}_visible"]] = torch.nan
    made, same = stage.outputs(CANVAS, networks, batch), stage.outputs(CANVAS, networks, lost)
    assert all(torch.equal(made[name], same[name]) for name in stage.writes)
    loss = total(terms_of(stage, "generator", networks, lost))
    assert loss.item() == total(terms_of(stage, "generator", networks, batch)).item()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in networks["generator"].parameters())


def test_joints_known_in_the_prediction_are_those_of_the_source(batch):
    stage = small_stages()["pose"]
    maps = stage.outputs(CANVAS, double(stage), batch)["predicted_pose"]
    assert not maps[~batch["source_visible"]].any()
    made = stage.outputs(CANVAS, double(stage), batch)
    expected = CANVAS.draw(made["predicted_joints"], batch["source_visible"])
    assert torch.equal(made["predicted_pose"], expected)


def test_the_pose_network_keeps_its_precision_under_autocast():
    network = PoseNetwork(width=8, blocks=1, dropout=0.0)
    joints, view = torch.rand(2, 18, 2), torch.rand(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = network(joints, view)
    assert torch.equal(under, network(joints, view))


@pytest.mark.parametrize("variant", ["full", "one-stage", "joint"])
def test_losses_are_finite_under_autocast(variant):
    data = {name: value.float() if value.is_floating_point() else value for name, value in columns().items()}
    for stage in small_stages(variant).values():
        networks = stage.networks(CANVAS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = [terms_of(stage, player.name, networks, data) for player in stage.players]
        for own in terms:
            assert all(term.value.isfinite() and term.value.dtype == torch.float32 for term in own.values())


def test_the_foreground_is_the_formula():
    """F_t* = f_dec(f_pose(P_t*) - f_pose(P_s) + f_img(F_s)), with each encoder called by itself."""
    torch.manual_seed(0)
    network = ForegroundNetwork(size=SIZE, width=4, depth=2, fusion="analogy").double()
    image, source, target = (waves((2, channels, *SIZE), channels) for channels in (3, 18, 18))
    target = target.flip(0)
    encoded, own, wanted = network.image_encoder(image), network.pose_encoder(source), network.pose_encoder(target)
    expected = network.decoder(wanted[-1] - own[-1] + encoded[-1], wanted[:-1])
    torch.testing.assert_close(network(image, source, target), expected)
    still = network.decoder(encoded[-1], own[:-1])
    torch.testing.assert_close(network(image, source, source), still)


@pytest.mark.parametrize("fusion", ["analogy", "concatenation", "one-branch"])
def test_the_foreground_depends_on_all_that_it_is_given(fusion):
    torch.manual_seed(0)
    network = ForegroundNetwork(size=SIZE, width=4, depth=2, fusion=fusion).double()
    given = [waves((2, channels, *SIZE), phase) for phase, channels in enumerate((3, 18, 18))]
    made = network(*given)
    assert made.shape == (2, 3, *SIZE)
    for place in range(3):
        changed = [-value if place == k else value for k, value in enumerate(given)]
        assert not torch.allclose(network(*changed), made)


def test_a_image_does_not_depend_on_those_made_with_it(batch):
    for stage in small_stages("joint").values():
        networks = double(stage)
        alone = stage.outputs(CANVAS, networks, {name: value[:1] for name, value in batch.items()})
        for name, column in stage.outputs(CANVAS, networks, batch).items():
            torch.testing.assert_close(column[:1], alone[name])


def test_a_person_is_cut_out_before_the_backdrop(batch):
    mask = batch["source_person_mask"]
    cut = cut_out(batch["source_image"], mask, -0.25)
    assert torch.equal(cut[mask.expand_as(cut) == 1], batch["source_image"][mask.expand_as(cut) == 1])
    assert set(cut[mask.expand_as(cut) == 0].tolist()) == {-0.25}


def test_what_lies_behind_the_source_person_is_not_seen(batch):
    stage = small_stages()["foreground"]
    networks, mask = double(stage), batch["source_person_mask"]
    before = stage.outputs(CANVAS, networks, batch)["foreground_image"]
    behind = {**batch, "source_image": batch["source_image"] * mask - 0.7 * (1 - mask)}
    assert torch.equal(stage.outputs(CANVAS, networks, behind)["foreground_image"], before)
    person = {**batch, "source_image": batch["source_image"] * (1 - mask)}
    assert not torch.allclose(stage.outputs(CANVAS, networks, person)["foreground_image"], before)


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_both_pairs_of_the_foreground_discriminator_carry_the_predicted_pose(player, batch):
    """The real pair as well: with P_t instead of P_t* this fails."""
    stage = dataclasses.replace(small_stages()["foreground"], backdrop=-0.5)
    networks = {**double(stage), "discriminator": Seen()}
    terms_of(stage, player, networks, batch)
    real, fake = networks["discriminator"].images.chunk(2)
    assert not torch.allclose(batch["predicted_pose"], batch["target_pose"])
    assert torch.equal(real[:, 3:], batch["predicted_pose"])
    assert torch.equal(fake[:, 3:], batch["predicted_pose"])
    assert torch.equal(real[:, :3], cut_out(batch["target_image"], batch["target_person_mask"], -0.5))
    assert torch.equal(fake[:, :3], stage.outputs(CANVAS, networks, batch)["foreground_image"])


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_what_the_two_discriminators_of_stage_three_see(player, batch):
    stage = small_stages()["background"]
    networks = {**double(stage), "foreground_discriminator": Seen(), "image_discriminator": Seen()}
    terms_of(stage, player, networks, batch)
    made, target, mask = (stage.outputs(CANVAS, networks, batch)["composed_image"], batch["target_image"],
                          batch["target_person_mask"])  # fmt: skip
    real, fake = networks["foreground_discriminator"].images.chunk(2)
    assert torch.equal(real, torch.cat([target * mask, batch["predicted_pose"]], dim=1))
    assert torch.equal(fake, torch.cat([made * mask, batch["predicted_pose"]], dim=1))
    assert torch.equal(networks["image_discriminator"].images, torch.cat([target, made]))


def test_the_discriminator_of_one_stage_sees_whole_images_with_the_predicted_pose(batch):
    stage = small_stages("one-stage")["whole"]
    networks = {**double(stage), "discriminator": Seen()}
    terms_of(stage, "discriminator", networks, batch)
    real, fake = networks["discriminator"].images.chunk(2)
    made = stage.outputs(CANVAS, networks, batch)["composed_image"]
    assert torch.equal(real, torch.cat([batch["target_image"], batch["predicted_pose"]], dim=1))
    assert torch.equal(fake, torch.cat([made, batch["predicted_pose"]], dim=1))


@pytest.mark.parametrize(
    ("variant", "stage", "discriminators"),
    [("full", "foreground", 1), ("full", "background", 2), ("one-critic", "background", 1), ("one-stage", "whole", 1)],
)
def test_undecided_discriminators_cost_log_two(variant, stage, discriminators, batch):
    described = small_stages(variant)[stage]
    networks = double(described)
    for name, network in networks.items():
        if name != "generator":
            for parameter in network.parameters():
                parameter.data.zero_()
    own = terms_of(described, "discriminator", networks, batch)
    assert len(own) == 2 * discriminators
    assert total(own).item() == pytest.approx(2 * discriminators * math.log(2))
    terms = terms_of(described, "generator", networks, batch)
    adversarial = [term for name, term in terms.items() if name.endswith("adversarial")]
    assert [term.value.item() for term in adversarial] == pytest.approx([math.log(2)] * discriminators)
    assert {term.weight for term in adversarial} == {1.0}


def test_the_losses_on_images(batch):
    """Weights alpha and beta on the parts by area; "global-l1" has their sum on the whole foreground."""
    wanted, mask = cut_out(batch["target_image"], batch["target_person_mask"], 0.0), batch["target_person_mask"]
    for variant in ("full", "global-l1", "no-adversarial"):
        stage = dataclasses.replace(small_stages(variant)["foreground"], alpha_f=3.0, beta_f=5.0)
        networks = double(stage)
        made = stage.outputs(CANVAS, networks, batch)["foreground_image"]
        terms = terms_of(stage, "generator", networks, batch)
        parts = 3 * area_l1(made, wanted, mask) + 5 * area_l1(made, wanted, 1 - mask)
        expected = 8 * l1(made, wanted) if variant == "global-l1" else parts
        adversarial = terms.pop("adversarial").value if variant != "no-adversarial" else None
        assert (adversarial is None) == (len(stage.players) == 1)
        torch.testing.assert_close(total(terms), expected)
    stage = dataclasses.replace(small_stages()["background"], alpha_b=3.0, beta_b=5.0)
    networks = double(stage)
    made, terms = (
        stage.outputs(CANVAS, networks, batch)["composed_image"],
        terms_of(stage, "generator", networks, batch),
    )
    own = {name: term for name, term in terms.items() if name.endswith("l1")}
    expected = 3 * area_l1(made, batch["target_image"], mask) + 5 * area_l1(made, batch["target_image"], 1 - mask)
    torch.testing.assert_close(total(own), expected)


@pytest.mark.parametrize("filled", [0.0, 1.0])
def test_images_without_person_or_without_background_cost_no_nan(filled, batch):
    masks = {name: torch.full_like(batch[name], filled) for name in ("source_person_mask", "target_person_mask")}
    for name in ("foreground", "background"):
        stage = small_stages()[name]
        networks = double(stage)
        terms = terms_of(stage, "generator", networks, {**batch, **masks})
        assert terms["background_l1" if filled else "foreground_l1"].value.item() == 0
        total(terms).backward()
        assert all(p.grad.isfinite().all() for p in networks["generator"].parameters())


# --- how the stages hang together


def test_stage_three_learns_from_stage_two_and_leaves_it_alone(batch):
    stages = small_stages()
    networks = {name: double(stage) for name, stage in stages.items()}
    given = {name: batch[name] for name in batch if not name.startswith(("predicted", "foreground"))}

    def gradients():
        before = bits(networks["foreground"])
        earlier = [(stages[name], networks[name]) for name in ("pose", "foreground")]
        seen = _with_outputs(dict(given), CANVAS, earlier, torch.device("cpu"))
        for network in networks["background"].values():
            network.zero_grad()
        for player in ("generator", "discriminator"):
            total(terms_of(stages["background"], player, networks["background"], seen)).backward()
        assert all(map(torch.equal, bits(networks["foreground"]), before))
        assert all(p.grad is None for p in networks["foreground"]["generator"].parameters())
        return {
            name: torch.cat([p.grad.flatten() for p in network.parameters()])
            for name, network in networks["background"].items()
        }

    before = gradients()
    for parameter in networks["foreground"]["generator"].parameters():
        parameter.data += 0.1
    after = gradients()
    assert not any(torch.allclose(before[name], after[name]) for name in before)


def joint_game():
    """The joint stage, started from three stages' networks."""
    stages = small_stages("joint")
    networks = {name: double(stage) for name, stage in stages.items() if name != "joint"}
    trainer = build_trainer(stages["joint"], CANVAS, seed=0, device=torch.device("cpu"))
    for network in trainer.bare.values():
        network.double()
    _warm_start(stages["joint"].starts_from, trainer, networks)
    return stages, networks, trainer


def test_joint_training_starts_where_the_three_stages_ended(batch):
    stages, networks, trainer = joint_game()
    assert set(stages["joint"].starts_from) == set(trainer.bare)
    joint, seen = stages["joint"].outputs(CANVAS, trainer.networks, batch), dict(batch)
    for name in ("pose", "foreground", "background"):
        seen |= stages[name].outputs(CANVAS, networks[name], seen)
        for column in stages[name].writes:
            torch.testing.assert_close(joint[f"joint_{column}"], seen[column])
    for player in ("generator", "discriminator"):
        own = terms_of(stages["joint"], player, trainer.networks, batch)
        for name in ("pose", "foreground", "background"):
            if player == "generator" or name != "pose":
                for term, (value, weight) in terms_of(stages[name], player, networks[name], seen).items():
                    torch.testing.assert_close(own[f"{name}_{term}"].value, value)
                    assert own[f"{name}_{term}"].weight == weight * (100 if name == "pose" else 1)


@pytest.mark.parametrize(("drawing", "reached"), [(Gaussians(sigma=2.0), True), (Discs(radius=2.0), False)])
def test_joint_losses_of_images_reach_the_pose_transformer_through_gaussians(drawing, reached, batch):
    stages, _, trainer = joint_game()
    stage = dataclasses.replace(stages["joint"], pose_weight=0.0)
    terms = terms_of(stage, "generator", trainer.networks, batch, Canvas(SIZE, drawing))
    total(terms).backward()
    gradients = [p.grad.abs().sum() for p in trainer.bare["pose_generator"].parameters()]
    assert (sum(gradients).item() > 0) == reached
    assert trainer.bare["foreground_generator"].decoder.image[0].weight.grad.abs().sum() > 0


def test_the_joint_stage_names_each_stages_networks():
    nets = {
        name: nn.Identity()
        for name in ("pose_generator", "background_foreground_discriminator", "foreground_discriminator")
    }
    assert set(networks_of("foreground", nets)) == {"discriminator"}
    assert set(networks_of("background", nets)) == {"foreground_discriminator"}


def test_planes_of_the_view_reach_every_pixel():
    torch.manual_seed(0)
    network = BackgroundNetwork(channels=6, size=SIZE, width=2, depth=1).double()
    given = waves((1, 6, *SIZE), 0.0)
    one, other = (network(given, torch.tensor([code], dtype=torch.float64)) for code in ((0.0, 1.0), (1.0, 0.0)))
    assert (one != other).all()


# The terms of the second step of training, in float64 on the CPU, without dropout: each stage and its variants.
GOLDEN = {
    "full pose": {
        "generator/squared_distance": 15.241169,
        "generator/pixels": 20.500198,
        "generator/total": 15.241169,
        "generator/gradient": 69.140125,
    },
    "full foreground": {
        "generator/adversarial": 0.47966754,
        "generator/foreground_l1": 0.32335478,
        "generator/background_l1": 0.61173588,
        "generator/total": 93.988739,
        "generator/gradient": 38.139216,
        "discriminator/real": 0.46984562,
        "discriminator/fake": 0.96468747,
        "discriminator/total": 1.4345331,
        "discriminator/gradient": 4.408161,
    },
    "no-adversarial foreground": {
        "generator/foreground_l1": 0.3233532,
        "generator/background_l1": 0.61173743,
        "generator/total": 93.509064,
        "generator/gradient": 38.135537,
    },
    "global-l1 foreground": {
        "generator/adversarial": 0.47970092,
        "generator/l1": 0.49504092,
        "generator/total": 99.487885,
        "generator/gradient": 54.230981,
        "discriminator/real": 0.46979314,
        "discriminator/fake": 0.96462542,
        "discriminator/total": 1.4344186,
        "discriminator/gradient": 4.4139938,
    },
    "one-branch foreground": {
        "generator/adversarial": 0.47375,
        "generator/foreground_l1": 0.3916465,
        "generator/background_l1": 0.51618606,
        "generator/total": 91.257004,
        "generator/gradient": 37.966848,
        "discriminator/real": 0.46644068,
        "discriminator/fake": 0.97466993,
        "discriminator/total": 1.4411106,
        "discriminator/gradient": 4.0754226,
    },
    "concatenated foreground": {
        "generator/adversarial": 0.47849584,
        "generator/foreground_l1": 0.32709849,
        "generator/background_l1": 0.61541557,
        "generator/total": 94.729904,
        "generator/gradient": 38.750451,
        "discriminator/real": 0.46917474,
        "discriminator/fake": 0.96708959,
        "discriminator/total": 1.4362643,
        "discriminator/gradient": 4.0331028,
    },
    "full background": {
        "generator/foreground_adversarial": 0.46964854,
        "generator/image_adversarial": 0.45350337,
        "generator/foreground_l1": 0.39324081,
        "generator/background_l1": 0.98262507,
        "generator/total": 138.50974,
        "generator/gradient": 49.287542,
        "discriminator/foreground_real": 0.47046757,
        "discriminator/foreground_fake": 0.9815343,
        "discriminator/image_real": 0.42157644,
        "discriminator/image_fake": 1.0048221,
        "discriminator/total": 2.8784003,
        "discriminator/gradient": 6.9988606,
    },
    "one-critic background": {
        "generator/image_adversarial": 0.45350337,
        "generator/foreground_l1": 0.39324081,
        "generator/background_l1": 0.98262507,
        "generator/total": 138.04008,
        "generator/gradient": 49.29106,
        "discriminator/image_real": 0.42158014,
        "discriminator/image_fake": 1.0048251,
        "discriminator/total": 1.4264052,
        "discriminator/gradient": 5.5912352,
    },
    "one-stage whole": {
        "generator/adversarial": 0.46203652,
        "generator/foreground_l1": 0.38620728,
        "generator/background_l1": 0.99325562,
        "generator/total": 138.40833,
        "generator/gradient": 39.198434,
        "discriminator/real": 0.46442786,
        "discriminator/fake": 0.99411792,
        "discriminator/total": 1.4585458,
        "discriminator/gradient": 5.0816408,
    },
    "joint joint": {
        "generator/pose_squared_distance": 15.241169,
        "generator/pose_pixels": 20.500198,
        "generator/foreground_adversarial": 0.49079138,
        "generator/foreground_foreground_l1": 0.32326311,
        "generator/foreground_background_l1": 0.61176753,
        "generator/background_foreground_adversarial": 0.48154446,
        "generator/background_image_adversarial": 0.44992,
        "generator/background_foreground_l1": 0.39201245,
        "generator/background_background_l1": 0.98848468,
        "generator/total": 1757.0922,
        "generator/gradient": 6914.5384,
        "discriminator/foreground_real": 0.48091474,
        "discriminator/foreground_fake": 0.94513071,
        "discriminator/background_foreground_real": 0.48209083,
        "discriminator/background_foreground_fake": 0.95968556,
        "discriminator/background_image_real": 0.41446614,
        "discriminator/background_image_fake": 1.0076606,
        "discriminator/total": 4.2899485,
        "discriminator/gradient": 7.6129416,
    },
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_steps(case, golden):
    variant, name = case.split()
    stage = small_stages(variant)[name]
    rates = {"lr": 1e-3} if name == "pose" or variant == "no-adversarial" else {"lr": 1e-3, "discriminator_lr": 1e-3}
    assert golden(with_settings(stage, **rates), CANVAS) == pytest.approx(GOLDEN[case], rel=1e-5)
