"""numpy's npz files, read without running anything that they name.

An npz file is a zip archive of npy files. One that holds a dict holds a pickle, which numpy opens only with
`allow_pickle=True`: then it may call any function of Python. Here it is read by `plain_pickles`.
"""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from posegen.data.plain_pickles import PickledArray, text, unpickled

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def read_plain_npz(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; what an array of objects without a shape holds stands for it, such as a dict.

    Arrays inside are numpy's, text of Python 2 is text. Raises ValueError, naming the file, where it is no npz file, is
    damaged, or asks for more than plain data: nothing of that is imported or called.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _array(archive.read(name), f"{path}, '{name.removesuffix('.npy')}'")
                for name in archive.namelist()
            }
    except _DAMAGE as error:
        raise ValueError(f"{path}: not an npz file of numpy that can be read ({error})") from None


def _array(content: bytes, place: str) -> Any:
    member = io.BytesIO(content)
    try:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the npy format is not understood")
        shape, fortran, kind = _HEADERS[version](member)
    except ValueError as error:
        raise ValueError(f"{place}: not an npy file that can be read ({error})") from None
    if kind.hasobject:
        array = _plain(unpickled(member.read(), place, objects=True))
        return array.item() if isinstance(array, np.ndarray) and array.shape == () else array
    content = member.read()
    if kind.itemsize * math.prod(shape) != len(content):
        raise ValueError(f"{place}: expected an array of shape {shape} and kind {kind}, found {len(content)} bytes")
    flat = np.frombuffer(content, kind)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _plain(value: Any) -> Any:
    """The value with arrays for `PickledArray`, and with text for bytes where these are text."""
    if isinstance(value, PickledArray):
        value = value.array
    if isinstance(value, np.ndarray) and value.dtype == object:
        made = np.empty(value.shape, dtype=object)
        for place in np.ndindex(value.shape):
            made[place] = _plain(value[place])
        return made
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return (text(value) or value) if isinstance(value, bytes) else value
