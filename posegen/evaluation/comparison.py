"""Scored runs beside each other: the same scores of the same pairs, and whether a run differs from the first one.

Two runs are scored on the same data where their tables name the same pairs and the source baseline scores the same on
each: it depends on the images, the joints and the masks of the pair alone. A difference is taken pair by pair; its
95 % interval is the bootstrap over persons of `metrics.summary`, with the same draws. Our choice; the papers compare
means alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from posegen.evaluation.metrics import EVERY
from posegen.evaluation.scoring import interval, metrics_in, resampling, resampling_units
from posegen.storage.files import read_json
from posegen.storage.layout import check_layout
from posegen.storage.run_lock import refresh
from posegen.storage.store import Store

READ = ("plan.json", "shards/manifest.json", "scores/metrics.json", "scores/pairs.parquet")  # of a run
READ_OF_REPORTS = ("report/fingerprint.json", "report/sample_sheet.png")
SAME = 1e-6  # relative: what the arithmetic of another machine may change in a score
Outcome = Literal["better", "same", "worse"]


@dataclass(frozen=True)
class ScoredRun:
    """One run's scores."""

    store: Store  # the run
    metrics: Mapping[str, Any]  # metrics.json
    table: Mapping[str, np.ndarray]  # pairs.parquet
    plan: Mapping[str, Any]  # plan.json; empty where there is none

    @property
    def folder(self) -> Path:
        """The run folder on this node."""
        return self.store.folder

    @property
    def place(self) -> str:
        return self.store.uri

    @property
    def system(self) -> str:
        return self._described("name")

    @property
    def variant(self) -> str:
        return self._described("variant")

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each stage, in their order."""
        names = [stage["name"] for stage in self.plan.get("stages", [])]
        return {name: self.settings[f"{name}.steps"] for name in names if f"{name}.steps" in self.settings}

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.plan.get("settings", {})

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """The pairs, by the names of their images."""
        return list(zip(self.table["source"].tolist(), self.table["target"].tolist(), strict=True))

    def _described(self, name: str) -> str:
        return str(self.plan.get("system", {}).get(name, "–"))


@dataclass(frozen=True)
class Difference:
    """A run's mean minus the first one's, its interval, and what that says in the metric's direction."""

    mean: float
    interval: list[float]
    outcome: Outcome


