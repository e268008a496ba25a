"""Who proposes: TPE finds a planted optimum, and learns the same however and whenever it is told."""

import math
from statistics import mean

import pytest
from ray import tune

from posegen.tuning.results import Settings, Trial
from posegen.tuning.space import TPE, FixedList, SearchAlgorithm, Space, random_points

ALPHA, WEIGHT = "refinement.alpha", "refinement.image_weight"
SPACE = Space("here", {ALPHA: tune.uniform(0, 1), WEIGHT: tune.loguniform(1, 1000)})
SPACE.distributions  # noqa: B018  (quietens Optuna, as load_space does)
OPTIMUM = (0.35, math.log(120) / math.log(1000))  # alpha 0.35, weight 120, on axes from 0 to 1
UP, DOWN = [("ssim", True)], [("ssim", False)]
TRIALS = 40


def unit(settings: Settings) -> tuple[float, float]:
    """Each setting as its share of the way from the low end to the high one, on its own scale."""
    return float(settings[ALPHA]), math.log(float(settings[WEIGHT])) / math.log(1000)


def planted(settings: Settings) -> float:
    """0.8 at the optimum; falls by half of the squared distance."""
    return 0.8 - 0.5 * sum((a - b) ** 2 for a, b in zip(unit(settings), OPTIMUM, strict=True))


def trial(number: int, settings: Settings, *scores: float, state: str = "finished", **other: float) -> Trial:
    """Validated at each quarter of 240 steps, as far as scores are given."""
    rows = [{"step": 60 * (quarter + 1), "ssim": score, **other} for quarter, score in enumerate(scores)]
    return Trial(number=number, settings=settings, state=state, validations=rows)  # pyright: ignore


def searched(algorithm: SearchAlgorithm, *, sign: float = 1.0, trials: int = TRIALS) -> list[Trial]:
    """A whole search: each trial is suggested, validated and observed before the next one."""
    done = []
    for number in range(trials):
        settings = algorithm.suggest(number)
        done.append(trial(number, settings, sign * planted(settings)))
        algorithm.observe(done[-1])
    return done


def best(trials: list[Trial]) -> Trial:
    return max(trials, key=lambda each: planted(each.settings))


def test_tpe_finds_a_planted_optimum_and_beats_random_search_at_equal_trials():
    by_tpe = [best(searched(TPE(SPACE, UP, seed, TRIALS))) for seed in range(10)]
    by_chance = [best(searched(FixedList(random_points(SPACE, seed, TRIALS)))) for seed in range(10)]
    away = [abs(a - b) for found in by_tpe for a, b in zip(unit(found.settings), OPTIMUM, strict=True)]
    assert max(away) < 0.05
    assert mean(planted(t.settings) for t in by_tpe) > mean(planted(t.settings) for t in by_chance)


def test_a_score_that_is_better_when_lower_is_searched_the_other_way():
    found = [best(searched(TPE(SPACE, DOWN, seed, TRIALS), sign=-1)) for seed in range(3)]
    away = [abs(a - b) for each in found for a, b in zip(unit(each.settings), OPTIMUM, strict=True)]
    assert max(away) < 0.05
    assert [t.settings for t in searched(TPE(SPACE, DOWN, 0, 12), sign=-1)] == [
        t.settings for t in searched(TPE(SPACE, UP, 0, 12))
    ]


def test_a_search_is_a_function_of_its_seed():
    first, again, other = ([t.settings for t in searched(TPE(SPACE, UP, s, 12), trials=12)] for s in (1, 1, 2))
    assert first == again
    assert not any(settings in other for settings in first)
    assert len({tuple(settings.values()) for settings in first}) == 12


@pytest.mark.parametrize("metrics", [UP, [("ssim", True), ("l1", False)]], ids=["one score", "two scores"])
def test_what_is_observed_at_once_is_what_was_observed_one_by_one(metrics: list[tuple[str, bool]]):
    live, ended = TPE(SPACE, metrics, 5, 30), []
    for number in range(15):
        settings = live.suggest(number)
        state = ("finished", "stopped", "diverged", "failed", "finished")[number % 5]
        scores = [planted(settings)] * (4 if state == "finished" else 1)
        ended.append(trial(number, settings, *scores, state=state, l1=float(settings[ALPHA])))
        live.observe(ended[-1])
    resumed = TPE(SPACE, metrics, 5, 30)
    for each in ended:
        resumed.observe(each)
    assert [resumed.suggest(number) for number in (15, 16)] == [live.suggest(number) for number in (15, 16)]
    assert resumed.suggest(15) != TPE(SPACE, metrics, 5, 30).suggest(15), "what was observed counts"


