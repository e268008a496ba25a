"""PG2: Ma, Jia, Sun, Schiele, Tuytelaars, Van Gool: Pose Guided Person Image Generation, NIPS 2017 (arXiv 1705.09368).

Stage I ("coarse") draws the person of the source image in the target pose, by a U-Net on the source image and the
18 pose maps; stage II ("refinement") adds a difference map, trained against a critic. Released code:
charliememory/Pose-Guided-Person-Image-Generation (models.py, models256.py, trainer.py, trainer256.py, wgan_gp.py).

Where paper and code disagree, we follow
- critic input: the released code (stacks of single images); `critic="pair"` is the paper's;
- lambda of stage II: the code's 10 (Market-1501) and 50 (DeepFashion), the paper has it in a supplement we did not
  see;
- pose mask in stage II: the code, which weights the same pixels as in stage I;
- steps and batch: the paper's (22k + 14k of 16; DeepFashion 30k + 20k of 8). The scripts take 22k for stage I of
  both, and batch 1 for DeepFashion, with which users did not reach the released model's quality;
- learning rate: 2e-5 throughout, as in both (the code's halving is not connected to its optimisers);
- skips of stage II: the code, where the Market-1501 model has none at full resolution.

Parameters at width 128: stage I 70.8 M, stage II 6.06 M, critic 4.32 M for 128x64; 122.1 M, 12.7 M, 10.9 M for
256x256.

Numbers to expect of the full system: SSIM 0.253, IS 3.460, mask-SSIM 0.792, mask-IS 3.435 on Market-1501 and SSIM
0.762, IS 3.090 on DeepFashion, as later papers quote table 1 (we did not see the table itself, and have no numbers for
the variants). The text says: "g1-l1" beats "g1-ce-l1" on every measure and is about as good as "g1-hme-l1", "g1-mask"
has the best SSIM, adversarial variants are sharper at lower SSIM.

Our choices: the layer sizes of the embeddings in "g1-ce-l1" and "g1-hme-l1", and loss and steps of "g1+d"
(adversarial + lambda L1, for as many steps as both stages have), for which neither paper nor code says; the settings
of "synthetic".
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images, Joints, PoseMaps, Visible
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.reconstruction import l1, masked_l1
from posegen.nets.unet import (
    PlainDecoder,
    PlainEncoder,
    ResidualDecoder,
    ResidualEncoder,
    bottleneck_size,
    initialise_xavier,
    level_count,
)
from posegen.stage import Networks, Player, System, Term
from posegen.systems.critic_game import CriticInput, critic_terms, generator_terms, new_critic
from posegen.systems.settings import check_fields, check_known, learning_rate_schedule, settings_for

PAPER = "Ma et al.: Pose Guided Person Image Generation, NIPS 2017"
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
        self.apply(initialise_xavier)

    def forward(self, source: Images, pose: PoseMaps | Float[Tensor, "batch 36"]) -> Images:
        """The image; `pose` is the coordinates in [-1, 1] for "coordinates" and the pose maps otherwise."""
        skips = self.encoder(torch.cat([source, pose], dim=1) if self.embedding == "maps" else source)
        code = self.code(skips[-1].flatten(1))
        if self.embedding != "maps":
            code = torch.cat([code, self._encoded(pose)], dim=1)
        return self.decoder(self.spread(code).unflatten(1, self.bottleneck), skips)

    def _encoded(self, pose: Tensor) -> Tensor:
        return self.pose_code(pose if self.embedding == "coordinates" else self.pose_encoder(pose)[-1].flatten(1))


class DifferenceMap(nn.Module):
    """G2: a U-Net of plain blocks on stage I's image and the source image, whose output is added to the former."""

    def __init__(self, *, size: tuple[int, int], width: int, full_resolution_skip: bool) -> None:
        super().__init__()
        levels = level_count(size) - 2
        self.encoder = PlainEncoder(channels=6, width=width, levels=levels)
        self.decoder = PlainDecoder(width=width, levels=levels, full_resolution_skip=full_resolution_skip)
        self.apply(initialise_xavier)

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
    """Stage I. Without a critic: mean |G1 - I_B| + mask_weight mean(|G1 - I_B| M_B), the pose mask loss.

    With a critic ("g1+d", one stage only): BCE(D(G1), 1) + l1_weight times that. `mask_weight` 0 is plain L1.
    """

    name: ClassVar[str] = "coarse"
    # Which of the pose's columns is used depends on `embedding`.
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "target_image", "target_pose", "target_joints", "target_visible", "target_pose_mask",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("coarse_image",)

    size: tuple[int, int] = (128, 64)  # height, width in pixels
    width: int = 128  # channels of the first level
    latent: int = 64  # units of the bottleneck
    embedding: Embedding = "maps"
    mask_weight: float = 1.0
    critic: Literal["none", "stack", "pair"] = "none"
    l1_weight: float = 1.0  # lambda; beside a critic
    critic_width: int = 64
    critic_lr: float = 2e-5
    steps: int = 22_000
    batch_size: int = 16
    lr: float = 2e-5
    constant_lr_share: float = 1.0  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = learning_rate_schedule(self.steps, self.constant_lr_share)
        generator = Player(name="generator", nets=("generator",), lr=self.lr, schedule=schedule)
        if self.critic == "none":
            return (generator,)
        return (generator, Player(name="critic", nets=("critic",), lr=self.critic_lr, schedule=schedule))

    def networks(self) -> dict[str, nn.Module]:
        generator = PoseIntegrator(size=self.size, width=self.width, latent=self.latent, embedding=self.embedding)
        if self.critic == "none":
            return {"generator": generator}
        return {"generator": generator, "critic": new_critic(self.critic, self.size, self.critic_width)}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        if self.embedding == "coordinates":
            pose = coordinates(batch["target_joints"], batch["target_visible"], self.size)
        else:
            pose = batch["target_pose"]
        return {"coarse_image": nets["generator"](batch["source_image"], pose)}

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        if player == "critic":
            with torch.no_grad():
                generated = self.outputs(nets, batch)["coarse_image"]
            assert self.critic != "none"
            return critic_terms(self.critic, nets["critic"], batch, generated)
        generated = self.outputs(nets, batch)["coarse_image"]
        terms = reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)
        if self.critic == "none":
            return terms
        return generator_terms(self.critic, nets["critic"], batch, generated) | terms


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Stage II: BCE(D(G2), 1) + l1_weight (mean |I - I_B| + mask_weight mean(|I - I_B| M_B)), I = stage I + difference.

    The critic's loss and the choice of its input are in `critic_game`.
    """

    name: ClassVar[str] = "refinement"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "target_pose_mask", "coarse_image")
    writes: ClassVar[tuple[str, ...]] = ("refined_image",)

    size: tuple[int, int] = (128, 64)  # height, width in pixels
    width: int = 128  # channels of the first level
    full_resolution_skip: bool = False
    critic: CriticInput = "stack-with-coarse"
    critic_width: int = 64
    l1_weight: float = 10.0  # lambda
    mask_weight: float = 1.0
    steps: int = 14_000
    batch_size: int = 16
    lr: float = 2e-5
    critic_lr: float = 2e-5
    constant_lr_share: float = 1.0  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = learning_rate_schedule(self.steps, self.constant_lr_share)
        return (
            Player(name="generator", nets=("generator",), lr=self.lr, schedule=schedule),
            Player(name="critic", nets=("critic",), lr=self.critic_lr, schedule=schedule),
        )

    def networks(self) -> dict[str, nn.Module]:
        skip = self.full_resolution_skip
        return {
            "generator": DifferenceMap(size=self.size, width=self.width, full_resolution_skip=skip),
            "critic": new_critic(self.critic, self.size, self.critic_width),
        }

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        coarse = batch["coarse_image"]
        return {"refined_image": coarse + nets["generator"](coarse, batch["source_image"])}

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        if player == "critic":
            with torch.no_grad():
                generated = self.outputs(nets, batch)["refined_image"]
            return critic_terms(self.critic, nets["critic"], batch, generated)
        generated = self.outputs(nets, batch)["refined_image"]
        terms = reconstruction_terms(batch, generated, self.l1_weight, self.mask_weight)
        return generator_terms(self.critic, nets["critic"], batch, generated) | terms


def reconstruction_terms(batch: Batch, generated: Images, weight: float, mask_weight: float) -> dict[str, Term]:
    """ "l1" and "mask_l1", weighted to weight (mean |G - I_B| + mask_weight mean(|G - I_B| M_B))."""
    target = batch["target_image"]
    return {
        "l1": Term(l1(generated, target), weight),
        "mask_l1": Term(masked_l1(generated, target, batch["target_pose_mask"]), weight * mask_weight),
    }


class Settings(NamedTuple):
    """What differs between data sets."""

    size: tuple[int, int]
    pose_radius: float
    coarse: PoseIntegration
    refinement: Refinement


SETTINGS = {
    "market1501": Settings((128, 64), 4.0, PoseIntegration(), Refinement()),
    "deepfashion": Settings(
        (256, 256),
        4.0,
        PoseIntegration(steps=30_000, batch_size=8),
        Refinement(steps=20_000, batch_size=8, l1_weight=50.0, full_resolution_skip=True, critic="stack"),
    ),
    # Our choice: what two processor cores train in a few minutes.
    "synthetic": Settings(
        (64, 32),
        2.0,
        PoseIntegration(width=16, steps=4200, batch_size=8, lr=1e-3, constant_lr_share=0.3),
        Refinement(
            width=16, steps=240, batch_size=16, lr=5e-4, critic_lr=2e-4, critic_width=32, critic="stack",
            l1_weight=100.0, full_resolution_skip=True, constant_lr_share=0.5,
        ),
    ),
}  # fmt: skip

VARIANTS = ("full", "g1-l1", "g1-mask", "g1-ce-l1", "g1-hme-l1", "g1+d")


def pg2(dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None) -> System:
    """PG2 with the settings of a data set, or one of the paper's ablations (its names, in lower case).

    Raises ValueError for an unknown data set or variant, and for a size that the networks cannot halve.
    """
    check_known("variant of pg2", variant, VARIANTS)
    settings, size = settings_for(dataset, size, SETTINGS)
    coarse = _coarse(variant, dataclasses.replace(settings.coarse, size=size), settings.refinement)
    refinement = dataclasses.replace(settings.refinement, size=size)
    full = variant == "full"
    return System(
        name="pg2",
        variant=variant,
        paper=PAPER,
        size=size,
        pose_maps=Discs(radius=settings.pose_radius),
        stages=(coarse, refinement) if full else (coarse,),
        image="refined_image" if full else "coarse_image",
    )


def _coarse(variant: str, stage: PoseIntegration, refinement: Refinement) -> PoseIntegration:
    if variant == "g1+d":
        steps, weight = stage.steps + refinement.steps, refinement.l1_weight
        rate, width = refinement.critic_lr, refinement.critic_width
        return dataclasses.replace(
            stage, critic="stack", l1_weight=weight, steps=steps, critic_lr=rate, critic_width=width
        )
    embedding: dict[str, Embedding] = {"g1-ce-l1": "coordinates", "g1-hme-l1": "heatmaps"}
    mask_weight = 0.0 if variant.endswith("-l1") else stage.mask_weight
    return dataclasses.replace(stage, embedding=embedding.get(variant, "maps"), mask_weight=mask_weight)
