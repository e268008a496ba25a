"""The pure scoring of a batch: every baseline against direct calls, and what cannot be scored."""

import numpy as np
import pytest
import torch

from posegen import catalog
from posegen.data.joints import TORSO
from posegen.data.loader import Shards
from posegen.metrics.baselines import BASELINES, Pose, mean_picture, moved_torso
from posegen.metrics.measures import METRICS
from posegen.metrics.scoring import STOOD_IN, columns_read, result_scores, score_chunk, score_pairs, synthesized
from posegen.synthesize import Trained

SIZE, COUNT = (64, 32), 5


@pytest.fixture
def raw() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {"pair": np.arange(10, 10 + COUNT)}
    for role in ("source", "target"):
        batch[f"{role}_image"] = random.integers(0, 256, (COUNT, *SIZE, 3), dtype=np.uint8)
        batch[f"{role}_joints"] = random.uniform(5, 30, (COUNT, 18, 2)).astype(np.float32)
        batch[f"{role}_visible"] = np.ones((COUNT, 18), dtype=bool)
        batch[f"{role}_pose_mask"] = (random.random((COUNT, *SIZE)) < 0.4).astype(np.uint8)
    return batch


MEAN = np.random.default_rng(9).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
ALL = np.ones(COUNT, dtype=bool)


def test_columns_of_the_table(raw):
    table = score_pairs(raw, raw["target_image"], ALL, MEAN)
    expected = [*METRICS, *(f"{baseline}.{metric}" for baseline in BASELINES for metric in METRICS)]
    assert table.keys() == {"pair", "finite", STOOD_IN, *expected}
    assert all(column.shape == (COUNT,) for column in table.values())
    np.testing.assert_array_equal(table["pair"], raw["pair"])


def test_perfect_generation_is_perfect_and_leaves_the_baselines(raw):
    table = score_pairs(raw, raw["target_image"], ALL, MEAN)
    np.testing.assert_array_equal(table["mask_l1"], 0)
    np.testing.assert_allclose(table["ssim"], 1)
    assert (table["source.mask_l1"] > 0.1).all()


def test_baselines_are_scored_as_the_system_is(raw):
    """A system that gives a baseline's pictures has the baseline's scores."""
    moved = [
        moved_torso(picture, Pose(*source), Pose(*target))
        for picture, source, target in zip(
            raw["source_image"],
            zip(raw["source_joints"], raw["source_visible"], strict=True),
            zip(raw["target_joints"], raw["target_visible"], strict=True),
            strict=True,
        )
    ]
    pictures = {"source": raw["source_image"], "mean": np.stack([MEAN] * COUNT), "similarity": np.stack(moved)}
    for baseline, generated in pictures.items():
        table = score_pairs(raw, generated, ALL, MEAN)
        for name in METRICS:
            np.testing.assert_array_equal(table[name], table[f"{baseline}.{name}"], err_msg=f"{baseline}.{name}")


def test_source_stands_in_where_the_torso_is_unknown(raw):
    raw["target_visible"][3, TORSO[0]] = False
    table = score_pairs(raw, raw["source_image"], ALL, MEAN)
    np.testing.assert_array_equal(table[STOOD_IN], [False, False, False, True, False])
    np.testing.assert_array_equal(table["similarity.ssim"] == table["source.ssim"], table[STOOD_IN])


def test_a_picture_that_is_no_number_has_no_score(raw):
    finite = np.array([True, True, False, True, True])
    table = score_pairs(raw, raw["target_image"], finite, MEAN)
    for name in METRICS:
        np.testing.assert_array_equal(np.isnan(table[name]), ~finite)
        assert np.isfinite(table[f"source.{name}"]).all()


@pytest.fixture(scope="module")
def trained() -> Trained:
    settings = {"coarse.width": 4, "refinement.width": 4, "refinement.critic_width": 4}
    system = catalog.override(catalog.system("vdg", "synthetic"), settings)
    torch.manual_seed(0)
    networks = {stage.name: {name: net.eval() for name, net in stage.networks().items()} for stage in system.stages}
    return Trained(system, networks, torch.device("cpu"))


