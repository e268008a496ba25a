"""Random looks of people, and their textures as flat tiles, drawn with OpenCV. Palettes are our choice.

Colours are RGB, 0 to 255. A tile is 128x128, uint8. Its columns go around the body: 0 is the back, 32 the person's
right, 64 the front and 96 the person's left; its rows go along the part, from the trunk outwards or from the top down.
`EXTENTS` are the metres that a tile covers in both directions, so that a stripe is as wide on a chest as on a sleeve.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

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
    low, share = divmod(rng.uniform(0, len(SKINS) - 1.001), 1)  # between two neighbours
    skin = _scaled((np.array(SKINS[int(low)]) * (1 - share) + np.array(SKINS[int(low) + 1]) * share) / 255)
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
    front = _pick(rng, get_args(Front), (0.6, 0.2, 0.2))
    ground = _near(rng, TOPS)
    pattern = _pick(rng, get_args(Pattern), PATTERN_CHANCES[front])
    printed = front == "pullover" and pattern == "plain" and rng.uniform() < 0.75
    return Top(
        cloth=Cloth(ground=ground, figure=_unlike(rng, ground), pattern=pattern, period=rng.uniform(0.07, 0.13)),
        inner=_unlike(rng, ground),
        front=front,
        neckline=_pick(rng, NECKLINES[front]),
        chest=_pick(rng, get_args(Print)[1:]) if printed else "",
        chest_colour=_unlike(rng, ground),
        sleeve=0.97 if front == "open" else _pick(rng, SLEEVES),
        tucked=front != "open" and bool(rng.uniform() < 0.3),
        coat=front == "open" and bool(rng.uniform() < 0.35),
    )


def _bottom(rng: np.random.Generator, feminine: bool, skin: Colour) -> Bottom:
    """Trousers, shorts, a skirt, or a dress; mostly of plain cloth."""
    kind = _pick(rng, get_args(BottomKind), (0.5, 0.14, 0.22, 0.14) if feminine else (0.78, 0.22, 0, 0))
    ground = _near(rng, BOTTOMS)
    pattern = _pick(rng, get_args(Pattern), (0.87, 0, 0.06, 0.07, 0, 0))
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


def _unlike(rng: np.random.Generator, colour: Colour) -> Colour:
    """A colour of the tops' palette that stands out from the given one: the furthest of four."""
    return max((_near(rng, TOPS) for _ in range(4)), key=lambda near: float(np.abs(np.subtract(near, colour)).sum()))


def _scaled(channels) -> Colour:
    red, green, blue = (float(channel) * 255 for channel in channels)
    return red, green, blue


SIDE = 128
FRONT = SIDE // 2
EXTENTS = {  # metres around, metres along
    "torso": (0.96, 0.64),
    "sleeve": (0.32, 0.54),
    "pelvis": (0.96, 0.32),
    "leg": (0.48, 0.84),
    "skirt": (1.3, 0.6),
    "shoe": (0.3, 0.27),
    "head": (0.56, 0.24),
    "hair": (0.6, 0.3),
    "skin": (0.2, 0.2),
    "pack": (0.8, 0.42),
}
TILES = tuple(EXTENTS)


def draw_tiles(look: Look, rng: np.random.Generator) -> UInt8[np.ndarray, "tiles 128 128 3"]:
    """Draw all tiles of a look in the order of `TILES`. The generator only places folds and locks of hair."""
    skirt = look.top.cloth if look.bottom.kind == "dress" or look.top.coat else look.bottom.cloth
    locks = (3, 3) if look.hair_style == "curly" else (2, 24)  # brightness varies around the head more than down it
    tiles = {
        "torso": _torso(look),
        "sleeve": _sleeve(look),
        "pelvis": _pelvis(look),
        "leg": _leg(look),
        "skirt": _open_front(_pattern(skirt, "skirt"), look) if look.top.coat else _pattern(skirt, "skirt"),
        "shoe": _shoe(look),
        "head": _head(look),
        "hair": _plain(look.cap)
        if look.hair_style == "cap"
        else _plain(look.hair) * _unevenness(rng, *locks, strength=0.15),
        "skin": _plain(look.skin),
        "pack": _pack(look),
    }
    for name in ("torso", "sleeve", "pelvis", "leg", "skirt", "pack"):
        bare = (tiles[name] == np.array(look.skin, np.float32)).all(axis=-1, keepdims=True)
        folds = _unevenness(rng, 9, 4, strength=0.05 if name == "torso" else 0.08)
        tiles[name] = tiles[name] * np.where(bare, 1, folds)
    return np.stack([np.clip(tiles[name], 0, 255).astype(np.uint8) for name in TILES])


