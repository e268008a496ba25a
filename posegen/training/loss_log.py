"""A stage's curve: the terms of its losses, averaged over steps and workers, and checked."""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from posegen.training.checkpoints import Curve, latest_checkpoint
from posegen.training.task import Context, Task

POST_EVERY = 1.0  # seconds between two live progress messages
VALIDATION = "validation/"  # before the names of scores in a curve


class NonFinite(Exception):
    """A loss, a gradient or a score is not finite. The message names the stage, the step and the term."""


def validation_scores(curve: Curve) -> list[tuple[int, dict[str, float]]]:
    """Return the validation scores in a curve: (step, scores by name), by step."""
    rows = [
        (int(row["step"]), {k.removeprefix(VALIDATION): v for k, v in row.items() if k.startswith(VALIDATION)})
        for row in curve
    ]
    return [(step, scores) for step, scores in rows if scores]


class LossLog:
    """Gathers the terms of `log_every` steps on the device, then averages, reduces and checks them in one go."""

    def __init__(self, task: Task, context: Context, curve: Curve, share: float) -> None:
        self.curve = curve
        self._share = share
        self._task, self._context = task, context
        self._window: list[tuple[int, dict[str, Tensor]]] = []
        self._rows: Curve = []
        self._posted = 0.0
        self._last: tuple[int, dict[str, Tensor]] = (0, {})

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Add a step's terms, and a row to the curve with every `log_every`-th step."""
        self._last = (step, terms)
        self._window.append(self._last)
        if step % self._task.log_every == 0:
            self._close()

    def validated(self, step: int, scores: dict[str, float] | ValueError) -> None:
        """Add the validation scores after a step as a row of their own. Raises NonFinite for a ValueError."""
        self._close()
        if isinstance(scores, ValueError):
            raise NonFinite(f"stage '{self._task.stage.name}' stopped at step {step}: {scores}")
        self._append({"step": step, **{f"{VALIDATION}{name}": value for name, value in scores.items()}})

    def flush(self) -> Curve:
        """Close the open window and return the rows since the last flush."""
        self._close()
        rows, self._rows = self._rows, []
        return rows

    def latest(self) -> dict[str, float]:
        """Return the last step's terms, reduced over the workers, for skip rules. A collective: only where needed."""
        return self._mean([self._last])

    def _append(self, row: dict[str, float]) -> None:
        self.curve.append(row)
        self._rows.append(row)

    def _close(self) -> None:
        if not self._window:
            return
        step, terms = self._window[-1][0], self._mean(self._window)
        self._window = []
        self._append({"step": step, **terms})
        if self._context.rank == 0 and time.monotonic() - self._posted > POST_EVERY:
            self._posted = time.monotonic()
            self._context.on_terms(step, terms)

    def _mean(self, window: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
        """Return means over the window's steps and the workers, by term; skipped updates have no terms to count."""
        entries = [(step, name, value) for step, terms in window for name, value in terms.items()]
        values = torch.stack([value for _, _, value in entries]).double()
        if self._context.world_size > 1:
            values *= self._share
            dist.all_reduce(values)
            values /= self._context.world_size
        values = values.cpu()
        self._check(entries, values)
        names = dict.fromkeys(name for _, name, _ in entries)
        return {name: values[[i for i, e in enumerate(entries) if e[1] == name]].mean().item() for name in names}

    def _check(self, entries: list[tuple[int, str, Tensor]], values: Tensor) -> None:
        if bool(values.isfinite().all()):
            return
        step, name, value = next(
            (s, n, v.item()) for (s, n, _), v in zip(entries, values, strict=True) if not v.isfinite()
        )
        raise NonFinite(
            f"stage '{self._task.stage.name}' stopped at step {step}: {name} is {value}. Last good checkpoint: "
            f"{latest_checkpoint(self._task.folder) or 'none yet'}. A lower learning rate or weight of this term, or "
            "other data, may help."
        )
