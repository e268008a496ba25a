import pytest
import torch
import torch.nn.functional as F

from posegen.batch import COLUMNS
from posegen.catalog import system, variants
from posegen.systems.pg2 import PG2, DifferenceRefinement, PoseIntegration, PoseIntegrator, coordinates
from tests.systems.small import CANVAS, SIZE, counts, double, outputs_of, terms_of, total, with_settings


def small_stages(variant="full"):
    stages = system("pg2", "market1501", variant, SIZE).stages
    return [with_settings(stage, width=4, discriminator_width=4) for stage in stages]


@pytest.mark.parametrize(
    ("dataset", "expected"), [("market1501", (70.8, 6.06, 4.32)), ("deepfashion", (122.1, 12.7, 10.9))]
)
def test_published_parameter_counts(dataset, expected):
    coarse, refinement = counts(system("pg2", dataset))
    found = coarse["generator"], refinement["generator"], refinement["discriminator"]
    assert [n / 1e6 for n in found] == pytest.approx(expected, rel=0.002)


def test_published_settings():
    coarse, refinement = system("pg2", "market1501").stages
    assert (coarse.training.steps, refinement.training.steps, coarse.training.batch_size, refinement.l1_weight) == (
        22_000,
        14_000,
        16,
        10,
    )
    assert (refinement.full_resolution_skip, refinement.discriminator) == (False, "stack-with-coarse")
    coarse, refinement = system("pg2", "deepfashion").stages
    assert (coarse.training.steps, refinement.training.steps, coarse.training.batch_size, refinement.l1_weight) == (
        30_000,
        20_000,
        8,
        50,
    )
    assert (refinement.full_resolution_skip, refinement.discriminator) == (True, "stack")
    for player in (*coarse.players, *refinement.players):
        assert (player.optimizer, player.lr, player.betas) == ("adam", 2e-5, (0.5, 0.999))


@pytest.mark.parametrize("dataset", sorted(PG2.presets))
@pytest.mark.parametrize("variant", variants("pg2"))
def test_the_stages_are_wired(dataset, variant):
    assert system("pg2", dataset, variant).wiring_errors(set(COLUMNS)) == []


def test_a_missing_column_is_named():
    errors = system("pg2").wiring_errors(set(COLUMNS) - {"target_pose_mask"})
    assert len(errors) == 2
    assert "stage 'coarse' reads 'target_pose_mask'" in errors[0]


@pytest.mark.parametrize("variant", variants("pg2"))
def test_every_variant_trains(variant, batch):
    for stage in small_stages(variant):
        networks = double(stage)
        outputs = outputs_of(stage, networks, batch)
        assert {name: tuple(column.shape) for name, column in outputs.items()} == dict.fromkeys(
            stage.writes, (2, 3, *SIZE)
        )
        assert sorted(name for player in stage.players for name in player.nets) == sorted(networks)
        for player in stage.players:
            total(terms_of(stage, player.name, networks, batch)).backward()
            assert any(p.grad.abs().sum() > 0 for name in player.nets for p in networks[name].parameters())


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ("g1-l1", {"l1": 1, "mask_l1": 0}),
        ("g1-mask", {"l1": 1, "mask_l1": 1}),
        ("g1-ce-l1", {"l1": 1, "mask_l1": 0}),
        ("g1-hme-l1", {"l1": 1, "mask_l1": 0}),
        ("g1+d", {"l1": 10, "mask_l1": 10, "adversarial": 1}),
    ],
)
def test_the_terms_of_one_stage_variants(variant, weights, batch):
    (stage,) = small_stages(variant)
    terms = terms_of(stage, "generator", double(stage), batch)
    assert {name: term.weight for name, term in terms.items()} == weights


@pytest.mark.parametrize(("embedding", "inputs"), [("maps", 21), ("coordinates", 3), ("heatmaps", 3)])
def test_the_pose_enters_where_its_embedding_says(embedding, inputs, batch):
    stage = with_settings(small_stages()[0], embedding=embedding)
    networks = double(stage)
    assert networks["generator"].encoder.stem.in_channels == inputs
    column = "target_joints" if embedding == "coordinates" else "target_pose"
    moved = {**batch, column: batch[column].flip(0)}
    before, after = (outputs_of(stage, networks, b)["coarse_image"] for b in (batch, moved))
    assert not torch.allclose(before, after)


def test_coordinates_by_hand():
    joints = torch.zeros(1, 18, 2)
    joints[0, 0], joints[0, 1], joints[0, 2] = torch.tensor([8.0, 8.0]), torch.tensor([16.0, 32.0]), torch.nan
    visible = torch.zeros(1, 18, dtype=torch.bool)
    visible[0, :2] = True
    numbers = coordinates(joints, visible, (32, 16))[0].tolist()
    assert numbers[:4] == [0.0, -0.5, 1.0, 1.0]
    assert numbers[4:] == [-1.0] * 32


def test_the_refined_image_is_the_coarse_one_and_a_difference(batch):
    stage = small_stages()[1]
    networks = double(stage)
    difference = networks["generator"](batch["coarse_image"], batch["source_image"])
    torch.testing.assert_close(outputs_of(stage, networks, batch)["refined_image"], batch["coarse_image"] + difference)


