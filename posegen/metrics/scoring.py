"""From pairs of the shards to generated pictures, and from these to one row of scores a pair. No Ray.

This is the walk that evaluation does on many machines and the report does for the pictures that it shows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from posegen.data.columns import to_columns
from posegen.data.loader import Shards, listed_batches
from posegen.metrics.baselines import Picture, Pose, moved_torso
from posegen.metrics.measures import METRICS, Pictures, all_scores, as_pictures, check_metrics
from posegen.stage import System
from posegen.synthesize import Trained, synthesize

PIXELS = 2**18  # of one synthesized batch: 64 pictures of 64x32 or 64x64, 4 of 256x256, to bound its memory

STOOD_IN = "similarity.stood_in"  # the column that says where the source stood in for the moved source


def columns_read(system: System, shards: Shards) -> set[str]:
    """The columns of the shards that a system's stages read, and those that scoring needs."""
    read = {column for stage in system.stages for column in stage.reads}
    return (read & shards.columns) | {"source_image", "target_image", "target_pose_mask"}


def synthesized(
    trained: Trained, shards: Shards, pairs: Sequence[int], *, split: str = "test"
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A split's pairs in the order given, in small batches: the raw batch, and all columns with the stages' outputs."""
    height, width = trained.system.size
    batch_size = max(1, min(64, PIXELS // (height * width)))
    columns = columns_read(trained.system, shards)
    for raw in listed_batches(shards, split, columns=columns, batch_size=batch_size, pairs=pairs):
        yield raw, synthesize(trained, to_columns(raw, trained.device, trained.system.pose_maps))


def score_pairs(
    raw: Mapping[str, np.ndarray], generated: Pictures, finite: Bool[np.ndarray, "pairs"], mean: Picture
) -> dict[str, np.ndarray]:
    """One row a pair: its number, every metric of the generated picture, and "<baseline>.<metric>" of every baseline.

    `raw` is a batch of the shards as arrays. Where `finite` is False the network gave no picture, and its scores are
    NaN. `similarity.stood_in` says where the moved source is the source itself.
    """
    moved, stood_in = _moved_sources(raw)
    baselines = {"source": raw["source_image"], "mean": np.broadcast_to(mean, moved.shape), "similarity": moved}
    target, mask = raw["target_image"], raw["target_pose_mask"]
    table = _generated_scores(raw, generated, finite, tuple(METRICS))
    for baseline, pictures in baselines.items():
        table |= {f"{baseline}.{name}": scores for name, scores in all_scores(pictures, target, mask).items()}
    return table | {STOOD_IN: stood_in}


def _generated_scores(
    raw: Mapping[str, np.ndarray], generated: Pictures, finite: Bool[np.ndarray, "pairs"], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    scores = all_scores(generated, raw["target_image"], raw["target_pose_mask"], names=metrics)
    made = {name: np.where(finite, values, np.nan) for name, values in scores.items()}
    return {"pair": raw["pair"], "finite": finite, **made}


def _moved_sources(raw: Mapping[str, np.ndarray]) -> tuple[Pictures, Bool[np.ndarray, "pairs"]]:
    poses = (raw[f"{role}_{part}"] for role in ("source", "target") for part in ("joints", "visible"))
    moved = [
        moved_torso(picture, Pose(source, source_visible), Pose(target, target_visible))
        for picture, source, source_visible, target, target_visible in zip(raw["source_image"], *poses, strict=True)
    ]
    pictures = [source if m is None else m for source, m in zip(raw["source_image"], moved, strict=True)]
    return np.stack(pictures), np.array([m is None for m in moved])


def score_chunk(
    trained: Trained, shards: Shards, pairs: Sequence[int], mean: Picture, *, split: str = "test"
) -> dict[str, np.ndarray]:
    """Synthesizes and scores a split's pairs, in the order given: `score_pairs` of all of them, with names."""
    table = _joined(
        score_pairs(raw, generated, finite, mean)
        for raw, generated, finite in _generated(trained, shards, pairs, split)
    )
    sources, targets = zip(*shards.pair_names(split, pairs), strict=True)
    return {"pair": table["pair"], "source": np.array(sources), "target": np.array(targets), **table}


def result_scores(
    trained: Trained, shards: Shards, pairs: Sequence[int], *, split: str, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Synthesizes a split's pairs and computes the named metrics alone: for judging often, without baselines.

    One row a pair, in the order given: "pair", "finite", and each of `metrics` as float64, NaN where the network gave
    no picture and where the metric is undefined. The columns are those of `score_chunk`. Raises ValueError for an
    unknown metric, before anything is synthesized, and for pairs that the split does not have.
    """
    check_metrics(metrics)
    return _joined(
        _generated_scores(raw, generated, finite, metrics)
        for raw, generated, finite in _generated(trained, shards, pairs, split)
    )


def _generated(
    trained: Trained, shards: Shards, pairs: Sequence[int], split: str
) -> Iterator[tuple[dict[str, np.ndarray], Pictures, Bool[np.ndarray, "pairs"]]]:
    """Batches as `score_pairs` takes them: the raw batch as arrays, the generated pictures, which are finite."""
    for raw, columns in synthesized(trained, shards, pairs, split=split):
        image = columns[trained.system.image].float()
        finite = torch.isfinite(image).flatten(1).all(dim=1).cpu().numpy()
        yield {name: column.numpy() for name, column in raw.items()}, as_pictures(image.nan_to_num()), finite


def _joined(tables: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(tables)
    assert parts, "there are no pairs to score"
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
