"""Multistage's stages, their losses, presets and variants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from posegen.batch import Batch, Images, Joints, Masks, PoseMaps
from posegen.data.geometry.pose_maps import Gaussians
from posegen.losses.adversarial import Logits, fake_loss, real_loss, score_together
from posegen.losses.reconstruction import area_l1, l1
from posegen.nets.convolutional import DcganDiscriminator
from posegen.stage import (
    GENERATOR,
    Canvas,
    Networks,
    Paper,
    Player,
    Preset,
    Term,
    Training,
    Variant,
    adversarial_players,
)
from posegen.systems.fields import Decay, Positive, Weight
from posegen.systems.multistage.networks import (
    JOINTS,
    BackgroundNetwork,
    ForegroundNetwork,
    Fusion,
    PoseNetwork,
    cut_out,
    view_code,
)

Terms = dict[str, Term]
Grey = Annotated[float, Interval(ge=-1, le=1)]


def pair_discriminator(canvas: Canvas, width: int) -> DcganDiscriminator:
    """Return a fresh discriminator of images with pose maps."""
    return DcganDiscriminator(size=canvas.size, channels=3 + JOINTS, width=width)


def paired_logits(discriminator: nn.Module, real: Images, fake: Images, pose: PoseMaps) -> dict[str, Logits]:
    """Return the logits of a real and of a generated image, each concatenated with the same pose maps."""
    pairs = {name: torch.cat([image, pose], dim=1) for name, image in {"real": real, "fake": fake}.items()}
    return score_together(discriminator, pairs)


def discriminator_loss(logits: Mapping[str, Logits]) -> Terms:
    """Return a discriminator's terms: -log D(real) and -log(1 - D(fake))."""
    return {"real": Term(real_loss(logits["real"])), "fake": Term(fake_loss(logits["fake"]))}


def area_terms(generated: Images, target: Images, mask: Masks, *, alpha: float, beta: float) -> Terms:
    """Return alpha L_fg + beta L_bg: `area_l1` within the mask and outside of it."""
    return {
        "foreground_l1": Term(area_l1(generated, target, mask), alpha),
        "background_l1": Term(area_l1(generated, target, 1 - mask), beta),
    }


