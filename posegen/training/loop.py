"""What a training worker runs: batches, resume, steps, checkpoints, reports.

The same loop runs under Ray Train and in a bare process: everything that differs is in a small `Context`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from posegen.batch import Batch
from posegen.data.loading.dataset import share_of, training_batches
from posegen.data.loading.to_device import to_columns
from posegen.stage import Canvas, Networks, Stage, System, WarmStarts
from posegen.storage.files import StorageFailed, remove_leftovers
from posegen.training import checkpoints
from posegen.training.checkpoints import Curve, Progress, Saver, trained_networks
from posegen.training.loss_log import Journal, judged_scores
from posegen.training.step import Game, autocast, new_game
from posegen.training.task import Context, Task

LOOK_EVERY = 5.0  # seconds between two looks whether a machine is about to be taken away


def train_stage(task: Task, context: Context) -> None:
    """Trains the stage from its latest checkpoint of the same recipe, or from the start, to its last step.

    Every rank reports at the same steps. Where the task has a judge, its scores go into the curve, and after each
    judgement the context says whether to go on; a stage that was told to stop ends with a checkpoint of that step.
    Checkpoints are written while training goes on; the last one is there when this returns.
    Raises NonFinite on all ranks where a term, a gradient or a score stops being finite; the checkpoints written
    before are good.
    """
    saver = Saver(task.store, task.place, keep=task.keep)
    try:
        _train(task, context, saver)
        saver.wait()
    finally:
        saver.close()


def _train(task: Task, context: Context, saver: Saver) -> None:
    wrap, rank = _wrapping(context), context.rank
    game = new_game(
        task.stage,
        task.system.canvas,
        seed=task.seed,
        device=context.device,
        rank=rank,
        share=even_shares(task.stage.training.batch_size, rank, context.world_size),
        wrap=wrap,
        weights=task.weights,
    )
    earlier = earlier_networks(task, context.device)
    start, curve = resume(game, task, context)
    context.begins(start)
    if start == 0 and isinstance(task.stage, WarmStarts):
        _start_from(task.stage.starts_from, game, earlier)
    journal, clock = Journal(task, context, curve, game.share), Clock(task, context)
    batches = stage_batches(task, context, earlier, range(start * game.turns, task.stage.training.steps * game.turns))
    if not _told_to_go_on(start, task, context, curve):
        return
    for step in range(start + 1, task.stage.training.steps + 1):
        context.at(step)
        journal.add(step, game.play(step - 1, lambda: next(batches)))
        if any(player.skip_when for player in task.stage.players):
            game.last_terms |= journal.latest()
        if task.judged_at(step):
            journal.judged(step, _judged(step, task, context, game, earlier))
        if clock.save_after(step):
            _save(step, task, context, game, journal, saver)
        if task.judged_at(step):
            saver.wait()  # another trial may go on from this checkpoint
        if not _told_to_go_on(step, task, context, curve):
            return


def even_shares(batch_size: int, rank: int, world_size: int) -> float:
    """A rank's pairs of a global batch, in even shares."""
    own = share_of(batch_size, rank, world_size)
    return (own.stop - own.start) * world_size / batch_size


class Clock:
    """When checkpoints are due: every so many steps or minutes, before a machine is taken away, and at the end."""

    def __init__(self, task: Task, context: Context) -> None:
        self._task, self._context = task, context
        self._saved = self._looked = time.monotonic()

    def save_after(self, step: int) -> bool:
        """Whether to save after a step; the same on all ranks. Time and machines are looked at with each row."""
        task = self._task
        every = task.checkpoint_every.steps
        due = step == task.stage.training.steps or bool(every and step % every == 0) or task.judged_at(step)
        if not due and step % task.log_every == 0:
            due = self._asked_for()
        if due:
            self._saved = time.monotonic()
        return due

    def _asked_for(self) -> bool:
        now, minutes = time.monotonic(), self._task.checkpoint_every.minutes
        passed = bool(minutes) and now - self._saved >= 60 * minutes
        late, look = self._by_rank_0(passed, now - self._looked > LOOK_EVERY)
        if look:
            self._looked = now
            late |= self._context.leaving()
        return late

    def _by_rank_0(self, *wishes: bool) -> list[bool]:
        """What rank 0's clock says, on all ranks."""
        if self._context.world_size == 1:
            return list(wishes)
        told = torch.tensor(wishes, device=self._context.device, dtype=torch.uint8)
        dist.broadcast(told, src=0)
        return [bool(wish) for wish in told.tolist()]


