"""A node's copies of shards: fetched once, in bounded disk, whatever other processes do or leave behind."""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections import namedtuple
from contextlib import suppress
from functools import partialmethod

import pyarrow as pa
import pytest

from posegen.data.shards.manifest import PAIRS, write_arrow
from posegen.data.shards.out_of_core import ShardCache
from posegen.storage.files import TEMPORARY, locked, temporary_beside
from posegen.storage.store import Store, cache_folder
from tests.data.shards.made_up import manifest_with, shard_entry

SIZE = 1000
NAMES = "abcdef"


def make_store(folder, sizes=None, fingerprint="f"):
    """A store with files of any bytes where shards would be, and the manifest of these."""
    shards = folder / "shards"
    shards.mkdir(parents=True)
    entries = []
    for name, size in (sizes or dict.fromkeys(NAMES, SIZE)).items():
        (shards / f"{name}.arrow").write_bytes((name * size).encode())
        entries.append(shard_entry(file=f"{name}.arrow", bytes=size, pairs_file="none", rows=8))
    (shards / "manifest.json").write_text(json.dumps(manifest_with(entries, fingerprint).to_json()))
    return Store.of(folder)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    return make_store(tmp_path / "run")


@pytest.fixture
def copied(monkeypatch):
    """The names that the store was asked to copy."""
    names, copy = [], Store.copy

    def noted(self, name, target):
        names.append(name)
        copy(self, name, target)

    monkeypatch.setattr(Store, "copy", noted)
    return names


def files_in_cache():
    return sorted(path.stem for path in (cache_folder() / "shards").glob("*/*.arrow"))


def bytes_in_cache():
    """Of what is there and of what is being written, at one moment: nothing is removed while the lock is held."""
    root, found = cache_folder() / "shards", {}
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / ".lock"):
        for path in (path for path in root.glob("*/*") if path.suffix != ".lock"):
            with suppress(FileNotFoundError):  # it has its final name by now, and is found under that
                state = path.stat()
                found[state.st_ino] = state.st_size
    return sum(found.values())


def get(cache, name, size=SIZE):
    assert cache.path(f"{name}.arrow", size).read_text() == name * size


def test_there_is_no_cache_where_nothing_limits_a_folder(store):
    assert ShardCache.of(store) is None
    assert ShardCache.of(store, limit=10) == ShardCache(store, "shards", 10)
    remote = Store("s3://bucket/run")
    assert ShardCache.of(remote) == ShardCache(remote, "shards", None)


def test_a_file_is_copied_once_and_marked_each_time(store, copied):
    cache = ShardCache(store)
    get(cache, "a")
    path = cache.path("a.arrow", SIZE)
    os.utime(path, ns=(0, 0))
    begin = time.time_ns()
    get(cache, "a")
    assert copied == ["shards/a.arrow"]
    assert path.stat().st_mtime_ns >= begin
    assert path.parent == cache_folder() / "shards" / cache.fingerprint


def test_the_least_recently_used_make_room(store):
    cache = ShardCache(store, limit=3 * SIZE)
    for name in "abca":
        get(cache, name)
    get(cache, "d")
    assert files_in_cache() == ["a", "c", "d"]
    get(cache, "e")
    assert files_in_cache() == ["a", "d", "e"]


def test_as_many_are_removed_as_a_large_file_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    cache = ShardCache(make_store(tmp_path / "run", {"a": 10, "b": 20, "c": 5, "d": 30}), limit=40)
    for name, size in (("a", 10), ("b", 20), ("c", 5), ("d", 30)):
        get(cache, name, size)
    assert files_in_cache() == ["c", "d"]


def test_runs_share_the_limit(tmp_path, store):
    other = ShardCache(make_store(tmp_path / "other", fingerprint="g"), limit=2 * SIZE)
    mine = ShardCache(store, limit=2 * SIZE)
    assert mine.folder != other.folder
    get(other, "a")
    get(mine, "b")
    get(mine, "c")
    assert files_in_cache() == ["b", "c"]
    again = ShardCache(make_store(tmp_path / "same"), limit=2 * SIZE)
    assert again.folder == mine.folder  # the same shards of another run


