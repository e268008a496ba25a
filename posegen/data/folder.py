"""A folder of one's own pictures, with the joints in any format of `keypoint_files`."""

import hashlib
import os.path
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from posegen.data.joint_files import PosedPictures, find_joint_files, pose_pictures, split_file, without_joints
from posegen.data.joints import LAYOUTS
from posegen.data.keypoint_files import OPENPOSE
from posegen.data.market1501 import SPLITS, camera
from posegen.data.pairs import given_pairs, read_pairs_csv, usable_rows
from posegen.data.picture_files import READABLE, UNREADABLE, PictureIndex, fingerprint, picture_sizes, read_picture
from posegen.data.rows import Entry, Listing, Picture, Reject

OPENPOSE_LAYOUTS = tuple(layout for layout in LAYOUTS if layout.startswith("body"))
SPLIT_FOLDERS = (*SPLITS, "val")  # folders of these names say nothing about who is in a picture


@dataclass(frozen=True)
class Folder:
    """Pictures in `root/images`, or else anywhere below `root`, and their joints.

    `joints` is the annotation file or folder; None looks for one, as `find_joint_files` says. `layout` is the order of
    OpenPose's points where their number does not tell it ("body_25b").

    `identity` is a regular expression that is searched in a picture's path (inside the pictures' folder), and whose
    first group is the identity. None takes the sub-folder's name where the pictures lie in several sub-folders, one a
    person, and else the text before the first `_` of the name. A picture where that finds nothing is rejected. A group
    is an identity; a view is the camera of a Market-1501 name ("c1"), or nothing.

    The splits are those of `pairs-train.csv` and `pairs-test.csv` where these are in `root` (a picture may be in both),
    else those of `annotation-train.csv` and `annotation-test.csv`. Otherwise whole identities are held out for testing,
    about the share `test_share` of them and at least one, chosen by a hash of their names (our choice: an identity more
    does not move the others).
    """

    root: Path
    joints: Path | None = None
    layout: str | None = None
    identity: str | None = None
    test_share: float = 0.1
    name: ClassVar[str] = "folder"

    def listing(self) -> Listing:
        """All entries. Raises ValueError for settings that are wrong and files that are missing or do not parse."""
        self._check_settings()
        folder = (self.root / "images" if (self.root / "images").is_dir() else self.root).absolute()
        sizes = _sizes(folder)
        pictures = PictureIndex(sizes)
        joint_files, joints_note = find_joint_files(self.root, self.joints)
        if self.layout is not None and joint_files.format != OPENPOSE:
            raise ValueError(f"layout '{self.layout}' is for OpenPose's points, but the joints are {joint_files}.")
        posed = pose_pictures(joint_files, pictures, self.layout)
        if not posed.names:
            named = [reject.name for reject in posed.rejects]
            raise ValueError(f"no joints fit a picture: pictures are called {list(sizes)[:3]}, joints {named[:3]}.")
        identities, identity_note = self._identities(sizes)
        splits = self._splits(folder, posed, identities, pictures)
        listing = self._listing(folder, sizes, posed, splits, identities, pictures)
        notes = (joints_note, identity_note, splits.note, *_shared_note(listing.entries), *listing.notes)
        listing = replace(listing, notes=notes)
        paths = {str(folder / name): size for name, size in sizes.items()}
        return replace(listing, fingerprint=fingerprint(self.name, listing, paths))
