"""Affine transforms and masks of the ten parts of a body between two poses, from the joints alone.

Siarohin, Sangineto, Lathuilière, Sebe: Deformable GANs for Pose-based Human Image Generation, CVPR 2018, section 3.2.
Geometry "code" is what the released code does (pose-gan, `pose_transform.py`: `affine_transforms`, `pose_masks`,
`estimate_polygon`), from which the published results come. Geometry "paper" is the paper's text as we remember it, not
checked against it; parts that we do not know are marked as our choice.

Points are x, y in pixels, and the centres of pixels have whole coordinates. Computations are batched, in float64, on
the device of the joints, without synchronising with it. A part's transform is the affine map from its points in the
target to its points in the source. In both geometries:
- Where the source hides a limb, the opposite one stands in, its corners in the same order (no reflection).
- A part is dropped where its points are hidden in the target or, for a limb on both sides, in the source, and where its
  transform is undetermined or singular. Of the 12,000 published pairs of Market-1501 that is one torso, which the code
  keeps by rounding: it drops only what LAPACK finds singular to the last bit.
- The code needs both shoulders and both hips. Our choice where some are hidden: the scale of the limbs comes from the
  known points of the torso, and without them there is no limb; the torso's transform comes from the points that both
  poses show, at least three.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from posegen.batch import Joints, Visible

PARTS = (
    "torso", "head",
    "right_upper_leg", "left_upper_leg", "right_lower_leg", "left_lower_leg",
    "right_upper_arm", "left_upper_arm", "right_forearm", "left_forearm",
)  # fmt: skip

_POINTS = 7  # of a head, the part with most of them: five of the face and both shoulders

# With points scaled to a mean square of 1, a determinant below this is 0 but for rounding: the points lie in a line, to
# some five millionths of its length, or the transform flattens the part. Whole pixels never come near it otherwise.
_SINGULAR = 1e-10

_ON_THE_EDGE = 1e-9  # pixels by which the centre of a pixel may lie outside a polygon and still belong to it


class LimbWarps(NamedTuple):
    """Warps of the parts from the source image to the target image, in the order of `PARTS`.

    transforms: (x, y, 1) of the target image to (x, y) of the source image, as a sampler needs them; the identity
        where a part is dropped.
    masks: with geometry "code" in the target image, empty where the target hides the part, and kept where the part is
        dropped for its source, because the average over parts counts it. With geometry "paper" in the source image,
        empty where the part is dropped.
    present: False where a part is dropped; its features are zeros.
    mirrored: where the opposite limb of the source stands in.
    """

    transforms: Float[Tensor, "batch 10 2 3"]
    masks: Bool[Tensor, "batch 10 height width"]
    present: Bool[Tensor, "batch 10"]
    mirrored: Bool[Tensor, "batch 10"]


def limb_warps(
    source_joints: Joints,
    source_visible: Visible,
    target_joints: Joints,
    target_visible: Visible,
    size: tuple[int, int],
    *,
    geometry: Literal["code", "paper"] = "code",
) -> LimbWarps:
    """Compute transforms, in the dtype of the joints, and masks for a batch of pairs; `size` is (height, width).

    Coordinates of hidden joints are not read. Raises ValueError for a geometry that is neither "code" nor "paper".
    """
    if geometry not in ("code", "paper"):
        raise ValueError(f"geometry is '{geometry}'; it must be 'code' or 'paper'")
    source, target = (
        _Pose(torch.where(visible[..., None], joints.double(), 0.0), visible)
        for joints, visible in ((source_joints, source_visible), (target_joints, target_visible))
    )
    code = geometry == "code"
    points, mirrored = (_code_points if code else _paper_points)(source, target)
    transforms, present = _affine(points)
    spans = _code_spans(target, size[0]) if code else _polygon_spans(points.source[..., :4, :], present, size[0])
    masks = _filled(*spans, width=size[1])
    return LimbWarps(transforms.to(source_joints.dtype), masks, present, mirrored & present)


class _Pose(NamedTuple):
    """Joints (batch, 18, 2) in float64, 0 where they are hidden, and which are visible (batch, 18)."""

    joints: Tensor
    visible: Tensor


class _Points(NamedTuple):
    """Points (batch, parts, n, 2) of both poses that belong together, and which count: known (batch, parts, n, 1).

    None counts where a part is hidden.
    """

    source: Tensor
    target: Tensor
    known: Tensor


class _Corners(NamedTuple):
    """Corners (batch, 8, 4, 2) of the limbs of a pose in drawing order, and whether each limb is known (batch, 8)."""

    places: Tensor
    known: Tensor


# Of values (batch, 18, ...), right before left. Slices, because an index would have to be copied to the device.
def _shoulders(values: Tensor) -> Tensor:
    return values[:, 2:6:3]


def _hips(values: Tensor) -> Tensor:
    return values[:, 8:12:3]


def _torso(values: Tensor) -> Tensor:
    return values[:, 2:12:3]


def _face(values: Tensor) -> Tensor:
    return torch.cat([values[:, :1], values[:, 14:]], dim=1)


def _of_limbs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of values (batch, 18, ...): of the upper and of the lower ends of the limbs, (batch, 8, ...) as in `PARTS`."""
    chains = values[:, 2:14].unflatten(1, (2, 2, 3)).flip(1)  # (legs, arms), (right, left), three joints outwards
    upper, lower = chains[:, :, :, :2], chains[:, :, :, 1:]
    return upper.transpose(2, 3).flatten(1, 3), lower.transpose(2, 3).flatten(1, 3)


