"""The driver's side of a stage: one `TorchTrainer` that trains it on Ray, and a thread that handles its events."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, assert_never

import ray
import ray.exceptions
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from posegen.cluster.connecting import Workers, on_this_node, threads_per_worker
from posegen.storage.files import StorageFailed, reason_of
from posegen.training import events
from posegen.training.checkpoints import RAY_STATE, Curve
from posegen.training.events import Event, EventQueue
from posegen.training.task import Task
from posegen.training.worker import EVENT, WORKER, OverNodesNetwork, WorkerConfig, run_worker

POLL_EVERY = 0.25  # seconds between two looks at the queue
RESIZE_EVERY = 60.0  # seconds between two checks whether there is room for more workers
CONTROLLER_FAILURES = 3  # failures of Ray's own controller, such as workers that do not start

Show = Callable[[int, dict[str, float]], None]  # (step, terms)
Decide = Callable[[int, dict[str, float]], bool]  # (step, the validation scores) -> whether to train further


class Diverged(ValueError):
    """A stage stopped because a term, a gradient or a score is not finite: a retry would not help."""


@dataclass
class EventLoop:
    """Handles the queue's events in a thread while a stage trains, and once more at its end."""

    queue: Any  # the actor of an EventQueue
    task: Task
    log_rows: Callable[[Curve], None]
    show: Show
    warn: Callable[[str], None]
    say: Callable[[str], None]
    decide: Decide
    diverged: str = ""
    storage_failed: str = ""
    exhausted: str = ""
    _hosts: dict[int, str] = field(default_factory=dict)  # of the workers that have joined, by rank

    def __post_init__(self) -> None:
        folder = self.task.store.fetch(f"{self.task.prefix}/{events.FILE}").parent
        self._before = events.read_failures(folder)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    @property
    def why_ended(self) -> str:
        """Why the stage ended before its last step; "" if it did not."""
        return self.diverged or self.storage_failed or self.exhausted

    def __enter__(self) -> "EventLoop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._drain()

    def _poll(self) -> None:
        while not self._done.wait(POLL_EVERY):
            self._drain()

    def _drain(self) -> None:
        try:
            drained: list[Event] = ray.get(self.queue.drain.remote())
        except ray.exceptions.RayError:  # the cluster is going away; the error that ends the run says so
            return
        for event in drained:
            self.handle(event)

    def handle(self, event: Event) -> None:
        """Handle one event."""
        match event:
            case events.WorkerJoined(world_size, rank, host):
                self._hosts[rank] = host
                if len(self._hosts) == world_size:
                    if world_size > 1:
                        hosts = ", ".join(self._hosts[rank] for rank in sorted(self._hosts))
                        self.say(f"{self.task.stage.name}: {world_size} workers on {hosts}")
                    self._hosts = {}
            case events.AttemptStarted(step, workers, record):
                if record["failures"]:
                    self._keep(record)
                    self.warn(
                        f"{self.task.stage.name} resumes from step {step} with {workers} worker(s); "
                        f"{record['lost_steps']} steps repeated in all"
                    )
            case events.StepReached(step, terms):
                self.show(step, terms)
            case events.RowsLogged(rows):
                try:
                    self.log_rows(rows)
                except Exception as error:  # a tracking failure never ends a training
                    self.warn(f"tracking failed, training continues: {error!r}")
            case events.Validated(step, scores):
                self.queue.answer.remote(step, self.decide(step, scores))
            case events.WarningRaised(message):
                self.warn(message)
            case events.AttemptFailed(failure, record):
                self._hosts = {}  # some of the workers that had joined are lost
                self._keep(record)
                self.warn(
                    f"{self.task.stage.name} was interrupted at step {failure.step} of {self.task.stage.training.steps}"
                    f" ({failure.what}); resuming from the last checkpoint. "
                    f"Interruption {len(record['failures'])} of this stage"
                )
            case events.NonFiniteFound(message):
                self.diverged = message
            case events.RetriesExhausted(reason):
                self.exhausted = reason
            case events.StorageUnavailable(reason):
                self.storage_failed = reason
            case _:
                assert_never(event)

    def _keep(self, record: events.Record) -> None:
        """Write the record. A storage failure must not end the thread: trials wait for answers."""
        try:
            events.write_failures(self.task.store, self.task.prefix, events.merge_records(self._before, record))
        except StorageFailed as error:
            self.warn(f"the interruption is not kept: {error}")


