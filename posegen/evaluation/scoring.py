"""Score pairs of the shards, one row per pair, and summarize the rows as metrics.json does. No Ray.

Pairs of one person are alike, so the mean over 12,000 pairs is known far less precisely than 12,000 independent draws
would suggest. Intervals are therefore a bootstrap over persons: all pairs of a drawn person are drawn together (a
cluster bootstrap; Davison and Hinkley 1997, section 3.8). Our choice; the papers print no interval.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from posegen.data.loading.collate import to_columns
from posegen.data.loading.dataset import Shards, listed_batches
from posegen.evaluation.metrics import (
    BASELINES,
    EVERY,
    METRICS,
    POSE_METRICS,
    STAGE_METRIC,
    MeanPose,
    PairJoints,
    Pose,
    Uint8Image,
    Uint8Images,
    align_torso,
    all_scores,
    check_metrics_of,
    mean_image,
    mean_pose,
    source_poses,
    to_uint8,
)
from posegen.inference import Trained, synthesize
from posegen.stage import System

PIXELS = 2**18  # of one synthesized batch: 64 images of 64x32 or 64x64, 4 of 256x256, to bound its memory
STOOD_IN = "similarity.stood_in"  # column: the source image replaces the aligned one
DRAWS = 1000
SEED = 0
FEW_PERSONS = 5  # with fewer, persons are too few to resample, and pairs are resampled instead

Raw = Mapping[str, np.ndarray]  # a batch of the shards as arrays
Table = Mapping[str, np.ndarray]  # columns of scores, one row per pair
Finite = Bool[np.ndarray, "pairs"]
DrawCounts = Int64[np.ndarray, "draws units"]
Interval = list[float]  # low, high


class TrainingMeans(NamedTuple):
    """Mean image and mean pose of the training images, for baselines; None for results that the system lacks."""

    image: Uint8Image | None = None
    pose: MeanPose | None = None


class CheckedImages(NamedTuple):
    """Images, and which of them have finite values only."""

    images: Uint8Images
    finite: Finite


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of a system for a batch; a pair is `finite` where all its results are."""

    finite: Finite
    image: Uint8Images | None = None
    joints: PairJoints | None = None  # pixels of the target image
    stages: Mapping[str, CheckedImages] = field(default_factory=dict)  # intermediate images by column


def training_means(system: System, shards: Shards) -> TrainingMeans:
    """Return the means needed by a system's baselines. Raises ValueError where there is no training image."""
    return TrainingMeans(mean_image(shards) if system.image else None, mean_pose(shards) if system.joints else None)