def _opposite(values: Tensor) -> Tensor:
    """Values (batch, 8, ...) of the limbs with right and left exchanged."""
    return values.unflatten(1, (4, 2)).flip(2).flatten(1, 2)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean over dimension 1 of values (batch, n, ...) that are known (batch, n, ...); 0 where none is."""
    return (values * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def _torso_lines(pose: _Pose, *, crossed: bool) -> tuple[Tensor, Tensor]:
    """(batch, 2) squared distances from the shoulders to the hips of the same or the other side; which are known."""
    hips, hips_known = _hips(pose.joints), _hips(pose.visible)
    if crossed:
        hips, hips_known = hips.flip(1), hips_known.flip(1)
    return (hips - _shoulders(pose.joints)).square().sum(dim=-1), hips_known & _shoulders(pose.visible)


def _torso_height(pose: _Pose) -> tuple[Tensor, Tensor]:
    """(batch,) root mean square of the distances from shoulder to hip on both sides; whether one of them is known."""
    squares, known = _torso_lines(pose, crossed=False)
    return _mean(squares, known).sqrt(), known.any(dim=1)


def _rectangles(upper: Tensor, lower: Tensor, half_width: Tensor) -> Tensor:
    """Corners (batch, 8, 4, 2) of rectangles about the lines from upper to lower ends; half widths (batch,).

    A line of no length has no direction: as in `estimate_polygon`, two corners are one pixel right and below of it, two
    one pixel left and above.
    """
    span = upper - lower
    length = span.square().sum(dim=-1, keepdim=True).sqrt()
    normal = torch.stack([-span[..., 1], span[..., 0]], dim=-1) / torch.where(length > 0, length, 1.0)
    across = torch.where(length > 0, half_width[:, None, None] * normal, 1.0)
    return torch.stack([upper + across, upper - across, lower - across, lower + across], dim=-2)


def _code_limbs(pose: _Pose) -> _Corners:
    """`estimate_polygon`: rectangles 0.4 of the torso's height wide that extend beyond their joints.

    With joints p (upper) and q (lower): from p' = p + 0.1 (p - q) to q + b (q - p'), b = 0.1 for upper limbs and 0.5
    for lower ones, to cover hands and feet. For transforms the code takes 0.3 in the place of 0.5, which makes no
    difference: rectangles that extend beyond their joints in proportion have the same transform.
    """
    upper, lower = _of_limbs(pose.joints)
    upper_known, lower_known = _of_limbs(pose.visible)
    height, known = _torso_height(pose)
    extension = torch.linspace(0.1, 0.5, 2, dtype=upper.dtype, device=upper.device)
    extension = extension.repeat_interleave(2, output_size=4).repeat(2)[:, None]
    upper = upper + 0.1 * (upper - lower)
    lower = lower + extension * (lower - upper)
    return _Corners(_rectangles(upper, lower, 0.2 * height), upper_known & lower_known & known[:, None])


def _paper_limbs(pose: _Pose) -> _Corners:
    """Rectangles from joint to joint, as wide as a third of the torso's mean diagonal (from memory)."""
    upper_known, lower_known = _of_limbs(pose.visible)
    squares, known = _torso_lines(pose, crossed=True)
    corners = _rectangles(*_of_limbs(pose.joints), _mean(squares.sqrt(), known) / 6)
    return _Corners(corners, upper_known & lower_known & known.any(dim=1, keepdim=True))


def _matched(source: _Corners, target: _Corners) -> tuple[_Points, Tensor]:
    """Matching corners, with the source's opposite limb for a hidden one; and a mask of these limbs (batch, 8)."""
    mirrored = ~source.known & _opposite(source.known)
    places = torch.where(mirrored[..., None, None], _opposite(source.places), source.places)
    known = (source.known | mirrored) & target.known
    return _Points(places, target.places, known[..., None, None].expand(-1, -1, 4, 1)), mirrored


