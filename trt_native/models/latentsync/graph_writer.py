"""Writing of an ONNX graph: nodes named by module, extents that may be dynamic, lazy weights."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.errors import ExportError
from trt_native.models.latentsync.checkpoint import page_out

__all__ = ["Extent", "GraphWriter", "Symbol"]

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, slots=True)
class Symbol:
    """An extent that is known when the graph runs.

    Attributes:
        text: Its formula, such as ``batch*frames``; equal ones are equal extents.
        value: Holds it, (1,) int64.
    """

    text: str
    value: ir.Value


Extent: TypeAlias = int | Symbol


class GraphWriter:
    """Writes nodes, in order, to a graph.

    Nodes are named after the module that they belong to, as ``down_blocks.0.conv1/Conv``, and so
    are their outputs; parameters have the names of the state dict, with ``.T`` where transposed.

    Args:
        parameters: The parameters by name.
        dtype: Type of activations and parameters.
        opset: ONNX operator-set version.

    Attributes:
        dtype: As given.
        opset: As given.
        graph: What has been written.
    """

    def __init__(
        self, parameters: Mapping[str, ir.TensorProtocol], dtype: ir.DataType, opset: int
    ) -> None:
        self.dtype = dtype
        self.opset = opset
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="main_graph")
        self._parameters = parameters
        self._used: Counter[str] = Counter()
        self._symbols: dict[str, Symbol] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._shapes: dict[tuple[Any, ...], ir.Value] = {}

    # Nodes ---------------------------------------------------------------------------------------

    def add(
        self,
        module: str,
        operator: str,
        inputs: Sequence[ir.Value | None],
        extents: Sequence[Extent | ir.SymbolicDim] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output, of its first input's shape and type unless others are given.

        A module can have several nodes of an operator.
        """
        like = inputs[0]
        assert like is not None and like.shape is not None  # noqa: S101, PT018  # for the type checker
        shape = ir.Shape(like.shape) if extents is None else _shape(extents)
        name = self._named(f"{module}/{operator}")
        output = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype or like.dtype))  # type: ignore[arg-type]
        self._append(name, operator, inputs, attributes, [output])
        return output

    def halves(self, module: str, x: ir.Value, extent: int) -> tuple[ir.Value, ir.Value]:
        """Split the last axis into two of an extent."""
        assert x.shape is not None  # noqa: S101  # for the type checker
        name = self._named(f"{module}/Split")
        shape = ir.Shape([*x.shape[:-1], extent])
        halves = [
            ir.Value(name=f"{name}/{half}", shape=shape, type=ir.TensorType(x.dtype))  # type: ignore[arg-type]
            for half in range(2)
        ]
        inputs = [x, self.integers(extent, extent)]
        self._append(name, "Split", inputs, {"axis": -1}, halves)
        return halves[0], halves[1]

    def reshape(self, module: str, x: ir.Value, extents: Sequence[Extent]) -> ir.Value:
        """Give a value other extents."""
        return self.add(module, "Reshape", [x, self.integers(*extents)], extents, allowzero=1)

    def flatten(
        self, module: str, x: ir.Value, extents: Sequence[Extent], last: Extent
    ) -> ir.Value:
        """Give a value other extents, of which the last is what is left; it is ``last``."""
        target = self.integers(*extents, -1)
        return self.add(module, "Reshape", [x, target], [*extents, last])

    def transpose(self, module: str, x: ir.Value, *perm: int) -> ir.Value:
        """Permute the axes of a value."""
        assert x.shape is not None  # noqa: S101  # for the type checker
        output = self.add(module, "Transpose", [x], perm=perm)
        output.shape = ir.Shape([x.shape[axis] for axis in perm])
        return output

    def cast(self, module: str, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Convert a value; nothing is added if it has the type."""
        if x.dtype == dtype:
            return x
        return self.add(module, "Cast", [x], dtype=dtype, to=dtype)

    # Values --------------------------------------------------------------------------------------

    def input(self, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> ir.Value:
        """Add an input; texts are names of dynamic dimensions."""
        value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Make a value an output of the graph."""
        value.name = name
        self.graph.outputs.append(value)

    def parameter(
        self, name: str, shape: Sequence[int] | None = None, dtype: ir.DataType | None = None
    ) -> ir.Value:
        """A parameter, rounded to the graph's type, in another shape or type if these are given.

        A smaller shape takes its first numbers.
        """
        source = self._parameters[name]
        shape = tuple(source.shape.numpy()) if shape is None else tuple(shape)
        return self._weight(name, source, shape, (dtype or self.dtype), transposed=False)

    def transposed(self, name: str) -> ir.Value:
        """A matrix, transposed."""
        source = self._parameters[name]
        shape = tuple(reversed(source.shape.numpy()))
        return self._weight(f"{name}.T", source, shape, self.dtype, transposed=True)

    def _weight(
        self,
        name: str,
        source: ir.TensorProtocol,
        shape: tuple[int, ...],
        dtype: ir.DataType,
        *,
        transposed: bool,
    ) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        read = functools.partial(
            _converted, source, self.dtype.numpy(), dtype.numpy(), shape, transposed
        )
        tensor = ir.LazyTensor(read, dtype, ir.Shape(shape), name=name)
        return self._initializer(name, tensor)

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType | None = None) -> ir.Value:
        """Numbers in the graph's type or another one; equal ones are one value."""
        dtype = dtype or self.dtype
        numbers = np.asarray(array, dtype.numpy())
        key = (dtype, numbers.shape, numbers.tobytes())
        if key not in self._constants:
            name = self._named("constant")
            self._constants[key] = self._initializer(name, ir.Tensor(numbers, name=name))
        return self._constants[key]

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    # Extents -------------------------------------------------------------------------------------

    def extent(self, value: ir.Value, axis: int) -> Extent:
        """An extent of an input."""
        assert value.shape is not None  # noqa: S101  # for the type checker
        dim = value.shape[axis]
        if isinstance(dim, int):
            return dim
        return self._symbol(str(dim.value), "Shape", [value], start=axis, end=axis + 1)

    def product(self, *factors: Extent) -> Extent:
        """The product of extents."""
        number = math.prod(factor for factor in factors if isinstance(factor, int))
        symbols = [factor for factor in factors if isinstance(factor, Symbol)]
        if not symbols:
            return number
        first, *others = symbols
        for other in others:
            text = f"{_factor(first)}*{_factor(other)}"
            first = self._symbol(text, "Mul", [first.value, other.value])
        if number == 1:
            return first
        return self._symbol(
            f"{number}*{_factor(first)}", "Mul", [self.integers(number), first.value]
        )

    def halved(self, extent: Extent) -> Extent:
        """An extent after a convolution with stride 2: half of it, rounded up."""
        if isinstance(extent, int):
            return (extent + 1) // 2
        one, two = self.integers(1), self.integers(2)
        more = self._symbol(f"{extent.text} + 1", "Add", [extent.value, one])
        return self._symbol(f"({more.text})//2", "Div", [more.value, two])

    def integers(self, *extents: Extent) -> ir.Value:
        """Extents as a vector of int64, for operators that take one."""
        numbers = [extent for extent in extents if isinstance(extent, int)]
        if len(numbers) == len(extents):
            return self.constant(numbers, INT64)
        parts = [e.value if isinstance(e, Symbol) else self.integers(e) for e in extents]
        if len(parts) == 1:
            return parts[0]
        key = tuple(extents)
        if key not in self._shapes:
            self._shapes[key] = self.add("shapes", "Concat", parts, [len(parts)], INT64, axis=0)
        return self._shapes[key]

    def _symbol(
        self, text: str, operator: str, inputs: Sequence[ir.Value], **attributes: Any
    ) -> Symbol:
        if text not in self._symbols:
            value = self.add("shapes", operator, inputs, [1], INT64, **attributes)
            self._symbols[text] = Symbol(text, value)
        return self._symbols[text]

    def _append(
        self,
        name: str,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        outputs: Sequence[ir.Value],
    ) -> None:
        self.graph.append(ir.node(operator, inputs, attributes, outputs=outputs, name=name))

    def _named(self, name: str) -> str:
        """The name, with a number behind it where it is taken."""
        count = self._used[name]
        self._used[name] += 1
        return f"{name}_{count}" if count else name


