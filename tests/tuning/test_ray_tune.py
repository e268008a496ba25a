"""Ray Tune's schedulers, searcher and callback, without Ray: validation, early stopping, suggestions, records."""

import copy
import errno
import itertools
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.queue import Queue

from posegen.storage import files
from posegen.storage.files import StorageFailed
from posegen.storage.store import Store
from posegen.tuning import ray_tune
from posegen.tuning.ray_tune import (
    SchedulerKind,
    StorageStopper,
    TrialRecorder,
    WaitingTrials,
    fit,
    make_scheduler,
    replay,
    rungs,
    validation_steps,
)
from posegen.tuning.results import Settings, Trial, TrialFolder
from posegen.tuning.space import FixedList

BUDGET = 240


def scheduler_of(kind: SchedulerKind, *, higher: bool = True, budget: int = BUDGET) -> TrialScheduler:
    return make_scheduler(kind, "ssim", higher=higher, budget=budget)


@pytest.mark.parametrize(
    ("budget", "validated", "stopped"),
    [(240, [60, 120, 180, 240], [60, 120]), (10, [3, 5, 8, 10], [3, 6]), (7, [2, 4, 6, 7], [2, 4]),
     (4, [1, 2, 3, 4], [1, 2]), (2, [1, 2], [1]), (1, [1], [])],
)  # fmt: skip
def test_trials_are_validated_at_quarters_and_stopped_at_a_quarter_and_a_half(budget: int, validated, stopped):
    assert validation_steps(budget) == validated
    assert rungs(budget) == stopped


@pytest.mark.parametrize("budget", [*range(1, 50), 240, 1000, 14_000])
def test_rungs_are_those_of_tunes_asha(budget: int):
    scheduler = scheduler_of("asha", budget=budget)
    milestones = [step for step, _ in scheduler._brackets[0]._rungs]  # pyright: ignore
    assert sorted(step for step in milestones if step < budget) == rungs(budget)


def test_schedulers_of_each_kind():
    assert isinstance(scheduler_of("asha"), ASHAScheduler)
    assert type(scheduler_of("none")) is FIFOScheduler


def asha(*, higher: bool = True) -> TrialScheduler:
    return scheduler_of("asha", higher=higher)


def tell(scheduler: TrialScheduler, name: str, scores: Mapping[int, float]) -> list[str]:
    """Run a trial through a scheduler as Tune does: added, validated, completed. Returns the decisions."""
    mine: Any = SimpleNamespace(trial_id=name)
    controller: Any = None
    scheduler.on_trial_add(controller, mine)
    decisions, flat = [], {}
    for step, score in scores.items():
        flat = {"step": step, "scores/ssim": score, "scores/l1": 1.0}
        decisions.append(scheduler.on_trial_result(controller, mine, flat))
        if decisions[-1] == TrialScheduler.STOP:
            break
    scheduler.on_trial_complete(controller, mine, flat)
    return decisions


def test_the_better_half_goes_on():
    """At step 60 the median of 0.1, 0.3 is 0.2: a new trial needs it. Lower scores are better the other way."""
    for higher, (kept, stopped) in ((True, (0.25, 0.15)), (False, (0.15, 0.25))):
        for score, decision in ((kept, TrialScheduler.CONTINUE), (stopped, TrialScheduler.STOP)):
            scheduler = asha(higher=higher)
            for name, known in (("a", 0.1), ("b", 0.3)):
                tell(scheduler, name, {60: known})
            assert tell(scheduler, "new", {60: score}) == [decision], (higher, score)


@pytest.mark.parametrize("higher", [True, False])
def test_a_resumed_sweep_stops_trials_as_an_uninterrupted_one(higher: bool):
    """ASHA has seen ten trials live, or is told of their records: it decides alike for whatever comes next."""
    numbers, live, ended = random.Random(0), asha(higher=higher), []
    for number in range(10):
        scores = {step: numbers.random() for step in validation_steps(BUDGET)}
        decisions = tell(live, f"live-{number}", scores)
        rows = [{"step": step, "ssim": scores[step], "l1": 1.0} for step in list(scores)[: len(decisions)]]
        state = "finished" if rows[-1]["step"] == BUDGET else "stopped"
        ended.append(Trial(number=number, settings={}, state=state, validations=rows))
    assert {trial.state for trial in ended} == {"finished", "stopped"}, "both kinds are told of"
    resumed = asha(higher=higher)
    for trial in [*ended, Trial(number=10, settings={}, state="failed")]:
        replay(resumed, trial)
    outcomes = []
    for quarter, half in itertools.product([score / 20 for score in range(21)], repeat=2):
        one, other = (
            tell(copy.deepcopy(s), "new", {60: quarter, 120: half, 180: half, 240: half}) for s in (live, resumed)
        )
        assert one == other, (quarter, half)
        outcomes.append(len(one))
    assert set(outcomes) == {1, 2, 4}, "some are stopped at a quarter, some at a half, some never"


