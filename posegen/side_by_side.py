"""Works that wait for one another, as many at once as there is room for."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

Waits = Mapping[int, frozenset[int]]  # a work's number -> those that must be done before it


def most_at_once(waits: Waits) -> int:
    """How many works are ready at once at most, when each begins as soon as it can and all take equally long."""
    levels: dict[int, int] = {}
    while len(levels) < len(waits):
        ready = [number for number, before in waits.items() if number not in levels and before <= levels.keys()]
        assert ready, "works wait for each other"
        levels |= {number: 1 + max((levels[each] for each in waits[number]), default=0) for number in ready}
    counts = list(levels.values())
    return max((counts.count(level) for level in counts), default=0)


def carry_out(waits: Waits, at_once: int, work: Callable[[int], None]) -> None:
    """Does every work once those that it waits for are done, the lower numbers first; one after another in this thread.

    With `at_once` above 1 in threads. Where one fails no other is begun; those that are under way end first.
    """
    if at_once == 1:
        _one_by_one(waits, work)
        return
    done: set[int] = set()
    under_way: dict[Future[None], int] = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="posegen-stage") as pool:
        while len(done) < len(waits):
            for number in _ready(waits, done | set(under_way.values()), done)[: at_once - len(under_way)]:
                under_way[pool.submit(work, number)] = number
            for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                ended.result()
                done.add(under_way.pop(ended))


def _one_by_one(waits: Waits, work: Callable[[int], None]) -> None:
    done: set[int] = set()
    while len(done) < len(waits):
        number = _ready(waits, done, done)[0]
        work(number)
        done.add(number)


def _ready(waits: Waits, begun: set[int], done: set[int]) -> list[int]:
    return sorted(number for number, before in waits.items() if number not in begun and before <= done)
