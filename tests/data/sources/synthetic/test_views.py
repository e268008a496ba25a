"""The embedded data set in its multi-view form: what belongs together, and that views agree in space."""

import math
from pathlib import Path

import numpy as np
import pytest

from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Entry
from posegen.data.loading.dataset import Shards, listed_batches, training_batches
from posegen.data.shards.making import ShardSettings, made_from, make_shard, plan_works
from posegen.data.shards.preparing import _conclude
from posegen.data.sources.synthetic import HUMAN36M_AZIMUTHS, SyntheticViews
from posegen.storage.store import Store

SMALL = SyntheticViews(train_people=2, test_people=1, instants_per_person=2)


def shards_of(source: SyntheticViews, folder: Path) -> Shards:
    """Shards made without Ray."""
    folder.mkdir()
    settings = ShardSettings(size=source.size, mask_radius=2)
    listing = source.listing()
    record = made_from(listing, settings, fingerprint="")
    works, rejects = plan_works(listing, 100)
    summaries = [make_shard(work, source, folder, settings, record) for work in works]
    _conclude(Store.of(folder.parent), source.name, record, rejects, summaries)
    return Shards(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return shards_of(SMALL, tmp_path_factory.mktemp("views") / "shards")


def instant(source: SyntheticViews, group: str) -> list[Entry]:
    return [entry for entry in source.listing().entries if entry.group == group]


def test_a_group_is_one_instant_seen_by_every_camera():
    entries = SMALL.listing().entries
    assert len(entries) == (2 + 1) * 2 * 4
    views = instant(SMALL, "train-0001-01")
    assert [entry.azimuth for entry in views] == list(HUMAN36M_AZIMUTHS)
    assert [entry.view for entry in views] == ["0", "1", "2", "3"]
    assert {entry.identity for entry in views} == {"train-0001"}


def test_every_ordered_pair_of_views_has_the_cameras_real_rotation(shards: Shards):
    assert shards.pair_count("test") == 2 * 4 * 3
    assert "rotation" in shards.columns
    (batch,) = listed_batches(shards, "test", columns={"rotation"}, batch_size=24, pairs=range(24))
    names = shards.pair_names("test", range(24))
    azimuths = {entry.name: entry.azimuth for entry in SMALL.listing().entries if entry.split == "test"}
    for (source, target), rotation in zip(names, batch["rotation"].tolist(), strict=True):
        turned = azimuths[target] - azimuths[source]
        assert -180 < rotation <= 180
        assert math.isclose(math.cos(math.radians(rotation - turned)), 1.0, abs_tol=1e-6)
    sizes = sorted({round(abs(rotation), 1) for rotation in batch["rotation"].tolist()})
    assert sizes == [39.9, 44.8, 134.8, 140.5, 174.7, 179.6], "never a multiple of 90 degrees"


def test_a_mirrored_pair_turns_the_other_way(shards: Shards):
    def batch(flip: bool) -> dict:
        made = training_batches(shards, columns={"rotation"}, batch_size=32, seed=0, draws=range(1), flip=flip)
        return next(made)

    plain, some = batch(False), batch(True)
    assert (plain["pair"] == some["pair"]).all()
    mirrored = (plain["source_joints"] != some["source_joints"]).flatten(1).any(dim=1)
    assert 0 < mirrored.sum() < 32
    assert np.allclose(some["rotation"], np.where(mirrored, -plain["rotation"], plain["rotation"]))


def test_the_views_of_an_instant_are_one_body_seen_from_the_cameras_places():
    """From opposite places, x is mirrored about the image's own shift; heights agree at any azimuth, for all cameras
    look level here. All distances have one scale."""
    source = SyntheticViews(train_people=1, test_people=1, instants_per_person=1, azimuths=(10.0, 190.0, 100.0))
    joints = [figure.joints for figure, _ in map(source.draw, instant(source, "train-0000-00"))]
    front, back, side = (each - each.mean(axis=0) for each in joints)
    slope = np.polyfit(front[:, 0], -back[:, 0], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(front[:, 0], back[:, 0])[0, 1] < -0.95
    assert np.abs(front[:, 1] - side[:, 1]).max() < 0.12 * source.size[0]  # elevations differ by some degrees
    assert not np.allclose(front[:, 0], side[:, 0], atol=2)


def test_counter_clockwise_from_the_front_is_the_left_side():
    """A camera 90 degrees counter-clockwise of the one that sees the front sees the left side: the nose points left in
    its image (the person's left is the front camera's right)."""
    source = SyntheticViews(train_people=6, test_people=1, instants_per_person=2, azimuths=(0.0, 90.0, 180.0, -90.0))
    right, left = JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder")
    nose, neck = JOINTS.index("nose"), JOINTS.index("neck")
    agreed = []
    for group in sorted({entry.group for entry in source.listing().entries if entry.split == "train"}):
        joints = [figure.joints for figure, _ in map(source.draw, instant(source, group))]
        widths = [each[left, 0] - each[right, 0] for each in joints]  # most positive where the front is seen
        front = int(np.argmax(widths))
        if widths[front] > 6:
            turned = joints[(front + 1) % 4]
            agreed.append(turned[nose, 0] < turned[neck, 0])
    assert len(agreed) > 4
    assert np.mean(agreed) > 0.8


def test_all_joints_are_known_and_inside_and_the_mask_covers_the_trunk():
    for entry in SMALL.listing().entries[:8]:
        image = SMALL.load(entry)
        assert image.visible.all()
        assert (image.joints > -0.5).all()
        assert (image.joints < np.array(SMALL.size[::-1]) - 0.5).all()
        x, y = np.rint(image.joints[[2, 5, 8, 11]].mean(axis=0)).astype(int)
        assert image.person_mask is not None
        assert image.person_mask[y, x] == 1


def test_the_background_of_a_camera_stands_still():
    entries = SMALL.listing().entries
    first, other = (SMALL.draw(entry) for entry in (entries[0], entries[4]))
    untouched = slice(0, 20)  # above the shadow on the ground
    assert np.array_equal(first[1][untouched], other[1][untouched])
    assert not np.array_equal(first[1][untouched], SMALL.draw(entries[1])[1][untouched])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("azimuths", (10.0,), "at least two"), ("azimuths", (10.0, 370.0), "different places"),
     ("train_people", 0, "at least 1"), ("instants_per_person", 0, "at least 1"), ("size", (8, 8), "at least 16")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(field: str, value: object, said: str):
    with pytest.raises(ValueError, match=said):
        SyntheticViews(**{field: value})  # pyright: ignore[reportArgumentType]
