"""A writer that dies before any one of its file operations: what is there then is whole, and the same work mends it."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from posegen.data.shards.making import ShardSettings, made_from, make_shard, plan_works
from posegen.data.shards.manifest import ShardSummary, read_arrow
from posegen.data.shards.preparing import _finished
from posegen.storage.files import read_json, remove_leftovers, remove_whole, write_json
from posegen.training.checkpoints import (
    StageProgress,
    checkpoints,
    latest_checkpoint,
    restore,
    snapshot,
    write_snapshot,
)
from posegen.training.step import build_trainer
from tests.conftest import Blocks
from tests.training.toy import CANVAS, tug

CPU = torch.device("cpu")
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")  # audited by Python
DIED = 77


def crashes(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Carries out some work again and again, each time in a process that dies before its next file operation: before
    the first, before the second, and so on until it has none left. Gives the operation's number after each death."""
    for number in range(1, 1000):
        prepare()
        child = os.fork()
        if child == 0:
            _die_at(number)
            work()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == DIED
        yield number


def _die_at(number: int) -> None:
    left = [number]

    def count(event: str, arguments: tuple) -> None:
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if event in CHANGES and writes:
            left[0] -= 1
            if left[0] == 0:
                os._exit(DIED)

    sys.addaudithook(count)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def test_a_json_file_is_the_old_or_the_new_one(tmp_path: Path):
    path = tmp_path / "run" / "plan.json"

    def before() -> None:
        emptied(path.parent)
        write_json(path, {"step": 1})

    contents = [read_json(path) for _ in crashes(lambda: write_json(path, {"step": 2}), before)]
    assert contents[0] == {"step": 1}
    assert all(content in ({"step": 1}, {"step": 2}) for content in contents)


def test_the_newest_checkpoint_can_be_restored(tmp_path: Path):
    folder, trainer = tmp_path / "tug", build_trainer(tug(), CANVAS, seed=0, device=CPU)

    def write(step: int) -> None:
        taken = snapshot(trainer, StageProgress(step, "hash", 3, {}), [{"step": float(step)}])
        write_snapshot(folder, taken, keep=1)

    def before() -> None:
        emptied(folder)
        write(1)

    points = 0
    for points in crashes(lambda: write(2), before):  # noqa: B007
        latest = latest_checkpoint(folder)
        assert latest is not None
        progress, curve = restore(build_trainer(tug(), CANVAS, seed=9, device=CPU), latest)
        assert progress.step in (1, 2)
        assert curve == [{"step": progress.step}]
        write(2)
        assert [path.name for path in checkpoints(folder)] == ["checkpoint_00000002"]
        remove_leftovers(folder, older_than=-1)
        assert [path.name for path in folder.iterdir()] == ["checkpoint_00000002"]
    assert points >= 5


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_shard_is_whole_or_made_again(tmp_path: Path):
    folder, source, settings = tmp_path / "shards", Blocks(), ShardSettings(size=(64, 32), mask_radius=2)
    works, _ = plan_works(source.listing(), settings.images_per_shard)
    record = made_from(source.listing(), settings, fingerprint="")
    work = works[0]

    def make() -> ShardSummary:
        return make_shard(work, source, folder, settings, record)

    points = 0
    for points in crashes(make, lambda: emptied(folder)):  # noqa: B007
        finished = _finished(folder, [work], record, sizes(folder))
        if finished:
            assert read_arrow(folder / f"{work.stem}.arrow").num_rows == finished[work.stem].rows
        make()
        assert _finished(folder, [work], record, sizes(folder))
    assert points >= 5


def test_a_folder_that_is_removed_is_there_as_a_whole_or_not_at_all(tmp_path: Path):
    folder, names = tmp_path / "scores", ("metrics.json", "pairs.parquet", "parts")

    def before() -> None:
        emptied(folder)
        for name in names:
            (folder / name).write_text(name)

    states = []
    for _ in crashes(lambda: remove_whole(folder), before):
        states.append({path.name for path in folder.iterdir()} if folder.is_dir() else set())
    assert states[0] == set(names)
    assert states[-1] == set()
    assert all(state in (set(names), set()) for state in states)
