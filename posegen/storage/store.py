"""Where a run lies: a folder that every node sees, or a URI of which each node keeps a copy of what it uses.

Every step reads and writes plain files under `Store.folder`. Where that is the run itself, nothing more happens. Where
it is a node's copy, what was written is published, and what another node wrote is fetched: a file counts as the same
where size and time of change are.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from posegen.storage.files import StorageFailed, patiently, remove_whole, write_whole

CHUNK = 8 * 2**20  # bytes copied at once
OBJECT_STORES = ("s3", "gcs", "abfs")


def cache_folder() -> Path:
    """This node's folder for copies: POSEGEN_CACHE, or ~/.cache/posegen."""
    return Path(os.environ.get("POSEGEN_CACHE") or Path.home() / ".cache" / "posegen").expanduser().absolute()


def is_uri(place: str) -> bool:
    """Whether a place is named by a URI such as s3://bucket/runs, rather than a path."""
    return "://" in place


@dataclass(frozen=True)
class Store:
    """A run's place. Pickles to other nodes, where `folder` is theirs."""

    place: str  # an absolute path, or a URI that pyarrow writes: s3://, gs://, hdfs://

    @staticmethod
    def of(run: str | Path) -> "Store":
        """The store of a run named by a path or a URI. Raises ValueError where pyarrow cannot open the URI."""
        text = str(run)
        if text.startswith("file://"):
            text = fs.FileSystem.from_uri(text)[1]
        if not is_uri(text):
            return Store(str(Path(text).absolute()))
        store = Store(text.rstrip("/"))
        _opened(store.place)
        return store

    @property
    def remote(self) -> bool:
        """Whether `folder` is this node's copy, and not the run itself."""
        return is_uri(self.place)

    @property
    def name(self) -> str:
        """What a run is called: the last part of its place."""
        return PurePosixPath(self.place.partition("?")[0]).name

    @property
    def folder(self) -> Path:
        """Where this process reads and writes the run's files."""
        if not self.remote:
            return Path(self.place)
        digits = blake2b(self.place.encode(), digest_size=4).hexdigest()
        return cache_folder() / "runs" / f"{self.name}-{digits}"

    def at(self, name: str) -> str:
        """The place of a file or folder of the run: a path or a URI."""
        if not self.remote:
            return str(self.folder / name)
        start, question, query = self.place.partition("?")
        return f"{start}/{name}{question}{query}"

    def below(self, path: Path) -> str:
        """What a path under `folder` is called within the run."""
        return path.relative_to(self.folder).as_posix()

    def sizes(self, name: str = "") -> dict[str, int]:
        """The files in a folder of the run and in those within it, by their names in it, with their bytes."""
        return {inside: info.size for inside, info in self._files(name).items()}

    def has(self, name: str) -> bool:
        """Whether there is such a file in the run."""
        if not self.remote:
            return (self.folder / name).is_file()
        return self._info(name).type == fs.FileType.File

    def check(self) -> None:
        """Asks the storage of a URI whether it answers. Raises StorageFailed at once where it does not."""
        if self.remote:
            filesystem, root = _opened(self.place)
            patiently(lambda: filesystem.get_file_info(root), self.place, patience=0.0)

    def publish(self, name: str, *, last: str = "") -> None:
        """Makes a file or folder of this node the run's; of a folder the file `last` at the end, others removed."""
        if self.remote:
            patiently(lambda: self._publish(name, last), self.at(name))

    def _publish(self, name: str, last: str) -> None:
        filesystem, root = _opened(self.place)
        here = self.folder / name
        if here.is_file():
            _upload(filesystem, here, _joined(root, name))
            return
        files = (p.relative_to(here) for p in here.rglob("*") if p.is_file())
        mine = [inside.as_posix() for inside in files if not _passing(inside)]
        for inside in sorted(mine, key=lambda inside: (inside == last, inside)):
            _upload(filesystem, here / inside, _joined(root, name, inside))
        for inside in self._files(name).keys() - set(mine):
            filesystem.delete_file(_joined(root, name, inside))

    def fetch(self, name: str = "", *, wanted: Callable[[str], bool] = lambda inside: True) -> Path:
        """Brings a file, or the `wanted` files of a folder, to this node and gives its path.

        What the run does not have is removed here too, but for hidden files.
        """
        if self.remote:
            patiently(lambda: self._fetch(name, wanted), self.at(name))
        return self.folder / name

    def _fetch(self, name: str, wanted: Callable[[str], bool]) -> None:
        here, info = self.folder / name, self._info(name)
        filesystem, _ = _opened(self.place)
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
        """A copy of a file of the run at `target`, complete or not there."""
        if not self.remote:
            write_whole(target, lambda temporary: shutil.copyfile(self.folder / name, temporary))
            return
        filesystem, root = _opened(self.place)
        write_whole(target, lambda temporary: _copy_in(filesystem, _joined(root, name), temporary))

    def remove(self, name: str) -> None:
        """Removes a file or folder from the run and from this node."""
        here = self.folder / name
        if here.is_dir():
            remove_whole(here)
        else:
            here.unlink(missing_ok=True)
        if self.remote:
            patiently(lambda: self._delete(name), self.at(name))

    def _delete(self, name: str) -> None:
        filesystem, root = _opened(self.place)
        if self._info(name).type == fs.FileType.File:
            filesystem.delete_file(_joined(root, name))
        for inside in self._files(name):
            filesystem.delete_file(_joined(root, name, inside))

    def _info(self, name: str) -> fs.FileInfo:
        filesystem, root = _opened(self.place)
        return patiently(lambda: filesystem.get_file_info(_joined(root, name)), self.at(name))

    def _files(self, name: str) -> dict[str, fs.FileInfo]:
        if self.remote:
            filesystem, root = _opened(self.place)
        else:
            filesystem, root = fs.LocalFileSystem(), self.place
        below = _joined(root, name)
        everything = fs.FileSelector(below, recursive=True, allow_not_found=True)
        found = patiently(lambda: filesystem.get_file_info(everything), self.at(name))
        return {i.path.removeprefix(f"{below}/"): i for i in found if i.type == fs.FileType.File}


