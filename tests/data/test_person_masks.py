"""Masks from joints and image: on drawn people with true masks, on a photograph, in shards; what is refused."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from posegen.data import reasons
from posegen.data.formats.images import open_image
from posegen.data.listing import Entry, Listing, LoadedImage
from posegen.data.masks import limb_seeds, person_mask, pieces_with, torso_length, unpack
from posegen.data.shards.making import ShardSettings, make_shard, plan_works, prepare
from posegen.data.shards.manifest import read_arrow
from posegen.data.sources.synthetic import SyntheticPeople
from tests.conftest import SHARED_DATA

PHOTO = SHARED_DATA / "open/tfjs-models/test_data"
# Joints of its pose.jpg, marked by hand: pixels of the 1000x667 photograph. He looks to his right.
PHOTO_JOINTS = {
    0: (457, 286), 1: (499, 318),
    2: (460, 325), 3: (374, 314), 4: (298, 306),
    5: (538, 323), 6: (624, 321), 7: (700, 314),
    8: (476, 478), 9: (352, 490), 10: (348, 612),
    11: (520, 480), 12: (605, 545), 13: (703, 618),
    15: (464, 276), 17: (496, 279),
}  # fmt: skip
STANDING = np.array(
    [(32, 14), (32, 26), (23, 27), (20, 42), (19, 56), (41, 27), (44, 42), (45, 56), (26, 62), (25, 86), (25, 110),
     (38, 62), (39, 86), (39, 110), (30, 12), (34, 12), (27, 13), (37, 13)],
    np.float32,
)  # fmt: skip
ALL = np.ones(18, bool)


def seen(*joints):
    return np.isin(np.arange(18), joints)


def overlap(mask, truth):
    """Intersection over union."""
    return (mask & truth).sum() / (mask | truth).sum()


def cut_out(mask, size=(128, 64)):
    """A person of one colour, as the mask says, before a background of another, both with noise."""
    random = np.random.default_rng(0)
    image = np.where(mask[..., None] > 0, (190, 60, 40), (60, 110, 90)) + random.normal(0, 6, (*size, 3))
    return image.clip(0, 255).astype(np.uint8)


@lru_cache
def drawn_people(size, people):
    """The images of some embedded people that can be paired: pixels, joints, visible, true mask."""
    source = SyntheticPeople(seed=2, train_people=people, test_people=1, images_per_person=8, size=size)
    images = [source.load(entry) for entry in source.listing().entries if entry.split == "train"]
    usable = [each for each in images if each.visible[[2, 5, 8, 11]].all()]
    return [(open_image(each.encoded).pixels, each.joints, each.visible, each.person_mask) for each in usable]


@pytest.mark.parametrize(("size", "people", "least"), [((128, 64), 17, 0.92), ((64, 32), 12, 0.85)])
def test_masks_of_the_embedded_people_are_nearly_the_true_ones(size, people, least):
    found = [overlap(person_mask(*given), truth) for *given, truth in drawn_people(size, people)]
    assert size == (64, 32) or len(found) >= 100
    assert np.mean(found) >= least
    assert np.mean(np.array(found) > 0.75) > 0.9


def test_image_and_mean_field_each_bring_something():
    height, width = 128, 64
    steps = []
    for image, joints, visible, truth in drawn_people((height, width), 17)[:40]:
        seeds = limb_seeds(joints, visible, height=height, width=width)
        limbs = np.isin(seeds, (cv2.GC_FGD, cv2.GC_PR_FGD))
        cv2.setRNGSeed(0)
        cv2.grabCut(image, seeds, None, np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
        cut = np.isin(seeds, (cv2.GC_FGD, cv2.GC_PR_FGD))
        steps.append([overlap(mask, truth) for mask in (limbs, cut, person_mask(image, joints, visible))])
    limbs, cut, refined = np.mean(steps, axis=0)
    assert limbs + 0.03 < cut < refined - 0.02


@pytest.mark.skipif(not PHOTO.is_dir(), reason="the photograph with its mask is not in ../shared/data")
def test_the_mask_of_a_photograph():
    photo, painted = (cv2.imread(str(PHOTO / name)) for name in ("pose.jpg", "pose_segmentation.png"))
    assert photo is not None
    assert painted is not None
    photo = cv2.resize(photo, (500, 333), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
    truth = cv2.resize(painted[..., 0].astype(np.float32), (500, 333), interpolation=cv2.INTER_AREA) > 127  # blue
    joints = np.zeros((18, 2), np.float32)
    joints[list(PHOTO_JOINTS)] = [((x + 0.5) / 2 - 0.5, (y + 0.5) / 2 - 0.5) for x, y in PHOTO_JOINTS.values()]
    assert overlap(person_mask(photo, joints, seen(*PHOTO_JOINTS)), truth) >= 0.9


def test_the_same_image_has_the_same_mask_whatever_was_drawn_before():
    image = cut_out(person_mask(np.zeros((128, 64, 3), np.uint8), STANDING, ALL))
    cv2.setRNGSeed(1)
    first = person_mask(image, STANDING, ALL)
    cv2.setRNGSeed(2)
    person_mask(image[::-1].copy(), STANDING, ALL)
    assert np.array_equal(person_mask(image, STANDING, ALL), first)
    assert first.dtype == np.uint8
    assert set(np.unique(first)) == {0, 1}


def test_clothes_wider_than_the_limbs_are_found_by_their_colour():
    seeds = limb_seeds(STANDING, ALL, height=128, width=64)
    dressed = np.isin(seeds, (cv2.GC_FGD, cv2.GC_PR_FGD))
    dressed[62:86, 20:45] = True  # a skirt closes the gap between the legs
    found = person_mask(cut_out(dressed), STANDING, ALL)
    assert found[64:84, 31:33].all()
    assert overlap(found > 0, dressed) > 0.97


def test_seeds_are_sure_on_the_bones_and_sure_of_what_is_far():
    seeds = limb_seeds(STANDING, ALL, height=128, width=64)
    columns, rows = STANDING.astype(int).T
    assert (seeds[rows[:14], columns[:14]] == cv2.GC_FGD).all()
    assert (seeds[30:60, 32] == cv2.GC_FGD).all(), "the torso is filled"
    assert (seeds[:, [0, 63]] == cv2.GC_BGD).all()
    assert {cv2.GC_BGD, cv2.GC_FGD, cv2.GC_PR_BGD, cv2.GC_PR_FGD} == set(np.unique(seeds))


def test_seeds_grow_with_the_person_and_move_with_it():
    small = limb_seeds(STANDING, ALL, height=128, width=64)
    large = limb_seeds(2 * STANDING + 0.5, ALL, height=256, width=128)
    assert (large[::2, ::2] == small).mean() > 0.95
    shifted = limb_seeds(STANDING + np.array([3, 0]), ALL, height=128, width=64)
    assert np.array_equal(shifted[:, 3:], small[:, :-3])


def test_hidden_joints_are_not_read():
    visible = seen(*set(range(18)) - {4, 10, 16})
    moved = STANDING.copy()
    moved[[4, 10, 16]] = (np.nan, 1e9), (-1, -1), (np.inf, 0)
    given = {"height": 128, "width": 64}
    assert np.array_equal(limb_seeds(moved, visible, **given), limb_seeds(STANDING, visible, **given))
    assert limb_seeds(STANDING, visible, **given)[56, 19] != cv2.GC_FGD, "the hidden wrist"


def test_hidden_legs_are_perhaps_there_and_never_surely():
    given = {"height": 128, "width": 64}
    knees = limb_seeds(STANDING, seen(*set(range(18)) - {9, 10, 12, 13}), **given)
    assert (knees[70:105, [26, 38]] == cv2.GC_PR_FGD)[8:].all(), "straight down from the hips"
    assert (knees[88:] != cv2.GC_FGD).all()
    ankle = limb_seeds(STANDING, seen(*set(range(18)) - {13}), **given)
    assert (ankle[96:110, 39] == cv2.GC_PR_FGD).all(), "straight on from the knee"
    between = STANDING.copy()
    between[10] = 10, 100
    bent = limb_seeds(between, seen(*set(range(18)) - {9}), **given)
    assert bent[81, 18] == cv2.GC_PR_FGD, "half of the way to the ankle"


def test_a_head_from_behind_is_over_the_neck():
    seeds = limb_seeds(STANDING, seen(*range(1, 14)), height=128, width=64)
    assert seeds[14, 32] == cv2.GC_FGD


def test_the_torso_tells_the_scale_and_limbs_where_it_is_hidden():
    joints = np.zeros((18, 2))
    joints[2], joints[8], joints[5], joints[11] = (0, 0), (0, 30), (10, 0), (10, 40)
    joints[9], joints[10] = (0, 81), (0, 98)
    assert torso_length(joints, seen(2, 5, 8, 11, 9, 10)) == 40, "the longer side"
    assert torso_length(joints, seen(2, 8, 9)) == 30
    assert torso_length(joints, seen(8, 9, 10)) == pytest.approx(51 / 0.85)
    assert torso_length(joints, seen(0, 2, 11)) == 0


def test_pieces_without_a_bone_are_dropped():
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]], bool)
    surely = np.zeros((4, 4), bool)
    surely[0, 0] = surely[2, 2] = True
    assert pieces_with(surely, mask).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("joints", "visible", "detail"),
    [
        (STANDING, seen(0, 4, 10), "no limb has a length"),
        (STANDING, seen(), "no limb has a length"),
        (np.full((18, 2), 20, np.float32), ALL, "no limb has a length"),
        (STANDING + 1000, ALL, "no limb lies in the image"),
        (STANDING - 90000, ALL, "no limb lies in the image"),
    ],
)
def test_too_few_joints_are_refused_with_the_reason(joints, visible, detail):
    with pytest.raises(ValueError, match=detail) as raised:
        person_mask(cut_out(np.zeros((128, 64))), joints, visible)
    assert raised.value.args[0] == reasons.TOO_FEW_JOINTS


def test_a_person_who_fills_the_image_is_all_of_it():
    near = (STANDING - (32, 45)) * 20 + (32, 64)
    assert person_mask(cut_out(np.ones((128, 64))), near, ALL).all()


def test_images_of_one_colour_have_a_mask_about_the_limbs():
    mask = person_mask(np.full((128, 64, 3), 90, np.uint8), STANDING, ALL)
    seeds = limb_seeds(STANDING, ALL, height=128, width=64)
    assert mask[seeds == cv2.GC_FGD].all()
    assert not mask[seeds == cv2.GC_BGD].any()


class Walkers:
    """Two people in two images each, of twice the training size; the mask of one image is known."""

    name: ClassVar[str] = "walkers"

    def listing(self):
        names = [f"{split}{number}" for split in ("train", "test") for number in range(2)]
        entries = [Entry(name, name[:-1], name[:-1], name[:-1], "", "", joints=None, visible=ALL) for name in names]
        return Listing(entries, fingerprint="walkers")

    def load(self, entry):
        truth = np.isin(limb_seeds(STANDING, ALL, height=128, width=64), (cv2.GC_FGD, cv2.GC_PR_FGD))
        large = cv2.resize(cut_out(truth), (128, 256), interpolation=cv2.INTER_CUBIC)
        own = np.ones((256, 128), np.uint8) if entry.name == "train0" else None
        visible = seen(0) if entry.name.startswith("bare") else ALL
        return LoadedImage(cv2.imencode(".png", large[..., ::-1])[1].tobytes(), 2 * STANDING + 0.5, visible, own)


ESTIMATED = ShardSettings(size=(128, 64), person_masks="estimated")


def test_shards_estimate_what_the_data_set_lacks(tmp_path: Path):
    work = plan_works(Walkers().listing(), 10)[0][1]
    assert work.split == "train"
    summary = make_shard(work, Walkers(), tmp_path, ESTIMATED, {})
    assert summary.person_masks == summary.rows == 2
    assert summary.notes == {reasons.RESIZED: 2, reasons.ESTIMATED_MASK: 1}
    stored = read_arrow(tmp_path / "train-00000.arrow").column("person_mask").to_pylist()
    own, estimated = unpack(stored, 128, 64)
    assert own.all(), "the data set's own mask is kept"
    truth = np.isin(limb_seeds(STANDING, ALL, height=128, width=64), (cv2.GC_FGD, cv2.GC_PR_FGD))
    assert overlap(estimated > 0, truth) > 0.9, "of the stored image, with its joints"


def test_without_the_setting_nothing_is_estimated():
    entry = Walkers().listing().entries[1]
    row = prepare(entry, Walkers(), replace(ESTIMATED, person_masks="own"), listed=False)
    assert row.person_mask is None
    assert reasons.ESTIMATED_MASK not in row.notes


def test_a_listed_image_without_a_limb_is_rejected_with_the_reason():
    entry = Entry("bare0", "test", "a", "a", "", "")
    with pytest.raises(ValueError, match=reasons.TOO_FEW_JOINTS):
        prepare(entry, Walkers(), ESTIMATED, listed=True)
    assert prepare(entry, Walkers(), replace(ESTIMATED, person_masks="own"), listed=True).person_mask is None
