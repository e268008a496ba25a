"""PG2: Ma, Jia, Sun, Schiele, Tuytelaars, Van Gool: Pose Guided Person Image Generation, NIPS 2017 (arXiv 1705.09368).

Stage I ("coarse") draws the person of the source image in the target pose, by a U-Net on the source image and the
18 pose maps; stage II ("refinement") adds a difference map, trained against a discriminator. Released code:
charliememory/Pose-Guided-Person-Image-Generation (models.py, models256.py, trainer.py, trainer256.py, wgan_gp.py).

Where paper and code disagree, we follow
- discriminator input: the released code (stacks of single images); `discriminator="pair"` is the paper's;
- lambda of stage II: the code's 10 (Market-1501) and 50 (DeepFashion), the paper has it in a supplement we did not
  see;
- pose mask in stage II: the code, which weights the same pixels as in stage I;
- steps and batch: the paper's (22k + 14k of 16; DeepFashion 30k + 20k of 8). The scripts take 22k for stage I of
  both, and batch 1 for DeepFashion, with which users did not reach the released model's quality;
- learning rate: 2e-5 throughout, as in both (the code's halving is not connected to its optimisers);
- skips of stage II: the code, where the Market-1501 model has none at full resolution.

Parameters at width 128: stage I 70.8 M, stage II 6.06 M, discriminator 4.32 M for 128x64; 122.1 M, 12.7 M, 10.9 M for
256x256.

Numbers to expect of the full system: SSIM 0.253, IS 3.460, mask-SSIM 0.792, mask-IS 3.435 on Market-1501 and SSIM
0.762, IS 3.090 on DeepFashion, as later papers quote table 1 (we did not see the table itself, and have no numbers for
the variants). The text says: "g1-l1" beats "g1-ce-l1" on every measure and is about as good as "g1-hme-l1", "g1-mask"
has the best SSIM, adversarial variants are sharper at lower SSIM.

Our choices: the layer sizes of the embeddings in "g1-ce-l1" and "g1-hme-l1", and loss and steps of "g1+d"
(adversarial + lambda L1, for as many steps as both stages have), for which neither paper nor code says; the settings
of "synthetic".
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images, Joints, PoseMaps, Visible
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import CHANNELS, DiscriminatorInput, discriminator_terms, generator_terms, scores
from posegen.losses.reconstruction import l1, masked_l1
from posegen.nets.convolutional import (
    DcganDiscriminator,
    PlainDecoder,
    PlainEncoder,
    ResidualDecoder,
    ResidualEncoder,
    bottleneck_size,
    initialise,
    level_count,
)
from posegen.stage import Canvas, Networks, Paper, Player, Preset, System, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Weight

JOINTS = 18

Embedding = Literal["maps", "coordinates", "heatmaps"]


class PoseIntegrator(nn.Module):
    """G1: a U-Net of residual blocks with a fully connected bottleneck, from the source image and the target pose.

    `embedding` says how the pose enters (section 4.2 of the paper):
    - "maps": 18 maps concatenated with the image, the paper's proposal;
    - "coordinates" (CE): 36 coordinates through two fully connected layers, concatenated at the bottleneck;
    - "heatmaps" (HME): 18 maps through an encoder of their own, whose code is concatenated at the bottleneck.
    The pose's code is as long as the image's, and CE's hidden layer too, with ReLU: our choice, no sizes are given.
    """

    def __init__(self, *, size: tuple[int, int], width: int, latent: int, embedding: Embedding) -> None:
        super().__init__()
        levels, self.bottleneck = level_count(size), (width, *bottleneck_size(size))
        rows, columns = bottleneck_size(size)
        self.embedding = embedding
        self.encoder = ResidualEncoder(channels=3 + JOINTS * (embedding == "maps"), width=width, levels=levels)
        self.code = nn.Linear(width * levels * rows * columns, latent)
        if embedding == "coordinates":
            self.pose_code = nn.Sequential(nn.Linear(2 * JOINTS, latent), nn.ReLU(), nn.Linear(latent, latent))
        elif embedding == "heatmaps":
            self.pose_encoder = ResidualEncoder(channels=JOINTS, width=width, levels=levels)
            self.pose_code = nn.Linear(width * levels * rows * columns, latent)
        self.spread = nn.Linear(latent * (1 if embedding == "maps" else 2), width * rows * columns)
        self.decoder = ResidualDecoder(width=width, levels=levels)
        initialise(self)

    def forward(self, source: Images, pose: PoseMaps | Float[Tensor, "batch 36"]) -> Images:
        """The image; `pose` is the coordinates in [-1, 1] for "coordinates" and the pose maps otherwise."""
        skips = self.encoder(torch.cat([source, pose], dim=1) if self.embedding == "maps" else source)
        code = self.code(skips[-1].flatten(1))
        if self.embedding != "maps":
            given = pose if self.embedding == "coordinates" else self.pose_encoder(pose)[-1].flatten(1)
            code = torch.cat([code, self.pose_code(given)], dim=1)
        return self.decoder(self.spread(code).unflatten(1, self.bottleneck), skips)


class DifferenceMap(nn.Module):
    """G2: a U-Net of plain blocks on stage I's image and the source image, whose output is added to the former."""

    def __init__(self, *, size: tuple[int, int], width: int, full_resolution_skip: bool) -> None:
        super().__init__()
        levels = level_count(size) - 2
        self.encoder = PlainEncoder(channels=6, width=width, levels=levels)
        self.decoder = PlainDecoder(width=width, levels=levels, full_resolution_skip=full_resolution_skip)
        initialise(self)

    def forward(self, coarse: Images, source: Images) -> Images:
        """The difference map."""
        return self.decoder(self.encoder(torch.cat([coarse, source], dim=1)))


