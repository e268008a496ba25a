"""Pickles and npz files of plain data, read without running anything that they name.

A pickle is a small program, and Python's own reader calls whatever it asks for. This reader returns lists, dicts,
tuples, numbers, text, bytes and numpy arrays of numbers, in every protocol from Python 2's text to 5; anything else
that a file asks for is refused by name, before it is imported. numpy's functions are not called either: an array's
state is checked and its numbers are taken from its bytes, because numpy's own reader trusts the flags in the file.

An npz file is a zip archive of npy files. One that holds a dict holds a pickle, which numpy opens only with
`allow_pickle=True`: then it may call any function of Python. Here the same restricted reader reads it.
"""

import io
import math
import pickle
import reprlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

OBJECTS = "O8"  # numpy's name of arrays of objects; npz files hold dicts so
KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")  # numpy's names of plain numbers

# Raised by Python and numpy for a file that is cut off, damaged or not a pickle.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle. Text of Python 2 is returned as bytes (see `text`), arrays as `PickledArray`.

    Nothing that the file names is imported or called.

    Raises:
        ValueError: If the file asks for more than plain data (naming the file and the request), is cut off, or is not
            a pickle.
    """
    return unpickled(path.read_bytes(), str(path))


def unpickled(content: bytes, where: str, *, objects: bool = False) -> Any:
    """Like `read_plain_pickle`, for bytes found at `where`. `objects` allows arrays of plain objects as well."""
    try:
        return _PlainUnpickler(content, where, _ALLOWED | _OBJECTS_TOO if objects else _ALLOWED).load()
    except _RefusedPickle as error:
        raise ValueError(str(error)) from None
    except _DAMAGE as error:
        raise ValueError(
            f"{where}: not a pickle of plain data that can be read (cut off, damaged or another kind of file): "
            f"{type(error).__name__}: {error}"
        ) from None


def text(value: object) -> str | None:
    """Return text of Python 3, or of Python 2 (bytes, decoded as UTF-8); None for anything else."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


class PickledArray:
    """An array in a pickle, in `array`. Its state is checked rather than trusted."""

    def __init__(self) -> None:
        self.array: np.ndarray = np.empty(0)

    def __setstate__(self, state: object) -> None:
        """Take (version, shape, kind, Fortran order, bytes), as numpy writes it."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError(f"expected an array's state of five parts, found {reprlib.repr(state)}")
        _, shape, kind, fortran, content = state
        make = _objects if isinstance(kind, _Kind) and kind.name == OBJECTS else _numbers
        self.array = make(content, kind, shape, order="F" if fortran else "C")


class _RefusedPickle(ValueError):
    """A file asks for more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, where: str, allowed: Mapping[tuple[str, str], object]) -> None:
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="bytes")
        self._where = where
        self._allowed = allowed

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._allowed:
            raise _RefusedPickle(
                f"{self._where}: the pickle asks for '{module}.{name}', which is no plain data. Nothing of it was run. "
                "Understood are lists, dicts, tuples, numbers, text and numpy's arrays of numbers. Do not open this "
                "file with Python's own pickle: what it asks for would be executed."
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedPickle(f"{self._where}: the pickle refers to {reprlib.repr(pid)} outside of it: no plain data.")


class _Kind:
    """A dtype: one of `KINDS`, or objects where these are allowed, and its byte order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.order: Literal["<", ">", "|"] = "<"

    def __setstate__(self, state: object) -> None:
        """Take (version, byte order, sub-array, names, fields, ...): only the byte order may be set."""
        if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]):
            raise ValueError(f"expected the kind of plain numbers, found {reprlib.repr(state)}")
        order = text(state[1])
        if order not in ("<", ">", "|"):
            raise ValueError(f"expected a byte order, found {reprlib.repr(state[1])}")
        self.order = order


@dataclass(frozen=True)
class _Permitted:
    """A stand-in for a function or class of numpy's in the file, which can only be called."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("the pickle changes a function")


def _kind(name: object, *_: object) -> _Kind:
    known = text(name)
    if known not in KINDS:
        raise ValueError(f"expected numbers of a kind among {', '.join(KINDS)}, found {reprlib.repr(name)}")
    return _Kind(known)


def _from_buffer(content: object, kind: object, shape: object, order: object) -> PickledArray:
    result = PickledArray()
    result.array = _numbers(content, kind, shape, order="F" if text(order) == "F" else "C")
    return result


def _numbers(content: object, kind: object, shape: object, *, order: str) -> np.ndarray:
    """Return the numbers in an array's bytes, in native order. Raises ValueError if the parts do not fit together."""
    if not isinstance(kind, _Kind) or kind.name == OBJECTS or not isinstance(content, bytes | bytearray):
        raise ValueError("expected an array of plain numbers")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"expected the shape of an array, found {reprlib.repr(shape)}")
    stored = np.dtype(kind.name).newbyteorder(kind.order)
    if math.prod(shape) * stored.itemsize != len(content):
        raise ValueError(f"expected an array of shape {shape} and kind {kind.name}, found {len(content)} bytes")
    flat = np.frombuffer(content, stored).astype(stored.newbyteorder("="))
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def _objects(content: object, kind: object, shape: object, *, order: str) -> np.ndarray:
    """Return an array of objects that the pickle has built already. Raises ValueError if these do not fill it."""
    if not isinstance(content, list) or not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
        raise ValueError(f"expected an array of objects, found {reprlib.repr(content)}")
    if any(side < 0 for side in shape) or math.prod(shape) != len(content):
        raise ValueError(f"expected an array of shape {shape}, found {len(content)} objects")
    flat = np.empty(len(content), dtype=object)
    for number, item in enumerate(content):
        flat[number] = item
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def _encoded(content: object, encoding: object) -> bytes:
    """Return bytes that Python 3 wrote in protocol 2 as text to be encoded; other encodings are refused."""
    if not isinstance(content, str) or text(encoding) != "latin1":
        raise ValueError("expected bytes, written as Latin-1")
    return content.encode("latin1")


