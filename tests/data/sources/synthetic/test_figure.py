"""A drawn person: which side is which, what hides what, and a mask that is exactly what was drawn."""

import dataclasses

import numpy as np
import pytest

from posegen.data.geometry.joints import JOINTS
from posegen.data.sources.synthetic.body import dress
from posegen.data.sources.synthetic.figure import Figure, Surface, View, draw_figure, visible_joints
from posegen.data.sources.synthetic.mesh import Fragments, join
from posegen.data.sources.synthetic.skeleton import SIDES, Arm, Leg, Pose, Proportions, pose_skeleton, turn
from posegen.data.sources.synthetic.wardrobe import TILES, Cloth, Look, draw_tiles, random_look

SIZE = (128, 64)
RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP = 2, 5, 8, 11
STANDING = Pose(arms={side: Arm() for side in SIDES}, legs={side: Leg() for side in SIDES})
RED, BLUE = (255.0, 0.0, 0.0), (0.0, 0.0, 255.0)


@pytest.fixture(scope="module")
def look() -> Look:
    drawn = random_look(np.random.default_rng(3), 0.5)
    top = dataclasses.replace(drawn.top, front="pullover", coat=False)
    bottom = dataclasses.replace(drawn.bottom, kind="trousers")
    return dataclasses.replace(drawn, pack=None, top=top, bottom=bottom, hair_style="short")


def draw(look: Look, azimuth: float, pose: Pose = STANDING, size: tuple[int, int] = SIZE) -> Figure:
    tiles = draw_tiles(look, np.random.default_rng(0))
    return draw_figure(pose_skeleton(Proportions(), pose), Proportions(), look, tiles, View(azimuth=azimuth), size)


def test_the_front_has_the_right_side_on_the_left_and_shows_everything(look: Look):
    figure = draw(look, 0.0)
    assert figure.joints[RIGHT_SHOULDER, 0] < figure.joints[LEFT_SHOULDER, 0] - 10
    assert figure.joints[RIGHT_HIP, 0] < figure.joints[LEFT_HIP, 0] - 5
    assert figure.joints[0, 1] < figure.joints[1, 1] < figure.joints[8, 1] < figure.joints[9, 1] < figure.joints[10, 1]
    assert figure.visible.all()


def test_the_back_is_reversed_and_hides_the_face_only(look: Look):
    figure = draw(look, 180.0)
    assert figure.joints[RIGHT_SHOULDER, 0] > figure.joints[LEFT_SHOULDER, 0] + 10
    assert {JOINTS[number] for number in np.flatnonzero(~figure.visible)} == {"nose", "right_eye", "left_eye"}


@pytest.mark.parametrize(("azimuth", "near", "far"), [(90.0, "right", "left"), (270.0, "left", "right")])
def test_from_the_side_the_body_hides_the_far_side(look: Look, azimuth: float, near: str, far: str):
    figure = draw(look, azimuth)
    seen = {name: bool(figure.visible[number]) for number, name in enumerate(JOINTS)}
    assert seen[f"{near}_shoulder"]
    assert seen[f"{near}_ear"]
    assert not any(seen[f"{far}_{joint}"] for joint in ("shoulder", "hip", "ear", "eye", "elbow"))


def test_a_hand_before_a_hip_hides_that_hip_only(look: Look):
    crossing = Arm(flexion=20.0, abduction=0.0, twist=48.0, elbow=26.0)
    figure = draw(look, 0.0, dataclasses.replace(STANDING, arms={**STANDING.arms, "left": crossing}))
    distance = np.linalg.norm(figure.joints[LEFT_HIP] - figure.joints[JOINTS.index("left_wrist")])
    assert distance < 2
    assert not figure.visible[LEFT_HIP]
    assert figure.visible[RIGHT_HIP]


def test_a_joint_is_hidden_by_depth_and_by_whose_the_nearer_surface_is():
    joints = np.tile(np.array((1.0, 1.0, 0.0)), (18, 1))
    joints[0, 0] = 9  # outside of the image
    nothing = Fragments(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)), np.zeros(0))
    for part, nearness, hip, elbow in (
        ("left_leg", 0.15, True, False),
        ("left_leg", 0.30, False, False),
        ("left_arm", 0.05, False, True),
        ("left_arm", -0.2, True, True),
    ):
        surface = Surface(nothing, np.full((3, 3), nearness), np.zeros((3, 3), int))
        visible = visible_joints(joints, surface, [part], 1.0)
        assert (visible[LEFT_HIP], visible[JOINTS.index("left_elbow")], visible[0]) == (hip, elbow, False)


