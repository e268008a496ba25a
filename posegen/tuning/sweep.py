"""Carry out a sweep: what trials share, the trials, the final comparison, the page. Finished parts are not repeated."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from posegen.evaluation.metrics import EVERY
from posegen.report.drawing import SMALL, sheet
from posegen.runs.pipeline import (
    folders_on_all_nodes,
    logged,
    prepare_shards,
    step_prefix,
    tracked,
    tracking_address,
    train,
)
from posegen.runs.progress import Progress
from posegen.storage.files import digest, read_json, write_json
from posegen.storage.run_lock import run_lock
from posegen.training.checkpoints import newest_name, read_curve
from posegen.training.task import VALIDATION
from posegen.tuning.content import SampleRow, final_comparison, given_rows
from posegen.tuning.page import write_page
from posegen.tuning.plan import SweepPlan
from posegen.tuning.results import Trial, TrialFolder, best_trial
from posegen.tuning.trainable import read_samples, sample_pairs

POLL = "0.5"  # seconds between two polls of Ray Train's controller: trials are short


def run_sweep(plan: SweepPlan, *, update: bool = False, command: Sequence[str] = ()) -> None:
    """Do what is missing of a sweep, up to its page.

    Args:
        plan: The sweep.
        update: Redo what was made with other settings.
        command: Command lines that resume the sweep, shown on the page.

    Raises:
        ValueError: The folder was made with other settings and `update` is not given, another process works on it, the
            cluster has not the room, or no trial finished.
    """
    with Progress() as progress, run_lock(plan.store, progress.info), logged(plan.store, progress):
        anew = _resolve_differences(plan, update, progress)
        plan.save()
        for line in describe_sweep(plan):
            progress.info(line)
        page = read_json(plan.run / "report" / "fingerprint.json") or {}
        if not plan.search_trials()[1] and page.get("fingerprint") == _page_fingerprint(plan):
            progress.info("all of it is done already")
        else:
            _run_steps(plan, progress, command, anew=anew)
        _print_results(plan, progress)


def describe_sweep(plan: SweepPlan) -> list[str]:
    """Return lines that say what will be searched, what is shared, and the steps that this saves."""
    shared = ", ".join(
        f"{stage.name} ({stage.training.steps:,} steps)" for stage in plan.base.system.stages[: plan.first]
    )
    ended, waiting = plan.search_trials()
    images = sum(entry.split == "validation" for entry in plan.base.listing.entries)
    lines = [
        f"sweep    {plan.store.uri}",
        f"search   {plan.search}, {plan.scheduler}, by {' and '.join(plan.metrics)} on held-out people "
        f"({images:,} images)",
        *(f"         {path}: {words} (now {plan.paper[path]})" for path, words in plan.space.descriptions().items()),
        f"trials   {plan.trials} of {plan.steps_per_trial:,} steps; {len(ended)} have ended, {len(waiting)} to go",
    ]
    if shared:
        lines.append(f"shared   shards and {shared}, made once: saves {plan.steps_saved:,} steps")
    else:
        lines.append("shared   shards; the space changes the first stage, so every trial trains all stages")
    if plan.seeds:
        lines.append(f"then     the best weights and the paper's on the test people, {plan.seeds} seeds each")
    return lines + [f"note     {stand_in}" for stand_in in plan.base.system.stand_ins()]


def _resolve_differences(plan: SweepPlan, update: bool, progress: Progress) -> bool:
    """Report what was made with other settings; with `update`, remove what depends on it. Whether there was any."""
    stale = [step.name for step in plan.shared_steps() if step.state == "differs"]
    reasons = plan.differences()
    if not stale and not reasons:
        return False
    listed = "\n  ".join(reasons or ["the data, or posegen's way of preparing them, changed"])
    redone = ", ".join([*stale, "trials", "report"])
    if not update:
        raise ValueError(
            f"{plan.store.uri} was made with other settings:\n  {listed}\nThis would redo: {redone}. "
            "Give --update to redo them, or another --run to keep both."
        )
    progress.info(f"settings changed:\n  {listed}\nredoing: {redone}")
    for name in (*map(step_prefix, stale), plan.folder.name, plan.finals.name, "report", "best.json"):
        plan.store.remove(name)
    return True


def _page_fingerprint(plan: SweepPlan) -> str:
    return digest(plan.settings, plan.seeds, *map(repr, [*plan.folder.read(), *plan.finals.read()]))


def _run_steps(plan: SweepPlan, progress: Progress, command: Sequence[str], *, anew: bool) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL)
    from posegen.cluster import connecting  # Ray and MLflow take seconds to import

    here = connecting.slots_here(plan.base.device)
    if here is not None:
        trials_at_once(plan, here)  # refused before Ray starts, if possible
    progress.info("starting Ray")
    connecting.connect()
    try:
        use_gpu = connecting.resolve_device(plan.base.device) == "cuda"
        side_by_side = trials_at_once(plan, connecting.slots(use_gpu))
        connecting.check_shared(plan.store, folders_on_all_nodes(plan.base))
        with tracked(plan.run, plan.settings, progress, anew=anew) as tracking:
            shards, *stages = plan.shared_steps()
            if shards.state == "done":
                progress.info("shards: done already")
            else:
                prepare_shards(plan.base, progress)
            for index, step in enumerate(stages):
                if step.state == "done":
                    progress.info(f"{step.name}: done already")
                else:
                    train(plan.base, index, tracking, use_gpu, progress)
            runner = TrialRunner(plan, tracking, progress, use_gpu, side_by_side)
            best = runner.search()
            tracking.files("pipeline", [write_best(plan, best)])
            runner.compare(best)
            page = write_page(plan, best, command, _page_fingerprint(plan))
            tracking.files("pipeline", [page])
    finally:
        connecting.disconnect()


def trials_at_once(plan: SweepPlan, slots: int) -> int:
    """Return how many trials run side by side: as asked, or as many as fit, but at most a third of all.

    With more, TPE and ASHA would decide on too little. A trial occupies the most workers that it may have; a single one
    runs if the fewest fit. Raises ValueError if there is not the room.
    """
    workers = plan.base.workers
    most = slots // workers.most or int(slots >= workers.fewest)
    if plan.side_by_side is None and most:
        return min(most, max(2, plan.trials // 3))
    if not plan.side_by_side or plan.side_by_side > most:
        raise ValueError(
            f"--concurrent {plan.side_by_side or 1} with --workers {workers} was given, but there is room for {slots} "
            f"worker(s). Give --concurrent {max(1, most)} or less{'' if most else ' and fewer --workers'}."
        )
    return plan.side_by_side


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of the search and of the final comparison on a connected cluster."""

    plan: SweepPlan
    tracking: Any
    progress: Progress
    use_gpu: bool
    side_by_side: int

    def search(self) -> Trial:
        """Run the trials that are left and return the best one. Raises ValueError if none finished."""
        plan = self.plan
        self._run("validation", plan.folder, *plan.search_trials())
        trials = plan.folder.read()
        best = best_trial(trials, plan.metrics)
        if best is None:
            why = next((f" Trial {t.number}: {t.why}" for t in trials if t.why), "")
            found = ", ".join(f"{count} {state}" for state, count in Counter(t.state for t in trials).items())
            raise ValueError(
                f"no trial finished ({found}), so there is no best one.{why} Their records are in "
                f"{plan.store.at(plan.folder.name)}; give a narrower --space, or another --run after fixing the cause."
            )
        for trial in trials:
            self.tracking.tag(tracked_name(trial), "posegen.best", str(trial.number == best.number).lower())
        return best

    def compare(self, best: Trial) -> None:
        """Train the best weights and the paper's with the final comparison's seeds, scored on the test people."""
        ended, waiting = self.plan.final_trials(best)
        if waiting:
            self._run("test", self.plan.finals, ended, waiting)

    def _run(self, split: str, folder: TrialFolder, ended: Sequence[Trial], waiting: Sequence[Trial]) -> None:
        from posegen.tuning.ray_tune import make_scheduler, run_trials
        from posegen.tuning.trainable import TrialSetup

        plan, metric, pairs = self.plan, self.plan.metrics[0], self.plan.pairs(split)
        callback = SweepProgress(plan, self.tracking, self.progress, folder, split, pairs)
        callback.begin([*ended, *waiting])
        if not waiting:
            return
        kind = plan.scheduler if split == "validation" else "none"
        run_trials(
            waiting,
            ended,
            algorithm=plan.algorithm(),  # trials of the comparison have their settings
            scheduler=make_scheduler(kind, metric, higher=EVERY[metric].higher, budget=plan.budget),
            budget=plan.budget,
            setup=TrialSetup(plan.task_maker(split, pairs), plan.base.workers, self.use_gpu, self.side_by_side),
            folder=folder,
            callback=callback,
        )


