import numpy as np
import pytest
import torch

from posegen.batch import COLUMNS
from posegen.data.geometry.pose_maps import Discs, Gaussians
from posegen.data.loading.collate import to_columns

HEIGHT, WIDTH = 8, 6


def raw_batch():
    random = np.random.default_rng(0)
    raw = {"pair": torch.tensor([4, 2])}
    for role in ("source", "target"):
        raw[f"{role}_image"] = torch.from_numpy(random.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8))
        raw[f"{role}_joints"] = torch.from_numpy(random.uniform(0, 6, (2, 18, 2)).astype(np.float32))
        raw[f"{role}_visible"] = torch.from_numpy(random.random((2, 18)) < 0.5)
        raw[f"{role}_pose_mask"] = torch.from_numpy(random.integers(0, 2, (2, HEIGHT, WIDTH), dtype=np.uint8))
    return raw


def test_columns_are_the_declared_ones():
    raw = raw_batch()
    columns = to_columns(raw, torch.device("cpu"), Discs())
    assert columns.keys() == {*raw, "source_pose", "target_pose"} - {"pair"}
    assert columns.keys() <= COLUMNS.keys()
    for name, column in columns.items():
        assert str(column.dtype) == f"torch.{COLUMNS[name].dtype}"
        sizes = {"batch": 2, "height": HEIGHT, "width": WIDTH}
        assert list(column.shape) == [sizes.get(axis) or int(axis) for axis in COLUMNS[name].shape.split()]


def test_images_are_scaled_and_channels_last():
    raw = raw_batch()
    raw["source_image"][0, 1, 2] = torch.tensor([0, 255, 51], dtype=torch.uint8)
    image = to_columns(raw, torch.device("cpu"), Discs())["source_image"]
    assert image[0, :, 1, 2].tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(((image + 1) * 127.5).round().byte(), raw["source_image"].permute(0, 3, 1, 2))


def test_masks_and_joints_keep_their_values():
    raw = raw_batch()
    columns = to_columns(raw, torch.device("cpu"), Discs())
    assert torch.equal(columns["target_pose_mask"][:, 0].byte(), raw["target_pose_mask"])
    for name in ("source_joints", "source_visible"):
        assert torch.equal(columns[name], raw[name])


@pytest.mark.parametrize("pose_maps", [Discs(radius=2), Gaussians(sigma=1.5)])
def test_poses_are_drawn_by_what_the_system_names(pose_maps):
    raw = raw_batch()
    columns = to_columns(raw, torch.device("cpu"), pose_maps)
    for role in ("source", "target"):
        expected = pose_maps(raw[f"{role}_joints"], raw[f"{role}_visible"], HEIGHT, WIDTH)
        assert torch.equal(columns[f"{role}_pose"], expected)


def test_the_raw_batch_stays_as_it_was():
    raw = raw_batch()
    before = {name: value.clone() for name, value in raw.items()}
    to_columns(raw, torch.device("cpu"), Discs())
    assert all(torch.equal(raw[name], before[name]) for name in raw)


def test_a_mask_alone_gives_the_size():
    raw = {name: value for name, value in raw_batch().items() if not name.endswith("_image")}
    assert to_columns(raw, torch.device("cpu"), Discs())["source_pose"].shape == (2, 18, HEIGHT, WIDTH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_columns():
    raw = raw_batch()
    pinned = {name: value.pin_memory() for name, value in raw.items()}
    on_device = to_columns(pinned, torch.device("cuda"), Discs(radius=2))
    for name, expected in to_columns(raw, torch.device("cpu"), Discs(radius=2)).items():
        torch.testing.assert_close(on_device[name].cpu(), expected)


def test_without_a_image_or_mask_no_pose_is_drawn():
    raw = {name: value for name, value in raw_batch().items() if name.endswith(("_joints", "_visible"))}
    assert to_columns(raw, torch.device("cpu"), Discs()).keys() == raw.keys()
