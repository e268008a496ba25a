"""The plan of a sweep over loss weights: its trials, what they share, and their states.

Shards and the stages before the first searched one are made once. Trials are validated on held-out people; the best
weights are then compared with the paper's on the test people, over several seeds. A sweep is a run folder:

    sweep.json           every setting of the sweep
    shards/  stages/     made once: with a validation split; the stages before the first searched one
    trials/0000/ ...     trial.json, stages/, samples.png, pairs.parquet; trial 0 has the paper's weights
    finals/0000/ ...     the same for the final comparison: paper and best in turn, one trial per seed
    best.json            the best weights, for `full_pipeline.py --settings`
    report/tune.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from posegen.catalog import override
from posegen.data.listing import Listing
from posegen.data.shards.manifest import MANIFEST
from posegen.evaluation.evaluate import chosen_pairs
from posegen.evaluation.metrics import EVERY
from posegen.runs.plan import Plan, Step
from posegen.storage.files import read_json, write_json
from posegen.storage.store import LAYOUT, Store
from posegen.training.task import Task
from posegen.tuning.ray_tune import SchedulerKind, validation_steps
from posegen.tuning.results import Settings, Trial, TrialFolder, Value
from posegen.tuning.space import (
    TPE,
    FixedList,
    SearchAlgorithm,
    Space,
    current_values,
    first_searched_stage,
    random_points,
)
from posegen.tuning.trainable import PairsValidator

SearchKind = Literal["optuna", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Everything that defines a sweep. Made on the driver, before Ray starts."""

    base: Plan  # the system at the paper's weights, searched stages as long as the budget; with a validation split
    space: Space
    metrics: tuple[str, ...]  # that trials are validated by; the first one decides which is best
    trials: int
    search: SearchKind
    scheduler: SchedulerKind
    seeds: int  # of the final comparison; 0 skips it
    validation_pairs: int | None  # None is all
    side_by_side: int | None = None  # trials at once; None is as many as there is room for, within reason
    given: Mapping[str, str] = field(default_factory=dict)  # settings of the system that the user gave

    @property
    def store(self) -> Store:
        """The run's storage."""
        return self.base.store

    @property
    def run(self) -> Path:
        """The run folder on this node."""
        return self.base.run

    @property
    def folder(self) -> TrialFolder:
        """The trials of the search."""
        return TrialFolder(self.store, "trials")

    @property
    def finals(self) -> TrialFolder:
        """The trials of the final comparison."""
        return TrialFolder(self.store, "finals")

    @cached_property
    def first(self) -> int:
        """The index of the first stage that trials train; earlier ones are shared."""
        return first_searched_stage(self.space, self.base.system)

    @property
    def budget(self) -> int:
        """Steps of the last stage, in which trials are validated and stopped."""
        return self.base.system.stages[-1].training.steps

    @property
    def steps_per_trial(self) -> int:
        """Steps of a full trial, over all stages that it trains."""
        return sum(stage.training.steps for stage in self.base.system.stages[self.first :])

    @property
    def steps_shared(self) -> int:
        """Steps of the shared stages."""
        return sum(stage.training.steps for stage in self.base.system.stages[: self.first])

    @property
    def steps_saved(self) -> int:
        """Steps that sharing saves over the whole sweep, the final comparison included."""
        return self.steps_shared * (self.trials + 2 * self.seeds - 1)

    @cached_property
    def paper(self) -> dict[str, Value]:
        """The system's own values of the searched settings."""
        return current_values(self.space, self.base.system)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that affects a trial's scores, by dotted path, as JSON values; not the number of trials."""
        flat = self.base.settings | {f"space.{path}": words for path, words in self.space.descriptions().items()}
        flat |= {"search": self.search, "scheduler": self.scheduler, "metrics": list(self.metrics)}
        return flat | {"validation_pairs": self.validation_pairs}

    def differences(self) -> list[str]:
        """Return one line for each setting that differs from those of the folder's trials."""
        before = (read_json(self.run / "sweep.json") or {}).get("settings")
        if before is None:
            return []
        changed = [k for k in sorted(before | self.settings) if before.get(k, "unset") != self.settings.get(k, "unset")]
        return [f"{k}: {before.get(k, 'unset')} there, {self.settings.get(k, 'unset')} now" for k in changed]

    def shared_steps(self) -> list[Step]:
        """Return the shards and the shared stages, with their states."""
        return self.base.steps()[: 1 + self.first]

    def algorithm(self) -> SearchAlgorithm:
        """Return the search algorithm."""
        if self.search == "optuna":
            directions = [(name, EVERY[name].higher) for name in self.metrics]
            return TPE(self.space, directions, self.base.seed, self.trials)
        if self.search == "grid":
            return FixedList([self.paper, *self.space.grid(self.trials - 1)])
        return FixedList([self.paper, *random_points(self.space, self.base.seed, self.trials - 1)])

    def save(self) -> None:
        """Write sweep.json and plan.json, atomically."""
        self.base.save()
        write_json(self.run / "sweep.json", {"layout": LAYOUT, "settings": self.settings})
        self.store.publish("sweep.json")

    def search_trials(self) -> tuple[list[Trial], list[Trial]]:
        """Return the trials that have ended, and the waiting ones: interrupted or not begun."""
        found = self.folder.read()
        new = [Trial(number=n, settings={}, seed=self.base.seed) for n in range(len(found), self.trials)]
        if new and new[0].number == 0:
            new[0] = replace(new[0], settings=self.paper)
        return [t for t in found if t.ended], [t for t in found if not t.ended] + new

    def final_trials(self, best: Trial) -> tuple[list[Trial], list[Trial]]:
        """Return the same for the final comparison, after removing trials of another best."""
        ended, waiting = [], []
        names: dict[str, Settings] = {"paper": self.paper}
        if dict(best.settings) != self.paper:
            names["best"] = best.settings
        known = {trial.number: trial for trial in self.finals.read()}
        for seed in range(1, self.seeds + 1):
            for index, (name, settings) in enumerate(names.items()):
                number = 2 * (seed - 1) + index
                trial = known.get(number)
                if trial is None or dict(trial.settings) != dict(settings):
                    self.store.remove(self.finals.prefix(number))
                    trial = Trial(number=number, name=name, settings=settings, seed=self.base.seed + seed)
                (ended if trial.ended else waiting).append(trial)
        return ended, waiting

    def pairs(self, split: str) -> list[int]:
        """Return the pairs on which trials are scored: validation pairs in the search, test pairs in the comparison."""
        limit = self.base.score_pairs if split == "test" else self.validation_pairs
        return chosen_pairs(self.base.open_shards().pair_count(split), limit, split=split)

    def task_maker(self, split: str, pairs: Sequence[int]) -> "TaskMaker":
        """Return what makes a trial's tasks: validated at every quarter in the search, at the end in the comparison."""
        at = (self.budget,) if split == "test" else tuple(validation_steps(self.budget))
        base, pairs = self.base, tuple(pairs)
        return TaskMaker(
            plan=replace(base, listing=Listing([], base.listing.fingerprint)),
            first=self.first,
            folder=self.finals if split == "test" else self.folder,
            validator=PairsValidator(base.system, base.store, base.cache_bytes, split, pairs, self.metrics, at),
        )


