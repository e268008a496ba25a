"""Options shared by the flows and the commands, and the plan that they describe."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from posegen.batch import COLUMNS
from posegen.catalog import override, system
from posegen.cluster.connecting import Workers
from posegen.data.formats.images import image_size
from posegen.data.listing import Listing, Source
from posegen.data.masks import network_digits
from posegen.data.shards.making import ShardSettings
from posegen.data.sources.deepfashion import DeepFashion
from posegen.data.sources.folder import Folder
from posegen.data.sources.human36m import Human36M
from posegen.data.sources.market1501 import Market1501
from posegen.data.sources.pairs import with_validation
from posegen.data.sources.synchronized_views import SynchronizedViews
from posegen.data.sources.synthetic import SyntheticPeople, SyntheticViews
from posegen.data.sources.triplet_hdf5 import TripletHdf5
from posegen.nets.pretrained import PRETRAINED, path_of, weights_folder
from posegen.runs.plan import Plan
from posegen.stage import System, UsesPretrained
from posegen.storage.files import read_json
from posegen.storage.run_lock import refresh
from posegen.storage.store import Store, check_layout
from posegen.systems.fields import replace_fields
from posegen.training.checkpoints import Interval

GB = 10**9
SYNTHETIC_PER_SHARD = 320  # images; drawing one takes far longer than reading one: small shards keep all CPUs busy
SYNTHETIC_PAIRS = 400  # test pairs scored on the embedded data; every pair elsewhere
Synthetic = SyntheticPeople | SyntheticViews
Cropped = DeepFashion | Human36M | SynchronizedViews  # sources that crop images to a size of their own
Dataset = Literal[
    "synthetic", "synthetic-views", "market1501", "deepfashion", "triplet-hdf5", "human36m", "views", "folder"
]
SETTINGS_OF = {"triplet-hdf5": "deepfashion"}  # data sets with the images, and so the settings, of another one

MULTIPLE = Parameter(consume_multiple=True, negative=())


@Parameter(name="*")
@dataclass(kw_only=True)
class Options:
    """Options as given on the command line; None means not given."""

    system: str | None = None
    "System to train, see `posegen systems`. Default: vdg."
    variant: str | None = None
    "Variant of the system. Default: full, the paper's system."
    dataset: Dataset | None = None
    "Data set. Default: synthetic, or synthetic-views for systems that read the rotation; both need no files."
    root: Path | None = None
    "Folder of the images; not for the synthetic data sets."
    size: str | None = None
    "Image height x width, such as 128x64. Default: the system's own, or a folder's most frequent size."
    run: str | Path | None = None
    "Run folder, or a URI such as s3://bucket/runs/mine. Default: SYSTEM-VARIANT-DATASET in POSEGEN_RUNS, or in runs/."
    set: Annotated[list[str] | None, MULTIPLE] = None
    "Settings by dotted path: coarse.steps=200 data.seed=3 pose_maps.radius=2."
    pairs: int | None = None
    "Test pairs to score. Default: all, or 400 of the synthetic data."
    workers: str | int | None = None
    "Training processes over all nodes: 4, or 2:8 for as many as fit. Default: 1."
    device: Literal["auto", "cpu", "cuda"] | None = None
    "Device to train on. Default: auto, GPUs if there are any."
    seed: int | None = None
    "Seed of networks, order of pairs and synthetic people. Default: 0."
    checkpoint_every: str | int | None = None
    "Steps (500) or minutes (10m) between checkpoints. Default: a tenth of a stage, 50 to 1,000 steps."
    cache_gb: float | None = None
    "GB of each node's disk for copies of shards; training then draws from as many shards as fit. Default: no limit."
    weights_dir: Path | None = None
    "Folder of pretrained networks, see `posegen weights`. Default: POSEGEN_WEIGHTS, or `weights`."
    settings: Path | None = None
    "JSON file with settings by dotted path, such as a sweep's best.json; --set takes precedence."


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions:
    """Options with their defaults filled in."""

    system: str = "vdg"
    variant: str = "full"
    dataset: str = "synthetic"
    root: Path | None = None
    size: str | None = None
    run: str | Path | None = None
    set: tuple[str, ...] = ()
    pairs: int | None = None
    workers: str | int = 1
    device: str = "auto"
    seed: int = 0
    checkpoint_every: str | int | None = None
    cache_gb: float | None = None
    weights_dir: Path | None = None

    @property
    def run_uri(self) -> str:
        """--run, or a folder named after system, variant and data set."""
        home = os.environ.get("POSEGEN_RUNS") or "runs"
        return str(self.run or f"{home.rstrip('/')}/{self.system}-{self.variant}-{self.dataset}")


# No result depends on these: they are not kept with a run, so that each command chooses them anew.
NOT_KEPT = ("run", "workers", "device", "checkpoint_every", "cache_gb", "weights_dir")


def resolve_options(options: Options) -> ResolvedOptions:
    """Return the options with those of the settings file, and with defaults for those not given."""
    if options.settings is not None:
        options = _with_settings_file(options, options.settings)
    given = {f.name: getattr(options, f.name) for f in fields(Options)}
    given["set"] = None if options.set is None else tuple(options.set)
    if options.dataset is None:
        name, variant = options.system or ResolvedOptions.system, options.variant or ResolvedOptions.variant
        stages = system(name, "synthetic-views", variant).stages
        given["dataset"] = "synthetic-views" if any("rotation" in stage.reads for stage in stages) else "synthetic"
    return ResolvedOptions(**{name: value for name, value in given.items() if value is not None})


def _with_settings_file(options: Options, path: Path) -> Options:
    """Return the options with those of a file: {"system": ..., "variant": ..., "settings": {path: value}}."""
    content = read_json(path)
    if content is None or not isinstance(content.get("settings"), dict):
        raise ValueError(
            f'--settings {path} was given; expected a JSON file such as {{"system": "vdg", "settings": '
            f'{{"refinement.alpha": 0.5}}}}, and there is {"no such file" if not path.is_file() else "something else"}.'
        )
    for name in ("system", "variant"):
        given, named = getattr(options, name), content.get(name)
        if given is not None and named is not None and given != named:
            raise ValueError(f"--{name} {given} was given, but the settings in {path} are for {name} {named}.")
    settings = [
        f"{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in content["settings"].items()
    ]
    return replace(
        options,
        system=options.system or content.get("system"),
        variant=options.variant or content.get("variant"),
        set=[*settings, *(options.set or [])],
        settings=None,
    )


def plan_for(given: Options, *, validation_share: float = 0.0) -> Plan:
    """Return the plan that the options describe.

    Args:
        given: Options of the command line.
        validation_share: Share of the training people to hold out for validation.

    Raises:
        ValueError: The options do not fit together, the data cannot be read, or the run folder is unusable.
    """
    options = resolve_options(given)
    _check_numbers(options)
    store = open_store(options.run_uri)
    settings, weights = parse_settings(options.set), weights_folder(options.weights_dir)
    source, listing = _source(options, _below(settings, "data"))
    settings_of = SETTINGS_OF.get(options.dataset, options.dataset)
    described = system(options.system, settings_of, options.variant, _size(options, source, listing))
    described = override(described, {k: v for k, v in settings.items() if k.split(".")[0] not in ("data", "shards")})
    described = with_pretrained(described, weights, settings)
    if isinstance(source, Synthetic) and source.size != described.size:
        source = replace(source, size=described.size)
        listing = source.listing()
    if validation_share:
        listing = with_validation(listing, validation_share)
    plan = Plan(
        store=store,
        system=described,
        dataset=options.dataset,
        source=source,
        listing=listing,
        shard_settings=_shard_settings(source, described, weights, _below(settings, "shards")),
        seed=options.seed,
        score_pairs=SYNTHETIC_PAIRS if options.pairs is None and isinstance(source, Synthetic) else options.pairs,
        checkpoint_every=None if options.checkpoint_every is None else Interval.parse(str(options.checkpoint_every)),
        workers=Workers.parse(str(options.workers)),
        cache_bytes=None if options.cache_gb is None else round(options.cache_gb * GB),
        device=options.device,
        weights=weights,
    )
    _check_stages(plan)
    return plan


def open_store(run: str) -> Store:
    """Open a run's store and fetch its small files to this node.

    Raises:
        ValueError: The folder lies in a Ray job's copy of the code, which is removed with the job; the storage is not
            usable; or the run was made with a version whose files this one cannot read.
    """
    store = Store.of(run)
    if not store.remote and "_ray_pkg_" in store.uri:
        raise ValueError(
            f"--run {run} lies in {Path(store.uri).parent}, a job's copy of the code, which is removed with the "
            "job. Give a URI such as --run s3://bucket/runs/mine, or a folder that all nodes share, by its absolute "
            "path; or set POSEGEN_RUNS on the cluster."
        )
    store.check()
    refresh(store, wanted=is_small)
    check_layout(store)
    return store


def is_small(inside: str) -> bool:
    """Return whether every command reads this file of a run: no images, networks or summaries of shards."""
    is_summary = re.fullmatch(r"shards/.*-\d+\.json", inside)
    return not inside.endswith((".arrow", ".safetensors", ".pt")) and not is_summary


def with_pretrained(described: System, weights: Path, settings: Mapping[str, object]) -> System:
    """Return the system with random networks in place of pretrained ones whose files are absent.

    Raises ValueError if the settings name a pretrained network whose file is absent.
    """
    for stage in described.stages:
        if not isinstance(stage, UsesPretrained) or stage.features != stage.pretrained or not stage.pretrained:
            continue
        path, wanted = f"{stage.name}.features", PRETRAINED[stage.pretrained]
        if path_of(stage.pretrained, weights) is not None:
            continue
        if path in settings:
            raise ValueError(
                f"--set {path}={stage.features} was given, but {weights / wanted.file} is not there. Get it from "
                f"{wanted.origin}, or name the folder that has it: --weights-dir."
            )
        described = override(described, {path: f"random-{stage.pretrained}"})
    return described


def _shard_settings(source: Source, described: System, weights: Path, given: Mapping[str, str]) -> ShardSettings:
    """Return the settings of the stored images, including those that the user gave.

    Unless the user chose otherwise, person masks that the data set lacks are estimated if the system reads them: by the
    network if its file exists. Raises ValueError if that file is damaged.
    """
    synthetic = isinstance(source, Synthetic)
    reads_masks = any(column.endswith("_person_mask") for stage in described.stages for column in stage.reads)
    settings = ShardSettings(
        size=described.size,
        mask_radius=max(1, round(4 * min(1, described.size[0] / 128))),  # PG2's 4 pixels from height 128 on
        images_per_shard=SYNTHETIC_PER_SHARD if synthetic else ShardSettings.images_per_shard,
        person_masks="estimated" if reads_masks and not synthetic else "own",
    )
    settings = replace_fields(settings, given, "shards", fixed=("size", "person_network"))
    if synthetic or settings.person_masks == "own":
        return settings
    return replace(settings, person_network=network_digits(weights))


def _check_stages(plan: Plan) -> None:
    """Raise ValueError if a stage has fewer pairs in a batch than workers, reads a column that nothing before it
    provides, or continues from networks of other sizes."""
    for stage in plan.system.stages:
        if stage.training.batch_size < plan.workers.most:
            raise ValueError(
                f"--workers {plan.workers} is more than the batch of stage '{stage.name}' has pairs, "
                f"{stage.training.batch_size}. Give fewer, or --set {stage.name}.batch_size=N with {plan.workers.most} "
                "or more."
            )
    if errors := plan.system.continuation_errors():
        raise ValueError(f"{plan.system.name} cannot be trained so:\n  " + "\n  ".join(errors))
    has_masks = isinstance(plan.source, Synthetic) or plan.shard_settings.person_masks == "estimated"
    has_rotations = all(isfinite(entry.azimuth) for entry in plan.listing.entries)
    columns = {name for name in COLUMNS if has_masks or not name.endswith("_person_mask")}
    columns -= set() if has_rotations else {"rotation"}
    errors = plan.system.wiring_errors(columns)
    if errors:
        if not has_masks and any("_person_mask'" in error for error in errors):
            errors.append(
                f"{plan.dataset} has no person masks: without --set shards.person_masks=own it gets estimated ones"
            )
        raise ValueError(f"{plan.system.name} cannot be trained on {plan.dataset}:\n  " + "\n  ".join(errors))


def _check_numbers(options: ResolvedOptions) -> None:
    if options.pairs is not None and options.pairs < 1:
        raise ValueError(f"--pairs {options.pairs} was given; it must be at least 1.")
    if options.cache_gb is not None and not 0 < options.cache_gb < float("inf"):
        raise ValueError(f"--cache-gb {options.cache_gb} was given; it must be more than 0.")


def parse_settings(given: Sequence[str]) -> dict[str, str]:
    """Parse ['coarse.steps=200', ...] to a mapping. Raises ValueError for items not of the form path=value."""
    settings: dict[str, str] = {}
    for item in given:
        path, equals, value = item.partition("=")
        if not equals or "." not in path:
            raise ValueError(f"--set {item!r} was given; expected a dotted path and a value, such as coarse.steps=200.")
        settings[path.strip()] = value.strip()
    return settings


def _below(settings: Mapping[str, str], head: str) -> dict[str, str]:
    return {path.partition(".")[2]: value for path, value in settings.items() if path.partition(".")[0] == head}


def _source(options: ResolvedOptions, settings: Mapping[str, Any]) -> tuple[Source, Listing]:
    synthetic = {"synthetic": SyntheticPeople, "synthetic-views": SyntheticViews}
    if options.dataset in synthetic:
        if options.root is not None:
            raise ValueError(
                f"--root {options.root} was given, but the synthetic data set is drawn, not read. Give --dataset too."
            )
        source: Source = replace_fields(
            synthetic[options.dataset](seed=options.seed), settings, "data", fixed=("size",)
        )
    else:
        if options.root is None:
            raise ValueError(f"--dataset {options.dataset} needs --root: the folder that holds its images.")
        readers: Mapping[str, Callable[..., Source]] = {
            "market1501": Market1501,
            "deepfashion": DeepFashion,
            "triplet-hdf5": TripletHdf5,
            "human36m": Human36M,
            "views": SynchronizedViews,
            "folder": Folder,
        }
        source = replace_fields(readers[options.dataset](root=options.root.resolve()), settings, "data")
    return source, source.listing()


def _size(options: ResolvedOptions, source: Source, listing: Listing) -> tuple[int, int] | None:
    if options.size is not None:
        return parse_size(options.size)
    if isinstance(source, Cropped):
        return source.size
    if options.dataset == "folder":
        return common_size(listing)
    return None


def parse_size(text: str) -> tuple[int, int]:
    """Parse '128x64' to (128, 64), height and width in pixels. Raises ValueError for other forms."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--size {text!r} was given; expected height x width in pixels, such as 128x64.")
    return int(height), int(width)


