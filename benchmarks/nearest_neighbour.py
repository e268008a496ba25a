"""The nearest-neighbour loss against its definition: `python benchmarks/nearest_neighbour.py --repeats 5`.

The definition stacks all shifted copies of the target's features and leaves the gradient to autograd. Both run forward
and backward on the same features, those of the generated image learning, in turns that alternate between the two in
one process. The least seconds are those without other programs in the way; where more threads than free cores are
asked for, the many short operations of ours wait for one another, and the medians show it. Memory is each one's own
fresh process: its highest resident memory (`resource.getrusage`) over a first step, less what was resident once the
features were made. The gradient is in it, and it can only overstate, by what importing had for a while.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import cyclopts
import torch
from torch import Tensor
from torch.nn.functional import pad

from posegen.losses.reconstruction import nearest_neighbour_loss

MIB = 2**20
Answer = TypeVar("Answer")
SIZES = {"market": ((4, 64, 128, 64), 3), "fashion": ((2, 64, 256, 256), 5)}  # of block1_conv2's features; windows


def definition(generated: Tensor, target: Tensor, *, window: int) -> Tensor:
    rows, columns = generated.shape[2:]
    around = pad(target, (window // 2,) * 4, value=torch.inf)
    shifts = [around[:, :, y : y + rows, x : x + columns] for y in range(window) for x in range(window)]
    return (generated.unsqueeze(-1) - torch.stack(shifts, dim=-1)).abs().sum(dim=1).amin(dim=-1).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"definition": definition, "ours": nearest_neighbour_loss}


def main(
    size: Sequence[Literal["market", "fashion"]] = ("market", "fashion"),
    repeats: int = 5,
    threads: int = 2,
    channels_last: bool = False,
) -> None:
    """Compare values and gradients, seconds and memory at the sizes of the papers' data sets."""
    torch.set_num_threads(threads)
    for name in size:
        shape, window = SIZES[name]
        print(f"{name}: features of {shape}, window {window}, {threads} threads", flush=True)
        peaks = {loss: in_fresh_process(added_memory, loss, name, threads, channels_last) for loss in LOSSES}
        report("MiB beside the features", {loss: peak / MIB for loss, peak in peaks.items()})
        seconds = in_fresh_process(turns, name, repeats, threads, channels_last)
        report("least seconds forward and backward", {loss: min(each) for loss, each in seconds.items()})
        report("median seconds", {loss: statistics.median(each) for loss, each in seconds.items()})
        print(f"  largest difference of value and gradient in float64: {disagreement(window):.1e}", flush=True)


def report(what: str, numbers: dict[str, float]) -> None:
    ratio = numbers["definition"] / numbers["ours"]
    print(
        f"  {what}: definition {numbers['definition']:.4g}, ours {numbers['ours']:.4g}, ratio {ratio:.1f}", flush=True
    )


def in_fresh_process(function: Callable[..., Answer], *arguments: object) -> Answer:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def made_features(name: str, channels_last: bool) -> tuple[Tensor, Tensor, int]:
    shape, window = SIZES[name]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    generated, target = (torch.rand(shape).contiguous(memory_format=layout) for _ in range(2))
    return generated.requires_grad_(), target, window


def added_memory(loss: str, name: str, threads: int, channels_last: bool) -> int:
    torch.set_num_threads(threads)
    generated, target, window = made_features(name, channels_last)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    LOSSES[loss](generated, target, window=window).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident


def turns(name: str, repeats: int, threads: int, channels_last: bool) -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    generated, target, window = made_features(name, channels_last)
    seconds: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for _ in range(repeats + 1):  # the first turn is not counted
        for loss, function in LOSSES.items():
            generated.grad = None
            begin = time.perf_counter()
            function(generated, target, window=window).backward()
            seconds[loss].append(time.perf_counter() - begin)
    return {loss: each[1:] for loss, each in seconds.items()}


def disagreement(window: int) -> float:
    torch.manual_seed(0)
    given = [torch.rand(2, 8, 24, 20, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    values = [function(*given, window=window) for function in LOSSES.values()]
    pairs = [values, *zip(*(torch.autograd.grad(value, given) for value in values), strict=True)]
    return max((one - other).abs().max().item() for one, other in pairs)


if __name__ == "__main__":
    cyclopts.run(main)
