"""A stage's checkpoint: a folder that is complete or does not exist.

`checkpoint_<step>/` holds networks.safetensors (networks, and averages under "ema."), optimizers.pt (read with
`weights_only`), curve.json (the terms so far) and stage.json (step, recipe, seed, last terms). The random state of
step n is a function of the seed in it. Written under another name and renamed: a killed writer leaves nothing that
counts. What is written is a copy, so that training goes on meanwhile.

Checkpoints written in a thread while training goes on, and published where other nodes see them.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.stage import Canvas, Stage
from posegen.storage.files import patiently, remove_whole, temporary_beside, to_disk
from posegen.storage.store import Store
from posegen.training.step import Game, place

Curve = list[dict[str, float]]

RAY_STATE = ".ray"  # in a stage's folder: what Ray Train keeps of itself while it trains, which nothing reads
KEEP = 2  # newest checkpoints of a stage that stay, where nothing else is said


@dataclass(frozen=True)
class Progress:
    """Where a stage stands: what stage.json says."""

    step: int
    recipe: str  # fingerprint of everything that decides what a step does
    seed: int
    last_terms: Mapping[str, float]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a stage's folder, oldest first."""
    found = (path for path in folder.glob("checkpoint_*") if (path / "stage.json").is_file())
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint_")))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return (checkpoints(folder) or [None])[-1]


def newest_name(store: Store, place: str) -> str:
    """The name of the newest complete checkpoint of a stage whose folder within the run is `place`; "" without one."""
    if not store.remote:
        latest = latest_checkpoint(store.folder / place)
        return latest.name if latest else ""
    return max(
        (name.removesuffix("/stage.json") for name in store.sizes(place) if name.endswith("/stage.json")), default=""
    )


def fetch_checkpoint(store: Store, place: str, name: str, *, training: bool = True) -> Path:
    """A stage's checkpoint on this node, as the only one there of a run that is a URI.

    Without what only `training` needs where it is not asked for.
    """
    left_out = () if training else ("/optimizers.pt",)
    store.fetch(place, wanted=lambda inside: inside.startswith(f"{name}/") and not inside.endswith(left_out))
    return store.folder / place / name


def fetch_newest(store: Store, place: str, *, training: bool = False) -> Path | None:
    """The newest complete checkpoint of a stage, on this node; None where there is none."""
    name = newest_name(store, place)
    return fetch_checkpoint(store, place, name, training=training) if name else None


def newest_progress(store: Store, place: str) -> Progress | None:
    """How far a stage has come in the run, wherever it was trained; None where it has no checkpoint."""
    name = newest_name(store, place)
    return read_progress(store.fetch(f"{place}/{name}/stage.json").parent) if name else None


def read_progress(checkpoint: Path) -> Progress:
    """What stage.json says."""
    return Progress(**json.loads((checkpoint / "stage.json").read_text()))


def read_curve(checkpoint: Path) -> Curve:
    """The terms logged so far: rows of {"step": n, "<player>/<term>": mean since the row before}."""
    return json.loads((checkpoint / "curve.json").read_text())


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, copied to the CPU: training goes on while it is written."""

    progress: Progress
    curve: Curve
    networks: Mapping[str, Tensor]
    optimizers: Mapping[str, Any]  # state dicts, by player

    @property
    def name(self) -> str:
        return f"checkpoint_{self.progress.step:08d}"


def snapshot(game: Game, progress: Progress, curve: Curve) -> Snapshot:
    """A copy of the game as it stands."""
    states = {name: copied(optimizer.state_dict()) for name, optimizer in game.optimizers.items()}
    return Snapshot(progress, list(curve), _tensors(game), states)


def copied(state: Any) -> Any:
    """A copy on the CPU of nested dictionaries and lists with tensors in them."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


def write_snapshot(folder: Path, taken: Snapshot, *, keep: int = KEEP) -> Path:
    """Writes `folder/checkpoint_<step>` atomically and removes all but the newest `keep`. Returns its path.

    Where another process has just written the same checkpoint (a worker on a host that was cut off from the others),
    that one stays: both are of the same step and recipe. Raises StorageFailed where the storage cannot take it for
    longer than a write waits.
    """
    final = folder / taken.name
    patiently(lambda: _write_once(final, taken), final)
    for old in checkpoints(folder)[:-keep]:
        remove_whole(old)
    return final


def _write_once(final: Path, taken: Snapshot) -> None:
    partial = temporary_beside(final)
    try:
        partial.mkdir(parents=True)
        save_file(dict(taken.networks), partial / "networks.safetensors")
        with (partial / "optimizers.pt").open("wb") as file:  # of a path torch would not say why it cannot be written
            torch.save(dict(taken.optimizers), file)
        (partial / "curve.json").write_text(json.dumps(taken.curve))
        (partial / "stage.json").write_text(json.dumps(vars(taken.progress), indent=1))
        for file in partial.iterdir():
            to_disk(file)
        _put(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, final: Path) -> None:
    if final.is_dir() and not _is_same(partial, final):
        remove_whole(final)
    try:
        os.replace(partial, final)
    except OSError:
        if not (final / "stage.json").is_file():
            raise


