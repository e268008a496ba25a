"""Multistage: Si, Wang, Wang, Tan: Multistage adversarial losses for pose-based human image synthesis, CVPR 2018,
pp. 118-126.

A person is turned: source image and rotation angle in, the same person in the same posture seen by another camera
out. Three stages, each trained with those before it frozen. The pose transformer ("pose") turns the source's joints to
the target's view; the foreground transformer ("foreground") draws the person in that predicted pose, without a
background; the background transformer ("background") draws the whole image.

Known from the authors' slides: the three stages and what they hand on, the formula of the foreground transformer, and
all losses; masks come from a CRF-RNN and poses from a stacked hourglass, here from the data. The paper's body was not
found and no code was released, so layers, loss weights, optimiser, splits and scores are not known: no number of the
paper can be given here. OUR CHOICES, each with its reason:
- pose transformer: the residual network that Martinez et al. (A simple yet effective baseline for 3d human pose
  estimation, ICCV 2017) lift poses with, without its limit on the weights' norm; layer instead of batch normalisation,
  so that no statistics of a batch are left behind. Its units are half of the image's longer side; an unknown joint
  is read as the image's middle. A joint is known in the predicted pose where it is in the source, and counts in the
  loss where it is known in both;
- the rotation as [sin, cos] of the true angle between the cameras: views are not spaced by 90 degrees;
- encoders and decoders: DCGAN's 4x4 convolutions of stride 2 (64, 128, 256, 512, 512 channels). Normalisation is over
  each whole feature map: unlike batch normalisation it makes no image depend on others, unlike instance
  normalisation it keeps the channels' means, in which a rotation and a colour lie. Skips go from f_pose(P_t*) to the
  decoder, never from the source image, which is not aligned with the target: the formula's network in Villegas et
  al. (Learning to generate long-term future via hierarchical prediction, ICML 2017), the paper's baseline "VSA", has
  none at all;
- background transformer: a U-Net on source image, predicted foreground and planes of [sin, cos] of the rotation:
  the source's scene and the rotation together say which camera's background is wanted;
- losses: both parts of the masked L1 are means over channels too, so that they compare with `l1`; a squared distance
  counts in the pose's units;
- the background behind a cut-out person is c = `backdrop` = 0, mid grey; what a critic does not judge is 0 as well;
- critics: DCGAN's as in PG2. All images of a critic are scored in one pass, in every move;
- alpha = beta = 100 in all stages (pix2pix's ratio), Adam, rates, batches, steps, sizes, Gaussians of 6 pixels at 256;
- the meaning of the variants below, which the paper names "four foreground baselines" and "two baselines" only.

Variants: "full". Foreground: "no-adversarial" (no critic in stage 2), "global-l1" (plain L1 instead of two parts by
area), "one-branch" (one encoder of foreground and both poses), "concatenated" (two branches, but features side by side
instead of the formula). Whole images: "one-stage" (from source image and poses to the target at once, with one
critic), "one-critic" (stage 3 without the critic of the foreground). "joint": after the three stages, all are
fine-tuned together against all critics, with the sum of their losses (a fourth stage, "joint").

Parameters at 256x256: pose 4,285,476; foreground 23,632,067 ("one-branch" 16,699,395, "concatenated" 32,020,675);
background 54,425,603 ("one-stage" 54,459,395); critics 10,925,057 with poses and 10,896,257 without. At 128x64 the
background has 29,253,635, the critics 4,353,537 and 4,324,737.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Degrees, Images, Joints, Masks, PoseMaps
from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.losses.adversarial import Logits, judged_fake, judged_real, score_together
from posegen.losses.reconstruction import area_l1, l1
from posegen.nets.critics import DcganCritic
from posegen.stage import Networks, Player, System, Term
from posegen.systems.settings import check_fields, check_known, learning_rate_schedule, settings_for

PAPER = "Si et al.: Multistage Adversarial Losses for Pose-Based Human Image Synthesis, CVPR 2018"
JOINTS = 18
VIEW = 2  # numbers that tell the rotation
POSE_MAPS = Gaussians(sigma=6.0)

Fusion = Literal["analogy", "concatenation", "one-branch"]
Features = Float[Tensor, "batch _ _ _"]
Terms = dict[str, Term]


def view_code(rotation: Degrees) -> Float[Tensor, "batch 2"]:
    """[sin, cos] of the angle from the source's camera to the target's."""
    angle = torch.deg2rad(rotation)
    return torch.stack([angle.sin(), angle.cos()], dim=1)


def cut_out(images: Images, mask: Masks, backdrop: float) -> Images:
    """F = I M + c (1 - M): the person before one grey c, in [-1, 1]."""
    return images * mask + backdrop * (1 - mask)


class ResidualLinear(nn.Module):
    """x + two times [linear, normalisation, ReLU, dropout] of x (Martinez et al. 2017)."""

    def __init__(self, *, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_linear(width, width, dropout), *_linear(width, width, dropout))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return features + self.layers(features)


def _linear(inner: int, outer: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inner, outer), nn.LayerNorm(outer), nn.ReLU(), nn.Dropout(dropout)]


def initialise_kaiming(module: nn.Module) -> None:
    """Kaiming-normal weights and zero biases of linear layers; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)


