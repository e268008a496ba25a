"""Run a plan: shards, stages, scores, report, in order. Finished steps are skipped, interrupted ones resumed."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from posegen.runs.plan import Plan, Step
from posegen.runs.progress import Progress, score_tables, terms_text
from posegen.stage import UsesPretrained
from posegen.storage.files import read_json, remove_leftovers
from posegen.storage.run_lock import run_lock
from posegen.storage.store import Store
from posegen.training.checkpoints import RAY_STATE, fetch_newest, latest_checkpoint
from posegen.training.events import read_failures

STEPS = ("shards", "train", "evaluate", "report")
LOG = "pipeline.log"
TRACKED = ("mlflow.json", "mlflow.db", "mlartifacts")  # MLflow's files, if no server is given


def run(plan: Plan, *, until: str = "report", update: bool = False, command: Sequence[str] = ()) -> None:
    """Run the missing steps of a plan.

    Args:
        plan: The plan.
        until: The last step to run, one of STEPS.
        update: Redo steps that were made with other settings.
        command: Command lines that reproduce the run, shown in the report.

    Raises:
        ValueError: The folder was made with other settings and `update` is not given, another process works on it, or a
            step fails.
    """
    _check_room_here(plan)
    with Progress() as progress, run_lock(plan.store, progress.info), logged(plan.store, progress):
        steps = _steps_until(plan, until)
        redone = _resolve_differences(plan, steps, update, progress)
        plan.save()
        for stand_in in plan.system.stand_ins():
            progress.warn(stand_in)
        pending = [step for step in _steps_until(plan, until) if step.state != "done"]
        for step in steps:
            if step not in pending:
                progress.info(f"{step.name}: done already")
                plan.store.remove(f"{step_prefix(step.name)}/{RAY_STATE}")  # of one that was killed as it ended
        if pending:
            _run_steps(plan, [step.name for step in pending], progress, command, anew=bool(redone))
        _print_results(plan, progress)


def _check_room_here(plan: Plan) -> None:
    """Raise ValueError if Ray would start on this machine, which has no room for the fewest workers."""
    if plan.workers.fewest == 1:
        return
    from posegen.cluster.connecting import slots_here

    here = slots_here(plan.device)
    if here is not None and here < plan.workers.fewest:
        raise ValueError(
            f"--workers {plan.workers} was given, and this machine has room for {here}. Give fewer, or run it on a "
            "cluster (docs/cluster.md)."
        )


def _steps_until(plan: Plan, until: str) -> list[Step]:
    """Return the steps up to `until`, where `train` means all stages."""
    steps = plan.steps()
    last = {"shards": 1, "train": len(steps) - 2, "evaluate": len(steps) - 1, "report": len(steps)}[until]
    return steps[:last]


@contextmanager
def logged(store: Store, progress: Progress) -> Iterator[None]:
    """Write a log into the run, and publish it and MLflow's files at the end, also after an error."""
    progress.log_to(store.folder / LOG)
    remove_leftovers(store.folder)
    try:
        yield
    finally:
        for name in (LOG, *TRACKED):
            if (store.folder / name).exists():
                store.publish(name)


def _resolve_differences(plan: Plan, steps: Sequence[Step], update: bool, progress: Progress) -> list[str]:
    """Return the steps made with other settings, after removing them; raise ValueError without `update`."""
    stale = [step.name for step in steps if step.state == "differs"]
    if not stale:
        return stale
    reasons = plan.differences() or ["the data, or posegen's way of preparing them, changed"]
    listed = "\n  ".join(reasons)
    if not update:
        raise ValueError(
            f"{plan.store.uri} was made with other settings:\n  {listed}\nThis would redo: {', '.join(stale)}. "
            "Give --update to redo them, or another --run to keep both."
        )
    progress.info(f"settings changed:\n  {listed}\nredoing: {', '.join(stale)}")
    for name in stale:
        plan.store.remove(step_prefix(name))
    return stale


def step_prefix(step: str) -> str:
    """Return a step's folder within the run."""
    return step if step in ("shards", "scores", "report") else f"stages/{step}"


