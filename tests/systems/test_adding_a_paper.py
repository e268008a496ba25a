"""docs/adding_a_paper.md followed for a paper of two stages: one file, one line of the catalog, nothing else."""

from pathlib import Path

import pytest
import torch

from posegen.batch import COLUMNS
from posegen.catalog import SYSTEMS, override, settings, system, variants
from posegen.inference import Trained, synthesize
from posegen.training.step import build_trainer
from tests.systems import made_up_paper
from tests.systems.small import SIZE, counts

CPU = torch.device("cpu")
MOST_LINES = 120


@pytest.fixture(autouse=True)
def _in_the_catalog(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "made-up", made_up_paper.MADE_UP)


@pytest.fixture
def batch(batch):
    """The usual images in float32, as training has them, without what earlier stages write."""
    columns = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    del columns["coarse_image"]
    return columns


def test_a_paper_of_two_stages_takes_few_lines():
    assert len(Path(made_up_paper.__file__).read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("dataset", ["market1501", "deepfashion", "synthetic", "synthetic-views", "human36m"])
def test_every_variant_is_wired(dataset):
    assert variants("made-up") == ("full", "sketch", "no-l1")
    for variant in variants("made-up"):
        assert system("made-up", dataset, variant).wiring_errors(set(COLUMNS)) == []


def test_its_settings_have_paths_and_bounds():
    described = override(system("made-up", "synthetic"), {"detail.l1_weight": "5", "sketch.steps": 7})
    assert (settings(described)["detail.l1_weight"], settings(described)["sketch.steps"]) == (5.0, 7)
    assert "sketch.discriminator_lr" not in settings(described)
    with pytest.raises(ValueError, match=r"sketch\.width is 0; it must be at least 1"):
        override(described, {"sketch.width": 0})


def test_parameter_counts():
    sketch, detail = {"generator": 2_323}, {"generator": 1_243, "discriminator": 18_377}
    assert counts(system("made-up", "synthetic")) == [sketch, detail]


def test_both_stages_train_and_the_result_is_made(batch):
    """Two steps of each stage; the second one reads what the first one writes."""
    described = system("made-up", "synthetic", size=SIZE)
    columns, networks = dict(batch), {}
    for stage in described.stages:
        trainer = build_trainer(stage, described.canvas, seed=0, device=CPU)
        before = {name: [p.clone() for p in net.parameters()] for name, net in trainer.bare.items()}
        data = dict(columns)
        terms = [trainer.step(step, lambda data=data: data) for step in range(stage.training.steps)]
        assert all(torch.isfinite(value) for each in terms for value in each.values())
        for player in stage.players:
            assert f"{player.name}/total" in terms[-1]
            assert not any(map(torch.equal, before[player.name], trainer.bare[player.name].parameters()))
        networks[stage.name] = {name: net.eval().requires_grad_(False) for name, net in trainer.bare.items()}
        columns |= stage.outputs(described.canvas, networks[stage.name], columns)
    result = synthesize(Trained(described, networks, CPU), batch)
    assert result[described.image].shape == (2, 3, *SIZE)
    torch.testing.assert_close(result["detailed_image"], columns["detailed_image"])
