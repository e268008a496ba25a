"""A plan carried out: shards, stages, scores, report, in order; what is done is skipped, what was started goes on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from posegen.runs.progress import Display, score_tables, terms_text
from posegen.storage.files import read_json, remove_leftovers
from posegen.runs.plan import Plan, Step
from posegen.data.shards.manifest import Manifest
from posegen.storage.run_lock import run_lock
from posegen.stage import Perceptive
from posegen.storage.store import Store
from posegen.training.checkpoints import RAY_STATE, fetch_newest, latest_checkpoint
from posegen.training.events import read_failures

STEPS = ("shards", "train", "evaluate", "report")
LOG = "pipeline.log"
TRACKED = ("mlflow.json", "mlflow.db", "mlartifacts")  # MLflow's own, where no server is named


def run(plan: Plan, *, until: str = "report", update: bool = False, command: Sequence[str] = ()) -> None:
    """Does what is missing up to and with `until` (one of STEPS).

    Raises ValueError, worded for the user, where the folder was made with other settings and `update` is not given,
    where another process is at work on it, or where a step fails.
    """
    _check_room_here(plan)
    with Display() as display, run_lock(plan.store, display.say), logged(plan.store, display):
        steps = _wanted(plan, until)
        redone = _settle_differences(plan, steps, update, display)
        plan.save()
        for stand_in in plan.system.stand_ins():
            display.warn(stand_in)
        pending = [step for step in _wanted(plan, until) if step.state != "done"]
        for step in steps:
            if step not in pending:
                display.say(f"{step.name}: done already")
                plan.store.remove(f"{place_of(step.name)}/{RAY_STATE}")  # of one that was killed as it ended
        if pending:
            _carry_out(plan, [step.name for step in pending], display, command, anew=bool(redone))
        _conclude(plan, display)


def _check_room_here(plan: Plan) -> None:
    """Raises ValueError where the cluster would be this machine, and it has not room for the fewest workers."""
    if plan.workers.fewest == 1:
        return
    from posegen.cluster.connecting import slots_here

    here = slots_here(plan.device)
    if here is not None and here < plan.workers.fewest:
        raise ValueError(
            f"--workers {plan.workers} was given, and this machine has room for {here}. Give fewer, or run it on a "
            "cluster (docs/cluster.md)."
        )


def _wanted(plan: Plan, until: str) -> list[Step]:
    """The steps up to `until`, where `train` means the system's stages."""
    steps = plan.steps()
    last = {"shards": 1, "train": len(steps) - 2, "evaluate": len(steps) - 1, "report": len(steps)}[until]
    return steps[:last]


@contextmanager
def logged(store: Store, display: Display) -> Iterator[None]:
    """Keeps what is said in the run's log, and what is tracked beside it, however it ends."""
    display.log_to(store.folder / LOG)
    remove_leftovers(store.folder)
    try:
        yield
    finally:
        for name in (LOG, *TRACKED):
            if (store.folder / name).exists():
                store.publish(name)


def _settle_differences(plan: Plan, steps: Sequence[Step], update: bool, display: Display) -> list[str]:
    """Names what was made with other settings; with `update`, removes it so that it is done again."""
    stale = [step.name for step in steps if step.state == "differs"]
    if not stale:
        return stale
    reasons = plan.differences() or ["the data, or posegen's way of preparing them, changed"]
    listed = "\n  ".join(reasons)
    if not update:
        raise ValueError(
            f"{plan.store.place} was made with other settings:\n  {listed}\nThis would redo: {', '.join(stale)}. "
            "Give --update to redo them, or another --run to keep both."
        )
    display.say(f"settings changed:\n  {listed}\nredoing: {', '.join(stale)}")
    for name in stale:
        plan.store.remove(place_of(name))
    return stale


def place_of(step: str) -> str:
    """A step's folder within the run."""
    return step if step in ("shards", "scores", "report") else f"stages/{step}"


