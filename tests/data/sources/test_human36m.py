"""Human3.6M: a small root with real videos, joints that land on drawn marks, real azimuths, what is rejected why."""

import json
import os
import pickle
from collections import Counter
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.data import reasons
from posegen.data.formats.images import parse_part
from posegen.data.geometry.joints import HUMAN36M_17, JOINTS, TORSO
from posegen.data.listing import Entry, Listing, Source
from posegen.data.shards.making import ShardSettings, make_shard, plan_works, prepare
from posegen.data.shards.manifest import read_arrow
from posegen.data.sources.human36m import CAMERAS, SUBJECTS, Human36M, read_cameras
from posegen.data.sources.pairs import ordered_pairs, usable_rows

SIDE, FRAMES, STRIDE = 300, 16, 5
PEOPLE = ("S1", "S5", "S9")
IDS = tuple(CAMERAS)

# The 32 points in metres: x to the person's left, y to the back, z up. Marks (BGR) are drawn at
# points of different heights, so that none hides another.
STANDING = {
    0: (0, 0, 0.95), 1: (-0.13, 0, 0.95), 2: (-0.2, 0, 0.7), 3: (-0.3, 0, 0.55), 6: (0.13, 0, 0.95), 7: (0.2, 0, 0.5),
    8: (0.3, 0, 0.05), 11: (0, 0, 0.95), 12: (0, 0, 1.2), 13: (0, 0, 1.45), 14: (0, -0.05, 1.6), 15: (0, 0, 1.75),
    16: (0, 0, 1.45), 17: (0.18, 0, 1.42), 18: (0.4, 0, 1.4), 19: (0.62, 0, 1.1), 24: (0, 0, 1.45),
    25: (-0.18, 0, 1.42), 26: (-0.4, 0, 1.4), 27: (-0.62, 0, 1.85),
}  # fmt: skip
MARKS = {
    "nose": (14, (255, 255, 0)),
    "left_wrist": (19, (0, 0, 255)),
    "right_wrist": (27, (0, 255, 0)),
    "left_ankle": (8, (255, 0, 0)),
    "right_ankle": (3, (0, 255, 255)),
    "right_elbow": (26, (255, 0, 255)),
}


def positions() -> np.ndarray:
    """float32 (FRAMES, 32, 3) in metres: a person who turns and moves 6 cm a frame. Ends of hands and feet lie far."""
    points = np.full((32, 3), 3.0)
    for number, place in STANDING.items():
        points[number] = place
    turns = np.deg2rad(np.arange(FRAMES) * 4)
    zero, one = np.zeros(FRAMES), np.ones(FRAMES)
    rotations = np.array(
        [[np.cos(turns), -np.sin(turns), zero], [np.sin(turns), np.cos(turns), zero], [zero, zero, one]]
    )
    moved = np.einsum("ijf,pj->fpi", rotations, points)
    moved[..., 0] += 0.06 * (np.arange(FRAMES)[:, None] - FRAMES / 2)
    return moved.astype(np.float32)


def own_cameras() -> dict:
    """The published cameras with plain lenses, for videos of 300x300 pixels."""
    lens = {"focal_length": [343, 343], "center": [150, 150], "radial_distortion": [-0.2, 0.24, 0],
            "tangential_distortion": [0, 0]}  # fmt: skip
    return {"cameras": dict.fromkeys(CAMERAS, lens), "subjects": SUBJECTS}


def seen(subject: str, camera: str, points: np.ndarray) -> np.ndarray:
    """The points in pixels, by OpenCV."""
    placed = read_cameras(None)[subject][camera]
    matrix = np.array([[343, 0, 150], [0, 343, 150], [0, 0, 1]], float)
    turn = cv2.Rodrigues(placed.rotation)[0]
    flat = points.reshape(-1, 3).astype(float)
    found = cv2.projectPoints(flat, turn, -placed.rotation @ placed.position, matrix, np.array([-0.2, 0.24, 0, 0, 0]))[
        0
    ]
    return found.reshape(*points.shape[:-1], 2)


def write_video(path: Path, marks: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 50, (SIDE, SIDE))
    for frame in marks:
        image = np.full((SIDE, SIDE, 3), 110, np.uint8)
        for row, colour in MARKS.values():
            cv2.circle(image, tuple(int(v) for v in frame[row].round()), 4, colour, -1)
        writer.write(image)
    writer.release()


