import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from posegen.nets.warping import MOST_PARTS, deformable_skip

PARTS = 10
OFF = torch.tensor([[1.0, 0, 1000], [0, 1, 1000]])  # what the released code gives a dropped part


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def shifted(right, down, *, batch=1, parts=1):
    """Transforms that sample the pixel `right` columns and `down` rows further."""
    transform = torch.tensor([[1.0, 0, right], [0, 1, down]], dtype=torch.float64)
    return transform.repeat(batch, parts, 1, 1)


def torso_only(batch, height, width):
    """Ten parts, of which the first covers everything and the others nothing."""
    masks = torch.zeros(batch, PARTS, height, width, dtype=torch.bool)
    masks[:, 0] = True
    return masks


def warped(features, transforms, masks=None, present=None, **options):
    batch, parts = transforms.shape[:2]
    masks = torch.ones(batch, parts, *features.shape[2:], dtype=torch.bool) if masks is None else masks
    present = torch.ones(batch, parts, dtype=torch.bool) if present is None else present
    return deformable_skip(features, transforms=transforms, masks=masks, present=present, **options)


def plain(features: Tensor, transforms, masks, present, *, aggregate, interpolation, mask_frame, background) -> Tensor:
    """The definition, with a copy of the features for every part."""
    (batch, parts, height, width), (rows, columns) = masks.shape, features.shape[2:]
    small = masks[:, :, [i * height // rows for i in range(rows)]][..., [i * width // columns for i in range(columns)]]
    row, column = torch.meshgrid(torch.arange(rows).to(features), torch.arange(columns).to(features), indexing="ij")
    target = torch.stack([column * width / columns, row * height / rows, torch.ones_like(row)])
    x, y = torch.einsum("bpij,jrc->ibprc", transforms, target)
    x, y = x / (width / columns), y / (height / rows)
    grid = torch.stack([x / (columns - 1), y / (rows - 1)], dim=-1).flatten(0, 1) * 2 - 1

    def sampled(images):
        values = F.grid_sample(images.flatten(0, 1), grid, mode=interpolation, align_corners=True)
        return values.unflatten(0, (batch, parts)) * present[:, :, None, None, None]

    copies, mask = features[:, None].expand(-1, parts, -1, -1, -1), small[:, :, None].to(features)
    if mask_frame == "target":
        terms, covers = sampled(copies) * mask, mask
    else:
        terms, covers = sampled(copies * mask), (sampled(mask) > 0).to(features)
    if background:
        terms = torch.cat([terms, features[:, None]], dim=1)
        covers = torch.cat([covers, torch.ones_like(covers[:, :1])], dim=1)
    return terms.amax(1) if aggregate == "max" else terms.sum(1) / covers.sum(1).clamp(min=1)


def random_case(parts, coverage, *, height=12, width=8, rows=12, columns=8, seed=0):
    """Features, affine transforms of which many lead outside, masks of a coverage each, some parts dropped."""
    transforms = torch.eye(2, 3, dtype=torch.float64) + 0.3 * random(2, parts, 2, 3, seed=seed)
    transforms[..., 2] += 1.5 * random(2, parts, 2, seed=seed + 1)
    masks = torch.stack([random(2, height, width, seed=seed + 9 + i).abs() < coverage[i] for i in range(parts)], dim=1)
    present = torch.ones(2, parts, dtype=torch.bool)
    present[1, parts // 2] = False
    return random(2, 3, rows, columns, seed=seed + 2), transforms, masks, present


def values_and_gradient(function, features, seed=5):
    features = features.detach().requires_grad_()
    result = function(features)
    (gradient,) = torch.autograd.grad(result, features, random(*result.shape, seed=seed).to(result))
    return result.detach(), gradient


TORSO_AND_LIMBS, ALL_FULL, SPARSE = (9.0, 0.2, 0.3, 0.1, 0.2), (9.0, 9.0, 9.0), (0.0, 0.2, 0.0, 0.3)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("mask_frame", ["target", "source"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("aggregate", ["max", "average"])
@pytest.mark.parametrize("coverage", [TORSO_AND_LIMBS, ALL_FULL, SPARSE], ids=["torso", "full", "sparse"])
@pytest.mark.parametrize("size", [(12, 8), (6, 4), (5, 8)])
def test_equals_warping_copies(size, coverage, aggregate, interpolation, mask_frame, background):
    features, *parts = random_case(len(coverage), coverage, rows=size[0], columns=size[1])
    options = {
        "aggregate": aggregate, "interpolation": interpolation, "mask_frame": mask_frame, "background": background,
    }  # fmt: skip
    lean = values_and_gradient(lambda moved: warped(moved, *parts, **options), features)
    slow = values_and_gradient(lambda moved: plain(moved, *parts, **options), features)
    torch.testing.assert_close(lean, slow, rtol=1e-10, atol=1e-10)
    if coverage == ALL_FULL:
        assert (lean[0] < 0).any()  # no zero of an uncovered part takes part everywhere


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_float32_is_as_exact_as_float32_is(interpolation):
    features, transforms, *parts = random_case(5, TORSO_AND_LIMBS, height=64, width=32, rows=64, columns=32)
    transforms = transforms.float()
    exact = values_and_gradient(
        lambda moved: warped(moved, transforms, *parts, interpolation=interpolation), features.float().double()
    )
    single = values_and_gradient(
        lambda moved: warped(moved, transforms, *parts, interpolation=interpolation), features.float()
    )
    torch.testing.assert_close([x.double() for x in single], list(exact), rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_whole_translations_move_pixels_and_fill_with_zeros(interpolation):
    features = random(1, 2, 5, 4)
    expected = torch.zeros_like(features)
    expected[:, :, :3, 1:] = features[:, :, 2:, :3]
    assert torch.equal(warped(features, shifted(-1, 2), interpolation=interpolation), expected)


def test_half_a_pixel_is_the_mean_of_two_and_at_the_border_half_of_one():
    features = torch.tensor([[[[2.0, 4.0, 10.0]]]])
    assert warped(features, shifted(0.5, 0)).tolist() == [[[[3.0, 7.0, 5.0]]]]
    assert warped(features, shifted(-0.5, 0)).tolist() == [[[[1.0, 3.0, 7.0]]]]


def test_nearest_rounds_halves_away_from_zero():
    features = torch.tensor([[[[2.0, 4.0, 10.0]]]])
    assert warped(features, shifted(0.5, 0), interpolation="nearest").tolist() == [[[[4.0, 10.0, 0.0]]]]
    assert warped(features, shifted(-0.5, 0), interpolation="nearest").tolist() == [[[[0.0, 4.0, 10.0]]]]
    assert warped(features, shifted(-0.4, 0), interpolation="nearest").tolist() == [[[[2.0, 4.0, 10.0]]]]


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_quarter_turn(interpolation):
    """Target (x, y) shows source (y, x): the transpose, for each channel."""
    features = random(1, 2, 4, 4)
    transform = torch.tensor([[[[0.0, 1, 0], [1, 0, 0]]]])
    assert torch.equal(warped(features, transform, interpolation=interpolation), features.transpose(2, 3))


def test_identity_transforms_with_a_torso_everywhere_are_relu():
    features, masks = random(2, 3, 8, 4), torso_only(2, 8, 4)
    masks[:, 1:, 2:4, 1:3] = True
    lean = values_and_gradient(lambda moved: warped(moved, shifted(0, 0, batch=2, parts=PARTS), masks), features)
    corner = torch.ones(8, 4, dtype=torch.bool)
    corner[2:4, 1:3] = False  # where all ten masks lie, no zero takes part: F itself
    relu = values_and_gradient(lambda moved: torch.where(corner, moved.relu(), moved), features)
    torch.testing.assert_close(lean, relu, rtol=0, atol=0)
    assert (features[:, :, 2:4, 1:3] < 0).any()


def test_dropped_parts_are_zeros_everywhere_and_their_transforms_are_not_looked_at():
    features = -random(1, 2, 4, 3).abs()
    transforms = shifted(0, 0, parts=2)
    transforms[0, 1] = torch.nan
    kept = torch.tensor([[True, False]])
    assert not warped(features, transforms, present=kept).any()
    assert torch.equal(warped(features, transforms[:, :1]), features)  # alone, nothing competes
    assert not warped(features, transforms, present=torch.zeros(1, 2, dtype=torch.bool)).any()
    average = warped(features, transforms, present=kept, aggregate="average")
    torch.testing.assert_close(average, features / 2)  # a dropped part's mask counts


def test_transforms_far_outside_give_zeros():
    features = 1 + random(1, 2, 4, 3).abs()
    for far in (OFF, -OFF, 1e30 * OFF, OFF * torch.inf, torch.tensor([[0.0, 0, -1], [0, 0, 4]])):
        for interpolation in ("bilinear", "nearest"):
            assert not warped(features, far[None, None], interpolation=interpolation).any()


def test_a_tie_gives_its_gradient_to_the_first_part_and_at_zero_to_none():
    features = torch.ones(1, 1, 1, 4, requires_grad=True)
    transforms = torch.cat([shifted(0, 0), shifted(1, 0), shifted(-1, 0)], dim=1)
    (gradient,) = torch.autograd.grad(warped(features, transforms).sum(), features)
    assert gradient.tolist() == [[[[1, 1, 1, 1]]]]
    zeros = torch.zeros(1, 1, 1, 4, requires_grad=True)
    present = torch.tensor([[True, False, True]])
    (gradient,) = torch.autograd.grad(warped(zeros, transforms, present=present).sum(), zeros)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(warped(features, transforms[:, 1:], background=True).sum(), features)
    assert gradient.tolist() == [[[[1, 1, 1, 1]]]]  # the background comes before the parts


def test_average_counts_masks_and_is_zero_under_none():
    features = torch.full((1, 1, 1, 3), 6.0)
    masks = torch.tensor([[[[True, True, False]], [[False, True, False]], [[False, True, False]]]])
    average = warped(features, shifted(0, 0, parts=3), masks, aggregate="average")
    assert average.tolist() == [[[[6.0, 6.0, 0.0]]]]
    present = torch.tensor([[True, True, False]])
    average = warped(features, shifted(0, 0, parts=3), masks, present, aggregate="average")
    assert average.tolist() == [[[[6.0, 4.0, 0.0]]]]
    average = warped(features, shifted(0, 0, parts=3), masks, present, aggregate="average", background=True)
    assert average.tolist() == [[[[6.0, 4.5, 6.0]]]]


def test_masks_of_the_source_move_with_their_pixels():
    features = torch.tensor([[[[-5.0, 1.0, -2.0, 4.0]]]])
    masks = torch.tensor([[[[False, True, True, False]], [[False, False, False, False]]]])
    transforms = shifted(1, 0, parts=2)
    target = warped(features, transforms, masks)
    source = warped(features, transforms, masks, mask_frame="source")
    assert target.tolist() == [[[[0.0, 0.0, 4.0, 0.0]]]]
    assert source.tolist() == [[[[1.0, 0.0, 0.0, 0.0]]]]
    both = warped(features, transforms, masks, mask_frame="source", background=True)
    assert both.tolist() == [[[[1.0, 1.0, 0.0, 4.0]]]]
    halves = warped(features.abs(), shifted(0.5, 0, parts=2), masks, mask_frame="source")
    assert halves.tolist() == [[[[0.5, 1.5, 1.0, 0.0]]]]


def test_translations_are_in_pixels_of_the_image_at_every_level():
    for factor in (1, 2, 4):
        features = random(1, 2, 16 // factor, 8 // factor)
        masks = torch.ones(1, 1, 16, 8, dtype=torch.bool)
        expected = torch.zeros_like(features)
        expected[:, :, : -4 // factor] = features[:, :, 4 // factor :]
        assert torch.equal(warped(features, shifted(0, 4), masks), expected)


def test_unequal_ratios_scale_x_by_width_y_by_height_and_the_terms_that_mix_them_by_both():
    """x' = x + 2 y + 2 in an image of 4 rows and 12 columns: for 4 x 6 features x' = x + (1 / 2) 2 y + 2 / 2."""
    masks = torch.ones(1, 1, 4, 12, dtype=torch.bool)
    features = random(1, 1, 4, 6)
    transform = torch.tensor([[[[1.0, 2, 2], [0, 1, 0]]]])
    expected = torch.zeros_like(features)
    for row in range(4):
        expected[:, :, row, : 5 - row] = features[:, :, row, row + 1 :]
    assert torch.equal(warped(features, transform, masks), expected)


def test_masks_are_resized_to_the_pixel_floor_of_i_times_the_ratio():
    masks = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    masks[0, 0, 2, 3] = True  # rows 0 and floor(5 / 2) = 2, columns 0 and 3 are taken
    assert warped(torch.ones(1, 1, 2, 2), shifted(0, 0), masks).tolist() == [[[[0.0, 0.0], [0.0, 1.0]]]]
    masks = masks.roll(1, dims=3)
    assert not warped(torch.ones(1, 1, 2, 2), shifted(0, 0), masks).any()


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("aggregate", ["max", "average"])
@pytest.mark.parametrize("mask_frame", ["target", "source"])
def test_gradients(interpolation, aggregate, mask_frame):
    features, *parts = random_case(4, (9.0, 0.5, 0.4, 0.6), height=5, width=4, rows=5, columns=4, seed=3)
    torch.autograd.gradcheck(
        lambda moved: warped(
            moved, *parts, interpolation=interpolation, aggregate=aggregate, mask_frame=mask_frame, background=True
        ),
        features.requires_grad_(),
    )


def test_no_second_gradients():
    features = random(1, 1, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad((warped(features, shifted(0, 0)) ** 2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_some_channels_of_larger_features():
    features, *parts = random_case(5, TORSO_AND_LIMBS)
    more = torch.cat([features, features.flip(1)], dim=1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(warped(more[:, :3], *parts), warped(features, *parts))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("aggregate", ["max", "average"])
def test_channels_last_comes_out_and_what_is_given_stays_as_it_is(memory_format, aggregate):
    features, *parts = random_case(5, TORSO_AND_LIMBS)
    given = [tensor.clone() for tensor in (features, *parts)]
    features = features.contiguous(memory_format=memory_format)
    result = warped(features, *parts, aggregate=aggregate, background=True)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close([features, *parts], given, rtol=0, atol=0)
    torch.testing.assert_close(result, warped(given[0], *parts, aggregate=aggregate, background=True))


def test_bfloat16_is_computed_in_float32():
    features, *parts = random_case(5, TORSO_AND_LIMBS)
    coarse = features.bfloat16()
    result, gradient = values_and_gradient(lambda moved: warped(moved, *parts), coarse)
    assert result.dtype == gradient.dtype == torch.bfloat16
    assert torch.equal(result, warped(coarse.float(), *parts).bfloat16())


def test_under_autocast():
    features, *parts = random_case(5, TORSO_AND_LIMBS)
    network = nn.Conv2d(3, 4, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = warped(network(features.float()), *parts)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert network.weight.grad is not None
    assert network.weight.grad.any()


@pytest.mark.parametrize("mask_frame", ["target", "source"])
@pytest.mark.parametrize("aggregate", ["max", "average"])
def test_runs_without_numbers(aggregate, mask_frame):
    """As the outlook does: under FakeTensorMode nothing may depend on the masks' values."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        return tensor

    with FakeTensorMode():
        features = torch.randn(2, 8, 6, 4, requires_grad=True)
        masks, present = torch.ones(2, PARTS, 12, 8, dtype=torch.bool), torch.ones(2, PARTS, dtype=torch.bool)
        transforms = torch.zeros(2, PARTS, 2, 3)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            result = warped(features, transforms, masks, present, aggregate=aggregate, mask_frame=mask_frame)
        result.sum().backward()
    assert result.shape == features.shape
    assert features.grad is not None
    if aggregate == "max":
        assert sum(saved.values()) == features.numel()  # a byte a value


def test_keeps_one_byte_a_value_for_its_backward():
    saved: list[Tensor] = []
    features, *parts = random_case(5, TORSO_AND_LIMBS)
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        warped(features.requires_grad_(), *parts)
    assert [(tensor.dtype, tensor.numel()) for tensor in saved] == [(torch.uint8, features.numel())]


def test_as_many_parts_as_fit_a_byte_and_no_more():
    features, transforms = 1 + random(1, 1, 2, 2).abs(), shifted(0, 0, parts=MOST_PARTS)
    masks = torch.zeros(1, MOST_PARTS, 2, 2, dtype=torch.bool)
    masks[:, -1, 0] = True
    result, gradient = values_and_gradient(lambda moved: warped(moved, transforms, masks), features)
    assert torch.equal(result[:, :, 0], features[:, :, 0])
    assert gradient[:, :, 0].all()
    assert not gradient[:, :, 1].any()
    with pytest.raises(ValueError, match=f"between 1 and {MOST_PARTS}"):
        warped(features, shifted(0, 0, parts=MOST_PARTS + 1))
    with pytest.raises(ValueError, match="0 parts were given"):
        warped(features, shifted(0, 0, parts=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"transforms": torch.zeros(2, 3, 3, 3)},
        {"transforms": torch.zeros(2, 4, 2, 3)},
        {"masks": torch.ones(2, 3, 8, dtype=torch.bool)},
        {"masks": torch.ones(1, 3, 8, 4, dtype=torch.bool)},
        {"present": torch.ones(2, 1, dtype=torch.bool)},
    ],
)
def test_wrong_shapes_raise(wrong):
    right = {
        "transforms": torch.zeros(2, 3, 2, 3),
        "masks": torch.ones(2, 3, 8, 4, dtype=torch.bool),
        "present": torch.ones(2, 3, dtype=torch.bool),
    }
    unchecked = getattr(deformable_skip, "__wrapped__", deformable_skip)  # without jaxtyping's check, as users run it
    with pytest.raises(ValueError, match="shapes do not fit"):
        unchecked(torch.zeros(2, 5, 8, 4), **(right | wrong))
