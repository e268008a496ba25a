"""Validation of trials: scores of their results on pairs of people that they are not trained on."""

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
class PairsValidator:
    """Mean scores over listed pairs of one split, on one worker: a `training.task.Validator`. Pickles to workers.

    Writes below `prefix`: samples.png, the results of the fixed pairs side by side, at every validation; pairs.parquet,
    one row per pair with all metrics, at the last one.
    """

    system: System
    store: Store  # the run
    cache_bytes: int | None  # of shards on each node
    split: str
    pairs: tuple[int, ...]
    metrics: tuple[str, ...]  # scored at every validation; the last one scores all
    at: tuple[int, ...]  # steps
    prefix: str = ""  # of the trial's folder within the run

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        """Score the networks. Raises ValueError if a result has non-finite values, or no pair has a score."""
        trained, shards = Trained(self.system, networks, device), _open_shards(self.store, self.cache_bytes)
        last = step == max(self.at)
        wanted = metrics_of(self.system) if last else self.metrics
        table = result_scores(trained, shards, self.pairs, split=self.split, metrics=wanted)
        broken = int((~table["finite"]).sum())
        if broken:
            what = "generated images" if self.system.image else "predicted poses"
            raise ValueError(f"{broken} of {len(self.pairs)} {what} have values that are not numbers")
        batches = synthesized(trained, shards, sample_pairs(self.pairs), split=self.split)
        samples = [image for raw, columns in batches for image in result_images(self.system, raw, columns)]
        self._write("samples.png", partial(_write_png, samples))
        if last:
            self._write("pairs.parquet", partial(pq.write_table, pa.table(table)))
        known = {name: table[name][np.isfinite(table[name])] for name in wanted}
        for name in self.metrics:
            if not known[name].size:
                raise ValueError(f"no pair has a {name}: {EVERY[name].undefined}")
        return {name: float(values.mean()) for name, values in known.items() if values.size}

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.store.folder / self.prefix / name, write)
        self.store.publish(f"{self.prefix}/{name}")


@lru_cache(maxsize=1)
def _open_shards(store: Store, cache_bytes: int | None) -> Shards:
    return Shards.of(store, limit=cache_bytes)


def sample_pairs(pairs: Sequence[int]) -> list[int]:
    """Return the fixed pairs: `SAMPLES` of the validation pairs, evenly along their list, so of many people."""
    count = min(SAMPLES, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _write_png(images: Sequence[Uint8Image], path: Path) -> None:
    encoded = cv2.imencode(".png", cv2.cvtColor(np.concatenate(images, axis=1), cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def read_samples(path: Path, width: int) -> list[Uint8Image]:
    """Read the images of a samples.png, each `width` pixels wide, RGB."""
    whole = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert whole is not None, f"{path} cannot be read"
    images = cv2.cvtColor(whole, cv2.COLOR_BGR2RGB).astype(np.uint8)
    return [images[:, left : left + width] for left in range(0, images.shape[1], width)]
