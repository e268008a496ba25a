"""Columns of a batch, which is a mapping from column names to tensors.

Every stage adds columns and changes none. Stages declare the names that they read and write, so their wiring is checked
before any process starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

Batch = Mapping[str, Tensor]

Images = Float[Tensor, "batch 3 height width"]  # RGB in [-1, 1]
Masks = Float[Tensor, "batch 1 height width"]  # 0 or 1
PoseMaps = Float[Tensor, "batch 18 height width"]  # one channel per joint; the range depends on how they are drawn
Joints = Float[Tensor, "batch 18 2"]  # x, y in pixels of the image; undefined where not visible
Visible = Bool[Tensor, "batch 18"]
Degrees = Float[Tensor, " batch"]
Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class Column:
    """Content of a column. Shapes are in jaxtyping's notation; `unit` includes the value range."""

    shape: str
    dtype: str
    unit: str


# Columns of a batch on the device; stages add their outputs to these.
COLUMNS: dict[str, Column] = {
    f"{role}_{name}": column
    for role in ("source", "target")
    for name, column in {
        "image": Column("batch 3 height width", "float32", "RGB in [-1, 1]"),
        "joints": Column("batch 18 2", "float32", "x, y in pixels; may lie outside the image"),
        "visible": Column("batch 18", "bool", "true where the joint is known"),
        "pose": Column("batch 18 height width", "float32", "pose maps, drawn by the system's `pose_maps`"),
        "pose_mask": Column("batch 1 height width", "float32", "0 or 1: discs along the limbs, closed"),
        "person_mask": Column("batch 1 height width", "float32", "0 or 1: the person, known or estimated"),
    }.items()
} | {"rotation": Column("batch", "float32", "degrees in (-180, 180], from the source camera's azimuth to the target's")}
