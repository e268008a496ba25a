"""Stacked hourglass: Newell, Yang, Deng: Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016
(arXiv 1603.06937). Si et al. (Multistage adversarial losses, CVPR 2018) call it f_HG: their poses come from it.

One stage ("estimation"): an image in, a heat map for each joint out, by a row of hourglasses of which each corrects
the maps of the one before; every one of them is trained to give the right maps. Released code:
princeton-vl/pytorch_stacked_hourglass (models/layers.py, models/posenet.py, task/pose.py, utils/group.py, test.py,
data/MPII/dp.py), by the paper's group, after its own princeton-vl/pose-hg-train.

Where paper and code disagree, we follow the code
- optimiser: Adam 1e-3, 2e-4 from step 100,000 of about 200,000 on (the paper: RMSProp 2.5e-4, once divided by 5). The
  code's page finds this better;
- 8 hourglasses of one module a level (the paper counts so too; its comparison with fewer hourglasses has more modules).

Our choices
- 18 joints in OpenPose's order instead of MPII's 16;
- a joint that is unknown is left out of the loss. The code asks for an empty map there, since MPII's annotators leave
  out what cannot be seen; our data sets lack joints for other reasons too (a detector that missed them). A joint that
  is known and lies outside the image has what is left of its map inside, as in the code nothing;
- Gaussians stand where the joint is, between cells too; the code moves them to the middle of a cell. A joint is found
  where the last hourglass's map is highest, a quarter of a cell towards the higher of the two neighbours, in x and in
  y (utils/group.py). In a cell at the border it stays in the middle, where the code moves it outwards;
- images in [-1, 1], as everywhere here (the code: [0, 1]);
- the image is the whole box of a person, in the shape that it has (the code: a square of 1.25 times the height);
- the stem: the code divides an image of 256x256 by 4, to maps of 64x64. Images up to a height of 160 are only halved
  (`stem_stride` 2, without the pooling), to maps of 64x32 for 128x64 pixels: a cell of 4 pixels would be a fifteenth
  of such a person's width. Its channels are width / 4 and width / 2, which are the code's 64 and 128 at width 256;
- a level of an odd number of cells keeps its last one: pooling rounds up, and what is too much behind the enlarging is
  cut off. So 256x176 fits as well. Where all levels are even, this changes nothing;
- rotation and scaling are the code's, up to 30 degrees and between 0.75 and 1.25, on the device and with grey (the
  code: black) where nothing is; the code's changes of colour, which it makes with mirrored images only, are left out;
- the target image of a pair is what is estimated; the source image is not looked at;
- the settings of "synthetic".

Parameters, 8 hourglasses of width 256: 25,434,112 with the code's 16 joints, 25,441,808 with 18. (The code's own count
is 7,385,216 higher: each of its residuals has a convolution for the skip, also where it is not used.) Numbers of the
paper, MPII's test set: PCKh@0.5 of 90.9 %; of the code, on the validation set: 90.2 % with 8 hourglasses, 88.3 % with
2. They say nothing about the boxes of our data sets; docs/systems.md has what was measured on these.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval, MultipleOf
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from posegen.batch import Batch, Images, Joints, PoseMaps, Visible
from posegen.data.geometry.joints import JOINTS, MIRROR
from posegen.data.geometry.pose_maps import Gaussians
from posegen.stage import Canvas, Networks, Paper, Player, Preset, Term, Training, Variant, adversarial_players
from posegen.systems.fields import Decay, Positive, Rate

Features = Float[Tensor, "batch channels rows columns"]
HeatMaps = Float[Tensor, "batch 18 rows columns"]
StackedMaps = Float[Tensor, "batch stacks joints rows columns"]  # of every hourglass
Confidence = Float[Tensor, "batch 18"]


class Residual(nn.Module):
    """layers.py's Residual: 1x1, 3x3, 1x1 convolutions, each behind batch normalisation and ReLU, past which x goes.

    Half of the channels in between; a 1x1 convolution on the skip where the number of channels changes.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(channels_in), nn.ReLU(), nn.Conv2d(channels_in, half, 1)),
            *(nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1)),
            *(nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, channels_out, 1)),
        )
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, features: Features) -> Float[Tensor, "batch channels_out rows columns"]:
        """Return the features plus their residual."""
        return self.layers(features) + self.skip(features)


