"""Files that are complete or not there: names, retries, messages, leftovers."""

import errno
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from posegen.storage import files
from posegen.storage.files import (
    StorageFailed,
    check_writable,
    leftovers,
    patiently,
    remove_leftovers,
    remove_whole,
    storage_failure,
    temporary_beside,
    write_json,
    write_whole,
)


class Ailing:
    """A write that fails so many times with an error, then gives "written"."""

    def __init__(self, error: Exception, times: float) -> None:
        self.error, self.times, self.tries = error, times, 0

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self.times:
            raise self.error
        return "written"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, on a clock that only they move."""
    made: list[float] = []
    monkeypatch.setattr(files.time, "sleep", made.append)
    monkeypatch.setattr(files.time, "monotonic", lambda: sum(made))
    return made


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_passes_is_written_after_growing_pauses_and_one_warning(tmp_path: Path, pauses: list[float]):
    warnings: list[str] = []
    assert patiently(Ailing(full(), 6), tmp_path / "scores.json", warn=warnings.append, patience=60) == "written"
    assert pauses == [0.5, 1, 2, 4, 8, 8]
    (warning,) = warnings
    assert str(tmp_path / "scores.json") in warning
    assert "No space left on device" in warning
    assert "bytes are free there" in warning


def test_what_does_not_pass_ends_as_a_message_after_the_patience(tmp_path: Path, pauses: list[float]):
    ailing = Ailing(full(), float("inf"))
    with pytest.raises(StorageFailed) as caught:
        patiently(ailing, tmp_path / "scores.json", warn=lambda text: None, patience=20)
    assert sum(pauses) == 20
    assert ailing.tries == len(pauses) + 1
    for words in (str(tmp_path / "scores.json"), "No space left", "free there", "tried for 20 s", "--run", "goes on"):
        assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "x"), FileExistsError(errno.EEXIST, "x")])
def test_where_waiting_does_not_help_it_ends_at_once(error: OSError, tmp_path: Path, pauses: list[float]):
    with pytest.raises(StorageFailed, match=os.strerror(error.errno or 0)):
        patiently(Ailing(error, float("inf")), tmp_path / "file")
    assert not pauses


def test_what_is_no_failure_of_the_storage_passes_through(tmp_path: Path, pauses: list[float]):
    with pytest.raises(ValueError, match="a mistake of ours") as caught:
        patiently(Ailing(ValueError("a mistake of ours"), 1), tmp_path / "file")
    assert not isinstance(caught.value, StorageFailed)
    assert not pauses


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED, None])
def test_failures_that_pass(number: int | None, tmp_path: Path, pauses: list[float]):
    error = OSError("remote storage does not answer") if number is None else OSError(number, "")
    assert patiently(Ailing(error, 2), tmp_path / "file", warn=lambda text: None) == "written"


def test_the_environment_says_how_patient_all_are(tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSEGEN_PATIENCE", "3")
    with pytest.raises(StorageFailed, match="tried for 3 s"):
        patiently(Ailing(full(), float("inf")), tmp_path / "file", warn=lambda text: None)


def test_errors_of_safetensors_and_torch_are_failures_of_the_storage():
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    short = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    after = RuntimeError(str(short))
    after.__context__ = OSError(errno.EROFS, os.strerror(errno.EROFS))
    numbers = [getattr(storage_failure(error), "errno", "none") for error in (rust, after, short)]
    assert numbers == [errno.ENOSPC, errno.EROFS, None]
    assert storage_failure(RuntimeError("CUDA out of memory")) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, pauses: list[float]):
    path = tmp_path / "plan.json"
    write_json(path, {"step": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise full()

    with pytest.raises(StorageFailed):
        write_whole(path, fail)
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    assert files.read_json(path) == {"step": 1}


def test_a_file_of_a_write_that_recovers_is_whole(tmp_path: Path, pauses: list[float]):
    tries = count(1)

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        if next(tries) < 3:
            raise full()
        temporary.write_text("whole")

    write_whole(tmp_path / "deep" / "file", write)
    assert (tmp_path / "deep" / "file").read_text() == "whole"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_temporary_names_are_each_writers_own():
    names = {temporary_beside(Path("runs/plan.json")).name for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith(".plan.json.") and Path(name).match(files.TEMPORARY) for name in names)
    assert all(f"-{os.getpid()}-" in name for name in names)


def test_leftovers_are_removed_by_age(tmp_path: Path):
    old, new = temporary_beside(tmp_path / "shards" / "a.arrow"), temporary_beside(tmp_path / "b.json")
    partial, alive = (temporary_beside(tmp_path / "stages" / f"checkpoint_{step}") for step in (1, 2))
    for path in (old, new, partial / "networks.safetensors", alive / "networks.safetensors", tmp_path / "c.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for path in (old, partial, partial / "networks.safetensors", alive, tmp_path / "c.json"):
        os.utime(path, (time.time() - 4000,) * 2)
    assert set(leftovers(tmp_path)) == {old, partial}
    assert remove_leftovers(tmp_path) == 2
    assert new.exists()
    assert alive.exists()
    assert (tmp_path / "c.json").exists()
    assert remove_leftovers(tmp_path, older_than=-1) == 2


def test_a_folder_is_removed_as_a_whole(tmp_path: Path):
    (tmp_path / "scores" / "parts").mkdir(parents=True)
    remove_whole(tmp_path / "scores")
    remove_whole(tmp_path / "scores")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path):
    check_writable(tmp_path / "runs" / "one")
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs", tmp_path / "runs" / "one"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match=r"File exists|Not a directory"):
        check_writable(tmp_path / "file")


WRITER = """
import os, sys
from pathlib import Path
from posegen.storage import files
print("ready", flush=True)
number = 0
while True:
    number += 1
    files.write_json(Path(sys.argv[1]), {"numbers": [number] * 20000})
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path):
    path = tmp_path / "many.json"
    for moment in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            wait_until(path.is_file)
            time.sleep(0.013 * moment)
        finally:
            writer.kill()
            writer.communicate()
        content = files.read_json(path)
        assert content is not None
        assert len(set(content["numbers"])) == 1
    remove_leftovers(tmp_path, older_than=-1)
    assert [each.name for each in tmp_path.iterdir()] == ["many.json"]


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)
