"""Many trials on Ray Tune: proposed by a chooser, stopped early by a scheduler, recorded one by one.

A trial's own process takes no CPU, so that none waits for one that another's training holds: how many run at once is
said by `side_by_side`.

Ray Tune's own state on disk is not used: the trials' files say what was done, and the chooser and the scheduler are
told of them before a sweep goes on.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, Protocol, runtime_checkable

import ray
import ray.exceptions
from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher
from ray.tune.stopper import Stopper

from posegen.cluster.connecting import on_this_node
from posegen.cluster.resources import memory_per_slot
from posegen.storage.files import StorageFailed, reason_of
from posegen.training.choosers import Chooser
from posegen.training.spaces import Space
from posegen.training.trial_run import STORAGE_FAILED, Job, Ledger, TrialRun
from posegen.training.trials import Trial, TrialFolder

QUARTERS = 4  # a trial is judged this often
REDUCTION = 2  # ASHA: the better half goes on at each rung
RETRIES = 1  # of a whole trial, after those of its stages
TUNES_OWN = ".tune"  # in the run: what Ray Tune keeps, for as long as trials run
WATCHED_EVERY = 1.0  # seconds between two looks at the trials' progress
SCORES = "scores/"  # before the names of scores in Tune's flat results

Kind = Literal["asha", "none", "pbt"]

# Ray Tune's habits that would get in the way: loggers of its own, demands on every result, Ctrl-C kept to itself.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a block for each failed trial, however quiet it is told to be
}


def judged_steps(budget: int) -> list[int]:
    """When a trial is judged: at each quarter of its budget in steps."""
    return sorted({-(-budget * quarter // QUARTERS) for quarter in range(1, QUARTERS + 1)})


def rungs(budget: int) -> list[int]:
    """The steps at which ASHA may stop a trial: a quarter and a half of the budget."""
    first = judged_steps(budget)[0]
    return [first * REDUCTION**power for power in range(QUARTERS) if first * REDUCTION**power < budget]


@dataclass(frozen=True)
class Search:
    """What trials are judged by, and how they are stopped."""

    space: Space
    metrics: Sequence[tuple[str, bool]]  # and whether higher is better; the first one rules
    scheduler: Kind
    budget: int  # steps of the last stage


def scheduler_for(search: Search) -> TrialScheduler:
    """ASHA (Li et al., 2018), population based training (Jaderberg et al., 2017), or nobody who stops a trial."""
    first, (name, higher) = judged_steps(search.budget)[0], search.metrics[0]
    direction = "max" if higher else "min"
    if search.scheduler == "asha":
        return ASHAScheduler(
            time_attr="step",
            metric=SCORES + name,
            mode=direction,
            max_t=search.budget,
            grace_period=first,
            reduction_factor=REDUCTION,
        )
    if search.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="step",
            metric=SCORES + name,
            mode=direction,
            perturbation_interval=first,
            hyperparam_mutations=dict(search.space.mutations()),
            custom_explore_fn=partial(_within, search.space),
            require_attrs=False,
        )
    return FIFOScheduler()


def _within(space: Space, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that PBT's factors of 0.8 and 1.2 took out of their ranges, brought back."""
    return {path: space.nearest(path, value) for path, value in settings.items()}


@runtime_checkable
class Watch(Protocol):
    """Who is told of a trial whenever its record changes, and of the steps reached, on the driver."""

    def changed(self, trial: Trial) -> None: ...
    def steps(self, reached: Mapping[int, int]) -> None: ...
    def warn(self, text: str) -> None: ...


