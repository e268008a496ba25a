"""The driver's side of a stage that trains elsewhere: it hears of steps, rows, judgements and interruptions.

One TorchTrainer for each stage: the stages of a system in order, what is done is skipped.
"""

import threading
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
from posegen.storage.files import StorageFailed, reason_of
from posegen.training.checkpoints import RAY_STATE, Curve
from posegen.training.events import FILE, Board, Failure, Record, joined, one_line, read_failures, write_failures
from posegen.training.task import Task
from posegen.training.worker import OverNodesNetwork, run_worker

LISTEN_EVERY = 0.25  # seconds between two looks at the board

Show = Callable[[int, dict[str, float]], None]  # (step, terms)
Decide = Callable[[int, dict[str, float]], bool]  # (step, the judge's scores) -> whether to train further


class Listener:
    """Takes the board's messages while a stage trains, and once more at its end."""

    def __init__(
        self,
        board: Any,
        task: Task,
        log_rows: Callable[[Curve], None],
        show: Show,
        warn: Callable[[str], None],
        say: Callable[[str], None],
        decide: Decide,
    ) -> None:
        self.stopped = self.hopeless = self.storage_failed = ""
        self._board, self._task, self._warn, self._say = board, task, warn, say
        self._hosts: dict[int, str] = {}  # of the workers that have joined, by rank
        self._log_rows, self._show, self._decide = log_rows, show, decide
        self._before = read_failures(task.store.fetch(f"{task.place}/{FILE}").parent)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @property
    def why_ended(self) -> str:
        """Why the stage ended before its last step, in words; "" where it did not."""
        return self.stopped or self.storage_failed or self.hopeless

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._take()

    def _listen(self) -> None:
        while not self._done.wait(LISTEN_EVERY):
            self._take()

    def _take(self) -> None:
        try:
            messages = ray.get(self._board.take.remote())
        except ray.exceptions.RayError:  # the cluster is going away; what ends the run says so
            return
        for kind, content in messages:
            getattr(self, f"_on_{kind}")(content)

    def _on_joined(self, content: tuple[int, int, str]) -> None:
        world_size, rank, host = content
        self._hosts[rank] = host
        if world_size > 1 and len(self._hosts) == world_size:
            hosts = ", ".join(self._hosts[each] for each in sorted(self._hosts))
            self._say(f"{self._task.stage.name}: {world_size} workers on {hosts}")
        if len(self._hosts) == world_size:
            self._hosts = {}

    def _on_step(self, content: tuple[int, dict[str, float]]) -> None:
        self._show(*content)

    def _on_rows(self, rows: Curve) -> None:
        try:
            self._log_rows(rows)
        except Exception as error:  # a tracking failure never ends a training
            self._warn(f"tracking failed, training goes on: {error!r}")

    def _on_stopped(self, why: str) -> None:
        self.stopped = why

    def _on_hopeless(self, why: str) -> None:
        self.hopeless = why

    def _on_storage_failed(self, why: str) -> None:
        self.storage_failed = why

    def _on_judged(self, content: tuple[int, dict[str, float]]) -> None:
        self._board.answer.remote(content[0], self._decide(*content))

    def _on_warning(self, text: str) -> None:
        self._warn(text)

    def _on_failed(self, content: tuple[Failure, Record]) -> None:
        failure, record = content
        self._hosts = {}  # of those that had joined, not all live
        self._keep(record)
        at = f"at step {failure.step} of {self._task.stage.training.steps}"
        self._warn(
            f"{self._task.stage.name} was interrupted {at} ({failure.what}); going on from the last checkpoint. "
            f"Interruption {len(record['failures'])} of this stage"
        )

    def _on_begins(self, content: tuple[int, int, Record]) -> None:
        step, workers, record = content
        if record["failures"]:
            self._keep(record)
            self._warn(
                f"{self._task.stage.name} goes on from step {step} with {workers} worker(s); {record['lost_steps']} "
                "steps repeated in all"
            )

    def _keep(self, record: Record) -> None:
        """Storage that fails here must not end the listening: trials wait for answers."""
        try:
            write_failures(self._task.store, self._task.place, joined(self._before, record))
        except StorageFailed as error:
            self._warn(f"the interruption is not kept: {error}")


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