def video(root: Path, subject: str, camera: str, action: str = "Directions 1") -> Path:
    return root / subject / "Videos" / f"{action}.{camera}.mp4"


def write_2d(path: Path, views: dict, **metadata) -> None:
    np.savez_compressed(path, positions_2d=views, metadata={"num_joints": 17, **metadata})


def views_2d() -> dict:
    points = positions()[:, list(HUMAN36M_17)]
    return {s: {"Directions 1": [seen(s, camera, points).astype(np.float32) for camera in IDS]} for s in PEOPLE}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects, one action, four cameras, with joints in metres and cameras of their own."""
    root = tmp_path_factory.mktemp("human36m")
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d={s: {"Directions 1": positions()} for s in PEOPLE})
    (root / "cameras.json").write_text(json.dumps(own_cameras()))
    for subject in PEOPLE:
        for camera in IDS:
            write_video(video(root, subject, camera), seen(subject, camera, positions()))
    return root


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """The same without images: a listing opens no video. Joints in pixels, the published cameras."""
    write_2d(tmp_path / "data_2d_h36m_gt.npz", views_2d())
    for subject in PEOPLE:
        for camera in IDS:
            video(tmp_path, subject, camera).parent.mkdir(parents=True, exist_ok=True)
            video(tmp_path, subject, camera).write_bytes(b"a video")
    return tmp_path


def colour_at(image: bytes, joint: np.ndarray) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    x, y = joint.round().astype(int)
    return pixels[y, x].astype(int)


def rejected(listing: Listing) -> Counter:
    return Counter(reject.reason for reject in listing.rejects)


def test_joints_land_on_their_marks_in_every_crop(recorded: Path):
    source: Source = Human36M(recorded, stride=STRIDE)
    entries = source.listing().entries
    assert len(entries) == 3 * 4 * 4
    for entry in reversed(entries):  # frames backwards too
        image = source.load(entry)
        for name, (_, colour) in MARKS.items():
            found = colour_at(image.encoded, image.joints[JOINTS.index(name)])
            assert np.abs(found - colour).max() < 90, (entry.name, name, found)


def test_joints_land_on_their_marks_in_the_stored_images(recorded: Path):
    source = Human36M(recorded, stride=STRIDE)
    for entry in source.listing().entries[::7]:
        row = prepare(entry, source, ShardSettings(size=source.size), listed=False)
        pixels = cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (256, 256, 3)
        for name, (_, colour) in MARKS.items():
            found = colour_at(row.image, row.joints[JOINTS.index(name)])
            assert np.abs(found - colour).max() < 90, (entry.name, name, found)


def test_shards_hold_every_ordered_pair_of_an_instant_with_its_azimuths(recorded: Path, tmp_path: Path):
    source = Human36M(recorded, stride=STRIDE)
    works, rejects = plan_works(source.listing(), images_per_shard=1000)
    assert rejects == []
    summaries = [make_shard(work, source, tmp_path, ShardSettings(size=(64, 64)), {}) for work in works]
    assert {summary.split: (summary.rows, summary.pairs) for summary in summaries} == {
        "test": (16, 4 * 12),
        "train": (32, 8 * 12),
    }
    assert all(summary.rejects == [] for summary in summaries)
    stored = read_arrow(tmp_path / f"{works[0].stem}.arrow")
    assert stored.column("view").to_pylist() == list(IDS) * 4
    assert stored.column("azimuth").to_pylist() == pytest.approx([67.5, -68.8, 107.8, -113.9] * 4, abs=0.05)


def test_the_crop_is_one_square_a_video_around_all_joints_with_20_pixels(recorded: Path):
    """Villegas' rule, by hand for one video; the far ends of hands and feet are not joints of the 17."""
    listing = Human36M(recorded, stride=STRIDE).listing()
    parts = {parse_part(entry.path)[::2] for entry in listing.entries}
    assert len(parts) == 12, "a square each"
    points = seen("S9", IDS[2], positions()[:, list(HUMAN36M_17)]).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    (square,) = (square for path, square in parts if path == video(recorded, "S9", IDS[2]))
    assert square.side == pytest.approx((high - low).max() + 2 * 20, abs=2)
    middle = np.array(square[:2]) + (square.side - 1) / 2
    assert middle == pytest.approx((low + high) / 2, abs=1)
    joints = np.concatenate([entry.joints[:14] for entry in listing.entries])  # pyright: ignore
    assert joints.min() >= 20 - 1
    tight = Human36M(recorded, stride=STRIDE, pad=0).listing()
    assert parse_part(tight.entries[0].path).square.side < parse_part(listing.entries[0].path).square.side - 38


