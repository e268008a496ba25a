"""Appearance flow: Zhou, Tulsiani, Sun, Malik, Efros: View Synthesis by Appearance Flow, ECCV 2016 (arXiv 1605.03557).

One stage ("flow"): the target image is not drawn but copied. A network gives, for each pixel of the target, how far
away in the source image its colour is to be found; there the source is sampled. A second decoder says which pixels
of the target are the object's. Released code: tinghuiz/appearance-flow (models/*/deploy.prototxt, its Caffe layers
remap_layer.cpp and resize_layer.cpp, demo.ipynb); solvers and training networks were not released.

From the code
- "view" is the object network of models/car_single: encoder of six convolutions and two linear layers, two linear
  layers for the view, two decoders that share nothing but their input; at 224x224 layer by layer the published one;
- "full" and "no-mask" are the scene network of models/kitti_single: the condition is laid over the image's pixels,
  five convolutions, five deconvolutions, no skips;
- flows are offsets in pixels, resized bilinearly with the corners on each other; sampling is bilinear, and black
  outside the image;
- the view as one of 19 steps of 20 degrees, [-180, 180], one-hot, with a 20th entry that is always 1.

Our choices, for the paper has no people
- "full": the condition is both poses' maps, 36 channels in place of the tiled camera motion; the mask decoder of the
  object network is added, as further deconvolutions of the same features;
- the scene network's deconvolutions double each side (the code: 2n - 1), and `depth` says how often sides are halved:
  2n - 1 never leaves a width of one, which five halvings make of 32 pixels;
- at other sizes than 224x224 the object network's decoders begin with as few rows and columns as reach the size
  (8x8 there, as published; 3x2 for 64x32), for at 8x8 they would draw 225x225 of any image;
- the result is the sampled image, background and all, and the mask a column beside it: `foreground`, the person's
  probability. The demo shows the object on black, as `cut_out` does; whole images would be scored for the black;
- `view_code="angle"`: sine and cosine of the angle with the 1, for cameras between the steps;
- the last convolution of the flow starts at zero, so that the first image is the source;
- the loss is mean L1 of the sampled image and 0.1 of the mask's cross-entropy: weights, steps, batch and rates were
  not found. Adam at 1e-4, halved every 50,000 steps, is what we believe them to be;
- no mean taken off the image, which is in [-1, 1] already; He-normal weights; the settings of all data sets.

Parameters: "full" 9,434,116 and "no-mask" 5,506,530 at every size with five halvings; "view" 93,035,844 at 224x224 as
published, 50,023,924 for 128x64, 97,772,180 for 256x256. No numbers are published for people. On the embedded people
(one seed): mask-L1 of "full" 0.144 and of "no-mask" 0.170, where the best baseline has 0.171; of "view" on those with
several cameras 0.151, where it has 0.170. A flow can only show what the source shows: a back seen from the front gets
the front's colours.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Batch, Images
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.reconstruction import l1
from posegen.nets.convolutional import initialise
from posegen.stage import Canvas, Networks, Paper, Player, Preset, System, Term, Training, adversarial_players
from posegen.systems.fields import Positive, Weight
from posegen.systems.pix2pix import CONDITION, condition

STEPS = 19  # of the view code, 20 degrees apart
VIEW_ENTRIES = STEPS + 1
OBJECT_DOUBLINGS = 5  # of a decoder of the object network

ViewCode = Literal["steps", "angle"]
Flow = Float[Tensor, "batch 2 height width"]  # x, y in pixels


def sampled(images: Float[Tensor, "batch channels height width"], flow: Flow) -> Tensor:
    """Return images(x + flow_x, y + flow_y) at each pixel (x, y), bilinearly, 0 outside; in float32 at least.

    remap_layer.cpp: a pixel's number is its centre, and of the four nearest pixels those outside count as 0.
    """
    dtype = torch.promote_types(flow.dtype, torch.float32)
    height, width = flow.shape[2:]
    with torch.autocast(flow.device.type, enabled=False):
        column, row = (torch.arange(side, device=flow.device, dtype=dtype) for side in (width, height))
        x, y = flow[:, 0].to(dtype) + column, flow[:, 1].to(dtype) + row[:, None]
        points = torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], dim=-1)
        return F.grid_sample(images.to(dtype), points, mode="bilinear", padding_mode="zeros", align_corners=True)


def resized(maps: Float[Tensor, "batch channels _ _"], size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, corners on corners (resize_layer.cpp); flows keep their values: pixels of the result."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=True)


def view_code(rotation: Float[Tensor, " batch"], kind: ViewCode) -> Float[Tensor, "batch 20"]:
    """Return the rotation in degrees as the object network's 20 numbers, of which the last is 1.

    "steps": one-hot, the nearest multiple of 20 from -180 to 180. "angle": its sine and cosine, then zeros.
    """
    if kind == "angle":
        radians = torch.deg2rad(rotation)
        known = torch.stack([radians.sin(), radians.cos()], dim=1)
        code = F.pad(known, (0, VIEW_ENTRIES - 2))
    else:
        code = F.one_hot(((rotation + 180) / 20).round().long(), VIEW_ENTRIES).to(rotation.dtype)
    return code.index_fill(1, torch.tensor([STEPS], device=code.device), 1.0)


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError for sides below 8 pixels; every other size fits, by resizing the flow."""
    if min(size) < 8:
        raise ValueError(
            f"size {size[0]}x{size[1]} (height x width) is too small: both sides must be at least 8 pixels"
        )


