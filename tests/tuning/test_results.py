"""What a sweep found: order, front, intervals and verdicts, by hand."""

import math
import re

import pytest

from posegen.evaluation.metrics import METRICS
from posegen.tuning.results import State, Trial, best_trial, compare_over_seeds, interval, pareto_front, ranked


def trial(number: int, state: State = "finished", **scores: float) -> Trial:
    return Trial(number=number, settings={"a.b": float(number)}, state=state, validations=[{"step": 8, **scores}])


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_says():
    trials = [trial(0, ssim=0.5, l1=0.2), trial(1, ssim=0.7, l1=0.3), trial(2, ssim=0.6, l1=0.1)]
    assert [t.number for t in ranked(trials, "ssim")] == [1, 2, 0]
    assert [t.number for t in ranked(trials, "l1")] == [2, 0, 1]
    assert best_trial(trials, ["ssim"]) is trials[1]
    assert best_trial(trials, ["l1"]) is trials[2]


def test_trials_that_were_stopped_or_lost_do_not_compete():
    trials = [trial(0, "stopped", ssim=0.9), trial(1, "diverged", ssim=0.9), trial(2, "failed"), trial(3, ssim=0.1)]
    assert best_trial(trials, ["ssim"]) is trials[3]
    assert best_trial(trials[:3], ["ssim"]) is None


def test_of_equals_the_earlier_one_is_best():
    assert best_trial([trial(1, ssim=0.5), trial(0, ssim=0.5)], ["ssim"]) == trial(0, ssim=0.5)


def test_the_front_has_those_that_nobody_beats_in_both():
    trials = [
        trial(0, ssim=0.9, l1=0.30),
        trial(1, ssim=0.8, l1=0.20),
        trial(2, ssim=0.7, l1=0.25),  # beaten by 1 in both
        trial(3, ssim=0.6, l1=0.10),
        trial(4, ssim=0.8, l1=0.20),  # the same as 1: neither beats the other
    ]
    assert [t.number for t in pareto_front(trials, ["ssim", "l1"])] == [0, 1, 3, 4]
    assert best_trial(trials, ["ssim", "l1"]) is trials[0]
    assert best_trial(trials, ["l1", "ssim"]) is trials[3]


def test_the_interval_is_students():
    """n = 3, mean 2, standard deviation 1: 2 -+ 4.3027 / sqrt(3)."""
    reach = 4.30265273 / math.sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx([2 - reach, 2 + reach])
    assert interval([5.0]) is None


def final(name: str, seed: int, mask_ssim: float) -> Trial:
    scores = {**dict.fromkeys(METRICS, 0.5), "mask_ssim": mask_ssim}
    return Trial(number=seed, name=name, seed=seed, settings={}, state="finished", validations=[{"step": 8, **scores}])


@pytest.mark.parametrize(
    ("gains", "outcome", "words"),
    [
        ([0.010, 0.011, 0.012], "better", "are better than the paper's: \\+0.0110"),
        ([-0.010, 0.011, 0.002], "same", "cannot be told apart"),
        ([-0.010, -0.011, -0.012], "worse", "Keep the paper's"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_difference(gains: list[float], outcome: str, words: str):
    papers = [final("paper", seed, 0.7 + seed / 100) for seed in (1, 2, 3)]
    bests = [final("best", seed, 0.7 + seed / 100 + gain) for seed, gain in zip((1, 2, 3), gains, strict=True)]
    compared = compare_over_seeds([*papers, *bests], "mask_ssim", pairs=400, persons=20)
    assert compared["outcome"] == outcome
    assert compared["seeds"] == [1, 2, 3]
    difference = compared["scores"]["mask_ssim"]["difference"]
    assert difference["values"] == pytest.approx(gains)
    assert difference["mean"] == pytest.approx(sum(gains) / 3)
    assert difference["interval"] == pytest.approx(interval(gains))
    assert re.search(words, compared["verdict"])


def test_lower_is_better_turns_the_verdict():
    def l1(name: str, seed: int, value: float) -> Trial:
        scores = {**dict.fromkeys(METRICS, 0.5), "l1": value}
        return Trial(
            number=seed, name=name, seed=seed, settings={}, state="finished", validations=[{"step": 8, **scores}]
        )

    finals = [l1(n, s, v + s / 1000) for n, v in (("paper", 0.20), ("best", 0.10)) for s in (1, 2, 3)]
    assert compare_over_seeds(finals, "l1", pairs=1, persons=1)["outcome"] == "better"


def test_seeds_that_did_not_finish_on_both_sides_are_left_out():
    finals = [final(name, seed, 0.5) for name in ("best", "paper") for seed in (1, 2, 3)]
    finals[1] = Trial(number=1, name="best", seed=2, settings={}, state="failed", why="a worker died")
    compared = compare_over_seeds(finals, "mask_ssim", pairs=1, persons=1)
    assert compared["seeds"] == [1, 3]
    assert compared["outcome"] == "same"


def test_where_the_papers_weights_won_they_are_compared_with_themselves():
    compared = compare_over_seeds([final("paper", seed, 0.5) for seed in (1, 2, 3)], "mask_ssim", pairs=1, persons=1)
    assert compared["outcome"] == "same"
    assert compared["scores"]["mask_ssim"]["difference"]["interval"] == [0, 0]
    assert "stay the best known" in compared["verdict"]


def test_only_scores_that_trials_have_are_compared():
    def of_joints(name: str, seed: int) -> Trial:
        validations = [{"step": 8, "pose_error": 4.0 + (name == "paper"), "pck": 0.5}]
        return Trial(number=seed, name=name, seed=seed, settings={}, state="finished", validations=validations)

    finals = [of_joints(name, seed) for name in ("best", "paper") for seed in (1, 2, 3)]
    compared = compare_over_seeds(finals, "pose_error", pairs=1, persons=1)
    assert compared["scores"].keys() == {"pose_error", "pck"}
    assert compared["outcome"] == "better"