def test_a_resumed_trial_is_not_stopped_at_a_rung_that_it_has_passed():
    """It passed step 60 before the kill, as the best: what it reaches at 90 is for the rung of 120 to look at."""
    passed = Trial(number=7, settings={}, validations=[{"step": 60, "ssim": 0.9, "l1": 1.0}])
    for told, decision in ((True, TrialScheduler.CONTINUE), (False, TrialScheduler.STOP)):
        scheduler: Any = asha()
        tell(scheduler, "other", {60: 0.8})
        mine: Any = SimpleNamespace(trial_id="mine")
        scheduler.on_trial_add(None, mine)
        if told:
            replay(scheduler, passed, "mine")
        assert scheduler.on_trial_result(None, mine, {"step": 90, "scores/ssim": 0.1}) == decision


class Written:
    """A search algorithm and a callback that keep what they were told."""

    def __init__(self) -> None:
        self.observed: list[Trial] = []
        self.seen: list[Trial] = []
        self.reached: dict[int, int] = {}
        self.warnings: list[str] = []

    def suggest(self, number: int) -> Settings:
        return {"alpha": number / 100}

    def observe(self, trial: Trial) -> None:
        self.observed.append(trial)

    def on_trial_update(self, trial: Trial) -> None:
        self.seen.append(trial)

    def on_steps(self, reached: Mapping[int, int]) -> None:
        self.reached |= reached

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


def test_waiting_trials_are_given_in_order_and_get_settings_when_their_turn_comes():
    algorithm = FixedList([{"alpha": number / 100} for number in range(9)])
    waiting = [
        Trial(number=0, settings={"alpha": 0.84}),
        Trial(number=3, settings={}, seed=7),
        Trial(number=4, settings={}),
    ]
    searcher = WaitingTrials(waiting, algorithm)
    given = [searcher.suggest(name) for name in "abc"]
    assert [config["settings"] for config in given] == [{"alpha": 0.84}, {"alpha": 0.03}, {"alpha": 0.04}]
    assert [(config["number"], config["seed"]) for config in given] == [(0, 0), (3, 7), (4, 0)]
    assert searcher.suggest("d") == searcher.suggest("e") == Searcher.FINISHED


class Ended:
    """A recorder with a running trial, and Tune's side of that trial."""

    def __init__(self, folder: Path) -> None:
        self.told, self.folder = Written(), TrialFolder(Store.of(folder), "trials")
        running = Trial(number=3, settings={"alpha": 0.5}, state="running", seconds=10.0)
        self.recorder = TrialRecorder(
            {3: running},
            self.folder,
            algorithm=self.told,
            scheduler=scheduler_of("none"),
            callback=self.told,
            budget=BUDGET,
        )
        config = {"number": 3, "seed": 0, "settings": {"alpha": 0.5}}
        self.trial = SimpleNamespace(trial_id="t3", config=config, last_result=None, get_error=lambda: None)

    def validated(self, *steps: int) -> None:
        for step in steps:
            result = {"step": step, "scores": {"ssim": step / 1000}, "done": step == BUDGET}
            self.trial.last_result = result
            self.recorder.on_trial_result(0, [], self.trial, result)

    def written(self) -> dict:
        return json.loads((self.folder.path(3) / "trial.json").read_text())


@pytest.mark.parametrize(("steps", "state"), [([60, 120, 180, 240], "finished"), ([60, 120], "stopped")])
def test_a_trial_that_ended_is_finished_at_its_budget_and_else_stopped(tmp_path: Path, steps, state: str):
    run = Ended(tmp_path)
    run.validated(*steps)
    assert run.written()["state"] == "running"
    assert run.told.observed == []
    run.recorder.on_trial_complete(0, [], run.trial)
    assert run.written()["validations"] == [{"step": step, "ssim": step / 1000} for step in steps]
    assert run.written()["state"] == state
    assert run.told.observed == [run.told.seen[-1]]
    assert [len(trial.validations) for trial in run.told.seen] == [*range(1, len(steps) + 1), len(steps)]