def _carry_out(plan: Plan, pending: Sequence[str], display: Display, command: Sequence[str], *, anew: bool) -> None:
    from posegen.cluster import connecting, resources  # Ray and MLflow take seconds to import: only where there is work

    display.say(f"starting Ray for: {', '.join(pending)}")
    connecting.connect()
    try:
        device = resources.resolve_device(plan.device)
        resources.check_room(plan.workers, device)
        connecting.check_shared(plan.store, read_everywhere(plan))
        if "shards" in pending:
            prepare(plan, display)
        if list(pending) != ["shards"]:
            with tracked(plan.run, plan.settings, display, anew=anew) as tracking:
                _learn_and_judge(plan, pending, tracking, device == "cuda", display, command)
    finally:
        connecting.disconnect()


@contextmanager
def tracked(run: Path, settings: Mapping[str, Any], display: Display, *, anew: bool) -> Iterator[Any]:
    """The run of a pipeline or a sweep in MLflow, FAILED where an error ends it."""
    from posegen.training.tracking import Tracking

    tracking = Tracking(run, display.warn)
    tracking.start(settings, anew=anew)
    try:
        yield tracking
    except BaseException:
        tracking.finish("pipeline", "FAILED")
        raise
    tracking.finish("pipeline")


def _learn_and_judge(
    plan: Plan, pending: Sequence[str], tracking: Any, use_gpu: bool, display: Display, command: Sequence[str]
) -> None:
    _train_all(plan, pending, tracking, use_gpu, display)
    if "scores" in pending:
        _evaluate(plan, use_gpu, display)
    if "report" in pending:
        _report(plan, use_gpu, display, command)
    if "scores" in pending or "report" in pending:
        _log_scores(plan, tracking)


def prepare(plan: Plan, display: Display) -> None:
    """Makes the shards."""
    from posegen.data.masks.person_masks import mask_estimate
    from posegen.data.shards.preparing import write_shards
    from posegen.data.shards.out_of_core import describe_windows

    manifest = write_shards(
        plan.source,
        plan.store,
        plan.shard_settings,
        listing=plan.listing,
        fingerprint=plan.shards_fingerprint,
        progress=display.advance,
        estimate=mask_estimate(plan.shard_settings.person_network, plan.weights),
    )
    for line in counts_lines(manifest):
        display.say(line)
    if words := describe_windows(manifest, plan.cache_bytes):
        display.say(words)


def read_everywhere(plan: Plan) -> list[Path]:
    """Folders of the user that tasks on any node read."""
    root = getattr(plan.source, "root", None)
    weights = [plan.weights] if plan.shard_settings.person_network or _pretrained(plan) else []
    return ([] if root is None else [Path(root)]) + weights


def _pretrained(plan: Plan) -> bool:
    return any(isinstance(s, Perceptive) and s.pretrained and s.features == s.pretrained for s in plan.system.stages)


def counts_lines(manifest: Manifest) -> list[str]:
    """What the shards hold and what was rejected, in words."""
    lines = [
        f"{split}: {c['usable']:,} usable of {c['images']:,} images, {c['groups']:,} groups, {c['pairs']:,} pairs"
        for split, c in manifest.counts.items()
    ]
    rejects = ", ".join(f"{n:,} {reason}" for reason, n in manifest.rejects.items())
    notes = ", ".join(f"{n:,} {note}" for note, n in manifest.notes.items())
    lines += [f"rejected (listed in shards/rejects.parquet): {rejects}"] if rejects else []
    return lines + ([f"kept, but to note: {notes}"] if notes else [])


