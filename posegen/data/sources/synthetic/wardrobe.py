"""Random looks of people: skin, hair, clothes, shoes and a rucksack. Palettes are our choice.

Colours are RGB, 0 to 255.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Colour = tuple[float, float, float]

SKINS = (
    (255, 219, 190), (243, 198, 165), (230, 180, 140), (205, 150, 108), (170, 115, 78), (130, 84, 56), (96, 62, 44),
)  # fmt: skip
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
SOCKS = ((240, 240, 240), (50, 50, 56), (200, 70, 60))
BELTS = ((60, 42, 30), (30, 30, 32), (120, 84, 50))
SOLES = ((248, 248, 245), (248, 248, 245), (60, 52, 48), (200, 170, 120))

Pattern = Literal["plain", "stripes", "pinstripes", "checks", "dots", "block"]
Print = Literal["", "circle", "star", "heart", "triangle", "number", "band", "diamond"]
Front = Literal["pullover", "buttons", "open"]
Neckline = Literal["round", "v", "collar", "hood"]
BottomKind = Literal["trousers", "shorts", "skirt", "dress"]
HairStyle = Literal["buzz", "short", "parted", "bob", "long", "bun", "ponytail", "curly", "cap"]
Option = TypeVar("Option")

PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "pinstripes", "checks", "dots", "block")
PRINTS: tuple[Print, ...] = ("circle", "star", "heart", "triangle", "number", "band", "diamond")
FRONTS: tuple[Front, ...] = ("pullover", "buttons", "open")
PATTERN_CHANCES: dict[Front, tuple[float, ...]] = {
    "pullover": (0.42, 0.26, 0, 0.06, 0.08, 0.18),
    "buttons": (0.3, 0.08, 0.2, 0.34, 0.08, 0),
    "open": (0.8, 0, 0.05, 0.15, 0, 0),
}
NECKLINES: dict[Front, tuple[Neckline, ...]] = {
    "pullover": ("round", "round", "v", "hood"),
    "buttons": ("collar",),
    "open": ("collar", "hood"),
}
SLEEVES = (0.0, 0.24, 0.28, 0.32, 0.7, 0.97, 0.97, 0.97)
BOTTOM_KINDS: tuple[BottomKind, ...] = ("trousers", "shorts", "skirt", "dress")
LENGTHS: dict[BottomKind, tuple[float, float]] = {
    "trousers": (0.94, 1.0),
    "shorts": (0.28, 0.46),
    "skirt": (0.24, 0.62),
    "dress": (0.26, 0.6),
}
LONGER_STYLES: tuple[HairStyle, ...] = ("bob", "long", "bun", "ponytail", "long", "curly", "cap")
SHORTER_STYLES: tuple[HairStyle, ...] = ("buzz", "short", "short", "parted", "parted", "curly", "cap")


@dataclass(frozen=True, kw_only=True)
class Cloth:
    """A fabric: its ground colour, the pattern's colour, and the pattern's period in metres."""

    ground: Colour
    figure: Colour = (255, 255, 255)
    pattern: Pattern = "plain"
    period: float = 0.08


@dataclass(frozen=True, kw_only=True)
class Top:
    """The upper garment. `sleeve` is the share of the arm that it covers."""

    cloth: Cloth
    inner: Colour  # of the garment under an open front
    front: Front
    neckline: Neckline
    chest: Print
    chest_colour: Colour
    sleeve: float
    tucked: bool
    coat: bool  # an open jacket that reaches to the middle of the thighs


@dataclass(frozen=True, kw_only=True)
class Bottom:
    """The lower garment. `length` is the share of the leg that it covers; a dress takes the top's cloth."""

    kind: BottomKind
    cloth: Cloth
    length: float
    leg_width: float  # 0 slim to 1 wide
    tights: Colour  # the legs below a skirt; the skin's colour where bare
    belt: Colour


@dataclass(frozen=True, kw_only=True)
class Look:
    """One person in one set of clothes."""

    skin: Colour
    hair: Colour
    hair_style: HairStyle
    beard: bool
    cap: Colour
    top: Top
    bottom: Bottom
    shoes: Colour
    soles: Colour
    socks: Colour
    boots: bool
    pack: Colour | None  # a rucksack


