"""The records of trials: what is written is read back, whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posegen.storage import files
from posegen.storage.store import Store
from posegen.tuning.results import ENDED, Trial, TrialFolder

FULL = Trial(
    number=7,
    settings={
        "refinement.alpha": 0.25,
        "refinement.width": 32,
        "refinement.discriminator": "stack",
        "refinement.direct": True,
    },
    name="best",
    seed=3,
    state="stopped",
    validations=[{"step": 60, "mask_ssim": 0.5}, {"step": 120, "mask_ssim": 0.625}],
    why="",
    seconds=12.5,
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path):
    folder = TrialFolder(Store.of(tmp_path), "trials")
    folder.write(FULL)
    assert folder.read() == [FULL]
    changed = replace(FULL, state="finished").with_validation({"step": 180, "mask_ssim": 0.75})
    folder.write(changed)
    assert TrialFolder(Store.of(tmp_path), "trials").read() == [changed]
    assert folder.path(7) == tmp_path / "trials" / "0007"


def test_kinds_of_values_survive(tmp_path: Path):
    TrialFolder(Store.of(tmp_path), "trials").write(FULL)
    kinds = {path: type(value) for path, value in TrialFolder(Store.of(tmp_path), "trials").read()[0].settings.items()}
    assert list(kinds.values()) == [float, int, str, bool]


def test_values_of_numpy_become_numbers(tmp_path: Path):
    """Scores are means of numpy's."""
    given = Trial(number=0, settings={"alpha": np.float64(0.5), "width": np.int64(32)})  # pyright: ignore
    TrialFolder(Store.of(tmp_path), "trials").write(given.with_validation({"step": 60, "mask_ssim": np.float64(0.125)}))
    content = json.loads((tmp_path / "trials" / "0000" / "trial.json").read_text())
    assert content["settings"] == {"alpha": 0.5, "width": 32}
    assert content["validations"] == [{"step": 60, "mask_ssim": 0.125}]


def test_trials_are_read_by_number_and_nothing_else_is(tmp_path: Path):
    folder = TrialFolder(Store.of(tmp_path), "trials")
    assert folder.read() == []
    for number in (10_000, 2, 0, 999, 10):
        folder.write(Trial(number=number, settings={}))
    (tmp_path / "trials" / "0003").mkdir()  # begun, but its record was not written yet
    (tmp_path / "trials" / "0004").mkdir()
    (tmp_path / "trials" / "0004" / "trial.json").write_text('{"number": 4,')
    (tmp_path / "trials" / "notes").mkdir()
    (tmp_path / "trials" / "notes" / "trial.json").write_text("{}")
    assert [trial.number for trial in folder.read()] == [0, 2, 10, 999, 10_000]


def test_nothing_but_the_record_is_left(tmp_path: Path):
    folder = TrialFolder(Store.of(tmp_path), "trials")
    for seconds in (1.0, 2.0):
        folder.write(replace(FULL, seconds=seconds))
    assert [path.name for path in folder.path(7).iterdir()] == ["trial.json"]


def test_a_writer_killed_before_the_end_leaves_the_record_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = TrialFolder(Store.of(tmp_path), "trials")
    folder.write(FULL)
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder.write(replace(FULL, state="finished"))
    assert folder.read() == [FULL]


def test_a_validation_of_the_same_step_replaces_and_later_ones_go():
    """A trial resumed from a checkpoint of step 120 is validated there again, and then at 180 for the first time."""
    whole = FULL.with_validation({"step": 180, "mask_ssim": 0.75})
    again = whole.with_validation({"step": 120, "mask_ssim": 0.25})
    assert again.validations == [{"step": 60, "mask_ssim": 0.5}, {"step": 120, "mask_ssim": 0.25}]
    assert [row["step"] for row in whole.validations] == [60, 120, 180]
    assert len(FULL.validations) == 2, "a record does not change"


def test_step_and_score_are_those_of_the_last_validation():
    assert (FULL.step, FULL.score("mask_ssim"), FULL.score("mask_l1")) == (120, 0.625, None)
    fresh = Trial(number=0, settings={})
    assert (fresh.step, fresh.score("mask_ssim")) == (0, None)


def test_trials_that_wait_or_run_have_not_ended():
    states = {state: replace(FULL, state=state).ended for state in ("waiting", "running", *ENDED)}
    assert [state for state, ended in states.items() if ended] == ["finished", "stopped", "diverged", "failed"]


def test_records_at_a_uri_are_read_on_another_node(s3_server, two_nodes):
    folder = TrialFolder(Store.of("s3://runs/records"), "trials")
    folder.write(FULL)
    two_nodes("second")
    assert folder.read() == []
    folder.store.fetch("trials")
    assert folder.read() == [FULL]
