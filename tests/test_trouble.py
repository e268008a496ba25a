"""Runs on storage that is full, cannot be written to, or fails for a while: nothing is lost, nothing is half there."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from posegen.data.shards.manifest import read_manifest
from posegen.storage.files import TEMPORARY
from posegen.training.checkpoints import checkpoints, latest_checkpoint, load_networks
from tests.small_runs import Machine, finished, machine, result

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

BLOCK = 4096  # bytes of which a tmpfs gives a file a whole number
AMPLE = 64 * 2**20


class Disk:
    """A tmpfs, whose size can be changed while it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, size: int, *, how: str = "rw") -> None:
        """It holds so many bytes from now on."""
        mount("-o", f"remount,{how},size={size}", str(self.folder))


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={AMPLE}", "posegen-test", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs, which stands for a disk that is full")
    with mounted(tmp_path / "disk") as made:
        yield made


@pytest.fixture(scope="module")
def place() -> Iterator[Machine]:
    with machine() as made:
        yield made


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store outside the small disk, so that how full it is does not depend on MLflow."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def whole(place: Machine, tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with room enough."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    finished(place.start(run, MLFLOW_TRACKING_URI=tracking))
    return run


def space(*paths: Path) -> int:
    """Bytes that files, and those of folders, take on the small disk."""
    found = [each for path in paths for each in (path.rglob("*") if path.is_dir() else [path])]
    return sum(-(-each.stat().st_size // BLOCK) * BLOCK for each in found if each.is_file())


def assert_nothing_is_half_there(run: Path) -> None:
    """What counts as complete is complete, and what failed has left nothing."""
    assert not list(run.rglob(TEMPORARY))
    if (manifest := read_manifest(run / "shards")) is not None:
        assert manifest.counts["train"]["pairs"] > 0
    for checkpoint in checkpoints(run / "stages" / "coarse"):
        load_networks(checkpoint, {})
        assert (checkpoint / "optimizers.pt").stat().st_size > 100_000
    assert not (run / "report" / "fingerprint.json").exists()


def assert_told(process: subprocess.Popen[str], *words: str) -> None:
    """The run ends with a message for the user, not with a stack trace."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "error: " in output
    assert "Traceback" not in output
    assert "Logging error" not in output
    for word in words:
        assert word in output, f"{word} is not in {output}"


def fill_when(happened: Callable[[], object], disk: Disk, process: subprocess.Popen[str]) -> Path:
    """Waits until something has happened, then takes all that is free on the disk; gives the file that does."""
    deadline = time.monotonic() + 200
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ballast = disk.folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(BLOCK))
    return ballast


def test_a_full_disk_is_told_wherever_it_is_met_and_the_same_command_goes_on(
    disk: Disk, place: Machine, whole: Path, tracking: str
):
    """One disk that is too small for the shards, then for the first and the third checkpoint, scores and report."""
    run = disk.folder / "run"
    latest = latest_checkpoint(whole / "stages" / "coarse")
    assert latest is not None
    begun, shards, checkpoint = 5 * BLOCK, space(whole / "shards"), space(latest)  # begun: options, plan, log, ...
    impatient = {"MLFLOW_TRACKING_URI": tracking, "POSEGEN_PATIENCE": "1"}
    full = ("No space left on device", "Free space there", "--run")

    def told(size: int, what: str) -> None:
        disk.holds(size)
        assert_told(place.start(run, **impatient), f"{run}/{what}", *full)
        assert_nothing_is_half_there(run)

    told(begun + shards // 2, "shards/")
    told(begun + shards + checkpoint // 2, "stages/coarse/checkpoint_00000001")
    told(begun + shards + 5 * checkpoint // 2, "stages/coarse/checkpoint_00000003")
    disk.holds(AMPLE)
    process = place.start(run, **impatient)
    ballast = fill_when((run / "scores" / "parts").is_dir, disk, process)
    assert_told(process, f"{run}/scores/", *full)
    assert_nothing_is_half_there(run)
    ballast.unlink()
    told(space(run) + 16 * BLOCK + space(whole / "report") // 2, "report/")
    disk.holds(AMPLE)
    finished(place.start(run, **impatient))
    assert result(run) == result(whole)


def test_mlflow_on_a_full_disk_costs_its_curves_and_not_the_run(disk: Disk, place: Machine, whole: Path):
    """The store is in the run's folder, on a disk with room for all but that."""
    run = disk.folder / "run"
    process = place.start(run, POSEGEN_PATIENCE="1")
    ballast = fill_when(lambda: [*run.glob(".mlflow.db.*")], disk, process)
    time.sleep(4)
    ballast.unlink()
    output = finished(process)
    assert "MLflow tracking at" in output
    assert "the run continues without it" in output
    assert "Traceback" not in output
    assert result(run) == result(whole)


def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(disk: Disk, place: Machine):
    disk.holds(AMPLE, how="ro")
    started = time.monotonic()
    process = place.start(disk.folder / "run")
    assert_told(process, str(disk.folder / "run"), "Read-only file system", "--run")
    assert time.monotonic() - started < 30  # and not only after all patience


def test_a_disk_that_is_full_from_the_start_is_told_before_anything_starts(disk: Disk, place: Machine):
    (disk.folder / "ballast").write_bytes(bytes(AMPLE - BLOCK))
    process = place.start(disk.folder / "run")
    assert_told(process, str(disk.folder / "run"), "No space left on device")


def test_a_disk_that_fails_for_ten_seconds_delays_a_run_and_does_not_end_it(
    disk: Disk, place: Machine, whole: Path, tracking: str
):
    run = disk.folder / "run"
    process = place.start(run, MLFLOW_TRACKING_URI=tracking)
    ballast = fill_when(lambda: latest_checkpoint(run / "stages" / "coarse"), disk, process)
    time.sleep(10)
    ballast.unlink()
    output = finished(process)
    assert "cannot be written: No space left on device" in output
    assert "trying again for 60 s" in output
    assert "Traceback" not in output
    assert result(run) == result(whole)