def _run_steps(plan: Plan, pending: Sequence[str], progress: Progress, command: Sequence[str], *, anew: bool) -> None:
    from posegen.cluster import connecting  # Ray and MLflow take seconds to import

    progress.info(f"starting Ray for: {', '.join(pending)}")
    connecting.connect()
    try:
        device = connecting.resolve_device(plan.device)
        connecting.check_room(plan.workers, device)
        connecting.check_shared(plan.store, folders_on_all_nodes(plan))
        if "shards" in pending:
            prepare_shards(plan, progress)
        if list(pending) != ["shards"]:
            with tracked(plan.run, plan.settings, progress, anew=anew) as tracking:
                use_gpu = device == "cuda"
                _train_stages(plan, pending, tracking, use_gpu, progress)
                if "scores" in pending:
                    from posegen.evaluation.evaluate import evaluate

                    evaluate(
                        plan.system,
                        plan.store,
                        cache_bytes=plan.cache_bytes,
                        pairs=plan.score_pairs,
                        fingerprint=plan.scores_fingerprint,
                        use_gpu=use_gpu,
                        progress=progress.advance,
                    )
                if "report" in pending:
                    _report(plan, use_gpu, progress, command)
                if "scores" in pending or "report" in pending:
                    _log_scores(plan, tracking)
    finally:
        connecting.disconnect()


@contextmanager
def tracked(run: Path, settings: Mapping[str, Any], progress: Progress, *, anew: bool) -> Iterator[Any]:
    """Start the MLflow run of a pipeline or a sweep and finish it at the end, as FAILED after an error."""
    from posegen.training.tracking import Tracking

    tracking = Tracking(run, progress.warn)
    tracking.start(settings, anew=anew)
    try:
        yield tracking
    except BaseException:
        tracking.finish("pipeline", "FAILED")
        raise
    tracking.finish("pipeline")


def prepare_shards(plan: Plan, progress: Progress) -> None:
    """Write the run's shards, and print what they hold."""
    from posegen.data.masks import mask_estimate
    from posegen.data.shards.out_of_core import describe_windows
    from posegen.data.shards.preparing import write_shards

    manifest = write_shards(
        plan.source,
        plan.store,
        plan.shard_settings,
        listing=plan.listing,
        fingerprint=plan.shards_fingerprint,
        progress=progress.advance,
        estimate=mask_estimate(plan.shard_settings.person_network, plan.weights),
    )
    for split, c in manifest.counts.items():
        usable = f"{split}: {c['usable']:,} usable of {c['images']:,} images"
        progress.info(f"{usable}, {c['groups']:,} groups, {c['pairs']:,} pairs")
    for text, counts in {
        "rejected (listed in shards/rejects.parquet)": manifest.rejects,
        "kept, but to note": manifest.notes,
    }.items():
        if counts:
            progress.info(f"{text}: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
    if note := describe_windows(manifest, plan.cache_bytes):
        progress.info(note)


def folders_on_all_nodes(plan: Plan) -> list[Path]:
    """Return the user's folders that tasks on every node read: images and pretrained networks."""
    root = getattr(plan.source, "root", None)
    pretrained = any(
        isinstance(s, UsesPretrained) and s.pretrained and s.features == s.pretrained for s in plan.system.stages
    )
    weights = [plan.weights] if plan.shard_settings.person_network or pretrained else []
    return ([] if root is None else [Path(root)]) + weights


def _train_stages(plan: Plan, pending: Sequence[str], tracking: Any, use_gpu: bool, progress: Progress) -> None:
    """Train the pending stages; independent ones side by side, as far as the cluster has room.

    How many share the cluster depends on the system and the cluster alone, not on what is done: a resumed stage gets as
    many threads as before, and so the same sums.
    """
    from posegen.cluster.connecting import slots

    waits = {index: plan.system.waits_for(index) for index in range(len(plan.system.stages))}
    room = slots(use_gpu) // plan.workers.most
    at_once = max(1, min(most_at_once(waits), room))
    missing = frozenset(index for index, stage in enumerate(plan.system.stages) if stage.name in pending)
    run_in_order(
        {index: waits[index] & missing for index in missing},
        at_once,
        lambda index: train(plan, index, tracking, use_gpu, progress, side_by_side=at_once),
    )


def most_at_once(waits: Mapping[int, frozenset[int]]) -> int:
    """Return the most stages that are ready at once, each waiting for the given ones, when all take equally long."""
    sorter, most = TopologicalSorter(waits), 0
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        most = max(most, len(ready))
        sorter.done(*ready)
    return most


def run_in_order(waits: Mapping[int, frozenset[int]], at_once: int, work: Callable[[int], None]) -> None:
    """Call `work` for each number once those that it waits for are done, lower numbers first.

    With `at_once` above 1 in threads, else in this one. After a failure nothing else is started; those that are running
    end first.
    """
    sorter, ready = TopologicalSorter(waits), []
    sorter.prepare()
    running: dict[Future[None], int] = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="posegen-stage") as pool:
        while sorter.is_active():
            ready = sorted((*ready, *sorter.get_ready()))
            if at_once == 1:
                work(ready[0])
                sorter.done(ready.pop(0))
                continue
            while ready and len(running) < at_once:
                number = ready.pop(0)
                running[pool.submit(work, number)] = number
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                ended.result()
                sorter.done(running.pop(ended))