def test_chunk_keeps_order_and_names(trained, block_shards):
    shards = Shards(block_shards)
    mean = mean_picture(shards)
    table = score_chunk(trained, shards, [20, 3, 7], mean)
    assert table["pair"].tolist() == [20, 3, 7]
    names = shards.pair_names("test", [20, 3, 7])
    assert list(zip(table["source"], table["target"], strict=True)) == names
    alone = score_chunk(trained, shards, [3], mean)
    np.testing.assert_allclose(table["mask_l1"][1], alone["mask_l1"][0], rtol=1e-3)
    assert table["source.mask_l1"][1] == alone["source.mask_l1"][0]


def test_broken_network_is_counted_and_not_hidden(trained, block_shards):
    shards = Shards(block_shards)
    stage = trained.system.stages[0]
    networks = {**trained.networks, "coarse": stage.networks()}
    for parameter in networks["coarse"]["generator"].parameters():
        parameter.data.fill_(torch.nan)
    table = score_chunk(Trained(trained.system, networks, trained.device), shards, [0, 1], mean_picture(shards))
    assert not table["finite"].any()
    assert np.isnan(table["ssim"]).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores_of_the_result_are_columns_of_a_chunk(trained, block_shards, split):
    shards, pairs, metrics = Shards(block_shards), [5, 23, 0], ("psnr", "mask_l1", "ssim_defgan")
    chunk = score_chunk(trained, shards, pairs, mean_picture(shards), split=split)
    assert list(zip(chunk["source"], chunk["target"], strict=True)) == shards.pair_names(split, pairs)
    alone = result_scores(trained, shards, pairs, split=split, metrics=metrics)
    assert list(alone) == ["pair", "finite", *metrics]
    for name, column in alone.items():
        np.testing.assert_array_equal(column, chunk[name], err_msg=name)
    assert {alone[name].dtype for name in metrics} == {np.dtype(np.float64)}


def test_the_splits_have_scores_of_their_own(trained, block_shards):
    shards = Shards(block_shards)
    train, test = (
        result_scores(trained, shards, range(4), split=split, metrics=["mask_l1"]) for split in ("train", "test")
    )
    assert (train["mask_l1"] != test["mask_l1"]).all()


def test_scores_of_a_result_that_is_no_number_are_not_a_number(trained, block_shards):
    networks = {**trained.networks, "coarse": trained.system.stages[0].networks()}
    for parameter in networks["coarse"]["generator"].parameters():
        parameter.data.fill_(torch.nan)
    broken = Trained(trained.system, networks, trained.device)
    table = result_scores(broken, Shards(block_shards), [0, 1], split="test", metrics=["l1", "psnr"])
    assert table["finite"].tolist() == [False, False]
    assert np.isnan(table["l1"]).all()
    assert np.isnan(table["psnr"]).all()


def test_an_unknown_score_is_told_before_anything_is_synthesized(block_shards, monkeypatch, trained):
    monkeypatch.setattr("posegen.metrics.scoring.synthesize", lambda *_: pytest.fail("a picture is synthesized"))
    with pytest.raises(ValueError, match="no score is called 'lpips'"):
        result_scores(trained, Shards(block_shards), [0], split="test", metrics=["l1", "lpips"])


def test_pairs_that_a_split_does_not_have_are_told(block_shards, trained):
    with pytest.raises(ValueError, match=r"\[24\] are no pairs of 'test': there are 24"):
        result_scores(trained, Shards(block_shards), [3, 24], split="test", metrics=["l1"])


def test_synthesized_gives_every_stage(trained, block_shards):
    raw, columns = next(iter(synthesized(trained, Shards(block_shards), [0, 1])))
    assert {"coarse_image", "refined_image", "target_pose"} <= columns.keys()
    assert raw["source_image"].shape == (2, 64, 32, 3)
    assert columns_read(trained.system, Shards(block_shards)) == {"source_image", "target_image", "target_pose_mask"}
