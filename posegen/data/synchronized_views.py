"""One's own recordings of a person by several calibrated cameras at once, for the systems that turn people.

A take is a folder; a group is one instant of it, the frames of one number, and its views are the cameras. The layout is
near to Pose2Sim's: `view_folders` has it, `camera_files` the calibration.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from posegen.data import reasons
from posegen.data.camera_files import plain_name, read_azimuths
from posegen.data.folder import check_settings
from posegen.data.keypoint_files import MISSING, Pose
from posegen.data.picture_files import fingerprint
from posegen.data.rows import Entry, Listing, Picture, Reject
from posegen.data.splits import SPLITS, held_out
from posegen.data.video_frames import LARGEST, Part, Square, parse_part, part_sizes, read_part, square_around
from posegen.data.view_folders import EXPECTED, Refused, View, find_calibration, find_views

STRAY = 0.01  # the share of a view's frames whose joints the crop need not hold on a side: estimators go astray


@dataclass(frozen=True)
class SynchronizedViews:
    """The takes below `root`, with OpenPose's joints and a calibration file.

    `calibration` is that file; None takes the only one in the root. `layout` is the order of OpenPose's points where
    their number does not tell it ("body_25b"). `identity` is a regular expression that is searched in a take's name,
    and whose first group is the person; None takes the take's name. Of several people in a picture the one with the
    highest sum of confidences is taken, in each view for itself: nothing checks that all views show the same person.

    Frames are taken whose number is a multiple of `stride`. Pictures are cut to one square a view of a take, around
    its joints, with `margin` of their extent on each side (our choice; all but the farthest `STRAY` of the frames on a
    side); what of the square lies outside of the picture is black.

    `test` names the takes, or the people, for testing. Without it whole people are held out, about the share
    `test_share` and at least one, chosen by a hash of their names.
    """

    root: Path
    calibration: Path | None = None
    layout: str | None = None
    identity: str | None = None
    test: tuple[str, ...] = ()
    test_share: float = 0.1
    stride: int = 1
    margin: float = 0.15
    name: ClassVar[str] = "views"
    size: ClassVar[tuple[int, int]] = (256, 256)  # of the pictures in the shards, where no other is asked for

    def listing(self) -> Listing:
        """All instants of both splits. Raises ValueError where a folder or file is missing or does not parse."""
        self._check_settings()
        views = find_views(self.root, self.layout)
        file = find_calibration(self.root, self.calibration)
        azimuths = read_azimuths(file)
        people = self._people({view.take for view in views})
        splits, split_note = self._splits(people)
        entries: list[Entry] = []
        rejects: list[Reject] = []
        for view in views:
            who = _Who(people.get(view.take, ""), splits.get(view.take, "train"), azimuths.get(plain_name(view.camera)))
            square = _square(view.poses.values(), self.margin)
            refused = [*view.refused, *_unusable(view, who, square)]
            rejects += [_reject(view, who.split, one) for one in refused if (one.frame or 0) % self.stride == 0]
            if who.person and who.azimuth is not None and square is not None:
                entries += _entries(view, who, square, self.stride)
        entries.sort(key=lambda entry: entry.group)  # an instant's views stay in their order
        listing = Listing(entries, "", rejects)
        _check_splits(self.root, listing)
        sizes = part_sizes([entry.path for entry in entries])
        turns = ", ".join(f"{name} {azimuth:.1f}" for name, azimuth in azimuths.items())
        notes = (f"Cameras: azimuths by {file.name} in degrees: {turns}.", split_note)
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes), notes=notes)

    def load(self, entry: Entry) -> Picture:
        """The crop of the picture or frame, in its own pixels, as BMP. Raises ValueError(reason, detail)."""
        assert entry.joints is not None
        assert entry.visible is not None
        return Picture(read_part(parse_part(entry.path)), entry.joints, entry.visible)

    def _check_settings(self) -> None:
        check_settings(layout=self.layout, identity=self.identity, test_share=self.test_share)
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 (every frame), not {self.stride}.")
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0 (a share of the joints' extent), not {self.margin}.")

    def _people(self, takes: Collection[str]) -> dict[str, str]:
        """The person of each take that has one."""
        if self.identity is None:
            return {take: take for take in sorted(takes)}
        found = {take: re.search(self.identity, take) for take in sorted(takes)}
        return {take: match[1] for take, match in found.items() if match and match[1]}

    def _splits(self, people: Mapping[str, str]) -> tuple[dict[str, str], str]:
        """The split of each take, and what decided."""
        known = sorted({*people, *people.values()})
        if unknown := [name for name in self.test if name not in known]:
            raise ValueError(f"test names {', '.join(unknown)}; the takes and people are {', '.join(known)}.")
        named = sorted(set(people.values()))
        if not self.test and len(named) < 2:
            raise ValueError(
                f"the takes are of {len(named)} people ({', '.join(named) or 'nobody'}), so nobody can be held out for "
                "testing. Give takes of another person, or say which takes are for testing: --set data.test=TAKE."
            )
        testing = set(self.test) or held_out(named, self.test_share)
        splits = {take: "test" if {take, person} & testing else "train" for take, person in people.items()}
        trained, tested = ({people[take] for take in splits if splits[take] == split} for split in SPLITS)
        warning = " The scores say little about other people: some are in both splits." if trained & tested else ""
        return splits, f"Splits: tested are {', '.join(take for take in splits if splits[take] == 'test')}.{warning}"


class _Who(NamedTuple):
    """Whose a view is ("" where unknown), its split, and its camera's azimuth in degrees, where that is known."""

    person: str
    split: str
    azimuth: float | None


