"""A training step of a stage: updates of its players. Pure torch: no Ray, no files, no logging.

Players are updated in the stage's order. Each update draws a fresh batch, computes the stage's outputs and the player's
loss of them, and changes the player's own networks alone. Everything random in step n on rank r is a function of (seed,
stage, n, r), so that a resumed run continues exactly as an uninterrupted one.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from posegen.batch import Batch
from posegen.stage import GENERATOR, Canvas, Player, Stage, UsesPretrained, player_terms

NextBatch = Callable[[], Batch]
Wrap = Callable[[nn.Module], nn.Module]


def random_seed(*parts: object) -> int:
    """Return a 63-bit seed from anything printable: different parts give independent streams."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


@dataclass
class Trainer:
    """A stage's networks, their optimizers and averages."""

    stage: Stage
    canvas: Canvas
    seed: int
    device: torch.device
    networks: dict[str, nn.Module]  # as called: wrapped for several workers; fixed ones too
    bare: dict[str, nn.Module]  # the same ones without the wrapping
    optimizers: dict[str, torch.optim.Optimizer]  # by player
    averages: dict[str, nn.Module]  # of the generator's networks; empty where ema_decay is 0
    rank: int = 0
    share: float = 1.0  # of this worker's pairs in a global batch, in even shares: 1 where all have as many
    last_terms: dict[str, float] = field(default_factory=dict)  # of the last step, reduced over the workers

    @property
    def batches_per_step(self) -> int:
        """Batches that one step draws on every worker."""
        return sum(player.repeats for player in self.stage.players)

    def step(self, step: int, next_batch: NextBatch) -> dict[str, Tensor]:
        """Update every player in order. Returns the raw terms as '<player>/<term>', on the device."""
        torch.manual_seed(random_seed(self.seed, self.stage.name, step, self.rank))
        terms: dict[str, Tensor] = {}
        for player in self.stage.players:
            skipped = player.skip_when is not None and bool(self.last_terms) and player.skip_when(self.last_terms)
            for _ in range(player.repeats):
                batch = next_batch()  # drawn even when skipped: which pairs a step sees depends on the step alone
                if not skipped:
                    terms |= self._update(player, step, batch)
        return terms

    def _update(self, player: Player, step: int, batch: Batch) -> dict[str, Tensor]:
        optimizer = self.optimizers[player.name]
        for name, network in self.bare.items():
            network.requires_grad_(name in player.nets)
        for group in optimizer.param_groups:
            group["lr"] = player.lr * player.schedule.factor(step)
        with autocast(self.device):
            losses = player_terms(self.stage, self.canvas, player.name, self.networks, batch)
        total = torch.stack([term.weight * term.value.float() for term in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        (total * self.share if self.share != 1 else total).backward()  # averaged over workers: over all pairs alike
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradient = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        self._after(player)
        raw = {f"{player.name}/{name}": term.value.detach().float() for name, term in losses.items()}
        return raw | {f"{player.name}/total": total.detach(), f"{player.name}/gradient": gradient.detach()}

    @torch.no_grad()
    def _after(self, player: Player) -> None:
        if player.clip_weights is not None:
            for name in player.nets:
                for parameter in self.bare[name].parameters():
                    parameter.clamp_(-player.clip_weights, player.clip_weights)
        if player.name == GENERATOR:
            for name, average in self.averages.items():
                for kept, current in zip(average.parameters(), self.bare[name].parameters(), strict=True):
                    kept.lerp_(current, 1 - self.stage.training.ema_decay)
                for kept, current in zip(average.buffers(), self.bare[name].buffers(), strict=True):
                    kept.copy_(current)


def autocast(device: torch.device) -> torch.autocast:
    """Return the autocast context: bfloat16 on a GPU, none on the CPU.

    bfloat16 has float32's range, so no loss scaling is needed.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def build_trainer(
    stage: Stage,
    canvas: Canvas,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    share: float = 1.0,
    wrap: Wrap = lambda net: net,
    weights: Path = Path(),
) -> Trainer:
    """Initialise the networks (the same on every rank), wrap each on its own, and make their optimizers.

    `weights` is the folder of pretrained networks, for a stage whose losses need one.
    """
    torch.manual_seed(random_seed(seed, stage.name, "networks"))
    bare = {name: to_device(network.train(), device) for name, network in stage.networks(canvas).items()}
    assert sorted(bare) == sorted(n for p in stage.players for n in p.nets), "each network belongs to one player"
    averaged = (
        [name for p in stage.players if p.name == GENERATOR for name in p.nets] if stage.training.ema_decay else []
    )
    fixed = stage.fixed_networks(weights) if isinstance(stage, UsesPretrained) else {}  # neither trained nor saved
    return Trainer(
        stage=stage,
        canvas=canvas,
        seed=seed,
        device=device,
        rank=rank,
        share=share,
        bare=bare,
        optimizers={player.name: _optimizer(player, bare) for player in stage.players},
        averages={name: copy.deepcopy(bare[name]).requires_grad_(False) for name in averaged},
        networks={name: wrap(network) for name, network in bare.items()}
        | {name: to_device(network.eval().requires_grad_(False), device) for name, network in fixed.items()},
    )


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, with channels last: convolutions are faster so, on a GPU and on the CPU."""
    return network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore


def _optimizer(player: Player, networks: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    parameters = [parameter for name in player.nets for parameter in networks[name].parameters()]
    if player.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=player.lr, betas=player.betas, eps=1e-8)
    return torch.optim.RMSprop(parameters, lr=player.lr, alpha=player.betas[1])
