"""The command `posegen`, and the functions that the flows call."""

import atexit
import gc
import io
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
from posegen.runs.progress import Progress
from posegen.storage.files import check_writable, write_json
from posegen.tuning.options import SweepOptions, sweep_for

Update = Annotated[bool, Parameter(negative=(), help="Redo the steps that were made with other settings.")]
DryRun = Annotated[bool, Parameter(negative=(), help="Print the plan and start nothing.")]

EXAMPLES = """Examples:
  full_pipeline.py                        embedded data, on a laptop, in minutes
  full_pipeline.py --dry-run              the plan, without a start
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
    """Prepare images, train all stages, score them and write a report.

    Rerun the same command to resume; finished steps are not repeated.
    """
    if dry_run:
        from posegen.runs.dry_run import describe_plan

        _print_lines(describe_plan(plan_for(options or Options())))
        return
    _run(options or Options(), "report", update)


@app.command
def shards(options: Options | None = None, *, update: Update = False) -> None:
    """Prepare the images: check, resize, draw pose masks and write shards.

    Example: posegen shards --dataset market1501 --root Market-1501 --run runs/market
    """
    _run(options or Options(), "shards", update)


@app.command
def train(options: Options | None = None, *, update: Update = False) -> None:
    """Train the stages that are not finished. Options not given are those of the run.

    Example: posegen train --run runs/market --workers 2
    """
    _run(from_run(options or Options()), "train", update)


@app.command
def evaluate(options: Options | None = None, *, update: Update = False) -> None:
    """Score the test pairs. Options not given are those of the run.

    Example: posegen evaluate --run runs/market --pairs 1000
    """
    _run(from_run(options or Options()), "evaluate", update)


@app.command
def report(options: Options | None = None, *, update: Update = False) -> None:
    """Write the report with images, curves and scores. Options not given are those of the run.

    Example: posegen report --run runs/market
    """
    _run(from_run(options or Options()), "report", update)


def _run(options: Options, until: str, update: bool) -> None:
    """Run the plan; write options.json, which later commands on the run reuse, unless the run has other settings."""
    plan = plan_for(options)
    check_writable(plan.run)
    if not (plan.run / "plan.json").is_file() or not plan.differences():
        write_json(plan.run / "options.json", kept_options(options))
        plan.store.publish("options.json")
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
    system: Annotated[str, Parameter(help="System to tune, see `posegen systems`.")],
    /,
    options: Options | None = None,
    how: SweepOptions | None = None,
    *,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Search a system's loss weights: trials share the stages before the searched one, validated on held-out people.

    Rerun the same command to resume; finished trials are not repeated.
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
    """Compare scored runs in one table: scores with intervals, and which runs differ from the first.

    Example: posegen compare runs/vdg-full-synthetic runs/pg2-full-synthetic --output compare.html

    Parameters
    ----------
    runs
        Folders or URIs of runs scored on the same pairs; all are compared with the first.
    output
        Page (.html) or table (.csv) to write.
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
    """List the pretrained networks: their use, origin and licence, and the state of their files.

    Example: posegen weights --weights-dir ~/weights

    Parameters
    ----------
    weights_dir
        Folder of the files. Default: POSEGEN_WEIGHTS, or `weights`.
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
    """Check the cluster before a long run, one line per check. Exits with 1 if a check fails.

    Checks on every node: versions, run storage, GPUs, clocks, disks. Without a cluster, checks this machine.

    Example: posegen doctor

    Example: posegen doctor --run s3://bucket/runs --mlflow http://10.0.0.5:5000 --root /data/Market-1501

    Parameters
    ----------
    run
        Folder or URI of the runs. Default: POSEGEN_RUNS, or `runs`.
    mlflow
        MLflow server. Default: MLFLOW_TRACKING_URI.
    root
        Folders of images that every node must have.
    weights_dir
        Folder of pretrained networks. Default: POSEGEN_WEIGHTS.
    """
    from posegen.cluster.doctor import Finding, examine, findings
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
    """Watch for the preemption notice of this spot node, and tell Ray. Started by cluster.yaml.

    Example: posegen watch-preemption --cloud aws

    Parameters
    ----------
    cloud
        Cloud of the node.
    endpoint
        Address of the metadata server. Default: the cloud's.
    """
    from posegen.cluster.preemption import watch_preemption as watch

    watch(cloud, endpoint=endpoint)


@app.command
def export(*, run: str, output: Path) -> None:
    """Write a trained hourglass to one file for `posegen joints`. The file holds no code.

    Example: posegen export --run runs/hourglass-full-market1501 --output hourglass.safetensors

    Parameters
    ----------
    run
        Folder or URI of a trained hourglass's run.
    output
        Safetensors file to write.
    """
    from posegen.inference import export as export_run

    height, width = export_run(run, output).canvas.size
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
    """Estimate the joints of every image in a folder, one person per image, and write an annotation file.

    Example: posegen joints my_images --estimator hourglass.safetensors --output annotation.csv

    Then: python flows/full_pipeline.py --dataset folder --root my_images --set data.joints=annotation.csv

    Parameters
    ----------
    images
        Folder of the images, with all folders below; only its sub-folder `images` if it has one.
    estimator
        File of `posegen export`, or folder or URI of a trained hourglass's run.
    output
        Pose-gan CSV to write. Images that cannot be read are listed in NAME.rejects.csv beside it.
    size
        Height x width to which images are scaled for the hourglass, such as 128x64. Default: that of its training.
    threshold
        Confidence between 0 and 1 below which a joint is left unknown.
    device
        Device to estimate on; auto takes a GPU if there is one.
    """
    import torch

    from posegen.inference import annotate, check_free, open_estimator, write_annotation

    check_free(output)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was given, and there is no GPU here. Leave it out, or give --device cpu.")
    target = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    opened = open_estimator(estimator, target, size=parse_size(size) if size else None)
    with Progress() as progress:
        annotated = annotate(opened, images, threshold=threshold, progress=progress.advance)
        rejected = write_annotation(output, annotated)
        known = sum(int(pose.visible.sum()) for pose in annotated.poses.values())
        share = known / (18 * len(annotated.poses))
        progress.info(f"{output}: {len(annotated.poses):,} images, {share:.0%} of their joints known")
        if rejected:
            progress.warn(f"{len(annotated.rejects):,} images cannot be used, see {rejected}")


def _command() -> list[str]:
    """Return the command line as it can be typed again."""
    program = Path(sys.argv[0])
    start = f"python {program}" if program.suffix == ".py" else program.name
    return [" ".join([start, *map(shlex.quote, sys.argv[1:])])]


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def run_command(command: Callable[..., None] | App) -> None:
    """Run a flow's function or the app on the command line. A ValueError is printed as one message; exit code 2."""
    if not isinstance(command, App):
        examples = TUNE_EXAMPLES if command is tune_vdg else EXAMPLES
        about = {"help_format": "plaintext", "help_epilogue": examples, "version": app.version}
        command = App(name=Path(sys.argv[0]).name, default_command=command, **about)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    atexit.register(gc.freeze)  # collecting what is left at exit takes seconds with torch and Ray
    try:
        command(sys.argv[1:])
    except ValueError as error:
        logging.getLogger("posegen").info("stopped by an error", exc_info=True)  # with its traceback, in the run's log
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """Run the command `posegen`."""
    run_command(app)


if __name__ == "__main__":
    main()
