"""Drawings of the pages: skeletons, difference heat maps and sample sheets as images, loss curves as SVG coordinates.

Images are uint8 (height, width, 3), RGB.
"""

import base64
import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from posegen.data.geometry.joints import JOINTS, LIMBS
from posegen.evaluation.metrics import Pose, Uint8Image

DRAWN_LIMBS = LIMBS[:17]  # arms, legs, trunk and face; the others only close the pose mask
BACKGROUND = (16, 18, 27)
SMALL = 128  # images up to this height are shown enlarged, without smoothing
HEAT_FULL = 0.5  # difference, on the scale white = 1, that is drawn brightest
WIDTH, HEIGHT = 320, 150  # of a chart's plot area, in SVG units
POINTS = 400  # of a drawn curve at most

AnyImage = UInt8[np.ndarray, "_ _ 3"]  # independent of the sizes of other arguments
Colour = tuple[int, int, int]


def _rainbow(count: int) -> list[Colour]:
    hues = (index / count for index in range(count))
    return [tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.85, 1.0)) for hue in hues]  # pyright: ignore[reportReturnType]


LIMB_COLOURS, JOINT_COLOURS = _rainbow(len(DRAWN_LIMBS)), _rainbow(len(JOINTS))


def enlargement(height: int) -> int:
    """Return the integer factor that enlarges a small image to a height of up to 256 pixels; 1 for larger ones."""
    return max(1, 256 // height)


def skeleton(pose: Pose, height: int, width: int, scale: int) -> Uint8Image:
    """Draw visible joints and the limbs between them in OpenPose's style on a dark background, enlarged by `scale`.

    One hue per limb around the colour circle, in the order of `joints.LIMBS`; invisible joints are not drawn.
    """
    canvas = np.full((height * scale, width * scale, 3), BACKGROUND, dtype=np.uint8)
    return _with_skeleton(canvas, pose, scale, (LIMB_COLOURS, JOINT_COLOURS))


def skeleton_over(image: AnyImage, pose: Pose, scale: int) -> AnyImage:
    """Draw a skeleton on its image, enlarged by `scale`."""
    return _with_skeleton(image.repeat(scale, axis=0).repeat(scale, axis=1), pose, scale, (LIMB_COLOURS, JOINT_COLOURS))


def both_skeletons(image: AnyImage, predicted: Pose, true: Pose, scale: int) -> AnyImage:
    """Draw the true skeleton in white and the predicted one in orange on the darkened image, enlarged by `scale`."""
    canvas = (image.repeat(scale, axis=0).repeat(scale, axis=1) * 0.4).astype(np.uint8)
    for pose, colour in ((true, (255, 255, 255)), (predicted, (255, 122, 66))):
        colours = [colour] * len(DRAWN_LIMBS), [colour] * len(JOINTS)
        canvas = _with_skeleton(canvas, pose, scale, colours, slender=2)
    return canvas


def _with_skeleton(
    canvas: AnyImage, pose: Pose, scale: int, colours: tuple[Sequence[Colour], Sequence[Colour]], *, slender: int = 1
) -> AnyImage:
    """Draw on the canvas, which is `scale` times as large as the image of the pose, and return it.

    `colours` are those of the limbs and of the joints; lines are `slender` times thinner than usual.
    """
    thickness = max(2, round(canvas.shape[0] / 70 / slender))
    centres = (np.nan_to_num(pose.joints) + 0.5) * scale - 0.5
    points = [tuple(point) for point in np.rint(centres * 16).clip(-(2**20), 2**20).astype(int).tolist()]  # 16ths
    for (start, end), colour in zip(DRAWN_LIMBS, colours[0], strict=True):
        if pose.visible[start] and pose.visible[end]:
            cv2.line(canvas, points[start], points[end], colour, thickness, cv2.LINE_AA, shift=4)
    for point, visible, colour in zip(points, pose.visible, colours[1], strict=True):
        if visible:
            cv2.circle(canvas, point, round(thickness * 0.85) * 16, colour, -1, cv2.LINE_AA, shift=4)
    return canvas


def silhouette(mask: UInt8[np.ndarray, "height width"]) -> Uint8Image:
    """Draw a mask of 0 and 1 in white on the dark background."""
    return np.where(mask[..., None] > 0, 255, np.array(BACKGROUND)).astype(np.uint8)


def difference_heatmap(generated: Uint8Image, target: Uint8Image) -> Uint8Image:
    """Draw the mean absolute difference over the channels: black where equal, brightest from `HEAT_FULL` on."""
    distance = np.abs(generated.astype(np.float32) - target).mean(axis=-1) / (255 * HEAT_FULL)
    levels = np.rint(distance.clip(0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.uint8)


def data_uri(image: Uint8Image) -> str:
    """Encode an image as a data URI: PNG up to a height of `SMALL`, else JPEG of quality 92."""
    kind, options = ("png", []) if image.shape[0] <= SMALL else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 92])
    encoded = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"


