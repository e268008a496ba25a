"""How a person looks: skin, hair, clothes, shoes and what is carried, drawn at random. Palettes are our choice.

Colours are RGB, 0 to 255.
"""

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]

SKINS = ((255, 219, 190), (243, 198, 165), (230, 180, 140), (205, 150, 108), (170, 115, 78), (130, 84, 56), (96, 62, 44))
HAIRS = (
    (28, 24, 24), (45, 32, 26), (74, 48, 32), (110, 70, 42), (150, 104, 60), (205, 165, 100),
    (232, 205, 145), (142, 58, 32), (150, 150, 152), (60, 50, 48),
)  # fmt: skip
TOPS = (
    (214, 48, 49), (178, 34, 52), (240, 120, 40), (250, 195, 60), (255, 225, 130), (60, 150, 80), (36, 98, 72),
    (140, 190, 90), (45, 125, 210), (28, 60, 130), (110, 190, 235), (30, 160, 165), (125, 75, 170), (190, 150, 215),
    (235, 120, 160), (250, 190, 200), (245, 245, 240), (225, 215, 195), (165, 165, 168), (92, 96, 104), (40, 42, 48),
    (120, 82, 56), (196, 160, 120), (100, 110, 70),
)  # fmt: skip
BOTTOMS = (
    (52, 74, 118), (86, 116, 162), (34, 44, 70), (38, 38, 42), (72, 74, 80), (150, 150, 152), (186, 160, 122),
    (118, 96, 72), (90, 98, 66), (112, 40, 52), (226, 222, 212), (58, 92, 92), (150, 88, 52),
)  # fmt: skip
SHOES = ((240, 240, 238), (36, 36, 40), (120, 76, 46), (190, 50, 50), (48, 80, 150), (150, 150, 155), (84, 60, 44))
SOLES = ((248, 248, 245), (248, 248, 245), (60, 52, 48), (200, 170, 120))

Pattern = Literal["plain", "stripes", "pinstripes", "checks", "dots", "block"]
Print = Literal["", "circle", "star", "heart", "triangle", "number", "band", "diamond"]
Front = Literal["pullover", "buttons", "open"]
Neckline = Literal["round", "v", "collar", "hood"]
Bottom = Literal["trousers", "shorts", "skirt", "dress"]
Hair = Literal["buzz", "short", "parted", "bob", "long", "bun", "ponytail", "curly", "cap"]


@dataclass(frozen=True, kw_only=True)
class Cloth:
    """A fabric: its ground colour, the pattern's colour, and the pattern's period in metres."""

    ground: Colour
    figure: Colour = (255, 255, 255)
    pattern: Pattern = "plain"
    period: float = 0.08


@dataclass(frozen=True, kw_only=True)
class Look:
    """One person in one set of clothes. Lengths are shares of the limb: sleeves of the arm, bottoms of the leg."""

    skin: Colour
    hair: Colour
    hair_style: Hair
    beard: bool
    cap: Colour
    top: Cloth
    inner: Colour  # what is seen under an open front
    front: Front
    neckline: Neckline
    chest: Print
    chest_colour: Colour
    sleeve: float
    tucked: bool
    coat: bool  # an open jacket that reaches to the middle of the thighs
    bottom: Bottom
    bottom_cloth: Cloth
    bottom_length: float
    leg_width: float  # 0 slim to 1 wide
    tights: Colour  # the legs below a skirt; the skin's colour where bare
    belt: Colour
    shoes: Colour
    soles: Colour
    socks: Colour
    boots: bool
    pack: Colour | None  # a rucksack


def random_look(rng: np.random.Generator, masculine: float) -> Look:
    """One look. `masculine` (0 to 1) leans the hair and the clothes one way or the other without deciding them."""
    feminine = bool(rng.uniform() > 0.15 + 0.7 * masculine)
    skin = _between(rng, SKINS)
    return Look(
        skin=skin,
        hair=_near(rng, HAIRS, 0.02),
        hair_style=_hair_style(rng, feminine),
        beard=not feminine and bool(rng.uniform() < 0.3),
        cap=_near(rng, TOPS),
        **_top(rng),
        **_bottom(rng, feminine, skin),
        belt=_near(rng, ((60, 42, 30), (30, 30, 32), (120, 84, 50)), 0.02),
        shoes=_near(rng, SHOES),
        soles=_near(rng, SOLES, 0.01),
        socks=_near(rng, ((240, 240, 240), (50, 50, 56), (200, 70, 60)), 0.02),
        boots=bool(rng.uniform() < 0.15),
        pack=_near(rng, TOPS) if rng.uniform() < 0.18 else None,
    )