class Proposals(Searcher):
    """Ray Tune's way of asking for settings: the trials that wait, one after another, chosen when their turn comes."""

    def __init__(self, waiting: Sequence[Trial], chooser: Chooser) -> None:
        super().__init__()
        self.given: dict[str, Trial] = {}  # by Tune's id
        self._waiting, self._chooser = list(waiting), chooser

    def suggest(self, trial_id: str) -> Any:
        if not self._waiting:
            return Searcher.FINISHED
        trial = self._waiting.pop(0)
        chosen = trial if trial.settings else replace(trial, settings=self._chooser.propose(trial.number))
        self.given[trial_id] = chosen
        return dict(chosen.settings)

    def of(self, tune_trial: Any, trials: Sequence[Any]) -> Trial:
        """The trial that was given to Tune under its id."""
        return self.given[tune_trial.trial_id]

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The recorder tells the chooser, with the trial's record."""

    def __getstate__(self) -> dict:
        """Nothing, as with the recorder."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' own files are what a sweep goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its trials' files")


@dataclass
class Recorder(tune.Callback):
    """Keeps every trial's record, on the driver, and tells the chooser and the watch of it.

    Where the run's storage fails, `storage_failed` says why; what has not ended goes on with the next command.
    """

    find: Callable[[Any, Sequence[Any]], Trial]  # Tune's trial, among all -> ours
    folder: TrialFolder
    ledger: Any
    chooser: Chooser
    watch: Watch
    budget: int
    recall: Callable[[str, Trial], None]  # tells the scheduler of what a trial reached in an earlier, killed, sweep
    trials: dict[str, Trial] = field(default_factory=dict)  # by Tune's id
    storage_failed: str = ""
    _since: dict[str, float] = field(default_factory=dict)
    _before: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __getstate__(self) -> dict:
        """Nothing: Tune pickles what it is given for a restoration that is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.trials:
            self.trials[trial.trial_id] = self.find(trial, trials)
            self.recall(trial.trial_id, self.trials[trial.trial_id])
        known = self.trials[trial.trial_id]
        settings = dict(trial.config)
        self._before[trial.trial_id] = dict(known.settings)  # where PBT lets it take over another trial, they change
        self._since[trial.trial_id] = time.monotonic()
        self._keep(trial, replace(known, settings=settings, state="running", why=""))
        ray.get(self.ledger.enter.remote(trial.trial_id, self.trials[trial.trial_id]))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        mine = self._timed(trial)
        if STORAGE_FAILED in result:
            self._leave_waiting(trial, mine, result[STORAGE_FAILED])
            return
        if "step" in result:
            mine = mine.with_judged({"step": result["step"], **result["scores"]})
        if "taken_from" in result:
            taken = {"step": mine.step, "from": result["taken_from"], "settings": self._before[trial.trial_id]}
            mine = replace(mine, inherited=[*mine.inherited, taken])
        self._keep(trial, mine)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        mine, last = self._timed(trial), trial.last_result or {}
        if STORAGE_FAILED in last:
            return
        if "diverged" in last:
            ended = replace(mine, state="diverged", why=last["diverged"])
        else:
            ended = replace(mine, state="finished" if mine.step >= self.budget else "stopped")
        self._keep(trial, ended)
        self.chooser.learn(ended)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        said = [line for line in str(trial.get_error() or "").splitlines() if line.strip()]
        why = said[-1] if said else "no reason was given"
        ended = replace(self._timed(trial), state="failed", why=why)
        self._keep(trial, ended)
        self.chooser.learn(ended)

    def _timed(self, trial: Any) -> Trial:
        """The record with the time since the last look added."""
        now = time.monotonic()
        passed = now - self._since.get(trial.trial_id, now)
        self._since[trial.trial_id] = now
        known = self.trials[trial.trial_id]
        return replace(known, seconds=round(known.seconds + passed, 3))

    def _keep(self, trial: Any, changed: Trial) -> None:
        self.trials[trial.trial_id] = changed
        try:
            self.folder.write(changed)
        except StorageFailed as error:
            self.storage_failed = self.storage_failed or str(error)
            return
        self.watch.changed(changed)

    def _leave_waiting(self, trial: Any, mine: Trial, why: str) -> None:
        """For a later command; its record says so where it can be written at once."""
        self.storage_failed = self.storage_failed or why
        self.trials[trial.trial_id] = waits = replace(mine, state="waiting")
        with suppress(StorageFailed):
            self.folder.write(waits, patience=0.0)
        self.watch.changed(waits)


