"""Search spaces: dotted paths of settings mapped to Ray Tune distributions, from `tune_spaces` or a Python file.

A space is checked without training: the bounds of every distribution are set on the system, whose fields validate them.
"""

import importlib
import itertools
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, runtime_checkable

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain, LogUniform, Quantized

import tune_spaces
from posegen.catalog import override
from posegen.stage import System
from posegen.systems.fields import settings_of
from posegen.training.step import random_seed
from posegen.tuning.results import Settings, Trial, Value

Numeric = FloatDistribution | IntDistribution
Distribution = CategoricalDistribution | Numeric

EXPECTED = (
    'SPACE = {"refinement.alpha": tune.uniform(0, 1), ...}, with the distributions uniform, quniform, loguniform, '
    "randint, qrandint, lograndint and choice of ray.tune"
)


@dataclass(frozen=True)
class Space:
    """Searched settings by dotted path. `origin` names the file that the space was read from."""

    origin: str
    domains: Mapping[str, Domain]

    @cached_property
    def distributions(self) -> dict[str, Distribution]:
        """The space as Optuna distributions."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return {path: OptunaSearch.convert_search_space({path: d})[path] for path, d in self.domains.items()}

    def descriptions(self) -> dict[str, str]:
        """Describe each distribution in words; part of the settings that identify a sweep."""
        return {path: _describe(distribution) for path, distribution in self.distributions.items()}

    def logarithmic(self) -> list[str]:
        """Return the paths searched on a logarithmic scale."""
        return [path for path, distribution in self.distributions.items() if getattr(distribution, "log", False)]

    def sample(self, seed: int, number: int) -> Settings:
        """Draw random settings as a function of the seed and the trial's number."""
        random, settings = np.random.default_rng((seed, number)), {}
        for path, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                settings[path] = _bounds(distribution)[random.integers(len(distribution.choices))]
            elif distribution.step and not distribution.log:  # all steps are equally likely, the bounds included
                count = round((distribution.high - distribution.low) / distribution.step) + 1
                value = distribution.low + random.integers(count) * distribution.step
                settings[path] = _snap(distribution, float(value))
            else:
                settings[path] = _interpolate(distribution, random.uniform())
        return settings

    def contains(self, path: str, value: Value) -> bool:
        """Return whether a value is one of the choices or lies within the range; steps are ignored."""
        distribution = self.distributions[path]
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        return not isinstance(value, str) and distribution.low <= value <= distribution.high

    def grid(self, limit: int) -> list[Settings]:
        """Return all combinations of evenly spaced values: as many per numeric setting as fit into `limit` points.

        Choices contribute all their options. Raises ValueError if two values of each setting already exceed the limit.
        """
        for count in range(limit, 1, -1):
            axes = self._axes(count)
            if np.prod([len(axis) for axis in axes]) <= limit:
                return [dict(zip(self.distributions, point, strict=True)) for point in itertools.product(*axes)]
        least = np.prod([len(axis) for axis in self._axes(2)])
        raise ValueError(
            f"--search grid over {len(self.distributions)} settings takes at least {least} trials, two values of each "
            f"setting; {limit} are left besides the paper's own. Give --trials {least + 1} or more."
        )

    def _axes(self, count: int) -> list[list[Value]]:
        """Up to `count` distinct values of each setting, evenly spaced from bound to bound."""
        return [
            _bounds(distribution)
            if isinstance(distribution, CategoricalDistribution)
            else list(dict.fromkeys(_interpolate(distribution, fraction) for fraction in np.linspace(0, 1, count)))
            for distribution in self.distributions.values()
        ]


def load_space(given: str | None, system: str) -> Space:
    """Load the space named `given`, a module of `tune_spaces` or a .py file; None loads the system's own.

    Raises ValueError if it does not exist or has no valid SPACE.
    """
    if given is not None and given.endswith(".py"):
        if not Path(given).is_file():
            raise ValueError(f"--space {given} was given, but there is no such file.")
        return _parse(given, runpy.run_path(given))
    name = given or system
    known = sorted(module.name for module in iter_modules(tune_spaces.__path__))
    if name not in known:
        raise ValueError(
            f"there is no search space '{name}' in tune_spaces/. There are: {', '.join(known)}. Give one of them as "
            f"--space, or a Python file with {EXPECTED}."
        )
    return _parse(f"tune_spaces/{name}.py", vars(importlib.import_module(f"tune_spaces.{name}")))


def _parse(origin: str, module: Mapping[str, object]) -> Space:
    domains = module.get("SPACE")
    if not isinstance(domains, Mapping) or not domains:
        raise ValueError(f"{origin} has no SPACE. Expected {EXPECTED}.")
    for path, domain in domains.items():
        if not isinstance(domain, Domain):
            raise ValueError(f"{origin}: '{path}' is {domain!r}. Expected {EXPECTED}.")
        sampler = domain.get_sampler()
        if isinstance(sampler, Quantized) and isinstance(sampler.sampler, LogUniform):
            raise ValueError(f"{origin}: '{path}' has steps on a logarithmic scale. Expected {EXPECTED}.")
    space = Space(origin, dict(domains))
    try:
        _ = space.distributions
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{origin}: a distribution cannot be searched: {error}. Expected {EXPECTED}.") from None
    return space


def check_space(space: Space, system: System) -> None:
    """Raise ValueError for a path that the system does not have, or bounds that its fields do not allow."""
    parts = {"pose_maps", *(stage.name for stage in system.stages)}
    for path, distribution in space.distributions.items():
        part, _, field = path.partition(".")
        if field == "steps" and part in parts:
            raise ValueError(f"{space.origin}: '{path}' cannot be searched: --budget sets how long a trial trains.")
        for value in _bounds(distribution):
            try:
                override(system, {path: value})
            except ValueError as error:
                raise ValueError(f"{space.origin}: '{path}' is {_describe(distribution)}, but {error}") from None


