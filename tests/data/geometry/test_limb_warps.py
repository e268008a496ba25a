"""Limb transforms and masks: against a slow twin on made-up and on all published poses, by hand, and by symmetries."""

from inspect import unwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from skimage.measure import grid_points_in_poly
from skimage.transform import estimate_transform

from posegen.data.formats.posegan_csv import read_pose_gan_csv
from posegen.data.geometry.joints import MIRROR
from posegen.data.geometry.limb_warps import PARTS, LimbWarps, limb_warps
from posegen.data.sources.pairs import read_pairs_csv
from tests.conftest import SHARED_DATA

ANNOTATIONS = SHARED_DATA / "research/annotations"
needs_market = pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the shared Market-1501 annotations are not here")

R_SHOULDER, L_SHOULDER, R_HIP, L_HIP, NECK = 2, 5, 8, 11, 1
FACE = (0, 14, 15, 16, 17)
LIMBS = ((8, 9), (11, 12), (9, 10), (12, 13), (2, 3), (5, 6), (3, 4), (6, 7))
OPPOSITE = {(8, 9): (11, 12), (9, 10): (12, 13), (2, 3): (5, 6), (3, 4): (6, 7)}
OPPOSITE |= {right: left for left, right in OPPOSITE.items()}
LOWER = ((9, 10), (12, 13), (3, 4), (6, 7))
GEOMETRIES = ("code", "paper")


# ---------------------------------------------------------------------------------------------------- the slow twin


class Part(NamedTuple):
    """How a part is found ("direct", "mirrored" or "dropped"), its points in both images and its 3x3 transform."""

    how: str
    target: np.ndarray | None = None
    source: np.ndarray | None = None
    transform: np.ndarray | None = None


def fitted(how, target, source):
    """A part whose transform is singular, or that has none, is dropped; scikit-image says nothing of the first."""
    target, source = np.array(target), np.array(source)
    rank = np.linalg.matrix_rank(target - target.mean(axis=0), tol=1e-6)
    found = estimate_transform("affine", target, source) if rank == 2 else None
    if not found or abs(np.linalg.det(found.params)) < 1e-10:
        return Part("dropped")
    return Part(how, target, source, found.params)


def torso_scale(joints):
    right, left = joints[R_HIP] - joints[R_SHOULDER], joints[L_HIP] - joints[L_SHOULDER]
    return np.sqrt((np.sum(right**2) + np.sum(left**2)) / 2)


def rectangle(start, end, half_width, before, beyond):
    start = start + before * (start - end)
    end = end + beyond * (end - start)
    length = np.linalg.norm(start - end)
    if length == 0:
        return np.array([start + 1, start - 1, end - 1, end + 1])
    normal = np.array([-(start - end)[1], (start - end)[0]]) / length * half_width
    return np.array([start + normal, start - normal, end - normal, end + normal])


def code_rectangle(joints, limb, lower_beyond):
    beyond = lower_beyond if limb in LOWER else 0.1
    return rectangle(joints[limb[0]], joints[limb[1]], 0.2 * torso_scale(joints), 0.1, beyond)


def paper_rectangle(joints, limb):
    diagonals = [np.linalg.norm(joints[R_SHOULDER] - joints[L_HIP]), np.linalg.norm(joints[L_SHOULDER] - joints[R_HIP])]
    return rectangle(joints[limb[0]], joints[limb[1]], np.mean(diagonals) / 6, 0.0, 0.0)


