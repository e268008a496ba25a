"""Folders of synchronized views: images and videos, joints, calibration, groups, splits, and what is rejected why."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.data import reasons
from posegen.data.formats.images import parse_part
from posegen.data.geometry.joints import JOINTS
from posegen.data.listing import Listing, Source
from posegen.data.sources.pairs import ordered_pairs, usable_rows
from posegen.data.sources.synchronized_views import SynchronizedViews
from tests.conftest import SHARED_DATA

POSE2SIM = SHARED_DATA / "open/pose2sim"
needs_pose2sim = pytest.mark.skipif(not POSE2SIM.exists(), reason="the shared Pose2Sim recordings are not here")
CAMERAS = {"cam01": 10.0, "cam02": 100.0, "cam03": -130.0}
WIDTH, HEIGHT, FRAMES = 160, 120, 5
MARKS = {"nose": (0, 0, 255), "left_wrist": (0, 255, 0), "right_ankle": (255, 0, 0), "left_ankle": (0, 255, 255)}


def joints(camera: str, frame: int) -> np.ndarray:
    """18 joints on a half circle 70 pixels across, somewhere else in each view and each frame."""
    angles = np.linspace(0, np.pi, 18)
    place = np.array([60 + 6 * frame, 50 + 4 * (int(camera[-2:]) % 4)])
    return (place + 35 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round()


def openpose(path: Path, points: np.ndarray | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [] if points is None else np.concatenate([points, np.full((len(points), 1), 0.9)], axis=1).ravel().tolist()
    path.write_text(json.dumps({"version": 1.3, "people": [{"pose_keypoints_2d": known}] if known else []}))


def image(camera: str, frame: int) -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    for name, colour in MARKS.items():
        x, y = joints(camera, frame)[JOINTS.index(name)].astype(int)
        cv2.circle(pixels, (int(x), int(y)), 4, colour, -1)
    return pixels


def make_take(root: Path, take: str, cameras=tuple(CAMERAS), frames=range(FRAMES)) -> None:
    for camera in cameras:
        for frame in frames:
            openpose(root / take / f"{camera}_json/{camera}.{frame:04d}.json", joints(camera, frame))
            file = root / take / camera / f"{frame:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), image(camera, frame))


def as_videos(take: Path) -> None:
    """Pose2Sim's own layout: videos and joints in folders of their own, OpenPose's own names."""
    (take / "videos").mkdir()
    (take / "pose").mkdir()
    for camera in CAMERAS:
        writer = cv2.VideoWriter(
            str(take / f"videos/{camera}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (WIDTH, HEIGHT)
        )
        for frame in range(FRAMES):
            writer.write(image(camera, frame))
            (take / camera / f"{frame:05d}.png").unlink()
            json_file = take / f"{camera}_json/{camera}.{frame:04d}.json"
            json_file.rename(json_file.with_name(f"{camera}_{frame:012d}_keypoints.json"))
        writer.release()
        (take / camera).rmdir()
        (take / f"{camera}_json").rename(take / f"pose/{camera}_json")


def calibrate(root: Path, cameras=CAMERAS) -> None:
    content = {"cameras": {name: {"azimuth": angle} for name, angle in cameras.items()}}
    (root / "calibration.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two takes of three cameras with five images each."""
    make_take(tmp_path, "anna")
    make_take(tmp_path, "ben")
    calibrate(tmp_path)
    return tmp_path


def found(listing: Listing) -> set[tuple[str, str]]:
    return {(reject.name, reject.reason) for reject in listing.rejects}


