"""How workers share the CPUs of a cluster, by hand."""

import pytest

from posegen.cluster import cpus_per_worker


@pytest.mark.parametrize(
    ("workers", "nodes", "share"),
    [
        (1, [2], 2),
        (2, [2], 1),
        (2, [2, 2, 2], 2),  # three hosts of two CPUs: two workers get a host each
        (3, [4], 1),
        (4, [8, 4], 2),  # 3 CPUs each would leave room for 2 + 1
        (3, [8, 4], 4),
        (1, [0, 16], 16),  # a head without CPUs
    ],
)
def test_workers_get_the_most_that_fits_on_the_nodes(workers: int, nodes: list[float], share: int):
    assert cpus_per_worker(workers, nodes) == share


@pytest.mark.parametrize("nodes", [[2], [1, 1], []])
def test_too_many_workers_are_refused_with_what_there_is(nodes: list[float]):
    with pytest.raises(ValueError, match=rf"--workers 3 .* {int(sum(nodes))} CPUs on {len(nodes)} node"):
        cpus_per_worker(3, nodes)
