"""Checkpoints of a stage: folders that are complete or absent, written in a thread while training continues.

`checkpoint_<step>/` holds networks.safetensors (networks, and averages under "ema."), optimizers.pt (read with
`weights_only`), curve.json (the terms so far) and stage.json (step, config hash, seed, last terms). The random state of
step n is a function of the seed in it. A checkpoint is written under a temporary name and renamed, so a killed writer
leaves nothing that counts.
"""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posegen.stage import Canvas, Stage
from posegen.storage.files import patiently, remove_whole, temporary_beside, to_disk
from posegen.storage.store import Store
from posegen.training.step import Trainer, to_device

Curve = list[dict[str, float]]

RAY_STATE = ".ray"  # in a stage's folder: Ray Train's own state while it trains, never read
KEEP = 2  # newest checkpoints of a stage that are kept, by default


@dataclass(frozen=True)
class Interval:
    """Interval between checkpoints: in steps or in minutes; the other is 0."""

    steps: int = 0
    minutes: float = 0.0

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps else f"{self.minutes:g} minutes"

    @staticmethod
    def parse(text: str) -> "Interval":
        """Read '500' or '10m'. Raises ValueError for anything else."""
        try:
            given = Interval(minutes=float(text[:-1])) if text.endswith("m") else Interval(steps=int(text))
        except ValueError:
            given = Interval()
        if not (given.steps > 0 or 0 < given.minutes < float("inf")):
            raise ValueError(
                f"--checkpoint-every {text} was given; expected steps, such as 500, or minutes, such as 10m."
            )
        return given


@dataclass(frozen=True)
class StageProgress:
    """State of a stage: the content of stage.json."""

    step: int
    config_hash: str  # fingerprint of everything that decides what a step does
    seed: int
    last_terms: Mapping[str, float]


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a stage's folder, oldest first."""
    found = (path for path in folder.glob("checkpoint_*") if (path / "stage.json").is_file())
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint_")))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    return (checkpoints(folder) or [None])[-1]


def newest_name(store: Store, prefix: str) -> str:
    """Return the name of the newest complete checkpoint of the stage at `prefix` within the run; "" without one."""
    if not store.remote:
        latest = latest_checkpoint(store.folder / prefix)
        return latest.name if latest else ""
    return max(
        (name.removesuffix("/stage.json") for name in store.sizes(prefix) if name.endswith("/stage.json")), default=""
    )


def fetch_checkpoint(store: Store, prefix: str, name: str, *, training: bool = True) -> Path:
    """Fetch a stage's checkpoint from a run at a URI, and remove this node's other ones.

    The optimizers' state is fetched only for `training`.
    """
    left_out = () if training else ("/optimizers.pt",)
    store.fetch(prefix, wanted=lambda inside: inside.startswith(f"{name}/") and not inside.endswith(left_out))
    return store.folder / prefix / name


def fetch_newest(store: Store, prefix: str, *, training: bool = False) -> Path | None:
    """Fetch the newest complete checkpoint of a stage; return None if there is none."""
    name = newest_name(store, prefix)
    return fetch_checkpoint(store, prefix, name, training=training) if name else None


def newest_progress(store: Store, prefix: str) -> StageProgress | None:
    """Return the progress of a stage in the run, whichever node trained it; None without a checkpoint."""
    name = newest_name(store, prefix)
    return read_progress(store.fetch(f"{prefix}/{name}/stage.json").parent) if name else None


def read_progress(checkpoint: Path) -> StageProgress:
    """Read stage.json."""
    return StageProgress(**json.loads((checkpoint / "stage.json").read_text()))


def read_curve(checkpoint: Path) -> Curve:
    """Read the terms logged so far: rows of {"step": n, "<player>/<term>": mean since the previous row}."""
    return json.loads((checkpoint / "curve.json").read_text())


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint, copied to the CPU, so that training continues while it is written."""

    progress: StageProgress
    curve: Curve
    networks: Mapping[str, Tensor]
    optimizers: Mapping[str, Any]  # state dicts, by player

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        return f"checkpoint_{self.progress.step:08d}"


def snapshot(trainer: Trainer, progress: StageProgress, curve: Curve) -> Snapshot:
    """Copy the trainer's state to the CPU."""
    tensors = {
        f"{average}{name}.{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for average, networks in (("", trainer.bare), ("ema.", trainer.averages))
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }
    states = {name: _copy(optimizer.state_dict()) for name, optimizer in trainer.optimizers.items()}
    return Snapshot(progress, list(curve), tensors, states)


