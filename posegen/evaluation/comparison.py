"""Comparison of scored runs: the same scores on the same pairs, and paired differences from the first run.

Two runs are scored on the same data if their tables name the same pairs and the source baseline has the same score on
each: it depends only on the images, joints and masks of the pair. Differences are taken pair by pair; their 95 %
intervals are the bootstrap over persons of `scoring.summary`, with the same draws. Our choice; the papers compare means
only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from posegen.evaluation.metrics import EVERY
from posegen.evaluation.scoring import bootstrap_draws, confidence_interval, metrics_in, resampling_units
from posegen.storage.files import read_json
from posegen.storage.run_lock import refresh
from posegen.storage.store import Store, check_layout

READ = ("plan.json", "shards/manifest.json", "scores/metrics.json", "scores/pairs.parquet")  # of a run
READ_OF_REPORTS = ("report/fingerprint.json", "report/sample_sheet.png")
TOLERANCE = 1e-6  # relative; floating-point differences between machines
Outcome = Literal["better", "same", "worse"]


@dataclass(frozen=True)
class ScoredRun:
    """The scores and the plan of one run."""

    store: Store
    metrics: Mapping[str, Any]  # metrics.json
    table: Mapping[str, np.ndarray]  # pairs.parquet
    plan: Mapping[str, Any]  # plan.json; empty where there is none

    @property
    def folder(self) -> Path:
        """Run folder on this node."""
        return self.store.folder

    @property
    def uri(self) -> str:
        """URI or path of the run."""
        return self.store.uri

    @property
    def system(self) -> str:
        """Name of the system, a dash if unknown."""
        return str(self.plan.get("system", {}).get("name", "–"))

    @property
    def variant(self) -> str:
        """Name of the variant, a dash if unknown."""
        return str(self.plan.get("system", {}).get("variant", "–"))

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each stage, in training order."""
        names = [stage["name"] for stage in self.plan.get("stages", [])]
        return {name: self.settings[f"{name}.steps"] for name in names if f"{name}.steps" in self.settings}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings by dotted path."""
        return self.plan.get("settings", {})

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """Source and target names of the pairs."""
        return list(zip(self.table["source"].tolist(), self.table["target"].tolist(), strict=True))


@dataclass(frozen=True)
class Difference:
    """A run's mean minus the first run's, its interval, and the outcome given the metric's direction."""

    mean: float
    interval: list[float]
    outcome: Outcome


