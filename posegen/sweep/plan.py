"""What a search over loss weights will do: its trials, what they share, and where they stand.

Shards and the stages before the first one that the space touches are made once. Trials are judged on people of their
own; the best weights then meet the paper's on the test people, over several seeds. A sweep is a run folder:

    sweep.json           what is searched and how
    shards/  stages/     made once: with a validation split; the stages before the first one that the space touches
    trials/0000/ ...     trial.json, stages/, samples.png, pairs.parquet; trial 0 has the paper's weights
    finals/0000/ ...     the same for the last comparison: paper and best in turn, a seed each
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
from posegen.evaluation.metrics import EVERY
from posegen.runs.plan import Plan, Step
from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store
from posegen.sweep.judge import PairsJudge
from posegen.training.choosers import Chooser, Listed, Tpe, random_points
from posegen.training.spaces import Space, current, first_touched
from posegen.training.task import Task
from posegen.training.trials import Settings, Trial, TrialFolder, Value
from posegen.training.tune import Kind, Search, judged_steps

SearchKind = Literal["optuna", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Everything that a search needs to know. Made on the driver, before Ray."""

    base: Plan  # the system at the paper's weights, touched stages as long as the budget says; a validation split
    space: Space
    metrics: tuple[str, ...]  # what trials are judged by; the first one says which is best
    trials: int
    search: SearchKind
    scheduler: Kind
    seeds: int  # of the last comparison; 0 leaves it out
    validation_pairs: int | None  # that trials are judged on; None is all
    side_by_side: int | None = None  # trials at once; None is as many as there is room for, within reason
    given: Mapping[str, str] = field(default_factory=dict)  # settings of the system that the user gave

    @property
    def store(self) -> Store:
        return self.base.store

    @property
    def run(self) -> Path:
        """The run folder on this node."""
        return self.base.run

    @property
    def folder(self) -> TrialFolder:
        return TrialFolder(self.store, "trials")

    @property
    def finals(self) -> TrialFolder:
        return TrialFolder(self.store, "finals")

    @cached_property
    def first(self) -> int:
        """The first stage that trials train; those before it are shared."""
        return first_touched(self.space, self.base.system)

    @property
    def budget(self) -> int:
        """Steps of the last stage, in which trials are judged and stopped."""
        return self.base.system.stages[-1].training.steps

    @property
    def steps_each(self) -> int:
        """Steps of a whole trial, over all stages that it trains."""
        return sum(stage.training.steps for stage in self.base.system.stages[self.first :])

    @property
    def steps_shared(self) -> int:
        return sum(stage.training.steps for stage in self.base.system.stages[: self.first])

    @property
    def steps_saved(self) -> int:
        """Steps that sharing saves over the whole sweep, its last comparison included."""
        return self.steps_shared * (self.trials + 2 * self.seeds - 1)

    @cached_property
    def paper(self) -> dict[str, Value]:
        """The system's own values of what is searched."""
        return current(self.space, self.base.system)

    @property
    def directions(self) -> list[tuple[str, bool]]:
        return [(name, EVERY[name].higher) for name in self.metrics]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what a trial's scores are, by dotted path, as JSON values. Not how many there are."""
        flat = self.base.settings | {f"space.{path}": words for path, words in self.space.words().items()}
        flat |= {"search": self.search, "scheduler": self.scheduler, "metrics": list(self.metrics)}
        return flat | {"validation_pairs": self.validation_pairs}

    def differences(self) -> list[str]:
        """What the folder's trials were made with and is not asked for now, a line each."""
        before = (read_json(self.run / "sweep.json") or {}).get("settings")
        if before is None:
            return []
        changed = [k for k in sorted(before | self.settings) if before.get(k, "unset") != self.settings.get(k, "unset")]
        return [f"{k}: {before.get(k, 'unset')} there, {self.settings.get(k, 'unset')} now" for k in changed]

    def shared_steps(self) -> list[Step]:
        """The shards and the shared stages, and where they stand."""
        return self.base.steps()[: 1 + self.first]

    def chooser(self) -> Chooser:
        if self.search == "optuna":
            return Tpe(self.space, self.directions, self.base.seed, self.trials)
        if self.search == "grid":
            return Listed([self.paper, *self.space.grid(self.trials - 1)])
        return Listed([self.paper, *random_points(self.space, self.base.seed, self.trials - 1)])

    def fitted(self) -> "SweepPlan":
        """With as many trials as the search has: a grid may have fewer points. ValueError where a grid has too few."""
        if self.search != "grid":
            return self
        return replace(self, trials=1 + len(self.space.grid(self.trials - 1)))

    def searching(self) -> Search:
        """How the trials are chosen and stopped."""
        return Search(self.space, self.directions, self.scheduler, self.budget)

    def comparing(self) -> Search:
        """The last comparison: every trial trains to its end."""
        return Search(self.space, self.directions, "none", self.budget)

    def save(self) -> None:
        """Writes sweep.json and plan.json, atomically."""
        self.base.save()
        write_json(self.run / "sweep.json", {"settings": self.settings})
        self.store.publish("sweep.json")

    def standing(self) -> tuple[list[Trial], list[Trial]]:
        """The trials that have ended, and those that wait: begun, or not there yet."""
        found = self.folder.read()
        unbegun = [Trial(number=n, settings={}, seed=self.base.seed) for n in range(len(found), self.trials)]
        if unbegun and unbegun[0].number == 0:
            unbegun[0] = replace(unbegun[0], settings=self.paper)
        return [t for t in found if t.ended], [t for t in found if not t.ended] + unbegun

    def standing_finals(self, best: Trial) -> tuple[list[Trial], list[Trial]]:
        """The same for the last comparison. Those of another best trial are gone."""
        ended, waiting = [], []
        names: dict[str, Settings] = {"paper": self.paper}
        if dict(best.settings) != self.paper:
            names["best"] = best.settings
        known = {trial.number: trial for trial in self.finals.read()}
        for seed in range(1, self.seeds + 1):
            for place, (name, settings) in enumerate(names.items()):
                number = 2 * (seed - 1) + place
                trial = known.get(number)
                if trial is None or dict(trial.settings) != dict(settings):
                    self.store.remove(self.finals.place(number))
                    trial = Trial(number=number, name=name, settings=settings, seed=self.base.seed + seed)
                (ended if trial.ended else waiting).append(trial)
        return ended, waiting

    def tasks(self, folder: TrialFolder, split: str, pairs: Sequence[int]) -> "TaskMaker":
        """What makes a trial's tasks; in the search it is judged at every quarter, in the comparison at its end."""
        searching = folder == self.folder
        return TaskMaker(
            plan=replace(self.base, listing=Listing([], self.base.listing.fingerprint)),
            first=self.first,
            folder=folder,
            split=split,
            pairs=tuple(pairs),
            metrics=self.metrics,
            at=tuple(judged_steps(self.budget)) if searching else (self.budget,),
            keep=len(judged_steps(self.budget)) if self.scheduler == "pbt" else 1,
        )