def write_best(plan: SweepPlan, best: Trial) -> Path:
    """Write best.json: the settings that `full_pipeline.py --settings` takes, and their origin. Returns its path."""
    path, system = plan.run / "best.json", plan.base.system
    found = {name: best.score(name) for name in plan.metrics}
    write_json(
        path,
        {
            "system": system.name,
            "variant": system.variant,
            "settings": {**plan.given, **best.settings},
            "found": {"sweep": plan.store.uri, "trial": best.number, "steps": best.step, "scores": found},
        },
    )
    plan.store.publish(path.name)
    return path


def _print_results(plan: SweepPlan, progress: Progress) -> None:
    """Print the results, where they are, and what to do next."""
    trials = plan.folder.read()
    best = best_trial(trials, plan.metrics)
    if best is not None:
        metric = plan.metrics[0]
        paper = trials[0].score(metric)
        progress.info(
            f"best:     trial {best.number}, {EVERY[metric].title} {best.score(metric):.4f}"
            + (f" (the paper's weights: {paper:.4f})" if paper is not None else "")
        )
        for path, value in best.settings.items():
            progress.info(f"          {path} = {format(value, '.6g') if isinstance(value, float) else value}")
    comparison = final_comparison(plan)
    if comparison is not None:
        progress.info(f"verdict:  {comparison['verdict']}")
    progress.info(f"report:   {(plan.run / 'report' / 'tune.html').resolve()}")
    if address := tracking_address(plan.run):
        progress.info(f"tracking: {address}")
    progress.info(f"use it:   python flows/full_pipeline.py --settings {plan.run / 'best.json'}")