def check_marks(source: Source, listing: Listing) -> None:
    for entry in reversed(listing.entries):
        imaged = source.load(entry)
        pixels = cv2.imdecode(np.frombuffer(imaged.encoded, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (pixels.shape[0],) * 2 + (3,)
        for name, colour in MARKS.items():
            x, y = imaged.joints[JOINTS.index(name)].astype(int)
            assert np.abs(pixels[y, x].astype(int) - colour).max() < 90, (entry.name, name)


@pytest.mark.parametrize("videos", [False, True])
def test_joints_land_on_their_marks_in_every_crop(root: Path, videos: bool):
    for take in ("anna", "ben"):
        if videos:
            as_videos(root / take)
    source = SynchronizedViews(root)
    listing = source.listing()
    assert len(listing.entries) == 2 * 3 * FRAMES
    assert listing.rejects == []
    check_marks(source, listing)
    assert len({parse_part(entry.path).square for entry in listing.entries}) == 3, "one a view of a take"


def test_groups_are_instants_and_rotations_real(root: Path):
    listing = SynchronizedViews(root, test=("ben",)).listing()
    first = listing.entries[:3]
    assert [entry.name for entry in first] == [f"anna/000000.{camera}" for camera in CAMERAS]
    assert {entry.group for entry in first} == {"anna/000000"}
    assert {(entry.view, entry.azimuth) for entry in listing.entries} == set(CAMERAS.items())
    assert {(entry.identity, entry.split) for entry in listing.entries} == {("anna", "train"), ("ben", "test")}
    pairs = ordered_pairs([listing.entries[row].group for row in usable_rows(listing.entries)])
    assert len(pairs) == 2 * FRAMES * 6
    assert listing.notes == (
        "Cameras: azimuths by calibration.json in degrees: cam01 10.0, cam02 100.0, cam03 -130.0.",
        "Splits: tested are ben.",
    )


def test_every_strideth_frame_is_taken(root: Path):
    groups = {entry.group for entry in SynchronizedViews(root, stride=2).listing().entries}
    assert groups == {f"{take}/{frame:06d}" for take in ("anna", "ben") for frame in (0, 2, 4)}


def test_the_crop_holds_the_joints_and_the_margin(root: Path):
    entry = SynchronizedViews(root, margin=0.5).listing().entries[0]
    extent = 70 + 6 * (FRAMES - 1)  # pixels from left to right, over all frames
    square = parse_part(entry.path).square
    assert square.side == pytest.approx(2 * extent, abs=4)
    assert parse_part(SynchronizedViews(root, margin=0).listing().entries[0].path).square.side < extent + 2


def test_a_stray_joint_in_one_frame_of_many_hardly_moves_the_crop(tmp_path: Path):
    for take in ("anna", "ben"):
        make_take(tmp_path, take, ["cam01"], [0])
        for frame in range(1, 300):
            points = joints("cam01", 0)
            points[4] = (9000, -9000) if frame == 7 else points[4]
            openpose(tmp_path / take / f"cam01_json/cam01.{frame:04d}.json", points)
        (tmp_path / take / "cam01").rename(tmp_path / take / "still")
        (tmp_path / take / "cam01.mp4").write_bytes(b"a video")
    calibrate(tmp_path)
    assert parse_part(SynchronizedViews(tmp_path).listing().entries[0].path).square.side < 110


def test_people_are_whole_takes_or_by_a_regular_expression(root: Path):
    make_take(root, "anna_2", frames=[0])
    by_take = SynchronizedViews(root).listing()
    assert {entry.identity for entry in by_take.entries} == {"anna", "anna_2", "ben"}
    listing = SynchronizedViews(root, identity="^([a-z]+)").listing()
    splits = {entry.group.split("/")[0]: (entry.identity, entry.split) for entry in listing.entries}
    assert {identity for identity, _ in splits.values()} == {"anna", "ben"}
    assert splits["anna"] == splits["anna_2"], "whole people are held out"
    assert {split for _, split in splits.values()} == {"train", "test"}
    by_name = SynchronizedViews(root, identity="^([a-z]+)", test=("anna_2",)).listing()
    assert by_name.notes[1].endswith("Splits: tested are anna_2. The scores say little about other people: some are "
                                     "in both splits.")  # fmt: skip
    whole = SynchronizedViews(root, identity="^([a-z]+)", test=("anna",)).listing()
    assert {entry.group.split("/")[0] for entry in whole.entries if entry.split == "test"} == {"anna", "anna_2"}
    nameless = SynchronizedViews(root, identity="^(a.*|b.*n)$", test=("ben",)).listing()
    assert nameless.rejects == []
    some = SynchronizedViews(root, identity="^(anna|ben)$", test=("ben",)).listing()
    assert found(some) == {(f"anna_2.{camera}", reasons.NO_IDENTITY) for camera in CAMERAS}


def test_what_is_missing_is_counted_with_its_reason(root: Path):
    take = root / "anna"
    (take / "cam01/00002.png").unlink()
    (take / "cam02_json/cam02.0003.json").unlink()
    cv2.imwrite(str(take / "cam02/cover.png"), image("cam02", 0))
    cv2.imwrite(str(take / "cam02/again_1.png"), image("cam02", 0))
    make_take(root, "anna", ["cam09"])
    make_take(root, "ben", ["cam07", "cam08"])
    (root / "ben/cam07").rename(root / "ben/.hidden")
    (root / "ben/cam08_json").rename(root / "ben/.also")
    openpose(root / "ben/cam01_json/cam01.0001.json", None)
    listing = SynchronizedViews(root, test=("ben",)).listing()
    assert found(listing) == {
        ("anna/000002.cam01", reasons.NO_IMAGE),
        ("anna/000003.cam02", reasons.NOT_ANNOTATED),
        ("anna.cam02", reasons.NO_NUMBER),
        ("anna/000001.cam02", reasons.NO_IMAGE),
        ("anna.cam09", reasons.NOT_CALIBRATED),
        ("ben.cam07", reasons.NO_VIDEO),
        ("ben.cam08", reasons.VIDEO_NOT_ANNOTATED),
    }
    details = [reject.detail for reject in listing.rejects if reject.reason == reasons.NO_NUMBER]
    assert sorted(details) == ["00001", "again_1", "cover"]
    nobody = next(entry for entry in listing.entries if entry.name == "ben/000001.cam01")
    assert nobody.visible is not None
    assert not nobody.visible.any(), "it is rejected when it is prepared"
    strided = SynchronizedViews(root, test=("ben",), stride=2).listing()
    assert ("anna/000003.cam02", reasons.NOT_ANNOTATED) not in found(strided)
    assert ("anna/000002.cam01", reasons.NO_IMAGE) in found(strided)


def test_joints_that_no_crop_can_hold_are_rejected(root: Path):
    for frame in range(FRAMES):
        openpose(root / f"anna/cam01_json/cam01.{frame:04d}.json", joints("cam01", frame) * 1e6)
        openpose(root / f"anna/cam02_json/cam02.{frame:04d}.json", None)
    rejected = found(SynchronizedViews(root, test=("ben",)).listing())
    assert rejected == {("anna.cam01", reasons.NO_CROP), ("anna.cam02", reasons.NO_CROP)}


def test_a_damaged_image_is_a_reject_of_its_own(root: Path):
    source = SynchronizedViews(root)
    first, second = source.listing().entries[:2]
    parse_part(first.path).path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="truncated or damaged image"):
        source.load(first)
    assert source.load(second).encoded
    parse_part(first.path).path.unlink()
    parse_part(first.path).path.symlink_to(root / "nowhere.png")
    assert source.listing().entries[0].name == first.name
    with pytest.raises(ValueError, match="unreadable file"):
        source.load(first)


def test_the_fingerprint_knows_joints_cameras_and_settings_but_no_place(root: Path, tmp_path_factory):
    def fingerprint(folder: Path, **settings) -> str:
        return SynchronizedViews(folder, **settings).listing().fingerprint

    first = fingerprint(root)
    moved = tmp_path_factory.mktemp("other") / "place"
    root.rename(moved)
    assert fingerprint(moved) == first
    others = {
        fingerprint(moved, margin=0.2),
        fingerprint(moved, stride=2),
        fingerprint(moved, test=("anna", "ben")[:1]),
    }
    calibrate(moved, {**CAMERAS, "cam01": 11.0})
    turned = fingerprint(moved)
    openpose(moved / "anna/cam01_json/cam01.0001.json", joints("cam01", 2))
    assert len({first, *others, turned, fingerprint(moved)}) >= 5
    assert turned != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride must be at least 1"),
        ({"margin": -0.1}, "margin must be at least 0"),
        ({"layout": "body_26"}, "Expected one of body_18, body_25, body_25b"),
        ({"test_share": 1.0}, "test_share must lie between 0 and 1"),
        ({"identity": "anna"}, "has no group"),
        ({"test": ("carl", "ben")}, "test names carl; the takes and people are anna, ben"),
        ({"test": ("anna", "ben")}, r"no usable view for the split 'train'; left out: nothing\. Expected"),
        ({"calibration": Path("other.json")}, r"other\.json': expected Qualisys' .*there is no such file"),
    ],
)
def test_settings_that_are_wrong_are_named(root: Path, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SynchronizedViews(root, **settings).listing()


def test_a_wrong_root_says_what_is_expected_and_what_is_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder\. Expected one with a calibration file"):
        SynchronizedViews(tmp_path / "nowhere").listing()
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"holds no take\. Expected a calibration file .*there is images\."):
        SynchronizedViews(tmp_path).listing()
    make_take(tmp_path, "anna")
    with pytest.raises(ValueError, match=r"expected one calibration file .*there is none\. Or say which"):
        SynchronizedViews(tmp_path).listing()
    calibrate(tmp_path)
    with pytest.raises(ValueError, match=r"takes are of 1 people \(anna\), so none can be held out.*data\.test=TAKE"):
        SynchronizedViews(tmp_path).listing()
    (tmp_path / "calibration").mkdir()
    calibrate(tmp_path / "calibration")
    with pytest.raises(ValueError, match=r"there is calibration\.json, calibration\.json"):
        SynchronizedViews(tmp_path).listing()


