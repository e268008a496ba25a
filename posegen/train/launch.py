"""One TorchTrainer for each stage: the stages of a system in order, what is done is skipped."""

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posegen.amounts import Workers
from posegen.cluster import threads_per_worker
from posegen.files import StorageFailed
from posegen.train.checkpoint import Curve
from posegen.train.failures import Attempts, Failure, Record, joined, read_failures, verdict, write_failures
from posegen.train.loop import NonFinite, Task, train_stage
from posegen.train.network import OverNodesNetwork

ASK_EVERY = 0.05  # seconds between two looks for the answer to a judgement
LISTEN_EVERY = 0.25  # seconds between two looks at the board
TELL_EVERY = 0.25  # seconds between two steps that the board is told of
RESIZE_EVERY = 60.0  # seconds between two looks whether there is room for more workers
CONTROLLER_FAILURES = 3  # failures of Ray's own controller, such as workers that do not start
RAY_STATE = ".ray"  # in a stage's folder: what Ray Train keeps of itself, which nothing reads

Show = Callable[[int, dict[str, float]], None]  # (step, terms)
Decide = Callable[[int, dict[str, float]], bool]  # (step, the judge's scores) -> whether to train further


class Diverged(ValueError):
    """A stage stopped because a term, a gradient or a score is not a number any more: another try would not help."""


class Board:
    """Where workers and controller leave messages and the driver takes them: an actor without a CPU of its own."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, object]] = []
        self._answers: dict[int, bool] = {}
        self._attempts = Attempts()
        self._given_up = ""

    def post(self, kind: str, content: object) -> None:
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, object]]:
        messages, self._messages = self._messages, []
        return messages

    def answer(self, step: int, goes_on: bool) -> None:
        self._answers[step] = goes_on

    def answered(self, step: int) -> bool | None:
        """The answer to the judgement of a step, given once; None while there is none."""
        return self._answers.pop(step, None)

    def begins(self, step: int, workers: int) -> int:
        """As `Attempts.begins`; the driver is told."""
        careful_until = self._attempts.begins(step, workers)
        self.post("begins", (step, workers, self._attempts.record()))
        return careful_until

    def at(self, step: int) -> None:
        self._attempts.at(step)

    def raised(self, step: int, what: str) -> None:
        self._attempts.raised(step, what)

    def failed(self, what: str, preempted: bool, died: bool) -> None:
        failure = self._attempts.failed(what, preempted=preempted, died=died)
        self.post("failed", (failure, self._attempts.record()))

    def give_up(self, why: str) -> None:
        """No further attempt is made."""
        self._given_up = why

    def verdict(self) -> str:
        """Why it is no use to try again; "" where it is."""
        return self._given_up or verdict(self._attempts.failures)


@dataclass
class OnRay:
    """The loop's context on a Ray Train worker."""

    board: Any
    device: torch.device = field(default_factory=lambda: ray.train.torch.get_device())  # pyright: ignore
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())
    step: int = 0  # that is being carried out
    _careful_until: int = 0
    _told: float = 0.0
    _taken: set[str] = field(default_factory=set)  # nodes that are known to be taken away

    def begins(self, step: int) -> None:
        self.step = step
        self.board.post.remote("joined", (self.world_size, self.rank, socket.gethostname()))
        if self.rank == 0:
            self._careful_until = ray.get(self.board.begins.remote(step, self.world_size))

    def at(self, step: int) -> None:
        """Told by rank 0 now and then; near a step that failed before each one is told before it is carried out."""
        self.step = step
        if self.rank:
            return
        if step <= self._careful_until:
            ray.get(self.board.at.remote(step))
        elif time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self.board.at.remote(step)

    def post(self, step: int, terms: dict[str, float]) -> None:
        self.board.post.remote("step", (step, terms))

    def saved(self, rows: Curve) -> None:
        """The checkpoint goes to the run's own storage: Ray is told of the rows alone, and uploads nothing."""
        ray.train.report({"rows": rows})

    def leaving(self) -> bool:
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new, self._taken = nodes - self._taken, nodes | self._taken
        if new and self.rank == 0:
            self.board.post.remote("warning", f"{len(new)} machine(s) will be taken away: a checkpoint is written now")
        return bool(new)

    def goes_on(self, step: int, scores: dict[str, float]) -> bool:
        ray.get(self.board.post.remote("judged", (step, scores)))
        answer: bool | None = None
        while answer is None:
            time.sleep(ASK_EVERY)
            answer = ray.get(self.board.answered.remote(step))
        return answer


