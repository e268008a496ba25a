"""A sweep on a disk that is full for a while: it ends with a message, no trial counts as failed, and it goes on."""

import json

import pytest

from posegen.storage.store import Store
from posegen.tuning.results import ENDED, TrialFolder
from tests.test_sweep import Cluster, cluster, finish, start, trials  # noqa: F401
from tests.test_trouble import AMPLE, Disk, assert_told, disk, fill_when  # noqa: F401

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


def test_trials_on_a_full_disk_wait_for_the_next_command(
    cluster: Cluster,  # noqa: F811
    disk: Disk,  # noqa: F811
):
    run, words = disk.folder / "sweep", ("--trials", "2", "--seeds", "0", "--scheduler", "none")
    disk.holds(2 * AMPLE)
    process = start(cluster, run, *words)
    ballast = fill_when(lambda: any(trial.validations for trial in trials(run)), disk, process)
    assert_told(process, "cannot be written: No space left on device", "the same command goes on")
    before = trials(run)
    assert before
    assert not [trial.state for trial in before if trial.state in ENDED and trial.state != "finished"]
    ballast.unlink()
    finish(start(cluster, run, *words))
    after = TrialFolder(Store.of(run), "trials").read()
    assert [trial.state for trial in after] == ["finished"] * 2
    assert json.loads((run / "best.json").read_text())["found"]["sweep"] == str(run)