@dataclass(frozen=True)
class TaskMaker:
    """The stages of a trial as tasks. Pickles to the trials' processes on other nodes: it names places in the run."""

    plan: Plan  # the sweep's, its listing without entries
    first: int
    folder: TrialFolder
    split: str
    pairs: tuple[int, ...]
    metrics: tuple[str, ...]
    at: tuple[int, ...]
    keep: int

    def __call__(self, trial: Trial, settings: Settings) -> list[Task]:
        plan = replace(self.plan, system=override(self.plan.system, settings), seed=trial.seed)
        plan.store.fetch(f"shards/{MANIFEST}")  # it says which windows of shards the training keeps to
        system, home = plan.system, self.folder.place(trial.number)
        own = {stage.name: Path(home, "stages", stage.name) for stage in system.stages[self.first :]}
        judge = PairsJudge(system, plan.store, plan.cache_bytes, self.split, self.pairs, self.metrics, self.at, home)
        return [
            Task(
                system=system,
                index=index,
                store=plan.store,
                shards=Path("shards"),
                folders=plan.stage_folders | own,
                seed=trial.seed,
                recipe=plan.recipe(index),
                weights=plan.weights,
                cache_bytes=plan.cache_bytes,
                window=plan.window,
                checkpoint_every=plan.checkpoint_interval(system.stages[index]),
                keep=self.keep,
                judge=judge if index == len(system.stages) - 1 else None,
            )
            for index in range(self.first, len(system.stages))
        ]
