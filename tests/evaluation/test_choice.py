"""The scores that a system has, and those that rank pairs and trials."""

import pytest

from posegen import catalog
from posegen.evaluation.metrics import (
    EVERY,
    METRICS,
    POSE_METRICS,
    check_metrics_of,
    metrics_of,
    ranking_metric,
    searched_by,
)
from tests import posing_systems

IMAGES, JOINTS, BOTH = catalog.system("vdg", "synthetic"), posing_systems.posing(), posing_systems.painting()


def test_scores_are_those_of_what_a_system_makes():
    assert metrics_of(IMAGES) == tuple(METRICS)
    assert metrics_of(JOINTS) == tuple(POSE_METRICS)
    assert metrics_of(BOTH) == tuple(EVERY) == (*METRICS, *POSE_METRICS)


def test_a_score_that_a_system_does_not_have_is_told():
    check_metrics_of(BOTH, ["ssim", "pck"])
    with pytest.raises(ValueError, match=r"no score of vdg is called 'pck'\. There are: mask_l1"):
        check_metrics_of(IMAGES, ["ssim", "pck"])


def test_images_decide_where_there_are_any():
    assert ranking_metric(EVERY) == ranking_metric(METRICS) == "mask_l1"
    assert ranking_metric(POSE_METRICS) == "pose_error"
    assert not any(EVERY[ranking_metric(names)].higher for names in (METRICS, POSE_METRICS))
    assert [searched_by(system) for system in (IMAGES, JOINTS, BOTH)] == ["mask_ssim", "pose_error", "mask_ssim"]


def test_the_span_of_a_score_in_words():
    assert METRICS["psnr"].span == "From 0 to 100 dB; higher is better."
    assert METRICS["l1"].span == "From 0 to 1; lower is better."
    assert POSE_METRICS["pose_error"].span == "From 0 px; lower is better."