@dataclass(frozen=True)
class Comparison:
    """Runs that were scored on the same pairs. `differences` are by the run's place and the metric."""

    runs: Sequence[ScoredRun]
    labels: Sequence[str]
    differences: Mapping[tuple[int, str], Difference]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """The scores that any of the runs has."""
        return [name for name in EVERY if any(name in run.metrics["scores"] for run in self.runs)]

    @property
    def baselines(self) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Means and intervals of each baseline: the same in all runs, so taken from the first that has it."""
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for run in reversed(self.runs):
            for name, means in run.metrics["baselines"].items():
                kept, ends = found.get(name, ({}, {}))
                found[name] = kept | means, ends | run.metrics["baseline_intervals"][name]
        return found


def compare_runs(places: Sequence[str | Path]) -> Comparison:
    """Reads scored runs, each a folder or a URI, and compares all with the first.

    Raises ValueError, worded for the user, for fewer than two runs, one without scores, runs without a score in common,
    and runs that were scored on other pairs or data.
    """
    if len(places) < 2:
        raise ValueError(f"{len(places)} run(s) were given to compare; give at least two run folders.")
    runs = [read_run(place) for place in places]
    for run in runs[1:]:
        _check_same_pairs(runs[0], run)
        _check_same_data(runs[0], run)
    differences = {
        (place, name): difference(runs[0], run, name)
        for place, run in enumerate(runs)
        for name in metrics_in(run.table)
        if place and name in runs[0].table
    }
    known = {key: found for key, found in differences.items() if found is not None}
    return Comparison(runs, _labels(runs), known, _notes(runs))


def read_run(place: str | Path) -> ScoredRun:
    """A run by its folder or URI. Raises ValueError where there is no such folder, or where it is not scored."""
    store = Store.of(place)
    refresh(store, wanted=lambda inside: inside in (*READ, *READ_OF_REPORTS))
    if not store.folder.is_dir():
        raise ValueError(f"{store.uri} was given to compare, and there is no such run folder.")
    check_layout(store)
    scores = store.folder / "scores"
    metrics = read_json(scores / "metrics.json")
    if metrics is None or not (scores / "pairs.parquet").is_file():
        raise ValueError(f"{store.uri} has no scores. Make them first: posegen evaluate --run {store.uri}")
    table = pq.read_table(scores / "pairs.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return ScoredRun(store, metrics, columns, read_json(store.folder / "plan.json") or {})


def _labels(runs: Sequence[ScoredRun]) -> list[str]:
    """The runs' names, or their places where two have the same name."""
    names = [run.store.name if run.store.remote else run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [run.place for run in runs]


def _check_same_pairs(first: ScoredRun, run: ScoredRun) -> None:
    if first.names == run.names and first.metrics.get("split") == run.metrics.get("split"):
        return
    common = len(set(first.names) & set(run.names))
    if len(first.names) == len(run.names) or not common:
        raise _other_data(first, run, [f"{common:,} of {len(run.names):,} pairs are the same"])
    fewer, more = sorted((first, run), key=lambda each: len(each.names))
    raise ValueError(
        f"{run.place} was scored on other pairs than {first.place}: {len(first.names):,} there, {len(run.names):,} "
        f"here, {common:,} in common. Score both on the same: posegen evaluate --run {more.place} --pairs "
        f"{len(fewer.names)} --update"
    )


def _check_same_data(first: ScoredRun, run: ScoredRun) -> None:
    """By the source baseline, which both tables have of the images, of the joints or of both."""
    if not set(metrics_in(first.table)) & set(metrics_in(run.table)):
        raise ValueError(
            f"{first.place} and {run.place} have no score in common: {', '.join(metrics_in(first.table))} there, "
            f"{', '.join(metrics_in(run.table))} here. Compare systems that both make images, or both predict joints."
        )
    if not _same_scores(first, run, "source"):
        raise _other_data(first, run, ["the images, joints or masks of the same pairs are others"])


def _other_data(first: ScoredRun, run: ScoredRun, reasons: Sequence[str]) -> ValueError:
    """Says what was found, and which settings of the data differ."""
    apart = settings_apart([first, run], heads=("dataset", "data", "shards"))
    named = [f"{path}: {there} there, {here} here" for path, (there, here) in apart.items()]
    listed = "\n  ".join([*reasons, *named])
    return ValueError(
        f"{run.place} was scored on other data than {first.place}:\n  {listed}\nMake both runs with the same "
        "--dataset, --root, --size and settings of data.* and shards.*."
    )


def _same_scores(first: ScoredRun, run: ScoredRun, baseline: str) -> bool:
    """Whether a baseline has the same scores on every pair, of those that both tables have."""
    columns = [f"{baseline}.{name}" for name in metrics_in(first.table, baseline) if f"{baseline}.{name}" in run.table]
    pairs = ((first.table[column], run.table[column]) for column in columns)
    return all(np.allclose(there, here, rtol=SAME, atol=SAME, equal_nan=True) for there, here in pairs)


def settings_apart(runs: Sequence[ScoredRun], heads: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, by dotted path; only those under `heads` where any are given."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    found = {path: [run.settings.get(path, "unset") for run in runs] for path in paths}
    asked = {path: values for path, values in found.items() if not heads or path.partition(".")[0] in heads}
    return {path: values for path, values in asked.items() if any(value != values[0] for value in values)}


def _notes(runs: Sequence[ScoredRun]) -> list[str]:
    """What is to be known of a comparison that is allowed."""
    notes = []
    for run in runs[1:]:
        if not _same_scores(runs[0], run, "mean"):
            notes.append(
                f"{run.place} learnt from other images than {runs[0].place}, for their mean is another one; the "
                f"baseline 'mean' is that of {runs[0].place}"
            )
    stand_ins = {note: None for run in runs for note in run.metrics.get("stand_ins", [])}
    return [*notes, *stand_ins]


def difference(first: ScoredRun, run: ScoredRun, metric: str) -> Difference | None:
    """Over the pairs on which both have the score; None where there is no such pair."""
    apart = run.table[metric] - first.table[metric]
    units, _ = resampling_units(first.table["person"].tolist())
    ends = interval(apart, units, resampling(int(units.max()) + 1))
    if ends is None:
        return None
    sign = 1 if EVERY[metric].higher else -1
    low, high = sorted(sign * end for end in ends)
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "same"
    return Difference(float(apart[np.isfinite(apart)].mean()), ends, outcome)
