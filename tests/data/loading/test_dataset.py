import json
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import islice, permutations
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch

from posegen.data.geometry.joints import MIRROR
from posegen.data.listing import Entry, Listing, LoadedImage
from posegen.data.loading.dataset import Shards, listed_batches, training_batches
from posegen.data.masks import pose_mask
from posegen.data.shards import preparing as shards_module
from posegen.data.shards.preparing import ShardSettings, write_shards
from posegen.storage.store import Store

HEIGHT, WIDTH = 48, 24
GROUPS = {"a": 3, "b": 2, "c": 4}
TRAIN = [pair for group, size in GROUPS.items() for pair in permutations([f"{group}{i}" for i in range(size)], 2)]
GIVEN = [("y1", "y0"), ("x0", "x1"), ("y0", "y1"), ("x1", "x0"), ("x0", "x2")]  # goes back and forth between two shards
ALL = {f"{role}_{kind}" for role in ("source", "target") for kind in ("image", "pose_mask", "person_mask")}


def pixels(name):
    """A smooth image, as a photo is."""
    coarse = np.random.default_rng(list(name.encode())).integers(0, 256, (6, 3, 3), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT))


def encoded(name):
    """`a0` is a grey JPEG and `a1` a PNG; the others are JPEGs in colour."""
    image = pixels(name)[:, :, 0] if name == "a0" else pixels(name)
    return cv2.imencode(".png" if name == "a1" else ".jpg", image)[1].tobytes()


