"""A folder of one's own images, with the joints in any format of `annotations.FORMATS`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import ClassVar

from posegen.data import reasons
from posegen.data.formats import UNITS
from posegen.data.formats.annotations import BY_KEY, AnnotationFiles, find_annotations, split_file
from posegen.data.formats.images import READABLE, UNREADABLE, ImageIndex, image_sizes, read_image
from posegen.data.formats.matching import PosedImages, mismatches, pose_images, printable
from posegen.data.formats.openpose import OPENPOSE, OPENPOSE_LAYOUTS
from posegen.data.formats.pg2_pickles import pairs_pickle
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.market1501 import camera
from posegen.data.sources.pairs import SPLITS, read_pairs, shared_note, split_entries, with_given_pairs

_SPLIT_FOLDERS = (*SPLITS, "val", "valid", "validation")  # sub-folders of these names are not identities


@dataclass(frozen=True)
class Folder:
    """Images in `root/images`, or else anywhere below `root`, and their joints.

    A group is an identity; a view is the camera of a Market-1501 name ("c1"), or "". The splits are those of
    `pairs-train.csv` and `pairs-test.csv` (or PG2's `p_pairs_train.p` and `p_pairs_test.p`) where these are in `root`
    (an image may be in both), else those of the annotation files where there is one for each. Otherwise whole
    identities are held out for testing, by a hash of their names (our choice: one more identity hardly moves others).

    Attributes:
        root: The folder.
        joints: The annotation file or folder. None searches `root`, as `find_annotations` describes.
        layout: The order of OpenPose's points where their number does not determine it ("body_25b").
        format: The format of the joints, a key of `annotations.FORMATS`. None tells it by the files.
        unit: The unit of their coordinates: "pixels", "fractions" (0 to 1) or "signed" (-1 to 1). None takes
            the format's own, which is pixels for most.
        identity: A regular expression, searched in an image's path inside the images' folder, whose first group is the
            identity; an image without a match is rejected. None takes the sub-folder's name where the images lie in
            several sub-folders, one a person, and else the text before the first `_` of the name.
        test_share: The approximate share of identities, at least one, that are held out for testing.
    """

    root: Path
    joints: Path | None = None
    layout: str | None = None
    format: str | None = None
    unit: str | None = None
    identity: str | None = None
    test_share: float = 0.1
    name: ClassVar[str] = "folder"

    def listing(self) -> Listing:
        """List all images. Raises ValueError for wrong settings and for missing or malformed files."""
        if not self.root.is_dir():
            raise ValueError(f"'{self.root}' is not a folder. Expected one with images and their joints.")
        check_settings(layout=self.layout, identity=self.identity, test_share=self.test_share)
        check_known(self.format, tuple(BY_KEY), "format")
        check_known(self.unit, UNITS, "unit")
        folder = (self.root / "images" if (self.root / "images").is_dir() else self.root).absolute()
        found_sizes = _sizes(folder)
        sizes = {name: size for name, size in found_sizes.items() if printable(name) == name}
        unnamed = [Reject(printable(name), "train", reasons.NOT_UTF8) for name in found_sizes if name not in sizes]
        index = ImageIndex(sizes)
        joint_files, joints_note = find_annotations(self.root, self.joints, self.format)
        posed = self._posed(joint_files, index, folder)
        try:
            return self._listing(folder, sizes, index, posed, joint_files, joints_note, unnamed)
        except ValueError as error:
            explained = " ".join(filter(None, (str(error), mismatches(posed.rejects, index.first_names))))
            raise ValueError(explained) from None

    def _listing(
        self,
        folder: Path,
        sizes: dict[str, int],
        index: ImageIndex,
        posed: PosedImages,
        joint_files: AnnotationFiles,
        joints_note: str,
        unnamed: list[Reject],
    ) -> Listing:
        identities, identity_note = self._identities(sizes)
        found = {
            split: split_file(self.root, f"pairs-{split}.csv") or pairs_pickle(self.root, split) for split in SPLITS
        }
        lists = {split: path for split, path in found.items() if path}
        listed = {split: _listed(path, index) for split, path in lists.items()}
        drafts = _drafts(folder, posed, identities)
        if not drafts:
            raise ValueError(f"no image with joints has an identity: {list(posed.names)[:3]} ({identity_note})")
        split = split_entries(drafts, listed, self.test_share)
        unused = _unused(sizes, posed, identities, split.entries, joint_files)
        unsupported = [Reject(name, "train", reasons.UNSUPPORTED) for name in image_sizes(folder, UNREADABLE)]
        listing = Listing(split.entries, "", [*posed.rejects, *split.rejects, *unused, *unsupported, *unnamed])
        listing = with_given_pairs(listing, lists, index.only, ", or define the identity (`identity`)")
        notes = (joints_note, *posed.notes, identity_note, split.note, *shared_note(split.entries), *listing.notes)
        by_path = {str(folder / name): size for name, size in sizes.items()}
        return replace(listing, notes=notes, fingerprint=fingerprint(self.name, listing, by_path))

    def load(self, entry: Entry) -> LoadedImage:
        """Read the file's bytes. Raises ValueError("unreadable file", detail)."""
        return entry.loaded(read_image(Path(entry.path)))

    def _posed(self, joint_files: AnnotationFiles, index: ImageIndex, folder: Path) -> PosedImages:
        if self.layout is not None and joint_files.format != OPENPOSE:
            raise ValueError(f"layout '{self.layout}' is for OpenPose's points, but the joints are {joint_files}.")
        posed = pose_images(joint_files, index, self.layout, folder=folder, unit=self.unit)
        if not posed.names:
            named = [reject.name for reject in posed.rejects]
            raise ValueError(
                f"no joints belong to an image: images are {index.first_names}, joints of {named[:3]}."
                + " "
                + mismatches(posed.rejects, index.first_names)
            )
        return posed

    def _identities(self, names: Iterable[str]) -> tuple[dict[str, str], str]:
        """Return the identity of each image that has one, and a sentence about the rule."""
        if self.identity is not None:
            found = {name: re.search(self.identity, name) for name in names}
            identities = {name: match[1] for name, match in found.items() if match}
            rule = f"by '{self.identity}'"
        else:
            identities, rule = _by_rule(list(names))
        identities = {name: identity for name, identity in identities.items() if identity}
        return identities, f"Identity: {rule}, {len(set(identities.values())):,} in all."


def check_known(given: str | None, known: Sequence[str], setting: str) -> None:
    """Raise ValueError if a setting is given and not one of the known."""
    if given is not None and given not in known:
        raise ValueError(f"{setting} '{given}' is unknown. Expected one of {', '.join(known)}.")


def check_settings(*, layout: str | None, identity: str | None, test_share: float) -> None:
    """Check settings shared by the sources of one's own images. Raises ValueError for the first wrong one."""
    if layout is not None and layout not in OPENPOSE_LAYOUTS:
        raise ValueError(f"layout '{layout}' is unknown. Expected one of {', '.join(OPENPOSE_LAYOUTS)}.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1 (the share of identities), not be {test_share}.")
    try:
        groups = re.compile(identity).groups if identity is not None else 1
    except re.error as error:
        raise ValueError(f"identity '{identity}' is not a regular expression: {error}.") from None
    if not groups:
        raise ValueError(f"identity '{identity}' has no group. Expected one around the identity: '([^_]+)_'.")


def _sizes(folder: Path) -> dict[str, int]:
    sizes = image_sizes(folder, READABLE)
    if not sizes:
        other = ", ".join(list(image_sizes(folder, UNREADABLE))[:3])
        hint = f" There are {other}, which must be turned into one of these first." if other else ""
        raise ValueError(f"'{folder}' holds no image. Expected files that end with {', '.join(READABLE)}.{hint}")
    return sizes


def _by_rule(names: list[str]) -> tuple[dict[str, str], str]:
    """Identify by sub-folder where the folder of all images has several; else by the start of the name."""
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    levels = zip(*folders.values(), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    people = {
        name: next((part for part in parts[shared:] if part not in _SPLIT_FOLDERS), "")
        for name, parts in folders.items()
    }
    if len({person for person in people.values() if person}) > 1:
        return people, "the sub-folder's name"
    starts = {name: re.match(r"([^_]*)_", name.rpartition("/")[2], re.DOTALL) for name in names}
    rule = "the text before the first '_' of the name"
    return {name: start[1] if start else "" for name, start in starts.items()}, rule


def _listed(path: Path, index: ImageIndex) -> set[str]:
    """Return the images that a pair list names."""
    labels = {label for pair in read_pairs(path) for label in pair}
    return {found for label in labels if (found := index.only(label)) is not None}


def _drafts(folder: Path, posed: PosedImages, identities: Mapping[str, str]) -> list[Entry]:
    """Return entries of the images that have joints and an identity, with the split of their annotation file or ""."""
    return [
        Entry(name, split or "", identities[name], identities[name], camera(name), str(folder / name), *pose)
        for split, poses in posed.poses.items()
        for name, pose in poses.items()
        if name in identities
    ]


def _unused(
    names: Iterable[str],
    posed: PosedImages,
    identities: Mapping[str, str],
    entries: list[Entry],
    joint_files: AnnotationFiles,
) -> list[Reject]:
    """Reject images without annotation and those whose identity is unknown, in the split of their identity."""
    splits = {entry.identity: entry.split for entry in entries}
    refused = {reject.name for reject in posed.rejects}
    rejects = []
    for name in names:
        split = splits.get(identities.get(name, ""), "train")
        if name not in posed.names and name not in refused:
            rejects.append(Reject(name, split, reasons.NOT_ANNOTATED, f"not named in {joint_files}"))
        elif name in posed.names and name not in identities:
            rejects.append(Reject(name, split, reasons.NO_IDENTITY))
    return rejects
