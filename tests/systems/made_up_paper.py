"""Sketch and Detail: A. Nobody, Made-up Pose Transfer, for the test of docs/adding_a_paper.md.

Stage I ("sketch") draws the person of the source image in the target pose by three convolutions; stage II ("detail")
adds a difference to it, against PG2's pair discriminator. Our choice: everything.

Parameters at width 8: sketch 2,323, detail 1,243, discriminator 18,377 for 64x32.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import CHANNELS, discriminator_terms, generator_terms, scores
from posegen.losses.reconstruction import l1
from posegen.nets.convolutional import DcganDiscriminator, convolution
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Weight


class ThreeConvolutions(nn.Module):
    """3x3 convolutions of `width` channels with ReLU, to an image."""

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels, width), nn.ReLU(), convolution(width, width), nn.ReLU(), convolution(width, 3)
        )

    def forward(self, given: Float[Tensor, "batch channels height width"]) -> Images:
        return self.layers(given)


@dataclass(frozen=True, kw_only=True)
class Sketching:
    """mean |S - B|, S the sketch and B the target."""

    name: ClassVar[str] = "sketch"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("sketch_image",)

    width: Positive = 8
    training: Training = Training(steps=2, batch_size=2, lr=1e-3)

    @property
    def players(self) -> tuple[Player, ...]:
        return adversarial_players(self.training, discriminators=())

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        return {"generator": ThreeConvolutions(channels=3 + 18, width=self.width)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        given = torch.cat([batch["source_image"], batch["target_pose"]], dim=1)
        return {"sketch_image": nets["generator"](given)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        return {"l1": Term(l1(outputs["sketch_image"], batch["target_image"]))}


@dataclass(frozen=True, kw_only=True)
class Detailing:
    """Generator: BCE(D(A, G), 1) + l1_weight mean |G - B|; the discriminator's loss is in `losses.adversarial`."""

    name: ClassVar[str] = "detail"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "sketch_image")
    writes: ClassVar[tuple[str, ...]] = ("detailed_image",)

    width: Positive = 8
    discriminator_width: Positive = 8
    l1_weight: Weight = 10.0  # lambda
    training: Training = Training(steps=2, batch_size=2, lr=1e-3, discriminator_lr=1e-3)

    @property
    def players(self) -> tuple[Player, ...]:
        return adversarial_players(self.training)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        return {
            "generator": ThreeConvolutions(channels=3 + 3, width=self.width),
            "discriminator": DcganDiscriminator(
                size=canvas.size, channels=CHANNELS["pair"], width=self.discriminator_width
            ),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        sketch = batch["sketch_image"]
        return {"detailed_image": sketch + nets["generator"](torch.cat([batch["source_image"], sketch], dim=1))}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        generated = outputs["detailed_image"]
        logits = scores("pair", nets["discriminator"], batch, generated)
        if player == "discriminator":
            return discriminator_terms(logits)
        return generator_terms(logits) | {"l1": Term(l1(generated, batch["target_image"]), self.l1_weight)}


MADE_UP = Paper(
    citation="Nobody: Made-up Pose Transfer",
    presets={
        "market1501": Preset((128, 64), Discs(radius=4.0), (Sketching(width=32), Detailing(width=32))),
        "deepfashion": Preset((256, 256), Discs(radius=4.0), (Sketching(width=32), Detailing(width=32))),
        "synthetic": Preset((64, 32), Discs(radius=2.0), (Sketching(), Detailing())),
    },
    variants={
        "full": Variant(),
        "sketch": Variant(stages=("sketch",), image="sketch_image"),
        "no-l1": Variant(settings={"detail.l1_weight": 0.0}),
    },
    image="detailed_image",
)
