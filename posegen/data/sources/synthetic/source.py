"""The embedded data set: clothed people drawn from a jointed 3D skeleton, with exact joints, visibility and masks.

Everything about an image is a function of the seed, the person and the image's number, so that any task can draw
any image. Every person wears one set of clothes and is seen by five cameras (`scenes.CAMERAS`) in many poses.

The embedded data set in a multi-view form: every instant of a drawn person as all cameras see it at once.

The people are those of `synthetic`: the same bodies, clothes and poses. What differs is what a synchronised recording
has: a group is one instant of one person, and every ordered pair of its views is a pair; the cameras stand still, each
before a scene of its own; the person faces anywhere; all 18 joints are known in every view, as a motion capture knows
them; and one scale holds for all views of an instant, as of cameras equally far away. Our choice throughout.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Entry, Listing, LoadedImage
from posegen.data.sources.synthetic.fabrics import draw_tiles
from posegen.data.sources.synthetic.figure import Figure, View, common_scale, draw_figure
from posegen.data.sources.synthetic.scenes import CAMERAS, backdrop, ground_shadow
from posegen.data.sources.synthetic.skeleton import Proportions, pose_skeleton, random_pose, random_proportions
from posegen.data.sources.synthetic.wardrobe import Look, random_look

DRAWING = 1  # changes whenever an image's drawing does
SPLITS = ("train", "test")
CAMERA_ORDER = (0, 3, 1, 4, 0, 1, 3, 2)  # cameras of a person's images in turn; the side's hides joints: rarer
JPEG_QUALITY = 95
SMALLEST = 16


class Person(NamedTuple):
    """Who is drawn: a body, a look and its surfaces."""

    proportions: Proportions
    look: Look
    tiles: UInt8[np.ndarray, "tiles 128 128 3"]


@dataclass(frozen=True, kw_only=True)
class SyntheticPeople:
    """Drawn people; `size` is height, width in pixels. About 80 % of the images show both shoulders and both hips.

    The default is a small training set that a small model can learn from within minutes: 200 people to learn from and
    20 others to be judged by. Test people do not change with the number of training people.
    """

    name: ClassVar[str] = "synthetic"

    seed: int = 0
    train_people: int = 200
    test_people: int = 20
    images_per_person: int = 16
    size: tuple[int, int] = (64, 32)

    def __post_init__(self) -> None:
        _check(self)

    def listing(self) -> Listing:
        """All images of both splits; groups are people."""
        counts = dict(zip(SPLITS, (self.train_people, self.test_people), strict=True))
        entries = [
            _entry(split, person, image)
            for split, people in counts.items()
            for person in range(people)
            for image in range(self.images_per_person)
        ]
        described = json.dumps({"drawing": DRAWING, **asdict(self)}, sort_keys=True)
        return Listing(entries=entries, fingerprint=hashlib.sha256(described.encode()).hexdigest())

    def load(self, entry: Entry) -> LoadedImage:
        """Draws one image."""
        figure, behind = self.draw(entry)
        pixels = figure.over(behind)
        image = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
        return LoadedImage(image, figure.joints, figure.visible, figure.mask)

    def draw(self, entry: Entry) -> tuple[Figure, np.ndarray]:
        """The figure of an entry and what lies behind it: RGB float (height, width, 3), 0 to 255."""
        split, number, image = _numbers(entry)
        person = drawn_person(self.seed, split, number)
        camera = CAMERAS[int(entry.view)]
        rng = np.random.default_rng((self.seed, split, number, image))
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


def contact_sheet(source: SyntheticPeople, people: int, images: int) -> UInt8[np.ndarray, "height width 3"]:
    """The first images of the first training people, a row a person. RGB."""
    rows = []
    for person in range(people):
        drawn = (source.draw(_entry("train", person, image)) for image in range(images))
        rows.append(np.concatenate([figure.over(behind) for figure, behind in drawn], axis=1))
    return np.concatenate(rows)


def _check(source: SyntheticPeople) -> None:
    fewest = {"train_people": 1, "test_people": 1, "images_per_person": 2, "seed": 0}
    for name, least in fewest.items():
        if getattr(source, name) < least:
            raise ValueError(f"synthetic people: {name} is {getattr(source, name)}; it must be at least {least}")
    if min(source.size) < SMALLEST:
        raise ValueError(f"synthetic people: size (height, width) is {source.size}; both must be at least {SMALLEST}")


def _entry(split: str, person: int, image: int) -> Entry:
    identity, view = f"{split}-{person:04d}", str(CAMERA_ORDER[image % len(CAMERA_ORDER)])
    name = f"{person:04d}_v{view}_{image:02d}.jpg"
    return Entry(name=name, split=split, group=identity, identity=identity, view=view, path="")


def _numbers(entry: Entry) -> tuple[int, int, int]:
    """The numbers of the split that a person is drawn for, of the person in it, and of the image.

    Of the identity and the name, not of the entry's split: a training person who is held out stays who they are.
    """
    split, _, person = entry.identity.partition("-")
    image = entry.name.removesuffix(".jpg").rpartition("_")[2]
    return SPLITS.index(split), int(person), int(image)


@lru_cache(maxsize=16)
def drawn_person(seed: int, split: int, number: int) -> Person:
    """Who a person of a split is; the same for every data set that draws them."""
    rng = np.random.default_rng((seed, split, number))
    proportions = random_proportions(rng)
    look = random_look(rng, proportions.masculine)
    return Person(proportions, look, draw_tiles(look, rng))


HUMAN36M_AZIMUTHS = (69.6, -70.9, 109.5, -115.7)  # degrees: the places of the cameras of Human3.6M's subject S1
PLACE = 0.5  # the stretch of its scene that a camera sees: it stands still


@dataclass(frozen=True, kw_only=True)
class SyntheticViews:
    """Drawn people seen from several sides at once; `size` is height, width in pixels.

    `azimuths` are the cameras' places around the people, in degrees, counter-clockwise seen from above: Human3.6M's by
    default. Test people do not change with the number of training people. Raises ValueError for fewer than two
    cameras, for two in one place, and for numbers out of range.
    """

    name: ClassVar[str] = "synthetic-views"

    seed: int = 0
    train_people: int = 200
    test_people: int = 20
    instants_per_person: int = 4
    azimuths: tuple[float, ...] = HUMAN36M_AZIMUTHS
    size: tuple[int, int] = (64, 32)

    def __post_init__(self) -> None:
        _check_views(self)

    def listing(self) -> Listing:
        """All images of both splits; groups are instants."""
        counts = dict(zip(SPLITS, (self.train_people, self.test_people), strict=True))
        entries = [
            _view_entry(self, split, person, instant, view)
            for split, people in counts.items()
            for person in range(people)
            for instant in range(self.instants_per_person)
            for view in range(len(self.azimuths))
        ]
        described = json.dumps({"drawing": DRAWING, "form": "views", **asdict(self)}, sort_keys=True)
        return Listing(entries=entries, fingerprint=hashlib.sha256(described.encode()).hexdigest())

    def load(self, entry: Entry) -> LoadedImage:
        """Draws one image."""
        figure, behind = self.draw(entry)
        pixels = figure.over(behind)
        image = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
        return LoadedImage(image, figure.joints, np.ones(len(JOINTS), bool), figure.mask)

    def draw(self, entry: Entry) -> tuple[Figure, np.ndarray]:
        """The figure of an entry and what lies behind it: RGB float (height, width, 3), 0 to 255."""
        split, number, instant, view = _view_numbers(entry)
        person = drawn_person(self.seed, split, number)
        rng = np.random.default_rng((self.seed, split, number, instant))
        skeleton = pose_skeleton(person.proportions, random_pose(rng))
        heading, fill = rng.uniform(-180, 180), rng.uniform(0.86, 0.95)
        views = [_view(camera, azimuth, heading, fill) for camera, azimuth in enumerate(self.azimuths)]
        scale = common_scale(skeleton, person.proportions, person.look, views, self.size)
        figure = draw_figure(skeleton, *person, views[view]._replace(scale=scale), self.size)
        behind = backdrop(_scene(view), self.size, place=PLACE)
        ground_shadow(behind, figure.joints[[JOINTS.index("right_ankle"), JOINTS.index("left_ankle")]])
        return figure, behind


def view_sheet(source: SyntheticViews, people: int) -> UInt8[np.ndarray, "height width 3"]:
    """The first instant of the first training people, a row a person and a column a camera. RGB."""
    rows = []
    for person in range(people):
        entries = [_view_entry(source, "train", person, 0, view) for view in range(len(source.azimuths))]
        drawn = [source.draw(entry) for entry in entries]
        rows.append(np.concatenate([figure.over(behind) for figure, behind in drawn], axis=1))
    return np.concatenate(rows)


def _scene(camera: int) -> int:
    """Which of the scenes a camera stands before; where there are more cameras than scenes, some share one."""
    return camera % len(CAMERAS)


def _view(camera: int, azimuth: float, heading: float, fill: float) -> View:
    """What a camera sees of a person who faces `heading`. Both angles are counter-clockwise seen from above, and a
    `View` counts clockwise from the person's front."""
    scene = CAMERAS[_scene(camera)]
    return View(azimuth=heading - azimuth, elevation=scene.elevation, light=scene.light, fill=fill)


