"""The page of a sweep: its records, its comparison and its images, put together for `report.sweep`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from posegen.data.loading.dataset import Shards
from posegen.evaluation.evaluate import chosen_pairs
from posegen.report import sweep as report
from posegen.report.panels import given_panels
from posegen.report.sweep import Row
from posegen.runs.pipeline import open_tracking
from posegen.storage.files import write_json
from posegen.sweep.judge import read_samples, sample_pairs
from posegen.sweep.plan import SweepPlan
from posegen.sweep.result import Comparison, compare, pareto_front, ranked
from posegen.training.trials import Trial
from posegen.training.tune import rungs


def write_page(sweep: SweepPlan, best: Trial, command: Sequence[str], fingerprint: str) -> Path:
    """Writes report/tune.html, and report/fingerprint.json after it. Returns the page's path."""
    trials, shards = sweep.folder.read(), sweep.base.open_shards()
    pairs = chosen_pairs(shards.pair_count("validation"), sweep.validation_pairs, split="validation")
    shown = _shown(sweep, trials, best)
    path = sweep.run / "report" / "tune.html"
    report.write_sweep_report(path, _content(sweep, trials, best, command), _rows(sweep, pairs, shown), shown)
    write_json(path.with_name("fingerprint.json"), {"fingerprint": fingerprint})
    sweep.store.publish("report", last="fingerprint.json")
    return path


def final_comparison(sweep: SweepPlan) -> Comparison | None:
    """The best weights beside the paper's on the test people; None where it was left out or is not done."""
    finals = [trial for trial in sweep.finals.read() if trial.ended]
    if not finals or not sweep.seeds:
        return None
    shards = sweep.base.open_shards()
    pairs = chosen_pairs(shards.pair_count("test"), sweep.base.score_pairs)
    return compare(finals, sweep.metrics[0], pairs=len(pairs), persons=_persons(shards, "test", pairs))


def _persons(shards: Shards, split: str, pairs: Sequence[int]) -> int:
    identities = shards.identities(split)
    return len({identities[target] for _, target in shards.pair_names(split, pairs)})


def _content(sweep: SweepPlan, trials: Sequence[Trial], best: Trial, command: Sequence[str]) -> report.Sweep:
    system, shards = sweep.base.system, sweep.base.open_shards()
    pairs = chosen_pairs(shards.pair_count("validation"), sweep.validation_pairs, split="validation")
    front = pareto_front(trials, sweep.metrics) if len(sweep.metrics) > 1 else []
    shared = [stage.name for stage in system.stages[: sweep.first]]
    return report.Sweep(
        about={
            "system": system.name,
            "variant": system.variant,
            "dataset": sweep.base.dataset,
            "paper": system.paper,
            "size": list(system.size),
            "budget": sweep.budget,
            "search": sweep.search,
            "scheduler": sweep.scheduler,
            "seed": sweep.base.seed,
            "stand_ins": system.stand_ins(),
        },
        metrics=sweep.metrics,
        space=sweep.space.words(),
        logarithmic=sweep.space.logarithmic(),
        rungs=rungs(sweep.budget) if sweep.scheduler == "asha" else [],
        trials=trials,
        best=best.number,
        front=[trial.number for trial in front],
        paper=sweep.paper,
        validation={"pairs": len(pairs), "persons": _persons(shards, "validation", pairs)},
        shared={"stages": shared, "steps": sweep.steps_shared, "saved": sweep.steps_saved},
        final=final_comparison(sweep),
        command=command,
        tracking=open_tracking(sweep.run),
        settings=sweep.settings,
    )


def _shown(sweep: SweepPlan, trials: Sequence[Trial], best: Trial) -> dict[int, str]:
    """The trials whose images are shown, with what they are: the best, the paper's, and the worst of the finished."""
    finished = ranked(trials, sweep.metrics[0])
    papers = [trial for trial in finished if dict(trial.settings) == sweep.paper]
    labelled = [("best", best), *(("paper's weights", trial) for trial in papers[:1])]
    labelled.append(("worst of the finished", finished[-1]))
    shown: dict[int, str] = {}
    for label, trial in labelled:
        before = shown.get(trial.number, "").partition(", trial")[0]
        shown[trial.number] = f"{before + ', ' if before else ''}{label}, trial {trial.number}"
    return shown


def _rows(sweep: SweepPlan, pairs: Sequence[int], shown: dict[int, str]) -> list[Row]:
    """The fixed pairs with the images of the shown trials."""
    width = sweep.base.system.size[1]
    files = {number: sweep.store.fetch(f"{sweep.folder.place(number)}/samples.png") for number in shown}
    made = {number: read_samples(path, width) for number, path in files.items()}
    given = given_rows(sweep, "validation", sample_pairs(pairs))
    return [
        replace(row, made={number: images[place] for number, images in made.items()}) for place, row in enumerate(given)
    ]


def given_rows(sweep: SweepPlan, split: str, pairs: Sequence[int]) -> list[Row]:
    """Pairs of a split without results: the source image, the target pose, the target."""
    shards = sweep.base.open_shards()
    given = given_panels(shards, split, pairs)
    return [Row(*names, panels, {}) for names, panels in zip(shards.pair_names(split, pairs), given, strict=True)]
