"""VSA: Villegas, Yang, Zou, Sohn, Lin, Lee: Learning to Generate Long-term Future via Hierarchical Prediction, ICML
2017 (arXiv 1704.05831): its image generator, the visual-structure analogy network.

One stage ("analogy"): pose A is to image A as pose B is to the image wanted. In feature space what the target pose has
more than the source pose is added to the source image, h = f_img(I_A) + f_pose(P_B) - f_pose(P_A), and decoded.
Released code: rubenvillegas/icml2017hierchvid (imggen_src/model_analogy.py, ops.py, train_h36m.py, utils.py), followed
but for what is listed below.

Si et al. (Multistage adversarial losses, CVPR 2018) compare with "VSA [25]" without saying whose it is. In the
alphabetical list of their references 25 stands between Newell (18) and Zheng (30), where Villegas fits and Zhou
(appearance flow) does not; the paper calls its generator visual-structure analogy, and Si et al.'s foreground
transformer has its formula. So we take this network for that baseline.

From the code
- three passes of the discriminator an update (real, generated, mismatched), each normalised by its own batch;
- skipped updates: with errors e_real = BCE(D(B, P_B), 1) and e_fake = 0.5 BCE(D(G, P_B), 0) + 0.5 BCE(D(A, P_B), 0),
  the discriminator stops where one of them is below 0.3, the generator where one is above 0.7, and each stays so until
  both are stopped; then both resume. The code measures the errors after a step, on its batch. Here each player measures
  them in its own update, on the update's batch: a stopped one keeps its last errors, which is why it stays stopped
  until the other would stop too. The generator's "real", "fake" and "mismatch" are for that, of weight 0.

Our choices
- L_feat: the code compares features of an AlexNet (conv5) and of a stacked hourglass, weights of which are not at hand.
  Features of VGG19 stand for both, with one weight; without its file a fixed random VGG19 stands in, named
  "random-vgg19" in scores and reports. The variant "no-features" has no L_feat;
- pose maps of 18 joints (the code: 32 of Human3.6M, a filled skeleton for Penn Action). Its sigma of 8 pixels is that
  of the crop before it is brought to 128x128; crops of about 500 pixels give 2 pixels, and so on with the height;
- batch normalisation with the batch's own statistics in evaluation too, where the discriminator is not used;
- other sizes than 128x128: the same layers; `margin` 0, which skips no update; no mirrored pairs (the code has none);
- data: the code draws two frames of one video, up to 1,000 apart; here pairs are the data set's. The published steps,
  batch and rate for all data sets but "synthetic", whose settings are ours.

Parameters with 18 joints: generator 5,214,851 at every size (5,222,915 with the code's 32), discriminator 4,369,921 for
128x128, 4,353,537 for 128x64, 4,468,225 for 256x256. No numbers are published for single images, and none by Si et al.
that we have seen. On the embedded people, with a random VGG19 and one seed: mask-L1 0.137 ("no-features" 0.136), where
the best baseline has 0.171.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images, PoseMaps, Scalar
from posegen.data.geometry.pose_maps import Gaussians
from posegen.losses.adversarial import Logits, fake_loss, real_loss
from posegen.nets.convolutional import convolution, halving_convolution, initialise
from posegen.nets.pretrained import Layer
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.defgan import fixed_features
from posegen.systems.fields import Positive, Weight

JOINTS = 18
DISCRIMINATOR_HALVINGS = 4


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError, with the nearest size that fits, where a (height, width) in pixels cannot be halved four times.

    The generator halves three times, the discriminator four times, down to two rows at least.
    """
    step = 2**DISCRIMINATOR_HALVINGS
    near = [max(least, round(side / step) * step) for side, least in zip(size, (2 * step, step), strict=True)]
    if near != list(size):
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) does not fit VSA: both sides must be multiples of {step}, the "
            f"height at least {2 * step}, such as {near[0]}x{near[1]}"
        )


