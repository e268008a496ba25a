"""The trials of a sweep as files: one folder each, its `trial.json` written by the driver alone, whole or not at all.

They are all that a sweep needs to go on after it was killed: Ray Tune's own state is not kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged", "failed")

Value = float | int | str | bool
Settings = Mapping[str, Value]  # dotted path -> value
Judged = Mapping[str, float]  # {"step": n, "<score>": mean over the pairs judged}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the searched fields: what it was given and what became of it."""

    number: int
    settings: Settings
    name: str = ""  # of a trial that is not part of the search: "best" or "paper"
    seed: int = 0
    state: State = "waiting"
    judged: Sequence[Judged] = field(default_factory=list)  # by step, growing
    why: str = ""  # it diverged or failed, in words
    seconds: float = 0.0  # that it ran, over all attempts
    inherited: Sequence[Mapping[str, Any]] = field(default_factory=list)
    # {"step", "from", "settings"}: whose place it took, and what its own settings were before (PBT)

    @property
    def step(self) -> int:
        """The last step judged; 0 before the first."""
        return int(self.judged[-1]["step"]) if self.judged else 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def score(self, metric: str) -> float | None:
        """The last judged value of a score; None where there is none."""
        return self.judged[-1].get(metric) if self.judged else None

    def with_judged(self, judged: Judged) -> "Trial":
        """The trial with one more judgement, which replaces those of the same or a later step."""
        before = [row for row in self.judged if row["step"] < judged["step"]]
        return replace(self, judged=[*before, dict(judged)])


@dataclass(frozen=True)
class TrialFolder:
    """A run's folder of trials: `0000/`, `0001/`, ... each with its trial.json, stages and sample images."""

    store: Store
    name: str  # of the folder within the run

    @property
    def path(self) -> Path:
        """The folder on this node."""
        return self.store.folder / self.name

    def place(self, number: int) -> str:
        """A trial's folder within the run."""
        return f"{self.name}/{number:04d}"

    def of(self, number: int) -> Path:
        """A trial's folder on this node."""
        return self.store.folder / self.place(number)

    def read(self) -> list[Trial]:
        """All trials, by number, as this node has them: the driver, which alone writes them, has them all."""
        found = [read_json(path) for path in sorted(self.path.glob("[0-9]*/trial.json"))]
        return sorted((Trial(**content) for content in found if content), key=lambda trial: trial.number)

    def write(self, trial: Trial, *, patience: float | None = None) -> None:
        """Keeps a trial's record in the run. Raises StorageFailed where it cannot be written for `patience` seconds."""
        content = json.loads(json.dumps(asdict(trial), default=lambda number: number.item()))
        write_json(self.of(trial.number) / "trial.json", content, patience=patience)
        self.store.publish(f"{self.place(trial.number)}/trial.json")
