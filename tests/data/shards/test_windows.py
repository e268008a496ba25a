"""The order of training pairs: today's where all shards fit, and windows that can be worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest

from posegen.data.random_streams import SHARDS_OF_EPOCH, epoch_pairs, flips, random_stream
from posegen.data.shards.out_of_core import WindowedOrder, WindowIndex, describe_windows, window_bytes, windows
from tests.data.shards.made_up import manifest_with, shard_entry


def manifest(*sizes, test=10**9):
    """A manifest with training shards of these sizes, and one large test shard."""
    shards = [shard_entry(bytes=size - 1, pairs_bytes=1) for size in sizes]
    return manifest_with([*shards, shard_entry(split="test", bytes=test)])


def test_the_order_without_windows_is_what_it_always_was():
    """Values of the loader before there were windows: checkpoints of that time go on with the same pairs."""
    assert epoch_pairs(7, 3, np.arange(14)).tolist() == [1, 0, 2, 5, 4, 3, 6, 3, 4, 0, 2, 5, 1, 6]
    assert epoch_pairs(20, 0, np.arange(8)).tolist() == [15, 12, 10, 19, 2, 11, 3, 8]
    assert flips(4, 3, 1, share=0.5).tolist() == [True, True, False, True]


def test_windows_are_half_of_a_limit_that_the_training_shards_exceed():
    assert window_bytes(manifest(10, 20, 30), 59) == 29
    assert window_bytes(manifest(10, 20, 30), 60) is None
    assert window_bytes(manifest(10, 20, 30), None) is None


def test_windows_are_filled_in_the_order_of_the_permutation():
    """Slow twin of the cut, with shards of 3, 1 and 2 bytes."""
    for epoch in range(20):
        first, second, third = random_stream(5, SHARDS_OF_EPOCH, epoch).permutation(3).tolist()
        size = {0: 3, 1: 1, 2: 2}
        if size[first] + size[second] <= 3:
            expected = [{first, second}, {third}]
        elif size[second] + size[third] <= 3:
            expected = [{first}, {second, third}]
        else:
            expected = [{first}, {second}, {third}]
        found = windows(size, 3, seed=5, epoch=epoch)
        assert [set(window) for window in found] == expected
        assert all(list(window) == sorted(window) for window in found)


def test_windows_of_equal_shards_can_be_counted():
    assert [len(window) for window in windows(dict.fromkeys(range(8), 10), 35, seed=0, epoch=0)] == [3, 3, 2]
    assert [len(window) for window in windows(dict.fromkeys(range(3), 10), 9, seed=0, epoch=0)] == [1, 1, 1]
    assert windows({4: 10, 7: 10}, 20, seed=0, epoch=0) == [(4, 7)]


def test_a_shard_larger_than_the_window_has_one_of_its_own():
    for epoch in range(10):
        found = windows({0: 1, 1: 100, 2: 1}, 5, seed=0, epoch=epoch)
        assert (1,) in found
        assert sorted(number for window in found for number in window) == [0, 1, 2]


def test_epochs_and_seeds_have_windows_of_their_own():
    sizes = dict.fromkeys(range(12), 1)
    made = {str(windows(sizes, 4, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(made) == 9


def pairs_of(order, start, stop):
    """(shards of the window, pair within it) of places of the stream."""
    return [(part.shards, int(pair)) for part in order.slices(start, stop) for pair in part.pairs]


@pytest.mark.parametrize("window", [1, 5, 12, 1000])
def test_an_epoch_holds_every_pair_of_every_window_once(window):
    shards = ((3, 4), (5, 1), (2, 0), (4, 6), (1, 9))  # one without pairs
    order = WindowedOrder(shards, window, 7)
    for epoch in range(3):
        found = pairs_of(order, epoch * 20, epoch * 20 + 20)
        by_window = {each: sorted(pair for window, pair in found if window == each) for each, _ in found}
        assert sorted(number for each in by_window for number in each) == [0, 1, 3, 4]
        for each, pairs in by_window.items():
            assert pairs == list(range(sum(shards[number][1] for number in each)))


def test_any_cut_of_the_stream_is_the_same_stream():
    order = WindowedOrder(((3, 4), (5, 3), (4, 6)), 7, 1)
    whole = pairs_of(order, 0, 60)
    for size in (1, 4, 30):
        assert [pair for start in range(0, 60, size) for pair in pairs_of(order, start, start + size)] == whole
    places = [range(60)[part.positions] for part in order.slices(0, 60)]
    assert [place for each in places for place in each] == list(range(60))


def test_turns_follow_each_other():
    order = WindowedOrder(((3, 4), (5, 3), (4, 6)), 7, 1)
    turns = [part.window for part in order.slices(0, 60)]
    assert turns == sorted(turns)
    assert all(order.after(before) == turn for before, turn in pairwise(turns))
    assert turns[0] == WindowIndex(0, 0)
    assert (order.window_at(0), order.window_at(59)) == (turns[0], turns[-1])
    for part in order.slices(0, 60):
        assert order.shards_of(part.window) == part.shards


def test_pairs_of_a_window_are_permuted_anew_each_time():
    order = WindowedOrder(((1, 50),), 1, 0)
    first, second = (np.array([pair for _, pair in pairs_of(order, start, start + 50)]) for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()


def test_the_user_is_told_of_windows():
    many = manifest(*[2_000_000_000] * 24)
    assert describe_windows(many, 12_000_000_000) == (
        "training pairs keep to windows of about 3 of 24 shards: the data set (48.0 GB) is larger than --cache-gb 12"
    )
    assert "of about 1 of 24 shards" in describe_windows(many, 3_000_000_000)
    assert describe_windows(many, None) is None
    assert describe_windows(many, 48_000_000_000) is None
