"""The names of DeepFashion's in-shop pictures (Liu et al. 2016), in the three spellings that are in use.

- official: `img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg`
- pose-gan (Deformable GAN, its split_fasion_dataset.py; "fasion" is its spelling), without the category's underscores:
  `fasionWOMENBlousesShirtsid0000000102_1front.jpg`
- PATN (its train.lst and test.lst), which keeps them: `fashionWOMENBlouses_Shirtsid0000000102_1front.jpg`
"""

import re
from typing import NamedTuple

FLAT = "flat"  # the view of a garment without a person

_OFFICIAL = re.compile(r"(?:.*/)?(WOMEN|MEN)/([A-Za-z_]+)/id_(\d{8})/(\d{2})_(\d+)_([a-z]+)(?:\.\w+)?")
_RENAMED = re.compile(r"(?:.*/)?fash?ion(WOMEN|MEN)([A-Za-z_]+?)id(\d{8})(\d{2})_(\d+)([a-z]+)(?:\.\w+)?")
_NEXT_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")  # where "BlousesShirts" has lost its underscore


class Name(NamedTuple):
    """One picture, however it is spelled; the file's suffix is no part of it. The fields' order is that of sorting."""

    gender: str  # "WOMEN" or "MEN"
    category: str  # without underscores: "BlousesShirts"
    item: str  # eight digits
    colour: str  # two digits: which of the item's colours
    number: int  # the view's: 1 front, 2 side, 3 back, 4 full, 6 flat, 7 additional
    view: str  # the view's word: "front"

    @property
    def clothes(self) -> str:
        """Item and colour, ten digits: who wears the same clothes. An item may lie in two categories."""
        return self.item + self.colour

    def official(self) -> str:
        """`WOMEN/Blouses_Shirts/id_00000001/02_1_front`."""
        category = _NEXT_WORD.sub("_", self.category)
        return f"{self.gender}/{category}/id_{self.item}/{self.colour}_{self.number}_{self.view}"

    def pose_gan(self) -> str:
        """`fasionWOMENBlousesShirtsid0000000102_1front`."""
        return f"fasion{self.gender}{self.category}id{self.clothes}_{self.number}{self.view}"

    def patn(self) -> str:
        """`fashionWOMENBlouses_Shirtsid0000000102_1front`."""
        category = _NEXT_WORD.sub("_", self.category)
        return f"fashion{self.gender}{category}id{self.clothes}_{self.number}{self.view}"


def parse_name(text: str) -> Name | None:
    """The picture that a path or name means, in any of the spellings, with or without a suffix; None where it is none.

    What stands before it in a path does not matter.
    """
    path = text.replace("\\", "/")
    found = _OFFICIAL.fullmatch(path) or _RENAMED.fullmatch(path)
    if found is None:
        return None
    gender, category, item, colour, number, view = found.groups()
    return Name(gender, category.replace("_", ""), item, colour, int(number), view)