@dataclass(frozen=True)
class Comparison:
    """Runs that were scored on the same pairs. `differences` are keyed by the run's index and the metric."""

    runs: Sequence[ScoredRun]
    labels: Sequence[str]
    differences: Mapping[tuple[int, str], Difference]
    notes: Sequence[str]

    @property
    def metrics(self) -> list[str]:
        """Scores that at least one run has."""
        return [name for name in EVERY if any(name in run.metrics["scores"] for run in self.runs)]

    @property
    def baselines(self) -> Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Means and intervals of each baseline, from the first run that has it: all runs agree."""
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for run in reversed(self.runs):
            for name, means in run.metrics["baselines"].items():
                kept, ends = found.get(name, ({}, {}))
                found[name] = kept | means, ends | run.metrics["baseline_intervals"][name]
        return found


def compare_runs(uris: Sequence[str | Path]) -> Comparison:
    """Read scored runs, each a folder or a URI, and compare all with the first.

    Raises ValueError, worded for the user, for fewer than two runs, a run without scores, runs without a common score,
    and runs that were scored on different pairs or data.
    """
    if len(uris) < 2:
        raise ValueError(f"{len(uris)} run(s) were given to compare; give at least two run folders.")
    runs = [read_run(uri) for uri in uris]
    for run in runs[1:]:
        _check_same_data(runs[0], run)
    differences = {
        (index, name): found
        for index, run in enumerate(runs)
        for name in metrics_in(run.table)
        if index and name in runs[0].table and (found := paired_difference(runs[0], run, name))
    }
    names = [run.store.name if run.store.remote else run.folder.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else [run.uri for run in runs]
    return Comparison(runs, labels, differences, _notes(runs))


def read_run(uri: str | Path) -> ScoredRun:
    """Read a run by its folder or URI. Raises ValueError where there is no such folder or it is not scored."""
    store = Store.of(uri)
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


def _check_same_data(first: ScoredRun, run: ScoredRun) -> None:
    if first.names != run.names or first.metrics.get("split") != run.metrics.get("split"):
        common = len(set(first.names) & set(run.names))
        if len(first.names) == len(run.names) or not common:
            raise _other_data(first, run, f"{common:,} of {len(run.names):,} pairs are the same")
        fewer, more = sorted((first, run), key=lambda each: len(each.names))
        raise ValueError(
            f"{run.uri} was scored on other pairs than {first.uri}: {len(first.names):,} there, {len(run.names):,} "
            f"here, {common:,} in common. Score both on the same: posegen evaluate --run {more.uri} --pairs "
            f"{len(fewer.names)} --update"
        )
    if not set(metrics_in(first.table)) & set(metrics_in(run.table)):
        raise ValueError(
            f"{first.uri} and {run.uri} have no score in common: {', '.join(metrics_in(first.table))} there, "
            f"{', '.join(metrics_in(run.table))} here. Compare systems that both make images, or both predict joints."
        )
    if not _same_scores(first, run, "source"):
        raise _other_data(first, run, "the images, joints or masks of the same pairs differ")


def _other_data(first: ScoredRun, run: ScoredRun, reason: str) -> ValueError:
    settings = differing_settings([first, run], heads=("dataset", "data", "shards"))
    listed = "\n  ".join([reason, *(f"{path}: {there} there, {here} here" for path, (there, here) in settings.items())])
    return ValueError(
        f"{run.uri} was scored on other data than {first.uri}:\n  {listed}\nMake both runs with the same "
        "--dataset, --root, --size and settings of data.* and shards.*."
    )


def _same_scores(first: ScoredRun, run: ScoredRun, baseline: str) -> bool:
    """Return whether the scores of a baseline that both tables have agree on every pair."""
    columns = [f"{baseline}.{name}" for name in metrics_in(first.table, baseline) if f"{baseline}.{name}" in run.table]
    pairs = ((first.table[column], run.table[column]) for column in columns)
    return all(np.allclose(there, here, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True) for there, here in pairs)


def differing_settings(runs: Sequence[ScoredRun], heads: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, by dotted path; only those under `heads` if any are given."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    if heads:
        paths = [path for path in paths if path.partition(".")[0] in heads]
    values = {path: [run.settings.get(path, "unset") for run in runs] for path in paths}
    return {path: given for path, given in values.items() if any(value != given[0] for value in given)}


def _notes(runs: Sequence[ScoredRun]) -> list[str]:
    """Return differences between the runs that do not prevent a comparison."""
    first = runs[0]
    notes = [
        f"{run.uri} was trained on other images than {first.uri}: their means differ; the baseline 'mean' is that of "
        f"{first.uri}"
        for run in runs[1:]
        if not _same_scores(first, run, "mean")
    ]
    return [*notes, *dict.fromkeys(note for run in runs for note in run.metrics.get("stand_ins", []))]


def paired_difference(first: ScoredRun, run: ScoredRun, metric: str) -> Difference | None:
    """Return the mean difference over the pairs on which both runs have the score; None if there is no such pair."""
    differences = run.table[metric] - first.table[metric]
    units, _ = resampling_units(first.table["person"].tolist())
    ends = confidence_interval(differences, units, bootstrap_draws(int(units.max()) + 1))
    if ends is None:
        return None
    sign = 1 if EVERY[metric].higher else -1
    low, high = sorted(sign * end for end in ends)
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "same"
    return Difference(float(differences[np.isfinite(differences)].mean()), ends, outcome)
