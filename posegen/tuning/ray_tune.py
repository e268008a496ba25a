"""Run many trials on Ray Tune: suggested by a search algorithm, stopped early by a scheduler, recorded one by one.

A trial's own process takes no CPU, so none waits for one that another trial's training holds; `side_by_side` limits how
many run at once. Ray Tune's state on disk is not used: the trials' records say what was done, and search algorithm and
scheduler are told of them before a sweep resumes.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, Protocol, runtime_checkable

import ray.exceptions
from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util.queue import Queue

from posegen.cluster.connecting import on_this_node
from posegen.storage.files import StorageFailed, reason_of
from posegen.tuning.results import Trial, TrialFolder
from posegen.tuning.space import SearchAlgorithm
from posegen.tuning.trainable import STORAGE_FAILED, TrialSetup, TrialTrainable

VALIDATIONS = 4  # per trial, at even distances
REDUCTION = 2  # ASHA: the better half continues at each rung
RETRIES = 1  # of a whole trial, after those of its stages
STATE_FOLDER = ".tune"  # in the run: Ray Tune's own state, removed when the trials have ended
POLL_EVERY = 1.0  # seconds between two looks at the trials' progress
SCORES = "scores/"  # prefix of the scores in Tune's flat results

SchedulerKind = Literal["asha", "none"]

# Turn off Ray Tune's own loggers, its demands on every result, and its handling of Ctrl-C.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a block for each failed trial at any verbosity
}


def validation_steps(budget: int) -> list[int]:
    """Return the steps after which a trial is validated: each quarter of its budget."""
    return sorted({-(-budget * quarter // VALIDATIONS) for quarter in range(1, VALIDATIONS + 1)})


def rungs(budget: int) -> list[int]:
    """Return the steps at which ASHA may stop a trial: a quarter and a half of the budget."""
    first = validation_steps(budget)[0]
    return [first * REDUCTION**power for power in range(VALIDATIONS) if first * REDUCTION**power < budget]


def make_scheduler(kind: SchedulerKind, metric: str, *, higher: bool, budget: int) -> TrialScheduler:
    """Return ASHA (Li et al., 2018) on a metric that is better when `higher`, or FIFO: no early stopping."""
    if kind == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric=SCORES + metric,
        mode="max" if higher else "min",
        max_t=budget,
        grace_period=validation_steps(budget)[0],
        reduction_factor=REDUCTION,
    )


def replay(scheduler: TrialScheduler, trial: Trial, tune_id: str = "") -> None:
    """Report the validations of an earlier process to a scheduler, which knows a resumed trial as `tune_id`.

    Without them, ASHA would compare a resumed trial at a rung that it has passed, by its next score.
    """
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id=tune_id or f"earlier-{trial.number}")
    if not tune_id:
        scheduler.on_trial_add(controller, stand_in)
    for row in trial.validations:
        scores = {SCORES + name: value for name, value in row.items() if name != "step"}
        scheduler.on_trial_result(controller, stand_in, scores | {"step": row["step"]})


@runtime_checkable
class TrialCallback(Protocol):
    """Follows the trials on the driver."""

    def on_trial_update(self, trial: Trial) -> None:
        """Handle a changed record."""
        ...

    def on_steps(self, reached: Mapping[int, int]) -> None:
        """Handle the steps reached, by trial number."""
        ...

    def on_warning(self, text: str) -> None:
        """Handle a warning of a trial."""
        ...


class WaitingTrials(Searcher):
    """Ray Tune's searcher over the waiting trials, in order. Those without settings get them when their turn comes."""

    def __init__(self, waiting: Sequence[Trial], algorithm: SearchAlgorithm) -> None:
        super().__init__()
        self._waiting, self._algorithm = list(waiting), algorithm

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config."""
        if not self._waiting:
            return Searcher.FINISHED
        trial = self._waiting.pop(0)
        settings = trial.settings or self._algorithm.suggest(trial.number)
        return {"number": trial.number, "seed": trial.seed, "settings": dict(settings)}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Do nothing: the recorder tells the search algorithm, with the trial's record."""

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its parts for a restoration that is not used here

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its trials' records."""

    def restore(self, checkpoint_path: str) -> None:
        """Raise NotImplementedError: a sweep resumes from its trials' records."""
        raise NotImplementedError("a sweep resumes from its trials' records")