def _plain(colour: Colour) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.float32)


def _pattern(cloth: Cloth, name: str) -> np.ndarray:
    """The cloth's pattern over a whole tile; whole periods around the body, so that the seam at the back closes."""
    around, along = EXTENTS[name]
    repeats = max(1, round(around / cloth.period))
    turns = (np.arange(SIDE) + 0.5) / SIDE * repeats % 1
    lengths = (np.arange(SIDE) + 0.5) / SIDE * along / cloth.period % 1
    shares = {
        "plain": np.zeros((SIDE, SIDE)),
        "stripes": np.repeat((lengths < 0.45)[:, None], SIDE, axis=1),
        "pinstripes": np.repeat((turns < 0.3)[None, :], SIDE, axis=0),
        "checks": 0.45 * (turns < 0.5)[None, :] + 0.45 * (lengths < 0.5)[:, None],
        "dots": (turns - 0.5)[None, :] ** 2 + (lengths - 0.5)[:, None] ** 2 < 0.09,
        "block": np.repeat((np.arange(SIDE) / SIDE * along < 0.24)[:, None], SIDE, axis=1),
    }
    share = shares[cloth.pattern].astype(np.float32)[..., None]
    return _plain(cloth.ground) * (1 - share) + np.array(cloth.figure, np.float32) * share


def _torso(look: Look) -> np.ndarray:
    """The top with its print, the skin below the neck with a collar or a hood around it, and a rucksack's straps."""
    tile, edge = _pattern(look.top.cloth, "torso"), _darker(look.top.cloth.ground, 0.72)
    if look.top.front == "open":
        tile = _open_front(tile, look)
    if look.top.front == "buttons":
        cv2.line(tile, (FRONT + 3, 0), (FRONT + 3, SIDE), edge, 1)
        for row in range(22, SIDE, 16):
            cv2.circle(tile, (FRONT, row), 2, _darker(look.top.cloth.figure, 0.5), -1)
    if look.top.chest:
        _print(tile, look)
    if look.top.neckline == "v":
        cv2.fillPoly(tile, [np.array([(FRONT - 11, 0), (FRONT + 11, 0), (FRONT, 27)])], edge)
        cv2.fillPoly(tile, [np.array([(FRONT - 9, 0), (FRONT + 9, 0), (FRONT, 23)])], look.skin)
    else:
        cv2.ellipse(tile, (FRONT, 0), (13, 14), 0, 0, 360, edge, -1)
        cv2.ellipse(tile, (FRONT, 0), (11, 11), 0, 0, 360, look.skin, -1)
    if look.top.neckline == "collar":
        for sign in (-1, 1):
            flap = [(FRONT + sign * 4, 13), (FRONT + sign * 20, 2), (FRONT + sign * 17, 20)]
            cv2.fillPoly(tile, [np.array(flap)], _darker(look.top.cloth.ground, 1.18))
            cv2.polylines(tile, [np.array(flap)], True, edge, 1)
    if look.top.neckline == "hood":
        for back in (0, SIDE):
            cv2.ellipse(tile, (back, 4), (26, 24), 0, 0, 360, edge, -1)
            cv2.ellipse(tile, (back, 4), (23, 20), 0, 0, 360, _darker(look.top.cloth.ground, 0.88), -1)
    if look.pack is not None:
        for strap in (FRONT - 17, FRONT + 17):
            cv2.rectangle(tile, (strap - 3, 0), (strap + 3, 78), _darker(look.pack, 0.8), -1)
    cv2.line(tile, (0, SIDE - 3), (SIDE, SIDE - 3), _darker(look.top.cloth.ground, 0.8), 2)
    return tile


def _open_front(tile: np.ndarray, look: Look) -> np.ndarray:
    """Add a gap in the middle that shows the inner garment, with darker edges."""
    tile = np.ascontiguousarray(tile)
    cv2.rectangle(tile, (FRONT - 10, 0), (FRONT + 10, SIDE), _darker(look.top.cloth.ground, 0.65), -1)
    cv2.rectangle(tile, (FRONT - 8, 0), (FRONT + 8, SIDE), look.top.inner, -1)
    return tile