def _joined(*groups: _Points) -> _Points:
    """Concatenate the parts of all groups, padded to seven points each."""
    columns = zip(*groups, strict=True)
    padded = ([pad(part, (0, 0, 0, _POINTS - part.shape[2])) for part in column] for column in columns)
    return _Points._make(torch.cat(column, dim=1) for column in padded)


def _one_part(source: Tensor, target: Tensor, known: Tensor) -> _Points:
    """A single part from points (batch, n, 2) and known (batch, n)."""
    return _Points(source[:, None], target[:, None], known[:, None, :, None])


def _code_points(source: _Pose, target: _Pose) -> tuple[_Points, Tensor]:
    """`affine_transforms`: shoulders and hips; shoulders and the face's joints that both poses show; rectangles.

    Without a joint of the face the two shoulders determine nothing, so the head is dropped.
    """
    both = source.visible & target.visible
    torso = _one_part(_torso(source.joints), _torso(target.joints), _torso(both))
    chosen = (source.joints, target.joints, both)
    head = _one_part(*(torch.cat([_shoulders(values), _face(values)], dim=1) for values in chosen))
    limbs, mirrored = _matched(_code_limbs(source), _code_limbs(target))
    return _joined(torso, head, limbs), pad(mirrored, (2, 0))


def _paper_points(source: _Pose, target: _Pose) -> tuple[_Points, Tensor]:
    """Corners of boxes about torso and head, and of rectangles (from memory).

    Our choice: the boxes enclose the joints that both poses show, so that their corners mean the same; those of the
    head are the face's and the neck, because those of a face alone are often in one place or in a line. A box without
    an area determines nothing, so its part is dropped.
    """
    both = source.visible & target.visible
    torso = _boxes(_torso(source.joints), _torso(target.joints), _torso(both))
    chosen = (source.joints, target.joints, both)
    head = _boxes(*(torch.cat([values[:, :2], values[:, 14:]], dim=1) for values in chosen))
    limbs, mirrored = _matched(_paper_limbs(source), _paper_limbs(target))
    return _joined(torso, head, limbs), pad(mirrored, (2, 0))


def _boxes(source: Tensor, target: Tensor, known: Tensor) -> _Points:
    """Corners of the axis-aligned boxes around the known ones of some points (batch, n, 2)."""
    return _one_part(_box(source, known), _box(target, known), known.any(dim=1, keepdim=True).expand(-1, 4))


def _box(points: Tensor, known: Tensor) -> Tensor:
    low = torch.where(known[..., None], points, torch.inf).amin(dim=1)
    high = torch.where(known[..., None], points, -torch.inf).amax(dim=1)
    (left, top), (right, bottom) = low.unbind(dim=-1), high.unbind(dim=-1)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=-1).unflatten(-1, (4, 2))
    return torch.where(known.any(dim=1)[:, None, None], corners, 0.0)


def _affine(points: _Points) -> tuple[Tensor, Tensor]:
    """Transforms (batch, 10, 2, 3) target to source, and a mask of existing ones: the identity elsewhere.

    Total least squares, as in scikit-image's `estimate_transform("affine", target, source)`: with both sets of points
    centred and scaled to a mean square of 1 per coordinate, as columns t and s, the singular vector of the smallest
    singular value of the system A t - s = 0. With C = mean(t t'), K = mean(s t') and l the smallest eigenvalue
    of the system's squared matrix, A = K (C - l)^-1. Where an affine map fits exactly, l is 0.
    """
    known = points.known.double()
    count = known.sum(dim=-2, keepdim=True).clamp(min=1)
    source, source_centre, source_scale = _normalised(points.source, known, count)
    target, target_centre, target_scale = _normalised(points.target, known, count)
    spread, shared = target.mT @ target / count, source.mT @ target / count
    least = _least_eigenvalue(spread, shared)
    freed = _determinant(spread) - 2 * least + least.square()  # the determinant of C - l, as C's trace is 2
    inverse = (2 - least)[..., None, None] * torch.eye(2, dtype=least.dtype, device=least.device) - spread
    linear = shared @ inverse / torch.where(freed > _SINGULAR, freed, 1.0)[..., None, None]
    present = (freed > _SINGULAR) & (_determinant(linear).abs() > _SINGULAR)
    linear = linear * (source_scale / target_scale)
    shift = source_centre.mT - linear @ target_centre.mT
    identity = torch.eye(2, 3, dtype=linear.dtype, device=linear.device)
    return torch.where(present[..., None, None], torch.cat([linear, shift], dim=-1), identity), present