def _save(step: int, task: Task, context: Context, game: Game, journal: Journal, saver: Saver) -> None:
    rows = journal.flush()
    if context.rank == 0:
        progress = Progress(step, task.recipe, task.seed, dict(game.last_terms))
        saver.save(checkpoints.snapshot(game, progress, journal.curve))
    context.saved(rows)


def _judged(
    step: int, task: Task, context: Context, game: Game, earlier: Mapping[str, Networks]
) -> dict[str, float] | ValueError:
    """The judge's scores, the same on every rank: rank 0 judges, the others wait. What it raised, as a value."""
    outcome: list[dict[str, float] | ValueError] = [{}]
    if context.rank == 0 and task.judge is not None:
        own = game.bare | game.averages
        for network in own.values():
            network.eval()
        try:
            outcome = [task.judge({**earlier, task.stage.name: own}, step, context.device)]
        except StorageFailed:
            raise
        except ValueError as error:
            outcome = [error]
        for network in game.bare.values():
            network.train()
    if context.world_size > 1:
        dist.broadcast_object_list(outcome, src=0, device=context.device)
    return outcome[0]


def _told_to_go_on(step: int, task: Task, context: Context, curve: Curve) -> bool:
    """Whether to train further after this step: only a judgement can end a stage early."""
    if not task.judged_at(step):
        return True
    answer = [True]
    if context.rank == 0:
        answer = [context.goes_on(step, judged_scores(curve)[-1][1])]
    if context.world_size > 1:
        dist.broadcast_object_list(answer, src=0, device=context.device)
    return answer[0]


def _wrapping(context: Context):
    """Each network is its own DistributedDataParallel: one around several players fails."""
    if context.world_size == 1:
        return lambda network: network

    def wrap(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network, broadcast_buffers=False)

    return wrap


def resume(game: Game, task: Task, context: Context) -> tuple[int, Curve]:
    """Step and curve to go on from, the same on all ranks. A checkpoint of another recipe or beyond the last step is an
    error here: the plan has removed those that should not count."""
    names = [""]
    if context.rank == 0:
        remove_leftovers(task.folder, older_than=0)
        names = [checkpoints.newest_name(task.store, task.place)]
    if context.world_size > 1:
        dist.broadcast_object_list(names, src=0, device=context.device)
    if not names[0]:
        if context.rank == 0:  # what this node has of a stage that the run does not have is not to be counted as kept
            task.store.fetch(task.place, wanted=lambda inside: False)
        return 0, []
    newest = checkpoints.fetch_checkpoint(task.store, task.place, names[0])
    progress, curve = checkpoints.restore(game, newest)
    assert progress.recipe == task.recipe, f"{newest} is of another recipe"
    assert progress.step <= task.stage.training.steps, f"{newest} is beyond the last step"
    return progress.step, curve


def earlier_networks(task: Task, device: torch.device) -> dict[str, Networks]:
    """The finished networks of the stages before, frozen, by stage."""
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


def _start_from(origins: Mapping[str, tuple[str, str]], game: Game, earlier: Mapping[str, Networks]) -> None:
    """Copies trained networks of earlier stages into the stage's own, and into their averages."""
    for name, (stage, network) in origins.items():
        trained = earlier[stage][network].state_dict()
        for copy in (game.bare, game.averages):
            if name in copy:
                copy[name].load_state_dict(trained)


def stage_batches(task: Task, context: Context, earlier: Mapping[str, Networks], draws: range) -> Iterator[Batch]:
    """This rank's batches of columns on the device, with the outputs of the stages before added."""
    before = [task.system.stages[index] for index in task.system.stages_before(task.index)]
    frozen = [(stage, earlier[stage.name]) for stage in before]
    canvas = task.system.canvas
    for raw in training_batches(
        task.opened_shards(),
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
    """The data columns that a stage reads, and those that feed it."""
    stages = [system.stages[number] for number in (*system.stages_before(index), index)]
    return {name for s in stages for name in s.reads} - {name for s in stages for name in s.writes}
