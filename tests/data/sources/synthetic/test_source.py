"""The embedded data set: what is listed, that every image is a function of its name, and that it is usable."""

import dataclasses

import numpy as np
import pytest
import simplejpeg

from posegen.data.geometry.joints import TORSO
from posegen.data.sources.pairs import with_validation
from posegen.data.sources.synthetic import CAMERAS, SyntheticPeople

SMALL = SyntheticPeople(train_people=3, test_people=2, images_per_person=4)


def test_the_listing_counts_names_and_groups():
    entries = SMALL.listing().entries
    assert [sum(entry.split == split for entry in entries) for split in ("train", "test")] == [12, 8]
    for split in ("train", "test"):
        names = [entry.name for entry in entries if entry.split == split]
        assert len(set(names)) == len(names)
    assert entries[5].name == "0001_v3_01.jpg"
    assert all(entry.group == entry.identity and entry.joints is None and entry.path == "" for entry in entries)


def test_the_people_of_train_and_test_are_different_people():
    entries = SMALL.listing().entries
    identities = [{entry.identity for entry in entries if entry.split == split} for split in ("train", "test")]
    assert not identities[0] & identities[1]
    first = {split: next(entry for entry in entries if entry.split == split) for split in ("train", "test")}
    assert first["train"].name == first["test"].name
    assert SMALL.load(first["train"]).encoded != SMALL.load(first["test"]).encoded


def test_a_image_depends_on_the_seed_and_its_name_only():
    more = dataclasses.replace(SMALL, train_people=9, images_per_person=8)
    entry = SMALL.listing().entries[-1]
    assert entry in more.listing().entries
    first, again, other = SMALL.load(entry), more.load(entry), dataclasses.replace(SMALL, seed=1).load(entry)
    assert first.encoded == again.encoded
    np.testing.assert_array_equal(first.joints, again.joints)
    assert first.encoded != other.encoded


def test_a_training_person_who_is_held_out_is_drawn_the_same():
    listing = SMALL.listing()
    held = with_validation(listing, 0.3).entries
    moved = [pair for pair in zip(listing.entries, held, strict=True) if pair[0] != pair[1]]
    assert len(moved) == 4
    for before, after in moved:
        assert (before.split, after.split) == ("train", "validation")
        first, again = SMALL.load(before), SMALL.load(after)
        assert first.encoded == again.encoded
        for name in ("joints", "visible", "person_mask"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    images = {SMALL.load(entry).encoded for entry in held}
    assert len(images) == len(held)


def test_the_fingerprint_follows_the_fields():
    changes = ({}, {"seed": 1}, {"train_people": 4}, {"images_per_person": 5}, {"size": (128, 64)})
    prints = [dataclasses.replace(SMALL, **change).listing().fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert SyntheticPeople(train_people=3, test_people=2, images_per_person=4).listing().fingerprint == prints[0]


@pytest.mark.parametrize("size", [(64, 32), (48, 80)])
def test_a_image_has_its_size_joints_and_mask(size: tuple[int, int]):
    source = dataclasses.replace(SMALL, size=size)
    image = source.load(source.listing().entries[2])
    assert simplejpeg.decode_jpeg(image.encoded).shape == (*size, 3)
    assert image.joints.shape == (18, 2)
    assert image.joints.dtype == np.float32
    assert image.person_mask is not None
    assert image.person_mask.shape == size
    assert image.person_mask.dtype == np.uint8
    assert set(np.unique(image.person_mask)) == {0, 1}


def test_visible_joints_lie_on_the_person():
    """Within one pixel of the mask at 128x64, always; at most one in two hundred is not on the mask itself."""
    source = dataclasses.replace(SMALL, size=(128, 64), images_per_person=8)
    beside = total = 0
    for entry in source.listing().entries:
        figure, _ = source.draw(entry)
        columns, rows = np.rint(figure.joints[figure.visible]).astype(int).T
        padded = np.pad(figure.mask, 1)
        for row, column in zip(rows, columns, strict=True):
            assert padded[row : row + 3, column : column + 3].any()
            beside, total = beside + (figure.mask[row, column] == 0), total + 1
    assert total > 400
    assert beside <= total / 200


def test_most_images_are_usable_and_no_side_view_is():
    source = dataclasses.replace(SMALL, train_people=8, images_per_person=8)
    usable: dict[str, list[bool]] = {}
    for entry in source.listing().entries[:64]:
        usable.setdefault(entry.view, []).append(bool(source.draw(entry)[0].visible[list(TORSO)].all()))
    shares = {view: np.mean(seen) for view, seen in usable.items()}
    assert set(shares) == {str(number) for number in range(len(CAMERAS))}
    assert shares["2"] == 0
    assert min(share for view, share in shares.items() if view != "2") > 0.6
    assert np.mean(np.concatenate(list(usable.values()))) >= 0.7


def test_a_camera_keeps_its_scene_and_two_cameras_differ():
    entries = SyntheticPeople(train_people=2).listing().entries[:32]
    corners: dict[str, list[np.ndarray]] = {}
    for entry in entries:
        corners.setdefault(entry.view, []).append(SyntheticPeople().draw(entry)[1][-6:].mean(axis=(0, 1)))
    means = {view: np.mean(colours, axis=0) for view, colours in corners.items()}
    for view, colours in corners.items():
        others = [mean for other, mean in means.items() if other != view]
        spread = np.abs(np.array(colours) - means[view]).max()
        assert min(np.abs(mean - means[view]).max() for mean in others) > 0.5 * spread


@pytest.mark.parametrize(
    ("field", "value"),
    [("train_people", 0), ("test_people", 0), ("images_per_person", 1), ("seed", -1), ("size", (8, 8))],
)
def test_impossible_settings_are_named(field: str, value: object):
    with pytest.raises(ValueError, match=f"{field}.*{str(value).split(',')[0].strip('()')}.*at least"):
        dataclasses.replace(SMALL, **{field: value})
