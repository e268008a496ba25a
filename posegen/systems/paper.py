"""Papers as data: a preset for each data set, and the variants of the system."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.stage import Stage, System


@dataclass(frozen=True)
class Preset:
    """A paper's settings for a data set: the canvas of its images, and the stages of all variants."""

    size: tuple[int, int]  # height, width in pixels
    pose_maps: Discs | Gaussians
    stages: tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The differences between a variant and the paper's presets."""

    stages: tuple[str, ...] = ()  # those of the variant, in order; all where empty
    settings: Mapping[str, object] = field(default_factory=dict)  # by dotted path, such as "refinement.alpha"
    image: str | None = None  # the result, where it is another than the paper's
    joints: str | None = None


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper's system as data: what `catalog.system` makes a `System` of.

    `presets` are by data set, with "market1501" and "deepfashion" at least. `variants` are by name, the paper's full
    system first; where a `Variant` cannot say what one changes, a function of the system does.
    """

    citation: str
    presets: Mapping[str, Preset]
    variants: Mapping[str, Variant | Callable[[System], System]]
    image: str = ""  # the columns that are the result
    joints: str = ""
