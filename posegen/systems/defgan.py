"""Deformable GAN: Siarohin, Sangineto, Lathuilière, Sebe: Deformable GANs for Pose-based Human Image Generation, CVPR
2018 (arXiv 1801.00055).

One stage. A generator with two encoders, one for the source image with its pose and one for the target pose, whose
skips carry the source's features to where the target's body parts are: ten affine transforms, computed from the joints
alone, warp the features of the first four levels. Its discriminator scores patches of both images with both poses. The
content loss compares each pixel's features of a VGG19 with their nearest neighbour in the real image. Released code:
AliaksandrSiarohin/pose-gan (conditional_gan.py, pose_transform.py, cmd.py) with its submodule gan.

Where paper and code disagree, we follow
- pose maps: the code's Gaussians (`Gaussians`);
- limb transforms and masks: the code's; the paper's by `geometry="paper"` (see `data.limb_warps`), which masks in the
  source's frame and has the undeformed features as one more term of the maximum;
- sampling: bilinear, as the paper's affine transform of a feature map suggests; the code's nearest neighbour by
  `interpolation="nearest"`. The code's gradient of it was approximate, ours is exact;
- the nearest-neighbour loss: the code's mean over pixels, where the paper has a sum.

Parameters: generator 82,080,611 for 256x256 and 61,109,085 for 128x64 ("baseline": 48,655,449 and 36,072,533);
discriminator 2,803,782. The generator's bottleneck is 4 rows high; the discriminator gives 3x1 patches for 128x64 and
7x7 for 256x256.

Numbers to expect (CVPR; IS and detection score DS need networks that are not here): Market-1501 SSIM 0.290, IS 3.185,
mask-SSIM 0.805, mask-IS 3.502, DS 0.72; DeepFashion SSIM 0.756, IS 3.439, DS 0.96. SSIM has the data range of the
generated image, as `ssim_defgan` in `evaluation/metrics.py` does here.

Our choices: VGG19 is torchvision's with its own scaling (see `nets.vgg`), so the scale of the content loss is not
the released one; without the file a fixed random VGG19 stands in, named "random-vgg19" in scores and reports. The
discriminator's real and fake images are of the same pairs, where the code draws two batches. "geometry" and "aggregate"
as fields; the settings of "synthetic".

Variants, by the README's commands: "full" has deformable skips and 0.01 times the nearest-neighbour loss on
block1_conv2; "baseline" plain skips and 100 times L1 on pixels; "dsc" deformable skips, the same; "perc" deformable
skips and 0.5 times L1 on block2_conv1. The ablations have batch 4 on DeepFashion too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.geometry.limb_warps import LimbWarps, limb_warps
from posegen.data.geometry.pose_maps import Gaussians
from posegen.losses.adversarial import fake_loss, real_loss
from posegen.losses.reconstruction import l1, nearest_neighbour_loss
from posegen.nets.convolutional import all_features, initialise
from posegen.nets.pretrained import Layer, path_of, vgg19_features
from posegen.nets.warping import Aggregate, Interpolation, deformable_skip
from posegen.stage import Canvas, Networks, Paper, Player, Preset, System, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Positive, Weight

JOINTS = 18
BOTTLENECK = 4  # rows of the smallest feature map
FEWEST_HALVINGS = 3

ContentLayer = Literal["pixels", "block1_conv2", "block2_conv1"]
Geometry = Literal["code", "paper"]


class SampleNorm(nn.Module):
    """(x - mean) / (std + 1e-3) over channels, rows and columns of each sample, then one scalar gain and offset.

    What keras_contrib's InstanceNormalization(axis=None) computes, which the released code uses: a layer norm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, features: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Return the normalised features."""
        variance, mean = torch.var_mean(features, dim=(1, 2, 3), correction=0, keepdim=True)
        return (features - mean) * (self.gain / (variance.sqrt() + 1e-3)) + self.offset


def halving(channels_in: int, channels_out: int, *, norm: bool) -> nn.Sequential:
    """Return LeakyReLU 0.2, a 4x4 convolution of stride 2, normalisation (`block` of conditional_gan.py)."""
    layers = [nn.LeakyReLU(0.2), nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, *([SampleNorm()] if norm else []))