@dataclass(frozen=True, kw_only=True)
class PoseTransformer:
    """Stage 1: L = sum over joints of |p_i* - p_i|^2 (slides), the mean over the batch; no adversarial term.

    Distances are in units of half of the image's longer side. "pixels", the mean distance, is logged with weight 0.
    """

    name: ClassVar[str] = "pose"
    reads: ClassVar[tuple[str, ...]] = (
        "source_joints", "source_visible", "target_joints", "target_visible", "rotation",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("predicted_joints", "predicted_pose")

    width: Positive = 1024
    blocks: Positive = 2
    dropout: Decay = 0.5  # probability
    training: Training = Training(steps=100_000, batch_size=64, lr=1e-3, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=(), betas=(0.9, 0.999))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        return {"generator": PoseNetwork(width=self.width, blocks=self.blocks, dropout=self.dropout)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        joints = self._predict(canvas, nets, batch)
        return {"predicted_joints": joints, "predicted_pose": canvas.draw(joints, batch["source_visible"])}

    def training_outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the predicted joints alone: the loss needs no pose maps."""
        return {"predicted_joints": self._predict(canvas, nets, batch)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> Terms:
        """Return the player's terms; the equations are above."""
        known = batch["source_visible"] & batch["target_visible"]
        off = torch.where(known[..., None], outputs["predicted_joints"] - batch["target_joints"], 0.0)
        _, unit = _frame(canvas, off)
        pixels = off.detach().norm(dim=2).sum() / known.sum().clamp(min=1)
        return {"squared_distance": Term((off / unit).square().sum(dim=(1, 2)).mean()), "pixels": Term(pixels, 0.0)}

    def _predict(self, canvas: Canvas, nets: Networks, batch: Batch) -> Joints:
        joints = batch["source_joints"]
        middle, unit = _frame(canvas, joints)
        given = torch.where(batch["source_visible"][..., None], (joints - middle) / unit, 0.0)
        return nets["generator"](given, view_code(batch["rotation"])) * unit + middle


def _frame(canvas: Canvas, like: Tensor) -> tuple[Tensor, float]:
    """The middle of the image, x and y in pixels, and half of its longer side."""
    height, width = canvas.size
    return like.new_tensor(((width - 1) / 2, (height - 1) / 2)), max(height, width) / 2


@dataclass(frozen=True, kw_only=True)
class ForegroundTransformer:
    """Stage 2: L = alpha_f L_fg + beta_f L_bg + L_gen (slides), F the foregrounds, cut out by the masks M.

    L_fg, L_bg = `area_l1` of F_t* and F_t with M_t and with 1 - M_t; L_gen = -log D([F_t*, P_t*]). The discriminator:
    -log D([F_t, P_t*]) - log(1 - D([F_t*, P_t*])): the real pair carries the predicted pose as well.
    `by_area=False` has (alpha_f + beta_f) mean |F_t* - F_t| instead of the two parts.
    """

    name: ClassVar[str] = "foreground"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "source_person_mask", "source_pose", "target_image", "target_person_mask", "predicted_pose",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("foreground_image",)

    width: Positive = 64  # channels of the first level
    depth: Positive = 5  # halvings at most
    fusion: Fusion = "analogy"
    by_area: bool = True
    adversarial: bool = True  # with a discriminator
    discriminator_width: Positive = 64
    alpha_f: Weight = 100.0
    beta_f: Weight = 100.0
    backdrop: Grey = 0.0  # c, behind a cut-out person, in [-1, 1]
    training: Training = Training(steps=40_000, batch_size=16, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=("discriminator",) if self.adversarial else ())

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        generator = ForegroundNetwork(size=canvas.size, width=self.width, depth=self.depth, fusion=self.fusion)
        discriminator = pair_discriminator(canvas, self.discriminator_width)
        return {"generator": generator, **({"discriminator": discriminator} if self.adversarial else {})}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        foreground = cut_out(batch["source_image"], batch["source_person_mask"], self.backdrop)
        return {"foreground_image": nets["generator"](foreground, batch["source_pose"], batch["predicted_pose"])}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> Terms:
        """Return the player's terms; the equations are above."""
        generated, mask = outputs["foreground_image"], batch["target_person_mask"]
        target = cut_out(batch["target_image"], mask, self.backdrop)
        logits = {}
        if self.adversarial:
            logits = paired_logits(nets["discriminator"], target, generated, batch["predicted_pose"])
        if player == "discriminator":
            return discriminator_loss(logits)
        adversarial = {"adversarial": Term(real_loss(logits["fake"]))} if self.adversarial else {}
        if not self.by_area:
            return adversarial | {"l1": Term(l1(generated, target), self.alpha_f + self.beta_f)}
        return adversarial | area_terms(generated, target, mask, alpha=self.alpha_f, beta=self.beta_f)


@dataclass(frozen=True, kw_only=True)
class BackgroundTransformer:
    """Stage 3: L = alpha_b L_fg + beta_b L_bg + L_gen_fg + L_gen (slides), on whole images I.

    L_fg, L_bg as in stage 2, of I_t* and I_t (inferred: the slides do not write them out). L_gen_fg = -log D_fg([I_t*
    M_t, P_t*]), L_gen = -log D(I_t*). The discriminators: -log D_fg([I_t M_t, P_t*]) - log(1 - D_fg([I_t* M_t, P_t*])),
    and -log D(I_t) - log(1 - D(I_t*)), of the image alone. `foreground_discriminator=False` leaves D_fg out.
    """

    name: ClassVar[str] = "background"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "target_image", "target_person_mask", "rotation", "predicted_pose", "foreground_image",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("composed_image",)

    width: Positive = 64  # channels of the first level
    depth: Positive = 8  # halvings at most
    foreground_discriminator: bool = True
    discriminator_width: Positive = 64
    alpha_b: Weight = 100.0
    beta_b: Weight = 100.0
    training: Training = Training(steps=40_000, batch_size=16, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        foreground = ("foreground_discriminator",) if self.foreground_discriminator else ()
        return adversarial_players(self.training, discriminators=(*foreground, "image_discriminator"))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        width = self.discriminator_width
        networks: dict[str, nn.Module] = {
            "generator": BackgroundNetwork(channels=6, size=canvas.size, width=self.width, depth=self.depth)
        }
        if self.foreground_discriminator:
            networks["foreground_discriminator"] = pair_discriminator(canvas, width)
        return {**networks, "image_discriminator": DcganDiscriminator(size=canvas.size, width=width)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        given = torch.cat([batch["source_image"], batch["foreground_image"]], dim=1)
        return {"composed_image": nets["generator"](given, view_code(batch["rotation"]))}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> Terms:
        """Return the player's terms; the equations are above."""
        logits = self._logits(nets, batch, outputs["composed_image"]).items()
        if player == "discriminator":
            terms = {name: discriminator_loss(groups) for name, groups in logits}
            return {f"{name}_{term}": value for name, own in terms.items() for term, value in own.items()}
        adversarial = {f"{name}_adversarial": Term(real_loss(groups["fake"])) for name, groups in logits}
        return adversarial | _composed_terms(self, batch, outputs)

    def _logits(self, nets: Networks, batch: Batch, generated: Images) -> dict[str, dict[str, Logits]]:
        """The logits of the discriminators, "foreground" and "image", of the real and the generated image."""
        target, mask = batch["target_image"], batch["target_person_mask"]
        whole = {"image": score_together(nets["image_discriminator"], {"real": target, "fake": generated})}
        if not self.foreground_discriminator:
            return whole
        pairs = (target * mask, generated * mask, batch["predicted_pose"])
        return {"foreground": paired_logits(nets["foreground_discriminator"], *pairs), **whole}


@dataclass(frozen=True, kw_only=True)
class WholeTransformer:
    """The variant "one-stage" after the pose transformer: source image and poses to the target, one discriminator.

    L = alpha_b L_fg + beta_b L_bg + L_gen with D([I, P_t*]); the network is the background transformer's.
    """

    name: ClassVar[str] = "whole"
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "source_pose", "target_image", "target_person_mask", "rotation", "predicted_pose",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("composed_image",)

    width: Positive = 64  # channels of the first level
    depth: Positive = 8  # halvings at most
    discriminator_width: Positive = 64
    alpha_b: Weight = 100.0
    beta_b: Weight = 100.0
    training: Training = Training(steps=80_000, batch_size=16, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        channels = 3 + 2 * JOINTS
        generator = BackgroundNetwork(channels=channels, size=canvas.size, width=self.width, depth=self.depth)
        return {"generator": generator, "discriminator": pair_discriminator(canvas, self.discriminator_width)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        given = torch.cat([batch["source_image"], batch["source_pose"], batch["predicted_pose"]], dim=1)
        return {"composed_image": nets["generator"](given, view_code(batch["rotation"]))}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> Terms:
        """Return the player's terms; the equations are above."""
        generated, pose = outputs["composed_image"], batch["predicted_pose"]
        logits = paired_logits(nets["discriminator"], batch["target_image"], generated, pose)
        if player == "discriminator":
            return discriminator_loss(logits)
        return {"adversarial": Term(real_loss(logits["fake"])), **_composed_terms(self, batch, outputs)}


def _composed_terms(stage: BackgroundTransformer | WholeTransformer, batch: Batch, outputs: Batch) -> Terms:
    target, mask = batch["target_image"], batch["target_person_mask"]
    return area_terms(outputs["composed_image"], target, mask, alpha=stage.alpha_b, beta=stage.beta_b)


@dataclass(frozen=True, kw_only=True)
class JointTraining:
    """The variant "joint": all networks of the three stages, trained further with the sum of their losses.

    The gradient of each loss reaches the earlier stages through their outputs; `pose_weight` is the pose transformer's
    (its squared distances are small beside the other terms). Sizes of networks are the stages'.
    """

    name: ClassVar[str] = "joint"
    reads: ClassVar[tuple[str, ...]] = (
        "source_joints", "source_visible", "source_image", "source_person_mask", "source_pose",
        "target_joints", "target_visible", "target_image", "target_person_mask", "rotation",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = (
        "joint_predicted_joints", "joint_predicted_pose", "joint_foreground_image", "joint_composed_image",
    )  # fmt: skip

    pose_width: Positive = 1024
    pose_blocks: Positive = 2
    foreground_width: Positive = 64
    foreground_depth: Positive = 5
    background_width: Positive = 64
    background_depth: Positive = 8
    discriminator_width: Positive = 64
    pose_weight: Weight = 100.0
    alpha_f: Weight = 100.0
    beta_f: Weight = 100.0
    alpha_b: Weight = 100.0
    beta_b: Weight = 100.0
    backdrop: Grey = 0.0  # c, behind a cut-out person, in [-1, 1]
    training: Training = Training(steps=10_000, batch_size=16, lr=2e-5, discriminator_lr=2e-5, constant_lr_share=0.5)

    @property
    def parts(self) -> tuple[PoseTransformer, ForegroundTransformer, BackgroundTransformer]:
        """The three stages, without dropout, which would blur their outputs."""
        foreground = ForegroundTransformer(
            width=self.foreground_width, depth=self.foreground_depth, discriminator_width=self.discriminator_width,
            alpha_f=self.alpha_f, beta_f=self.beta_f, backdrop=self.backdrop,
        )  # fmt: skip
        background = BackgroundTransformer(
            width=self.background_width, depth=self.background_depth, discriminator_width=self.discriminator_width,
            alpha_b=self.alpha_b, beta_b=self.beta_b,
        )  # fmt: skip
        return PoseTransformer(width=self.pose_width, blocks=self.pose_blocks, dropout=0.0), foreground, background

    @property
    def starts_from(self) -> dict[str, tuple[str, str]]:
        """Every network's origin: "foreground_discriminator" starts from the discriminator of "foreground"."""
        origins = {
            "pose": ("generator",),
            "foreground": ("generator", "discriminator"),
            "background": ("generator", "foreground_discriminator", "image_discriminator"),
        }
        return {f"{stage}_{name}": (stage, name) for stage, names in origins.items() for name in names}

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        generators = tuple(name for name, (_, own) in self.starts_from.items() if own == "generator")
        discriminators = tuple(name for name in self.starts_from if name not in generators)
        return adversarial_players(self.training, generators=generators, discriminators=discriminators)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        return {f"{part.name}_{name}": net for part in self.parts for name, net in part.networks(canvas).items()}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        columns, joint = dict(batch), {}
        for part in self.parts:
            outputs = part.outputs(canvas, networks_of(part.name, nets), columns)
            columns |= outputs
            joint |= {f"joint_{name}": column for name, column in outputs.items()}
        return joint

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> Terms:
        """Return the player's terms; the equations are above."""
        columns = {**batch, **{name.removeprefix("joint_"): column for name, column in outputs.items()}}
        pose, *adversarial = self.parts
        terms: Terms = {}
        if player == GENERATOR:
            own = pose.loss(canvas, player, networks_of("pose", nets), columns, columns)
            terms = {f"pose_{name}": Term(value, self.pose_weight * weight) for name, (value, weight) in own.items()}
        for part in adversarial:
            own = part.loss(canvas, player, networks_of(part.name, nets), columns, columns)
            terms |= {f"{part.name}_{name}": term for name, term in own.items()}
        return terms


def networks_of(stage: str, nets: Networks) -> Networks:
    """Return the joint stage's networks of one of the stages, under the names they have there."""
    return {name.removeprefix(f"{stage}_"): net for name, net in nets.items() if name.startswith(f"{stage}_")}


LARGE = (PoseTransformer(), ForegroundTransformer(), BackgroundTransformer(), WholeTransformer(), JointTraining())
SEPARATE = ("pose", "foreground", "background")


def _short(steps: int) -> Training:
    """The training of an image stage on the embedded people."""
    return Training(steps=steps, batch_size=8, lr=1e-3, discriminator_lr=2e-4, constant_lr_share=0.3)


MULTISTAGE = Paper(
    citation="Si et al.: Multistage Adversarial Losses for Pose-Based Human Image Synthesis, CVPR 2018",
    presets={
        "market1501": Preset((128, 64), Gaussians(sigma=3.0), LARGE),
        "deepfashion": Preset((256, 256), Gaussians(sigma=6.0), LARGE),
        "human36m": Preset((256, 256), Gaussians(sigma=6.0), LARGE),
        # Our choice: trained on two processor cores in a few minutes. In so short a training discriminators make images
        # noisy unless the L1 weighs more; dropout doubled the pose error.
        "synthetic": Preset((64, 32), Gaussians(sigma=2.0), (
            PoseTransformer(
                width=256, dropout=0.0, training=Training(steps=5000, batch_size=64, lr=3e-3, constant_lr_share=0.2)
            ),
            ForegroundTransformer(
                width=32, depth=3, discriminator_width=16, alpha_f=400.0, beta_f=400.0, training=_short(2400)
            ),
            BackgroundTransformer(
                width=24, depth=4, discriminator_width=16, alpha_b=400.0, beta_b=400.0, training=_short(1600)
            ),
            WholeTransformer(
                width=24, depth=4, discriminator_width=16, alpha_b=400.0, beta_b=400.0, training=_short(4000)
            ),
            JointTraining(
                pose_width=256, foreground_width=32, foreground_depth=3, background_width=24, background_depth=4,
                discriminator_width=16, pose_weight=400.0, alpha_f=400.0, beta_f=400.0, alpha_b=400.0, beta_b=400.0,
                training=Training(steps=300, batch_size=8, lr=1e-4, discriminator_lr=1e-4, constant_lr_share=0.5),
            ),
        )),
    },
    variants={
        "full": Variant(stages=SEPARATE),
        "no-adversarial": Variant(stages=SEPARATE, settings={"foreground.adversarial": False}),
        "global-l1": Variant(stages=SEPARATE, settings={"foreground.by_area": False}),
        "one-branch": Variant(stages=SEPARATE, settings={"foreground.fusion": "one-branch"}),
        "concatenated": Variant(stages=SEPARATE, settings={"foreground.fusion": "concatenation"}),
        "one-stage": Variant(stages=("pose", "whole")),
        "one-critic": Variant(stages=SEPARATE, settings={"background.foreground_discriminator": False}),
        "joint": Variant(stages=(*SEPARATE, "joint"), image="joint_composed_image", joints="joint_predicted_joints"),
    },
    image="composed_image",
    joints="predicted_joints",
)  # fmt: skip