def train(plan: Plan, index: int, tracking: Any, use_gpu: bool, progress: Progress, *, side_by_side: int = 1) -> None:
    """Train one stage, from its last checkpoint if it has one, with a run of its own in MLflow."""
    from posegen.training.launch import launch_stage
    from posegen.training.task import Task

    stage = plan.system.stages[index]
    task = Task(
        system=plan.system,
        index=index,
        store=plan.store,
        shards=Path("shards"),
        folders=plan.stage_folders,
        seed=plan.seed,
        config_hash=plan.config_hash(index),
        weights=plan.weights,
        cache_bytes=plan.cache_bytes,
        window=plan.window,
        checkpoint_every=plan.checkpoint_interval(stage),
    )
    mine = {k: v for k, v in plan.settings.items() if k.startswith(f"{stage.name}.")}
    log_rows = tracking.stage(stage.name, mine, anew=latest_checkpoint(task.folder) is None)
    try:
        launch_stage(
            task,
            workers=plan.workers,
            use_gpu=use_gpu,
            log_rows=log_rows,
            show=lambda step, terms: progress.advance(stage.name, step, stage.training.steps, terms_text(terms)),
            warn=progress.warn,
            say=progress.info,
            side_by_side=side_by_side,
        )
    except BaseException:
        tracking.finish(stage.name, "FAILED")
        raise
    progress.advance(stage.name, stage.training.steps, stage.training.steps)
    tracking.finish(stage.name)
    fetch_newest(plan.store, task.prefix)


def _report(plan: Plan, use_gpu: bool, progress: Progress, command: Sequence[str]) -> None:
    import torch

    from posegen.inference import load
    from posegen.report.page import write_report

    progress.info("report: choosing pairs and drawing them")
    for stage in plan.system.stages:
        fetch_newest(plan.store, f"stages/{stage.name}")
    here = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
    write_report(
        plan.report,
        trained=load(plan.system, plan.stages, here),
        data=plan.open_shards(),
        scores=plan.scores,
        stages=plan.stages,
        plan=report_content(plan),
        reproduce=list(command),
        fingerprint=plan.report_fingerprint,
    )
    plan.store.publish("report", last="fingerprint.json")


def report_content(plan: Plan) -> dict[str, Any]:
    """Return the plan's part of the report: system, settings, parameter counts and interruptions."""
    system = plan.system
    nested: dict[str, Any] = {}
    for path, value in plan.settings.items():
        head, _, tail = path.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
    stages = [
        {
            "name": s.name,
            "settings": nested[s.name],
            "parameters": {
                name: sum(p.numel() for p in network.parameters())
                for name, network in s.networks(system.canvas).items()
            },
            "interruptions": read_failures(plan.stages / s.name),
        }
        for s in system.stages
    ]
    about = {"system": system.name, "variant": system.variant, "paper": system.paper, "dataset": plan.dataset}
    about |= {"size": list(system.size), "seed": plan.seed, "stages": stages}
    return about | {"data": nested["data"], "shards": nested["shards"], "pose_maps": nested["pose_maps"]}


def _log_scores(plan: Plan, tracking: Any) -> None:
    metrics = json.loads((plan.scores / "metrics.json").read_text())
    found = {"": metrics["scores"]}
    found |= {f"baseline/{name}/": scores for name, scores in metrics["baselines"].items()}
    found |= {f"stage/{name}/": scores for name, scores in metrics.get("stages", {}).items()}
    values = {f"{of}{name}": v for of, scores in found.items() for name, v in scores.items() if v is not None}
    files = [plan.report / "sample_sheet.png", plan.report / "index.html", plan.scores / "metrics.json"]
    tracking.scores(values, [path for path in files if path.is_file()])


def _print_results(plan: Plan, progress: Progress) -> None:
    """Print the scores, where the results are, and how to resume."""
    metrics = plan.scores / "metrics.json"
    if metrics.is_file():
        content = json.loads(metrics.read_text())
        for table in score_tables(content):
            progress.table(table)
        for stand_in in content.get("stand_ins", []):
            progress.info(f"note:     {stand_in}")
    if (plan.report / "index.html").is_file():
        progress.info(f"report:   {plan.report / 'index.html'}")
    if address := tracking_address(plan.run):
        progress.info(f"tracking: {address}")
    progress.info(f"run:      {plan.store.uri}  (rerun the same command to resume)")


def tracking_address(run: Path) -> str:
    """Return the command that opens a run's tracking, or the server's address; empty if there is neither."""
    uri = (read_json(run / "mlflow.json") or {}).get("uri", "")
    if not uri:
        return ""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