def sheet(rows: Sequence[Sequence[AnyImage]], height: int) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Join rows of images, each resized to `height`, into one image with white gaps."""
    gap = _gap(height)
    borders = ((gap, 0), (gap, 0), (0, 0))
    cells = [[np.pad(_resized(image, height), borders, constant_values=255) for image in row] for row in rows]
    whole = np.concatenate([np.concatenate(row, axis=1) for row in cells])
    return np.pad(whole, ((0, gap), (0, gap), (0, 0)), constant_values=255).astype(np.uint8)


def cut_sheet(whole: UInt8[np.ndarray, "sheet_height sheet_width 3"], height: int, width: int) -> list[list[AnyImage]]:
    """Cut a `sheet` into its rows of images, each `height` x `width`."""
    gap = _gap(height)
    tops = range(gap, whole.shape[0] - gap, height + gap)
    lefts = range(gap, whole.shape[1] - gap, width + gap)
    return [[whole[top : top + height, left : left + width] for left in lefts] for top in tops]


def _gap(height: int) -> int:
    return max(4, height // 32)


def _resized(image: AnyImage, height: int) -> np.ndarray:
    width = round(image.shape[1] * height / image.shape[0])
    interpolation = cv2.INTER_NEAREST if height > image.shape[0] else cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=interpolation)


@dataclass(frozen=True)
class Tick:
    """Position and label of a mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One loss term over the steps. `raw` and `smooth` are points of SVG polylines in WIDTH x HEIGHT, y downwards."""

    title: str
    last: str  # last value of the running mean
    raw: str
    smooth: str  # the running mean of a twentieth of the curve
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def charts(curve: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Return one chart for every term of a stage's curve, rows of {"step": n, "<player>/<term>": value}.

    Values that are missing or not finite are left out; a term with fewer than two values has no chart.
    """
    terms = dict.fromkeys(name for row in curve for name in row if name != "step")
    series = {
        name: [(row["step"], row[name]) for row in curve if math.isfinite(row.get(name, math.nan))] for name in terms
    }
    return [_chart(name, points) for name, points in series.items() if len(points) > 1]


def _chart(title: str, points: Sequence[tuple[float, float]]) -> Chart:
    steps, values = [step for step, _ in points], [value for _, value in points]
    smooth = running_mean(values, max(1, round(len(values) * 0.05)))
    ordered, cut = sorted(values), len(values) // 100
    low, high = ordered[cut], ordered[-1 - cut]  # without the highest and the lowest hundredth
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    left, right = steps[0], max(steps[-1], steps[0] + 1)

    def polyline(heights: Sequence[float]) -> str:
        every = math.ceil(len(heights) / POINTS)
        kept = list(zip(steps, heights, strict=True))[::-every][::-1]
        return " ".join(
            f"{(x - left) / (right - left) * WIDTH:.1f},{(high - y) / (high - low) * HEIGHT:.1f}" for x, y in kept
        )

    return Chart(
        title=title,
        last=f"{smooth[-1]:.4g}",
        raw=polyline([min(max(value, low), high) for value in values]),
        smooth=polyline([min(max(value, low), high) for value in smooth]),
        x_ticks=[Tick((x - left) / (right - left) * WIDTH, label) for x, label in round_ticks(left, right, 6)],
        y_ticks=[Tick((high - y) / (high - low) * HEIGHT, label) for y, label in round_ticks(low, high, 4)],
    )


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and up to `window` - 1 values before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def round_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high], with labels."""
    exact = (high - low) / count
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(n * step, f"{n * step:.6g}") for n in range(first, last + 1)]
