"""Five cameras, each with its own scene, light and direction towards the people; drawn with OpenCV.

Scenes are wider than an image: an image shows a stretch of its camera's scene. They are kept simple, so that a small
model can learn them, and no two cameras see a person from mirrored directions, so that a mirrored image is not taken
for another camera's. Our choice throughout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float

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


def backdrop(view: int, size: tuple[int, int], offset: float) -> Float[np.ndarray, "height width 3"]:
    """Return the stretch of a camera's scene at `offset` (0 to 1) behind an image of `size`: RGB, 0 to 255."""
    height, width = size
    scene = _scaled_scene(view, height, width)
    left = round(offset * (scene.shape[1] - width))
    return scene[:, left : left + width].copy()


def ground_shadow(backdrop: Float[np.ndarray, "height width 3"], feet: Float[np.ndarray, "2 2"]) -> None:
    """Darken the backdrop in place around both feet (x, y in pixels)."""
    height, width = backdrop.shape[:2]
    shade = np.zeros((height, width), np.float32)
    (x, y), apart = feet.mean(axis=0), float(np.abs(feet[0, 0] - feet[1, 0]))
    axes = (round(0.075 * height + 0.6 * apart), max(1, round(0.022 * height)))
    cv2.ellipse(shade, (round(float(x)), round(float(y + 0.025 * height))), axes, 0, 0, 360, 1.0, -1)
    backdrop *= (1 - 0.38 * cv2.GaussianBlur(shade, (0, 0), 0.016 * height))[..., None]


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
