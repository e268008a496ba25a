"""Evaluate a trained system on the pairs of a split with Ray Data: scores per pair, means, intervals and baselines.

scores/parts/part-00000.parquet  one file per chunk while it runs, so that finished chunks are not repeated
scores/pairs.parquet             one row per pair: pair, source, target, person, every metric, "<baseline>.<metric>",
                                 and "<column>.mask_l1" of intermediate images
scores/metrics.json              written last: present if and only if the scores are complete
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from posegen.data.loading.dataset import Shards
from posegen.data.shards.preparing import Progress
from posegen.evaluation.scoring import TrainingMeans, score_chunk, summary, training_means
from posegen.inference import Trained, load
from posegen.stage import System
from posegen.storage.files import StorageFailed, write_json, write_whole
from posegen.storage.store import Store
from posegen.systems.fields import check_known
from posegen.training.checkpoints import fetch_newest

STAGES, SCORES, PARTS = "stages", "scores", "scores/parts"  # folders of a run
CHUNK = 64  # pairs scored between two writes
SEED = 0  # of the draw of pairs
TASKS_PER_GPU = 4  # SSIM on the CPU takes most of the time


def evaluate(
    system: System,
    store: Store,
    *,
    cache_bytes: int | None = None,
    pairs: int | None,
    fingerprint: str,
    use_gpu: bool,
    progress: Progress,
    split: str = "test",
) -> dict:
    """Score pairs of a split of a run, write its scores folder and return the content of scores/metrics.json.

    Chunks written by an interrupted evaluation with the same split and fingerprint are kept. Ray must be initialised.

    Args:
        system: The system whose stages the run has trained.
        store: The run.
        cache_bytes: Limit of the shards' cache; None for the default.
        pairs: Number of pairs, drawn by seed 0 if there are more; None for all in listed order.
        fingerprint: Digest of all inputs of the scores, stored with them.
        use_gpu: Synthesize on GPUs.
        progress: Called with the task, the pairs done and their total.
        split: Name of the split.

    Raises:
        ValueError: The shards lack the split or pairs of it, `pairs` is below 1, or a stage is not trained.
        StorageFailed: The scores cannot be written.
    """
    for stage in system.stages:
        fetch_newest(store, f"{STAGES}/{stage.name}")
    data = Shards.of(store, limit=cache_bytes)
    check_known("split", split, data.manifest.counts)
    chosen = chosen_pairs(data.pair_count(split), pairs, split=split)
    load(system, store.folder / STAGES, torch.device("cpu"))  # fails here, not in a task, if a stage is not trained
    store.remove(f"{SCORES}/metrics.json")
    store.fetch(PARTS).mkdir(parents=True, exist_ok=True)
    chunks = [chosen[start : start + CHUNK] for start in range(0, len(chosen), CHUNK)]
    parts = {f"{PARTS}/part-{index:05d}.parquet": chunk for index, chunk in enumerate(chunks)}
    scorer = _Scorer(system, store, cache_bytes, fingerprint, "cuda" if use_gpu else "cpu", split)
    missing = {file: chunk for file, chunk in parts.items() if not _done(store.folder / file, chunk, scorer)}
    done = len(chosen) - sum(map(len, missing.values()))
    progress("scoring", done, len(chosen))
    for count in _score(missing, scorer):
        done += count
        progress("scoring", done, len(chosen))
    return _finish(list(parts), scorer)


def chosen_pairs(available: int, pairs: int | None, *, split: str = "test") -> list[int]:
    """Return the pairs of a split to score, in listed order: all, or `pairs` of them drawn by seed 0.

    Raises ValueError where there is no pair, naming the split, and where `pairs` is below 1.
    """
    if available == 0:
        raise ValueError(
            f"there is no {split} pair to score: no two usable {split} images of one group (see rejects.parquet)"
        )
    if pairs is not None and pairs < 1:
        raise ValueError(f"pairs to score: {pairs} was given; at least 1 is needed, and there are {available}")
    if pairs is None or pairs >= available:
        return list(range(available))
    return sorted(np.random.default_rng(SEED).choice(available, pairs, replace=False).tolist())


@dataclass(frozen=True)
class _Scorer:
    """Callable that scores a chunk of pairs and writes it as one part; pickled to tasks."""

    system: System
    store: Store
    cache_bytes: int | None
    fingerprint: str
    device: str
    split: str

    @property
    def signature(self) -> dict[str, str]:
        """Metadata of a written part, which is kept if this is unchanged."""
        return {"fingerprint": self.fingerprint, "split": self.split}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pairs = [int(pair) for pair in row["pairs"]]
        trained, shards, means = _loaded(self)
        table = pa.table(score_chunk(trained, shards, pairs, means, split=self.split))
        signed = table.replace_schema_metadata(self.signature)
        try:
            write_whole(self.store.folder / row["file"], partial(pq.write_table, signed))
            self.store.publish(row["file"])
        except StorageFailed as error:  # returned: Ray Data does not preserve the type of a task's error
            return {"pairs": 0, "failed": str(error)}
        return {"pairs": len(pairs), "failed": ""}


@lru_cache(maxsize=1)
def _loaded(scorer: _Scorer) -> tuple[Trained, Shards, TrainingMeans]:
    """Load networks, data and the baselines' means, once per worker process, which runs many tasks."""
    store, system = scorer.store, scorer.system
    for stage in system.stages:
        fetch_newest(store, f"{STAGES}/{stage.name}")
    shards = Shards.of(store, limit=scorer.cache_bytes)
    return load(system, store.folder / STAGES, torch.device(scorer.device)), shards, training_means(system, shards)


