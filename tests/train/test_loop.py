"""The loop without Ray: resume, determinism, workers, checks."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from posegen.catalog import override
from posegen.catalog import system as catalog_system
from posegen.data.pose_maps import Discs
from posegen.stage import System
from posegen.train.checkpoint import checkpoints, latest_checkpoint, read_curve, read_progress
from posegen.train.loop import Alone, NonFinite, Task, needed_columns, train_stage

from .toy import Tug


def task(shards: Path, folder: Path, **fields) -> Task:
    stage = Tug(**{"ema_decay": 0.0, **fields})
    system = System(
        name="tug",
        variant="full",
        paper="",
        size=(64, 32),
        pose_maps=Discs(radius=2),
        stages=(stage,),
        image="tug_image",
    )
    return Task(
        system=system, index=0, shards=shards, folders={"tug": folder / "tug"}, seed=5, recipe="recipe", checkpoint_every=3
    )  # fmt: skip


def networks(folder: Path) -> bytes:
    latest = latest_checkpoint(folder / "tug")
    assert latest is not None
    return (latest / "networks.safetensors").read_bytes()


class Interrupted(Exception):
    """What the tests stop a run with."""


class StopAfter(Alone):
    """Dies at the n-th checkpoint, after it is written."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def saved(self, checkpoint, rows) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted


def test_interrupted_and_resumed_equals_uninterrupted(block_shards: Path, tmp_path: Path):
    whole, parts = task(block_shards, tmp_path / "whole", steps=10), task(block_shards, tmp_path / "parts", steps=10)
    train_stage(whole, Alone())
    for count in (1, 2):
        with pytest.raises(Interrupted):
            train_stage(parts, StopAfter(count))
    train_stage(parts, Alone())
    assert networks(tmp_path / "whole") == networks(tmp_path / "parts")
    last = [checkpoints(folder / "tug")[-1] for folder in (tmp_path / "whole", tmp_path / "parts")]
    assert read_curve(last[0]) == read_curve(last[1])
    assert [row["step"] for row in read_curve(last[0])] == list(range(1, 11))
    assert read_progress(last[0]).step == 10


def test_a_finished_stage_is_left_alone(block_shards: Path, tmp_path: Path):
    done = task(block_shards, tmp_path, steps=3)
    train_stage(done, Alone())
    before = (latest_checkpoint(done.folder) / "stage.json").stat().st_mtime_ns  # pyright: ignore
    train_stage(done, Alone())
    assert (latest_checkpoint(done.folder) / "stage.json").stat().st_mtime_ns == before  # pyright: ignore


def test_more_steps_go_on_from_the_last(block_shards: Path, tmp_path: Path):
    train_stage(task(block_shards, tmp_path / "parts", steps=4), Alone())
    train_stage(task(block_shards, tmp_path / "parts", steps=7), Alone())
    train_stage(task(block_shards, tmp_path / "whole", steps=7), Alone())
    assert networks(tmp_path / "whole") == networks(tmp_path / "parts")


def test_a_loss_that_is_not_finite_stops_with_step_term_and_last_good_checkpoint(block_shards: Path, tmp_path: Path):
    exploding = task(block_shards, tmp_path, steps=2000, lr=1e18)
    with pytest.raises(NonFinite, match=r"stage 'tug' stopped at step \d+: .*/.* is (nan|inf)") as error:
        train_stage(exploding, Alone())
    good = latest_checkpoint(exploding.folder)
    assert str(good or "none yet") in str(error.value)


def two_workers(rank: int, address: str, work: Task) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    train_stage(work, Alone(rank=rank, world_size=2))
    dist.destroy_process_group()


def test_two_workers_give_the_losses_of_one(block_shards: Path, tmp_path: Path):
    """VDG's first stage (no batch norm, no noise) at its published rate: the same pairs, so the same losses."""
    settings = {"coarse.width": 8, "coarse.steps": 50, "coarse.batch_size": 8, "coarse.lr": 2e-5}
    system = override(catalog_system("vdg", "synthetic"), settings)
    one, two = (
        dataclasses.replace(
            task(block_shards, tmp_path), system=system, folders={"coarse": tmp_path / name}, checkpoint_every=50
        )
        for name in ("one", "two")
    )
    train_stage(one, Alone())
    multiprocessing.spawn(two_workers, args=("29611", two), nprocs=2)  # pyright: ignore
    first, second = ([row["generator/l1"] for row in read_curve(latest_checkpoint(t.folder))] for t in (one, two))  # pyright: ignore
    assert len(first) == 50
    assert first == pytest.approx(second, abs=1e-5)
    assert first[-1] < first[0]


def test_only_the_columns_that_are_read_are_asked_for(block_shards: Path, tmp_path: Path):
    assert needed_columns(task(block_shards, tmp_path).system, 0) == {"source_image", "target_image"}
