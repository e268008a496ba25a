"""The page of a sweep: the searched settings, every trial's scores, and the best against the paper's.

report/tune.html is one file with its images, drawings and styles; it fetches nothing and is complete without scripts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from posegen.evaluation.metrics import EVERY
from posegen.report.drawing import SMALL, data_uri
from posegen.report.page import template
from posegen.storage.files import write_json, write_whole
from posegen.tuning.content import (
    CURVES,
    SCATTER,
    TALL,
    SampleRow,
    SweepContent,
    axis_distance,
    colour,
    is_finite,
    learning_curves,
    parallel_axes,
    parallel_lines,
    pareto,
    sample_rows,
    scatters,
    score_of,
    shown_trials,
    sweep_content,
    value_text,
)
from posegen.tuning.plan import SweepPlan
from posegen.tuning.results import Trial

STATES = ("finished", "running", "stopped", "diverged", "failed", "waiting")  # in the order of the table
SEARCHES = {"optuna": "Optuna's TPE", "random": "random search", "grid": "grid search"}
SCHEDULERS = {"asha": "early stopping by ASHA", "none": "no early stopping"}


def write_page(plan: SweepPlan, best: Trial, command: Sequence[str], fingerprint: str) -> Path:
    """Write report/tune.html, then report/fingerprint.json. Returns the page's path."""
    trials = plan.folder.read()
    shown = shown_trials(plan, trials, best)
    path = plan.run / "report" / "tune.html"
    write_sweep_page(path, sweep_content(plan, trials, best, command), sample_rows(plan, shown), shown)
    write_json(path.with_name("fingerprint.json"), {"fingerprint": fingerprint})
    plan.store.publish("report", last="fingerprint.json")
    return path


def write_sweep_page(path: Path, content: SweepContent, rows: Sequence[SampleRow], shown: Mapping[int, str]) -> Path:
    """Write the page of a sweep; `shown` has the labels of the trials shown with images, in column order."""
    filters = {
        "data_uri": data_uri,
        "value": value_text,
        "exact": partial(value_text, digits=12),
        "score": lambda value, name: fine_score(name, value),
        "signed": lambda value, name: fine_score(name, value, signed=True),
        "duration": duration,
        "split": split_path,
        "short": partial(shortened, longest=11),
    }
    lines, steps, heights, rungs = learning_curves(content)
    page = template("sweep.html", filters, folder=Path(__file__).parent).render(
        sweep=content,
        rows=rows,
        shown=shown,
        all_metrics=EVERY,
        looks=looks(content),
        best=best_card(content),
        counts=Counter(trial.state for trial in content.trials),
        states=STATES,
        ranked=by_rank(content),
        effort=effort(content),
        final=final_rows(content.final) if content.final else [],
        axes=parallel_axes(content),
        lines=parallel_lines(content),
        scatters=scatters(content),
        pareto=pareto(content),
        learning={"lines": {line.trial: line for line in lines}, "steps": steps, "heights": heights, "rungs": rungs},
        plot={"scatter": SCATTER, "curves": CURVES, "between": axis_distance(content), "tall": TALL},
        ramp=[(colour(n / 8, dark=False), colour(n / 8, dark=True)) for n in range(9)],
        number_of={trial.number: trial for trial in content.trials},
        words={"search": SEARCHES, "scheduler": SCHEDULERS},
        small=SMALL,
        written=datetime.now(UTC),
    )
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def fine_score(metric: str, value: Any, *, signed: bool = False) -> str:
    """Format a score with one more digit than elsewhere, as trials are close to each other."""
    if not is_finite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{3 if EVERY[metric].unit == 'dB' else 4}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Format a time in its two largest units: "42 s", "3 min 20 s", "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shortened(text: str, longest: int) -> str:
    """Return the end of a text that is longer than `longest` characters."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def split_path(path: str, longest: int = 24) -> tuple[str, str]:
    """Split a dotted path into its lead and its field, each shortened to fit above an axis."""
    lead, _, name = path.rpartition(".")
    return shortened(lead, longest), shortened(name, longest)


def goodness(content: SweepContent) -> dict[int, float]:
    """Return each validated trial's level by the first metric, from 0, the worst finished, to 1, the best finished.

    Unfinished trials are clipped to that range; they span the scale themselves if fewer than two finished. All are 1 if
    all are equal.
    """
    scores = {trial.number: score_of(trial, content.metrics[0]) for trial in content.trials}
    known = {number: score for number, score in scores.items() if score is not None}
    finished = [known[t.number] for t in content.trials if t.state == "finished" and t.number in known]
    span = finished if len(finished) > 1 else list(known.values())
    worst, best = (min, max) if content.metric.higher else (max, min)
    low, high = worst(span, default=0.0), best(span, default=0.0)
    if low == high:
        return {n: float((score >= high) if content.metric.higher else (score <= high)) for n, score in known.items()}
    return {number: min(max((score - low) / (high - low), 0.0), 1.0) for number, score in known.items()}


def looks(content: SweepContent) -> dict[int, dict[str, Any]]:
    """Return each trial's CSS classes, colours and label, by number, the best last."""
    levels, paper = goodness(content), content.papers_trial
    order = sorted(content.trials, key=lambda trial: (trial.number == content.best, levels.get(trial.number, -1.0)))
    drawn = {}
    for trial in order:
        level = levels.get(trial.number)
        marks = {
            "leader": trial.number == content.best,
            "front": trial.number in content.front,
            "reference": trial is paper,
            "unscored": level is None,
        }
        scores = [f"{EVERY[name].title} {fine_score(name, trial.score(name))}" for name in content.metrics]
        settings = [f"{path.rpartition('.')[2]} {value_text(trial.settings.get(path))}" for path in content.paths]
        label = [f"trial {trial.number}, {trial.state}", f"step {trial.step:,}", *scores, *settings]
        drawn[trial.number] = {
            "classes": " ".join([trial.state, *(mark for mark, holds in marks.items() if holds)]),
            "colours": None if level is None else tuple(colour(level, dark=dark) for dark in (False, True)),
            "label": " · ".join(label),
        }
    return drawn


