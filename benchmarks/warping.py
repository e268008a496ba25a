"""Speed and memory of the deformable skip connection against warping one copy of the features a part, in one run.

    python benchmarks/warping.py --data market --threads 2

The plain way repeats the features ten times, samples them with `grid_sample`, masks them and takes the maximum. Both go
forward and backward, by turns; a ratio is the plain way's figure over ours, the median over the repeats. Beside it are
the ratio of the fastest turns, and the median ratio of CPU time. Where other work keeps the cores busy, set
OMP_WAIT_POLICY=passive: threads that spin while others wait for a core cost more than either way's work. Masks and
transforms are those of made-up people whose parts have the mean areas that the real data sets have.

Peak memory is measured in a fresh process for each way, which goes forward and backward once: on the CPU the kernel's
high-water mark of resident memory, set back just before (Linux), less what was resident then; on a GPU the allocator's.
The last two columns are the largest difference of values and gradients from the plain way in float64, which is also
what says how far the plain way in float32 is off.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from posegen.nets.warping import deformable_skip


class Data(NamedTuple):
    """A data set as Deformable GAN trains on it; areas are the means of the masks over the image."""

    batch: int
    size: tuple[int, int]
    areas: dict[str, float]


DATA = {
    "market": Data(4, (128, 64), {"head": 0.081, "thigh": 0.06, "shin": 0.06, "upper arm": 0.037, "forearm": 0.03}),
    "deepfashion": Data(
        2, (256, 256), {"head": 0.093, "thigh": 0.014, "shin": 0.01, "upper arm": 0.045, "forearm": 0.047}
    ),
}
LEVELS = ((64, 1), (128, 2), (256, 4), (512, 8))  # channels, and how many times smaller than the image

# Where parts usually are, as fractions of width and height; the person's two sides mirror each other.
PLACES = {"thigh": (0.4, 0.62), "shin": (0.4, 0.83), "upper arm": (0.27, 0.3), "forearm": (0.22, 0.47)}
TURN, SHIFT, DROPPED = 0.5, 0.05, 0.2  # spread of angles in radians, of places in widths; share of dropped limbs

Inputs = dict[str, Tensor]
Way = Callable[..., Tensor]


class Options(NamedTuple):
    """What the skip connection is asked for, and where."""

    aggregate: str
    interpolation: str
    device: str
    threads: int


def people(data: Data, seed: int = 0) -> Inputs:
    """Transforms, masks and presence of ten parts: the torso on all pixels, a head, four times two limbs."""
    torch.manual_seed(seed)
    sides = [(name, PLACES[name], side) for name in PLACES for side in (1, -1)]
    parts = [("head", (0.5, 0.12), 1), *sides]
    made = [part(data, data.areas[name], place, side, 1 if name == "head" else 3) for name, place, side in parts]
    torso = affine(data, torch.tensor([data.size[1] / 2, data.size[0] / 2]).expand(data.batch, 2), turn=0.1)
    everywhere = torch.ones(data.batch, *data.size, dtype=torch.bool)
    present = torch.rand(data.batch, 10) >= DROPPED
    present[:, 0] = True
    return {
        "transforms": torch.stack([torso, *(transform for transform, _ in made)], dim=1),
        "masks": torch.stack([everywhere, *(mask for _, mask in made)], dim=1),
        "present": present,
    }


def part(data: Data, area: float, place: tuple[float, float], side: int, slenderness: float) -> tuple[Tensor, Tensor]:
    """A part's transforms (batch, 2, 3) and masks (batch, height, width): turned rectangles of the area."""
    height, width = data.size
    usual = torch.tensor([(place[0] if side > 0 else 1 - place[0]) * width, place[1] * height])
    centre = usual + torch.randn(data.batch, 2) * SHIFT * width
    angle = torch.randn(data.batch, 1, 1) * TURN
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    thickness = math.sqrt(area * height * width / slenderness)
    across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return affine(data, centre), (across.abs() <= thickness / 2) & (along.abs() <= thickness * slenderness / 2)


def affine(data: Data, centre: Tensor, turn: float = TURN) -> Tensor:
    """Transforms that turn and scale around a part's centre in the target, and move it to one near it in the source."""
    angle, scale = torch.randn(data.batch) * turn, torch.exp(torch.randn(data.batch) * 0.1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=-2)
    source = centre + torch.randn(data.batch, 2) * SHIFT * data.size[1]
    return torch.cat([linear, (source - (linear @ centre[..., None])[..., 0])[..., None]], dim=-1)


