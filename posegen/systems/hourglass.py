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

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from posegen.batch import Batch, Images, Joints, PoseMaps, Visible
from posegen.data.geometry.joints import JOINTS, MIRROR
from posegen.data.geometry.pose_maps import Gaussians
from posegen.stage import Networks, Player, StepDecay, System, Term
from posegen.systems.settings import check_fields, check_known, settings_for

PAPER = "Newell et al.: Stacked Hourglass Networks for Human Pose Estimation, ECCV 2016"

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


def decoded(maps: HeatMaps, stride: int) -> tuple[Joints, Confidence]:
    """Joints in pixels of the image, and the maps' peaks, brought to [0, 1]: how sure each joint is.

    A cell's centre is its place plus 1/2, times `stride`; so is a pixel's with stride 1: x = (cell + 1/2) stride - 1/2.
    """
    columns = maps.shape[3]
    peaks, places = maps.flatten(2).max(dim=2)
    cells = torch.stack([places % columns, places // columns], dim=2)
    slopes = torch.stack(
        [
            functional.pad(maps[..., 2:] - maps[..., :-2], (1, 1)),
            functional.pad(maps[..., 2:, :] - maps[..., :-2, :], (0, 0, 1, 1)),
        ],
        dim=4,
    )
    shifts = slopes.flatten(2, 3).gather(2, places[..., None, None].expand(-1, -1, 1, 2))[:, :, 0].sign()
    return (cells + 0.25 * shifts + 0.5) * stride - 0.5, peaks.clamp(0, 1)


def turned(images: Images, joints: Joints, angle: Tensor, scale: Tensor) -> tuple[Images, Joints]:
    """Images and joints turned about the image's middle by an angle in radians, clockwise, and enlarged.

    One angle and scale an image; where nothing is, the image becomes 0, which is grey.
    """
    height, width = images.shape[-2:]
    sides = images.new_tensor([width, height])
    middle = (sides - 1) / 2
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)  # x to the right, y downwards
    pixels = torch.stack(
        torch.meshgrid(
            torch.arange(width, device=images.device), torch.arange(height, device=images.device), indexing="xy"
        ),
        dim=2,
    ).to(images.dtype)
    origins = torch.einsum("bij,hwi->bhwj", turn, pixels - middle) / scale[:, None, None, None] + middle
    moved = torch.einsum("bij,bkj->bki", turn, joints - middle) * scale[:, None, None] + middle
    grid = (2 * origins + 1) / sides - 1
    return functional.grid_sample(images, grid, align_corners=False), moved


def heat_map_loss(given: StackedMaps, wanted: PoseMaps, visible: Visible) -> Float[Tensor, " stacks"]:
    """Mean squared error of each hourglass's maps over the joints that are known."""
    errors = (given - wanted[:, None]).square().mean(dim=(3, 4))
    known = visible[:, None].to(errors.dtype)
    return (errors * known).sum(dim=(0, 2)) / known.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """Every hourglass n: stack_n = mean over known joints and cells of (H_n - H)^2; their mean is minimised.

    H: Gaussians of peak 1 at the joints, in cells. The result is the last one's maps, the mean with those of the
    mirrored image where `mirrored_too` (test.py). The player is called "generator", for that is the one that an
    average (`ema_decay`) follows.
    """

    name: ClassVar[str] = "estimation"
    reads: ClassVar[tuple[str, ...]] = ("target_image", "target_joints", "target_visible")
    writes: ClassVar[tuple[str, ...]] = ("estimated_joints", "estimated_confidence")

    size: tuple[int, int] = (256, 256)  # height, width in pixels
    stacks: int = 8  # hourglasses
    width: int = 256  # channels
    depth: int = 4  # halvings in an hourglass
    stem_stride: Literal[2, 4] = 4  # pixels a cell of the heat maps, along each side
    sigma: float = 1.0  # of the Gaussians, in cells
    rotation: float = 30.0  # degrees at most, to either side
    scaling: float = 0.25  # between 1 - scaling and 1 + scaling
    mirrored_too: bool = True
    steps: int = 200_000
    batch_size: int = 16
    lr: float = 1e-3
    late_lr: float = 2e-4
    constant_lr_share: float = 0.5  # of the steps at `lr`; then `late_lr`
    flip: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, lambda size: check_size(size, self.stem_stride, self.depth))
        if self.width % 4:
            raise ValueError(
                f"estimation.width is {self.width}; it must be a multiple of 4, since the stem has a quarter"
            )

    @property
    def players(self) -> tuple[Player, ...]:
        schedule = StepDecay(start=round(self.steps * self.constant_lr_share), share=self.late_lr / self.lr)
        return (Player(name="generator", nets=("estimator",), lr=self.lr, betas=(0.9, 0.999), schedule=schedule),)

    def networks(self) -> dict[str, nn.Module]:
        described = {"stacks": self.stacks, "width": self.width, "depth": self.depth, "stem_stride": self.stem_stride}
        return {"estimator": StackedHourglass(joints=len(JOINTS), **described)}

    def heat_maps(self, joints: Joints, visible: Visible) -> PoseMaps:
        """What the maps of an image should be."""
        rows, columns = (side // self.stem_stride for side in self.size)
        return Gaussians(sigma=self.sigma)((joints + 0.5) / self.stem_stride - 0.5, visible, rows, columns)

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        images = batch["target_image"]
        maps = nets["estimator"](images)[:, -1].to(images.dtype)
        if self.mirrored_too:
            mirrored = nets["estimator"](images.flip(3))[:, -1].to(images.dtype)
            maps = (maps + mirrored.flip(3)[:, MIRROR]) / 2
        joints, confidence = decoded(maps, self.stem_stride)
        return {"estimated_joints": joints, "estimated_confidence": confidence}

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        images, joints = self.varied(batch["target_image"], batch["target_joints"])
        wanted = self.heat_maps(joints, batch["target_visible"])
        losses = heat_map_loss(nets["estimator"](images), wanted, batch["target_visible"])
        return {f"stack_{n}": Term(each, 1 / self.stacks) for n, each in enumerate(losses, 1)}

    def varied(self, images: Images, joints: Joints) -> tuple[Images, Joints]:
        """Images with their joints turned and scaled at random, as the settings say; themselves where both are 0."""
        if not (self.rotation or self.scaling):
            return images, joints
        angle, scale = (2 * torch.rand(2, len(images), device=images.device, dtype=images.dtype) - 1).unbind()
        return turned(images, joints, angle * math.radians(self.rotation), 1 + scale * self.scaling)


def check_size(size: tuple[int, int], stem_stride: int, depth: int) -> None:
    """Raise ValueError where a (height, width) in pixels has no whole number of cells, or too few to be halved."""
    least = stem_stride * 2**depth
    if min(size) < least or any(side % stem_stride for side in size):
        fits = "x".join(str(max(least, stem_stride * round(side / stem_stride))) for side in size)
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) does not fit a stem of stride {stem_stride} and hourglasses of "
            f"depth {depth}: both sides must be multiples of {stem_stride}, at least {least}, such as {fits}"
        )


class Settings(NamedTuple):
    """What differs between data sets."""

    size: tuple[int, int]
    estimation: Estimation


SETTINGS = {
    "market1501": Settings((128, 64), Estimation(size=(128, 64), stem_stride=2)),
    "deepfashion": Settings((256, 256), Estimation()),
    # Our choice: what two processor cores train in a few minutes.
    "synthetic": Settings(
        (64, 32),
        Estimation(
            size=(64, 32), stacks=2, width=64, depth=3, stem_stride=2, rotation=0.0, scaling=0.0, steps=3000,
            batch_size=8, constant_lr_share=0.7,
        ),
    ),
}  # fmt: skip

VARIANTS = ("full",)


def hourglass(dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None) -> System:
    """The stacked hourglass with the settings of a data set.

    Raises ValueError for an unknown data set or variant, and for a size that does not fit.
    """
    check_known("variant of hourglass", variant, VARIANTS)
    settings, size = settings_for(dataset, size, SETTINGS)
    return System(
        name="hourglass",
        variant=variant,
        paper=PAPER,
        size=size,
        pose_maps=Gaussians(),
        stages=(dataclasses.replace(settings.estimation, size=size),),
        image="",
        joints="estimated_joints",
    )