def test_the_mask_is_where_the_figure_covers_the_backdrop(look: Look):
    figure = draw(look, 30.0)
    black, white = (figure.over(np.full((*SIZE, 3), level, np.float32)).astype(int) for level in (0.0, 255.0))
    uncovered = (white - black)[..., 0] / 255
    sharp = np.abs(uncovered - 0.5) > 0.01
    np.testing.assert_array_equal(figure.mask[sharp], (uncovered < 0.5)[sharp])
    assert 0.1 < figure.mask.mean() < 0.5
    np.testing.assert_array_equal(black[figure.coverage == 0], 0)


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (96, 96), (256, 176)])
def test_any_size_has_the_same_person_at_the_same_place(look: Look, size: tuple[int, int]):
    figure, reference = draw(look, 0.0, size=size), draw(look, 0.0)
    assert figure.mask.shape == size
    rows = np.flatnonzero(figure.mask.any(axis=1))
    assert (rows[-1] - rows[0] + 1) / size[0] == pytest.approx(0.92, abs=0.03)
    heights = (figure.joints[:, 1] + 0.5) / size[0]
    np.testing.assert_allclose(heights, (reference.joints[:, 1] + 0.5) / SIZE[0], atol=1e-5)


def test_a_print_is_seen_from_the_front_only(look: Look):
    plain = Cloth(ground=BLUE)
    top = dataclasses.replace(look.top, cloth=plain, chest="circle", chest_colour=RED, neckline="round")
    bottom = dataclasses.replace(look.bottom, cloth=plain, belt=BLUE)
    colours = dict.fromkeys(("skin", "hair", "shoes", "soles", "socks"), BLUE)
    printed = dataclasses.replace(look, top=top, bottom=bottom, beard=False, **colours)
    reds = []
    for azimuth in (0.0, 180.0):
        trunk = draw(printed, azimuth).colour[30:70]
        reds.append((trunk[..., 0] > trunk[..., 2] + 60).sum())
    assert reds[0] > 30
    assert reds[1] == 0


def test_texture_goes_around_the_body_from_right_over_front_to_left(look: Look):
    """A torso painted red on the person's right half and blue on the left shows that from the front and the back."""
    tiles = draw_tiles(look, np.random.default_rng(0))
    torso = tiles[TILES.index("torso")]
    torso[:, :64], torso[:, 64:] = RED, BLUE
    for azimuth, left_of_image in ((0.0, 0), (180.0, 2)):
        skeleton = pose_skeleton(Proportions(), STANDING)
        figure = draw_figure(skeleton, Proportions(), look, tiles, View(azimuth=azimuth), SIZE)
        row, middle = round(float(figure.joints[[1, 8], 1].mean())), round(float(figure.joints[1, 0]))
        assert figure.colour[row, middle - 5].argmax() == left_of_image
        assert figure.colour[row, middle + 5].argmax() == 2 - left_of_image


def test_normals_of_closed_tubes_point_outwards(look: Look):
    tubes = dress(pose_skeleton(Proportions(), STANDING), Proportions(), look)
    arm = next(tube for tube in tubes if tube.part == "left_arm")
    mesh = join([arm])
    outwards = (arm.vertices - arm.vertices[:, :-1].mean(axis=1, keepdims=True)).reshape(-1, 3)
    sides = np.linalg.norm(outwards, axis=1) > 0.03
    assert (np.einsum("nk,nk->n", mesh.normals, outwards)[sides] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals[sides], axis=1), 1, atol=1e-6)


def test_a_view_from_another_side_only_turns_the_skeleton(look: Look):
    """Parallel projection: joints are the turned skeleton's x and y, to one scale and one shift."""
    skeleton = pose_skeleton(Proportions(), STANDING)
    tiles = draw_tiles(look, np.random.default_rng(0))
    figure = draw_figure(skeleton, Proportions(), look, tiles, View(azimuth=35.0, elevation=7.0), SIZE)
    turned = (skeleton.joints @ (turn(0, 7.0) @ turn(1, 35.0)).T)[:, :2] * (1, -1)
    scale = np.ptp(figure.joints[:, 1]) / np.ptp(turned[:, 1])
    shifts = figure.joints - turned * scale
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[0], shifts.shape), atol=1e-3)
