"""The loop without Ray: resume, determinism, workers, checks."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from posegen.catalog import override
from posegen.catalog import system as catalog_system
from posegen.stage import Networks, System
from posegen.storage.store import Store
from posegen.training import loop
from posegen.training.checkpoints import (
    Interval,
    checkpoints,
    latest_checkpoint,
    load_networks,
    newest_name,
    read_curve,
    read_progress,
    trained_networks,
)
from posegen.training.loop import needed_columns, train_stage
from posegen.training.step import build_trainer
from posegen.training.task import LocalContext, NonFinite, Task, validation_scores
from tests.training.test_checkpoints import save
from tests.training.toy import CANVAS, tow, tug


def task(shards: Path, folder: Path, **fields) -> Task:
    stage = tug(**{"ema_decay": 0.0, **fields})
    system = System(
        name="tug",
        variant="full",
        paper="",
        canvas=CANVAS,
        stages=(stage,),
        image="tug_image",
    )
    return Task(
        system=system,
        index=0,
        shards=shards,
        folders={"tug": folder / "tug"},
        seed=5,
        config_hash="hash",
        checkpoint_every=Interval(3),
    )


def networks(folder: Path) -> bytes:
    latest = latest_checkpoint(folder / "tug")
    assert latest is not None
    return (latest / "networks.safetensors").read_bytes()


class Interrupted(Exception):
    """What the tests stop a run with."""


class StopAfter(LocalContext):
    """Dies at the n-th checkpoint, which is written nevertheless."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def on_checkpoint(self, rows) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted


def test_interrupted_and_resumed_equals_uninterrupted(block_shards: Path, tmp_path: Path):
    whole, parts = task(block_shards, tmp_path / "whole", steps=10), task(block_shards, tmp_path / "parts", steps=10)
    train_stage(whole, LocalContext())
    for count in (1, 2):
        with pytest.raises(Interrupted):
            train_stage(parts, StopAfter(count))
    train_stage(parts, LocalContext())
    assert networks(tmp_path / "whole") == networks(tmp_path / "parts")
    last = [checkpoints(folder / "tug")[-1] for folder in (tmp_path / "whole", tmp_path / "parts")]
    assert read_curve(last[0]) == read_curve(last[1])
    assert [row["step"] for row in read_curve(last[0])] == list(range(1, 11))
    assert read_progress(last[0]).step == 10


def test_a_stage_that_continues_another_starts_from_its_trained_networks(block_shards: Path, tmp_path: Path):
    """At a rate that moves nothing, one step later its generator is still the trained (averaged) one, bit for bit; a
    resumed run does not start from it again."""
    first = task(block_shards, tmp_path, steps=3)
    train_stage(first, LocalContext())
    still = tow(steps=2, lr=1e-30, ema_decay=0.5)
    system = dataclasses.replace(first.system, stages=(first.stage, still), image="tow_image")
    folders = {"tug": tmp_path / "tug", "tow": tmp_path / "tow"}
    continued = dataclasses.replace(first, system=system, index=1, folders=folders, checkpoint_every=Interval(1))
    train_stage(continued, LocalContext())
    trained = trained_networks(first.stage, CANVAS, folders["tug"], torch.device("cpu"))["generator"].state_dict()
    own = trained_networks(still, CANVAS, folders["tow"], torch.device("cpu"))["generator"].state_dict()
    assert all(torch.equal(own[name], trained[name]) for name in trained)
    longer = dataclasses.replace(system, stages=(first.stage, tow(steps=3, lr=0.1, ema_decay=0.5)))
    train_stage(dataclasses.replace(continued, system=longer), LocalContext())
    moved = trained_networks(still, CANVAS, folders["tow"], torch.device("cpu"))["generator"].state_dict()
    assert not torch.equal(moved["0.weight"], trained["0.weight"])


def test_a_finished_stage_is_left_alone(block_shards: Path, tmp_path: Path):
    done = task(block_shards, tmp_path, steps=3)
    train_stage(done, LocalContext())
    before = (latest_checkpoint(done.folder) / "stage.json").stat().st_mtime_ns  # pyright: ignore
    train_stage(done, LocalContext())
    assert (latest_checkpoint(done.folder) / "stage.json").stat().st_mtime_ns == before  # pyright: ignore


