"""Rewrite an FP32 ONNX graph to FP16 or BF16, for a TensorRT that takes precision from the graph.

Most nodes compute in the reduced type; some stay in FP32 and the graph gets the casts between the
two. :class:`Reason` lists why a node stays. The analysis works on the main graph only: bodies of
``If``, ``Loop`` and ``Scan`` keep computing in FP32, and model-local functions are inlined first.

Weights are converted when they are serialised, never before, so that a model larger than memory
stays on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.config import Precision
from trt_native.errors import SpecError
from trt_native.graph.caches import cache_updates
from trt_native.graph.inference import infer_types, infer_values
from trt_native.graph.nodes import (
    BFLOAT16,
    CASTS,
    DATA_MOVEMENT_OPS,
    FLOAT,
    FLOAT16,
    PRODUCTS,
    QDQ,
    SHAPES,
    allowed_types,
    bodies,
    is_fp32,
    op_set,
)
from trt_native.graph.patterns import match_nodes
from trt_native.graph.types import is_reduced, nodes_with_functions
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.autocast_operators import folded_statistics
from trt_native.passes.autocast_rules import NodeClassifier, Reason, scale_is_lost
from trt_native.passes.base import GraphPass
from trt_native.passes.quantize_arrays import read_tensor, requantize_lazily, round_scale
from trt_native.passes.raise_opset import RaisedOpset, raise_opset, require_opset
from trt_native.passes.replacement import NameAuthority
from trt_native.schemas import schema_of
from trt_native.units import counted

__all__ = ["Autocast", "PrecisionReport", "autocast", "can_be_reduced", "match_fp32_patterns"]
logger = logging.getLogger(__name__)
_SUFFIX = {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
_TARGETS = {Precision.FP16: FLOAT16, Precision.BF16: BFLOAT16}
_LARGEST = {FLOAT16: 65504.0, BFLOAT16: float.fromhex("0x1.fep127")}
_CLIP_OPSET = 11  # bounds are inputs since then
_QDQ_OPSET = 19  # Q/DQ know FP16 and BF16 since then
_LOOKUPS = op_set("Gather GatherElements GatherND")
_DONE_KEY = "trt_native.autocast"
_MASK = 32752.0  # scores may be added to it in FP16
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class PrecisionReport:
    """Report of :func:`autocast`.

    Attributes:
        target: ``"fp16"`` or ``"bf16"``.
        io_precision: The request for graph inputs and outputs.
        reduced: Number of nodes that now compute in the target type, by operator.
        kept: Number of nodes that stay in FP32, by :class:`Reason` value, then by operator.
        casts: Number of ``Cast`` nodes inserted.
        weights: Number of initializers converted, constants among them.
        weight_bytes_before: Size of those initializers in FP32.
        weight_bytes_after: Size of those initializers as converted.
        examples: Names of the first nodes that stay in FP32, by :class:`Reason` value.
        clamped: Masks beyond the target's range, which are clamped: for each constant the number
            of its elements that are, and 0 for a mask that is computed while the plan runs.
        overflows: Measured magnitudes that are too large for FP16, by value.
        patterns: For each ``keep_fp32`` pattern, the number of nodes that match.
        raised: How the model was raised to a newer opset; None where it was left alone.
        skipped: The model was reduced already, so that nothing was changed.
    """

    target: str
    io_precision: str
    reduced: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    casts: int = 0
    weights: int = 0
    weight_bytes_before: int = 0
    weight_bytes_after: int = 0
    examples: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    clamped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    overflows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    patterns: Mapping[str, int] = dataclasses.field(default_factory=dict)
    raised: RaisedOpset | None = None
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that ``json`` can write."""
        return dataclasses.asdict(self)


