"""What Ray Tune is told and how its answers are recorded, without Ray: when trials are judged, stopped, proposed."""

import copy
import errno
import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pbt import _explore
from ray.tune.search import Searcher

from posegen.storage import files
from posegen.storage.store import Store
from posegen.training.choosers import Listed
from posegen.training.spaces import Space
from posegen.training.trials import Settings, Trial, TrialFolder
from posegen.training.tune import (
    Kind,
    Proposals,
    Recorder,
    Search,
    _by_place,
    _fit,
    _no_recall,
    _recall,
    _replay,
    _settled,
    _within,
    _WithStorage,
    judged_steps,
    rungs,
    scheduler_for,
)

SPACE = Space("here", {"alpha": tune.uniform(0, 1), "weight": tune.loguniform(1, 1000), "width": tune.randint(4, 65)})
BUDGET = 240


def search(kind: Kind, *, higher: bool = True, budget: int = BUDGET) -> Search:
    return Search(SPACE, [("ssim", higher), ("l1", False)], kind, budget)


@pytest.mark.parametrize(
    ("budget", "judged", "stopped"),
    [(240, [60, 120, 180, 240], [60, 120]), (10, [3, 5, 8, 10], [3, 6]), (7, [2, 4, 6, 7], [2, 4]),
     (4, [1, 2, 3, 4], [1, 2]), (2, [1, 2], [1]), (1, [1], [])],
)  # fmt: skip
def test_trials_are_judged_at_quarters_and_stopped_at_a_quarter_and_a_half(budget: int, judged, stopped):
    assert judged_steps(budget) == judged
    assert rungs(budget) == stopped


@pytest.mark.parametrize("budget", [*range(1, 50), 240, 1000, 14_000])
def test_rungs_are_those_of_tunes_asha(budget: int):
    scheduler = scheduler_for(search("asha", budget=budget))
    milestones = [step for step, _ in scheduler._brackets[0]._rungs]  # pyright: ignore
    assert sorted(step for step in milestones if step < budget) == rungs(budget)


def test_schedulers_of_each_kind():
    kinds = {kind: type(scheduler_for(search(kind))) for kind in ("asha", "pbt", "none")}
    assert kinds == {"asha": ASHAScheduler, "pbt": PopulationBasedTraining, "none": FIFOScheduler}


def asha(*, higher: bool = True) -> TrialScheduler:
    return scheduler_for(search("asha", higher=higher))


def tell(scheduler: TrialScheduler, name: str, scores: Mapping[int, float]) -> list[str]:
    """A trial lived through: added, judged, and gone as Tune lets it go. Gives the decisions."""
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
def test_a_sweep_that_goes_on_stops_trials_as_one_that_was_never_interrupted(higher: bool):
    """ASHA has seen ten trials live, or is told of their records: it decides alike for whatever comes next."""
    numbers, live, ended = random.Random(0), asha(higher=higher), []
    for number in range(10):
        scores = {step: numbers.random() for step in judged_steps(BUDGET)}
        decisions = tell(live, f"live-{number}", scores)
        judged = [{"step": step, "ssim": scores[step], "l1": 1.0} for step in list(scores)[: len(decisions)]]
        state = "finished" if judged[-1]["step"] == BUDGET else "stopped"
        ended.append(Trial(number=number, settings={}, state=state, judged=judged))
    assert {trial.state for trial in ended} == {"finished", "stopped"}, "both kinds are told of"
    resumed = asha(higher=higher)
    _replay(resumed, [*ended, Trial(number=10, settings={}, state="failed")])
    outcomes = []
    for quarter, half in itertools.product([score / 20 for score in range(21)], repeat=2):
        one, other = (
            tell(copy.deepcopy(s), "new", {60: quarter, 120: half, 180: half, 240: half}) for s in (live, resumed)
        )
        assert one == other, (quarter, half)
        outcomes.append(len(one))
    assert set(outcomes) == {1, 2, 4}, "some are stopped at a quarter, some at a half, some never"


def test_a_trial_that_goes_on_is_not_judged_again_at_a_rung_that_it_has_passed():
    """It passed step 60 before the kill, as the best: what it reaches at 90 is for the rung of 120 to look at."""
    passed = Trial(number=7, settings={}, judged=[{"step": 60, "ssim": 0.9, "l1": 1.0}])
    for told, decision in ((True, TrialScheduler.CONTINUE), (False, TrialScheduler.STOP)):
        scheduler: Any = asha()
        tell(scheduler, "other", {60: 0.8})
        mine: Any = SimpleNamespace(trial_id="mine")
        scheduler.on_trial_add(None, mine)
        if told:
            _recall(scheduler, "mine", passed)
        assert scheduler.on_trial_result(None, mine, {"step": 90, "scores/ssim": 0.1}) == decision