def _shape(extents: Sequence[Extent | ir.SymbolicDim]) -> ir.Shape:
    return ir.Shape([e.text if isinstance(e, Symbol) else e for e in extents])


def _factor(symbol: Symbol) -> str:
    return f"({symbol.text})" if " " in symbol.text else symbol.text


def _converted(
    source: ir.TensorProtocol,
    rounded: np.dtype[Any],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    transposed: bool,
) -> ir.TensorProtocol:
    """Read a parameter, round it to one type and return it in another.

    Raises:
        ExportError: it has NaN or infinite values, or numbers that the type cannot hold.
    """
    array = source.numpy()
    if not np.isfinite(array).all():
        raise ExportError(
            f"{source.name} has NaN or infinite values; export a checkpoint without such weights"
        )
    with np.errstate(over="ignore"):
        numbers = array.astype(rounded)  # a copy, of any type
    limit = float(ml_dtypes.finfo(rounded).max)  # type: ignore[no-untyped-call]
    if rounded.itemsize < array.dtype.itemsize and not np.isfinite(numbers).all():
        raise ExportError(
            f"{source.name} has values up to {np.abs(array).max():.4g}, beyond {rounded}'s"
            f" {limit:.4g}; export in FP32 or BF16"
        )
    if not array.flags.owndata:  # mapped
        page_out(array.ctypes.data, array.nbytes)
    numbers = numbers.T if transposed else numbers.reshape(-1)[: math.prod(shape)].reshape(shape)
    return ir.Tensor(np.ascontiguousarray(numbers, dtype), name=source.name)
