"""The embedded data sets: clothed people drawn from jointed 3D skeletons, with exact joints, visibility and masks.

An image is a function of the seed, the person and the image's index, so that any task can draw any image. Every person
wears one set of clothes.

- `SyntheticPeople`: each person is seen by five cameras (`scenes.CAMERAS`) in many poses.
- `SyntheticViews`: the same bodies, clothes and poses as a synchronised recording has them (our choice throughout). A
  group is one instant of one person, and every ordered pair of its views is a pair. Each camera stands still before a
  scene of its own; the person faces anywhere. All 18 joints are known in every view, as in motion capture. One scale
  holds for all views of an instant, as with cameras equally far away.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Entry, Listing, LoadedImage
from posegen.data.sources.synthetic.figure import Figure, View, common_scale, draw_figure
from posegen.data.sources.synthetic.skeleton import Proportions, pose_skeleton, random_pose, random_proportions
from posegen.data.sources.synthetic.wardrobe import Look, draw_tiles, random_look

HEIGHT = 256  # rows of a scene before it is scaled to the height of the images
WIDTH = 448


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A scene with its light and the direction from which people are seen (degrees, as in `figure.View`)."""

    draw: Callable[[np.random.Generator], np.ndarray]
    azimuth: float
    elevation: float
    light: tuple[float, float, float]
    tint: tuple[float, float, float]


def plaza(rng: np.random.Generator) -> np.ndarray:
    """Draw a light wall with panels over grey paving."""
    scene = _walls((206, 200, 188), (150, 150, 152), floor=0.56)
    for x in range(-20, WIDTH, 64):
        cv2.line(scene, (x, 0), (x, 142), (184, 178, 166), 2)
    cv2.rectangle(scene, (0, 132), (WIDTH, 143), (150, 142, 130), -1)
    return _paving(scene, 144, (128, 128, 132))


def garden(rng: np.random.Generator) -> np.ndarray:
    """Draw trees and a hedge behind a path."""
    scene = _walls((176, 208, 226), (196, 182, 150), floor=0.62)
    for _ in range(44):
        place = (int(rng.integers(0, WIDTH)), int(rng.integers(30, 110)))
        green = np.array((70, 118, 62)) + rng.integers(-22, 26)
        cv2.circle(scene, place, int(rng.integers(16, 34)), green.tolist(), -1)
    cv2.rectangle(scene, (0, 104), (WIDTH, 158), (62, 100, 54), -1)
    return cv2.GaussianBlur(scene, (0, 0), 3.0)


def brickwork(rng: np.random.Generator) -> np.ndarray:
    """Draw a brick wall over asphalt."""
    scene = _walls((166, 98, 76), (98, 98, 104), floor=0.6)
    for row, y in enumerate(range(0, 154, 14)):
        cv2.line(scene, (0, y), (WIDTH, y), (190, 150, 130), 1)
        for x in range(-16 + 16 * (row % 2), WIDTH, 32):
            cv2.line(scene, (x, y), (x, y + 14), (190, 150, 130), 1)
    cv2.rectangle(scene, (0, 150), (WIDTH, 162), (172, 168, 160), -1)
    return scene


def glass_hall(rng: np.random.Generator) -> np.ndarray:
    """Draw tall windows over a polished floor."""
    scene = _walls((116, 146, 164), (182, 170, 156), floor=0.58)
    for x in range(-30, WIDTH, 72):
        cv2.rectangle(scene, (x, 10), (x + 56, 140), (172, 206, 220), -1)
        cv2.rectangle(scene, (x, 70), (x + 56, 75), (96, 112, 124), -1)
    return _paving(cv2.GaussianBlur(scene, (0, 0), 1.5), 148, (164, 152, 138))


