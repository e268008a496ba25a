"""The training loop under Ray Train against the same steps in a bare process, turn by turn, in one run.

    python benchmarks/loop.py --steps 400 --repeats 3

Both train VDG's first stage from the same start on the same shards with the same threads. What is timed is the time
between a stage's last two checkpoints, from the files themselves: start-up is left out, writing a checkpoint and
telling Ray of it is in.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from pathlib import Path

import torch

from posegen.catalog import override, system
from posegen.cluster.connecting import Workers, connect, cpus_per_worker, disconnect, resources
from posegen.data.shards.preparing import ShardSettings, write_shards
from posegen.data.sources.synthetic import SyntheticPeople
from posegen.storage.store import Store
from posegen.training.checkpoints import Interval, checkpoints
from posegen.training.launch import launch_stage
from posegen.training.loop import train_stage
from posegen.training.task import LocalContext, Task


def seconds_between_checkpoints(folder: Path) -> float:
    first, last = ((path / "stage.json").stat().st_mtime for path in checkpoints(folder)[-2:])
    return last - first


def bare(task: Task, threads: int) -> None:
    torch.set_num_threads(threads)
    train_stage(task, LocalContext())


def in_bare_process(task: Task, threads: int) -> float:
    process = multiprocessing.get_context("spawn").Process(target=bare, args=(task, threads))
    process.start()
    process.join()
    return seconds_between_checkpoints(task.folder)


def under_ray(task: Task) -> float:
    launch_stage(
        task, workers=Workers(), use_gpu=False, log_rows=lambda rows: None, show=lambda step, terms: None, warn=print
    )
    return seconds_between_checkpoints(task.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    described = override(system("vdg", "synthetic"), {"coarse.steps": given.steps})
    connect()
    threads = cpus_per_worker(1, resources()[0])
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        source = SyntheticPeople(train_people=20, test_people=2, size=described.size)
        settings = ShardSettings(size=described.size, mask_radius=2)
        write_shards(
            source,
            Store.of(folder),
            settings,
            listing=source.listing(),
            fingerprint="benchmark",
            progress=lambda *_: None,
        )
        ratios = []
        for repeat in range(given.repeats):
            tasks = [
                Task(
                    system=described, index=0, shards=shards, seed=0,
                    folders={"coarse": Path(folder, f"{where}-{repeat}", "coarse")},
                    config_hash="benchmark", checkpoint_every=Interval(given.steps // 2),
                )
                for where in ("bare", "ray")
            ]  # fmt: skip
            alone, ray = in_bare_process(tasks[0], threads), under_ray(tasks[1])
            ratios.append(alone / ray)
            rate = given.steps / 2
            print(
                f"bare {rate / alone:.1f} steps/s, under Ray {rate / ray:.1f} steps/s, ratio {alone / ray:.3f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.3f} (1 = as fast as bare)")
    disconnect()


if __name__ == "__main__":
    main()
