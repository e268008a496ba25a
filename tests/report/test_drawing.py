"""Skeletons, heat and sheets: what is drawn, what is not, and that it can be read back."""

import base64

import cv2
import numpy as np
import pytest

from posegen.evaluation.metrics import Pose
from posegen.report.drawing import (
    BACKGROUND,
    JOINT_COLOURS,
    LIMB_COLOURS,
    data_uri,
    difference_heatmap,
    sheet,
    skeleton,
)


def pose(*seen: int) -> Pose:
    joints = np.column_stack([np.linspace(4, 27, 18), np.linspace(6, 57, 18)]).astype(np.float32)
    visible = np.zeros(18, dtype=bool)
    visible[list(seen)] = True
    return Pose(joints, visible)


def test_nothing_is_drawn_of_hidden_joints():
    np.testing.assert_array_equal(skeleton(pose(), 64, 32, 2), np.broadcast_to(BACKGROUND, (128, 64, 3)))


@pytest.mark.parametrize("joint", range(18))
def test_a_joint_is_drawn_where_it_is(joint):
    seen = pose(joint)
    drawn = (skeleton(seen, 64, 32, 4) != BACKGROUND).any(axis=-1)
    rows, columns = np.nonzero(drawn)
    np.testing.assert_allclose([columns.mean() / 4, rows.mean() / 4], seen.joints[joint], atol=0.5)


def test_a_limb_needs_both_ends():
    middle = tuple(np.rint((pose().joints[2] + pose().joints[3]) / 2 * 4 + 1.5).astype(int)[::-1])
    assert tuple(skeleton(pose(2, 3), 64, 32, 4)[middle]) == LIMB_COLOURS[2]
    assert tuple(skeleton(pose(2), 64, 32, 4)[middle]) == BACKGROUND


def test_joints_far_outside_do_not_matter():
    seen = pose(0, 1)
    seen.joints[0] = [1e9, -1e9]
    seen.joints[5] = np.nan
    assert skeleton(seen, 64, 32, 1).shape == (64, 32, 3)


def test_every_limb_and_joint_has_its_own_colour():
    assert len(set(LIMB_COLOURS)) == 17
    assert len(set(JOINT_COLOURS)) == 18


def test_difference_is_dark_where_equal_and_grows():
    target = np.full((4, 4, 3), 100, dtype=np.uint8)
    generated = target.copy()
    generated[1], generated[2] = 130, 255
    brightness = difference_heatmap(generated, target).sum(axis=-1, dtype=int)[:, 0]
    assert brightness[0] < 10
    assert brightness[0] < brightness[1] < brightness[2]


@pytest.mark.parametrize(("height", "kind", "tolerance"), [(64, "png", 0), (256, "jpeg", 12)])
def test_data_uri_reads_back(height, kind, tolerance):
    ramp = np.linspace(0, 255, height)[:, None, None] * np.ones((1, 32, 3)) * [1.0, 0.5, 0.2]
    image = ramp.astype(np.uint8)
    head, encoded = data_uri(image).split(",")
    assert head == f"data:image/{kind};base64"
    back = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(back, image.astype(int), atol=tolerance)


def test_sheet_holds_every_image_in_its_place():
    colours = [[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (90, 90, 90)]]
    rows = [[np.full((64, 32, 3), colour, dtype=np.uint8) for colour in row] for row in colours]
    whole = sheet(rows, 128)
    assert whole.shape == (2 * (128 + 4) + 4, 2 * (64 + 4) + 4, 3)
    for y, row in enumerate(colours):
        for x, colour in enumerate(row):
            assert tuple(whole[4 + 132 * y + 64, 4 + 68 * x + 32]) == colour
