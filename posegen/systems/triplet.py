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
- the critic's ten moves are all on the same batch. WGAN draws a fresh one for each, and so do we.

Variants, by the poster's table: "g1" is stage I alone, "g1+g2+d" PG2's pair critic with BCE, "triplet" the classifying
critic with BCE, "wgan-triplet" the same as a Wasserstein critic. "full" is "wgan-triplet".

Parameters for 256x256 at width 128: stage I 122.1 M, stage II 12.7 M, critic 10.9 M.

Numbers to expect on DeepFashion (poster; IS / SSIM): g1 2.58 / 0.72, g1+g2+d 2.993 / 0.71, triplet 3.01 / 0.727,
wgan-triplet 3.02 / 0.73; PG2's own 3.091 / 0.76, the targets 3.25 / 1. SSIM there is of grey images, and the notebook
of the code takes 400 test images, so these compare within the table only.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from posegen.batch import Batch, Scalar
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import Logits
from posegen.nets.critics import DcganCritic
from posegen.stage import Networks, Player, System, Term
from posegen.systems.critic_game import critic_terms, generator_terms, scores
from posegen.systems.pg2 import DifferenceMap, PoseIntegration, reconstruction_terms
from posegen.systems.settings import check_fields, check_known, learning_rate_schedule, settings_for

PAPER = "Gupta et al.: Neural Techniques for Pose Guided Image Generation, Stanford CS231n 2018"


def mean_score(logits: Logits) -> Scalar:
    """mean D, in float32 at least: any real number, and only differences of it mean something."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).mean()


def wasserstein_critic_terms(logits: Mapping[str, Logits]) -> dict[str, Term]:
    """The terms "real", -mean D of the targets, and of each kind of negatives mean D: the critic minimises their sum.

    -0.5 (mean D(I_B) - mean D({G2, I_A})) on a stack, where the mean is over both kinds, so each weighs 0.25. WGAN's
    algorithm 1 has no factor; the 0.5 is the released code's, and RMSProp, which divides by the gradient's size, does
    not see it.
    """
    negatives = [name for name in logits if name != "real"]
    terms = {name: Term(mean_score(logits[name]), 0.5 / len(negatives)) for name in negatives}
    return {"real": Term(-mean_score(logits["real"]), 0.5), **terms}


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Stage II: L_adv + l1_weight (mean |I - I_B| + mask_weight mean(|I - I_B| M_B)), I = stage I's + the difference.

    `game` "wgan": L_adv = -mean D(I), the critic's loss is `wasserstein_critic_terms`; both learn by RMSProp, and each
    of the critic's `critic_turns` moves ends with all its weights clipped to +-`clip_weights`. "bce": L_adv =
    BCE(D(I), 1), the critic's loss is that of `critic_game`; both learn by Adam, nothing is clipped. `critic` is the
    critic's input there: "stack" (single images) or "pair". The critic moves first, as in WGAN's algorithm 1.
    """

    name: ClassVar[str] = "refinement"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose_mask", "coarse_image")
    writes: ClassVar[tuple[str, ...]] = ("refined_image",)

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    width: int = 128  # channels of the first level
    full_resolution_skip: bool = True
    game: Literal["wgan", "bce"] = "wgan"
    critic: Literal["stack", "pair"] = "stack"
    critic_width: int = 64
    critic_normalised: bool = True  # batch normalisation, whose factors are clipped too
    critic_turns: int = 10  # N, the critic's moves for each of the generator's
    clip_weights: float = 0.01  # c of WGAN; not in "bce"
    l1_weight: float = 50.0  # lambda
    mask_weight: float = 1.0
    steps: int = 25_000
    batch_size: int = 4
    lr: float = 5e-5
    critic_lr: float = 5e-5
    constant_lr_share: float = 1.0  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = learning_rate_schedule(self.steps, self.constant_lr_share)
        critic = Player(
            name="critic", nets=("critic",), lr=self.critic_lr, schedule=schedule, repeats=self.critic_turns
        )
        generator = Player(name="generator", nets=("generator",), lr=self.lr, schedule=schedule)
        if self.game == "bce":
            return (critic, generator)
        critic = dataclasses.replace(critic, clip_weights=self.clip_weights)
        return tuple(dataclasses.replace(each, optimizer="rmsprop", betas=(0.0, 0.99)) for each in (critic, generator))

    def networks(self) -> dict[str, nn.Module]:
        channels, skip = 6 if self.critic == "pair" else 3, self.full_resolution_skip
        return {
            "generator": DifferenceMap(size=self.size, width=self.width, full_resolution_skip=skip),
            "critic": DcganCritic(
                size=self.size, channels=channels, width=self.critic_width, normalised=self.critic_normalised
            ),
        }

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        coarse = batch["coarse_image"]
        return {"refined_image": coarse + nets["generator"](coarse, batch["source_image"])}

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        if player == "critic":
            with torch.no_grad():
                generated = self.outputs(nets, batch)["refined_image"]
            if self.game == "bce":
                return critic_terms(self.critic, nets["critic"], batch, generated)
            return wasserstein_critic_terms(scores(self.critic, nets["critic"], batch, generated))
        generated = self.outputs(nets, batch)["refined_image"]
        if self.game == "bce":
            adversarial = generator_terms(self.critic, nets["critic"], batch, generated)
        else:
            score = mean_score(scores(self.critic, nets["critic"], batch, generated)["fake"])
            adversarial = {"adversarial": Term(-score)}
        return adversarial | reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)


