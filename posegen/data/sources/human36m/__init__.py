"""Human3.6M (Ionescu et al. 2014): four calibrated cameras around one person, for the systems that turn the view.

The videos lie as they are distributed (`S1/Videos/Directions 1.54138969.mp4`, 50 frames a second, 1000x1000 or
1000x1002); the joints are VideoPose3D's files, which are not part of posegen either. A group is one instant: a subject,
an action, a frame. Its views are the cameras, at azimuths of about 69.6, -70.9, 109.5 and -115.7 degrees (S1; each
subject has its own). So rotations between them are about 40, 45, 135 to 140 and 175 degrees, never multiples of 90.

The split is the usual one by subject, and the square crop that of Villegas et al. 2017, one a video, around all joints.
Which frames are taken is our choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from posegen.data import reasons
from posegen.data.formats import MISSING
from posegen.data.formats.calibration import Camera, azimuth
from posegen.data.formats.images import LARGEST, Part, Square, parse_part, part_sizes, read_part, square_around
from posegen.data.geometry.joints import HUMAN36M_17, from_layout
from posegen.data.listing import Entry, Listing, LoadedImage, Reject, fingerprint
from posegen.data.sources.human36m.files import (
    EXPECTED,
    Action,
    Cameras,
    JointsFile,
    VideoName,
    find_videos,
    read_cameras,
    read_joints,
)
from posegen.data.sources.splits import empty_split

SUBJECTS = {"S1": "train", "S5": "train", "S6": "train", "S7": "train", "S8": "train", "S9": "test", "S11": "test"}


class _Views(NamedTuple):
    """The videos of an action that have joints, the entries of each usable one, and rejects."""

    posed: list[VideoName]
    entries: list[list[Entry]]
    rejects: list[Reject]


@dataclass(frozen=True)
class Human36M:
    """The official videos below `root`, and VideoPose3D's joints.

    Attributes:
        root: The data set's folder.
        joints: The file of joints, in pixels or in metres. None takes `data_2d_h36m_gt.npz` or `data_3d_h36m.npz` in
            the root.
        cameras: A JSON file of cameras, as `read_cameras` reads it. None takes `cameras.json` in the root, or else the
            published numbers.
        stride: Every `stride`-th frame is taken (our choice: 25, two instants a second).
        pad: Villegas' 20 pixels of the video on each side of the joints; a square is black outside the video.
    """

    root: Path
    joints: Path | None = None
    cameras: Path | None = None
    stride: int = 25
    pad: int = 20
    name: ClassVar[str] = "human36m"
    size: ClassVar[tuple[int, int]] = (256, 256)  # default of the images in the shards

    def listing(self) -> Listing:
        """List all instants of both splits. Raises ValueError for a missing or malformed folder or file."""
        self._check_settings()
        videos = find_videos(self.root)
        joints = read_joints(self.root, self.joints)
        cameras, cameras_note = self._cameras()
        actions = joints.actions(cameras)
        found = [self._views(action, videos, cameras[action.subject], joints.layout) for action in actions]
        instants = chain.from_iterable(zip_longest(*views.entries) for views in found)
        entries = [entry for instant in instants for entry in instant if entry is not None]
        posed = set(chain.from_iterable(views.posed for views in found))
        unused = _unused([video for video in videos if video not in posed], joints, cameras)
        listing = Listing(entries, "", [*chain.from_iterable(views.rejects for views in found), *unused])
        _check_splits(self.root, listing)
        sides = [parse_part(entry.path).square.side for entry in entries]
        crop_note = f"Crops: a square a video around all joints, {min(sides)} to {max(sides)} pixels a side."
        notes = (f"Joints: {joints.path.name} ({joints.layout}).", cameras_note, crop_note)
        sizes = part_sizes([entry.path for entry in entries])
        return replace(listing, fingerprint=fingerprint(self.name, listing, sizes), notes=notes)

    def load(self, entry: Entry) -> LoadedImage:
        """Read the crop of the frame, in the video's own pixels, as BMP. Raises ValueError(reason, detail)."""
        return entry.loaded(read_part(parse_part(entry.path)))

    def _check_settings(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 (every frame), not {self.stride}.")
        if self.pad < 0:
            raise ValueError(f"pad must be at least 0 (pixels of the video), not {self.pad}.")

    def _cameras(self) -> tuple[Cameras, str]:
        path = self.cameras
        if path is not None:
            path = path if path.is_file() else self.root / path
        elif (self.root / "cameras.json").is_file():
            path = self.root / "cameras.json"
        source = "the published ones" if path is None else f"those of {path.name}"
        cameras = {subject: placed for subject, placed in read_cameras(path).items() if subject in SUBJECTS}
        return cameras, f"Cameras: {source}."

    def _views(
        self, action: Action, videos: Mapping[VideoName, Path], cameras: Mapping[str, Camera], layout: str
    ) -> _Views:
        """Return an action's entries, every `stride`-th frame of each of its videos."""
        entries: list[list[Entry]] = []
        rejects: list[Reject] = []
        for camera, points in action.views.items():
            video = VideoName(action.subject, action.action, camera)
            square = _square(points, layout, self.pad)
            if video not in videos or square is None:
                reason = reasons.NO_CROP if video in videos else reasons.NO_VIDEO
                rejects.append(_reject(video, reason, f"joints of {len(points):,} frames"))
                continue
            frames = {frame: points[frame] for frame in range(0, len(points), self.stride)}
            direction = azimuth(cameras[camera].position, np.zeros(3))
            entries.append(_entries(video, frames, Part(videos[video], 0, square), layout=layout, azimuth=direction))
        return _Views([VideoName(*action[:2], camera) for camera in action.views], entries, rejects)


def _entries(
    video: VideoName, frames: Mapping[int, np.ndarray], whole: Part, *, layout: str, azimuth: float
) -> list[Entry]:
    """Return a video's entries, joints in pixels of the crop. Motion capture knows all points."""
    points = np.stack(list(frames.values()))
    joints, confidence = from_layout(np.concatenate([points, np.ones_like(points[..., :1])], axis=-1), layout)
    visible = confidence > 0
    joints = np.where(visible[..., None], joints - whole.square[:2], MISSING).astype(np.float32)
    instants = {frame: f"{video.subject}/{video.action}/{frame:06d}" for frame in frames}
    return [
        Entry(
            name=f"{instant}.{video.camera}",
            split=SUBJECTS[video.subject],
            group=instant,
            identity=video.subject,
            view=video.camera,
            path=str(whole._replace(frame=frame)),
            joints=joints[row],
            visible=visible[row],
            azimuth=azimuth,
        )
        for row, (frame, instant) in enumerate(instants.items())
    ]


def _square(points: Float[np.ndarray, "frames points 2"], layout: str, pad: int) -> Square | None:
    """Return the square around all joints of a video: Human3.6M's 17, so that files of 17 and 32 crop alike."""
    body = points[:, list(HUMAN36M_17)] if layout == "human36m_32" else points
    finite = body[np.isfinite(body).all(axis=-1)]
    square = square_around(finite.min(axis=0), finite.max(axis=0), pad) if len(finite) else None
    return square if square is not None and square.side <= LARGEST else None


def _reject(video: VideoName, reason: str, detail: str) -> Reject:
    return Reject(
        f"{video.subject}/{video.action}.{video.camera}", SUBJECTS.get(video.subject, "train"), reason, detail
    )


def _unused(unposed: Sequence[VideoName], joints: JointsFile, cameras: Cameras) -> list[Reject]:
    """Reject videos without joints, subjects without joints or cameras, and subjects in neither split."""
    file = joints.path.name
    missing = [subject for subject in SUBJECTS if subject not in joints.recordings or subject not in cameras]
    others = [subject for subject in joints.recordings if subject not in SUBJECTS]
    return [
        *(_reject(video, reasons.VIDEO_NOT_ANNOTATED, f"not in {file}") for video in unposed),
        *(Reject(each, SUBJECTS[each], reasons.NO_SUBJECT, f"not in {file}, or without cameras") for each in missing),
        *(Reject(subject, "train", reasons.UNKNOWN_SUBJECT, f"in {file}") for subject in others),
    ]


def _check_splits(root: Path, listing: Listing) -> None:
    if empty := empty_split(listing):
        split, left_out = empty
        subjects = ", ".join(subject for subject, of in SUBJECTS.items() if of == split)
        raise ValueError(
            f"'{root}' has no video with joints for the split '{split}', which is the subjects {subjects}; left out: "
            f"{left_out}. Expected {EXPECTED}."
        )
