"""The options that the flows and the commands share, and the plan that they describe."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from posegen.catalog import override, system
from posegen.data.folder import Folder
from posegen.data.market1501 import Market1501
from posegen.data.picture_files import picture_size
from posegen.data.rows import Listing, Source
from posegen.data.shard_making import ShardSettings
from posegen.data.synthetic import SyntheticPeople
from posegen.fields import replace_fields
from posegen.plan import Plan

DRAWN_A_SHARD = 320  # drawing a picture takes far longer than reading one: small shards keep all CPUs at work
SYNTHETIC_PAIRS = 400  # test pairs scored on the embedded data; every pair elsewhere


def _several(help: str) -> Parameter:
    return Parameter(name="--set", help=help, consume_multiple=True, negative=())


@Parameter(name="*")
@dataclass(kw_only=True)
class Options:
    """What to train on what, and where."""

    system: str = "vdg"
    "Which system: `posegen systems` lists them."
    variant: str | None = None
    "Which of the system's variants; the paper's full system where not given."
    dataset: Literal["synthetic", "market1501", "folder"] = "synthetic"
    "synthetic people (embedded), Market-1501 (official layout), or a folder of your own pictures."
    root: Path | None = None
    "Where the pictures are; not for synthetic."
    size: str | None = None
    "Height x width of the pictures, such as 128x64; the system's own for the data set where not given."
    run: Path | None = None
    "The run folder; runs/<system>-<variant>-<dataset> where not given."
    set: Annotated[
        list[str], _several("Any setting by its dotted path: coarse.steps=200, data.seed=3, pose_maps.radius=2.")
    ] = field(default_factory=list)
    pairs: int | None = None
    "Test pairs to score; all where not given (400 on the synthetic data)."
    workers: int = 1
    "Training processes, over as many machines as the cluster has."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Where to train; auto takes GPUs where there are any."
    seed: int = 0
    "Seed of networks, order of pairs and synthetic people."
    checkpoint_every: int | None = None
    "Steps between two checkpoints; a tenth of a stage, at most 1,000, where not given."


def plan_for(options: Options) -> Plan:
    """The plan that the options describe. Raises ValueError, worded for the user, where they do not fit together."""
    _check_numbers(options)
    settings = parse_settings(options.set)
    source, listing = _source(options, _under(settings, "data"))
    variant = options.variant or "full"
    described = system(options.system, options.dataset, variant, _size(options, listing))
    described = override(described, {k: v for k, v in settings.items() if k.split(".")[0] not in ("data", "shards")})
    if isinstance(source, SyntheticPeople) and source.size != described.size:
        source = replace_fields(source, {"size": described.size}, "data")
        listing = source.listing()
    shard_settings = ShardSettings(
        size=described.size,
        mask_radius=max(1, round(4 * min(1, described.size[0] / 128))),  # PG2's 4 pixels from height 128 on
        pictures_per_shard=DRAWN_A_SHARD if options.dataset == "synthetic" else ShardSettings.pictures_per_shard,
    )
    plan = Plan(
        run=options.run or Path("runs") / f"{options.system}-{variant}-{options.dataset}",
        system=described,
        dataset=options.dataset,
        source=source,
        listing=listing,
        shard_settings=replace_fields(shard_settings, _under(settings, "shards"), "shards"),
        seed=options.seed,
        score_pairs=SYNTHETIC_PAIRS if options.pairs is None and options.dataset == "synthetic" else options.pairs,
        checkpoint_every=options.checkpoint_every,
        workers=options.workers,
        device=options.device,
    )
    _check_workers(plan)
    return plan


def _check_numbers(options: Options) -> None:
    for name in ("pairs", "workers", "checkpoint_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} was given; it must be at least 1.")


def _check_workers(plan: Plan) -> None:
    for stage in plan.system.stages:
        if stage.batch_size % plan.workers:
            raise ValueError(
                f"--workers {plan.workers} does not divide the batch of stage '{stage.name}', {stage.batch_size} "
                f"pairs. Give another number, or --set {stage.name}.batch_size=N with a multiple of {plan.workers}."
            )


def parse_settings(given: list[str]) -> dict[str, str]:
    """['coarse.steps=200', ...] as a mapping. Raises ValueError for what is not of the form path=value."""
    settings: dict[str, str] = {}
    for item in given:
        path, equals, value = item.partition("=")
        if not equals or "." not in path:
            raise ValueError(f"--set {item!r} was given; expected a dotted path and a value, such as coarse.steps=200.")
        settings[path.strip()] = value.strip()
    return settings


def _under(settings: Mapping[str, str], head: str) -> dict[str, str]:
    return {path.partition(".")[2]: value for path, value in settings.items() if path.partition(".")[0] == head}


def _source(options: Options, settings: Mapping[str, Any]) -> tuple[Source, Listing]:
    if options.dataset == "synthetic":
        if options.root is not None:
            raise ValueError(
                f"--root {options.root} was given, but the synthetic data set is drawn, not read. Give --dataset too."
            )
        source: Source = replace_fields(SyntheticPeople(seed=options.seed), settings, "data")
    else:
        if options.root is None:
            raise ValueError(f"--dataset {options.dataset} needs --root: the folder that holds its pictures.")
        made: Mapping[str, Callable[..., Source]] = {"market1501": Market1501, "folder": Folder}
        source = replace_fields(made[options.dataset](root=options.root.resolve()), settings, "data")
    return source, source.listing()


def _size(options: Options, listing: Listing) -> tuple[int, int] | None:
    if options.size is not None:
        return parse_size(options.size)
    if options.dataset == "folder":
        return common_size(listing)
    return None


def parse_size(text: str) -> tuple[int, int]:
    """'128x64' as (128, 64), height and width in pixels."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--size {text!r} was given; expected height x width in pixels, such as 128x64.")
    return int(height), int(width)


def common_size(listing: Listing) -> tuple[int, int]:
    """The most frequent size (height, width) of a listing's first pictures."""
    sizes = Counter(size for entry in listing.entries[:100] if (size := picture_size(Path(entry.path))))
    if not sizes:
        raise ValueError(
            "none of the first pictures can be read, so their size is unknown. Check them, or give --size."
        )
    return sizes.most_common(1)[0][0]


def from_run(options: Options) -> Options:
    """The options with everything that was not given taken from the run folder's own (`options.json`)."""
    path = options.run / "options.json" if options.run else None
    if path is None or not path.is_file():
        return options
    kept = json.loads(path.read_text())
    default = Options()
    for each in fields(Options):
        if getattr(options, each.name) == getattr(default, each.name) and each.name in kept:
            value = kept[each.name]
            setattr(options, each.name, Path(value) if each.name in ("root", "run") and value else value)
    return options


def keep(options: Options) -> dict[str, Any]:
    """The options as JSON values, as options.json holds them: those that a later command on the run takes over."""
    names = [f.name for f in fields(Options) if f.name not in ("run", "workers", "device", "checkpoint_every")]
    return {name: str(v.resolve()) if isinstance(v := getattr(options, name), Path) else v for name in names}