def run_worker(config: dict) -> None:
    """What every worker of a stage runs. A loss that is not finite, a failure that keeps coming back and storage that
    takes nothing for long end the stage on all ranks."""
    torch.set_num_threads(config["threads"])
    board = config["board"]
    logging.getLogger("posegen").addHandler(_Posting(board))
    if hopeless := ray.get(board.verdict.remote()):
        ray.train.report({"hopeless": hopeless})
        return
    context = OnRay(board)
    try:
        train_stage(config["task"], context)
    except NonFinite as error:
        ray.train.report({"stopped": str(error)})
    except StorageFailed as error:
        ray.get(board.give_up.remote(str(error)))
        raise
    except Exception as error:
        ray.get(board.raised.remote(context.step, _one_line(error)))
        raise


class _Posting(logging.Handler):
    """Hands a worker's warnings to the driver: what its storage fails to do, and that it tries again."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        self._board.post.remote("warning", record.getMessage())


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
        self._board.failed.remote(_one_line((dead or errors)[0]), preempted, bool(dead))


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


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

    Raises Diverged where a term or score stopped being finite, ValueError where the same failure came back as often as
    `failures.verdict` allows.
    """
    board = _board()
    threads = threads_per_worker(workers.most * side_by_side, use_gpu=use_gpu)
    callbacks: list[UserCallback] = [Reports(board)]
    trainer = TorchTrainer(
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
    try:
        with _Listener(board, task, log_rows, show, warn, say, decide) as listener:
            _fit(trainer, task)
    finally:
        task.store.remove(f"{task.place}/{RAY_STATE}")
    if listener.stopped:
        raise Diverged(listener.stopped)
    if listener.hopeless:
        why = listener.hopeless.rstrip(".")
        raise ValueError(
            f"stage '{task.stage.name}' stopped: {why}. Its checkpoints in {task.store.at(task.place)} are good, and "
            "the same command goes on from the last one."
        )


def _board() -> Any:
    """On the driver's own node: it must outlive every other."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


def _share(threads: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}


def _fit(trainer: TorchTrainer, task: Task) -> None:
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise ValueError(
            f"stage '{task.stage.name}' could not be trained; its checkpoints in {task.store.at(task.place)} are good, "
            f"and the same command goes on from them.\n{error}"
        ) from error


class _Listener:
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
        self.stopped = self.hopeless = ""
        self._board, self._task, self._warn, self._say = board, task, warn, say
        self._hosts: dict[int, str] = {}  # of the workers that have joined, by rank
        self._log_rows, self._show, self._decide = log_rows, show, decide
        self._before = read_failures(task.folder)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "_Listener":
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
        self._log_rows(rows)

    def _on_stopped(self, why: str) -> None:
        self.stopped = why

    def _on_hopeless(self, why: str) -> None:
        self.hopeless = why

    def _on_judged(self, content: tuple[int, dict[str, float]]) -> None:
        self._board.answer.remote(content[0], self._decide(*content))

    def _on_warning(self, text: str) -> None:
        self._warn(text)

    def _on_failed(self, content: tuple[Failure, Record]) -> None:
        failure, record = content
        self._keep(record)
        at = f"at step {failure.step} of {self._task.stage.steps}"
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
        write_failures(self._task.store, self._task.place, joined(self._before, record))