def _train_all(plan: Plan, pending: Sequence[str], tracking: Any, use_gpu: bool, display: Display) -> None:
    """Trains the pending stages; those that do not wait for each other side by side, where the cluster has room.

    How many share the cluster depends on the system and the cluster alone, not on what is done already: a stage that
    goes on gets as many threads as it had, and so the same sums.
    """
    from posegen.cluster.resources import slots

    waits = {index: plan.system.waits_for(index) for index in range(len(plan.system.stages))}
    room = slots(use_gpu) // plan.workers.most
    at_once = max(1, min(most_at_once(waits), room))
    missing = frozenset(index for index, stage in enumerate(plan.system.stages) if stage.name in pending)
    run_in_order(
        {index: waits[index] & missing for index in missing},
        at_once,
        lambda index: train(plan, index, tracking, use_gpu, display, side_by_side=at_once),
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


def train(plan: Plan, index: int, tracking: Any, use_gpu: bool, display: Display, *, side_by_side: int = 1) -> None:
    """Trains one stage, from its last checkpoint where it has one, with a run of its own in MLflow."""
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
        recipe=plan.recipe(index),
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
            show=lambda step, terms: display.advance(stage.name, step, stage.steps, terms_text(terms)),
            warn=display.warn,
            say=display.say,
            side_by_side=side_by_side,
        )
    except BaseException:
        tracking.finish(stage.name, "FAILED")
        raise
    display.advance(stage.name, stage.steps, stage.steps)
    tracking.finish(stage.name)
    fetch_newest(plan.store, task.place)


def _evaluate(plan: Plan, use_gpu: bool, display: Display) -> None:
    from posegen.evaluation.evaluate import evaluate

    evaluate(
        plan.system,
        plan.store,
        cache_bytes=plan.cache_bytes,
        pairs=plan.score_pairs,
        fingerprint=plan.scores_fingerprint,
        use_gpu=use_gpu,
        progress=display.advance,
    )


def _report(plan: Plan, use_gpu: bool, display: Display, command: Sequence[str]) -> None:
    import torch

    from posegen.report.page import write_report
    from posegen.inference import load

    display.say("report: choosing pairs and drawing them")
    for stage in plan.system.stages:
        fetch_newest(plan.store, f"stages/{stage.name}")
    here = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
    write_report(
        plan.report,
        trained=load(plan.system, plan.stages, here),
        data=plan.open_shards(),
        scores=plan.scores,
        stages=plan.stages,
        plan=described(plan),
        reproduce=list(command),
        fingerprint=plan.report_fingerprint,
    )
    plan.store.publish("report", last="fingerprint.json")


def described(plan: Plan) -> dict[str, Any]:
    """The plan as the report shows it."""
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
            "parameters": parameter_counts(s.networks()),
            "interruptions": read_failures(plan.stages / s.name),
        }
        for s in system.stages
    ]
    about = {"system": system.name, "variant": system.variant, "paper": system.paper, "dataset": plan.dataset}
    about |= {"size": list(system.size), "seed": plan.seed, "stages": stages}
    return about | {"data": nested["data"], "shards": nested["shards"], "pose_maps": nested["pose_maps"]}


def parameter_counts(networks: dict[str, Any]) -> dict[str, int]:
    """Parameters of each network."""
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def _log_scores(plan: Plan, tracking: Any) -> None:
    metrics = json.loads((plan.scores / "metrics.json").read_text())
    found = {"": metrics["scores"]}
    found |= {f"baseline/{name}/": scores for name, scores in metrics["baselines"].items()}
    found |= {f"stage/{name}/": scores for name, scores in metrics.get("stages", {}).items()}
    values = {f"{of}{name}": v for of, scores in found.items() for name, v in scores.items() if v is not None}
    files = [plan.report / "sample_sheet.png", plan.report / "index.html", plan.scores / "metrics.json"]
    tracking.scores(values, [path for path in files if path.is_file()])


def _conclude(plan: Plan, display: Display) -> None:
    """What came out, where it is, and what to do next."""
    metrics = plan.scores / "metrics.json"
    if metrics.is_file():
        content = json.loads(metrics.read_text())
        for table in score_tables(content):
            display.table(table)
        for stand_in in content.get("stand_ins", []):
            display.say(f"note:     {stand_in}")
    if (plan.report / "index.html").is_file():
        display.say(f"report:   {plan.report / 'index.html'}")
    if opening := open_tracking(plan.run):
        display.say(f"tracking: {opening}")
    display.say(f"run:      {plan.store.place}  (the same command goes on where it stopped)")


def open_tracking(run: Path) -> str:
    """How to look at a run's tracking: a command, or the server's address; empty where there is none."""
    uri = (read_json(run / "mlflow.json") or {}).get("uri", "")
    if not uri:
        return ""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
