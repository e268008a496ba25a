"""The embedded data set: clothed people drawn from a jointed 3D skeleton, with exact joints, visibility and masks.

Everything about a picture is a function of the seed, the person and the picture's number, so that any task can draw
any picture. Every person wears one set of clothes and is seen by five cameras (`scenes.CAMERAS`) in many poses.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from posegen.data.joints import JOINTS
from posegen.data.people.fabrics import draw_tiles
from posegen.data.people.figure import Figure, View, draw_figure
from posegen.data.people.poses import random_pose
from posegen.data.people.scenes import CAMERAS, backdrop, ground_shadow
from posegen.data.people.skeleton import Proportions, pose_skeleton, random_proportions
from posegen.data.people.wardrobe import Look, random_look
from posegen.data.rows import Entry, Listing, Picture

DRAWING = 1  # changes whenever a picture's drawing does
SPLITS = ("train", "test")
CAMERA_ORDER = (0, 3, 1, 4, 0, 1, 3, 2)  # cameras of a person's pictures in turn; the side's hides joints: rarer
JPEG_QUALITY = 95
SMALLEST = 16


class Person(NamedTuple):
    """Who is drawn: a body, a look and its surfaces."""

    proportions: Proportions
    look: Look
    tiles: UInt8[np.ndarray, "tiles 128 128 3"]


@dataclass(frozen=True, kw_only=True)
class SyntheticPeople:
    """Drawn people; `size` is height, width in pixels. About 80 % of the pictures show both shoulders and both hips.

    The default is a small training set that a small model can learn from within minutes: 200 people to learn from and
    20 others to be judged by. Test people do not change with the number of training people.
    """

    name: ClassVar[str] = "synthetic"

    seed: int = 0
    train_people: int = 200
    test_people: int = 20
    pictures_per_person: int = 16
    size: tuple[int, int] = (64, 32)

    def __post_init__(self) -> None:
        _check(self)

    def listing(self) -> Listing:
        """All pictures of both splits; groups are people."""
        counts = dict(zip(SPLITS, (self.train_people, self.test_people), strict=True))
        entries = [
            _entry(split, person, picture)
            for split, people in counts.items()
            for person in range(people)
            for picture in range(self.pictures_per_person)
        ]
        described = json.dumps({"drawing": DRAWING, **asdict(self)}, sort_keys=True)
        return Listing(entries=entries, fingerprint=hashlib.sha256(described.encode()).hexdigest())

    def load(self, entry: Entry) -> Picture:
        """Draws one picture."""
        figure, behind = self.draw(entry)
        pixels = figure.over(behind)
        image = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
        return Picture(image, figure.joints, figure.visible, figure.mask)

    def draw(self, entry: Entry) -> tuple[Figure, np.ndarray]:
        """The figure of an entry and what lies behind it: RGB float (height, width, 3), 0 to 255."""
        split, number, picture = _numbers(entry)
        person = drawn_person(self.seed, split, number)
        camera = CAMERAS[int(entry.view)]
        rng = np.random.default_rng((self.seed, split, number, picture))
        skeleton = pose_skeleton(person.proportions, random_pose(rng))
        view = View(
            azimuth=camera.azimuth + rng.uniform(-11, 11),
            elevation=camera.elevation,
            light=camera.light,
            fill=rng.uniform(0.86, 0.95),
            shift=(rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.6)),
        )
        figure = draw_figure(skeleton, *person, view, self.size)
        behind = backdrop(int(entry.view), self.size, place=rng.uniform())
        ground_shadow(behind, figure.joints[[JOINTS.index("right_ankle"), JOINTS.index("left_ankle")]])
        return figure, behind


def contact_sheet(source: SyntheticPeople, people: int, pictures: int) -> UInt8[np.ndarray, "height width 3"]:
    """The first pictures of the first training people, a row a person. RGB."""
    rows = []
    for person in range(people):
        drawn = (source.draw(_entry("train", person, picture)) for picture in range(pictures))
        rows.append(np.concatenate([figure.over(behind) for figure, behind in drawn], axis=1))
    return np.concatenate(rows)


def _check(source: SyntheticPeople) -> None:
    fewest = {"train_people": 1, "test_people": 1, "pictures_per_person": 2, "seed": 0}
    for name, least in fewest.items():
        if getattr(source, name) < least:
            raise ValueError(f"synthetic people: {name} is {getattr(source, name)}; it must be at least {least}")
    if min(source.size) < SMALLEST:
        raise ValueError(f"synthetic people: size (height, width) is {source.size}; both must be at least {SMALLEST}")


def _entry(split: str, person: int, picture: int) -> Entry:
    identity, view = f"{split}-{person:04d}", str(CAMERA_ORDER[picture % len(CAMERA_ORDER)])
    name = f"{person:04d}_v{view}_{picture:02d}.jpg"
    return Entry(name=name, split=split, group=identity, identity=identity, view=view, path="")


def _numbers(entry: Entry) -> tuple[int, int, int]:
    """The numbers of the split that a person is drawn for, of the person in it, and of the picture.

    Of the identity and the name, not of the entry's split: a training person who is held out stays who they are.
    """
    split, _, person = entry.identity.partition("-")
    picture = entry.name.removesuffix(".jpg").rpartition("_")[2]
    return SPLITS.index(split), int(person), int(picture)


@lru_cache(maxsize=16)
def drawn_person(seed: int, split: int, number: int) -> Person:
    """Who a person of a split is; the same for every data set that draws them."""
    rng = np.random.default_rng((seed, split, number))
    proportions = random_proportions(rng)
    look = random_look(rng, proportions.masculine)
    return Person(proportions, look, draw_tiles(look, rng))