def person(name):
    random = np.random.default_rng([*name.encode(), 7])
    joints = random.uniform(-3, 40, (18, 2)).astype(np.float32)
    visible = random.random(18) < 0.8
    visible[[2, 5, 8, 11]] = True
    return joints, visible, (random.random((HEIGHT, WIDTH)) < 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Drawn:
    name: ClassVar[str] = "drawn"

    def listing(self):
        names = [(f"{group}{number}", "train") for group, size in GROUPS.items() for number in range(size)]
        names += [(f"{group}{number}", "test") for group in "xy" for number in range(3)]
        entries = [Entry(name, split, group=name[0], identity=name[0], view="", path="") for name, split in names]
        return Listing(entries, fingerprint="drawn", pairs={"test": GIVEN})

    def load(self, entry):
        return LoadedImage(encoded(entry.name), *person(entry.name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "shards"
    settings = ShardSettings(size=(HEIGHT, WIDTH), images_per_shard=4)
    with pytest.MonkeyPatch.context() as patch:  # the tasks run here, without Ray
        patch.setattr(shards_module, "_made", lambda works, make: map(make, works))
        write_shards(
            Drawn(),
            Store.of(folder.parent),
            settings,
            listing=Drawn().listing(),
            fingerprint="f",
            progress=lambda *_: None,
        )
    return folder


@pytest.fixture(scope="module")
def shards(folder):
    return Shards(folder)


def train(shards, draws, columns=ALL, batch_size=4, seed=3, flip=False, **options):
    return list(
        training_batches(shards, columns=columns, batch_size=batch_size, seed=seed, draws=draws, flip=flip, **options)
    )


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_image(batch, place, role, name, mirrored=False):
    """A plain twin of everything that the loader reads of one image."""
    joints, visible, mask = person(name)
    image = cv2.imdecode(np.frombuffer(encoded(name), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    limbs = pose_mask(joints, visible, height=HEIGHT, width=WIDTH, radius=4)
    if mirrored:
        image, limbs, mask = image[:, ::-1], limbs[:, ::-1], mask[:, ::-1]
        joints = np.array([[WIDTH - 1 - joints[joint][0], joints[joint][1]] for joint in MIRROR], np.float32)
        visible = np.array([visible[joint] for joint in MIRROR])
    for kind, expected in {"joints": joints, "visible": visible, "pose_mask": limbs, "person_mask": mask}.items():
        np.testing.assert_array_equal(batch[f"{role}_{kind}"][place].numpy(), expected)
    difference = np.abs(batch[f"{role}_image"][place].numpy().astype(int) - image)
    assert difference.max() <= 3  # OpenCV and simplejpeg may carry different releases of libjpeg-turbo


def test_shards_say_what_they_hold(shards):
    assert (shards.pair_count("train"), shards.pair_count("test")) == (len(TRAIN), len(GIVEN)) == (20, 5)
    assert (shards.image_count("train"), shards.image_count("test")) == (9, 6)
    assert shards.columns == ALL | {f"{role}_{kind}" for role in ("source", "target") for kind in ("joints", "visible")}
    assert len(shards.manifest.shards) == 5  # a | b | c of training, x | y of testing


def test_pairs_stand_in_the_order_of_the_rule_or_of_the_list(shards):
    assert shards.pair_names("train", range(20)) == TRAIN
    assert shards.pair_names("test", range(5)) == GIVEN
    assert shards.pair_names("test", [4, 0]) == [GIVEN[4], GIVEN[0]]


def test_images_are_decoded_as_rgb(shards):
    images = shards.images("train", [0, 1, 8])
    assert images.shape == (3, HEIGHT, WIDTH, 3)
    assert (images[0] == images[0][:, :, :1]).all()
    np.testing.assert_array_equal(images[1], pixels("a1")[:, :, ::-1])
    assert np.abs(images[2].astype(int) - pixels("c3")[:, :, ::-1]).mean() < 8


def test_listed_batches_equal_the_plain_twin(shards):
    pairs = [4, 0, 2, 1, 3, 3, 0]
    batches = list(listed_batches(shards, "test", columns=ALL, batch_size=3, pairs=pairs))
    assert [len(batch["pair"]) for batch in batches] == [3, 3, 1]
    batch = joined(batches)
    assert batch["pair"].tolist() == pairs
    for place, pair in enumerate(pairs):
        assert_image(batch, place, "source", GIVEN[pair][0])
        assert_image(batch, place, "target", GIVEN[pair][1])


def test_training_batches_equal_the_plain_twin_flipped_together_or_not(shards):
    plain, mixed = (joined(train(shards, range(15), flip=flip)) for flip in (False, True))
    assert torch.equal(plain["pair"], mixed["pair"])
    mirrored = 0
    for place, pair in enumerate(mixed["pair"].tolist()):
        flipped = not torch.equal(plain["source_joints"][place], mixed["source_joints"][place])
        mirrored += flipped
        for role, name in zip(("source", "target"), TRAIN[pair], strict=True):
            assert_image(plain, place, role, name)
            assert_image(mixed, place, role, name, mirrored=flipped)
    assert 15 <= mirrored <= 45  # of 60, half on average; four standard deviations


def test_left_and_right_change_places_and_back():
    assert sorted(MIRROR) == list(range(18))
    assert [MIRROR[joint] for joint in MIRROR] == list(range(18))


def test_an_epoch_holds_every_pair_once_and_the_next_another_order(shards):
    first, second = (joined(train(shards, draws, batch_size=5))["pair"].tolist() for draws in (range(4), range(4, 8)))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_batches_of_any_size_cut_the_same_stream(shards):
    """Also across epochs, and with a batch of more than two of them."""
    ones = joined(train(shards, range(96), batch_size=1))["pair"].tolist()
    for batch_size in (6, 48):
        assert joined(train(shards, range(96 // batch_size), batch_size=batch_size))["pair"].tolist() == ones
    assert set(Counter(ones[:80]).values()) == {4}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch_of_one(shards, world_size):
    alone = train(shards, range(6), batch_size=8, flip=True)
    ranks = [
        train(shards, range(6), batch_size=8, flip=True, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for expected, *parts in zip(alone, *ranks, strict=True):
        assert_equal(joined(parts), expected)


def test_going_on_at_a_draw_equals_never_having_stopped(shards):
    whole = train(shards, range(12), flip=True)
    for expected, batch in zip(whole[7:], train(shards, range(7, 12), flip=True), strict=True):
        assert_equal(batch, expected)


def test_other_seeds_draw_otherwise(shards):
    first, second = (joined(train(shards, range(5), seed=seed))["pair"] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_threads_change_nothing(shards):
    assert_equal(joined(train(shards, range(5), threads=1)), joined(train(shards, range(5), threads=7)))


def test_only_what_is_asked_for_is_read(shards):
    (batch,) = train(shards, range(1), columns={"target_pose_mask", "source_pose", "coarse_image"})
    joints = {"source_joints", "source_visible", "target_joints", "target_visible"}
    assert batch.keys() == {"pair", "target_pose_mask"} | joints


def test_shapes_and_types(shards):
    (batch,) = train(shards, range(1))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if "target" not in name} == {
        "pair": ((4,), torch.int64),
        "source_image": ((4, HEIGHT, WIDTH, 3), torch.uint8),
        "source_joints": ((4, 18, 2), torch.float32),
        "source_visible": ((4, 18), torch.bool),
        "source_pose_mask": ((4, HEIGHT, WIDTH), torch.uint8),
        "source_person_mask": ((4, HEIGHT, WIDTH), torch.uint8),
    }


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("posegen-loader")]


def test_threads_end_with_the_iterator(shards):
    batches = training_batches(shards, columns=ALL, batch_size=4, seed=0, draws=range(10**9), flip=True)
    assert len(list(islice(batches, 3))) == 3
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_work_ahead_is_bounded(shards, monkeypatch):
    made = []
    original = shards.split("train").pair_rows
    monkeypatch.setattr(shards.split("train"), "pair_rows", lambda pairs: made.append(len(pairs)) or original(pairs))
    batches = training_batches(shards, columns=(), batch_size=4, seed=0, draws=range(1000), flip=False)
    next(batches)
    batches.close()
    assert sum(made) <= 3 * 4


def altered(folder, target, change):
    """A folder that holds the same shards under a changed manifest."""
    for path in folder.glob("*.arrow"):
        (target / path.name).symlink_to(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return Shards(target)


def test_a_split_without_pairs(folder, tmp_path):
    empty = altered(folder, tmp_path, lambda manifest: manifest.update(shards=[]))
    assert (empty.pair_count("train"), empty.image_count("test"), empty.pair_names("test", [])) == (0, 0, [])
    assert list(listed_batches(empty, "test", columns=ALL, batch_size=4, pairs=[])) == []
    assert empty.images("test", []).shape == (0, HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match="no training pairs"):
        train(empty, range(1))


def test_columns_that_the_data_lack_are_an_error(folder, tmp_path):
    unmasked = altered(folder, tmp_path, lambda manifest: manifest.update(columns=[]))
    assert not any(column.endswith("person_mask") for column in unmasked.columns)
    with pytest.raises(ValueError, match=r"have no source_person_mask, target_person_mask; they have .*source_image"):
        train(unmasked, range(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "world_size": 4}, "each takes at least one"),
        ({"batch_size": 0}, "each takes at least one"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"seed": -1}, "the seed is -1"),
    ],
)
def test_impossible_batches_are_errors_at_once(shards, options, message):
    settings = {"columns": ALL, "batch_size": 4, "seed": 0, "draws": range(1), "flip": False, **options}
    with pytest.raises(ValueError, match=message):
        training_batches(shards, **settings)


@pytest.mark.parametrize("place", [-1, 5])
def test_pairs_that_do_not_exist_are_errors(shards, place):
    with pytest.raises(ValueError, match=f"{place}.* no pairs of 'test': there are 5"):
        listed_batches(shards, "test", columns=ALL, batch_size=2, pairs=[0, place])


def test_an_incomplete_folder_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="no complete shards"):
        Shards(tmp_path)
    with pytest.raises(ValueError, match=r"holds shards of version 3, .* reads version 4: make the run anew"):
        altered(folder, tmp_path, lambda manifest: manifest.update(schema_version=3))
