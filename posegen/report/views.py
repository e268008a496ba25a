"""One source picture to every other view of its group: what the system makes of it above the true pictures.

Where the shards know the azimuths of cameras. Multistage's figure 9 shows its system so.
"""

from dataclasses import dataclass

import numpy as np

from posegen.data.loader import Shards
from posegen.metrics.baselines import Picture
from posegen.metrics.scoring import synthesized
from posegen.report.panels import result_pictures
from posegen.synthesize import Trained

GROUPS = 4
SEED = 0


@dataclass(frozen=True)
class View:
    """Another view of a group: how far its camera is from the source's in degrees, what was made, and the truth."""

    rotation: float  # in (-180, 180], counter-clockwise seen from above
    made: Picture
    true: Picture


@dataclass(frozen=True)
class ViewRow:
    """A source and every other view of its group, by rotation."""

    name: str
    source: Picture
    views: list[View]


def every_view(trained: Trained, shards: Shards) -> list[ViewRow]:
    """`GROUPS` groups of test views drawn by `SEED`; empty where the shards do not know the azimuths.

    The source of the n-th row is the n-th view of its group by azimuth (counted round and round), so that sources are
    seen from several sides. The draw depends on the test pairs alone: it is the same in every run on the same data.
    """
    if "rotation" not in shards.columns:
        return []
    groups = pairs_by_group(shards)
    drawn = np.sort(np.random.default_rng(SEED).permutation(len(groups))[:GROUPS])
    sources = [list(groups.values())[place] for place in drawn.tolist()]
    return [_row(trained, shards, each[number % len(each)]) for number, each in enumerate(sources)]


def pairs_by_group(shards: Shards) -> dict[str, list[list[int]]]:
    """Places of the test pairs of each source, by group; the sources of a group in the order of their azimuths.

    A group lies in one shard, so shards are looked at one after the other.
    """
    groups: dict[str, list[list[int]]] = {}
    for test, _, places in shards.pieces("test"):
        by_source: dict[int, list[int]] = {}
        sources, _ = test.pair_rows(np.arange(test.pair_count))
        for place, source in zip(places.tolist(), sources.tolist(), strict=True):
            by_source.setdefault(source, []).append(place)
        for source in sorted(by_source, key=lambda row: (test.azimuths[row], row)):
            groups.setdefault(test.group(source), []).append(by_source[source])
    return dict(sorted(groups.items()))


def _row(trained: Trained, shards: Shards, pairs: list[int]) -> ViewRow:
    """The pairs of one source, synthesized."""
    views, sources = [], []
    for raw, columns in synthesized(trained, shards, pairs):
        shown = (raw["rotation"].tolist(), result_pictures(trained.system, raw, columns), raw["target_image"].numpy())
        views += [View(*each) for each in zip(*shown, strict=True)]
        sources += list(raw["source_image"].numpy())
    name = shards.pair_names("test", pairs[:1])[0][0]
    return ViewRow(name, sources[0], sorted(views, key=lambda view: view.rotation))