def _normalised(places: Tensor, known: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points (batch, 10, 7, 2) centred and scaled, 0 where not known; their centres and scales, broadcastable."""
    centre = (places * known).sum(dim=-2, keepdim=True) / count
    centred = (places - centre) * known
    scale = (centred.square().sum(dim=(-2, -1), keepdim=True) / (2 * count)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return centred / scale, centre, scale


def _determinant(matrix: Tensor) -> Tensor:
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]


def _least_eigenvalue(spread: Tensor, shared: Tensor) -> Tensor:
    """Smallest root l of (2 - l) det(C - l) = trace(K adj(C - l) K'), C = `spread` and K = `shared`.

    This is the characteristic equation of [[C, -K'], [-K, 2]] once the part that does not meet the right-hand side is
    left out: l^3 - 4 l^2 + b l - c = 0 with three real roots, so the cosine form gives the smallest one. The roots
    have the mean 4/3 and are never all equal, so nothing is divided by 0.
    """
    determinant, fitted = _determinant(spread), shared.square().sum(dim=(-2, -1))
    b = 4 + determinant - fitted
    c = 2 * determinant - 2 * fitted + ((shared @ spread) * shared).sum(dim=(-2, -1))
    radius = (16 - 3 * b).sqrt() / 3
    angle = torch.acos(((c - 4 / 3 * b + 128 / 27) / (2 * radius**3)).clamp(-1, 1)) / 3
    return (4 / 3 + 2 * radius * torch.cos(angle + 2 * torch.pi / 3)).clamp(min=0)


# Spans: the columns of a mask in each row, from the first to the one before the end, both (batch, parts, height).
def _code_spans(target: _Pose, height: int) -> tuple[Tensor, Tensor]:
    """`pose_masks`: all ones, a square about the face, and rectangles."""
    limbs_first, limbs_end = _polygon_spans(*_code_limbs(target), height)
    head_first, head_end = _head_spans(target, height)
    nothing, everything = torch.zeros_like(head_first), torch.full_like(head_first, torch.inf)
    return torch.cat([nothing, head_first, limbs_first], dim=1), torch.cat([everything, head_end, limbs_end], dim=1)


def _head_spans(pose: _Pose, height: int) -> tuple[Tensor, Tensor]:
    """Spans of squares from c - h to c + h - 1.

    c is the mean of the face's known joints and h is 0.4 of the torso's height, both truncated to whole pixels.
    """
    visible, (torso, known) = _face(pose.visible), _torso_height(pose)
    centre, half = _mean(_face(pose.joints), visible[..., None]).trunc(), (0.4 * torso).trunc()[:, None]
    rows = torch.arange(height, device=centre.device) - centre[:, 1:]
    reached = (rows >= -half) & (rows < half) & (visible.any(dim=1) & known)[:, None]
    first, end = centre[:, :1] - half, centre[:, :1] + half
    return torch.where(reached, first, torch.inf)[:, None], torch.where(reached, end, -torch.inf)[:, None]


def _polygon_spans(corners: Tensor, known: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Spans of convex polygons (batch, parts, 4, 2) and the pixels on their edges; empty if not known (batch, parts).

    A row of pixels meets a polygon in one interval, which ends where edges cross the row. Of pixels on an edge,
    scikit-image's `grid_points_in_poly` takes some, depending on rounding.
    """
    rows = torch.arange(height, dtype=corners.dtype, device=corners.device)
    (x, y), (next_x, next_y) = (ends[..., None].unbind(dim=-2) for ends in (corners, corners.roll(-1, dims=-2)))
    rise = next_y - y
    along = ((rows - y) / torch.where(rise == 0, 1.0, rise)).clamp(0, 1)
    crossing = x + along * (next_x - x)
    reached = (rows >= torch.minimum(y, next_y) - _ON_THE_EDGE) & (rows <= torch.maximum(y, next_y) + _ON_THE_EDGE)
    reached = reached & (rise != 0) & known[..., None, None]
    first = torch.where(reached, crossing, torch.inf).amin(dim=-2) - _ON_THE_EDGE
    last = torch.where(reached, crossing, -torch.inf).amax(dim=-2) + _ON_THE_EDGE
    return first.ceil(), last.floor() + 1


def _filled(first: Tensor, end: Tensor, *, width: int) -> Tensor:
    """Masks (batch, parts, height, width) of spans, by rows of a table: several times as fast as comparing pixels."""
    columns = torch.arange(width + 1, device=first.device)
    before = columns[:-1] < columns[:, None]
    first, end = first.clamp(0, width).long(), end.clamp(0, width).long()
    end = torch.maximum(first, end)
    return _rows(before, end).bitwise_xor_(_rows(before, first))


def _rows(table: Tensor, numbers: Tensor) -> Tensor:
    return table.index_select(0, numbers.flatten()).unflatten(0, numbers.shape)
