"""Metrics and baselines: SSIM in three published variants, PSNR and L1 for images; pose error, PCK and PCKh for joints.

Images are uint8 (pairs, height, width, 3), RGB; masks are uint8 (pairs, height, width), 0 or 1, the pose mask of the
target. Joints are x, y in pixels of the target image, in the order of `joints.JOINTS`; only those known in the target
count. A metric returns one float64 per pair: NaN where it is undefined (`Metric.undefined`) and where a predicted joint
that counts is not finite.

Baselines need no training and are scored on the same pairs: the source, the mean of the training images, and the source
aligned with the target.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from skimage.metrics import structural_similarity

from posegen.batch import Images
from posegen.data.geometry.joints import JOINTS, TORSO
from posegen.data.loading.dataset import Shards
from posegen.stage import System
from posegen.systems.fields import check_known

Uint8Image = UInt8[np.ndarray, "height width 3"]
Points = Float[np.ndarray, "points 2"]
Uint8Images = UInt8[np.ndarray, "pairs height width 3"]
PoseMasks = UInt8[np.ndarray, "pairs height width"]
MeanPose = Float[np.ndarray, "18 2"]
PairJoints = Float[np.ndarray, "pairs 18 2"]  # undefined where not known
Known = Bool[np.ndarray, "pairs 18"]
Scores = Float64[np.ndarray, "pairs"]
ImageScore = Callable[[Uint8Images, Uint8Images], Scores]
MaskedScore = Callable[[Uint8Images, Uint8Images, PoseMasks], Scores]

IMAGE_SCORES = ("ssim", "mask_ssim", "psnr", "l1", "mask_l1")  # columns of the terminal's tables
JOINT_SCORES = ("pose_error", "pck", "pckh")
PSNR_CAP = 100.0  # dB, the score of identical images. At 128x64 one grey level in one value is 92 dB.
WINDOW = 11  # pixels; the Gaussian window of sigma 1.5 cut at 3.5 sigma
PCK_REACH, PCKH_REACH = 0.1, 0.5  # of the person's height, of the head's size
NECK, NOSE = JOINTS.index("neck"), JOINTS.index("nose")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the scores; larger is better where `higher`, and values lie in [low, high]."""

    name: str
    title: str
    unit: str
    higher: bool
    low: float
    high: float
    definition: str
    undefined: str  # condition under which a pair has no score; "" where every pair has one
    function: Callable[..., Scores]  # of (generated, target, mask); for joints, of (predicted, target, known)

    @property
    def span(self) -> str:
        """Range and better direction in words."""
        ends = f"From {self.low:g}" if self.high == np.inf else f"From {self.low:g} to {self.high:g}"
        return f"{ends} {self.unit}".rstrip() + f"; {'higher' if self.higher else 'lower'} is better."


