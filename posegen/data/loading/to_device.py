"""The device step: a raw batch of the loader to the columns that stages read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from posegen.batch import COLUMNS
from posegen.data.geometry.pose_maps import Discs, Gaussians


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
