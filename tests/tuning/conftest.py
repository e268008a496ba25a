"""The made-up sweep that most tests of the sweep's page look at."""

import pytest

from posegen.tuning.content import SweepContent
from tests.tuning.made_up_sweep import a_sweep, trial


@pytest.fixture
def three() -> SweepContent:
    """The paper's weight, a better one, and one that was stopped at its first validation."""
    return a_sweep(
        [
            trial(0, {"s.weight": 10.0}, mask_l1=[0.3, 0.25, 0.2]),
            trial(1, {"s.weight": 100.0}, mask_l1=[0.3, 0.2, 0.1]),
            trial(2, {"s.weight": 1.0}, "stopped", mask_l1=[0.5]),
        ],
        best=1,
    )
