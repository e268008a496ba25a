"""What the user reads while a run goes on, without a terminal."""

import errno
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from posegen.runs.progress import Progress, score_tables, terms_text
from posegen.storage.files import patiently


@pytest.fixture(autouse=True)
def _logs_end_with_the_test() -> Iterator[None]:
    before = list(logging.getLogger("posegen").handlers)
    yield
    logging.getLogger("posegen").handlers[:] = before


def test_the_first_and_the_last_line_are_printed_and_what_lies_close_between_is_not(tmp_path: Path):
    text = io.StringIO()
    with Progress(Console(file=text, width=120)) as progress:
        progress.log_to(tmp_path / "pipeline.log")
        for step in range(1, 101):
            progress.advance("coarse", step, 100, "generator/l1 0.5")
        progress.advance("coarse", 100, 100)
        progress.info("shards: done already")
        progress.warn("worker 0 failed")
    lines = text.getvalue().rstrip().splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["coarse", "1/100"], ["coarse", "100/100"]]
    assert lines[2:] == ["shards: done already", "warning: worker 0 failed"]
    log = (tmp_path / "pipeline.log").read_text()
    assert "INFO shards: done already" in log
    assert "WARNING worker 0 failed" in log


def test_a_log_that_cannot_be_written_is_complained_of_once_and_catches_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text, log = io.StringIO(), tmp_path / "run" / "pipeline.log"
    with Progress(Console(file=text, width=300)) as progress:
        progress.log_to(log)
        log.mkdir(parents=True)  # in its place, so that it cannot be written
        progress.info("first")
        progress.warn("second")
        log.rmdir()
        progress.info("third")
    assert text.getvalue().count("cannot be written: Is a directory; going on without it") == 1
    assert [line.split(" ", 3)[-1] for line in log.read_text().splitlines()] == ["first", "second", "third"]
    assert "Logging error" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, a disk that is always full")
def test_neither_a_full_disk_nor_a_full_screen_ends_a_run(capsys: pytest.CaptureFixture[str]):
    with open("/dev/full", "w", buffering=1) as screen:
        with Progress(Console(file=screen, width=100)) as progress:
            progress.log_to(Path("/dev/full"))
            for step in (1, 2):
                progress.advance("coarse", step, 2)
            progress.info("done")
            progress.table(score_tables({"pairs": 1, "scores": {"l1": 0.5}, "baselines": {}})[0])
        with pytest.raises(OSError, match="No space left"):
            screen.close()
    assert "Logging error" not in capsys.readouterr().err


def test_warnings_of_the_storage_are_shown_and_logged(tmp_path: Path):
    text, failures = io.StringIO(), [OSError(errno.EIO, os.strerror(errno.EIO))]

    def write() -> None:
        if failures:
            raise failures.pop()

    with Progress(Console(file=text, width=400)) as progress:
        progress.log_to(tmp_path / "pipeline.log")
        patiently(write, tmp_path / "scores.json", patience=5)
    logging.getLogger("posegen.storage.files").warning("nobody listens any more")
    (line,) = text.getvalue().strip().splitlines()
    assert line.startswith(f"warning: {tmp_path / 'scores.json'} cannot be written: Input/output error")
    assert "Input/output error" in (tmp_path / "pipeline.log").read_text()


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


def test_images_joints_and_stages_have_a_table_each():
    images = {"ssim": 0.5, "mask_ssim": 0.6, "psnr": 12.0, "l1": 0.1, "mask_l1": 0.2}
    joints = {"pose_error": 4.25, "pck": 0.75, "pckh": None}
    metrics = {
        "pairs": 3, "scores": images | joints, "baselines": {"source": images | joints, "similarity": images},
        "stages": {"foreground_image": {"mask_l1": 0.0625}, "other_image": {"mask_l1": None}},
        "stage_intervals": {"foreground_image": {"mask_l1": [0.05, 0.075]}, "other_image": {"mask_l1": None}},
    }  # fmt: skip
    of_images, of_joints, of_stages = printed(metrics)
    assert "similarity" in of_images
    assert "pose_error" not in of_images
    assert "4.25" in of_joints
    assert "similarity" not in of_joints
    assert next(line for line in of_stages.splitlines() if "foreground_image" in line).split() == [
        "│", "foreground_image", "│", "0.0625", "│", "0.05", "to", "0.075", "│",
    ]  # fmt: skip
    assert not any("…" in text for text in (of_images, of_joints, of_stages))
    assert len(printed({"pairs": 3, "scores": joints, "baselines": {"source": joints}})) == 1
