"""The command line: help with examples, plans without a start, and mistakes without a stack trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posegen import cli
from posegen.cli import app, full_pipeline, run_command

ROOT = Path(__file__).parent.parent


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command, *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["flows/full_pipeline.py", *words])
    try:
        run_command(command)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("words", [("--help",), ("shards", "--help"), ("train", "--help"), ("report", "--help")])
def test_every_command_has_help_with_an_example(monkeypatch, capsys, words: tuple[str, ...]):
    code, out, _ = call(monkeypatch, capsys, full_pipeline if len(words) == 1 else app, *words)
    assert code == 0
    assert "xample" in out
    assert "--run" in out
    assert "SYSTEM-VARIANT-DATASET" in out


def test_comparing_needs_scored_runs_and_a_known_kind_of_file(monkeypatch, capsys, tmp_path: Path):
    code, out, _ = call(monkeypatch, capsys, app, "compare", "--help")
    assert code == 0
    assert "Example: posegen compare runs/" in out
    (tmp_path / "bare").mkdir()
    code, _, err = call(monkeypatch, capsys, app, "compare", str(tmp_path / "bare"), str(tmp_path / "bare"))
    assert code == 2
    assert f"posegen evaluate --run {tmp_path / 'bare'}" in err
    code, _, err = call(monkeypatch, capsys, app, "compare", "a", "b", "--output", "compare.pdf")
    assert code == 2
    assert "ends with .html or .csv" in err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    words = ("--dry-run", "--set", "coarse.steps=7", "refinement.steps=3", "--set", "data.train_people=5")
    code, out, _ = call(monkeypatch, capsys, full_pipeline, *words)
    assert code == 0
    for part in ("coarse: 7 steps", "refinement: 3 steps", "source_image", "parameters generator", "MiB", "at most"):
        assert part in out
    assert "80 images" in out  # 5 people, 16 images each
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_published_sizes_costs_no_memory(monkeypatch, capsys):
    """Networks are counted by shape: PG2 at 256x256 would take gigabytes."""
    code, out, _ = call(monkeypatch, capsys, full_pipeline, "--dry-run", "--system", "pg2", "--size", "256x256")
    assert code == 0
    assert "256x256" in out


def test_systems_are_listed_with_their_variants(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, app, "systems")
    assert code == 0
    for name in ("vdg", "pg2", "mask-l1", "g1-hme-l1", "Ma et al", "Lakhal"):
        assert name in " ".join(out.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--system", "gan"),
        ("--set", "coarse.stps=3"),
        ("--dataset", "folder", "--root", "/nowhere"),
        ("--workers", "17"),
    ],
)
def test_mistakes_end_with_one_message_and_no_stack_trace(monkeypatch, capsys, tmp_path: Path, words: tuple[str, ...]):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, full_pipeline, *words)
    assert code == 2
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flows/full_pipeline.py", "--set", "data.identity=^(a b)"])
    assert cli._command() == ["python flows/full_pipeline.py --set 'data.identity=^(a b)'"]


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "flows/full_pipeline.py"), "--dry-run", "--run", str(tmp_path / "Прогон")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "\\u041f\\u0440" in done.stdout
