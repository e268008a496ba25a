"""What a trial is judged by: scores of its results on pairs of people that it does not learn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from posegen.data.loading.dataset import Shards
from posegen.evaluation.baselines import Uint8Image
from posegen.evaluation.metrics import EVERY, metrics_of
from posegen.evaluation.scoring import result_scores, synthesized
from posegen.inference import Trained
from posegen.report.panels import result_images
from posegen.stage import Networks, System
from posegen.storage.files import write_whole
from posegen.storage.store import Store

SAMPLES = 8  # fixed pairs whose images every trial keeps


@dataclass(frozen=True)
class PairsJudge:
    """Mean scores over listed pairs of one split, on one worker. `train.loop.Validator`; pickles to workers.

    Leaves in `place`: samples.png, the results of the fixed pairs side by side, at every judgement; pairs.parquet, one
    row a pair with all metrics, at the last one.
    """

    system: System
    store: Store  # the run
    cache_bytes: int | None  # of shards on each node
    split: str
    pairs: tuple[int, ...]
    metrics: tuple[str, ...]  # scored on the way; all of them at the last judgement
    at: tuple[int, ...]  # steps
    place: str  # of the trial's folder within the run

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        """Raises ValueError where a result has values that are not numbers, or a score has no pair to stand on."""
        trained, shards = Trained(self.system, networks, device), _opened(self.store, self.cache_bytes)
        last = step == max(self.at)
        wanted = metrics_of(self.system) if last else self.metrics
        table = result_scores(trained, shards, self.pairs, split=self.split, metrics=wanted)
        broken = int((~table["finite"]).sum())
        if broken:
            what = "generated images" if self.system.image else "predicted poses"
            raise ValueError(f"{broken} of {len(self.pairs)} {what} have values that are not numbers")
        self._write("samples.png", partial(_write_png, self._samples(trained, shards)))
        if last:
            self._write("pairs.parquet", partial(pq.write_table, pa.table(table)))
        return {name: _mean(name, table[name]) for name in wanted if name in self.metrics or _known(table[name])}

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.store.folder / self.place / name, write)
        self.store.publish(f"{self.place}/{name}")

    def _samples(self, trained: Trained, shards: Shards) -> list[Uint8Image]:
        images: list[Uint8Image] = []
        for raw, columns in synthesized(trained, shards, sample_pairs(self.pairs), split=self.split):
            images += result_images(self.system, raw, columns)
        return images


@lru_cache(maxsize=1)
def _opened(store: Store, cache_bytes: int | None) -> Shards:
    return Shards.of(store, limit=cache_bytes)


def _known(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _mean(name: str, values: np.ndarray) -> float:
    """The mean over the pairs that have this score."""
    if not _known(values):
        raise ValueError(f"no pair has a {name}: {EVERY[name].undefined}")
    return float(values[np.isfinite(values)].mean())


def sample_pairs(pairs: Sequence[int]) -> list[int]:
    """The fixed pairs: `SAMPLES` of those judged, evenly along their list, so of many people."""
    count = min(SAMPLES, len(pairs))
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _write_png(images: Sequence[Uint8Image], path: Path) -> None:
    encoded = cv2.imencode(".png", cv2.cvtColor(np.concatenate(images, axis=1), cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def read_samples(path: Path, width: int) -> list[Uint8Image]:
    """The images of a samples.png, each `width` pixels wide, RGB."""
    whole = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert whole is not None, f"{path} cannot be read"
    images = cv2.cvtColor(whole, cv2.COLOR_BGR2RGB).astype(np.uint8)
    return [images[:, left : left + width] for left in range(0, images.shape[1], width)]
