"""What the scaling benchmarks share: time and memory of one piece of work, slopes, medians, child processes."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Cost(NamedTuple):
    """What a piece of work took."""

    wall: float  # seconds by the clock
    processor: float  # seconds, user and system, of this process
    peak: float  # bytes of resident memory above what there was before
    kept: float  # of these, what was still there at the end


def measured(work: Callable[[], T]) -> tuple[T, Cost]:
    """The work's result and its cost."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
    before, begin, worked = _memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    wall, processor = time.perf_counter() - begin, time.process_time() - worked
    return result, Cost(wall, processor, _memory("VmHWM") - before, _memory("VmRSS") - before)


def _memory(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def mapped() -> int:
    """How many maps this process has: the kernel allows 65,530 as a rule."""
    return len(Path("/proc/self/maps").read_text().splitlines())


def in_child(work: Callable[..., T], *arguments: object) -> T:
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def in_processes(work: Callable[..., T], arguments: Sequence[tuple]) -> list[T]:
    """The results of a function in as many fresh processes at once as there are lists of arguments."""
    with ProcessPoolExecutor(len(arguments), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(work, *each) for each in arguments]]


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of growth: least squares through log(size), log(value). NaN for fewer than two positive values."""
    points = [(size, value) for size, value in zip(sizes, values, strict=True) if value > 0]
    if len(points) < 2:
        return float("nan")
    logs = np.log(np.array(points))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def medians(rounds: Iterable[Mapping[str, Cost]]) -> dict[str, Cost]:
    """The medians of several rounds, by part and number."""
    rounds = list(rounds)
    return {
        name: Cost(*(statistics.median(values) for values in zip(*(each[name] for each in rounds), strict=True)))
        for name in rounds[0]
    }


def repeated(work: Callable[[int], Mapping[str, Cost]], sizes: Sequence[int], repeats: int) -> dict[int, dict]:
    """The medians for each size; each in fresh processes, the sizes taking turns."""
    rounds = [{size: in_child(work, size) for size in sizes} for _ in range(repeats)]
    return {size: medians(each[size] for each in rounds) for size in sizes}


def print_growth(what: str, found: Mapping[int, Mapping[str, Cost]], *, smallest: int = 0) -> None:
    """One line a part: processor time and memory for the largest size, for one more of it, and their slopes.

    Slopes are over the sizes from `smallest` on: below it, what does not grow hides what does.
    """
    most = max(found)
    for name in found[most]:
        sizes = [size for size in found if size >= smallest and name in found[size]]
        costs = [found[size][name] for size in sizes]
        last = costs[-1]
        print(
            f"{name}: processor time {last.processor:.3g} s, {last.processor / sizes[-1] * 1e6:.3g} us a {what}, slope "
            f"{slope(sizes, [cost.processor for cost in costs]):.2f}; peak {last.peak / 2**20:,.1f} MiB, "
            f"{last.peak / sizes[-1]:,.0f} bytes a {what}, slope {slope(sizes, [cost.peak for cost in costs]):.2f}; "
            f"kept {last.kept / sizes[-1]:,.0f} bytes a {what}  ({sizes[0]:,} to {sizes[-1]:,})",
            flush=True,
        )


def bytes_in(folder: Path, ending: str = "") -> int:
    """Bytes of the files below a folder whose names end so; those that vanish meanwhile are passed over."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in (file for file in files if file.endswith(ending)):
            try:
                total += Path(parent, file).stat().st_size
            except FileNotFoundError:
                continue
    return total
