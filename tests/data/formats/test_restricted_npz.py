"""npz files as VideoPose3D writes them are read; whatever else they ask for is not run."""

import os
import zipfile

import numpy as np
import pytest

from posegen.data.formats.restricted import read_plain_npz


class Runs:
    """Pickled, it makes Python's own reader call a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_dicts_of_arrays_and_plain_arrays_are_read(tmp_path, save):
    points = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    save(
        tmp_path / "a.npz",
        positions={"S1": {"Walking 1": points, "Eating": [points[..., :2], None]}},
        metadata={"num_joints": 17, "keypoints_symmetry": [[4, 5], [1, 2]]},
        plain=np.asfortranarray(points[0]),
        objects=np.array([{"a": 1}, [2]], dtype=object),
    )
    found = read_plain_npz(tmp_path / "a.npz")
    assert list(found) == ["positions", "metadata", "plain", "objects"]
    np.testing.assert_array_equal(found["positions"]["S1"]["Walking 1"], points)
    assert found["positions"]["S1"]["Walking 1"].dtype == np.float32
    np.testing.assert_array_equal(found["positions"]["S1"]["Eating"][0], points[..., :2])
    assert found["positions"]["S1"]["Eating"][1] is None
    assert found["metadata"] == {"num_joints": 17, "keypoints_symmetry": [[4, 5], [1, 2]]}
    np.testing.assert_array_equal(found["plain"], points[0])
    assert found["objects"].tolist() == [{"a": 1}, [2]]


def test_a_file_that_would_run_a_command_runs_nothing(tmp_path):
    victim, path = tmp_path / "made", tmp_path / "a.npz"
    np.savez(path, positions={"S1": {"Walking": Runs(os.system, f"touch {victim}")}})
    with pytest.raises(ValueError, match=r"a\.npz, 'positions': the pickle asks for '(posix|nt)\.system'.* Not"):
        read_plain_npz(path)
    assert not victim.exists()
    np.load(path, allow_pickle=True)["positions"]
    assert victim.exists(), "numpy's own reader runs it, so the file above is what it should be"


def test_files_that_are_none_or_are_damaged_say_so(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a={"S1": np.zeros((5, 3))}, b=np.zeros(9))
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-30], whole[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz: not an npz file"):
            read_plain_npz(path)
    bad = {"text": b"no npy", "cut": b"\x93NUMPY\x01\x00\x46\x00{'descr'", "future": b"\x93NUMPY\x09\x00"}
    for name, content in bad.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}.npy", content)
        with pytest.raises(ValueError, match=rf"a\.npz, '{name}': not an npy file"):
            read_plain_npz(path)


def test_lying_headers_and_endless_lists_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999,), }".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(16))
    with pytest.raises(ValueError, match=r"expected an array of shape \(999999999,\) .* found 16 bytes"):
        read_plain_npz(path)
    endless: list = []
    endless.append(endless)
    np.savez(path, a=np.array({"a": endless}, dtype=object))
    with pytest.raises(ValueError, match="not an npz file"):
        read_plain_npz(path)
