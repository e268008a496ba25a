"""The trials of a sweep as they run: shown, tracked, and told to Ray Tune."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from posegen.evaluation.evaluate import chosen_pairs
from posegen.evaluation.metrics import EVERY
from posegen.report.drawing import SMALL, sheet
from posegen.report.sweep import Row
from posegen.runs.progress import Display
from posegen.sweep.judge import read_samples, sample_pairs
from posegen.sweep.page import given_rows
from posegen.sweep.plan import SweepPlan
from posegen.sweep.result import best_trial
from posegen.training.checkpoints import Curve, newest_name, read_curve
from posegen.training.choosers import Listed
from posegen.training.loss_log import VALIDATION
from posegen.training.trial_run import Job
from posegen.training.trials import Trial, TrialFolder
from posegen.training.tune import run_trials


@dataclass
class Trials:
    """What runs the search and the last comparison."""

    sweep: SweepPlan
    tracking: Any
    display: Display
    use_gpu: bool
    side_by_side: int

    def search(self) -> Trial:
        """Runs the trials that are left. Gives the best one. Raises ValueError where none came to its end."""
        sweep = self.sweep
        ended, waiting = sweep.standing()
        shards = sweep.base.open_shards()
        pairs = chosen_pairs(shards.pair_count("validation"), sweep.validation_pairs, split="validation")
        watch = Following(sweep, self.tracking, self.display, "trials", sweep.folder, "validation", pairs)
        watch.begin([*ended, *waiting])
        run_trials(
            waiting,
            ended,
            search=sweep.searching(),
            chooser=sweep.chooser(),
            job=self._job(sweep.folder, "validation", pairs),
            folder=sweep.folder,
            watch=watch,
        )
        trials = sweep.folder.read()
        best = best_trial(trials, sweep.metrics)
        if best is None:
            raise ValueError(_none_ended(sweep, trials))
        for trial in trials:
            self.tracking.tag(tracked_name("trials", trial), "posegen.best", str(trial.number == best.number).lower())
        return best

    def compare(self, best: Trial) -> None:
        """Trains the best weights and the paper's with the seeds of the last comparison, judged on the test people."""
        sweep = self.sweep
        ended, waiting = sweep.standing_finals(best)
        if not waiting:
            return
        pairs = chosen_pairs(sweep.base.open_shards().pair_count("test"), sweep.base.score_pairs)
        watch = Following(sweep, self.tracking, self.display, "comparison", sweep.finals, "test", pairs)
        watch.begin([*ended, *waiting])
        run_trials(
            waiting,
            [],
            search=sweep.comparing(),
            chooser=Listed([]),
            job=self._job(sweep.finals, "test", pairs),
            folder=sweep.finals,
            watch=watch,
        )

    def _job(self, folder: TrialFolder, split: str, pairs: Sequence[int]) -> Job:
        tasks = self.sweep.tasks(folder, split, pairs)
        return Job(tasks, self.sweep.base.workers, self.use_gpu, self.side_by_side)


def _none_ended(sweep: SweepPlan, trials: Sequence[Trial]) -> str:
    counts = Counter(trial.state for trial in trials)
    why = next((f" Trial {t.number}: {t.why}" for t in trials if t.why), "")
    found = ", ".join(f"{count} {state}" for state, count in counts.items())
    return (
        f"no trial was trained to its end ({found}), so there is no best one.{why} Their records are in "
        f"{sweep.store.at(sweep.folder.name)}; give a narrower --space, or another --run after the cause is gone."
    )


def tracked_name(what: str, trial: Trial) -> str:
    """The name of a trial's run in MLflow."""
    return f"trial-{trial.number:04d}" if what == "trials" else f"final-{trial.name}-seed-{trial.seed}"


