"""One training step: which player is updated, what changes, and that it is a function of the step."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from posegen.stage import Player, Term, Training
from posegen.training.step import build_trainer, random_seed
from tests.training.toy import CANVAS, tug

CPU = torch.device("cpu")


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1 for name in ("source_image", "target_image")}


def run_steps(trainer, steps: range) -> list[dict[str, torch.Tensor]]:
    """Carries out steps with batches that are a function of the draw's number."""
    terms = []
    for step in steps:
        draws = iter(range(step * trainer.batches_per_step, (step + 1) * trainer.batches_per_step))
        terms.append(trainer.step(step, lambda draws=draws: batch(next(draws))))
    return terms


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_networks_are_a_function_of_the_seed():
    first, again, other = (build_trainer(tug(), CANVAS, seed=s, device=CPU) for s in (1, 1, 2))
    assert torch.equal(weights(first.bare["generator"]), weights(again.bare["generator"]))
    assert not torch.equal(weights(first.bare["generator"]), weights(other.bare["generator"]))


def test_a_step_draws_a_fresh_batch_for_every_move():
    trainer = build_trainer(tug(critic_repeats=3), CANVAS, seed=0, device=CPU)
    drawn = []
    trainer.step(0, lambda: drawn.append(len(drawn)) or batch(len(drawn)))
    assert len(drawn) == trainer.batches_per_step == 4


def test_each_player_changes_its_own_networks_only():
    stage = tug(critic_repeats=1)
    trainer = build_trainer(stage, CANVAS, seed=0, device=CPU)
    generator, critic = weights(trainer.bare["generator"]), weights(trainer.bare["critic"])
    trainer._update(stage.players[0], 0, batch(0))
    assert not torch.equal(generator, weights(trainer.bare["generator"]))
    assert torch.equal(critic, weights(trainer.bare["critic"]))
    generator = weights(trainer.bare["generator"])
    trainer._update(stage.players[1], 0, batch(1))
    assert torch.equal(generator, weights(trainer.bare["generator"]))
    assert not torch.equal(critic, weights(trainer.bare["critic"]))


def test_weights_are_clipped_after_the_players_own_move_only():
    trainer = build_trainer(tug(clip=0.01), CANVAS, seed=0, device=CPU)
    run_steps(trainer, range(1))
    assert weights(trainer.bare["critic"]).abs().max() <= 0.01
    assert weights(trainer.bare["generator"]).abs().max() > 0.01


def test_skipping_goes_by_the_last_steps_terms_and_still_draws():
    trainer = build_trainer(tug(skip_above=0.0), CANVAS, seed=0, device=CPU)
    before = weights(trainer.bare["critic"])
    first = run_steps(trainer, range(1))[0]
    assert not torch.equal(before, weights(trainer.bare["critic"])), "nothing is known before the first step"
    trainer.last_terms = {name: value.item() for name, value in first.items()}
    before, drawn = weights(trainer.bare["critic"]), []
    terms = trainer.step(1, lambda: drawn.append(0) or batch(9))
    assert torch.equal(before, weights(trainer.bare["critic"]))
    assert len(drawn) == trainer.batches_per_step
    assert not any(name.startswith("critic/") for name in terms)


def test_the_average_follows_by_its_decay():
    stage = tug(ema_decay=0.75)
    trainer = build_trainer(stage, CANVAS, seed=0, device=CPU)
    start = weights(trainer.bare["generator"])
    run_steps(trainer, range(1))
    expected = 0.75 * start + 0.25 * weights(trainer.bare["generator"])
    torch.testing.assert_close(weights(trainer.averages["generator"]), expected)
    assert "critic" not in trainer.averages
    assert not build_trainer(tug(ema_decay=0.0), CANVAS, seed=0, device=CPU).averages


def test_a_step_is_a_function_of_its_number_whatever_was_drawn_before():
    whole = build_trainer(tug(), CANVAS, seed=3, device=CPU)
    run_steps(whole, range(4))
    parts = build_trainer(tug(), CANVAS, seed=3, device=CPU)
    run_steps(parts, range(2))
    torch.rand(1000)  # somebody else's use of the random state
    run_steps(parts, range(2, 4))
    for name in whole.bare:
        assert torch.equal(weights(whole.bare[name]), weights(parts.bare[name]))


def test_ranks_draw_different_noise():
    first, second = (build_trainer(tug(), CANVAS, seed=0, device=CPU, rank=rank) for rank in (0, 1))
    terms = [run_steps(trainer, range(1))[0]["generator/l1"].item() for trainer in (first, second)]
    assert terms[0] != terms[1]


@dataclasses.dataclass(frozen=True)
class Line:
    """loss = 3 w for one weight w = 2: everything can be worked out by hand."""

    name: ClassVar[str] = "line"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    training: Training = Training(steps=1, batch_size=1, lr=0.5, flip=False)

    @property
    def players(self):
        return (Player(name="generator", nets=("line",), lr=0.5, optimizer="rmsprop", betas=(0.0, 0.99)),)

    def networks(self, canvas):
        network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(network.weight, 2.0)
        return {"line": network}

    def outputs(self, canvas, nets, batch):
        return {}

    def loss(self, canvas, player, nets, batch, outputs):
        value = nets["line"](torch.ones(1, 1)).squeeze()
        return {"height": Term(value, 3.0)}


def test_a_move_by_hand():
    trainer = build_trainer(Line(), CANVAS, seed=0, device=CPU)
    terms = trainer.step(0, dict)
    assert terms["generator/height"].item() == pytest.approx(2.0)  # raw, not weighted
    assert terms["generator/total"].item() == pytest.approx(6.0)
    assert terms["generator/gradient"].item() == pytest.approx(3.0)
    # RMSProp: v = 0.01 * 3^2, w -= 0.5 * 3 / (sqrt(v) + 1e-8) = 0.5 / 0.1
    assert trainer.bare["line"].weight.item() == pytest.approx(2.0 - 0.5 * 3 / 0.3, rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Seen(Line):
    """The same height seen through a fixed network, which the folder of weights names: loss = 3 * 5 w."""

    features: str = "five"
    pretrained: str = "five"

    def fixed_networks(self, weights: Path):
        network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.9))
        nn.init.constant_(network[0].weight, float(weights.name))
        return {"features": network}

    def loss(self, canvas, player, nets, batch, outputs):
        return {"height": Term(nets["features"](nets["line"](torch.ones(1, 1))).squeeze(), 3.0)}


def test_a_fixed_network_is_looked_through_and_not_trained_nor_saved():
    trainer = build_trainer(
        Seen(training=dataclasses.replace(Line().training, ema_decay=0.5)),
        CANVAS,
        seed=0,
        device=CPU,
        weights=Path("of/5"),
    )
    terms = run_steps(trainer, range(1))[0]
    assert (terms["generator/height"].item(), terms["generator/gradient"].item()) == (10.0, 15.0)
    assert trainer.networks["features"][0].weight.item() == 5.0
    assert list(trainer.bare) == list(trainer.averages) == ["line"]


def test_seeds_of_different_parts_differ():
    seeds = {random_seed(*parts) for parts in [(1, 2), (12,), ("1", 2), (1, 2, 0), (2, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