def halving_layers(widths: list[int]) -> nn.Sequential:
    """Return 3x3 convolutions of stride 2 with ReLU; a side of n pixels becomes n / 2, rounded up."""
    layers = [(nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.ReLU()) for inner, outer in pairwise(widths)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def doubling_layers(widths: list[int], *, whole: bool) -> nn.Sequential:
    """Return 3x3 deconvolutions of stride 2 with ReLU, then one of stride 1 to two channels.

    n pixels become 2n - 1 each time (the code), or 2n where `whole`.
    """
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=int(whole)), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 2, 3, padding=1))


def initialise_at_identity(network: nn.Module, flow: nn.Sequential) -> None:
    """Initialise He-normal weights (our choice: the training networks' are not known), the last of `flow` zero."""
    initialise(network, partial(nn.init.kaiming_normal_, nonlinearity="relu"))
    last = flow[-1]
    assert isinstance(last, nn.ConvTranspose2d)
    nn.init.zeros_(last.weight)


class SceneFlowNetwork(nn.Module):
    """models/kitti_single: halvings of image and condition, doublings to the flow and, where `masked`, to a mask.

    Widths 32, 64, 128, 256, 512 down and 512, 256, 128, 64, 32 up at width 32 and depth 5.
    """

    def __init__(self, *, channels: int, size: tuple[int, int], width: int, depth: int, masked: bool) -> None:
        super().__init__()
        check_size(size)
        widths = [width * 2**level for level in range(depth)]
        back = [widths[-1], *widths[::-1]]
        self.size = size
        self.encoder = halving_layers([channels, *widths])
        self.flow = doubling_layers(back, whole=True)
        self.mask = doubling_layers(back, whole=True) if masked else None
        initialise_at_identity(self, self.flow)

    def forward(self, given: Float[Tensor, "batch channels height width"]) -> tuple[Flow, Tensor | None]:
        """Return the flow in pixels, and the logits of background and foreground."""
        features = self.encoder(given)
        mask = None if self.mask is None else resized(self.mask(features), self.size)
        return resized(self.flow(features), self.size), mask


