"""Interfaces of the training loop: a stage to train, and the process that it runs in."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from posegen.data.loading.dataset import Shards
from posegen.stage import Networks, Stage, System
from posegen.storage.store import ABSOLUTE, Store
from posegen.training import checkpoints
from posegen.training.checkpoints import Curve, Interval, latest_checkpoint


@runtime_checkable
class Validator(Protocol):
    """Scores a system while its last stage trains, on held-out images. Pickles to workers."""

    @property
    def at(self) -> Collection[int]:
        """The steps after which it is called."""
        ...

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        """Return mean scores of the networks of all stages, by stage, in evaluation mode. Draws no random numbers.

        Raises ValueError if a score is not a number.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage to train, with all that a worker needs. Pickles to Ray."""

    system: System
    index: int  # of the stage
    store: Store = ABSOLUTE  # the run; the paths below are within it, and are themselves where they are absolute
    shards: Path
    folders: Mapping[str, Path]  # of this stage and of those before it, by name: each with its checkpoints
    seed: int
    config_hash: str  # a checkpoint with another one is not resumed
    checkpoint_every: Interval
    weights: Path = Path()  # the folder of pretrained networks
    cache_bytes: int | None = None  # of shards on each node
    window: int | None = None  # bytes: training pairs keep to windows of shards
    keep: int = checkpoints.KEEP  # newest checkpoints that are kept
    validator: Validator | None = None  # of the system, where this is its last stage

    @property
    def stage(self) -> Stage:
        """The stage to train."""
        return self.system.stages[self.index]

    @property
    def prefix(self) -> str:
        """The stage's folder within the run."""
        return str(self.folders[self.stage.name])

    @property
    def folder(self) -> Path:
        """The stage's folder on this node."""
        return self.store.folder / self.prefix

    def validates_at(self, step: int) -> bool:
        """Return whether the validator is called after a step."""
        return self.validator is not None and step in self.validator.at

    def open_shards(self) -> Shards:
        """Open the run's shards as this node reads them."""
        return Shards.of(self.store, str(self.shards), limit=self.cache_bytes)

    @property
    def log_every(self) -> int:
        """Steps that one row of the curve averages: at most 200 rows a stage, at most 50 steps a row."""
        return max(1, min(50, math.ceil(self.stage.training.steps / 200)))


@runtime_checkable
class Context(Protocol):
    """The process that the loop runs in, one of `world_size`, and the receivers of its events."""

    rank: int
    world_size: int
    device: torch.device

    def on_start(self, step: int) -> None:
        """Receive the step that this rank resumes from."""
        ...

    def on_step(self, step: int) -> None:
        """Receive the step that this rank is about to carry out, counted from 1."""
        ...

    def on_terms(self, step: int, terms: dict[str, float]) -> None:
        """Receive live progress from rank 0, without waiting."""
        ...

    def on_checkpoint(self, rows: Curve) -> None:
        """Receive the curve's rows since the last checkpoint, on every rank, while the next one is written."""
        ...

    def preempted(self) -> bool:
        """Return whether a machine of this training was just announced to be taken away; the same on all ranks."""
        ...

    def should_continue(self, step: int, scores: dict[str, float]) -> bool:
        """Return, on rank 0, whether to train further after a validation. May take a while."""
        ...


@dataclass
class LocalContext:
    """The loop's context without Ray: one process, no receivers."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    def on_start(self, step: int) -> None:
        """Ignore the step."""

    def on_step(self, step: int) -> None:
        """Ignore the step."""

    def on_terms(self, step: int, terms: dict[str, float]) -> None:
        """Ignore the terms."""

    def on_checkpoint(self, rows: Curve) -> None:
        """Ignore the rows."""

    def preempted(self) -> bool:
        """Return False."""
        return False

    def should_continue(self, step: int, scores: dict[str, float]) -> bool:
        """Return True."""
        return True


POST_EVERY = 1.0  # seconds between two live progress messages
VALIDATION = "validation/"  # before the names of scores in a curve


class NonFinite(Exception):
    """A loss, a gradient or a score is not finite. The message names the stage, the step and the term."""


def validation_scores(curve: Curve) -> list[tuple[int, dict[str, float]]]:
    """Return the validation scores in a curve: (step, scores by name), by step."""
    rows = [
        (int(row["step"]), {k.removeprefix(VALIDATION): v for k, v in row.items() if k.startswith(VALIDATION)})
        for row in curve
    ]
    return [(step, scores) for step, scores in rows if scores]


class LossLog:
    """Gathers the terms of `log_every` steps on the device, then averages, reduces and checks them in one go."""

    def __init__(self, task: Task, context: Context, curve: Curve, share: float) -> None:
        self.curve = curve
        self._share = share
        self._task, self._context = task, context
        self._window: list[tuple[int, dict[str, Tensor]]] = []
        self._rows: Curve = []
        self._posted = 0.0
        self._last: tuple[int, dict[str, Tensor]] = (0, {})

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Add a step's terms, and a row to the curve with every `log_every`-th step."""
        self._last = (step, terms)
        self._window.append(self._last)
        if step % self._task.log_every == 0:
            self._close()

    def validated(self, step: int, scores: dict[str, float] | ValueError) -> None:
        """Add the validation scores after a step as a row of their own. Raises NonFinite for a ValueError."""
        self._close()
        if isinstance(scores, ValueError):
            raise NonFinite(f"stage '{self._task.stage.name}' stopped at step {step}: {scores}")
        self._append({"step": step, **{f"{VALIDATION}{name}": value for name, value in scores.items()}})

    def flush(self) -> Curve:
        """Close the open window and return the rows since the last flush."""
        self._close()
        rows, self._rows = self._rows, []
        return rows

    def latest(self) -> dict[str, float]:
        """Return the last step's terms, reduced over the workers, for skip rules. A collective: only where needed."""
        return self._mean([self._last])

    def _append(self, row: dict[str, float]) -> None:
        self.curve.append(row)
        self._rows.append(row)

    def _close(self) -> None:
        if not self._window:
            return
        step, terms = self._window[-1][0], self._mean(self._window)
        self._window = []
        self._append({"step": step, **terms})
        if self._context.rank == 0 and time.monotonic() - self._posted > POST_EVERY:
            self._posted = time.monotonic()
            self._context.on_terms(step, terms)

    def _mean(self, window: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
        """Return means over the window's steps and the workers, by term; skipped updates have no terms to count."""
        entries = [(step, name, value) for step, terms in window for name, value in terms.items()]
        values = torch.stack([value for _, _, value in entries]).double()
        if self._context.world_size > 1:
            values *= self._share
            dist.all_reduce(values)
            values /= self._context.world_size
        values = values.cpu()
        self._check(entries, values)
        names = dict.fromkeys(name for _, name, _ in entries)
        return {name: values[[i for i, e in enumerate(entries) if e[1] == name]].mean().item() for name in names}

    def _check(self, entries: list[tuple[int, str, Tensor]], values: Tensor) -> None:
        if bool(values.isfinite().all()):
            return
        step, name, value = next(
            (s, n, v.item()) for (s, n, _), v in zip(entries, values, strict=True) if not v.isfinite()
        )
        raise NonFinite(
            f"stage '{self._task.stage.name}' stopped at step {step}: {name} is {value}. Last good checkpoint: "
            f"{latest_checkpoint(self._task.folder) or 'none yet'}. A lower learning rate or weight of this term, or "
            "other data, may help."
        )