def first_searched_stage(space: Space, system: System) -> int:
    """Return the index of the first stage that a searched setting changes; earlier stages are equal in all trials."""
    parts = {path.partition(".")[0] for path in space.distributions}
    return 0 if "pose_maps" in parts else min(i for i, stage in enumerate(system.stages) if stage.name in parts)


def current_values(space: Space, system: System) -> dict[str, Value]:
    """Return the system's own values of the searched settings."""
    parts = {"pose_maps": system.pose_maps, **{stage.name: stage for stage in system.stages}}
    split = {path: path.partition(".") for path in space.distributions}
    return {path: settings_of(parts[part])[field] for path, (part, _, field) in split.items()}


def _describe(distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    scale = "log-uniform" if distribution.log else "uniform"
    whole = isinstance(distribution, IntDistribution)
    steps = f" in steps of {distribution.step:g}" if distribution.step not in (None, 1 if whole else None) else ""
    low, high = distribution.low, distribution.high
    return f"{'whole numbers, ' if whole else ''}{scale} from {low:,g} to {high:,g}{steps}"


def _bounds(distribution: Distribution) -> list[Value]:
    """Both bounds, or every choice: if all of these are allowed, so is every value between them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # pyright: ignore[reportReturnType]
    return [distribution.low, distribution.high]


def _interpolate(distribution: Numeric, fraction: float) -> Value:
    """The value at a fraction of the way from the lower to the upper bound, on the distribution's own scale."""
    low, high = float(distribution.low), float(distribution.high)
    return _snap(distribution, low * (high / low) ** fraction if distribution.log else low + (high - low) * fraction)


def _snap(distribution: Numeric, value: float) -> Value:
    """The value clipped to the range and rounded to a step."""
    if distribution.step:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


MIN_RANDOM, MAX_RANDOM = 4, 6  # random trials before TPE starts: a quarter of all, within these bounds
CANDIDATES = 64  # that TPE weighs for each trial; Optuna's default is 24


@runtime_checkable
class SearchAlgorithm(Protocol):
    """Suggests settings and observes results, in any order."""

    def suggest(self, number: int) -> Settings:
        """Return the settings of the trial with this number."""
        ...

    def observe(self, trial: Trial) -> None:
        """Take a trial into account that ended, in this process or an earlier one."""
        ...


@dataclass(frozen=True)
class FixedList:
    """Settings known in advance, by the trial's number."""

    points: Sequence[Settings]

    def suggest(self, number: int) -> Settings:
        """Return the settings listed under this number."""
        return self.points[number]

    def observe(self, trial: Trial) -> None:
        """Do nothing: the list does not depend on results."""


def random_points(space: Space, seed: int, count: int) -> list[Settings]:
    """Return the points of a random search; the n-th is a function of the seed and n alone."""
    return [space.sample(seed, number) for number in range(count)]


@dataclass
class TPE:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), multivariate (Falkner et al., 2018).

    A trial that was stopped early is reported as pruned, with its intermediate scores; a diverged one as pruned without
    a value, which TPE ranks last. Failed trials are not reported to TPE. With several metrics it searches for their
    Pareto front, and no trial is reported as pruned.
    """

    space: Space
    metrics: Sequence[tuple[str, bool]]  # name, and whether higher is better
    seed: int
    trials: int  # planned in total: a quarter of them is random
    _study: optuna.Study | None = field(default=None, init=False, repr=False)

    def suggest(self, number: int) -> Settings:
        """Return TPE's suggestion, given all observed trials; the number only seeds it."""
        study = self._seeded_study(number)
        asked = study.ask({**self.space.distributions})
        study.tell(asked, state=TrialState.FAIL)  # added as a trial of its own once it has ended
        return dict(asked.params)

    def observe(self, trial: Trial) -> None:
        """Add an ended trial to the study, unless it failed or lies outside the space."""
        frozen = self._as_optuna_trial(trial)
        if frozen is not None:
            self._seeded_study(trial.number).add_trial(frozen)

    def _seeded_study(self, number: int) -> optuna.Study:
        """The study, its sampler seeded for one trial: suggestions do not depend on earlier draws of this process."""
        if self._study is None:
            up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
            self._study = optuna.create_study(directions=[up if higher else down for _, higher in self.metrics])
        self._study.sampler = optuna.samplers.TPESampler(
            seed=random_seed(self.seed, number) % 2**32,
            n_startup_trials=max(MIN_RANDOM, min(MAX_RANDOM, self.trials // 4)),
            n_ei_candidates=CANDIDATES,
            multivariate=True,
        )
        return self._study

    def _as_optuna_trial(self, trial: Trial) -> FrozenTrial | None:
        if trial.state not in ("finished", "stopped", "diverged"):
            return None
        known: dict[str, BaseDistribution] = {**self.space.distributions}
        params = {path: value for path, value in trial.settings.items() if path in known}
        if not all(self.space.contains(path, value) for path, value in params.items()):
            return None
        values = [trial.score(name) for name, _ in self.metrics]
        if trial.state == "finished" and None not in values:
            return create_trial(params=params, distributions=known, values=[float(v) for v in values if v is not None])
        if len(self.metrics) > 1:
            return None
        name = self.metrics[0][0]
        scores = {int(row["step"]): row[name] for row in trial.validations if name in row}
        passed = scores if trial.state == "stopped" else {}
        return create_trial(params=params, distributions=known, state=TrialState.PRUNED, intermediate_values=passed)