def plain(features: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """The same by the definition: as many copies of the features as parts."""
    transforms, masks, present = inputs["transforms"].to(features.dtype), inputs["masks"], inputs["present"]
    parts, (rows, columns) = masks.shape[1], features.shape[2:]
    factor = masks.shape[-1] / columns
    row, column = (torch.arange(n, dtype=features.dtype, device=features.device) for n in (rows, columns))
    x, y, move = transforms.flatten(0, 1)[..., None, None, :].unbind(-1)
    positions = x * column + y * row[:, None] + move / factor
    sides = positions.new_tensor([columns - 1, rows - 1])
    grid = positions.permute(0, 2, 3, 1) / sides * 2 - 1
    copies = features.repeat_interleave(parts, dim=0)
    warped = F.grid_sample(copies, grid, mode=options.interpolation, align_corners=True).unflatten(0, (-1, parts))
    small = F.interpolate(masks.to(features.dtype), size=(rows, columns))[:, :, None]
    masked = warped * small * present[:, :, None, None, None]
    return masked.max(1).values if options.aggregate == "max" else masked.sum(1) / small.sum(1).clamp(min=1)


def lean(features: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """The library's."""
    return deformable_skip(
        features,
        transforms=inputs["transforms"],
        masks=inputs["masks"],
        present=inputs["present"],
        aggregate="max" if options.aggregate == "max" else "average",
        interpolation="nearest" if options.interpolation == "nearest" else "bilinear",
    )


WAYS: dict[str, Way] = {"plain": plain, "lean": lean}


def made(data: Data, level: int, options: Options) -> tuple[Tensor, Inputs, Tensor]:
    """Features of a level, what moves them, and a gradient of the result."""
    inputs = people(data)
    channels, factor = LEVELS[level]
    shape = (data.batch, channels, data.size[0] // factor, data.size[1] // factor)
    features, gradient = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    moved = {name: tensor.to(options.device) for name, tensor in inputs.items()}
    return features.to(options.device).requires_grad_(), moved, gradient.to(options.device)


def there_and_back(
    way: str, features: Tensor, inputs: Inputs, gradient: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """The result and the features' gradient, waited for."""
    result = WAYS[way](features, inputs, options)
    (of_features,) = torch.autograd.grad(result, features, gradient)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return result.detach(), of_features


class Turn(NamedTuple):
    """Seconds that one way took forward and backward."""

    wall: float
    cpu: float  # of all threads together


def turns(data: Data, level: int, options: Options, repeats: int) -> dict[str, list[Turn]]:
    """Times of both ways, by turns, after one turn that is not counted."""
    features, inputs, gradient = made(data, level, options)
    taken: dict[str, list[Turn]] = {way: [] for way in WAYS}
    for _ in range(repeats + 1):
        for way, times in taken.items():
            wall, cpu = time.perf_counter(), time.process_time()
            there_and_back(way, features, inputs, gradient, options)
            times.append(Turn(time.perf_counter() - wall, time.process_time() - cpu))
    return {way: times[1:] for way, times in taken.items()}


def times_text(taken: dict[str, list[Turn]]) -> str:
    """Ratios of the plain way's times over ours."""
    both = list(zip(taken["plain"], taken["lean"], strict=True))
    wall = statistics.median(before.wall / after.wall for before, after in both)
    cpu = statistics.median(before.cpu / after.cpu for before, after in both)
    fastest = min(turn.wall for turn in taken["plain"]) / min(turn.wall for turn in taken["lean"])
    return f"time {wall:.1f} (fastest turns {fastest:.1f}, CPU time {cpu:.1f})"


def peak_bytes(way: str, data: Data, level: int, options: Options) -> int:
    """The most memory that one way takes beyond its inputs; to be called in a process of its own."""
    torch.set_num_threads(options.threads)
    tiny = Data(1, (16, 16), data.areas)
    features, inputs, gradient = made(tiny, 0, options)
    there_and_back(way, features, inputs, gradient, options)  # libraries and threads are there now
    features, inputs, gradient = made(data, level, options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        there_and_back(way, features, inputs, gradient, options)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    there_and_back(way, features, inputs, gradient, options)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def in_fresh_process(way: str, data: Data, level: int, options: Options) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_bytes, way, data, level, options).result()


def errors(way: str, data: Data, level: int, options: Options) -> tuple[float, float]:
    """The largest differences of values and of gradients from the plain way in float64."""
    features, inputs, gradient = made(data, level, options)
    exact = there_and_back("plain", features.detach().double().requires_grad_(), inputs, gradient.double(), options)
    result = there_and_back(way, features, inputs, gradient, options)
    value, slope = ((ours - theirs).abs().max().item() for ours, theirs in zip(result, exact, strict=True))
    return value, slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="market")
    parser.add_argument("--aggregate", choices=("max", "average"), default="max")
    parser.add_argument("--interpolation", choices=("bilinear", "nearest"), default="bilinear")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    options = Options(given.aggregate, given.interpolation, given.device, given.threads)
    torch.set_num_threads(given.threads)
    data = DATA[given.data]
    coverage = (people(data)["masks"] & people(data)["present"][..., None, None]).float().mean().item() * 10
    print(f"{given.data}, batch {data.batch}, parts cover {coverage:.2f} of the image in all; plain over ours")
    for level, (channels, factor) in enumerate(LEVELS):
        times = times_text(turns(data, level, options, given.repeats))
        memory = {way: in_fresh_process(way, data, level, options) for way in WAYS}
        value, slope = errors("lean", data, level, options)
        plain_value, plain_slope = errors("plain", data, level, options)
        print(
            f"{channels:4} channels {data.size[0] // factor:3}x{data.size[1] // factor:<3} {times}, "
            f"memory {memory['plain'] / memory['lean']:5.1f} ({memory['lean'] / 2**20:.1f} MiB), "
            f"values off by {value:.0e} (plain {plain_value:.0e}), gradients {slope:.0e} (plain {plain_slope:.0e})",
            flush=True,
        )


if __name__ == "__main__":
    main()
