"""A trained system and a batch of columns to pictures: the only inference path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posegen.batch import Batch
from posegen.stage import Networks, System
from posegen.train.checkpoint import trained_networks
from posegen.train.step import autocast


@dataclass(frozen=True)
class Trained:
    """A system with its stages' networks, in evaluation mode, on a device."""

    system: System
    networks: Mapping[str, Networks]  # by stage
    device: torch.device


def load(system: System, stages: Path, device: torch.device) -> Trained:
    """Networks of every stage from `stages/<stage>/checkpoint_*`, the newest one; averages where there are any.

    Raises ValueError where a stage has no checkpoint or is not trained to its last step.
    """
    networks = {stage.name: trained_networks(stage, stages / stage.name, device) for stage in system.stages}
    return Trained(system, networks, device)


@torch.no_grad()
def synthesize(trained: Trained, columns: Batch) -> dict[str, Tensor]:
    """The columns with every stage's outputs added; `columns[trained.system.image]` is the result, in [-1, 1]."""
    result = dict(columns)
    for stage in trained.system.stages:
        with autocast(trained.device):
            result |= stage.outputs(trained.networks[stage.name], result)
    return result
