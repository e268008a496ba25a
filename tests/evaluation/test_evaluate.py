"""Evaluation: which pairs, chunks that are kept, what is written, and one run through Ray Data."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import ray
import torch
from safetensors.torch import save_file

from posegen import catalog
from posegen.data.loading.dataset import Shards
from posegen.evaluation import evaluate
from posegen.evaluation.evaluate import chosen_pairs
from posegen.evaluation.metrics import BASELINES, METRICS, POSE_BASELINES, POSE_METRICS
from posegen.stage import System
from posegen.storage.store import Store
from posegen.training.checkpoints import StageProgress
from tests import posing_systems

PAIRS = 24  # of the blocks' two test people


@pytest.fixture(scope="module")
def system() -> System:
    settings = {"coarse.width": 4, "refinement.width": 4, "refinement.discriminator_width": 4}
    return catalog.override(catalog.system("vdg", "synthetic"), settings)


@pytest.fixture(scope="module")
def stages(system, tmp_path_factory) -> Path:
    """Finished checkpoints of untrained networks."""
    folder = tmp_path_factory.mktemp("trained") / "stages"
    torch.manual_seed(0)
    for stage in system.stages:
        checkpoint = folder / stage.name / f"checkpoint_{stage.training.steps:08d}"
        checkpoint.mkdir(parents=True)
        networks = stage.networks(system.canvas).items()
        tensors = {f"{name}.{key}": t.contiguous() for name, net in networks for key, t in net.state_dict().items()}
        save_file(tensors, checkpoint / "networks.safetensors")
        progress = StageProgress(step=stage.training.steps, config_hash="", seed=0, last_terms={})
        (checkpoint / "stage.json").write_text(json.dumps(asdict(progress)))
    return folder


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """Chunks of 10 pairs are scored here, one after another; gives the names of the parts as they are made."""
    made: list[str] = []

    def score(missing, scorer):
        for file, pairs in missing.items():
            made.append(Path(file).name)
            yield scorer({"file": file, "pairs": pairs})["pairs"]

    monkeypatch.setattr(evaluate, "CHUNK", 10)
    monkeypatch.setattr(evaluate, "_score", score)
    return made


def run(system, shards, stages, scores, *, pairs=None, fingerprint="first", told=None, split="test") -> dict:
    progress = (lambda *_: None) if told is None else (lambda *what: told.append(what))
    return evaluate.evaluate(
        system, one_run(shards, stages, scores), pairs=pairs, fingerprint=fingerprint, use_gpu=False,
        progress=progress, split=split,
    )  # fmt: skip


def one_run(shards, stages, scores) -> Store:
    """A run whose folders are others."""
    scores.mkdir(exist_ok=True)
    run = scores.with_name(f"{scores.name}-run")
    run.mkdir(exist_ok=True)
    for name, folder in (("shards", shards), ("stages", stages), ("scores", scores)):
        if not (run / name).is_symlink():
            (run / name).symlink_to(folder)
    return Store.of(run)


def test_chosen_pairs():
    assert chosen_pairs(5, None) == chosen_pairs(5, 5) == chosen_pairs(5, 9) == [0, 1, 2, 3, 4]
    drawn = chosen_pairs(1000, 20)
    assert drawn == sorted(set(drawn)) == chosen_pairs(1000, 20)
    assert len(drawn) == 20
    assert drawn[-1] > 500


def test_no_pair_and_no_number_of_pairs_are_told():
    with pytest.raises(ValueError, match="no test pair"):
        chosen_pairs(0, None)
    with pytest.raises(ValueError, match="no validation pair to score: no two usable validation images"):
        chosen_pairs(0, 5, split="validation")
    with pytest.raises(ValueError, match="0 was given; at least 1 is needed, and there are 24"):
        chosen_pairs(24, 0)


def test_everything_is_written(system, block_shards, stages, scored, tmp_path):
    told: list[tuple] = []
    metrics = run(system, block_shards, stages, tmp_path, told=told)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (metrics["fingerprint"], metrics["pairs"], metrics["pairs_available"]) == ("first", PAIRS, PAIRS)
    assert (metrics["split"], metrics["selection"]) == ("test", "all test pairs")
    table = parquet.read_table(tmp_path / "pairs.parquet")
    assert table.column_names[:4] == ["pair", "source", "target", "person"]
    assert table["pair"].to_pylist() == list(range(PAIRS))
    names = list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))
    assert names == Shards(block_shards).pair_names("test", range(PAIRS))
    assert {name[:4].lstrip("0") for name, _ in names} == set(table["person"].to_pylist()) == {"2", "5"}
    assert told == [("scoring", done, PAIRS) for done in (0, 10, 20, 24)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "pairs.parquet"]


def test_means_are_those_of_the_table(system, block_shards, stages, scored, tmp_path):
    metrics = run(system, block_shards, stages, tmp_path)
    table = parquet.read_table(tmp_path / "pairs.parquet")
    for name in METRICS:
        assert metrics["scores"][name] == pytest.approx(np.mean(table[name].to_numpy()))
        for baseline in BASELINES:
            expected = np.mean(table[f"{baseline}.{name}"].to_numpy())
            assert metrics["baselines"][baseline][name] == pytest.approx(expected)


def test_images_before_the_result_are_scored_by_one_metric(system, block_shards, stages, scored, tmp_path):
    metrics = run(system, block_shards, stages, tmp_path)
    column = parquet.read_table(tmp_path / "pairs.parquet")["coarse_image.mask_l1"].to_numpy()
    assert metrics["stages"] == {"coarse_image": {"mask_l1": pytest.approx(column.mean())}}
    low, high = metrics["stage_intervals"]["coarse_image"]["mask_l1"]
    assert low < column.mean() < high


def test_a_system_without_images_has_scores_of_joints_alone(block_shards, scored, tmp_path):
    system = posing_systems.posing()
    checkpoint = tmp_path / "stages/posing/checkpoint_00000004"
    checkpoint.mkdir(parents=True)
    save_file({}, checkpoint / "networks.safetensors")
    (checkpoint / "stage.json").write_text(
        json.dumps(asdict(StageProgress(step=4, config_hash="", seed=0, last_terms={})))
    )
    metrics = run(system, block_shards, tmp_path / "stages", tmp_path / "scores")
    assert metrics["scores"].keys() == metrics["variants"].keys() == POSE_METRICS.keys()
    assert metrics["scores"]["pose_error"] == pytest.approx(5.0, rel=1e-5)
    assert metrics["baselines"].keys() == POSE_BASELINES.keys()
    assert "stages" not in metrics
    table = parquet.read_table(tmp_path / "scores/pairs.parquet")
    for baseline in POSE_BASELINES:
        expected = np.mean(table[f"{baseline}.pose_error"].to_numpy())
        assert metrics["baselines"][baseline]["pose_error"] == pytest.approx(expected)


def test_a_random_network_in_a_pretrained_ones_stead_is_in_the_scores(
    system, block_shards, stages, scored, tmp_path, monkeypatch
):
    assert run(system, block_shards, stages, tmp_path / "first")["stand_ins"] == []
    monkeypatch.setattr(System, "stand_ins", lambda self: [f"{self.name} looks through a random network"])
    metrics = run(system, block_shards, stages, tmp_path / "second")
    assert metrics["stand_ins"] == ["vdg looks through a random network"]
    assert json.loads((tmp_path / "second/metrics.json").read_text()) == metrics


def test_parts_of_an_interrupted_run_are_kept(system, block_shards, stages, scored, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(system, block_shards, stages, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    (tmp_path / "parts/part-00001.parquet").unlink()
    scored.clear()
    metrics = run(system, block_shards, stages, tmp_path)
    assert scored == ["part-00001.parquet"]
    assert metrics == run(system, block_shards, stages, tmp_path / "at once")


@pytest.mark.parametrize("change", [{"fingerprint": "second"}, {"pairs": 11}, {"split": "train"}])
def test_parts_of_other_inputs_are_not_kept(system, block_shards, stages, scored, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_finish", lambda *_: {})
        run(system, block_shards, stages, tmp_path)
    scored.clear()
    metrics = run(system, block_shards, stages, tmp_path, **change)
    assert len(scored) == {"fingerprint": 3, "pairs": 2, "split": 5}[next(iter(change))]
    assert metrics["pairs"] == (2 * PAIRS if "split" in change else change.get("pairs", PAIRS))


def test_draw_of_pairs_is_said(system, block_shards, stages, scored, tmp_path):
    metrics = run(system, block_shards, stages, tmp_path, pairs=7)
    assert (metrics["pairs"], metrics["pairs_available"]) == (7, PAIRS)
    assert metrics["selection"] == "test pairs drawn by seed 0"
    assert parquet.read_table(tmp_path / "pairs.parquet")["pair"].to_pylist() == chosen_pairs(PAIRS, 7)


def test_another_split_is_scored_by_its_own_pairs_and_people(system, block_shards, stages, scored, tmp_path):
    metrics = run(system, block_shards, stages, tmp_path, pairs=9, split="train")
    assert (metrics["split"], metrics["selection"]) == ("train", "train pairs drawn by seed 0")
    assert (metrics["pairs"], metrics["pairs_available"]) == (9, 2 * PAIRS)
    table = parquet.read_table(tmp_path / "pairs.parquet")
    names = list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))
    assert names == Shards(block_shards).pair_names("train", chosen_pairs(2 * PAIRS, 9, split="train"))
    assert table["person"].to_pylist() == [str(int(target[:4])) for _, target in names]


def test_identities_of_a_split(block_shards):
    found = {split: Shards(block_shards).identities(split) for split in ("train", "test", "validation")}
    assert {split: set(people.values()) for split, people in found.items()} == {
        "train": {"0", "1", "3", "4"},
        "test": {"2", "5"},
        "validation": set(),
    }
    assert Shards(block_shards).identities("test") == found["test"]


def test_a_split_that_the_shards_do_not_have_is_told(system, block_shards, stages, tmp_path):
    with pytest.raises(ValueError, match=r"no split is called 'validation'\. There are: train, test"):
        run(system, block_shards, stages, tmp_path, split="validation")


def test_untrained_stage_is_told_before_anything_is_removed(system, block_shards, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="'coarse' is not trained"):
        run(system, block_shards, tmp_path / "stages", tmp_path)
    assert (tmp_path / "metrics.json").exists()


def test_on_ray_data_as_here(system, block_shards, stages, tmp_path, monkeypatch, request):
    """Two actors, three chunks: the same scores as in this process."""
    monkeypatch.setattr(evaluate, "CHUNK", 10)
    paths = os.pathsep.join([str(request.config.rootpath), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    try:
        told: list[tuple] = []
        distributed = run(system, block_shards, stages, tmp_path / "ray", told=told)
    finally:
        ray.shutdown()
    assert told[0] == ("scoring", 0, PAIRS)
    assert told[-1] == ("scoring", PAIRS, PAIRS)
    request.getfixturevalue("scored")
    local = run(system, block_shards, stages, tmp_path / "here")
    for name, mean in local["scores"].items():
        assert distributed["scores"][name] == pytest.approx(mean, rel=1e-5)
    assert distributed["baselines"] == local["baselines"]