def stage_images(system: System, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the intermediate images: written by stages, 3 channels at the system's size, and not the result."""
    written = [column for stage in system.stages for column in stage.writes if column != system.image]
    return {name: columns[name] for name in written if columns[name].shape[1:] == (3, *system.size)}


def columns_read(system: System, shards: Shards) -> set[str]:
    """Return the columns of the shards read by a system's stages, by scores and by the report's images."""
    read = {column for stage in system.stages for column in stage.reads} | {"rotation"}
    return (read & shards.columns) | {"source_image", "target_image", "target_pose_mask"}


def synthesized(
    trained: Trained, shards: Shards, pairs: Sequence[int], *, split: str = "test"
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield a split's pairs in the order given, in small batches: the raw batch, and all columns with the outputs."""
    height, width = trained.system.size
    batch_size = max(1, min(64, PIXELS // (height * width)))
    columns = columns_read(trained.system, shards)
    for raw in listed_batches(shards, split, columns=columns, batch_size=batch_size, pairs=pairs):
        yield raw, synthesize(trained, to_columns(raw, trained.device, trained.system.pose_maps))


def score_chunk(
    trained: Trained, shards: Shards, pairs: Sequence[int], means: TrainingMeans, *, split: str = "test"
) -> dict[str, np.ndarray]:
    """Synthesize and score a split's pairs in the order given: the columns of `score_pairs`, and the images' names."""
    batches = _output_batches(trained, shards, pairs, split, with_stages=True)
    table = _concatenated(score_pairs(raw, outputs, means) for raw, outputs in batches)
    sources, targets = zip(*shards.pair_names(split, pairs), strict=True)
    return {"pair": table["pair"], "source": np.array(sources), "target": np.array(targets), **table}


def result_scores(
    trained: Trained, shards: Shards, pairs: Sequence[int], *, split: str, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Synthesize a split's pairs and compute the named metrics only, for frequent validation without baselines.

    Args:
        trained: The system and its networks.
        shards: The data.
        pairs: Pairs by index in the split's list; rows are returned in this order.
        split: Name of the split.
        metrics: Names of scores of the system.

    Returns:
        "pair", "finite", and each of `metrics` as float64, NaN where the output is not finite and where the metric is
        undefined; the same values as in `score_chunk`.

    Raises:
        ValueError: A name is no score of the system (before anything is synthesized), or the split lacks a pair.
    """
    check_metrics_of(trained.system, metrics)
    batches = _output_batches(trained, shards, pairs, split, with_stages=False)
    return _concatenated(_result_scores(raw, outputs, metrics) for raw, outputs in batches)


def _output_batches(
    trained: Trained, shards: Shards, pairs: Sequence[int], split: str, *, with_stages: bool
) -> Iterator[tuple[Raw, Outputs]]:
    for batch, columns in synthesized(trained, shards, pairs, split=split):
        raw = {name: column.numpy() for name, column in batch.items()}
        yield raw, _outputs(trained.system, columns, raw["target_visible"], with_stages=with_stages)


def _outputs(system: System, columns: Mapping[str, Tensor], known: np.ndarray, *, with_stages: bool) -> Outputs:
    image, joints, finite = None, None, np.ones(len(known), dtype=bool)
    if system.image:
        image, finite = _checked(columns[system.image])
    if system.joints:
        joints = columns[system.joints].float().cpu().numpy()
        finite = finite & (np.isfinite(joints).all(axis=2) | ~known).all(axis=1)  # unknown joints do not count
    stages = stage_images(system, columns) if with_stages else {}
    checked = {name: _checked(images) for name, images in stages.items()}
    return Outputs(finite=finite, image=image, joints=joints, stages=checked)


def _checked(images: Tensor) -> CheckedImages:
    finite = torch.isfinite(images).flatten(1).all(dim=1).cpu().numpy()
    return CheckedImages(to_uint8(images.float().nan_to_num()), finite)


def _concatenated(tables: Iterable[Table]) -> dict[str, np.ndarray]:
    parts = list(tables)
    assert parts, "there are no pairs to score"
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_pairs(raw: Raw, outputs: Outputs, means: TrainingMeans) -> dict[str, np.ndarray]:
    """Score a batch, one row per pair: its index, every score of the results, and "<baseline>.<metric>".

    "<column>.mask_l1" are the scores of intermediate images. Scores are NaN where a pair is not finite.
    `similarity.stood_in` marks pairs whose aligned source is the source itself.
    """
    names = [*(METRICS if outputs.image is not None else ()), *(POSE_METRICS if outputs.joints is not None else ())]
    table = _result_scores(raw, outputs, names)
    if means.image is not None:
        table |= _image_baselines(raw, means.image)
    if means.pose is not None:
        sources = source_poses(raw["source_joints"], raw["source_visible"])
        for baseline, joints in {"source": sources, "mean": np.broadcast_to(means.pose, sources.shape)}.items():
            scores = _pose_scores(joints, raw, POSE_METRICS)
            table |= {f"{baseline}.{name}": values for name, values in scores.items()}
    for column, (images, finite) in outputs.stages.items():
        scores = METRICS[STAGE_METRIC].function(images, raw["target_image"], raw["target_pose_mask"])
        table[f"{column}.{STAGE_METRIC}"] = np.where(finite, scores, np.nan)
    return table


def _result_scores(raw: Raw, outputs: Outputs, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    scores: dict[str, np.ndarray] = {}
    if outputs.image is not None:
        wanted = [name for name in metrics if name in METRICS]
        scores |= all_scores(outputs.image, raw["target_image"], raw["target_pose_mask"], names=wanted)
    if outputs.joints is not None:
        scores |= _pose_scores(outputs.joints, raw, [name for name in metrics if name in POSE_METRICS])
    finite = {name: np.where(outputs.finite, scores[name], np.nan) for name in metrics}
    return {"pair": raw["pair"], "finite": outputs.finite, **finite}


def _pose_scores(joints: PairJoints, raw: Raw, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: POSE_METRICS[name].function(joints, raw["target_joints"], raw["target_visible"]) for name in names}


def _image_baselines(raw: Raw, mean: Uint8Image) -> dict[str, np.ndarray]:
    sources = raw["source_image"]
    poses = (raw[f"{role}_{part}"] for role in ("source", "target") for part in ("joints", "visible"))
    aligned = [
        align_torso(image, Pose(source, source_visible), Pose(target, target_visible))
        for image, source, source_visible, target, target_visible in zip(sources, *poses, strict=True)
    ]
    similarity = [image if warped is None else warped for image, warped in zip(sources, aligned, strict=True)]
    baselines = {"source": sources, "mean": np.broadcast_to(mean, sources.shape), "similarity": np.stack(similarity)}
    table: dict[str, np.ndarray] = {}
    for baseline, images in baselines.items():
        scores = all_scores(images, raw["target_image"], raw["target_pose_mask"])
        table |= {f"{baseline}.{name}": values for name, values in scores.items()}
    return table | {STOOD_IN: np.array([warped is None for warped in aligned])}


def summary(table: Table, persons: Sequence[str]) -> dict:
    """Return means, intervals and notes of a table of `score_pairs`; `persons` names the person of each pair.

    Covers the scores in the table: of images, of joints, and of intermediate images. Values that are not finite are
    left out of the means and counted in the notes, with the reason. The mean of no value is None.
    """
    units, unit_name = resampling_units(persons)
    draws = bootstrap_draws(int(units.max()) + 1)
    baselines, stages = _prefixes(table)
    means, intervals = {}, {}  # by prefix and score
    for prefix in ("", *baselines, *stages):
        columns = {name: table[_column(prefix, name)] for name in metrics_in(table, prefix)}
        ends = {name: confidence_interval(values, units, draws) for name, values in columns.items()}
        means[prefix] = {n: float(v[np.isfinite(v)].mean()) if ends[n] else None for n, v in columns.items()}
        intervals[prefix] = ends
    content = {
        "scores": means[""],
        "intervals": intervals[""],
        "baselines": {name: means[name] for name in baselines},
        "baseline_intervals": {name: intervals[name] for name in baselines},
        "interval_method": f"95 %, bootstrap over {unit_name}, {DRAWS} draws",
        "persons": len(set(persons)),
        "variants": {name: EVERY[name].definition for name in metrics_in(table)},
        "notes": _notes(table),
    }
    if stages:
        content |= {"stages": {name: means[name] for name in stages}}
        content |= {"stage_intervals": {name: intervals[name] for name in stages}}
    return content


def metrics_in(table: Table, prefix: str = "") -> list[str]:
    """Return the scores in a table, of the result or of the baseline or column named by `prefix`."""
    return [name for name in EVERY if _column(prefix, name) in table]


def _column(prefix: str, metric: str) -> str:
    return f"{prefix}.{metric}" if prefix else metric


def _prefixes(table: Table) -> tuple[list[str], list[str]]:
    """Return the baselines and the intermediate images in a table."""
    ending = f".{STAGE_METRIC}"
    scored = [column.removesuffix(ending) for column in table if column.endswith(ending)]
    return [name for name in BASELINES if metrics_in(table, name)], [name for name in scored if name not in BASELINES]


def resampling_units(persons: Sequence[str]) -> tuple[np.ndarray, str]:
    """Return the index of each pair's unit of resampling, and the name of the unit: persons, or pairs if too few."""
    names, units = np.unique(np.asarray(persons), return_inverse=True)
    if len(names) >= FEW_PERSONS:
        return units, "persons"
    return np.arange(len(persons)), f"pairs, for there are only {len(names)} persons (too narrow for new persons)"


def bootstrap_draws(units: int) -> DrawCounts:
    """Return how often each unit occurs in each draw of `units` units with replacement. Depends on `units` only."""
    return np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.int64)


def confidence_interval(values: Float64[np.ndarray, "pairs"], units: np.ndarray, draws: DrawCounts) -> Interval | None:
    """Return the 95 % confidence interval of the mean, resampled by unit; None where no value is finite."""
    finite = np.isfinite(values)
    if not finite.any():
        return None
    sums = np.bincount(units, np.where(finite, values, 0), minlength=draws.shape[1])
    counts = np.bincount(units, finite, minlength=draws.shape[1])
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def _notes(table: Table) -> dict[str, int]:
    """Count pairs without a finite result, with a source in place of the aligned one, and with undefined scores."""
    results = {"generated image has": METRICS, "predicted joints have": POSE_METRICS}
    scored = " or ".join(words for words, metrics in results.items() if metrics.keys() & set(metrics_in(table)))
    counts = {f"{scored} values that are not finite: no score": int((~table["finite"]).sum())}
    if STOOD_IN in table:
        counts["similarity: the source is used, a shoulder or hip is unknown"] = int(table[STOOD_IN].sum())
    baselines, stages = _prefixes(table)
    for prefix in ("", *baselines, *stages):
        usable = np.ones(len(table["finite"]), dtype=bool) if prefix in BASELINES else table["finite"]
        for name in metrics_in(table, prefix):
            column = _column(prefix, name)
            missing = int((~np.isfinite(table[column]) & usable).sum())
            counts[f"{column} is undefined: {EVERY[name].undefined}"] = missing
    return {note: count for note, count in counts.items() if count}
