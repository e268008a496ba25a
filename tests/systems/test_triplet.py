import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posegen.batch import COLUMNS
from posegen.catalog import override, system, variants
from posegen.systems import pg2
from posegen.systems.triplet import TRIPLET, mean_score, wasserstein_critic_terms
from posegen.training.step import build_trainer
from tests.systems.small import CANVAS, SIZE, counts, double, outputs_of, terms_of, total, with_settings

TWO_STAGES = ("full", "g1+g2+d", "triplet", "wgan-triplet")


def small_stages(variant="full"):
    stages = system("triplet", "deepfashion", variant, SIZE).stages
    widths = {"coarse": {"width": 4, "discriminator_width": 4}, "refinement": {"width": 4, "critic_width": 4}}
    return [with_settings(stage, **widths[stage.name]) for stage in stages]


def small_refinement(variant="full", **fields):
    return with_settings(small_stages(variant)[1], **fields)


def game_of(stage):
    trainer = build_trainer(stage, CANVAS, seed=0, device=torch.device("cpu"))
    for network in trainer.bare.values():
        network.double()
    return trainer


def copies(networks):
    return {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}


def same(before, networks):
    return {name: all(map(torch.equal, before[name], net.parameters())) for name, net in networks.items()}


@pytest.mark.parametrize("dataset", ["market1501", "deepfashion"])
def test_parameter_counts_are_those_of_pg2(dataset):
    assert [list(found.values()) for found in counts(system("triplet", dataset))] == [
        list(found.values()) for found in counts(system("pg2", dataset))
    ]


def test_parameter_counts_of_the_papers_size():
    refinement = {"generator": 12_696_067, "critic": 10_896_257}
    assert counts(system("triplet", "deepfashion")) == [{"generator": 122_103_235}, refinement]
    pair = counts(system("triplet", "deepfashion", "g1+g2+d"))[1]["critic"]
    assert pair - refinement["critic"] == 3 * 64 * 5 * 5  # three channels more in the first layer


def test_published_settings():
    coarse, refinement = system("triplet", "deepfashion").stages
    assert [(s.training.steps, s.training.batch_size) for s in (coarse, refinement)] == [(40_000, 4), (25_000, 4)]
    assert (refinement.l1_weight, refinement.mask_weight, coarse.mask_weight) == (50, 1, 1)
    assert {player.lr for stage in (coarse, refinement) for player in stage.players} == {5e-5}
    critic, generator = refinement.players
    assert (critic.name, critic.optimizer, critic.betas[1]) == ("critic", "rmsprop", 0.99)
    assert (critic.repeats, critic.clip_weights) == (10, 0.01)
    assert (generator.name, generator.optimizer, generator.betas[1]) == ("generator", "rmsprop", 0.99)
    assert (generator.repeats, generator.clip_weights) == (1, None)


@pytest.mark.parametrize(("variant", "critic"), [("g1+g2+d", "pair"), ("triplet", "stack")])
def test_published_settings_of_the_ablations(variant, critic):
    coarse, refinement = system("triplet", "deepfashion", variant).stages
    assert (refinement.game, refinement.critic, refinement.l1_weight) == ("bce", critic, 50)
    for player in (*coarse.players, *refinement.players):
        assert (player.optimizer, player.lr, player.betas) == ("adam", 5e-5, (0.5, 0.999))
        assert (player.repeats, player.clip_weights) == (1, None)


@pytest.mark.parametrize("dataset", sorted(TRIPLET.presets))
@pytest.mark.parametrize("variant", variants("triplet"))
def test_the_stages_are_wired(dataset, variant):
    described = system("triplet", dataset, variant)
    assert described.wiring_errors(set(COLUMNS)) == []
    assert isinstance(described.stages[0], pg2.PoseIntegration)
    assert len(described.stages) == (1 if variant == "g1" else 2)


def test_the_critic_of_the_synthetic_people_has_no_normalisation_where_it_is_clipped():
    normalised = {v: system("triplet", "synthetic", v).stages[1].critic_normalised for v in TWO_STAGES}
    assert normalised == {"full": False, "g1+g2+d": True, "triplet": True, "wgan-triplet": False}
    assert counts(system("triplet", "synthetic")) == [{"generator": 734_931}, {"generator": 40_659, "critic": 262_721}]
    assert [list(found.values()) for found in counts(system("triplet", "synthetic", "triplet"))] == [
        list(found.values()) for found in counts(system("pg2", "synthetic"))
    ]


@pytest.mark.parametrize("dataset", sorted(TRIPLET.presets))
def test_full_is_the_last_row_of_the_papers_table(dataset):
    assert system("triplet", dataset).stages == system("triplet", dataset, "wgan-triplet").stages


@pytest.mark.parametrize("variant", variants("triplet"))
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
            weights = [p for name in player.nets for p in networks[name].parameters() if p.ndim > 1]
            assert all(weight.grad.abs().sum() > 0 for weight in weights)


@pytest.mark.parametrize(("field", "value"), [("critic_updates", 0), ("clip_weights", 0.0), ("l1_weight", -1.0)])
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"refinement\.{field} is {value}; it must be"):
        override(system("triplet"), {f"refinement.{field}": value})