def street(rng: np.random.Generator) -> np.ndarray:
    """Draw house fronts across a street with a crossing."""
    scene = _walls((198, 174, 140), (112, 112, 118), floor=0.64)
    for x in range(0, WIDTH, 112):
        shade = np.array((198, 174, 140)) + rng.integers(-34, 24, 3)
        cv2.rectangle(scene, (x, 0), (x + 111, 150), shade.tolist(), -1)
        for left in (14, 64):
            cv2.rectangle(scene, (x + left, 30), (x + left + 32, 96), (74, 86, 104), -1)
    cv2.rectangle(scene, (0, 148), (WIDTH, 166), (176, 172, 164), -1)
    for x in range(-10, WIDTH, 60):
        cv2.fillPoly(scene, [np.array([(x, 200), (x + 26, 200), (x + 20, 256), (x - 14, 256)])], (206, 206, 204))
    return cv2.GaussianBlur(scene, (0, 0), 1.2)


CAMERAS = (
    Camera(draw=plaza, azimuth=0.0, elevation=5.0, light=(-0.5, 0.5, 0.7), tint=(1.0, 1.0, 1.0)),
    Camera(draw=garden, azimuth=40.0, elevation=8.0, light=(0.5, 0.6, 0.6), tint=(1.03, 1.0, 0.94)),
    Camera(draw=brickwork, azimuth=90.0, elevation=4.0, light=(-0.2, 0.7, 0.7), tint=(0.98, 0.98, 1.0)),
    Camera(draw=glass_hall, azimuth=180.0, elevation=6.0, light=(0.4, 0.5, 0.75), tint=(0.97, 1.0, 1.03)),
    Camera(draw=street, azimuth=220.0, elevation=10.0, light=(-0.6, 0.5, 0.6), tint=(1.02, 1.0, 0.97)),
)


@lru_cache(maxsize=32)
def _scaled_scene(view: int, height: int, width: int) -> np.ndarray:
    """A camera's scene at the images' height, at least half as wide again as an image."""
    camera = CAMERAS[view]
    scene = camera.draw(np.random.default_rng(view))
    columns = max(round(WIDTH * height / HEIGHT), round(1.5 * width))
    small = cv2.resize(scene, (columns, height), interpolation=cv2.INTER_AREA if height < HEIGHT else cv2.INTER_LINEAR)
    return np.clip(small * np.array(camera.tint, np.float32), 0, 255)


def _walls(wall: tuple[int, int, int], ground: tuple[int, int, int], floor: float) -> np.ndarray:
    """A wall over a ground, both brighter towards the top."""
    scene = np.empty((HEIGHT, WIDTH, 3), np.float32)
    edge = round(floor * HEIGHT)
    scene[:edge], scene[edge:] = wall, ground
    return scene * np.linspace(1.06, 0.92, HEIGHT, dtype=np.float32)[:, None, None]


