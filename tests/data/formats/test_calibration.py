"""Calibration files: azimuths from every form of them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.calibration import plain_name, read_azimuths
from tests.conftest import SHARED_DATA

POSE2SIM = SHARED_DATA / "open/pose2sim"
needs_pose2sim = pytest.mark.skipif(not POSE2SIM.exists(), reason="the shared Pose2Sim recordings are not here")
ANGLES = {"cam1": 30.0, "cam2": 120.0, "cam3": -100.0, "cam4": -20.0}  # azimuths of the cameras that are made here
CENTER = np.array([2.0, -1.0, 0.9])


def place_and_rotation(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A camera 4 m from the center at that azimuth and 1 m higher, that looks at it; OpenCV's rotation."""
    radians = np.deg2rad(angle)
    offset = np.array([4 * np.cos(radians), 4 * np.sin(radians), 1.0])
    forward = -offset / np.linalg.norm(offset)
    right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
    return CENTER + offset, np.stack([right, np.cross(forward, right), forward])


def qualisys(path: Path, *, start: str = "", active: str = "1") -> Path:
    rows = []
    for name, angle in ANGLES.items():
        place, rotation = place_and_rotation(angle)
        own = rotation * [[1], [-1], [-1]]  # Qualisys: y up, z backwards
        numbers = {f"r{i + 1}{j + 1}": own[i, j] for i in range(3) for j in range(3)}
        numbers |= dict(zip("xyz", 1000 * place, strict=True))
        text = " ".join(f'{key}="{value:.9f}"' for key, value in numbers.items())
        rows.append(f'<camera active="{active}" serial="{name}"><transform {text}/><intrinsic skew="0"/></camera>')
    path.write_text(f'<?xml version="1.0"?>{start}<calibration><cameras>{"".join(rows)}</cameras></calibration>')
    return path


def plain(path: Path, cameras: dict, **more) -> Path:
    path.write_text(json.dumps({"cameras": cameras, **more}))
    return path


def by_rotation() -> dict:
    placed = {name: place_and_rotation(angle) for name, angle in ANGLES.items()}
    return {name: {"R": turn.tolist(), "t": (-turn @ place).tolist()} for name, (place, turn) in placed.items()}


def test_a_qualisys_file(tmp_path):
    assert read_azimuths(qualisys(tmp_path / "Calib.qca.txt")) == pytest.approx(ANGLES)


def test_rotations_and_shifts(tmp_path):
    """The cameras stand at uneven angles, so the mean of their places is not what they look at."""
    path = plain(tmp_path / "c.json", by_rotation())
    assert read_azimuths(path) == pytest.approx(ANGLES)
    moved = read_azimuths(plain(path, by_rotation(), center=(CENTER + np.array([1, 0, 0])).tolist()))
    assert abs(moved["cam2"] - ANGLES["cam2"]) > 5


def test_positions(tmp_path):
    positions = {name: {"position": place_and_rotation(angle)[0].tolist()} for name, angle in ANGLES.items()}
    path = tmp_path / "c.json"
    assert read_azimuths(plain(path, positions, center=CENTER.tolist())) == pytest.approx(ANGLES)
    square = {"a": {"position": [5, 5, 1]}, "b": {"position": [-5, 5, 1]}, "c": {"position": [0, -10, 1]}}
    assert read_azimuths(plain(path, square)) == {"a": 45, "b": 135, "c": -90}


def test_another_axis_may_point_up(tmp_path):
    """A scene of OpenCV's kind: y points down, so from above the z axis is 90 degrees to the left of -x, or x to z."""
    cameras = {"a": {"position": [3, 0, 0]}, "b": {"position": [0, 7, 2]}}
    path = plain(tmp_path / "c.json", cameras, up="-y", center=[0, 0, 0])
    assert read_azimuths(path) == {"a": 0, "b": 90}
    assert read_azimuths(plain(path, cameras, up="y", center=[0, 0, 0])) == {"a": 90, "b": 0}


