"""Deformable GAN's limb transforms and masks: batched on tensors against scikit-image pair by pair.

    python benchmarks/limb_warps.py --threads 1

For each batch size and image size: milliseconds a batch by the clock, the median over the repeats, of both ways in
turn in one process. Poses are made up: a standing person, each joint moved by some pixels, a quarter of the joints of
the face and the limbs hidden.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import cyclopts
import numpy as np
import torch
from skimage.measure import grid_points_in_poly
from skimage.transform import estimate_transform

from posegen.data.geometry.limb_warps import limb_warps

BATCHES = (4, 16)
SIZES = ((128, 64), (256, 256))
TORSO = (2, 5, 8, 11)
FACE = (0, 14, 15, 16, 17)
LIMBS = ((8, 9), (11, 12), (9, 10), (12, 13), (2, 3), (5, 6), (3, 4), (6, 7))
OPPOSITE = (1, 0, 3, 2, 5, 4, 7, 6)
# Fractions of the image's width and height, in OpenPose's order.
STANDING = (
    (0.50, 0.13), (0.50, 0.22), (0.36, 0.23), (0.30, 0.36), (0.27, 0.47), (0.64, 0.23), (0.70, 0.36), (0.73, 0.47),
    (0.41, 0.50), (0.39, 0.67), (0.38, 0.84), (0.59, 0.50), (0.61, 0.67), (0.62, 0.84), (0.45, 0.10), (0.55, 0.10),
    (0.41, 0.12), (0.59, 0.12),
)  # fmt: skip

Poses = tuple[np.ndarray, np.ndarray]


def main(repeats: int = 50, threads: int = 1, device: str = "cpu") -> None:
    """Time both ways; `device` is where the batched way runs."""
    torch.set_num_threads(threads)
    print(f"batched on {device}, {threads} threads; ms a batch")
    for size in SIZES:
        for batch in BATCHES:
            source, target = made_up(batch, size, seed=0), made_up(batch, size, seed=1)
            inputs = on_device(source, device), on_device(target, device), size
            fast, paper, slow = milliseconds(
                [
                    partial(batched, *inputs),
                    partial(batched, *inputs, "paper"),
                    partial(one_by_one, source, target, size),
                ],
                repeats,
            )
            print(
                f"{size[0]}x{size[1]}, {batch:2} pairs: {fast:.2f} (geometry paper {paper:.2f}), "
                f"scikit-image {slow:.1f}: {slow / fast:.0f} times as long"
            )


def on_device(poses: Poses, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(poses[0], device=device), torch.tensor(poses[1], device=device)


def batched(
    source: tuple[torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor],
    size: tuple[int, int],
    geometry: Literal["code", "paper"] = "code",
) -> None:
    limb_warps(*source, *target, size, geometry=geometry)
    if source[0].is_cuda:
        torch.cuda.synchronize()


def milliseconds(ways: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each way; they take turns, so that what else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, taken in zip(ways, times, strict=True):
            begin = time.perf_counter()
            way()
            taken.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(taken[1:]) for taken in times]  # the first is a warm-up


def made_up(count: int, size: tuple[int, int], seed: int) -> Poses:
    """Joints float32 (count, 18, 2) and visible (count, 18)."""
    random = np.random.default_rng(seed)
    joints = np.array(STANDING) * (size[1], size[0]) + random.normal(0, size[0] / 30, (count, 18, 2))
    visible = random.random((count, 18)) > 0.25
    visible[:, TORSO] = True
    return joints.round().astype(np.float32), visible


def one_by_one(source: Poses, target: Poses, size: tuple[int, int]) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """The same transforms and masks (geometry "code") in numpy and scikit-image."""
    made = []
    for joints, visible, goals, goals_visible in zip(*source, *target, strict=True):
        pair = joints.astype(float), visible, goals.astype(float), goals_visible
        made.append((transforms(*pair), masks(*pair[2:], size)))
    return made


def transforms(
    joints: np.ndarray, visible: np.ndarray, goals: np.ndarray, goals_visible: np.ndarray
) -> list[np.ndarray]:
    torso = list(TORSO)
    found = [estimate_transform("affine", goals[torso], joints[torso]).params]
    face = [joint for joint in FACE if visible[joint] and goals_visible[joint]]
    if face:
        found.append(estimate_transform("affine", goals[[*face, 2, 5]], joints[[*face, 2, 5]]).params)
    for limb, opposite in zip(LIMBS, OPPOSITE, strict=True):
        shown = limb if visible[list(limb)].all() else LIMBS[opposite]
        if visible[list(shown)].all() and goals_visible[list(limb)].all():
            beyond = 0.3 if limb in LIMBS[2:4] + LIMBS[6:] else 0.1
            corners = rectangle(goals, limb, beyond), rectangle(joints, shown, beyond)
            found.append(estimate_transform("affine", *corners).params)
    return found


def masks(joints: np.ndarray, visible: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    made = [np.ones(size, dtype=bool), np.zeros(size, dtype=bool)]
    face = joints[[joint for joint in FACE if visible[joint]]]
    if len(face):
        (x, y), half = face.mean(axis=0).astype(int), int(0.4 * torso_height(joints))
        made[1][max(0, y - half) : max(0, y + half), max(0, x - half) : max(0, x + half)] = True
    for limb in LIMBS:
        beyond = 0.5 if limb in LIMBS[2:4] + LIMBS[6:] else 0.1
        known = visible[list(limb)].all()
        corners = rectangle(joints, limb, beyond)[:, ::-1]
        made.append(grid_points_in_poly(size, corners) if known else np.zeros(size, dtype=bool))
    return made


def torso_height(joints: np.ndarray) -> float:
    return float(np.sqrt(np.square(joints[[2, 5]] - joints[[8, 11]]).sum() / 2))


def rectangle(joints: np.ndarray, limb: tuple[int, int], beyond: float) -> np.ndarray:
    upper, lower = joints[limb[0]], joints[limb[1]]
    upper = upper + 0.1 * (upper - lower)
    lower = lower + beyond * (lower - upper)
    span = upper - lower
    across = np.array([-span[1], span[0]]) / max(float(np.linalg.norm(span)), 1e-6) * 0.2 * torso_height(joints)
    return np.array([upper + across, upper - across, lower - across, lower + across])


if __name__ == "__main__":
    cyclopts.run(main)