def box(points):
    (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def limb_parts(source, source_visible, target, target_visible, *, corners):
    for limb in LIMBS:
        shown = limb if source_visible[list(limb)].all() else OPPOSITE[limb]
        if not target_visible[list(limb)].all() or not source_visible[list(shown)].all():
            yield Part("dropped")
        else:
            how = "direct" if shown == limb else "mirrored"
            yield fitted(how, corners(target, limb), corners(source, shown))


def twin_parts(source, source_visible, target, target_visible, geometry="code"):
    pair = source, source_visible, target, target_visible
    torso = [R_HIP, L_HIP, L_SHOULDER, R_SHOULDER]
    face = [joint for joint in FACE if source_visible[joint] and target_visible[joint]]
    if geometry == "code":
        head = [*face, L_SHOULDER, R_SHOULDER]
        whole, limbs = (lambda points: points), limb_parts(*pair, corners=lambda *a: code_rectangle(*a, 0.3))
    else:
        head = [*face, NECK] if source_visible[NECK] and target_visible[NECK] else face
        whole, limbs = box, limb_parts(*pair, corners=paper_rectangle)
    return [
        fitted("direct", whole(target[torso]), whole(source[torso])),
        fitted("direct", whole(target[head]), whole(source[head])) if face else Part("dropped"),
        *limbs,
    ]


def polygon_mask(corners, size):
    return grid_points_in_poly(size, corners[:, ::-1])


def head_square(joints, visible, size):
    mask = np.zeros(size, dtype=bool)
    face = [joints[joint] for joint in FACE if visible[joint]]
    if face:
        (x, y), half = np.mean(face, axis=0).astype(int), int(0.4 * torso_scale(joints))
        mask[max(0, y - half) : max(0, y + half), max(0, x - half) : max(0, x + half)] = True
    return mask


def twin_masks(parts, target, target_visible, size, geometry="code"):
    """Masks with the polygons (or None) that bound them."""
    if geometry == "paper":
        polygons = [None if part.source is None else part.source for part in parts]
        return [np.zeros(size, bool) if p is None else polygon_mask(p, size) for p in polygons], polygons
    polygons = [code_rectangle(target, limb, 0.5) if target_visible[list(limb)].all() else None for limb in LIMBS]
    limbs = [np.zeros(size, bool) if p is None else polygon_mask(p, size) for p in polygons]
    return [np.ones(size, bool), head_square(target, target_visible, size), *limbs], [None, None, *polygons]


# ------------------------------------------------------------------------------------------- the comparison with it


class Pairs(NamedTuple):
    source: torch.Tensor
    source_visible: torch.Tensor
    target: torch.Tensor
    target_visible: torch.Tensor

    def taken(self, which):
        return Pairs(*(values[which] for values in self))


def displacement(points, fast, slow):
    return np.abs(points @ (fast[:, :2] - slow[:2, :2]).T + fast[:, 2] - slow[:2, 2]).max()


def edge_distance(point, polygon):
    """Distance of a point to the nearest edge of a polygon."""
    starts, spans = polygon, np.roll(polygon, -1, axis=0) - polygon
    along = ((point - starts) * spans).sum(axis=1) / np.maximum((spans**2).sum(axis=1), 1e-300)
    return np.linalg.norm(point - starts - np.clip(along, 0, 1)[:, None] * spans, axis=1).min()


class Differences(NamedTuple):
    """The largest displacements, in pixels, of a part's own points and of the image's corners; pixels of masks."""

    own: float
    corners: float
    pixels: int
    from_edges: float


def compared(pairs: Pairs, size, geometry="code", dtype=torch.float64, chunk=200) -> Differences:
    """The batched parts against the twin's, one pair at a time; what is present and mirrored must be the same."""
    height, width = size
    image = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1.0]])
    own, corners, edges, pixels = 0.0, 0.0, 0.0, 0
    for begin in range(0, len(pairs.source), chunk):
        some = pairs.taken(slice(begin, begin + chunk))
        warps = limb_warps(some[0].to(dtype), some[1], some[2].to(dtype), some[3], size, geometry=geometry)
        for row in range(len(some.source)):
            given = [
                values[row].numpy().astype(np.float64 if not number % 2 else bool) for number, values in enumerate(some)
            ]
            parts = twin_parts(*given, geometry)
            assert [name for name, here in zip(PARTS, warps.present[row], strict=True) if here] == [
                name for name, part in zip(PARTS, parts, strict=True) if part.how != "dropped"
            ]
            assert warps.mirrored[row].tolist() == [part.how == "mirrored" for part in parts]
            masks, polygons = twin_masks(parts, given[2], given[3], size, geometry)
            for number, part in enumerate(parts):
                fast = warps.transforms[row, number].double().numpy()
                if part.transform is not None:
                    own = max(own, displacement(part.target, fast, part.transform))
                    corners = max(corners, displacement(image, fast, part.transform))
                for y, x in np.argwhere(warps.masks[row, number].numpy() != masks[number]):
                    assert polygons[number] is not None, f"{PARTS[number]} has no edge to differ at"
                    pixels, edges = pixels + 1, max(edges, edge_distance(np.array([x, y]), polygons[number]))
    return Differences(own, corners, pixels, edges)


