"""The systems by name, and their settings by dotted path: one syntax for the command line, Tune spaces and tests."""

import dataclasses
from collections.abc import Callable, Mapping

from posegen.fields import replace_fields, unknown_setting
from posegen.stage import Drawing, System
from posegen.systems import appearance_flow, defgan, hourglass, multistage, pg2, pix2pix, triplet, vdg, vsa
from posegen.systems.settings import check_known

SYSTEMS: dict[str, Callable[..., System]] = {
    "vdg": vdg.vdg,
    "pg2": pg2.pg2,
    "defgan": defgan.defgan,
    "triplet": triplet.triplet,
    "pix2pix": pix2pix.pix2pix,
    "hourglass": hourglass.hourglass,
    "vsa": vsa.vsa,
    "appearance_flow": appearance_flow.appearance_flow,
    "multistage": multistage.multistage,
}

VARIANTS: dict[str, tuple[str, ...]] = {
    "vdg": vdg.VARIANTS,
    "pg2": pg2.VARIANTS,
    "defgan": defgan.VARIANTS,
    "triplet": triplet.VARIANTS,
    "pix2pix": pix2pix.VARIANTS,
    "hourglass": hourglass.VARIANTS,
    "vsa": vsa.VARIANTS,
    "appearance_flow": appearance_flow.VARIANTS,
    "multistage": multistage.VARIANTS,
}

FIXED = ("size", "pose_maps")  # of stages: they are the system's


def system(
    name: str, dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None
) -> System:
    """A system with its settings for a data set; `size` is (height, width) in pixels and by default the data set's.

    Data sets: "market1501" (128x64), "deepfashion" (256x256), "synthetic" and "synthetic-views" (64x32), "folder"
    (whose size must be given); what others a system has settings for, its error says.
    Raises ValueError, with what there is, for an unknown name, data set or variant, and for a size that does not fit.
    """
    check_known("system", name, SYSTEMS)
    return SYSTEMS[name](dataset, variant, size)


def variants(name: str) -> tuple[str, ...]:
    """The variants of a system, the paper's full one first. Raises ValueError for an unknown name."""
    check_known("system", name, SYSTEMS)
    return VARIANTS[name]


def override(system: System, settings: Mapping[str, object]) -> System:
    """The system with settings by dotted path, such as {"refinement.alpha": 0.5, "pose_maps.radius": "2"}.

    Text is parsed by the field's type, other values must be of it (`posegen.fields`). The size is no setting of a
    stage, nor is the drawing of poses: they are those of the whole system. Raises ValueError, with the valid paths, for
    one that does not exist, and for values of a wrong type or out of range.
    """
    by_part: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        part, _, field = path.partition(".")
        by_part.setdefault(part, {})[field] = value
    parts = {"pose_maps": system.pose_maps, **{stage.name: stage for stage in system.stages}}
    for part, fields in by_part.items():
        if part not in parts or "" in fields:
            raise unknown_setting(".".join([part, *filter(None, fields)]), _paths(parts))
        parts[part] = replace_fields(parts[part], fields, part, fixed=FIXED)
    pose_maps = parts.pop("pose_maps")
    stages = (dataclasses.replace(s, pose_maps=pose_maps) if isinstance(s, Drawing) else s for s in parts.values())  # pyright: ignore[reportArgumentType, reportCallIssue]
    return dataclasses.replace(system, pose_maps=pose_maps, stages=tuple(stages))


def _paths(parts: Mapping[str, object]) -> list[str]:
    names = {part: [f.name for f in dataclasses.fields(each)] for part, each in parts.items()}  # pyright: ignore[reportArgumentType]
    return [f"{part}.{name}" for part, fields in names.items() for name in fields if name not in FIXED]