@wraps_graph_errors
def autocast(
    model: ir.Model,
    target: ir.DataType,
    *,
    keep_fp32: Sequence[str] = (),
    io_precision: Literal["keep", "fp32", "fp16"] = "keep",
    measured: Mapping[str, float] | None = None,
) -> PrecisionReport:
    """Rewrite an FP32 model, in place, to compute in FP16 or BF16 where that is safe.

    Names of nodes, inputs, outputs and of existing values stay; casts, and copies of weights
    needed in both types, get new names. What Q/DQ nodes read and write is reduced too, with their
    scales, which needs opset 19; a scale that FP16 would lose is replaced by one that it holds, and
    a weight that it belongs to quantized again. A ``BatchNormalization`` with constant parameters
    keeps its node, with the statistics folded into scale and bias: TensorRT computes
    ``1/sqrt(var + eps)`` in the node's own type otherwise. For BF16 the model is raised to opset 22
    if its operators need that.

    Converted weights are read from their source when they are serialised: save the model under
    another external data path than the one it was loaded from. A model without anything that
    :func:`can_be_reduced` is left alone.

    Args:
        model: The model, normalized, with its weights in memory or on disk.
        target: ``FLOAT16`` or ``BFLOAT16``.
        keep_fp32: Patterns (``fnmatch``, case-sensitive) on node names, or with the prefix ``op:``
            on operator types (``op:Resize``), of further nodes to keep in FP32.
        io_precision: Type of the graph's FP32 inputs and outputs from now on: ``"keep"`` and
            ``"fp32"`` leave them; ``"fp16"`` makes them FP16, for a BF16 model too.
        measured: For values by name, the largest magnitude that was measured; for FP16 it replaces
            what operators and constants suggest. Half of FP16's range is left for other data.

    Raises:
        SpecError: A pattern matches no node, or an argument is none of the above.
        ModelError: A value's type is unknown and cannot be inferred.
        UnsupportedError: BF16, or Q/DQ nodes, at an opset without such types that cannot be raised.
    """
    if target not in (FLOAT16, BFLOAT16) or io_precision not in ("keep", "fp32", "fp16"):
        raise SpecError(
            f"cannot convert to {target} with io_precision {io_precision!r}: choose FLOAT16 or "
            "BFLOAT16, and 'keep', 'fp32' or 'fp16'"
        )
    matches = match_fp32_patterns(model, keep_fp32)
    counts = {pattern: len(nodes) for pattern, nodes in matches.items()}
    if not can_be_reduced(model):
        logger.info("The model has reduced precision already; it is left as it is.")
        return PrecisionReport(_SUFFIX[target], io_precision, patterns=counts, skipped=True)
    infer_types(model)
    raised = raise_opset(model) if target == BFLOAT16 else None
    if any(node.op_type in QDQ for node in model.graph):
        raised = require_opset(model, _QDQ_OPSET, "FP16 and BF16 scales") or raised
    if raised is not None:
        infer_types(model)
    io_type = FLOAT16 if io_precision == "fp16" else FLOAT
    analysis = NodeClassifier(model, target, matches, io_type, measured)
    rewriter = _Rewriter(model, analysis, io_type)
    rewriter.run()
    model.graph.metadata_props[_DONE_KEY] = _SUFFIX[target]
    return PrecisionReport(
        target=_SUFFIX[target], io_precision=io_precision, patterns=counts, raised=raised,
        **rewriter.counts(),
    )  # fmt: skip


