"""What a system is made of: players, loss terms, stages, and their wiring by columns.

A stage is a description: a frozen dataclass whose fields are hyperparameters, without parameters, device or optimizer.
It pickles to Ray, prints, compares and is logged as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from posegen.batch import Batch, Scalar
from posegen.data.geometry.pose_maps import Discs, Gaussians

Networks = Mapping[str, nn.Module]


class Term(NamedTuple):
    """One named part of a loss. The raw value is logged; the player minimises the sum of weight * value."""

    value: Scalar
    weight: float = 1.0


@dataclass(frozen=True)
class Constant:
    """A learning rate that stays."""

    def factor(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Halving:
    """A learning rate halved every `every` steps (PDIG's g_lr and d_lr)."""

    every: int

    def factor(self, step: int) -> float:
        return 0.5 ** (step // self.every)


@dataclass(frozen=True)
class LinearDecay:
    """A learning rate constant for `start` steps, then linear to zero at `end` (pix2pix)."""

    start: int
    end: int

    def factor(self, step: int) -> float:
        return min(1.0, max(0.0, (self.end - step) / (self.end - self.start)))


@dataclass(frozen=True)
class StepDecay:
    """A learning rate that is `share` of itself from step `start` on (stacked hourglass)."""

    start: int
    share: float

    def factor(self, step: int) -> float:
        return 1.0 if step < self.start else self.share


Schedule = Constant | Halving | LinearDecay | StepDecay


@dataclass(frozen=True, kw_only=True)
class Player:
    """Who learns, with which optimizer, how often. The player called "generator" is the one averaged by EMA."""

    name: str
    nets: tuple[str, ...]
    lr: float
    optimizer: Literal["adam", "rmsprop"] = "adam"
    betas: tuple[float, float] = (0.5, 0.999)  # for rmsprop the second is its smoothing constant
    schedule: Schedule = Constant()
    repeats: int = 1  # turns in a row, each with a fresh batch (WGAN critics)
    clip_weights: float | None = None
    skip_when: Callable[[Mapping[str, float]], bool] | None = None  # on the last step's terms, reduced over workers


@runtime_checkable
class Stage(Protocol):
    """One trained step of a system. Implemented by frozen dataclasses; every field is a hyperparameter."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[tuple[str, ...]]

    @property
    def steps(self) -> int: ...  # turns of the game
    @property
    def batch_size(self) -> int: ...  # pairs of one turn, over all workers
    @property
    def flip(self) -> bool: ...  # train on left-right mirrored pairs too, half of the time
    @property
    def ema_decay(self) -> float: ...  # 0 is off
    @property
    def players(self) -> tuple[Player, ...]: ...  # in playing order

    def networks(self) -> dict[str, nn.Module]:
        """Freshly initialised networks, each of exactly one player."""
        ...

    def outputs(self, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Exactly the columns in `writes`."""
        ...

    def loss(self, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
        """The player's terms; gradients of other players' networks are not used."""
        ...


@runtime_checkable
class Perceptive(Protocol):
    """A stage whose losses look at images through a fixed, pretrained network: not trained, in no checkpoint."""

    @property
    def features(self) -> str: ...  # a setting: the pretrained network's name, or "random-<name>" in its stead
    @property
    def pretrained(self) -> str: ...  # its name in `weights.PRETRAINED`; "" where the stage's settings need none

    def fixed_networks(self, weights: Path) -> dict[str, nn.Module]:
        """The fixed networks by name, which `loss` finds among the stage's own; `weights` is the folder of files."""
        ...


@runtime_checkable
class Continuing(Protocol):
    """A stage that goes on training networks of stages before it, as its own: fine-tuning several stages together."""

    @property
    def starts_from(self) -> Mapping[str, tuple[str, str]]:
        """Own network -> (an earlier stage, its network), whose trained weights it starts with."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A stage that draws poses itself, of joints that it predicts: by the system's drawing."""

    @property
    def pose_maps(self) -> Discs | Gaussians: ...


@dataclass(frozen=True, kw_only=True)
class System:
    """A paper's system: stages in order, the drawing of the pose, and the columns that are the result.

    A result is an image (`image`), predicted joints (`joints`, in pixels of the target), or both; "" is neither.
    """

    name: str
    variant: str
    paper: str
    size: tuple[int, int]  # height, width in pixels
    pose_maps: Discs | Gaussians
    stages: tuple[Stage, ...]
    image: str = ""
    joints: str = ""

    def stages_before(self, index: int) -> list[int]:
        """The earlier stages whose outputs a stage reads, directly or through one another, in their order."""
        wanted, found = set(self.stages[index].reads), []
        for number in reversed(range(index)):
            stage = self.stages[number]
            if wanted & set(stage.writes):
                found.append(number)
                wanted |= set(stage.reads)
        return found[::-1]

    def waits_for(self, index: int) -> frozenset[int]:
        """The earlier stages that must be trained before a stage: it reads what they write, or goes on with them."""
        stage, names = self.stages[index], [each.name for each in self.stages]
        origins = [origin for origin, _ in stage.starts_from.values()] if isinstance(stage, Continuing) else []
        return frozenset({*self.stages_before(index), *map(names.index, origins)})

    def stand_ins(self) -> list[str]:
        """Where a random network stands in for a pretrained one, in words for scores and reports."""
        stages = [stage for stage in self.stages if isinstance(stage, Perceptive) and stage.pretrained]
        return [
            f"the losses of stage '{stage.name}' compare features of {stage.features}, a fixed random network: "
            f"{stage.pretrained} is absent"
            for stage in stages
            if stage.features != stage.pretrained
        ]

    def continuation_errors(self) -> list[str]:
        """Where a stage goes on with networks of earlier stages that are not built as its own, in words."""
        with torch.device("meta"):  # shapes only
            networks = {stage.name: stage.networks() for stage in self.stages}
        return [
            f"stage '{stage.name}' goes on with the {network} of stage '{origin}', but builds its own '{own}' "
            "otherwise: give both the same sizes"
            for stage in self.stages
            if isinstance(stage, Continuing)
            for own, (origin, network) in stage.starts_from.items()
            if _shapes(networks[stage.name][own]) != _shapes(networks[origin][network])
        ]

    def wiring_errors(self, columns: set[str]) -> list[str]:
        """What is wrong with the columns, in words, given those that the data have. Empty where all is well."""
        have, errors = set(columns), []
        for stage in self.stages:
            for column in stage.reads:
                if column not in have:
                    errors.append(
                        f"stage '{stage.name}' reads '{column}', which nothing before it writes: {sorted(have)}"
                    )
            for column in stage.writes:
                if column in have:
                    errors.append(f"stage '{stage.name}' writes '{column}', which exists already")
            have |= set(stage.writes)
        results = [result for result in (self.image, self.joints) if result]
        errors += [
            f"the result '{name}' is written by no stage: {sorted(have)}" for name in results if name not in have
        ]
        return errors if results else [*errors, "the system names no result: neither an image nor joints"]


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weights.shape) for name, weights in network.state_dict().items()}
