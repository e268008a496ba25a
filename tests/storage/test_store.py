"""A run's place: a folder, or a URI with copies; the URI's part against an S3 server on this machine."""

from pathlib import Path

import pytest

from posegen.storage import files
from posegen.storage import store as storage
from posegen.storage.store import Store, is_uri


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_path_is_its_own_store(tmp_path):
    store = Store.of(tmp_path / "runs" / "mine")
    assert store.folder == tmp_path / "runs" / "mine"
    assert (store.remote, store.name) == (False, "mine")
    assert Store.of(f"file://{tmp_path}").folder == tmp_path
    write(store.folder / "a.txt", "a")
    assert store.fetch("a.txt") == store.folder / "a.txt"
    assert store.sizes() == {"a.txt": 1}
    store.copy("a.txt", tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_text() == "a"
    store.remove("a.txt")
    assert store.sizes() == {}


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store.of("runs/mine").uri == str(tmp_path / "runs" / "mine")


def test_an_unknown_scheme_is_refused():
    assert is_uri("s4://bucket/mine")
    with pytest.raises(ValueError, match="s4://bucket/mine was given; expected a path, or a URI"):
        Store.of("s4://bucket/mine")


def test_what_one_node_publishes_another_fetches(s3_server, two_nodes):
    store = Store.of("s3://runs/shared")
    write(store.folder / "stage" / "b" / "networks", "weights")
    write(store.folder / "stage" / "stage.json", "{}")
    store.publish("stage", last="stage.json")
    assert store.sizes("stage") == {"b/networks": 7, "stage.json": 2}
    two_nodes("second")
    assert not store.folder.exists()
    here = store.fetch("stage")
    assert (here / "b" / "networks").read_text() == "weights"
    assert Store.of("s3://runs/other").sizes() == {}


def test_fetching_replaces_what_changed_and_removes_what_is_gone(s3_server, two_nodes):
    store = Store.of("s3://runs/changed")
    write(store.folder / "a", "old")
    write(store.folder / "gone", "x")
    store.publish("")
    two_nodes("second")
    store.fetch()
    two_nodes("first")
    write(store.folder / "a", "newer")
    (store.folder / "gone").unlink()
    store.publish("")
    two_nodes("second")
    write(store.folder / ".of_this_node", "y")
    store.fetch(wanted=lambda inside: False)
    assert {path.name: path.read_text() for path in store.folder.iterdir()} == {"a": "old", ".of_this_node": "y"}
    store.fetch()
    assert (store.folder / "a").read_text() == "newer"


def test_storage_that_is_away_for_a_while_is_waited_for(s3_server, two_nodes, monkeypatch):
    store, tries = Store.of("s3://runs/away"), []
    write(store.folder / "a", "text")
    upload = storage._upload

    def fails_twice(*given: object) -> None:
        tries.append(given)
        if len(tries) < 3:
            raise OSError("When uploading: AWS Error NETWORK_CONNECTION")
        upload(*given)

    monkeypatch.setattr(storage, "_upload", fails_twice)
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.01)
    store.publish("a")
    assert len(tries) == 3
    assert store.sizes() == {"a": 4}


def test_storage_that_stays_away_is_told_by_its_place(s3_server, two_nodes, monkeypatch):
    def fails(*given: object) -> None:
        raise OSError("When uploading: AWS Error NETWORK_CONNECTION")

    store = Store.of("s3://runs/gone")
    write(store.folder / "a", "text")
    monkeypatch.setattr(storage, "_upload", fails)
    monkeypatch.setenv("POSEGEN_PATIENCE", "0.05")
    with pytest.raises(files.StorageFailed, match=r"s3://runs/gone/a cannot be reached: When uploading: AWS Error"):
        store.publish("a")


def test_what_is_the_same_is_not_copied_again(s3_server, two_nodes):
    store = Store.of("s3://runs/same")
    write(store.folder / "a", "text")
    store.publish("a")
    two_nodes("second")
    store.fetch("a")
    first = (store.folder / "a").stat().st_ino
    store.fetch("a")
    assert (store.folder / "a").stat().st_ino == first


def test_a_file_of_a_uri_is_copied_and_removed(s3_server, two_nodes, tmp_path):
    store = Store.of("s3://runs/single")
    write(store.folder / "a", "text")
    store.publish("a")
    store.copy("a", tmp_path / "elsewhere" / "a")
    assert (tmp_path / "elsewhere" / "a").read_text() == "text"
    store.remove("a")
    assert store.sizes() == {}
    assert not (store.folder / "a").exists()


def test_writes_in_progress_are_not_published(s3_server, two_nodes):
    store = Store.of("s3://runs/passing")
    write(store.folder / "a", "text")
    write(store.folder / "a.123.tmp", "te")
    write(store.folder / ".lock", "")
    store.publish("")
    assert store.sizes() == {"a": 4}