class Autocast(GraphPass):
    """FP32 arithmetic in FP16 or BF16, where that is safe."""

    name = "autocast"
    title = "Reducing the precision of the graph"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether the graph has FP32 arithmetic that is to be reduced."""
        return self.context.precision.lowered_to is not None and can_be_reduced(model)

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Reduce the graph; see :func:`autocast`."""
        config, lowered_to = self.context.config, self.context.precision.lowered_to
        assert lowered_to is not None  # noqa: S101  # for the type checker
        # A cast would come between a cache and the input that it is updated in.
        in_place = config.in_place_caches and cache_updates(model)
        report = autocast(
            model,
            _TARGETS[lowered_to],
            keep_fp32=(*config.keep_fp32, *["op:TensorScatter"] * bool(in_place)),
            io_precision=config.io_precision.value,
            measured=None if config.precision.quantized else self.context.ranges.amax,
        )
        origin = {} if config.precision.quantized else dict(self.context.ranges.origin)
        measured = {"measured": origin} if origin else {}
        return {"nodes": dict(report.reduced), **report.to_dict(), **measured}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:  # noqa: ARG002
        """The type, which is all that is known before the analysis."""
        return {"target": str(self.context.precision.lowered_to)}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Count the nodes that are reduced, and those that stay."""
        if "reduced" not in record:
            return f"FP32 arithmetic in {record['target']}"
        reduced = sum(record["reduced"].values())
        kept = sum(sum(operators.values()) for operators in record["kept"].values())
        lines = [
            f"{record['target']}: {counted(reduced, 'node')}; {kept} stay{'s' * (kept == 1)} FP32,"
            f" {counted(record['casts'], 'cast')}"
        ]
        for reason, names in record["examples"].items():
            count = sum(record["kept"][reason].values())
            more = ", ..." if count > len(names) else ""
            lines.append(f"FP32 for {reason}: {count} ({', '.join(names)}{more})")
        if "measured" in record:
            large = [f"{name} {peak:.2g}" for name, peak in record["overflows"].items()]
            more = ", ..." if len(large) > _EXAMPLES else ""
            found = f"{len(large)} ({', '.join(large[:_EXAMPLES])}{more})" if large else "none"
            lines.append(f"measured too large for FP16: {found}")
        for name, count in record["clamped"].items():
            lines.append(f"clamped mask: {name}" + (f" ({count} elements)" if count else ""))
        if record["raised"] is not None:
            lines.append(str(RaisedOpset(**record["raised"])))
        return "\n".join(lines)

    def ensures(self, model: ir.Model) -> None:
        """Nothing: a graph may have no node that can be reduced."""


@wraps_graph_errors
def can_be_reduced(model: ir.Model) -> bool:
    """Whether a model is in FP32, or computes products in FP32 next to reduced types.

    Fills in missing value types. A model that :func:`autocast` rewrote is not reduced again.
    """
    if _DONE_KEY in model.graph.metadata_props:
        return False
    if not is_reduced(model) or model.functions:  # without types before they are inlined
        return True
    if any(value.type is None for node in model.graph for value in node.outputs):
        infer_values(model)
    products = (node for node in model.graph if node.op_type in PRODUCTS and not node.domain)
    return any(is_fp32(value) for node in products for value in node.outputs)


def match_fp32_patterns(model: ir.Model, patterns: Sequence[str]) -> dict[str, set[ir.Node]]:
    """Find the nodes that ``keep_fp32`` patterns name.

    Raises:
        SpecError: a pattern matches no node.
    """
    # Q/DQ nodes are named after tensors, and those after the nodes that make them.
    nodes = [node for node in nodes_with_functions(model) if node.op_type not in QDQ]
    return match_nodes(nodes, patterns, ("keep_fp32",))


_Replace: TypeAlias = Callable[[ir.Value], None]


_Array: TypeAlias = npt.NDArray[Any]


class _Rewriter:
    """Gives every value of the main graph its type, and inserts casts where readers differ."""

    def __init__(self, model: ir.Model, analysis: NodeClassifier, io_type: ir.DataType) -> None:
        self.graph = model.graph
        self.analysis = analysis
        self.target = analysis.target
        self.io_type = io_type
        self.native: dict[ir.Value, ir.DataType] = {}  # the type in which a value is produced
        self.uses: dict[ir.Value, dict[ir.DataType, list[_Replace]]] = {}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.reduced: Counter[str] = Counter()
        self.kept: dict[str, Counter[str]] = {}
        self.examples: dict[str, list[str]] = {}
        self.clamped: dict[str, int] = {}
        self.weights: list[tuple[int, int]] = []  # bytes before and after
        self.scales: dict[ir.Value, ir.Value] = {}  # each that FP16 would lose, as it becomes
        self.names = NameAuthority(model)

    def run(self) -> None:
        for node in self.graph:
            if node.op_type == "BatchNormalization" and node not in self.analysis.kept:
                self._fold_statistics(node)
            elif node.op_type in QDQ and node not in self.analysis.kept:
                self._fit_scale(node)
        self._assign_types()
        for value, needs in self.uses.items():
            if value in self.native:
                for dtype in needs.keys() - {self.native[value]}:
                    _replace_all(needs[dtype], self._cast(value, dtype))
            else:
                self._convert_weight(value, needs)
        self._cast_outputs()
        for value, dtype in self.native.items():
            value.dtype = dtype

    def counts(self) -> dict[str, Any]:
        """Fields of the report."""
        return {
            "reduced": dict(self.reduced),
            "kept": {reason: dict(operators) for reason, operators in self.kept.items()},
            "casts": len(self.casts),
            "weights": len(self.weights),
            "weight_bytes_before": sum(before for before, _ in self.weights),
            "weight_bytes_after": sum(after for _, after in self.weights),
            "examples": self.examples,
            "clamped": self.clamped,
            "overflows": self.analysis.magnitudes.overflows(),
        }

    def _assign_types(self) -> None:
        movers = self._fp32_movers()
        self.native.update((v, self.io_type) for v in self.graph.inputs if is_fp32(v))
        for node in self.graph:
            inputs, outputs = self._slot_types(node, node in movers)
            for i, value in enumerate(node.inputs):
                self._need(value, inputs[i], functools.partial(node.replace_input_with, i))
            for value, dtype in zip(node.outputs, outputs, strict=True):
                if is_fp32(value):
                    self.native[value] = dtype
                    self._retype_attribute(node, dtype)
            for body in _all_bodies(node):
                self._need_captured(body)
            self._count(node, [*inputs, *outputs])
        for value in self.graph.outputs:
            if value not in self.native:
                self._need(value, self.io_type)

    def _need(self, value: ir.Value | None, dtype: ir.DataType, *replace: _Replace) -> None:
        if value is not None and is_fp32(value):
            self.uses.setdefault(value, {}).setdefault(dtype, []).extend(replace)

    def _need_captured(self, body: ir.Graph) -> None:
        def outer(value: ir.Value | None) -> bool:
            return value is not None and (
                value in self.native or self.graph.initializers.get(value.name or "") is value
            )

        for node in body:
            for i, value in enumerate(node.inputs):
                if outer(value):
                    self._need(value, FLOAT, functools.partial(node.replace_input_with, i))
        for i, value in enumerate(body.outputs):
            if outer(value):
                self._need(value, FLOAT, functools.partial(operator.setitem, body.outputs, i))

    def _fp32_movers(self) -> set[ir.Node]:
        """The nodes that only move or cast values, for a reader that wants them in FP32."""
        movers: set[ir.Node] = set()

        def wants_fp32(user: ir.Node, index: int) -> bool:
            if user.graph is not self.graph or user in self.analysis.kept or user in movers:
                return True
            schema = schema_of(user.op_type, self.analysis.opset)
            if schema is None or user.op_type in CASTS | SHAPES:
                return False
            return not allowed_types(schema, user, self.target)[0][index]

        for node in reversed(self.graph):
            if node.op_type in DATA_MOVEMENT_OPS | CASTS and any(
                (v.is_graph_output() and self.io_type == FLOAT)
                or any(wants_fp32(*use) for use in v.uses())
                for v in node.outputs
            ):
                movers.add(node)
        return movers

    def _slot_types(
        self, node: ir.Node, mover: bool
    ) -> tuple[list[ir.DataType], list[ir.DataType]]:
        """The types that a node's inputs and outputs take, where they are FP32 now."""
        fp32 = [FLOAT] * len(node.inputs), [FLOAT] * len(node.outputs)
        schema = None if node.domain else schema_of(node.op_type, self.analysis.opset)
        if node in self.analysis.kept or schema is None:
            return fp32
        free = [self.native[v] for v in node.inputs if v in self.native]
        if node.op_type in CASTS | SHAPES:  # read any type
            result = FLOAT if mover else self.target
            return [*free[:1], *[result] * len(node.inputs)], [result] * len(node.outputs)
        # Not Q: it shares its scale with a DQ, and both need it in one type.
        follows = not any(map(is_fp32, node.outputs)) and node.op_type not in QDQ
        follows = follows and FLOAT in free
        # A table is better read in the reduced type, and a cast put behind it.
        table = not free and node.op_type in _LOOKUPS
        table = table and not any(map(self.analysis.is_position, node.outputs))
        if follows or (mover and set(free) <= {FLOAT} and not table):
            return fp32
        inputs, outputs = allowed_types(schema, node, self.target)
        return (
            [self.target if ok else FLOAT for ok in inputs],
            [self.target if ok else FLOAT for ok in outputs],
        )

    def _count(self, node: ir.Node, types: Sequence[ir.DataType]) -> None:
        slots = zip((*node.inputs, *node.outputs), types, strict=False)
        used = {dtype for value, dtype in slots if value is not None and is_fp32(value)}
        if self.target in used:
            self.reduced[node.op_type] += 1
        elif used:
            reason = self.analysis.kept.get(node, Reason.NEIGHBORS).value
            self.kept.setdefault(reason, Counter())[node.op_type] += 1
            names = self.examples.setdefault(reason, [])
            if len(names) < _EXAMPLES:
                names.append(node.name or f"the {node.op_type} of {node.outputs[0].name}")

    def _retype_attribute(self, node: ir.Node, dtype: ir.DataType) -> None:
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", dtype.value)
        elif node.op_type == "ConstantOfShape" and dtype != FLOAT:
            given = node.attributes.get("value")
            array = given.as_tensor().numpy() if given else np.zeros(1, np.float32)
            node.attributes["value"] = ir.AttrTensor(
                "value", _rounded(ir.tensor(array), dtype, _LARGEST[dtype])
            )

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) in self.casts:
            return self.casts[value, dtype]
        producer, source, nodes = value.producer(), value, []
        if producer and producer.op_type == "Cast" and _is_integer(producer.inputs[0]):
            source = producer.inputs[0] or value
        elif dtype == FLOAT16 and self._overflows(value):
            # A mask's -1e9 must not turn into an infinity: a row of those is NaN after Softmax.
            self.clamped[value.name or ""] = 0
            nodes.append(self._clip(value))
            source = nodes[0].outputs[0]
        result = self.names.value(value, _SUFFIX[dtype], dtype)
        nodes.append(_node("Cast", [source], result, {"to": dtype.value}))
        if producer:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)
        self.casts[value, dtype] = result
        return result

    def _overflows(self, value: ir.Value) -> bool:
        magnitudes = self.analysis.magnitudes
        masks = value in magnitudes.masks and magnitudes.exceeds(value)
        return masks and self.analysis.opset >= _CLIP_OPSET

    def _clip(self, value: ir.Value) -> ir.Node:
        limit = np.float32(np.finfo(np.float16).max)
        bounds = [
            self.names.initializer(f"{value.name}__{name}", ir.tensor(np.asarray(bound)))
            for name, bound in (("min", -limit), ("max", limit))
        ]
        return _node("Clip", [value, *bounds], self.names.value(value, "clipped", FLOAT))

    def _cast_outputs(self) -> None:
        for i, value in enumerate(self.graph.outputs):
            if self.native.get(value, self.io_type) != self.io_type:
                result, name = self._cast(value, self.io_type), value.name
                result.name, value.name = None, self.names.unique(f"{name}__{_SUFFIX[self.target]}")
                result.name = name
                self.graph.outputs[i] = result

    def _convert_weight(
        self, value: ir.Value, needs: Mapping[ir.DataType, Sequence[_Replace]]
    ) -> None:
        """Put an initializer into the type, or the types, that its readers need."""
        tensor = value.const_value
        if tensor is None:
            return
        own = FLOAT if FLOAT in needs else next(iter(needs))
        own = self.io_type if value.is_graph_output() else own
        for dtype in needs.keys() - {own}:
            name = f"{value.name}__{_SUFFIX[dtype]}"
            copy = self.names.initializer(name, self._lazy(value, tensor, dtype))
            from trt_native.graph.weight_sources import note_source  # few builds have such a copy

            note_source(copy, value)
            _replace_all(needs[dtype], copy)
        if own != FLOAT:
            value.const_value = self._lazy(value, tensor, own)
            value.dtype = own

    def _lazy(
        self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType
    ) -> ir.LazyTensor:
        limit = _LARGEST.get(dtype, np.inf)
        if dtype != FLOAT and (clamped := self.analysis.magnitudes.masks.get(value)):
            self.clamped[value.name or ""] = clamped
            limit = min(limit, _MASK) if dtype == FLOAT16 else limit
        lazy = ir.LazyTensor(
            functools.partial(_rounded, tensor, dtype, limit),
            dtype,
            ir.Shape(tensor.shape.numpy()),
        )
        if dtype != FLOAT:
            self.weights.append((tensor.nbytes, lazy.nbytes))
        return lazy

    def _fold_statistics(self, node: ir.Node) -> None:
        """Leave a ``BatchNormalization`` mean 0 and variance 1, which no type can lose."""
        old = [value for value in node.inputs[1:] if value is not None]
        factor, shift = folded_statistics(node)
        folded = factor, shift, np.zeros_like(factor), np.ones_like(factor)
        for i, name in enumerate(("scale", "bias", "mean", "var")):
            tensor = ir.tensor(folded[i].astype(np.float32))
            folded_name = f"{node.name or node.outputs[0].name}__{name}"
            node.replace_input_with(i + 1, self.names.initializer(folded_name, tensor))
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)
        self._drop_unused(old)

    def _fit_scale(self, node: ir.Node) -> None:
        """Give a Q/DQ node a scale that FP16 holds, and its weight the numbers that go with it."""
        packed, scale = node.inputs[:2]
        if self.target != FLOAT16 or packed is None or scale is None or scale.const_value is None:
            return
        old = read_tensor(scale.const_value)
        if not scale_is_lost(old):
            return
        new = round_scale(old, FLOAT16)
        if scale not in self.scales:
            tensor = ir.tensor(new)
            self.scales[scale] = self.names.initializer(f"{scale.name}__{_SUFFIX[FLOAT16]}", tensor)
        node.replace_input_with(1, self.scales[scale])
        if packed.is_initializer() and packed.const_value is not None:
            axis = node.attributes.get_int("axis", 1) % max(len(packed.const_value.shape), 1)
            tensor = requantize_lazily(packed.const_value, old, new, axis)
            node.replace_input_with(0, self.names.initializer(f"{packed.name}__repacked", tensor))
        self._drop_unused([packed, scale])

    def _drop_unused(self, weights: Iterable[ir.Value]) -> None:
        for value in weights:
            if value.name and not value.uses() and not value.is_graph_output():
                self.graph.initializers.pop(value.name, None)


def _node(
    op_type: str, inputs: list[ir.Value], output: ir.Value, attributes: dict[str, int] | None = None
) -> ir.Node:
    return ir.node(op_type, inputs, attributes, outputs=[output], name=output.name)


def _replace_all(replacements: Iterable[_Replace], value: ir.Value) -> None:
    for replace in replacements:
        replace(value)


def _all_bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for body in bodies(node):
        yield body
        for inner in body:
            yield from _all_bodies(inner)


def _is_integer(value: ir.Value | None) -> bool:
    dtype = value.dtype if value else None
    return dtype is not None and (dtype.is_integer() or dtype == ir.DataType.BOOL)


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, limit: float) -> ir.Tensor[Any]:
    """Round to a type, with finite values beyond a limit clamped to it."""
    array = read_tensor(tensor)
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(dtype.numpy())
        beyond = np.isfinite(array) & ~(np.abs(rounded) <= limit)
    if beyond.any():
        rounded[beyond] = np.copysign(limit, array[beyond]).astype(rounded.dtype)
    return ir.Tensor(rounded, dtype=dtype)
