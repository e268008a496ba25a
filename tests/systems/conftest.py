import math

import pytest
import torch

from posegen.data.geometry.pose_maps import Discs
from posegen.training.step import build_trainer
from tests.systems.small import CANVAS, SIZE


def waves(shape, phase):
    """Numbers in [-1, 1] that depend on no random generator."""
    count = math.prod(shape)
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase).view(shape)


@pytest.fixture
def batch():
    """Two pairs of 32x16 images in float64, as the stages of all systems read them."""
    frame = torch.tensor([16.0, 32.0], dtype=torch.float64)
    joints, source_joints = ((waves((2, 18, 2), phase) + 1) / 2 * frame for phase in (3.0, 6.0))
    visible, source_visible = waves((2, 18), 4.0) > -0.5, waves((2, 18), 7.0) > -0.7
    return {
        "source_image": waves((2, 3, *SIZE), 0.0),
        "target_image": waves((2, 3, *SIZE), 1.0),
        "coarse_image": waves((2, 3, *SIZE), 2.0),
        "source_joints": source_joints,
        "source_visible": source_visible,
        "source_pose": Discs(radius=2.0)(source_joints, source_visible, *SIZE),
        "target_joints": joints,
        "target_visible": visible,
        "target_pose": Discs(radius=2.0)(joints, visible, *SIZE),
        "target_pose_mask": (waves((2, 1, *SIZE), 5.0) > 0).double(),
    }


@pytest.fixture
def golden(batch):
    """Plays two steps from weights that depend on no random generator, and gives the last step's terms."""

    def run_steps(stage, canvas=CANVAS):
        trainer = build_trainer(stage, canvas, seed=0, device=torch.device("cpu"))
        for network in trainer.networks.values():
            network.double()
        for network in trainer.bare.values():
            for phase, parameter in enumerate(network.parameters()):
                fan_in = max(1, parameter[0].numel())
                parameter.data = waves(parameter.shape, phase) / math.sqrt(fan_in)
        trainer.step(0, lambda: batch)
        return {name: value.item() for name, value in trainer.step(1, lambda: batch).items()}

    return run_steps