def _print(tile: np.ndarray, look: Look) -> None:
    """Draw a shape on the chest, about 17 cm wide."""
    x, y, radius, colour = FRONT, 50, 13, look.top.chest_colour
    angles = np.radians(np.arange(0, 360, 36) - 90)
    radii = np.where(np.arange(10) % 2 == 0, 1.25 * radius, 0.55 * radius)
    star = np.stack((x + 0.8 * radii * np.cos(angles), y + radii * np.sin(angles)), axis=1)
    if look.top.chest == "circle":
        cv2.ellipse(tile, (x, y), (radius - 2, radius + 1), 0, 0, 360, colour, -1)
    elif look.top.chest == "star":
        cv2.fillPoly(tile, [star.astype(np.int32)], colour)
    elif look.top.chest == "heart":
        for side in (x - 5, x + 5):
            cv2.circle(tile, (side, y - 4), 6, colour, -1)
        cv2.fillPoly(tile, [np.array([(x - 11, y - 2), (x + 11, y - 2), (x, y + 14)])], colour)
    elif look.top.chest == "triangle":
        cv2.fillPoly(tile, [np.array([(x - 13, y + 12), (x + 13, y + 12), (x, y - 14)])], colour)
    elif look.top.chest == "number":
        for left, digit in ((x - 12, int(look.top.cloth.ground[0]) % 10), (x + 3, int(look.top.cloth.ground[2]) % 10)):
            for (x0, y0), (x1, y1) in (_STROKES[int(stroke)] for stroke in _DIGITS[digit]):
                cv2.line(tile, (left + 9 * x0, y - 12 + 12 * y0), (left + 9 * x1, y - 12 + 12 * y1), colour, 4)
    elif look.top.chest == "band":
        cv2.rectangle(tile, (0, y - 11), (SIDE, y + 11), colour, -1)
    elif look.top.chest == "diamond":
        cv2.fillPoly(tile, [np.array([(x - 13, y), (x, y - 17), (x + 13, y), (x, y + 17)])], colour)


