"""What a run will do: its steps, each with the fingerprint of everything that decides its result, and where they stand.

A step is done when its folder carries the step's fingerprint. What does not change a result (workers, device,
checkpoint interval) is in no fingerprint.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from posegen.cluster.resources import Workers
from posegen.data.loading.dataset import Shards
from posegen.data.listing import Listing, Source
from posegen.data.shards.manifest import manifest_alone, read_manifest
from posegen.data.shards.making import ShardSettings
from posegen.data.shards.out_of_core import window_bytes
from posegen.storage.files import digest, write_json
from posegen.stage import Stage, System
from posegen.storage.store import Store
from posegen.training.checkpoints import Interval, latest_checkpoint, read_progress

State = Literal["done", "started", "missing", "differs"]
CHECKPOINTS = 10  # checkpoints of a stage, where no interval is given
FEWEST_STEPS_BETWEEN, MOST_STEPS_BETWEEN = 50, 1000


@dataclass(frozen=True)
class Step:
    """One step of a run: its name, the fingerprint of its result, and where it stands."""

    name: str
    fingerprint: str
    state: State
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run needs to know. Made on the driver, before Ray."""

    store: Store  # the run
    system: System
    dataset: str
    source: Source
    listing: Listing
    shard_settings: ShardSettings
    seed: int = 0
    score_pairs: int | None = None  # test pairs to score; None is all of them
    checkpoint_every: Interval | None = None  # None is a tenth of a stage, within reason
    workers: Workers = field(default_factory=Workers)
    cache_bytes: int | None = None  # of shards on each node, where they do not lie in a folder or are to be bounded
    device: str = "auto"
    weights: Path = Path()  # the folder of pretrained networks

    @property
    def run(self) -> Path:
        """The run folder on this node."""
        return self.store.folder

    @property
    def shards(self) -> Path:
        return self.run / "shards"

    @property
    def stages(self) -> Path:
        return self.run / "stages"

    @property
    def stage_folders(self) -> dict[str, Path]:
        """Where each stage's checkpoints are within the run, by name."""
        return {stage.name: Path("stages", stage.name) for stage in self.system.stages}

    @property
    def scores(self) -> Path:
        return self.run / "scores"

    @property
    def report(self) -> Path:
        return self.run / "report"

    def checkpoint_interval(self, stage: Stage) -> Interval:
        """Steps or minutes between two checkpoints."""
        tenth = -(-stage.steps // CHECKPOINTS)
        return self.checkpoint_every or Interval(min(MOST_STEPS_BETWEEN, max(FEWEST_STEPS_BETWEEN, tenth)))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides a result, by dotted path, as JSON values."""
        system = self.system
        flat: dict[str, Any] = {"system": system.name, "variant": system.variant, "dataset": self.dataset}
        flat |= {"seed": self.seed, "pairs": self.score_pairs}
        flat |= _fields("data", self.source) | _fields("shards", self.shard_settings)
        flat |= {"pose_maps": type(system.pose_maps).__name__} | _fields("pose_maps", system.pose_maps)
        for stage in system.stages:
            flat |= _fields(stage.name, stage)
        return json.loads(json.dumps(flat, default=str))

    @cached_property
    def shards_fingerprint(self) -> str:
        return digest(self.listing.fingerprint, self._under("data"), self._under("shards"))

    def open_shards(self) -> Shards:
        """The run's shards as this node reads them. Raises ValueError where they are not complete."""
        return Shards.of(self.store, limit=self.cache_bytes)

    @property
    def window(self) -> int | None:
        """Bytes of the windows of shards that the order of training pairs keeps to; None where all shards fit."""
        manifest = manifest_alone(self.shards) if self.cache_bytes is not None else None
        return window_bytes(manifest, self.cache_bytes) if manifest else None

    def recipe(self, index: int) -> str:
        """Fingerprint of everything that decides what one step of a stage does: not how many there are."""
        stage = self.system.stages[index]
        before = self.result(index - 1) if index else self.shards_fingerprint
        schedules = [
            repr(player.schedule) for player in stage.players
        ]  # one that ends with the stage depends on `steps`
        mine = self._under(stage.name, leave="steps")
        order = [self.window] if self.window else []
        return digest(before, self.seed, mine, self._under("pose_maps"), type(stage).__name__, schedules, *order)

    def result(self, index: int) -> str:
        """Fingerprint of a stage's finished networks."""
        return digest(self.recipe(index), self.system.stages[index].steps)

    @property
    def scores_fingerprint(self) -> str:
        joints = [self.system.joints] if self.system.joints else []
        return digest(self.result(len(self.system.stages) - 1), self.score_pairs, self.system.image, *joints)

    @property
    def report_fingerprint(self) -> str:
        return digest(self.scores_fingerprint, "report")

    def _under(self, head: str, leave: str = "") -> dict[str, Any]:
        mine = {k: v for k, v in self.settings.items() if k == head or k.startswith(f"{head}.")}
        return {k: v for k, v in mine.items() if not leave or k != f"{head}.{leave}"}

    def steps(self) -> list[Step]:
        """All steps in order and where they stand, read from the run folder."""
        found = [self._shards_step()]
        found += [self._stage_step(index) for index in range(len(self.system.stages))]
        found.append(_marked("scores", self.scores_fingerprint, self.scores / "metrics.json"))
        found.append(_marked("report", self.report_fingerprint, self.report / "fingerprint.json"))
        return found

    def _shards_step(self) -> Step:
        sizes = self.store.sizes("shards")
        manifest = read_manifest(self.shards, sizes=sizes)
        if manifest is None:
            state: State = "started" if sizes or self.shards.is_dir() else "missing"
            return Step("shards", self.shards_fingerprint, state)
        state = "done" if manifest.fingerprint == self.shards_fingerprint else "differs"
        return Step("shards", self.shards_fingerprint, state)

    def _stage_step(self, index: int) -> Step:
        stage = self.system.stages[index]
        latest = latest_checkpoint(self.stages / stage.name)
        if latest is None:
            return Step(stage.name, self.recipe(index), "missing", f"{stage.steps} steps")
        progress = read_progress(latest)
        detail = f"step {progress.step} of {stage.steps}"
        if progress.recipe != self.recipe(index) or progress.step > stage.steps:
            return Step(stage.name, self.recipe(index), "differs", detail)
        return Step(stage.name, self.recipe(index), "done" if progress.step == stage.steps else "started", detail)

    def save(self) -> None:
        """Writes plan.json, atomically."""
        system, numbered = self.system, enumerate(self.system.stages)
        content = {
            "system": {name: getattr(system, name) for name in ("name", "variant", "paper", "image", "joints")},
            "stages": [
                {"name": s.name, "reads": s.reads, "writes": s.writes, "fingerprint": self.result(n)}
                for n, s in numbered
            ],
            "data": {
                "name": self.dataset,
                "root": str(getattr(self.source, "root", "")),
                "fingerprint": self.shards_fingerprint,
            },
            "resources": {"workers": str(self.workers), "device": self.device},
            "settings": self.settings,
        }
        write_json(self.run / "plan.json", content)
        self.store.publish("plan.json")

    def differences(self) -> list[str]:
        """What the run folder was made with and is not asked for now, a line each."""
        path = self.run / "plan.json"
        before = json.loads(path.read_text())["settings"] if path.is_file() else {}
        keys = sorted(before.keys() | self.settings.keys())
        changed = [k for k in keys if before.get(k, "unset") != self.settings.get(k, "unset")]
        return [f"{k}: {before.get(k, 'unset')} there, {self.settings.get(k, 'unset')} now" for k in changed]


def _marked(name: str, fingerprint: str, path: Path) -> Step:
    if not path.is_file():
        return Step(name, fingerprint, "missing")
    same = json.loads(path.read_text()).get("fingerprint") == fingerprint
    return Step(name, fingerprint, "done" if same else "differs")


def _fields(head: str, described: Any) -> dict[str, Any]:
    return {f"{head}.{f.name}": getattr(described, f.name) for f in dataclasses.fields(described)}