def explored(space: Space, start: Settings) -> Settings:
    """What PBT makes of the settings of a trial whose place is taken."""
    scheduler: Any = scheduler_for(Search(space, [("ssim", True)], "pbt", BUDGET))
    return scheduler._get_new_config(SimpleNamespace(), SimpleNamespace(config=dict(start)))[0]


def test_population_based_training_stays_in_range():
    random.seed(0)
    settings: Settings = {"alpha": 0.95, "weight": 900.0, "width": 60}
    seen = []
    for _ in range(300):
        settings = explored(SPACE, settings)
        seen.append(settings)
    assert all(0 <= s["alpha"] <= 1 and 1 <= s["weight"] <= 1000 and 4 <= s["width"] <= 64 for s in seen)  # pyright: ignore
    assert all([type(value) for value in s.values()] == [float, float, int] for s in seen)
    beyond, _ = _explore({"alpha": 0.95}, {"alpha": tune.uniform(0, 1)}, 0.0, (1.2,), None)  # pyright: ignore
    assert beyond["alpha"] > 1, "left alone, its factor would leave the range"
    assert _within(SPACE, beyond) == {"alpha": 1.0}


def test_population_based_training_knows_choices():
    random.seed(0)
    settings: Settings = {"critic": "stack"}
    for _ in range(50):
        settings = explored(Space("here", {"critic": tune.choice(["stack", "image"])}), settings)
        assert settings["critic"] in ("stack", "image")


class Written:
    """A chooser and a watch that keep what they were told."""

    def __init__(self) -> None:
        self.learnt: list[Trial] = []
        self.seen: list[Trial] = []

    def propose(self, number: int) -> Settings:
        return {"alpha": number / 100}

    def learn(self, trial: Trial) -> None:
        self.learnt.append(trial)

    def changed(self, trial: Trial) -> None:
        self.seen.append(trial)

    def steps(self, reached: Mapping[int, int]) -> None: ...
    def warn(self, text: str) -> None: ...


def test_waiting_trials_are_given_in_order_and_chosen_when_their_turn_comes():
    chooser = Listed([{"alpha": number / 100} for number in range(9)])
    waiting = [Trial(number=0, settings={"alpha": 0.84}), Trial(number=3, settings={}), Trial(number=4, settings={})]
    proposals = Proposals(waiting, chooser)
    assert [proposals.suggest(name) for name in "abc"] == [{"alpha": 0.84}, {"alpha": 0.03}, {"alpha": 0.04}]
    assert proposals.suggest("d") == proposals.suggest("e") == Searcher.FINISHED
    assert [proposals.of(SimpleNamespace(trial_id=name), []).number for name in "abc"] == [0, 3, 4]
    assert proposals.given["b"].settings == {"alpha": 0.03}


def test_a_population_is_chosen_at_once_and_known_by_its_place():
    settled = _settled([Trial(number=2, settings={"alpha": 0.84}), Trial(number=5, settings={})], Written())
    assert [trial.settings for trial in settled] == [{"alpha": 0.84}, {"alpha": 0.05}]
    tunes = [SimpleNamespace(trial_id=name) for name in ("x", "y")]
    assert [_by_place(settled, each, tunes).number for each in (tunes[1], tunes[0])] == [5, 2]


class Ended:
    """A recorder with a running trial, and Tune's side of that trial."""

    def __init__(self, folder: Path) -> None:
        self.told, self.folder = Written(), TrialFolder(Store.of(folder), "trials")
        self.recorder = Recorder(
            find=lambda *_: Trial(number=-1, settings={}), folder=self.folder, ledger=None,
            chooser=self.told, watch=self.told, budget=BUDGET, recall=_no_recall,
        )  # fmt: skip
        running = Trial(number=3, settings={"alpha": 0.5}, state="running", seconds=10.0)
        self.recorder.trials["t3"] = running
        self.trial = SimpleNamespace(trial_id="t3", config={"alpha": 0.5}, last_result=None, get_error=lambda: None)

    def judged(self, *steps: int) -> None:
        for step in steps:
            result = {"step": step, "scores": {"ssim": step / 1000}, "done": step == BUDGET}
            self.trial.last_result = result
            self.recorder.on_trial_result(0, [], self.trial, result)

    def written(self) -> dict:
        return json.loads((self.folder.of(3) / "trial.json").read_text())


