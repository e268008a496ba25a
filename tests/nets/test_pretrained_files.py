import hashlib
import re
from pathlib import Path

import pytest

from posegen.nets.pretrained import PRETRAINED, VARIABLE, Pretrained, path_of, state_of, weights_folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """A pretrained network whose file holds the word "features"."""
    digits = hashlib.sha256(b"features").hexdigest()[:8]
    each = Pretrained(f"toy-{digits}.pth", digits, "MIT", "https://example.org/toy", "tests")
    monkeypatch.setitem(PRETRAINED, "toy", each)
    return each


def test_files_have_digits_which_are_in_their_names_where_torch_named_them():
    for each in PRETRAINED.values():
        assert re.fullmatch("[0-9a-f]{8,64}", each.sha256)
        assert not each.file.endswith(".pth") or f"-{each.sha256}." in each.file


def test_a_file_is_absent_there_or_damaged(tmp_path: Path, known: Pretrained):
    assert (state_of("toy", tmp_path), path_of("toy", tmp_path)) == ("absent", None)
    (tmp_path / known.file).write_bytes(b"features")
    assert (state_of("toy", tmp_path), path_of("toy", tmp_path)) == ("there", tmp_path / known.file)
    (tmp_path / known.file).write_bytes(b"half of it")
    assert state_of("toy", tmp_path) == "damaged"
    with pytest.raises(ValueError, match=rf"sha256 must begin with {known.sha256}.*Get the file again"):
        path_of("toy", tmp_path)


def test_the_folder_is_the_one_given_then_the_environments_then_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert weights_folder() == tmp_path / "weights"
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv(VARIABLE, "mine")
    assert weights_folder() == tmp_path / "mine"
    assert weights_folder(tmp_path) == tmp_path


def test_a_named_folder_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"--weights-dir .*none was given; expected a folder"):
        weights_folder(tmp_path / "none")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ValueError, match=rf"{VARIABLE}=.*expected a folder"):
        weights_folder()
