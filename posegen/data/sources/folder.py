"""A folder of one's own images, with the joints in any format of `keypoint_files`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import ClassVar

from posegen.data import reasons
from posegen.data.formats.annotations import JointFiles, PosedImages, find_joint_files, pose_images, split_file
from posegen.data.formats.images import READABLE, UNREADABLE, ImageIndex, fingerprint, image_sizes, read_image
from posegen.data.formats.keypoint_files import OPENPOSE
from posegen.data.formats.pg2_pickles import pairs_pickle
from posegen.data.geometry.joints import LAYOUTS
from posegen.data.listing import Entry, Listing, LoadedImage, Reject
from posegen.data.sources.market1501 import camera
from posegen.data.sources.pairs import given_pairs, read_pairs
from posegen.data.sources.splits import SPLITS, shared_identities, split_entries

_LAYOUTS = tuple(layout for layout in LAYOUTS if layout.startswith("body"))
_SPLIT_FOLDERS = (*SPLITS, "val")  # sub-folders of these names say nothing about who is in an image


@dataclass(frozen=True)
class Folder:
    """Images in `root/images`, or else anywhere below `root`, and their joints.

    `joints` is the annotation file or folder; None looks for one, as `find_joint_files` says. `layout` is the order of
    OpenPose's points where their number does not tell it ("body_25b").

    `identity` is a regular expression that is searched in an image's path (inside the images' folder), and whose
    first group is the identity. None takes the sub-folder's name where the images lie in several sub-folders, one a
    person, and else the text before the first `_` of the name. An image where that finds nothing is rejected. A group
    is an identity; a view is the camera of a Market-1501 name ("c1"), or nothing.

    The splits are those of `pairs-train.csv` and `pairs-test.csv` (or PG2's `p_pairs_train.p` and `p_pairs_test.p`)
    where these are in `root` (an image may be in both), else those of the annotation files where there is one for
    each. Otherwise whole identities are held out for testing, about the share `test_share` of them and at least one,
    chosen by a hash of their names (our choice: an identity more hardly moves the others).
    """

    root: Path
    joints: Path | None = None
    layout: str | None = None
    identity: str | None = None
    test_share: float = 0.1
    name: ClassVar[str] = "folder"

    def listing(self) -> Listing:
        """All entries. Raises ValueError for settings that are wrong and files that are missing or do not parse."""
        if not self.root.is_dir():
            raise ValueError(f"'{self.root}' is not a folder. Expected one with images and their joints.")
        check_settings(layout=self.layout, identity=self.identity, test_share=self.test_share)
        folder = (self.root / "images" if (self.root / "images").is_dir() else self.root).absolute()
        sizes = _sizes(folder)
        index = ImageIndex(sizes)
        joint_files, joints_note = find_joint_files(self.root, self.joints)
        posed = self._posed(joint_files, index)
        identities, identity_note = self._identities(sizes)
        lists = {split: path for split in SPLITS if (path := _pair_list(self.root, split))}
        listed = {split: _listed(path, index) for split, path in lists.items()}
        drafts = _drafts(folder, posed, identities)
        if not drafts:
            raise ValueError(f"no image with joints has an identity: {list(posed.names)[:3]} ({identity_note})")
        split = split_entries(drafts, listed, self.test_share)
        unused = _unused(sizes, posed, identities, split.entries, joint_files)
        unsupported = [Reject(name, "train", reasons.UNSUPPORTED) for name in image_sizes(folder, UNREADABLE)]
        listing = Listing(split.entries, "", [*posed.rejects, *split.rejects, *unused, *unsupported])
        listing = _with_pairs(listing, lists, index)
        notes = (joints_note, identity_note, split.note, *_shared(split.entries), *listing.notes)
        listing = replace(listing, notes=notes)
        return replace(
            listing, fingerprint=fingerprint(self.name, listing, {str(folder / name): sizes[name] for name in sizes})
        )

    def load(self, entry: Entry) -> LoadedImage:
        """The file's bytes as they are, of whatever kind. Raises ValueError("unreadable file", detail)."""
        assert entry.joints is not None
        assert entry.visible is not None
        return LoadedImage(read_image(Path(entry.path)), entry.joints, entry.visible)

    def _posed(self, joint_files: JointFiles, index: ImageIndex) -> PosedImages:
        if self.layout is not None and joint_files.format != OPENPOSE:
            raise ValueError(f"layout '{self.layout}' is for OpenPose's points, but the joints are {joint_files}.")
        posed = pose_images(joint_files, index, self.layout)
        if not posed.names:
            named = [reject.name for reject in posed.rejects]
            raise ValueError(f"no joints belong to an image: images are {index.first_names}, joints of {named[:3]}.")
        return posed

    def _identities(self, names: Iterable[str]) -> tuple[dict[str, str], str]:
        """The identity of each image that has one, and a sentence about the rule."""
        if self.identity is not None:
            found = {name: re.search(self.identity, name) for name in names}
            identities = {name: match[1] for name, match in found.items() if match}
            rule = f"by '{self.identity}'"
        else:
            identities, rule = _by_rule(list(names))
        identities = {name: identity for name, identity in identities.items() if identity}
        return identities, f"Identity: {rule}, {len(set(identities.values())):,} in all."


def check_settings(*, layout: str | None, identity: str | None, test_share: float) -> None:
    """Raise ValueError for the first setting of one's own images that is wrong."""
    if layout is not None and layout not in _LAYOUTS:
        raise ValueError(f"layout '{layout}' is unknown. Expected one of {', '.join(_LAYOUTS)}.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1 (the share of identities), not be {test_share}.")
    try:
        groups = re.compile(identity).groups if identity is not None else 1
    except re.error as error:
        raise ValueError(f"identity '{identity}' is no regular expression: {error}.") from None
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
    """By sub-folder where there are several below the folder that holds all images; else by the start of the name."""
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    levels = zip(*folders.values(), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    people = {
        name: next((part for part in parts[shared:] if part not in _SPLIT_FOLDERS), "")
        for name, parts in folders.items()
    }
    if len({person for person in people.values() if person}) > 1:
        return people, "the sub-folder's name"
    return {name: _before_underscore(name) for name in names}, "the text before the first '_' of the name"


def _before_underscore(name: str) -> str:
    start, underscore, _ = name.rpartition("/")[2].partition("_")
    return start if underscore else ""


def _pair_list(root: Path, split: str) -> Path | None:
    return split_file(root, f"pairs-{split}.csv") or pairs_pickle(root, split)


def _listed(path: Path, index: ImageIndex) -> set[str]:
    """The images that a pair list names."""
    labels = {label for pair in read_pairs(path) for label in pair}
    return {found for label in labels if (found := index.only(label)) is not None}


def _drafts(folder: Path, posed: PosedImages, identities: Mapping[str, str]) -> list[Entry]:
    """Entries of the images that have joints and an identity, with the split of their annotation file or ""."""
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
    joint_files: JointFiles,
) -> list[Reject]:
    """Images that no annotation names, and those whose identity is unknown, in the split of their identity."""
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


def _with_pairs(listing: Listing, lists: Mapping[str, Path], index: ImageIndex) -> Listing:
    known = {reject.name for reject in listing.rejects}
    for split, path in lists.items():
        given = given_pairs(path, split, listing.entries, find=index.only, known=known)
        listing = replace(
            listing,
            rejects=[*listing.rejects, *given.rejects],
            pairs={**listing.pairs, split: given.pairs},
            notes=(*listing.notes, *given.notes),
        )
    return listing


def _shared(entries: list[Entry]) -> list[str]:
    count = shared_identities(entries)
    return [f"Identities in both splits: {count:,}. The scores say little about other people."] if count else []