def test_more_steps_go_on_from_the_last(block_shards: Path, tmp_path: Path):
    train_stage(task(block_shards, tmp_path / "parts", steps=4), LocalContext())
    train_stage(task(block_shards, tmp_path / "parts", steps=7), LocalContext())
    train_stage(task(block_shards, tmp_path / "whole", steps=7), LocalContext())
    assert networks(tmp_path / "whole") == networks(tmp_path / "parts")


def test_a_loss_that_is_not_finite_stops_with_step_term_and_last_good_checkpoint(block_shards: Path, tmp_path: Path):
    exploding = task(block_shards, tmp_path, steps=2000, lr=1e18)
    with pytest.raises(NonFinite, match=r"stage 'tug' stopped at step \d+: .*/.* is (nan|inf)") as error:
        train_stage(exploding, LocalContext())
    good = latest_checkpoint(exploding.folder)
    assert str(good or "none yet") in str(error.value)


def several_workers(rank: int, address: str, work: Task, workers: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    train_stage(work, LocalContext(rank=rank, world_size=workers))
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_give_the_losses_of_one(block_shards: Path, tmp_path: Path, workers: int):
    """VDG's first stage (no batch norm, no noise) at its published rate: the same pairs, so the same losses.

    Eight pairs among three workers are shares of 3, 3 and 2.
    """
    settings = {"coarse.width": 8, "coarse.steps": 50, "coarse.batch_size": 8, "coarse.lr": 2e-5}
    system = override(catalog_system("vdg", "synthetic"), settings)
    one, two = (
        dataclasses.replace(
            task(block_shards, tmp_path),
            system=system,
            folders={"coarse": tmp_path / name},
            checkpoint_every=Interval(50),
        )
        for name in ("one", "two")
    )
    train_stage(one, LocalContext())
    multiprocessing.spawn(several_workers, args=(f"2961{workers}", two, workers), nprocs=workers)  # pyright: ignore
    first, second = ([row["generator/l1"] for row in read_curve(latest_checkpoint(t.folder))] for t in (one, two))  # pyright: ignore
    assert len(first) == 50
    assert first == pytest.approx(second, abs=1e-5)
    assert first[-1] < first[0]


def test_only_the_columns_that_are_read_are_asked_for(block_shards: Path, tmp_path: Path):
    assert needed_columns(task(block_shards, tmp_path).system, 0) == {"source_image", "target_image"}


@dataclass(frozen=True)
class Brightness:
    """A validator: the mean of what the generator makes of one fixed image."""

    at: tuple[int, ...] = (4, 8)
    broken_at: int = 0

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        if step == self.broken_at:
            raise ValueError("3 of 8 generated images have values that are not numbers")
        return {"brightness": brightness(networks["tug"])}


@torch.no_grad()
def brightness(networks: Networks) -> float:
    image = torch.linspace(-1, 1, 3 * 64 * 32).reshape(1, 3, 64, 32)
    return tug().outputs(CANVAS, networks, {"source_image": image})["tug_image"].double().mean().item()


class Asked(LocalContext):
    """Answers each validation as it is told to, and keeps what it was asked."""

    def __init__(self, *answers: bool) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[int, dict[str, float]]] = []
        self.saves = 0

    def on_checkpoint(self, rows) -> None:
        self.saves += 1

    def should_continue(self, step: int, scores: dict[str, float]) -> bool:
        self.asked.append((step, scores))
        return self.answers.pop(0)


