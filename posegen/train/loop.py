"""What a training worker runs: batches, resume, steps, checkpoints, reports.

The same loop runs under Ray Train and in a bare process: everything that differs is in a small `Context`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from posegen.batch import Batch
from posegen.data.columns import to_columns
from posegen.data.loader import Shards, training_batches
from posegen.stage import Networks, Stage, System
from posegen.train import checkpoint as checkpoints
from posegen.train.checkpoint import Curve, Progress, trained_networks
from posegen.train.step import Game, autocast, new_game

POST_EVERY = 1.0  # seconds between two live progress messages


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage to train: everything that a worker must know. Pickles to Ray."""

    system: System
    index: int  # of the stage
    shards: Path
    stages: Path  # folder of all the stages' folders
    seed: int
    recipe: str  # fingerprint: a checkpoint with another one is not resumed
    checkpoint_every: int  # steps

    @property
    def stage(self) -> Stage:
        return self.system.stages[self.index]

    @property
    def folder(self) -> Path:
        return self.stages / self.stage.name

    @property
    def log_every(self) -> int:
        """Steps that one row of the curve averages: at most 200 rows a stage, at most 50 steps a row."""
        return max(1, min(50, math.ceil(self.stage.steps / 200)))


@runtime_checkable
class Context(Protocol):
    """Where the loop runs: one of `world_size` processes, and whom to tell."""

    rank: int
    world_size: int
    device: torch.device

    def post(self, step: int, terms: dict[str, float]) -> None:
        """Live progress, from rank 0, not waited for."""
        ...

    def saved(self, checkpoint: Path | None, rows: Curve) -> None:
        """A checkpoint was written (its path on rank 0, None elsewhere), with the curve's rows since the last one."""
        ...


@dataclass
class Alone:
    """The loop's context without Ray: one process, nobody to tell."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1

    def post(self, step: int, terms: dict[str, float]) -> None:
        pass

    def saved(self, checkpoint: Path | None, rows: Curve) -> None:
        pass


class NonFinite(Exception):
    """A loss or a gradient is not a number any more. The message names the stage, the step and the term."""


def train_stage(task: Task, context: Context) -> None:
    """Trains the stage from its latest checkpoint of the same recipe, or from the start, to its last step.

    Every rank reports at the same steps. Raises NonFinite on all ranks where a term or gradient stops being finite;
    the checkpoints written before are good.
    """
    game = new_game(task.stage, seed=task.seed, device=context.device, rank=context.rank, wrap=_wrapping(context))
    start, curve = resume(game, task)
    journal = Journal(task, context, curve)
    batches = stage_batches(task, context, range(start * game.turns, task.stage.steps * game.turns))
    for step in range(start, task.stage.steps):
        journal.add(step + 1, game.play(step, lambda: next(batches)))
        if any(player.skip_when for player in task.stage.players):
            game.last_terms |= journal.latest()
        if _save_after(step + 1, task):
            _save(step + 1, task, context, game, journal)


def _save_after(step: int, task: Task) -> bool:
    return step == task.stage.steps or step % task.checkpoint_every == 0


def _save(step: int, task: Task, context: Context, game: Game, journal: "Journal") -> None:
    rows = journal.flush()
    written = None
    if context.rank == 0:
        progress = Progress(step, task.recipe, task.seed, game.last_terms)
        written = checkpoints.write_checkpoint(task.folder, game, progress, journal.curve)
    context.saved(written, rows)


def _wrapping(context: Context):
    """Each network is its own DistributedDataParallel: one around several players fails."""
    if context.world_size == 1:
        return lambda network: network

    def wrap(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network, broadcast_buffers=False)

    return wrap


def resume(game: Game, task: Task) -> tuple[int, Curve]:
    """Step and curve to go on from. A checkpoint of another recipe or beyond the last step is an error here: the plan
    has removed those that should not count."""
    latest = checkpoints.latest_checkpoint(task.folder)
    if latest is None:
        return 0, []
    progress, curve = checkpoints.restore(game, latest)
    assert progress.recipe == task.recipe, f"{latest} is of another recipe"
    assert progress.step <= task.stage.steps, f"{latest} is beyond the last step"
    return progress.step, curve


def stage_batches(task: Task, context: Context, draws: range) -> Iterator[Batch]:
    """This rank's batches of columns on the device, with the outputs of the stages before added."""
    earlier = task.system.stages[: task.index]
    frozen = [(stage, trained_networks(stage, task.stages / stage.name, context.device)) for stage in earlier]
    for raw in training_batches(
        Shards(task.shards),
        columns=needed_columns(task.system, task.index),
        batch_size=task.stage.batch_size,
        seed=task.seed,
        draws=draws,
        rank=context.rank,
        world_size=context.world_size,
        flip=task.stage.flip,
        pin_memory=context.device.type == "cuda",
    ):
        columns = to_columns(raw, context.device, task.system.pose_maps)
        yield _with_outputs(columns, frozen, context.device)


@torch.no_grad()
def _with_outputs(columns: dict[str, Tensor], frozen: Sequence[tuple[Stage, Networks]], device: torch.device) -> Batch:
    for stage, networks in frozen:
        with autocast(device):
            columns |= stage.outputs(networks, columns)
    return columns


def needed_columns(system: System, index: int) -> set[str]:
    """The data columns that a stage and those before it read."""
    stages = system.stages[: index + 1]
    return {name for s in stages for name in s.reads} - {name for s in stages for name in s.writes}


class Journal:
    """Gathers the terms of `log_every` steps on the device, then averages, reduces and checks them in one go."""

    def __init__(self, task: Task, context: Context, curve: Curve) -> None:
        self.curve = curve
        self._task, self._context = task, context
        self._window: list[tuple[int, dict[str, Tensor]]] = []
        self._rows: Curve = []
        self._posted = 0.0
        self._last: tuple[int, dict[str, Tensor]] = (0, {})

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        self._last = (step, terms)
        self._window.append(self._last)
        if step % self._task.log_every == 0:
            self._close()

    def flush(self) -> Curve:
        """The rows since the last flush; the open window is closed."""
        self._close()
        rows, self._rows = self._rows, []
        return rows

    def latest(self) -> dict[str, float]:
        """The last step's terms, reduced over the workers: what a skip rule sees. A collective: only where needed."""
        return self._mean([self._last])

    def _close(self) -> None:
        if not self._window:
            return
        row = {"step": self._window[-1][0], **self._mean(self._window)}
        self._window = []
        self.curve.append(row)
        self._rows.append(row)
        if self._context.rank == 0 and time.monotonic() - self._posted > POST_EVERY:
            self._posted = time.monotonic()
            self._context.post(int(row["step"]), {k: v for k, v in row.items() if k != "step"})

    def _mean(self, window: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
        """Means over the window's steps and the workers, by term; a term of a skipped move counts where it is there."""
        entries = [(step, name, value) for step, terms in window for name, value in terms.items()]
        values = torch.stack([value for _, _, value in entries]).double()
        if self._context.world_size > 1:
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
        good = checkpoints.latest_checkpoint(self._task.folder)
        raise NonFinite(
            f"stage '{self._task.stage.name}' stopped at step {step}: {name} is {value}. Last good checkpoint: "
            f"{good or 'none yet'}. A lower learning rate or weight of this term, or other data, may help."
        )