class _WithStorage(Stopper):
    """Ends all trials when the run's storage fails."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._recorder.storage_failed)

    def __getstate__(self) -> dict:
        """Nothing, as with the recorder."""
        return {}


def run_trials(
    waiting: Sequence[Trial],
    ended: Sequence[Trial],
    *,
    search: Search,
    chooser: Chooser,
    job: Job,
    folder: TrialFolder,
    watch: Watch,
) -> None:
    """Runs the trials that wait, `job.side_by_side` at once, and returns when all have ended.

    `ended` are those that ended before: chooser and scheduler learn from them. A trial that waits without settings is
    given them by the chooser when its turn comes. Ray must be initialised.

    Raises StorageFailed where the run's storage fails for long; the trials that ran go on with the next command.
    """
    if not waiting:
        return
    for trial in ended:
        chooser.learn(trial)
    scheduler = scheduler_for(search)
    asha = search.scheduler == "asha"
    if asha:
        _replay(scheduler, ended)
    ledger = ray.remote(num_cpus=0)(Ledger).options(scheduling_strategy=on_this_node()).remote()
    population = search.scheduler == "pbt"
    chosen = _settled(waiting, chooser) if population else waiting
    proposals = Proposals(chosen, chooser)
    recorder = Recorder(
        find=partial(_by_place, chosen) if population else proposals.of,
        folder=folder,
        ledger=ledger,
        chooser=chooser,
        watch=watch,
        budget=search.budget,
        recall=partial(_recall, scheduler) if asha else _no_recall,
    )
    folder.store.remove(TUNES_OWN)
    with _quiet(), _Watching(ledger, watch):
        tuner = Tuner(
            _trainable(job, ledger, population),
            param_space=dict(search.space.domains) if population else None,
            tune_config=TuneConfig(
                search_alg=_in_order(chosen) if population else proposals,
                scheduler=scheduler,
                num_samples=len(waiting),
                max_concurrent_trials=None if population else job.side_by_side,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="trials",
                storage_path=folder.store.at(TUNES_OWN),
                verbose=0,
                callbacks=[recorder],
                stop=_WithStorage(recorder),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        _fit(tuner, recorder)
    folder.store.remove(TUNES_OWN)
    if recorder.storage_failed:
        raise StorageFailed(recorder.storage_failed)


def _fit(tuner: Tuner, recorder: Recorder) -> None:
    """Runs Tune. What it cannot write of its own is a failure of the run's storage, too."""
    try:
        tuner.fit()
    except OSError as error:
        why = f"{recorder.folder.store.at(TUNES_OWN)} cannot be written: {reason_of(error)}"
        again = "See that the storage answers again; the same command goes on from the trials' checkpoints."
        recorder.storage_failed = recorder.storage_failed or f"{why}. {again}"


def _trainable(job: Job, ledger: Any, population: bool) -> Any:
    """A trial's process takes no CPU. A population is larger than what runs at once: shares of memory stand for slots,
    and Tune pauses trials to give others their turn."""
    memory = memory_per_slot(job.side_by_side) if population else 1
    return tune.with_resources(
        tune.with_parameters(TrialRun, job=job, ledger=ledger), PlacementGroupFactory([{"memory": memory}])
    )


def _settled(waiting: Sequence[Trial], chooser: Chooser) -> list[Trial]:
    return [t if t.settings else replace(t, settings=chooser.propose(t.number)) for t in waiting]


def _in_order(chosen: Sequence[Trial]) -> BasicVariantGenerator:
    """PBT takes no searcher: the population's first settings are given as a list."""
    return BasicVariantGenerator(points_to_evaluate=[dict(trial.settings) for trial in chosen])


def _by_place(chosen: Sequence[Trial], tune_trial: Any, trials: Sequence[Any]) -> Trial:
    return chosen[[trial.trial_id for trial in trials].index(tune_trial.trial_id)]


def _replay(scheduler: TrialScheduler, ended: Sequence[Trial]) -> None:
    """Tells ASHA what earlier trials reached at its rungs, as if it had seen them."""
    controller: Any = None
    for trial in ended:
        stand_in: Any = SimpleNamespace(trial_id=f"before-{trial.number}")
        scheduler.on_trial_add(controller, stand_in)
        _recall(scheduler, stand_in.trial_id, trial)


def _recall(scheduler: TrialScheduler, tune_id: str, trial: Trial) -> None:
    """Tells ASHA what a trial that it knows by `tune_id` has reached. Without it, one that goes on after a kill would
    be judged at a rung that it has passed, by what it reaches next."""
    controller: Any = None
    stand_in: Any = SimpleNamespace(trial_id=tune_id)
    for row in trial.judged:
        flat = {SCORES + name: value for name, value in row.items()} | {"step": row["step"]}
        scheduler.on_trial_result(controller, stand_in, flat)


def _no_recall(tune_id: str, trial: Trial) -> None:
    """For schedulers without rungs."""


class _quiet:
    """Ray Tune without its own words, for as long as trials run."""

    def __enter__(self) -> None:
        os.environ.update(TUNE_ENVIRONMENT)
        self._level = logging.getLogger("ray.tune").level
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ray.tune").setLevel(self._level)


class _Watching:
    """Passes the trials' progress and warnings on while they run."""

    def __init__(self, ledger: Any, watch: Watch) -> None:
        self._ledger, self._watch = ledger, watch
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_often, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look_often(self) -> None:
        while not self._done.wait(WATCHED_EVERY):
            try:
                self._watch.steps(ray.get(self._ledger.steps.remote()))
                for warning in ray.get(self._ledger.take_warnings.remote()):
                    self._watch.warn(warning)
            except ray.exceptions.RayError:  # the cluster is going away; what ends the run says so
                return