def validated(work: Task, **fields) -> Task:
    return dataclasses.replace(work, validator=Brightness(**fields))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_validator_leaves_the_training_as_it_is(block_shards: Path, tmp_path: Path, ema_decay: float):
    plain = task(block_shards, tmp_path / "plain", steps=8, ema_decay=ema_decay)
    watched = validated(task(block_shards, tmp_path / "watched", steps=8, ema_decay=ema_decay), at=(1, 4, 5, 8))
    train_stage(plain, LocalContext())
    train_stage(watched, LocalContext())
    assert networks(tmp_path / "plain") == networks(tmp_path / "watched")
    curves = [read_curve(checkpoints(t.folder)[-1]) for t in (plain, watched)]
    assert [row for row in curves[1] if "validation/brightness" not in row] == curves[0]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_scores_are_those_of_the_checkpoint_of_their_step(block_shards: Path, tmp_path: Path, ema_decay: float):
    """The averages are validated where there are any, without dropout: what inference would read."""
    work = validated(task(block_shards, tmp_path, steps=8, ema_decay=ema_decay), at=(4, 5, 8))
    train_stage(dataclasses.replace(work, keep=9), LocalContext())
    saved = {read_progress(path).step: path for path in checkpoints(work.folder)}
    assert list(saved) == [3, 4, 5, 6, 8]
    rows = [row for row in read_curve(saved[8]) if "validation/brightness" in row]
    assert [list(row) for row in rows] == [["step", "validation/brightness"]] * 3
    expected = []
    for step in (4, 5, 8):
        kept = {name: network.eval() for name, network in tug().networks(CANVAS).items()}
        load_networks(saved[step], kept)
        expected.append((step, {"brightness": pytest.approx(brightness(kept), rel=1e-6)}))
    assert validation_scores(read_curve(saved[8])) == expected
    assert len({scores["brightness"] for _, scores in validation_scores(read_curve(saved[8]))}) == 3


def test_a_stage_told_to_stop_is_asked_again_and_goes_on_as_if_it_never_had(block_shards: Path, tmp_path: Path):
    whole, parts = (validated(task(block_shards, tmp_path / name, steps=8)) for name in ("whole", "parts"))
    uninterrupted = Asked(True, True)
    train_stage(whole, uninterrupted)
    at_four, at_eight = uninterrupted.asked
    assert (at_four[0], at_eight[0]) == (4, 8)
    stopped, again, on = Asked(False), Asked(False), Asked(True, True)
    train_stage(parts, stopped)
    assert [read_progress(path).step for path in checkpoints(parts.folder)] == [3, 4]
    train_stage(parts, again)
    assert stopped.asked == again.asked == [at_four]
    assert again.saves == 0, "it is asked before any further step"
    assert read_progress(checkpoints(parts.folder)[-1]).step == 4
    train_stage(parts, on)
    assert on.asked == [at_four, at_eight]
    assert networks(tmp_path / "whole") == networks(tmp_path / "parts")
    assert read_curve(checkpoints(whole.folder)[-1]) == read_curve(checkpoints(parts.folder)[-1])


def test_a_finished_stage_is_asked_for_its_scores_once_more(block_shards: Path, tmp_path: Path):
    work, first, second = validated(task(block_shards, tmp_path, steps=8)), Asked(True, True), Asked(True)
    train_stage(work, first)
    train_stage(work, second)
    assert second.asked == first.asked[1:]
    assert second.saves == 0


def test_a_score_that_is_not_a_number_ends_the_stage_with_the_validators_words(block_shards: Path, tmp_path: Path):
    work = validated(task(block_shards, tmp_path, steps=8), at=(2, 4), broken_at=4)
    with pytest.raises(NonFinite, match=r"stage 'tug' stopped at step 4: 3 of 8 generated images have values"):
        train_stage(work, LocalContext())
    assert [read_progress(path).step for path in checkpoints(work.folder)] == [2, 3]


@dataclass(frozen=True)
class Glance:
    """A validator that keeps what it was shown."""

    shown: list[dict[str, dict[str, bool]]]
    at: tuple[int, ...] = (2,)

    def __call__(self, networks: Mapping[str, Networks], step: int, device: torch.device) -> dict[str, float]:
        self.shown.append({s: {name: net.training for name, net in nets.items()} for s, nets in networks.items()})
        return {"shown": 1.0}


def test_the_validator_is_shown_the_networks_of_all_stages(block_shards: Path, tmp_path: Path):
    small = {f"{stage}.{name}": n for stage in ("coarse", "refinement") for name, n in (("width", 8), ("steps", 2))}
    system = override(catalog_system("vdg", "synthetic"), {**small, "refinement.discriminator_width": 8})
    folders = {stage.name: tmp_path / stage.name for stage in system.stages}
    shown: list[dict[str, dict[str, bool]]] = []
    for index, validator in enumerate((None, Glance(shown))):
        work = dataclasses.replace(task(block_shards, tmp_path), system=system, index=index, folders=folders)
        train_stage(dataclasses.replace(work, validator=validator), LocalContext())
    assert shown == [{"coarse": {"generator": False}, "refinement": {"generator": False, "discriminator": False}}]