def test_groups_are_instants_and_pairs_their_ordered_views(recorded: Path):
    listing = Human36M(recorded, stride=STRIDE).listing()
    first = listing.entries[:4]
    assert [entry.name for entry in first] == [f"S1/Directions 1/000000.{camera}" for camera in IDS]
    assert [entry.view for entry in first] == list(IDS)
    assert {entry.group for entry in first} == {"S1/Directions 1/000000"}
    assert {entry.group for entry in listing.entries if entry.identity == "S9"} == {
        f"S9/Directions 1/{frame:06d}" for frame in (0, 5, 10, 15)
    }
    assert {entry.identity: entry.split for entry in listing.entries} == {"S1": "train", "S5": "train", "S9": "test"}
    rows = usable_rows(listing.entries)
    assert len(rows) == len(listing.entries), "all shoulders and hips are known"
    pairs = ordered_pairs([listing.entries[row].group for row in rows])
    assert len(pairs) == 12 * 12, "12 ordered pairs an instant"
    assert Human36M(recorded, stride=1).listing().entries[4].group.endswith("/000001")


def test_eyes_and_ears_are_unknown_and_the_neck_is_the_thorax(recorded: Path):
    entry = Human36M(recorded, stride=STRIDE).listing().entries[1]
    assert entry.joints is not None
    assert entry.visible is not None
    assert entry.visible.tolist() == [True] * 14 + [False] * 4
    assert (entry.joints[14:] == -1).all()
    assert all(entry.visible[joint] for joint in TORSO)
    square = parse_part(entry.path).square
    thorax = seen("S1", IDS[1], positions()[0, 13]) - square[:2]
    assert entry.joints[JOINTS.index("neck")] == pytest.approx(thorax, abs=1e-2)


def test_rotations_between_the_cameras_are_the_real_ones(listed: Path):
    entries = Human36M(listed).listing().entries
    azimuths = {(entry.identity, entry.view): entry.azimuth for entry in entries}
    first = [azimuths["S1", camera] for camera in IDS]
    assert first == pytest.approx([69.6, -70.9, 109.5, -115.7], abs=0.05)
    assert [azimuths["S9", camera] for camera in IDS] == pytest.approx([67.5, -68.8, 107.8, -113.9], abs=0.05)
    turns = [(target - source + 180) % 360 - 180 for source, target in permutations(first, 2)]
    expected = [-140.5, 39.9, 174.6, 140.5, -179.6, -44.9, -39.9, 179.6, 134.8, -174.6, 44.9, -134.8]
    assert turns == pytest.approx(expected, abs=0.15)
    for subject in SUBJECTS:
        places = [camera.position for camera in read_cameras(None)[subject].values()]
        angles = np.rad2deg([np.arctan2(place[1], place[0]) for place in places])
        for source, target in permutations(angles, 2):
            turn = abs(target - source)
            # two of the cameras stand almost opposite each other, but no turn is a multiple of 90 degrees
            assert abs(turn - 90 * round(turn / 90)) > 0.3


def test_joints_in_pixels_and_in_metres_are_the_same_data(recorded: Path, tmp_path: Path):
    by_metres = Human36M(recorded, stride=STRIDE).listing()
    write_2d(tmp_path / "pixels.npz", views_2d(), layout_name="h36m")
    by_pixels = Human36M(recorded, stride=STRIDE, joints=tmp_path / "pixels.npz").listing()
    assert by_pixels.notes[0] == "Joints: pixels.npz (human36m_17)."
    assert [entry.path for entry in by_pixels.entries] == [entry.path for entry in by_metres.entries]
    for one, other in zip(by_pixels.entries, by_metres.entries, strict=True):
        np.testing.assert_allclose(one.joints, other.joints, atol=1e-3)  # pyright: ignore


def test_joints_of_another_order(listed: Path):
    """VideoPose3D's detections in COCO's order have eyes and ears; the neck is made of the shoulders."""
    write_2d(listed / "coco.npz", views_2d(), layout_name="coco")
    entry = Human36M(listed, joints=Path("coco.npz")).listing().entries[0]
    assert entry.visible is not None
    assert entry.visible.all()
    write_2d(listed / "odd.npz", views_2d(), layout_name="humaneva15")
    with pytest.raises(ValueError, match=r"odd\.npz: the joints are in the order 'humaneva15'.*h36m, coco"):
        Human36M(listed, joints=Path("odd.npz")).listing()