def _hair_style(rng: np.random.Generator, feminine: bool) -> Hair:
    styles = ("bob", "long", "bun", "ponytail", "long", "curly", "cap") if feminine else _SHORT_STYLES
    return styles[rng.integers(len(styles))]


_SHORT_STYLES: tuple[Hair, ...] = ("buzz", "short", "short", "parted", "parted", "curly", "cap")


def _top(rng: np.random.Generator) -> dict:
    """A pullover or T-shirt, a buttoned shirt, or an open jacket over something."""
    front = str(rng.choice(("pullover", "buttons", "open"), p=(0.6, 0.2, 0.2)))
    ground = _near(rng, TOPS)
    patterns = ("plain", "stripes", "pinstripes", "checks", "dots", "block")
    chances = {"pullover": (0.42, 0.26, 0, 0.06, 0.08, 0.18), "buttons": (0.3, 0.08, 0.2, 0.34, 0.08, 0)}
    pattern = str(rng.choice(patterns, p=chances.get(front, (0.8, 0, 0.05, 0.15, 0, 0))))
    printed = front == "pullover" and pattern == "plain" and rng.uniform() < 0.75
    prints = ("circle", "star", "heart", "triangle", "number", "band", "diamond")
    necklines = {"pullover": ("round", "round", "v", "hood"), "buttons": ("collar",), "open": ("collar", "hood")}
    sleeves = (0.97, 0.97, 0.97) if front == "open" else (0.0, 0.24, 0.28, 0.32, 0.7, 0.97, 0.97, 0.97)
    return {
        "top": Cloth(ground=ground, figure=_unlike(rng, ground), pattern=pattern, period=rng.uniform(0.07, 0.13)),  # type: ignore[arg-type]
        "inner": _unlike(rng, ground),
        "front": front,
        "neckline": necklines[front][rng.integers(len(necklines[front]))],
        "chest": prints[rng.integers(len(prints))] if printed else "",
        "chest_colour": _unlike(rng, ground),
        "sleeve": sleeves[rng.integers(len(sleeves))],
        "tucked": front != "open" and bool(rng.uniform() < 0.3),
        "coat": front == "open" and bool(rng.uniform() < 0.35),
    }


def _bottom(rng: np.random.Generator, feminine: bool, skin: Colour) -> dict:
    """Trousers, shorts, a skirt, or a dress, which takes the top's cloth."""
    chances = (0.5, 0.14, 0.22, 0.14) if feminine else (0.78, 0.22, 0, 0)
    bottom = str(rng.choice(("trousers", "shorts", "skirt", "dress"), p=chances))
    ground = _near(rng, BOTTOMS)
    plain = rng.uniform() < 0.8
    cloth = Cloth(
        ground=ground,
        figure=_unlike(rng, ground),
        pattern="plain" if plain else str(rng.choice(("checks", "pinstripes"))),  # type: ignore[arg-type]
        period=rng.uniform(0.09, 0.14),
    )
    lengths = {"trousers": (0.94, 1.0), "shorts": (0.28, 0.46), "skirt": (0.24, 0.62), "dress": (0.26, 0.6)}
    return {
        "bottom": bottom,
        "bottom_cloth": cloth,
        "bottom_length": rng.uniform(*lengths[bottom]),
        "leg_width": rng.uniform(0, 1),
        "tights": skin if rng.uniform() < 0.6 else (44.0, 42.0, 50.0),
    }


def _near(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 0.035) -> Colour:
    """A colour of the palette, moved a little in hue, saturation and value."""
    red, green, blue = (channel / 255 for channel in palette[rng.integers(len(palette))])
    hue, saturation, value = np.array(colorsys.rgb_to_hsv(red, green, blue)) + rng.normal(0, (0.3 * spread, spread, spread))
    return _scaled(colorsys.hsv_to_rgb(hue % 1, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0.08, 1))))


def _between(rng: np.random.Generator, palette: tuple[Colour, ...]) -> Colour:
    """A colour somewhere along the palette, between two neighbours."""
    place = rng.uniform(0, len(palette) - 1.001)
    low, share = int(place), place % 1
    return _scaled((np.array(palette[low]) * (1 - share) + np.array(palette[low + 1]) * share) / 255)


def _unlike(rng: np.random.Generator, colour: Colour) -> Colour:
    """A colour of the tops' palette that stands out from the given one: the furthest of four."""
    choices = [_near(rng, TOPS) for _ in range(4)]
    return max(choices, key=lambda choice: float(np.abs(np.subtract(choice, colour)).sum()))


def _scaled(channels) -> Colour:
    red, green, blue = (float(channel) * 255 for channel in channels)
    return red, green, blue
