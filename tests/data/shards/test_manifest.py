"""Where images and pairs lie: worked out by hand, for pairs by the rule and for a list that mixes the shards."""

import json

import numpy as np
import pytest

from posegen.data.shards.manifest import Manifest, ShardEntry, SplitIndex
from tests.data.shards.made_up import manifest_with, shard_entry


def index(orders):
    """Shards of 3, 1 and 2 images, with pairs of these orders."""
    shards = [
        shard_entry(rows=rows, pairs=len(order), order=[order[0], order[-1]] if order else [])
        for rows, order in zip((3, 1, 2), orders, strict=True)
    ]

    def read():
        if orders == ([0, 1], [], [2, 3, 5]):
            raise AssertionError("the manifest is enough")
        return np.concatenate([np.array(order, np.int64) for order in orders])

    return SplitIndex(shards, read)


def found(numbers):
    return [each.tolist() for each in numbers]


def test_images_are_found_by_the_numbers_of_rows():
    rule = index(([0, 1], [], [2, 3, 5]))
    assert rule.image_count == 6
    assert found(rule.rows(np.array([0, 2, 3, 4, 5]))) == [[0, 0, 1, 2, 2], [0, 2, 0, 0, 1]]
    assert [rule.first_row(shard) for shard in range(3)] == [0, 3, 4]


def test_pairs_in_the_order_of_the_shards_are_found_without_opening_one():
    rule = index(([0, 1], [], [2, 3, 5]))
    assert rule.pair_count == 5
    assert found(rule.pairs(np.array([4, 0, 1, 2]))) == [[2, 0, 0, 2], [2, 0, 1, 0]]
    assert rule.places([2]).tolist() == [2, 3, 4]
    assert rule.places([2, 0]).tolist() == [0, 1, 2, 3, 4]
    assert rule.places([1]).tolist() == []


def test_pairs_of_a_mixed_list_are_found_by_their_order():
    """The list is: shard 0, 2, 2, 1, 0; places 1 and 2 of shard 2, 4 is the second of shard 0."""
    mixed = index(([10, 90], [70], [20, 30]))
    assert found(mixed.pairs(np.arange(5))) == [[0, 2, 2, 1, 0], [0, 0, 1, 0, 1]]
    assert mixed.places([0]).tolist() == [0, 4]
    assert mixed.places([2, 1]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("orders", [([5], [6], [4]), ([0, 9], [3], [10]), ([1], [1], [2])])
def test_lists_that_mix_shards_are_noticed(orders):
    mixed = index(orders)
    ranks = np.argsort(np.argsort(np.concatenate(orders), kind="stable"), kind="stable")
    for shard, start in enumerate(np.cumsum([0, *map(len, orders[:-1])])):
        assert mixed.places([shard]).tolist() == sorted(ranks[start : start + len(orders[shard])].tolist())


def test_manifests_go_to_json_and_back():
    made = manifest_with([shard_entry(pairs=2, order=[0, 1]), shard_entry(split="test")])
    assert Manifest.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": None}, "the manifest of the shards: the field 'counts' is None, expected Mapping"),
        ({"shards": [{"split": "train"}]}, "a shard of the manifest has no field 'file'; it has split"),
        ({"shards": [3]}, "a shard of the manifest has no field 'split'; it has none"),
        ({"shards": [{**vars(shard_entry()), "rows": "8"}]}, "the field 'rows' is '8', expected int"),
    ],
)
def test_a_missing_or_wrong_field_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Manifest.from_json(manifest_with([]).to_json() | change)
    with pytest.raises(ValueError, match="has no field 'split'"):
        ShardEntry.from_json({})