def test_what_is_missing_is_counted_with_its_reason(listed: Path):
    video(listed, "S1", IDS[0]).unlink()
    video(listed, "S1", IDS[0]).symlink_to(listed / "nowhere.mp4")
    video(listed, "S9", IDS[0], "Waiting").write_bytes(b"a video")
    video(listed, "S9", IDS[0], "_ALL").write_bytes(b"a video")
    views = views_2d()
    views["S5"]["Directions 1"][3][:] = np.nan
    views["S5"]["Eating"] = [None, *views["S9"]["Directions 1"][1:]]
    views["S2"] = views["S5"]
    write_2d(listed / "data_2d_h36m_gt.npz", views)
    listing = Human36M(listed).listing()
    found = {(reject.name, reject.reason) for reject in listing.rejects}
    assert found == {
        (f"S1/Directions 1.{IDS[0]}", reasons.NO_VIDEO),
        *((f"S5/Eating.{camera}", reasons.NO_VIDEO) for camera in IDS[1:]),
        (f"S9/Waiting.{IDS[0]}", reasons.VIDEO_NOT_ANNOTATED),
        (f"S5/Directions 1.{IDS[3]}", "joints that no crop can hold"),
        *((subject, reasons.NO_SUBJECT) for subject in ("S6", "S7", "S8", "S11")),
        ("S2", reasons.UNKNOWN_SUBJECT),
    }
    assert {reject.split for reject in listing.rejects if reject.name in ("S11", f"S9/Waiting.{IDS[0]}")} == {"test"}
    assert len(listing.entries) == 12 - 2


def test_names_of_actions_are_videopose3ds(listed: Path):
    for camera in IDS:
        video(listed, "S1", camera).rename(video(listed, "S1", camera, "TakingPhoto 1"))
    views = views_2d()
    views["S1"] = {"Photo 1": views["S1"]["Directions 1"]}
    write_2d(listed / "data_2d_h36m_gt.npz", views)
    listing = Human36M(listed).listing()
    assert next(entry.name for entry in listing.entries if entry.identity == "S1") == f"S1/Photo 1/000000.{IDS[0]}"
    assert rejected(listing).keys() == {reasons.NO_SUBJECT}


def test_frames_that_a_video_lacks_are_rejected_when_they_are_loaded(recorded: Path, tmp_path: Path):
    points = np.concatenate([positions(), positions()])
    np.savez(tmp_path / "long.npz", positions_3d={s: {"Directions 1": points} for s in PEOPLE})
    source = Human36M(recorded, stride=STRIDE, joints=tmp_path / "long.npz")
    entry = next(entry for entry in source.listing().entries if "/000020." in entry.name)
    with pytest.raises(ValueError, match="no such frame in the video"):
        source.load(entry)


def test_the_fingerprint_knows_joints_sizes_and_cameras_but_no_place(listed: Path, tmp_path_factory):
    def fingerprint(root: Path, **settings) -> str:
        return Human36M(root, **settings).listing().fingerprint

    first = fingerprint(listed)
    assert fingerprint(listed) == first
    moved = tmp_path_factory.mktemp("other") / "place"
    listed.rename(moved)
    assert fingerprint(moved) == first
    cameras = own_cameras()
    cameras["subjects"] = json.loads(json.dumps(SUBJECTS))
    cameras["subjects"]["S1"][IDS[0]]["translation"] = [0, 1000, 1000]
    (moved / "cameras.json").write_text(json.dumps(cameras))
    listing = Human36M(moved).listing()
    assert listing.entries[0].azimuth == 90
    changed = {first, listing.fingerprint, fingerprint(moved, stride=3), fingerprint(moved, pad=3)}
    video(moved, "S1", IDS[0]).write_bytes(b"another video")
    assert len(changed | {fingerprint(moved)}) == 5