def _is_same(partial: Path, final: Path) -> bool:
    return (final / "stage.json").is_file() and read_progress(final).recipe == read_progress(partial).recipe


def _tensors(game: Game) -> dict[str, Tensor]:
    named = [("", game.bare), ("ema.", game.averages)]
    return {
        f"{prefix}{name}.{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for prefix, networks in named
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }


def remove_other(store: Store, place: str, recipe: str) -> None:
    """Empties a stage's folder, which is `place` within the run, where its newest checkpoint is of another recipe."""
    progress = newest_progress(store, place)
    if progress is not None and progress.recipe != recipe:
        store.remove(place)


def take_over(store: Store, given: str, place: str, recipe: str) -> Path:
    """Makes a copy of another stage's checkpoint, which is `given` within the run, the only one of the stage whose
    folder is `place`, under a recipe of its own.

    Training goes on from it with other settings (population based training). Returns its path on this node.
    """
    checkpoint, folder = store.fetch(given), store.folder / place
    partial = temporary_beside(folder)
    shutil.copytree(checkpoint, partial / checkpoint.name)
    progress = replace(read_progress(checkpoint), recipe=recipe)
    (partial / checkpoint.name / "stage.json").write_text(json.dumps(vars(progress), indent=1))
    store.remove(place)
    os.replace(partial, folder)
    store.publish(place, last=f"{checkpoint.name}/stage.json")
    return folder / checkpoint.name


def load_networks(checkpoint: Path, networks: Mapping[str, nn.Module], *, averaged: bool = True) -> None:
    """Fills `networks` from a checkpoint, from the averages where `averaged` and there are any.

    Raises ValueError where the file does not fit the networks: it was made with other settings.
    """
    tensors = load_file(checkpoint / "networks.safetensors")
    for name, network in networks.items():
        prefix = f"ema.{name}." if averaged and any(k.startswith(f"ema.{name}.") for k in tensors) else f"{name}."
        _fill(network, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}, checkpoint)


def _fill(network: nn.Module, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} does not fit this stage's networks; it was trained with other settings.\n{error}"
        ) from None


def restore(game: Game, checkpoint: Path) -> tuple[Progress, Curve]:
    """Puts networks, averages, optimizers and last terms back as they were."""
    load_networks(checkpoint, game.bare, averaged=False)
    load_networks(checkpoint, game.averages, averaged=True)
    states = torch.load(checkpoint / "optimizers.pt", map_location=game.device, weights_only=True)
    for name, optimizer in game.optimizers.items():
        optimizer.load_state_dict(states[name])
    progress = read_progress(checkpoint)
    game.last_terms = dict(progress.last_terms)
    return progress, read_curve(checkpoint)


def trained_networks(stage: Stage, canvas: Canvas, folder: Path, device: torch.device) -> dict[str, nn.Module]:
    """One stage's finished networks, frozen."""
    checkpoint = latest_checkpoint(folder)
    step = read_progress(checkpoint).step if checkpoint else 0
    if checkpoint is None or step < stage.training.steps:
        raise ValueError(
            f"stage '{stage.name}' is not trained: {folder} is at step {step} of {stage.training.steps}. "
            "Run the same command with `posegen train` to go on."
        )
    networks = stage.networks(canvas)
    load_networks(checkpoint, networks)
    return {name: place(network.eval().requires_grad_(False), device) for name, network in networks.items()}


class Saver:
    """Writes one snapshot after another to a stage's folder in a run; what is written counts when it is complete.

    At most one waits in memory: a snapshot that comes while another is written waits for it.
    """

    def __init__(self, store: Store, place: str, *, keep: int = KEEP, written: Callable[[Path], None] | None = None):
        """`place` is the stage's folder within the run; `written` is told, in the thread, of each checkpoint."""
        self._store, self._place, self._keep, self._written = store, place, keep, written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posegen-checkpoint")
        self._last: Future[None] | None = None

    def save(self, taken: Snapshot) -> None:
        """Has a snapshot written. Raises what made the one before fail."""
        self.wait()
        self._last = self._thread.submit(self._write, taken)

    def wait(self) -> None:
        """Returns when all that was given is written and published. Raises what made it fail."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Ends the thread, when what it is writing is done. Raises nothing: for after a failure too."""
        self._thread.shutdown()

    def _write(self, taken: Snapshot) -> None:
        folder = self._store.folder / self._place
        before = {path.name for path in checkpoints(folder)}
        final = write_snapshot(folder, taken, keep=self._keep)
        self._store.publish(f"{self._place}/{final.name}", last="stage.json")
        for gone in before - {path.name for path in checkpoints(folder)}:
            self._store.remove(f"{self._place}/{gone}")
        if self._written is not None:
            self._written(final)
