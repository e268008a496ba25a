"""From one row of scores a pair to what metrics.json says: means, their confidence intervals, counts. No Ray.

Pairs of one person are alike, so the mean of 12,000 pairs is known far less well than 12,000 draws would make it.
Intervals are therefore a bootstrap over persons, all pairs of a drawn person coming along (a cluster bootstrap; Davison
and Hinkley 1997, section 3.8). Our choice; the papers print no interval.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from posegen.metrics.baselines import BASELINES
from posegen.metrics.choice import EVERY, STAGE_METRIC
from posegen.metrics.measures import METRICS
from posegen.metrics.pose import POSE_METRICS
from posegen.metrics.scoring import STOOD_IN

DRAWS = 1000
SEED = 0
FEW_PERSONS = 5  # with fewer, resampling persons says nothing, and pairs are resampled instead

Table = Mapping[str, np.ndarray]
Resampling = Int64[np.ndarray, "draws units"]
Interval = list[float]  # low, high


def summary(table: Table, persons: Sequence[str]) -> dict:
    """Means, intervals and notes of a table of `scoring.score_pairs`; `persons` names the person of each pair.

    Of what the table has: scores of pictures, of joints or of both, and, where there are any, of pictures on the way.
    Values that are not numbers are left out of the means and counted in the notes, with the reason. A mean of nothing
    is None.
    """
    units, unit_name = resampling_units(persons)
    draws = resampling(int(units.max()) + 1)
    baselines, stages = baselines_in(table), stages_in(table)
    blocks = {prefix: _means_and_intervals(table, prefix, units, draws) for prefix in ("", *baselines, *stages)}
    found = {
        "scores": blocks[""][0],
        "intervals": blocks[""][1],
        "baselines": {name: blocks[name][0] for name in baselines},
        "baseline_intervals": {name: blocks[name][1] for name in baselines},
        "interval_method": f"95 %, bootstrap over {unit_name}, {DRAWS} draws",
        "persons": len(set(persons)),
        "variants": {name: EVERY[name].definition for name in metrics_in(table)},
        "notes": notes(table),
    }
    if stages:
        found |= {"stages": {name: blocks[name][0] for name in stages}}
        found |= {"stage_intervals": {name: blocks[name][1] for name in stages}}
    return found


def metrics_in(table: Table, prefix: str = "") -> list[str]:
    """The scores that a table has, of the result or of what a prefix names."""
    return [name for name in EVERY if _column(prefix, name) in table]


def _column(prefix: str, metric: str) -> str:
    return f"{prefix}.{metric}" if prefix else metric


def baselines_in(table: Table) -> list[str]:
    """The baselines that a table has scores of."""
    return [name for name in BASELINES if metrics_in(table, name)]


def stages_in(table: Table) -> list[str]:
    """The columns of stages, other than the result, that a table has scores of."""
    scored = [column.removesuffix(f".{STAGE_METRIC}") for column in table if column.endswith(f".{STAGE_METRIC}")]
    return [name for name in scored if name not in BASELINES]


def resampling_units(persons: Sequence[str]) -> tuple[np.ndarray, str]:
    """The number of each pair's unit of resampling, and what a unit is."""
    names, units = np.unique(np.asarray(persons), return_inverse=True)
    if len(names) >= FEW_PERSONS:
        return units, "persons"
    return np.arange(len(persons)), f"pairs, for there are only {len(names)} persons (too narrow for new persons)"


def resampling(units: int) -> Resampling:
    """How often each unit is drawn, in each draw of as many units with replacement. A function of the number alone."""
    return np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.int64)


def interval(values: Float64[np.ndarray, "pairs"], units: np.ndarray, draws: Resampling) -> Interval | None:
    """95 % confidence interval of the mean of `values`, resampled by unit. None where no value is a number."""
    finite = np.isfinite(values)
    if not finite.any():
        return None
    sums = np.bincount(units, np.where(finite, values, 0), minlength=draws.shape[1])
    counts = np.bincount(units, finite, minlength=draws.shape[1])
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def _means_and_intervals(table: Table, prefix: str, units: np.ndarray, draws: Resampling) -> tuple[dict, dict]:
    columns = {name: table[_column(prefix, name)] for name in metrics_in(table, prefix)}
    intervals = {name: interval(values, units, draws) for name, values in columns.items()}
    means = {
        name: float(values[np.isfinite(values)].mean()) if intervals[name] else None for name, values in columns.items()
    }
    return means, intervals


def notes(table: Table) -> dict[str, int]:
    """How many pairs have something to be known: no result, a baseline stood in for, a score that is not a number."""
    results = {"generated picture has": METRICS, "predicted joints have": POSE_METRICS}
    made = " or ".join(words for words, metrics in results.items() if metrics.keys() & set(metrics_in(table)))
    counts = {f"{made} values that are not numbers: no score": int((~table["finite"]).sum())}
    if STOOD_IN in table:
        counts["similarity: the source stands in, a shoulder or hip is unknown"] = int(table[STOOD_IN].sum())
    for prefix in ("", *baselines_in(table), *stages_in(table)):
        usable = np.ones(len(table["finite"]), dtype=bool) if prefix in BASELINES else table["finite"]
        for name in metrics_in(table, prefix):
            column = _column(prefix, name)
            missing = int((~np.isfinite(table[column]) & usable).sum())
            counts[f"{column} is undefined: {EVERY[name].undefined}"] = missing
    return {note: count for note, count in counts.items() if count}
