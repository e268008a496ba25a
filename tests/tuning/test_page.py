"""The page of a sweep: directions of metrics, what it says, and whatever a sweep may leave behind."""

import dataclasses
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posegen.evaluation.metrics import METRICS
from posegen.report.panels import Panel
from posegen.tuning.content import SampleRow, SweepContent, value_text
from posegen.tuning.page import (
    against,
    best_card,
    by_rank,
    duration,
    effort,
    final_rows,
    fine_score,
    goodness,
    looks,
    split_path,
    write_sweep_page,
)
from posegen.tuning.results import Trial
from tests.tuning.made_up_sweep import a_sweep, trial

VOID = {"meta", "img", "input", "br", "wbr"}
HOSTILE = "<script>alert('&\"')</script>"


# Directions


def test_lower_is_better_and_higher_is_better():
    settings = {"s.weight": 1.0}
    scores = {0: 0.1, 1: 0.2, 2: 0.4}
    for name, best, worst in (("mask_l1", 0, 2), ("ssim", 2, 0)):
        sweep = a_sweep([trial(n, settings, **{name: [score]}) for n, score in scores.items()], metrics=[name])
        levels = goodness(sweep)
        assert (levels[best], levels[worst]) == (1, 0)
        assert levels[1] == pytest.approx(2 / 3 if name == "mask_l1" else 1 / 3)
        assert [t.number for t in by_rank(sweep)] == [best, 1, worst]
        assert list(looks(sweep)) == [worst, 1, best]


def test_the_best_is_drawn_last_though_a_stopped_one_has_a_better_score():
    sweep = a_sweep([trial(0, {}, mask_l1=[0.3]), trial(1, {}, "stopped", mask_l1=[0.1])], best=0)
    assert list(looks(sweep)) == [1, 0]
    assert "leader" in looks(sweep)[0]["classes"].split()


def test_colours_span_the_trials_that_finished():
    trials = [trial(0, {}, mask_l1=[0.2]), trial(1, {}, mask_l1=[0.4]), trial(2, {}, "stopped", mask_l1=[0.9])]
    assert goodness(a_sweep(trials)) == {0: 1, 1: 0, 2: 0}
    assert goodness(a_sweep(trials[2:])) == {2: 1}
    assert goodness(a_sweep([])) == {}


@pytest.mark.parametrize(
    ("metric", "mine", "other", "expected"),
    [
        ("mask_l1", 0.09, 0.1, ("10.0 % lower", "good")),
        ("mask_l1", 0.12, 0.1, ("20.0 % higher", "bad")),
        ("ssim", 0.55, 0.5, ("10.0 % higher", "good")),
        ("ssim", -0.1, 0.5, ("−0.6000", "bad")),
        ("psnr", 20.5, 20.0, ("+0.500 dB", "good")),
        ("ssim", 0.5, 0.5, ("the same", "")),
        ("ssim", None, 0.5, ("", "")),
    ],
)
def test_against(metric, mine, other, expected):
    assert against(metric, mine, other) == expected


# What the head says


def test_best_card_compares_trials_of_the_same_step_only(three):
    card = best_card(three)
    assert (card["trial"].number, card["paper"].number) == (1, 0)
    assert (card["text"], card["kind"]) == ("50.0 % lower", "good")
    short = dataclasses.replace(three.trials[0], validations=three.trials[0].validations[:2], state="stopped")
    card = best_card(dataclasses.replace(three, trials=[short, *three.trials[1:]]))
    assert (card["paper"], card["text"]) == (short, "")
    assert best_card(dataclasses.replace(three, best=None)) is None


def test_papers_trial_is_the_one_with_all_its_values(three):
    assert three.papers_trial.number == 0
    more = dataclasses.replace(three, space={**three.space, "s.mask": "one of w, plain"})
    assert dataclasses.replace(more, paper={"s.weight": 10.0, "s.mask": "w"}).papers_trial is None
    assert dataclasses.replace(three, space={}).papers_trial is None


def test_effort_counts_what_only_stopped_trials_left_out(three):
    failed = trial(3, {"s.weight": 2.0}, "failed")
    counted = effort(dataclasses.replace(three, trials=[*three.trials, failed]))
    assert counted == {
        "trained": 300 + 300 + 100 + 50,
        "saved by shared stages": 100,
        "saved by stopping early": 200,
    }


def test_ranking_lists_what_finished_first_and_what_never_began_last(three):
    waiting, failed = Trial(number=3, settings={}), trial(4, {}, "failed")
    farther = trial(5, {}, "stopped", mask_l1=[0.9, 0.9])
    unscored = trial(6, {}, mask_l1=[math.nan])
    sweep = dataclasses.replace(three, trials=[waiting, failed, farther, unscored, *three.trials])
    assert [t.number for t in by_rank(sweep)] == [1, 0, 6, 5, 2, 4, 3]


