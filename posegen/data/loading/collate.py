"""Collation of pairs into a raw batch: rows gathered, images decoded, pairs mirrored."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from posegen.batch import COLUMNS
from posegen.data.formats.images import decode_into
from posegen.data.geometry.joints import MIRROR
from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.data.masks import unpack
from posegen.data.shards.mapping import ALWAYS, ROLES, MappedSplit, PairSlice


@dataclass(frozen=True)
class Collate:
    """The columns of a batch, their size and their memory."""

    size: tuple[int, int]  # height, width in pixels
    columns: Collection[str]  # without "pair"
    pin_memory: bool

    def empty(self, count: int) -> dict[str, Tensor]:
        """Return a batch of uninitialised tensors."""
        height, width = self.size
        kinds = {
            "image": ((height, width, 3), torch.uint8),
            "joints": ((18, 2), torch.float32),
            "visible": ((18,), torch.bool),
            "pose_mask": ((height, width), torch.uint8),
            "person_mask": ((height, width), torch.uint8),
        }
        batch = {"pair": torch.empty(count, dtype=torch.int64, pin_memory=self.pin_memory)}
        if "rotation" in self.columns:
            batch["rotation"] = torch.empty(count, dtype=torch.float32, pin_memory=self.pin_memory)
        for name in sorted({*self.columns} - {"rotation"}):
            shape, dtype = kinds[name.partition("_")[2]]
            batch[name] = torch.empty((count, *shape), dtype=dtype, pin_memory=self.pin_memory)
        return batch

    def fill(self, batch: dict[str, Tensor], part: PairSlice) -> None:
        """Write the pairs of one slice into the batch."""
        mapped, at, flips = part.mapped(), part.at, part.flips
        batch["pair"].numpy()[at] = part.listed
        sources, targets = mapped.pair_rows(part.pairs)
        if "rotation" in batch:
            turned = mapped.azimuths[targets] - mapped.azimuths[sources]  # the shorter way, in (-180, 180]
            batch["rotation"].numpy()[at] = 180 - (180 - np.where(flips, -turned, turned)) % 360
        for role, rows in zip(ROLES, (sources, targets), strict=True):
            own = {name.partition("_")[2]: batch[name].numpy() for name in batch if name.startswith(role)}
            own["joints"][at], own["visible"][at] = _joints(mapped, rows, flips, self.size[1])
            if "image" in own:
                for index, row, flip in zip(at.tolist(), rows.tolist(), flips.tolist(), strict=True):
                    decode_into(mapped.image(row), own["image"][index])
                    if flip:
                        own["image"][index] = cv2.flip(own["image"][index], 1)
            for kind in own.keys() & {"pose_mask", "person_mask"}:
                masks = unpack([mapped.mask(kind, row) for row in rows.tolist()], *self.size)
                masks[flips] = masks[flips][:, :, ::-1]
                own[kind][at] = masks


def wanted_columns(columns: Collection[str]) -> set[str]:
    """Return the requested columns that shards may hold, and joints and visibility, which are always read."""
    stored = {name for name in COLUMNS if not name.endswith("_pose")}
    return {name for name in stored if name in columns or name.endswith(ALWAYS)}


def _joints(mapped: MappedSplit, rows: ndarray, flips: ndarray, width: int) -> tuple[ndarray, ndarray]:
    """Return joints and visibility; mirrored: x becomes width - 1 - x, and left and right joints are exchanged."""
    joints, visible = mapped.joints[rows], mapped.visible[rows]
    mirrored = joints[flips][:, MIRROR]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    joints[flips], visible[flips] = mirrored, visible[flips][:, MIRROR]
    return joints, visible


def to_columns(raw: Mapping[str, Tensor], device: torch.device, pose_maps: Discs | Gaussians) -> dict[str, Tensor]:
    """Copy a raw batch to the device, scale it, and draw the poses.

    Images become float32 (b, 3, H, W), (x - 127.5) / 127.5 in [-1, 1] (PG2, trainer.py), in channels-last memory;
    masks float32 (b, 1, H, W) of 0 and 1; `source_pose` and `target_pose` are drawn by `pose_maps`; the rotation stays
    in degrees. Copies from pinned memory do not block. "pair" is no column and stays behind. Without an image or a
    mask, which give the size, no pose is drawn: such columns are for stages that read joints alone.
    """
    columns = {
        name: _column(name, value.to(device, non_blocking=True)) for name, value in raw.items() if name in COLUMNS
    }
    sizes = [value.shape[-2:] for name, value in columns.items() if name.endswith(("_image", "_mask"))]
    for role in ("source", "target") if sizes else ():
        columns[f"{role}_pose"] = pose_maps(columns[f"{role}_joints"], columns[f"{role}_visible"], *sizes[0])
    return columns


def _column(name: str, value: Tensor) -> Tensor:
    if name.endswith("_image"):
        return value.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
    if name.endswith("_mask"):
        return value.unsqueeze(1).float()
    return value