def tracked_name(trial: Trial) -> str:
    """Return the name of a trial's run in MLflow."""
    return f"final-{trial.name}-seed-{trial.seed}" if trial.name else f"trial-{trial.number:04d}"


@dataclass
class SweepProgress:
    """Reports trials to the terminal and to MLflow: a `ray_tune.TrialCallback`."""

    plan: SweepPlan
    tracking: Any
    progress: Progress
    folder: TrialFolder
    split: str
    pairs: Sequence[int]
    trials: dict[int, Trial] = field(default_factory=dict)
    _reached: Mapping[int, int] = field(default_factory=dict)
    _given: list[SampleRow] = field(default_factory=list)
    _warned: set[str] = field(default_factory=set)

    def begin(self, trials: Sequence[Trial]) -> None:
        """Take the trials as they are; ended ones that a killed sweep did not log to MLflow are logged now."""
        self.trials = {trial.number: trial for trial in trials}
        for trial in trials:
            if trial.ended and self.tracking.tagged(tracked_name(trial), "posegen.state") is None:
                self._log_end(trial)
        self.on_steps({})

    def on_trial_update(self, trial: Trial) -> None:
        """Print an ended trial, and log a changed one."""
        before = self.trials[trial.number]
        self.trials[trial.number] = trial
        if trial.ended:
            self.progress.info(self._summary(trial))
            self._log_end(trial)
        elif before.state != "running" or trial.validations != before.validations:
            self._log(trial)
        self.on_steps({})

    def on_steps(self, reached: Mapping[int, int]) -> None:
        """Show steps done and to do over all trials; trials stopped early reduce the total."""
        self._reached = {**self._reached, **reached}
        each = self.plan.steps_per_trial
        done = {n: each - self.plan.budget + t.step if t.validations else 0 for n, t in self.trials.items()}
        done |= {n: max(done[n], step) for n, step in self._reached.items() if not self.trials[n].ended}
        left = sum(each - done[n] for n, trial in self.trials.items() if not trial.ended)
        counts = Counter(trial.state for trial in self.trials.values())
        states = ", ".join(f"{counts[s]} {s}" for s in ("running", "waiting", "finished", "stopped") if counts[s])
        if lost := counts["diverged"] + counts["failed"]:
            states += f", {lost} lost"
        best = None if self.split == "test" else best_trial(list(self.trials.values()), self.plan.metrics)
        if best is not None:
            states += f"; best {best.score(self.plan.metrics[0]):.4f} (trial {best.number})"
        what, total = "comparison" if self.split == "test" else "trials", sum(done.values())
        self.progress.advance(what, total, total + left, states)

    def on_warning(self, text: str) -> None:
        """Print each warning once: a repeated failure has the same words."""
        if text not in self._warned:
            self._warned.add(text)
            self.progress.warn(text)

    def _log(self, trial: Trial) -> None:
        name = tracked_name(trial)
        self.tracking.nested(name, {**trial.settings, "seed": trial.seed})
        rows = [{k if k == "step" else VALIDATION + k: v for k, v in row.items()} for row in trial.validations]
        self.tracking.rows(name, rows)

    def _log_end(self, trial: Trial) -> None:
        """Log the last stage's curve, the final scores and the sample images. Idempotent."""
        name, store = tracked_name(trial), self.folder.store
        self._log(trial)
        prefix = f"{self.folder.prefix(trial.number)}/stages/{self.plan.base.system.stages[-1].name}"
        newest = newest_name(store, prefix)
        curve = read_curve(store.fetch(f"{prefix}/{newest}/curve.json").parent) if newest else []
        self.tracking.rows(name, [row for row in curve if not any(key.startswith(VALIDATION) for key in row)])
        if trial.validations:
            self.tracking.rows(name, [dict(trial.validations[-1])])
        samples = store.fetch(f"{self.folder.prefix(trial.number)}/samples.png")
        if samples.is_file():
            self.tracking.files(name, [self._write_sheet(samples)], "samples")
        self.tracking.finish(name, "FAILED" if trial.state in ("failed", "diverged") else "FINISHED")
        self.tracking.tag(name, "posegen.state", trial.state)

    def _summary(self, trial: Trial) -> str:
        """One line on an ended trial."""
        score = trial.score(self.plan.metrics[0])
        scored = "" if score is None else f", {EVERY[self.plan.metrics[0]].title} {score:.4f}"
        settings = ", ".join(
            f"{path.rpartition('.')[2]} {format(value, '.3g') if isinstance(value, float) else value}"
            for path, value in trial.settings.items()
        )
        at = f" at step {trial.step}" if trial.state == "stopped" else ""
        why = f": {trial.why}" if trial.why else ""
        label = f"{trial.name}, seed {trial.seed}" if trial.name else f"trial {trial.number}"
        return f"{label} {trial.state}{at}{scored} ({settings}){why}"

    def _write_sheet(self, samples: Path) -> Path:
        """Write the fixed pairs with a trial's results, one row per pair, next to its samples."""
        if not self._given:
            self._given = given_rows(self.plan, self.split, sample_pairs(self.pairs))
        height, width = self.plan.base.system.size
        rows = [
            [*(panel.image for panel in row.given[:-1]), result, row.given[-1].image]
            for row, result in zip(self._given, read_samples(samples, width), strict=True)
        ]
        path = samples.with_name("sample_sheet.png")
        cv2.imwrite(str(path), cv2.cvtColor(sheet(rows, max(SMALL, height)), cv2.COLOR_RGB2BGR))
        self.folder.store.publish(self.folder.store.below(path))
        return path
