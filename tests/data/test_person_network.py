"""Masks by a network: what goes in and comes out, on small ONNX files that the tests write themselves."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from posegen.data import reasons
from posegen.data.masks import PersonNetwork, mask_estimate, network_digits, person_mask
from posegen.nets.pretrained import PRETRAINED
from tests.data.onnx_file import write_onnx

ALL = np.ones(18, bool)


@pytest.fixture
def red_finder(tmp_path: Path) -> Path:
    """A network that takes for a person what is redder than it is blue; its second output is the opposite."""
    path = tmp_path / "u2net_human_seg.onnx"
    path.write_bytes(write_onnx([[20.0, 0.0, -20.0], [-20.0, 0.0, 20.0]]))
    return path


def blocks():
    """Two red blocks before a blue background, 64x32, and joints in the left one."""
    image = np.full((64, 32, 3), (30, 60, 200), np.uint8)
    image[10:50, 4:14] = image[20:60, 20:28] = (200, 60, 30)
    joints = np.random.default_rng(0).uniform((5, 12), (12, 48), (18, 2)).astype(np.float32)
    return image, joints


def test_the_first_output_is_the_mask_of_a_normalised_square(red_finder: Path):
    image, _ = blocks()
    red, blue = (200 / 200 - 0.485) / 0.229, (30 / 200 - 0.406) / 0.225
    inside = 1 / (1 + np.exp(-20 * (red - blue)))
    assert inside > 0.999
    found = PersonNetwork(red_finder).probability(image)
    assert found.shape == (64, 32)
    assert found[30, 8] == pytest.approx(1.0, abs=1e-4)
    assert found[2, 2] == pytest.approx(0.0, abs=1e-4)


def test_values_are_stretched_to_all_of_zero_to_one(tmp_path: Path):
    path = tmp_path / "faint.onnx"
    path.write_bytes(write_onnx([[0.1, 0.0, 0.0]]))
    found = PersonNetwork(path).probability(blocks()[0])
    assert (found.min(), found.max()) == pytest.approx((0, 1), abs=0.05)


def test_pieces_without_a_joint_are_other_people(red_finder: Path):
    image, joints = blocks()
    mask = PersonNetwork(red_finder)(image, joints, ALL)
    assert mask.dtype == np.uint8
    assert mask[12:48, 5:13].all()
    assert not mask[:, 16:].any()
    both = joints.copy()
    both[3] = 24, 40
    assert PersonNetwork(red_finder)(image, both, ALL)[22:58, 21:27].all()


def test_nobody_at_the_joints_is_a_reason(red_finder: Path):
    image, joints = blocks()
    for given in (joints * 0 + (17, 4), joints + 1000):
        with pytest.raises(ValueError, match=reasons.NOBODY):
            PersonNetwork(red_finder)(image, given.astype(np.float32), ALL)


def test_the_network_is_chosen_by_its_file(red_finder: Path, monkeypatch: pytest.MonkeyPatch):
    digits = hashlib.sha256(red_finder.read_bytes()).hexdigest()[:8]
    assert network_digits(red_finder.parent / "none") == ""
    with pytest.raises(ValueError, match=r"is not u2net_human_seg as https://.*sha256 must begin with 01eb6a29"):
        network_digits(red_finder.parent)
    monkeypatch.setitem(PRETRAINED, "u2net_human_seg", PRETRAINED["u2net_human_seg"]._replace(sha256=digits))
    assert network_digits(red_finder.parent) == digits
    assert mask_estimate(digits, red_finder.parent) == PersonNetwork(red_finder)
    assert mask_estimate("", red_finder.parent) is person_mask


def test_a_file_that_is_no_network_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "u2net_human_seg.onnx"
    path.write_bytes(b"no network at all")
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PRETRAINED, "u2net_human_seg", PRETRAINED["u2net_human_seg"]._replace(sha256=digits))
    with pytest.raises(ValueError, match=rf"OpenCV {cv2.__version__} cannot read it .*remove the file"):
        network_digits(tmp_path)
