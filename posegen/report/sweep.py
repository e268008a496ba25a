"""The page of a sweep over settings: what was searched, what each trial scored, and whether the best beats the paper's.

report/tune.html   images, drawings and styles inside; nothing is fetched, and all of it is there without scripts
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
from posegen.report.sweep_charts import (
    CURVES,
    SCATTER,
    TALL,
    between,
    colour,
    learning,
    parallel_lines,
    pareto,
    scatters,
    uprights,
)
from posegen.report.sweep_content import Row, Sweep, is_finite, score_of, value_text
from posegen.storage.files import write_whole
from posegen.training.trials import Trial

STATES = ("finished", "running", "stopped", "diverged", "failed", "waiting")  # as the trials are listed
SEARCHES = {"optuna": "Optuna's search", "random": "random search", "grid": "grid search"}
SCHEDULERS = {
    "asha": "ASHA stops weak trials early",
    "pbt": "population-based training",
    "none": "every trial in full",
}


def write_sweep_report(path: Path, sweep: Sweep, rows: Sequence[Row], shown: Mapping[int, str]) -> Path:
    """Writes the page of a sweep and gives its path.

    `shown` are the trials whose images are shown, in the order of the columns, with what they are in words.
    """
    page = _render(sweep, rows, shown)
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def fine_score(metric: str, value: Any, *, signed: bool = False) -> str:
    """A score with one digit more than elsewhere, as trials are close to each other."""
    if not is_finite(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{3 if EVERY[metric].unit == 'dB' else 4}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """A time in the two largest units that it has: "42 s", "3 min 20 s", "2 h 05 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shortened(text: str, longest: int) -> str:
    """The end of a text that is too long for its place."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def split_path(path: str, longest: int = 24) -> tuple[str, str]:
    """A dotted path as what leads to the field and the field, each to fit above an axis."""
    lead, _, name = path.rpartition(".")
    return shortened(lead, longest), shortened(name, longest)


def goodness(sweep: Sweep) -> dict[int, float]:
    """How good each judged trial is by the first metric, from 0, the worst that finished, to 1, the best of them.

    Those that did not finish may lie beyond and are put at the end; they span the scale themselves where fewer than
    two finished. All are 1 where all are equal.
    """
    scores = {trial.number: score_of(trial, sweep.metrics[0]) for trial in sweep.trials}
    known = {number: score for number, score in scores.items() if score is not None}
    finished = [known[t.number] for t in sweep.trials if t.state == "finished" and t.number in known]
    span = finished if len(finished) > 1 else list(known.values())
    worst, best = (min, max) if sweep.metric.higher else (max, min)
    low, high = worst(span, default=0.0), best(span, default=0.0)
    if low == high:
        return {
            number: float((score >= high) if sweep.metric.higher else (score <= high))
            for number, score in known.items()
        }
    return {number: min(max((score - low) / (high - low), 0.0), 1.0) for number, score in known.items()}


def looks(sweep: Sweep) -> dict[int, dict[str, Any]]:
    """How each trial is drawn everywhere, by its number, the best last: classes, colours, and what it is in words."""
    levels, paper = goodness(sweep), sweep.papers_trial
    order = sorted(sweep.trials, key=lambda trial: (trial.number == sweep.best, levels.get(trial.number, -1.0)))
    drawn = {}
    for trial in order:
        level = levels.get(trial.number)
        marks = {
            "leader": trial.number == sweep.best,
            "front": trial.number in sweep.front,
            "reference": trial is paper,
        }
        words = [trial.state, *(mark for mark, holds in marks.items() if holds)]
        drawn[trial.number] = {
            "classes": " ".join([*words, *(["unjudged"] if level is None else [])]),
            "colours": None if level is None else (colour(level, dark=False), colour(level, dark=True)),
            "label": _label(sweep, trial),
        }
    return drawn


def _label(sweep: Sweep, trial: Trial) -> str:
    scores = [f"{EVERY[name].title} {fine_score(name, trial.score(name))}" for name in sweep.metrics]
    settings = [f"{path.rpartition('.')[2]} {value_text(trial.settings.get(path))}" for path in sweep.paths]
    return " · ".join([f"trial {trial.number}, {trial.state}", f"step {trial.step:,}", *scores, *settings])


def by_rank(sweep: Sweep) -> list[Trial]:
    """Trials by state, those that finished first; within a state those that came farther, then the better ones."""
    levels = goodness(sweep)
    sign = -1 if sweep.metric.higher else 1

    def key(trial: Trial) -> tuple:
        score = score_of(trial, sweep.metrics[0])
        far = 0 if trial.state == "finished" else -trial.step
        return STATES.index(trial.state), far, trial.number not in levels, sign * (score or 0.0), trial.number

    return sorted(sweep.trials, key=key)


def against(metric: str, mine: float | None, other: float | None) -> tuple[str, str]:
    """One score beside another in words, and "good", "bad" or "" where neither is better.

    In percent of the other, except for decibels and where one of the two is not above zero.
    """
    if mine is None or other is None:
        return "", ""
    if mine == other:
        return "the same", ""
    kind = "good" if (mine > other) == EVERY[metric].higher else "bad"
    if EVERY[metric].unit == "dB" or min(mine, other) <= 0:
        return f"{fine_score(metric, mine - other, signed=True)} {EVERY[metric].unit}".strip(), kind
    return f"{abs(mine / other - 1):.1%} {'higher' if mine > other else 'lower'}".replace("%", " %"), kind


def best_card(sweep: Sweep) -> dict[str, Any] | None:
    """The best trial beside the one with the paper's values; compared only where both were judged at the same step."""
    best = next((trial for trial in sweep.trials if trial.number == sweep.best), None)
    if best is None:
        return None
    paper, name = sweep.papers_trial, sweep.metrics[0]
    comparable = paper is not None and paper is not best and paper.step == best.step
    text, kind = against(name, score_of(best, name), score_of(paper, name) if comparable and paper else None)
    return {"trial": best, "paper": paper, "text": text, "kind": kind}


