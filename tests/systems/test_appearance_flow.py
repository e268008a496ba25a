import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from posegen.batch import COLUMNS
from posegen.catalog import override, system, variants
from posegen.data.geometry.pose_maps import Discs
from posegen.losses.reconstruction import l1
from posegen.stage import Canvas
from posegen.systems.appearance_flow import (
    APPEARANCE_FLOW,
    ObjectFlowNetwork,
    PoseFlow,
    SceneFlowNetwork,
    ViewFlow,
    foreground,
    resized,
    sampled,
    view_code,
)
from posegen.training.step import build_trainer
from tests.systems.conftest import waves
from tests.systems.small import CANVAS, SIZE, count, counts, double, outputs_of, terms_of, total, with_settings

CPU = torch.device("cpu")
VARIANTS = variants("appearance_flow")


@pytest.fixture
def batch(batch):
    person = waves((2, 1, *SIZE), 8.0) > 0.2
    return batch | {"target_person_mask": person.double(), "rotation": torch.tensor([140.5, -40.0]).double()}


def small_stage(variant="full", **fields):
    (stage,) = system("appearance_flow", "market1501", variant, SIZE).stages
    small = {"view": {"width": 4, "latent": 64}}.get(variant, {"width": 2, "depth": 2})
    return with_settings(stage, **small, **fields)


def moving(networks):
    """The networks with flows that move: the last weights, which start at zero, replaced."""
    last = networks["generator"].flow[-1]
    last.weight.data = waves(last.weight.shape, 1.0) * 0.5
    return networks


def bits(network):
    return [value.clone() for value in network.state_dict().values()]


def convolutions(*channels):
    """Weights and biases of a chain of 3x3 convolutions or deconvolutions."""
    return sum((9 * inner + 1) * outer for inner, outer in pairwise(channels))


def linear(*units):
    return sum((inner + 1) * outer for inner, outer in pairwise(units))


def sampled_slowly(images, flow):
    """remap_layer.cpp, loop by loop."""
    count, channels, height, width = images.shape
    result = torch.zeros(count, channels, *flow.shape[2:], dtype=images.dtype)
    for n, row, column in torch.cartesian_prod(*map(torch.arange, (count, *flow.shape[2:]))).tolist():
        x, y = column + flow[n, 0, row, column].item(), row + flow[n, 1, row, column].item()
        for taken_x in (math.floor(x), math.floor(x) + 1):
            for taken_y in (math.floor(y), math.floor(y) + 1):
                if 0 <= taken_x < width and 0 <= taken_y < height:
                    weight = (1 - abs(x - taken_x)) * (1 - abs(y - taken_y))
                    result[n, :, row, column] += weight * images[n, :, taken_y, taken_x]
    return result


def test_no_flow_gives_the_image_itself():
    images = waves((2, 3, 7, 5), 0.0)
    torch.testing.assert_close(sampled(images, torch.zeros(2, 2, 7, 5).double()), images, atol=1e-12, rtol=0)


