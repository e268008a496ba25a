"""The validator of trials: its scores are the scores, its images the results."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from posegen import catalog
from posegen.data.loading.dataset import Shards
from posegen.evaluation.metrics import METRICS
from posegen.evaluation.scoring import result_scores
from posegen.inference import Trained
from posegen.storage.store import Store
from posegen.tuning.trainable import PairsValidator, read_samples, sample_pairs
from tests import posing_systems

CPU = torch.device("cpu")
PAIRS = tuple(range(0, 20, 2))


@pytest.fixture(scope="module")
def system():
    small = {"coarse.width": 4, "refinement.width": 4, "refinement.discriminator_width": 4, "refinement.direct": True}
    return catalog.override(catalog.system("vdg", "synthetic"), small)


@pytest.fixture(scope="module")
def networks(system):
    torch.manual_seed(0)
    return {
        stage.name: {name: net.eval() for name, net in stage.networks(system.canvas).items()} for stage in system.stages
    }


def validator(system, shards: Path, run: Path, **fields) -> PairsValidator:
    if not (run / "shards").exists():
        (run / "shards").symlink_to(shards)
    given = {"cache_bytes": None, "pairs": PAIRS, "metrics": ("mask_ssim",), "at": (4, 8), **fields}
    return PairsValidator(system=system, store=Store.of(run), split="test", prefix="trials/0003", **given)


def test_scores_are_the_means_of_the_pairs_scores(system, networks, block_shards: Path, tmp_path: Path):
    on_the_way = validator(system, block_shards, tmp_path)(networks, 4, CPU)
    at_the_end = validator(system, block_shards, tmp_path)(networks, 8, CPU)
    trained = Trained(system, networks, CPU)
    table = result_scores(trained, Shards(block_shards), PAIRS, split="test", metrics=tuple(METRICS))
    assert on_the_way.keys() == {"mask_ssim"}
    assert at_the_end == pytest.approx({name: np.nanmean(table[name]) for name in METRICS})
    assert on_the_way["mask_ssim"] == at_the_end["mask_ssim"]
    written = pq.read_table(tmp_path / "trials/0003/pairs.parquet")
    assert written["pair"].to_pylist() == list(PAIRS)
    assert written["ssim"].to_numpy() == pytest.approx(table["ssim"])


def test_samples_are_the_results_of_the_fixed_pairs(system, networks, block_shards: Path, tmp_path: Path):
    from posegen.evaluation.metrics import to_uint8
    from posegen.evaluation.scoring import synthesized

    validator(system, block_shards, tmp_path)(networks, 4, CPU)
    trained, fixed = Trained(system, networks, CPU), sample_pairs(PAIRS)
    ((_, columns),) = synthesized(trained, Shards(block_shards), fixed, split="test")
    images = read_samples(tmp_path / "trials/0003/samples.png", system.size[1])
    np.testing.assert_array_equal(np.stack(images), to_uint8(columns[system.image]))


def test_fixed_pairs_lie_along_the_whole_list():
    assert sample_pairs(range(100, 180)) == list(range(100, 180, 10))
    assert sample_pairs([3, 5]) == [3, 5]


def test_images_that_are_not_numbers_are_no_score(system, networks, block_shards: Path, tmp_path: Path):
    broken = {**networks, "refinement": {**networks["refinement"]}}
    torch.manual_seed(0)
    broken["refinement"]["generator"] = system.stages[1].networks(system.canvas)["generator"].eval()
    for parameter in broken["refinement"]["generator"].parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="10 of 10 generated images have values that are not numbers"):
        validator(system, block_shards, tmp_path)(broken, 4, CPU)


def test_a_system_without_images_is_scored_by_its_joints(block_shards: Path, tmp_path: Path):
    system = posing_systems.posing()
    scores = validator(system, block_shards, tmp_path, metrics=("pose_error",))({"posing": {}}, 8, CPU)
    assert scores.keys() == {"pose_error", "pck", "pckh"}
    assert scores["pose_error"] == pytest.approx(5.0, rel=1e-5)
    assert len(read_samples(tmp_path / "trials/0003/samples.png", system.size[1])) == len(sample_pairs(PAIRS))
    broken = posing_systems.posing(shift=(float("nan"), 0.0))
    with pytest.raises(ValueError, match="10 of 10 predicted poses have values that are not numbers"):
        validator(broken, block_shards, tmp_path, metrics=("pose_error",))({"posing": {}}, 4, CPU)


def test_validation_draws_no_random_numbers(system, networks, block_shards: Path, tmp_path: Path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    validator(system, block_shards, tmp_path)(networks, 8, CPU)
    assert torch.equal(before, torch.random.get_rng_state())
