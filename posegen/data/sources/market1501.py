"""Market-1501 (Zheng et al. 2015) with pose-gan's or PG2's joints: the data set of PG2, Deformable GAN and VDG.

The images lie as they are distributed, `bounding_box_train` and `bounding_box_test` of 64x128 JPEGs named
`0002_c1s1_000451_03.jpg` (identity, camera and sequence, frame, box). The joints are pose-gan's
`market-annotation-{train,test}.csv` in the same folder; so are the pair lists, where there are any. A split without
such a file uses PG2's pickles (`pg2_pickles`); joints and pairs are chosen independently.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from posegen.data import reasons
from posegen.data.formats import Annotations, check_unit
from posegen.data.formats.images import READABLE, folder_names, image_sizes, read_image
from posegen.data.formats.pg2_pickles import (
    PEAKS,
    PG2_PICKLES,
    is_peaks_file,
    pairs_pickle,
    peaks_files,
    read_pg2_poses,
)
from posegen.data.formats.posegan_csv import read_pose_gan_csv
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.pairs import (
    PUBLISHED_TEST_PAIRS,
    SPLITS,
    given_pairs,
    ordered_pairs,
    published_draw,
    usable_rows,
)

DISTRACTORS = ("-1", "0000")  # junk and background people of the test part
PUBLISHED_CANDIDATES = 257_198  # ordered test pairs from which the published 12,000 are chosen


def camera(name: str) -> str:
    """Return the camera in a Market-1501 name, "c1" in `0002_c1s1_000451_03.jpg`; "" if there is none."""
    found = re.search(r"_(c\d+)s\d+", name)
    return found[1] if found else ""


@dataclass(frozen=True)
class Market1501:
    """The images in the official layout. A group is an identity, the text before the first `_`; a view is a camera.

    Entries stand in the order of the annotation files, on which the order of the pairs depends; those of PG2's pickles
    are sorted by name. A pair list in the root is honoured; without one, training pairs follow the rule, and test pairs
    are pose-gan's random 12,000 where there are that many.
    """

    root: Path
    name: ClassVar[str] = "market1501"

    def listing(self) -> Listing:
        """List both splits. Raises ValueError for a missing or malformed folder or file."""
        self._check_layout()
        entries: list[Entry] = []
        rejects: list[Reject] = []
        sizes: dict[str, int] = {}
        joint_notes: list[str] = []
        for split in SPLITS:
            file = self._joint_file(split)
            found, refused, split_sizes = self._images(split, file)
            entries += found
            rejects += refused
            sizes |= split_sizes
            joint_notes += [f"Joints of '{split}': {file.name} ({PG2_PICKLES})."] if is_peaks_file(file) else []
        pairs, unknown, notes = self._pairs(entries, rejects)
        listing = Listing(entries, "", [*rejects, *unknown], pairs, (*joint_notes, *notes))
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes))

    def load(self, entry: Entry) -> LoadedImage:
        """Read the JPEG's bytes. Raises ValueError("unreadable file", detail)."""
        return entry.loaded(read_image(Path(entry.path)))

    def _check_layout(self) -> None:
        expected = [f"bounding_box_{split}" for split in SPLITS] + [_annotation_file(split) for split in SPLITS]
        if not self.root.is_dir():
            raise ValueError(
                f"Market-1501 root '{self.root}' is not a folder. Expected one with {', '.join(expected)}."
            )
        found = {_annotation_file(split) for split in SPLITS if self._joint_file(split).exists()}
        missing = [name for name in expected if name not in found and not (self.root / name).exists()]
        if missing:
            raise ValueError(
                f"Market-1501 root '{self.root}' lacks {', '.join(missing)}; there is {folder_names(self.root)}. "
                "The images are Market-1501's own folders, the CSV files come with pose-gan (Deformable GAN's code); "
                f"PG2's pickles, {PEAKS}*.p, serve as well, in the root or in PoseFiltered."
            )

    def _joint_file(self, split: str) -> Path:
        """Return pose-gan's file of a split if it is there, else PG2's of the split, else PG2's of all images."""
        if (file := self.root / _annotation_file(split)).exists():
            return file
        pickles = peaks_files(self.root)
        return pickles.get(split, pickles.get(None, file))

    def _images(self, split: str, file: Path) -> tuple[list[Entry], list[Reject], dict[str, int]]:
        folder = self._folder(split)
        sizes, annotations = image_sizes(folder, READABLE), self._annotations(file, split)
        if not sizes:
            raise ValueError(f"'{folder}' holds no image. Expected Market-1501's JPEGs, as 0002_c1s1_000451_03.jpg.")
        entries = [
            Entry(name, split, person, person, camera(name), str(folder / name), *pose, person in DISTRACTORS)
            for name, pose in annotations.poses.items()
            if name in sizes
            for person in (name.partition("_")[0],)
        ]
        if not entries:
            raise ValueError(
                f"no image in '{folder}' has a row in '{file}': images are called {list(sizes)[:3]}, "
                f"rows {list(annotations.poses)[:3]}."
            )
        paths = {str(folder / name): size for name, size in sizes.items()}
        return entries, _rejects(split, sizes, annotations, file.name), paths

    def _folder(self, split: str) -> Path:
        return (self.root / f"bounding_box_{split}").absolute()

    def _annotations(self, file: Path, split: str) -> Annotations:
        """Read a split's poses, without those of the other split's images in PG2's file for both."""
        if not is_peaks_file(file):
            return check_unit(read_pose_gan_csv(file), file)
        annotations = read_pg2_poses(file)
        others = {name for other in SPLITS if other != split for name in image_sizes(self._folder(other), READABLE)}
        poses = {name: pose for name, pose in annotations.poses.items() if name not in others}
        return replace(annotations, poses=poses)

    def _pairs(
        self, entries: list[Entry], rejects: list[Reject]
    ) -> tuple[dict[str, list[tuple[str, str]]], list[Reject], tuple[str, ...]]:
        pairs: dict[str, list[tuple[str, str]]] = {}
        unknown: list[Reject] = []
        notes: tuple[str, ...] = ()
        for split in SPLITS:
            file = self.root / f"market-pairs-{split}.csv"
            if (file := file if file.exists() else pairs_pickle(self.root, split)) is not None:
                known = {reject.name for reject in rejects if reject.split == split}
                given = given_pairs(file, split, entries, find=lambda name: name, known=known)
                pairs[split] = given.pairs
                unknown += given.rejects
                notes += given.notes
        if "test" not in pairs:
            pose_gans = not is_peaks_file(self._joint_file("test"))
            drawn, note = _random_test_pairs([entry for entry in entries if entry.split == "test"], pose_gans)
            pairs |= {"test": drawn} if drawn else {}
            notes += (note,)
        return pairs, unknown, notes


