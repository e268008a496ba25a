"""Multistage's networks: pose, foreground and background."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Degrees, Images, Joints, Masks, PoseMaps
from posegen.nets.convolutional import all_features, initialise

JOINTS = 18
VIEW = 2  # numbers that tell the rotation

Fusion = Literal["analogy", "concatenation", "one-branch"]
Features = Float[Tensor, "batch _ _ _"]


def view_code(rotation: Degrees) -> Float[Tensor, "batch 2"]:
    """Return [sin, cos] of the angle from the source's camera to the target's."""
    angle = torch.deg2rad(rotation)
    return torch.stack([angle.sin(), angle.cos()], dim=1)


def cut_out(images: Images, mask: Masks, backdrop: float) -> Images:
    """Return F = I M + c (1 - M): the person in front of one grey c, in [-1, 1]."""
    return images * mask + backdrop * (1 - mask)


class ResidualLinear(nn.Module):
    """x + two times [linear, normalisation, ReLU, dropout] of x (Martinez et al. 2017)."""

    def __init__(self, *, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_linear(width, width, dropout), *_linear(width, width, dropout))

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Return features of the same size."""
        return features + self.layers(features)


def _linear(inner: int, outer: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inner, outer), nn.LayerNorm(outer), nn.ReLU(), nn.Dropout(dropout)]


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
        initialise(self, nn.init.kaiming_normal_)

    def forward(self, joints: Joints, view: Float[Tensor, "batch 2"]) -> Joints:
        """Return joints for joints: the image's middle is 0, half of its longer side 1."""
        with torch.autocast(joints.device.type, enabled=False):
            return self.layers(torch.cat([joints.flatten(1), view], dim=1)).view_as(joints)


def level_widths(size: tuple[int, int], *, width: int, depth: int) -> list[int]:
    """Return the channels of each halving: `width` times 1, 2, 4, 8, 8, ...; at most `depth`, or as the sides allow."""
    halvings = next((k for k in range(depth, 0, -1) if not any(side % 2**k for side in size)), 1)
    return [width * min(2**k, 8) for k in range(halvings)]


class StridedEncoder(nn.Module):
    """4x4 convolutions of stride 2, normalisation except in the first, LeakyReLU 0.2; the features of all levels."""

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
        """Return the features of each level, the finest first."""
        return all_features(self.levels, inputs)


class StridedDecoder(nn.Module):
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
        """Return the image, in [-1, 1]. `skips` are all levels of an encoder but the coarsest, the finest first."""
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
        self.image_encoder = StridedEncoder(channels=3 + (2 * JOINTS if fusion == "one-branch" else 0), widths=widths)
        if fusion != "one-branch":
            self.pose_encoder = StridedEncoder(channels=JOINTS, widths=widths)
        self.decoder = StridedDecoder(channels=widths[-1] * (3 if fusion == "concatenation" else 1), widths=widths)

    def forward(self, foreground: Images, source_pose: PoseMaps, target_pose: PoseMaps) -> Images:
        """Return the person in the target's pose."""
        if self.fusion == "one-branch":
            *skips, bottleneck = self.image_encoder(torch.cat([foreground, source_pose, target_pose], dim=1))
            return self.decoder(bottleneck, skips)
        image = self.image_encoder(foreground)[-1]
        poses = [level.chunk(2) for level in self.pose_encoder(torch.cat([source_pose, target_pose]))]
        source, target = poses[-1]
        mixed = target - source + image if self.fusion == "analogy" else torch.cat([image, source, target], dim=1)
        return self.decoder(mixed, [wanted for _, wanted in poses[:-1]])


class BackgroundNetwork(nn.Module):
    """A U-Net on images and maps side by side, with planes of the view code; to a whole image."""

    def __init__(self, *, channels: int, size: tuple[int, int], width: int, depth: int) -> None:
        super().__init__()
        widths = level_widths(size, width=width, depth=depth)
        self.encoder = StridedEncoder(channels=channels + VIEW, widths=widths)
        self.decoder = StridedDecoder(channels=widths[-1], widths=widths)

    def forward(self, given: Float[Tensor, "batch channels height width"], view: Float[Tensor, "batch 2"]) -> Images:
        """Return the whole image."""
        planes = view[:, :, None, None].expand(-1, -1, *given.shape[2:])
        *skips, bottleneck = self.encoder(torch.cat([given, planes], dim=1))
        return self.decoder(bottleneck, skips)
