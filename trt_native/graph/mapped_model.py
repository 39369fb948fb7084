"""Reading an ONNX file whose weights are inside of it, without copying them into memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.files import open_regular_file

__all__ = ["MappedModel", "load_mapped", "release_pages"]

_MAPPING_KEY = "trt_native.mapping"  # in the ``meta`` of a model
_LEAST_BYTES = 1 << 16  # smaller weights are copied
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_MOST_BITS = 70  # of a number, in groups of 7
_Replace = Callable[[int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class MappedModel:
    """An ONNX file that was read without the data of its larger weights.

    Attributes:
        proto: The model, without this data. External weights are not loaded.
        weights: The weights that it lacks by name: arrays of the mapping.
        mapping: The whole file; None where nothing is left out.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, ir.Tensor[Any]] = field(default_factory=dict)
    mapping: mmap.mmap | None = None

    def complete(self, model: ir.Model) -> None:
        """Give the weights to the model that was made of ``proto``."""
        for name, tensor in self.weights.items():
            model.graph.initializers[name].const_value = tensor
        model.meta[_MAPPING_KEY] = self.mapping
        release_pages(model)  # of which reading a few bytes of each weight took many


def release_pages(model: ir.Model) -> None:
    """Take the memory of weights that were read from the process; the file has them."""
    mapping = model.meta.get(_MAPPING_KEY)
    if mapping is not None and hasattr(mapping, "madvise"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def load_mapped(path: Path) -> MappedModel:
    """Load a model, and its larger weights as arrays of the mapped file.

    Raises:
        OSError: the file cannot be read.
        google.protobuf.message.DecodeError: it is not an ONNX file.
    """
    with open_regular_file(path) as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    weights: dict[str, ir.Tensor[Any]] = {}

    def initializer(start: int, end: int) -> bytes | None:
        return _take_weight(data, start, end, weights)

    def graph(start: int, end: int) -> bytes:
        return _with_replaced(data, start, end, _INITIALIZER, initializer)

    try:
        lean = _with_replaced(data, 0, len(data), _GRAPH, graph)
        model = onnx.ModelProto.FromString(lean) if weights else None
    except Exception:  # damaged, or a form of text: the loader reads it, or says what is wrong
        model = None
    names = [] if model is None else [tensor.name for tensor in model.graph.initializer]
    if model is None or len(set(names)) != len(names):
        return MappedModel(onnx.load(path, load_external_data=False))
    return MappedModel(model, weights, data)


def _take_weight(
    data: mmap.mmap, start: int, end: int, weights: dict[str, ir.Tensor[Any]]
) -> bytes | None:
    """Add a tensor to ``weights``, and return its message without data; None for a small one.

    Raises:
        ValueError, TypeError, google.protobuf.message.DecodeError: it is malformed.
    """
    if end - start < _LEAST_BYTES:
        return None
    fields = [field for field in _fields(data, start, end) if field[0] == _RAW_DATA]
    if len(fields) != 1:
        return None
    _, first, content, last = fields[0]
    lean = data[start:first] + data[last:end]
    proto = onnx.TensorProto.FromString(lean)
    dtype, shape = ir.DataType(proto.data_type), tuple(proto.dims)
    if not proto.name or dtype.bitwidth % 8 or min(shape, default=0) < 0:
        return None
    if last - content != np.prod(shape, dtype=object) * dtype.itemsize:
        return None
    array = np.frombuffer(data, dtype.numpy(), int(np.prod(shape)), content).reshape(shape)
    weights[proto.name] = ir.Tensor(array, dtype, name=proto.name, doc_string=proto.doc_string)
    return lean


def _with_replaced(data: mmap.mmap, start: int, end: int, number: int, replace: _Replace) -> bytes:
    """The bytes of a message with another content of its fields of one number.

    Args:
        data: The file.
        start: Where the message begins.
        end: Where it ends.
        number: Number of the fields.
        replace: Given where the content of a field begins and ends, returns a new one, or None to
            keep it.

    Raises:
        ValueError, IndexError: the message is malformed.
    """
    parts, kept = [], start
    for found, first, content, last in _fields(data, start, end):
        new = replace(content, last) if found == number else None
        if new is not None:
            head = _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(new))
            parts += [data[kept:first], head, new]
            kept = last
    return b"".join([*parts, data[kept:end]])


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number of each field of a message; where it, and its content, begins, and where it ends."""
    position = start
    while position < end:
        first = position
        key, position = _read_varint(data, position)
        content = position
        kind = key & 7
        if kind == _LENGTH_DELIMITED:
            size, content = _read_varint(data, position)
            position = content + size
        elif kind in _FIXED_BYTES:
            position += _FIXED_BYTES[kind]
        elif kind == 0:
            _, position = _read_varint(data, position)
        else:
            raise ValueError("a field of an unknown kind")
        if position > end:
            raise ValueError("a field that is cut off")
        yield key >> 3, first, content, position


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number in Protobuf's variable length, and where it ends."""
    value = 0
    for shift in range(0, _MOST_BITS, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number that does not end")


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
