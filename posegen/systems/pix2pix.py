"""pix2pix: Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017
(arXiv 1611.07004).

One stage ("translation"): a U-Net draws the person of the source image in the target pose, against a critic that
judges patches of 70x70 pixels together with the condition. Its only noise is dropout. Released code:
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
  (the paper says so). At larger batches an image then does not depend on those made with it, the critic may score the
  real and the generated images in one pass, and no statistics are left behind by the critic's moves. It has a price:
  after 800 steps of 8 pairs of the embedded data (one seed), the L1 of test pairs was 0.104, against 0.093 with batch
  normalisation in the U-Net and its running statistics in evaluation;
- no dropout when images are made (evaluation mode), so that an image is a function of its condition. The paper keeps
  dropout, and finds that it varies the images little;
- as many halvings as the sides allow, at most the code's 8: 6 for 128x64, which leaves one block with dropout, and 5
  for 64x32, which leaves none: there the generator has no noise at all;
- batch and steps: PG2's, of both its stages together (the paper: a batch of 1, for some tasks up to 10). Pairs are
  mirrored, source and target alike, but not enlarged and cropped as the paper's;
- the generator's move draws a fresh batch, as every move here; the codes go on with the critic's;
- the settings of "synthetic". Its higher rate of the generator suits the L1 term; without it ("cgan") the critic could
  no longer follow, so that there both keep the critic's rate.

Variants: "full", and "cgan" without the L1 term, a conditional GAN alone: the paper's row of that name, and the
baseline "cGANs [16]" of Si et al. (Multistage adversarial losses, CVPR 2018). By the alphabetical order of that paper's
references [16] stands between Ma and Newell, so it is not Isola but Mirza and Osindero 2014; which network was trained
for it is not known, this one is our stand-in.

Parameters at width 64, with this condition: generator 29,280,899 for 128x64 and 54,450,819 for 256x256 (54,413,955 with
the code's 3 channels), critic 2,805,569 (2,768,705 with 6). No numbers are published for people.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.adversarial import judged_fake, judged_real
from posegen.losses.reconstruction import l1
from posegen.stage import Networks, Player, System, Term
from posegen.systems.settings import check_fields, check_known, learning_rate_schedule, settings_for

PAPER = "Isola et al.: Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017"
CONDITION = 3 + 18 + 18  # channels: the source image, its pose maps and the target's
FEWEST_HALVINGS, MOST_HALVINGS = 4, 8

Condition = Float[Tensor, "batch channels height width"]


def halvings(size: tuple[int, int]) -> int:
    """How often both sides of a (height, width) in pixels can be halved, at most 8: 6 for 128x64, 8 for 256x256.

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
    """Instance normalisation with scale and offset, as a group a channel: the same, and it keeps channels last."""
    return nn.GroupNorm(channels, channels)


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), normalisations' scales N(1, 0.02), biases zero (networks.py); for `nn.Module.apply`."""
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
        """The image, in [-1, 1]; both sides of the condition must be multiples of 2^depth."""
        features, skips = condition, []
        for down in self.down:
            features = down(features)
            skips.append(features)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            features = torch.cat([skip, up(features)], dim=1)
        return self.image(features)


class PatchCritic(nn.Module):
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
        """The logits, above zero where a patch is judged real, of conditions with their images on the channels."""
        return self.layers(pairs)


def condition(batch: Batch) -> Condition:
    """Source image, source pose, target pose, on the channels."""
    return torch.cat([batch["source_image"], batch["source_pose"], batch["target_pose"]], dim=1)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Generator: BCE(D(A, G), 1) + l1_weight mean |G - B|; critic: 0.5 BCE(D(A, B), 1) + 0.5 BCE(D(A, G), 0).

    A is the condition, B the target, G the generated image; a BCE is the mean over all patches. The critic moves
    first (pix2pix_model.py).
    """

    name: ClassVar[str] = "translation"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "source_pose", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("translated_image",)

    size: tuple[int, int] = (128, 64)  # height, width in pixels
    width: int = 64  # channels of the first level
    dropout: float = 0.5  # probability
    critic_width: int = 64
    critic_depth: int = 3  # 3 see patches of 70x70 pixels
    l1_weight: float = 100.0  # lambda
    steps: int = 36_000
    batch_size: int = 16
    lr: float = 2e-4
    critic_lr: float = 2e-4
    constant_lr_share: float = 0.5  # of the steps; then linear to zero
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, halvings)
        if min(self.size) < 3 * 2**self.critic_depth:
            most = int(math.log2(min(self.size) / 3))
            raise ValueError(
                f"translation.critic_depth is {self.critic_depth}, which leaves no patch of an image of "
                f"{self.size[0]}x{self.size[1]}; it must be at most {most}"
            )

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = learning_rate_schedule(self.steps, self.constant_lr_share)
        return (
            Player(name="critic", nets=("critic",), lr=self.critic_lr, schedule=schedule),
            Player(name="generator", nets=("generator",), lr=self.lr, schedule=schedule),
        )

    def networks(self) -> dict[str, nn.Module]:
        depth = halvings(self.size)
        return {
            "generator": UNet(channels=CONDITION, width=self.width, depth=depth, dropout=self.dropout),
            "critic": PatchCritic(channels=CONDITION + 3, width=self.critic_width, depth=self.critic_depth),
        }

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        return {"translated_image": nets["generator"](condition(batch))}

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        given, target = condition(batch), batch["target_image"]
        if player == "critic":
            with torch.no_grad():
                generated = self.outputs(nets, batch)["translated_image"]
            pairs = [torch.cat([given, image], dim=1) for image in (target, generated)]
            real, fake = nets["critic"](torch.cat(pairs)).flatten().chunk(2)
            return {"real": Term(judged_real(real), 0.5), "fake": Term(judged_fake(fake), 0.5)}
        generated = self.outputs(nets, batch)["translated_image"]
        logits = nets["critic"](torch.cat([given, generated], dim=1)).flatten()
        return {"adversarial": Term(judged_real(logits)), "l1": Term(l1(generated, target), self.l1_weight)}


class Settings(NamedTuple):
    """What differs between data sets."""

    size: tuple[int, int]
    pose_radius: float
    translation: Translation


SETTINGS = {
    "market1501": Settings((128, 64), 4.0, Translation()),
    "deepfashion": Settings((256, 256), 4.0, Translation(size=(256, 256), steps=50_000, batch_size=8)),
    # Our choice: what two processor cores train in a few minutes.
    "synthetic": Settings(
        (64, 32),
        2.0,
        Translation(
            size=(64, 32), width=16, critic_width=16, critic_depth=2, steps=3600, batch_size=8, lr=1e-3,
        ),
    ),
}  # fmt: skip

VARIANTS = ("full", "cgan")


def pix2pix(dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None) -> System:
    """pix2pix with the settings of a data set; variants as in the module's docstring.

    Raises ValueError for an unknown data set or variant, and for a size that the U-Net cannot halve.
    """
    check_known("variant of pix2pix", variant, VARIANTS)
    settings, size = settings_for(dataset, size, SETTINGS)
    stage = dataclasses.replace(settings.translation, size=size)
    if variant == "cgan":
        stage = dataclasses.replace(stage, l1_weight=0.0, lr=stage.critic_lr)
    return System(
        name="pix2pix",
        variant=variant,
        paper=PAPER,
        size=size,
        pose_maps=Discs(radius=settings.pose_radius),
        stages=(stage,),
        image="translated_image",
    )
