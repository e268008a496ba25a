"""Pickles of plain data: what Python 2, 3 and both numpys write is read; whatever else a file asks for is not run."""

import copyreg
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from posegen.data.formats.restricted import KINDS, PickledArray, read_plain_pickle, text, unpickled

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "a.p"
    path.write_bytes(content)
    return path


def plain(value):
    """Arrays as arrays, everything else as it is."""
    if isinstance(value, PickledArray):
        return value.array
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(plain(item) for item in value) if isinstance(value, list | tuple) else value


def python_2_array(array: np.ndarray, module: bytes = b"numpy.core.multiarray") -> bytes:
    """An array in protocol 0 as Python 2 and numpy 1 write it: raw bytes as a quoted text."""
    shape = b"".join(b"I%d\n" % side for side in array.shape)
    kind, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    return (
        b"c%s\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(%stcnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'%s'\n"
        b"NNNI-1\nI-1\nI0\ntbI00\nS%s\ntb" % (module, shape, kind, order, repr(array.tobytes())[1:].encode())
    )


class Runs:
    """Pickled, it makes Python's own reader call a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_is_read_in_every_protocol(tmp_path, protocol):
    given = {"a": [1, -(2**40), 2**70, 0.5, True, None, "ü", b"\x00\xff", b""], 3: (), "b": ((1, "x"), {}, [[]])}
    assert read_plain_pickle(written(tmp_path, pickle.dumps(given, protocol))) == given


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_and_scalars_of_both_numpys_are_read(tmp_path, protocol, module):
    arrays = [np.arange(6).astype(kind).reshape(2, 3) for kind in KINDS]
    arrays += [arrays[4].T, np.zeros((0, 20)), np.array(2.5), np.arange(3).astype(">f4"), np.arange(4.0)[::2]]
    scalars = [np.float64(0.25), np.float32(3), np.int64(-7), np.bool_(True)]
    content = pickle.dumps((arrays, scalars), protocol)
    if protocol < 4:  # later ones write the length of a name
        content = content.replace(b"numpy._core.", module.encode() + b".")
    found, numbers = plain(read_plain_pickle(written(tmp_path, content)))
    for array, read in zip(arrays, found, strict=True):
        assert read.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, array)
    assert numbers == [0.25, 3, -7, True]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_python_2_text_with_arrays_is_read(tmp_path, module):
    array = np.random.default_rng(0).normal(size=(3, 20))
    content = (
        b"(dp0\nS'0001_c1s1.jpg'\np1\n" + python_2_array(array, module) + b"sS'b\\xc3\\xbc.jpg'\n(lp3\nF1.5\naI7\nas."
    )
    found = plain(read_plain_pickle(written(tmp_path, content)))
    assert [text(name) for name in found] == ["0001_c1s1.jpg", "bü.jpg"]
    np.testing.assert_array_equal(found[b"0001_c1s1.jpg"], array)
    assert found[b"b\xc3\xbc.jpg"] == [1.5, 7]


@pytest.mark.parametrize(
    ("value", "expected"), [("ä", "ä"), (b"\xc3\xa4", "ä"), (b"\xe4", None), (3, None), ([], None)]
)
def test_text_of_either_python(value, expected):
    assert text(value) == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_would_run_a_command_runs_nothing(tmp_path, protocol):
    victim = tmp_path / "made"
    content = pickle.dumps({"a.jpg": [1, Runs(os.system, f"touch {victim}")]}, protocol)
    with pytest.raises(
        ValueError, match=r"a\.p: the pickle asks for '(posix|nt)\.system', which is no plain data\. Not"
    ):
        read_plain_pickle(written(tmp_path, content))
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists(), "Python's own reader runs it, so the file above is what it should be"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\nopen\n(S'made'\nS'w'\ntR.", "__builtin__.open"),
        (b"(S'touch made'\nios\nsystem\n.", "os.system"),  # the opcode INST
        (b"cnumpy\nload\n(S'a.npy'\ntR.", "numpy.load"),
        (b"cnumpy\nmemmap\n(S'made'\nS'f8'\nS'w+'\ntR.", "numpy.memmap"),
        (b"cnumpy.core.multiarray\nfromfile\n(S'a.p'\ntR.", "numpy.core.multiarray.fromfile"),
        (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n(dtR.", "numpy.testing._private.utils.runstring"),
        (b"cnumpy\nndarray.tofile\n.", "numpy.ndarray.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (
            b"cposegen.data.formats.restricted\nread_plain_pickle\n(S'a.p'\ntR.",
            "posegen.data.formats.restricted.read_plain_pickle",
        ),
        (pickle.dumps(OrderedDict(a=1)), "collections.OrderedDict"),
        (pickle.dumps(Path("a")), "pathlib.PosixPath"),
        (b"Pmade\n.", "outside of it"),
    ],
)
def test_whatever_else_a_file_asks_for_is_named_and_not_run(tmp_path, monkeypatch, content, wanted):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=wanted.replace(".", r"\.")) as caught:
        read_plain_pickle(path)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.p"]


def test_the_registry_of_extensions_is_no_way_around(tmp_path):
    copyreg.add_extension("os", "system", 0x7F00)
    try:
        with pytest.raises(ValueError, match=r"asks for 'os\.system'"):
            read_plain_pickle(written(tmp_path, b"\x80\x02\x83\x00\x7f(S'touch made'\ntR."))
    finally:
        copyreg.remove_extension("os", "system", 0x7F00)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
FLOATS = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # bytes that numpy would take for the addresses of objects: 'O' with flags that deny it
        (
            ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'AAAAAAAA'\ntb.",
            "O8",
        ),
        (pickle.dumps(np.array([{}], dtype=object)), "a kind among b1, i1"),
        (pickle.dumps(np.zeros(2, [("a", "f8")])), "a kind among"),
        (pickle.dumps(np.array(["a"])), "a kind among"),
        (FLOATS + b"(I3\nS'<'\n(S'f8'\n(I2\nttNNI-1\nI-1\nI0\ntb.", "expected the kind of plain numbers"),
        (FLOATS + b"(I3\nS'!'\nNNNI-1\nI-1\nI0\ntb.", "expected a byte order"),
        (
            ARRAY + b"(I1\n(I2\nt" + FLOATS + b"I00\nS'AAAAAAAA'\ntb.",
            r"array of shape \(2,\) and kind f8, found 8 bytes",
        ),
        (ARRAY + b"(I1\n(I-1\nt" + FLOATS + b"I00\nS'AAAAAAAA'\ntb.", "expected the shape"),
        (ARRAY + b"(I1\n(I0\nI" + b"9" * 30 + b"\nt" + FLOATS + b"I00\nS''\ntb.", "cut off, damaged"),
        (ARRAY + b"(I1\n(I1\ntS'f8'\nI00\nS'AAAAAAAA'\ntb.", "expected an array of plain numbers"),
        (ARRAY + b"(dS'array'\nI1\nsb.", "expected an array's state of five parts"),
        (b"cnumpy\nndarray\n(tR.", "makes an array of its own"),
        (b"cnumpy\nndarray\n(dS'function'\nI1\nsb.", "changes a function"),
        (b"cnumpy\nndarray\n(N(dS'function'\nI1\nstb.", "changes a function"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "UnpicklingError"),  # NEWOBJ
        (b"c__builtin__\nbytes\n(I999999999999\ntR.", "expected empty bytes"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "expected bytes, written as Latin-1"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_plain_pickle(written(tmp_path, content))
    assert str(tmp_path / "a.p") in str(caught.value)


OBJECTS = b"(I1\n(I2\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ARRAY + OBJECTS + b"S'AAAAAAAAAAAAAAAA'\ntb.", "expected an array of objects"),
        (ARRAY + OBJECTS + b"(lp3\nI1\natb.", r"array of shape \(2,\), found 1 objects"),
        (pickle.dumps(np.array([Path("a")], dtype=object)), r"asks for 'pathlib\.PosixPath'"),
    ],
)
def test_arrays_of_objects_where_they_are_allowed_hold_what_the_pickle_made(content, message):
    given = np.array([[{"a": 1}, [2]]], dtype=object)
    for array in (given, given.T, np.array({"a": 1}, dtype=object)):
        found = unpickled(pickle.dumps(array), "a.npz", objects=True).array
        assert (found.tolist(), found.shape) == (array.tolist(), array.shape)
    with pytest.raises(ValueError, match=message):
        unpickled(content, "a.npz", objects=True)


def test_nothing_of_a_refused_file_stays(tmp_path):
    """The first file tries to change the reader; the second must be read as ever."""
    with pytest.raises(ValueError, match="changes a function"):
        read_plain_pickle(written(tmp_path, b"cnumpy\ndtype\n(N(dS'function'\nI1\nstb."))
    assert plain(read_plain_pickle(written(tmp_path, pickle.dumps(np.arange(3))))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_file_that_is_cut_off_says_so(tmp_path, protocol):
    content = pickle.dumps({"a.jpg": [(1, 2.5)], "b": np.arange(3)}, protocol)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"a\.p: not a pickle of plain data that can be read"):
            read_plain_pickle(written(tmp_path, content[:end]))


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff\xe0JFIF", b"from,to\na.jpg,b.jpg\n", b"{}", b"\x93NUMPY", b"\0" * 99]
)
def test_files_of_another_kind_say_so(tmp_path, content):
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        read_plain_pickle(written(tmp_path, content))
