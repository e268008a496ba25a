"""The searched settings: dotted paths with a distribution each, from a module of `tune_spaces` or a file.

A space is Python that the user names, like a system; nothing of it is checked by running a training: the ends of every
distribution are put into the system, whose fields know their ranges.
"""

import importlib
import itertools
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain, LogUniform, Quantized

import tune_spaces
from posegen.catalog import override, settings
from posegen.stage import System
from posegen.training.trials import Settings, Value

EXPECTED = (
    'SPACE = {"refinement.alpha": tune.uniform(0, 1), ...}, with the distributions uniform, quniform, loguniform, '
    "randint, qrandint, lograndint and choice of ray.tune"
)


@dataclass(frozen=True)
class Space:
    """Searched settings by dotted path. `origin` says where the space was read."""

    origin: str
    domains: Mapping[str, Domain]

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The same in Optuna's terms, which this module computes with."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return {path: OptunaSearch.convert_search_space({path: d})[path] for path, d in self.domains.items()}

    def words(self) -> dict[str, str]:
        """Each distribution as one reads it; part of what a sweep is recognised by."""
        return {path: _words(distribution) for path, distribution in self.distributions.items()}

    def logarithmic(self) -> list[str]:
        return [path for path, distribution in self.distributions.items() if getattr(distribution, "log", False)]

    def drawn(self, seed: int, number: int) -> Settings:
        """Random settings: a function of the seed and the trial's number."""
        random = np.random.default_rng((seed, number))
        return {path: _drawn(distribution, random) for path, distribution in self.distributions.items()}

    def allows(self, path: str, value: Value) -> bool:
        """Whether the value is a choice, or a number within the range; steps are not looked at."""
        distribution = self.distributions[path]
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        low, high = _ends(distribution)
        return not isinstance(value, str) and float(low) <= value <= float(high)

    def nearest(self, path: str, value: Value) -> Value:
        """The allowed value nearest to one that may lie outside; of choices in words the first."""
        distribution = self.distributions[path]
        if not isinstance(distribution, CategoricalDistribution):
            return _allowed(distribution, float(value))
        choices = _ends(distribution)
        if value in choices or not all(_is_number(each) for each in [value, *choices]):
            return value if value in choices else choices[0]
        return min(choices, key=lambda choice: abs(float(choice) - float(value)))

    def mutations(self) -> Mapping[str, Domain | list[Value]]:
        """The same for population based training, which wants choices as a list."""
        choices = {p: _ends(d) for p, d in self.distributions.items() if isinstance(d, CategoricalDistribution)}
        return {**self.domains, **choices}

    def grid(self, most: int) -> list[Settings]:
        """All combinations of evenly spaced values, the same number of every numeric setting, at most `most` in all.

        Choices come with all their options. Raises ValueError where two values of each setting are too many already.
        """
        for count in range(most, 1, -1):
            axes = [_spaced(distribution, count) for distribution in self.distributions.values()]
            if np.prod([len(axis) for axis in axes]) <= most:
                return [dict(zip(self.distributions, point, strict=True)) for point in itertools.product(*axes)]
        least = np.prod([len(_spaced(distribution, 2)) for distribution in self.distributions.values()])
        raise ValueError(
            f"--search grid over {len(self.distributions)} settings takes at least {least} trials, two values of each "
            f"setting; {most} are left beside the paper's own. Give --trials {least + 1} or more."
        )


def load_space(given: str | None, system: str) -> Space:
    """The space named by `given`: a module of `tune_spaces`, or a .py file; the system's own where it is None.

    Raises ValueError where there is none, or where what there is has no SPACE.
    """
    if given is not None and given.endswith(".py"):
        if not Path(given).is_file():
            raise ValueError(f"--space {given} was given, but there is no such file.")
        return _space(given, runpy.run_path(given))
    name = given or system
    known = sorted(module.name for module in iter_modules(tune_spaces.__path__))
    if name not in known:
        raise ValueError(
            f"there is no search space '{name}' in tune_spaces/. There are: {', '.join(known)}. Give one of them as "
            f"--space, or a Python file with {EXPECTED}."
        )
    return _space(f"tune_spaces/{name}.py", vars(importlib.import_module(f"tune_spaces.{name}")))


def _space(origin: str, module: Mapping[str, object]) -> Space:
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
    """Raises ValueError for a path that the system does not have, and for values that its fields do not allow."""
    parts = {"pose_maps", *(stage.name for stage in system.stages)}
    for path, distribution in space.distributions.items():
        part, _, field = path.partition(".")
        if field == "steps" and part in parts:
            raise ValueError(f"{space.origin}: '{path}' cannot be searched: --budget says how long a trial trains.")
        for value in _ends(distribution):
            try:
                override(system, {path: value})
            except ValueError as error:
                raise ValueError(f"{space.origin}: '{path}' is {_words(distribution)}, but {error}") from None


def first_touched(space: Space, system: System) -> int:
    """The index of the first stage that a searched setting changes; those before it are the same in every trial."""
    parts = {path.partition(".")[0] for path in space.distributions}
    return 0 if "pose_maps" in parts else min(i for i, stage in enumerate(system.stages) if stage.name in parts)


def current(space: Space, system: System) -> dict[str, Value]:
    """The system's own values of the searched settings."""
    every = settings(system)
    return {path: every[path] for path in space.distributions}  # pyright: ignore[reportReturnType]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    kind = "log-uniform" if distribution.log else "uniform"
    whole = "whole numbers, " if isinstance(distribution, IntDistribution) else ""
    default = 1 if isinstance(distribution, IntDistribution) else None
    steps = f" in steps of {distribution.step:g}" if distribution.step not in (None, default) else ""
    return f"{whole}{kind} from {distribution.low:,g} to {distribution.high:,g}{steps}"


def _ends(distribution: BaseDistribution) -> list[Value]:
    """Values that are allowed if all are: both ends, or every choice."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # pyright: ignore[reportReturnType]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _spaced(distribution: BaseDistribution, count: int) -> list[Value]:
    """Up to `count` different values, evenly spaced from end to end."""
    if isinstance(distribution, CategoricalDistribution):
        return _ends(distribution)
    return list(dict.fromkeys(_at(distribution, share) for share in np.linspace(0, 1, count)))


def _drawn(distribution: BaseDistribution, random: np.random.Generator) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        return _ends(distribution)[random.integers(len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step and not distribution.log:  # every step alike, the ends too
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return _allowed(distribution, float(distribution.low + random.integers(count) * distribution.step))
    return _at(distribution, random.uniform())


def _at(distribution: BaseDistribution, share: float) -> Value:
    """The value at a share of the way from the low end to the high one, on the distribution's own scale."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    return _allowed(distribution, low * (high / low) ** share if distribution.log else low + (high - low) * share)


def _allowed(distribution: BaseDistribution, value: float) -> Value:
    """The number brought into range and onto a step."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