def _annotation_file(split: str) -> str:
    return f"market-annotation-{split}.csv"


def _rejects(split: str, sizes: Mapping[str, int], annotations: Annotations, file: str) -> list[Reject]:
    """Reject images whose row is missing or duplicate, and rows without an image."""
    annotated = {**annotations.poses, **annotations.duplicates}
    return [
        *(
            Reject(name, split, reasons.NOT_ANNOTATED, f"{file} has no row for it")
            for name in sizes
            if name not in annotated
        ),
        *(
            Reject(name, split, reasons.DUPLICATE, where)
            for name, where in annotations.duplicates.items()
            if name in sizes
        ),
        *(Reject(name, split, reasons.NO_IMAGE, f"named in {file}") for name in annotated if name not in sizes),
    ]


def _random_test_pairs(entries: list[Entry], pose_gans: bool) -> tuple[list[tuple[str, str]], str]:
    """Return 12,000 random test pairs and a note; no pairs if there are fewer, so that the rule applies.

    They are the published ones only in the order of pose-gan's own file.
    """
    rows = usable_rows(entries)
    candidates = rows[ordered_pairs([entries[row].group for row in rows])]
    if len(candidates) < PUBLISHED_TEST_PAIRS:
        return [], f"Test pairs: all {len(candidates):,} of the rule, since there is no market-pairs-test.csv."
    drawn = candidates[published_draw(len(candidates))]
    note = f"Test pairs: {len(drawn):,} drawn with seed 0 from {len(candidates):,} ordered pairs"
    if pose_gans and len(candidates) == PUBLISHED_CANDIDATES:
        note += ": the published ones."
    else:
        note += f": not the published ones, which are drawn from {PUBLISHED_CANDIDATES:,}."
    return [(entries[source].name, entries[target].name) for source, target in drawn], note
