"""The command `posegen`, and what the flows call: options in, exit codes and clear messages out."""

import atexit
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from posegen.runs.options import Options, from_run, kept_options, parse_size, plan_for
from posegen.runs.pipeline import run
from posegen.runs.plan import Plan
from posegen.runs.progress import Progress
from posegen.storage.files import check_writable, write_json
from posegen.tuning.options import SweepOptions, sweep_for

Update = Annotated[bool, Parameter(negative=(), help="Redo what was made with other settings in this run folder.")]
DryRun = Annotated[bool, Parameter(negative=(), help="Print the plan and start nothing.")]

EXAMPLES = """Examples:
  full_pipeline.py                        embedded data, on a laptop, in minutes
  full_pipeline.py --dry-run              what would be done
  full_pipeline.py --system defgan        one of `posegen systems`
  full_pipeline.py --system pg2 --dataset market1501 --root Market-1501
  full_pipeline.py --system triplet --dataset deepfashion --root DeepFashion
  full_pipeline.py --dataset folder --root my_images --set coarse.width=32
  full_pipeline.py --set refinement.image_weight=20 --update
"""

TUNE_EXAMPLES = """Examples:
  tune_vdg.py                                 embedded data, on a laptop, in minutes
  tune_vdg.py --dry-run                       what would be searched, and what is shared
  tune_vdg.py --trials 20                     on the same folder: 10 more
  tune_vdg.py --metric mask_ssim psnr         the Pareto front of two scores
  tune_vdg.py --search random --scheduler none --budget 120
  posegen tune pg2 --dataset market1501 --root Market-1501 --budget 2000 --concurrent 4
  full_pipeline.py --settings runs/vdg-full-synthetic-tune/best.json
"""

app = App(
    name="posegen",
    version=lambda: version("posegen"),
    help_format="plaintext",
    help="Pose-guided human image synthesis: train, compare and use the systems of the papers, on Ray.",
)


def full_pipeline(options: Options | None = None, *, update: Update = False, dry_run: DryRun = False) -> None:
    """Images in; trained stages, scores and a report out.

    The same command goes on where it stopped and redoes nothing that is done.
    """
    options = options or Options()
    plan = plan_for(options)
    if dry_run:
        from posegen.runs.dry_run import describe_plan

        _print_lines(describe_plan(plan))
        return
    _save_options(plan, options)
    run(plan, update=update, command=_command())


@app.command
def shards(options: Options | None = None, *, update: Update = False) -> None:
    """Prepare the images: check, resize, draw pose masks, write shards.

    Example: posegen shards --dataset market1501 --root Market-1501 --run runs/market
    """
    options = options or Options()
    plan = plan_for(options)
    _save_options(plan, options)
    run(plan, until="shards", update=update, command=_command())


@app.command
def train(options: Options | None = None, *, update: Update = False) -> None:
    """Train the stages that are not trained yet. What is not given is taken from the run folder.

    Example: posegen train --run runs/market --workers 2
    """
    _resume(options, "train", update)


@app.command
def evaluate(options: Options | None = None, *, update: Update = False) -> None:
    """Score the held-out pairs. What is not given is taken from the run folder.

    Example: posegen evaluate --run runs/market --pairs 1000
    """
    _resume(options, "evaluate", update)


@app.command
def report(options: Options | None = None, *, update: Update = False) -> None:
    """Make the page with images, curves and scores. What is not given is taken from the run folder.

    Example: posegen report --run runs/market
    """
    _resume(options, "report", update)


def _resume(options: Options | None, until: str, update: bool) -> None:
    options = from_run(options or Options())
    plan = plan_for(options)
    _save_options(plan, options)
    run(plan, until=until, update=update, command=_command())


