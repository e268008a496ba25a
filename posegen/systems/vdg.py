"""VDG: Lakhal, Lanz, Cavallaro: Pose guided human image synthesis by view disentanglement and enhanced weighting loss,
ECCV Workshops 2018 (978-3-030-11012-3_30).

Stage I ("coarse", G^rec) draws the person of the source image in the target pose by late fusion: an encoder for the
image, another for the target's pose maps, one decoder. Stage II ("refinement", G^ref) corrects the result, trained
with an adversarial, a masked SSIM and a masked L1 loss.

Known from the authors' slides: the late fusion, the losses, the data sets, the table below. No code was released and
the layers, alpha, lambda, the optimiser and the schedule were not found. OUR CHOICES, each with its reason:
- layers: PG2's encoders without the fully connected layer (late fusion replaces that bottleneck), each level's two
  feature maps concatenated and brought back to one's width by a 1x1 convolution, PG2's decoder: VDG compares itself
  with PG2;
- stage II: late fusion again, of the source image and stage I's, with N - 2 levels as PG2's G2;
- the result is stage I's image + the difference map, as in PG2; both losses are taken on it. The slides write L1 on
  G^ref's output and SSIM on the final prediction, so `direct=True` reads G^ref's output as the image itself. The
  last layer of a difference map starts at zero, so that stage II starts from stage I's result;
- the discriminator and its game: PG2's released code (`losses.adversarial`);
- alpha = 0.84, the share of (multi-scale) SSIM beside L1 in Zhao et al., Loss functions for image restoration, 2017;
- lambda, optimiser, steps, batch: PG2's, for each data set (and alpha 0.5 on "synthetic", whose short stage II must not
  trade L1 away);
- 1 - SSIM as the form of L_SSIM, and its value range (`losses.reconstruction.masked_ssim_loss`).

Variants: "l1" (L_img is plain L1), "mask-l1" (only the masked L1), "full", and "w". The slides give no meaning for
VDG_w; ours, a guess, is a mask of twice the weight, 1 + 2 M.

Parameters at width 128: stage I 93.2 M, stage II 10.8 M, discriminator 4.32 M for 128x64; 158.7 M, 23.3 M, 10.9 M
for 256x256.

Numbers to expect (the authors' table): SSIM / IS / mask-SSIM / mask-IS on Market-1501, SSIM / IS on DeepFashion:
    l1       .224 / 3.733 / .767 / 3.503    .700 / 3.428
    mask-l1  .238 / 3.933 / .768 / 3.542    .690 / 3.429
    full     .238 / 4.007 / .775 / 3.354    .708 / 3.003
    w        .266 / 3.453 / .783 / 3.227    .702 / 3.491
Their rows for PG2 (.252 / 4.015 / .771 / 3.555, .641 / 3.187) and Deformable GAN (.290 / 2.990 / .798 / 3.544, .665 /
3.420) are not those papers' own: the pairs or the protocol differ (DeepFashion's SSIM by about 0.1), so compare
within this table only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posegen.batch import Batch, Images, PoseMaps
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import CHANNELS, DiscriminatorInput, discriminator_terms, generator_terms, scores
from posegen.losses.reconstruction import l1, masked_ssim_loss
from posegen.nets.convolutional import (
    DcganDiscriminator,
    PlainDecoder,
    PlainEncoder,
    ResidualDecoder,
    ResidualEncoder,
    convolution,
    initialise,
    level_count,
)
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Share, Weight
from posegen.systems.pg2 import reconstruction_terms

JOINTS = 18


class LateFusion(nn.Module):
    """Two encoders' features, level by level: concatenated, then a 1x1 convolution with ReLU to one encoder's width."""

    def __init__(self, *, width: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(convolution(2 * width * (k + 1), width * (k + 1), kernel=1) for k in range(levels))

    def forward(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """Return the fused features of each level."""
        joined = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
        return [F.relu(fuse(features)) for fuse, features in zip(self.levels, joined, strict=True)]


class LateFusionGenerator(nn.Module):
    """G^rec: the source image and the target's pose maps through an encoder each, fused, to a image."""

    def __init__(self, *, size: tuple[int, int], width: int) -> None:
        super().__init__()
        levels = level_count(size)
        self.image_encoder = ResidualEncoder(channels=3, width=width, levels=levels)
        self.pose_encoder = ResidualEncoder(channels=JOINTS, width=width, levels=levels)
        self.fusion = LateFusion(width=width, levels=levels)
        self.bottleneck = convolution(width * levels, width, kernel=1)
        self.decoder = ResidualDecoder(width=width, levels=levels)
        initialise(self)

    def forward(self, source: Images, pose: PoseMaps) -> Images:
        """Return the coarse image."""
        features = self.fusion(self.image_encoder(source), self.pose_encoder(pose))
        return self.decoder(F.relu(self.bottleneck(features[-1])), features)