def _view_entry(source: SyntheticViews, split: str, person: int, instant: int, view: int) -> Entry:
    identity = f"{split}-{person:04d}"
    return Entry(
        name=f"{person:04d}_t{instant:02d}_v{view}.jpg",
        split=split,
        group=f"{identity}-{instant:02d}",
        identity=identity,
        view=str(view),
        path="",
        azimuth=source.azimuths[view],
    )


def _view_numbers(entry: Entry) -> tuple[int, int, int, int]:
    """The numbers of the split that a person is drawn for, of the person in it, of the instant, and of the camera."""
    split, _, person = entry.identity.partition("-")
    _, instant, view = entry.name.removesuffix(".jpg").split("_")
    return SPLITS.index(split), int(person), int(instant[1:]), int(view[1:])


def _check_views(source: SyntheticViews) -> None:
    fewest = {"train_people": 1, "test_people": 1, "instants_per_person": 1, "seed": 0}
    for name, least in fewest.items():
        if getattr(source, name) < least:
            raise ValueError(f"synthetic views: {name} is {getattr(source, name)}; it must be at least {least}")
    places = {round(azimuth % 360, 3) for azimuth in source.azimuths if math.isfinite(azimuth)}
    if len(source.azimuths) < 2 or len(places) < len(source.azimuths):
        raise ValueError(
            f"synthetic views: azimuths are {source.azimuths}; expected the different places of at least two cameras, "
            "in degrees, such as 0,90,180"
        )
    if min(source.size) < SMALLEST:
        raise ValueError(f"synthetic views: size (height, width) is {source.size}; both must be at least {SMALLEST}")
