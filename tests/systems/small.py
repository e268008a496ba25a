"""Stages of all systems at a small size, for their tests."""

from pathlib import Path

import torch
from torch import Tensor, nn

from posegen.batch import Batch
from posegen.data.geometry.pose_maps import Discs
from posegen.stage import Canvas, Networks, Stage, Term, UsesPretrained, player_terms
from posegen.systems.fields import replace_fields

SIZE = (32, 16)
CANVAS = Canvas(SIZE, Discs(radius=2.0))


def with_settings(stage, **settings):
    """The stage with some settings, by their flat names: `lr` is that of its training."""
    return replace_fields(stage, settings, stage.name)


def double(stage: Stage, canvas: Canvas = CANVAS) -> dict[str, nn.Module]:
    """Networks in float64, always the same ones; random ones for those that are pretrained."""
    torch.manual_seed(0)
    networks = stage.networks(canvas) | (stage.fixed_networks(Path()) if isinstance(stage, UsesPretrained) else {})
    return {name: network.double() for name, network in networks.items()}


def outputs_of(stage: Stage, nets: Networks, batch: Batch) -> dict[str, Tensor]:
    return stage.outputs(CANVAS, nets, batch)


def terms_of(stage: Stage, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
    """A player's terms as training computes them, of outputs that are computed for it."""
    return player_terms(stage, CANVAS, player, nets, batch)


def total(terms: dict[str, Term]) -> Tensor:
    """What a player minimises."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def counts(system) -> list[dict[str, int]]:
    """Parameters of the networks of each stage."""
    with torch.device("meta"):
        return [{n: count(net) for n, net in stage.networks(system.canvas).items()} for stage in system.stages]