def test_given_azimuths_are_taken_as_they_are(tmp_path):
    path = plain(tmp_path / "c.json", {"Cam_01": {"azimuth": 69.6}, "cam-02": {"azimuth": -70.9}})
    assert read_azimuths(path) == {"cam01": 69.6, "cam02": -70.9}
    assert plain_name("cam_01") == plain_name("Cam01") == "cam01"


@pytest.mark.parametrize(
    ("cameras", "more", "message"),
    [
        ({}, {}, "calibration.json with"),
        ({"a": {"azimuth": 1}, "b": {"position": [1, 2, 3]}}, {}, "for all cameras or for none, found one for a"),
        ({"a": {"azimuth": "1e999"}}, {}, r"a\.azimuth: expected a finite number, found 1e999"),
        ({"a": {"azimuth": None}}, {}, r"a\.azimuth: expected a finite number"),
        ({"a": {"position": [1, 2]}}, {}, r"a\.position: expected 3 finite numbers, found \[1, 2\]"),
        ({"a": {"R": np.eye(3).tolist()}}, {}, "a: expected 'azimuth', 'position', or 'R' and 't'"),
        ({"a": {"R": np.ones((3, 3)).tolist(), "t": [0, 0, 0]}}, {}, r"a\.R: expected a rotation"),
        ({"a": {"R": np.eye(2).tolist(), "t": [0, 0, 0]}}, {}, r"a\.R: expected 3 x 3 finite numbers"),
        ({"a": {"position": [1, 2, 3]}}, {"up": "w"}, "'up' to be one of x, y, z, -x, -y, -z, found 'w'"),
        ({"a": {"position": [1, 2, 3]}}, {"center": [1]}, "center: expected 3 finite numbers"),
        ({"a_1": {"azimuth": 1}, "A1": {"azimuth": 2}}, {}, "names differ in letters and digits, found a_1, A1"),
        ({"a": 3}, {}, "a: expected 'azimuth'"),
    ],
)
def test_json_that_is_wrong_is_named(tmp_path, cameras, more, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_azimuths(plain(tmp_path / "c.json", cameras, **more))
    assert str(tmp_path / "c.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<calibration>", "not XML that can be read"),
        (b"<calibration><camera serial='a'/></calibration>", "expected Qualisys' elements"),
        (b"<a><camera serial='a'><transform x='1' y='2' z='b'/></camera></a>", r"'a', transform\.z: .*found 'b'"),
        (b"<a><camera serial='a'><transform x='1' y='2' z='3'/></camera></a>", r"transform\.r31: .*found None"),
        (b"names and numbers", "neither XML nor JSON"),
        (b"[1, 2]", r"found \[1, 2\]"),
        (b"[" * 100_000, "neither XML nor JSON"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "c.qca.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_azimuths(path)
    assert str(path) in str(caught.value)


def test_cameras_that_were_off_do_not_count(tmp_path):
    with pytest.raises(ValueError, match="expected Qualisys' elements"):
        read_azimuths(qualisys(tmp_path / "Calib.qca.txt", active="0"))


def test_a_document_type_is_refused_unread(tmp_path):
    """With entities a file of a few lines fills the memory, or reads another file."""
    entities = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
    path = qualisys(tmp_path / "Calib.qca.txt", start=entities)
    with pytest.raises(ValueError, match="has a document type"):
        read_azimuths(path)


def test_a_file_that_is_missing_or_far_too_large_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_azimuths(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(b" " * 10_000_001)
    with pytest.raises(ValueError, match="there is 10,000,001 bytes"):
        read_azimuths(tmp_path / "c.json")


@needs_pose2sim
def test_the_four_cameras_of_pose2sims_recording():
    """The optical axes meet within 11 cm in the middle of the room, 59 cm above the floor."""
    found = read_azimuths(POSE2SIM / "calibration/Calib.qca.txt")
    assert found == pytest.approx({"cam01": -38.14, "cam02": 11.68, "cam03": 135.26, "cam04": -153.66}, abs=0.01)