@dataclass(frozen=True)
class TaskMaker:
    """Makes the tasks of a trial. Pickles to processes on other nodes: its paths are within the run."""

    plan: Plan  # the sweep's, its listing without entries
    first: int
    folder: TrialFolder
    validator: PairsValidator  # of the sweep's own settings

    def __call__(self, trial: Trial) -> list[Task]:
        """Return the stages to train with a trial's settings and seed."""
        plan = replace(self.plan, system=override(self.plan.system, trial.settings), seed=trial.seed)
        plan.store.fetch(f"shards/{MANIFEST}")  # it decides which windows of shards the training reads
        system, home = plan.system, self.folder.prefix(trial.number)
        own = {stage.name: Path(home, "stages", stage.name) for stage in system.stages[self.first :]}
        validator = replace(self.validator, system=system, prefix=home)
        return [
            Task(
                system=system,
                index=index,
                store=plan.store,
                shards=Path("shards"),
                folders=plan.stage_folders | own,
                seed=trial.seed,
                config_hash=plan.config_hash(index),
                weights=plan.weights,
                cache_bytes=plan.cache_bytes,
                window=plan.window,
                checkpoint_every=plan.checkpoint_interval(system.stages[index]),
                keep=1,
                validator=validator if index == len(system.stages) - 1 else None,
            )
            for index in range(self.first, len(system.stages))
        ]
