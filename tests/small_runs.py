"""The smallest sensible run of one stage, started as a user does, whose every process can be found and killed.

Each driver has a session of its own, a Ray folder of its own (so that it neither joins nor meets another cluster) and
a mark in the environment, which all that it starts inherits.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from posegen.training.checkpoints import latest_checkpoint, read_progress

ROOT = Path(__file__).parent.parent
MARK = "POSEGEN_TEST_MARK"
STEPS = 20
SMALL = [
    "data.train_people=6", "data.test_people=2", "data.images_per_person=8", "shards.images_per_shard=8",
    "coarse.width=4", f"coarse.steps={STEPS}", "coarse.batch_size=4",
]  # fmt: skip


@dataclass
class Machine:
    """Where runs are started: a Ray folder with a short path, and the mark of all that they start."""

    environment: dict[str, str]
    temporary: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, run: Path, **environment: str) -> subprocess.Popen[str]:
        """The command of the small run. It always is the same one; what is added to the environment may differ."""
        command = [sys.executable, str(ROOT / "flows" / "full_pipeline.py"), "--system", "pg2", "--variant", "g1-l1"]
        command += ["--run", str(run), "--pairs", "40", "--checkpoint-every", "1", "--set", *SMALL]
        inherited = {**self.environment, **environment, MARK: self.mark}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=inherited, start_new_session=True, **pipes)

    def processes(self, driver: int | None = None) -> list[psutil.Process]:
        """All that live of those started here: by the mark, and the driver's descendants, for Ray's workers write
        their titles over their environment."""
        every = {process.pid: process for process in psutil.process_iter(["ppid"])}
        children: dict[int, list[int]] = {}
        for process in every.values():
            children.setdefault(process.info["ppid"], []).append(process.pid)
        found = [pid for pid in every if pid == driver or self._is_marked(pid)]
        for pid in found:  # grows
            found += children.pop(pid, [])
        return [every[pid] for pid in dict.fromkeys(found) if _lives(every[pid])]

    def _is_marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def kill_all(self, driver: int | None = None, known: Sequence[psutil.Process] = ()) -> int:
        """Kills everything that was started here at once, as a power cut does: first those `known` before, as finding
        all takes a tenth of a second. Gives how many processes there were."""
        killed = _killed(known)
        while alive := self.processes(driver):
            killed |= _killed(alive)
            time.sleep(0.05)  # psutil would wait for the driver, and take its exit status from us
        return len(killed)


def _killed(processes: Sequence[psutil.Process]) -> set[int]:
    for process in processes:
        with suppress(psutil.Error):  # that of a process that ended and whose number another one has, too
            process.kill()
    return {process.pid for process in processes}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def machine() -> Iterator[Machine]:
    """A place to start runs from; at its end nothing of them is left."""
    temporary = Path(tempfile.mkdtemp(prefix="pg"))  # short: Ray's sockets have paths of at most 107 bytes
    alien = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "POSEGEN_PATIENCE")
    environment = {name: value for name, value in os.environ.items() if name not in alien}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(temporary), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    place = Machine(environment, temporary)
    try:
        yield place
    finally:
        place.kill_all()
        shutil.rmtree(temporary, ignore_errors=True)


def finished(process: subprocess.Popen[str]) -> str:
    """The output of a run that must end well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@dataclass(frozen=True)
class Result:
    """What a run has made: networks and scores, to be compared bit for bit."""

    networks: bytes
    scores: dict


def result(run: Path) -> Result:
    """What a complete run has made; asserts that it is complete and that no half-written file is left to be seen."""
    latest = latest_checkpoint(run / "stages" / "coarse")
    assert latest is not None
    assert read_progress(latest).step == STEPS
    assert (run / "report" / "fingerprint.json").is_file()
    page = (run / "report" / "index.html").read_text()
    assert page.rstrip().endswith("</html>")
    metrics = json.loads((run / "scores" / "metrics.json").read_text())
    return Result((latest / "networks.safetensors").read_bytes(), metrics)
