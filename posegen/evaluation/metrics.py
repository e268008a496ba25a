"""How near a generated image comes to the target: SSIM in three published variants, PSNR and L1, whole and masked.

Images are uint8 (pairs, height, width, 3), RGB; masks are uint8 (pairs, height, width), 0 or 1, the pose mask of the
target. Every metric gives one float64 a pair, NaN where it is undefined (`Metric.undefined`).

How near predicted joints come to the target's: mean distance, PCK, PCKh, and the two poses that they have to beat.

Joints are x, y in pixels of the target image, in the order of `joints.JOINTS`; only those that the target knows
count. Every metric gives one float64 a pair, NaN where it is undefined (`Metric.undefined`) and where a predicted joint
that counts is no number.

Which scores a system has, those of its images, of its joints or both, and which of them decides.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from skimage.metrics import structural_similarity

from posegen.batch import Images
from posegen.data.geometry.joints import JOINTS
from posegen.data.loading.dataset import Shards
from posegen.stage import System
from posegen.systems.fields import check_known

IMAGE_SCORES = ("ssim", "mask_ssim", "psnr", "l1", "mask_l1")  # as tables list them
JOINT_SCORES = ("pose_error", "pck", "pckh")
Uint8Images = UInt8[np.ndarray, "pairs height width 3"]
PoseMasks = UInt8[np.ndarray, "pairs height width"]
Scores = Float64[np.ndarray, "pairs"]

PSNR_CAP = 100.0  # dB; what identical images score. At 128x64 one grey level in one value is 92 dB.
WINDOW = 11  # pixels; the Gaussian window of sigma 1.5 cut at 3.5 sigma


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the scores. `higher` says the better direction, `low` and `high` the range."""

    name: str
    title: str
    unit: str
    higher: bool
    low: float
    high: float
    definition: str
    undefined: str  # when a pair has no such score; "" where every pair has one
    function: Callable[..., Scores]  # of (generated, target, mask); for joints, of (predicted, target, known)

    @property
    def span(self) -> str:
        """Its range and its better direction, in words."""
        ends = f"From {self.low:g}" if self.high == np.inf else f"From {self.low:g} to {self.high:g}"
        return f"{ends} {self.unit}".rstrip() + f"; {'higher' if self.higher else 'lower'} is better."


def ssim_plain(generated: Uint8Images, target: Uint8Images) -> Scores:
    """SSIM as Wang et al. 2004 define it: Gaussian window of sigma 1.5, population covariance, data range 255.

    Mean over pixels (5 at the border left out) and over R, G, B. In [-1, 1], higher is better, 1 for equal images.
    """
    return _ssim(generated, target, np.full(len(generated), 255), gaussian=True)


def ssim_pg2(generated: Uint8Images, target: Uint8Images) -> Scores:
    """SSIM as PG2's score.py calls scikit-image: RGB, uniform 7x7 window, sample covariance, data range 255.

    In [-1, 1], higher is better, 1 for equal images.
    """
    return _ssim(generated, target, np.full(len(generated), 255), gaussian=False)


def ssim_defgan(generated: Uint8Images, target: Uint8Images) -> Scores:
    """SSIM as Deformable GAN's test.py calls scikit-image: `ssim_plain` with data range max - min of the generated one.

    In [-1, 1], higher is better, 1 for equal images. A generated image of one value has no range: NaN.
    """
    return _ssim(generated, target, np.ptp(generated, axis=(1, 2, 3)), gaussian=True)


def _ssim(generated: Uint8Images, target: Uint8Images, data_ranges: np.ndarray, *, gaussian: bool) -> Scores:
    _check(generated, target)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    pairs = zip(generated, target, data_ranges.tolist(), strict=True)
    scores = [
        structural_similarity(real, made, channel_axis=-1, data_range=span, **window) if span else np.nan
        for made, real, span in pairs
    ]
    return np.array(scores, dtype=np.float64)


def _check(generated: Uint8Images, target: Uint8Images) -> None:
    if generated.shape != target.shape:
        raise ValueError(f"images to compare have shapes {generated.shape} and {target.shape}: they must be the same")
    if min(generated.shape[1:3]) < WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, the width of its window; "
            f"these are {generated.shape[1]}x{generated.shape[2]}"
        )


def masked(
    ssim: Callable[[Uint8Images, Uint8Images], Scores],
) -> Callable[[Uint8Images, Uint8Images, PoseMasks], Scores]:
    """mask-SSIM: both images are multiplied by the target's pose mask, then the same SSIM over the whole canvas.

    The black surroundings count as equal, so the value is inflated (a mask of 20 % of the image gives about 0.8
    whatever is in it). This is the published protocol (PG2's score.py, Deformable GAN's test.py), and comparable only
    between masks of one kind. In [-1, 1], higher is better. An empty mask would compare black with black: NaN.
    """

    def scores(generated: Uint8Images, target: Uint8Images, mask: PoseMasks) -> Scores:
        cover = mask[..., None]
        return np.where(mask.any(axis=(1, 2)), ssim(generated * cover, target * cover), np.nan)

    return scores


