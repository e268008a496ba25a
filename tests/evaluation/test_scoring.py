"""The pure scoring of a batch: every baseline against direct calls, and what cannot be scored."""

import numpy as np
import pytest
import torch

from posegen import catalog
from posegen.data.geometry.joints import TORSO
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import (
    BASELINES,
    METRICS,
    POSE_BASELINES,
    POSE_METRICS,
    Pose,
    align_torso,
    mean_pose,
    to_uint8,
)
from posegen.evaluation.scoring import (
    STOOD_IN,
    CheckedImages,
    Outputs,
    TrainingMeans,
    columns_read,
    result_scores,
    score_chunk,
    score_pairs,
    synthesized,
    training_means,
)
from posegen.inference import Trained
from tests import posing_systems

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


def scores_of(raw: dict[str, np.ndarray], images: np.ndarray, finite: np.ndarray = ALL) -> dict[str, np.ndarray]:
    return score_pairs(raw, Outputs(image=images, finite=finite), TrainingMeans(image=MEAN))


def test_columns_of_the_table(raw):
    table = scores_of(raw, raw["target_image"])
    expected = [*METRICS, *(f"{baseline}.{metric}" for baseline in BASELINES for metric in METRICS)]
    assert table.keys() == {"pair", "finite", STOOD_IN, *expected}
    assert all(column.shape == (COUNT,) for column in table.values())
    np.testing.assert_array_equal(table["pair"], raw["pair"])


def test_perfect_generation_is_perfect_and_leaves_the_baselines(raw):
    table = scores_of(raw, raw["target_image"])
    np.testing.assert_array_equal(table["mask_l1"], 0)
    np.testing.assert_allclose(table["ssim"], 1)
    assert (table["source.mask_l1"] > 0.1).all()


def test_baselines_are_scored_as_the_system_is(raw):
    """A system that gives a baseline's images has the baseline's scores."""
    moved = [
        align_torso(image, Pose(*source), Pose(*target))
        for image, source, target in zip(
            raw["source_image"],
            zip(raw["source_joints"], raw["source_visible"], strict=True),
            zip(raw["target_joints"], raw["target_visible"], strict=True),
            strict=True,
        )
    ]
    images = {"source": raw["source_image"], "mean": np.stack([MEAN] * COUNT), "similarity": np.stack(moved)}
    for baseline, generated in images.items():
        table = scores_of(raw, generated)
        for name in METRICS:
            np.testing.assert_array_equal(table[name], table[f"{baseline}.{name}"], err_msg=f"{baseline}.{name}")


def test_source_stands_in_where_the_torso_is_unknown(raw):
    raw["target_visible"][3, TORSO[0]] = False
    table = scores_of(raw, raw["source_image"])
    np.testing.assert_array_equal(table[STOOD_IN], [False, False, False, True, False])
    np.testing.assert_array_equal(table["similarity.ssim"] == table["source.ssim"], table[STOOD_IN])


def test_an_image_that_is_no_number_has_no_score(raw):
    finite = np.array([True, True, False, True, True])
    table = scores_of(raw, raw["target_image"], finite)
    for name in METRICS:
        np.testing.assert_array_equal(np.isnan(table[name]), ~finite)
        assert np.isfinite(table[f"source.{name}"]).all()


@pytest.fixture(scope="module")
def trained() -> Trained:
    settings = {"coarse.width": 4, "refinement.width": 4, "refinement.discriminator_width": 4}
    system = catalog.override(catalog.system("vdg", "synthetic"), settings)
    torch.manual_seed(0)
    networks = {
        stage.name: {name: net.eval() for name, net in stage.networks(system.canvas).items()} for stage in system.stages
    }
    return Trained(system, networks, torch.device("cpu"))


def test_chunk_keeps_order_and_names(trained, block_shards):
    shards = Shards(block_shards)
    mean = training_means(trained.system, shards)
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
    networks = {**trained.networks, "coarse": stage.networks(trained.system.canvas)}
    for parameter in networks["coarse"]["generator"].parameters():
        parameter.data.fill_(torch.nan)
    table = score_chunk(
        Trained(trained.system, networks, trained.device), shards, [0, 1], training_means(trained.system, shards)
    )
    assert not table["finite"].any()
    assert np.isnan(table["ssim"]).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores_of_the_result_are_columns_of_a_chunk(trained, block_shards, split):
    shards, pairs, metrics = Shards(block_shards), [5, 23, 0], ("psnr", "mask_l1", "ssim_defgan")
    chunk = score_chunk(trained, shards, pairs, training_means(trained.system, shards), split=split)
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
    networks = {**trained.networks, "coarse": trained.system.stages[0].networks(trained.system.canvas)}
    for parameter in networks["coarse"]["generator"].parameters():
        parameter.data.fill_(torch.nan)
    broken = Trained(trained.system, networks, trained.device)
    table = result_scores(broken, Shards(block_shards), [0, 1], split="test", metrics=["l1", "psnr"])
    assert table["finite"].tolist() == [False, False]
    assert np.isnan(table["l1"]).all()
    assert np.isnan(table["psnr"]).all()


