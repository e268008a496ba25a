"""From pairs of the shards to images and joints, and from these to one row of scores a pair. No Ray.

This is the walk that evaluation does on many machines and the report does for the images that it shows.

From one row of scores a pair to what metrics.json says: means, their confidence intervals, counts. No Ray.

Pairs of one person are alike, so the mean of 12,000 pairs is known far less well than 12,000 draws would make it.
Intervals are therefore a bootstrap over persons, all pairs of a drawn person coming along (a cluster bootstrap; Davison
and Hinkley 1997, section 3.8). Our choice; the papers print no interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from posegen.data.loading.dataset import Shards, listed_batches
from posegen.data.loading.to_device import to_columns
from posegen.evaluation.baselines import BASELINES, Pose, Uint8Image, mean_image, moved_torso
from posegen.evaluation.metrics import (
    EVERY,
    METRICS,
    POSE_METRICS,
    STAGE_METRIC,
    MeanPose,
    Predicted,
    Uint8Images,
    all_scores,
    check_metrics_of,
    mean_pose,
    source_poses,
    to_uint8,
)
from posegen.inference import Trained, synthesize
from posegen.stage import System

PIXELS = 2**18  # of one synthesized batch: 64 images of 64x32 or 64x64, 4 of 256x256, to bound its memory

STOOD_IN = "similarity.stood_in"  # the column that says where the source stood in for the moved source

Raw = Mapping[str, np.ndarray]  # a batch of the shards as arrays
Finite = Bool[np.ndarray, "pairs"]


class Means(NamedTuple):
    """What the training images are on average, for baselines; None where a system has no such result."""

    image: Uint8Image | None = None
    pose: MeanPose | None = None


class CheckedImages(NamedTuple):
    """Images, and which of them are made of numbers."""

    images: Uint8Images
    finite: Finite


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a system made of a batch; a pair is `finite` where every result of it is made of numbers."""

    finite: Finite
    image: Uint8Images | None = None
    joints: Predicted | None = None  # pixels of the target image
    stages: Mapping[str, CheckedImages] = field(default_factory=dict)  # images on the way, by column


def training_means(system: System, shards: Shards) -> Means:
    """The means that a system's baselines need. Raises ValueError where there is no training image."""
    return Means(mean_image(shards) if system.image else None, mean_pose(shards) if system.joints else None)


