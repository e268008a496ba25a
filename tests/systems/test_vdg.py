import dataclasses

import pytest
import torch

from posegen.batch import COLUMNS
from posegen.losses.reconstruction import l1, masked_l1, masked_ssim_loss
from posegen.systems.vdg import VARIANTS, LateFusion, Reconstruction, Refinement, vdg

SIZE = (32, 16)


def small_stages(variant="full"):
    coarse, refinement = vdg("market1501", variant, SIZE).stages
    return dataclasses.replace(coarse, width=4), dataclasses.replace(refinement, width=4, critic_width=4)


def double(stage):
    torch.manual_seed(0)
    return {name: network.double() for name, network in stage.networks().items()}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("market1501", (93_228_419, 10_796_675, 4_324_737)), ("deepfashion", (158_674_947, 23_268_483, 10_896_257))],
)
def test_parameter_counts(dataset, expected):
    with torch.device("meta"):
        coarse, refinement = (stage.networks() for stage in vdg(dataset).stages)
    assert (count(coarse["generator"]), count(refinement["generator"]), count(refinement["critic"])) == expected


def test_published_settings():
    coarse, refinement = vdg("market1501").stages
    assert (coarse.steps, refinement.steps, coarse.batch_size, refinement.image_weight) == (22_000, 14_000, 16, 10)
    coarse, refinement = vdg("deepfashion").stages
    assert (coarse.steps, refinement.steps, coarse.batch_size, refinement.image_weight) == (30_000, 20_000, 8, 50)
    assert {player.lr for stage in (coarse, refinement) for player in stage.players} == {2e-5}


@pytest.mark.parametrize("dataset", ["market1501", "deepfashion", "synthetic"])
def test_the_stages_are_wired(dataset):
    assert vdg(dataset).wiring_errors(set(COLUMNS)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant, batch):
    for stage in small_stages(variant):
        networks = double(stage)
        assert set(stage.outputs(networks, batch)) == set(stage.writes)
        for player in stage.players:
            terms = stage.loss(player.name, networks, batch)
            torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
            assert any(p.grad.abs().sum() > 0 for name in player.nets for p in networks[name].parameters())


def test_the_coarse_image_depends_on_source_and_pose(batch):
    stage, _ = small_stages()
    networks = double(stage)
    image = stage.outputs(networks, batch)["coarse_image"]
    assert image.shape == batch["target_image"].shape
    for column in ("source_image", "target_pose"):
        changed = stage.outputs(networks, {**batch, column: -batch[column]})["coarse_image"]
        assert not torch.allclose(changed, image)


def test_late_fusion_by_hand():
    fusion = LateFusion(width=1, levels=1)
    with torch.no_grad():
        fusion.levels[0].weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        fusion.levels[0].bias.fill_(0.5)
    first, second = torch.tensor([1.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 9.0]).view(1, 1, 1, 2)
    (fused,) = fusion([first], [second])
    assert fused.flatten().tolist() == [2.0, 0.0]  # relu(2 * 1 - 0.5 + 0.5) and relu(2 * 1 - 9 + 0.5)


def test_stage_two_starts_from_the_coarse_image(batch):
    _, stage = small_stages()
    assert torch.equal(stage.outputs(double(stage), batch)["refined_image"], batch["coarse_image"])


def test_direct_predicts_the_image_itself(batch):
    stage = dataclasses.replace(small_stages()[1], direct=True)
    networks = double(stage)
    output = networks["generator"](batch["source_image"], batch["coarse_image"])
    assert torch.equal(stage.outputs(networks, batch)["refined_image"], output)
    assert output.abs().max() > 0


def image_loss(stage, batch):
    terms = stage.loss("generator", double(stage), batch)
    return sum(term.weight * term.value.item() for name, term in terms.items() if name != "adversarial")


def test_the_loss_of_each_variant(batch):
    """At the start the refined image is the coarse one, so the losses follow from the columns."""
    image, target, mask = batch["coarse_image"], batch["target_image"], batch["target_pose_mask"]
    plain, masked = l1(image, target).item(), masked_l1(image, target, mask).item()
    similar = {w: masked_ssim_loss(image, target, mask, mask_weight=w).item() for w in (1.0, 2.0)}
    expected = {
        "l1": 10 * plain,
        "mask-l1": 10 * (plain + masked),
        "full": 10 * (0.84 * similar[1.0] + 0.16 * (plain + masked)),
        "w": 10 * (0.84 * similar[2.0] + 0.16 * (plain + 2 * masked)),
    }
    assert {v: image_loss(small_stages(v)[1], batch) for v in VARIANTS} == pytest.approx(expected)


def test_stage_one_is_plain_l1(batch):
    stage, _ = small_stages()
    networks = double(stage)
    terms = stage.loss("generator", networks, batch)
    expected = l1(stage.outputs(networks, batch)["coarse_image"], batch["target_image"])
    assert set(terms) == {"l1"}
    assert terms["l1"].weight == 1
    torch.testing.assert_close(terms["l1"].value, expected)


# The terms of the second step of training, in float64 on the CPU.
GOLDEN_COARSE = {
    "generator/l1": 0.8821885,
    "generator/total": 0.8821885,
    "generator/gradient": 2.1711559,
}
GOLDEN_REFINEMENT = {
    "generator/adversarial": 0.54736841,
    "generator/l1": 0.80771059,
    "generator/mask_l1": 0.45323586,
    "generator/ssim": 1.055028,
    "generator/total": 11.427116,
    "generator/gradient": 1.7549364,
    "critic/real": 0.48873657,
    "critic/fake": 0.86397964,
    "critic/condition": 0.94279885,
    "critic/total": 0.69606292,
    "critic/gradient": 0.96404724,
}


def test_golden_steps_of_stage_one(golden):
    assert golden(Reconstruction(size=SIZE, width=2, lr=1e-3)) == pytest.approx(GOLDEN_COARSE, rel=1e-5)


def test_golden_steps_of_stage_two(golden):
    stage = Refinement(size=SIZE, width=2, critic_width=2, lr=1e-3, critic_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN_REFINEMENT, rel=1e-5)
