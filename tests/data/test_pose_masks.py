import numpy as np
import pytest
from skimage.morphology import closing

from posegen.data.geometry.joints import LIMBS, MIRROR
from posegen.data.masks import pack, pose_mask, unpack


def plain_discs(centres, height, width, radius):
    mask = np.zeros((height, width), np.uint8)
    for x, y in centres:
        for row in range(int(y) - radius, int(y) + radius + 1):
            for column in range(int(x) - radius, int(x) + radius + 1):
                near = (row - int(y)) ** 2 + (column - int(x)) ** 2 <= radius**2
                if near and 0 <= row < height and 0 <= column < width:
                    mask[row, column] = 1
    return mask


def plain_closing(mask, half=2):
    """Dilation, then erosion, by a square; windows are cut off at the border."""
    for pick in (np.max, np.min):
        height, width = mask.shape
        result = np.empty_like(mask)
        for row in range(height):
            for column in range(width):
                window = mask[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
                result[row, column] = pick(window)
        mask = result
    return mask


def plain_centres(joints, visible, radius):
    centres = []
    for first, second in LIMBS:
        if not (visible[first] and visible[second]):
            continue
        (x0, y0), (x1, y1) = joints[first].tolist(), joints[second].tolist()
        centres += [(x0, y0), (x1, y1)]
        pieces = int(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 / radius)
        if pieces > 1:
            centres += [(x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces) for i in range(1, pieces)]
    return centres


def one_limb(start, end):
    """Only the limb from the neck to the right shoulder."""
    joints, visible = np.full((18, 2), np.nan, np.float32), np.zeros(18, bool)
    joints[[1, 2]], visible[[1, 2]] = (start, end), True
    return joints, visible


@pytest.mark.parametrize(("height", "width", "radius"), [(64, 32, 4), (40, 40, 7), (33, 17, 1), (32, 48, 10)])
@pytest.mark.parametrize("whole", [True, False])
def test_equals_the_plain_twin(height, width, radius, whole):
    random = np.random.default_rng(height * radius)
    for _ in range(5):
        joints = random.uniform(-0.2, 1.2, (18, 2)).astype(np.float32) * (width, height)
        joints = (np.trunc(joints) if whole else joints).astype(np.float32)
        visible = random.random(18) < 0.7
        plain = plain_closing(plain_discs(plain_centres(joints, visible, radius), height, width, radius))
        np.testing.assert_array_equal(pose_mask(joints, visible, height=height, width=width, radius=radius), plain)


def test_closing_is_scikit_images():
    random = np.random.default_rng(3)
    joints = random.uniform(-4, 36, (18, 2)).astype(np.float32)
    discs = plain_discs(plain_centres(joints, np.ones(18, bool), 4), 32, 32, 4)
    expected = closing(discs, np.ones((5, 5), np.uint8))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(pose_mask(joints, np.ones(18, bool), height=32, width=32, radius=4), expected)


def test_short_limb_is_two_discs():
    mask = pose_mask(*one_limb((20, 20), (20, 20)), height=40, width=40, radius=4)
    np.testing.assert_array_equal(mask, plain_closing(plain_discs([(20, 20)], 40, 40, 4)))
    assert plain_discs([(20, 20)], 40, 40, 4).sum() == 49


def test_limb_of_three_radii_has_two_discs_between_its_ends():
    mask = pose_mask(*one_limb((10, 20), (22, 20)), height=40, width=40, radius=4)
    assert (mask[20] == 1).nonzero()[0].tolist() == list(range(6, 27))  # 10 - 4 .. 22 + 4
    np.testing.assert_array_equal(mask, plain_closing(plain_discs([(10, 20), (14, 20), (18, 20), (22, 20)], 40, 40, 4)))


def test_centres_outside_leave_their_clipped_discs():
    mask = pose_mask(*one_limb((-3, 10), (-3, 10)), height=20, width=20, radius=4)
    assert mask[10].nonzero()[0].tolist() == [0, 1]  # columns -7 .. 1
    assert pose_mask(*one_limb((-5, 10), (-5, 10)), height=20, width=20, radius=4).sum() == 0
    assert pose_mask(*one_limb((21, 22), (21, 22)), height=20, width=20, radius=4).sum() == 1  # (19, 19)


def test_the_border_is_not_eaten():
    mask = pose_mask(*one_limb((0, 0), (19, 0)), height=20, width=20, radius=4)
    assert mask[0].all()
    assert not mask[5:].any()


def test_joints_without_a_limb_leave_nothing():
    joints, visible = one_limb((10, 10), (20, 10))
    visible[2] = False
    assert pose_mask(joints, visible, height=32, width=32, radius=4).sum() == 0


def test_mirrored_joints_give_the_mirrored_mask():
    """Exact where no centre is truncated: limbs along the axes, of whole multiples of the radius."""
    joints, visible = np.zeros((18, 2), np.float32), np.zeros(18, bool)
    joints[[1, 2, 3]], visible[[1, 2, 3]] = ((24, 8), (12, 8), (12, 28)), True
    mask = pose_mask(joints, visible, height=40, width=32, radius=4)
    mirrored = joints[list(MIRROR)] * (-1, 1) + (31, 0)
    again = pose_mask(mirrored.astype(np.float32), visible[list(MIRROR)], height=40, width=32, radius=4)
    np.testing.assert_array_equal(again, mask[:, ::-1])


@pytest.mark.parametrize(("height", "width"), [(128, 64), (7, 5), (1, 1)])
def test_packing_gives_the_masks_back(height, width):
    masks = (np.random.default_rng(0).random((3, height, width)) < 0.3).astype(np.uint8)
    np.testing.assert_array_equal(unpack([pack(mask) for mask in masks], height, width), masks)


def test_packing_is_small():
    random = np.random.default_rng(1)
    joints = (random.random((18, 2)) * (64, 128)).astype(np.float32)
    assert len(pack(pose_mask(joints, np.ones(18, bool), height=128, width=64, radius=4))) < 500