def test_a_divergence_is_told_with_its_words(tmp_path: Path):
    run = Ended(tmp_path)
    run.validated(60)
    result = {"done": True, "diverged": "generator/l1 is nan"}
    run.trial.last_result = result
    run.recorder.on_trial_result(0, [], run.trial, result)
    run.recorder.on_trial_complete(0, [], run.trial)
    (trial,) = run.told.observed
    assert (trial.state, trial.why, trial.step) == ("diverged", "generator/l1 is nan", 60)


def test_a_failure_is_told_with_the_last_line_of_its_error(tmp_path: Path):
    run = Ended(tmp_path)
    run.trial.get_error = lambda: RuntimeError("Traceback (most recent call last):\n  ...\nValueError: no room\n\n")
    run.recorder.on_trial_error(0, [], run.trial)
    (trial,) = run.told.observed
    assert (trial.state, trial.why, list(trial.validations)) == ("failed", "ValueError: no room", [])
    run.trial.get_error = lambda: None
    run.recorder.on_trial_error(0, [], run.trial)
    assert run.folder.read()[0].why == "no reason was given"


def test_the_scheduler_is_told_once_of_what_a_trial_reached_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, told = Ended(tmp_path), []
    monkeypatch.setattr(ray_tune, "replay", lambda scheduler, trial, tune_id: told.append((tune_id, trial.number)))
    run.recorder.on_trial_start(0, [], run.trial)
    run.recorder.on_trial_start(0, [], run.trial)  # again, after a failure
    assert told == [("t3", 3)]
    assert (run.written()["state"], run.written()["settings"]) == ("running", {"alpha": 0.5})


def test_the_seconds_of_all_attempts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, now = Ended(tmp_path), [100.0]
    monkeypatch.setattr("posegen.tuning.ray_tune.time.monotonic", lambda: now[0])
    run.recorder._since[3] = 100.0
    seconds = []
    for now[0], step in ((102.5, 60), (103.0, 120), (110.0, 240)):
        run.validated(step)
        seconds.append(run.told.seen[-1].seconds)
    assert seconds == [12.5, 13.0, 20.0]  # after the 10 of an attempt before


def test_a_trial_whose_storage_failed_waits_and_ends_the_others(tmp_path: Path):
    run = Ended(tmp_path)
    stopper = StorageStopper(run.recorder)
    run.validated(60)
    assert not stopper.stop_all()
    run.trial.last_result = result = {"done": True, "storage_failed": "the disk is full"}
    run.recorder.on_trial_result(0, [], run.trial, result)
    run.recorder.on_trial_complete(0, [], run.trial)
    assert stopper.stop_all()
    assert run.recorder.storage_failed == "the disk is full"
    assert (run.written()["state"], run.written()["validations"]) == ("waiting", [{"step": 60, "ssim": 0.06}])
    assert run.told.observed == []


def test_a_record_that_cannot_be_written_ends_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Ended(tmp_path)
    run.validated(60)
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setenv("POSEGEN_PATIENCE", "0")
    run.validated(120)
    assert "trial.json cannot be written" in run.recorder.storage_failed
    assert run.folder.read()[0].step == 60
    assert StorageStopper(run.recorder).stop_all()


def test_what_tune_itself_cannot_write_is_the_storages_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Ended(tmp_path)

    def full(tuner: tune.Tuner) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tune.Tuner, "fit", full)
    with pytest.raises(StorageFailed, match=rf"^{tmp_path}/\.tune cannot be written: No space left on device\."):
        fit(tune.Tuner.__new__(tune.Tuner), run.recorder)


def test_steps_and_warnings_of_the_trials_are_forwarded(monkeypatch: pytest.MonkeyPatch):
    told, left = Written(), [(4, 10), "trial 4: worker 0 failed", (4, 20), (5, 3)]
    monkeypatch.setattr(ray_tune, "POLL_EVERY", 0.001)
    monkeypatch.setattr(Queue, "qsize", lambda queue: len(left))
    monkeypatch.setattr(Queue, "get_nowait_batch", lambda queue, count: [left.pop(0) for _ in range(count)])
    with ray_tune._forwarding(Queue.__new__(Queue), told):
        deadline = time.monotonic() + 20
        while not told.warnings and time.monotonic() < deadline:
            time.sleep(0.001)
    assert told.reached == {4: 20, 5: 3}
    assert told.warnings == ["trial 4: worker 0 failed"]
