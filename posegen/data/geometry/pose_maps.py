"""Pose maps from joints: one channel per joint, drawn on the device of the batch.

Pose maps are never stored. Both drawings take joints (batch, 18, 2) as x, y in pixels and visible (batch, 18), and
return float maps (batch, 18, height, width).
"""

from dataclasses import dataclass

import torch

from posegen.batch import Joints, PoseMaps, Visible


def _offsets(joints: Joints, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distances of every column and of every row to every joint: (batch, 18, width) and (batch, 18, height)."""
    columns = torch.arange(width, device=joints.device, dtype=joints.dtype)
    rows = torch.arange(height, device=joints.device, dtype=joints.dtype)
    return columns - joints[..., :1], rows - joints[..., 1:]


@dataclass(frozen=True)
class Discs:
    """Solid discs: `present` within `radius` pixels of the joint, `absent` elsewhere and for an unknown joint.

    PG2 (`_getSparsePose`, convert_market.py): radius 4 at both image sizes, 49 pixels, centre truncated to whole
    pixels (towards zero, as Python's int), values 0 and 1 scaled to -1 and +1 by the trainer. Parts outside the image
    are clipped.
    """

    radius: float = 4.0
    present: float = 1.0
    absent: float = -1.0

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"pose_maps.radius is {self.radius}; it must be at least 0 pixels")

    def __call__(self, joints: Joints, visible: Visible, height: int, width: int) -> PoseMaps:
        """Draw the discs of a batch."""
        dx, dy = _offsets(joints.trunc(), height, width)
        inside = (dx.square()[..., None, :] + dy.square()[..., :, None]) <= self.radius**2
        inside = inside & visible[..., None, None]
        return torch.where(inside, self.present, self.absent).to(joints.dtype)


@dataclass(frozen=True)
class Gaussians:
    """exp(-d^2 / (2 sigma^2)), peak 1; all zeros where the joint is unknown.

    Deformable GAN's released code (`pose_utils.cords_to_map`), sigma 6 pixels at every size. The paper's equation 1
    prints exp(-d / sigma^2); we follow the code, from which the published results come.
    """

    sigma: float = 6.0

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"pose_maps.sigma is {self.sigma}; it must be greater than 0 pixels")

    def __call__(self, joints: Joints, visible: Visible, height: int, width: int) -> PoseMaps:
        """Draw the Gaussians of a batch."""
        dx, dy = _offsets(joints, height, width)
        scale = -0.5 / self.sigma**2
        along_x, along_y = (dx.square() * scale).exp(), (dy.square() * scale).exp()
        maps = along_y[..., :, None] * along_x[..., None, :]
        return torch.where(visible[..., None, None], maps, 0.0)  # a product would keep the NaN of an unknown joint