def tune_vdg(
    options: Options | None = None,
    how: SweepOptions | None = None,
    *,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Search VDG's loss weights: many trials of stage II on one stage I, validated on held-out people.

    Rerun the same command to resume; finished trials are not repeated.
    """
    options = options or Options()
    if options.system not in (None, "vdg"):
        raise ValueError(f"--system {options.system} was given; for another system: posegen tune {options.system} ...")
    _tune(replace(options, system="vdg"), how, update, dry_run)


@app.command(name="tune", help_epilogue=TUNE_EXAMPLES)
def tune_system(
    system: str,
    /,
    options: Options | None = None,
    how: SweepOptions | None = None,
    *,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Search a system's loss weights: trials share the stages before the searched one, validated on held-out people.

    Rerun the same command to resume; finished trials are not repeated.

    Parameters
    ----------
    system
        Which system; `posegen systems` lists them.
    """
    options = options or Options()
    if options.system not in (None, system):
        raise ValueError(f"'{system}' was given, and --system {options.system}: give one of them.")
    _tune(replace(options, system=system), how, update, dry_run)


def _tune(options: Options, how: SweepOptions | None, update: bool, dry_run: bool) -> None:
    sweep = sweep_for(options, how or SweepOptions())
    from posegen.runs.dry_run import describe_data, describe_stages
    from posegen.tuning.sweep import describe_sweep, run_sweep

    if dry_run:
        _print_lines([*describe_sweep(sweep), "", *describe_data(sweep.base), *describe_stages(sweep.base)])
        return
    run_sweep(sweep, update=update, command=_command())


@app.command
def compare(*runs: str, output: Path | None = None) -> None:
    """Put scored runs in one table: every score with its interval, and which runs differ from the first.

    Example: posegen compare runs/vdg-full-synthetic runs/pg2-full-synthetic --output compare.html

    Parameters
    ----------
    runs
        Runs, by folder or URI, that were scored on the same pairs; the others are compared with the first one.
    output
        A page (.html) or a table (.csv) to write.
    """
    from posegen.evaluation.comparison import compare_runs
    from posegen.report.comparison_page import check_output, tables, write_comparison

    check_output(output)
    comparison = compare_runs(runs)
    for table in tables(comparison):
        Console().print(table)
    _print_lines([f"note: {note}" for note in comparison.notes])
    if output is not None:
        write_comparison(comparison, output)
        _print_lines([f"written: {output.resolve()}"])


@app.command
def systems() -> None:
    """List the systems and their variants."""
    from posegen.catalog import SYSTEMS, system, variants

    table = Table("system", "variants", "paper", box=None, title_justify="left")
    for name in SYSTEMS:
        table.add_row(name, ", ".join(variants(name)), system(name).paper)
    Console().print(table)


@app.command
def weights(*, weights_dir: Path | None = None) -> None:
    """List the pretrained networks: what needs them, where they come from, whether they are there and whole.

    Example: posegen weights --weights-dir ~/weights

    Parameters
    ----------
    weights_dir
        The folder to look in; POSEGEN_WEIGHTS, or `weights`, where not given.
    """
    from posegen.nets.pretrained import PRETRAINED, state_of, weights_folder

    folder = weights_folder(weights_dir)
    for name, each in PRETRAINED.items():
        lines = [f"{name}: {state_of(name, folder)}", f"  file       {folder / each.file}"]
        lines += [f"  sha256     {each.sha256}...", f"  origin     {each.origin}", f"  licence    {each.licence}"]
        _print_lines([*lines, f"  needed for {each.needed_for}"])


@app.command
def doctor(
    *,
    run: str | None = None,
    mlflow: str | None = None,
    root: tuple[Path, ...] = (),
    weights_dir: Path | None = None,
) -> None:
    """Check the cluster before a long run, one line a check. Ends with 1 where something fails, else with 0.

    Every node is asked: versions, run storage, GPUs, clocks, disks. Where no cluster runs, this machine is checked.

    Example: posegen doctor

    Example: posegen doctor --run s3://bucket/runs --mlflow http://10.0.0.5:5000 --root /data/Market-1501

    Parameters
    ----------
    run
        The folder or URI where runs lie; POSEGEN_RUNS, or `runs`, where not given.
    mlflow
        The MLflow server; MLFLOW_TRACKING_URI where not given.
    root
        Folders of images that must be on every node.
    weights_dir
        The folder of pretrained networks; POSEGEN_WEIGHTS where not given.
    """
    from posegen.cluster.doctor.checks import Finding, findings
    from posegen.cluster.doctor.probe import examine
    from posegen.nets.pretrained import VARIABLE, weights_folder

    weights = [weights_folder(weights_dir)] if weights_dir or os.environ.get(VARIABLE) else []
    try:
        found = findings(examine(run, mlflow, [str(folder) for folder in (*root, *weights)]))
    except ValueError as error:
        found = [Finding("FAILED", "join", str(error))]
    _print_lines([str(finding) for finding in found])
    if any(finding.state == "FAILED" for finding in found):
        raise SystemExit(1)


@app.command
def watch_preemption(*, cloud: Literal["aws", "gcp"], endpoint: str | None = None) -> None:
    """Watch for the notice that this spot node will be taken away, and tell Ray. cluster.yaml starts it.

    Example: posegen watch-preemption --cloud aws

    Parameters
    ----------
    cloud
        Whose node this is.
    endpoint
        The address of the metadata server; the cloud's own where not given.
    """
    from posegen.cluster.preemption import watch_preemption as watch

    watch(cloud, endpoint=endpoint)


@app.command
def export(*, run: str, output: Path) -> None:
    """Write a trained hourglass to one file, which `posegen joints` takes. Nothing in it is run when it is read.

    Example: posegen export --run runs/hourglass-full-market1501 --output hourglass.safetensors

    Parameters
    ----------
    run
        The folder or URI of a trained hourglass's run.
    output
        The safetensors file to write.
    """
    from posegen.inference import export as export_run

    stage = export_run(run, output)
    height, width = stage.size
    _print_lines([f"{output}: hourglass for {height}x{width} pixels, {output.stat().st_size / 2**20:.1f} MiB"])


@app.command
def joints(
    images: Path,
    /,
    *,
    estimator: str,
    output: Path,
    size: str | None = None,
    threshold: float = 0.2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Estimate the joints of every image in a folder, one person an image, and write them as an annotation file.

    Example: posegen joints my_images --estimator hourglass.safetensors --output annotation.csv

    Then: python flows/full_pipeline.py --dataset folder --root my_images --set data.joints=annotation.csv

    Parameters
    ----------
    images
        The folder; its sub-folder `images` where it has one, and all folders below.
    estimator
        The file of `posegen export`, or the folder or URI of a trained hourglass's run.
    output
        The pose-gan CSV to write. Images that cannot be read are listed beside it, in NAME.rejects.csv.
    size
        Height x width to which images are brought for the hourglass, such as 128x64; that of its training otherwise.
    threshold
        Joints of a lower confidence, between 0 and 1, are left unknown.
    device
        Where to estimate; auto takes a GPU where there is one.
    """
    import torch

    from posegen.inference import annotate, check_free, open_estimator, write_annotation

    check_free(output)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was given, and there is no GPU here. Leave it out, or give --device cpu.")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    opened = open_estimator(estimator, chosen, size=parse_size(size) if size else None)
    with Progress() as progress:
        annotated = annotate(opened, images, threshold=threshold, progress=progress.advance)
        rejected = write_annotation(output, annotated)
        known = sum(int(pose.visible.sum()) for pose in annotated.poses.values())
        share = known / (18 * len(annotated.poses))
        progress.info(f"{output}: {len(annotated.poses):,} images, {share:.0%} of their joints known")
        if rejected:
            progress.warn(f"{len(annotated.rejects):,} images cannot be used, see {rejected}")


def _save_options(plan: Plan, options: Options) -> None:
    """Keeps the options beside the plan, once the folder is ours: the commands after it take them from there."""
    check_writable(plan.run)
    if not (plan.run / "plan.json").is_file() or not plan.differences():
        write_json(plan.run / "options.json", kept_options(options))
        plan.store.publish("options.json")


def _command() -> list[str]:
    """The command as it can be typed again."""
    program = Path(sys.argv[0])
    start = f"python {program}" if program.suffix == ".py" else program.name
    return [" ".join([start, *map(shlex.quote, sys.argv[1:])])]


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def run_command(command: Callable[..., None] | App) -> None:
    """Runs a flow's function or the app on the command line. A ValueError is the user's: one message, exit 2."""
    if not isinstance(command, App):
        examples = TUNE_EXAMPLES if command is tune_vdg else EXAMPLES
        told = {"help_format": "plaintext", "help_epilogue": examples, "version": app.version}
        command = App(name=Path(sys.argv[0]).name, default_command=command, **told)
    atexit.register(gc.freeze)  # what is left at the end is not collected: with torch and Ray that took seconds
    try:
        command(sys.argv[1:])
    except ValueError as error:
        logging.getLogger("posegen").info("stopped by an error", exc_info=True)  # whole in the run's log
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """Entry point of `posegen`."""
    run_command(app)


if __name__ == "__main__":
    main()