def test_the_generator_of_stage_two_minimises_what_is_published(batch):
    stage = small_stages()[1]
    networks = double(stage)
    target, mask = batch["target_image"], batch["target_pose_mask"]
    refined = outputs_of(stage, networks, batch)["refined_image"]
    stack = torch.cat([target, batch["source_image"], batch["coarse_image"], refined])
    adversarial = F.softplus(-networks["discriminator"](stack)[6:]).mean()
    expected = adversarial + 10 * ((refined - target).abs() * (1 + mask)).mean()
    torch.testing.assert_close(total(terms_of(stage, "generator", networks, batch)), expected)


def published_discriminator_loss(kind, discriminator, batch, refined):
    """Written out from the released code's description; two images a group."""
    source, target = batch["source_image"], batch["target_image"]
    if kind == "pair":
        logits = discriminator(torch.cat([torch.cat([source, target], 1), torch.cat([source, refined], 1)]))
        return 0.5 * F.softplus(-logits[:2]).mean() + 0.5 * F.softplus(logits[2:]).mean()
    coarse = [batch["coarse_image"]] if kind == "stack-with-coarse" else []
    logits = discriminator(torch.cat([target, source, refined, *coarse]))
    negatives = 0.25 * F.softplus(logits[2:4]).mean() + 0.25 * F.softplus(logits[4:6]).mean()
    return 0.5 * F.softplus(-logits[:2]).mean() + negatives


@pytest.mark.parametrize("kind", ["stack", "stack-with-coarse", "pair"])
def test_the_critic_minimises_what_is_published(kind, batch):
    stage = with_settings(small_stages()[1], discriminator=kind)
    networks = double(stage)
    refined = outputs_of(stage, networks, batch)["refined_image"].detach()
    expected = published_discriminator_loss(kind, networks["discriminator"], batch, refined)
    torch.testing.assert_close(total(terms_of(stage, "discriminator", networks, batch)), expected)


def test_the_coarse_image_takes_part_in_the_critics_statistics_but_in_no_loss(batch):
    stage = small_stages()[1]
    networks = double(stage)
    terms = terms_of(stage, "discriminator", networks, batch)
    assert terms["coarse"].weight == 0
    without = terms_of(with_settings(stage, discriminator="stack"), "discriminator", networks, batch)
    assert (terms["real"].value - without["real"].value).abs() > 1e-6


def played(stage, player, batch):
    """A stage's networks before and after one optimizer step of one player."""
    networks = double(stage)
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    optimizer = torch.optim.Adam([p for name in player.nets for p in networks[name].parameters()], lr=1e-2)
    total(terms_of(stage, player.name, networks, batch)).backward()
    optimizer.step()
    return {n: all(map(torch.equal, before[n], network.parameters())) for n, network in networks.items()}, networks


@pytest.mark.parametrize("stage", [*small_stages(), *small_stages("g1+d")], ids=["coarse", "refinement", "g1+d"])
def test_a_players_step_leaves_the_others_bits_alone(stage, batch):
    for player in stage.players:
        same, networks = played(stage, player, batch)
        assert same == {name: name not in player.nets for name in networks}


def test_no_gradient_of_the_critics_loss_reaches_the_generator(batch):
    stage = small_stages()[1]
    networks = double(stage)
    total(terms_of(stage, "discriminator", networks, batch)).backward()
    assert all(p.grad is None for p in networks["generator"].parameters())


def test_stage_two_neither_holds_nor_changes_stage_ones_networks(batch):
    coarse, refinement = small_stages()
    networks = double(coarse)
    before = [p.detach().clone() for p in networks["generator"].parameters()]
    with torch.no_grad():
        column = outputs_of(coarse, networks, batch)["coarse_image"]
    for player in refinement.players:
        played(refinement, player, {**batch, "coarse_image": column})
    assert all(map(torch.equal, before, networks["generator"].parameters()))
    assert not any(p.requires_grad and p.grad is not None for p in networks["generator"].parameters())
    assert not any(isinstance(m, PoseIntegrator) for net in refinement.networks(CANVAS).values() for m in net.modules())


# The terms of the second step of training, in float64 on the CPU.
GOLDEN_COARSE = {
    "generator/l1": 2.0367143,
    "generator/mask_l1": 1.1866119,
    "generator/total": 3.2233262,
    "generator/gradient": 6.7084837,
}
GOLDEN_REFINEMENT = {
    "generator/adversarial": 0.52744097,
    "generator/l1": 0.80913067,
    "generator/mask_l1": 0.39272827,
    "generator/total": 12.54603,
    "generator/gradient": 8.7508848,
    "discriminator/real": 0.47720191,
    "discriminator/fake": 0.89316314,
    "discriminator/condition": 0.96212238,
    "discriminator/coarse": 0.96501642,
    "discriminator/total": 0.70242232,
    "discriminator/gradient": 1.2737668,
}


def test_golden_steps_of_stage_one(golden):
    stage = with_settings(PoseIntegration(), width=2, latent=4, lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN_COARSE, rel=1e-5)


def test_golden_steps_of_stage_two(golden):
    stage = with_settings(DifferenceRefinement(), width=2, discriminator_width=2, lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN_REFINEMENT, rel=1e-5)
