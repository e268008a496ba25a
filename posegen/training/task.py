"""One stage to train, and where: what the loop is given."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from posegen.amounts import Interval
from posegen.data.loading.dataset import Shards
from posegen.stage import Networks, Stage, System
from posegen.storage.store import ABSOLUTE, Store
from posegen.training import checkpoints
from posegen.training.checkpoints import Curve


@runtime_checkable
class Judge(Protocol):
    """Scores a system while its last stage trains, on images that it does not learn from. Pickles to workers."""

    @property
    def at(self) -> Collection[int]: ...  # the steps after which it is asked

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        """Mean scores of the networks of all stages, by stage, in evaluation mode. Draws no random numbers.

        Raises ValueError where a score is not a number.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage to train: everything that a worker must know. Pickles to Ray."""

    system: System
    index: int  # of the stage
    store: Store = ABSOLUTE  # the run; the paths below are within it, and are themselves where they are absolute
    shards: Path
    folders: Mapping[str, Path]  # of this stage and of those before it, by name: each with its checkpoints
    seed: int
    recipe: str  # fingerprint: a checkpoint with another one is not resumed
    checkpoint_every: Interval
    weights: Path = Path()  # the folder of pretrained networks
    cache_bytes: int | None = None  # of shards on each node
    window: int | None = None  # bytes: training pairs keep to windows of shards
    keep: int = checkpoints.KEEP  # newest checkpoints that stay
    judge: Judge | None = None  # of the system, where this is its last stage

    @property
    def stage(self) -> Stage:
        return self.system.stages[self.index]

    @property
    def place(self) -> str:
        """The stage's folder within the run."""
        return str(self.folders[self.stage.name])

    @property
    def folder(self) -> Path:
        """The stage's folder on this node."""
        return self.store.folder / self.place

    def judged_at(self, step: int) -> bool:
        return self.judge is not None and step in self.judge.at

    def opened_shards(self) -> Shards:
        """The run's shards as this node reads them."""
        return Shards.of(self.store, str(self.shards), limit=self.cache_bytes)

    @property
    def log_every(self) -> int:
        """Steps that one row of the curve averages: at most 200 rows a stage, at most 50 steps a row."""
        return max(1, min(50, math.ceil(self.stage.training.steps / 200)))


@runtime_checkable
class Context(Protocol):
    """Where the loop runs: one of `world_size` processes, and whom to tell."""

    rank: int
    world_size: int
    device: torch.device

    def begins(self, step: int) -> None:
        """This rank goes on from a step."""
        ...

    def at(self, step: int) -> None:
        """This rank is about to carry out a step, counted from 1."""
        ...

    def post(self, step: int, terms: dict[str, float]) -> None:
        """Live progress, from rank 0, not waited for."""
        ...

    def saved(self, rows: Curve) -> None:
        """A checkpoint is being written; with the curve's rows since the last one. Every rank is told."""
        ...

    def leaving(self) -> bool:
        """Whether a machine of this training was just announced to be taken away. The same answer on all ranks."""
        ...

    def goes_on(self, step: int, scores: dict[str, float]) -> bool:
        """Rank 0 asks, with the judge's scores after a step, whether to train further. May take a while."""
        ...


@dataclass
class Alone:
    """The loop's context without Ray: one process, nobody to tell."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    def begins(self, step: int) -> None:
        pass

    def at(self, step: int) -> None:
        pass

    def post(self, step: int, terms: dict[str, float]) -> None:
        pass

    def saved(self, rows: Curve) -> None:
        pass

    def leaving(self) -> bool:
        return False

    def goes_on(self, step: int, scores: dict[str, float]) -> bool:
        return True
