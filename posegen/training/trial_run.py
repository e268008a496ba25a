"""One trial of a sweep as Ray Tune runs it: the stages that it touches, trained on Ray Train, judged on the way.

The training waits after each judgement until Tune has decided. So a trial that is stopped or paused ends by itself,
with a checkpoint, and Ray Train frees its placement group in the ordinary way. (Where Tune kills a trial's process,
that is left to a cleaner, which was seen to hang where two clusters share a machine.)
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from posegen.amounts import Workers
from posegen.storage.files import StorageFailed
from posegen.training.checkpoints import newest_name, newest_progress, remove_other, take_over
from posegen.training.launch import Decide, Diverged, launch_stage
from posegen.training.task import Task
from posegen.training.tracking import no_log
from posegen.training.trials import Settings, Trial

STOPPING = 120.0  # seconds that a stopped trial has to end
STORAGE_FAILED = "storage_failed"  # in a trial's last result: why the run's storage ended it

TasksOf = Callable[[Trial, Settings], list[Task]]


class Ledger:
    """What trials know of themselves, and what they say of their progress: an actor without a CPU of its own."""

    def __init__(self) -> None:
        self._trials: dict[str, Trial] = {}  # by Tune's id
        self._steps: dict[int, int] = {}
        self._warnings: list[str] = []

    def enter(self, tune_id: str, trial: Trial) -> None:
        self._trials[tune_id] = trial

    def trial(self, tune_id: str) -> Trial:
        return self._trials[tune_id]

    def reached(self, number: int, step: int) -> None:
        self._steps[number] = step

    def steps(self) -> dict[int, int]:
        return dict(self._steps)

    def warn(self, text: str) -> None:
        self._warnings.append(text)

    def take_warnings(self) -> list[str]:
        taken, self._warnings = self._warnings, []
        return taken


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep share. Pickles to their processes."""

    tasks: TasksOf  # a trial and its settings -> the stages to train, the last one with a judge
    workers: Workers  # of each trial
    use_gpu: bool
    side_by_side: int  # trials that run at once


class Training:
    """The stages of one trial, trained in a thread; the judge's scores are taken from it one by one."""

    def __init__(self, tasks: Sequence[Task], launch: Callable[[Task, Decide], None]):
        self._tasks, self._launch = tasks, launch
        self._outcomes: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._asked = self._over = False
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
        if self._over:
            return False
        self._outcomes.put(("judged", {"step": step, "scores": scores}))
        return self._answers.get()

    def next_result(self) -> dict[str, Any]:
        """Lets the training go on until it is judged again, or ends: a result for Tune. Raises what made it fail."""
        if self._asked:
            self._answers.put(True)
        kind, content = self._outcomes.get()
        self._asked = kind == "judged"
        if kind == "failed":
            raise content
        if kind == "judged":
            return {**content, "done": content["step"] >= self._tasks[-1].stage.training.steps}
        return {"done": True} | ({"diverged": content} if kind == "diverged" else {})

    def stop(self) -> None:
        """Ends the training where it was judged last, and waits until its resources are free again."""
        self._over, self._asked = True, False
        self._answers.put(False)
        self._thread.join(STOPPING)


class TrialRun(tune.Trainable):
    """One trial, in a process of its own: what Ray Tune starts, asks for results, pauses and stops."""

    def setup(self, config: dict, job: Job, ledger: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self._job, self._ledger = job, ledger
        self._training: Training | None = None
        self._donor: dict[str, Any] | None = None
        self._taken_from: int | None = None

    def step(self) -> dict[str, Any]:
        """Trains until the next judgement. Begins only here: what Tune restores comes between `setup` and this.

        Storage that fails is a result, not an error: Tune would try again, and then count the trial as failed.
        """
        try:
            if self._training is None:
                self._training = self._begin()
            result = self._training.next_result()
        except StorageFailed as error:
            result = {"done": True, STORAGE_FAILED: str(error)}
        taken, self._taken_from = self._taken_from, None
        return result | ({} if taken is None else {"taken_from": taken})

    def _begin(self) -> Training:
        trial: Trial = ray.get(self._ledger.trial.remote(self.trial_id))
        settings = dict(self.config)
        tasks = self._job.tasks(trial, settings)
        last = tasks[-1]
        if self._donor is not None:
            take_over(last.store, self._donor["checkpoint"], last.place, last.recipe)
            self._taken_from, self._donor = self._donor["trial"], None
        for task in tasks:
            remove_other(task.store, task.place, task.recipe)
        return Training([task for task in tasks if not _finished(task, last)], partial(self._launch, trial))

    def _launch(self, trial: Trial, task: Task, decide: Decide) -> None:
        launch_stage(
            task,
            workers=self._job.workers,
            use_gpu=self._job.use_gpu,
            log_rows=no_log,
            show=lambda step, terms: self._ledger.reached.remote(trial.number, step),
            warn=lambda text: self._ledger.warn.remote(f"trial {trial.number}: {text}"),
            side_by_side=self._job.side_by_side,
            decide=decide,
        )

    def cleanup(self) -> None:
        if self._training is not None:
            self._training.stop()
            self._training = None

    def reset_config(self, new_config: dict) -> bool:
        """Another trial, or other settings, in the same process."""
        self.cleanup()
        self.config, self._donor = new_config, None
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The place within the run of the trial's real checkpoint, for another one to go on from it (PBT)."""
        trial: Trial = ray.get(self._ledger.trial.remote(self.trial_id))
        last = self._job.tasks(trial, dict(self.config))[-1]
        content = {"trial": trial.number, "checkpoint": f"{last.place}/{newest_name(last.store, last.place)}"}
        (Path(checkpoint_dir) / "where.json").write_text(json.dumps(content))

    def load_checkpoint(self, checkpoint: dict | str | None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Another trial's checkpoint is taken over when training begins; its own is in its own folder anyway."""
        where = json.loads((Path(str(checkpoint)) / "where.json").read_text())
        trial: Trial = ray.get(self._ledger.trial.remote(self.trial_id))
        if where["trial"] != trial.number:
            self._donor = where


def _finished(task: Task, last: Task) -> bool:
    """Whether an earlier attempt has trained this stage to its end. The last one is always asked for its scores."""
    if task is last:
        return False
    progress = newest_progress(task.store, task.place)
    return progress is not None and progress.step == task.stage.training.steps
