"""The training loop: batches, resume, steps, checkpoints, validation.

The same loop runs under Ray Train and in a bare process; the differences are in a small `Context`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from posegen.batch import Batch
from posegen.data.loading.collate import to_columns
from posegen.data.loading.dataset import share_of, training_batches
from posegen.stage import Canvas, Networks, Stage, System, WarmStarts
from posegen.storage.files import StorageFailed, remove_leftovers
from posegen.training import checkpoints
from posegen.training.checkpoints import AsyncCheckpointer, Curve, StageProgress, trained_networks
from posegen.training.step import Trainer, autocast, build_trainer
from posegen.training.task import Context, LossLog, Task, validation_scores

T = TypeVar("T")

PREEMPTION_EVERY = 5.0  # seconds between two checks for machines that are about to be taken away


def train_stage(task: Task, context: Context) -> None:
    """Train the stage from its latest checkpoint with the same config hash, or from the start, to its last step.

    Every rank reports at the same steps. With a validator, its scores go into the curve, and after each validation the
    context decides whether to continue; a stage that stops early ends with a checkpoint of that step. Checkpoints are
    written while training continues; the last one is complete when this returns.

    Raises NonFinite on all ranks if a term, a gradient or a score is not finite; the checkpoints written before are
    good.
    """
    checkpointer = AsyncCheckpointer(task.store, task.prefix, keep=task.keep)
    try:
        _train(task, context, checkpointer)
        checkpointer.wait()
    finally:
        checkpointer.close()


def _train(task: Task, context: Context, checkpointer: AsyncCheckpointer) -> None:
    own = share_of(task.stage.training.batch_size, context.rank, context.world_size)
    trainer = build_trainer(
        task.stage,
        task.system.canvas,
        seed=task.seed,
        device=context.device,
        rank=context.rank,
        share=(own.stop - own.start) * context.world_size / task.stage.training.batch_size,
        # each network by itself: one wrapper around several players fails
        wrap=lambda net: DistributedDataParallel(net, broadcast_buffers=False) if context.world_size > 1 else net,
        weights=task.weights,
    )
    earlier = earlier_networks(task, context.device)
    start, curve = resume(trainer, task, context)
    context.on_start(start)
    if start == 0 and isinstance(task.stage, WarmStarts):
        _warm_start(task.stage.starts_from, trainer, earlier)
    log, clock = LossLog(task, context, curve, trainer.share), CheckpointClock(task, context)
    per_step = trainer.batches_per_step
    batches = stage_batches(task, context, earlier, range(start * per_step, task.stage.training.steps * per_step))
    if not _should_continue(start, task, context, curve):
        return
    for step in range(start + 1, task.stage.training.steps + 1):
        context.on_step(step)
        log.add(step, trainer.step(step - 1, lambda: next(batches)))
        if any(player.skip_when for player in task.stage.players):
            trainer.last_terms |= log.latest()
        if task.validates_at(step):
            log.validated(step, _validate(step, task, context, trainer, earlier))
        if clock.save_after(step):
            _save(step, task, context, trainer, log, checkpointer)
        if not _should_continue(step, task, context, curve):
            return


class CheckpointClock:
    """Says when checkpoints are due: every so many steps or minutes, before a machine is taken away, at the end."""

    def __init__(self, task: Task, context: Context) -> None:
        self._task, self._context = task, context
        self._saved = self._checked = time.monotonic()

    def save_after(self, step: int) -> bool:
        """Return whether to save after a step; the same on all ranks. Time and machines are checked with each row."""
        task = self._task
        every = task.checkpoint_every.steps
        due = step == task.stage.training.steps or bool(every and step % every == 0) or task.validates_at(step)
        if not due and step % task.log_every == 0:
            now, minutes = time.monotonic(), task.checkpoint_every.minutes
            passed = bool(minutes) and now - self._saved >= 60 * minutes
            due, check = _broadcast((passed, now - self._checked > PREEMPTION_EVERY), self._context)
            if check:
                self._checked = now
                due |= self._context.preempted()
        if due:
            self._saved = time.monotonic()
        return due


def _save(
    step: int, task: Task, context: Context, trainer: Trainer, log: LossLog, checkpointer: AsyncCheckpointer
) -> None:
    rows = log.flush()
    if context.rank == 0:
        progress = StageProgress(step, task.config_hash, task.seed, dict(trainer.last_terms))
        checkpointer.save(checkpoints.snapshot(trainer, progress, log.curve))
    context.on_checkpoint(rows)


def _validate(
    step: int, task: Task, context: Context, trainer: Trainer, earlier: Mapping[str, Networks]
) -> dict[str, float] | ValueError:
    """Return rank 0's validation scores on every rank. A ValueError is returned so that all ranks can raise it."""
    outcome: dict[str, float] | ValueError = {}
    if context.rank == 0 and task.validator is not None:
        own = trainer.bare | trainer.averages
        for network in own.values():
            network.eval()
        try:
            outcome = task.validator({**earlier, task.stage.name: own}, step, context.device)
        except StorageFailed:
            raise
        except ValueError as error:
            outcome = error
        for network in trainer.bare.values():
            network.train()
    return _broadcast(outcome, context)


