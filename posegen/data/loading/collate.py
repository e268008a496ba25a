"""From pairs of mapped shards to a raw batch: rows gathered, images decoded, pairs mirrored."""

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from posegen.batch import COLUMNS
from posegen.data.formats.images import decode_into
from posegen.data.geometry.joints import MIRROR
from posegen.data.masks.pose_masks import unpack
from posegen.data.shards.mapping import ALWAYS, ROLES, MappedSplit, Run


@dataclass(frozen=True)
class Filling:
    """How batches are filled: which columns of which size, in which memory."""

    size: tuple[int, int]  # height, width in pixels
    wanted: Collection[str]  # columns, without "pair"
    pin_memory: bool

    def empty(self, count: int) -> dict[str, Tensor]:
        """A batch that is still to be filled."""
        height, width = self.size
        kinds = {
            "image": ((height, width, 3), torch.uint8),
            "joints": ((18, 2), torch.float32),
            "visible": ((18,), torch.bool),
            "pose_mask": ((height, width), torch.uint8),
            "person_mask": ((height, width), torch.uint8),
        }
        batch = {"pair": torch.empty(count, dtype=torch.int64, pin_memory=self.pin_memory)}
        if "rotation" in self.wanted:
            batch["rotation"] = torch.empty(count, dtype=torch.float32, pin_memory=self.pin_memory)
        for name in sorted({*self.wanted} - {"rotation"}):
            shape, dtype = kinds[name.partition("_")[2]]
            batch[name] = torch.empty((count, *shape), dtype=dtype, pin_memory=self.pin_memory)
        return batch

    def fill(self, batch: dict[str, Tensor], run: Run) -> None:
        """Fills the places of one run."""
        mapped, at, flips = run.mapped(), run.at, run.flips
        batch["pair"].numpy()[at] = run.listed
        sources, targets = mapped.pair_rows(run.pairs)
        if "rotation" in batch:
            batch["rotation"].numpy()[at] = _rotations(mapped.azimuths[sources], mapped.azimuths[targets], flips)
        for role, rows in zip(ROLES, (sources, targets), strict=True):
            own = {name.partition("_")[2]: batch[name].numpy() for name in batch if name.startswith(role)}
            own["joints"][at], own["visible"][at] = _joints(mapped, rows, flips, self.size[1])
            if "image" in own:
                _fill_images(own["image"], mapped, run, rows)
            for kind in own.keys() & {"pose_mask", "person_mask"}:
                masks = unpack([mapped.mask(kind, row) for row in rows.tolist()], *self.size)
                masks[flips] = masks[flips][:, :, ::-1]
                own[kind][at] = masks


def wanted_columns(columns: Collection[str]) -> set[str]:
    """Of columns that are asked for, those that the shards may hold, and those that always come."""
    stored = {name for name in COLUMNS if not name.endswith("_pose")}
    return {name for name in stored if name in columns or name.endswith(ALWAYS)}


def _rotations(sources: ndarray, targets: ndarray, flips: ndarray) -> ndarray:
    """From the source camera's azimuth to the target's, the short way round: degrees in (-180, 180]. Mirrored: back."""
    turned = np.where(flips, sources - targets, targets - sources)
    return 180 - (180 - turned) % 360


def _joints(mapped: MappedSplit, rows: ndarray, flips: ndarray, width: int) -> tuple[ndarray, ndarray]:
    """Mirrored: x becomes width - 1 - x, and left and right joints exchange their places."""
    joints, visible = mapped.joints[rows], mapped.visible[rows]
    mirrored = joints[flips][:, MIRROR]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    joints[flips], visible[flips] = mirrored, visible[flips][:, MIRROR]
    return joints, visible


def _fill_images(images: ndarray, mapped: MappedSplit, run: Run, rows: ndarray) -> None:
    for place, row, flip in zip(run.at.tolist(), rows.tolist(), run.flips.tolist(), strict=True):
        decode_into(mapped.image(row), images[place])
        if flip:
            images[place] = cv2.flip(images[place], 1)
