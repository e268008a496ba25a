"""The axes and charts of a sweep's page: places worked out by hand, and whatever a sweep may leave behind."""

import dataclasses
import math

import pytest

from posegen.report.drawing import Tick
from posegen.tuning.content import (
    APART,
    CURVES,
    SCATTER,
    TALL,
    colour,
    learning_curves,
    number_axis,
    parallel_axes,
    parallel_lines,
    pareto,
    path_axis,
    rank_correlation,
    scatters,
    score_axis,
    setting_axis,
)
from posegen.tuning.results import Trial
from tests.tuning.made_up_sweep import a_sweep, trial


def points(polyline: str) -> list[tuple[float, float]]:
    return [tuple(float(number) for number in point.split(",")) for point in polyline.split()]  # pyright: ignore[reportReturnType]


# Axes


def test_logarithmic_axis_has_equal_factors_at_equal_distances():
    axis = setting_axis([1.0, 100.0], logarithmic=True)
    places = [axis.position(value) for value in (1, 10, 100)]
    assert places[1] == pytest.approx(0.5)
    assert places[2] - 0.5 == pytest.approx(0.5 - places[0])
    assert places[0] == pytest.approx(0.1 / 2.2)  # two decades and a twentieth of them on either side
    assert axis.position(0) is None
    assert {tick.label: tick.at for tick in axis.ticks} == pytest.approx({"1": places[0], "10": 0.5, "100": places[2]})


def test_logarithmic_axis_of_less_than_a_decade_still_has_ticks():
    assert [tick.label for tick in setting_axis([1.5, 6.0], logarithmic=True).ticks] == ["2", "5"]
    assert len(setting_axis([1e-6, 1e6], logarithmic=True).ticks) <= 8


def test_what_is_not_above_zero_makes_the_axis_linear():
    axis = setting_axis([0.0, 10.0], logarithmic=True)
    assert not axis.logarithmic
    assert axis.position(5) == pytest.approx(0.5)


def test_words_and_choices_are_spread_evenly():
    axis = setting_axis(["w", "plain", "w", None])
    assert [(tick.label, tick.at) for tick in axis.ticks] == [("plain", 0.25), ("w", 0.75)]
    assert setting_axis([True, False]).position(True) == 0.75
    assert axis.position("another") is None
    choice = setting_axis([4, 1, 2, 1], choice=True)
    assert [choice.position(value) for value in (1, 2, 4)] == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_one_of_in_the_space_is_a_choice_and_the_papers_value_is_on_it():
    trials = [trial(0, {"s.steps": 1}), trial(1, {"s.steps": 8})]
    sweep = a_sweep(trials, space={"s.steps": "one of 1, 8"}, paper={"s.steps": 2})
    assert path_axis(sweep, "s.steps").names == ["1", "2", "8"]
    assert not path_axis(dataclasses.replace(sweep, space={"s.steps": "integers from 1 to 8"}), "s.steps").names


def test_linear_axis_and_its_whole_ticks():
    axis = number_axis(0, 10)
    assert (axis.low, axis.high) == (-0.5, 10.5)
    assert axis.position(5) == 0.5
    assert axis.position(99) == 1
    assert axis.position(math.nan) is None
    assert [tick.label for tick in setting_axis([1, 3]).ticks] == ["1", "2", "3"]


@pytest.mark.parametrize("values", [[0.3, 0.3], [0.3], [0], [0.1 + 0.2, 0.3]])
def test_equal_values_lie_in_the_middle(values):
    axis = setting_axis(values)
    assert axis.position(values[0]) == pytest.approx(0.5, abs=0.01)
    assert axis.ticks


def test_equal_values_lie_in_the_middle_of_a_logarithmic_axis():
    assert setting_axis([7.0, 7.0], logarithmic=True).position(7) == pytest.approx(0.5)


def test_a_score_that_exploded_does_not_flatten_the_others():
    axis = score_axis([0.1, 0.11, 0.12, 0.13, 0.14, 50.0])
    assert axis.high < 0.2
    assert axis.position(50.0) == 1


# Charts


def test_parallel_lines_pass_their_values(three):
    lines = {number: points(line) for number, line in parallel_lines(three).items()}
    assert [x for x, _ in lines[0]] == [0, APART]
    assert lines[0][0][1] == pytest.approx(TALL / 2, abs=0.1)  # 10 is midway between 1 and 100
    assert lines[1][0][1] < lines[0][0][1] < lines[2][0][1]  # y downwards
    assert lines[1][1][1] > lines[0][1][1] > lines[2][1][1]  # scores grow upwards, whichever way is better
    assert [(axis.path, axis.at) for axis in parallel_axes(three)] == [("s.weight", 0), ("mask_l1", APART)]
    assert [axis.paper for axis in parallel_axes(three)] == [pytest.approx(TALL / 2), None]


