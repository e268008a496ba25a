"""From one row of scores a pair to what metrics.json says: means, their confidence intervals, counts. No Ray.

Pairs of one person are alike, so the mean of 12,000 pairs is known far less well than 12,000 draws would make it.
Intervals are therefore a bootstrap over persons, all pairs of a drawn person coming along (a cluster bootstrap; Davison
and Hinkley 1997, section 3.8). Our choice; the papers print no interval.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from posegen.metrics.baselines import BASELINES
from posegen.metrics.measures import METRICS
from posegen.metrics.scoring import STOOD_IN

DRAWS = 1000
SEED = 0
FEW_PERSONS = 5  # with fewer, resampling persons says nothing, and pairs are resampled instead

Table = Mapping[str, np.ndarray]
Resampling = Int64[np.ndarray, "draws units"]
Interval = list[float]  # low, high


def summary(table: Table, persons: Sequence[str]) -> dict:
    """Means, intervals and notes of a table of `scoring.score_pairs`; `persons` names the person of each pair.

    Values that are not numbers are left out of the means and counted in the notes, with the reason. A mean of nothing
    is None.
    """
    units, unit_name = _units(persons)
    draws = resampling(int(units.max()) + 1)
    blocks = {prefix: _means_and_intervals(table, prefix, units, draws) for prefix in ("", *BASELINES)}
    return {
        "scores": blocks[""][0],
        "intervals": blocks[""][1],
        "baselines": {name: blocks[name][0] for name in BASELINES},
        "baseline_intervals": {name: blocks[name][1] for name in BASELINES},
        "interval_method": f"95 %, bootstrap over {unit_name}, {DRAWS} draws",
        "persons": len(set(persons)),
        "variants": {name: metric.definition for name, metric in METRICS.items()},
        "notes": notes(table),
    }


def _units(persons: Sequence[str]) -> tuple[np.ndarray, str]:
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
    columns = {name: table[f"{prefix}.{name}" if prefix else name] for name in METRICS}
    intervals = {name: interval(values, units, draws) for name, values in columns.items()}
    means = {
        name: float(values[np.isfinite(values)].mean()) if intervals[name] else None for name, values in columns.items()
    }
    return means, intervals


def notes(table: Table) -> dict[str, int]:
    """How many pairs have something to be known: no picture, a baseline stood in for, a score that is not a number."""
    counts = {
        "generated picture has values that are not numbers: no score": int((~table["finite"]).sum()),
        "similarity: the source stands in, a shoulder or hip is unknown": int(table[STOOD_IN].sum()),
    }
    for prefix in ("", *(f"{baseline}." for baseline in BASELINES)):
        usable = table["finite"] if prefix == "" else np.ones(len(table["finite"]), dtype=bool)
        for name, metric in METRICS.items():
            missing = int((~np.isfinite(table[prefix + name]) & usable).sum())
            counts[f"{prefix}{name} is undefined: {metric.undefined}"] = missing
    return {note: count for note, count in counts.items() if count}
