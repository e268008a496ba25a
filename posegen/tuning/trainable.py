"""One trial as Ray Tune runs it: the stages that it trains, on Ray Train, with a result at each validation.

Training blocks after each validation until Tune has decided. A stopped trial therefore ends by itself, with a
checkpoint, and Ray Train frees its placement group in the ordinary way. When Tune kills a trial's process, that is left
to a cleaner, which was seen to hang with two clusters on one machine. Tune's function API is not used: for a stopped
trial its `tune.report` ends the calling thread instead of returning.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import tune
from ray.util.queue import Queue

from posegen.cluster.resources import Workers
from posegen.storage.files import StorageFailed
from posegen.training.checkpoints import newest_progress, remove_other
from posegen.training.launch import Decide, Diverged, launch_stage
from posegen.training.task import Task
from posegen.training.tracking import no_log
from posegen.tuning.records import Trial

STOP_TIMEOUT = 120.0  # seconds that a stopped trial has to end
STORAGE_FAILED = "storage_failed"  # key of a trial's last result: why the run's storage ended it


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a sweep share. Pickles to their processes."""

    tasks: Callable[[Trial], list[Task]]  # the stages to train, the last one with a validator
    workers: Workers  # of each trial
    use_gpu: bool
    side_by_side: int  # trials that run at once


class TrainingThread:
    """Trains the stages of one trial in a thread and hands over the validation scores one by one."""

    def __init__(self, tasks: Sequence[Task], launch: Callable[[Task, Decide], None]):
        self._tasks, self._launch = tasks, launch
        self._outcomes: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._blocked = self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for task in self._tasks:
                self._launch(task, self._decide)
            self._outcomes.put(("ended", None))
        except Diverged as error:
            self._outcomes.put(("diverged", str(error)))
        except Exception as error:
            self._outcomes.put(("failed", error))

    def _decide(self, step: int, scores: dict[str, float]) -> bool:
        if self._stopping:
            return False
        self._outcomes.put(("validated", {"step": step, "scores": scores}))
        return self._answers.get()

    def next_result(self) -> dict[str, Any]:
        """Train until the next validation or the end and return a result for Tune. Raises the training's own error."""
        if self._blocked:
            self._answers.put(True)
        kind, content = self._outcomes.get()
        self._blocked = kind == "validated"
        if kind == "failed":
            raise content
        if kind == "validated":
            return {**content, "done": content["step"] >= self._tasks[-1].stage.training.steps}
        return {"done": True} | ({"diverged": content} if kind == "diverged" else {})

    def stop(self) -> None:
        """End the training at its last validation and wait until its resources are free."""
        self._stopping, self._blocked = True, False
        self._answers.put(False)
        self._thread.join(STOP_TIMEOUT)


class TrialTrainable(tune.Trainable):
    """One trial in its own process, started, stepped and stopped by Ray Tune. Its config is the start of a `Trial`."""

    def setup(self, config: dict, setup: TrialSetup, events: Queue) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prepare the process; training begins with the first step."""
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self._setup, self._events = setup, events
        self._training: TrainingThread | None = None

    def step(self) -> dict[str, Any]:
        """Train until the next validation.

        A storage failure is a result, not an error: Tune would retry it and then count the trial as failed.
        """
        try:
            if self._training is None:
                self._training = self._begin()
            return self._training.next_result()
        except StorageFailed as error:
            return {"done": True, STORAGE_FAILED: str(error)}

    def _begin(self) -> TrainingThread:
        trial = Trial(**self.config)
        tasks = self._setup.tasks(trial)
        for task in tasks:
            remove_other(task.store, task.prefix, task.config_hash)
        pending = [*(task for task in tasks[:-1] if not is_trained(task)), tasks[-1]]  # the last one has the scores
        return TrainingThread(pending, partial(self._launch, trial.number))

    def _launch(self, number: int, task: Task, decide: Decide) -> None:
        events: Any = self._events.actor  # calls are not waited for
        launch_stage(
            task,
            workers=self._setup.workers,
            use_gpu=self._setup.use_gpu,
            log_rows=no_log,
            show=lambda step, terms: events.put_nowait.remote((number, step)),
            warn=lambda text: events.put_nowait.remote(f"trial {number}: {text}"),
            side_by_side=self._setup.side_by_side,
            decide=decide,
        )

    def cleanup(self) -> None:
        """Stop the training."""
        if self._training is not None:
            self._training.stop()
            self._training = None

    def reset_config(self, new_config: dict) -> bool:
        """Reuse the process for another trial."""
        self.cleanup()
        self.config = new_config
        return True


def is_trained(task: Task) -> bool:
    """Return whether an earlier attempt trained a stage to its last step."""
    progress = newest_progress(task.store, task.prefix)
    return progress is not None and progress.step == task.stage.training.steps