def test_a_flow_of_whole_pixels_by_hand():
    """A flow of (2, -1) takes each colour from two columns to the right and one row above; black beyond the edges."""
    images = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    expected = torch.tensor([[0.0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]).view(1, 1, 3, 4)
    torch.testing.assert_close(sampled(images, flow), expected, atol=1e-5, rtol=0)


def test_a_flow_of_half_a_pixel_by_hand():
    """Half a column to the right is the mean of two columns, at the edge of the last one and nothing."""
    images = torch.tensor([2.0, 4.0, 10.0]).expand(2, 3).view(1, 1, 2, 3)
    flow = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    expected = torch.tensor([3.0, 7.0, 5.0]).expand(2, 3).view(1, 1, 2, 3)
    torch.testing.assert_close(sampled(images, flow), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("phase", [0.0, 1.0, 2.0])
def test_sampling_against_loops(phase):
    images, flow = waves((2, 2, 6, 5), phase), 4 * waves((2, 2, 6, 5), phase + 1)
    torch.testing.assert_close(sampled(images, flow), sampled_slowly(images, flow))


@pytest.mark.parametrize("offset", [(100.0, 0.0), (0.0, -100.0), (-7.0, 0.0), (0.0, 9.0)])
def test_outside_is_zero(offset):
    flow = torch.tensor(offset).double().view(1, 2, 1, 1).expand(1, 2, 8, 6)
    assert not sampled(torch.ones(1, 3, 8, 6).double(), flow).any()


def test_gradients_of_sampling():
    images, flow = waves((1, 2, 4, 3), 0.0), 1.7 * waves((1, 2, 4, 3), 1.0)
    away = (flow - flow.round()).abs().min()
    assert away > 1e-3  # between pixels, where the sampling is smooth
    torch.autograd.gradcheck(sampled, (images.requires_grad_(), flow.requires_grad_()))


def test_sampling_in_bfloat16_autocast_is_as_exact_as_without():
    images, flow = waves((1, 3, 300, 4), 0.0).float(), (5 * waves((1, 2, 300, 4), 1.0)).bfloat16()
    exact = sampled(images, flow.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampled(images, flow), exact)


def test_resizing_puts_corners_on_corners():
    maps = torch.tensor([0.0, 2.0, 4.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    wide = resized(maps, (3, 5))
    torch.testing.assert_close(wide[0, 0, 0], torch.tensor([0.0, 1, 2, 3, 4]))
    assert resized(maps, (3, 3)) is maps


@pytest.mark.parametrize(
    ("rotation", "entry"),
    [(-180.0, 0), (-171, 0), (-169, 1), (0, 9), (9, 9), (11, 10), (40, 11), (140.5, 16), (179, 18), (180, 18)],
)
def test_the_view_code_of_steps(rotation, entry):
    (code,) = view_code(torch.tensor([float(rotation)]), "steps").tolist()
    assert [number for number, value in enumerate(code) if value == 1] == [entry, 19]
    assert sum(code) == 2


def test_the_view_code_of_an_angle():
    (code,) = view_code(torch.tensor([30.0]), "angle").tolist()
    assert code == pytest.approx([0.5, math.sqrt(0.75), *[0.0] * 17, 1.0], abs=1e-6)


def test_the_object_networks_parameters_by_its_layers():
    """models/car_single/deploy.prototxt, at its 224x224."""
    encoder = convolutions(3, 16, 32, 64, 128, 256, 512) + linear(512 * 4 * 4, 4096, 4096)
    view = linear(20, 128, 256)
    flow = linear(4096 + 256, 4096, 64 * 8 * 8) + convolutions(64, 256, 128, 64, 32, 16, 2)
    mask = linear(4096 + 256, 1024, 16 * 8 * 8) + convolutions(16, 256, 128, 64, 32, 16, 2)
    with torch.device("meta"):
        network = ViewFlow().networks(Canvas((224, 224), Discs(radius=4.0)))["generator"]
    assert count(network) == encoder + view + flow + mask == 93_035_844


def test_the_object_networks_sizes():
    """224 pixels become 7, then 4; the decoders' 8 become 225."""
    with torch.device("meta"):
        network = ObjectFlowNetwork(size=(224, 224), width=16, latent=4096)
        assert network.encoder(torch.empty(1, 3, 224, 224)).shape == (1, 512, 4, 4)
        assert network.flow(torch.empty(1, 4352)).shape == (1, 2, 225, 225)
        assert [maps.shape for maps in network(torch.empty(1, 3, 224, 224), torch.empty(1, 20))] == [
            (1, 2, 224, 224)
        ] * 2


def test_the_scene_networks_parameters_by_its_layers():
    """models/kitti_single/deploy.prototxt has 9 channels: the image and a motion of 6 numbers."""
    encoder, decoder = convolutions(9, 32, 64, 128, 256, 512), convolutions(512, 512, 256, 128, 64, 32, 2)
    with torch.device("meta"):
        published = SceneFlowNetwork(channels=9, size=(224, 224), width=32, depth=5, masked=False)
    full, without = (
        counts(system("appearance_flow", "market1501", variant))[0]["generator"] for variant in ("full", "no-mask")
    )
    assert count(published) == encoder + decoder
    assert without == encoder + 9 * (39 - 9) * 32 + decoder == 5_506_530
    assert full == 5_506_530 + decoder == 9_434_116


@pytest.mark.parametrize(
    ("dataset", "variant", "expected"),
    [
        ("deepfashion", "full", 9_434_116),
        ("market1501", "view", 50_023_924),
        ("deepfashion", "view", 97_772_180),
    ],
)
def test_parameter_counts(dataset, variant, expected):
    assert counts(system("appearance_flow", dataset, variant)) == [{"generator": expected}]


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (256, 256), (100, 50), (9, 8)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_fits(size, variant):
    stage = small_stage(variant)
    images = {name: torch.rand(1, 3, *size) * 2 - 1 for name in ("source_image", "target_image")}
    poses = {name: torch.zeros(1, 18, *size) for name in ("source_pose", "target_pose")}
    networks = stage.networks(Canvas(size, Discs(radius=2.0)))
    outputs = outputs_of(stage, networks, images | poses | {"rotation": torch.tensor([180.0])})
    assert all(output.shape[2:] == size for output in outputs.values())


@pytest.mark.parametrize("size", [(7, 64), (64, 1)])
def test_sizes_that_are_too_small_are_told(size):
    with pytest.raises(ValueError, match="both sides must be at least 8 pixels"):
        system("appearance_flow", "folder", size=size)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "flow.depth is 0; it must be at least 1"),
        ("halving_every", 0, "flow.halving_every is 0; it must be at least 1"),
        ("mask_weight", -1.0, "it must be at least 0"),
    ],
)
def test_fields_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        override(system("appearance_flow", "synthetic"), {f"flow.{field}": value})


@pytest.mark.parametrize("name", [("appearance_flow", "market1501", "flow"), ("appearance_flow", "marked1501")])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="There are: "):
        system(*name)


