"""Settings of systems: names that must be known, the row of settings of a data set, the ranges of stages' fields."""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from posegen.nets.unet import level_count
from posegen.stage import Constant, LinearDecay, Stage


def check_known(what: str, given: str, known: Collection[str]) -> None:
    """Raise ValueError, with the known names and the nearest of them, where the given name is none of them."""
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"no {what} is called '{given}'.{hint} There are: {', '.join(known)}")


@runtime_checkable
class Sized(Protocol):
    """A row of settings that knows the image size that it is for."""

    @property
    def size(self) -> tuple[int, int]: ...


Row = TypeVar("Row", bound=Sized)

NEAREST_KIN = {"synthetic-views": "synthetic", "human36m": "deepfashion", "views": "deepfashion"}
MARKET_HEIGHT = 160  # a folder's images up to this height take the settings of 128x64, higher ones those of 256x256


def settings_for(dataset: str, size: tuple[int, int] | None, rows: Mapping[str, Row]) -> tuple[Row, tuple[int, int]]:
    """The settings for a data set, and the size of its images as (height, width) in pixels.

    `rows` may have "market1501", "deepfashion", "synthetic" and others. A data set without a row takes that of its
    nearest kin (`NEAREST_KIN`). The data set "folder" takes the row of the first two whose height is nearer, and needs
    a size. Raises ValueError for an unknown data set and for a missing size.
    """
    if dataset not in rows:
        dataset = NEAREST_KIN.get(dataset, dataset)
    check_known("data set", dataset, [*rows, *(other for other, kin in NEAREST_KIN.items() if kin in rows), "folder"])
    if dataset != "folder":
        return rows[dataset], size or rows[dataset].size
    if size is None:
        raise ValueError("the data set 'folder' has no size of its own: give one as (height, width), such as (128, 64)")
    return rows["market1501" if size[0] <= MARKET_HEIGHT else "deepfashion"], size


class Range(NamedTuple):
    """The allowed values of a finite number, from `low` to `high`; `above` and `below` leave these themselves out."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def allows(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and math.isfinite(value)

    def __str__(self) -> str:
        low = f"greater than {self.low:g}" if self.above else f"at least {self.low:g}"
        high = f"less than {self.high:g}" if self.below else f"at most {self.high:g}"
        return low if self.high == math.inf else f"{low} and {high}"


RANGES = {
    "width": Range(1),
    "latent": Range(1),
    "blocks": Range(1),
    "pose_width": Range(1),
    "pose_blocks": Range(1),
    "foreground_width": Range(1),
    "foreground_depth": Range(1),
    "background_width": Range(1),
    "background_depth": Range(1),
    "critic_width": Range(1),
    "critic_depth": Range(1),
    "depth": Range(1),
    "halving_every": Range(1),
    "steps": Range(1),
    "batch_size": Range(1),
    "lr": Range(0, above=True),
    "critic_lr": Range(0, above=True),
    "constant_lr_share": Range(0, 1),
    "ema_decay": Range(0, 1, below=True),
    "l1_weight": Range(0),
    "mask_weight": Range(0),
    "image_weight": Range(0),
    "content_weight": Range(0),
    "feature_weight": Range(0),
    "adversarial_weight": Range(0),
    "margin": Range(0, 0.5, below=True),
    "dropout": Range(0, 1, below=True),
    "window": Range(1),
    "critic_halvings": Range(2),
    "alpha": Range(0, 1),
    "alpha_f": Range(0),
    "beta_f": Range(0),
    "alpha_b": Range(0),
    "beta_b": Range(0),
    "pose_weight": Range(0),
    "backdrop": Range(-1, 1),
    "critic_turns": Range(1),
    "clip_weights": Range(0, above=True),
    "stacks": Range(1),
    "sigma": Range(0, above=True),
    "rotation": Range(0, 180),
    "scaling": Range(0, 1, below=True),
    "late_lr": Range(0, above=True),
}


def check_fields(stage: Stage, halvings: Callable[[tuple[int, int]], object] = level_count) -> None:
    """Raise ValueError for the first field of a stage that is out of range, naming it, and for an impossible size.

    `halvings` is the rule of the stage's networks, which raises for a (height, width) that they cannot halve; PG2's
    where not given.
    """
    values = vars(stage)
    for field, allowed in RANGES.items():
        if field in values and not allowed.allows(values[field]):
            raise ValueError(f"{stage.name}.{field} is {values[field]}; it must be {allowed}")
    halvings(values["size"])


def learning_rate_schedule(steps: int, constant_share: float) -> Constant | LinearDecay:
    """Constant for that share of a stage's steps, then linear to zero at its end; a share of 1 is constant throughout.

    pix2pix's code has the decay. PG2 and VDG keep the rate constant; there the decay is our choice for short trainings,
    where it makes the result less noisy.
    """
    if constant_share == 1:
        return Constant()
    return LinearDecay(start=min(round(steps * constant_share), steps - 1), end=steps)