def test_the_limit_holds_at_every_moment(store, monkeypatch):
    """Whatever is asked for: also while a copy is being written."""
    cache, draw, copy, seen = ShardCache(store, limit=5 * SIZE // 2), random.Random(0), Store.copy, []

    def watched(self, name, target):
        copy(self, name, target)
        seen.append(bytes_in_cache())

    monkeypatch.setattr(Store, "copy", watched)
    for _ in range(60):
        get(cache, draw.choice(NAMES))
        assert bytes_in_cache() <= cache.limit
    assert len(seen) > 20
    assert max(seen) <= cache.limit


def test_threads_that_have_no_room_together_wait_for_each_other(store):
    cache, seen = ShardCache(store, limit=2 * SIZE), []
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            seen.append(bytes_in_cache())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(5):
        cache.prefetch({f"{name}.arrow": SIZE for name in NAMES}, threading.Event())
    stop.set()
    watcher.join()
    assert max(seen) <= cache.limit
    assert len(files_in_cache()) == 2


@pytest.mark.parametrize("spoilt", [b"", b"a" * 10, b"a" * (SIZE + 1)])
def test_a_file_of_another_size_is_fetched_again(store, copied, spoilt):
    cache = ShardCache(store, limit=SIZE)
    cache.path("a.arrow", SIZE).write_bytes(spoilt)
    get(cache, "a")
    assert copied == ["shards/a.arrow"] * 2


def test_a_store_whose_file_has_another_size_is_told_and_leaves_nothing(store):
    cache = ShardCache(store, limit=3 * SIZE)
    with pytest.raises(ValueError, match=r"shards/a.arrow has 1,000 bytes, and its manifest says 1,001"):
        cache.path("a.arrow", SIZE + 1)
    assert bytes_in_cache() == 0
    with pytest.raises(ValueError, match=r"shards/z.arrow is not there, although its manifest names it"):
        cache.path("z.arrow", SIZE)
    get(cache, "b")
    assert bytes_in_cache() == SIZE


def in_processes(count, work):
    """Runs a function in forked processes at once and waits for them."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes]


def test_of_processes_that_ask_at_once_one_fetches(store, tmp_path, monkeypatch):
    log, copy = tmp_path / "log", Store.copy

    def slow(self, name, target):
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.3)
        copy(self, name, target)

    monkeypatch.setattr(Store, "copy", slow)
    cache = ShardCache(store, limit=2 * SIZE)
    assert in_processes(3, lambda: get(cache, "a")) == [0, 0, 0]
    assert log.read_text() == "shards/a.arrow\n"


def killed_while_writing(self, name, target):
    temporary_beside(target).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("then", ["a", "b"])
def test_what_a_killed_process_left_is_removed(store, monkeypatch, then):
    cache = ShardCache(store, limit=SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "copy", killed_while_writing)
        assert in_processes(1, lambda: cache.path("a.arrow", SIZE)) == [-signal.SIGKILL]
    assert list(cache.folder.glob(TEMPORARY))
    get(cache, then)  # there is room for it, although the other was announced
    assert not list(cache.folder.glob(TEMPORARY))
    assert bytes_in_cache() == SIZE
    assert all(path.stat().st_size == 0 for path in cache.folder.glob(".*.lock"))


@pytest.fixture
def arrow_cache(tmp_path, monkeypatch):
    """A cache that has room for one of two files: `p` is an Arrow file, `q` any bytes."""
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "cache"))
    columns = {name: pa.array(range(50), PAIRS.field(name).type) for name in PAIRS.names}
    write_arrow(tmp_path / "run/shards/p.arrow", PAIRS, columns)
    size = (tmp_path / "run/shards/p.arrow").stat().st_size
    (tmp_path / "run/shards/q.arrow").write_bytes(b"q" * size)
    (tmp_path / "run/shards/manifest.json").write_text("{}")
    return ShardCache(Store.of(tmp_path / "run"), limit=size)


def test_a_removed_file_stays_readable_where_it_is_mapped(arrow_cache):
    batch = arrow_cache.read("p.arrow", arrow_cache.limit)
    get(arrow_cache, "q", arrow_cache.limit)
    assert files_in_cache() == ["q"]
    assert batch.column("order").to_pylist() == list(range(50))


def test_a_file_removed_before_it_is_mapped_is_fetched_again(arrow_cache, monkeypatch):
    path, tries = ShardCache.path, []

    def removed(self, file, size, times=2):
        found = path(self, file, size)
        tries.append(file)
        if len(tries) <= times:
            found.unlink()
        return found

    monkeypatch.setattr(ShardCache, "path", removed)
    assert arrow_cache.read("p.arrow", arrow_cache.limit).num_rows == 50
    assert len(tries) == 3
    monkeypatch.setattr(ShardCache, "path", partialmethod(removed, times=100))
    with pytest.raises(ValueError, match=r"removed 20 times before it could be read.*Give a larger --cache-gb"):
        arrow_cache.read("p.arrow", arrow_cache.limit)


def test_prefetching_ends_when_it_is_told_to(store, monkeypatch):
    cache, stop, copy = ShardCache(store), threading.Event(), Store.copy
    files = {f"{name}.arrow": SIZE for name in NAMES}

    def last(self, name, target):
        stop.set()
        copy(self, name, target)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "copy", last)
        cache.prefetch(files, stop)
    assert 1 <= len(files_in_cache()) <= 4  # those that were on their way
    cache.prefetch(files, threading.Event())
    assert files_in_cache() == list(NAMES)


def test_a_pickled_cache_is_that_of_its_node(store, tmp_path, monkeypatch):
    cache = ShardCache(store, limit=SIZE)
    first = cache.folder
    sent = pickle.dumps(cache)
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "elsewhere"))
    assert pickle.loads(sent).folder == tmp_path / "elsewhere" / "shards" / first.name


def manifest_of(cache):
    manifest = cache.manifest()
    assert manifest is not None
    return manifest


def test_a_shard_larger_than_the_limit_is_told(store):
    cache = ShardCache(store, limit=SIZE - 1)
    with pytest.raises(ValueError, match=r"--cache-gb 9.99e-07 was given, and a.arrow .* 1e-06 GB: .*_per_shard=2"):
        cache.check(manifest_of(cache))
    ShardCache(store, limit=SIZE).check(manifest_of(cache))


@pytest.mark.parametrize(
    ("limit", "there", "free", "enough"),
    [
        (3 * SIZE, "", 3 * SIZE, True),
        (3 * SIZE, "", 3 * SIZE - 1, False),
        (3 * SIZE, "ab", SIZE, True),  # two are there, one more may come
        (3 * SIZE, "ab", SIZE - 1, False),
        (9 * SIZE, "", 6 * SIZE, True),  # the limit is more than all
        (None, "ab", 4 * SIZE, True),
        (None, "ab", 4 * SIZE - 1, False),
    ],
)
def test_a_disk_without_room_is_told(store, monkeypatch, limit, there, free, enough):
    cache = ShardCache(store, limit=limit)
    for name in there:
        get(cache, name)
    usage = namedtuple("usage", "free")(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    if enough:
        cache.check(manifest_of(cache))
        return
    with pytest.raises(ValueError, match=r"was given, and this node would copy .* by POSEGEN_CACHE"):
        cache.check(manifest_of(cache))


def test_files_come_from_a_uri(s3_server, two_nodes):
    store = Store.of("s3://runs/cached")
    make_store(store.folder)
    store.publish("shards", last="manifest.json")
    two_nodes("second")
    cache = ShardCache(store, limit=2 * SIZE)
    assert manifest_of(cache).fingerprint == "f"
    for name in NAMES:
        get(cache, name)
    assert files_in_cache() == ["e", "f"]
    with pytest.raises(ValueError, match=r"shards/z.arrow is not there, although its manifest names it"):
        cache.path("z.arrow", SIZE)
