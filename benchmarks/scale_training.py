"""Training by several processes of this machine, without Ray: what a step takes, and what its parts take alone."""

import os
import socket
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from measuring import bytes_in, in_child, in_processes
from scale_storage import made_here

from posegen.catalog import override, system
from posegen.data.shards.making import ShardSettings
from posegen.data.sources.synthetic import SyntheticPeople
from posegen.training.checkpoints import Interval
from posegen.training.checkpoints import checkpoints as written
from posegen.training.loop import train_stage
from posegen.training.task import LocalContext, Task

WARM = 10  # steps that are not counted
ALL_REDUCES = 20


class Moment(NamedTuple):
    """Seconds since some beginning, or the same of a step."""

    wall: float  # by the clock
    processor: float  # of all threads of this process
    on_core: float  # of the thread that computes
    queued: float  # that thread waited for a core
    machine: float  # of all processes of the machine

    @staticmethod
    def now() -> "Moment":
        on_core, queued, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
        user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
        busy = (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
        return Moment(time.perf_counter(), time.process_time(), on_core / 1e9, queued / 1e9, busy)

    @property
    def blocked(self) -> float:
        """The thread waited for something else than a core: gradients of other workers, or data."""
        return self.wall - self.on_core - self.queued


class Timed(LocalContext):
    """Keeps the moments at which steps begin."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank=rank, world_size=world_size)
        self.seen: list[Moment] = []

    def on_step(self, step: int) -> None:
        self.seen.append(Moment.now())

    def a_step(self) -> Moment:
        """What a step takes, after the first ones."""
        steps = len(self.seen) - 1 - WARM
        return Moment(*((end - begin) / steps for begin, end in zip(self.seen[WARM], self.seen[-1], strict=True)))


class Ranked(NamedTuple):
    """What one worker saw; seconds."""

    step: Moment
    reduce_wall: float  # of one all_reduce of the gradients' bytes alone
    reduce_processor: float
    gradient_bytes: int


def workers(counts: Sequence[int], pairs: int, steps: int, width: int, repeats: int) -> None:
    """Prints medians for each number of workers, and ratios to one worker's within a round."""
    with tempfile.TemporaryDirectory() as folder:
        in_child(make_people, Path(folder))
        rounds = []
        for repeat in range(repeats):
            rounds.append({n: _round(Path(folder), repeat, n, pairs, steps, width) for n in counts})
            times = ", ".join(f"{n} workers {ranks[0].step.wall:.3g} s" for n, ranks in rounds[-1].items())
            print(f"round {repeat + 1}: a step takes {times}", flush=True)
    for count in counts:
        print(f"{count} workers, {pairs} pairs each, gradients of {rounds[0][count][0].gradient_bytes:,} bytes:")
        ranked = [(each[count], each[min(counts)][0].step) for each in rounds]
        step = statistics.median(ranks[0].step.wall for ranks, _ in ranked)
        reduce = statistics.median(ranks[0].reduce_wall for ranks, _ in ranked)
        print(f"  here and now: {step:.3g} s a step, {reduce:.3g} s an all_reduce")
        for name, values in _ratios(ranked).items():
            print(f"  {name}: median {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


def _ratios(rounds: Sequence[tuple[list[Ranked], Moment]]) -> dict[str, list[float]]:
    """By round, from what each rank saw and the step of one worker; rank 0's where nothing else is said."""
    cores = os.cpu_count() or 1
    return {
        "step time, in steps of one worker": [ranks[0].step.wall / one.wall for ranks, one in rounds],
        "... of it computing": [ranks[0].step.on_core / one.wall for ranks, one in rounds],
        "... of it waiting for a core": [ranks[0].step.queued / one.wall for ranks, one in rounds],
        "... of it waiting for gradients or data": [ranks[0].step.blocked / one.wall for ranks, one in rounds],
        "processor time of a worker, all its threads, to one worker's": [
            statistics.fmean(rank.step.processor for rank in ranks) / one.processor for ranks, one in rounds
        ],
        "all_reduce of the gradients alone, in steps of one worker": [
            ranks[0].reduce_wall / one.wall for ranks, one in rounds
        ],
        "its processor time, to one worker's of a step": [
            statistics.fmean(rank.reduce_processor for rank in ranks) / one.processor for ranks, one in rounds
        ],
        "share of all cores that the workers had": [
            sum(rank.step.processor for rank in ranks) / (ranks[0].step.wall * cores) for ranks, _ in rounds
        ],
        "share of all cores that was busy": [
            ranks[0].step.machine / (ranks[0].step.wall * cores) for ranks, _ in rounds
        ],
    }


def _round(folder: Path, repeat: int, count: int, pairs: int, steps: int, width: int) -> list[Ranked]:
    """What each rank saw, rank 0 first."""
    task = small_task(folder, f"{count}-{repeat}", batch_size=count * pairs, steps=steps, width=width, every=steps)
    port = _free_port()
    return in_processes(_worker, [(rank, count, port, task) for rank in range(count)])


def _worker(rank: int, count: int, port: int, task: Task) -> Ranked:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    timed = Timed(rank, count)
    train_stage(task, timed)
    size = sum(p.numel() for network in task.stage.networks(task.system.canvas).values() for p in network.parameters())
    reduce = _all_reduce(size) if count > 1 else (0.0, 0.0)
    if count > 1:
        dist.destroy_process_group()
    return Ranked(timed.a_step(), *reduce, size * 4)


def _all_reduce(numbers: int) -> tuple[float, float]:
    values = torch.zeros(numbers)
    dist.all_reduce(values)
    begin, worked = time.perf_counter(), time.process_time()
    for _ in range(ALL_REDUCES):
        dist.all_reduce(values)
    return (time.perf_counter() - begin) / ALL_REDUCES, (time.process_time() - worked) / ALL_REDUCES


def checkpoints(every: int, steps: int, width: int, repeats: int) -> None:
    """Prints the ratios of the two, turn by turn."""
    ratios: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        in_child(make_people, Path(folder))
        size = 0
        for repeat in range(repeats):
            seen = []
            for name, interval in (("often", every), ("once", steps)):
                task = small_task(
                    Path(folder), f"{name}-{repeat}", batch_size=4, steps=steps, width=width, every=interval
                )
                seen.append(in_child(_alone, task))
                size = bytes_in(written(task.folder)[-1])
            often, once = seen
            ratios["steps/s"].append(once.wall / often.wall)
            ratios["steps in a second that the training thread computes"].append(once.on_core / often.on_core)
            ratios["processor time a step, all threads"].append(often.processor / once.processor)
            print(f"round {repeat + 1}: {once.wall / often.wall:.3f} times the steps/s", flush=True)
    print(f"a checkpoint of {size / 2**20:,.1f} MiB every {every} steps against none but the last:")
    for name, values in ratios.items():
        print(f"  {name}: median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def _alone(task: Task) -> Moment:
    torch.set_num_threads(1)
    timed = Timed()
    train_stage(task, timed)
    return timed.a_step()


def small_task(folder: Path, name: str, *, batch_size: int, steps: int, width: int, every: int) -> Task:
    """VDG's first stage on the embedded people."""
    settings = {"coarse.batch_size": batch_size, "coarse.steps": steps, "coarse.width": width}
    return Task(
        system=override(system("vdg", "synthetic"), settings),
        index=0,
        shards=folder / "shards",
        folders={"coarse": folder / name / "coarse"},
        seed=0,
        config_hash="benchmark",
        checkpoint_every=Interval(every),
    )


def make_people(folder: Path) -> None:
    """Shards of a few embedded people."""
    source = SyntheticPeople(train_people=20, test_people=2, size=system("vdg", "synthetic").size)
    made_here(folder, source, ShardSettings(size=source.size, mask_radius=2), lambda *_: None)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