@dataclass
class TrialRecorder(tune.Callback):
    """Keeps every trial's record on the driver and informs search algorithm, scheduler and callback.

    If the run's storage fails, `storage_failed` says why; trials that have not ended resume with the next command.
    """

    trials: dict[int, Trial]  # by number
    folder: TrialFolder
    algorithm: SearchAlgorithm
    scheduler: TrialScheduler
    callback: TrialCallback
    budget: int
    storage_failed: str = ""
    _since: dict[int, float] = field(default_factory=dict)

    def __getstate__(self) -> dict:
        return {}  # as with the searcher

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record that a trial runs; the scheduler learns once what it reached in an earlier process."""
        number = trial.config["number"]
        if number not in self._since:
            replay(self.scheduler, self.trials[number], trial.trial_id)
        self._since[number] = time.monotonic()
        self._keep(replace(self.trials[number], settings=dict(trial.config["settings"]), state="running", why=""))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Record a validation, or that the storage failed."""
        record = self._timed(trial)
        if STORAGE_FAILED in result:  # it waits for a later command; recorded only if that is possible at once
            self.storage_failed = self.storage_failed or result[STORAGE_FAILED]
            self.trials[record.number] = waiting = replace(record, state="waiting")
            with suppress(StorageFailed):
                self.folder.write(waiting, patience=0.0)
            self.callback.on_trial_update(waiting)
        elif "step" in result:
            self._keep(record.with_validation({"step": result["step"], **result["scores"]}))
        else:
            self._keep(record)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record that a trial finished, was stopped or diverged."""
        record, last = self._timed(trial), trial.last_result or {}
        if STORAGE_FAILED in last:
            return
        if "diverged" in last:
            self._end(replace(record, state="diverged", why=last["diverged"]))
        else:
            self._end(replace(record, state="finished" if record.step >= self.budget else "stopped"))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Record that a trial failed, with the last line of its error."""
        lines = [line for line in str(trial.get_error() or "").splitlines() if line.strip()]
        self._end(replace(self._timed(trial), state="failed", why=lines[-1] if lines else "no reason was given"))

    def _timed(self, trial: Any) -> Trial:
        """The record with the time since the last event added."""
        number, now = trial.config["number"], time.monotonic()
        passed = now - self._since.get(number, now)
        self._since[number] = now
        record = self.trials[number]
        return replace(record, seconds=round(record.seconds + passed, 3))

    def _end(self, record: Trial) -> None:
        self._keep(record)
        self.algorithm.observe(record)

    def _keep(self, record: Trial) -> None:
        self.trials[record.number] = record
        try:
            self.folder.write(record)
        except StorageFailed as error:
            self.storage_failed = self.storage_failed or str(error)
            return
        self.callback.on_trial_update(record)


class StorageStopper(Stopper):
    """Stops all trials when the run's storage fails."""

    def __init__(self, recorder: TrialRecorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the recorder saw the storage fail."""
        return bool(self._recorder.storage_failed)

    def __getstate__(self) -> dict:
        return {}  # as with the searcher


def run_trials(
    waiting: Sequence[Trial],
    ended: Sequence[Trial],
    *,
    algorithm: SearchAlgorithm,
    scheduler: TrialScheduler,
    budget: int,
    setup: TrialSetup,
    folder: TrialFolder,
    callback: TrialCallback,
) -> None:
    """Run the waiting trials, `setup.side_by_side` at once, until all have ended. Ray must be initialised.

    Args:
        waiting: Trials to run, at least one; those without settings get them when their turn comes.
        ended: Earlier trials, which search algorithm and scheduler learn from.
        algorithm: Suggests settings.
        scheduler: Stops trials early.
        budget: Steps of the last stage after which a trial is finished.
        setup: What all trials share.
        folder: Where their records are written.
        callback: Follows the trials.

    Raises:
        StorageFailed: The run's storage failed for long; trials that ran resume with the next command.
    """
    for trial in ended:
        algorithm.observe(trial)
        replay(scheduler, trial)
    recorder = TrialRecorder({t.number: t for t in waiting}, folder, algorithm, scheduler, callback, budget)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})
    trainable = tune.with_parameters(TrialTrainable, setup=setup, events=events)
    folder.store.remove(STATE_FOLDER)
    with _quiet_tune(), _forwarding(events, callback):
        tuner = Tuner(
            tune.with_resources(trainable, PlacementGroupFactory([{"memory": 1}])),
            tune_config=TuneConfig(
                search_alg=WaitingTrials(waiting, algorithm),
                scheduler=scheduler,
                num_samples=len(waiting),
                max_concurrent_trials=setup.side_by_side,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="trials",
                storage_path=folder.store.at(STATE_FOLDER),
                verbose=0,
                callbacks=[recorder],
                stop=StorageStopper(recorder),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        fit(tuner, recorder)


def fit(tuner: Tuner, recorder: TrialRecorder) -> None:
    """Run Tune. Raises StorageFailed if the run's storage failed, for the trials' records or Tune's own state."""
    store = recorder.folder.store
    try:
        tuner.fit()
    except OSError as error:
        recorder.storage_failed = recorder.storage_failed or (
            f"{store.at(STATE_FOLDER)} cannot be written: {reason_of(error)}. Check that the storage responds; rerun "
            "the same command to resume from the trials' checkpoints."
        )
    store.remove(STATE_FOLDER)
    if recorder.storage_failed:
        raise StorageFailed(recorder.storage_failed)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence Ray Tune while trials run."""
    os.environ.update(TUNE_ENVIRONMENT)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _forwarding(events: Queue, callback: TrialCallback) -> Iterator[None]:
    """Forward the trials' steps, (number, step), and warnings, strings, to the callback while they run."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_EVERY):
            try:
                taken = events.get_nowait_batch(events.qsize())
            except ray.exceptions.RayError:  # the cluster is going away; what ends the run says so
                return
            callback.on_steps(dict(event for event in taken if not isinstance(event, str)))
            for warning in [event for event in taken if isinstance(event, str)]:
                callback.on_warning(warning)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