def halvings(size: tuple[int, int]) -> int:
    """Return how often an image of (height, width) is halved, to 4 rows if possible: 5 for 128x64, 6 for 256x256.

    Stopping earlier where a side is odd (4 for 256x176) is our choice. Raises ValueError, naming sizes that fit, where
    a side cannot be halved three times.
    """
    to_bottleneck = max(size[0] // BOTTLENECK, 1).bit_length() - 1
    common = math.gcd(*size)
    count = min(to_bottleneck, (common & -common).bit_length() - 1)
    if count < FEWEST_HALVINGS:
        step = 2**FEWEST_HALVINGS
        near = "x".join(
            str(max(BOTTLENECK * step if k == 0 else step, round(side / step) * step)) for k, side in enumerate(size)
        )
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) does not fit Deformable GAN: both sides must be multiples of "
            f"{step}, the height at least {BOTTLENECK * step}, such as {near}"
        )
    return count


def encoder_widths(width: int, count: int) -> list[int]:
    """Return the channels of the levels: 64, 128, 256 and 512 from there on, at width 64."""
    return [width * min(2**level, 8) for level in range(count + 1)]


class SkipEncoder(nn.Module):
    """A 3x3 convolution, then halvings; the last without normalisation."""

    def __init__(self, *, channels: int, widths: list[int]) -> None:
        super().__init__()
        last = len(widths) - 1
        blocks = (halving(widths[k - 1], widths[k], norm=k < last) for k in range(1, len(widths)))
        self.levels = nn.ModuleList([nn.Conv2d(channels, widths[0], 3, padding=1), *blocks])

    def forward(self, inputs: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """Return the features of all levels."""
        return all_features(self.levels, inputs)


class SkipDecoder(nn.Module):
    """Doublings from the bottleneck, each but the first on the step before and a skip; a 3x3 convolution and tanh.

    Doublings are ReLU, a 4x4 transposed convolution of stride 2, normalisation, and dropout in the first three.

    Widths 512, 512, 512, ..., 256, 128 at `width` 64. `streams` encoders give each skip and the bottleneck.
    """

    def __init__(self, *, widths: list[int], streams: int, dropout: float) -> None:
        super().__init__()
        outer = widths[:0:-1]
        inner = [streams * widths[-1]] + [out + streams * skip for out, skip in zip(outer, widths[-2::-1], strict=True)]
        self.steps = nn.ModuleList(
            nn.Sequential(
                *(nn.ReLU(), nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False), SampleNorm()),
                *([nn.Dropout(dropout)] if dropout and k < 3 else []),
            )
            for k, (channels, out) in enumerate(zip(inner, outer, strict=False))
        )
        self.image = nn.Sequential(nn.ReLU(), nn.Conv2d(inner[-1], 3, 3, padding=1), nn.Tanh())

    def forward(self, skips: list[Tensor]) -> Images:
        """Return the image, from the features of all levels, the bottleneck last."""
        features = skips[-1]
        for step, skip in zip(self.steps, skips[-2::-1], strict=True):
            features = torch.cat([step(features), skip], dim=1)
        return self.image(features)


class PlainGenerator(nn.Module):
    """The baseline: one encoder on the source image and both poses, an ordinary U-Net. Weights as Keras' defaults."""

    def __init__(self, *, size: tuple[int, int], width: int, dropout: float) -> None:
        super().__init__()
        widths = encoder_widths(width, halvings(size))
        self.encoder = SkipEncoder(channels=3 + 2 * JOINTS, widths=widths)
        self.decoder = SkipDecoder(widths=widths, streams=1, dropout=dropout)
        initialise(self)

    def forward(self, appearance: Float[Tensor, "batch 21 h w"], pose: Float[Tensor, "batch 18 h w"]) -> Images:
        """Return the image in [-1, 1] of `appearance` (source image, source pose) in the target `pose`."""
        return self.decoder(self.encoder(torch.cat([appearance, pose], dim=1)))


class DeformableGenerator(nn.Module):
    """Two encoders that share nothing, for source image with its pose and for the target pose; deformable skips."""

    def __init__(
        self,
        *,
        size: tuple[int, int],
        width: int,
        dropout: float,
        aggregate: Aggregate,
        interpolation: Interpolation,
        geometry: Geometry,
    ) -> None:
        super().__init__()
        widths = encoder_widths(width, halvings(size))
        self.appearance_encoder = SkipEncoder(channels=3 + JOINTS, widths=widths)
        self.pose_encoder = SkipEncoder(channels=JOINTS, widths=widths)
        self.decoder = SkipDecoder(widths=widths, streams=2, dropout=dropout)
        self.aggregate: Aggregate = aggregate
        self.interpolation: Interpolation = interpolation
        self.paper = geometry == "paper"
        initialise(self)

    def forward(
        self, appearance: Float[Tensor, "batch 21 h w"], pose: Float[Tensor, "batch 18 h w"], warps: LimbWarps
    ) -> Images:
        """Return the image in [-1, 1] of `appearance` (source image, source pose) in the target `pose`."""
        levels = self.appearance_encoder(appearance)
        count = min(4, len(levels) - 1)  # never the bottleneck
        moved = [self._deformed(features, warps) for features in levels[:count]] + levels[count:]
        both = zip(moved, self.pose_encoder(pose), strict=True)
        return self.decoder([torch.cat(streams, dim=1) for streams in both])

    def _deformed(self, features: Tensor, warps: LimbWarps) -> Tensor:
        return deformable_skip(
            features, transforms=warps.transforms, masks=warps.masks, present=warps.present,
            aggregate=self.aggregate, interpolation=self.interpolation,
            mask_frame="source" if self.paper else "target", background=self.paper,
        )  # fmt: skip