class PoseNetwork(nn.Module):
    """G_p: the source's joints and the view code to the target's joints, by `blocks` residual blocks.

    Always in the weights' own precision: bfloat16 would place a joint of a 256-pixel image to half a pixel only.
    """

    def __init__(self, *, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_linear(2 * JOINTS + VIEW, width, dropout),
            *(ResidualLinear(width=width, dropout=dropout) for _ in range(blocks)),
            nn.Linear(width, 2 * JOINTS),
        )
        self.apply(initialise_kaiming)

    def forward(self, joints: Joints, view: Float[Tensor, "batch 2"]) -> Joints:
        """Joints in, joints out: the image's middle is 0, and half of its longer side 1."""
        with torch.autocast(joints.device.type, enabled=False):
            return self.layers(torch.cat([joints.flatten(1), view], dim=1)).view_as(joints)


def level_widths(size: tuple[int, int], *, width: int, depth: int) -> list[int]:
    """Channels of each halving, `width` times 1, 2, 4, 8, 8, ...: as many as both sides allow, at most `depth`."""
    halvings = next((k for k in range(depth, 0, -1) if not any(side % 2**k for side in size)), 1)
    return [width * min(2**k, 8) for k in range(halvings)]


class Encoder(nn.Module):
    """4x4 convolutions of stride 2, normalisation but in the first, LeakyReLU 0.2. Gives the features of all levels."""

    def __init__(self, *, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, outer, 4, stride=2, padding=1),
                nn.GroupNorm(1, outer) if k > 0 else nn.Identity(),
                nn.LeakyReLU(0.2),
            )
            for k, (inner, outer) in enumerate(zip([channels, *widths], widths, strict=False))
        )

    def forward(self, inputs: Features) -> list[Tensor]:
        """The features of each level, the finest first."""
        features = []
        for level in self.levels:
            inputs = level(inputs)
            features.append(inputs)
        return features


