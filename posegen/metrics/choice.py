"""Which scores a system has, those of its pictures, of its joints or both, and which of them decides."""

from collections.abc import Collection, Iterable

from posegen.metrics.measures import METRICS, Metric
from posegen.metrics.pose import POSE_METRICS
from posegen.stage import System
from posegen.systems.settings import check_known

EVERY: dict[str, Metric] = METRICS | POSE_METRICS
STAGE_METRIC = "mask_l1"  # what pictures of stages are scored by: cheap, and not inflated by the surroundings


def metrics_of(system: System) -> tuple[str, ...]:
    """The names of a system's scores: `METRICS` where it makes pictures, `POSE_METRICS` where it predicts joints."""
    return (*(METRICS if system.image else ()), *(POSE_METRICS if system.joints else ()))


def check_metrics_of(system: System, names: Iterable[str]) -> None:
    """Raise ValueError, with the names that there are, where one is no score of the system."""
    for name in names:
        check_known(f"score of {system.name}", name, metrics_of(system))


def deciding(names: Collection[str]) -> str:
    """What pairs are ranked by, of the scores that there are: mask-L1 of pictures, else the pose error. Low is good."""
    return "mask_l1" if "mask_l1" in names else "pose_error"


def searched_by(system: System) -> str:
    """What a search judges its trials by where it is not told: mask-SSIM of pictures, else the pose error."""
    return "mask_ssim" if system.image else "pose_error"