class PosedPatchDiscriminator(nn.Module):
    """A logit for each patch of source image, source pose, an image and the target pose (disc_type "call").

    4x4 convolutions of stride 2, the first without padding: `halvings` 5 gives 3x1 patches for 128x64.
    """

    def __init__(self, *, width: int, halvings: int) -> None:
        super().__init__()
        widths = encoder_widths(width, halvings - 2)
        blocks = [halving(widths[k - 1], widths[k], norm=True) for k in range(1, len(widths))]
        first = nn.Conv2d(2 * (3 + JOINTS), widths[0], 4, 2)
        self.layers = nn.Sequential(first, *blocks, halving(widths[-1], 1, norm=False))
        initialise(self)

    def forward(self, images: Float[Tensor, "batch 42 height width"]) -> Float[Tensor, "batch patches"]:
        """Return the logits, above zero for real."""
        return self.layers(images).flatten(1)


def patch_grid(size: tuple[int, int], halvings: int) -> tuple[int, int]:
    """Return rows and columns of the discriminator's patches; 0 where none is left."""
    rows, columns = ((side - 4) // 2 + 1 for side in size)
    return rows >> (halvings - 1), columns >> (halvings - 1)


def fixed_features(features: str, layer: Layer, weights: Path) -> dict[str, nn.Module]:
    """Return "features", the layers of VGG19 up to `layer`: random ones unless `features` is "vgg19"."""
    path = path_of("vgg19", weights) if features == "vgg19" else None
    assert path is not None or features == "random-vgg19", "the plan has checked that the file exists"
    return {"features": vgg19_features(layer, path)}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generator: BCE(D(G), 1) + content_weight content(G, I_b); discriminator: BCE(D(I_b), 1) + BCE(D(G), 0) (eq. 5).

    D scores (I_a, P_a, image, P_b). The content loss of `content_layer` and `window` (equation 7):
    - "pixels", window 1: mean |G - I_b|;
    - a layer g of VGG19, window 1: mean |g(G) - g(I_b)|;
    - a layer and a window of 3 or 5: the nearest-neighbour loss, mean over pixels p of
      min over q in the window around p of sum over channels |g(G)(p) - g(I_b)(q)|.
    The discriminator is updated first, as in the code.
    """

    name: ClassVar[str] = "generation"
    # The joints are read where the skips are deformable.
    reads: ClassVar[tuple[str, ...]] = (
        "source_image", "target_image", "source_pose", "target_pose",
        "source_joints", "source_visible", "target_joints", "target_visible",
    )  # fmt: skip
    writes: ClassVar[tuple[str, ...]] = ("generated_image",)

    width: Positive = 64  # channels of the first level
    skips: Literal["plain", "deformable"] = "deformable"  # warp_skip none and mask
    aggregate: Aggregate = "max"  # over body parts (warp_agg)
    interpolation: Interpolation = "bilinear"
    geometry: Geometry = "code"
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.5  # the only noise; off in evaluation, as in the code
    discriminator_width: Positive = 64
    discriminator_halvings: Annotated[int, Ge(2)] = 5
    content_layer: ContentLayer = "block1_conv2"
    window: Positive = 3  # pixels, odd; 5 for DeepFashion
    content_weight: Weight = 0.01  # lambda
    features: Literal["vgg19", "random-vgg19"] = "vgg19"
    # 90 epochs of 1,000 steps; no augmentation in the paper.
    training: Training = Training(steps=90_000, batch_size=4, lr=2e-4, discriminator_lr=2e-4, flip=False)

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or (self.window > 1 and self.content_layer == "pixels"):
            raise ValueError(
                f"{self.name}.window is {self.window} with content_layer '{self.content_layer}'; it must be odd, and 1 "
                "for pixels"
            )

    @property
    def pretrained(self) -> str:
        """VGG19 where a loss compares its features, else ""."""
        return "" if self.content_layer == "pixels" else "vgg19"

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, generator_first=False)

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        height, width = canvas.size
        if min(patch_grid(canvas.size, self.discriminator_halvings)) < 1:
            raise ValueError(
                f"{self.name}.discriminator_halvings is {self.discriminator_halvings}, too many for images of "
                f"{height}x{width}: no patch is left. Give fewer"
            )
        discriminator = PosedPatchDiscriminator(width=self.discriminator_width, halvings=self.discriminator_halvings)
        if self.skips == "plain":
            generator = PlainGenerator(size=canvas.size, width=self.width, dropout=self.dropout)
        else:
            generator = DeformableGenerator(
                size=canvas.size,
                width=self.width,
                dropout=self.dropout,
                aggregate=self.aggregate,
                interpolation=self.interpolation,
                geometry=self.geometry,
            )
        return {"generator": generator, "discriminator": discriminator}

    def fixed_networks(self, weights: Path) -> dict[str, nn.Module]:
        """Return the fixed feature network, if any."""
        return {} if self.content_layer == "pixels" else fixed_features(self.features, self.content_layer, weights)

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        appearance = torch.cat([batch["source_image"], batch["source_pose"]], dim=1)
        if self.skips == "plain":
            return {"generated_image": nets["generator"](appearance, batch["target_pose"])}
        source, target = ((batch[f"{role}_joints"], batch[f"{role}_visible"]) for role in ("source", "target"))
        warps = limb_warps(*source, *target, canvas.size, geometry=self.geometry)
        return {"generated_image": nets["generator"](appearance, batch["target_pose"], warps)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        generated = outputs["generated_image"]
        if player == "discriminator":
            real, fake = _logits(nets, batch, batch["target_image"]), _logits(nets, batch, generated)
            return {"real": Term(real_loss(real)), "fake": Term(fake_loss(fake))}
        content = Term(self._content(nets, batch, generated), self.content_weight)
        return {"adversarial": Term(real_loss(_logits(nets, batch, generated))), "content": content}

    def _content(self, nets: Networks, batch: Batch, generated: Images) -> Tensor:
        target = batch["target_image"]
        if self.content_layer == "pixels":
            return l1(generated, target)
        with torch.no_grad():
            wanted = nets["features"](target)
        made = nets["features"](generated)
        return l1(made, wanted) if self.window == 1 else nearest_neighbour_loss(made, wanted, window=self.window)


def _logits(nets: Networks, batch: Batch, images: Images) -> Float[Tensor, " batch_times_patches"]:
    """The discriminator's logits of images in the place of the target; each is normalised by itself."""
    condition = (batch["source_image"], batch["source_pose"], images, batch["target_pose"])
    return nets["discriminator"](torch.cat(condition, dim=1)).flatten()


def ablation(
    skips: Literal["plain", "deformable"], content_layer: ContentLayer = "pixels"
) -> Callable[[System], System]:
    """Return the variant with an L1 content loss: 100 times that of pixels, or 50 times "full"'s weight of features."""

    def ablated(system: System) -> System:
        (stage,) = system.stages
        assert isinstance(stage, Generation)
        weight = 100.0 if content_layer == "pixels" else 50 * stage.content_weight
        training = replace(stage.training, batch_size=max(4, stage.training.batch_size))
        changed = {"skips": skips, "content_layer": content_layer, "window": 1, "content_weight": weight}
        return replace(system, stages=(replace(stage, **changed, training=training),))

    return ablated


DEFGAN = Paper(
    citation="Siarohin et al.: Deformable GANs for Pose-based Human Image Generation, CVPR 2018",
    presets={
        "market1501": Preset((128, 64), Gaussians(sigma=6.0), (Generation(),)),
        "deepfashion": Preset((256, 256), Gaussians(sigma=6.0), (
            Generation(
                window=5, training=Training(steps=90_000, batch_size=2, lr=2e-4, discriminator_lr=2e-4, flip=False),
            ),
        )),
        # Our choice: what two processor cores train in a few minutes.
        "synthetic": Preset((64, 32), Gaussians(sigma=3.0), (
            Generation(
                width=16, discriminator_width=16, discriminator_halvings=4, dropout=0.0, content_weight=1.0,
                training=Training(
                    steps=1500, batch_size=8, lr=1e-3, discriminator_lr=2e-4, constant_lr_share=0.5, flip=False
                ),
            ),
        )),
    },
    variants={
        "full": Variant(),
        "baseline": ablation("plain"),
        "dsc": ablation("deformable"),
        "perc": ablation("deformable", "block2_conv1"),
    },
    image="generated_image",
)  # fmt: skip