@pytest.mark.parametrize("dataset", [*sorted(APPEARANCE_FLOW.presets), "synthetic-views"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stage_is_wired(dataset, variant):
    assert system("appearance_flow", dataset, variant).wiring_errors(set(COLUMNS)) == []


def test_what_is_read():
    """Only "view" needs several cameras; only "no-mask" does without people's masks."""
    reads = {variant: system("appearance_flow", "synthetic", variant).stages[0].reads for variant in VARIANTS}
    assert [variant for variant in VARIANTS if "rotation" in reads[variant]] == ["view"]
    assert [variant for variant in VARIANTS if "target_person_mask" not in reads[variant]] == ["no-mask"]
    assert not {"source_pose", "target_pose"} & set(reads["view"])


def test_the_settings():
    for dataset in ("market1501", "deepfashion"):
        for variant in VARIANTS:
            (stage,) = system("appearance_flow", dataset, variant).stages
            (player,) = stage.players
            assert (player.name, player.optimizer, player.lr, player.betas) == ("generator", "adam", 1e-4, (0.9, 0.999))
            assert [player.schedule.factor(step) for step in (0, 49_999, 50_000, 100_000)] == [1, 1, 0.5, 0.25]
            assert getattr(stage, "mask_weight", 0.1) == 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_image_is_the_source(variant, batch):
    stage = small_stage(variant)
    image = outputs_of(stage, double(stage), batch)["sampled_image"]
    torch.testing.assert_close(image, batch["source_image"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant, batch):
    stage = small_stage(variant)
    networks = moving(double(stage))
    outputs = outputs_of(stage, networks, batch)
    assert set(outputs) == set(stage.writes)
    assert outputs["sampled_image"].shape == (2, 3, *SIZE)
    assert outputs["sampled_image"].abs().max() <= 1 + 1e-9
    total(terms_of(stage, "generator", networks, batch)).backward()
    dead = [name for name, p in networks["generator"].named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_flow_depends_on_its_condition(variant, batch):
    stage = small_stage(variant)
    networks = moving(double(stage))
    image = outputs_of(stage, networks, batch)["sampled_image"]
    for column in set(stage.reads) - {"target_image", "target_person_mask"}:
        changed = outputs_of(stage, networks, {**batch, column: -batch[column]})["sampled_image"]
        assert not torch.allclose(changed, image), column


def test_a_known_flow_moves_the_image(batch):
    """A bias alone: every colour from three columns to the right and a row above; black, which is -1, beyond."""
    stage = small_stage("no-mask")
    networks = double(stage)
    networks["generator"].flow[-1].bias.data = torch.tensor([3.0, -1.0]).double()
    image = outputs_of(stage, networks, batch)["sampled_image"]
    expected = torch.full_like(image, -1.0)
    expected[:, :, 1:, :-3] = batch["source_image"][:, :, :-1, 3:]
    torch.testing.assert_close(image, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss(variant, batch):
    stage = small_stage(variant)
    networks = moving(double(stage))
    terms = terms_of(stage, "generator", networks, batch)
    outputs = outputs_of(stage, networks, batch)
    expected = l1(outputs["sampled_image"], batch["target_image"])
    if variant != "no-mask":
        expected = expected + 0.1 * F.binary_cross_entropy(outputs["foreground"], batch["target_person_mask"])
    torch.testing.assert_close(total(terms), expected)


def test_the_foreground_is_the_second_class():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(2, 2, 1, 1)
    assert foreground(logits).flatten().tolist() == pytest.approx([0.75, 0.5])


def test_cutting_out_leaves_the_person_on_black(batch):
    stage = small_stage()
    networks = moving(double(stage))
    whole, cut = (outputs_of(with_settings(stage, cut_out=c), networks, batch) for c in (False, True))
    person = (whole["foreground"] > 0.5).expand(-1, 3, -1, -1)
    assert person.any()
    assert not person.all()
    torch.testing.assert_close(cut["sampled_image"][person], whole["sampled_image"][person])
    assert (cut["sampled_image"][~person] == -1).all()


def test_without_the_mask_the_rest_is_the_same():
    full, without = (system("appearance_flow", "market1501", variant).stages[0] for variant in ("full", "no-mask"))
    assert isinstance(without, PoseFlow)
    assert vars(without).items() <= vars(full).items()


def test_a_step_changes_the_network_and_keeps_the_batch(batch):
    """There is one player: no discriminator whose move could touch the generator."""
    trainer = build_trainer(small_stage(), CANVAS, seed=0, device=CPU)
    data = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    kept, before = {name: value.clone() for name, value in data.items()}, bits(trainer.bare["generator"])
    terms = trainer.step(0, lambda: data)
    assert set(terms) == {f"generator/{name}" for name in ("l1", "mask", "total", "gradient")}
    assert not all(map(torch.equal, bits(trainer.bare["generator"]), before))
    assert all(torch.equal(data[name], kept[name]) for name in kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_under_autocast_are_float32(variant, batch):
    stage = small_stage(variant)
    networks = moving({name: network.float() for name, network in double(stage).items()})
    networks = {name: network.float() for name, network in networks.items()}
    data = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    exact = terms_of(stage, "generator", networks, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(stage, "generator", networks, data)
    total(terms).backward()
    for name, term in terms.items():
        assert term.value.dtype == torch.float32
        assert term.value.item() == pytest.approx(exact[name].value.item(), rel=0.1)


# The terms of the second step of training, in float64 on the CPU.
GOLDEN = {
    "full": {
        "generator/l1": 0.26804224,
        "generator/mask": 0.70207721,
        "generator/total": 0.33824995,
        "generator/gradient": 1.7166539,
    },
    "no-mask": {
        "generator/l1": 0.26804224,
        "generator/total": 0.26804224,
        "generator/gradient": 1.7162374,
    },
    "view": {
        "generator/l1": 0.28598118,
        "generator/mask": 0.72274953,
        "generator/total": 0.35825613,
        "generator/gradient": 0.90598119,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_steps(variant, golden):
    stage = small_stage(variant, lr=1e-3)
    assert golden(stage) == pytest.approx(GOLDEN[variant], rel=1e-5)
