"""Pretrained networks: files in a folder that the user names, and the first layers of VGG19.

Nothing is ever downloaded. `PRETRAINED` is the manifest: each file with its origin and the features that need it. An
absent file disables those features, as every score and report states; it never stops a run.

VGG19 (Simonyan and Zisserman 2015) is a fixed network whose features losses compare. Deformable GAN takes
`block1_conv2` for its nearest-neighbour loss and `block2_conv1` for its perceptual variant. Its released code uses
Keras' VGG19, whose Caffe weights want the means of blue, green and red taken off; the code takes them off red, green
and blue, and only then reverses the channels, so that red and blue are 20 grey levels off. We use torchvision's weights
with the preprocessing that belongs to them (our choice: it is what they were trained with). So the features, and with
them the scale of a loss on them, differ from the released code's.
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posegen.batch import Images

FOLDER = "weights"  # the default
VARIABLE = "POSEGEN_WEIGHTS"

State = Literal["there", "absent", "damaged"]


class Pretrained(NamedTuple):
    """The manifest entry of a pretrained network."""

    file: str
    sha256: str  # the first digits
    licence: str
    origin: str
    needed_for: str


PRETRAINED = {
    "vgg19": Pretrained(
        file="vgg19-dcbb9e9d.pth",
        sha256="dcbb9e9d",
        licence="BSD-3-Clause (torchvision); trained on ImageNet",
        origin="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        needed_for="Deformable GAN: the content losses of its variants 'full' and 'perc'; VSA: L_feat of 'full'",
    ),
    "u2net_human_seg": Pretrained(
        file="u2net_human_seg.onnx",
        sha256="01eb6a29",
        licence="Apache-2.0 (U^2-Net, rembg); trained on the Supervisely person data set",
        origin="https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net_human_seg.onnx",
        needed_for="person masks by a network, of data sets without their own; GrabCut makes them where it is absent",
    ),
}


def weights_folder(given: Path | None = None) -> Path:
    """Return the absolute folder of pretrained networks: the one given, else POSEGEN_WEIGHTS, else `weights`.

    Raises ValueError if a named one is not a folder.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None and not named.is_dir():
        how = f"--weights-dir {given}" if given else f"{VARIABLE}={named}"
        raise ValueError(f"{how} was given; expected a folder with pretrained networks, and there is none.")
    return (named or Path(FOLDER)).resolve()


def path_of(name: str, folder: Path) -> Path | None:
    """Return the file of a pretrained network in a folder, None if it is absent.

    Raises ValueError if the sha256 of the file is not the manifest's.
    """
    wanted = PRETRAINED[name]
    path = folder / wanted.file
    if state_of(name, folder) == "damaged":
        raise ValueError(
            f"{path} is not {name} as {wanted.origin} has it: its sha256 must begin with {wanted.sha256}. "
            "Get the file again, or remove it to do without."
        )
    return path if path.is_file() else None


def state_of(name: str, folder: Path) -> State:
    """Check a pretrained network in a folder by its sha256."""
    path = folder / PRETRAINED[name].file
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "there" if digest.startswith(PRETRAINED[name].sha256) else "damaged"


Layer = Literal["block1_conv2", "block2_conv1"]  # conv1_2 and conv2_1 of the paper, in Keras' names
DEPTHS: dict[str, int] = {"block1_conv2": 4, "block2_conv1": 7}  # modules of torchvision's `features` up to the ReLU
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue in [0, 1]
WEIGHTS = "torchvision's VGG19 for ImageNet, vgg19-dcbb9e9d.pth from download.pytorch.org/models"
SEED = 19  # of the random network


class _Convolution(nn.Conv2d):
    """3x3, zero-padded, and without default initial weights: those would come from the global random state."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, kernel_size=3, padding=1)

    def reset_parameters(self) -> None:
        """Do nothing: the network draws the weights."""


class Vgg19Features(nn.Module):
    """VGG19 up to the ReLU after one of its first convolutions; random weights until others are loaded.

    3x3 convolutions that pad with zeros, 2x2 max pooling between the blocks; weights have torchvision's names, such as
    `features.0.weight`. No parameter takes a gradient, and the network stays in evaluation mode. The random weights
    are He-normal (variance 2 / fan in; He et al. 2015), drawn on the CPU in float64 from their own generator, so they
    are the same on every machine and after every seed; biases are zero.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *, layer: Layer) -> None:
        if layer not in DEPTHS:
            raise ValueError(
                f"VGG19's features are taken from {' or '.join(DEPTHS)}, not from '{layer}': name one of them"
            )
        super().__init__()
        first = [_Convolution(3, 64), nn.ReLU(inplace=True), _Convolution(64, 64), nn.ReLU(inplace=True)]
        second = [nn.MaxPool2d(2), _Convolution(64, 128), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*[*first, *second][: DEPTHS[layer]])
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self._draw_weights()
        self.requires_grad_(False).eval()

    def forward(self, images: Images) -> Float[Tensor, "batch features rows columns"]:
        """Return features >= 0: 64 at the images' size for block1_conv2, 128 at half of it for block2_conv1."""
        return self.features(((images + 1) / 2 - self.mean) / self.deviation)

    def train(self, mode: bool = True) -> "Vgg19Features":
        """Stay in evaluation mode, whatever the mode."""
        return super().train(False)

    @torch.no_grad()
    def _draw_weights(self) -> None:
        generator = torch.Generator("cpu").manual_seed(SEED)
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                drawn = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64, device="cpu")
                module.weight.copy_(drawn * math.sqrt(2 / module.weight[0].numel()))
                module.bias.zero_()


def vgg19_features(layer: Layer, weights: Path | None) -> Vgg19Features:
    """Return VGG19 up to `layer` with torchvision's weights, or the fixed random network without a file of them.

    `weights` is a state dict written by `torch.save`, of the whole VGG19 or of its first convolutions; nothing in it
    is executed. Our choice: a random network, whose features still respond to edges and colours at every pixel, lets a
    system run without the weights; its loss is not a published one. Raises ValueError for a file that cannot be read,
    or in which a weight of the wanted layers is missing or has another shape.
    """
    network = Vgg19Features(layer=layer)
    if weights is not None:
        network.load_state_dict(_read_weights(weights, network.state_dict()))
    return network


def _read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the wanted weights of a file, memory-mapped if its format allows that."""
    expected = f"expected {WEIGHTS}, with " + ", ".join(f"{name} {_shape(like)}" for name, like in wanted.items())
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as problem:  # bytes that are not a state dict fail in many ways
        raise ValueError(
            f"{path} cannot be read as VGG19's weights ({type(problem).__name__}); {expected}"
        ) from problem
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__} and no state dict; {expected}")
    wrong = [
        f"{name} is {_shape(found[name]) if name in found else 'missing'}"
        for name, like in wanted.items()
        if _shape(found.get(name)) != _shape(like)
    ]
    if wrong:
        there = ", ".join(map(str, list(found)[:6])) or "nothing"
        raise ValueError(
            f"{path} does not hold VGG19's weights: {', '.join(wrong)} (it begins with {there}); {expected}"
        )
    return {name: found[name] for name in wanted}


def _shape(value: object) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