class Decoder(nn.Module):
    """4x4 transposed convolutions of stride 2 with normalisation and ReLU; the last with tanh, to an image.

    `channels` come in at the coarsest level; to each other level an encoder's features of that level are joined.
    """

    def __init__(self, *, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        inner = [channels, *(2 * width for width in widths[-2::-1])]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(1, after), nn.ReLU())
            for before, after in zip(inner, widths[-2::-1], strict=False)
        )
        self.image = nn.Sequential(nn.ConvTranspose2d(inner[-1], 3, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, bottleneck: Features, skips: Sequence[Tensor]) -> Images:
        """The image, in [-1, 1]. `skips` are all levels of an encoder but the coarsest, the finest first."""
        features = bottleneck
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            features = torch.cat([step(features), skip], dim=1)
        return self.image(features)


class ForegroundNetwork(nn.Module):
    """F_t* = f_dec(f_pose(P_t*) - f_pose(P_s) + f_img(F_s)) (slides); f_pose is one network for both poses.

    "concatenation" joins the three features on the channels instead; "one-branch" has a single encoder of all three.
    """

    def __init__(self, *, size: tuple[int, int], width: int, depth: int, fusion: Fusion) -> None:
        super().__init__()
        widths = level_widths(size, width=width, depth=depth)
        self.fusion: Fusion = fusion
        self.image_encoder = Encoder(channels=3 + (2 * JOINTS if fusion == "one-branch" else 0), widths=widths)
        if fusion != "one-branch":
            self.pose_encoder = Encoder(channels=JOINTS, widths=widths)
        self.decoder = Decoder(channels=widths[-1] * (3 if fusion == "concatenation" else 1), widths=widths)

    def forward(self, foreground: Images, source_pose: PoseMaps, target_pose: PoseMaps) -> Images:
        """The person in the target's pose."""
        if self.fusion == "one-branch":
            *skips, bottleneck = self.image_encoder(torch.cat([foreground, source_pose, target_pose], dim=1))
            return self.decoder(bottleneck, skips)
        image = self.image_encoder(foreground)[-1]
        poses = [level.chunk(2) for level in self.pose_encoder(torch.cat([source_pose, target_pose]))]
        source, target = poses[-1]
        mixed = target - source + image if self.fusion == "analogy" else torch.cat([image, source, target], dim=1)
        return self.decoder(mixed, [wanted for _, wanted in poses[:-1]])


class SceneNetwork(nn.Module):
    """A U-Net on images and maps side by side, with planes of the view code; to a whole image."""

    def __init__(self, *, channels: int, size: tuple[int, int], width: int, depth: int) -> None:
        super().__init__()
        widths = level_widths(size, width=width, depth=depth)
        self.encoder = Encoder(channels=channels + VIEW, widths=widths)
        self.decoder = Decoder(channels=widths[-1], widths=widths)

    def forward(self, given: Float[Tensor, "batch channels height width"], view: Float[Tensor, "batch 2"]) -> Images:
        planes = view[:, :, None, None].expand(-1, -1, *given.shape[2:])
        *skips, bottleneck = self.encoder(torch.cat([given, planes], dim=1))
        return self.decoder(bottleneck, skips)


def pair_critic(size: tuple[int, int], width: int) -> DcganCritic:
    """A fresh critic of images with pose maps."""
    return DcganCritic(size=size, channels=3 + JOINTS, width=width)


def paired_logits(critic: nn.Module, real: Images, fake: Images, pose: PoseMaps) -> dict[str, Logits]:
    """A critic's logits of a real and of a generated image, each with the same pose maps beside it."""
    return score_together(critic, {"real": torch.cat([real, pose], dim=1), "fake": torch.cat([fake, pose], dim=1)})


def judged(logits: Mapping[str, Logits]) -> Terms:
    """A critic's terms: -log D(real) and -log(1 - D(fake))."""
    return {"real": Term(judged_real(logits["real"])), "fake": Term(judged_fake(logits["fake"]))}


def area_terms(generated: Images, target: Images, mask: Masks, *, alpha: float, beta: float) -> Terms:
    """alpha L_fg + beta L_bg: `area_l1` within the mask and outside of it."""
    return {
        "foreground_l1": Term(area_l1(generated, target, mask), alpha),
        "background_l1": Term(area_l1(generated, target, 1 - mask), beta),
    }


@runtime_checkable
class Adversarial(Protocol):
    """A stage whose players are "generator" and, where it has critics, "critic"."""

    @property
    def lr(self) -> float: ...
    @property
    def critic_lr(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def constant_lr_share(self) -> float: ...

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]: ...

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        """The generator's terms for the stage's outputs."""
        ...

    def critic_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        """The critics' terms for the stage's outputs."""
        ...


def turn(stage: Adversarial, player: str, nets: Networks, batch: Batch) -> Terms:
    """The player's terms. The critics see what the generator makes, and hand no gradient back."""
    if player == "critic":
        with torch.no_grad():
            made = stage.outputs(nets, batch)
        return stage.critic_terms(nets, batch, made)
    return stage.generator_terms(nets, batch, stage.outputs(nets, batch))


def players(stage: Adversarial, *, generators: Sequence[str], critics: Sequence[str]) -> tuple[Player, ...]:
    """The generator and, where there is a critic, the player of all critics; the generator moves first."""
    schedule = learning_rate_schedule(stage.steps, stage.constant_lr_share)
    generator = Player(name="generator", nets=tuple(generators), lr=stage.lr, schedule=schedule)
    critic = Player(name="critic", nets=tuple(critics), lr=stage.critic_lr, schedule=schedule)
    return (generator, critic) if critics else (generator,)


@dataclass(frozen=True, kw_only=True)
class PoseTransformer:
    """Stage 1: L = sum over joints of |p_i* - p_i|^2 (slides), the mean over the batch; no adversarial term.

    Distances are in units of half of the image's longer side. "pixels", the mean distance, is logged and not learned.
    """

    name: ClassVar[str] = "pose"
    reads: ClassVar[tuple[str, ...]] = (
        "source_joints", "source_visible", "target_joints", "target_visible", "rotation",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("predicted_joints", "predicted_pose")

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    pose_maps: Discs | Gaussians = POSE_MAPS  # that draw P_t*
    width: int = 1024
    blocks: int = 2
    dropout: float = 0.5  # probability
    steps: int = 100_000
    batch_size: int = 64
    lr: float = 1e-3
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = learning_rate_schedule(self.steps, self.constant_lr_share)
        player = Player(name="generator", nets=("generator",), lr=self.lr, betas=(0.9, 0.999), schedule=schedule)
        return (player,)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": PoseNetwork(width=self.width, blocks=self.blocks, dropout=self.dropout)}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        joints = self._predicted(nets, batch)
        return {
            "predicted_joints": joints,
            "predicted_pose": self.pose_maps(joints, batch["source_visible"], *self.size),
        }

    def loss(self, player: str, nets: Networks, batch: Batch) -> Terms:
        return self.generator_terms(nets, batch, {"predicted_joints": self._predicted(nets, batch)})

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        known = batch["source_visible"] & batch["target_visible"]
        off = torch.where(known[..., None], made["predicted_joints"] - batch["target_joints"], 0.0)
        _, unit = self._frame(off)
        pixels = off.detach().norm(dim=2).sum() / known.sum().clamp(min=1)
        return {"squared_distance": Term((off / unit).square().sum(dim=(1, 2)).mean()), "pixels": Term(pixels, 0.0)}

    def _predicted(self, nets: Networks, batch: Batch) -> Joints:
        joints = batch["source_joints"]
        middle, unit = self._frame(joints)
        given = torch.where(batch["source_visible"][..., None], (joints - middle) / unit, 0.0)
        return nets["generator"](given, view_code(batch["rotation"])) * unit + middle

    def _frame(self, like: Tensor) -> tuple[Tensor, float]:
        """The middle of the image, x and y in pixels, and half of its longer side."""
        height, width = self.size
        return like.new_tensor(((width - 1) / 2, (height - 1) / 2)), max(height, width) / 2


@dataclass(frozen=True, kw_only=True)
class ForegroundTransformer:
    """Stage 2: L = alpha_f L_fg + beta_f L_bg + L_gen (slides), F the foregrounds, cut out by the masks M.

    L_fg, L_bg = `area_l1` of F_t* and F_t with M_t and with 1 - M_t; L_gen = -log D([F_t*, P_t*]). The critic:
    -log D([F_t, P_t*]) - log(1 - D([F_t*, P_t*])): the real pair carries the predicted pose as well.
    `by_area=False` has (alpha_f + beta_f) mean |F_t* - F_t| instead of the two parts.
    """

    name: ClassVar[str] = "foreground"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "source_person_mask", "source_pose", "target_image", "target_person_mask", "predicted_pose",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("foreground_image",)

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    width: int = 64  # channels of the first level
    depth: int = 5  # halvings at most
    fusion: Fusion = "analogy"
    by_area: bool = True
    adversarial: bool = True  # whether there is a critic
    critic_width: int = 64
    alpha_f: float = 100.0
    beta_f: float = 100.0
    backdrop: float = 0.0  # c, behind a cut-out person, in [-1, 1]
    steps: int = 40_000
    batch_size: int = 16
    lr: float = 2e-4
    critic_lr: float = 2e-4
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        return players(self, generators=("generator",), critics=("critic",) if self.adversarial else ())

    def networks(self) -> dict[str, nn.Module]:
        generator = ForegroundNetwork(size=self.size, width=self.width, depth=self.depth, fusion=self.fusion)
        critics = {"critic": pair_critic(self.size, self.critic_width)} if self.adversarial else {}
        return {"generator": generator, **critics}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        foreground = cut_out(batch["source_image"], batch["source_person_mask"], self.backdrop)
        return {"foreground_image": nets["generator"](foreground, batch["source_pose"], batch["predicted_pose"])}

    def loss(self, player: str, nets: Networks, batch: Batch) -> Terms:
        return turn(self, player, nets, batch)

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        terms = self._image_terms(batch, made["foreground_image"])
        if not self.adversarial:
            return terms
        return {"adversarial": Term(judged_real(self._logits(nets, batch, made)["fake"])), **terms}

    def critic_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        return judged(self._logits(nets, batch, made))

    def _wanted(self, batch: Batch) -> Images:
        return cut_out(batch["target_image"], batch["target_person_mask"], self.backdrop)

    def _image_terms(self, batch: Batch, generated: Images) -> Terms:
        wanted, mask = self._wanted(batch), batch["target_person_mask"]
        if self.by_area:
            return area_terms(generated, wanted, mask, alpha=self.alpha_f, beta=self.beta_f)
        return {"l1": Term(l1(generated, wanted), self.alpha_f + self.beta_f)}

    def _logits(self, nets: Networks, batch: Batch, made: Batch) -> dict[str, Logits]:
        return paired_logits(nets["critic"], self._wanted(batch), made["foreground_image"], batch["predicted_pose"])


@dataclass(frozen=True, kw_only=True)
class BackgroundTransformer:
    """Stage 3: L = alpha_b L_fg + beta_b L_bg + L_gen_fg + L_gen (slides), on whole images I.

    L_fg, L_bg as in stage 2, of I_t* and I_t (inferred: the slides do not write them out). L_gen_fg = -log D_fg([I_t*
    M_t, P_t*]), L_gen = -log D(I_t*). The critics: -log D_fg([I_t M_t, P_t*]) - log(1 - D_fg([I_t* M_t, P_t*])), and
    -log D(I_t) - log(1 - D(I_t*)), of the image alone. `foreground_critic=False` leaves D_fg out.
    """

    name: ClassVar[str] = "background"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "target_image", "target_person_mask", "rotation", "predicted_pose", "foreground_image",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("composed_image",)

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    width: int = 64  # channels of the first level
    depth: int = 8  # halvings at most
    foreground_critic: bool = True
    critic_width: int = 64
    alpha_b: float = 100.0
    beta_b: float = 100.0
    steps: int = 40_000
    batch_size: int = 16
    lr: float = 2e-4
    critic_lr: float = 2e-4
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        critics = ("foreground_critic", "image_critic") if self.foreground_critic else ("image_critic",)
        return players(self, generators=("generator",), critics=critics)

    def networks(self) -> dict[str, nn.Module]:
        generator = SceneNetwork(channels=6, size=self.size, width=self.width, depth=self.depth)
        pairs = {"foreground_critic": pair_critic(self.size, self.critic_width)} if self.foreground_critic else {}
        return {"generator": generator, **pairs, "image_critic": DcganCritic(size=self.size, width=self.critic_width)}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        given = torch.cat([batch["source_image"], batch["foreground_image"]], dim=1)
        return {"composed_image": nets["generator"](given, view_code(batch["rotation"]))}

    def loss(self, player: str, nets: Networks, batch: Batch) -> Terms:
        return turn(self, player, nets, batch)

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        generated, target, mask = made["composed_image"], batch["target_image"], batch["target_person_mask"]
        logits = self._logits(nets, batch, generated).items()
        adversarial = {f"{critic}_adversarial": Term(judged_real(groups["fake"])) for critic, groups in logits}
        return adversarial | area_terms(generated, target, mask, alpha=self.alpha_b, beta=self.beta_b)

    def critic_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        logits = self._logits(nets, batch, made["composed_image"]).items()
        return {f"{critic}_{name}": term for critic, groups in logits for name, term in judged(groups).items()}

    def _logits(self, nets: Networks, batch: Batch, generated: Images) -> dict[str, dict[str, Logits]]:
        """The logits of the critics, "foreground" and "image", of the real and the generated image."""
        target, mask = batch["target_image"], batch["target_person_mask"]
        whole = {"image": score_together(nets["image_critic"], {"real": target, "fake": generated})}
        if not self.foreground_critic:
            return whole
        pose = batch["predicted_pose"]
        return {"foreground": paired_logits(nets["foreground_critic"], target * mask, generated * mask, pose), **whole}


@dataclass(frozen=True, kw_only=True)
class WholeTransformer:
    """The variant "one-stage" behind the pose transformer: source image and poses to the whole target, one critic.

    L = alpha_b L_fg + beta_b L_bg + L_gen with D([I, P_t*]); the network is the background transformer's.
    """

    name: ClassVar[str] = "whole"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "source_pose", "target_image", "target_person_mask", "rotation", "predicted_pose",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("composed_image",)

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    width: int = 64  # channels of the first level
    depth: int = 8  # halvings at most
    critic_width: int = 64
    alpha_b: float = 100.0
    beta_b: float = 100.0
    steps: int = 80_000
    batch_size: int = 16
    lr: float = 2e-4
    critic_lr: float = 2e-4
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def players(self) -> tuple[Player, ...]:
        return players(self, generators=("generator",), critics=("critic",))

    def networks(self) -> dict[str, nn.Module]:
        generator = SceneNetwork(channels=3 + 2 * JOINTS, size=self.size, width=self.width, depth=self.depth)
        return {"generator": generator, "critic": pair_critic(self.size, self.critic_width)}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        given = torch.cat([batch["source_image"], batch["source_pose"], batch["predicted_pose"]], dim=1)
        return {"composed_image": nets["generator"](given, view_code(batch["rotation"]))}

    def loss(self, player: str, nets: Networks, batch: Batch) -> Terms:
        return turn(self, player, nets, batch)

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        generated, target, mask = made["composed_image"], batch["target_image"], batch["target_person_mask"]
        fake = paired_logits(nets["critic"], target, generated, batch["predicted_pose"])["fake"]
        images = area_terms(generated, target, mask, alpha=self.alpha_b, beta=self.beta_b)
        return {"adversarial": Term(judged_real(fake)), **images}

    def critic_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        pose = batch["predicted_pose"]
        return judged(paired_logits(nets["critic"], batch["target_image"], made["composed_image"], pose))


@dataclass(frozen=True, kw_only=True)
class JointTraining:
    """The variant "joint": all networks of the three stages, trained on from there with the sum of their losses.

    The gradient of each loss reaches the stages before through what they hand on; `pose_weight` is the pose
    transformer's (its squared distances are small beside the other terms). Sizes of networks are the stages'.
    """

    name: ClassVar[str] = "joint"
    reads: ClassVar[tuple[str, ...]] = (
        "source_joints", "source_visible", "source_image", "source_person_mask", "source_pose",
        "target_joints", "target_visible", "target_image", "target_person_mask", "rotation",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = (
        "joint_predicted_joints", "joint_predicted_pose", "joint_foreground_image", "joint_composed_image",
    )  # fmt: skip

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    pose_maps: Discs | Gaussians = POSE_MAPS  # that draw P_t*; Gaussians hand its gradient on
    pose_width: int = 1024
    pose_blocks: int = 2
    foreground_width: int = 64
    foreground_depth: int = 5
    background_width: int = 64
    background_depth: int = 8
    critic_width: int = 64
    pose_weight: float = 100.0
    alpha_f: float = 100.0
    beta_f: float = 100.0
    alpha_b: float = 100.0
    beta_b: float = 100.0
    backdrop: float = 0.0  # c, behind a cut-out person, in [-1, 1]
    steps: int = 10_000
    batch_size: int = 16
    lr: float = 2e-5
    critic_lr: float = 2e-5
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def parts(self) -> tuple[PoseTransformer, ForegroundTransformer, BackgroundTransformer]:
        """The three stages, as they are played here: without dropout, which would blur what is handed on."""
        size, critic_width = self.size, self.critic_width
        pose = PoseTransformer(
            size=size, pose_maps=self.pose_maps, width=self.pose_width, blocks=self.pose_blocks, dropout=0.0
        )
        foreground = ForegroundTransformer(
            size=size, width=self.foreground_width, depth=self.foreground_depth, critic_width=critic_width,
            alpha_f=self.alpha_f, beta_f=self.beta_f, backdrop=self.backdrop,
        )  # fmt: skip
        background = BackgroundTransformer(
            size=size, width=self.background_width, depth=self.background_depth, critic_width=critic_width,
            alpha_b=self.alpha_b, beta_b=self.beta_b,
        )  # fmt: skip
        return pose, foreground, background

    @property
    def starts_from(self) -> dict[str, tuple[str, str]]:
        """Every network from its stage's: "foreground_critic" from the critic of "foreground"."""
        origins = {
            "pose": ("generator",),
            "foreground": ("generator", "critic"),
            "background": ("generator", "foreground_critic", "image_critic"),
        }
        return {f"{stage}_{name}": (stage, name) for stage, names in origins.items() for name in names}

    @property
    def players(self) -> tuple[Player, ...]:
        generators = [name for name, (_, own) in self.starts_from.items() if own == "generator"]
        return players(self, generators=generators, critics=[n for n in self.starts_from if n not in generators])

    def networks(self) -> dict[str, nn.Module]:
        return {f"{part.name}_{name}": network for part in self.parts for name, network in part.networks().items()}

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        columns, made = dict(batch), {}
        for part in self.parts:
            outputs = part.outputs(networks_of(part.name, nets), columns)
            columns |= outputs
            made |= {f"joint_{name}": column for name, column in outputs.items()}
        return made

    def loss(self, player: str, nets: Networks, batch: Batch) -> Terms:
        return turn(self, player, nets, batch)

    def generator_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        terms, columns = {}, self._columns(batch, made)
        for part in self.parts:
            weight = self.pose_weight if part.name == "pose" else 1.0
            own = part.generator_terms(networks_of(part.name, nets), columns, columns)
            terms |= {f"{part.name}_{name}": Term(term.value, weight * term.weight) for name, term in own.items()}
        return terms

    def critic_terms(self, nets: Networks, batch: Batch, made: Batch) -> Terms:
        terms, columns = {}, self._columns(batch, made)
        for part in self.parts[1:]:
            own = part.critic_terms(networks_of(part.name, nets), columns, columns)
            terms |= {f"{part.name}_{name}": term for name, term in own.items()}
        return terms

    def _columns(self, batch: Batch, made: Batch) -> Batch:
        """The batch with the stage's outputs, under the names that the three stages know them by."""
        return {**batch, **{name.removeprefix("joint_"): column for name, column in made.items()}}


def networks_of(stage: str, nets: Networks) -> Networks:
    """The joint stage's networks of one of the stages, under the names they have there."""
    return {name.removeprefix(f"{stage}_"): net for name, net in nets.items() if name.startswith(f"{stage}_")}


AnyStage = PoseTransformer | ForegroundTransformer | BackgroundTransformer | WholeTransformer | JointTraining


class Settings(NamedTuple):
    """What differs between data sets."""

    size: tuple[int, int]
    pose_sigma: float
    pose: PoseTransformer
    foreground: ForegroundTransformer
    background: BackgroundTransformer
    whole: WholeTransformer
    joint: JointTraining


LARGE = Settings(
    (256, 256), 6.0, PoseTransformer(), ForegroundTransformer(), BackgroundTransformer(), WholeTransformer(),
    JointTraining(),
)  # fmt: skip

SETTINGS = {
    "market1501": LARGE._replace(size=(128, 64), pose_sigma=3.0),
    "deepfashion": LARGE,
    "human36m": LARGE,
    # What two processor cores train in a few minutes. In so short a training critics make images noisy where the
    # L1 does not weigh more beside them; dropout kept the pose error twice as high.
    "synthetic": Settings(
        (64, 32),
        2.0,
        PoseTransformer(width=256, dropout=0.0, steps=5000, lr=3e-3, constant_lr_share=0.2),
        ForegroundTransformer(
            width=32, depth=3, critic_width=16, alpha_f=400.0, beta_f=400.0, steps=2400, batch_size=8, lr=1e-3,
            constant_lr_share=0.3,
        ),
        BackgroundTransformer(
            width=24, depth=4, critic_width=16, alpha_b=400.0, beta_b=400.0, steps=1600, batch_size=8, lr=1e-3,
            constant_lr_share=0.3,
        ),
        WholeTransformer(
            width=24, depth=4, critic_width=16, alpha_b=400.0, beta_b=400.0, steps=4000, batch_size=8, lr=1e-3,
            constant_lr_share=0.3,
        ),
        JointTraining(
            pose_width=256, foreground_width=32, foreground_depth=3, background_width=24, background_depth=4,
            critic_width=16, pose_weight=400.0, alpha_f=400.0, beta_f=400.0, alpha_b=400.0, beta_b=400.0, steps=300,
            batch_size=8, lr=1e-4, critic_lr=1e-4,
        ),
    ),
}  # fmt: skip

VARIANTS = (
    "full", "no-adversarial", "global-l1", "one-branch", "concatenated", "one-stage", "one-critic", "joint",
)  # fmt: skip


def multistage(dataset: str = "human36m", variant: str = "full", size: tuple[int, int] | None = None) -> System:
    """Multistage with the settings of a data set; variants as in the module's docstring.

    Its data need several cameras, whose azimuths are known. Raises ValueError for an unknown data set or variant, and
    for a size that the networks cannot halve.
    """
    check_known("variant of multistage", variant, VARIANTS)
    settings, size = settings_for(dataset, size, SETTINGS)
    pose_maps = Gaussians(sigma=settings.pose_sigma)
    joint = "joint_" if variant == "joint" else ""
    return System(
        name="multistage",
        variant=variant,
        paper=PAPER,
        size=size,
        pose_maps=pose_maps,
        stages=tuple(_fitted(stage, size, pose_maps) for stage in _stages(settings, variant)),
        image=joint + "composed_image",
        joints=joint + "predicted_joints",
    )


def _fitted(stage: AnyStage, size: tuple[int, int], pose_maps: Gaussians) -> AnyStage:
    if isinstance(stage, PoseTransformer | JointTraining):
        return dataclasses.replace(stage, size=size, pose_maps=pose_maps)
    return dataclasses.replace(stage, size=size)


def _stages(settings: Settings, variant: str) -> list[AnyStage]:
    if variant == "one-stage":
        return [settings.pose, settings.whole]
    foreground = {
        "no-adversarial": {"adversarial": False},
        "global-l1": {"by_area": False},
        "one-branch": {"fusion": "one-branch"},
        "concatenated": {"fusion": "concatenation"},
    }
    changed = dataclasses.replace(settings.foreground, **foreground.get(variant, {}))
    background = dataclasses.replace(settings.background, foreground_critic=variant != "one-critic")
    return [settings.pose, changed, background, *([settings.joint] if variant == "joint" else [])]