ABSOLUTE = Store("/")  # of paths that are absolute already


@lru_cache(maxsize=8)
def _opened(place: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a URI, and the path in it."""
    try:
        filesystem, root = fs.FileSystem.from_uri(place)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
        raise ValueError(
            f"--run {place} was given; expected a path, or a URI that pyarrow can open, such as s3://bucket/runs/mine "
            f"or gs://bucket/runs/mine. It says: {error}"
        ) from None
    except OSError as error:  # S3 asks where the bucket is
        raise StorageFailed(
            f"{place} cannot be reached: {error}. See that the bucket is there, that the keys open it, and that the "
            "server is named where it is one of your own (AWS_ENDPOINT_URL)."
        ) from error
    return filesystem, root.rstrip("/")


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _passing(path: Path) -> bool:
    """Whether a file is a write in progress, or a lock."""
    return path.suffix == ".tmp" or any(part.startswith(".") for part in path.parts)


def _upload(filesystem: fs.FileSystem, path: Path, target: str) -> None:
    info = filesystem.get_file_info(target)
    if _same(path, info):
        return
    if filesystem.type_name in OBJECT_STORES:  # no folders, and an object is there when it is whole
        _copy_out(filesystem, path, target)
    else:
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        _copy_out(filesystem, path, f"{target}.tmp")
        filesystem.move(f"{target}.tmp", target)
    _take_time(path, filesystem.get_file_info(target))


def _copy_out(filesystem: fs.FileSystem, path: Path, target: str) -> None:
    with open(path, "rb") as source, filesystem.open_output_stream(target) as stream:
        for part in _parts(source.read):
            stream.write(part)


def _download(filesystem: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    if _same(path, info):
        return
    write_whole(path, lambda temporary: _copy_in(filesystem, info.path, temporary))
    _take_time(path, info)


def _copy_in(filesystem: fs.FileSystem, source: str, target: Path) -> None:
    with filesystem.open_input_stream(source) as stream, open(target, "wb") as file:
        for part in _parts(stream.read):
            file.write(part)


def _parts(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while part := read(CHUNK):
        yield part


def _same(path: Path, info: fs.FileInfo) -> bool:
    if info.type != fs.FileType.File or not path.is_file():
        return False
    state = path.stat()
    return state.st_size == info.size and state.st_mtime_ns == info.mtime_ns


def _take_time(path: Path, info: fs.FileInfo) -> None:
    """The time of the run's file, so that the two count as the same."""
    if info.mtime_ns is not None:
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
