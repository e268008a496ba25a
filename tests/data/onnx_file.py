"""A small network as the bytes of an ONNX file, written field by field (protocol buffers, onnx.proto)."""

import struct
from collections.abc import Sequence

SIDE = 320  # of the square image that goes in


def write_onnx(rows: Sequence[Sequence[float]]) -> bytes:
    """A 1x1 convolution and a sigmoid for each row of three weights; as many outputs, in their order."""
    names = range(len(rows))
    kernel = _field(1, b"kernel_shape") + _number(8, 1) + _number(8, 1) + _number(20, 7)
    convolutions = [_node("Conv", ["image", f"weight{n}"], f"sum{n}") + _field(5, kernel) for n in names]
    sigmoids = [_node("Sigmoid", [f"sum{n}"], f"mask{n}") for n in names]
    graph = b"".join(_field(1, node) for pair in zip(convolutions, sigmoids, strict=True) for node in pair)
    graph += _field(2, b"tiny")
    graph += b"".join(_field(5, _weights(f"weight{n}", row)) for n, row in enumerate(rows))
    graph += _field(11, _value("image", 3)) + b"".join(_field(12, _value(f"mask{n}", 1)) for n in names)
    opset = _field(1, b"") + _number(2, 11)
    return _number(1, 6) + _field(7, graph) + _field(8, opset)


def _node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    named = b"".join(_field(1, name.encode()) for name in inputs)
    return named + _field(2, output.encode()) + _field(3, f"make {output}".encode()) + _field(4, kind.encode())


def _weights(name: str, row: Sequence[float]) -> bytes:
    """float32 (1, channels, 1, 1)."""
    dims = b"".join(_number(1, size) for size in (1, len(row), 1, 1))
    return dims + _number(2, 1) + _field(8, name.encode()) + _field(9, struct.pack(f"<{len(row)}f", *row))


def _value(name: str, channels: int) -> bytes:
    """float32 (1, channels, side, side)."""
    shape = b"".join(_field(1, _number(1, size)) for size in (1, channels, SIDE, SIDE))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, shape)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
