"""Seconds and memory of one step at a paper's size: `python benchmarks/step.py defgan --dataset deepfashion`.

All players of a stage move on drawn people, with the published networks and batch, in bfloat16 on a GPU. Memory is the
process's highest resident memory on the CPU, less what was there before the networks were made, and the highest
allocated one on a GPU; the stages before count, as in a training. A pretrained network that is absent is replaced by a
random one, which costs the same.
"""

import resource
import time
from pathlib import Path
from typing import Literal

import cyclopts
import numpy as np
import simplejpeg
import torch
from torch import Tensor

from posegen.catalog import override, system
from posegen.data.loading.collate import to_columns
from posegen.data.masks import pose_mask
from posegen.data.sources.synthetic import SyntheticPeople
from posegen.runs.options import parse_settings, with_pretrained
from posegen.stage import System
from posegen.training.step import autocast, build_trainer, to_device

GIB = 2**30


def main(
    name: str,
    /,
    dataset: Literal["market1501", "deepfashion", "synthetic"] = "market1501",
    variant: str = "full",
    stage: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    steps: int = 1,
    threads: int | None = None,
    set: tuple[str, ...] = (),
) -> None:
    """Time the steps of a system's stage, by default its last one."""
    if threads:
        torch.set_num_threads(threads)
    described = with_pretrained(system(name, dataset, variant), Path("weights"), {})
    described = override(described, parse_settings(set))
    index = [each.name for each in described.stages].index(stage) if stage else len(described.stages) - 1
    raw = pairs(described, described.stages[index].training.batch_size)
    seconds, memory = measured(described, index, raw, torch.device(device), steps)
    trained = described.stages[index]
    print(
        f"{name} {variant}, stage {trained.name}, {described.size[0]}x{described.size[1]}, "
        f"batch {trained.training.batch_size}, {device}: {min(seconds):.2f} s a step (least of {steps}), "
        f"{memory / GIB:.2f} GiB"
    )


def pairs(described: System, count: int) -> dict[str, Tensor]:
    """A raw batch, as the loader gives it: pairs of images of different drawn people."""
    people = SyntheticPeople(train_people=count, test_people=1, images_per_person=2, size=described.size)
    loaded = [people.load(entry) for entry in people.listing().entries if entry.split == "train"]
    height, width = described.size
    raw: dict[str, Tensor] = {}
    for role, images in (("source", loaded[::2]), ("target", loaded[1::2])):
        raw[f"{role}_image"] = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(image.encoded) for image in images]))
        raw[f"{role}_joints"] = torch.from_numpy(np.stack([image.joints for image in images]))
        raw[f"{role}_visible"] = torch.from_numpy(np.stack([image.visible for image in images]))
        masks = [pose_mask(p.joints, p.visible, height=height, width=width, radius=4) for p in images]
        raw[f"{role}_pose_mask"] = torch.from_numpy(np.stack(masks))
    return raw


def measured(
    described: System, index: int, raw: dict[str, Tensor], device: torch.device, steps: int
) -> tuple[list[float], int]:
    """Seconds of each step, and bytes at most."""
    before = _resident()
    trainer = build_trainer(described.stages[index], described.canvas, seed=0, device=device, weights=Path("weights"))
    earlier = [
        (stage, {name: to_device(net.eval(), device) for name, net in stage.networks(described.canvas).items()})
        for stage in described.stages[:index]
    ]

    def batch() -> dict[str, Tensor]:
        columns = to_columns(raw, device, described.pose_maps)
        with torch.no_grad(), autocast(device):
            for stage, networks in earlier:
                columns |= stage.outputs(described.canvas, networks, columns)
        return columns

    seconds = []
    for step in range(steps):
        begun = time.perf_counter()
        trainer.step(step, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    cyclopts.run(main)