class Hourglass(nn.Module):
    """layers.py's Hourglass: down by pooling `depth` times, up by repeating cells, a residual at each crossing.

    Its sides need not be multiples of 2^depth: pooling rounds up, and what the enlarging has too much is cut off.
    """

    def __init__(self, *, width: int, depth: int) -> None:
        super().__init__()
        self.across = Residual(width, width)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.inner = nn.Sequential(
            Residual(width, width),
            Hourglass(width=width, depth=depth - 1) if depth > 1 else Residual(width, width),
            Residual(width, width),
        )
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, features: Features) -> Features:
        """Return features of the same size."""
        rows, columns = features.shape[-2:]
        enlarged = self.enlarge(self.inner(self.pool(features)))
        return self.across(features) + enlarged[..., :rows, :columns]


def stem(*, width: int, stride: int) -> nn.Sequential:
    """posenet.py's `pre`: a 7x7 convolution of stride 2 and residuals, with a pooling between where the stride is 4."""
    return nn.Sequential(
        *(nn.Conv2d(3, width // 4, 7, stride=2, padding=3), nn.BatchNorm2d(width // 4), nn.ReLU()),
        Residual(width // 4, width // 2),
        nn.MaxPool2d(2) if stride == 4 else nn.Identity(),
        Residual(width // 2, width // 2),
        Residual(width // 2, width),
    )


class StackedHourglass(nn.Module):
    """posenet.py's PoseNet: behind each hourglass features and maps, both added to what the next one is given."""

    def __init__(self, *, joints: int, stacks: int, width: int, depth: int, stem_stride: int) -> None:
        super().__init__()
        self.stem = stem(width=width, stride=stem_stride)
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                Hourglass(width=width, depth=depth),
                Residual(width, width),
                *(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            )
            for _ in range(stacks)
        )
        self.maps = nn.ModuleList(nn.Conv2d(width, joints, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.merge_maps = nn.ModuleList(nn.Conv2d(joints, width, 1) for _ in range(stacks - 1))

    def forward(self, images: Images) -> StackedMaps:
        """The maps of every hourglass, the last one's being the result. Sides: the image's by the stem's stride."""
        given, maps = self.stem(images), []
        for stack, (hourglass, to_maps) in enumerate(zip(self.hourglasses, self.maps, strict=True)):
            features = hourglass(given)
            maps.append(to_maps(features))
            if stack < len(self.merge_maps):
                given = given + self.merge_maps[stack](maps[-1]) + self.merge_features[stack](features)
        return torch.stack(maps, dim=1)


def decode(maps: HeatMaps, stride: int) -> tuple[Joints, Confidence]:
    """Return joints in pixels of the image, and the maps' peaks clamped to [0, 1] as their confidence.

    A cell's centre is its index plus 1/2, times `stride`; so is a pixel's with stride 1: x = (cell + 1/2) stride - 1/2.
    """
    columns = maps.shape[3]
    peaks, indices = maps.flatten(2).max(dim=2)
    cells = torch.stack([indices % columns, indices // columns], dim=2)
    across = functional.pad(maps[..., 2:] - maps[..., :-2], (1, 1))
    down = functional.pad(maps[..., 2:, :] - maps[..., :-2, :], (0, 0, 1, 1))
    slopes = torch.stack([across, down], dim=4)
    shifts = slopes.flatten(2, 3).gather(2, indices[..., None, None].expand(-1, -1, 1, 2))[:, :, 0].sign()
    return (cells + 0.25 * shifts + 0.5) * stride - 0.5, peaks.clamp(0, 1)


def rotate(images: Images, joints: Joints, angle: Tensor, scale: Tensor) -> tuple[Images, Joints]:
    """Rotate images and joints about the image's middle, clockwise by an angle in radians, and enlarge them.

    One angle and scale per image. Pixels from outside become 0, which is grey.
    """
    height, width = images.shape[-2:]
    sides = images.new_tensor([width, height])
    middle = (sides - 1) / 2
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)  # x to the right, y downwards
    x, y = (torch.arange(side, device=images.device) for side in (width, height))
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2).to(images.dtype)
    origins = torch.einsum("bij,hwi->bhwj", turn, pixels - middle) / scale[:, None, None, None] + middle
    moved = torch.einsum("bij,bkj->bki", turn, joints - middle) * scale[:, None, None] + middle
    grid = (2 * origins + 1) / sides - 1
    return functional.grid_sample(images, grid, align_corners=False), moved


def heat_map_loss(given: StackedMaps, wanted: PoseMaps, visible: Visible) -> Float[Tensor, " stacks"]:
    """Return the mean squared error of each hourglass's maps over the known joints."""
    errors = (given - wanted[:, None]).square().mean(dim=(3, 4))
    known = visible[:, None].to(errors.dtype)
    return (errors * known).sum(dim=(0, 2)) / known.sum().clamp(min=1)


def check_size(size: tuple[int, int], stem_stride: int, depth: int) -> None:
    """Raise ValueError where a (height, width) in pixels has no whole number of cells, or too few to be halved."""
    least = stem_stride * 2**depth
    if min(size) < least or any(side % stem_stride for side in size):
        fits = "x".join(str(max(least, stem_stride * round(side / stem_stride))) for side in size)
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) does not fit a stem of stride {stem_stride} and hourglasses of "
            f"depth {depth}: both sides must be multiples of {stem_stride}, at least {least}, such as {fits}"
        )


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """Every hourglass n: stack_n = mean over known joints and cells of (H_n - H)^2; their mean is minimised.

    H: Gaussians of peak 1 at the joints, in cells. The result is the last one's maps, averaged with those of the
    mirrored image if `mirrored_too` (test.py).
    """

    name: ClassVar[str] = "estimation"
    reads: ClassVar[tuple[str, ...]] = ("target_image", "target_joints", "target_visible")
    writes: ClassVar[tuple[str, ...]] = ("estimated_joints", "estimated_confidence")

    stacks: Positive = 8  # hourglasses
    width: Annotated[int, MultipleOf(4)] = 256  # channels; the stem has a quarter
    depth: Positive = 4  # halvings in an hourglass
    stem_stride: Literal[2, 4] = 4  # pixels a cell of the heat maps, along each side
    sigma: Rate = 1.0  # of the Gaussians, in cells
    rotation: Annotated[float, Interval(ge=0, le=180)] = 30.0  # degrees at most, to either side
    scaling: Decay = 0.25  # between 1 - scaling and 1 + scaling
    mirrored_too: bool = True
    training: Training = Training(steps=200_000, batch_size=16, lr=1e-3, late_lr=2e-4, constant_lr_share=0.5)

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, generators=("estimator",), discriminators=(), betas=(0.9, 0.999))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        check_size(canvas.size, self.stem_stride, self.depth)
        sizes = {"stacks": self.stacks, "width": self.width, "depth": self.depth, "stem_stride": self.stem_stride}
        return {"estimator": StackedHourglass(joints=len(JOINTS), **sizes)}

    def heat_maps(self, joints: Joints, visible: Visible, size: tuple[int, int]) -> PoseMaps:
        """Return the true heat maps of joints in images of `size`, (height, width) in pixels."""
        rows, columns = (side // self.stem_stride for side in size)
        return Gaussians(sigma=self.sigma)((joints + 0.5) / self.stem_stride - 0.5, visible, rows, columns)

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        images = batch["target_image"]
        maps = nets["estimator"](images)[:, -1].to(images.dtype)
        if self.mirrored_too:
            mirrored = nets["estimator"](images.flip(3))[:, -1].to(images.dtype)
            maps = (maps + mirrored.flip(3)[:, MIRROR]) / 2
        joints, confidence = decode(maps, self.stem_stride)
        return {"estimated_joints": joints, "estimated_confidence": confidence}

    def training_outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the maps of all hourglasses for randomly varied images, and the joints in these."""
        images, joints = self.vary(batch["target_image"], batch["target_joints"])
        return {"maps": nets["estimator"](images), "joints": joints}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        true = self.heat_maps(outputs["joints"], batch["target_visible"], canvas.size)
        losses = heat_map_loss(outputs["maps"], true, batch["target_visible"])
        return {f"stack_{n}": Term(each, 1 / self.stacks) for n, each in enumerate(losses, 1)}

    def vary(self, images: Images, joints: Joints) -> tuple[Images, Joints]:
        """Rotate and scale images with their joints at random, within the settings; unchanged if both are 0."""
        if not (self.rotation or self.scaling):
            return images, joints
        angle, scale = (2 * torch.rand(2, len(images), device=images.device, dtype=images.dtype) - 1).unbind()
        return rotate(images, joints, angle * math.radians(self.rotation), 1 + scale * self.scaling)


HOURGLASS = Paper(
    citation="Newell et al.: Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016",
    presets={
        "market1501": Preset((128, 64), Gaussians(), (Estimation(stem_stride=2),)),
        "deepfashion": Preset((256, 256), Gaussians(), (Estimation(),)),
        # Our choice: trained on two processor cores in a few minutes.
        "synthetic": Preset((64, 32), Gaussians(), (
            Estimation(
                stacks=2, width=64, depth=3, stem_stride=2, rotation=0.0, scaling=0.0,
                training=Training(steps=3000, batch_size=8, lr=1e-3, late_lr=2e-4, constant_lr_share=0.7),
            ),
        )),
    },
    variants={"full": Variant()},
    joints="estimated_joints",
)  # fmt: skip