def psnr(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared difference), over the whole image, in dB.

    In [0, 100], higher is better. Our choice: identical images, whose ratio is infinite, score `PSNR_CAP`, so that
    means stay finite.
    """
    error = np.square(_difference(generated, target)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(-10 * np.log10(error), PSNR_CAP)


def l1(generated: Uint8Images, target: Uint8Images) -> Scores:
    """Mean absolute difference over pixels and channels, black 0 and white 1. In [0, 1], lower is better.

    PG2's score.py prints the same on a scale of 255, Deformable GAN's test.py on a scale of 2.
    """
    return _difference(generated, target).mean(axis=(1, 2, 3))


def mask_l1(generated: Uint8Images, target: Uint8Images, mask: PoseMasks) -> Scores:
    """Mean absolute difference inside the target's pose mask: sum(|d| m) / (3 sum(m)). In [0, 1], lower is better.

    Divided by the mask's own area, as Multistage's L_fg: unlike mask-SSIM it is not inflated by the surroundings. This
    is what cases are ranked by. An empty mask has no mean: NaN.
    """
    area = mask.sum(axis=(1, 2), dtype=np.float64)
    total = (_difference(generated, target).sum(axis=-1) * mask).sum(axis=(1, 2))
    return np.divide(total, 3 * area, out=np.full(len(area), np.nan), where=area > 0)


def _difference(generated: Uint8Images, target: Uint8Images) -> Float64[np.ndarray, "pairs height width 3"]:
    """Absolute difference on the scale black 0, white 1."""
    _check(generated, target)
    return np.abs(generated.astype(np.float64) - target) / 255


def _unmasked(
    score: Callable[[Uint8Images, Uint8Images], Scores],
) -> Callable[[Uint8Images, Uint8Images, PoseMasks], Scores]:
    return lambda generated, target, mask: score(generated, target)


_EMPTY, _FLAT = "the target's pose mask is empty", "the generated image has one value only"
_SSIM = partial(Metric, unit="", higher=True, low=-1.0, high=1.0)
_INFLATED = "both images multiplied by the target's pose mask, whole canvas (inflated by the black surroundings): "
_PLAIN = "scikit-image, RGB, Gaussian window of sigma 1.5, population covariance, data range 255 (Wang et al. 2004)"
_PG2 = "scikit-image, RGB, uniform 7x7 window, sample covariance, data range 255 (PG2, score.py)"
_DEFGAN = "as `ssim`, data range = maximum - minimum of the generated image (Deformable GAN, test.py)"

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
        _SSIM(name="ssim", title="SSIM", definition=_PLAIN, undefined="", function=_unmasked(ssim_plain)),
        _SSIM(
            name="mask_ssim", title="mask-SSIM", definition=_INFLATED + _PLAIN, undefined=_EMPTY,
            function=masked(ssim_plain),
        ),
        _SSIM(name="ssim_pg2", title="SSIM (PG2)", definition=_PG2, undefined="", function=_unmasked(ssim_pg2)),
        _SSIM(
            name="mask_ssim_pg2", title="mask-SSIM (PG2)", definition=_INFLATED + _PG2, undefined=_EMPTY,
            function=masked(ssim_pg2),
        ),
        _SSIM(
            name="ssim_defgan", title="SSIM (Def-GAN)", definition=_DEFGAN, undefined=_FLAT,
            function=_unmasked(ssim_defgan),
        ),
        _SSIM(
            name="mask_ssim_defgan", title="mask-SSIM (Def-GAN)", definition=_INFLATED + _DEFGAN,
            undefined=f"{_EMPTY}, or {_FLAT}", function=masked(ssim_defgan),
        ),
    )
}  # fmt: skip


def check_metrics(names: Iterable[str]) -> None:
    """Raise ValueError, with the names that there are, where one is no name of `METRICS`."""
    for name in names:
        check_known("score", name, METRICS)


def all_scores(
    generated: Uint8Images, target: Uint8Images, mask: PoseMasks, *, names: Sequence[str] = tuple(METRICS)
) -> Mapping[str, Scores]:
    """The named metrics of `METRICS`, and no others, for every pair, in that order.

    Raises ValueError for an unknown name, and where the shapes differ or are too small.
    """
    check_metrics(names)
    return {name: METRICS[name].function(generated, target, mask) for name in names}


def to_uint8(images: Images) -> Uint8Images:
    """Images in [-1, 1] to uint8 images: clipped and rounded to the nearest level.

    Our choice: the papers' codes cut the fraction off, which darkens by half a level and turns 42 into 41 where the
    float is 41.99999.
    """
    levels = ((images.detach().float() + 1) * 127.5).clamp(0, 255).round()
    return levels.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


Predicted = Float[np.ndarray, "pairs 18 2"]
Target = Float[np.ndarray, "pairs 18 2"]  # anything where not known
Known = Bool[np.ndarray, "pairs 18"]
MeanPose = Float[np.ndarray, "18 2"]

POSE_BASELINES = {
    "source": "the source's own joints; the middle of them for a joint that the source does not know",
    "mean": "the mean of the training images' joints, of each joint over the images that know it",
}

OF_THE_BOX = 0.1  # of the person's height: PCK's reach
OF_THE_HEAD = 0.5  # of the head's size: PCKh's reach
NECK, NOSE = JOINTS.index("neck"), JOINTS.index("nose")


def pose_error(predicted: Predicted, target: Target, known: Known) -> Scores:
    """Mean distance between predicted and true joints, over those that the target knows. In pixels, lower is better."""
    return _mean_of_known(_distances(predicted, target, known), known)


def pck(predicted: Predicted, target: Target, known: Known) -> Scores:
    """PCK@0.1: the share of known joints predicted within 0.1 of the person's height. In [0, 1], higher is better.

    The height is that of the box around the target's known joints, largest y minus smallest y (our choice: Yang and
    Ramanan 2013, whose score it is, take the larger side of the box, which outstretched arms make larger). A joint
    exactly that far away counts. A person of one known joint, or with all at one height, has no box: NaN.
    """
    heights = np.where(known, target[..., 1].astype(np.float64), np.nan)
    counted = known.any(axis=1)
    box = np.full(len(known), np.nan)
    box[counted] = np.nanmax(heights[counted], axis=1) - np.nanmin(heights[counted], axis=1)
    return _share_within(OF_THE_BOX * box, predicted, target, known)


def pckh(predicted: Predicted, target: Target, known: Known) -> Scores:
    """PCKh@0.5: the share of known joints predicted within half of the head's size. In [0, 1], higher is better.

    Andriluka et al. 2014 take 0.6 of the diagonal of an annotated head box. The 18 joints have no such box: our choice
    is the distance from the target's neck to its nose, as it is (about 0.09 of the person's height on the embedded
    people). NaN where one of the two is unknown or both lie in one place.
    """
    head = np.linalg.norm(target[:, NOSE].astype(np.float64) - target[:, NECK], axis=-1)
    return _share_within(
        OF_THE_HEAD * np.where(known[:, [NOSE, NECK]].all(axis=1), head, np.nan), predicted, target, known
    )


def _distances(predicted: Predicted, target: Target, known: Known) -> Float64[np.ndarray, "pairs 18"]:
    """In pixels; 0 for joints that the target does not know."""
    offsets = np.where(known[..., None], predicted, 0).astype(np.float64) - np.where(known[..., None], target, 0)
    return np.linalg.norm(offsets, axis=-1)


def _mean_of_known(values: Float64[np.ndarray, "pairs 18"], known: Known) -> Scores:
    count = known.sum(axis=1)
    return np.divide((values * known).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


def _share_within(reach: Scores, predicted: Predicted, target: Target, known: Known) -> Scores:
    distances = _distances(predicted, target, known)
    share = _mean_of_known((distances <= reach[:, None]).astype(np.float64), known)
    return np.where((reach > 0) & np.isfinite(distances).all(axis=1), share, np.nan)


_PCK = "share of the joints known in the target that are predicted within "

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
            definition=_PCK + f"{OF_THE_BOX} of the height of the box around those joints",
        ),
        Metric(
            name="pckh", title="PCKh@0.5", unit="", higher=True, low=0.0, high=1.0,
            undefined="the target's neck or nose is unknown, or both lie in one place", function=pckh,
            definition=_PCK + f"{OF_THE_HEAD} of the distance from its neck to its nose",
        ),
    )
}  # fmt: skip


def source_poses(joints: Predicted, visible: Known) -> Float64[np.ndarray, "pairs 18 2"]:
    """Sources' joints as predictions: the middle of the known ones stands in for those that are not known.

    Our choice, so that every baseline is judged on the same joints and depends on the pair alone. NaN where a source
    knows no joint.
    """
    known = np.where(visible[..., None], joints.astype(np.float64), 0.0)
    count = visible.sum(axis=1, dtype=np.float64)[:, None]
    middle = np.divide(known.sum(axis=1), count, out=np.full((len(joints), 2), np.nan), where=count > 0)
    return np.where(visible[..., None], known, middle[:, None])


def mean_pose(shards: Shards) -> MeanPose:
    """The mean of each joint over the training images that know it; the image's middle where none does.

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


EVERY: dict[str, Metric] = METRICS | POSE_METRICS
STAGE_METRIC = "mask_l1"  # what images of stages are scored by: cheap, and not inflated by the surroundings


def metrics_of(system: System) -> tuple[str, ...]:
    """The names of a system's scores: `METRICS` where it makes images, `POSE_METRICS` where it predicts joints."""
    return (*(METRICS if system.image else ()), *(POSE_METRICS if system.joints else ()))


def check_metrics_of(system: System, names: Iterable[str]) -> None:
    """Raise ValueError, with the names that there are, where one is no score of the system."""
    for name in names:
        check_known(f"score of {system.name}", name, metrics_of(system))


def deciding(names: Collection[str]) -> str:
    """What pairs are ranked by, of the scores that there are: mask-L1 of images, else the pose error. Low is good."""
    return "mask_l1" if "mask_l1" in names else "pose_error"


def searched_by(system: System) -> str:
    """What a search judges its trials by where it is not told: mask-SSIM of images, else the pose error."""
    return "mask_ssim" if system.image else "pose_error"