def _no_bytes(*arguments: object) -> bytes:
    if arguments:
        raise ValueError("expected empty bytes")
    return b""


def _not_called(*_: object) -> None:
    raise ValueError("the pickle makes an array of its own")


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and 2
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED = {
    ("numpy", "ndarray"): _Permitted(_not_called),
    ("numpy", "dtype"): _Permitted(_kind),
    # `_reconstruct(ndarray, (0,), b"b")`: the state that follows fills the array
    **{(module, "_reconstruct"): _Permitted(lambda *_: PickledArray()) for module in _MULTIARRAY},
    **{
        (module, "scalar"): _Permitted(lambda kind, content: _numbers(content, kind, (), order="C").item())
        for module in _MULTIARRAY
    },
    **{(module, "_frombuffer"): _Permitted(_from_buffer) for module in _NUMERIC},
    ("_codecs", "encode"): _Permitted(_encoded),
    ("__builtin__", "bytes"): _Permitted(_no_bytes),
    ("builtins", "bytes"): _Permitted(_no_bytes),
}
_OBJECTS_TOO = {
    ("numpy", "dtype"): _Permitted(lambda name, *_: _Kind(OBJECTS) if text(name) == OBJECTS else _kind(name))
}

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_NPZ_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def read_plain_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of a file by name. An array of one object, such as a dict, is returned as that object.

    Arrays inside it are numpy's, and text of Python 2 is text. Raises ValueError, naming the file, if it is not an npz
    file, is damaged, or asks for more than plain data; nothing of that is imported or called.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _array(archive.read(name), f"{path}, '{name.removesuffix('.npy')}'")
                for name in archive.namelist()
            }
    except _NPZ_DAMAGE as error:
        raise ValueError(f"{path}: not an npz file of numpy that can be read ({error})") from None


def _array(content: bytes, where: str) -> Any:
    member = io.BytesIO(content)
    try:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the npy format is not understood")
        shape, fortran, kind = _HEADERS[version](member)
    except ValueError as error:
        raise ValueError(f"{where}: not an npy file that can be read ({error})") from None
    if kind.hasobject:
        array = _plain(unpickled(member.read(), where, objects=True))
        return array.item() if isinstance(array, np.ndarray) and array.shape == () else array
    content = member.read()
    if kind.itemsize * math.prod(shape) != len(content):
        raise ValueError(f"{where}: expected an array of shape {shape} and kind {kind}, found {len(content)} bytes")
    flat = np.frombuffer(content, kind)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _plain(value: Any) -> Any:
    """Return the value with arrays for `PickledArray`, and with text for bytes where these are text."""
    if isinstance(value, PickledArray):
        value = value.array
    if isinstance(value, np.ndarray) and value.dtype == object:
        result = np.empty(value.shape, dtype=object)
        for index in np.ndindex(value.shape):
            result[index] = _plain(value[index])
        return result
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return (text(value) or value) if isinstance(value, bytes) else value
