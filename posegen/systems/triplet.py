"""Triplet: Gupta, Pandey, Patel: Neural Techniques for Pose Guided Image Generation, Stanford CS231n 2018.

PG2 with another second stage. Stage I ("coarse") is PG2's own (`pg2.PoseIntegration`). In stage II ("refinement") PG2's
difference map plays against a critic that classifies single images (target 1, generated and source 0: the triplet),
by the rules of the Wasserstein GAN (Arjovsky, Chintala, Bottou, arXiv 1701.07875). Sources: the authors' poster, and
their released code (ayushgs/PoseGuided: models.py, train.py, utils.py, data_prep.py).

Where poster and code disagree, we follow the poster:
- batch 4, 40k + 25k steps, learning rate 5e-5 for all. Code: batch 1, stage I for 25k steps, Adam at 2e-5 but RMSProp
  at 5e-5 in stage II of WGAN;
- the pose enters stage I as 18 maps. The code gives G1 the target's pose mask instead;
- networks: the poster calls both stages PG2's ("original architecture"), so they are. The code's G1 upsamples, then
  convolves 3x3 (PG2: 1x1); its G2 has 6 levels at 256x256 (PG2: 4); its layers start as torch's defaults; its critic
  has LeakyReLU 0.01 (PG2: 0.2), starts from U(-0.02 / sqrt(3), 0.02 / sqrt(3)) (PG2: times sqrt(3)), and pads evenly.

Where the poster is silent, the code: lambda 50, Adam's betas 0.5 and 0.999, RMSProp's smoothing constant 0.99 (torch's
default), weights clipped to 0.01 (WGAN's too), the critic before the generator, batch normalisation in the critic,
joints drawn as discs of radius 8 pixels. The code draws the limbs of the pose mask with radius 8 too: that is
`shards.mask_radius`, 4 where not set.

Not repeated, for they are the code's slips:
- the convolutions of both generators lie in plain dicts, unknown to the optimiser, and stay as they were drawn;
- the negatives' scores are copied into a new tensor, which cuts the graph: no adversarial gradient reaches G2, and the
  critic learns from the targets alone;
- the generator is rewarded for the critic's score of the source image too;
- the scores are split into three in a way that is right for a batch of one only;
- the critic's ten updates are all on the same batch. WGAN draws a fresh one for each, and so do we.

Variants, by the poster's table: "g1" is stage I alone, "g1+g2+d" PG2's pair critic with BCE, "triplet" the classifying
critic with BCE, "wgan-triplet" the same as a Wasserstein critic. "full" is "wgan-triplet".

Parameters for 256x256 at width 128: stage I 122.1 M, stage II 12.7 M, critic 10.9 M.

Numbers to expect on DeepFashion (poster; IS / SSIM): g1 2.58 / 0.72, g1+g2+d 2.993 / 0.71, triplet 3.01 / 0.727,
wgan-triplet 3.02 / 0.73; PG2's own 3.091 / 0.76, the targets 3.25 / 1. SSIM there is of grey images, and the notebook
of the code takes 400 test images, so these compare within the table only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from posegen.batch import Batch, Scalar
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import CHANNELS, Logits, discriminator_terms, generator_terms, scores
from posegen.nets.convolutional import DcganDiscriminator
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Rate, Weight
from posegen.systems.pg2 import (
    SYNTHETIC_COARSE,
    DifferenceMap,
    PoseIntegration,
    reconstruction_terms,
    refined,
    stage_one,
)


def mean_score(logits: Logits) -> Scalar:
    """Return mean D, in float32 at least: any real number, of which only differences have a meaning."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).mean()


def wasserstein_critic_terms(logits: Mapping[str, Logits]) -> dict[str, Term]:
    """Return the terms "real", -mean D of the targets, and mean D of each kind of negatives.

    The critic minimises their sum,
    -0.5 (mean D(I_B) - mean D({G2, I_A})) on a stack, where the mean is over both kinds, so each weighs 0.25. WGAN's
    algorithm 1 has no factor; the 0.5 is the released code's, and RMSProp, which divides by the gradient's size, does
    not see it.
    """
    negatives = [name for name in logits if name != "real"]
    terms = {name: Term(mean_score(logits[name]), 0.5 / len(negatives)) for name in negatives}
    return {"real": Term(-mean_score(logits["real"]), 0.5), **terms}