def coordinates(joints: Joints, visible: Visible, size: tuple[int, int]) -> Float[Tensor, "batch 36"]:
    """Joints in pixels as x / W * 2 - 1, y / H * 2 - 1; both -1 where the joint is unknown, as PDIG's code has it."""
    height, width = size
    scaled = joints / joints.new_tensor([width, height]) * 2 - 1
    return scaled.masked_fill(~visible[..., None], -1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class PoseIntegration:
    """Stage I. Without a discriminator: mean |G1 - I_B| + mask_weight mean(|G1 - I_B| M_B), the pose mask loss.

    With one ("g1+d", one stage only): BCE(D(G1), 1) + l1_weight times that. `mask_weight` 0 is plain L1.
    """

    name: ClassVar[str] = "coarse"
    # Which of the pose's columns is used depends on `embedding`.
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "target_image", "target_pose", "target_joints", "target_visible", "target_pose_mask",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("coarse_image",)

    width: Positive = 128  # channels of the first level
    latent: Positive = 64  # units of the bottleneck
    embedding: Embedding = "maps"
    mask_weight: Weight = 1.0
    discriminator: Literal["none", "stack", "pair"] = "none"
    l1_weight: Weight = 1.0  # lambda; beside a discriminator
    discriminator_width: Positive = 64
    training: Training = Training(steps=22_000, batch_size=16, lr=2e-5, discriminator_lr=2e-5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        discriminators = () if self.discriminator == "none" else ("discriminator",)
        return adversarial_players(self.training, discriminators=discriminators)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        generator = PoseIntegrator(size=canvas.size, width=self.width, latent=self.latent, embedding=self.embedding)
        if self.discriminator == "none":
            return {"generator": generator}
        channels = CHANNELS[self.discriminator]
        discriminator = DcganDiscriminator(size=canvas.size, channels=channels, width=self.discriminator_width)
        return {"generator": generator, "discriminator": discriminator}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        if self.embedding == "coordinates":
            pose = coordinates(batch["target_joints"], batch["target_visible"], canvas.size)
        else:
            pose = batch["target_pose"]
        return {"coarse_image": nets["generator"](batch["source_image"], pose)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated, terms = outputs["coarse_image"], {}
        if self.discriminator != "none":
            logits = scores(self.discriminator, nets["discriminator"], batch, generated)
            if player == "discriminator":
                return discriminator_terms(logits)
            terms = generator_terms(logits)
        return terms | reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)


@dataclass(frozen=True, kw_only=True)
class DifferenceRefinement:
    """Stage II: BCE(D(G2), 1) + l1_weight (mean |I - I_B| + mask_weight mean(|I - I_B| M_B)), I = stage I + difference.

    The discriminator's loss and the choice of its input are in `losses.adversarial`.
    """

    name: ClassVar[str] = "refinement"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose_mask", "coarse_image")
    writes: ClassVar[tuple[str, ...]] = ("refined_image",)

    width: Positive = 128  # channels of the first level
    full_resolution_skip: bool = False
    discriminator: DiscriminatorInput = "stack-with-coarse"
    discriminator_width: Positive = 64
    l1_weight: Weight = 10.0  # lambda
    mask_weight: Weight = 1.0
    training: Training = Training(steps=14_000, batch_size=16, lr=2e-5, discriminator_lr=2e-5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        size, channels = canvas.size, CHANNELS[self.discriminator]
        return {
            "generator": DifferenceMap(size=size, width=self.width, full_resolution_skip=self.full_resolution_skip),
            "discriminator": DcganDiscriminator(size=size, channels=channels, width=self.discriminator_width),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return refined(nets, batch)

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated = outputs["refined_image"]
        logits = scores(self.discriminator, nets["discriminator"], batch, generated)
        if player == "discriminator":
            return discriminator_terms(logits)
        return generator_terms(logits) | reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)


def refined(nets: Networks, batch: Batch) -> dict[str, Tensor]:
    """Return stage II's outputs: stage I's image and the difference map added."""
    coarse = batch["coarse_image"]
    return {"refined_image": coarse + nets["generator"](coarse, batch["source_image"])}


def reconstruction_terms(batch: Batch, generated: Images, weight: float, mask_weight: float) -> dict[str, Term]:
    """Return "l1" and "mask_l1", weighted to weight (mean |G - I_B| + mask_weight mean(|G - I_B| M_B))."""
    target = batch["target_image"]
    return {
        "l1": Term(l1(generated, target), weight),
        "mask_l1": Term(masked_l1(generated, target, batch["target_pose_mask"]), weight * mask_weight),
    }


# Our choice: what two processor cores train in a few minutes.
SYNTHETIC_COARSE = PoseIntegration(
    width=16, training=Training(steps=4200, batch_size=8, lr=1e-3, discriminator_lr=2e-5, constant_lr_share=0.3)
)

PRESETS = {
    "market1501": Preset((128, 64), Discs(radius=4.0), (PoseIntegration(), DifferenceRefinement())),
    "deepfashion": Preset((256, 256), Discs(radius=4.0), (
        PoseIntegration(training=Training(steps=30_000, batch_size=8, lr=2e-5, discriminator_lr=2e-5)),
        DifferenceRefinement(
            l1_weight=50.0, full_resolution_skip=True, discriminator="stack",
            training=Training(steps=20_000, batch_size=8, lr=2e-5, discriminator_lr=2e-5),
        ),
    )),
    # Our choice: what two processor cores train in a few minutes.
    "synthetic": Preset((64, 32), Discs(radius=2.0), (
        SYNTHETIC_COARSE,
        DifferenceRefinement(
            width=16, discriminator_width=32, discriminator="stack", l1_weight=100.0, full_resolution_skip=True,
            training=Training(steps=240, batch_size=16, lr=5e-4, discriminator_lr=2e-4, constant_lr_share=0.5),
        ),
    )),
}  # fmt: skip


def stage_one(**settings: object) -> Variant:
    """Return the variant that is stage I alone, with those settings of it."""
    changed = {f"coarse.{name}": value for name, value in settings.items()}
    return Variant(stages=("coarse",), settings=changed, image="coarse_image")


def with_discriminator(system: System) -> System:
    """Return stage I with stage II's discriminator, lambda and rate, for as many steps as both have ("g1+d")."""
    coarse, refinement = system.stages
    assert isinstance(coarse, PoseIntegration) and isinstance(refinement, DifferenceRefinement)  # noqa: PT018
    mine, other = coarse.training, refinement.training
    coarse = replace(
        coarse,
        discriminator="stack",
        l1_weight=refinement.l1_weight,
        discriminator_width=refinement.discriminator_width,
        training=replace(mine, steps=mine.steps + other.steps, discriminator_lr=other.discriminator_lr),
    )
    return replace(system, stages=(coarse,), image="coarse_image")


# The paper's ablations have its names, in lower case.
PG2 = Paper(
    citation="Ma et al.: Pose Guided Person Image Generation, NIPS 2017",
    presets=PRESETS,
    variants={
        "full": Variant(),
        "g1-l1": stage_one(mask_weight=0.0),
        "g1-mask": stage_one(),
        "g1-ce-l1": stage_one(embedding="coordinates", mask_weight=0.0),
        "g1-hme-l1": stage_one(embedding="heatmaps", mask_weight=0.0),
        "g1+d": with_discriminator,
    },
    image="refined_image",
)
