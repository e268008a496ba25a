"""Made-up systems that predict joints, without networks: their scores and images can be worked out by hand."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from posegen.batch import Batch
from posegen.data.geometry.pose_maps import Discs
from posegen.inference import Trained
from posegen.stage import Canvas, Networks, Player, System, Term, Training

SHIFT = (3.0, 4.0)  # pixels by which every joint is predicted wrongly: 5 pixels away


@dataclass(frozen=True, kw_only=True)
class Posing:
    """The target's joints, shifted; the source is not looked at."""

    name: ClassVar[str] = "posing"
    reads: ClassVar[tuple[str, ...]] = ("target_image", "target_joints")
    writes: ClassVar[tuple[str, ...]] = ("predicted_joints",)

    shift: tuple = SHIFT  # not numbers in one test
    training: Training = Training(steps=4, batch_size=2, lr=1e-3, flip=False)

    @property
    def players(self) -> tuple[Player, ...]:
        return ()

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        return {}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        return {"predicted_joints": batch["target_joints"] + torch.tensor(self.shift)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Painting:
    """The source image as the result, and on the way the target's with a tenth less contrast, and a mask."""

    name: ClassVar[str] = "painting"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "predicted_joints", "target_person_mask")
    writes: ClassVar[tuple[str, ...]] = ("foreground_image", "painted_mask", "painted_image")

    training: Training = Training(steps=4, batch_size=2, lr=1e-3, flip=False)

    @property
    def players(self) -> tuple[Player, ...]:
        return ()

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        return {}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        return {
            "foreground_image": 0.9 * batch["target_image"],
            "painted_mask": batch["target_person_mask"],
            "painted_image": batch["source_image"],
        }

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        return {}


def posing(shift: tuple[float, float] = SHIFT) -> System:
    """A system that predicts joints and makes no image."""
    return System(
        name="posing", variant="full", paper="None", canvas=Canvas((64, 32), Discs(radius=2.0)),
        stages=(Posing(shift=shift),), joints="predicted_joints",
    )  # fmt: skip


def painting() -> System:
    """A system of two stages that predicts joints and makes an image."""
    return System(
        name="painting", variant="full", paper="None", canvas=Canvas((64, 32), Discs(radius=2.0)),
        stages=(Posing(), Painting()), image="painted_image", joints="predicted_joints",
    )  # fmt: skip


def trained(system: System) -> Trained:
    return Trained(system, {stage.name: {} for stage in system.stages}, torch.device("cpu"))
