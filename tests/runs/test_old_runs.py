"""A run folder of 0.1.0, whose files have other names and content, is refused in one message by every command."""

import json
from pathlib import Path

import pytest

from posegen.cli import app
from posegen.storage.store import LAYOUT, Store, check_layout

REFUSED = r"was made with posegen 0\.1\.0, whose files this version cannot read\. Give another --run, or remove it"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    run = tmp_path / "old"
    checkpoint = run / "stages" / "coarse" / "checkpoint_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "stage.json").write_text(json.dumps({"step": 10, "recipe": "a"}))
    (run / "plan.json").write_text(json.dumps({"settings": {}}))
    return run


@pytest.mark.parametrize("words", [
    ["shards", "--run"], ["train", "--run"], ["train", "--update", "--run"], ["evaluate", "--run"],
    ["report", "--run"], ["tune", "vdg", "--run"],
    ["compare", "--output", "out.html", "old"],
])  # fmt: skip
def test_every_command_refuses_it_and_leaves_it_as_it_is(old: Path, words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(old.parent)
    before = {path: path.read_bytes() for path in old.rglob("*.json")}
    with pytest.raises(ValueError, match=REFUSED):
        app([*words, str(old)])
    assert {path: path.read_bytes() for path in old.rglob("*.json")} == before


def test_results_without_a_record_are_refused_and_an_empty_folder_is_not(old: Path, tmp_path: Path):
    (old / "plan.json").unlink()
    with pytest.raises(ValueError, match=REFUSED):
        check_layout(Store.of(old))
    check_layout(Store.of(tmp_path / "none"))


def test_a_newer_layout_asks_for_a_newer_posegen(old: Path):
    (old / "plan.json").write_text(json.dumps({"layout": LAYOUT + 1}))
    with pytest.raises(ValueError, match=rf"newer posegen \(layout {LAYOUT + 1}, this version reads {LAYOUT}\)"):
        check_layout(Store.of(old))
    (old / "plan.json").write_text(json.dumps({"layout": LAYOUT}))
    check_layout(Store.of(old))