class ObjectFlowNetwork(nn.Module):
    """models/car_single: the source image and the view's code meet in linear layers; decoders of flow and mask.

    At width 16 and `latent` 4096: six convolutions of 16 to 512 channels and two linear layers; 128 and 256 units for
    the view; each decoder has two linear layers (4096 and 64 channels, 1024 and 16 channels) and doublings of 256,
    128, 64, 32, 16 channels.
    """

    def __init__(self, *, size: tuple[int, int], width: int, latent: int) -> None:
        super().__init__()
        check_size(size)
        self.size = size
        positions = math.prod(math.ceil(side / 64) for side in size)
        self.encoder = halving_layers([3, *(width * 2**level for level in range(6))])
        self.source_code = _linear_layers(32 * width * positions, latent, latent)
        self.view_code = _linear_layers(VIEW_ENTRIES, 8 * width, 16 * width)
        start = tuple(math.ceil((side - 1) / 2**OBJECT_DOUBLINGS) + 1 for side in size)
        self.flow = self._decoder(latent, 4 * width, latent + 16 * width, start)
        self.mask = self._decoder(math.ceil(latent / 4), width, latent + 16 * width, start)
        initialise_at_identity(self, self.flow)

    def _decoder(self, units: int, channels: int, given: int, start: tuple[int, ...]) -> nn.Sequential:
        width = self.encoder[0].out_channels
        widths = [channels, *(width * 2**level for level in reversed(range(OBJECT_DOUBLINGS)))]
        spread = _linear_layers(given, units, channels * math.prod(start))
        return nn.Sequential(*spread, nn.Unflatten(1, (channels, *start)), *doubling_layers(widths, whole=False))

    def forward(self, source: Images, view: Float[Tensor, "batch 20"]) -> tuple[Flow, Tensor]:
        """Return the flow in pixels, and the logits of background and foreground."""
        code = torch.cat([self.source_code(self.encoder(source).flatten(1)), self.view_code(view)], dim=1)
        return resized(self.flow(code), self.size), resized(self.mask(code), self.size)