# Losses


def test_the_wasserstein_losses_by_hand():
    real, fake, source = (torch.tensor(scores) for scores in ([1.0, 3.0], [2.0, 0.0], [-1.0, -3.0]))
    terms = wasserstein_critic_terms({"real": real, "fake": fake, "condition": source})
    # -0.5 (mean(1, 3) - mean(2, 0, -1, -3)) = -0.5 (2 + 0.5)
    assert total(terms).item() == -1.25
    assert {name: term.value.item() for name, term in terms.items()} == {"real": -2, "fake": 1, "condition": -2}
    assert total(wasserstein_critic_terms({"real": real, "fake": fake})).item() == -0.5  # -0.5 (2 - 1)


def test_a_mean_score_is_taken_in_float32():
    scores = torch.full((300,), 1.0, dtype=torch.bfloat16)
    scores[0] = 2.0
    assert mean_score(scores).item() == pytest.approx(301 / 300, rel=1e-6)  # bfloat16 would say 1 or 1.0078


def test_the_wasserstein_critic_minimises_the_poster_s_loss(batch):
    stage = small_refinement()
    networks = double(stage)
    refined = outputs_of(stage, networks, batch)["refined_image"].detach()
    scores = networks["critic"](torch.cat([batch["target_image"], refined, batch["source_image"]]))
    expected = -0.5 * (scores[:2].mean() - scores[2:].mean())
    torch.testing.assert_close(total(terms_of(stage, "critic", networks, batch)), expected)


def test_the_classifying_critic_minimises_the_poster_s_loss(batch):
    stage = small_refinement("triplet")
    networks = double(stage)
    refined = outputs_of(stage, networks, batch)["refined_image"].detach()
    scores = networks["critic"](torch.cat([batch["target_image"], refined, batch["source_image"]]))
    labels = torch.tensor([1.0, 1, 0, 0, 0, 0], dtype=torch.float64)
    costs = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    torch.testing.assert_close(
        total(terms_of(stage, "critic", networks, batch)), 0.5 * (costs[:2].mean() + costs[2:].mean())
    )


@pytest.mark.parametrize("variant", TWO_STAGES)
def test_the_generator_minimises_the_poster_s_loss(variant, batch):
    stage = small_refinement(variant, critic_normalised=False)  # so that an image's score is its own
    networks = double(stage)
    refined, target = outputs_of(stage, networks, batch)["refined_image"], batch["target_image"]
    judged = torch.cat([batch["source_image"], refined], 1) if variant == "g1+g2+d" else refined
    scores = networks["critic"](judged)
    adversarial = F.softplus(-scores).mean() if stage.game == "bce" else -scores.mean()
    expected = adversarial + 50 * ((refined - target).abs() * (1 + batch["target_pose_mask"])).mean()
    torch.testing.assert_close(total(terms_of(stage, "generator", networks, batch)), expected)


