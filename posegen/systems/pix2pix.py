"""pix2pix: Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017
(arXiv 1611.07004).

One stage ("translation"): a U-Net draws the person of the source image in the target pose, against a discriminator that
scores patches of 70x70 pixels together with the condition. Its only noise is dropout. Released code:
junyanz/pytorch-CycleGAN-and-pix2pix (models/networks.py, models/pix2pix_model.py), and before it phillipi/pix2pix
(models.lua, train.lua), the paper's own.

Where paper, first and second code disagree, we follow the second code
- dropout: behind the `depth` - 5 blocks of 512 channels next to the innermost one (the first: behind the innermost one
  and the two next to it);
- no normalisation of the innermost features: where they are 1x1 and the batch is one, nothing would be left of them;
- learning rate: constant for half of the training, then linear to zero (the first: constant throughout).

Our choices, for the paper has no people and translates pixel by pixel
- the condition: source image and both poses' maps, 39 channels. The maps are PG2's discs of -1 and +1;
- instance normalisation. The codes have batch normalisation, which it is at their batch of one, in training as at test
  (the paper says so). At larger batches an image then does not depend on those made with it, the discriminator may
  score the real and the generated images in one pass, and its updates leave no statistics behind. It has a price:
  after 800 steps of 8 pairs of the embedded data (one seed), the L1 of test pairs was 0.104, against 0.093 with batch
  normalisation in the U-Net and its running statistics in evaluation;
- no dropout in evaluation, so that an image is a function of its condition. The paper keeps dropout, and finds that it
  varies the images little;
- as many halvings as the sides allow, at most the code's 8: 6 for 128x64, which leaves one block with dropout, and 5
  for 64x32, which leaves none: there the generator has no noise at all;
- batch and steps: PG2's, of both its stages together (the paper: a batch of 1, for some tasks up to 10). Pairs are
  mirrored, source and target alike, but not enlarged and cropped as the paper's;
- the generator's update draws a fresh batch, as every update here; the codes reuse the discriminator's;
- the settings of "synthetic". Its higher rate of the generator suits the L1 term; without it ("cgan") the discriminator
  could no longer follow, so that there both have the discriminator's rate.

Variants: "full", and "cgan" without the L1 term, a conditional GAN alone: the paper's row of that name, and the
baseline "cGANs [16]" of Si et al. (Multistage adversarial losses, CVPR 2018). By the alphabetical order of that paper's
references [16] stands between Ma and Newell, so it is not Isola but Mirza and Osindero 2014; which network was trained
for it is not known, this one is our stand-in.

Parameters at width 64, with this condition: generator 29,280,899 for 128x64 and 54,450,819 for 256x256 (54,413,955 with
the code's 3 channels), discriminator 2,805,569 (2,768,705 with 6). No numbers are published for people.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import fake_loss, real_loss
from posegen.losses.reconstruction import l1
from posegen.nets.convolutional import all_features
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Weight

CONDITION = 3 + 18 + 18  # channels: the source image, its pose maps and the target's
FEWEST_HALVINGS, MOST_HALVINGS = 4, 8

Condition = Float[Tensor, "batch channels height width"]


def halvings(size: tuple[int, int]) -> int:
    """Return how often both sides of a (height, width) in pixels can be halved, at most 8: 6 for 128x64, 8 for 256x256.

    Raises ValueError where it is less than 4 times, or a side is below 32 pixels, naming the nearest sizes that fit.
    """
    step = 2**FEWEST_HALVINGS
    if min(size) < 2 * step or any(side % step for side in size):
        below = "x".join(str(max(2, side // step) * step) for side in size)
        above = "x".join(str(max(2, math.ceil(side / step)) * step) for side in size)
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) cannot be halved {FEWEST_HALVINGS} times to 2 pixels or more: "
            f"both sides must be multiples of {step}, at least {2 * step}, such as "
            f"{' or '.join(dict.fromkeys((below, above)))}; powers of 2 are best"
        )
    return next(times for times in range(MOST_HALVINGS, 0, -1) if not any(side % 2**times for side in size))


def normalisation(channels: int) -> nn.Module:
    """Return instance normalisation with scale and offset, as a group a channel, which keeps channels last."""
    return nn.GroupNorm(channels, channels)


def initialise(module: nn.Module) -> None:
    """Initialise weights N(0, 0.02), scales N(1, 0.02) and biases zero (networks.py); for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.GroupNorm) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UNet(nn.Module):
    """networks.py's UnetGenerator: 4x4 convolutions of stride 2 down and up, skips between equal sizes, tanh.

    `depth` halvings, 8 in "U-Net-256"; widths are `width` times 1, 2, 4, 8, 8 and so on. Dropout stands behind the
    blocks between the fourth and the innermost one, which keep their width on the way up: `depth` - 5 of them.
    """

    def __init__(self, *, channels: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        widths = [width * min(2**k, 8) for k in range(depth)]
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(0.2) if k > 0 else nn.Identity(),
                nn.Conv2d(channels if k == 0 else widths[k - 1], widths[k], 4, stride=2, padding=1, bias=False),
                normalisation(widths[k]) if 0 < k < depth - 1 else nn.Identity(),
            )
            for k in range(depth)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.ConvTranspose2d(
                    widths[k] if k == depth - 1 else 2 * widths[k], widths[k - 1], 4, stride=2, padding=1, bias=False
                ),
                normalisation(widths[k - 1]),
                nn.Dropout(dropout) if 4 <= k < depth - 1 else nn.Identity(),
            )
            for k in range(depth - 1, 0, -1)
        )
        self.image = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, 3, 4, stride=2, padding=1), nn.Tanh())
        self.apply(initialise)

    def forward(self, condition: Condition) -> Images:
        """Return the image, in [-1, 1]; both sides of the condition must be multiples of 2^depth."""
        skips = all_features(self.down, condition)
        features = skips[-1]
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            features = torch.cat([skip, up(features)], dim=1)
        return self.image(features)