def test_trials_suggested_side_by_side_differ():
    algorithm = TPE(SPACE, UP, 0, TRIALS)
    for each in searched(FixedList(random_points(SPACE, 1, 12)), trials=12):
        algorithm.observe(each)
    assert len({tuple(algorithm.suggest(number).values()) for number in (12, 13, 14)}) == 3


@pytest.mark.parametrize("state", ["diverged", "stopped"])
def test_suggestions_keep_away_from_where_trials_were_lost(state: str):
    """Below alpha 0.5, where the optimum is, every trial is lost: it diverged, or was stopped at a low score."""
    algorithm = TPE(SPACE, UP, 0, TRIALS)
    for each in searched(FixedList(random_points(SPACE, 3, 24)), trials=24):
        low = float(each.settings[ALPHA]) < 0.5
        algorithm.observe(trial(each.number, each.settings, 0.1, state=state) if low else each)
    suggested = [float(algorithm.suggest(number)[ALPHA]) for number in range(24, 44)]
    assert sum(alpha > 0.5 for alpha in suggested) >= 16


def test_failed_trials_teach_nothing():
    told, untold = TPE(SPACE, UP, 0, TRIALS), TPE(SPACE, UP, 0, TRIALS)
    for each in searched(FixedList(random_points(SPACE, 3, 12)), trials=12):
        told.observe(each)
        untold.observe(each)
        told.observe(trial(each.number, {ALPHA: 0.5, WEIGHT: 10.0}, 0.9, state="failed"))
    assert told.suggest(12) == untold.suggest(12)


@pytest.mark.parametrize("outside", [{ALPHA: 1.2, WEIGHT: 10.0}, {ALPHA: 0.5, WEIGHT: 5000.0}])
def test_a_trial_outside_the_space_is_passed_over(outside: Settings):
    """Such as the paper's own values where the space leaves them out."""
    told, untold = TPE(SPACE, UP, 0, TRIALS), TPE(SPACE, UP, 0, TRIALS)
    told.observe(trial(0, outside, 0.9))
    for each in searched(FixedList(random_points(SPACE, 3, 12)), trials=12):
        told.observe(each)
        untold.observe(each)
    assert told.suggest(13) == untold.suggest(13)


@pytest.mark.parametrize(
    ("domain", "value"),
    [(tune.choice(["stack", "image"]), "pair"), (tune.loguniform(1, 10), 0.0)],
    ids=["no choice", "zero on a logarithmic scale"],
)
def test_a_trial_outside_the_space_by_kind_is_passed_over(domain, value):
    algorithm = TPE(Space("here", {"setting": domain}), UP, 0, TRIALS)
    algorithm.observe(trial(0, {"setting": value}, 0.9))
    assert algorithm.suggest(1)["setting"] in ("stack", "image") or 1 <= algorithm.suggest(1)["setting"] <= 10


def test_choices_and_whole_numbers_come_back_as_they_are():
    mixed = Space("here", {"critic": tune.choice(["stack", "image"]), "width": tune.qrandint(16, 64, 16)})
    algorithm, seen = TPE(mixed, UP, 0, 20), []
    for number in range(20):
        seen.append(algorithm.suggest(number))
        algorithm.observe(trial(number, seen[-1], 0.9 if seen[-1] == {"critic": "image", "width": 48} else 0.1))
    assert all(type(s["width"]) is int and s["width"] in (16, 32, 48, 64) for s in seen)
    assert {s["critic"] for s in seen} == {"stack", "image"}


def test_with_two_scores_the_suggestions_draw_near_to_their_front():
    """One score rises with alpha, the other falls with it: only the weight can be right or wrong, and 120 is right."""
    algorithm, weights = TPE(SPACE, [("ssim", True), ("l1", False)], 0, 60), []
    for number in range(60):
        settings = algorithm.suggest(number)
        alpha, weight = unit(settings)
        off = abs(weight - OPTIMUM[1])
        weights.append(off)
        state = "stopped" if number % 10 == 9 else "finished"
        algorithm.observe(trial(number, settings, alpha - off, state=state, l1=alpha + off))
    by_chance = (OPTIMUM[1] ** 2 + (1 - OPTIMUM[1]) ** 2) / 2  # 0.29, the mean distance of a uniform draw
    assert mean(weights[-20:]) < 0.5 * by_chance


def test_listed_settings_are_given_by_number():
    points = random_points(SPACE, 4, 6)
    listed = FixedList(points)
    listed.observe(trial(0, points[0], 0.9))
    assert [listed.suggest(number) for number in (4, 0, 4)] == [points[4], points[0], points[4]]


def test_a_longer_random_search_begins_with_the_shorter_one():
    assert random_points(SPACE, 4, 12)[:6] == random_points(SPACE, 4, 6) == [SPACE.sample(4, n) for n in range(6)]
    assert random_points(SPACE, 5, 6)[0] != random_points(SPACE, 4, 6)[0]
