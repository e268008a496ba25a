"""A checkpoint is whole or it does not count, and what it restores goes on bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from posegen.storage.store import Store
from posegen.training import checkpoints as module
from posegen.training.checkpoints import (
    StageProgress,
    checkpoints,
    latest_checkpoint,
    load_networks,
    newest_progress,
    read_curve,
    read_progress,
    remove_other,
    restore,
    snapshot,
    trained_networks,
    write_snapshot,
)
from posegen.training.step import build_trainer
from tests.training.test_step import CPU, run_steps, weights
from tests.training.toy import CANVAS, tug


def save(folder: Path, trainer, step: int) -> Path:
    progress = StageProgress(step, "hash", 3, {"generator/l1": 0.1})
    return write_snapshot(folder, snapshot(trainer, progress, [{"step": float(step), "a": 0.1}]))


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path):
    whole = build_trainer(tug(), CANVAS, seed=3, device=CPU)
    run_steps(whole, range(6))
    first = build_trainer(tug(), CANVAS, seed=3, device=CPU)
    run_steps(first, range(3))
    saved = save(tmp_path, first, 3)
    second = build_trainer(tug(), CANVAS, seed=99, device=CPU)
    second.seed = 3
    progress, curve = restore(second, saved)
    run_steps(second, range(progress.step, 6))
    assert curve == [{"step": 3, "a": 0.1}]
    assert second.last_terms == {"generator/l1": 0.1}
    for networks in ("bare", "averages"):
        for name, network in getattr(whole, networks).items():
            assert torch.equal(weights(network), weights(getattr(second, networks)[name])), (networks, name)


def test_only_complete_folders_count_and_the_newest_stay(tmp_path: Path):
    trainer = build_trainer(tug(), CANVAS, seed=0, device=CPU)
    (tmp_path / "checkpoint_00000009").mkdir()  # no stage.json: not ours
    (tmp_path / ".checkpoint_00000010.123").mkdir()
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2, 30):
        save(tmp_path, trainer, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_00000002", "checkpoint_00000030"]
    assert read_progress(tmp_path / "checkpoint_00000030") == StageProgress(30, "hash", 3, {"generator/l1": 0.1})
    assert read_curve(tmp_path / "checkpoint_00000030")[0]["step"] == 30


def test_a_writer_killed_half_way_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = build_trainer(tug(), CANVAS, seed=0, device=CPU)
    good = save(tmp_path, trainer, 1)
    monkeypatch.setattr(module.torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, trainer, 2)
    assert latest_checkpoint(tmp_path) == good


def test_averages_are_what_inference_reads(tmp_path: Path):
    trainer = build_trainer(tug(ema_decay=0.5), CANVAS, seed=0, device=CPU)
    run_steps(trainer, range(2))
    saved = save(tmp_path, trainer, 2)
    averaged, last = tug().networks(CANVAS), tug().networks(CANVAS)
    load_networks(saved, averaged)
    load_networks(saved, last, averaged=False)
    assert torch.equal(weights(averaged["generator"]), weights(trainer.averages["generator"]))
    assert torch.equal(weights(last["generator"]), weights(trainer.bare["generator"]))
    assert torch.equal(weights(averaged["critic"]), weights(trainer.bare["critic"]))


def test_other_networks_are_refused_in_words(tmp_path: Path):
    saved = save(tmp_path, build_trainer(tug(), CANVAS, seed=0, device=CPU), 1)
    with pytest.raises(ValueError, match="other settings"):
        load_networks(saved, {"generator": torch.nn.Linear(1, 1)})


def test_an_unfinished_stage_is_not_used(tmp_path: Path):
    with pytest.raises(ValueError, match="step 0 of 8"):
        trained_networks(tug(steps=8), CANVAS, tmp_path, CPU)
    save(tmp_path, build_trainer(tug(), CANVAS, seed=0, device=CPU), 7)
    with pytest.raises(ValueError, match="step 7 of 8"):
        trained_networks(tug(steps=8), CANVAS, tmp_path, CPU)
    save(tmp_path, build_trainer(tug(), CANVAS, seed=0, device=CPU), 8)
    networks = trained_networks(tug(steps=8), CANVAS, tmp_path, CPU)
    assert not any(network.training for network in networks.values())
    assert not any(p.requires_grad for network in networks.values() for p in network.parameters())


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path):
    trainer = build_trainer(tug(), CANVAS, seed=0, device=CPU)
    saved = save(tmp_path, trainer, 1)
    torch.save({"generator": print}, saved / "optimizers.pt")  # a pickled function: weights_only refuses it
    with pytest.raises(Exception, match=r"(?i)weights"):
        restore(trainer, saved)
    assert json.loads((saved / "stage.json").read_text())["step"] == 1


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_as_many_checkpoints_stay_as_are_asked_for(tmp_path: Path, keep: int, left: list[int]):
    trainer = build_trainer(tug(), CANVAS, seed=0, device=CPU)
    for step in (1, 2, 3, 4):
        write_snapshot(tmp_path, snapshot(trainer, StageProgress(step, "hash", 3, {}), []), keep=keep)
    assert [read_progress(path).step for path in checkpoints(tmp_path)] == left


def test_a_folder_of_another_config_hash_is_emptied_and_one_of_the_same_is_not(tmp_path: Path):
    trainer = build_trainer(tug(), CANVAS, seed=0, device=CPU)
    store = Store.of(tmp_path)
    remove_other(store, "nothing", "hash")
    saved = save(tmp_path / "tug", trainer, 1)
    remove_other(store, "tug", "hash")
    assert checkpoints(tmp_path / "tug") == [saved]
    remove_other(store, "tug", "another hash")
    assert latest_checkpoint(tmp_path / "tug") is None
    assert not (tmp_path / "tug").exists()


def test_at_a_uri_the_runs_newest_checkpoint_counts_and_not_this_nodes(s3_server, two_nodes):
    store, trainer = Store.of("s3://runs/stages"), build_trainer(tug(), CANVAS, seed=0, device=CPU)
    given = save(store.folder / "stage", trainer, 2)
    store.publish("stage")
    (store.folder / "stage" / "failures.json").write_text("{}")
    store.publish("stage/failures.json")
    two_nodes("second")
    save(store.folder / "stage", trainer, 3)  # not published
    assert newest_progress(store, "stage") == StageProgress(2, "hash", 3, {"generator/l1": 0.1})
    assert newest_progress(store, "nothing") is None
    two_nodes("third")
    assert newest_progress(store, "stage") == StageProgress(2, "hash", 3, {"generator/l1": 0.1})
    remove_other(store, "stage", "hash")
    assert f"{given.name}/stage.json" in store.sizes("stage")
    remove_other(store, "stage", "another hash")
    assert not store.sizes("stage")
    assert not (store.folder / "stage").exists()
