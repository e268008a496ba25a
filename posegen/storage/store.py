"""Storage of a run: a folder that every node sees, or a URI of which each node keeps a copy of the files it uses.

Every step reads and writes plain files under `Store.folder`. If that is the run itself, nothing more happens. If it is
a node's copy, files that were written are published, and files of other nodes are fetched. Two files count as the same
if their sizes and modification times are equal.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from posegen.storage.files import StorageFailed, patiently, read_json, remove_whole, write_whole

CHUNK = 8 * 2**20  # bytes copied at once
OBJECT_STORES = ("s3", "gcs", "abfs")


def cache_folder() -> Path:
    """Return this node's folder for copies: POSEGEN_CACHE, or ~/.cache/posegen."""
    return Path(os.environ.get("POSEGEN_CACHE") or Path.home() / ".cache" / "posegen").expanduser().absolute()


def is_uri(run: str) -> bool:
    """Return whether a run is named by a URI such as s3://bucket/runs, rather than a path."""
    return "://" in run


@dataclass(frozen=True)
class Store:
    """The storage of a run. Pickles to other nodes, where `folder` is theirs."""

    uri: str  # an absolute path, or a URI that pyarrow writes: s3://, gs://, hdfs://

    @staticmethod
    def of(run: str | Path) -> "Store":
        """Return the store of a run named by a path or a URI. Raises ValueError if pyarrow cannot open the URI."""
        text = str(run)
        if text.startswith("file://"):
            text = fs.FileSystem.from_uri(text)[1]
        if not is_uri(text):
            return Store(str(Path(text).absolute()))
        store = Store(text.rstrip("/"))
        _filesystem(store.uri)
        return store

    @property
    def remote(self) -> bool:
        """Whether `folder` is this node's copy rather than the run itself."""
        return is_uri(self.uri)

    @property
    def name(self) -> str:
        """The run's name: the last part of its path or URI."""
        return PurePosixPath(self.uri.partition("?")[0]).name

    @property
    def folder(self) -> Path:
        """The folder in which this process reads and writes the run's files."""
        if not self.remote:
            return Path(self.uri)
        digits = blake2b(self.uri.encode(), digest_size=4).hexdigest()
        return cache_folder() / "runs" / f"{self.name}-{digits}"

    def at(self, name: str) -> str:
        """Return the path or URI of a file or folder of the run."""
        if not self.remote:
            return str(self.folder / name)
        start, question, query = self.uri.partition("?")
        return f"{start}/{name}{question}{query}"

    def below(self, path: Path) -> str:
        """Return the name within the run of a path under `folder`."""
        return path.relative_to(self.folder).as_posix()

    def sizes(self, name: str = "") -> dict[str, int]:
        """Return the sizes in bytes of all files under a folder of the run, by their names within it."""
        return {inside: info.size for inside, info in self._files(name).items()}

    def has(self, name: str) -> bool:
        """Return whether the run has a file."""
        if not self.remote:
            return (self.folder / name).is_file()
        return self._info(name).type == fs.FileType.File

    def check(self) -> None:
        """Check that the storage of a URI answers. Raises StorageFailed at once if it does not."""
        if self.remote:
            filesystem, root = _filesystem(self.uri)
            patiently(lambda: filesystem.get_file_info(root), self.uri, patience=0.0)

    def publish(self, name: str, *, last: str = "") -> None:
        """Copy a file or folder of this node to the run; of a folder, copy `last` at the end and remove other files."""
        if self.remote:
            patiently(lambda: self._publish(name, last), self.at(name))

    def _publish(self, name: str, last: str) -> None:
        filesystem, root = _filesystem(self.uri)
        here = self.folder / name
        if here.is_file():
            _upload(filesystem, here, _joined(root, name))
            return
        files = (p.relative_to(here) for p in here.rglob("*") if p.is_file())
        mine = [  # no writes in progress, no locks
            inside.as_posix()
            for inside in files
            if inside.suffix != ".tmp" and not any(part.startswith(".") for part in inside.parts)
        ]
        for inside in sorted(mine, key=lambda inside: (inside == last, inside)):
            _upload(filesystem, here / inside, _joined(root, name, inside))
        for inside in self._files(name).keys() - set(mine):
            filesystem.delete_file(_joined(root, name, inside))

    def fetch(self, name: str = "", *, wanted: Callable[[str], bool] = lambda inside: True) -> Path:
        """Copy a file, or the `wanted` files of a folder, from the run to this node and return its path here.

        Files that the run does not have are removed here, except hidden ones.
        """
        if self.remote:
            patiently(lambda: self._fetch(name, wanted), self.at(name))
        return self.folder / name

    def _fetch(self, name: str, wanted: Callable[[str], bool]) -> None:
        here, info = self.folder / name, self._info(name)
        filesystem, _ = _filesystem(self.uri)
        if info.type == fs.FileType.File:
            _download(filesystem, info, here)
            return
        if here.is_file():
            here.unlink()
        theirs = self._files(name)
        for path in [p for p in here.rglob("*") if p.is_file()]:
            inside = path.relative_to(here)
            if inside.as_posix() not in theirs and not any(part.startswith(".") for part in inside.parts):
                path.unlink(missing_ok=True)
        for inside, found in theirs.items():
            if wanted(inside):
                _download(filesystem, found, here / inside)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file of the run to `target`, atomically."""
        if not self.remote:
            write_whole(target, lambda temporary: shutil.copyfile(self.folder / name, temporary))
            return
        filesystem, root = _filesystem(self.uri)
        write_whole(target, lambda temporary: _copy_in(filesystem, _joined(root, name), temporary))

    def remove(self, name: str) -> None:
        """Remove a file or folder from the run and from this node."""
        here = self.folder / name
        if here.is_dir():
            remove_whole(here)
        else:
            here.unlink(missing_ok=True)
        if self.remote:
            patiently(lambda: self._delete(name), self.at(name))

    def _delete(self, name: str) -> None:
        filesystem, root = _filesystem(self.uri)
        if self._info(name).type == fs.FileType.File:
            filesystem.delete_file(_joined(root, name))
        for inside in self._files(name):
            filesystem.delete_file(_joined(root, name, inside))

    def _info(self, name: str) -> fs.FileInfo:
        filesystem, root = _filesystem(self.uri)
        return patiently(lambda: filesystem.get_file_info(_joined(root, name)), self.at(name))

    def _files(self, name: str) -> dict[str, fs.FileInfo]:
        if self.remote:
            filesystem, root = _filesystem(self.uri)
        else:
            filesystem, root = fs.LocalFileSystem(), self.uri
        below = _joined(root, name)
        everything = fs.FileSelector(below, recursive=True, allow_not_found=True)
        found = patiently(lambda: filesystem.get_file_info(everything), self.at(name))
        return {i.path.removeprefix(f"{below}/"): i for i in found if i.type == fs.FileType.File}


ABSOLUTE = Store("/")  # for absolute paths


@lru_cache(maxsize=8)
def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a URI, and the path within it."""
    try:
        filesystem, root = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
        raise ValueError(
            f"--run {uri} was given; expected a path, or a URI that pyarrow can open, such as s3://bucket/runs/mine "
            f"or gs://bucket/runs/mine. It says: {error}"
        ) from None
    except OSError as error:  # S3 asks where the bucket is
        raise StorageFailed(
            f"{uri} cannot be reached: {error}. See that the bucket is there, that the keys open it, and that the "
            "server is named where it is one of your own (AWS_ENDPOINT_URL)."
        ) from error
    return filesystem, root.rstrip("/")


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _upload(filesystem: fs.FileSystem, path: Path, target: str) -> None:
    info = filesystem.get_file_info(target)
    if _same(path, info):
        return
    if filesystem.type_name in OBJECT_STORES:  # no folders, and objects appear only when complete
        _copy_out(filesystem, path, target)
    else:
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        _copy_out(filesystem, path, f"{target}.tmp")
        filesystem.move(f"{target}.tmp", target)
    _copy_mtime(path, filesystem.get_file_info(target))


