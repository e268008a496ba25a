"""Two processes never work on one run."""

import threading
from pathlib import Path

import pytest

from posegen.storage import run_lock as module
from posegen.storage.files import read_json, write_json
from posegen.storage.run_lock import LEASE, refresh, run_lock
from posegen.storage.store import Store


def test_a_folder_is_held_by_one(tmp_path: Path):
    store = Store.of(tmp_path / "run")
    with (
        run_lock(store),
        pytest.raises(ValueError, match=r"another process is at work on .*run\. Wait for it, or give another --run"),
        run_lock(store),
    ):
        pass
    with run_lock(store):
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """Leases of a second, renewed often."""
    monkeypatch.setattr(module, "LASTS", 1.0)
    monkeypatch.setattr(module, "RENEWED_EVERY", 0.1)
    monkeypatch.setattr(module, "SETTLES", 0.2)


def test_a_uri_is_held_by_one_over_all_nodes(s3_server, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    store, said = Store.of("s3://runs/held"), []
    with run_lock(store):
        monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "second"))
        with (
            pytest.raises(ValueError, match=r"process \d+ on .* is at work on s3://runs/held"),
            run_lock(store, said.append),
        ):
            pass
        monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    assert "was at work on s3://runs/held" in said[0]
    assert not store.has(LEASE)
    with run_lock(store, said.append):
        assert len(said) == 1, "nobody holds it, so nothing is waited for"


def test_the_lease_of_a_machine_that_went_away_runs_out(s3_server, quick, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    store, said = Store.of("s3://runs/lost"), []
    write_json(store.folder / LEASE, {"owner": "gone", "who": "process 7 on spot-3", "until": module.time.time() + 0.5})
    store.publish(LEASE)
    with run_lock(store, said.append):
        held = read_json(store.folder / LEASE)
        assert held is not None
        assert held["owner"] != "gone"
    assert said == [
        "process 7 on spot-3 was at work on s3://runs/lost; waiting to see whether it still is (at most 1 s)"
    ]


def test_refreshing_leaves_a_run_alone_that_is_worked_on_here(s3_server, quick, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    store = Store.of("s3://runs/worked-on")
    with run_lock(store):
        (store.folder / "not_published_yet").write_text("x")
        thread = threading.Thread(target=refresh, args=(store, lambda name: True))
        thread.start()
        thread.join()
        assert (store.folder / "not_published_yet").is_file()
    refresh(store, lambda name: True)
    assert not (store.folder / "not_published_yet").exists(), "the run does not have it"


@pytest.mark.parametrize("successor", [True, False])
def test_a_process_whose_run_was_taken_over_stops_and_leaves_the_other_s_lease(
    s3_server, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successor: bool
):
    """The first owner's renewals stand still, as if it were suspended; the second may have ended when it wakes."""
    asleep = threading.Event()
    owns = module._owns

    def owns_when_awake(store: Store, owner: str) -> bool:
        asleep.wait(5)
        return owns(store, owner)

    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    store = Store.of(f"s3://runs/taken-{successor}")
    other = {"owner": "other", "who": "process 7 on spot-3", "until": module.time.time() + 60}
    who = "process 7 on spot-3" if successor else "another process"

    def work() -> None:
        with run_lock(store):
            monkeypatch.setattr(module, "_owns", owns_when_awake)
            if successor:
                write_json(store.folder / LEASE, other)
                store.publish(LEASE)
            else:
                store.remove(LEASE)
            asleep.set()
            threading.Event().wait(10)
            raise AssertionError("it went on")

    with pytest.raises(ValueError, match=rf"{who} took over s3://runs/taken.* while this process was suspended"):
        work()
    if successor:
        assert read_json(store.fetch(LEASE)) == other
    else:
        assert not store.has(LEASE)


def test_ctrl_c_is_passed_on_and_gives_the_run_back(s3_server, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "first"))
    store = Store.of("s3://runs/stopped")

    def stopped() -> None:
        with run_lock(store):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not store.has(LEASE)
