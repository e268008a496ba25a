"""One trial as Ray Tune runs it: the stages that it trains, on Ray Train, with a result at each validation.

Training blocks after each validation until Tune has decided. A stopped trial therefore ends by itself, with a
checkpoint, and Ray Train frees its placement group in the ordinary way. When Tune kills a trial's process, that is left
to a cleaner, which was seen to hang with two clusters on one machine. Tune's function API is not used: for a stopped
trial its `tune.report` ends the calling thread instead of returning.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray import tune
from ray.util.queue import Queue

from posegen.cluster.connecting import Workers
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import EVERY, Uint8Image, metrics_of
from posegen.evaluation.scoring import result_scores, synthesized
from posegen.inference import Trained
from posegen.report.panels import result_images
from posegen.stage import Networks, System
from posegen.storage.files import StorageFailed, write_whole
from posegen.storage.store import Store
from posegen.training.checkpoints import newest_progress, remove_other
from posegen.training.launch import Decide, Diverged, launch_stage
from posegen.training.task import Task
from posegen.training.tracking import no_log
from posegen.tuning.results import Trial

SAMPLES = 8  # fixed pairs whose images every trial keeps


@dataclass(frozen=True)
class PairsValidator:
    """Mean scores over listed pairs of one split, on one worker: a `training.loop.Validator`. Pickles to workers.

    Writes below `prefix`: samples.png, the results of the fixed pairs side by side, at every validation; pairs.parquet,
    one row per pair with all metrics, at the last one.
    """

    system: System
    store: Store  # the run
    cache_bytes: int | None  # of shards on each node
    split: str
    pairs: tuple[int, ...]
    metrics: tuple[str, ...]  # scored at every validation; the last one scores all
    at: tuple[int, ...]  # steps
    prefix: str = ""  # of the trial's folder within the run

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        """Score the networks. Raises ValueError if a result has non-finite values, or no pair has a score."""
        trained, shards = Trained(self.system, networks, device), _open_shards(self.store, self.cache_bytes)
        last = step == max(self.at)
        wanted = metrics_of(self.system) if last else self.metrics
        table = result_scores(trained, shards, self.pairs, split=self.split, metrics=wanted)
        broken = int((~table["finite"]).sum())
        if broken:
            what = "generated images" if self.system.image else "predicted poses"
            raise ValueError(f"{broken} of {len(self.pairs)} {what} have values that are not numbers")
        batches = synthesized(trained, shards, sample_pairs(self.pairs), split=self.split)
        samples = [image for raw, columns in batches for image in result_images(self.system, raw, columns)]
        encoded = cv2.imencode(".png", cv2.cvtColor(np.concatenate(samples, axis=1), cv2.COLOR_RGB2BGR))[1]
        self._write("samples.png", lambda path: path.write_bytes(encoded.tobytes()))
        if last:
            self._write("pairs.parquet", partial(pq.write_table, pa.table(table)))
        known = {name: table[name][np.isfinite(table[name])] for name in wanted}
        for name in self.metrics:
            if not known[name].size:
                raise ValueError(f"no pair has a {name}: {EVERY[name].undefined}")
        return {name: float(values.mean()) for name, values in known.items() if values.size}

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.store.folder / self.prefix / name, write)
        self.store.publish(f"{self.prefix}/{name}")


@lru_cache(maxsize=1)
def _open_shards(store: Store, cache_bytes: int | None) -> Shards:
    return Shards.of(store, limit=cache_bytes)


def sample_pairs(pairs: Sequence[int]) -> list[int]:
    """Return the fixed pairs: `SAMPLES` of the validation pairs, evenly along their list, so of many people."""
    count = min(SAMPLES, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def read_samples(path: Path, width: int) -> list[Uint8Image]:
    """Read the images of a samples.png, each `width` pixels wide, RGB."""
    whole = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert whole is not None, f"{path} cannot be read"
    images = cv2.cvtColor(whole, cv2.COLOR_BGR2RGB).astype(np.uint8)
    return [images[:, left : left + width] for left in range(0, images.shape[1], width)]


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
