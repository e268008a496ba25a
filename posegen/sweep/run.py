"""A sweep carried out: what trials share, the trials, the last comparison, the page. What is done is not done again."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posegen.evaluation.metrics import EVERY
from posegen.runs.pipeline import logged, open_tracking, place_of, prepare, read_everywhere, tracked, train
from posegen.runs.progress import Display
from posegen.storage.files import digest, read_json, write_json
from posegen.storage.run_lock import alone
from posegen.sweep.page import final_comparison, write_page
from posegen.sweep.plan import SweepPlan
from posegen.sweep.result import best_trial
from posegen.training.trials import Trial

POLL = "0.5"  # seconds between two looks of Ray Train's controller: trials are short


def run_sweep(sweep: SweepPlan, *, update: bool = False, command: Sequence[str] = ()) -> None:
    """Does what is missing of a sweep, to its page.

    Raises ValueError, worded for the user, where the folder was made with other settings and `update` is not given,
    where another process is at work on it, where the machine has not the room, or where no trial came to its end.
    """
    with Display() as display, alone(sweep.store, display.say), logged(sweep.store, display):
        anew = _settle_differences(sweep, update, display)
        sweep.save()
        for line in outlook(sweep):
            display.say(line)
        if _is_done(sweep):
            display.say("all of it is done already")
        else:
            _carry_out(sweep, display, command, anew=anew)
        _conclude(sweep, display)


def outlook(sweep: SweepPlan) -> list[str]:
    """What will be searched, what is shared and what that saves, as lines to read."""
    shared = ", ".join(
        f"{stage.name} ({stage.training.steps:,} steps)" for stage in sweep.base.system.stages[: sweep.first]
    )
    ended, waiting = sweep.standing()
    images = sum(entry.split == "validation" for entry in sweep.base.listing.entries)
    lines = [
        f"sweep    {sweep.store.place}",
        f"search   {sweep.search}, {sweep.scheduler}, by {' and '.join(sweep.metrics)} on people held out for it "
        f"({images:,} images)",
        *(f"         {path}: {words} (now {sweep.paper[path]})" for path, words in sweep.space.words().items()),
        f"trials   {sweep.trials} of {sweep.steps_each:,} steps; {len(ended)} have ended, {len(waiting)} to go",
    ]
    if shared:
        lines.append(f"shared   shards and {shared}, made once: saves {sweep.steps_saved:,} steps")
    else:
        lines.append("shared   shards; the space touches the first stage, so every trial trains all stages")
    if sweep.seeds:
        lines.append(f"then     the best weights and the paper's on the test people, {sweep.seeds} seeds each")
    return lines + [f"note     {stand_in}" for stand_in in sweep.base.system.stand_ins()]


def _settle_differences(sweep: SweepPlan, update: bool, display: Display) -> bool:
    """Names what was made with other settings; with `update`, removes what depends on it. Whether there was any."""
    stale = [step.name for step in sweep.shared_steps() if step.state == "differs"]
    reasons = sweep.differences()
    if not stale and not reasons:
        return False
    listed = "\n  ".join(reasons or ["the data, or posegen's way of preparing them, changed"])
    redone = ", ".join([*stale, "trials", "report"])
    if not update:
        raise ValueError(
            f"{sweep.store.place} was made with other settings:\n  {listed}\nThis would redo: {redone}. "
            "Give --update to redo them, or another --run to keep both."
        )
    display.say(f"settings changed:\n  {listed}\nredoing: {redone}")
    for name in (*map(place_of, stale), sweep.folder.name, sweep.finals.name, "report", "best.json"):
        sweep.store.remove(name)
    return True


def _is_done(sweep: SweepPlan) -> bool:
    page = read_json(sweep.run / "report" / "fingerprint.json") or {}
    return not sweep.standing()[1] and page.get("fingerprint") == _page_fingerprint(sweep)


def _page_fingerprint(sweep: SweepPlan) -> str:
    return digest(sweep.settings, sweep.seeds, *map(repr, [*sweep.folder.read(), *sweep.finals.read()]))


def _carry_out(sweep: SweepPlan, display: Display, command: Sequence[str], *, anew: bool) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL)
    from posegen import cluster  # Ray and MLflow take seconds to import: only where there is work

    here = cluster.slots_here(sweep.base.device)
    if here is not None:
        trials_at_once(sweep, here)  # told before Ray starts, where it can be
    display.say("starting Ray")
    cluster.connect()
    try:
        use_gpu = cluster.resolve_device(sweep.base.device) == "cuda"
        side_by_side = trials_at_once(sweep, cluster.slots(use_gpu))
        cluster.check_shared(sweep.store, read_everywhere(sweep.base))
        with tracked(sweep.run, sweep.settings, display, anew=anew) as tracking:
            _share(sweep, tracking, use_gpu, display)
            _search(sweep, tracking, display, command, use_gpu=use_gpu, side_by_side=side_by_side)
    finally:
        cluster.disconnect()


def trials_at_once(sweep: SweepPlan, slots: int) -> int:
    """How many trials run side by side: what was asked for, or what fits, but at most a third of all.

    With more, TPE and ASHA would have seen too little when they decide. A trial's room is that of the most workers that
    it may have; one trial runs where there is room for the fewest. Raises ValueError where there is not the room.
    """
    workers = sweep.base.workers
    most = slots // workers.most or int(slots >= workers.fewest)
    if sweep.side_by_side is None and most:
        return min(most, max(2, sweep.trials // 3))
    if not sweep.side_by_side or sweep.side_by_side > most:
        raise ValueError(
            f"--concurrent {sweep.side_by_side or 1} with --workers {workers} was given, but there is room for {slots} "
            f"worker(s). Give --concurrent {max(1, most)} or less{'' if most else ' and fewer --workers'}."
        )
    return sweep.side_by_side


def _share(sweep: SweepPlan, tracking: Any, use_gpu: bool, display: Display) -> None:
    """What all trials share."""
    shards, *stages = sweep.shared_steps()
    if shards.state == "done":
        display.say("shards: done already")
    else:
        prepare(sweep.base, display)
    for index, step in enumerate(stages):
        if step.state == "done":
            display.say(f"{step.name}: done already")
        else:
            train(sweep.base, index, tracking, use_gpu, display)


def _search(
    sweep: SweepPlan, tracking: Any, display: Display, command: Sequence[str], *, use_gpu: bool, side_by_side: int
) -> None:
    """The trials, the last comparison, and what is written of them."""
    from posegen.sweep.trials import Trials

    trials = Trials(sweep, tracking, display, use_gpu, side_by_side)
    best = trials.search()
    tracking.files("pipeline", [write_best(sweep, best)])
    trials.compare(best)
    page = write_page(sweep, best, command, _page_fingerprint(sweep))
    tracking.files("pipeline", [page])


def write_best(sweep: SweepPlan, best: Trial) -> Path:
    """best.json: the settings that `full_pipeline.py --settings` takes, and where they come from."""
    path, system = sweep.run / "best.json", sweep.base.system
    found = {name: best.score(name) for name in sweep.metrics}
    write_json(
        path,
        {
            "system": system.name,
            "variant": system.variant,
            "settings": {**sweep.given, **best.settings},
            "found": {"sweep": sweep.store.place, "trial": best.number, "steps": best.step, "scores": found},
        },
    )
    sweep.store.publish(path.name)
    return path


def _conclude(sweep: SweepPlan, display: Display) -> None:
    """What came out, where it is, and what to do next."""
    trials = sweep.folder.read()
    best = best_trial(trials, sweep.metrics)
    if best is not None:
        metric = sweep.metrics[0]
        paper = trials[0].score(metric)
        display.say(
            f"best:     trial {best.number}, {EVERY[metric].title} {best.score(metric):.4f}"
            + (f" (the paper's weights: {paper:.4f})" if paper is not None else "")
        )
        for path, value in best.settings.items():
            display.say(
                f"          {path} = {value:.6g}" if isinstance(value, float) else f"          {path} = {value}"
            )
    comparison = final_comparison(sweep)
    if comparison is not None:
        display.say(f"verdict:  {comparison['verdict']}")
    display.say(f"report:   {(sweep.run / 'report' / 'tune.html').resolve()}")
    if opening := open_tracking(sweep.run):
        display.say(f"tracking: {opening}")
    display.say(f"use it:   python flows/full_pipeline.py --settings {sweep.run / 'best.json'}")