def two_validated_workers(rank: int, address: str, work: Task, folder: Path) -> None:
    steps: list[float] = []

    class Ranked(LocalContext):
        def on_checkpoint(self, rows) -> None:
            steps.append(rows[-1]["step"])

        def should_continue(self, step: int, scores: dict[str, float]) -> bool:
            assert rank == 0, "only rank 0 asks"
            return step < 4

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    train_stage(work, Ranked(rank=rank, world_size=2))
    dist.destroy_process_group()
    (folder / f"rank-{rank}.json").write_text(json.dumps(steps))


def test_two_workers_stop_at_the_same_step(block_shards: Path, tmp_path: Path):
    work = validated(task(block_shards, tmp_path, steps=8), at=(2, 4, 8))
    multiprocessing.spawn(two_validated_workers, args=("29619", work, tmp_path), nprocs=2)  # pyright: ignore
    assert [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)] == [[2, 3, 4], [2, 3, 4]]
    curve = read_curve(latest_checkpoint(work.folder))  # pyright: ignore
    assert [step for step, _ in validation_scores(curve)] == [2, 4]


def test_minutes_between_checkpoints_are_kept_to(block_shards: Path, tmp_path: Path):
    """At every row of the curve (here every step) it is looked whether the time has passed; not a checkpoint before."""
    hurried = dataclasses.replace(task(block_shards, tmp_path / "a", steps=6), checkpoint_every=Interval(minutes=1e-9))
    patient = dataclasses.replace(task(block_shards, tmp_path / "b", steps=6), checkpoint_every=Interval(minutes=60))
    train_stage(dataclasses.replace(hurried, keep=9), LocalContext())
    train_stage(dataclasses.replace(patient, keep=9), LocalContext())
    assert [read_progress(path).step for path in checkpoints(hurried.folder)] == [1, 2, 3, 4, 5, 6]
    assert [read_progress(path).step for path in checkpoints(patient.folder)] == [6]
    assert networks(tmp_path / "a") == networks(tmp_path / "b")


class Leaving(LocalContext):
    """A machine that is announced to be taken away, once."""

    def __init__(self) -> None:
        super().__init__()
        self.notices = [True]

    def preempted(self) -> bool:
        return bool(self.notices and self.notices.pop())


def test_before_a_machine_is_taken_away_a_checkpoint_is_written_at_once(
    block_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "PREEMPTION_EVERY", 0.0)
    work = dataclasses.replace(task(block_shards, tmp_path, steps=6), checkpoint_every=Interval(6), keep=9)
    train_stage(work, Leaving())
    assert [read_progress(path).step for path in checkpoints(work.folder)] == [1, 6]


class Told(LocalContext):
    """Keeps the steps that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def on_start(self, step: int) -> None:
        self.steps.append(-step)

    def on_step(self, step: int) -> None:
        self.steps.append(step)


def test_each_step_is_announced_before_it_is_carried_out(block_shards: Path, tmp_path: Path):
    told = Told()
    train_stage(task(block_shards, tmp_path, steps=3), told)
    train_stage(task(block_shards, tmp_path, steps=5), told)
    assert told.steps == [0, 1, 2, 3, -3, 4, 5]


def test_what_a_node_has_of_a_stage_that_the_run_has_not_does_not_count(s3_server, two_nodes, block_shards):
    """Another node removed the stage: the old checkpoint here would count as the newest, and new ones be removed."""
    store = Store.of("s3://runs/stale")
    shutil.copytree(block_shards, store.folder / "shards")
    store.publish("shards")
    save(store.folder / "stages" / "tug", build_trainer(tug(), CANVAS, seed=0, device=torch.device("cpu")), 9)
    work = dataclasses.replace(task(Path("shards"), Path("stages"), steps=3), store=store, keep=1)
    train_stage(work, LocalContext())
    assert newest_name(store, work.prefix) == "checkpoint_00000003"
    assert [path.name for path in checkpoints(work.folder)] == ["checkpoint_00000003"]
