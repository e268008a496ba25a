"""The dry run: a plan and its needs (columns, parameters, pairs, disk, memory) as lines of text. Starts nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from posegen.batch import COLUMNS, Batch
from posegen.data.listing import Entry
from posegen.data.sources.pairs import ordered_pairs, usable_rows
from posegen.runs.plan import Plan
from posegen.stage import Stage, System, UsesPretrained, player_terms

MIB = 2**20
IMAGE_BYTES = {(64, 32): 1_300, (128, 64): 2_700, (256, 256): 12_000}  # of a typical JPEG, with mask and joints


def describe_plan(plan: Plan) -> list[str]:
    """Return the plan as lines of text."""
    system = plan.system
    height, width = system.size
    lines = [f"run      {plan.store.uri}"]
    lines += [f"system   {system.name}, variant {system.variant}, {height}x{width} pixels", ""]
    steps = [f"  {step.name:<12} {step.state:<8} {step.detail}" for step in plan.steps()]
    return [*lines, *describe_data(plan), "", "steps", *steps, *describe_stages(plan)]


def describe_data(plan: Plan) -> list[str]:
    """Return lines on the images and pairs, and the notes: of the data's reader, masks and random networks."""
    notes = list(plan.listing.notes)
    if plan.shard_settings.person_masks != "own":
        way = "the network of --weights-dir" if plan.shard_settings.person_network else "GrabCut from the joints"
        notes.append(f"person masks that the data set does not have are estimated, by {way} and a mean field")
    notes += plan.system.stand_ins()
    return [f"data     {line}" for line in _data_lines(plan)] + [f"note     {note}" for note in notes]


def describe_stages(plan: Plan) -> list[str]:
    """Return lines on every stage, and every setting."""
    stages = [line for index in range(len(plan.system.stages)) for line in ("", *_stage_lines(plan, index))]
    settings = [(path, value) for path, value in plan.settings.items() if "." in path]
    return [
        *stages,
        "",
        "settings (change any with --set path=value)",
        *[f"  {path} = {value}" for path, value in settings if not path.endswith(".size")],
    ]


def _data_lines(plan: Plan) -> list[str]:
    """Return images and pairs by split, rejects, and the disk space of the shards."""
    entries = plan.listing.entries
    lines = []
    for split in dict.fromkeys(("train", "test", *(entry.split for entry in entries))):
        mine = [entry for entry in entries if entry.split == split]
        lines.append(f"{split}: {len(mine):,} images, {_pairs_text(plan, split, mine)}")
    rejects = Counter(reject.reason for reject in plan.listing.rejects)
    if rejects:
        lines.append("not usable: " + ", ".join(f"{n:,} {reason}" for reason, n in rejects.items()))
    nearest = min(IMAGE_BYTES, key=lambda size: abs(np.log(np.prod(size) / np.prod(plan.system.size))))
    each = IMAGE_BYTES[nearest] * np.prod(plan.system.size) / np.prod(nearest)
    return [*lines, f"shards: about {len(entries) * each / MIB:,.0f} MiB on disk"]


def _pairs_text(plan: Plan, split: str, entries: Sequence[Entry]) -> str:
    if split in plan.listing.pairs:
        return f"{len(plan.listing.pairs[split]):,} given pairs"
    if entries and entries[0].joints is None:
        largest = Counter(entry.group for entry in entries).values()
        return f"at most {sum(n * (n - 1) for n in largest):,} pairs (as many as have their torso visible)"
    groups = [entries[row].group for row in usable_rows(entries)]
    return f"{len(groups):,} usable, {len(ordered_pairs(groups)):,} pairs"


def _stage_lines(plan: Plan, index: int) -> list[str]:
    """Return a stage's columns, networks and players, and the memory and disk space that it needs."""
    stage = plan.system.stages[index]
    training = stage.training
    with FakeTensorMode():
        made = stage.networks(plan.system.canvas)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in made.items()}
    total = sum(counts.values())
    per_worker = -(-training.batch_size // plan.workers.fewest)
    activations = _saved_bytes(plan.system, index, plan.weights) * per_worker
    networks = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    checkpoint = total * 12 / MIB  # weights and Adam's two moments, 4 bytes each
    return [
        f"stage    {stage.name}: {training.steps:,} steps of {training.batch_size} pairs on {plan.workers} worker(s)",
        f"  reads  {', '.join(stage.reads)}",
        f"  writes {', '.join(stage.writes)}",
        f"  parameters {networks}",
        f"  players {', '.join(f'{p.name} ({p.optimizer} {p.lr:g}, {p.repeats}x)' for p in stage.players)}",
        f"  memory about {(total * 16 + activations) / MIB:,.0f} MiB a worker at {per_worker} pairs, plus the process",
        f"  disk   about {3 * checkpoint:,.0f} MiB for checkpoints, every {plan.checkpoint_interval(stage)}",
    ]


def _saved_bytes(system: System, index: int, weights: Path) -> int:
    """Return the bytes per pair that a loss saves for backward, for the player that needs most; runs shapes only."""
    stage, pairs = system.stages[index], 2  # batch norm needs more than one
    with FakeTensorMode():
        networks = stage.networks(system.canvas)
        if isinstance(stage, UsesPretrained):
            networks |= stage.fixed_networks(weights)
        sides = {"batch": pairs, "height": system.size[0], "width": system.size[1]}
        batch = {
            name: torch.zeros([sides.get(side) or int(side) for side in c.shape.split()], dtype=getattr(torch, c.dtype))
            for name, c in COLUMNS.items()
        }
        for earlier in (system.stages[number] for number in system.stages_before(index)):
            with torch.no_grad():
                batch |= earlier.outputs(system.canvas, earlier.networks(system.canvas), batch)
        return max(_saved_by(system, stage, player.name, networks, batch) for player in stage.players) // pairs


def _saved_by(system: System, stage: Stage, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> int:
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        player_terms(stage, system.canvas, player, networks, batch)
    return sum(saved.values())