def test_a_pickle_that_would_run_a_command_is_refused(listed: Path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {listed}/made",)

    write_2d(listed / "data_2d_h36m_gt.npz", {"S1": {"Directions 1": [Runs()]}})
    with pytest.raises(ValueError, match=r"data_2d_h36m_gt\.npz.*system', which is no plain data\. Nothing of it was"):
        Human36M(listed).listing()
    assert not (listed / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"positions": 1}, "expected an array 'positions_2d' or 'positions_3d', found positions"),
        ({"positions_3d": [1]}, "to be a dict of subjects"),
        ({"positions_3d": {"S1": [1]}}, "each a dict of actions"),
        ({"positions_3d": {"S1": {"A": np.zeros((4, 16, 3))}}}, r"\(frames, 32, 3\) .* found an array \(4, 16, 3\)"),
        ({"positions_3d": {"S1": {"A": np.zeros((4, 17, 2))}}}, r"S1, A: expected .*\(frames, 17, 3\), found"),
        ({"positions_2d": {"S1": {"A": [np.zeros((4, 17, 2))]}}}, "S1, A: expected points for each of 4 cameras"),
        ({"positions_2d": {"S1": {"A": [np.zeros((4, 17))] * 4}}}, r"A, 54138969: expected an array \(frames, 17, 2\)"),
    ],
)
def test_files_of_another_shape_are_named(listed: Path, content: dict, message: str):
    np.savez(listed / "data_2d_h36m_gt.npz", **{name: np.array(value, dtype=object) for name, value in content.items()})
    with pytest.raises(ValueError, match=r"data_2d_h36m_gt\.npz.*" + message):
        Human36M(listed).listing()


def test_a_wrong_root_says_what_is_expected_and_what_is_there(listed: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder\. Expected one with S1/Videos/Directions 1\.5413"):
        Human36M(tmp_path / "nowhere").listing()
    (tmp_path / "else/S1/MyVideos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no videos\. Expected S1/Videos/.*data_2d_h36m_gt\.npz.*there is S1\."):
        Human36M(tmp_path / "else").listing()
    for name in ("nothing.npz", "S1"):
        with pytest.raises(ValueError, match=f"joints file '{name}' does not exist"):
            Human36M(listed, joints=Path(name)).listing()
    (listed / "data_2d_h36m_gt.npz").rename(listed / "joints.npz")
    with pytest.raises(ValueError, match=r"has no joints\. Expected .* there is joints\.npz\. Or give their"):
        Human36M(listed).listing()
    for subject in ("S1", "S5"):
        for camera in IDS:
            video(listed, subject, camera).unlink()
    with pytest.raises(
        ValueError, match=r"split 'train', which is the subjects S1, S5, S6, S7, S8; left out: 8 no vid"
    ):
        Human36M(listed, joints=Path("joints.npz")).listing()


@pytest.mark.parametrize(("settings", "message"), [({"stride": 0}, "stride must"), ({"pad": -1}, "pad must")])
def test_settings_out_of_range_are_named(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Human36M(tmp_path, **settings).listing()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("subjects"), r"expected JSON .*\"subjects\".* found an object with cameras\."),
        (lambda c: c["cameras"][IDS[0]].pop("center"), r"cameras\.54138969\.center: expected a list of 2 numbers"),
        (lambda c: c["subjects"]["S1"][IDS[0]].update(orientation=[0] * 4), "a quaternion that is not zero"),
        (lambda c: c["subjects"]["S1"][IDS[0]].update(translation=[1, 2]), "translation: expected a list of 3 numbers"),
        (lambda c: c["subjects"]["S1"].update(other={}), r"S1\.other: this camera is not among 'cameras': 54138969, 5"),
        (lambda c: c["cameras"][IDS[0]].update(center=[float("nan"), 1]), "expected finite numbers"),
    ],
)
def test_camera_files_of_another_kind_are_named(tmp_path: Path, change, message: str):
    content = json.loads(json.dumps({"cameras": CAMERAS, "subjects": SUBJECTS}))
    change(content)
    (tmp_path / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_cameras(tmp_path / "cameras.json")
    with pytest.raises(ValueError, match="no such file"):
        read_cameras(tmp_path / "none.json")


def test_cameras_come_in_the_order_of_the_joints_whatever_the_order_of_a_subjects(tmp_path: Path):
    turned = {subject: dict(reversed(placed.items())) for subject, placed in SUBJECTS.items()}
    (tmp_path / "cameras.json").write_text(json.dumps({"cameras": CAMERAS, "subjects": turned}))
    assert list(read_cameras(tmp_path / "cameras.json")["S1"]) == list(IDS)


def test_entries_pickle_to_tasks(recorded: Path):
    source = Human36M(recorded)
    entry: Entry = source.listing().entries[0]
    again, same = pickle.loads(pickle.dumps((source, entry)))
    assert again.load(same).encoded == source.load(entry).encoded
