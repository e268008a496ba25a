"""Small sweeps that the tests of the page share."""

import dataclasses
from typing import Any

from posegen.tuning.content import SweepContent
from posegen.tuning.results import Trial


def trial(number: int, settings: dict, state: str = "finished", **scores: Any) -> Trial:
    """A trial that was validated at steps 100, 200, ...; one list of values per score."""
    rows = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    rows_by_step = [{"step": 100 * (n + 1), **row} for n, row in enumerate(rows)]
    return Trial(
        number=number, settings=settings, state=state, validations=rows_by_step, seconds=60.0 * len(rows_by_step)
    )  # pyright: ignore[reportArgumentType]


def a_sweep(trials: list[Trial], **changes: Any) -> SweepContent:
    """A sweep over one weight, "s.weight", whose paper has 10, of up to 300 steps."""
    sweep = SweepContent(
        about={
            "system": "vdg", "variant": "full", "dataset": "synthetic", "paper": "The paper", "size": [64, 32],
            "budget": 300, "search": "optuna", "scheduler": "asha", "seed": 0,
            "stand_ins": [],
        },
        metrics=["mask_l1"], space={"s.weight": "log-uniform from 1 to 100"}, logarithmic=["s.weight"], rungs=[100],
        trials=trials, best=None, front=[], paper={"s.weight": 10.0}, validation={"pairs": 64, "persons": 8},
        shared={"stages": ["coarse"], "steps": 50, "saved": 100}, final=None, command=["posegen tune"], tracking="",
        settings={"seed": 0},
    )  # fmt: skip
    return dataclasses.replace(sweep, **changes)
