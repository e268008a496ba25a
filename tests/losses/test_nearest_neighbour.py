import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import pad

from posegen.losses import reconstruction
from posegen.losses.reconstruction import nearest_neighbour_loss


def stacked(generated, target, window):
    """The definition as it is written: all shifted copies side by side, and the least distance to one of them."""
    rows, columns = generated.shape[2:]
    around = pad(target, (window // 2,) * 4, value=torch.inf)
    shifts = [around[:, :, y : y + rows, x : x + columns] for y in range(window) for x in range(window)]
    return (generated.unsqueeze(-1) - torch.stack(shifts, dim=-1)).abs().sum(dim=1).amin(dim=-1).mean()


def features(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(generated, target, window=3):
    return nearest_neighbour_loss(generated, target, window=window).item()


def gradients(loss, *inputs):
    inputs = [given.detach().clone().requires_grad_() for given in inputs]
    return torch.autograd.grad(loss(*inputs), inputs)


@pytest.fixture(params=[1, 40, 150, 2**18], ids=["a row", "some rows", "some images", "everything"])
def block_size(request, monkeypatch):
    """Features of (3, 2, 6, 5), 60 numbers an image, are compared in blocks of this many numbers."""
    monkeypatch.setattr(reconstruction, "BLOCK_ELEMENTS", request.param)


def test_one_channel_by_hand():
    generated = torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 9.0]]]], requires_grad=True)
    target = torch.tensor([[[[1.0, 8.0, 2.0], [8.0, 8.0, 8.0], [4.0, 8.0, 6.0]]]], requires_grad=True)
    loss = nearest_neighbour_loss(generated, target, window=3)
    # nearest to the top row: 1, 1, 2; to the middle one: 1, 4 (as near to 5 as 6 is, and first), 2; below: 4, 4, 8
    assert loss.item() == pytest.approx((1 + 1 + 2 + 1 + 1 + 2 + 4 + 4 + 1) / 9)
    loss.backward()
    assert generated.grad is not None
    assert target.grad is not None
    signs = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    torch.testing.assert_close(generated.grad[0, 0], signs / 9)
    chosen = torch.tensor([[3.0, 0.0, 2.0], [0.0, -1.0, 0.0], [2.0 - 1.0, 0.0, 0.0]])  # the last 9 is nearest to the 8
    torch.testing.assert_close(target.grad[0, 0], chosen / 9)


def test_distances_are_sums_over_channels_of_one_neighbour():
    generated, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0.0, 3.0]], [[4.0, 0.0]]]])
    # each channel has its own 0 in the window, and yet the neighbours cost 0 + 4 and 3 + 0
    assert value(generated, target) == 3


def test_several_as_near_the_first_in_rows_from_the_top_left_counts():
    generated, target = torch.zeros(1, 1, 3, 3), torch.full((1, 1, 3, 3), 5.0)
    target[0, 0, 0, 2], target[0, 0, 2, 0], target[0, 0, 1, 1] = 1, 1, 1
    gradient = gradients(lambda t: nearest_neighbour_loss(generated, t, window=3), target)[0][0, 0] * 9
    # the upper right 1 is first for the four pixels that it touches, the centre's for all others that see no earlier 1
    assert gradient.tolist() == [[0, 0, 4], [0, 5, 0], [0, 0, 0]]


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (2, 2), (-2, 1)])
def test_a_image_shifted_within_the_window_costs_nothing_but_at_the_border(shift):
    target = features(1, 3, 12, 10)
    generated = target.roll(shift, dims=(2, 3))
    window = 2 * max(map(abs, shift)) + 1
    generated.requires_grad_()
    nearest_neighbour_loss(generated, target, window=window).backward()
    assert generated.grad is not None
    touched = generated.grad.abs().sum(dim=(0, 1)) > 0
    expected = torch.zeros(12, 10, dtype=torch.bool)  # the rows and columns that came in from the other side
    for dim, distance in enumerate(shift):
        places = range(distance) if distance > 0 else range(distance, 0)
        expected.index_fill_(dim, torch.tensor([place % expected.shape[dim] for place in places], dtype=torch.long), 1)
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("level", [-1e5, 1e5])
def test_the_border_is_never_compared_with_the_padding(level):
    """A framework's padding of 0 or -10000 would be nearer than these."""
    generated = torch.full((1, 2, 4, 3), level, dtype=torch.float64)
    assert value(generated, generated + 3, window=5) == pytest.approx(2 * 3)


def test_a_window_larger_than_the_image_sees_all_of_it():
    generated, target = features(2, 3, 4, 3), features(2, 3, 4, 3, seed=1)
    pairs = (generated.flatten(2)[..., None] - target.flatten(2)[..., None, :]).abs().sum(dim=1)
    assert value(generated, target, window=9) == pytest.approx(pairs.amin(dim=-1).mean().item())