def test_an_unknown_score_is_told_before_anything_is_synthesized(block_shards, monkeypatch, trained):
    monkeypatch.setattr("posegen.evaluation.scoring.synthesize", lambda *_: pytest.fail("an image is synthesized"))
    with pytest.raises(ValueError, match="no score of vdg is called 'lpips'"):
        result_scores(trained, Shards(block_shards), [0], split="test", metrics=["l1", "lpips"])


def test_pairs_that_a_split_does_not_have_are_told(block_shards, trained):
    with pytest.raises(ValueError, match=r"\[24\] are no pairs of 'test': there are 24"):
        result_scores(trained, Shards(block_shards), [3, 24], split="test", metrics=["l1"])


def test_synthesized_gives_every_stage(trained, block_shards):
    raw, columns = next(iter(synthesized(trained, Shards(block_shards), [0, 1])))
    assert {"coarse_image", "refined_image", "target_pose"} <= columns.keys()
    assert raw["source_image"].shape == (2, 64, 32, 3)
    assert columns_read(trained.system, Shards(block_shards)) == {"source_image", "target_image", "target_pose_mask"}


def test_joints_are_scored_beside_their_baselines(raw):
    off = raw["target_joints"] + np.array([6.0, 8.0], dtype=np.float32)
    mean = raw["source_joints"][2].astype(np.float64)
    table = score_pairs(raw, Outputs(joints=off, finite=ALL), TrainingMeans(pose=mean))
    expected = [*POSE_METRICS, *(f"{baseline}.{metric}" for baseline in POSE_BASELINES for metric in POSE_METRICS)]
    assert table.keys() == {"pair", "finite", *expected}
    np.testing.assert_allclose(table["pose_error"], 10.0, rtol=1e-6)
    for baseline, joints in {
        "source": raw["source_joints"],
        "mean": np.stack([mean.astype(np.float32)] * COUNT),
    }.items():
        alone = score_pairs(raw, Outputs(joints=joints, finite=ALL), TrainingMeans(pose=mean))
        for name in POSE_METRICS:
            np.testing.assert_allclose(table[f"{baseline}.{name}"], alone[name], rtol=1e-6)


def test_images_on_the_way_have_one_score(raw):
    broken = np.array([True, True, False, True, True])
    stages = {
        "coarse_image": CheckedImages(raw["target_image"], broken),
        "other_image": CheckedImages(raw["source_image"], ALL),
    }
    table = score_pairs(raw, Outputs(image=raw["target_image"], finite=ALL, stages=stages), TrainingMeans(image=MEAN))
    np.testing.assert_array_equal(table["coarse_image.mask_l1"], np.where(broken, 0.0, np.nan))
    np.testing.assert_array_equal(table["other_image.mask_l1"], table["source.mask_l1"])
    assert not any(name.startswith(("coarse_image.", "other_image.")) for name in table.keys() - {
        "coarse_image.mask_l1", "other_image.mask_l1"
    })  # fmt: skip


def test_a_system_without_images_has_scores_of_joints_alone(block_shards):
    shards, trained = Shards(block_shards), posing_systems.trained(posing_systems.posing())
    means = training_means(trained.system, shards)
    assert means.image is None
    np.testing.assert_array_equal(means.pose, mean_pose(shards))
    table = score_chunk(trained, shards, range(24), means)
    np.testing.assert_allclose(table["pose_error"], 5.0, rtol=1e-5)
    assert (table["source.pose_error"] > 0).all()
    assert not table.keys() & {*METRICS, STOOD_IN}
    with pytest.raises(ValueError, match=r"no score of posing is called 'ssim'\. There are: pose_error, pck, pckh"):
        result_scores(trained, shards, [0], split="test", metrics=["ssim"])


def test_a_system_with_both_has_both_and_its_stages(block_shards):
    shards, trained = Shards(block_shards), posing_systems.trained(posing_systems.painting())
    table = score_chunk(trained, shards, range(8), training_means(trained.system, shards))
    assert table.keys() >= {*METRICS, *POSE_METRICS, "similarity.ssim", "source.ssim", "source.pck", "mean.pckh"}
    assert "similarity.pck" not in table
    for name in METRICS:
        np.testing.assert_array_equal(table[name], table[f"source.{name}"])
    raw, columns = next(iter(synthesized(trained, shards, range(8))))
    foreground, target = to_uint8(columns["foreground_image"]), raw["target_image"].numpy()
    expected = METRICS["mask_l1"].function(foreground, target, raw["target_pose_mask"].numpy())
    np.testing.assert_array_equal(table["foreground_image.mask_l1"], expected)
    assert [name for name in table if name.endswith(".mask_l1")] == [
        "source.mask_l1", "mean.mask_l1", "similarity.mask_l1", "foreground_image.mask_l1",
    ]  # fmt: skip


def test_joints_that_are_no_numbers_are_counted_where_they_count(block_shards):
    shards = Shards(block_shards)
    broken = posing_systems.trained(posing_systems.posing(shift=(float("nan"), 0.0)))
    table = score_chunk(broken, shards, [0, 1], training_means(broken.system, shards))
    assert table["finite"].tolist() == [False, False]
    assert np.isnan(table["pose_error"]).all()
    shards.split("test").visible[:] = False
    assert score_chunk(broken, shards, [0], training_means(broken.system, shards))["finite"].all()