def _unusable(view: View, who: _Who, square: Square | None) -> list[Refused]:
    """Why nothing of a view that has joints and pictures can be used, if so."""
    found = []
    if view.poses and not who.person:
        found.append(Refused(None, reasons.NO_IDENTITY, view.take))
    if view.poses and who.azimuth is None:
        found.append(Refused(None, reasons.NOT_CALIBRATED, view.camera))
    if view.poses and square is None:
        found.append(Refused(None, reasons.NO_CROP, f"{len(view.poses):,} frames"))
    return found


def _called(view: View, frame: int) -> str:
    return f"{view.take}/{frame:06d}"


def _reject(view: View, split: str, refused: Refused) -> Reject:
    frame = view.take if refused.frame is None else _called(view, refused.frame)
    return Reject(f"{frame}.{view.camera}", split, refused.reason, refused.detail)


def _entries(view: View, who: _Who, square: Square, stride: int) -> list[Entry]:
    """A view's entries, joints in pixels of the crop."""
    assert who.azimuth is not None
    return [
        Entry(
            name=f"{_called(view, frame)}.{view.camera}",
            split=who.split,
            group=_called(view, frame),
            identity=who.person,
            view=view.camera,
            path=str(Part(view.path(frame), frame if view.video else None, square)),
            joints=np.where(pose.visible[:, None], pose.joints - np.array(square[:2], np.float32), np.float32(MISSING)),
            visible=pose.visible,
            azimuth=who.azimuth,
        )
        for frame, pose in view.poses.items()
        if frame % stride == 0
    ]


def _square(poses: Iterable[Pose], margin: float) -> Square | None:
    """The square of a view of a take; None where no finite joint is known, or where they lie impossibly far."""
    known = [pose.joints[pose.visible & np.isfinite(pose.joints).all(axis=1)] for pose in poses]
    seen = [joints.astype(np.float64) for joints in known if len(joints)]
    if not seen:
        return None
    low = np.quantile([joints.min(axis=0) for joints in seen], STRAY, axis=0)
    high = np.quantile([joints.max(axis=0) for joints in seen], 1 - STRAY, axis=0)
    square = square_around(low, high, margin * float((high - low).max()))
    return square if square.side <= LARGEST else None


def _check_splits(root: Path, listing: Listing) -> None:
    for split in SPLITS:
        if not any(entry.split == split for entry in listing.entries):
            counts = Counter(reject.reason for reject in listing.rejects if reject.split == split)
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "nothing"
            raise ValueError(
                f"'{root}' has no usable view for the split '{split}'; left out: {why}. Expected {EXPECTED}."
            )
