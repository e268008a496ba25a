"""Preparing shards on Ray Data: images are decoded, checked, resized where needed, masked and paired.

The driver handles names and joints only. One task makes one shard of whole groups, so pairs are formed inside a shard
without a join, memory is bounded by the size of a shard times the number of CPUs, and no pixel passes the driver.
Shards finished before an interruption are kept.

Given pair lists decide for their split: the images they name are stored and paired, even a distractor or an image
without shoulders or hips (published lists decide what is scored), and other images that could be paired are stored as
well. Without a list: all ordered pairs of a group's usable images.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import ray.data

from posegen.data import reasons
from posegen.data.listing import Listing, Reject, Source
from posegen.data.masks import Estimate, person_mask
from posegen.data.shards.making import ShardSettings, Work, made_from, make_shard, plan_works
from posegen.data.shards.manifest import (
    MANIFEST,
    REJECT_COLUMNS,
    REJECTS,
    Manifest,
    ShardSummary,
    file_sizes,
    read_manifest,
)
from posegen.data.sources.pairs import SPLITS
from posegen.storage.files import StorageFailed, read_json, write_json, write_whole
from posegen.storage.store import Store

__all__ = ["Progress", "ShardSettings", "read_manifest", "write_shards"]

FOLDER = "shards"  # within the run
Progress = Callable[[str, int, int], None]  # what, done, total


def write_shards(
    source: Source,
    store: Store,
    settings: ShardSettings,
    *,
    listing: Listing,
    fingerprint: str,
    progress: Progress,
    estimate: Estimate = person_mask,
) -> Manifest:
    """Make the shards of a source in a run and return the manifest. Ray must be initialised.

    Shards that exist for the same fingerprint, listing and settings are kept; files of others are removed first.

    Args:
        source: Loads the images.
        store: The run.
        settings: Size and masks of the stored images.
        listing: The source's own, or that with a validation split (`splits.with_validation`).
        fingerprint: Of data and settings, kept in the manifest.
        progress: Receives the number of images done, on the driver.
        estimate: Makes the person masks that the source lacks, if the settings ask for it.

    Raises:
        ValueError: The training, the test or a listed split ends without a pair; with the counts by reason.
        StorageFailed: The run cannot be written.
    """
    record = made_from(listing, settings, fingerprint=fingerprint)
    sizes = store.sizes(FOLDER)
    finished = read_manifest(store.fetch(FOLDER, wanted=MANIFEST.__eq__), sizes=sizes)
    if finished is not None and finished.made_from == record:
        return finished
    folder = store.fetch(FOLDER, wanted=lambda name: name.endswith(".json"))
    folder.mkdir(parents=True, exist_ok=True)
    works, rejects = plan_works(listing, settings.images_per_shard)
    summaries = _finished(folder, works, record, sizes)
    _remove_all_but(store, summaries)
    missing = [work for work in works if work.stem not in summaries]
    make = partial(
        _make_and_publish,
        source=source,
        store=store,
        settings=settings,
        made_from=record,
        estimate=estimate,
    )
    total = sum(len(work.entries) for work in works)
    done = sum(summary.images for summary in summaries.values())
    progress("images", done, total)
    for summary in _made(missing, make):
        summaries[summary.stem] = summary
        done += summary.images
        progress("images", done, total)
    return _conclude(store, source.name, record, [*listing.rejects, *rejects], [summaries[w.stem] for w in works])


def _finished(
    folder: Path, works: Sequence[Work], made_from: Mapping, sizes: Mapping[str, int]
) -> dict[str, ShardSummary]:
    """Return the summaries of complete shards by stem; `sizes` are the bytes of the run's files."""
    summaries = {}
    for work in works:
        content = read_json(folder / f"{work.stem}.json")
        if content and content.get("made_from") == made_from:
            summary = ShardSummary.from_json(content)
            if not summary.rows or file_sizes([summary.entry]).items() <= sizes.items():
                summaries[work.stem] = summary
    return summaries


def _remove_all_but(store: Store, stems: Iterable[str]) -> None:
    """Remove all files but those of the shards named; summaries first, so that no shard is left incomplete."""
    kept = {f"{stem}.{kind}" for stem in stems for kind in ("json", "arrow", "pairs.arrow")}
    there = store.sizes(FOLDER).keys() - kept
    for name in sorted(there, key=lambda name: not name.endswith(".json")):
        if name.endswith((".json", ".arrow", ".tmp")) or name == REJECTS:
            store.remove(f"{FOLDER}/{name}")


