"""The columns that flow through posegen: a batch is a mapping from column names to tensors.

Every step adds columns and changes none. What a stage reads and writes is said in these names, so wiring is checked
before a process starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

Batch = Mapping[str, Tensor]

Images = Float[Tensor, "batch 3 height width"]  # RGB in [-1, 1]
Masks = Float[Tensor, "batch 1 height width"]  # 0 or 1
PoseMaps = Float[Tensor, "batch 18 height width"]  # one channel a joint; the range is the drawing's
Joints = Float[Tensor, "batch 18 2"]  # x, y in pixels of the image; anything where not visible
Visible = Bool[Tensor, "batch 18"]
Degrees = Float[Tensor, " batch"]
Scalar = Float[Tensor, ""]


@dataclass(frozen=True)
class Column:
    """What a column holds. Shapes are in jaxtyping's notation; `unit` also says the value range."""

    shape: str
    dtype: str
    unit: str


# What the device step makes of a batch of images; stages add their own outputs to these.
COLUMNS: dict[str, Column] = {
    f"{role}_{name}": column
    for role in ("source", "target")
    for name, column in {
        "image": Column("batch 3 height width", "float32", "RGB in [-1, 1]"),
        "joints": Column("batch 18 2", "float32", "x, y in pixels; may lie outside the image"),
        "visible": Column("batch 18", "bool", "whether the joint is known"),
        "pose": Column("batch 18 height width", "float32", "pose maps, as the system's `pose_maps` draws them"),
        "pose_mask": Column("batch 1 height width", "float32", "0 or 1: discs along the limbs, closed"),
        "person_mask": Column("batch 1 height width", "float32", "0 or 1: the person, known or estimated"),
    }.items()
} | {"rotation": Column("batch", "float32", "degrees in (-180, 180], from the source camera's azimuth to the target's")}