@dataclass
class Following:
    """Follows trials for the screen and for MLflow (`train.tune.Watch`)."""

    sweep: SweepPlan
    tracking: Any
    display: Display
    what: str  # "trials" or "comparison"
    folder: TrialFolder
    split: str
    pairs: Sequence[int]
    trials: dict[int, Trial] = field(default_factory=dict)
    _reached: Mapping[int, int] = field(default_factory=dict)
    _given: list[Row] = field(default_factory=list)
    _warned: set[str] = field(default_factory=set)

    def begin(self, trials: Sequence[Trial]) -> None:
        """Takes the trials as they stand; what a killed sweep did not tell of those that ended is told now."""
        self.trials = {trial.number: trial for trial in trials}
        for trial in trials:
            if trial.ended and self.tracking.tagged(tracked_name(self.what, trial), "posegen.state") is None:
                self._track_end(trial)
        self.steps({})

    def changed(self, trial: Trial) -> None:
        before = self.trials[trial.number]
        self.trials[trial.number] = trial
        if trial.ended:
            self.display.say(self._sentence(trial))
            self._track_end(trial)
        elif before.state != "running" or trial.judged != before.judged:
            self._track(trial)
        self.steps(self._reached)

    def _track(self, trial: Trial) -> None:
        name = tracked_name(self.what, trial)
        self.tracking.nested(name, {**trial.settings, "seed": trial.seed})
        self.tracking.rows(name, [_judged_row(row) for row in trial.judged])

    def _track_end(self, trial: Trial) -> None:
        """The whole curve, the final scores and the sample images. Told twice, it is there once."""
        name = tracked_name(self.what, trial)
        self._track(trial)
        rows = self._curve(trial)
        self.tracking.rows(name, [row for row in rows if not any(key.startswith(VALIDATION) for key in row)])
        if trial.judged:
            self.tracking.rows(name, [{"step": trial.step, **_scores(trial)}])
        samples = self.folder.store.fetch(f"{self.folder.place(trial.number)}/samples.png")
        if samples.is_file():
            self.tracking.files(name, [self._write_sheet(samples)], "samples")
        self.tracking.finish(name, "FAILED" if trial.state in ("failed", "diverged") else "FINISHED")
        self.tracking.tag(name, "posegen.state", trial.state)

    def _curve(self, trial: Trial) -> Curve:
        """What the trial's last stage logged, to its newest checkpoint."""
        store, stage = self.folder.store, self.sweep.base.system.stages[-1].name
        place = f"{self.folder.place(trial.number)}/stages/{stage}"
        name = newest_name(store, place)
        return read_curve(store.fetch(f"{place}/{name}/curve.json").parent) if name else []

    def _sentence(self, trial: Trial) -> str:
        """What became of a trial, in one line."""
        score = trial.score(self.sweep.metrics[0])
        judged = "" if score is None else f", {EVERY[self.sweep.metrics[0]].title} {score:.4f}"
        settings = ", ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in trial.settings.items())
        at = f" at step {trial.step}" if trial.state == "stopped" else ""
        why = f": {trial.why}" if trial.why else ""
        label = f"{trial.name}, seed {trial.seed}" if trial.name else f"trial {trial.number}"
        return f"{label} {trial.state}{at}{judged} ({settings}){why}"

    def _write_sheet(self, samples: Path) -> Path:
        """The fixed pairs with a trial's results, a row a pair, beside these."""
        if not self._given:
            self._given = given_rows(self.sweep, self.split, sample_pairs(self.pairs))
        results = read_samples(samples, self.sweep.base.system.size[1])
        rows = [
            [*(panel.image for panel in row.given[:-1]), result, row.given[-1].image]
            for row, result in zip(self._given, results, strict=True)
        ]
        whole = sheet(rows, max(SMALL, self.sweep.base.system.size[0]))
        path = samples.with_name("sample_sheet.png")
        cv2.imwrite(str(path), cv2.cvtColor(whole, cv2.COLOR_RGB2BGR))
        self.folder.store.publish(self.folder.store.below(path))
        return path

    def steps(self, reached: Mapping[int, int]) -> None:
        """Steps done and to do, over all trials; those that were stopped early shorten the way."""
        self._reached = {**self._reached, **reached}
        each = self.sweep.steps_each
        lead = each - self.sweep.budget
        done = {n: lead + t.step if t.judged else 0 for n, t in self.trials.items()}
        done |= {n: max(done[n], step) for n, step in self._reached.items() if not self.trials[n].ended}
        left = sum(each - done[n] for n, trial in self.trials.items() if not trial.ended)
        self.display.advance(self.what, sum(done.values()), sum(done.values()) + left, self._states())

    def _states(self) -> str:
        counts = Counter(trial.state for trial in self.trials.values())
        states = ", ".join(f"{counts[s]} {s}" for s in ("running", "waiting", "finished", "stopped") if counts[s])
        lost = counts["diverged"] + counts["failed"]
        best = best_trial(list(self.trials.values()), self.sweep.metrics)
        found = f"; best {best.score(self.sweep.metrics[0]):.4f} (trial {best.number})" if best else ""
        return states + (f", {lost} lost" if lost else "") + (found if self.what == "trials" else "")

    def warn(self, text: str) -> None:
        """Says each warning once: an attempt that fails again fails in the same words."""
        if text not in self._warned:
            self._warned.add(text)
            self.display.warn(text)


def _judged_row(row: Mapping[str, float]) -> dict[str, float]:
    return {"step": row["step"], **{VALIDATION + name: value for name, value in row.items() if name != "step"}}


def _scores(trial: Trial) -> dict[str, float]:
    return {name: value for name, value in trial.judged[-1].items() if name != "step"}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