class PatchDiscriminator(nn.Module):
    """networks.py's NLayerDiscriminator: a logit for each patch of the condition with an image.

    4x4 convolutions: `depth` of stride 2 and two of stride 1, so that a side of n pixels gives n / 2^depth - 2 logits,
    30x30 of an image of 256x256; depth 3 sees 70x70 pixels, 2 sees 34x34. LeakyReLU 0.2, no sigmoid.
    """

    def __init__(self, *, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * min(2**k, 8) for k in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for k in range(1, depth + 1):
            stride = 2 if k < depth else 1
            layers.append(nn.Conv2d(widths[k - 1], widths[k], 4, stride=stride, padding=1, bias=False))
            layers += [normalisation(widths[k]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.apply(initialise)

    def forward(self, pairs: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """Return the logits, above zero for real, of conditions with their images on the channels."""
        return self.layers(pairs)


def condition(batch: Batch) -> Condition:
    """Return source image, source pose and target pose, on the channels."""
    return torch.cat([batch["source_image"], batch["source_pose"], batch["target_pose"]], dim=1)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Generator: BCE(D(A, G), 1) + l1_weight mean |G - B|; discriminator: 0.5 BCE(D(A, B), 1) + 0.5 BCE(D(A, G), 0).

    A is the condition, B the target, G the generated image; a BCE is the mean over all patches. The discriminator is
    updated first (pix2pix_model.py).
    """

    name: ClassVar[str] = "translation"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "source_pose", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("translated_image",)

    width: Positive = 64  # channels of the first level
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5  # probability
    discriminator_width: Positive = 64
    discriminator_depth: Positive = 3  # 3 see patches of 70x70 pixels
    l1_weight: Weight = 100.0  # lambda
    training: Training = Training(steps=36_000, batch_size=16, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, generator_first=False)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        depth, patches = halvings(canvas.size), self.discriminator_depth
        if min(canvas.size) < 3 * 2**patches:
            raise ValueError(
                f"translation.discriminator_depth is {patches}, which leaves no patch of an image of "
                f"{canvas.size[0]}x{canvas.size[1]}; it must be at most {int(math.log2(min(canvas.size) / 3))}"
            )
        return {
            "generator": UNet(channels=CONDITION, width=self.width, depth=depth, dropout=self.dropout),
            "discriminator": PatchDiscriminator(channels=CONDITION + 3, width=self.discriminator_width, depth=patches),
        }

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return {"translated_image": nets["generator"](condition(batch))}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        given, target, generated = condition(batch), batch["target_image"], outputs["translated_image"]
        if player == "discriminator":
            pairs = [torch.cat([given, image], dim=1) for image in (target, generated)]
            real, fake = nets["discriminator"](torch.cat(pairs)).flatten().chunk(2)
            return {"real": Term(real_loss(real), 0.5), "fake": Term(fake_loss(fake), 0.5)}
        logits = nets["discriminator"](torch.cat([given, generated], dim=1)).flatten()
        return {"adversarial": Term(real_loss(logits)), "l1": Term(l1(generated, target), self.l1_weight)}


PIX2PIX = Paper(
    citation="Isola et al.: Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017",
    presets={
        "market1501": Preset((128, 64), Discs(radius=4.0), (Translation(),)),
        "deepfashion": Preset((256, 256), Discs(radius=4.0), (
            Translation(
                training=Training(steps=50_000, batch_size=8, lr=2e-4, discriminator_lr=2e-4, constant_lr_share=0.5),
            ),
        )),
        # Our choice: what two processor cores train in a few minutes.
        "synthetic": Preset((64, 32), Discs(radius=2.0), (
            Translation(
                width=16, discriminator_width=16, discriminator_depth=2,
                training=Training(steps=3600, batch_size=8, lr=1e-3, discriminator_lr=2e-4, constant_lr_share=0.5),
            ),
        )),
    },
    variants={
        "full": Variant(),
        # Both players at the discriminator's rate.
        "cgan": Variant(settings={"translation.l1_weight": 0.0, "translation.lr": 2e-4}),
    },
    image="translated_image",
)  # fmt: skip
