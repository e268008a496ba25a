import pytest
import torch

from posegen.batch import COLUMNS
from posegen.catalog import system, variants
from posegen.losses.reconstruction import l1, masked_l1, masked_ssim_loss
from posegen.systems.vdg import LateFusion, LateFusionReconstruction, LateFusionRefinement
from tests.systems.small import SIZE, counts, double, outputs_of, terms_of, with_settings


def small_stages(variant="full"):
    coarse, refinement = system("vdg", "market1501", variant, SIZE).stages
    return with_settings(coarse, width=4), with_settings(refinement, width=4, discriminator_width=4)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("market1501", (93_228_419, 10_796_675, 4_324_737)), ("deepfashion", (158_674_947, 23_268_483, 10_896_257))],
)
def test_parameter_counts(dataset, expected):
    coarse, refinement = counts(system("vdg", dataset))
    assert (coarse["generator"], refinement["generator"], refinement["discriminator"]) == expected


def test_published_settings():
    coarse, refinement = system("vdg", "market1501").stages
    assert (coarse.training.steps, refinement.training.steps, coarse.training.batch_size, refinement.image_weight) == (
        22_000,
        14_000,
        16,
        10,
    )
    coarse, refinement = system("vdg", "deepfashion").stages
    assert (coarse.training.steps, refinement.training.steps, coarse.training.batch_size, refinement.image_weight) == (
        30_000,
        20_000,
        8,
        50,
    )
    assert {player.lr for stage in (coarse, refinement) for player in stage.players} == {2e-5}


@pytest.mark.parametrize("dataset", ["market1501", "deepfashion", "synthetic"])
def test_the_stages_are_wired(dataset):
    assert system("vdg", dataset).wiring_errors(set(COLUMNS)) == []


@pytest.mark.parametrize("variant", variants("vdg"))
def test_every_variant_trains(variant, batch):
    for stage in small_stages(variant):
        networks = double(stage)
        assert set(outputs_of(stage, networks, batch)) == set(stage.writes)
        for player in stage.players:
            terms = terms_of(stage, player.name, networks, batch)
            torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
            assert any(p.grad.abs().sum() > 0 for name in player.nets for p in networks[name].parameters())


def test_the_coarse_image_depends_on_source_and_pose(batch):
    stage, _ = small_stages()
    networks = double(stage)
    image = outputs_of(stage, networks, batch)["coarse_image"]
    assert image.shape == batch["target_image"].shape
    for column in ("source_image", "target_pose"):
        changed = outputs_of(stage, networks, {**batch, column: -batch[column]})["coarse_image"]
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
    assert torch.equal(outputs_of(stage, double(stage), batch)["refined_image"], batch["coarse_image"])


def test_direct_predicts_the_image_itself(batch):
    stage = with_settings(small_stages()[1], direct=True)
    networks = double(stage)
    output = networks["generator"](batch["source_image"], batch["coarse_image"])
    assert torch.equal(outputs_of(stage, networks, batch)["refined_image"], output)
    assert output.abs().max() > 0


def image_loss(stage, batch):
    terms = terms_of(stage, "generator", double(stage), batch)
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
    assert {v: image_loss(small_stages(v)[1], batch) for v in variants("vdg")} == pytest.approx(expected)


def test_stage_one_is_plain_l1(batch):
    stage, _ = small_stages()
    networks = double(stage)
    terms = terms_of(stage, "generator", networks, batch)
    expected = l1(outputs_of(stage, networks, batch)["coarse_image"], batch["target_image"])
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
    "discriminator/real": 0.48873657,
    "discriminator/fake": 0.86397964,
    "discriminator/condition": 0.94279885,
    "discriminator/total": 0.69606292,
    "discriminator/gradient": 0.96404724,
}


def test_golden_steps_of_stage_one(golden):
    assert golden(with_settings(LateFusionReconstruction(), width=2, lr=1e-3)) == pytest.approx(GOLDEN_COARSE, rel=1e-5)


def test_golden_steps_of_stage_two(golden):
    stage = with_settings(LateFusionRefinement(), width=2, discriminator_width=2, lr=1e-3, discriminator_lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN_REFINEMENT, rel=1e-5)