class Settings(NamedTuple):
    """What differs between data sets."""

    size: tuple[int, int]
    pose_radius: float
    coarse: PoseIntegration
    refinement: Refinement


SETTINGS = {
    "deepfashion": Settings((256, 256), 8.0, PoseIntegration(steps=40_000, batch_size=4, lr=5e-5), Refinement()),
    # Not published. Our choice: what goes with the images (steps, batch, lambda, skips, discs) is PG2's for them.
    "market1501": Settings(
        (128, 64),
        4.0,
        PoseIntegration(lr=5e-5),
        Refinement(steps=14_000, batch_size=16, l1_weight=10.0, full_resolution_skip=False),
    ),
    # Our choice: what two processor cores train in a few minutes. The Wasserstein critic has no normalisation there:
    # with it the adversarial gradient stayed at least 7 times smaller than that of the other terms: no image changed.
    "synthetic": Settings(
        (64, 32),
        2.0,
        PoseIntegration(width=16, steps=4200, batch_size=8, lr=1e-3, constant_lr_share=0.3),
        Refinement(
            width=16, steps=120, batch_size=16, lr=2e-4, critic_lr=2e-4, critic_width=32, critic_turns=5,
            critic_normalised=False, l1_weight=400.0, constant_lr_share=0.5,
        ),
    ),
}  # fmt: skip

VARIANTS = ("full", "g1", "g1+g2+d", "triplet", "wgan-triplet")


def triplet(dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None) -> System:
    """The system with the settings of a data set; variants as in the module's docstring.

    Raises ValueError for an unknown data set or variant, and for a size that the networks cannot halve.
    """
    check_known("variant of triplet", variant, VARIANTS)
    settings, size = settings_for(dataset, size, SETTINGS)
    coarse = dataclasses.replace(settings.coarse, size=size)
    refinement = _refinement(variant, dataclasses.replace(settings.refinement, size=size))
    alone = variant == "g1"
    return System(
        name="triplet",
        variant=variant,
        paper=PAPER,
        size=size,
        pose_maps=Discs(radius=settings.pose_radius),
        stages=(coarse,) if alone else (coarse, refinement),
        image="coarse_image" if alone else "refined_image",
    )


def _refinement(variant: str, stage: Refinement) -> Refinement:
    if variant in ("full", "wgan-triplet"):
        return stage
    critic = "pair" if variant == "g1+g2+d" else "stack"
    return dataclasses.replace(stage, game="bce", critic=critic, critic_turns=1, critic_normalised=True)
