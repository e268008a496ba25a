"""What the user reads while a run goes on, without a terminal."""

import io
from pathlib import Path

from rich.console import Console

from posegen.display import Display, score_tables, terms_text


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


def printed(metrics: dict) -> list[str]:
    """The tables of metrics.json's content in a terminal of 80 columns, one text a table."""
    texts = [io.StringIO() for _ in score_tables(metrics)]
    for text, table in zip(texts, score_tables(metrics), strict=True):
        Console(file=text, width=80).print(table)
    return [text.getvalue() for text in texts]


def test_a_score_of_nothing_is_a_dash():
    scores = {"ssim": 0.5, "mask_ssim": None, "psnr": 12.0, "l1": 0.1, "mask_l1": 0.2}
    (text,) = printed({"pairs": 3, "scores": scores, "baselines": {"source": scores}})
    assert "–" in text
    assert "3 test pairs" in text


def test_pictures_joints_and_stages_have_a_table_each():
    pictures = {"ssim": 0.5, "mask_ssim": 0.6, "psnr": 12.0, "l1": 0.1, "mask_l1": 0.2}
    joints = {"pose_error": 4.25, "pck": 0.75, "pckh": None}
    metrics = {
        "pairs": 3, "scores": pictures | joints, "baselines": {"source": pictures | joints, "similarity": pictures},
        "stages": {"foreground_image": {"mask_l1": 0.0625}, "other_image": {"mask_l1": None}},
        "stage_intervals": {"foreground_image": {"mask_l1": [0.05, 0.075]}, "other_image": {"mask_l1": None}},
    }  # fmt: skip
    of_pictures, of_joints, of_stages = printed(metrics)
    assert "similarity" in of_pictures
    assert "pose_error" not in of_pictures
    assert "4.25" in of_joints
    assert "similarity" not in of_joints
    assert next(line for line in of_stages.splitlines() if "foreground_image" in line).split() == [
        "│", "foreground_image", "│", "0.0625", "│", "0.05", "to", "0.075", "│",
    ]  # fmt: skip
    assert not any("…" in text for text in (of_pictures, of_joints, of_stages))
    assert len(printed({"pairs": 3, "scores": joints, "baselines": {"source": joints}})) == 1
