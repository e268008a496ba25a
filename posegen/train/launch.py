"""One TorchTrainer for each stage: the stages of a system in order, what is done is skipped."""

import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from posegen.amounts import Workers
from posegen.cluster import on_this_node, threads_per_worker
from posegen.files import StorageFailed, reason_of
from posegen.train.board import Board
from posegen.train.checkpoint import RAY_STATE, Curve
from posegen.train.failures import one_line
from posegen.train.listener import Decide, Listener, Show
from posegen.train.network import OverNodesNetwork
from posegen.train.task import Task
from posegen.train.worker import run_worker

__all__ = ["Decide", "Diverged", "launch_stage"]

RESIZE_EVERY = 60.0  # seconds between two looks whether there is room for more workers
CONTROLLER_FAILURES = 3  # failures of Ray's own controller, such as workers that do not start


class Diverged(ValueError):
    """A stage stopped because a term, a gradient or a score is not a number any more: another try would not help."""


class Reports(UserCallback):
    """On the controller: hands the curve's rows, and what the driver must know, to the board."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_report(self, run_context, metrics, checkpoint) -> None:
        for kind, content in metrics[0].items():
            self._board.post.remote(kind, content)

    def after_exception(self, run_context, worker_exceptions) -> None:
        errors = list(worker_exceptions.values())
        dead = [error for error in errors if isinstance(error, ray.exceptions.RayActorError)]
        preempted = any(getattr(error, "preempted", False) for error in dead)
        self._board.failed.remote(one_line((dead or errors)[0]), preempted, bool(dead))


def launch_stage(
    task: Task,
    *,
    workers: Workers,
    use_gpu: bool,
    log_rows: Callable[[Curve], None],
    show: Show,
    warn: Callable[[str], None],
    say: Callable[[str], None] = lambda text: None,
    side_by_side: int = 1,
    decide: Decide = lambda step, scores: True,
) -> None:
    """Trains one stage on Ray Train and returns when its last checkpoint is written.

    The workers take an even share of the cluster's CPUs, `side_by_side` such stages having room at once. With a range
    of workers, as many train as there is room for; what is lost or comes changes their number. `decide` says after each
    judgement of the task's judge whether to train further; where it says no, the stage ends there. What interrupted it
    is kept in the stage's failures.json.

    Raises Diverged where a term or score stopped being finite, StorageFailed where the run's storage took nothing for
    long, ValueError where the same failure came back as often as `failures.verdict` allows.
    """
    board = _board()
    trainer = _trainer(task, board, workers, threads_per_worker(workers.most * side_by_side, use_gpu=use_gpu), use_gpu)
    listener = Listener(board, task, log_rows, show, warn, say, decide)
    try:
        with listener:
            _fit(trainer, task)
    except ValueError:
        if not listener.why_ended:  # else Ray failed where it was about to end
            raise
    finally:
        task.store.remove(f"{task.place}/{RAY_STATE}")
    if listener.stopped:
        raise Diverged(listener.stopped)
    if listener.why_ended:
        why = listener.why_ended.rstrip(".")
        raise (StorageFailed if listener.storage_failed else ValueError)(
            f"stage '{task.stage.name}' stopped: {why}. Its checkpoints in {task.store.at(task.place)} are good, and "
            "the same command goes on from the last one."
        )


def _trainer(task: Task, board: Any, workers: Workers, threads: int, use_gpu: bool) -> TorchTrainer:
    callbacks: list[UserCallback] = [Reports(board)]
    return TorchTrainer(
        run_worker,
        train_loop_config={"task": task, "board": board, "threads": threads},
        torch_config=OverNodesNetwork(),
        scaling_config=ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.elastic else workers.most,
            use_gpu=use_gpu,
            resources_per_worker=_share(threads, use_gpu),
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],  # the loop resumes, not Ray by a name
            storage_path=task.store.at(f"{task.place}/{RAY_STATE}"),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=CONTROLLER_FAILURES),
            callbacks=callbacks,
        ),
    )


def _board() -> Any:
    """On the driver's own node: it must outlive every other."""
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=on_this_node()).remote()


def _share(threads: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}


def _fit(trainer: TorchTrainer, task: Task) -> None:
    try:
        trainer.fit()
    except OSError as error:  # what Ray keeps of itself lies in the run too
        raise StorageFailed(
            f"{task.store.at(task.place)} cannot be written: {reason_of(error)}. Free space there, see that it can be "
            "written to, or write elsewhere (--run). What was written before is whole, and the same command goes on."
        ) from error
    except ray.train.TrainingFailedError as error:
        raise ValueError(
            f"stage '{task.stage.name}' could not be trained; its checkpoints in {task.store.at(task.place)} are good, "
            f"and the same command goes on from them.\n{error}"
        ) from error
