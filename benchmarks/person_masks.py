"""Person masks from joints and image: `python benchmarks/person_masks.py --height 128 --width 64`.

Prints, for drawn people, the mean overlap (intersection over union) with the true masks of what the limbs alone say, of
GrabCut, and of the whole; then images/s for each number of processes, the best of the repeats, processes started: by
the clock, and by the time that the processors worked, which is what free cores would do.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import cv2
import cyclopts
import numpy as np

from posegen.data.formats.images import open_image
from posegen.data.masks import CUTS, limb_seeds, person_mask
from posegen.data.sources.synthetic import SyntheticPeople


class Drawn(NamedTuple):
    """A drawn image that can be paired."""

    pixels: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    truth: np.ndarray


def main(
    height: int = 128, width: int = 64, people: int = 20, repeats: int = 3, processes: tuple[int, ...] = (1, 2)
) -> None:
    """Judge and time the masks of some embedded people, 16 images each."""
    images = drawn(people, (height, width))
    print(f"{len(images)} images of {height}x{width}")
    for name, overlaps in judged(images).items():
        print(f"{name}: mean overlap {np.mean(overlaps):.4f}, least {np.min(overlaps):.3f}")
    for count in processes:
        clock, working = (max(speeds) for speeds in zip(*timed(images, count, repeats), strict=True))
        print(f"{count} process(es): {clock:.1f} images/s by the clock, {working:.1f} by the processors' time")


def drawn(people: int, size: tuple[int, int]) -> list[Drawn]:
    source = SyntheticPeople(seed=2, train_people=people, test_people=1, size=size)
    loaded = (source.load(entry) for entry in source.listing().entries if entry.split == "train")
    images = []
    for image, joints, visible, truth in loaded:
        if visible[[2, 5, 8, 11]].all() and truth is not None:
            images.append(Drawn(open_image(image).pixels, joints, visible, truth))
    return images


def judged(images: Sequence[Drawn]) -> dict[str, list[float]]:
    """The overlap of each image's mask with the true one, step by step."""
    overlaps: dict[str, list[float]] = {"limbs": [], "GrabCut": [], "with the mean field": []}
    for pixels, joints, visible, truth in images:
        seeds = limb_seeds(joints, visible, height=truth.shape[0], width=truth.shape[1])
        masks = (of_labels(seeds), of_labels(cut(pixels, seeds)), person_mask(pixels, joints, visible))
        for step, mask in zip(overlaps, masks, strict=True):
            overlaps[step].append((mask & truth).sum() / (mask | truth).sum())
    return overlaps


def cut(pixels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    labels, models = seeds.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(0)
    cv2.grabCut(pixels, labels, None, *models, CUTS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return labels


def of_labels(labels: np.ndarray) -> np.ndarray:
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)


def timed(images: Sequence[Drawn], processes: int, repeats: int) -> list[tuple[float, float]]:
    """Images a second by the clock and by the processors' time, again and again."""
    shares = [images[first::processes] for first in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        taken = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            worked = sum(pool.map(masked, shares)) / processes
            taken.append((len(images) / (time.perf_counter() - begin), len(images) / worked))
    return taken[1:]  # the first starts the processes


def masked(images: Sequence[Drawn]) -> float:
    """Masks all images; the seconds that this process worked for it."""
    cv2.setNumThreads(1)
    begin = time.process_time()
    for pixels, joints, visible, _ in images:
        person_mask(pixels, joints, visible)
    return time.process_time() - begin


if __name__ == "__main__":
    cyclopts.run(main)