def by_rank(content: SweepContent) -> list[Trial]:
    """Return the trials by state, finished ones first; within a state by step reached, then by score."""
    levels = goodness(content)
    sign = -1 if content.metric.higher else 1

    def key(trial: Trial) -> tuple:
        score = score_of(trial, content.metrics[0])
        reached = 0 if trial.state == "finished" else -trial.step
        return STATES.index(trial.state), reached, trial.number not in levels, sign * (score or 0.0), trial.number

    return sorted(content.trials, key=key)


def against(metric: str, value: float | None, other: float | None) -> tuple[str, str]:
    """Compare two scores in words, with "good", "bad", or "" if neither is better.

    In percent of the other, except for decibels and if one of the two is not positive.
    """
    if value is None or other is None:
        return "", ""
    if value == other:
        return "the same", ""
    kind = "good" if (value > other) == EVERY[metric].higher else "bad"
    if EVERY[metric].unit == "dB" or min(value, other) <= 0:
        return f"{fine_score(metric, value - other, signed=True)} {EVERY[metric].unit}".strip(), kind
    return f"{abs(value / other - 1):.1%} {'higher' if value > other else 'lower'}".replace("%", " %"), kind


def best_card(content: SweepContent) -> dict[str, Any] | None:
    """Compare the best trial with the paper's, provided that both were last validated at the same step."""
    best = next((trial for trial in content.trials if trial.number == content.best), None)
    if best is None:
        return None
    paper, name = content.papers_trial, content.metrics[0]
    comparable = paper is not None and paper is not best and paper.step == best.step
    text, kind = against(name, score_of(best, name), score_of(paper, name) if comparable and paper else None)
    return {"trial": best, "paper": paper, "text": text, "kind": kind}


def effort(content: SweepContent) -> dict[str, int]:
    """Return the steps trained, and those saved by shared stages and by early stopping."""
    budget = content.about["budget"]
    return {
        "trained": sum(trial.step for trial in content.trials) + content.shared.get("steps", 0),
        "saved by shared stages": content.shared.get("saved", 0),
        "saved by stopping early": sum(max(budget - t.step, 0) for t in content.trials if t.state == "stopped"),
    }


def final_rows(final: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the final comparison: which side is better, and whether the interval excludes zero."""
    rows = []
    for name, sides in final["scores"].items():
        best, paper, difference = (sides[side] for side in ("best", "paper", "difference"))
        _, kind = against(name, best["mean"], paper["mean"])
        interval = difference["interval"]
        apart = interval is not None and None not in interval and (interval[0] > 0 or interval[1] < 0)
        rows.append({"name": name, "sides": sides, "kind": kind, "apart": apart, "reach": _reach(name, difference)})
    return rows


def _reach(metric: str, difference: Mapping[str, Any]) -> dict[str, Any] | None:
    """The difference on a scale from 0 to 100: no difference in the middle, the best trial's side on the right."""
    ends = [end for end in difference["interval"] or () if is_finite(end)]
    values = [value for value in difference["values"] if is_finite(value)]
    if not is_finite(difference["mean"]):
        return None
    limit = max(map(abs, [*ends, *values, difference["mean"]])) or 1.0
    scale = (46 if EVERY[metric].higher else -46) / limit
    return {
        "ends": sorted(50 + scale * end for end in ends) if len(ends) == 2 else None,
        "values": [50 + scale * value for value in values],
        "mean": 50 + scale * difference["mean"],
    }