# Words


def test_values_as_one_reads_them():
    texts = [value_text(value) for value in (0.123456, 1000.0, 12345, 2e-5, True, None, [1, 0.5], "w", math.inf)]
    assert texts == ["0.1235", "1,000", "12,345", "2e-05", "yes", "not set", "1, 0.5", "w", "inf"]
    assert value_text(0.123456, digits=12) == "0.123456"
    assert [duration(seconds) for seconds in (42.4, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 05 min"]
    assert [fine_score("ssim", 0.51234), fine_score("psnr", 20.0), fine_score("ssim", None)] == [
        "0.5123",
        "20.000",
        "–",
    ]
    assert split_path("stage.inner.weight") == ("stage.inner", "weight")
    assert split_path("x" * 40)[1] == "…" + "x" * 23


# The final comparison


def side(mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    interval = None if low is None else [low, high]
    return {"values": [mean, mean], "mean": mean, "interval": interval}


def test_final_rows_know_the_better_one_and_draw_it_to_the_right():
    scores = {
        "mask_l1": {"best": side(0.1), "paper": side(0.2), "difference": side(-0.1, -0.15, -0.05)},
        "ssim": {"best": side(0.4), "paper": side(0.5), "difference": side(-0.1, -0.3, 0.1)},
        "psnr": {"best": side(None), "paper": side(20.0), "difference": side(None)},
    }
    lower, higher, unknown = final_rows({"scores": scores})
    assert (lower["kind"], lower["apart"]) == ("good", True)
    assert (higher["kind"], higher["apart"]) == ("bad", False)
    assert (unknown["kind"], unknown["reach"]) == ("", None)
    assert lower["reach"]["mean"] == pytest.approx(50 + 46 * 2 / 3)
    assert lower["reach"]["ends"] == pytest.approx([50 + 46 / 3, 96])
    assert higher["reach"]["mean"] < 50


# The page


class Strict(HTMLParser):
    """Fails on tags that are not closed in order; collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def written(path: Path, sweep: SweepContent, rows=(), shown=None) -> tuple[str, Strict]:
    page = write_sweep_page(path / "report/tune.html", sweep, list(rows), shown or {}).read_text(encoding="utf-8")
    parsed = Strict()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for _, name, value in parsed.attributes if name == "href" and value.startswith("#")}
    assert anchors <= set(ids)
    drawn = " ".join(value for _, name, value in parsed.attributes if name in {"points", "d", "x", "y", "cx", "cy"})
    assert not re.search(r"nan|inf|None", drawn)
    return page, parsed


def image(value: int) -> np.ndarray:
    return np.full((64, 32, 3), value, np.uint8)


@pytest.fixture
def whole(three) -> SweepContent:
    """Everything that a sweep may have, in hostile words."""
    broken = dataclasses.replace(trial(3, {"s.weight": 5.0}, "failed"), why=HOSTILE)
    rows = [{"step": 100, "mask_l1": 0.4, "ssim": 0.3}]
    running = Trial(number=4, settings={"s.weight": 50.0}, state="running", validations=rows)
    scores = {name: {side_: side(0.5, 0.4, 0.6) for side_ in ("best", "paper", "difference")} for name in METRICS}
    final = {"pairs": 1234, "persons": 56, "seeds": [7, 8], "verdict": f"verdict {HOSTILE}", "outcome": "same"}
    return dataclasses.replace(
        three, trials=[*three.trials, broken, running], metrics=["mask_l1", "ssim"], front=[1],
        about={**three.about, "dataset": HOSTILE, "stand_ins": [HOSTILE]},
        space={"s.weight": HOSTILE}, tracking="mlflow ui", command=[HOSTILE],
        settings={"s.name": HOSTILE, "s.none": None}, final={**final, "scores": scores},
    )  # fmt: skip


@pytest.fixture
def pairs() -> list[SampleRow]:
    given = [Panel(label, "given", image(n)) for n, label in enumerate(("source", "target pose", "target"))]
    return [
        SampleRow(HOSTILE, "target.jpg", given, {1: image(9), 0: image(8)}),
        SampleRow("a", "b", given, {1: image(7)}),
    ]


def test_nothing_is_fetched(tmp_path, whole, pairs):
    page, parsed = written(tmp_path, whole, pairs, {1: HOSTILE, 0: "paper's weights, trial 0"})
    references = [value for _, name, value in parsed.attributes if name in {"src", "href", "srcset", "action", "data"}]
    assert len([value for value in references if value.startswith("data:image/")]) == 2 * 3 + 3
    assert all(value.startswith(("data:image/", "#")) for value in references)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", re.sub(r"base64,[^\"]*", "", page))


def test_everything_is_escaped(tmp_path, whole, pairs):
    page, parsed = written(tmp_path, whole, pairs, {1: HOSTILE})
    assert page.count("<script>") == 1  # the page's own
    assert html.escape("<script>alert(", quote=False) in page
    assert (
        parsed.text.count(HOSTILE) >= 9
    )  # title, head, why twice, verdict twice, label, pair, space, command, setting


def test_every_trial_is_in_the_table_and_in_the_charts(tmp_path, whole):
    _, parsed = written(tmp_path, whole)
    found = [(tag, value) for tag, name, value in parsed.attributes if name == "data-trial"]
    assert sorted(value for tag, value in found if tag == "tr") == ["0", "1", "2", "3", "4"]
    drawn = [
        value for tag, value in found if tag == "g"
    ]  # parallel, scatter, learning, and Pareto where both are known
    assert {number: drawn.count(number) for number in "01234"} == {"0": 3, "1": 3, "2": 3, "3": 0, "4": 4}


def test_page_tells_the_sweep(tmp_path, whole):
    _, parsed = written(tmp_path, whole)
    for said in (
        "5 trials over 1 setting",
        "64 validation pairs of 8 persons",
        "0.1000 trial 1",
        "50.0 % lower than the paper's",
        "saved by shared stages100",
        "saved by stopping early200",
        "1,234 pairs of 56 persons",
        "Student's t over n = 2 seeds",
        "Trial 0 has the paper's values.",
        "mlflow ui",
        "No difference",
        "not set",
    ):
        assert said in parsed.text, said
    assert all(metric.title in parsed.text for metric in METRICS.values())


@pytest.mark.parametrize(
    ("outcome", "kind"), [("better", "card good"), ("worse", "card bad"), ("same", "card ")], ids=lambda value: value
)
def test_the_verdict_is_coloured_by_its_outcome(tmp_path, whole, outcome, kind):
    _, parsed = written(tmp_path, dataclasses.replace(whole, final={**whole.final, "outcome": outcome}))
    cards = [value for tag, name, value in parsed.attributes if (tag, name) == ("section", "class")]
    assert cards[3] == kind


def test_a_sweep_without_validations_has_a_page(tmp_path):
    _, parsed = written(tmp_path, a_sweep([]))
    for said in (
        "No trial has started yet.",
        "No trial has been validated yet.",
        "No images were kept.",
        "Not compared yet.",
    ):
        assert said in parsed.text, said
    assert "Failed trials" not in parsed.text
    unscored = [Trial(number=0, settings={"s.weight": 3.0}), trial(1, {"s.weight": 4.0}, "failed")]
    _, parsed = written(tmp_path, a_sweep(unscored))
    assert "No reason was recorded." in parsed.text


def test_a_single_trial_and_equal_scores(tmp_path):
    one = trial(0, {"s.weight": 10.0}, mask_l1=[0.2])
    _, parsed = written(tmp_path, a_sweep([one], best=0))
    assert "with the paper's own values" in parsed.text
    equal = [trial(n, {"s.weight": 10.0 + n}, mask_l1=[0.2]) for n in range(3)]
    _, parsed = written(tmp_path, a_sweep(equal, best=1))
    assert "the same as the paper's" in parsed.text


def test_eight_settings_of_all_kinds_and_two_hundred_trials(tmp_path):
    kinds = [lambda n: n / 7, lambda n: n, lambda n: n % 2 == 0, lambda n: "abc"[n % 3]]
    space = {f"a_stage.with.long_names.of_a_field_{k}": "uniform" for k in range(8)}
    draws = [{path: kinds[k % 4](n) for k, path in enumerate(space)} for n in range(200)]
    trials = [trial(n, draw, mask_l1=[1 / (n + 1)]) for n, draw in enumerate(draws)]
    sweep = a_sweep(trials, space=space, logarithmic=list(space)[:2], paper=draws[5], best=199)
    page, _ = written(tmp_path, sweep)
    assert page.count("<tr class=") == 200
    assert len(page) < 2_000_000
    assert sweep.papers_trial.number == 5


def test_missing_images_leave_their_place_empty(tmp_path, whole, pairs):
    page, _ = written(tmp_path, whole, pairs, {1: "best", 0: "paper's"})
    assert page.count('<div class="none">') == 1