@pytest.mark.parametrize(("steps", "state"), [([60, 120, 180, 240], "finished"), ([60, 120], "stopped")])
def test_a_trial_that_ended_is_finished_at_its_budget_and_else_stopped(tmp_path: Path, steps, state: str):
    run = Ended(tmp_path)
    run.judged(*steps)
    assert run.written()["state"] == "running"
    assert run.told.learnt == []
    run.recorder.on_trial_complete(0, [], run.trial)
    assert run.written()["judged"] == [{"step": step, "ssim": step / 1000} for step in steps]
    assert run.written()["state"] == state
    assert run.told.learnt == [run.told.seen[-1]]
    assert [len(trial.judged) for trial in run.told.seen] == [*range(1, len(steps) + 1), len(steps)]


def test_a_divergence_is_told_with_its_words(tmp_path: Path):
    run = Ended(tmp_path)
    run.judged(60)
    result = {"done": True, "diverged": "generator/l1 is nan"}
    run.trial.last_result = result
    run.recorder.on_trial_result(0, [], run.trial, result)
    run.recorder.on_trial_complete(0, [], run.trial)
    (trial,) = run.told.learnt
    assert (trial.state, trial.why, trial.step) == ("diverged", "generator/l1 is nan", 60)


def test_a_failure_is_told_with_the_last_line_of_its_error(tmp_path: Path):
    run = Ended(tmp_path)
    run.trial.get_error = lambda: RuntimeError("Traceback (most recent call last):\n  ...\nValueError: no room\n\n")
    run.recorder.on_trial_error(0, [], run.trial)
    (trial,) = run.told.learnt
    assert (trial.state, trial.why, list(trial.judged)) == ("failed", "ValueError: no room", [])
    run.trial.get_error = lambda: None
    run.recorder.on_trial_error(0, [], run.trial)
    assert run.folder.read()[0].why == "no reason was given"


def test_the_scheduler_is_told_once_of_what_a_trial_reached_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, told = Ended(tmp_path), []
    monkeypatch.setattr("posegen.training.tune.ray.get", lambda answer: answer)
    run.recorder.ledger = SimpleNamespace(enter=SimpleNamespace(remote=lambda *_: None))
    run.recorder.recall = lambda tune_id, trial: told.append((tune_id, trial.number))
    new = SimpleNamespace(trial_id="t4", config={"alpha": 0.5})
    run.recorder.on_trial_start(0, [], new)
    run.recorder.on_trial_start(0, [], new)  # again, after a failure
    assert told == [("t4", -1)]


def test_the_seconds_of_all_attempts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, now = Ended(tmp_path), [100.0]
    monkeypatch.setattr("posegen.training.tune.time.monotonic", lambda: now[0])
    run.recorder._since["t3"] = 100.0
    seconds = []
    for now[0], step in ((102.5, 60), (103.0, 120), (110.0, 240)):
        run.judged(step)
        seconds.append(run.told.seen[-1].seconds)
    assert seconds == [12.5, 13.0, 20.0]  # after the 10 of an attempt before


def test_a_trial_whose_storage_failed_waits_and_ends_the_others(tmp_path: Path):
    run = Ended(tmp_path)
    stopper = _WithStorage(run.recorder)
    run.judged(60)
    assert not stopper.stop_all()
    run.trial.last_result = result = {"done": True, "storage_failed": "the disk is full"}
    run.recorder.on_trial_result(0, [], run.trial, result)
    run.recorder.on_trial_complete(0, [], run.trial)
    assert stopper.stop_all()
    assert run.recorder.storage_failed == "the disk is full"
    assert (run.written()["state"], run.written()["judged"]) == ("waiting", [{"step": 60, "ssim": 0.06}])
    assert run.told.learnt == []


def test_a_record_that_cannot_be_written_ends_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Ended(tmp_path)
    run.judged(60)
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setenv("POSEGEN_PATIENCE", "0")
    run.judged(120)
    assert "trial.json cannot be written" in run.recorder.storage_failed
    assert run.folder.read()[0].step == 60
    assert _WithStorage(run.recorder).stop_all()


def test_what_tune_itself_cannot_write_is_the_storages_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Ended(tmp_path)

    def fit(tuner: tune.Tuner) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    _fit(tune.Tuner.__new__(tune.Tuner), run.recorder)
    assert run.recorder.storage_failed.startswith(f"{tmp_path}/.tune cannot be written: No space left on device.")