class LateFusionRefiner(nn.Module):
    """G^ref: the source image and stage I's through an encoder each, fused, to a difference map or a image."""

    def __init__(self, *, size: tuple[int, int], width: int, starts_at_zero: bool) -> None:
        super().__init__()
        levels = level_count(size) - 2
        self.source_encoder = PlainEncoder(channels=3, width=width, levels=levels)
        self.coarse_encoder = PlainEncoder(channels=3, width=width, levels=levels)
        self.fusion = LateFusion(width=width, levels=levels)
        self.decoder = PlainDecoder(width=width, levels=levels, full_resolution_skip=True)
        initialise(self)
        if starts_at_zero:
            nn.init.zeros_(self.decoder.image.weight)

    def forward(self, source: Images, coarse: Images) -> Images:
        """Return the difference map, or the image."""
        return self.decoder(self.fusion(self.source_encoder(source), self.coarse_encoder(coarse)))


@dataclass(frozen=True, kw_only=True)
class LateFusionReconstruction:
    """Stage I: L_Grec = mean |I^R - I_b|, plain L1 (slides)."""

    name: ClassVar[str] = "coarse"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("coarse_image",)

    width: Positive = 128  # channels of the first level
    training: Training = Training(steps=22_000, batch_size=16, lr=2e-5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=())

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        return {"generator": LateFusionGenerator(size=canvas.size, width=self.width)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return {"coarse_image": nets["generator"](batch["source_image"], batch["target_pose"])}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        return {"l1": Term(l1(outputs["coarse_image"], batch["target_image"]))}


@dataclass(frozen=True, kw_only=True)
class LateFusionRefinement:
    """Stage II: L_Gref = L_adv + lambda L_img, L_img = alpha L_SSIM^mask + (1 - alpha) L_1^mask (slides).

    L_1^mask = mean(|I - I_b| (1 + w M_b)), logged as its parts "l1" and "mask_l1"; w = `mask_weight`, 1 on the slides.
    L_SSIM^mask is `masked_ssim_loss`. The discriminator's loss and the choice of its input are in `losses.adversarial`.
    """

    name: ClassVar[str] = "refinement"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose_mask", "coarse_image")
    writes: ClassVar[tuple[str, ...]] = ("refined_image",)

    width: Positive = 128  # channels of the first level
    direct: bool = False  # the network's output is the image, not a difference from stage I's
    discriminator: DiscriminatorInput = "stack"
    discriminator_width: Positive = 64
    image_weight: Weight = 10.0  # lambda
    alpha: Share = 0.84
    mask_weight: Weight = 1.0  # w
    training: Training = Training(steps=14_000, batch_size=16, lr=2e-5, discriminator_lr=2e-5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        size, channels = canvas.size, CHANNELS[self.discriminator]
        return {
            "generator": LateFusionRefiner(size=size, width=self.width, starts_at_zero=not self.direct),
            "discriminator": DcganDiscriminator(size=size, channels=channels, width=self.discriminator_width),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        output = nets["generator"](batch["source_image"], batch["coarse_image"])
        return {"refined_image": output if self.direct else batch["coarse_image"] + output}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated = outputs["refined_image"]
        logits = scores(self.discriminator, nets["discriminator"], batch, generated)
        if player == "discriminator":
            return discriminator_terms(logits)
        l1_weight = self.image_weight * (1 - self.alpha)
        terms = generator_terms(logits) | reconstruction_terms(batch, generated, l1_weight, self.mask_weight)
        if self.alpha > 0:
            masked = (generated, batch["target_image"], batch["target_pose_mask"])
            loss = masked_ssim_loss(*masked, mask_weight=self.mask_weight)
            terms["ssim"] = Term(loss, self.image_weight * self.alpha)
        return terms


VDG = Paper(
    citation="Lakhal et al.: Pose guided human image synthesis by view disentanglement, ECCV Workshops 2018",
    presets={
        "market1501": Preset((128, 64), Discs(radius=4.0), (LateFusionReconstruction(), LateFusionRefinement())),
        "deepfashion": Preset((256, 256), Discs(radius=4.0), (
            LateFusionReconstruction(training=Training(steps=30_000, batch_size=8, lr=2e-5)),
            LateFusionRefinement(
                image_weight=50.0, training=Training(steps=20_000, batch_size=8, lr=2e-5, discriminator_lr=2e-5),
            ),
        )),
        # Our choice: what two processor cores train in a few minutes.
        "synthetic": Preset((64, 32), Discs(radius=2.0), (
            LateFusionReconstruction(
                width=16, training=Training(steps=4200, batch_size=8, lr=1e-3, constant_lr_share=0.3)
            ),
            LateFusionRefinement(
                width=16, discriminator_width=32, image_weight=200.0, alpha=0.5,
                training=Training(steps=240, batch_size=16, lr=5e-4, discriminator_lr=2e-4, constant_lr_share=0.5),
            ),
        )),
    },
    variants={
        "full": Variant(),
        "l1": Variant(settings={"refinement.alpha": 0.0, "refinement.mask_weight": 0.0}),
        "mask-l1": Variant(settings={"refinement.alpha": 0.0}),
        "w": Variant(settings={"refinement.mask_weight": 2.0}),
    },
    image="refined_image",
)  # fmt: skip