class ForwardEvents(UserCallback):
    """Forwards the workers' reports and errors from Ray's controller to the queue."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_report(self, run_context, metrics, checkpoint) -> None:
        """Queue the event that the workers reported; they all report the same."""
        self._queue.put.remote(metrics[0][EVENT])

    def after_exception(self, run_context, worker_exceptions) -> None:
        """Queue the failure of an attempt."""
        errors = list(worker_exceptions.values())
        dead = [error for error in errors if isinstance(error, ray.exceptions.RayActorError)]
        preempted = any(getattr(error, "preempted", False) for error in dead)
        self._queue.fail_attempt.remote(events.one_line((dead or errors)[0]), preempted, bool(dead))


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
    """Train one stage on Ray Train until its last checkpoint is written.

    Interruptions are recorded in the stage's failures.json.

    Args:
        task: The stage.
        workers: Number of workers. With a range, as many train as there is room for, and their number changes with the
            machines.
        use_gpu: Whether each worker has a GPU.
        log_rows: Receives the curve's rows with each checkpoint.
        show: Receives steps and terms as live progress.
        warn: Receives warnings.
        say: Receives the workers' hosts.
        side_by_side: Stages that train at the same time; the workers of all have equal shares of the cluster's CPUs.
        decide: Returns after each validation whether to continue; the stage ends where it returns False.

    Raises:
        Diverged: A term or score is not finite.
        StorageFailed: The run's storage could not be written for long.
        ValueError: The same failure came back as often as `events.stop_reason` allows.
    """
    queue = ray.remote(num_cpus=0)(EventQueue).options(scheduling_strategy=on_this_node()).remote()  # outlives others
    threads = threads_per_worker(workers.most * side_by_side, use_gpu=use_gpu)
    trainer = _trainer(task, queue, workers, threads, use_gpu)
    loop = EventLoop(queue, task, log_rows, show, warn, say, decide)
    try:
        with loop:
            _fit(trainer, task)
    except ValueError:
        if not loop.why_ended:  # else Ray failed while the stage was about to end
            raise
    finally:
        task.store.remove(f"{task.prefix}/{RAY_STATE}")
    if loop.diverged:
        raise Diverged(loop.diverged)
    if loop.why_ended:
        why = loop.why_ended.rstrip(".")
        raise (StorageFailed if loop.storage_failed else ValueError)(
            f"stage '{task.stage.name}' stopped: {why}. Its checkpoints in {task.store.at(task.prefix)} are good: "
            "rerun the same command to resume from the last one."
        )


def _trainer(task: Task, queue: Any, workers: Workers, threads: int, use_gpu: bool) -> TorchTrainer:
    callbacks: list[UserCallback] = [ForwardEvents(queue)]
    return TorchTrainer(
        run_worker,
        train_loop_config={WORKER: WorkerConfig(task, queue, threads)},
        torch_config=OverNodesNetwork(),
        scaling_config=ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.elastic else workers.most,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads},
            elastic_resize_monitor_interval_s=RESIZE_EVERY,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],  # the loop resumes, not Ray by a name
            storage_path=task.store.at(f"{task.prefix}/{RAY_STATE}"),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=CONTROLLER_FAILURES),
            callbacks=callbacks,
        ),
    )


def _fit(trainer: TorchTrainer, task: Task) -> None:
    try:
        trainer.fit()
    except OSError as error:  # Ray keeps its own state in the run, too
        raise StorageFailed(
            f"{task.store.at(task.prefix)} cannot be written: {reason_of(error)}. Free space there, see that it can be "
            "written to, or write elsewhere (--run). What was written before is whole: rerun the command to resume."
        ) from error
    except ray.train.TrainingFailedError as error:
        raise ValueError(
            f"stage '{task.stage.name}' could not be trained; its checkpoints in {task.store.at(task.prefix)} are "
            f"good: rerun the same command to resume from them.\n{error}"
        ) from error
