"""The plan of a run: its steps, each with a state and a fingerprint of everything that determines its result.

A step is done when its folder has the step's fingerprint. Workers, device and checkpoint interval do not change a
result and enter no fingerprint.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from posegen.catalog import settings
from posegen.cluster.connecting import Workers
from posegen.data.listing import Listing, Source
from posegen.data.loading.dataset import Shards
from posegen.data.shards.making import ShardSettings
from posegen.data.shards.manifest import manifest_alone, read_manifest
from posegen.data.shards.out_of_core import window_bytes
from posegen.stage import Stage, System
from posegen.storage.files import digest, read_json, write_json
from posegen.storage.store import LAYOUT, Store
from posegen.training.checkpoints import Interval, latest_checkpoint, read_progress

State = Literal["done", "started", "missing", "differs"]
CHECKPOINTS = 10  # per stage, if no interval is given
FEWEST_STEPS_BETWEEN, MOST_STEPS_BETWEEN = 50, 1000


@dataclass(frozen=True)
class Step:
    """One step of a run: its name, the fingerprint of its result, and its state."""

    name: str
    fingerprint: str
    state: State
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that defines a run. Made on the driver, before Ray starts."""

    store: Store  # of the run
    system: System
    dataset: str
    source: Source
    listing: Listing
    shard_settings: ShardSettings
    seed: int = 0
    score_pairs: int | None = None  # test pairs to score; None is all of them
    checkpoint_every: Interval | None = None  # None is a tenth of a stage, 50 to 1,000 steps
    workers: Workers = field(default_factory=Workers)
    cache_bytes: int | None = None  # of copies of shards on each node; None is no limit
    device: str = "auto"
    weights: Path = Path()  # the folder of pretrained networks

    @property
    def run(self) -> Path:
        """The run folder on this node."""
        return self.store.folder

    @property
    def shards(self) -> Path:
        """The folder of the shards on this node."""
        return self.run / "shards"

    @property
    def stages(self) -> Path:
        """The folder of the stages' checkpoints on this node."""
        return self.run / "stages"

    @property
    def stage_folders(self) -> dict[str, Path]:
        """The folder of each stage's checkpoints within the run, by stage."""
        return {stage.name: Path("stages", stage.name) for stage in self.system.stages}

    @property
    def scores(self) -> Path:
        """The folder of the scores on this node."""
        return self.run / "scores"

    @property
    def report(self) -> Path:
        """The folder of the report on this node."""
        return self.run / "report"

    def checkpoint_interval(self, stage: Stage) -> Interval:
        """Return the steps or minutes between two checkpoints of a stage."""
        tenth = -(-stage.training.steps // CHECKPOINTS)
        return self.checkpoint_every or Interval(min(MOST_STEPS_BETWEEN, max(FEWEST_STEPS_BETWEEN, tenth)))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that determines a result, by dotted path, as JSON values."""
        system = self.system
        flat: dict[str, Any] = {"system": system.name, "variant": system.variant, "dataset": self.dataset}
        flat |= {"seed": self.seed, "pairs": self.score_pairs}
        flat |= _settings_of("data", self.source) | _settings_of("shards", self.shard_settings)
        flat |= {"pose_maps": type(system.pose_maps).__name__} | settings(system)
        return json.loads(json.dumps(flat, default=str))

    @cached_property
    def shards_fingerprint(self) -> str:
        """Fingerprint of the prepared images."""
        return digest(self.listing.fingerprint, self._under("data"), self._under("shards"))

    def open_shards(self) -> Shards:
        """Open the run's shards on this node. Raises ValueError if they are not complete."""
        return Shards.of(self.store, limit=self.cache_bytes)

    @property
    def window(self) -> int | None:
        """Bytes of a shard window, which the order of training pairs depends on; None if all shards fit."""
        manifest = manifest_alone(self.shards) if self.cache_bytes is not None else None
        return window_bytes(manifest, self.cache_bytes) if manifest else None

    def config_hash(self, index: int) -> str:
        """Return the fingerprint of everything that determines one step of a stage; the number of steps does not."""
        stage = self.system.stages[index]
        before = self.result(index - 1) if index else self.shards_fingerprint
        schedules = [repr(player.schedule) for player in stage.players]  # some depend on the number of steps
        own = self._under(stage.name, leave="steps")
        order = [self.window] if self.window else []
        return digest(before, self.seed, own, self._under("pose_maps"), type(stage).__name__, schedules, *order)

    def result(self, index: int) -> str:
        """Return the fingerprint of a stage's finished networks."""
        return digest(self.config_hash(index), self.system.stages[index].training.steps)

    @property
    def scores_fingerprint(self) -> str:
        """Fingerprint of the scores."""
        joints = [self.system.joints] if self.system.joints else []
        return digest(self.result(len(self.system.stages) - 1), self.score_pairs, self.system.image, *joints)

    @property
    def report_fingerprint(self) -> str:
        """Fingerprint of the report."""
        return digest(self.scores_fingerprint, "report")

    def _under(self, head: str, leave: str = "") -> dict[str, Any]:
        own = {k: v for k, v in self.settings.items() if k == head or k.startswith(f"{head}.")}
        return {k: v for k, v in own.items() if not leave or k != f"{head}.{leave}"}

    def steps(self) -> list[Step]:
        """Return all steps in order, with their states read from the run folder."""
        found = [self._shards_step()]
        found += [self._stage_step(index) for index in range(len(self.system.stages))]
        found.append(_marker_step("scores", self.scores_fingerprint, self.scores / "metrics.json"))
        found.append(_marker_step("report", self.report_fingerprint, self.report / "fingerprint.json"))
        return found

    def _shards_step(self) -> Step:
        sizes = self.store.sizes("shards")
        manifest = read_manifest(self.shards, sizes=sizes)
        state: State = "started" if sizes or self.shards.is_dir() else "missing"
        if manifest is not None:
            state = "done" if manifest.fingerprint == self.shards_fingerprint else "differs"
        return Step("shards", self.shards_fingerprint, state)

    def _stage_step(self, index: int) -> Step:
        stage, steps = self.system.stages[index], self.system.stages[index].training.steps
        latest = latest_checkpoint(self.stages / stage.name)
        if latest is None:
            return Step(stage.name, self.config_hash(index), "missing", f"{steps} steps")
        progress = read_progress(latest)
        detail = f"step {progress.step} of {steps}"
        if progress.config_hash != self.config_hash(index) or progress.step > steps:
            return Step(stage.name, self.config_hash(index), "differs", detail)
        return Step(stage.name, self.config_hash(index), "done" if progress.step == steps else "started", detail)

    def save(self) -> None:
        """Write plan.json, atomically."""
        system, numbered = self.system, enumerate(self.system.stages)
        content = {
            "layout": LAYOUT,
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
        """Return one line for each setting that differs from those the run folder was made with."""
        before = (read_json(self.run / "plan.json") or {}).get("settings", {})
        keys = sorted(before.keys() | self.settings.keys())
        changed = [k for k in keys if before.get(k, "unset") != self.settings.get(k, "unset")]
        return [f"{k}: {before.get(k, 'unset')} there, {self.settings.get(k, 'unset')} now" for k in changed]


def _marker_step(name: str, fingerprint: str, path: Path) -> Step:
    if not path.is_file():
        return Step(name, fingerprint, "missing")
    same = (read_json(path) or {}).get("fingerprint") == fingerprint
    return Step(name, fingerprint, "done" if same else "differs")


def _settings_of(head: str, described: Any) -> dict[str, Any]:
    return {f"{head}.{f.name}": getattr(described, f.name) for f in dataclasses.fields(described)}
