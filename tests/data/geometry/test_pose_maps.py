import math

import pytest
import torch

from posegen.data.geometry.pose_maps import Discs, Gaussians

HEIGHT, WIDTH = 24, 20
PDIG_EXTENTS = {0: 4, 1: 3, 2: 3, 3: 2, 4: 0}  # of the rows of a disc of radius 4, by distance from its centre


def one_joint(x, y, visible=True):
    """Only joint 5 is known; the others are at impossible places."""
    joints = torch.full((1, 18, 2), math.nan)
    known = torch.zeros(1, 18, dtype=torch.bool)
    joints[0, 5], known[0, 5] = torch.tensor([x, y], dtype=torch.float32), visible
    return joints, known


def drawn(joints, visible, pose_maps):
    return pose_maps(joints, visible, HEIGHT, WIDTH)


def plain_discs(joints, visible, radius):
    maps = torch.full((len(joints), 18, HEIGHT, WIDTH), -1.0)
    for item, joint in visible.nonzero().tolist():
        x, y = (int(value) for value in joints[item, joint].tolist())
        for row in range(HEIGHT):
            for column in range(WIDTH):
                if (row - y) ** 2 + (column - x) ** 2 <= radius**2:
                    maps[item, joint, row, column] = 1.0
    return maps


def plain_gaussians(joints, visible, sigma):
    maps = torch.zeros(len(joints), 18, HEIGHT, WIDTH)
    for item, joint in visible.nonzero().tolist():
        x, y = joints[item, joint].tolist()
        for row in range(HEIGHT):
            for column in range(WIDTH):
                maps[item, joint, row, column] = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
    return maps


def random_people(count):
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(count, 18, 2, generator=generator) * 32 - 6
    return joints, torch.rand(count, 18, generator=generator) < 0.7


def test_a_disc_of_radius_4_has_49_pixels_in_its_own_channel():
    present = drawn(*one_joint(10, 12), Discs()) == 1
    assert present.sum(dim=(2, 3)).tolist() == [[49 if joint == 5 else 0 for joint in range(18)]]


def test_the_rows_of_a_disc_are_pdigs():
    present = drawn(*one_joint(10, 12), Discs())[0, 5] == 1
    for row in range(HEIGHT):
        columns = present[row].nonzero().flatten().tolist()
        extent = PDIG_EXTENTS.get(abs(row - 12))
        assert columns == ([] if extent is None else list(range(10 - extent, 10 + extent + 1)))


def test_discs_take_the_values_they_are_given():
    maps = drawn(*one_joint(10, 12), Discs(present=2.5, absent=0.25))
    assert maps.unique().tolist() == [0.25, 2.5]
    assert maps.dtype == torch.float32


@pytest.mark.parametrize("radius", [4.0, 7.0, 2.5])
def test_discs_equal_the_plain_twin(radius):
    joints, visible = random_people(3)
    assert torch.equal(drawn(joints, visible, Discs(radius=radius)), plain_discs(joints, visible, radius))


def test_centres_are_truncated_to_whole_pixels():
    whole = drawn(*one_joint(10, 12), Discs())
    assert torch.equal(drawn(*one_joint(10.99, 12.5), Discs()), whole)
    assert not torch.equal(drawn(*one_joint(11, 12), Discs()), whole)


def test_truncation_is_towards_zero_as_pythons_int():
    """A joint less than a pixel outside is drawn at the border: -0.9 is 0, and -1.5 is -1."""
    assert torch.equal(drawn(*one_joint(-0.9, 12), Discs()), drawn(*one_joint(0, 12), Discs()))
    assert torch.equal(drawn(*one_joint(-1.5, 12), Discs()), drawn(*one_joint(-1, 12), Discs()))


@pytest.mark.parametrize(
    ("x", "y", "pixels"),
    [
        (0, 0, 17),  # a quarter of 49 and its two axes: 1 + 4 + 4 + 8
        (-4, 12, 1),  # only the tip of the disc is inside
        (-5, 12, 0),
        (WIDTH - 1 + 4, 12, 1),
        (WIDTH - 1, HEIGHT - 1, 17),
        (10, -2, 7 + 5 + 1),  # the rows at distances 2, 3 and 4
        (1e9, -1e9, 0),
    ],
)
def test_discs_are_clipped_at_the_border(x, y, pixels):
    assert (drawn(*one_joint(x, y), Discs()) == 1).sum() == pixels


def test_unknown_joints_are_absent_whatever_their_coordinates():
    assert (drawn(*one_joint(10, 12, visible=False), Discs()) == -1).all()
    assert (drawn(*one_joint(10, 12, visible=False), Gaussians()) == 0).all()


@pytest.mark.parametrize("sigma", [6.0, 1.5])
def test_gaussians_equal_the_plain_twin(sigma):
    joints, visible = random_people(3)
    maps = drawn(joints, visible, Gaussians(sigma=sigma))
    torch.testing.assert_close(maps, plain_gaussians(joints, visible, sigma), atol=1e-6, rtol=1e-4)


def test_a_gaussian_peaks_at_one_and_falls_by_its_formula():
    maps = drawn(*one_joint(10, 12), Gaussians())
    assert maps[0, 5, 12, 10] == 1
    assert maps[0, 5, 12, 16].item() == pytest.approx(math.exp(-0.5), rel=1e-6)  # one sigma away
    assert maps[0, 5, 15, 14].item() == pytest.approx(math.exp(-25 / 72), rel=1e-6)
    assert maps.max() == 1


@pytest.mark.parametrize("pose_maps", [Discs(), Gaussians()])
def test_mirrored_joints_give_mirrored_maps(pose_maps):
    joints, visible = random_people(2)
    joints = joints.trunc()
    mirrored = joints * torch.tensor([-1.0, 1.0]) + torch.tensor([WIDTH - 1.0, 0.0])
    torch.testing.assert_close(drawn(mirrored, visible, pose_maps), drawn(joints, visible, pose_maps).flip(-1))
