"""FP32 products for a TensorRT that computes them in TF32 regardless of its flag.

TF32 keeps 11 significant bits of each operand. Every operand is split into two, ``x = hi + lo``,
with the 8 bits of BF16 in ``hi``, which TF32 holds exactly; and ``x * w`` becomes
``hi * w_hi + x * w_lo + lo * w_hi``, which is the same. TF32 cuts off of a term no more than
2^-16 then, of all of them together some 2^-20, where it would cut 2^-10.

It stays one product, which sums over three times as much: parts are joined along the summed axis.
Three products and two sums would be the same, but TensorRT-RTX 1.6 then gives results that differ
from run to run, by 1e-4 (convolutions of 64 channels on an H100).

Weights are split when they are serialised, never before, so that a model larger than memory stays
on disk.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.errors import ModelError, UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import BFLOAT16, FLOAT, PRODUCTS, all_nodes, is_fp32, opset_of, scale_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, PassContext
from trt_native.passes.quantize_arrays import read_tensor
from trt_native.passes.raise_opset import RaisedOpset, opset_problems, require_opset
from trt_native.passes.replacement import NameAuthority

if TYPE_CHECKING:
    from trt_native.graph.weight_sources import SplitLayout

__all__ = [
    "SplitFp32Products",
    "can_split",
    "has_products",
    "hides_products",
    "split_fp32_products",
    "takes_tf32",
]

_OPSET = 13  # Cast knows BF16 since then
_SPLIT_KEY = "trt_native.split"  # in the metadata of a product whose operands are split
_FIRST_WITH_TF32 = 8.0  # compute capability; it is the first with BF16, too
_INT64 = ir.DataType.INT64
_ALL = 2**63 - 1
_JOINED = (("hi", "whole", "lo"), ("hi", "lo", "hi"))
"""The parts of each operand that are joined, so that one product sums up all terms."""


class _How(NamedTuple):
    """Layout of the joined parts of an operand.

    Attributes:
        parts: The parts, in order.
        axis: The axis along which they are joined.
        groups: Number of groups of channels.
        channels: Number of channels in all groups.
    """

    parts: tuple[str, str, str]
    axis: int
    groups: int
    channels: int

    @property
    def layout(self) -> SplitLayout:
        """The layout of the parts of a weight."""
        from trt_native.graph.weight_sources import SplitLayout

        # Each filter of a grouped Conv has its group's channels alone, so that its parts follow.
        follow = self.axis == 1 and self.parts == _JOINED[1]
        return SplitLayout(self.parts, self.axis, 1 if follow else self.groups)


@wraps_graph_errors
def has_products(model: ir.Model) -> bool:
    """Whether a graph has matrix products or convolutions that may be in FP32, and are not split.

    Raises:
        UnsupportedError: it has, and :func:`split_fp32_products` cannot split them at its opset.
    """
    found = {node.op_type for node in _products(model) if _may_be_fp32(node)}
    if found and (problems := opset_problems(model, _OPSET)):
        raise UnsupportedError(
            f"this TensorRT computes {', '.join(sorted(found))} in TF32 unless the graph"
            f" is rewritten, which needs opset {_OPSET}; the model has opset {opset_of(model)} and"
            f" cannot be raised as it is ({', '.join(problems)}): export it at a newer one, or"
            " allow TF32",
            options=("tf32",),
        )
    return bool(found)


def _products(model: ir.Model) -> list[ir.Node]:
    """Products of the graph and its bodies that are not split yet."""
    return [
        node
        for node in all_nodes(model.graph)
        if node.op_type in PRODUCTS and not node.domain and _SPLIT_KEY not in node.metadata_props
    ]


def can_split(model: ir.Model) -> bool:
    """Whether a model can have the opset that :func:`split_fp32_products` needs."""
    return not opset_problems(model, _OPSET)


@wraps_graph_errors
def split_fp32_products(model: ir.Model) -> tuple[dict[str, int], RaisedOpset | None]:
    """Rewrite a model, in place, so that its FP32 products are exact to about 1e-5 in TF32.

    That goes for each ``Conv``, ``ConvTranspose``, ``MatMul`` and ``Gemm`` on FP32 tensors, in
    bodies too. A product between two ``DequantizeLinear`` stays, because TensorRT computes it in
    integers. Names of inputs, outputs and of the values that nodes make stay; a weight is replaced
    by one with the suffix ``__split``.

    An operand that is infinite, or above BF16's largest number (3.39e38), makes NaN.

    Returns:
        How many products were rewritten, by operator, and how the model was raised to opset 13, if
        its own is older.

    Raises:
        ModelError: the type of a value is unknown and cannot be inferred.
        UnsupportedError: the model has products, and cannot be raised to opset 13.
    """
    if not has_products(model):
        return {}, None
    raised = require_opset(model, _OPSET, "split operands")
    products = [node for node in _products(model) if not _is_quantized(node)]
    _infer_types(model, products)
    return _Splitter(model).run(products), raised


def takes_tf32(context: PassContext) -> bool:
    """Whether TF32 is off in a build, and the backend would use it all the same."""
    backend, targets = context.backend, context.config.compute_capabilities
    if context.config.allows_tf32 or backend is None or backend.capabilities.exact_fp32:
        return False
    return not targets or _without_tf32(context) != [*targets]


def hides_products(context: PassContext) -> bool:
    """Whether operators that multiply inside would compute in TF32 what is to be in FP32."""
    return context.precision.lowered_to is None and takes_tf32(context)


def _without_tf32(context: PassContext) -> list[str]:
    """The target GPUs that have no TF32."""
    targets = context.config.compute_capabilities
    return [target for target in targets if float(target) < _FIRST_WITH_TF32]


class SplitFp32Products(GraphPass):
    """FP32 products of split operands, where the backend would compute them in TF32."""

    name = "split_fp32_products"
    title = "Splitting the operands of FP32 products"

    def needed(self, model: ir.Model) -> bool:
        """Whether TF32 is off, and the backend uses it all the same for products of the graph.

        Raises:
            UnsupportedError: the products cannot be split at the model's opset, or some of the
                target GPUs have TF32 and others do not.
        """
        backend = self.context.backend
        if not takes_tf32(self.context) or not has_products(model):
            return False
        if (older := _without_tf32(self.context)) and backend is not None:
            raise UnsupportedError(
                f"{backend.product} {backend.version} needs BF16 to keep FP32 products out of TF32,"
                f" and compute capability {', '.join(older)} has neither: build a plan for that"
                " apart from the others, or allow TF32",
                options=("compute_capabilities", "tf32"),
            )
        return True

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Split the products; see :func:`split_fp32_products`."""
        nodes, raised = split_fp32_products(model)
        return {"nodes": nodes, **({} if raised is None else {"raised": asdict(raised)})}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Count the products that are split."""
        text = "FP32 matrix products emulated with split operands"
        if "nodes" not in record:
            return text
        count = sum(record["nodes"].values())
        lines = [f"{text}: {count}"] if count else []
        if "raised" in record:
            lines.append(str(RaisedOpset(**record["raised"])))
        return "\n".join(lines)

    def ensures(self, model: ir.Model) -> None:
        """Nothing: products between ``DequantizeLinear`` stay."""


class _Splitter:
    def __init__(self, model: ir.Model) -> None:
        self._parts: dict[tuple[ir.Value, ir.Graph | None], tuple[ir.Value, ir.Value]] = {}
        self._joined: dict[tuple[ir.Value, _How, ir.Graph | None], ir.Value] = {}
        self._replaced: list[ir.Value] = []  # constants
        self._names = NameAuthority(model)

    def run(self, products: Iterable[ir.Node]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for node in products:
            if any(map(is_fp32, _typed(node))):
                self._split_product(node)
                node.metadata_props[_SPLIT_KEY] = ""
                counts[node.op_type] += 1
        self._drop_unused()
        return dict(counts)

    def _split_product(self, node: ir.Node) -> None:
        axes, groups, channels = _summed_axes(node)
        for index, (axis, parts) in enumerate(zip(axes, _JOINED, strict=True)):
            value = node.inputs[index]
            assert value is not None  # noqa: S101  # for the type checker
            how = _How(parts, axis, groups, channels)
            node.replace_input_with(index, self._join(value, how, node))

    def _join(self, value: ir.Value, how: _How, user: ir.Node) -> ir.Value:
        """Parts of an operand behind one another, along the axis that the product sums over."""
        tensor = ir.convenience.get_const_tensor(value)
        key = value, how, user.graph if tensor is None else None
        if key not in self._joined:
            if tensor is not None:
                self._joined[key] = self._joined_weight(value, tensor, how)
                self._replaced.append(value)
            else:
                self._joined[key] = self._joined_value(value, how, user)
        return self._joined[key]

    def _joined_weight(self, value: ir.Value, tensor: ir.TensorProtocol, how: _How) -> ir.Value:
        shape = _tripled(ir.Shape(tensor.shape.numpy()), how.axis)
        joined = ir.LazyTensor(functools.partial(_join, tensor, how), FLOAT, shape)
        from trt_native.graph.weight_sources import note_source

        made = self._names.initializer(f"{value.name}__split", joined)
        note_source(made, value, how.layout)
        return made

    def _joined_value(self, value: ir.Value, how: _How, user: ir.Node) -> ir.Value:
        high, low = self._split(value, user)
        parts = [{"hi": high, "lo": low, "whole": value}[part] for part in how.parts]
        if how.groups == 1 or how.parts == _JOINED[1]:
            joined = self._insert(user, "Concat", parts, value, "split", axis=how.axis)
            joined.shape = _tripled(value.shape, how.axis) if value.shape is not None else None
            return joined
        # Each group of channels has its own parts; behind them, all that is not a channel follows.
        rows = self._integers(value, "rows", [0, how.groups, -1])
        flat = [self._insert(user, "Reshape", [part, rows], value, "flat") for part in parts]
        joined = self._insert(user, "Concat", flat, value, "groups", axis=2)
        shape = self._insert(user, "Shape", [value], value, "shape", dtype=_INT64)
        bounds = [self._integers(value, *b) for b in (("from", [2]), ("to", [_ALL]), ("of", [0]))]
        rest = self._insert(user, "Slice", [shape, *bounds], value, "rest", dtype=_INT64)
        ahead = self._integers(value, "ahead", [0, 3 * how.channels])
        target = self._insert(user, "Concat", [ahead, rest], value, "target", axis=0, dtype=_INT64)
        return self._insert(user, "Reshape", [joined, target], value, "split")

    def _split(self, value: ir.Value, user: ir.Node) -> tuple[ir.Value, ir.Value]:
        """The two parts of an operand, which precede the node in its graph."""
        key = value, user.graph
        if key not in self._parts:
            short = self._insert(user, "Cast", [value], value, "bf16", to=BFLOAT16, dtype=BFLOAT16)
            high = self._insert(user, "Cast", [short], value, "hi", to=FLOAT)
            low = self._insert(user, "Sub", [value, high], value, "lo")
            for part in (short, high, low):
                part.shape = None if value.shape is None else ir.Shape(value.shape)
            self._parts[key] = high, low
        return self._parts[key]

    def _insert(
        self,
        user: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        suffix: str,
        *,
        dtype: ir.DataType = FLOAT,
        **attributes: int,
    ) -> ir.Value:
        """The output of a new node before another."""
        name = self._names.unique(f"{like.name}__{suffix}")
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        assert user.graph is not None  # noqa: S101  # for the type checker
        user.graph.insert_before(
            user, ir.node(operator, inputs, attributes, outputs=[output], name=name)
        )
        return output

    def _integers(self, like: ir.Value, suffix: str, numbers: list[int]) -> ir.Value:
        tensor = ir.Tensor(np.array(numbers, np.int64))
        return self._names.initializer(f"{like.name}__{suffix}", tensor)

    def _drop_unused(self) -> None:
        for value in self._replaced:
            if value.uses() or value.is_graph_output() or value.graph is None:
                continue
            producer = value.producer()
            if producer is not None:
                value.graph.remove(producer)
            else:
                value.graph.initializers.pop(value.name or "", None)


def _infer_types(model: ir.Model, products: Iterable[ir.Node]) -> None:
    """Find out the types of all products, in bodies too, and of what rank they multiply by."""

    def unknown() -> list[ir.Node]:
        return [node for node in products if not any(value.dtype for value in _typed(node))]

    if unknown() or any(_shape(node.inputs[1]) is None for node in products):
        infer_values(model)
    for node in unknown():
        raise ModelError(
            f"the type of {node.op_type} {node.name!r} is neither given nor inferred, and in FP32"
            " it must be rewritten to keep out of TF32; add a value_info with the type of"
            f" {node.outputs[0].name!r} to the model, or allow TF32",
            options=("tf32",),
        )


def _may_be_fp32(node: ir.Node) -> bool:
    kinds = {value.dtype for value in _typed(node) if value.dtype is not None}
    return not kinds or FLOAT in kinds


def _typed(node: ir.Node) -> list[ir.Value]:
    """The values of a product that share its type; not all of them need to have it."""
    return [value for value in (*node.inputs[:2], *node.outputs) if value is not None]


def _is_quantized(node: ir.Node) -> bool:
    return all(scale_of(value) is not None for value in node.inputs[:2])


def _summed_axes(node: ir.Node) -> tuple[tuple[int, int], int, int]:
    """The axes of the operands that a product sums over, in how many groups, of what channels."""
    other = node.inputs[1]
    shape = _shape(other)
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
        return (1 - turned[0], turned[1]), 1, 0
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "MatMul" and shape is not None:
        return (-1, -min(shape.rank(), 2)), 1, 0
    if groups == 1 and node.op_type != "MatMul":
        return (1, 1 if node.op_type == "Conv" else 0), 1, 0
    if shape is None or not shape.is_static():
        raise ModelError(
            f"the shape of what {node.op_type} {node.name!r} multiplies by is neither given nor"
            " inferred, and in FP32 it must be rewritten to keep out of TF32; add a value_info with"
            " it to the model, or allow TF32",
            options=("tf32",),
        )
    if node.op_type == "Conv":
        return (1, 1), groups, groups * int(shape.numpy()[1])
    if other is None or ir.convenience.get_const_tensor(other) is None:
        raise UnsupportedError(
            f"{node.op_type} {node.name!r}: weights in groups that are computed cannot be split to"
            " keep out of TF32; allow TF32",
            options=("tf32",),
        )
    return (1, 0), groups, int(shape.numpy()[0])


def _shape(value: ir.Value | None) -> ir.Shape | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return ir.Shape(tensor.shape.numpy())
    return None if value is None else value.shape


def _tripled(shape: ir.Shape, axis: int) -> ir.Shape:
    extents: list[int | None] = [d if isinstance(d, int) else None for d in shape]
    extent = extents[axis]
    extents[axis] = None if extent is None else 3 * extent
    return ir.Shape(extents)


def _join(tensor: ir.TensorProtocol, how: _How) -> ir.Tensor[Any]:
    from trt_native.graph.weight_sources import convert_weight

    return ir.Tensor(convert_weight(read_tensor(tensor), "float32", how.layout))