def encoder(channels: int, width: int) -> nn.Sequential:
    """Return VGG16 up to its third pooling: 3x3 convolutions of 64, 64, 128, 128, 256, 256, 256 channels, ReLU."""
    layers: list[nn.Module] = []
    for outer, count in ((width, 2), (2 * width, 2), (4 * width, 3)):
        for _ in range(count):
            layers += [convolution(channels, outer), nn.ReLU()]
            channels = outer
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def unpooling_convolution(channels: int) -> nn.ConvTranspose2d:
    """Return zero-filling 2x2 unpooling, the value at the top left, and a 3x3 deconvolution as one convolution."""
    return nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1)


def decoder(width: int) -> nn.Sequential:
    """Return the encoder's mirror: 3x3 deconvolutions of 256, 256, 128 | 128, 64 | 64, 3 channels with ReLU, then tanh.

    Each group begins with an unpooling. A deconvolution of stride 1 is a convolution with its kernel turned round.
    """
    layers: list[nn.Module] = []
    channels = 4 * width
    for group in ((4 * width, 2 * width), (width,), (3,)):
        layers += [unpooling_convolution(channels), nn.ReLU()]
        for outer in group:
            layers += [convolution(channels, outer), nn.ReLU()]
            channels = outer
    return nn.Sequential(*layers[:-1], nn.Tanh())


class AnalogyGenerator(nn.Module):
    """f_dec( f_img(I_A) + f_pose(P_B) - f_pose(P_A) ), without skips; one pose encoder, both poses in one pass."""

    def __init__(self, *, width: int, joints: int = JOINTS) -> None:
        super().__init__()
        self.image_encoder = encoder(3, width)
        self.pose_encoder = encoder(joints, width)
        self.decoder = decoder(width)
        initialise(self)

    def forward(
        self,
        source: Images,
        source_pose: Float[Tensor, "batch joints height width"],
        target_pose: Float[Tensor, "batch joints height width"],
    ) -> Images:
        """Return the image, in [-1, 1]."""
        before, after = self.pose_encoder(torch.cat([source_pose, target_pose])).chunk(2)
        return self.decoder(self.image_encoder(source) + (after - before))


