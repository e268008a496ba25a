"""Who says which settings the next trial has: a list made beforehand (random, grid, repetitions), or Optuna's TPE."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from posegen.training.spaces import Space
from posegen.training.step import random_seed
from posegen.training.trials import Settings, Trial

FEWEST_RANDOM, MOST_RANDOM = 4, 6  # trials before TPE has an opinion: a quarter of all, within these bounds
CANDIDATES = 64  # that TPE weighs for each trial; Optuna's default is 24


@runtime_checkable
class Chooser(Protocol):
    """Proposes settings and is told what became of them, in any order."""

    def propose(self, number: int) -> Settings:
        """The settings of the trial of this number."""
        ...

    def learn(self, trial: Trial) -> None:
        """A trial has ended, in this process or in one before it."""
        ...


@dataclass(frozen=True)
class Listed:
    """Settings known beforehand, by number."""

    points: Sequence[Settings]

    def propose(self, number: int) -> Settings:
        return self.points[number]

    def learn(self, trial: Trial) -> None:
        pass


def random_points(space: Space, seed: int, count: int) -> list[Settings]:
    """The points of a random search: the n-th is a function of the seed and n alone."""
    return [space.drawn(seed, number) for number in range(count)]


@dataclass
class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), multivariate (Falkner et al., 2018).

    A trial that was stopped early is told as pruned, with what it was judged by on the way; one that diverged as pruned
    without a value, which TPE ranks last. Failed ones teach nothing. With several metrics it looks for their Pareto
    front, and nothing is pruned.
    """

    space: Space
    metrics: Sequence[tuple[str, bool]]  # name, and whether higher is better
    seed: int
    trials: int  # that are planned: a quarter of them is drawn at random first
    _study: optuna.Study | None = field(default=None, init=False, repr=False)

    def propose(self, number: int) -> Settings:
        """What TPE would try next, knowing all that it was told. The number is only part of the seed."""
        study = self._opened(number)
        asked = study.ask(self.space.distributions)
        study.tell(asked, state=TrialState.FAIL)  # it comes back as a trial of its own when it has ended
        return dict(asked.params)

    def learn(self, trial: Trial) -> None:
        told = self._as_told(trial)
        if told is not None:
            self._opened(trial.number).add_trial(told)

    def _opened(self, number: int) -> optuna.Study:
        if self._study is None:
            up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
            directions = [up if higher else down for _, higher in self.metrics]
            self._study = optuna.create_study(directions=directions)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=random_seed(self.seed, number) % 2**32,
            n_startup_trials=max(FEWEST_RANDOM, min(MOST_RANDOM, self.trials // 4)),
            n_ei_candidates=CANDIDATES,
            multivariate=True,
        )
        return self._study

    def _as_told(self, trial: Trial) -> FrozenTrial | None:
        """The trial in Optuna's terms; None for one that teaches nothing or lies outside the space."""
        if trial.state not in ("finished", "stopped", "diverged"):
            return None
        known = self.space.distributions
        params = {path: value for path, value in trial.settings.items() if path in known}
        if not all(self.space.allows(path, value) for path, value in params.items()):
            return None
        values = [trial.score(name) for name, _ in self.metrics]
        if trial.state == "finished" and None not in values:
            return create_trial(params=params, distributions=known, values=[float(v) for v in values if v is not None])
        if len(self.metrics) > 1:
            return None
        passed = {int(row["step"]): row[self.metrics[0][0]] for row in trial.judged if self.metrics[0][0] in row}
        kept = passed if trial.state == "stopped" else {}
        return create_trial(params=params, distributions=known, state=TrialState.PRUNED, intermediate_values=kept)