def random_look(rng: np.random.Generator, masculine: float) -> Look:
    """Draw a look. `masculine` (0 to 1) shifts the odds of hair styles and clothes without deciding them."""
    feminine = bool(rng.uniform() > 0.15 + 0.7 * masculine)
    skin = _between(rng, SKINS)
    return Look(
        skin=skin,
        hair=_near(rng, HAIRS, 0.02),
        hair_style=_pick(rng, LONGER_STYLES if feminine else SHORTER_STYLES),
        beard=not feminine and bool(rng.uniform() < 0.3),
        cap=_near(rng, TOPS),
        top=_top(rng),
        bottom=_bottom(rng, feminine, skin),
        shoes=_near(rng, SHOES),
        soles=_near(rng, SOLES, 0.01),
        socks=_near(rng, SOCKS, 0.02),
        boots=bool(rng.uniform() < 0.15),
        pack=_near(rng, TOPS) if rng.uniform() < 0.18 else None,
    )


def _top(rng: np.random.Generator) -> Top:
    """A pullover or T-shirt, a buttoned shirt, or an open jacket over something."""
    front = _pick(rng, FRONTS, (0.6, 0.2, 0.2))
    ground = _near(rng, TOPS)
    pattern = _pick(rng, PATTERNS, PATTERN_CHANCES[front])
    printed = front == "pullover" and pattern == "plain" and rng.uniform() < 0.75
    return Top(
        cloth=Cloth(ground=ground, figure=_unlike(rng, ground), pattern=pattern, period=rng.uniform(0.07, 0.13)),
        inner=_unlike(rng, ground),
        front=front,
        neckline=_pick(rng, NECKLINES[front]),
        chest=_pick(rng, PRINTS) if printed else "",
        chest_colour=_unlike(rng, ground),
        sleeve=0.97 if front == "open" else _pick(rng, SLEEVES),
        tucked=front != "open" and bool(rng.uniform() < 0.3),
        coat=front == "open" and bool(rng.uniform() < 0.35),
    )


def _bottom(rng: np.random.Generator, feminine: bool, skin: Colour) -> Bottom:
    """Trousers, shorts, a skirt, or a dress; mostly of plain cloth."""
    kind = _pick(rng, BOTTOM_KINDS, (0.5, 0.14, 0.22, 0.14) if feminine else (0.78, 0.22, 0, 0))
    ground = _near(rng, BOTTOMS)
    pattern = _pick(rng, PATTERNS, (0.87, 0, 0.06, 0.07, 0, 0))
    return Bottom(
        kind=kind,
        cloth=Cloth(ground=ground, figure=_unlike(rng, ground), pattern=pattern, period=rng.uniform(0.09, 0.14)),
        length=rng.uniform(*LENGTHS[kind]),
        leg_width=rng.uniform(0, 1),
        tights=skin if rng.uniform() < 0.6 else (44.0, 42.0, 50.0),
        belt=_near(rng, BELTS, 0.02),
    )


def _pick(rng: np.random.Generator, options: Sequence[Option], chances: Sequence[float] | None = None) -> Option:
    return options[int(rng.choice(len(options), p=chances))]


def _near(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 0.035) -> Colour:
    """A colour of the palette, moved a little in hue, saturation and value."""
    red, green, blue = (channel / 255 for channel in palette[rng.integers(len(palette))])
    moved = rng.normal(0, (0.3 * spread, spread, spread))
    hue, saturation, value = np.array(colorsys.rgb_to_hsv(red, green, blue)) + moved
    return _scaled(colorsys.hsv_to_rgb(hue % 1, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0.08, 1))))


def _between(rng: np.random.Generator, palette: tuple[Colour, ...]) -> Colour:
    """A colour somewhere along the palette, between two neighbours."""
    position = rng.uniform(0, len(palette) - 1.001)
    low, share = int(position), position % 1
    return _scaled((np.array(palette[low]) * (1 - share) + np.array(palette[low + 1]) * share) / 255)


def _unlike(rng: np.random.Generator, colour: Colour) -> Colour:
    """A colour of the tops' palette that stands out from the given one: the furthest of four."""
    choices = [_near(rng, TOPS) for _ in range(4)]
    return max(choices, key=lambda choice: float(np.abs(np.subtract(choice, colour)).sum()))


def _scaled(channels) -> Colour:
    red, green, blue = (float(channel) * 255 for channel in channels)
    return red, green, blue
