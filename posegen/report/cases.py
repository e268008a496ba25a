"""The pairs that a report shows, and their pictures: source, pose, every stage's output, result, target, difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posegen.data.loader import Shards
from posegen.metrics.baselines import Picture, Pose
from posegen.metrics.measures import as_pictures
from posegen.metrics.scoring import synthesized
from posegen.report.drawing import difference, enlargement, skeleton
from posegen.stage import System
from posegen.synthesize import Trained

FIXED = 12  # pairs of the fixed draw
EXTREME = 8  # of the best and of the worst
SEED = 0
RANKED_BY = "mask_l1"  # lower is better

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Panel:
    """One picture of a case, under the name of what it is."""

    label: str
    role: str  # "given", "stage", "result", "target" or "difference"
    picture: Picture


@dataclass(frozen=True)
class Case:
    """One test pair with everything that is shown of it."""

    pair: int
    source: str
    target: str
    scores: dict[str, float]
    panels: list[Panel]


def ranked(table: Table) -> list[int]:
    """Rows of the scores, best first by mask-L1 and then by number; those without that score are left out."""
    values = table[RANKED_BY]
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
        pictures = _stage_pictures(trained.system, columns)
        for index in range(len(raw["pair"])):
            row = next(left)
            cases.append(
                Case(
                    pair=int(table["pair"][row]),
                    source=str(table["source"][row]),
                    target=str(table["target"][row]),
                    scores={name: float(table[name][row]) for name in metrics},
                    panels=_panels(raw, {name: p[index] for name, p in pictures.items()}, index),
                )
            )
    return cases


def _stage_pictures(system: System, columns: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Every stage's outputs that are pictures (3 channels at the system's size), the result last."""
    written = [column for stage in system.stages for column in stage.writes if column != system.image]
    shown = [name for name in written if columns[name].shape[1:] == (3, *system.size)]
    return {name: as_pictures(torch.nan_to_num(columns[name].float())) for name in [*shown, system.image]}


def _panels(raw: Mapping[str, Tensor], made: Mapping[str, Picture], index: int) -> list[Panel]:
    source, target = (raw[f"{role}_image"][index].numpy() for role in ("source", "target"))
    height, width = target.shape[:2]
    pose = Pose(raw["target_joints"][index].numpy(), raw["target_visible"][index].numpy())
    *stages, (_, result) = made.items()
    return [
        Panel("source", "given", source),
        Panel("target pose", "given", skeleton(pose, height, width, enlargement(height))),
        *(Panel(_words(name), "stage", picture) for name, picture in stages),
        Panel("result", "result", result),
        Panel("target", "target", target),
        Panel("difference", "difference", difference(result, target)),
    ]


def _words(column: str) -> str:
    return column.replace("_", " ")