@pytest.mark.parametrize("variant", ["g1+g2+d", "triplet"])
def test_the_ablations_play_pg2s_game(variant, batch):
    ours = small_refinement(variant)
    theirs = pg2.DifferenceRefinement(
        width=4, discriminator_width=4, full_resolution_skip=True, discriminator=ours.critic, l1_weight=50
    )
    networks = double(ours)
    networks["discriminator"] = networks["critic"]
    for player, other in (("generator", "generator"), ("critic", "discriminator")):
        torch.testing.assert_close(
            total(terms_of(ours, player, networks, batch)),
            total(terms_of(theirs, other, networks, batch)),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize("variant", TWO_STAGES)
def test_the_adversarial_gradient_reaches_every_layer_of_the_generator(variant, batch):
    stage = small_refinement(variant)
    networks = double(stage)
    terms_of(stage, "generator", networks, batch)["adversarial"].value.backward()
    assert all(p.grad.abs().sum() > 0 for p in networks["generator"].parameters() if p.ndim > 1)


@pytest.mark.parametrize("negative", ["fake", "condition"])
def test_the_critic_learns_from_each_kind_of_negatives(negative, batch):
    stage = small_refinement()
    networks = double(stage)
    terms_of(stage, "critic", networks, batch)[negative].value.backward()
    assert all(p.grad.abs().sum() > 0 for p in networks["critic"].parameters() if p.ndim > 1)


def test_no_gradient_of_the_critics_loss_reaches_the_generator(batch):
    stage = small_refinement()
    networks = double(stage)
    total(terms_of(stage, "critic", networks, batch)).backward()
    assert all(p.grad is None for p in networks["generator"].parameters())


# The trainer


def shifted(batch, number):
    """Another batch for every number."""
    return {**batch, "target_image": batch["target_image"] * math.cos(number)}


def played(stage, batch, steps=1):
    """A trainer after some steps, the batches drawn, and what every call of the critic found, in order."""
    trainer, draws, found = game_of(stage), [], []

    def next_batch():
        draws.append(shifted(batch, len(draws)))
        return draws[-1]

    def look(critic, arguments):
        largest = max(p.abs().max().item() for p in critic.parameters())
        found.append((arguments[0].clone(), copies(trainer.bare), largest))

    trainer.bare["critic"].register_forward_pre_hook(look)
    for step in range(steps):
        trainer.step(step, next_batch)
    return trainer, draws, found


def test_ten_turns_of_the_critic_see_ten_batches(batch):
    _, draws, found = played(small_refinement(), batch)
    assert len(draws) == 11
    assert [torch.equal(shown[:2], draw["target_image"]) for (shown, *_), draw in zip(found, draws, strict=True)] == (
        [True] * 11
    )
    assert not any(torch.equal(draws[i]["target_image"], draws[j]["target_image"]) for i in range(11) for j in range(i))


def test_the_critics_turns_leave_the_generators_bits_alone(batch):
    stage = small_refinement()
    before = copies(game_of(stage).bare)
    trainer, _, found = played(stage, batch)
    *_, (_, weights, _) = found  # when the generator's own turn scores its images
    assert all(map(torch.equal, before["generator"], weights["generator"]))
    assert not any(torch.equal(a, b) for a, b in zip(before["critic"], weights["critic"], strict=True) if a.ndim > 1)
    assert same(weights, trainer.bare) == {"generator": False, "critic": True}


@pytest.mark.parametrize("normalised", [True, False])
def test_the_critics_weights_are_clipped_after_every_turn(normalised, batch):
    trainer, _, found = played(
        small_refinement(critic_normalised=normalised, lr=1e-2, discriminator_lr=1e-2), batch, steps=3
    )
    largest = [weight for *_, weight in found]
    assert largest[0] > 0.01  # as drawn
    assert max(largest[1:]) <= 0.01
    assert all(p.abs().max() <= 0.01 for p in trainer.bare["critic"].parameters())
    assert max(p.abs().max() for p in trainer.bare["generator"].parameters()) > 0.01


def test_a_critic_with_bce_is_not_clipped(batch):
    trainer, draws, _ = played(small_refinement("triplet"), batch)
    assert len(draws) == 2
    assert max(p.abs().max() for p in trainer.bare["critic"].parameters()) > 0.01


def test_stage_two_neither_holds_nor_changes_stage_ones_networks(batch):
    coarse, refinement = small_stages()
    networks = double(coarse)
    before = copies(networks)
    with torch.no_grad():
        column = outputs_of(coarse, networks, batch)["coarse_image"]
    trainer, *_ = played(refinement, {**batch, "coarse_image": column}, steps=2)
    assert same(before, networks) == {"generator": True}
    assert all(p.grad is None for p in networks["generator"].parameters())
    assert not any(isinstance(m, pg2.PoseIntegrator) for net in trainer.bare.values() for m in net.modules())


def test_a_critic_without_normalisation_scores_each_image_alone(batch):
    critic = double(small_refinement(critic_normalised=False))["critic"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    images = torch.cat([batch["source_image"], batch["target_image"]])
    torch.testing.assert_close(critic(images)[:2], critic(images[:2]))


# The terms of the second step of training, in float64 on the CPU.
GOLDEN_G1 = {
    "generator/l1": 2.0367143,
    "generator/mask_l1": 1.1866119,
    "generator/total": 3.2233262,
    "generator/gradient": 6.7084837,
}
GOLDEN = {
    "wgan-triplet": {
        "critic/real": -0.014141352,
        "critic/fake": 0.01022813,
        "critic/condition": 0.01084861,
        "critic/total": -0.0018014912,
        "critic/gradient": 0.091781548,
        "generator/adversarial": -0.010147754,
        "generator/l1": 0.7842952,
        "generator/mask_l1": 0.38334596,
        "generator/total": 58.37191,
        "generator/gradient": 44.353982,
    },
    "triplet": {
        "critic/real": 0.47380525,
        "critic/fake": 0.89935786,
        "critic/condition": 0.96676618,
        "critic/total": 0.70343363,
        "critic/gradient": 1.291064,
        "generator/adversarial": 0.55154109,
        "generator/l1": 0.80913067,
        "generator/mask_l1": 0.39272827,
        "generator/total": 60.644489,
        "generator/gradient": 43.415778,
    },
    "g1+g2+d": {
        "critic/real": 0.49912494,
        "critic/fake": 0.91888982,
        "critic/total": 0.70900738,
        "critic/gradient": 1.5524512,
        "generator/adversarial": 0.5411728,
        "generator/l1": 0.80913067,
        "generator/mask_l1": 0.39272827,
        "generator/total": 60.634121,
        "generator/gradient": 43.348294,
    },
}


def test_golden_steps_of_stage_one(golden):
    (stage,) = system("triplet", "deepfashion", "g1", SIZE).stages
    assert golden(with_settings(stage, width=2, latent=4, lr=1e-3)) == pytest.approx(GOLDEN_G1, rel=1e-5)


@pytest.mark.parametrize("variant", sorted(GOLDEN))
def test_golden_steps_of_stage_two(variant, golden):
    stage = small_refinement(variant, width=2, critic_width=2, lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN[variant], rel=1e-5)
