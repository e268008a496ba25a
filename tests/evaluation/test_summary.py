"""Means and intervals against values that can be worked out by hand and against a slow bootstrap."""

import numpy as np
import pytest

from posegen.evaluation.metrics import BASELINES, METRICS, POSE_METRICS
from posegen.evaluation.scoring import FEW_PERSONS, bootstrap_draws, confidence_interval, summary


def table(values: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of the generated images and of the baselines is `values`."""
    columns = {f"{prefix}{name}": values for prefix in ("", *(f"{b}." for b in BASELINES)) for name in METRICS}
    count = len(values)
    return columns | {"finite": np.ones(count, bool), "similarity.stood_in": np.zeros(count, bool)}


def test_interval_of_a_constant_is_that_constant():
    units = np.arange(20)
    assert confidence_interval(np.full(20, 0.25), units, bootstrap_draws(20)) == [0.25, 0.25]


def test_interval_is_the_slow_bootstraps():
    random = np.random.default_rng(1)
    units, values = np.repeat(np.arange(8), [1, 5, 2, 7, 3, 3, 4, 6]), random.normal(size=31)
    draws = bootstrap_draws(8)
    slow = []
    for row in draws:
        drawn = [value for unit, times in enumerate(row) for _ in range(times) for value in values[units == unit]]
        slow.append(sum(drawn) / len(drawn))
    np.testing.assert_allclose(confidence_interval(values, units, draws), np.percentile(slow, [2.5, 97.5]), rtol=1e-10)


def test_interval_has_the_width_of_the_normal_one_where_persons_are_alike():
    values = np.random.default_rng(0).normal(size=400)
    low, high = confidence_interval(values, np.arange(400), bootstrap_draws(400))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_pairs_of_one_person_do_not_count_as_many():
    """100 persons with 25 equal pairs each are known as well as 100 pairs, not as 2,500."""
    of_person = np.random.default_rng(0).normal(size=100)
    values, persons = of_person.repeat(25), np.arange(100).repeat(25)
    by_person = confidence_interval(values, persons, bootstrap_draws(100))
    by_pair = confidence_interval(values, np.arange(2500), bootstrap_draws(2500))
    assert (by_person[1] - by_person[0]) == pytest.approx(5 * (by_pair[1] - by_pair[0]), rel=0.15)


def test_missing_values_are_left_out_and_counted():
    values = np.array([0.1, np.nan, 0.3, 0.2, 0.2, 0.2])
    found = summary(table(values), list("abcdef"))
    assert found["scores"]["mask_l1"] == pytest.approx(0.2)
    reason = METRICS["mask_l1"].undefined
    assert found["notes"][f"mask_l1 is undefined: {reason}"] == 1
    assert found["notes"][f"source.mask_l1 is undefined: {reason}"] == 1


def test_pairs_without_an_image_are_counted_once():
    columns = table(np.full(6, 0.5))
    for name in METRICS:
        columns[name] = np.array([0.5] * 5 + [np.nan])
    columns["finite"] = np.array([True] * 5 + [False])
    assert summary(columns, list("abcdef"))["notes"] == {"generated image has values that are not finite: no score": 1}


def test_a_mean_of_nothing_is_none():
    found = summary(table(np.full(6, np.nan)), list("abcdef"))
    assert set(found["scores"].values()) == set(found["baselines"]["mean"].values()) == {None}
    assert set(found["intervals"].values()) == {None}


def test_few_persons_fall_back_to_pairs_and_it_is_said():
    values = np.random.default_rng(0).random(40)
    few = summary(table(values), ["a", "b"] * 20)
    many = summary(table(values), [str(i % FEW_PERSONS) for i in range(40)])
    assert "over pairs, for there are only 2 persons" in few["interval_method"]
    assert "over persons" in many["interval_method"]
    assert (few["persons"], many["persons"]) == (2, FEW_PERSONS)


def test_every_part_has_every_metric():
    found = summary(table(np.linspace(0, 1, 12)), [str(i) for i in range(12)])
    parts = [found["scores"], found["intervals"], *found["baselines"].values(), *found["baseline_intervals"].values()]
    assert all(part.keys() == METRICS.keys() for part in [*parts, found["variants"]])
    assert found["baselines"].keys() == found["baseline_intervals"].keys() == BASELINES.keys()
    assert all(low <= found["scores"][name] <= high for name, (low, high) in found["intervals"].items())


def test_a_table_of_joints_has_their_scores_and_baselines_alone():
    values = np.linspace(1, 2, 12)
    columns = {f"{prefix}{name}": values for prefix in ("", "source.", "mean.") for name in POSE_METRICS}
    columns["pose_error"] = np.where(np.arange(12) < 2, np.nan, values)
    columns["finite"] = np.arange(12) > 0
    found = summary(columns, [str(i) for i in range(12)])
    assert found["scores"].keys() == found["baselines"]["mean"].keys() == POSE_METRICS.keys()
    assert found["baselines"].keys() == {"source", "mean"}
    assert "stages" not in found
    assert found["notes"] == {
        "predicted joints have values that are not finite: no score": 1,
        f"pose_error is undefined: {POSE_METRICS['pose_error'].undefined}": 1,
    }


def test_stages_have_their_means_and_intervals():
    values = np.linspace(0, 1, 12)
    found = summary(table(values) | {"foreground_image.mask_l1": values / 2}, [str(i) for i in range(12)])
    assert found["stages"] == {"foreground_image": {"mask_l1": pytest.approx(0.25)}}
    low, high = found["stage_intervals"]["foreground_image"]["mask_l1"]
    assert [2 * low, 2 * high] == pytest.approx(found["intervals"]["mask_l1"])
    assert found["baselines"].keys() == BASELINES.keys()
