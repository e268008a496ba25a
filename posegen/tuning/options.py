"""The options of a sweep, and the plan that they describe."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from posegen.catalog import override
from posegen.runs.options import MULTIPLE, Options, parse_settings, plan_for, resolve_options

if TYPE_CHECKING:  # Ray Tune takes seconds to import
    from posegen.tuning.plan import SweepPlan

MIN_SEEDS = 3  # fewer say nothing about an interval
MIN_BUDGET = 4  # steps: a trial is validated at each quarter


@Parameter(name="*")
@dataclass(kw_only=True)
class SweepOptions:
    """How the weights are searched."""

    trials: int = 10
    "Number of settings to try; the first are the paper's. Rerun with more to extend a finished sweep."
    budget: int | None = None
    "Steps of each stage that a trial trains. Default: half of the system's own."
    concurrent: int | None = None
    "Trials at once. Default: as many as there is room for, at most a third of all."
    search: Literal["optuna", "random", "grid"] | None = None
    "Search algorithm: Optuna's TPE (default), random search, or an even grid."
    scheduler: Literal["asha", "none"] | None = None
    "Early stopping: ASHA (default), or none (default with several metrics)."
    metric: Annotated[list[str] | None, MULTIPLE] = None
    "Validation score, any score of the system. Default: mask_ssim, or pose_error without images. Several: a front."
    space: str | None = None
    "Search space: a module of tune_spaces/, or a Python file with SPACE. Default: the system's own."
    seeds: int = 3
    "Seeds of the final comparison of the best weights with the paper's on the test people; 0 skips it."
    validation_share: float = 0.1
    "Share of the training people held out for validation."
    validation_pairs: int | None = 200
    "Validation pairs that a trial is scored on."


def sweep_for(given: Options, how: SweepOptions) -> "SweepPlan":
    """Return the sweep that the options describe. Raises ValueError if they do not fit together."""
    from posegen.evaluation.metrics import check_metrics_of, searched_by
    from posegen.tuning.plan import SweepPlan
    from posegen.tuning.space import check_space, first_searched_stage, load_space

    _check_numbers(how)
    scheduler = how.scheduler or ("asha" if len(how.metric or []) < 2 else "none")
    if scheduler != "none" and how.metric and len(how.metric) > 1:
        raise ValueError(
            f"--scheduler {scheduler} stops trials by one metric; {len(how.metric)} were given: "
            f"{', '.join(how.metric)}. Give --scheduler none, or one --metric."
        )
    options = resolve_options(given)
    plan = plan_for(replace(given, run=given.run or f"{options.run_uri}-tune"), validation_share=how.validation_share)
    metrics = how.metric or [searched_by(plan.system)]
    check_metrics_of(plan.system, metrics)
    space = load_space(how.space, plan.system.name)
    check_space(space, plan.system)
    searched = plan.system.stages[first_searched_stage(space, plan.system) :]
    budgets = {f"{s.name}.steps": how.budget or max(MIN_BUDGET, s.training.steps // 2) for s in searched}
    search = how.search or "optuna"
    return SweepPlan(
        base=replace(plan, system=override(plan.system, budgets)),
        space=space,
        metrics=tuple(metrics),
        trials=1 + len(space.grid(how.trials - 1)) if search == "grid" else how.trials,
        search=search,
        scheduler=scheduler,
        seeds=how.seeds,
        validation_pairs=how.validation_pairs,
        side_by_side=how.concurrent,
        given={k: v for k, v in parse_settings(options.set).items() if k.split(".")[0] not in ("data", "shards")},
    )


def _check_numbers(how: SweepOptions) -> None:
    least = {"trials": 2, "budget": MIN_BUDGET, "concurrent": 1, "validation_pairs": 1}
    for name, fewest in least.items():
        value = getattr(how, name)
        if value is not None and value < fewest:
            raise ValueError(f"--{name.replace('_', '-')} {value} was given; it must be at least {fewest}.")
    if how.seeds and how.seeds < MIN_SEEDS:
        raise ValueError(
            f"--seeds {how.seeds} was given; it must be at least {MIN_SEEDS} for an interval, or 0 for none."
        )