def effort(sweep: Sweep) -> dict[str, int]:
    """Steps that were trained, and those that were not: by sharing stages, and by stopping trials before the budget."""
    budget = sweep.about["budget"]
    return {
        "trained": sum(trial.step for trial in sweep.trials) + sweep.shared.get("steps", 0),
        "saved by shared stages": sweep.shared.get("saved", 0),
        "saved by stopping early": sum(max(budget - t.step, 0) for t in sweep.trials if t.state == "stopped"),
    }


def final_rows(final: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the final comparison: which of the two is better, and whether the interval leaves zero out."""
    rows = []
    for name, sides in final["scores"].items():
        best, paper, difference = (sides[side] for side in ("best", "paper", "difference"))
        _, kind = against(name, best["mean"], paper["mean"])
        interval = difference["interval"]
        apart = interval is not None and None not in interval and (interval[0] > 0 or interval[1] < 0)
        rows.append({"name": name, "sides": sides, "kind": kind, "apart": apart, "reach": _reach(name, difference)})
    return rows


def _reach(metric: str, difference: Mapping[str, Any]) -> dict[str, Any] | None:
    """The difference from 0 to 100, no difference in the middle, the best trial's side on the right."""
    ends = [end for end in difference["interval"] or () if is_finite(end)]
    values = [value for value in difference["values"] if is_finite(value)]
    if not is_finite(difference["mean"]):
        return None
    limit = max(map(abs, [*ends, *values, difference["mean"]])) or 1.0
    sign = 1 if EVERY[metric].higher else -1

    def place(value: float) -> float:
        return 50 + 46 * sign * value / limit

    return {
        "ends": sorted(map(place, ends)) if len(ends) == 2 else None,
        "values": [place(value) for value in values],
        "mean": place(difference["mean"]),
    }


def _render(sweep: Sweep, rows: Sequence[Row], shown: Mapping[int, str]) -> str:
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
    lines, steps, heights, rungs = learning(sweep)
    return template("sweep.html", filters).render(
        sweep=sweep,
        rows=rows,
        shown=shown,
        all_metrics=EVERY,
        looks=looks(sweep),
        best=best_card(sweep),
        counts=Counter(trial.state for trial in sweep.trials),
        states=STATES,
        ranked=by_rank(sweep),
        effort=effort(sweep),
        final=final_rows(sweep.final) if sweep.final else [],
        uprights=uprights(sweep),
        lines=parallel_lines(sweep),
        scatters=scatters(sweep),
        pareto=pareto(sweep),
        learning={"lines": {line.trial: line for line in lines}, "steps": steps, "heights": heights, "rungs": rungs},
        plot={"scatter": SCATTER, "curves": CURVES, "between": between(sweep), "tall": TALL},
        ramp=[(colour(n / 8, dark=False), colour(n / 8, dark=True)) for n in range(9)],
        number_of={trial.number: trial for trial in sweep.trials},
        words={"search": SEARCHES, "scheduler": SCHEDULERS},
        small=SMALL,
        written=datetime.now(UTC),
    )
