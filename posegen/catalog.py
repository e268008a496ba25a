"""The systems by name, and their settings by dotted path: one syntax for the command line, Tune spaces and tests."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from posegen.stage import Canvas, Paper, Preset, System, Variant
from posegen.systems import appearance_flow, defgan, hourglass, pg2, pix2pix, triplet, vdg, vsa
from posegen.systems.fields import check_known, replace_fields, settings_of, unknown_setting
from posegen.systems.multistage.stages import MULTISTAGE

SYSTEMS: dict[str, Paper] = {
    "vdg": vdg.VDG,
    "pg2": pg2.PG2,
    "defgan": defgan.DEFGAN,
    "triplet": triplet.TRIPLET,
    "pix2pix": pix2pix.PIX2PIX,
    "hourglass": hourglass.HOURGLASS,
    "vsa": vsa.VSA,
    "appearance_flow": appearance_flow.APPEARANCE_FLOW,
    "multistage": MULTISTAGE,
}

# Data sets without presets of their own.
SIMILAR = {"synthetic-views": "synthetic", "human36m": "deepfashion", "views": "deepfashion"}
MARKET_HEIGHT = 160  # a folder's images up to this height take the preset of 128x64, higher ones that of 256x256


def system(
    name: str, dataset: str = "market1501", variant: str = "full", size: tuple[int, int] | None = None
) -> System:
    """Return a system with its settings for a data set; `size` is (height, width) in pixels, the data set's by default.

    Data sets: "market1501" (128x64), "deepfashion" (256x256), "synthetic" and "synthetic-views" (64x32), "folder"
    (whose size must be given); the error for an unknown one lists those that a system has settings for.

    Raises:
        ValueError: The name, the data set or the variant is unknown, with the known ones; or the size does not fit.
    """
    check_known("system", name, SYSTEMS)
    paper = SYSTEMS[name]
    check_known(f"variant of {name}", variant, paper.variants)
    preset, size = _preset(paper.presets, dataset, size)
    whole = System(
        name=name, variant=variant, paper=paper.citation, canvas=Canvas(size, preset.pose_maps), stages=preset.stages,
        image=paper.image, joints=paper.joints,
    )  # fmt: skip
    change = paper.variants[variant]
    if not isinstance(change, Variant):
        return change(whole)
    stages = tuple(stage for stage in whole.stages if not change.stages or stage.name in change.stages)
    results = {name: getattr(change, name) for name in ("image", "joints") if getattr(change, name) is not None}
    return override(dataclasses.replace(whole, stages=stages, **results), change.settings)


def variants(name: str) -> tuple[str, ...]:
    """Return the variants of a system, the paper's full one first. Raises ValueError for an unknown name."""
    check_known("system", name, SYSTEMS)
    return tuple(SYSTEMS[name].variants)


def override(system: System, settings: Mapping[str, object]) -> System:
    """Return the system with settings by dotted path, such as {"refinement.alpha": 0.5, "pose_maps.radius": "2"}.

    Text is parsed by the field's type, other values must be of it (`posegen.systems.fields`). The size is no setting.

    Raises:
        ValueError: A path does not exist, with the valid ones; or a value is of a wrong type or out of bounds.
    """
    by_part: dict[str, dict[str, object]] = {}
    for path, value in settings.items():
        part, _, field = path.partition(".")
        by_part.setdefault(part, {})[field] = value
    parts = _parts(system)
    for part, fields in by_part.items():
        if part not in parts or "" in fields:
            known = [f"{part}.{name}" for part, described in parts.items() for name in settings_of(described)]
            raise unknown_setting(".".join([part, *filter(None, fields)]), known)
        parts[part] = replace_fields(parts[part], fields, part)
    canvas = Canvas(system.size, parts.pop("pose_maps"))
    return dataclasses.replace(system, canvas=canvas, stages=tuple(parts.values()))


def settings(system: System) -> dict[str, object]:
    """Return all settings of a system by dotted path."""
    return {f"{part}.{name}": v for part, each in _parts(system).items() for name, v in settings_of(each).items()}


def _parts(system: System) -> dict[str, Any]:
    """What has settings, by the first part of their paths."""
    return {"pose_maps": system.pose_maps, **{stage.name: stage for stage in system.stages}}


def _preset(
    presets: Mapping[str, Preset], dataset: str, size: tuple[int, int] | None
) -> tuple[Preset, tuple[int, int]]:
    """The preset for a data set, and the size of its images."""
    if dataset not in presets:
        dataset = SIMILAR.get(dataset, dataset)
    similar = [other for other, dataset_ in SIMILAR.items() if dataset_ in presets]
    check_known("data set", dataset, [*presets, *similar, "folder"])
    if dataset != "folder":
        return presets[dataset], size or presets[dataset].size
    if size is None:
        raise ValueError("the data set 'folder' has no size of its own: give one as (height, width), such as (128, 64)")
    return presets["market1501" if size[0] <= MARKET_HEIGHT else "deepfashion"], size