def test_window_1_is_l1_times_channels():
    generated, target = features(2, 5, 4, 3), features(2, 5, 4, 3, seed=1)
    assert value(generated, target, window=1) == pytest.approx(5 * (generated - target).abs().mean().item())
    expected = gradients(lambda g, t: 5 * (g - t).abs().mean(), generated, target)
    found = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=1), generated, target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_equal_maps_cost_nothing_and_have_no_gradient(window):
    same = features(2, 3, 5, 4)
    assert value(same, same, window) == 0
    for gradient in gradients(lambda g, t: nearest_neighbour_loss(g, t, window=window), same, same):
        assert not gradient.any()


def test_a_wider_window_never_costs_more():
    generated, target = features(2, 3, 9, 8), features(2, 3, 9, 8, seed=1)
    values = [value(generated, target, window) for window in (1, 3, 5, 7, 15)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("window", [1, 3, 5, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_stacked_definition(window, layout):
    given = [features(3, 2, 6, 5, seed=seed).to(memory_format=layout) for seed in (0, 1)]
    assert value(*given, window) == pytest.approx(stacked(*given, window).item(), rel=1e-12)
    found = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=window), *given)
    expected = gradients(lambda g, t: stacked(g, t, window), *given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert all(gradient.is_contiguous(memory_format=layout) for gradient in found)


@pytest.mark.usefixtures("block_size")
def test_gradcheck():
    inputs = [features(2, 2, 4, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(lambda g, t: nearest_neighbour_loss(g, t, window=3), inputs)


@pytest.mark.parametrize("learning", [0, 1])
def test_only_what_learns_has_a_gradient(learning):
    inputs = [features(1, 2, 4, 3, seed=seed) for seed in (0, 1)]
    expected = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=3), *inputs)[learning]
    inputs[learning].requires_grad_()
    nearest_neighbour_loss(*inputs, window=3).backward()
    assert torch.equal(inputs[learning].grad, expected)
    assert inputs[1 - learning].grad is None


def test_gradients_are_scaled_by_what_follows():
    inputs = features(1, 2, 4, 3), features(1, 2, 4, 3, seed=1)
    plain = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=3), *inputs)
    scaled = gradients(lambda g, t: -0.25 * nearest_neighbour_loss(g, t, window=3), *inputs)
    torch.testing.assert_close(scaled, tuple(-0.25 * gradient for gradient in plain))


def test_gradients_of_gradients_are_refused():
    generated, target = features(1, 2, 4, 3).requires_grad_(), features(1, 2, 4, 3, seed=1)
    loss = nearest_neighbour_loss(generated, target, window=3).square()
    (gradient,) = torch.autograd.grad(loss, generated, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_broken_feature_is_not_hidden():
    generated, target = features(1, 2, 4, 3), features(1, 2, 4, 3, seed=1)
    generated[0, 1, 2, 1] = torch.nan
    assert torch.isnan(nearest_neighbour_loss(generated, target, window=3))


def test_bfloat16_features_are_summed_in_float32():
    given = [features(2, 300, 4, 3, seed=seed).bfloat16() for seed in (0, 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nearest_neighbour_loss(*given, window=3)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(stacked(*(half.double() for half in given), 3).item(), rel=1e-6)
    found = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=3), *given)
    expected = gradients(lambda g, t: stacked(g, t, 3), *(half.double() for half in given))
    assert all(gradient.dtype == torch.bfloat16 for gradient in found)
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=0.01, atol=0)


def test_features_of_two_types_are_compared_in_the_finer():
    generated, target = features(1, 2, 4, 3).bfloat16(), features(1, 2, 4, 3, seed=1)
    assert value(generated, target) == pytest.approx(value(generated.double(), target), rel=1e-12)
    found = gradients(lambda g, t: nearest_neighbour_loss(g, t, window=3), generated, target)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float64]


def test_one_byte_a_pixel_is_kept_beside_the_features():
    def kept(shape):
        saved = []
        with (
            FakeTensorMode(),
            saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor),
        ):
            generated = torch.zeros(shape, requires_grad=True)
            loss = nearest_neighbour_loss(generated, torch.zeros(shape), window=5)
            assert loss.shape == ()
            loss.backward()
        assert generated.grad is not None
        assert generated.grad.shape == shape
        return [(tuple(tensor.shape), tensor.dtype) for tensor in saved if tensor.ndim > 0]

    shape = (2, 64, 128, 64)
    assert kept(shape) == [(shape, torch.float32), (shape, torch.float32), ((2, 128, 64), torch.uint8)]


@pytest.mark.parametrize("window", [-1, 0, 2, 4, 17])
def test_other_windows_are_refused(window):
    with pytest.raises(ValueError, match=rf"odd number of pixels from 1 to 15 .* not {window}: give one"):
        nearest_neighbour_loss(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), window=window)


def test_maps_of_different_shapes_are_refused():
    given = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    with pytest.raises(TypeError):  # shapes are checked at run time in the tests
        nearest_neighbour_loss(*given, window=3)
    with pytest.raises(ValueError, match=r"have \(1, 2, 3, 3\) and the target's \(1, 1, 3, 3\): take both"):
        inspect.unwrap(nearest_neighbour_loss)(*given, window=3)
