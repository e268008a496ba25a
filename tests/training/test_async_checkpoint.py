"""Checkpoints that are written while training goes on, and published."""

import threading
from pathlib import Path

import pytest
import torch

from posegen.storage.store import Store
from posegen.training import checkpoints as module
from posegen.training.checkpoints import (
    AsyncCheckpointer,
    StageProgress,
    checkpoints,
    fetch_newest,
    load_networks,
    newest_name,
    read_progress,
    snapshot,
)
from posegen.training.step import build_trainer
from tests.training.test_step import CPU, run_steps, weights
from tests.training.toy import CANVAS, tug


def taken(trainer, step: int):
    return snapshot(trainer, StageProgress(step, "hash", 3, {}), [])


def test_what_is_saved_is_the_game_as_it_stood(tmp_path: Path):
    """The trainer goes on before the writing begins."""
    trainer, checkpointer = (
        build_trainer(tug(), CANVAS, seed=3, device=CPU),
        AsyncCheckpointer(Store.of(tmp_path), "tug"),
    )
    run_steps(trainer, range(2))
    before = {name: weights(network).clone() for name, network in trainer.bare.items()}
    kept = taken(trainer, 2)
    run_steps(trainer, range(2, 5))
    checkpointer.save(kept)
    checkpointer.wait()
    checkpointer.close()
    restored = tug().networks(CANVAS)
    load_networks(tmp_path / "tug" / "checkpoint_00000002", restored, averaged=False)
    assert all(torch.equal(weights(restored[name]), before[name]) for name in before)
    assert not all(torch.equal(weights(trainer.bare[name]), before[name]) for name in before)


def test_training_does_not_wait_for_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, checkpointer, may_go_on = (
        build_trainer(tug(), CANVAS, seed=3, device=CPU),
        AsyncCheckpointer(Store.of(tmp_path), "tug"),
        threading.Event(),
    )
    write = module.write_snapshot

    def slowly(folder, kept, *, keep):
        assert may_go_on.wait(20)
        return write(folder, kept, keep=keep)

    monkeypatch.setattr(module, "write_snapshot", slowly)
    checkpointer.save(taken(trainer, 1))
    assert checkpoints(tmp_path / "tug") == [], "it has come back before anything is written"
    may_go_on.set()
    checkpointer.wait()
    checkpointer.close()
    assert [read_progress(path).step for path in checkpoints(tmp_path / "tug")] == [1]


def test_what_cannot_be_written_is_told_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, checkpointer = (
        build_trainer(tug(), CANVAS, seed=3, device=CPU),
        AsyncCheckpointer(Store.of(tmp_path), "tug"),
    )

    def fail(*_: object, **__: object) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(module, "write_snapshot", fail)
    checkpointer.save(taken(trainer, 1))
    with pytest.raises(ValueError, match="the disk is full"):
        checkpointer.save(taken(trainer, 2))
    checkpointer.close()


def test_checkpoints_of_a_uri_are_found_by_another_node_and_old_ones_go(s3_server, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    store = Store.of("s3://runs/saver")
    trainer, checkpointer = (
        build_trainer(tug(), CANVAS, seed=3, device=CPU),
        AsyncCheckpointer(store, "stages/tug", keep=2),
    )
    assert newest_name(store, "stages/tug") == ""
    for step in (1, 2, 3):
        checkpointer.save(taken(trainer, step))
    checkpointer.wait()
    checkpointer.close()
    assert {name.split("/")[0] for name in store.sizes("stages/tug")} == {"checkpoint_00000002", "checkpoint_00000003"}
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "second"))
    newest = fetch_newest(store, "stages/tug")
    assert newest is not None
    assert read_progress(newest).step == 3
    assert not (newest / "optimizers.pt").exists(), "what only training needs is not fetched"
    assert [path.name for path in checkpoints(store.folder / "stages" / "tug")] == ["checkpoint_00000003"]
