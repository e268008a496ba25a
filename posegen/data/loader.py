"""Shards to batches: memory-mapped files, pairs drawn by (seed, draw), pictures decoded in threads.

A raw batch is what is copied to the device: "pair" int64 (b,), places in the split's list of pairs, and for the roles
source and target "_image" uint8 (b, H, W, 3) RGB, "_joints" float32 (b, 18, 2) in pixels, "_visible" bool (b, 18),
"_pose_mask" and "_person_mask" uint8 (b, H, W) of 0 and 1; and "rotation" float32 (b,), degrees in (-180, 180].
"""

from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from numpy import ndarray
from torch import Tensor

from posegen.batch import COLUMNS
from posegen.data.image_bytes import decode_into
from posegen.data.joints import MIRROR
from posegen.data.mapped_split import MappedSplit
from posegen.data.pose_masks import unpack
from posegen.data.shard_files import read_manifest

_ROLES = ("source", "target")
_ALWAYS = ("joints", "visible")
_AHEAD = 2  # batches being decoded while one is used: enough to hide uneven ones, little enough to hold in memory
_ORDERS, _FLIPS = 0, 1  # independent random streams of one seed


class Shards:
    """A complete folder of shards, memory-mapped; a split's index is made when it is first asked for.

    Raises ValueError where the folder is not complete.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(
                f"{folder} holds no complete shards of this version: make them first (`posegen shards`), or give the "
                f"folder that has their manifest.json."
            )
        self.folder, self.manifest = folder, manifest
        self.size: tuple[int, int] = tuple(manifest["settings"]["size"])
        kinds = {"image", *_ALWAYS, "pose_mask", *manifest["columns"]} - {"azimuth"}
        self.columns: set[str] = {f"{role}_{kind}" for role in _ROLES for kind in kinds}
        self.columns |= {"rotation"} if "azimuth" in manifest["columns"] else set()
        self._splits: dict[str, MappedSplit] = {}

    def split(self, split: str) -> MappedSplit:
        """The pictures and pairs of a split, in global rows; empty where the manifest has none of it."""
        if split not in self._splits:
            shards = [shard for shard in self.manifest["shards"] if shard["split"] == split]
            self._splits[split] = MappedSplit(self.folder, shards)
        return self._splits[split]

    def pair_count(self, split: str) -> int:
        return self.split(split).pair_count

    def picture_count(self, split: str) -> int:
        return self.split(split).picture_count

    def pair_names(self, split: str, pairs: Sequence[int]) -> list[tuple[str, str]]:
        """The names (source, target) of pairs, given by their places in the split's list."""
        mapped = self.split(split)
        rows = np.stack(mapped.pair_rows(_places(pairs, mapped.pair_count, f"pairs of '{split}'")), axis=1)
        return [(mapped.name(source), mapped.name(target)) for source, target in rows.tolist()]

    def pictures(self, split: str, rows: Sequence[int]) -> UInt8[ndarray, "n height width 3"]:
        """Decoded RGB pictures of a split, by their rows 0 .. picture_count - 1."""
        mapped = self.split(split)
        places = _places(rows, mapped.picture_count, f"pictures of '{split}'")
        pictures = np.empty((len(places), *self.size, 3), np.uint8)
        for picture, row in zip(pictures, places.tolist(), strict=True):
            decode_into(mapped.image(row), picture)
        return pictures


def _places(places: Sequence[int], count: int, what: str) -> Int[ndarray, " n"]:
    numbers = np.asarray(places, np.int64).reshape(-1)
    outside = numbers[(numbers < 0) | (numbers >= count)]
    if len(outside):
        raise ValueError(f"{outside[:3].tolist()} are no {what}: there are {count:,}, counted from 0.")
    return numbers


class _Draw(NamedTuple):
    """What one batch is made of: places in the split's list of pairs, and which of them are mirrored."""

    pairs: Int[ndarray, " b"]
    flips: Bool[ndarray, " b"]


