"""Scores of a trained system on the pairs of a split, on Ray Data: one row a pair, then means, intervals and baselines.

scores/parts/part-00000.parquet  while it runs: one file a chunk, so that what is done is not done again
scores/pairs.parquet             one row a pair: pair, source, target, person, every metric, "<baseline>.<metric>",
                                 and "<column>.mask_l1" of images that stages before the result make
scores/metrics.json              written last: it is there when, and only when, the scores are complete
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
from posegen.evaluation.scoring import Means, score_chunk, summary, training_means
from posegen.inference import Trained, load
from posegen.stage import System
from posegen.storage.files import StorageFailed, write_json, write_whole
from posegen.storage.store import Store
from posegen.systems.fields import check_known
from posegen.training.checkpoints import fetch_newest

SHARDS, STAGES, SCORES, PARTS = "shards", "stages", "scores", "parts"  # folders of a run, and of its scores
CHUNK = 64  # pairs scored between two writes
SEED = 0  # of the draw of pairs
TASKS_PER_GPU = 4  # most of the time goes into SSIM on the CPU, so several share a GPU


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
    """Scores pairs of a split by a run's shards and stages, and gives what its scores/metrics.json says.

    All pairs in listed order, or `pairs` of them drawn by seed 0 where there are more. Chunks that an interrupted
    evaluation of the same split with the same fingerprint has written are kept. Ray must be initialised.

    Raises ValueError where the shards have no such split or no pair of it, `pairs` is below 1, or a stage is not
    trained, and StorageFailed where the scores cannot be written.
    """
    for stage in system.stages:
        fetch_newest(store, f"{STAGES}/{stage.name}")
    data = Shards.of(store, limit=cache_bytes)
    check_known("split", split, data.manifest.counts)
    chosen = chosen_pairs(data.pair_count(split), pairs, split=split)
    load(system, store.folder / STAGES, torch.device("cpu"))  # a stage that is not trained is told here, not by a task
    store.remove(f"{SCORES}/metrics.json")
    store.fetch(f"{SCORES}/{PARTS}").mkdir(parents=True, exist_ok=True)
    chunks = [chosen[start : start + CHUNK] for start in range(0, len(chosen), CHUNK)]
    parts = {f"{SCORES}/{PARTS}/part-{number:05d}.parquet": chunk for number, chunk in enumerate(chunks)}
    scorer = _Scorer(system, store, cache_bytes, fingerprint, "cuda" if use_gpu else "cpu", split)
    missing = {file: chunk for file, chunk in parts.items() if not _done(store.folder / file, chunk, scorer)}
    done = len(chosen) - sum(map(len, missing.values()))
    progress("scoring", done, len(chosen))
    for count in _score(missing, scorer):
        done += count
        progress("scoring", done, len(chosen))
    return _finish(list(parts), scorer)


def chosen_pairs(available: int, pairs: int | None, *, split: str = "test") -> list[int]:
    """The pairs of a split to score: all in listed order, or `pairs` of them drawn by seed 0, in listed order too.

    Raises ValueError, with the split's name, where there is none, and where `pairs` is below 1.
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
    """What scores a chunk of pairs and writes it as one part; pickles to tasks."""

    system: System
    store: Store
    cache_bytes: int | None
    fingerprint: str
    device: str
    split: str

    @property
    def signature(self) -> dict[str, str]:
        """What a written part carries: it is kept where this is the same."""
        return {"fingerprint": self.fingerprint, "split": self.split}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pairs = [int(pair) for pair in row["pairs"]]
        trained, shards, means = _loaded(self)
        table = pa.table(score_chunk(trained, shards, pairs, means, split=self.split))
        signed = table.replace_schema_metadata(self.signature)
        try:
            write_whole(self.store.folder / row["file"], partial(pq.write_table, signed))
            self.store.publish(row["file"])
        except StorageFailed as error:  # as a value: Ray Data gives no task's error back as it was
            return {"pairs": 0, "failed": str(error)}
        return {"pairs": len(pairs), "failed": ""}


@lru_cache(maxsize=1)
def _loaded(scorer: _Scorer) -> tuple[Trained, Shards, Means]:
    """Networks, data and the baselines' means: loaded once in a worker's process, which runs many tasks."""
    store, system = scorer.store, scorer.system
    for stage in system.stages:
        fetch_newest(store, f"{STAGES}/{stage.name}")
    shards = Shards.of(store, limit=scorer.cache_bytes)
    return load(system, store.folder / STAGES, torch.device(scorer.device)), shards, training_means(system, shards)


def _done(file: Path, chunk: Sequence[int], scorer: _Scorer) -> bool:
    """Whether a part holds exactly these pairs, scored from the same inputs."""
    if not file.is_file():
        return False
    written = pq.read_schema(file).metadata or {}
    same = all(written.get(key.encode()) == value.encode() for key, value in scorer.signature.items())
    return same and pq.read_table(file, columns=["pair"])["pair"].to_pylist() == list(chunk)


def _score(missing: Mapping[str, Sequence[int]], scorer: _Scorer) -> Iterator[int]:
    """Scores the chunks in tasks; gives the number of pairs of each as it is written."""
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
    """Merges the parts, writes pairs.parquet and then metrics.json, and removes the parts."""
    store, split = scorer.store, scorer.split
    store.fetch(f"{SCORES}/{PARTS}")
    table = pa.concat_tables([pq.read_table(store.folder / part) for part in parts])
    shards, scores = Shards.of(store, limit=scorer.cache_bytes), store.folder / SCORES
    identities = shards.identities(split)
    persons = [identities[name] for name in table["target"].to_pylist()]
    named = table.add_column(3, "person", pa.array(persons))
    write_whole(scores / "pairs.parquet", partial(pq.write_table, named))
    available = shards.pair_count(split)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    drawn = f"all {split} pairs" if table.num_rows == available else f"{split} pairs drawn by seed {SEED}"
    metrics = {**scorer.signature, "pairs": table.num_rows, "pairs_available": available, "selection": drawn}
    metrics |= summary(columns, persons) | {"stand_ins": scorer.system.stand_ins()}
    write_json(scores / "metrics.json", metrics)
    store.remove(f"{SCORES}/{PARTS}")
    store.publish(SCORES, last="metrics.json")
    return metrics
