"""The parts of a system: stages, their players and loss terms, wired by columns.

A stage is a description: a frozen dataclass whose fields are hyperparameters, without parameters, device or optimizer.
It is pickled to Ray, printed, compared and logged as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from posegen.batch import Batch, Joints, PoseMaps, Scalar, Visible
from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.systems.fields import Decay, Positive, Rate, Share, check_fields

Networks = Mapping[str, nn.Module]

GENERATOR = "generator"  # the player whose networks make a stage's outputs, and whom the moving average follows


class Term(NamedTuple):
    """A named part of a loss. The raw value is logged; the player minimises the sum of weight * value."""

    value: Scalar
    weight: float = 1.0


@dataclass(frozen=True)
class Constant:
    """A constant learning rate."""

    def factor(self, step: int) -> float:
        """Return the factor of the rate at a step."""
        return 1.0


@dataclass(frozen=True)
class Halving:
    """A learning rate halved every `every` steps (PDIG's g_lr and d_lr)."""

    every: int

    def factor(self, step: int) -> float:
        """Return the factor of the rate at a step."""
        return 0.5 ** (step // self.every)


@dataclass(frozen=True)
class LinearDecay:
    """A learning rate constant for `start` steps, then linear to zero at `end` (pix2pix)."""

    start: int
    end: int

    def factor(self, step: int) -> float:
        """Return the factor of the rate at a step."""
        return min(1.0, max(0.0, (self.end - step) / (self.end - self.start)))


@dataclass(frozen=True)
class StepDecay:
    """A learning rate multiplied by `share` from step `start` on (stacked hourglass)."""

    start: int
    share: float

    def factor(self, step: int) -> float:
        """Return the factor of the rate at a step."""
        return 1.0 if step < self.start else self.share


Schedule = Constant | Halving | LinearDecay | StepDecay


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of training that stages have in common. A stage holds one in its field `training`.

    A setting that is None does not exist for the stage: it is not listed and cannot be set.

    pix2pix's code has the linear decay. PG2 and VDG keep the rate constant; there the decay is our choice for short
    trainings, where it makes the result less noisy.
    """

    steps: Positive  # each with an update, or several, of every player
    batch_size: Positive  # pairs of an update, over all workers
    lr: Rate
    discriminator_lr: Rate | None = None  # or the critic's
    constant_lr_share: Share | None = 1.0  # share of the steps with a constant rate; then `late_lr`, or linear to zero
    late_lr: Rate | None = None  # after the constant part
    halving_every: Positive | None = None  # steps; then the rate is neither constant nor linear
    flip: bool = True  # train on left-right mirrored pairs too, half of the time
    ema_decay: Decay = 0.0  # of the moving average of the generator's weights; 0 is off

    @property
    def schedule(self) -> Schedule:
        """The factor of the learning rates at each step."""
        if self.halving_every is not None:
            return Halving(self.halving_every)
        share = 1.0 if self.constant_lr_share is None else self.constant_lr_share
        if self.late_lr is not None:
            return StepDecay(start=round(self.steps * share), share=self.late_lr / self.lr)
        if share == 1:
            return Constant()
        return LinearDecay(start=min(round(self.steps * share), self.steps - 1), end=self.steps)


@dataclass(frozen=True, kw_only=True)
class Player:
    """A participant of the training: networks with an optimizer. `GENERATOR` is the one averaged by EMA."""

    name: str
    nets: tuple[str, ...]
    lr: float
    optimizer: Literal["adam", "rmsprop"] = "adam"
    betas: tuple[float, float] = (0.5, 0.999)  # for rmsprop the second is its smoothing constant
    schedule: Schedule = Constant()
    repeats: int = 1  # updates in a row, each with a fresh batch (WGAN critics)
    clip_weights: float | None = None
    skip_when: Callable[[Mapping[str, float]], bool] | None = None  # on the last step's terms, reduced over workers


def adversarial_players(
    training: Training,
    *,
    generators: tuple[str, ...] = ("generator",),
    discriminators: tuple[str, ...] = ("discriminator",),
    adversary: str = "discriminator",
    generator_first: bool = True,
    optimizer: Literal["adam", "rmsprop"] = "adam",
    betas: tuple[float, float] = (0.5, 0.999),
    repeats: int = 1,
    clip_weights: float | None = None,
    skip_when: Callable[[Mapping[str, float]], bool] | None = None,
) -> tuple[Player, ...]:
    """Return the players of an adversarial game, in the order of their updates.

    Args:
        training: Learning rates and their schedule.
        generators: Names of the generator's networks.
        discriminators: Names of the adversary's networks; () leaves the generator alone.
        adversary: The adversary's name: a Wasserstein critic is no discriminator.
        generator_first: The order; WGAN and pix2pix update the adversary first.
        optimizer: That of both players.
        betas: Those of both players' optimizers.
        repeats: Updates of the adversary in a step.
        clip_weights: Largest absolute weight of the adversary.
        skip_when: Condition on the last step's terms under which the adversary is not updated.
    """
    schedule = training.schedule
    generator = Player(
        name=GENERATOR, nets=generators, lr=training.lr, optimizer=optimizer, betas=betas, schedule=schedule
    )
    if not discriminators:
        return (generator,)
    if training.discriminator_lr is None:
        raise ValueError(f"the player '{adversary}' has no learning rate: give `training` a `discriminator_lr`")
    other = Player(
        name=adversary, nets=discriminators, lr=training.discriminator_lr, optimizer=optimizer, betas=betas,
        schedule=schedule, repeats=repeats, clip_weights=clip_weights, skip_when=skip_when,
    )  # fmt: skip
    return (generator, other) if generator_first else (other, generator)


@dataclass(frozen=True)
class Canvas:
    """The size of a system's images, and the way in which poses are drawn at that size."""

    size: tuple[int, int]  # height, width in pixels
    pose_maps: Discs | Gaussians

    def draw(self, joints: Joints, visible: Visible) -> PoseMaps:
        """Return the pose maps of joints in pixels."""
        return self.pose_maps(joints, visible, *self.size)


@runtime_checkable
class Stage(Protocol):
    """A trained step of a system: a frozen dataclass whose fields are hyperparameters, those of `training` included.

    Its methods are functions of the fields and of what they are given; networks are only called, never reached into,
    since with several workers they are wrapped.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    writes: ClassVar[tuple[str, ...]]

    @property
    def training(self) -> Training:
        """Steps, batches, learning rates."""
        ...

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, in the order of their updates."""
        ...

    def networks(self, canvas: Canvas) -> dict[str, nn.Module]:
        """Return freshly initialised networks, each of exactly one player. Raises ValueError for an unfit size."""
        ...

    def outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return exactly the columns in `writes`."""
        ...

    def loss(self, canvas: Canvas, player: str, nets: Networks, batch: Batch, outputs: Batch) -> dict[str, Term]:
        """Return the player's terms.

        Args:
            canvas: The system's.
            player: A name of `players`.
            nets: Networks by name, fixed ones included.
            batch: The columns in `reads`.
            outputs: The stage's outputs for the batch. They carry a gradient for the player `GENERATOR` only.
        """
        ...


@runtime_checkable
class ComputesOtherwise(Protocol):
    """A stage whose losses need something else than its outputs: without costly columns, or on varied images."""

    def training_outputs(self, canvas: Canvas, nets: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return what `loss` is given as `outputs`."""
        ...


@runtime_checkable
class UsesPretrained(Protocol):
    """A stage whose losses compare features of a fixed, pretrained network: not trained, in no checkpoint."""

    @property
    def features(self) -> str:
        """A setting: the pretrained network's name, or "random-<name>" for a random network in its place."""
        ...

    @property
    def pretrained(self) -> str:
        """The network's name in `weights.PRETRAINED`; "" where the stage's settings need none."""
        ...

    def fixed_networks(self, weights: Path) -> dict[str, nn.Module]:
        """Return the fixed networks, which `loss` finds among the stage's own; `weights` is the folder of files."""
        ...


@runtime_checkable
class WarmStarts(Protocol):
    """A stage whose networks start from trained ones of earlier stages: fine-tuning several stages together."""

    @property
    def starts_from(self) -> Mapping[str, tuple[str, str]]:
        """Own network -> (an earlier stage, its network), whose trained weights it starts with."""
        ...


def player_terms(stage: Stage, canvas: Canvas, player: str, nets: Networks, batch: Batch) -> dict[str, Term]:
    """Return a player's terms on a batch, as training computes them.

    The outputs are computed once, without gradients unless the player is the one whose networks make them.
    """
    compute = stage.training_outputs if isinstance(stage, ComputesOtherwise) else stage.outputs
    with torch.set_grad_enabled(player == GENERATOR and torch.is_grad_enabled()):
        outputs = compute(canvas, nets, batch)
    return stage.loss(canvas, player, nets, batch, outputs)


@dataclass(frozen=True, kw_only=True)
class System:
    """A paper's system: stages in order, the canvas that they share, and the columns that are the result.

    A result is an image (`image`), predicted joints (`joints`, in pixels of the target), or both; "" is neither.
    Raises ValueError for settings out of bounds and for a size that the networks cannot be built for.
    """

    name: str
    variant: str
    paper: str
    canvas: Canvas
    stages: tuple[Stage, ...]
    image: str = ""
    joints: str = ""

    def __post_init__(self) -> None:
        for stage in self.stages:
            check_fields(stage, stage.name)
            _shapes(stage, self.canvas)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.canvas.size

    @property
    def pose_maps(self) -> Discs | Gaussians:
        """The drawing of the pose."""
        return self.canvas.pose_maps

    def stages_before(self, index: int) -> list[int]:
        """Return the earlier stages whose outputs a stage reads, directly or through one another, in their order."""
        wanted, found = set(self.stages[index].reads), []
        for number in reversed(range(index)):
            stage = self.stages[number]
            if wanted & set(stage.writes):
                found.append(number)
                wanted |= set(stage.reads)
        return found[::-1]

    def waits_for(self, index: int) -> frozenset[int]:
        """Return the earlier stages that must be trained before a stage: it reads their outputs or starts from them."""
        stage, names = self.stages[index], [each.name for each in self.stages]
        origins = [origin for origin, _ in stage.starts_from.values()] if isinstance(stage, WarmStarts) else []
        return frozenset({*self.stages_before(index), *map(names.index, origins)})

    def stand_ins(self) -> list[str]:
        """Describe, for scores and reports, where a random network stands in for a pretrained one."""
        stages = [stage for stage in self.stages if isinstance(stage, UsesPretrained) and stage.pretrained]
        return [
            f"the losses of stage '{stage.name}' compare features of {stage.features}, a fixed random network: "
            f"{stage.pretrained} is absent"
            for stage in stages
            if stage.features != stage.pretrained
        ]

    def continuation_errors(self) -> list[str]:
        """Describe where a stage starts from networks of earlier stages that are not built as its own."""
        shapes = {stage.name: _shapes(stage, self.canvas) for stage in self.stages}
        return [
            f"stage '{stage.name}' starts from the {network} of stage '{origin}', but builds its own '{own}' "
            "otherwise: give both the same sizes"
            for stage in self.stages
            if isinstance(stage, WarmStarts)
            for own, (origin, network) in stage.starts_from.items()
            if shapes[stage.name][own] != shapes[origin][network]
        ]

    def wiring_errors(self, columns: set[str]) -> list[str]:
        """Describe the errors in the wiring of columns, given those that the data have; empty where there are none."""
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


@lru_cache(maxsize=256)
def _shapes(stage: Stage, canvas: Canvas) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the weights of a stage's networks. Raises ValueError where the size does not fit them."""
    with torch.device("meta"):
        networks = stage.networks(canvas)
    return {name: {key: tuple(v.shape) for key, v in net.state_dict().items()} for name, net in networks.items()}


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
