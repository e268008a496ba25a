"""Pretrained networks: files that the user has, in a folder that the user names. Nothing is ever downloaded.

`PRETRAINED` is the manifest: what each file is, where it comes from, and what needs it. A file that is absent costs the
feature that needs it, said in every score and report, and never the run.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

FOLDER = "weights"  # where nothing else is said
VARIABLE = "POSEGEN_WEIGHTS"

State = Literal["there", "absent", "damaged"]


class Pretrained(NamedTuple):
    """A pretrained network's file."""

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
    """The folder of pretrained networks, absolute: the one given, else POSEGEN_WEIGHTS, else `weights`.

    Raises ValueError where one was named and is no folder.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None and not named.is_dir():
        how = f"--weights-dir {given}" if given else f"{VARIABLE}={named}"
        raise ValueError(f"{how} was given; expected a folder with pretrained networks, and there is none.")
    return (named or Path(FOLDER)).resolve()


def path_of(name: str, folder: Path) -> Path | None:
    """The file of a pretrained network in a folder, None where it is absent.

    Raises ValueError where the file is there and is not the one that its name promises.
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
    """Whether a pretrained network is in a folder, by its sha256."""
    path = folder / PRETRAINED[name].file
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        return (
            "there"
            if hashlib.file_digest(file, "sha256").hexdigest().startswith(PRETRAINED[name].sha256)
            else "damaged"
        )