def training_batches(
    shards: Shards,
    *,
    columns: Collection[str],
    batch_size: int,
    seed: int,
    draws: range,
    rank: int = 0,
    world_size: int = 1,
    flip: bool,
    threads: int = 2,
    pin_memory: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """Raw batches of training pairs, one for each number in `draws`: this rank's slice of a global batch.

    Draw d takes the places d * batch_size .. (d + 1) * batch_size - 1 of an endless stream of permutations, one an
    epoch. Pairs and flips depend on (seed, d) and the place in the global batch only, so any number of workers sees the
    same pairs in the same order, and a run that goes on at d sees what an uninterrupted one would have seen
    (MosaicML Streaming's elastic determinism). With `flip`, half of the pairs are mirrored, both pictures together and
    left and right joints exchanged: our choice, where PG2 stores mirrored pictures with poses of their own.

    `columns` names what is read of `posegen.batch.COLUMNS`; joints and visible always come, other names are not the
    loader's. Closing the iterator ends its threads. Raises ValueError for a batch that the ranks cannot share equally,
    for columns that the data do not have, and where there are no training pairs.
    """
    if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
        raise ValueError(
            f"a global batch of {batch_size} pairs cannot be shared equally by {world_size} workers (rank {rank}): "
            f"choose a batch size that is a multiple of the number of workers."
        )
    if seed < 0:
        raise ValueError(f"the seed is {seed}, and must be 0 or more.")
    pair_count = shards.pair_count("train")
    if not pair_count:
        raise ValueError(f"{shards.folder} has no training pairs.")
    share = batch_size // world_size
    own = slice(rank * share, (rank + 1) * share)
    plan = (_training_draw(pair_count, batch_size, seed, draw, own, flip) for draw in draws)
    return _batches(_Filling(shards, "train", columns, pin_memory), plan, threads)


def listed_batches(
    shards: Shards,
    split: str,
    *,
    columns: Collection[str],
    batch_size: int,
    pairs: Sequence[int],
    threads: int = 2,
    pin_memory: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """Raw batches of the pairs named by their places in the split's list, in that order, never mirrored.

    The last batch may be smaller. Raises ValueError for places that do not exist and for columns as above.
    """
    places = _places(pairs, shards.pair_count(split), f"pairs of '{split}'")
    starts = range(0, len(places), batch_size)
    plan = (_Draw(part, np.zeros(len(part), bool)) for part in (places[start : start + batch_size] for start in starts))
    return _batches(_Filling(shards, split, columns, pin_memory), plan, threads)


def _training_draw(pair_count: int, batch_size: int, seed: int, draw: int, own: slice, flip: bool) -> _Draw:
    places = np.arange(draw * batch_size, (draw + 1) * batch_size)[own]
    epochs = places // pair_count
    pairs = np.empty(len(places), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        pairs[here] = _epoch_order(pair_count, seed, int(epoch))[places[here] % pair_count]
    flips = _random(seed, _FLIPS, draw).random(batch_size)[own] < (0.5 if flip else 0.0)
    return _Draw(pairs, flips)


@lru_cache(maxsize=2)
def _epoch_order(pair_count: int, seed: int, epoch: int) -> Int[ndarray, " pair_count"]:
    return _random(seed, _ORDERS, epoch).permutation(pair_count)


def _random(seed: int, stream: int, number: int) -> np.random.Generator:
    """A generator that is a function of its arguments alone, by numpy's counter-based Philox."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, number))))


@dataclass(frozen=True)
class _Filling:
    """How batches of one split are filled: which columns, in which memory."""

    shards: Shards
    split: str
    columns: Collection[str]
    pin_memory: bool

    def __post_init__(self) -> None:
        lacking = self.wanted - self.shards.columns
        if lacking:
            raise ValueError(
                f"the shards in {self.shards.folder} have no {', '.join(sorted(lacking))}; they have "
                f"{', '.join(sorted(self.shards.columns))}."
            )

    @property
    def wanted(self) -> set[str]:
        stored = {name for name in COLUMNS if not name.endswith("_pose")}
        return {name for name in stored if name in self.columns or name.endswith(_ALWAYS)}

    def empty(self, count: int) -> dict[str, Tensor]:
        """A batch that is still to be filled."""
        height, width = self.shards.size
        kinds = {
            "image": ((height, width, 3), torch.uint8),
            "joints": ((18, 2), torch.float32),
            "visible": ((18,), torch.bool),
            "pose_mask": ((height, width), torch.uint8),
            "person_mask": ((height, width), torch.uint8),
        }
        batch = {"pair": torch.empty(count, dtype=torch.int64, pin_memory=self.pin_memory)}
        if "rotation" in self.wanted:
            batch["rotation"] = torch.empty(count, dtype=torch.float32, pin_memory=self.pin_memory)
        for name in sorted(self.wanted - {"rotation"}):
            shape, dtype = kinds[name.partition("_")[2]]
            batch[name] = torch.empty((count, *shape), dtype=dtype, pin_memory=self.pin_memory)
        return batch

    def fill(self, batch: dict[str, Tensor], draw: _Draw, part: slice) -> None:
        """Fill some places of a batch."""
        mapped = self.shards.split(self.split)
        pairs, flips = draw.pairs[part], draw.flips[part]
        batch["pair"].numpy()[part] = pairs
        sources, targets = mapped.pair_rows(pairs)
        if "rotation" in batch:
            batch["rotation"].numpy()[part] = _rotations(mapped.azimuths[sources], mapped.azimuths[targets], flips)
        for role, rows in zip(_ROLES, (sources, targets), strict=True):
            own = {name.partition("_")[2]: batch[name].numpy()[part] for name in batch if name.startswith(role)}
            _fill_joints(own["joints"], own["visible"], mapped, rows, flips, self.shards.size[1])
            if "image" in own:
                _fill_images(own["image"], mapped, rows, flips)
            for kind in own.keys() & {"pose_mask", "person_mask"}:
                masks = unpack([mapped.mask(kind, row) for row in rows.tolist()], *self.shards.size)
                masks[flips] = masks[flips][:, :, ::-1]
                own[kind][...] = masks


def _rotations(sources: ndarray, targets: ndarray, flips: ndarray) -> ndarray:
    """From the source camera's azimuth to the target's, the short way round: degrees in (-180, 180]. Mirrored: back."""
    turned = np.where(flips, sources - targets, targets - sources)
    return 180 - (180 - turned) % 360


def _fill_joints(
    joints: ndarray, visible: ndarray, mapped: MappedSplit, rows: ndarray, flips: ndarray, width: int
) -> None:
    """Mirrored: x becomes width - 1 - x, and left and right joints exchange their places."""
    joints[...], visible[...] = mapped.joints[rows], mapped.visible[rows]
    mirrored = joints[flips][:, MIRROR]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    joints[flips], visible[flips] = mirrored, visible[flips][:, MIRROR]


def _fill_images(images: ndarray, mapped: MappedSplit, rows: ndarray, flips: ndarray) -> None:
    for image, row, flip in zip(images, rows.tolist(), flips.tolist(), strict=True):
        decode_into(mapped.image(row), image)
        if flip:
            image[...] = cv2.flip(image, 1)


def _batches(filling: _Filling, plan: Iterable[_Draw], threads: int) -> Generator[dict[str, Tensor], None, None]:
    """Filled batches in the order of the plan, each split over the threads, the next ones filled ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="posegen-loader")
    waiting: deque[tuple[dict[str, Tensor], list[Future[None]]]] = deque()
    try:
        for draw in plan:
            batch, step = filling.empty(len(draw.pairs)), -(-len(draw.pairs) // threads)
            parts = [slice(start, start + step) for start in range(0, len(draw.pairs), step)]
            waiting.append((batch, [pool.submit(filling.fill, batch, draw, part) for part in parts]))
            if len(waiting) > _AHEAD:
                yield _filled(*waiting.popleft())
        while waiting:
            yield _filled(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _filled(batch: dict[str, Tensor], parts: list[Future[None]]) -> dict[str, Tensor]:
    for part in parts:
        part.result()
    return batch