def test_a_line_without_a_score_ends_before_the_last_axis():
    space = {"s.a": "uniform", "s.b": "uniform"}
    trials = [trial(n, {"s.a": 0.1 * n, "s.b": 1}, mask_l1=[score]) for n, score in enumerate((0.1, math.nan))]
    drawn = parallel_lines(a_sweep(trials, space=space))
    assert [len(points(drawn[number])) for number in (0, 1)] == [3, 2]
    assert "nan" not in drawn[1]
    assert parallel_lines(a_sweep([Trial(number=0, settings={})])) == {}


def test_scatter_has_a_point_a_validated_trial_and_the_papers_value(three):
    unscored = trial(3, {"s.weight": 2.0}, "failed")
    (chart,) = scatters(dataclasses.replace(three, trials=[*three.trials, unscored]))
    assert [number for number, _, _ in chart.points] == [0, 1, 2]
    assert chart.points[0][1] == chart.paper == pytest.approx(SCATTER[0] / 2)
    for _, x, y in chart.points:
        assert 0 <= x <= SCATTER[0]
        assert 0 <= y <= SCATTER[1]


def test_trend_is_of_the_trials_that_finished():
    trials = [trial(n, {"s.weight": float(n + 1)}, mask_l1=[0.5 - 0.01 * n]) for n in range(5)]
    trials.append(trial(5, {"s.weight": 100.0}, "stopped", mask_l1=[0.9]))
    assert scatters(a_sweep(trials))[0].note == "ρ −1.00"
    assert scatters(a_sweep(trials[1:]))[0].note == ""
    words = [dataclasses.replace(t, settings={"s.weight": "w"}) for t in trials]
    assert scatters(a_sweep(words))[0].note == ""


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4, 100], [1, 4, 9, 16, 17]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert rank_correlation([1, 1, 2, 2, 3], [1, 1, 2, 2, 3]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None


def test_pareto_front_is_joined_from_left_to_right():
    scores = {0: (0.1, 0.5), 1: (0.3, 0.9), 2: (0.2, 0.7), 3: (0.3, 0.5)}
    trials = [trial(n, {"s.weight": 1.0}, mask_l1=[a], ssim=[b]) for n, (a, b) in scores.items()]
    chart = pareto(a_sweep(trials, metrics=["mask_l1", "ssim"], front=[0, 1, 2]))
    assert len(chart.points) == 4
    front = points(chart.front)
    assert front == sorted(front)
    assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)
    assert front[1] == pytest.approx((SCATTER[0] / 2, SCATTER[1] / 2))
    assert pareto(a_sweep(trials)) is None


def test_learning_curves_end_where_the_trial_was_stopped(three):
    lines, steps, _, rungs = learning_curves(three)
    drawn = {line.trial: points(line.points) for line in lines}
    assert [x for x, _ in drawn[0]] == pytest.approx([CURVES[0] / 3, CURVES[0] * 2 / 3, CURVES[0]], abs=0.1)
    assert len(drawn[2]) == 1
    assert drawn[1][0][1] < drawn[1][-1][1]  # mask-L1 falls
    assert [(rung.at, rung.label) for rung in rungs] == [(pytest.approx(CURVES[0] / 3), "100")]
    assert steps[0] == Tick(0.0, "0")
    assert lines[0].end == pytest.approx(drawn[0][-1], abs=0.1)


def test_learning_curves_of_a_sweep_without_steps_have_axes():
    sweep = a_sweep([])
    lines, steps, heights, rungs = learning_curves(dataclasses.replace(sweep, about={**sweep.about, "budget": 0}))
    assert (lines, heights, rungs) == ([], [], [])
    assert steps


def test_learning_curves_leave_out_what_is_not_finite():
    rows = [{"step": 100, "mask_l1": 0.3}, {"step": 200, "mask_l1": None}, {"step": 300, "mask_l1": math.inf}]
    broken = Trial(number=0, settings={"s.weight": 1.0}, state="diverged", validations=rows)  # pyright: ignore[reportArgumentType]
    lines, *_ = learning_curves(a_sweep([broken, trial(1, {}, "failed")]))
    assert [(line.trial, len(points(line.points))) for line in lines] == [(0, 1)]


# Colours


def test_better_is_farther_from_the_ground():
    def brightness(text: str) -> float:
        return sum(int(text[at : at + 2], 16) * share for at, share in ((1, 0.2126), (3, 0.7152), (5, 0.0722)))

    light = [brightness(colour(level / 10, dark=False)) for level in range(11)]
    dark = [brightness(colour(level / 10, dark=True)) for level in range(11)]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)
    assert light[0] < 190  # of 255: still seen on white
    assert dark[0] > 60  # and on black