def common_size(listing: Listing) -> tuple[int, int]:
    """Return the most frequent size (height, width) of a listing's first 100 images."""
    sizes = Counter(size for entry in listing.entries[:100] if (size := image_size(Path(entry.path))))
    if not sizes:
        raise ValueError("none of the first images can be read, so their size is unknown. Check them, or give --size.")
    return sizes.most_common(1)[0][0]


def from_run(options: Options) -> Options:
    """Return the options with those not given taken from the run's options.json, if there is one.

    A given `set` is added to the run's and takes precedence. Raises ValueError if the run was made with a version whose
    files this one cannot read.
    """
    store = Store.of(resolve_options(options).run_uri)
    store.fetch("plan.json")
    check_layout(store)
    names = [f.name for f in fields(Options)]
    kept = {k: v for k, v in (read_json(store.fetch("options.json")) or {}).items() if k in names}
    for name in ("root", "settings"):
        if kept.get(name):
            kept[name] = Path(kept[name])
    given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(Options)}
    given["set"] = [*(kept.get("set") or []), *(options.set or [])]
    return replace(Options(**kept), **{name: value for name, value in given.items() if value is not None})


def kept_options(options: Options) -> dict[str, Any]:
    """Return the content of options.json: the options that later commands on the run reuse, as JSON values."""
    kept = {f.name: getattr(options, f.name) for f in fields(Options) if f.name not in NOT_KEPT}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in kept.items()}