def _should_continue(step: int, task: Task, context: Context, curve: Curve) -> bool:
    """Return whether to train further after this step: only a validation can end a stage early."""
    if not task.validates_at(step):
        return True
    answer = context.rank > 0 or context.should_continue(step, validation_scores(curve)[-1][1])  # rank 0's counts
    return _broadcast(answer, context)


def _broadcast(value: T, context: Context) -> T:
    """Return rank 0's value on every rank."""
    values = [value]
    if context.world_size > 1:
        dist.broadcast_object_list(values, src=0, device=context.device)
    return values[0]


def resume(trainer: Trainer, task: Task, context: Context) -> tuple[int, Curve]:
    """Restore the newest checkpoint on all ranks, and return its step and curve; (0, []) without one.

    A checkpoint with another config hash or beyond the last step is an error here: the plan has removed those.
    """
    name = ""
    if context.rank == 0:
        remove_leftovers(task.folder, older_than=0)
        name = checkpoints.newest_name(task.store, task.prefix)
    name = _broadcast(name, context)
    if not name:
        if context.rank == 0:  # checkpoints on this node that the run does not have must not count among those kept
            task.store.fetch(task.prefix, wanted=lambda inside: False)
        return 0, []
    newest = checkpoints.fetch_checkpoint(task.store, task.prefix, name)
    progress, curve = checkpoints.restore(trainer, newest)
    assert progress.config_hash == task.config_hash, f"{newest} has another config hash"
    assert progress.step <= task.stage.training.steps, f"{newest} is beyond the last step"
    return progress.step, curve


def earlier_networks(task: Task, device: torch.device) -> dict[str, Networks]:
    """Load the trained networks of the earlier stages that this one needs, frozen, by stage."""
    stage = task.stage
    continued = {name for name, _ in stage.starts_from.values()} if isinstance(stage, WarmStarts) else set()
    before = [task.system.stages[index] for index in task.system.stages_before(task.index)]
    earlier = [s for s in task.system.stages[: task.index] if s in before or s.name in continued]
    for stage in earlier:
        checkpoints.fetch_newest(task.store, str(task.folders[stage.name]))
    return {
        s.name: trained_networks(s, task.system.canvas, task.store.folder / task.folders[s.name], device)
        for s in earlier
    }


def _warm_start(origins: Mapping[str, tuple[str, str]], trainer: Trainer, earlier: Mapping[str, Networks]) -> None:
    """Copy trained networks of earlier stages into the stage's own, and into their averages."""
    for name, (stage, network) in origins.items():
        trained = earlier[stage][network].state_dict()
        for copy in (trainer.bare, trainer.averages):
            if name in copy:
                copy[name].load_state_dict(trained)


def stage_batches(task: Task, context: Context, earlier: Mapping[str, Networks], draws: range) -> Iterator[Batch]:
    """Yield this rank's batches of columns on the device, with the outputs of the earlier stages added."""
    before = [task.system.stages[index] for index in task.system.stages_before(task.index)]
    frozen = [(stage, earlier[stage.name]) for stage in before]
    canvas = task.system.canvas
    for raw in training_batches(
        task.open_shards(),
        columns=needed_columns(task.system, task.index),
        batch_size=task.stage.training.batch_size,
        seed=task.seed,
        draws=draws,
        rank=context.rank,
        world_size=context.world_size,
        flip=task.stage.training.flip,
        window=task.window,
        pin_memory=context.device.type == "cuda",
    ):
        columns = to_columns(raw, context.device, canvas.pose_maps)
        yield _with_outputs(columns, canvas, frozen, context.device)


@torch.no_grad()
def _with_outputs(
    columns: dict[str, Tensor], canvas: Canvas, frozen: Sequence[tuple[Stage, Networks]], device: torch.device
) -> Batch:
    for stage, networks in frozen:
        with autocast(device):
            columns |= stage.outputs(canvas, networks, columns)
    return columns


def needed_columns(system: System, index: int) -> set[str]:
    """Return the data columns that a stage and the earlier stages that feed it read."""
    stages = [system.stages[number] for number in (*system.stages_before(index), index)]
    return {name for s in stages for name in s.reads} - {name for s in stages for name in s.writes}
