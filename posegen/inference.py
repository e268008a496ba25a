"""Inference: images from a trained system and a batch, and joints of images from a trained hourglass.

An hourglass is exported to one safetensors file: the weights, and the settings as JSON metadata. Reading the file
executes no code.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from posegen.batch import Batch
from posegen.data import reasons
from posegen.data.formats import MISSING, Pose
from posegen.data.formats.images import (
    READABLE,
    UNREADABLE,
    decode_into,
    fit,
    image_sizes,
    read_image,
    scaled_joints,
)
from posegen.data.formats.posegan_csv import HEADER
from posegen.data.geometry.pose_maps import Gaussians
from posegen.data.listing import Reject
from posegen.data.shards.making import ShardSettings
from posegen.stage import Canvas, Networks, System
from posegen.storage.files import read_json, write_whole
from posegen.storage.run_lock import refresh
from posegen.storage.store import Store, check_layout, is_uri
from posegen.systems.fields import replace_fields, settings_of
from posegen.systems.hourglass import Estimation
from posegen.training.checkpoints import newest_name, trained_networks
from posegen.training.step import autocast, to_device


@dataclass(frozen=True)
class Trained:
    """A system with its stages' networks, in evaluation mode, on a device."""

    system: System
    networks: Mapping[str, Networks]  # by stage
    device: torch.device


def load(system: System, stages: Path, device: torch.device) -> Trained:
    """Load the networks of every stage from its newest checkpoint in `stages/<stage>`, averaged ones if there are any.

    Raises ValueError where a stage has no checkpoint or is not trained to its last step.
    """
    networks = {
        stage.name: trained_networks(stage, system.canvas, stages / stage.name, device) for stage in system.stages
    }
    return Trained(system, networks, device)


@torch.no_grad()
def synthesize(trained: Trained, columns: Batch) -> dict[str, Tensor]:
    """Return the columns and every stage's outputs; the column `trained.system.image` is the result, in [-1, 1]."""
    result = dict(columns)
    for stage in trained.system.stages:
        with autocast(trained.device):
            result |= stage.outputs(trained.system.canvas, trained.networks[stage.name], result)
    return result


Progress = Callable[[str, int, int], object]  # of what, done, of how many

KIND = "posegen hourglass 1"  # in the metadata: what the file is
AT_ONCE = 32  # images in one batch


@dataclass(frozen=True)
class Estimator:
    """A trained hourglass, in evaluation mode, on a device."""

    stage: Estimation
    canvas: Canvas
    networks: Networks
    device: torch.device

    @torch.no_grad()
    def __call__(
        self, images: UInt8[ndarray, "batch height width 3"]
    ) -> tuple[Float[ndarray, "batch 18 2"], Float[ndarray, "batch 18"]]:
        """Return joints in pixels and their confidences in [0, 1] for RGB images of the stage's size."""
        batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
        with autocast(self.device):
            outputs = self.stage.outputs(self.canvas, self.networks, {"target_image": batch})
        joints, confidence = (outputs[name].cpu().numpy() for name in self.stage.writes)
        return joints, confidence


def open_estimator(given: str | Path, device: torch.device, *, size: tuple[int, int] | None = None) -> Estimator:
    """Open the hourglass of a run, by its folder or URI, or of an exported file.

    Images are resized to `size`, (height, width), by default that of training. Raises ValueError, worded for the user,
    where there is neither, it is not trained to its end, or the size does not fit.
    """
    path, is_run = Path(given), is_uri(str(given)) or Path(given).is_dir()
    if not is_run and not path.exists():
        raise ValueError(
            f"'{path}' does not exist. Expected the run folder of a trained hourglass (flows/full_pipeline.py --system "
            "hourglass), or a file made of one (posegen export)."
        )
    trained = _from_run(Store.of(given), device) if is_run else _from_file(path, device)
    return trained if size is None else replace(trained, canvas=_canvas(trained.stage, size))


def _from_run(store: Store, device: torch.device) -> Estimator:
    """Fetch the plan and the newest networks of the hourglass of a run to this node, and load them."""
    run, place = store.uri, f"stages/{Estimation.name}"
    refresh(store, wanted=lambda inside: inside == "plan.json")
    check_layout(store)
    if name := newest_name(store, place):  # alone: another process of this node may be training
        store.fetch(f"{place}/{name}", wanted=lambda inside: inside != "optimizers.pt")
    plan = read_json(store.folder / "plan.json")
    if plan is None:
        raise ValueError(f"'{run}' is no run folder: it has no plan.json. Expected that of a trained hourglass.")
    settings = plan["settings"]
    if settings["system"] != "hourglass":
        raise ValueError(f"'{run}' is a run of {settings['system']}; expected one of hourglass.")
    head = f"{Estimation.name}."
    stage = _stage({path.removeprefix(head): value for path, value in settings.items() if path.startswith(head)}, run)
    canvas = _canvas(stage, settings["shards.size"])
    return Estimator(stage, canvas, trained_networks(stage, canvas, store.folder / place, device), device)


def _from_file(path: Path, device: torch.device) -> Estimator:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file ({error}). Expected one of `posegen export`.") from None
    if metadata.get("kind") != KIND:
        found = metadata.get("kind", "nothing")
        raise ValueError(f"'{path}' is not an exported hourglass: it says {found!r}, expected {KIND!r} as its kind.")
    settings = json.loads(metadata["settings"])
    size = settings.pop("size")
    stage = _stage(settings, path)
    canvas = _canvas(stage, size)
    networks, tensors = stage.networks(canvas), load_file(path)
    try:
        for name, network in networks.items():
            mine = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            network.load_state_dict(mine)
    except RuntimeError as error:
        raise ValueError(f"the weights in '{path}' do not fit the settings in it: {error}") from None
    placed = {name: to_device(network.eval().requires_grad_(False), device) for name, network in networks.items()}
    return Estimator(stage, canvas, placed, device)


