"""Everything of a run killed at once, at many moments: the same command ends with the uninterrupted run's bits."""

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from posegen.storage.files import TEMPORARY, remove_leftovers
from posegen.training.checkpoints import checkpoints, read_curve
from tests.small_runs import Machine, finished, machine, result

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

SIGNS = {  # of the phases, in their order, in the run's log
    "start": "INFO starting Ray",
    "shards": "INFO images ",
    "shards made": "INFO train: ",
    "training": "INFO coarse ",
    "scoring": "INFO scoring ",
    "report": "INFO report: choosing",
}
PHASES = list(SIGNS)
KILLS = {"shards": 7, "training": 4, "scoring": 5, "report": 4}  # a kill in training takes the longest
FOLDERS = {"shards": "shards", "training": "stages/coarse", "scoring": "scores/parts", "report": "report"}
WAIT_FOR_WRITING = 4.0  # seconds


class Moment(NamedTuple):
    """When everything is killed: a share of its duration after the first sign of a phase, or with the next write."""

    phase: str
    share: float
    writing: bool


@dataclass(frozen=True)
class Signs:
    """When the phases of a run first showed, by its log: seconds since 1970."""

    at: dict[str, float]
    end: float

    def duration(self, phase: str) -> float:
        later = [moment for moment in self.at.values() if moment > self.at[phase]]
        return min(later, default=self.end) - self.at[phase]


def signs(lines: Sequence[str]) -> Signs:
    found: dict[str, float] = {}
    for line in lines:
        for phase, sign in SIGNS.items():
            if sign in line:
                found.setdefault(phase, moment_of(line))
    return Signs(found, moment_of(lines[-1]) if lines else 0.0)


def moment_of(line: str) -> float:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def log_lines(run: Path) -> list[str]:
    log = run / "pipeline.log"
    return [line for line in log.read_text().splitlines() if line[:2] == "20"] if log.is_file() else []


def moments(seed: int = 0) -> list[Moment]:
    """Where in the run it is killed, in the order of the run, so that later phases are reached."""
    drawn = random.Random(seed)
    shares = {phase: sorted(drawn.random() for _ in range(count)) for phase, count in KILLS.items()}
    return [Moment(phase, each, number % 2 == 0) for phase in shares for number, each in enumerate(shares[phase])]


@pytest.fixture(scope="module")
def place() -> Iterator[Machine]:
    with machine() as made:
        yield made


def hit(moment: Moment, whole: Signs, place: Machine, run: Path) -> str:
    """Starts the run and kills everything at a moment, or where its phase is over before: gives the phase by the log.

    A run that came to its end before is no kill: without its report it is tried again, at last as the phase begins.
    """
    for attempt in (moment, moment._replace(share=moment.share / 2), moment._replace(share=0.0, writing=False)):
        seen = len(log_lines(run))
        ended, output = kill_at(attempt, whole, place, run, seen)
        if ended == -signal.SIGKILL:
            return list(signs(log_lines(run)[seen:]).at or ["nothing"])[-1]
        assert ended == 0, f"it ended before it was killed in {attempt}: {output}"
        shutil.rmtree(run / "report")
    raise AssertionError(f"it always ended before it was killed in {moment}")


def kill_at(moment: Moment, whole: Signs, place: Machine, run: Path, seen: int) -> tuple[int, str]:
    """Starts the run, whose log has `seen` lines, and kills everything at a moment: its exit status and output."""
    process = place.start(run)
    after = moment.share * whole.duration(moment.phase)
    known, found = [], 0.0
    while process.poll() is None and not _is_due(moment.phase, after, log_lines(run)[seen:]):
        time.sleep(0.01)
        if time.monotonic() - found > 1.0:
            known, found = place.processes(process.pid), time.monotonic()
    if moment.writing:
        _wait_for_a_write(run / FOLDERS[moment.phase], process)
    place.kill_all(process.pid, known)
    output, _ = process.communicate()
    return process.returncode, output


def _wait_for_a_write(folder: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a new temporary file is there, but not for long: the phase may have nothing left to write."""
    deadline = time.monotonic() + WAIT_FOR_WRITING
    before = set(folder.glob(TEMPORARY))
    while time.monotonic() < deadline and before.issuperset(folder.glob(TEMPORARY)) and process.poll() is None:
        time.sleep(0.0002)


def _is_due(phase: str, after: float, lines: Sequence[str]) -> bool:
    at = signs(lines).at
    done = phase == "shards" and any("shards: done already" in line for line in lines)
    begun = at.get("start" if done else phase)
    over = any(PHASES.index(other) > PHASES.index(phase) for other in at)
    return over or (begun is not None and time.time() >= begun + after)


def half_written(run: Path) -> list[str]:
    """What the killed writers were writing."""
    return [f"{path.parent.name}/{path.name}" for path in run.rglob(TEMPORARY)]


def kept_files(run: Path) -> set[str]:
    """The files of a run, without tracking's: names are random, and the next to open its database takes the journal."""
    found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] not in ("mlartifacts", "mlflow.db-journal")}


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_everything_killed_at_many_moments_ends_with_the_bits_of_an_uninterrupted_run(
    place: Machine, tmp_path: Path, every: int
):
    whole, run = tmp_path / "whole", tmp_path / "killed"
    finished(place.start(whole))
    measured = signs(log_lines(whole))
    hits: Counter[str] = Counter()
    half: set[str] = set()
    chosen = moments()[::every]
    for moment in chosen:
        hits[hit(moment, measured, place, run)] += 1
        half |= set(half_written(run))
    print(f"hits: {dict(hits)}; while these were written: {sorted(half)}")
    output = finished(place.start(run))
    assert "shards: done already" in output
    assert sum(hits.values()) == len(chosen)
    assert all(hits[phase] for phase in KILLS), hits
    assert result(run) == result(whole)
    pairs = zip(checkpoints(run / "stages" / "coarse"), checkpoints(whole / "stages" / "coarse"), strict=True)
    for one, other in pairs:
        assert one.name == other.name
        assert read_curve(one) == read_curve(other)
        assert (one / "networks.safetensors").read_bytes() == (other / "networks.safetensors").read_bytes()
    remove_leftovers(run, older_than=-1)
    assert kept_files(run) == kept_files(whole)