def ssim_plain(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Compute SSIM as defined by Wang et al. 2004.

    Gaussian window of sigma 1.5, population covariance, data range 255; mean over pixels (5 at the border left out) and
    over R, G, B. In [-1, 1], higher is better, 1 for equal images.
    """
    return _ssim(generated, target, np.full(len(generated), 255), gaussian=True)


def ssim_pg2(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Compute SSIM as PG2's score.py calls scikit-image.

    RGB, uniform 7x7 window, sample covariance, data range 255. In [-1, 1], higher is better, 1 for equal images.
    """
    return _ssim(generated, target, np.full(len(generated), 255), gaussian=False)


def ssim_defgan(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Compute SSIM as Deformable GAN's test.py calls scikit-image.

    `ssim_plain` with the data range max - min of the generated image. In [-1, 1], higher is better, 1 for equal images.
    A generated image with a single value has no range: NaN.
    """
    return _ssim(generated, target, np.ptp(generated, axis=(1, 2, 3)), gaussian=True)


def _ssim(generated: Uint8Images, target: Uint8Images, data_ranges: np.ndarray, *, gaussian: bool) -> Scores:
    _check_shapes(generated, target)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    scores = [
        structural_similarity(real, fake, channel_axis=-1, data_range=span, **window) if span else np.nan
        for fake, real, span in zip(generated, target, data_ranges.tolist(), strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _check_shapes(generated: Uint8Images, target: Uint8Images) -> None:
    if generated.shape != target.shape:
        raise ValueError(f"images to compare have shapes {generated.shape} and {target.shape}: they must be the same")
    if min(generated.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, the width of its window; "
            f"these are {generated.shape[1]}x{generated.shape[2]}"
        )


def masked(ssim: ImageScore) -> MaskedScore:
    """Return the mask-SSIM of an SSIM: both images multiplied by the target's pose mask, over the whole canvas.

    The black surroundings count as equal, so the value is inflated (a mask of 20 % of the image gives about 0.8
    regardless of its content). This is the published protocol (PG2's score.py, Deformable GAN's test.py); it is
    comparable only between masks of one kind. In [-1, 1], higher is better. An empty mask would compare black with
    black: NaN.
    """

    def scores(generated: Uint8Images, target: Uint8Images, mask: PoseMasks) -> Scores:
        cover = mask[..., None]
        return np.where(mask.any(axis=(1, 2)), ssim(generated * cover, target * cover), np.nan)

    return scores


def psnr(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Compute the peak signal-to-noise ratio, 10 log10(255^2 / mean squared difference), over the whole image, in dB.

    In [0, 100], higher is better. Our choice: identical images, whose ratio is infinite, score `PSNR_CAP`, so that
    means stay finite.
    """
    error = np.square(_absolute_difference(generated, target)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(-10 * np.log10(error), PSNR_CAP)


def l1(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Compute the mean absolute difference over pixels and channels, black 0 and white 1. In [0, 1], lower is better.

    PG2's score.py prints the same on a scale of 255, Deformable GAN's test.py on a scale of 2.
    """
    return _absolute_difference(generated, target).mean(axis=(1, 2, 3))


def mask_l1(generated: Uint8Images, target: Uint8Images, mask: PoseMasks) -> Scores:
    """Compute the mean absolute difference inside the target's pose mask: sum(|d| m) / (3 sum(m)).

    In [0, 1], lower is better. Divided by the mask's own area, as Multistage's L_fg: unlike mask-SSIM it is not
    inflated by the surroundings. Cases are ranked by it. An empty mask has no mean: NaN.
    """
    area = mask.sum(axis=(1, 2), dtype=np.float64)
    total = (_absolute_difference(generated, target).sum(axis=-1) * mask).sum(axis=(1, 2))
    return np.divide(total, 3 * area, out=np.full(len(area), np.nan), where=area > 0)


def _absolute_difference(generated: Uint8Images, target: Uint8Images) -> Float64[np.ndarray, "pairs height width 3"]:
    """Return |generated - target| on the scale black 0, white 1."""
    _check_shapes(generated, target)
    return np.abs(generated.astype(np.float64) - target) / 255


def pose_error(predicted: PairJoints, target: PairJoints, known: Known) -> Scores:
    """Compute the mean distance between predicted and true joints that are known, in pixels. Lower is better."""
    return _mean_of_known(_distances(predicted, target, known), known)


def pck(predicted: PairJoints, target: PairJoints, known: Known) -> Scores:
    """Compute PCK@0.1: the share of known joints predicted within 0.1 of the person's height.

    In [0, 1], higher is better. The height is that of the box around the target's known joints, largest y minus
    smallest y (our choice: Yang and Ramanan 2013, who introduced the score, take the larger side of the box, which
    outstretched arms make larger). A joint exactly that far away counts. A person with one known joint, or with all at
    one height, has no box: NaN.
    """
    heights = np.where(known, target[..., 1].astype(np.float64), np.nan)
    counted = known.any(axis=1)
    box = np.full(len(known), np.nan)
    box[counted] = np.nanmax(heights[counted], axis=1) - np.nanmin(heights[counted], axis=1)
    return _share_within(PCK_REACH * box, predicted, target, known)


def pckh(predicted: PairJoints, target: PairJoints, known: Known) -> Scores:
    """Compute PCKh@0.5: the share of known joints predicted within half of the head's size.

    In [0, 1], higher is better. Andriluka et al. 2014 take 0.6 of the diagonal of an annotated head box. The 18 joints
    have no such box: our choice is the distance from the target's neck to its nose, as it is (about 0.09 of the
    person's height on the embedded people). NaN where one of the two is unknown or both coincide.
    """
    head = np.linalg.norm(target[:, NOSE].astype(np.float64) - target[:, NECK], axis=-1)
    reach = PCKH_REACH * np.where(known[:, [NOSE, NECK]].all(axis=1), head, np.nan)
    return _share_within(reach, predicted, target, known)


def _distances(predicted: PairJoints, target: PairJoints, known: Known) -> Float64[np.ndarray, "pairs 18"]:
    """Return distances in pixels, 0 for joints not known in the target."""
    offsets = np.where(known[..., None], predicted, 0).astype(np.float64) - np.where(known[..., None], target, 0)
    return np.linalg.norm(offsets, axis=-1)


def _mean_of_known(values: Float64[np.ndarray, "pairs 18"], known: Known) -> Scores:
    count = known.sum(axis=1)
    return np.divide((values * known).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


def _share_within(reach: Scores, predicted: PairJoints, target: PairJoints, known: Known) -> Scores:
    distances = _distances(predicted, target, known)
    share = _mean_of_known((distances <= reach[:, None]).astype(np.float64), known)
    return np.where((reach > 0) & np.isfinite(distances).all(axis=1), share, np.nan)


def _unmasked(score: ImageScore) -> MaskedScore:
    return lambda generated, target, mask: score(generated, target)


_EMPTY, _FLAT = "the target's pose mask is empty", "the generated image has one value only"
_INFLATED = "both images multiplied by the target's pose mask, whole canvas (inflated by the black surroundings): "
_PLAIN = "scikit-image, RGB, Gaussian window of sigma 1.5, population covariance, data range 255 (Wang et al. 2004)"
_PG2 = "scikit-image, RGB, uniform 7x7 window, sample covariance, data range 255 (PG2, score.py)"
_DEFGAN = "as `ssim`, data range = maximum - minimum of the generated image (Deformable GAN, test.py)"
_SHARE = "share of the joints known in the target that are predicted within "


def _ssim_metrics(suffix: str, label: str, function: ImageScore, definition: str, undefined: str = "") -> list[Metric]:
    """Return an SSIM variant on the whole images, and masked."""
    metric = partial(Metric, unit="", higher=True, low=-1.0, high=1.0)
    empty = f"{_EMPTY}, or {undefined}" if undefined else _EMPTY
    return [
        metric(name=f"ssim{suffix}", title=f"SSIM{label}", definition=definition, undefined=undefined,
               function=_unmasked(function)),
        metric(name=f"mask_ssim{suffix}", title=f"mask-SSIM{label}", definition=_INFLATED + definition, undefined=empty,
               function=masked(function)),
    ]  # fmt: skip


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="mask_l1", title="mask-L1", unit="", higher=False, low=0.0, high=1.0, undefined=_EMPTY,
            definition="mean absolute difference inside the target's pose mask, black 0 and white 1", function=mask_l1,
        ),
        Metric(
            name="l1", title="L1", unit="", higher=False, low=0.0, high=1.0, undefined="",
            definition="mean absolute difference, black 0 and white 1", function=_unmasked(l1),
        ),
        Metric(
            name="psnr", title="PSNR", unit="dB", higher=True, low=0.0, high=PSNR_CAP, undefined="",
            definition=f"10 log10(255^2 / mean squared difference), at most {PSNR_CAP:.0f}", function=_unmasked(psnr),
        ),
        *_ssim_metrics("", "", ssim_plain, _PLAIN),
        *_ssim_metrics("_pg2", " (PG2)", ssim_pg2, _PG2),
        *_ssim_metrics("_defgan", " (Def-GAN)", ssim_defgan, _DEFGAN, _FLAT),
    )
}  # fmt: skip

POSE_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="pose_error", title="pose error", unit="px", higher=False, low=0.0, high=np.inf,
            undefined="the target has no known joint", function=pose_error,
            definition="mean distance between predicted and true joints, over those known in the target",
        ),
        Metric(
            name="pck", title="PCK@0.1", unit="", higher=True, low=0.0, high=1.0,
            undefined="the target's known joints have no height", function=pck,
            definition=_SHARE + f"{PCK_REACH} of the height of the box around those joints",
        ),
        Metric(
            name="pckh", title="PCKh@0.5", unit="", higher=True, low=0.0, high=1.0,
            undefined="the target's neck or nose is unknown, or both coincide", function=pckh,
            definition=_SHARE + f"{PCKH_REACH} of the distance from its neck to its nose",
        ),
    )
}  # fmt: skip

EVERY: dict[str, Metric] = METRICS | POSE_METRICS
STAGE_METRIC = "mask_l1"  # of intermediate images: cheap, and not inflated by the surroundings


def all_scores(
    generated: Uint8Images, target: Uint8Images, mask: PoseMasks, *, names: Sequence[str] = tuple(METRICS)
) -> Mapping[str, Scores]:
    """Compute the named metrics of `METRICS` for every pair, in that order.

    Raises ValueError for an unknown name, and where the shapes differ or are too small.
    """
    for name in names:
        check_known("score", name, METRICS)
    return {name: METRICS[name].function(generated, target, mask) for name in names}


def metrics_of(system: System) -> tuple[str, ...]:
    """Return the names of a system's scores: `METRICS` if it makes images, `POSE_METRICS` if it predicts joints."""
    return (*(METRICS if system.image else ()), *(POSE_METRICS if system.joints else ()))


def check_metrics_of(system: System, names: Iterable[str]) -> None:
    """Raise ValueError, with the names that there are, if one is no score of the system."""
    for name in names:
        check_known(f"score of {system.name}", name, metrics_of(system))


def ranking_metric(names: Collection[str]) -> str:
    """Return the score that ranks pairs, given those that there are: mask-L1, else the pose error. Lower is better."""
    return "mask_l1" if "mask_l1" in names else "pose_error"


def searched_by(system: System) -> str:
    """Return the default objective of a search: mask-SSIM if the system makes images, else the pose error."""
    return "mask_ssim" if system.image else "pose_error"


def to_uint8(images: Images) -> Uint8Images:
    """Convert images in [-1, 1] to uint8, clipped and rounded to the nearest level.

    Our choice: the papers' codes cut the fraction off, which darkens by half a level and turns 42 into 41 where the
    float is 41.99999.
    """
    levels = ((images.detach().float() + 1) * 127.5).clamp(0, 255).round()
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


BASELINES = {
    "source": "the source image itself",
    "mean": "the mean of the training images",
    "similarity": "the source rotated, scaled and shifted so that its torso falls on the target's",
}
POSE_BASELINES = {
    "source": "the source's own joints; a joint unknown in the source is the mean of its known ones",
    "mean": "the mean of the training images' joints, of each joint over the images that know it",
}

MEAN_SAMPLES = 2000  # training images at most, drawn by seed 0: the standard error is then about one grey level


class Pose(NamedTuple):
    """The joints of one image, undefined where not visible."""

    joints: Float[np.ndarray, "18 2"]
    visible: Bool[np.ndarray, "18"]


def mean_image(shards: Shards) -> Uint8Image:
    """Return the mean of the training images, or of `MEAN_SAMPLES` of them drawn by seed 0, rounded to whole levels.

    Raises ValueError where there is no training image.
    """
    if not (count := shards.image_count("train")):
        raise ValueError("there is no training image to take the mean of: the shards have no usable 'train' image")
    rows = np.sort(np.random.default_rng(0).permutation(count)[:MEAN_SAMPLES]).tolist()
    parts = [shards.images("train", rows[start : start + 100]).sum(axis=0) for start in range(0, len(rows), 100)]
    return np.rint(np.sum(parts, axis=0) / len(rows)).astype(np.uint8)


def similarity_transform(source: Points, target: Points) -> Float[np.ndarray, "2 3"] | None:
    """Return the rotation, scale and shift that best map `source` to `target` in least squares, without reflection.

    Umeyama 1991 in the plane, in complex numbers: with z = x + iy and points taken relative to their means, the best
    a z + b has a = sum(conj(z) w) / sum(|z|^2). Returns the matrix [[Re a, -Im a, Re b], [Im a, Re a, Im b]], or None
    where all points of either set coincide or only a scale of zero fits.
    """
    z, w = (points.astype(np.float64) @ np.array([1, 1j]) for points in (source, target))
    from_centre = z - z.mean()
    spread = np.square(np.abs(from_centre)).sum()
    a = np.vdot(from_centre, w - w.mean()) / spread if spread > 0 else 0j
    if abs(a) < 1e-6:
        return None
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_torso(image: Uint8Image, source: Pose, target: Pose) -> Uint8Image | None:
    """Warp the image by the similarity transform between the torsos' joints, replicating its border.

    Returns None where a shoulder or hip is unknown in either pose, or the transform is undefined.
    """
    torso = list(TORSO)
    if not (source.visible[torso].all() and target.visible[torso].all()):
        return None
    matrix = similarity_transform(source.joints[torso], target.joints[torso])
    if matrix is None:
        return None
    size, border = image.shape[1::-1], cv2.BORDER_REPLICATE
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border).astype(np.uint8)


def source_poses(
    joints: Float[np.ndarray, "pairs 18 2"], visible: Bool[np.ndarray, "pairs 18"]
) -> Float64[np.ndarray, "pairs 18 2"]:
    """Return sources' joints as predictions; the mean of the known ones replaces those that are unknown.

    Our choice, so that every baseline is scored on the same joints and depends on the pair alone. NaN where no joint of
    a source is known.
    """
    known = np.where(visible[..., None], joints.astype(np.float64), 0.0)
    count = visible.sum(axis=1, dtype=np.float64)[:, None]
    middle = np.divide(known.sum(axis=1), count, out=np.full((len(joints), 2), np.nan), where=count > 0)
    return np.where(visible[..., None], known, middle[:, None])


def mean_pose(shards: Shards) -> MeanPose:
    """Return the mean of each joint over the training images that know it; the image's centre where none does.

    Raises ValueError where there is no training image.
    """
    if not shards.image_count("train"):
        raise ValueError("there is no training pose to take the mean of: the shards have no usable 'train' image")
    total, count = np.zeros((len(JOINTS), 2)), np.zeros((len(JOINTS), 1))
    for piece in shards.pieces("train"):
        joints, visible = piece.mapped.joints.astype(np.float64), piece.mapped.visible
        known = np.where(visible[..., None], joints, 0)
        total = np.concatenate([total[None], known]).sum(axis=0)  # image by image: the same for any pieces
        count += visible.sum(axis=0, dtype=np.float64)[:, None]
    middle = (np.array(shards.size[::-1], dtype=np.float64) - 1) / 2
    return np.divide(total, count, out=np.tile(middle, (len(JOINTS), 1)), where=count > 0)
