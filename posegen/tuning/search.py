"""Search algorithms: a fixed list (random search, grid) or Optuna's TPE.

Ray Tune's OptunaSearch is not used: it seeds its sampler once, so a resumed search would repeat its random draws, and
it reports trials that were stopped early as complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from posegen.training.step import random_seed
from posegen.tuning.records import Settings, Trial
from posegen.tuning.space import Space

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
