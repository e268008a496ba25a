"""Trial records: one folder per trial, its `trial.json` written atomically by the driver alone.

They are all that a sweep needs to resume after a kill; Ray Tune's own state is not kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from posegen.storage.files import read_json, write_json
from posegen.storage.store import Store

State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "diverged", "failed")

Value = float | int | str | bool
Settings = Mapping[str, Value]  # dotted path -> value
Validation = Mapping[str, float]  # {"step": n, "<score>": mean over the validation pairs}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of searched settings and its outcome so far."""

    number: int
    settings: Settings
    name: str = ""  # "best" or "paper" in the final comparison
    seed: int = 0
    state: State = "waiting"
    validations: Sequence[Validation] = field(default_factory=list)  # by step, ascending
    why: str = ""  # the reason it diverged or failed
    seconds: float = 0.0  # of training, over all attempts

    @property
    def step(self) -> int:
        """The last validated step; 0 before the first."""
        return int(self.validations[-1]["step"]) if self.validations else 0

    @property
    def ended(self) -> bool:
        """Whether the trial will not train any further."""
        return self.state in ENDED

    def score(self, metric: str) -> float | None:
        """Return the last validation's value of a score, or None."""
        return self.validations[-1].get(metric) if self.validations else None

    def with_validation(self, validation: Validation) -> "Trial":
        """Return the trial with a validation appended, replacing those of the same and later steps."""
        earlier = [row for row in self.validations if row["step"] < validation["step"]]
        return replace(self, validations=[*earlier, dict(validation)])


@dataclass(frozen=True)
class TrialFolder:
    """A run's folder of trials: `0000/`, `0001/`, ... each with its trial.json, stages and sample images."""

    store: Store
    name: str  # of the folder within the run

    def prefix(self, number: int) -> str:
        """Return a trial's folder within the run."""
        return f"{self.name}/{number:04d}"

    def path(self, number: int) -> Path:
        """Return a trial's folder on this node."""
        return self.store.folder / self.prefix(number)

    def read(self) -> list[Trial]:
        """Read all trials on this node, by number; the driver, which alone writes them, has them all."""
        files = sorted((self.store.folder / self.name).glob("[0-9]*/trial.json"))
        found = [Trial(**content) for content in map(read_json, files) if content]
        return sorted(found, key=lambda trial: trial.number)

    def write(self, trial: Trial, *, patience: float | None = None) -> None:
        """Write a trial's record. Raises StorageFailed if it cannot be written for `patience` seconds."""
        content = json.loads(json.dumps(asdict(trial), default=lambda number: number.item()))
        write_json(self.path(trial.number) / "trial.json", content, patience=patience)
        self.store.publish(f"{self.prefix(trial.number)}/trial.json")
