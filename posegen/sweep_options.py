"""The options of a sweep, and the sweep that they describe."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from posegen.catalog import override
from posegen.runs.options import SEVERAL, Options, chosen, parse_settings, plan_for

if TYPE_CHECKING:  # Ray Tune takes seconds to import: only where it is used
    from posegen.sweep.plan import SweepPlan

FEWEST_SEEDS = 3  # below this an interval over seeds says nothing
LEAST_BUDGET = 4  # steps: a trial is judged at each quarter


@Parameter(name="*")
@dataclass(kw_only=True)
class SweepOptions:
    """How the weights are searched."""

    trials: int = 10
    "How many settings are tried; the first one is the paper's. More on the same folder goes on."
    budget: int | None = None
    "Steps of each stage that a trial trains; half of the system's own where not given."
    concurrent: int | None = None
    "Trials at once; as many as there is room for, at most a third of them, where not given."
    search: Literal["optuna", "random", "grid"] | None = None
    "Who chooses: Optuna's TPE (where not given), chance, or an even grid. A population (pbt) starts at random."
    scheduler: Literal["asha", "none", "pbt"] | None = None
    "Who stops trials early: ASHA (where not given), nobody (with several metrics), or population based training."
    metric: Annotated[list[str] | None, SEVERAL] = None
    "What trials are judged by, any score of the system: mask_ssim, or pose_error without images; several: a front."
    space: str | None = None
    "What is searched: a module of tune_spaces/, or a Python file with SPACE; the system's own where not given."
    seeds: int = 3
    "Seeds of the last comparison of the best weights with the paper's, on the test people; 0 leaves it out."
    validation_share: float = 0.1
    "Share of the training people who are held out for judging trials."
    validation_pairs: int | None = 200
    "Validation pairs that a trial is judged on."


def sweep_for(given: Options, how: SweepOptions) -> "SweepPlan":
    """The sweep that the options describe. Raises ValueError, worded for the user, where they do not fit together."""
    from posegen.evaluation.metrics import check_metrics_of, searched_by
    from posegen.sweep.plan import SweepPlan
    from posegen.training.spaces import check_space, first_touched, load_space

    _check_sweep_numbers(how)
    search, scheduler = _search_and_scheduler(how)
    options = chosen(given)
    place = given.run or f"{options.place}-tune"
    plan = plan_for(replace(given, run=place), validation_share=how.validation_share)
    metrics = how.metric or [searched_by(plan.system)]
    check_metrics_of(plan.system, metrics)
    space = load_space(how.space, plan.system.name)
    check_space(space, plan.system)
    first, stages = first_touched(space, plan.system), plan.system.stages
    if scheduler == "pbt" and first < len(stages) - 1:
        raise ValueError(
            f"--scheduler pbt changes settings while the last stage trains, but {space.origin} searches settings of "
            f"'{stages[first].name}', which is trained before it. Give --scheduler asha, or another --space."
        )
    budgets = {f"{s.name}.steps": how.budget or max(LEAST_BUDGET, s.training.steps // 2) for s in stages[first:]}
    plan = replace(plan, system=override(plan.system, budgets))
    sweep = SweepPlan(
        base=plan,
        space=space,
        metrics=tuple(metrics),
        trials=how.trials,
        search=search,
        scheduler=scheduler,
        seeds=how.seeds,
        validation_pairs=how.validation_pairs,
        side_by_side=how.concurrent,
        given={k: v for k, v in parse_settings(options.set).items() if k.split(".")[0] not in ("data", "shards")},
    )
    return sweep.fitted()


def _check_sweep_numbers(how: SweepOptions) -> None:
    least = {"trials": 2, "budget": LEAST_BUDGET, "concurrent": 1, "validation_pairs": 1}
    for name, fewest in least.items():
        value = getattr(how, name)
        if value is not None and value < fewest:
            raise ValueError(f"--{name.replace('_', '-')} {value} was given; it must be at least {fewest}.")
    if how.seeds and how.seeds < FEWEST_SEEDS:
        raise ValueError(
            f"--seeds {how.seeds} was given; it must be at least {FEWEST_SEEDS} for an interval, or 0 for none."
        )


def _search_and_scheduler(
    how: SweepOptions,
) -> tuple[Literal["optuna", "random", "grid"], Literal["asha", "none", "pbt"]]:
    """Both with their defaults. Raises ValueError for two that do not go together."""
    metrics = how.metric or []
    scheduler = how.scheduler or ("asha" if len(metrics) < 2 else "none")
    if scheduler != "none" and len(metrics) > 1:
        raise ValueError(
            f"--scheduler {scheduler} stops trials by one metric; {len(metrics)} were given: "
            f"{', '.join(metrics)}. Give --scheduler none, or one --metric."
        )
    if scheduler == "pbt" and how.search not in (None, "random"):
        raise ValueError(f"--scheduler pbt starts from random settings; --search {how.search} was given beside it.")
    return how.search or ("random" if scheduler == "pbt" else "optuna"), scheduler