def _done(file: Path, chunk: Sequence[int], scorer: _Scorer) -> bool:
    """Return whether a part holds exactly these pairs, scored from the same inputs."""
    if not file.is_file():
        return False
    written = pq.read_schema(file).metadata or {}
    same = all(written.get(key.encode()) == value.encode() for key, value in scorer.signature.items())
    return same and pq.read_table(file, columns=["pair"])["pair"].to_pylist() == list(chunk)


def _score(missing: Mapping[str, Sequence[int]], scorer: _Scorer) -> Iterator[int]:
    """Score the chunks in tasks; yield the number of pairs of each when written."""
    if not missing:
        return
    items = [{"file": file, "pairs": list(chunk)} for file, chunk in missing.items()]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.enable_progress_bars = False
    share = {"num_gpus": 1 / TASKS_PER_GPU} if scorer.device == "cuda" else {"num_cpus": 1}
    for row in dataset.map(scorer, **share).iter_rows():  # pyright: ignore[reportArgumentType]
        if row["failed"]:
            raise StorageFailed(row["failed"])
        yield int(row["pairs"])


def _finish(parts: Sequence[str], scorer: _Scorer) -> dict:
    """Merge the parts, write pairs.parquet and then metrics.json, and remove the parts."""
    store, split = scorer.store, scorer.split
    store.fetch(PARTS)
    table = pa.concat_tables([pq.read_table(store.folder / part) for part in parts])
    shards, scores = Shards.of(store, limit=scorer.cache_bytes), store.folder / SCORES
    identities = shards.identities(split)
    persons = [identities[name] for name in table["target"].to_pylist()]
    write_whole(scores / "pairs.parquet", partial(pq.write_table, table.add_column(3, "person", pa.array(persons))))
    available = shards.pair_count(split)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    selection = f"all {split} pairs" if table.num_rows == available else f"{split} pairs drawn by seed {SEED}"
    metrics = {**scorer.signature, "pairs": table.num_rows, "pairs_available": available, "selection": selection}
    metrics |= summary(columns, persons) | {"stand_ins": scorer.system.stand_ins()}
    write_json(scores / "metrics.json", metrics)
    store.remove(PARTS)
    store.publish(SCORES, last="metrics.json")
    return metrics