def _copy(state: Any) -> Any:
    """Copy nested dictionaries and lists with tensors in them to the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list) else state


def write_snapshot(folder: Path, taken: Snapshot, *, keep: int = KEEP) -> Path:
    """Write `folder/checkpoint_<step>` atomically, remove all but the newest `keep`, and return its path.

    If another process has just written the same checkpoint (a worker on a host that was cut off from the others), that
    one stays: both have the same step and config hash. Raises StorageFailed if the storage cannot be written for longer
    than a write is retried.
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
        with (partial / "optimizers.pt").open("wb") as file:  # with a path, torch hides why it fails
            torch.save(dict(taken.optimizers), file)
        (partial / "curve.json").write_text(json.dumps(taken.curve))
        (partial / "stage.json").write_text(json.dumps(vars(taken.progress), indent=1))
        for file in partial.iterdir():
            to_disk(file)
        whole = (final / "stage.json").is_file()
        if final.is_dir() and not (whole and read_progress(final).config_hash == taken.progress.config_hash):
            remove_whole(final)
        try:
            os.replace(partial, final)
        except OSError:
            if not (final / "stage.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_other(store: Store, prefix: str, config_hash: str) -> None:
    """Remove the folder of the stage at `prefix` if its newest checkpoint has another config hash."""
    progress = newest_progress(store, prefix)
    if progress is not None and progress.config_hash != config_hash:
        store.remove(prefix)


def load_networks(checkpoint: Path, networks: Mapping[str, nn.Module], *, averaged: bool = True) -> None:
    """Load `networks` from a checkpoint, from the averages if `averaged` and there are any.

    Raises ValueError if the file does not fit the networks: it was made with other settings.
    """
    tensors = load_file(checkpoint / "networks.safetensors")
    for name, network in networks.items():
        prefix = f"ema.{name}." if averaged and any(k.startswith(f"ema.{name}.") for k in tensors) else f"{name}."
        state = {k.removeprefix(prefix): tensor for k, tensor in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} does not fit this stage's networks; it was trained with other settings.\n{error}"
            ) from None


def restore(trainer: Trainer, checkpoint: Path) -> tuple[StageProgress, Curve]:
    """Restore networks, averages, optimizers and last terms."""
    load_networks(checkpoint, trainer.bare, averaged=False)
    load_networks(checkpoint, trainer.averages, averaged=True)
    states = torch.load(checkpoint / "optimizers.pt", map_location=trainer.device, weights_only=True)
    for name, optimizer in trainer.optimizers.items():
        optimizer.load_state_dict(states[name])
    progress = read_progress(checkpoint)
    trainer.last_terms = dict(progress.last_terms)
    return progress, read_curve(checkpoint)


def trained_networks(stage: Stage, canvas: Canvas, folder: Path, device: torch.device) -> dict[str, nn.Module]:
    """Load the networks of a fully trained stage, frozen. Raises ValueError if it is not trained to its last step."""
    checkpoint = latest_checkpoint(folder)
    step = read_progress(checkpoint).step if checkpoint else 0
    if checkpoint is None or step < stage.training.steps:
        raise ValueError(
            f"stage '{stage.name}' is not trained: {folder} is at step {step} of {stage.training.steps}. "
            "Run the same command with `posegen train` to resume."
        )
    networks = stage.networks(canvas)
    load_networks(checkpoint, networks)
    return {name: to_device(network.eval().requires_grad_(False), device) for name, network in networks.items()}


class AsyncCheckpointer:
    """Writes snapshots one after another to a stage's folder in the run, in a thread.

    At most one waits in memory: saving another one first waits for it.
    """

    def __init__(self, store: Store, prefix: str, *, keep: int = KEEP):
        """Write to the stage's folder at `prefix` within the run, and keep the newest `keep` checkpoints."""
        self._store, self._prefix, self._keep = store, prefix, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="posegen-checkpoint")
        self._last: Future[None] | None = None

    def save(self, taken: Snapshot) -> None:
        """Start to write a snapshot. Raises the error of the previous one."""
        self.wait()
        self._last = self._thread.submit(self._write, taken)

    def wait(self) -> None:
        """Wait until all snapshots are written and published. Raises the error of the last one."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for the current write and end the thread. Raises nothing, so it is safe after a failure."""
        self._thread.shutdown()

    def _write(self, taken: Snapshot) -> None:
        folder = self._store.folder / self._prefix
        before = {path.name for path in checkpoints(folder)}
        final = write_snapshot(folder, taken, keep=self._keep)
        self._store.publish(f"{self._prefix}/{final.name}", last="stage.json")
        for gone in before - {path.name for path in checkpoints(folder)}:
            self._store.remove(f"{self._prefix}/{gone}")