def test_points_of_body_25b_ask_for_their_layout(root: Path):
    """Joints by COCO's names on the half circle; the elbow, point 8, is not between the hips, points 9 and 12."""
    for path in root.rglob("*.json"):
        if path.parent.name.endswith("_json"):
            openpose(path, np.concatenate([joints("cam01", 0), joints("cam01", 0)[:7]]))
    with pytest.raises(ValueError, match=r"cam01_json: .*layout 'body_25b', or"):
        SynchronizedViews(root).listing()
    entries = SynchronizedViews(root, layout="body_25b").listing().entries
    assert entries[0].visible is not None
    assert entries[0].visible.all()


@needs_pose2sim
def test_pose2sims_recordings(tmp_path: Path):
    """The real joints and calibration of two takes of four cameras, with made-up images: 25 and 5 instants."""
    blank = cv2.imencode(".jpg", np.full((1920, 1088, 3), 90, np.uint8))[1].tobytes()
    for take, count in (("single", 25), ("multi", 5)):
        (tmp_path / take).mkdir()
        (tmp_path / take / "pose").symlink_to(POSE2SIM / take / "pose")
        files = sorted((tmp_path / take / "pose").glob("*/*.json"))
        assert len(files) == 4 * count
        for file in files:
            made = tmp_path / take / file.parent.name.removesuffix("_json") / f"{file.stem}.jpg"
            made.parent.mkdir(exist_ok=True)
            made.write_bytes(blank)
    (tmp_path / "calibration").symlink_to(POSE2SIM / "calibration")
    source = SynchronizedViews(tmp_path, layout="body_25b", test=("multi",))
    listing = source.listing()
    assert listing.rejects == []
    assert len(listing.entries) == 4 * 30
    assert {round(entry.azimuth) for entry in listing.entries} == {-38, 12, 135, -154}
    usable = [listing.entries[row] for row in usable_rows(listing.entries)]
    assert len(usable) == 120, "all shoulders and hips are seen"
    pairs = {"train": 0, "test": 0}
    for source_row, _ in ordered_pairs([entry.group for entry in usable]):
        pairs[usable[source_row].split] += 1
    assert pairs == {"train": 25 * 12, "test": 5 * 12}
    height = source.load(usable[0])
    side = parse_part(usable[0].path).square.side
    assert height.joints[height.visible].min() >= 0
    assert height.joints[height.visible].max() < side
