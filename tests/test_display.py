"""What the user reads while a run goes on, without a terminal."""

import io
from pathlib import Path

from rich.console import Console

from posegen.display import Display, score_table, terms_text


def test_the_first_and_the_last_line_are_printed_and_what_lies_close_between_is_not(tmp_path: Path):
    text = io.StringIO()
    with Display(Console(file=text, width=120)) as display:
        display.log_to(tmp_path / "pipeline.log")
        for step in range(1, 101):
            display.advance("coarse", step, 100, "generator/l1 0.5")
        display.advance("coarse", 100, 100)
        display.say("shards: done already")
        display.warn("worker 0 failed")
    lines = text.getvalue().rstrip().splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["coarse", "1/100"], ["coarse", "100/100"]]
    assert lines[2:] == ["shards: done already", "warning: worker 0 failed"]
    log = (tmp_path / "pipeline.log").read_text()
    assert "INFO shards: done already" in log
    assert "WARNING worker 0 failed" in log


def test_terms_are_shown_without_sums_and_gradients():
    terms = {"generator/l1": 0.12345, "generator/total": 3.0, "generator/gradient": 9.0, "critic/real": 1.0}
    assert terms_text(terms) == "generator/l1 0.123  critic/real 1"


def test_a_score_of_nothing_is_a_dash():
    scores = {"ssim": 0.5, "mask_ssim": None, "psnr": 12.0, "l1": 0.1, "mask_l1": 0.2}
    text = io.StringIO()
    Console(file=text, width=120).print(score_table({"pairs": 3, "scores": scores, "baselines": {"source": scores}}))
    assert "–" in text.getvalue()
    assert "3 test pairs" in text.getvalue()