def _make_and_publish(
    work: Work, source: Source, store: Store, settings: ShardSettings, made_from: Mapping, *, estimate: Estimate
) -> ShardSummary:
    """Make one shard in the run, its summary last. If the run is a URI, the images do not stay on this node."""
    folder = store.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    summary = make_shard(work, source, folder, settings, made_from, estimate=estimate)
    images = [f"{work.stem}.arrow", f"{work.stem}.pairs.arrow"] if summary.rows else []
    for name in (*images, f"{work.stem}.json"):
        store.publish(f"{FOLDER}/{name}")
    for name in images if store.remote else ():
        (folder / name).unlink()
    return summary


def _made(works: Sequence[Work], make: Callable[[Work], ShardSummary]) -> Iterator[ShardSummary]:
    """Yield the summaries of shards, as their tasks end."""
    if not works:
        return
    rows = [{"work": pickle.dumps(work)} for work in works]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    for row in dataset.map(partial(_task, make=make)).iter_rows():
        if row["failed"]:
            raise StorageFailed(row["failed"])
        yield pickle.loads(row["summary"])


def _task(row: dict, make: Callable[[Work], ShardSummary]) -> dict:
    """Return the summary of a shard, or a storage failure as a value: Ray Data wraps errors that tasks raise."""
    try:
        return {"summary": pickle.dumps(make(pickle.loads(row["work"]))), "failed": ""}
    except StorageFailed as error:
        return {"summary": b"", "failed": str(error)}


def _conclude(
    store: Store, name: str, made_from: Mapping, rejects: Sequence[Reject], summaries: Sequence[ShardSummary]
) -> Manifest:
    """Write the rejects and, if all splits have pairs, the manifest."""
    folder = store.folder / FOLDER
    rejects = [*rejects, *(reject for summary in summaries for reject in summary.rejects)]
    write_whole(folder / REJECTS, partial(_write_rejects, rejects))
    store.publish(f"{FOLDER}/{REJECTS}")
    splits = dict.fromkeys((*SPLITS, *(summary.split for summary in summaries)))
    counts = {split: _counts(split, rejects, summaries) for split in splits}
    for split in counts:
        _check_pairs(folder, name, split, counts[split], rejects)
    stored = [summary for summary in summaries if summary.rows]
    masked, turned = sum(summary.person_masks for summary in stored), sum(summary.azimuths for summary in stored)
    rows = sum(summary.rows for summary in stored)
    notes = sum((Counter(summary.notes) for summary in stored), Counter())
    if 0 < masked < rows:
        notes[reasons.NO_PERSON_MASK] = rows - masked
    if 0 < turned < rows:
        notes[reasons.NO_AZIMUTH] = rows - turned
    manifest = Manifest(
        **made_from,
        columns=[name for name, count in (("person_mask", masked), ("azimuth", turned)) if count == rows],
        counts=counts,
        rejects=dict(Counter(reject.reason for reject in rejects)),
        notes=dict(notes),
        shards=[summary.entry for summary in stored],
    )
    write_json(folder / MANIFEST, manifest.to_json())
    store.publish(f"{FOLDER}/{MANIFEST}")
    return manifest


def _write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    rows = [reject._asdict() for reject in rejects]
    parquet.write_table(pa.Table.from_pylist(rows, schema=REJECT_COLUMNS), path)


def _counts(split: str, rejects: Sequence[Reject], summaries: Sequence[ShardSummary]) -> dict[str, int]:
    """Count a split. Usable are the stored images and those that only lack a partner; the others were rejected."""
    of_split = [summary for summary in summaries if summary.split == split]
    why = [reject.reason for reject in rejects if reject.split == split]
    usable = sum(summary.rows for summary in of_split) + why.count(reasons.ALONE)
    return {
        "images": usable + sum(reason not in reasons.NO_UNUSABLE_IMAGE for reason in why),
        "usable": usable,
        "groups": sum(summary.groups for summary in of_split),
        "pairs": sum(summary.pairs for summary in of_split),
    }


def _check_pairs(folder: Path, name: str, split: str, counts: Mapping[str, int], rejects: Sequence[Reject]) -> None:
    if counts["pairs"]:
        return
    by_reason = Counter(reject.reason for reject in rejects if reject.split == split).most_common()
    why = ", ".join(f"{count:,} {reason}" for reason, count in by_reason) or "nothing"
    raise ValueError(
        f"{name}: no pair is left in the split '{split}'. Of its {counts['images']:,} images, {counts['usable']:,} "
        f"are usable; rejected: {why}. A pair takes two images of one person that can be decoded and whose shoulders "
        f"and hips are known. Every reject is named in {folder / REJECTS}."
    )