def stage_images(system: System, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stages write and is an image: 3 channels at the system's size. The result is not among them."""
    written = [column for stage in system.stages for column in stage.writes if column != system.image]
    return {name: columns[name] for name in written if columns[name].shape[1:] == (3, *system.size)}


def columns_read(system: System, shards: Shards) -> set[str]:
    """The columns of the shards that a system's stages read, and those that scores and images of them need."""
    read = {column for stage in system.stages for column in stage.reads} | {"rotation"}
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


def score_pairs(raw: Raw, made: Made, means: Means) -> dict[str, np.ndarray]:
    """One row a pair: its number, every score of what was made, and "<baseline>.<metric>" of every baseline.

    "<column>.mask_l1" are the scores of images on the way. Where a pair is not finite its scores are NaN.
    `similarity.stood_in` says where the moved source is the source itself.
    """
    names = (*(METRICS if made.image is not None else ()), *(POSE_METRICS if made.joints is not None else ()))
    table = _result_scores(raw, made, names)
    if means.image is not None:
        table |= _image_baselines(raw, means.image)
    if means.pose is not None:
        table |= _pose_baselines(raw, means.pose)
    return table | _stage_scores(raw, made.stages)


def _result_scores(raw: Raw, made: Made, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    scores: dict[str, np.ndarray] = {}
    if made.image is not None:
        wanted = [name for name in metrics if name in METRICS]
        scores |= all_scores(made.image, raw["target_image"], raw["target_pose_mask"], names=wanted)
    if made.joints is not None:
        scores |= _pose_scores(made.joints, raw, [name for name in metrics if name in POSE_METRICS])
    found = {name: np.where(made.finite, scores[name], np.nan) for name in metrics}
    return {"pair": raw["pair"], "finite": made.finite, **found}


def _pose_scores(joints: Predicted, raw: Raw, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: POSE_METRICS[name].function(joints, raw["target_joints"], raw["target_visible"]) for name in names}


def _stage_scores(raw: Raw, stages: Mapping[str, CheckedImages]) -> dict[str, np.ndarray]:
    score, target, mask = METRICS[STAGE_METRIC].function, raw["target_image"], raw["target_pose_mask"]
    return {
        f"{column}.{STAGE_METRIC}": np.where(made.finite, score(made.images, target, mask), np.nan)
        for column, made in stages.items()
    }


def _image_baselines(raw: Raw, mean: Uint8Image) -> dict[str, np.ndarray]:
    moved, stood_in = _moved_sources(raw)
    baselines = {"source": raw["source_image"], "mean": np.broadcast_to(mean, moved.shape), "similarity": moved}
    table: dict[str, np.ndarray] = {}
    for baseline, images in baselines.items():
        scores = all_scores(images, raw["target_image"], raw["target_pose_mask"])
        table |= {f"{baseline}.{name}": values for name, values in scores.items()}
    return table | {STOOD_IN: stood_in}


def _pose_baselines(raw: Raw, mean: MeanPose) -> dict[str, np.ndarray]:
    sources = source_poses(raw["source_joints"], raw["source_visible"])
    baselines = {"source": sources, "mean": np.broadcast_to(mean, sources.shape)}
    return {
        f"{baseline}.{name}": values
        for baseline, joints in baselines.items()
        for name, values in _pose_scores(joints, raw, POSE_METRICS).items()
    }


def _moved_sources(raw: Raw) -> tuple[Uint8Images, Bool[np.ndarray, "pairs"]]:
    poses = (raw[f"{role}_{part}"] for role in ("source", "target") for part in ("joints", "visible"))
    moved = [
        moved_torso(image, Pose(source, source_visible), Pose(target, target_visible))
        for image, source, source_visible, target, target_visible in zip(raw["source_image"], *poses, strict=True)
    ]
    images = [source if m is None else m for source, m in zip(raw["source_image"], moved, strict=True)]
    return np.stack(images), np.array([m is None for m in moved])


def score_chunk(
    trained: Trained, shards: Shards, pairs: Sequence[int], means: Means, *, split: str = "test"
) -> dict[str, np.ndarray]:
    """Synthesizes and scores a split's pairs, in the order given: `score_pairs` of all of them, with names."""
    table = _joined(
        score_pairs(raw, made, means) for raw, made in _made(trained, shards, pairs, split, with_stages=True)
    )
    sources, targets = zip(*shards.pair_names(split, pairs), strict=True)
    return {"pair": table["pair"], "source": np.array(sources), "target": np.array(targets), **table}


def result_scores(
    trained: Trained, shards: Shards, pairs: Sequence[int], *, split: str, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Synthesizes a split's pairs and computes the named metrics alone: for judging often, without baselines.

    One row a pair, in the order given: "pair", "finite", and each of `metrics` as float64, NaN where the network gave
    no numbers and where the metric is undefined. The columns are those of `score_chunk`. Raises ValueError for what is
    no score of the system, before anything is synthesized, and for pairs that the split does not have.
    """
    check_metrics_of(trained.system, metrics)
    return _joined(
        _result_scores(raw, made, metrics) for raw, made in _made(trained, shards, pairs, split, with_stages=False)
    )


def _made(
    trained: Trained, shards: Shards, pairs: Sequence[int], split: str, *, with_stages: bool
) -> Iterator[tuple[Raw, Made]]:
    """Batches of the shards as arrays, and what the system makes of them."""
    system = trained.system
    for given, columns in synthesized(trained, shards, pairs, split=split):
        raw = {name: column.numpy() for name, column in given.items()}
        stages = stage_images(system, columns) if with_stages else {}
        results = _results(system, columns, raw["target_visible"])
        yield raw, replace(results, stages={name: _images(image) for name, image in stages.items()})


def _results(system: System, columns: Mapping[str, Tensor], known: np.ndarray) -> Made:
    made = Made(finite=np.ones(len(known), dtype=bool))
    if system.image:
        image = _images(columns[system.image])
        made = replace(made, finite=image.finite, image=image.images)
    if system.joints:
        joints = columns[system.joints].float().cpu().numpy()
        finite = (np.isfinite(joints).all(axis=2) | ~known).all(axis=1)  # those that count
        made = replace(made, finite=made.finite & finite, joints=joints)
    return made


def _images(image: Tensor) -> CheckedImages:
    finite = torch.isfinite(image).flatten(1).all(dim=1).cpu().numpy()
    return CheckedImages(to_uint8(image.float().nan_to_num()), finite)


def _joined(tables: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(tables)
    assert parts, "there are no pairs to score"
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


DRAWS = 1000
SEED = 0
FEW_PERSONS = 5  # with fewer, resampling persons says nothing, and pairs are resampled instead

Table = Mapping[str, np.ndarray]
Resampling = Int64[np.ndarray, "draws units"]
Interval = list[float]  # low, high


def summary(table: Table, persons: Sequence[str]) -> dict:
    """Means, intervals and notes of a table of `scoring.score_pairs`; `persons` names the person of each pair.

    Of what the table has: scores of images, of joints or of both, and, where there are any, of images on the way.
    Values that are not numbers are left out of the means and counted in the notes, with the reason. A mean of nothing
    is None.
    """
    units, unit_name = resampling_units(persons)
    draws = resampling(int(units.max()) + 1)
    baselines, stages = baselines_in(table), stages_in(table)
    blocks = {prefix: _means_and_intervals(table, prefix, units, draws) for prefix in ("", *baselines, *stages)}
    found = {
        "scores": blocks[""][0],
        "intervals": blocks[""][1],
        "baselines": {name: blocks[name][0] for name in baselines},
        "baseline_intervals": {name: blocks[name][1] for name in baselines},
        "interval_method": f"95 %, bootstrap over {unit_name}, {DRAWS} draws",
        "persons": len(set(persons)),
        "variants": {name: EVERY[name].definition for name in metrics_in(table)},
        "notes": notes(table),
    }
    if stages:
        found |= {"stages": {name: blocks[name][0] for name in stages}}
        found |= {"stage_intervals": {name: blocks[name][1] for name in stages}}
    return found


def metrics_in(table: Table, prefix: str = "") -> list[str]:
    """The scores that a table has, of the result or of what a prefix names."""
    return [name for name in EVERY if _column(prefix, name) in table]


def _column(prefix: str, metric: str) -> str:
    return f"{prefix}.{metric}" if prefix else metric


def baselines_in(table: Table) -> list[str]:
    """The baselines that a table has scores of."""
    return [name for name in BASELINES if metrics_in(table, name)]


def stages_in(table: Table) -> list[str]:
    """The columns of stages, other than the result, that a table has scores of."""
    scored = [column.removesuffix(f".{STAGE_METRIC}") for column in table if column.endswith(f".{STAGE_METRIC}")]
    return [name for name in scored if name not in BASELINES]


def resampling_units(persons: Sequence[str]) -> tuple[np.ndarray, str]:
    """The number of each pair's unit of resampling, and what a unit is."""
    names, units = np.unique(np.asarray(persons), return_inverse=True)
    if len(names) >= FEW_PERSONS:
        return units, "persons"
    return np.arange(len(persons)), f"pairs, for there are only {len(names)} persons (too narrow for new persons)"


def resampling(units: int) -> Resampling:
    """How often each unit is drawn, in each draw of as many units with replacement. A function of the number alone."""
    return np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.int64)


def interval(values: Float64[np.ndarray, "pairs"], units: np.ndarray, draws: Resampling) -> Interval | None:
    """95 % confidence interval of the mean of `values`, resampled by unit. None where no value is a number."""
    finite = np.isfinite(values)
    if not finite.any():
        return None
    sums = np.bincount(units, np.where(finite, values, 0), minlength=draws.shape[1])
    counts = np.bincount(units, finite, minlength=draws.shape[1])
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def _means_and_intervals(table: Table, prefix: str, units: np.ndarray, draws: Resampling) -> tuple[dict, dict]:
    columns = {name: table[_column(prefix, name)] for name in metrics_in(table, prefix)}
    intervals = {name: interval(values, units, draws) for name, values in columns.items()}
    means = {
        name: float(values[np.isfinite(values)].mean()) if intervals[name] else None for name, values in columns.items()
    }
    return means, intervals


def notes(table: Table) -> dict[str, int]:
    """How many pairs have something to be known: no result, a baseline stood in for, a score that is not a number."""
    results = {"generated image has": METRICS, "predicted joints have": POSE_METRICS}
    made = " or ".join(words for words, metrics in results.items() if metrics.keys() & set(metrics_in(table)))
    counts = {f"{made} values that are not numbers: no score": int((~table["finite"]).sum())}
    if STOOD_IN in table:
        counts["similarity: the source stands in, a shoulder or hip is unknown"] = int(table[STOOD_IN].sum())
    for prefix in ("", *baselines_in(table), *stages_in(table)):
        usable = np.ones(len(table["finite"]), dtype=bool) if prefix in BASELINES else table["finite"]
        for name in metrics_in(table, prefix):
            column = _column(prefix, name)
            missing = int((~np.isfinite(table[column]) & usable).sum())
            counts[f"{column} is undefined: {EVERY[name].undefined}"] = missing
    return {note: count for note, count in counts.items() if count}