@dataclass(frozen=True, kw_only=True)
class WassersteinRefinement:
    """Stage II: L_adv + l1_weight (mean |I - I_B| + mask_weight mean(|I - I_B| M_B)), I = stage I's + the difference.

    `game` "wgan": L_adv = -mean D(I), the critic's loss is `wasserstein_critic_terms`; both learn by RMSProp, and each
    of the critic's `critic_updates` ends with all its weights clipped to +-`clip_weights`. "bce": L_adv =
    BCE(D(I), 1), the critic's loss is PG2's (`losses.adversarial`); both learn by Adam, nothing is clipped. `critic` is
    the critic's input there: "stack" (single images) or "pair". The critic is updated first, as in WGAN's algorithm 1.
    """

    name: ClassVar[str] = "refinement"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose_mask", "coarse_image")
    writes: ClassVar[tuple[str, ...]] = ("refined_image",)

    width: Positive = 128  # channels of the first level
    full_resolution_skip: bool = True
    game: Literal["wgan", "bce"] = "wgan"
    critic: Literal["stack", "pair"] = "stack"
    critic_width: Positive = 64
    critic_normalised: bool = True  # batch normalisation, whose factors are clipped too
    critic_updates: Positive = 10  # N, for each update of the generator
    clip_weights: Rate = 0.01  # c of WGAN; not in "bce"
    l1_weight: Weight = 50.0  # lambda
    mask_weight: Weight = 1.0
    training: Training = Training(steps=25_000, batch_size=4, lr=5e-5, discriminator_lr=5e-5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        wasserstein = self.game == "wgan"
        return adversarial_players(
            self.training,
            discriminators=("critic",),
            adversary="critic",
            generator_first=False,
            optimizer="rmsprop" if wasserstein else "adam",
            betas=(0.0, 0.99) if wasserstein else (0.5, 0.999),
            repeats=self.critic_updates,
            clip_weights=self.clip_weights if wasserstein else None,
        )

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        size, channels = canvas.size, CHANNELS[self.critic]
        critic = {"width": self.critic_width, "normalised": self.critic_normalised}
        return {
            "generator": DifferenceMap(size=size, width=self.width, full_resolution_skip=self.full_resolution_skip),
            "critic": DcganDiscriminator(size=size, channels=channels, **critic),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return refined(nets, batch)

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated = outputs["refined_image"]
        logits = scores(self.critic, nets["critic"], batch, generated)
        if player == "critic":
            return discriminator_terms(logits) if self.game == "bce" else wasserstein_critic_terms(logits)
        wasserstein = {"adversarial": Term(-mean_score(logits["fake"]))}
        adversarial = generator_terms(logits) if self.game == "bce" else wasserstein
        return adversarial | reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)


def classifying(critic: Literal["stack", "pair"]) -> Variant:
    """Return the variant whose critic classifies, with BCE."""
    settings = {"game": "bce", "critic": critic, "critic_updates": 1, "critic_normalised": True}
    return Variant(settings={f"refinement.{name}": value for name, value in settings.items()})


TRIPLET = Paper(
    citation="Gupta et al.: Neural Techniques for Pose Guided Image Generation, Stanford CS231n 2018",
    presets={
        "deepfashion": Preset((256, 256), Discs(radius=8.0), (
            PoseIntegration(training=Training(steps=40_000, batch_size=4, lr=5e-5, discriminator_lr=2e-5)),
            WassersteinRefinement(),
        )),
        # Not published. Our choice: what goes with the images (steps, batch, lambda, skips, discs) is PG2's for them.
        "market1501": Preset((128, 64), Discs(radius=4.0), (
            PoseIntegration(training=Training(steps=22_000, batch_size=16, lr=5e-5, discriminator_lr=2e-5)),
            WassersteinRefinement(
                l1_weight=10.0, full_resolution_skip=False,
                training=Training(steps=14_000, batch_size=16, lr=5e-5, discriminator_lr=5e-5),
            ),
        )),
        # Our choice: what two processor cores train in a few minutes. The Wasserstein critic has no normalisation
        # there: with it the adversarial gradient stayed at least 7 times smaller than that of the other terms: no image
        # changed.
        "synthetic": Preset((64, 32), Discs(radius=2.0), (
            SYNTHETIC_COARSE,
            WassersteinRefinement(
                width=16, critic_width=32, critic_updates=5, critic_normalised=False, l1_weight=400.0,
                training=Training(steps=120, batch_size=16, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5),
            ),
        )),
    },
    variants={
        "full": Variant(),
        "g1": stage_one(),
        "g1+g2+d": classifying("pair"),
        "triplet": classifying("stack"),
        "wgan-triplet": Variant(),
    },
    image="refined_image",
)  # fmt: skip