def _paving(scene: np.ndarray, top: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw the joints between slabs: level lines closer together towards the horizon, and lines that run to it."""
    for share in (0.06, 0.2, 0.42, 0.72):
        y = round(top + share * (HEIGHT - top))
        cv2.line(scene, (0, y), (WIDTH, y), colour, 1)
    for x in range(-WIDTH, 2 * WIDTH, 56):
        cv2.line(scene, (x, top), (round(WIDTH / 2 + 1.8 * (x - WIDTH / 2)), HEIGHT), colour, 1)
    return scene


DRAWING = 1  # increment whenever the drawing of an image changes
SPLITS = ("train", "test")
CAMERA_ORDER = (0, 3, 1, 4, 0, 1, 3, 2)  # of a person's images in turn; the side view hides joints, so it is rarer
SMALLEST = 16
HUMAN36M_AZIMUTHS = (69.6, -70.9, 109.5, -115.7)  # degrees: the cameras of Human3.6M's subject S1
STILL = 0.5  # the stretch of its scene that a camera of `SyntheticViews` sees


class Person(NamedTuple):
    """A body, a look and its textures."""

    proportions: Proportions
    look: Look
    tiles: UInt8[np.ndarray, "tiles 128 128 3"]


@lru_cache(maxsize=16)
def drawn_person(seed: int, split: int, number: int) -> Person:
    """Return a person of a split; the same in every data set with this seed."""
    rng = np.random.default_rng((seed, split, number))
    proportions = random_proportions(rng)
    look = random_look(rng, proportions.masculine)
    return Person(proportions, look, draw_tiles(look, rng))


@dataclass(frozen=True, kw_only=True)
class SyntheticPeople:
    """Drawn people; `size` is (height, width) in pixels. About 80 % of the images show both shoulders and both hips.

    The default is a small training set that a small model learns within minutes: 200 people for training and 20 others
    for testing. Test people do not change with the number of training people. Raises ValueError for numbers out of
    range.
    """

    name: ClassVar[str] = "synthetic"

    seed: int = 0
    train_people: int = 200
    test_people: int = 20
    images_per_person: int = 16
    size: tuple[int, int] = (64, 32)

    def __post_init__(self) -> None:
        _check(self, "synthetic people", {"train_people": 1, "test_people": 1, "images_per_person": 2, "seed": 0})

    def listing(self) -> Listing:
        """List all images of both splits; groups are people."""
        entries = [
            Entry(
                name=f"{person:04d}_v{view}_{image:02d}.jpg",
                split=split,
                group=f"{split}-{person:04d}",
                identity=f"{split}-{person:04d}",
                view=str(view),
                path="",
            )
            for split, people in zip(SPLITS, (self.train_people, self.test_people), strict=True)
            for person in range(people)
            for image, view in zip(range(self.images_per_person), itertools.cycle(CAMERA_ORDER), strict=False)
        ]
        return Listing(entries=entries, fingerprint=_fingerprint(asdict(self)))

    def load(self, entry: Entry) -> LoadedImage:
        """Draw one image."""
        figure, behind = self.draw(entry)
        return LoadedImage(_jpeg(figure, behind), figure.joints, figure.visible, figure.mask)

    def draw(self, entry: Entry) -> tuple[Figure, np.ndarray]:
        """Return the figure of an entry and its backdrop: RGB float (height, width, 3), 0 to 255."""
        split, number = _person_of(entry)
        image = int(entry.name.removesuffix(".jpg").rpartition("_")[2])
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
        return figure, _backdrop(figure, int(entry.view), self.size, offset=rng.uniform())


@dataclass(frozen=True, kw_only=True)
class SyntheticViews:
    """Drawn people seen from several sides at once; `size` is (height, width) in pixels.

    `azimuths` are the directions of the cameras around the people, in degrees, counter-clockwise seen from above;
    Human3.6M's by default. Test people do not change with the number of training people. Raises ValueError for fewer
    than two cameras, for two with the same azimuth, and for numbers out of range.
    """

    name: ClassVar[str] = "synthetic-views"

    seed: int = 0
    train_people: int = 200
    test_people: int = 20
    instants_per_person: int = 4
    azimuths: tuple[float, ...] = HUMAN36M_AZIMUTHS
    size: tuple[int, int] = (64, 32)

    def __post_init__(self) -> None:
        _check(self, "synthetic views", {"train_people": 1, "test_people": 1, "instants_per_person": 1, "seed": 0})
        distinct = {round(azimuth % 360, 3) for azimuth in self.azimuths if math.isfinite(azimuth)}
        if len(self.azimuths) < 2 or len(distinct) < len(self.azimuths):
            raise ValueError(
                f"synthetic views: azimuths are {self.azimuths}; expected the different places of at least two "
                "cameras, in degrees, such as 0,90,180"
            )

    def listing(self) -> Listing:
        """List all images of both splits; groups are instants."""
        entries = [
            Entry(
                name=f"{person:04d}_t{instant:02d}_v{view}.jpg",
                split=split,
                group=f"{split}-{person:04d}-{instant:02d}",
                identity=f"{split}-{person:04d}",
                view=str(view),
                path="",
                azimuth=azimuth,
            )
            for split, people in zip(SPLITS, (self.train_people, self.test_people), strict=True)
            for person in range(people)
            for instant in range(self.instants_per_person)
            for view, azimuth in enumerate(self.azimuths)
        ]
        return Listing(entries=entries, fingerprint=_fingerprint({"form": "views", **asdict(self)}))

    def load(self, entry: Entry) -> LoadedImage:
        """Draw one image."""
        figure, behind = self.draw(entry)
        return LoadedImage(_jpeg(figure, behind), figure.joints, np.ones(len(JOINTS), bool), figure.mask)

    def draw(self, entry: Entry) -> tuple[Figure, np.ndarray]:
        """Return the figure of an entry and its backdrop: RGB float (height, width, 3), 0 to 255."""
        split, number = _person_of(entry)
        instant, view = (int(part[1:]) for part in entry.name.removesuffix(".jpg").split("_")[1:])
        person = drawn_person(self.seed, split, number)
        rng = np.random.default_rng((self.seed, split, number, instant))
        skeleton = pose_skeleton(person.proportions, random_pose(rng))
        heading, fill = rng.uniform(-180, 180), rng.uniform(0.86, 0.95)
        scenes = zip(self.azimuths, itertools.cycle(CAMERAS), strict=False)  # where cameras are more, some share one
        views = [  # a `View` counts clockwise from the person's front, headings and azimuths the other way round
            View(azimuth=heading - azimuth, elevation=scene.elevation, light=scene.light, fill=fill)
            for azimuth, scene in scenes
        ]
        scale = common_scale(skeleton, person.proportions, person.look, views, self.size)
        figure = draw_figure(skeleton, *person, views[view]._replace(scale=scale), self.size)
        return figure, _backdrop(figure, view % len(CAMERAS), self.size, offset=STILL)


def _check(source: SyntheticPeople | SyntheticViews, title: str, fewest: dict[str, int]) -> None:
    for name, least in fewest.items():
        if getattr(source, name) < least:
            raise ValueError(f"{title}: {name} is {getattr(source, name)}; it must be at least {least}")
    if min(source.size) < SMALLEST:
        raise ValueError(f"{title}: size (height, width) is {source.size}; both must be at least {SMALLEST}")


def _fingerprint(settings: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps({"drawing": DRAWING, **settings}, sort_keys=True).encode()).hexdigest()


def _person_of(entry: Entry) -> tuple[int, int]:
    """Indices of the split that a person is drawn for and of the person within it.

    They come from the identity, not from the entry's split: a held-out training person keeps their looks.
    """
    split, _, person = entry.identity.partition("-")
    return SPLITS.index(split), int(person)


def _backdrop(figure: Figure, view: int, size: tuple[int, int], *, offset: float) -> np.ndarray:
    """The stretch of a camera's scene at `offset` (0 to 1) with the figure's shadow around both feet."""
    height, width = size
    scene = _scaled_scene(view, height, width)
    left = round(offset * (scene.shape[1] - width))
    feet = figure.joints[[JOINTS.index("right_ankle"), JOINTS.index("left_ankle")]]
    shade = np.zeros((height, width), np.float32)
    (x, y), apart = feet.mean(axis=0), float(np.abs(feet[0, 0] - feet[1, 0]))
    axes = (round(0.075 * height + 0.6 * apart), max(1, round(0.022 * height)))
    cv2.ellipse(shade, (round(float(x)), round(float(y + 0.025 * height))), axes, 0, 0, 360, 1.0, -1)
    return scene[:, left : left + width] * (1 - 0.38 * cv2.GaussianBlur(shade, (0, 0), 0.016 * height))[..., None]


def _jpeg(figure: Figure, behind: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(figure.over(behind), quality=95, colorspace="RGB", colorsubsampling="444")