def _copy_out(filesystem: fs.FileSystem, path: Path, target: str) -> None:
    with open(path, "rb") as source, filesystem.open_output_stream(target) as stream:
        shutil.copyfileobj(source, stream, CHUNK)


def _download(filesystem: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    if _same(path, info):
        return
    write_whole(path, lambda temporary: _copy_in(filesystem, info.path, temporary))
    _copy_mtime(path, info)


def _copy_in(filesystem: fs.FileSystem, source: str, target: Path) -> None:
    with filesystem.open_input_stream(source) as stream, open(target, "wb") as file:
        shutil.copyfileobj(stream, file, CHUNK)


def _same(path: Path, info: fs.FileInfo) -> bool:
    if info.type != fs.FileType.File or not path.is_file():
        return False
    state = path.stat()
    return state.st_size == info.size and state.st_mtime_ns == info.mtime_ns


def _copy_mtime(path: Path, info: fs.FileInfo) -> None:
    """Set the modification time of the run's file, so that the two count as the same."""
    if info.mtime_ns is not None:
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))


LAYOUT = 2  # 0.1.0 wrote none
RECORDS = ("plan.json", "sweep.json")  # that carry the number as "layout"
RESULTS = ("stages/*/checkpoint_*/stage.json", "scores/metrics.json")  # written after a record


def check_layout(store: Store) -> None:
    """Raise ValueError if the files of a run on this node have another version's layout.

    A folder without records and results passes: it is empty, or a run was interrupted before its first record.
    """
    records = [record for name in RECORDS if (record := read_json(store.folder / name)) is not None]
    layouts = {record.get("layout") for record in records}
    if layouts == {LAYOUT}:
        return
    if newer := [number for number in layouts if isinstance(number, int) and number > LAYOUT]:
        raise ValueError(
            f"{store.uri} was made with a newer posegen (layout {newer[0]}, this version reads {LAYOUT}). Update "
            "posegen, or give another --run."
        )
    if records or any(any(store.folder.glob(pattern)) for pattern in RESULTS):
        raise ValueError(
            f"{store.uri} was made with posegen 0.1.0, whose files this version cannot read. Give another --run, or "
            "remove it."
        )