# The seven strokes of a digit of a jersey's number, as (x, y) to (x, y) in units of half its height.
_STROKES = (
    ((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (1, 2)), ((0, 2), (1, 2)), ((0, 1), (0, 2)), ((0, 0), (0, 1)),
    ((0, 1), (1, 1)),
)  # fmt: skip
_DIGITS = ("012345", "12", "01643", "01623", "5612", "05623", "056432", "012", "0123456", "650123")


def _sleeve(look: Look) -> np.ndarray:
    """The top's cloth down to the sleeve's end, with a cuff, then skin."""
    tile = _pattern(look.top.cloth, "sleeve")
    if look.top.cloth.pattern == "block":
        tile = _plain(look.top.cloth.ground)
    if look.top.chest == "band" and look.top.sleeve > 0.5:
        cv2.rectangle(tile, (0, 42), (SIDE, 62), look.top.chest_colour, -1)
    return _ended(tile, look.top.sleeve, look.skin, _darker(look.top.cloth.ground, 0.75))


def _ended(tile: np.ndarray, length: float, below: Colour, edge: Colour) -> np.ndarray:
    """End the cloth at `length` (share of the limb) with a hem; `below` is the colour under it."""
    end = round(length * SIDE)
    tile[end:] = below
    tile[max(0, end - 3) : end] = edge
    return tile


def _pelvis(look: Look) -> np.ndarray:
    cloth = look.top.cloth if look.bottom.kind == "dress" else look.bottom.cloth
    tile = _pattern(cloth, "pelvis")
    if look.bottom.kind != "dress":
        tile[:22] = look.bottom.belt
        cv2.rectangle(tile, (FRONT - 4, 4), (FRONT + 4, 17), (205, 190, 140), -1)
    if look.bottom.kind in ("trousers", "shorts"):
        for back in (16, SIDE - 16):
            cv2.rectangle(tile, (back - 9, 44), (back + 9, 86), _darker(cloth.ground, 0.82), -1)
        cv2.line(tile, (FRONT, 22), (FRONT, SIDE), _darker(cloth.ground, 0.8), 1)
    return tile


def _leg(look: Look) -> np.ndarray:
    if look.bottom.kind in ("skirt", "dress"):
        tile = _plain(look.bottom.tights)
    else:
        cloth = look.bottom.cloth
        tile = _pattern(cloth, "leg")
        below = look.skin if look.bottom.kind == "shorts" else look.socks
        tile = _ended(tile, look.bottom.length, below, _darker(cloth.ground, 0.8))
    if look.boots and look.bottom.kind != "trousers":
        tile[round(0.76 * SIDE) :] = look.shoes
    elif look.bottom.kind == "shorts":
        tile[round(0.87 * SIDE) :] = look.socks
    return tile


def _shoe(look: Look) -> np.ndarray:
    """Columns go around the foot's length: the sole is at the seam, the instep at the middle."""
    tile = _plain(look.shoes)
    tile[:, :26] = tile[:, -26:] = look.soles
    if not look.boots:
        for row in range(44, 84, 10):
            cv2.line(tile, (FRONT - 12, row), (FRONT + 12, row), look.soles, 3)
    return tile


def _head(look: Look) -> np.ndarray:
    """The face around column 64; rows go from the crown (0) to the chin (127). Hair is painted below its mesh."""
    tile = _plain(look.skin)
    blush, shade = _mixed(look.skin, (225, 110, 100), 0.25), _darker(look.skin, 0.86)
    cv2.rectangle(tile, (0, 0), (SIDE, 26), look.hair, -1)
    for low, high in ((0, 36), (SIDE - 36, SIDE)):
        cv2.rectangle(tile, (low, 0), (high, 84), look.hair, -1)
    for sign in (-1, 1):
        cv2.ellipse(tile, (FRONT + sign * 14, 82), (5, 6), 0, 0, 360, blush, -1)
        cv2.ellipse(tile, (FRONT + sign * 10, 57), (7, 4), 0, 0, 360, shade, -1)
    if look.beard:
        cv2.ellipse(tile, (FRONT, 112), (34, 30), 0, 0, 360, _mixed(look.skin, look.hair, 0.7), -1)
        cv2.ellipse(tile, (FRONT, 80), (26, 10), 0, 0, 360, look.skin, -1)
    tile = cv2.GaussianBlur(tile, (0, 0), 1.6, borderType=cv2.BORDER_REPLICATE)
    for x in (FRONT - 10, FRONT + 10):
        cv2.ellipse(tile, (x, 56), (5, 4), 0, 0, 360, (246, 244, 240), -1)
        cv2.circle(tile, (x, 56), 3, (46, 32, 26), -1)
        cv2.ellipse(tile, (x, 56), (6, 5), 0, 190, 350, _darker(look.skin, 0.5), 1)
        cv2.ellipse(tile, (x, 47), (6, 3), 0, 190, 350, _mixed(look.hair, (40, 30, 28), 0.5), 2)
    cv2.ellipse(tile, (FRONT, 95), (9, 6), 0, 5, 175, _mixed(look.skin, (190, 60, 70), 0.7), -1)
    cv2.ellipse(tile, (FRONT, 94), (10, 4), 0, 5, 175, _mixed(look.skin, (110, 30, 40), 0.7), 1)
    return tile


def _pack(look: Look) -> np.ndarray:
    """A rucksack: a flap above, a pocket below, on the side away from the back (column 0)."""
    colour = look.pack or look.bottom.belt
    tile = _plain(colour)
    for back in (0, SIDE):
        cv2.rectangle(tile, (back - 22, 66), (back + 22, 108), _darker(colour, 0.78), -1)
        cv2.rectangle(tile, (back - 19, 70), (back + 19, 104), _darker(colour, 1.12), -1)
    cv2.line(tile, (0, 48), (SIDE, 48), _darker(colour, 0.6), 3)
    return tile


def _unevenness(rng: np.random.Generator, around: float, along: float, *, strength: float) -> np.ndarray:
    """Smooth noise around 1, with grains of the given sizes in pixels; its two ends around the body meet."""
    noise = np.tile(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (1, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), sigmaX=around, sigmaY=along)[:, SIDE : 2 * SIDE]
    return (1 + strength * soft / soft.std())[..., None]


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return red, green, blue


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (near * (1 - share) + far * share for near, far in zip(colour, other, strict=True))
    return red, green, blue
