"""The pairs that a report shows: the best, the worst and a fixed draw, with their scores and panels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posegen.data.loader import Shards
from posegen.metrics.choice import deciding
from posegen.metrics.scoring import synthesized
from posegen.report.panels import Panel, panels
from posegen.synthesize import Trained

FIXED = 12  # pairs of the fixed draw
EXTREME = 8  # of the best and of the worst
SEED = 0

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One test pair with everything that is shown of it."""

    pair: int
    source: str
    target: str
    scores: dict[str, float]
    panels: list[Panel]


def ranked(table: Table) -> list[int]:
    """Rows of the scores, best first by what decides and then by number; those without that score are left out.

    That is mask-L1, and the pose error of a system that makes no picture.
    """
    values = table[deciding(table.keys())]
    order = np.lexsort((table["pair"], values))
    return order[np.isfinite(values[order])].tolist()


def chosen_rows(table: Table) -> dict[str, list[int]]:
    """Rows of the scores to show: "best" first, "worst" (the worst one first), and a "fixed" draw by seed 0.

    The fixed draw depends on the number of scored pairs alone, so it is the same pairs in every run on the same data.
    """
    order = ranked(table)
    fixed = np.sort(np.random.default_rng(SEED).permutation(len(table["pair"]))[:FIXED])
    return {"best": _varied(table, order), "worst": _varied(table, order[::-1]), "fixed": fixed.tolist()}


def _varied(table: Table, order: Sequence[int]) -> list[int]:
    """The first `EXTREME` rows of an order, one a person where there are so many persons, still in that order."""
    first_of = {table["person"][row]: place for place, row in reversed(list(enumerate(order)))}
    places = sorted(first_of.values())
    rest = [place for place in range(len(order)) if place not in set(places)]
    return [order[place] for place in sorted([*places, *rest][:EXTREME])]


def make_cases(
    trained: Trained, shards: Shards, table: Table, rows: Sequence[int], metrics: Sequence[str]
) -> list[Case]:
    """The cases of some rows of the scores, in their order, synthesized again."""
    cases, left = [], iter(rows)
    for raw, columns in synthesized(trained, shards, [int(table["pair"][row]) for row in rows]):
        for shown in panels(trained.system, raw, columns):
            row = next(left)
            cases.append(
                Case(
                    pair=int(table["pair"][row]),
                    source=str(table["source"][row]),
                    target=str(table["target"][row]),
                    scores={name: float(table[name][row]) for name in metrics},
                    panels=shown,
                )
            )
    return cases