def _linear_layers(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU."""
    return nn.Sequential(*(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())))


def copied(batch: Batch, flow: Flow) -> Images:
    """Return the source's colours where the flow finds them, in [-1, 1]; black outside, as the code's images from 0."""
    return sampled(batch["source_image"] + 1, flow) - 1


def foreground(logits: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Return the probability of the person at each pixel: the second of the softmax's two classes."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)[:, 1:]


def masked_outputs(batch: Batch, flow: Flow, logits: Tensor, *, cut_out: bool) -> dict[str, Tensor]:
    """Return "sampled_image" and "foreground"; with `cut_out` black where the foreground is at most 0.5."""
    image, person = copied(batch, flow), foreground(logits)
    if cut_out:
        image = (image + 1) * (person > 0.5) - 1
    return {"sampled_image": image, "foreground": person}


def uncut_outputs(batch: Batch, flow: Flow, logits: Tensor) -> dict[str, Tensor]:
    """Return what the losses compare: the whole image, and the mask's "logits"."""
    return {"sampled_image": copied(batch, flow), "logits": logits}


def masked_terms(batch: Batch, outputs: Batch, mask_weight: float) -> dict[str, Term]:
    """Return "l1" of the whole image, and "mask", the cross-entropy of background and person, of `uncut_outputs`."""
    logits = outputs["logits"].to(torch.promote_types(outputs["logits"].dtype, torch.float32))
    mask = F.cross_entropy(logits, batch["target_person_mask"].squeeze(1).long())
    return {"l1": Term(l1(outputs["sampled_image"], batch["target_image"])), "mask": Term(mask, mask_weight)}


# The rate is halved every so many steps.
TRAINING = Training(steps=100_000, batch_size=16, lr=1e-4, constant_lr_share=None, halving_every=50_000)


@dataclass(frozen=True, kw_only=True)
class PoseFlow:
    """mean |I_A(p + flow(p)) - I_B(p)|, the flow of source image and both poses."""

    name: ClassVar[str] = "flow"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "source_pose", "target_pose")
    writes: ClassVar[tuple[str, ...]] = ("sampled_image",)

    width: Positive = 32  # channels of the first level
    depth: Positive = 5  # halvings
    training: Training = TRAINING

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=(), betas=(0.9, 0.999))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        sizes = {"size": canvas.size, "width": self.width, "depth": self.depth}
        return {"generator": SceneFlowNetwork(channels=CONDITION, **sizes, masked=False)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        flow, _ = nets["generator"](condition(batch))
        return {"sampled_image": copied(batch, flow)}

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        return {"l1": Term(l1(outputs["sampled_image"], batch["target_image"]))}


@dataclass(frozen=True, kw_only=True)
class MaskedPoseFlow:
    """mean |I_A(p + flow(p)) - I_B(p)| + mask_weight mean CE(mask(p), M_B(p)), of source image and both poses."""

    name: ClassVar[str] = "flow"
    reads: ClassVar[tuple[str, ...]] = (*PoseFlow.reads, "target_person_mask")
    writes: ClassVar[tuple[str, ...]] = ("sampled_image", "foreground")

    width: Positive = 32  # channels of the first level
    depth: Positive = 5  # halvings
    mask_weight: Weight = 0.1
    cut_out: bool = False  # the image is the person on black
    training: Training = TRAINING

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=(), betas=(0.9, 0.999))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        sizes = {"size": canvas.size, "width": self.width, "depth": self.depth}
        return {"generator": SceneFlowNetwork(channels=CONDITION, **sizes, masked=True)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return masked_outputs(batch, *nets["generator"](condition(batch)), cut_out=self.cut_out)

    def training_outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss needs."""
        return uncut_outputs(batch, *nets["generator"](condition(batch)))

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        return masked_terms(batch, outputs, self.mask_weight)


@dataclass(frozen=True, kw_only=True)
class ViewFlow:
    """mean |I_A(p + flow(p)) - I_B(p)| + mask_weight mean CE(mask(p), M_B(p)), of source image and rotation."""

    name: ClassVar[str] = "flow"
    reads: ClassVar[tuple[str, ...]] = ("source_image", "target_image", "rotation", "target_person_mask")
    writes: ClassVar[tuple[str, ...]] = ("sampled_image", "foreground")

    width: Positive = 16  # channels of the first level
    latent: Positive = 4096  # units of the linear layers
    view_code: ViewCode = "steps"
    mask_weight: Weight = 0.1
    cut_out: bool = False  # the image is the person on black
    training: Training = TRAINING

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        return adversarial_players(self.training, discriminators=(), betas=(0.9, 0.999))

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return fresh networks by name."""
        return {"generator": ObjectFlowNetwork(size=canvas.size, width=self.width, latent=self.latent)}

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the columns in `writes`."""
        return masked_outputs(batch, *self._decoded(nets, batch), cut_out=self.cut_out)

    def training_outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss needs."""
        return uncut_outputs(batch, *self._decoded(nets, batch))

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms; the equations are above."""
        return masked_terms(batch, outputs, self.mask_weight)

    def _decoded(self, nets: Networks, batch: Batch) -> tuple[Flow, Tensor]:
        return nets["generator"](batch["source_image"], view_code(batch["rotation"], self.view_code))


def by_poses_without_mask(system: System) -> System:
    """Return the variant with both poses as the condition, without the mask's decoder ("no-mask")."""
    masked = system.stages[0]
    assert isinstance(masked, MaskedPoseFlow)
    return replace(system, stages=(PoseFlow(width=masked.width, depth=masked.depth, training=masked.training),))


SYNTHETIC_TRAINING = replace(TRAINING, steps=4000, batch_size=8, lr=1e-3, halving_every=1000)

# The stages are alternatives, of which each variant has one.
APPEARANCE_FLOW = Paper(
    citation="Zhou et al.: View Synthesis by Appearance Flow, ECCV 2016",
    presets={
        "market1501": Preset((128, 64), Discs(radius=4.0), (MaskedPoseFlow(), ViewFlow())),
        "deepfashion": Preset((256, 256), Discs(radius=4.0), (MaskedPoseFlow(), ViewFlow())),
        # What two processor cores train in a few minutes.
        "synthetic": Preset((64, 32), Discs(radius=2.0), (
            MaskedPoseFlow(depth=4, training=SYNTHETIC_TRAINING),
            ViewFlow(width=8, latent=256, view_code="angle", training=SYNTHETIC_TRAINING),
        )),
    },
    variants={
        "full": lambda system: replace(system, stages=system.stages[:1]),
        "no-mask": by_poses_without_mask,
        "view": lambda system: replace(system, stages=system.stages[1:]),  # needs data of several cameras
    },
    image="sampled_image",
)  # fmt: skip