def _stage(settings: Mapping[str, Any], where: str | Path) -> Estimation:
    try:
        return replace_fields(Estimation(), settings, Estimation.name)
    except ValueError as error:
        raise ValueError(f"'{where}' has settings that this version does not have: {error}") from None


def _canvas(stage: Estimation, size: Sequence[int]) -> Canvas:
    """The canvas of a (height, width) in pixels. Raises ValueError where it does not fit the networks."""
    canvas = Canvas((size[0], size[1]), Gaussians())
    with torch.device("meta"):
        stage.networks(canvas)
    return canvas


def export(run: str | Path, output: Path) -> Estimator:
    """Write the trained hourglass of a run, by its folder or URI, to one file and return it.

    Averaged weights are written if there are any. Raises ValueError as `open_estimator` does, and if the file exists.
    """
    check_free(output)
    if not is_uri(str(run)) and not Path(run).is_dir():
        raise ValueError(f"there is no run folder '{run}'. Expected that of a trained hourglass.")
    trained = open_estimator(run, torch.device("cpu"))
    tensors = {
        f"{name}.{key}": tensor.contiguous()
        for name, network in trained.networks.items()
        for key, tensor in network.state_dict().items()
    }
    metadata = {"kind": KIND, "settings": json.dumps({"size": trained.canvas.size, **settings_of(trained.stage)})}
    write_whole(output, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return trained


def check_free(output: Path) -> None:
    """Raise ValueError where the file exists: it may have been made by hand."""
    if output.exists():
        raise ValueError(f"'{output}' is there already. Give another --output, or remove it.")


class Annotated(NamedTuple):
    """Poses and rejects of a folder of images."""

    poses: dict[str, Pose]  # by path inside the folder of images
    rejects: list[Reject]


def annotate(estimator: Estimator, images: Path, *, threshold: float, progress: Progress) -> Annotated:
    """Estimate the joints of every image in `images/images`, or else anywhere below `images`, as `Folder` finds them.

    An image is one person's box: it is resized as for shards, and joints are scaled back to its own pixels. Joints with
    a confidence below `threshold` are unknown. Unreadable images are rejected with the reason. Raises ValueError where
    there is no image, and where none can be read.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold} was given; it must lie between 0 and 1.")
    folder = images / "images" if (images / "images").is_dir() else images
    names = list(image_sizes(folder, READABLE)) if folder.is_dir() else []
    if not names:
        raise ValueError(f"'{folder}' holds no image. Expected files that end with {', '.join(READABLE)}.")
    rejects = [Reject(name, "", reasons.UNSUPPORTED) for name in image_sizes(folder, UNREADABLE)]
    poses: dict[str, Pose] = {}
    for start in range(0, len(names), AT_ONCE):
        batch = names[start : start + AT_ONCE]
        poses |= _estimated(estimator, folder, batch, threshold, rejects)
        progress("joints", start + len(batch), len(names))
    if not poses:
        raise ValueError(f"none of the {len(names):,} images in '{folder}' can be used: {', '.join(rejects[0][2:])}")
    return Annotated(poses, rejects)


def _estimated(
    estimator: Estimator, folder: Path, names: Sequence[str], threshold: float, rejects: list[Reject]
) -> dict[str, Pose]:
    """Return the poses of a batch of images by name; unreadable images are added to the rejects."""
    height, width = estimator.canvas.size
    images, scales = np.empty((len(names), height, width, 3), np.uint8), {}
    for name in names:
        try:
            fitted = fit(read_image(folder / name), height=height, width=width, jpeg_quality=ShardSettings.jpeg_quality)
        except ValueError as error:
            rejects.append(Reject(name, "", *error.args))
            continue
        decode_into(fitted.encoded, images[len(scales)])
        scales[name] = fitted.scale
    if not scales:
        return {}
    found = zip(scales.items(), *estimator(images[: len(scales)]), strict=True)
    return {
        name: Pose(scaled_joints(joints, (1 / scale[0], 1 / scale[1])), confidence >= threshold)
        for (name, scale), joints, confidence in found
    }


def write_annotation(path: Path, annotated: Annotated) -> Path | None:
    """Write the poses as a pose-gan CSV, and rejects, if there are any, next to it; return the path of the rejects.

    Pixels have two decimals; an unknown joint is -1, -1. `annotation.csv` has its rejects in `annotation.rejects.csv`,
    with the columns name, reason and detail.
    """
    lines = [HEADER, *(_line(name, pose) for name, pose in annotated.poses.items())]
    write_whole(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    rejected = path.with_name(f"{path.stem}.rejects.csv")
    rejected.unlink(missing_ok=True)
    if not annotated.rejects:
        return None
    write_whole(rejected, lambda temporary: _write_rejects(temporary, annotated.rejects))
    return rejected


def _line(name: str, pose: Pose) -> str:
    known = np.where(pose.visible[:, None], pose.joints, MISSING).astype(float)
    x, y = ([int(value) if value == MISSING else round(value, 2) for value in axis] for axis in known.T.tolist())
    return f"{name}: {y}: {x}"


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    rows = [(reject.name, reject.reason, reject.detail) for reject in rejects]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "reason", "detail"), *rows])