def assert_the_same(found: Differences, pairs: int, *, tolerance=1e-5):
    """Masks but for pixels whose centres lie on an edge: those scikit-image takes or leaves by rounding."""
    assert found.own < tolerance
    assert found.corners < tolerance
    assert found.pixels <= 6 * pairs
    assert found.from_edges < 1e-8


# A person who stands upright, in an image of 128x64, with joints in OpenPose's order.
STANDING = np.array(
    [
        [32, 16], [32, 28], [23, 30], [19, 46], [17, 60], [41, 30], [45, 46], [47, 60], [26, 64], [25, 86], [24, 108],
        [38, 64], [39, 86], [40, 108], [29, 13], [35, 13], [26, 15], [38, 15],
    ]
)  # fmt: skip


def made_up(count, *, seed=0, whole=True, scale=1.0, hidden=0.25):
    """People who stand anyhow near `STANDING`; shoulders and hips are never hidden."""
    random = np.random.default_rng(seed)
    joints = (STANDING + random.normal(0, 5, (2, count, 18, 2))) * scale
    visible = random.random((2, count, 18)) >= hidden
    visible[..., [R_SHOULDER, L_SHOULDER, R_HIP, L_HIP]] = True
    joints = torch.tensor(np.round(joints) if whole else joints)
    return Pairs(joints[0], torch.tensor(visible[0]), joints[1], torch.tensor(visible[1]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("whole", "scale", "size"), [(True, 1.0, (128, 64)), (False, 1.9, (256, 256))])
def test_equals_the_plain_twin(geometry, whole, scale, size):
    pairs = made_up(30, whole=whole, scale=scale)
    assert_the_same(compared(pairs, size, geometry), 30)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_float32_is_as_near_to_the_twin_as_its_numbers_allow(geometry):
    pairs = made_up(30, seed=1)
    found = compared(pairs, (128, 64), geometry, dtype=torch.float32)
    assert_the_same(found, 30, tolerance=1e-3)


@pytest.fixture(scope="module")
def market() -> Pairs:
    poses = read_pose_gan_csv(ANNOTATIONS / "market-annotation-test.csv").poses
    named = read_pairs_csv(ANNOTATIONS / "market-pairs-test.csv")

    def column(end, name):
        return torch.tensor(np.stack([getattr(poses[pair[end]], name) for pair in named]))

    return Pairs(column(0, "joints"), column(0, "visible"), column(1, "joints"), column(1, "visible"))


@needs_market
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_plain_twin_on_published_pairs(market, geometry):
    """Every hundredth pair, and those whose torso is singular or nearly so."""
    some = market.taken(sorted({*range(0, 12_000, 100), 6510, 4890, 3546}))
    assert_the_same(compared(some, (128, 64), geometry), len(some.source))


@needs_market
@pytest.mark.long
@pytest.mark.parametrize(("geometry", "dtype", "tolerance"), [
    ("code", torch.float64, 1e-5), ("code", torch.float32, 1e-3), ("paper", torch.float64, 1e-5),
])  # fmt: skip
def test_equals_the_plain_twin_on_all_published_pairs(market, geometry, dtype, tolerance):
    found = compared(market, (128, 64), geometry, dtype)
    print(geometry, dtype, found)
    assert_the_same(found, 12_000, tolerance=tolerance)


def shares(warps: LimbWarps) -> dict[str, tuple[float, float, float]]:
    """Of each kind of part, left and right together: how many are direct, mirrored, dropped."""
    kinds = {}
    for number, name in enumerate(PARTS):
        kinds.setdefault(name.removeprefix("right_").removeprefix("left_"), []).append(number)
    present, mirrored = warps.present.double(), warps.mirrored.double()
    means = {kind: (present[:, of].mean().item(), mirrored[:, of].mean().item()) for kind, of in kinds.items()}
    return {kind: (here - other, other, 1 - here) for kind, (here, other) in means.items()}


@needs_market
def test_published_pairs_have_the_published_shares_of_parts(market):
    """As counted with the released code's rules: one torso is singular, and the head is dropped in 3,441 pairs."""
    given = shares(limb_warps(*market, (1, 1)))
    expected = {
        "torso": (11_999, 0, 1), "head": (8_559, 0, 3_441),
        "upper_leg": (21_529, 554, 1_917), "lower_leg": (15_866, 1_580, 6_554),
        "upper_arm": (15_570, 3_265, 5_165), "forearm": (8_956, 3_315, 11_729),
    }  # fmt: skip
    for kind, counts in expected.items():
        assert given[kind] == pytest.approx([count / sum(counts) for count in counts], abs=1e-9), kind


# ----------------------------------------------------------------------------------------------------------- by hand


def pose(places=STANDING, hidden=()):
    """One person as a batch: float64 joints, NaN where hidden, and visible."""
    joints, visible = torch.tensor(np.array(places), dtype=torch.float64)[None], torch.ones(1, 18, dtype=torch.bool)
    joints[:, list(hidden)], visible[:, list(hidden)] = torch.nan, False
    return joints, visible


def moved(places, joints):
    """The standing person with other places of some joints."""
    changed = np.array(places, dtype=np.float64)
    for joint, place in joints.items():
        changed[joint] = place
    return changed


UPRIGHT = moved(STANDING, {2: (20, 20), 8: (20, 40), 5: (44, 20), 11: (44, 40), 9: (20, 60), 10: (20, 80)})
ALL = range(18)


def test_masks_of_limbs_by_hand():
    """The torso is 20 high, so limbs are 8 wide; a leg's line of 20 begins 2 above its joint."""
    masks = limb_warps(*pose(UPRIGHT), *pose(UPRIGHT), (128, 64)).masks[0]
    upper, lower = masks[PARTS.index("right_upper_leg")], masks[PARTS.index("right_lower_leg")]
    expected = torch.zeros(2, 128, 64, dtype=torch.bool)
    expected[0, 38:63, 16:25] = True  # from 40 - 2 to 60 + 0.1 * 22 = 62.2
    expected[1, 58:92, 16:25] = True  # from 60 - 2 to 80 + 0.5 * 22 = 91
    assert torch.equal(torch.stack([upper, lower]), expected)


def test_mask_of_the_head_by_hand():
    """Nose and one eye: their mean (21, 9.5) is truncated to (21, 9), and 0.4 of 20 pixels are 8 to each side."""
    places = moved(UPRIGHT, {0: (20, 10), 14: (22, 9)})
    masks = limb_warps(*pose(places), *pose(places, hidden=(15, 16, 17)), (128, 64)).masks[0]
    expected = torch.zeros(128, 64, dtype=torch.bool)
    expected[1:17, 13:29] = True
    assert torch.equal(masks[1], expected)
    assert masks[0].all()


def test_mask_of_a_head_is_clipped_at_the_border():
    """The mean (1.5, -2.5) is truncated towards zero: columns -7 to 8 and rows -10 to 5."""
    places = moved(UPRIGHT, {0: (2, -3), 14: (1, -2)})
    mask = limb_warps(*pose(places), *pose(places, hidden=(15, 16, 17)), (128, 64)).masks[0, 1]
    assert mask.sum() == 9 * 6
    assert mask[:6, :9].all()
    outside = moved(UPRIGHT, dict.fromkeys(FACE, (-40, 30)))
    assert not limb_warps(*pose(outside), *pose(outside), (128, 64)).masks[0, 1].any()


def test_transform_of_a_limb_by_hand():
    """The target's lower leg is 20 long and the source's 10; both begin a tenth of that above the knee at 60."""
    source = moved(UPRIGHT, {9: (30, 60), 10: (30, 70)})
    transform = limb_warps(*pose(source), *pose(UPRIGHT), (128, 64)).transforms[0, PARTS.index("right_lower_leg")]
    expected = torch.tensor([[1, 0, 10], [0, 0.5, 59 - 0.5 * 58]], dtype=torch.float64)
    torch.testing.assert_close(transform, expected, atol=1e-10, rtol=0)


def test_transform_of_a_turned_limb_by_hand():
    """A leg that hangs in the target points right in the source: right goes up there, and down goes right."""
    source = moved(UPRIGHT, {9: (40, 40)})  # from the hip (20, 40)
    transform = limb_warps(*pose(source), *pose(UPRIGHT), (128, 64)).transforms[0, PARTS.index("right_upper_leg")]
    expected = torch.tensor([[0, 1, -20], [-1, 0, 60]], dtype=torch.float64)
    torch.testing.assert_close(transform, expected, atol=1e-10, rtol=0)


def test_a_hidden_limb_is_replaced_by_the_opposite_one():
    """The left leg of the standing person is the right one, 60 pixels further right: what stands in is a shift."""
    places = moved(UPRIGHT, {8: (20, 40), 9: (18, 60), 10: (20, 80), 11: (80, 40), 12: (78, 60), 13: (80, 80)})
    warps = limb_warps(*pose(places, hidden=(9, 10)), *pose(places), (128, 128))
    legs = [PARTS.index("right_upper_leg"), PARTS.index("right_lower_leg")]
    assert warps.mirrored[0].nonzero().flatten().tolist() == legs
    assert warps.present.all()
    shift = torch.tensor([[1, 0, 60], [0, 1, 0]], dtype=torch.float64).expand(2, 2, 3)
    torch.testing.assert_close(warps.transforms[0, legs], shift, atol=1e-9, rtol=0)


def test_limbs_hidden_on_both_sides_or_in_the_target_are_dropped():
    number = PARTS.index("right_forearm")
    both = limb_warps(*pose(hidden=(4, 7)), *pose(), (128, 64))
    assert not both.present[0, number]
    assert both.masks[0, number].any()  # it is in the target, and the average over parts counts it
    target = limb_warps(*pose(), *pose(hidden=(4,)), (128, 64))
    assert not target.present[0, number]
    assert not target.masks[0, number].any()
    assert target.present[0, PARTS.index("left_forearm")]
    for warps in (both, target):
        assert not warps.mirrored[0, number]
        assert torch.equal(warps.transforms[0, number], torch.eye(2, 3, dtype=torch.float64))


def test_a_head_needs_a_joint_of_the_face_in_both_poses():
    warps = limb_warps(*pose(hidden=(0, 14, 16)), *pose(hidden=(15, 17)), (128, 64))
    assert not warps.present[0, 1]
    assert warps.masks[0, 1].any()
    assert limb_warps(*pose(hidden=(14, 16)), *pose(hidden=(15, 17)), (128, 64)).present[0, 1]  # the nose


def test_a_limb_without_length_is_dropped_and_its_mask_is_a_diagonal():
    places, number = moved(STANDING, {3: STANDING[2]}), PARTS.index("right_upper_arm")
    x, y = STANDING[2]
    target = limb_warps(*pose(), *pose(places), (128, 64))
    assert target.masks[0, number].nonzero().tolist() == [[y + step, x + step] for step in (-1, 0, 1)]
    for warps in (target, limb_warps(*pose(places), *pose(), (128, 64))):
        assert not warps.present[0, number]
        assert warps.present.sum() == 9
        assert warps.transforms.isfinite().all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("end", ["source", "target"])
def test_a_torso_in_a_line_is_dropped(geometry, end):
    line = moved(STANDING, {2: (30, 30), 5: (30, 32), 8: (30, 64), 11: (30, 66)})
    poses = (pose(line), pose()) if end == "source" else (pose(), pose(line))
    warps = limb_warps(*poses[0], *poses[1], (128, 64), geometry=geometry)
    assert not warps.present[0, 0]
    assert warps.present[0, 2:].all()
    assert warps.transforms.isfinite().all()


def test_a_box_of_the_paper_encloses_the_joints_that_both_poses_show():
    warps = limb_warps(*pose(), *pose(hidden=(15, 17)), (128, 64), geometry="paper")
    torso, head = (warps.masks[0, number].nonzero() for number in (0, 1))
    assert torch.stack([torso.amin(dim=0), torso.amax(dim=0)]).tolist() == [[30, 23], [64, 41]]
    assert torch.stack([head.amin(dim=0), head.amax(dim=0)]).tolist() == [[13, 26], [28, 32]]
    assert [len(torso), len(head)] == [35 * 19, 16 * 7]


def test_a_limb_of_the_paper_is_as_wide_as_a_third_of_the_torsos_diagonal():
    """Diagonals of 30 (a torso of 18 by 24), and legs from joint to joint: 10 pixels to both edges."""
    places = moved(STANDING, {2: (20, 20), 5: (38, 20), 8: (20, 44), 11: (38, 44), 9: (20, 60)})
    mask = limb_warps(*pose(places), *pose(places), (128, 64), geometry="paper").masks[0, 2]
    expected = torch.zeros(128, 64, dtype=torch.bool)
    expected[44:61, 15:26] = True
    assert torch.equal(mask, expected)


# -------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_same_pose_twice_gives_the_identity(geometry):
    joints, visible = made_up(20, seed=2)[:2]
    warps = limb_warps(joints, visible, joints, visible, (128, 64), geometry=geometry)
    assert not warps.mirrored.any()
    assert 0.4 < warps.present.double().mean() < 1
    torch.testing.assert_close(
        warps.transforms, torch.eye(2, 3, dtype=torch.float64).expand(20, 10, 2, 3), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nothing_is_read_of_hidden_joints(geometry):
    pairs = made_up(20, seed=3)
    expected = limb_warps(*pairs, (128, 64), geometry=geometry)
    for value in (torch.nan, torch.inf, -1e30):
        source = pairs.source.where(pairs.source_visible[..., None], value)
        target = pairs.target.where(pairs.target_visible[..., None], value)
        given = source, pairs.source_visible, target, pairs.target_visible
        for found, wanted in zip(limb_warps(*given, (128, 64), geometry=geometry), expected, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_similar_source_gives_every_part_the_same_transform(geometry):
    """A person shown larger and elsewhere; with the code's geometry, in which no box keeps its axes, also turned."""
    angle = 0.4 if geometry == "code" else 0.0
    turn = 1.5 * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target, visible = made_up(20, seed=4)[:2]
    source = target @ turn.T + torch.tensor([7.0, -3.0])
    warps = limb_warps(source, visible, target, visible, (128, 64), geometry=geometry)
    expected = torch.cat([turn, torch.tensor([[7.0], [-3.0]])], dim=1)
    torch.testing.assert_close(
        warps.transforms[warps.present], expected.expand(int(warps.present.sum()), 2, 3), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_moved_target_moves_what_is_sampled_and_the_masks(geometry):
    pairs, (x, y) = made_up(20, seed=5), (5, -9)
    still = limb_warps(*pairs, (128, 64), geometry=geometry)
    shifted = pairs._replace(target=pairs.target + torch.tensor([x, y]))
    warps = limb_warps(*shifted, (128, 64), geometry=geometry)
    expected = still.transforms.clone()
    expected[..., 2] -= expected[..., :2] @ torch.tensor([x, y], dtype=torch.float64)
    expected = torch.where(still.present[..., None, None], expected, still.transforms)
    torch.testing.assert_close(warps.transforms, expected, atol=1e-8, rtol=1e-9)
    assert torch.equal(warps.present, still.present)
    if geometry == "paper":  # the masks are the source's
        assert torch.equal(warps.masks, still.masks)
    else:
        assert torch.equal(warps.masks[..., :y, x:], still.masks[..., -y:, :-x])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_mirrored_pair_has_the_mirrored_parts(geometry):
    """Right and left exchanged in both poses. Only the head's square, of whole pixels, is not exactly mirrored."""
    pairs, width = made_up(20, seed=6), 64
    flip = torch.tensor([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    joints = [values[:, list(MIRROR)] * torch.tensor([-1, 1]) + torch.tensor([width - 1, 0]) for values in pairs[::2]]
    visible = [values[:, list(MIRROR)] for values in pairs[1::2]]
    still = limb_warps(*pairs, (128, width), geometry=geometry)
    warps = limb_warps(joints[0], visible[0], joints[1], visible[1], (128, width), geometry=geometry)
    others = [0, 1, 3, 2, 5, 4, 7, 6, 9, 8]
    assert torch.equal(warps.present, still.present[:, others])
    assert torch.equal(warps.mirrored, still.mirrored[:, others])
    expected = flip[:2, :2] @ still.transforms[:, others] @ flip
    expected[..., 0, 2] += width - 1
    torch.testing.assert_close(warps.transforms[warps.present], expected[warps.present], atol=1e-7, rtol=1e-9)
    assert torch.equal(warps.masks[:, 2:], still.masks[:, others][:, 2:].flip(-1))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_batch_is_its_pairs_one_by_one(geometry):
    pairs = made_up(12, seed=7)
    together = limb_warps(*pairs, (128, 64), geometry=geometry)
    for row in range(12):
        alone = limb_warps(*pairs.taken(slice(row, row + 1)), (128, 64), geometry=geometry)
        for found, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(found[0], expected[row], atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_pose_of_nothing_but_a_torso(geometry):
    bare = pose(hidden=set(ALL) - {R_SHOULDER, L_SHOULDER, R_HIP, L_HIP})
    for given in ((*bare, *pose()), (*pose(), *bare), (*bare, *bare)):
        warps = limb_warps(*given, (128, 64), geometry=geometry)
        assert warps.present.tolist() == [[True] + [False] * 9]
        assert warps.transforms.isfinite().all()
    assert warps.masks.any(dim=(2, 3)).tolist() == [[True] + [False] * 9]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_pose_of_nothing_is_dropped_whole(geometry):
    warps = limb_warps(*pose(hidden=ALL), *pose(hidden=ALL), (128, 64), geometry=geometry)
    assert not warps.present.any()
    assert torch.equal(warps.transforms, torch.eye(2, 3, dtype=torch.float64).expand(1, 10, 2, 3))
    assert warps.masks.any(dim=(2, 3)).tolist() == [[geometry == "code"] + [False] * 9]


def test_with_a_hidden_hip_the_torso_has_three_points_and_the_other_side_the_scale():
    warps = limb_warps(*pose(UPRIGHT, hidden=(L_HIP,)), *pose(STANDING), (128, 64))
    seen = [R_SHOULDER, L_SHOULDER, R_HIP]
    places = torch.tensor(np.concatenate([STANDING[seen], np.ones((3, 1))], axis=1))
    torch.testing.assert_close(places @ warps.transforms[0, 0].T, torch.tensor(UPRIGHT[seen]), atol=1e-9, rtol=0)
    assert limb_warps(*pose(UPRIGHT), *pose(UPRIGHT, hidden=(L_HIP,)), (128, 64)).masks[0, 2].sum() == 25 * 9
    without = limb_warps(*pose(UPRIGHT, hidden=(L_HIP, R_SHOULDER)), *pose(), (128, 64))
    assert not without.present[0, 0]
    assert not without.present[0, 2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_types_and_shapes_and_that_no_value_is_waited_for(dtype, geometry):
    """Tensors of the meta device have no values, so whatever looked at one, or made a tensor elsewhere, would raise."""
    joints, visible = (
        torch.empty(3, 18, 2, dtype=dtype, device="meta"),
        torch.empty(3, 18, dtype=torch.bool, device="meta"),
    )
    warps = limb_warps(joints, visible, joints, visible, (32, 16), geometry=geometry)
    assert [tuple(values.shape) for values in warps] == [(3, 10, 2, 3), (3, 10, 32, 16), (3, 10), (3, 10)]
    assert [values.dtype for values in warps] == [dtype, torch.bool, torch.bool, torch.bool]


def test_an_unknown_geometry_is_an_error():
    with pytest.raises(ValueError, match="geometry is 'codes'; it must be 'code' or 'paper'"):
        unwrap(limb_warps)(*pose(), *pose(), (128, 64), geometry="codes")
