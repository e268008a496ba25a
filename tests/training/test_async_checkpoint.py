"""Checkpoints that are written while training goes on, and published."""

import threading
from pathlib import Path

import pytest
import torch

from posegen.storage.store import Store
from posegen.training import checkpoints as module
from posegen.training.checkpoints import (
    Progress,
    Saver,
    checkpoints,
    fetch_newest,
    load_networks,
    newest_name,
    read_progress,
    snapshot,
)
from posegen.training.step import new_game
from tests.training.test_step import CPU, play, weights
from tests.training.toy import CANVAS, tug


def taken(game, step: int):
    return snapshot(game, Progress(step, "recipe", 3, {}), [])


def test_what_is_saved_is_the_game_as_it_stood(tmp_path: Path):
    """The game goes on before the writing begins."""
    game, saver = new_game(tug(), CANVAS, seed=3, device=CPU), Saver(Store.of(tmp_path), "tug")
    play(game, range(2))
    before = {name: weights(network).clone() for name, network in game.bare.items()}
    kept = taken(game, 2)
    play(game, range(2, 5))
    saver.save(kept)
    saver.wait()
    saver.close()
    restored = tug().networks(CANVAS)
    load_networks(tmp_path / "tug" / "checkpoint_00000002", restored, averaged=False)
    assert all(torch.equal(weights(restored[name]), before[name]) for name in before)
    assert not all(torch.equal(weights(game.bare[name]), before[name]) for name in before)


def test_training_does_not_wait_for_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    game, saver, may_go_on = (
        new_game(tug(), CANVAS, seed=3, device=CPU),
        Saver(Store.of(tmp_path), "tug"),
        threading.Event(),
    )
    write = module.write_snapshot

    def slowly(folder, kept, *, keep):
        assert may_go_on.wait(20)
        return write(folder, kept, keep=keep)

    monkeypatch.setattr(module, "write_snapshot", slowly)
    saver.save(taken(game, 1))
    assert checkpoints(tmp_path / "tug") == [], "it has come back before anything is written"
    may_go_on.set()
    saver.wait()
    saver.close()
    assert [read_progress(path).step for path in checkpoints(tmp_path / "tug")] == [1]


def test_what_cannot_be_written_is_told_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    game, saver = new_game(tug(), CANVAS, seed=3, device=CPU), Saver(Store.of(tmp_path), "tug")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(module, "write_snapshot", fail)
    saver.save(taken(game, 1))
    with pytest.raises(ValueError, match="the disk is full"):
        saver.save(taken(game, 2))
    saver.close()


def test_checkpoints_of_a_uri_are_found_by_another_node_and_old_ones_go(s3_server, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    store = Store.of("s3://runs/saver")
    game, saver = new_game(tug(), CANVAS, seed=3, device=CPU), Saver(store, "stages/tug", keep=2)
    assert newest_name(store, "stages/tug") == ""
    for step in (1, 2, 3):
        saver.save(taken(game, step))
    saver.wait()
    saver.close()
    assert {name.split("/")[0] for name in store.sizes("stages/tug")} == {"checkpoint_00000002", "checkpoint_00000003"}
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "second"))
    newest = fetch_newest(store, "stages/tug")
    assert newest is not None
    assert read_progress(newest).step == 3
    assert not (newest / "optimizers.pt").exists(), "what only training needs is not fetched"
    assert [path.name for path in checkpoints(store.folder / "stages" / "tug")] == ["checkpoint_00000003"]
