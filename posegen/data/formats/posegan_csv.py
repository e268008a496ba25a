"""pose-gan's CSV: `name: [18 y]: [18 x]` a line, the format in which Deformable GAN publishes its annotations."""

import json
from pathlib import Path

import numpy as np

from posegen.data.formats import MISSING, Annotations, Pose, collect_poses, read_text

POSE_GAN = "pose-gan CSV"
HEADER = "name:keypoints_y:keypoints_x"

_decode = json.JSONDecoder(parse_int=float).decode


def is_pose_gan_csv(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a pose-gan CSV."""
    return head.startswith(HEADER.encode())


def read_pose_gan_csv(path: Path) -> Annotations:
    """Read pose-gan's `name: [18 y]: [18 x]`, with or without the spaces; integers or decimals in pixels.

    Only (-1, -1) is a missing joint. pose-gan takes a joint with one coordinate -1 as missing too, but the published
    176x256 list has negative x of people who are cut by the border, and the 128x64 lists have no such joint.
    """
    header, *lines = read_text(path).split("\n")
    if header.strip() != HEADER:
        raise ValueError(f"{path}, line 1: expected the header '{HEADER}', found {header.strip()[:80]!r}")
    rows = [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 2) if line.strip()]
    if not rows:
        raise ValueError(f"{path}: expected rows 'name: [18 y]: [18 x]' after the header, found none")
    with np.errstate(over="ignore"):
        joints = np.array([(x, y) for _, _, y, x in rows]).astype(np.float32).transpose(0, 2, 1)
    visible = (joints != MISSING).any(axis=2)
    poses = (Pose(*pose) for pose in zip(np.ascontiguousarray(joints), visible, strict=True))
    return collect_poses(POSE_GAN, ((row[0], row[1], pose) for row, pose in zip(rows, poses, strict=True)))


def _parse_row(line: str, where: str) -> tuple[str, str, list[float], list[float]]:
    parts = line.rsplit(":", 2)
    if len(parts) != 3 or not parts[0].strip():
        raise ValueError(f"{where}: expected 'name: [18 y]: [18 x]', found {line.strip()[:80]!r}")
    return parts[0].strip(), where, _parse_coordinates(parts[1], "y", where), _parse_coordinates(parts[2], "x", where)


def _parse_coordinates(text: str, axis: str, where: str) -> list[float]:
    try:
        numbers = _decode(text.strip())
    except json.JSONDecodeError:
        numbers = None
    if (
        not isinstance(numbers, list)
        or len(numbers) != 18
        or any(type(number) not in (float, type(None)) for number in numbers)
    ):
        found = f"{len(numbers)} values" if isinstance(numbers, list) else repr(text.strip()[:80])
        raise ValueError(f"{where}: expected a list of 18 numbers for {axis}, found {found}")
    return [float("nan") if number is None else number for number in numbers]