class PoseDiscriminator(nn.Module):
    """One logit for an image with a pose: four 5x5 convolutions of stride 2, batch normalisation on all but the first.

    LeakyReLU 0.2, widths 64, 128, 256, 512, one linear unit. The normalisation uses the batch's own statistics.
    """

    def __init__(self, *, size: tuple[int, int], width: int) -> None:
        super().__init__()
        widths = [3 + JOINTS, *(width * 2**k for k in range(DISCRIMINATOR_HALVINGS))]
        layers: list[nn.Module] = []
        for k in range(DISCRIMINATOR_HALVINGS):
            layers.append(halving_convolution(widths[k], widths[k + 1], kernel=5))
            if k > 0:
                layers.append(nn.BatchNorm2d(widths[k + 1], eps=1e-3, track_running_stats=False))  # tf.contrib's eps
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers)
        rows, columns = (side // 2**DISCRIMINATOR_HALVINGS for side in size)
        self.logit = nn.Linear(widths[-1] * rows * columns, 1)
        initialise(self.features)  # ops.py
        initialise(self.logit, partial(nn.init.normal_, std=0.02))

    def forward(self, images: Images, pose: PoseMaps) -> Logits:
        """Return the logits, above zero for a real image of that pose."""
        return self.logit(self.features(torch.cat([images, pose], dim=1)).flatten(1)).squeeze(1)


def rests(terms: Mapping[str, float], *, player: str, margin: float) -> bool:
    """Return whether a player is not updated in the step after those terms: where it alone would stop.

    Each is decided by the errors that it measured itself. One that is stopped measures none, so it would stop until it
    has been updated again, which happens as soon as the other would stop too: train_h36m.py's `updateD` and `updateG`.
    """

    def errors(by: str) -> tuple[float, float]:
        return terms[f"{by}/real"], 0.5 * terms[f"{by}/fake"] + 0.5 * terms[f"{by}/mismatch"]

    discriminator = min(errors("discriminator")) < margin  # too far ahead
    generator = max(errors("generator")) > 1 - margin  # which leaves the discriminator too far behind
    return discriminator != generator and (discriminator if player == "discriminator" else generator)


def half_mean_square(made: Float[Tensor, "*shape"], wanted: Float[Tensor, "*shape"]) -> Scalar:
    """Return 0.5 mean (made - wanted)^2, in float32 at least."""
    return 0.5 * (made.to(torch.promote_types(made.dtype, torch.float32)) - wanted).square().mean()


@dataclass(frozen=True, kw_only=True)
class Analogy:
    """Generator: 0.5 mean (G - I_B)^2 + alpha 0.5 mean (g(G) - g(I_B))^2 + gamma BCE(D(G, P_B), 1).

    Discriminator: BCE(D(I_B, P_B), 1) + 0.5 BCE(D(G, P_B), 0) + 0.5 BCE(D(I_A, P_B), 0): the source image with the
    target pose, a mismatch, is a negative too. g are VGG19's features. The generator is updated first; `rests` says
    which updates are skipped.
    """

    name: ClassVar[str] = "analogy"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "source_pose", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("analogy_image",)

    width: Positive = 64  # channels of the first level
    discriminator_width: Positive = 64
    content_layer: Layer = "block2_conv1"
    feature_weight: Weight = 1.0  # alpha and beta
    features: Literal["vgg19", "random-vgg19"] = "vgg19"
    adversarial_weight: Weight = 1.0  # gamma
    margin: Annotated[float, Interval(ge=0, lt=0.5)] = 0.3  # a player stops beyond it; 0: none does
    training: Training = Training(steps=100_000, batch_size=8, lr=1e-4, discriminator_lr=1e-4, flip=False)

    @property
    def pretrained(self) -> str:
        """VGG19 where the loss compares its features, else ""."""
        return "vgg19" if self.feature_weight > 0 else ""

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        players = adversarial_players(self.training)
        if self.margin == 0:
            return players
        return tuple(replace(each, skip_when=partial(rests, player=each.name, margin=self.margin)) for each in players)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        check_size(canvas.size)
        discriminator = PoseDiscriminator(size=canvas.size, width=self.discriminator_width)
        return {"generator": AnalogyGenerator(width=self.width), "discriminator": discriminator}

    def fixed_networks(self, weights: Path) -> dict[str, nn.Module]:
        """Return the fixed feature network, if any."""
        return fixed_features(self.features, self.content_layer, weights) if self.pretrained else {}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        poses = (batch["source_pose"], batch["target_pose"])
        return {"analogy_image": nets["generator"](batch["source_image"], *poses)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated, target, pose = outputs["analogy_image"], batch["target_image"], batch["target_pose"]
        fake = nets["discriminator"](generated, pose)
        with torch.set_grad_enabled(player == "discriminator" and torch.is_grad_enabled()):
            real, mismatch = (nets["discriminator"](image, pose) for image in (target, batch["source_image"]))
            errors = {"real": real_loss(real), "fake": fake_loss(fake), "mismatch": fake_loss(mismatch)}
        if player == "discriminator":
            return {name: Term(error, 1.0 if name == "real" else 0.5) for name, error in errors.items()}
        terms = {
            "image": Term(half_mean_square(generated, target)),
            "adversarial": Term(real_loss(fake), self.adversarial_weight),
        }
        if self.pretrained:
            with torch.no_grad():
                wanted = nets["features"](target)
            terms["features"] = Term(half_mean_square(nets["features"](generated), wanted), self.feature_weight)
        return terms | {name: Term(error, 0.0) for name, error in errors.items()}


VSA = Paper(
    citation="Villegas et al.: Learning to Generate Long-term Future via Hierarchical Prediction, ICML 2017",
    presets={
        "market1501": Preset((128, 64), Gaussians(sigma=2.0), (Analogy(),)),
        "deepfashion": Preset((256, 256), Gaussians(sigma=4.0), (Analogy(),)),
        # Our choice: what two processor cores train in a few minutes.
        "synthetic": Preset((64, 32), Gaussians(sigma=1.5), (
            Analogy(
                width=16, discriminator_width=16, feature_weight=0.1, adversarial_weight=0.001,
                training=Training(steps=2400, batch_size=8, lr=1e-3, discriminator_lr=1e-4, constant_lr_share=0.3),
            ),
        )),
    },
    variants={"full": Variant(), "no-features": Variant(settings={"analogy.feature_weight": 0.0})},
    image="analogy_image",
)  # fmt: skip
