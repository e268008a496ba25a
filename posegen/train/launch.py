"""One TorchTrainer for each stage: the stages of a system in order, what is done is skipped."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.report_config import CheckpointUploadMode

from posegen.cluster import cpus_per_worker, resources
from posegen.train.checkpoint import Curve
from posegen.train.loop import NonFinite, Task, train_stage

ASK_EVERY = 0.05  # seconds between two looks for the answer to a judgement
LISTEN_EVERY = 0.25  # seconds between two looks at the board
RETRIES = 3  # worker failures that a stage survives: each repeats at most one checkpoint interval

Show = Callable[[int, dict[str, float]], None]  # (step, terms)
Decide = Callable[[int, dict[str, float]], bool]  # (step, the judge's scores) -> whether to train further


class Diverged(ValueError):
    """A stage stopped because a term, a gradient or a score is not a number any more: another try would not help."""


class Board:
    """Where workers and controller leave messages and the driver takes them: an actor without a CPU of its own."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, object]] = []
        self._answers: dict[int, bool] = {}

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


@dataclass
class OnRay:
    """The loop's context on a Ray Train worker."""

    board: Any
    device: torch.device = field(default_factory=lambda: ray.train.torch.get_device())  # pyright: ignore
    rank: int = field(default_factory=lambda: ray.train.get_context().get_world_rank())
    world_size: int = field(default_factory=lambda: ray.train.get_context().get_world_size())

    def post(self, step: int, terms: dict[str, float]) -> None:
        self.board.post.remote("step", (step, terms))

    def saved(self, checkpoint: Path | None, rows: Curve) -> None:
        """The folder is in the run's storage already, so Ray is told of it and uploads nothing."""
        ray.train.report(
            {"rows": rows},
            checkpoint=Checkpoint(str(checkpoint)) if checkpoint else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def goes_on(self, step: int, scores: dict[str, float]) -> bool:
        ray.get(self.board.post.remote("judged", (step, scores)))
        answer: bool | None = None
        while answer is None:
            time.sleep(ASK_EVERY)
            answer = ray.get(self.board.answered.remote(step))
        return answer


def run_worker(config: dict) -> None:
    """What every worker of a stage runs. A loss that is not finite ends the stage on all ranks, without a retry."""
    torch.set_num_threads(config["threads"])
    try:
        train_stage(config["task"], OnRay(config["board"]))
    except NonFinite as error:
        ray.train.report({"stopped": str(error)})


class Reports(UserCallback):
    """On the controller: hands the curve's rows to tracking, and tells the driver what it must know."""

    def __init__(self, board: Any, log_rows: Callable[[Curve], None]) -> None:
        self._board, self._log_rows = board, log_rows

    def after_report(self, run_context, metrics, checkpoint) -> None:
        if "stopped" in metrics[0]:
            self._board.post.remote("stopped", metrics[0]["stopped"])
            return
        try:
            self._log_rows(metrics[0]["rows"])
        except Exception as error:  # a tracking failure never ends a training
            self._board.post.remote("warning", f"tracking failed, training goes on: {error!r}")

    def after_exception(self, run_context, worker_exceptions) -> None:
        for rank, error in worker_exceptions.items():
            self._board.post.remote(
                "warning", f"worker {rank} failed: {_first_line(error)}; going on from the last checkpoint"
            )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def launch_stage(
    task: Task,
    *,
    workers: int,
    use_gpu: bool,
    log_rows: Callable[[Curve], None],
    show: Show,
    warn: Callable[[str], None],
    side_by_side: int = 1,
    decide: Decide = lambda step, scores: True,
) -> None:
    """Trains one stage on Ray Train and returns when its last checkpoint is written.

    The workers take an even share of the cluster's CPUs, `side_by_side` such stages having room at once. `decide` says
    after each judgement of the task's judge whether to train further; where it says no, the stage ends there.

    Raises Diverged where a term or score stopped being finite, ValueError where the workers failed more than `RETRIES`
    times.
    """
    board = ray.remote(num_cpus=0)(Board).remote()
    threads = cpus_per_worker(workers * side_by_side, resources()[0])
    callbacks: list[UserCallback] = [Reports(board, log_rows)]
    (task.folder / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)  # the loop resumes, not Ray's name match
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"task": task, "board": board, "threads": threads},
        torch_config=TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=_share(threads, use_gpu)
        ),
        run_config=RunConfig(
            name=task.stage.name,
            storage_path=str(task.folder.parent),
            failure_config=FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=None),
            callbacks=callbacks,
        ),
    )
    with _Listener(board, show, warn, decide) as listener:
        _fit(trainer, task)
    if listener.stopped:
        raise Diverged(listener.stopped)


def _share(threads: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}


def _fit(trainer: TorchTrainer, task: Task) -> None:
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise ValueError(
            f"stage '{task.stage.name}' failed more than {RETRIES} times and stopped; its checkpoints in {task.folder} "
            f"are good, and the same command goes on from them.\n{error}"
        ) from error


class _Listener:
    """Takes the board's messages while a stage trains, and once more at its end."""

    def __init__(self, board: Any, show: Show, warn: Callable[[str], None], decide: Decide) -> None:
        self.stopped = ""
        self._board, self._show, self._warn, self._decide = board, show, warn, decide
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
            if kind == "step":
                self._show(*content)
            elif kind == "stopped":
                self.stopped = content
            elif kind == "judged":
                self._board.answer.remote(content[0], self._decide(*content))
            elif kind == "warning":
                self._warn(content)
