"""Write Q/DQ nodes around the matrix products of a graph, for a TensorRT that reads INT8 from them.

Activations get a ``QuantizeLinear`` and a ``DequantizeLinear``, shared by all that read them, with
one scale for the tensor and zero point 0. Weights are stored as INT8 or FP8 with one scale for each
output channel, followed by a ``DequantizeLinear`` alone; or as matrices of INT4 with one for each
block: see :mod:`~trt_native.passes.block_weights`. Biases and outputs stay as they are.
TensorRT fuses the pairs into the product between them. In an FP16 model a linear layer between
them computes in FP32, for the reason at
:data:`~trt_native.passes.autocast_rules.ACCUMULATES_UNSCALED`, and its result is cast back.

:class:`~trt_native.passes.quantize_rules.SkipReason` lists why a product is left alone.
Bodies of ``If``, ``Loop`` and ``Scan`` stay as they are; model-local functions are inlined first.
Weights are quantized when they are serialised, so that a model larger than memory stays on disk;
they are read once before, for their scales.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.calibration.rows import RowReader
from trt_native.config import BLOCK_SIZES, QUANTIZED_OPS
from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.graph.inference import infer_types
from trt_native.graph.macs import multiply_adds, static_shapes
from trt_native.graph.nodes import FLOAT, FLOAT16
from trt_native.graph.types import reduced_types
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.block_weights import (
    BlockWeight,
    WeightKey,
    measure_blocks,
    row_reader,
    weight_key,
)
from trt_native.passes.quantize_arrays import (
    FLOAT8,
    INT4,
    INT8,
    LARGEST,
    channel_amax,
    check_finite,
    quantize_lazily,
    read_tensor,
    round_scale,
)
from trt_native.passes.quantize_rules import (
    COPY_OPS,
    QUANTIZE_PRESETS,
    REASONS,
    Format,
    Product,
    ProductSelection,
    QuantizedOperand,
    SkipReason,
    Weight,
    count_by_operator,
    default_ops,
    find_weight,
)
from trt_native.passes.raise_opset import RaisedOpset, require_opset
from trt_native.passes.replacement import NameAuthority
from trt_native.shapes import Shape
from trt_native.units import counted

__all__ = [
    "METADATA_KEY",
    "QUANTIZE_PRESETS",
    "Format",
    "QuantizationReport",
    "Quantize",
    "SkipReason",
    "check_not_quantized",
    "quantize_model",
]

METADATA_KEY = "trt_native.quantization"
"""Key of the report, as JSON, in an ONNX file's metadata."""

DEFAULT_BLOCK_SIZE = 64
"""The most weights that share a scale in INT4, where nothing else is asked for."""

_SUFFIX = {INT8: "int8", FLOAT8: "fp8", INT4: "int4"}
_FORMATS = {"int8": INT8, "fp8": FLOAT8, "int8-weights": INT8, "int4-weights": INT4}
_OPSET_OF_CHANNELS, _OPSET_OF_TYPES = 13, 19  # per-channel scales; FP8, and scales in FP16 and BF16
_OPSET_OF_BLOCKS = 21  # INT4, and scales of blocks


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """Report of :func:`quantize_model`.

    Attributes:
        format: ``"int8"``, ``"fp8"``, ``"int8-weights"`` or ``"int4-weights"``.
        preset: The preset.
        ops: The operators to quantize.
        quantized: Number of nodes whose inputs are quantized, by operator.
        skipped: Number of matrix products left alone, by :class:`SkipReason` value, then by
            operator.
        macs: Multiply-adds of all matrix products, for the given shapes; None where those are
            not sufficient.
        macs_quantized: Multiply-adds of the quantized ones; None likewise.
        activations: Number of activations with a Q/DQ pair.
        residuals: How many of those are there for a residual sum alone.
        weights: Number of weights quantized.
        weight_bytes: Size of the weights of all matrix products before.
        weight_bytes_quantized: Size of those among them that are quantized, before.
        model_bytes_before: Size of all weights and constants before.
        model_bytes_after: Size of all weights, constants, scales and factors after.
        kept_weights: Weights that stay in floating point too, for another reader.
        without_range: Activations that have no range though a product needs one.
        patterns: For each pattern of nodes to skip, the number of nodes that match.
        raised: How the model was raised to a newer opset; None where it was left alone.
        blocks: Number of weights in INT4, by the number of elements that share a scale.
        scaled: Number of activations that are divided by factors of their channels, by which the
            INT4 weights are multiplied.
        errors: For each weight in INT4 the errors of
            :class:`~trt_native.passes.block_weights.BlockWeight`.
    """

    format: str
    preset: str
    ops: tuple[str, ...]
    quantized: Mapping[str, int]
    skipped: Mapping[str, Mapping[str, int]]
    macs: int | None
    macs_quantized: int | None
    activations: int
    residuals: int
    weights: int
    weight_bytes: int
    weight_bytes_quantized: int
    model_bytes_before: int
    model_bytes_after: int
    kept_weights: tuple[str, ...]
    without_range: tuple[str, ...]
    patterns: Mapping[str, int]
    raised: RaisedOpset | None
    blocks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    scaled: int = 0
    errors: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def products(self) -> int:
        """Number of matrix products."""
        return sum(self.quantized.values()) + sum(sum(n.values()) for n in self.skipped.values())

    @property
    def coverage(self) -> float:
        """Quantized share of the multiply-adds, or of the nodes where those are unknown."""
        if self.macs and self.macs_quantized is not None:
            return self.macs_quantized / self.macs
        return sum(self.quantized.values()) / self.products if self.products else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that ``json`` can write, with ``coverage``."""
        data = dataclasses.asdict(self)
        lists = {name: list(value) for name, value in data.items() if isinstance(value, tuple)}
        return {**data, **lists, "products": self.products, "coverage": round(self.coverage, 4)}

    def coverage_text(self) -> str:
        """One line about how much is quantized."""
        text = f"{sum(self.quantized.values())} of {self.products} matrix products"
        if self.macs:
            text += f", {self.coverage:.1%} of their multiply-adds"
        if self.weight_bytes:
            share = self.weight_bytes_quantized / self.weight_bytes
            text += f", {share:.1%} of their weights' bytes"
        return text

    def error_text(self) -> str:
        """One line about the relative L2 errors of weights in INT4; empty without any."""
        if not self.errors:
            return ""
        text = f"weights {_spread(self.errors, 'weight')}"
        fitted = {name: found for name, found in self.errors.items() if "products" in found}
        if fitted:
            text = f"products {_spread(fitted, 'products')}"
            text += f"; rounded to nearest: {_spread(fitted, 'nearest')}"
        return f"relative L2 error of {text}"

    def explain(self) -> str:
        """One line about what is not quantized, and why."""
        parts = [
            f"{count} {operator} ({REASONS[SkipReason(reason)]})"
            for reason, operators in self.skipped.items()
            for operator, count in operators.items()
        ]
        return ", ".join(parts) or "nothing"


def _spread(errors: Mapping[str, Mapping[str, float]], kind: str) -> str:
    """Mean and largest of one kind of error."""
    found = {name: values[kind] for name, values in errors.items()}
    worst = max(found, key=lambda name: found[name])
    mean = sum(found.values()) / len(found)
    return f"{mean:.2g} in the mean, at most {found[worst]:.2g} ({worst})"


@wraps_graph_errors
def quantize_model(
    model: ir.Model,
    ranges: Mapping[str, float],
    *,
    format: Format = "int8",  # noqa: A002
    ops: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    preset: str = "default",
    min_coverage: float = 0.0,
    shapes: Mapping[str, Shape] | None = None,
    note: str = "",
    dry_run: bool = False,
    block_sizes: Sequence[int] | None = None,
    rows: Mapping[RowReader, Array] | None = None,
) -> QuantizationReport:
    """Rewrite a floating-point model, in place, to multiply in INT8 or FP8, or hold such weights.

    Names of nodes, inputs, outputs and of existing values stay. The report is stored in the
    model's metadata. Quantized weights are read from their source when they are serialised: save
    the model under another external data path than the one it was loaded from.

    Args:
        model: The model, normalized, in FP32, FP16 or BF16, with its weights in memory or on disk.
        ranges: Largest magnitude of each activation, by tensor name. Tensors that the model lacks
            are ignored; none are needed for weights alone.
        format: ``"int8"``: scale = range / 127. ``"fp8"``: E4M3, scale = range / 448.
            ``"int8-weights"``, ``"int4-weights"``: only the weights are stored so.
        ops: Some of :data:`~trt_native.config.QUANTIZED_OPS`; None is what
            :func:`~trt_native.passes.quantize_rules.default_ops` says.
        skip: Patterns (``fnmatch``, case-sensitive) on node names, or with the prefix ``op:`` on
            operator types, of nodes to leave alone.
        preset: One of :data:`QUANTIZE_PRESETS`.
        min_coverage: Fail if :attr:`QuantizationReport.coverage` is less than this.
        shapes: Shape of each dynamic input, to count multiply-adds for.
        note: What to add where too little can be quantized, such as what a backend lacks.
        dry_run: Only report, without opset and errors; leave the model's operators and metadata
            alone.
        block_sizes: For INT4, the numbers of elements that may share a scale, of which a weight
            gets the largest that fits. None: those up to :data:`DEFAULT_BLOCK_SIZE`.
        rows: Samples of activations that INT4 weights are fitted to; see
            :meth:`Quantize.row_readers`.

    Raises:
        SpecError: A pattern or the preset matches no node, a range is not a positive number, an
            argument is none of the above, or the coverage is 0 or too small.
        ModelError: The model has Q/DQ nodes already, a weight holds NaN or infinity, or a value's
            type is unknown and cannot be inferred.
        UnsupportedError: The model's opset is too old and cannot be raised.
    """
    ops = default_ops(format, preset) if ops is None else tuple(ops)
    _check_arguments(ranges, format, ops, preset, min_coverage)
    check_not_quantized(model)
    infer_types(model)
    sizes = _sizes_up_to(DEFAULT_BLOCK_SIZE) if block_sizes is None else tuple(block_sizes)
    selection = ProductSelection(
        model, ranges, format=format, ops=ops, skip=skip, preset=preset, block_sizes=sizes
    )
    writer = _Writer(model, selection, _FORMATS[format], rows or {})
    report = QuantizationReport(
        format=format,
        preset=preset,
        ops=ops,
        patterns=selection.patterns,
        without_range=tuple(selection.without_range),
        **_coverage(model, selection, shapes or {}),
        **writer.outlook(),
    )
    _check_coverage(report, min_coverage, note)
    if not dry_run:
        raised = writer.run()
        report = dataclasses.replace(
            report,
            raised=raised,
            scaled=len(writer.divided),
            errors=writer.errors(),
            model_bytes_after=report.model_bytes_after + writer.factor_bytes,
        )
        model.metadata_props[METADATA_KEY] = json.dumps(report.to_dict())
    return report


def _sizes_up_to(most: int, sizes: Sequence[int] = BLOCK_SIZES) -> tuple[int, ...]:
    return tuple(size for size in sizes if size <= most)


class Quantize(GraphPass):
    """Q/DQ nodes around matrix products, for INT8, FP8, and weights in INT8 or INT4.

    Attributes:
        report: After it ran, what was quantized.
    """

    report: QuantizationReport | None = None

    name = "quantize"
    title = "Quantizing the graph"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether Q/DQ nodes are to be written, and are not there yet."""
        return self.context.precision.writes_qdq and "quantized" not in reduced_types(model)

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write the Q/DQ nodes; see :func:`quantize_model`."""
        self.report = self.quantize(model)
        return self._record(model, self.report)

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """The report of :func:`quantize_model`, for the ranges that are known."""
        return self._record(model, self.quantize(model, dry_run=True))

    def quantize(self, model: ir.Model, *, dry_run: bool = False) -> QuantizationReport:
        """Apply :func:`quantize_model` as the configuration says.

        Raises:
            SpecError, ModelError, UnsupportedError: as :func:`quantize_model`.
        """
        context, spec = self.context, self.context.config.quantization
        shapes = context.ranges.shapes
        if context.profiles:
            shapes = {name: shape.opt for name, shape in context.profiles[0].shapes.items()}
        return quantize_model(
            model,
            context.ranges.amax,
            format=self._format(),
            ops=self.ops(),
            skip=self._skip(),
            preset=spec.preset,
            min_coverage=spec.min_coverage,
            shapes=shapes,
            note=self._not_built(model),
            dry_run=dry_run,
            block_sizes=self._block_sizes(),
            rows=context.ranges.rows,
        )

    def selection(self, model: ir.Model) -> ProductSelection:
        """The products that would be quantized, of a model with types and without functions.

        Raises:
            SpecError: a pattern, or the preset, matches nothing.
        """
        return ProductSelection(
            model,
            self.context.ranges.amax,
            format=self._format(),
            ops=self.ops(),
            skip=self._skip(),
            preset=self.context.config.quantization.preset,
            block_sizes=self._block_sizes(),
        )

    def row_readers(self, model: ir.Model) -> list[RowReader]:
        """How the products with INT4 weights read what these can be fitted to.

        Raises:
            SpecError: a pattern, or the preset, matches nothing.
        """
        infer_types(model)
        chosen = self.selection(model).chosen
        return list(dict.fromkeys(filter(None, map(row_reader, chosen))))

    def _format(self) -> Format:
        return cast("Format", self.context.config.precision.value)

    def _skip(self) -> tuple[str, ...]:
        """Patterns of the nodes to leave alone: what is to compute in FP32 cannot do so in INT8."""
        return (*self.context.config.quantization.exclude, *self.context.config.keep_fp32)

    def _block_sizes(self) -> tuple[int, ...]:
        backend = self.context.backend
        most = self.context.config.quantization.block_size or DEFAULT_BLOCK_SIZE
        known = BLOCK_SIZES if backend is None else backend.capabilities.block_sizes
        return _sizes_up_to(most, known)

    def ops(self) -> tuple[str, ...]:
        """The operators to quantize, as far as the backend builds them."""
        return tuple(op for op in self._wanted_ops() if op in self._built_ops())

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Coverage, origin of the ranges, and operators that the backend does not build."""
        lines = [f"{self.context.config.precision}: {record['covered']}", record["error"]]
        calibration = record["calibration"]
        if calibration.get("runner"):
            batches, runner = calibration["batches"], calibration["runner"]
            lines.append(f"ranges from {counted(batches, 'batch', 'es')} run by {runner}")
        if record["raised"] is not None:
            lines.append(str(RaisedOpset(**record["raised"])))
        return "\n".join(filter(None, (*lines, record["not_built"])))

    def _record(self, model: ir.Model, report: QuantizationReport) -> dict[str, Any]:
        return {
            "nodes": dict(report.quantized),
            **report.to_dict(),
            "covered": report.coverage_text(),
            "error": report.error_text(),
            "calibration": dict(self.context.ranges.origin),
            "not_built": self._not_built(model),
        }

    def _wanted_ops(self) -> tuple[str, ...]:
        config = self.context.config
        spec = config.quantization
        return spec.ops or default_ops(config.precision.value, spec.preset)

    def _built_ops(self) -> Collection[str]:
        backend = self.context.backend
        if backend is None:
            return QUANTIZED_OPS
        return backend.capabilities.quantized_ops[self.context.config.precision]

    def _not_built(self, model: ir.Model) -> str:
        """The operators that would be quantized if the backend built them, as a sentence."""
        present = {node.op_type for node in model.graph}
        built = self._built_ops()
        lacking = [op for op in self._wanted_ops() if op in present and op not in built]
        backend = self.context.backend
        if not lacking or backend is None:
            return ""
        product = f"{backend.product} {backend.version}"
        return f"{product} builds no {' or '.join(lacking)} in {self.context.config.precision}"


def check_not_quantized(model: ir.Model) -> None:
    """Refuse to quantize a model twice.

    Raises:
        ModelError: it has quantized operators.
    """
    if "quantized" in reduced_types(model):
        raise ModelError(
            "the model has Q/DQ or other quantized operators already; quantize the model it was"
            " made from, or build this one as it is"
        )


def _check_arguments(
    ranges: Mapping[str, float],
    format: str,  # noqa: A002
    ops: Sequence[str],
    preset: str,
    minimum: float,
) -> None:
    if format not in get_args(Format):
        raise SpecError(f"format {format!r} is none of: {', '.join(get_args(Format))}")
    if preset not in QUANTIZE_PRESETS:
        raise SpecError(f"preset {preset!r} is none of: {', '.join(QUANTIZE_PRESETS)}")
    unknown = [operator for operator in ops if operator not in QUANTIZED_OPS]
    if unknown or not ops:
        raise SpecError(
            f"operators to quantize: {', '.join(unknown) or 'none given'}; choose from"
            f" {', '.join(QUANTIZED_OPS)}"
        )
    if not 0 <= minimum <= 1:
        raise SpecError(f"minimum coverage {minimum}: it is a share from 0 to 1")
    wrong = [name for name, amax in ranges.items() if not (math.isfinite(amax) and amax > 0)]
    if wrong:
        listing = ", ".join(f"{name} ({ranges[name]})" for name in wrong[:5])
        raise SpecError(f"{len(wrong)} ranges are not positive numbers: {listing}; calibrate again")


def _coverage(
    model: ir.Model, selection: ProductSelection, shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """The report's counts of nodes and of multiply-adds."""
    chosen = [product.node for product in selection.chosen]
    known = static_shapes(model, shapes)
    macs = {node: multiply_adds(node, known) for node in selection.quantizable()}
    total = None if None in macs.values() else sum(n for n in macs.values() if n is not None)
    reasons = {
        reason: [node for node, why in selection.skipped.items() if why == reason]
        for reason in SkipReason
    }
    return {
        "quantized": count_by_operator(chosen),
        "skipped": {r.value: count_by_operator(nodes) for r, nodes in reasons.items() if nodes},
        "macs": total,
        "macs_quantized": None if total is None else sum(macs[node] or 0 for node in chosen),
    }


def _check_coverage(report: QuantizationReport, minimum: float, note: str) -> None:
    kind = "matrix products" if report.macs is None else "multiply-adds"
    if report.quantized and report.coverage >= minimum:
        return
    missing = report.without_range
    hint = ""
    if missing:
        hint = f"; {len(missing)} tensors have no range: {', '.join(missing[:5])}"
        hint += ", ..." if len(missing) > 5 else ""
    if not report.products:
        raise SpecError("nothing to quantize: the model has no Conv, MatMul or Gemm")
    wanted = f", {minimum:.1%} are asked for" if report.quantized else ""
    raise SpecError(
        f"only {report.coverage:.1%} of the {kind} can be quantized{wanted}; left alone:"
        f" {report.explain()}{hint}{f'; {note}' if note else ''}"
    )


def _has_other_readers(value: ir.Value, wired: Set[tuple[ir.Node, int]]) -> bool:
    """Whether a weight is read in floating point by anything but products to quantize."""
    if value.is_graph_output():
        return True
    for node, index in value.uses():
        if (node, index) in wired:
            continue
        if node.op_type not in COPY_OPS or _has_other_readers(node.outputs[0], wired):
            return True
    return False


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    assert result.dtype is not None  # noqa: S101  # for the type checker
    return ir.node("Cast", [value], {"to": result.dtype.value}, outputs=[result], name=result.name)


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _packed_nbytes(operand: QuantizedOperand) -> int:
    """Size of a quantized weight with its scales."""
    tensor = operand.weight.source.const_value if operand.weight else None
    if operand.weight is None or tensor is None:
        return 0
    if operand.block:
        return (tensor.size + 1) // 2 + tensor.size // operand.block * int(operand.dtype.itemsize)
    shape, perm = tensor.shape.numpy(), operand.weight.perm
    channels = int(shape[perm[operand.axis] if perm else operand.axis])
    return int(tensor.size) + channels * int(operand.dtype.itemsize)


def _block_counts(operands: Iterable[QuantizedOperand]) -> dict[str, int]:
    """Number of weights by the size of their blocks, as text."""
    counts = Counter(operand.block for operand in operands if operand.block)
    return {str(size): count for size, count in sorted(counts.items())}


class _Writer:
    """Puts the Q/DQ nodes of a selection into the graph."""

    def __init__(
        self,
        model: ir.Model,
        selection: ProductSelection,
        dtype: ir.DataType,
        rows: Mapping[RowReader, Array],
    ) -> None:
        self.model = model
        self.rows = rows
        self.blocks: dict[WeightKey, BlockWeight] = {}
        self.divided: dict[RowReader, ir.Value] = {}
        self.factor_bytes = 0
        self.graph = model.graph
        self.selection = selection
        self.dtype = dtype
        self.scale_of: dict[WeightKey, npt.NDArray[np.float32]] = {}
        self.weights: dict[WeightKey, ir.Value] = {}
        self.quantizers: dict[ir.Value, ir.Node] = {}
        self.scales: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.activations: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.names = NameAuthority(model)
        self._zero_point: ir.Value | None = None

    def outlook(self) -> dict[str, Any]:
        """Predict the report's fields about tensors without reading a weight."""
        operands = [o for product in self.selection.chosen for o in product.operands]
        activations = {operand.value for operand in operands if operand.weight is None}
        sums = {add.inputs[index] for add, index in self.selection.residuals} - activations
        copies = {weight_key(o): o for o in operands if o.weight}
        sources = {o.weight.source for o in copies.values() if o.weight}
        wired = {(p.node, o.index) for p in self.selection.chosen for o in p.operands}
        kept = {source for source in sources if _has_other_readers(source, wired)}
        products = self.selection.quantizable()
        weights = [find_weight(v) for node in products for v in node.inputs[:2] if v is not None]
        before = sum(_nbytes(value) for value in self.graph.initializers.values())
        after = before - sum(_nbytes(source) for source in sources - kept)
        after += sum(map(_packed_nbytes, copies.values()))
        return {
            "activations": len(activations) + len(sums),
            "residuals": len(sums),
            "weights": len(sources),
            "weight_bytes": sum(_nbytes(v) for v in {w.source for w in weights if w}),
            "weight_bytes_quantized": sum(map(_nbytes, sources)),
            "model_bytes_before": before,
            "model_bytes_after": after,
            "kept_weights": tuple(sorted(value.name or "" for value in kept)),
            "raised": None,
            "blocks": _block_counts(copies.values()),
        }

    def errors(self) -> dict[str, Mapping[str, float]]:
        """The errors of weights in INT4, by the names of their initializers."""
        return {key[0].name or "": weight.errors for key, weight in self.blocks.items()}

    def run(self) -> RaisedOpset | None:
        """Rewrite the graph; returns how it was raised to a newer opset, if it was."""
        raised = self._raise_opset()
        self._measure_weights()
        for product in self.selection.chosen:
            for operand in product.operands:
                if operand.weight is None:
                    result = self._activation(operand.value, operand.dtype)
                else:
                    result = self._weight(product.node, operand, operand.weight)
                self._divide_activation(product.node, operand)
                product.node.replace_input_with(operand.index, result)
                self._drop_unused(operand.value)
        for add, index in self.selection.residuals:
            value = add.inputs[index]
            if value is not None:
                add.replace_input_with(index, self._activation(value, value.dtype or FLOAT))
        for product in self.selection.chosen:
            if product.widened:
                self._widen(product.node)
        return raised

    def _raise_opset(self) -> RaisedOpset | None:
        values = [o.value for product in self.selection.chosen for o in product.operands]
        if self.dtype == INT4:
            return require_opset(self.model, _OPSET_OF_BLOCKS, "INT4 in blocks")
        if self.dtype == FLOAT8:
            return require_opset(self.model, _OPSET_OF_TYPES, "FP8 Q/DQ nodes")
        if any(value.dtype != FLOAT for value in values):
            return require_opset(self.model, _OPSET_OF_TYPES, "FP16 and BF16 scales")
        try:
            # So that the rest of the graph can be reduced later.
            return require_opset(self.model, _OPSET_OF_TYPES, "")
        except UnsupportedError:
            return require_opset(self.model, _OPSET_OF_CHANNELS, "scales for each channel")

    def _measure_weights(self) -> None:
        """Find the scales of every weight, before anything is changed."""
        if self.dtype == INT4:
            self.blocks = measure_blocks(self.selection.chosen, self.rows)
            return
        problems: dict[str, str] = {}
        for product in self.selection.chosen:
            for operand in product.operands:
                weight, key = operand.weight, weight_key(operand)
                if weight is None or key in self.scale_of or weight.source.const_value is None:
                    continue
                array = read_tensor(weight.source.const_value)
                array = array.transpose(weight.perm) if weight.perm else array
                amax = channel_amax(array, operand.axis)
                if not np.isfinite(amax).all():
                    name = product.node.name or product.node.op_type
                    problems.setdefault(weight.source.name or "", name)
                scale = np.where(amax > 0, amax / LARGEST[self.dtype], 1.0)
                self.scale_of[key] = round_scale(scale, operand.dtype)
        check_finite(problems)

    def _activation(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value after its ``QuantizeLinear``, and a ``DequantizeLinear`` to a type."""
        if (value, dtype) in self.activations:
            return self.activations[value, dtype]
        if value not in self.quantizers:
            self.quantizers[value] = self._quantizer(value)
        quantizer = self.quantizers[value]
        result = self.names.value(value, "dequantized", dtype)
        inputs = [quantizer.outputs[0], self._scale(value, dtype), self._zero()]
        node = ir.node("DequantizeLinear", inputs, outputs=[result], name=result.name)
        self.graph.insert_after(quantizer, node)
        self.activations[value, dtype] = result
        return result

    def _quantizer(self, value: ir.Value) -> ir.Node:
        result = self.names.value(value, "quantized", self.dtype)
        inputs = [value, self._scale(value, value.dtype or FLOAT), self._zero()]
        node = ir.node("QuantizeLinear", inputs, outputs=[result], name=result.name)
        self._insert_behind(value, node)
        return node

    def _scale(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The scale of an activation in a type; the number is the same in all of them."""
        if (value, dtype) not in self.scales:
            amax = self.selection.ranges[value.name or ""]
            array = round_scale(amax / LARGEST[self.dtype], value.dtype or FLOAT)
            tensor = ir.tensor(array.astype(dtype.numpy()))
            self.scales[value, dtype] = self.names.initializer(f"{value.name}__scale", tensor)
        return self.scales[value, dtype]

    def _widen(self, node: ir.Node) -> None:
        """Let a product in FP16 compute in FP32, as its operands are already."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            wide = self.names.value(bias, "fp32", FLOAT)
            self.graph.insert_before(node, _cast(bias, wide))
            node.replace_input_with(2, wide)
        result, name = node.outputs[0], node.outputs[0].name
        narrow = self.names.value(result, "fp16", FLOAT16)
        result.replace_all_uses_with(narrow, replace_graph_outputs=True)
        self.graph.insert_after(node, _cast(result, narrow))
        result.name, narrow.name, result.dtype = self.names.unique(f"{name}__fp32"), name, FLOAT

    def _weight(self, reader: ir.Node, operand: QuantizedOperand, weight: Weight) -> ir.Value:
        """The quantized weight after its ``DequantizeLinear``."""
        key = weight_key(operand)
        if key in self.weights:
            return self.weights[key]
        if key in self.blocks:
            self.weights[key] = self._block_weight(reader, operand, self.blocks[key])
            return self.weights[key]
        tensor, dtype = weight.source.const_value, operand.dtype
        assert tensor is not None  # noqa: S101  # for the type checker
        array, name = self.scale_of[key], operand.value.name
        lazy = quantize_lazily(tensor, weight.perm, array, operand.axis, self.dtype)
        packed = self.names.initializer(f"{name}__{_SUFFIX[self.dtype]}", lazy)
        scale = self.names.initializer(f"{name}__scale", ir.tensor(array.astype(dtype.numpy())))
        result = self.names.value(operand.value, "dequantized", dtype)
        result.shape = ir.Shape(lazy.shape)
        node = ir.node(
            "DequantizeLinear", [packed, scale], {"axis": operand.axis}, outputs=[result],
            name=result.name,
        )  # fmt: skip
        self.graph.insert_before(reader, node)
        self.weights[key] = result
        return result

    def _block_weight(
        self, reader: ir.Node, operand: QuantizedOperand, weight: BlockWeight
    ) -> ir.Value:
        """The same of a weight in blocks, which TensorRT takes for matrices only."""
        name, dtype = operand.value.name, operand.dtype
        packed = self.names.initializer(f"{name}__{_SUFFIX[self.dtype]}", weight.numbers())
        stored = np.ascontiguousarray(weight.stored_scales().astype(dtype.numpy()))
        scale = self.names.initializer(f"{name}__scale", ir.tensor(stored))
        result = self.names.value(operand.value, "dequantized", dtype)
        result.shape = ir.Shape(weight.matrix_shape)
        options = {"axis": weight.axis, "block_size": operand.block}
        node = ir.node(
            "DequantizeLinear", [packed, scale], options, outputs=[result], name=result.name
        )
        self.graph.insert_before(reader, node)
        if len(weight.shape) == 2:
            return result
        shape = ir.tensor(np.array(weight.shape, np.int64))
        extents = self.names.initializer(f"{name}__shape", shape)
        filters = self.names.value(operand.value, "filters", dtype)
        filters.shape = ir.Shape(weight.shape)
        node = ir.node("Reshape", [result, extents], outputs=[filters], name=filters.name)
        self.graph.insert_before(reader, node)
        return filters

    def _divide_activation(self, node: ir.Node, operand: QuantizedOperand) -> None:
        """Divide what a product reads by the factors that its weight was multiplied by."""
        weight = self.blocks.get(weight_key(operand))
        if weight is None or weight.channels is None:
            return
        value, reader = node.inputs[0], row_reader(Product(node, (operand,)))
        assert value is not None and reader is not None  # noqa: S101, PT018  # it has samples
        if reader not in self.divided:
            elements = math.prod(reader.kernel)
            factors = (1 / weight.channels[::elements]).astype(operand.dtype.numpy())
            factors = factors.reshape(-1, *(1 for _ in reader.kernel))
            self.factor_bytes += int(factors.nbytes)
            inverse = self.names.initializer(f"{value.name}__factors", ir.tensor(factors))
            result = self.names.value(value, "divided", operand.dtype)
            result.shape = value.shape
            self._insert_behind(
                value, ir.node("Mul", [value, inverse], outputs=[result], name=result.name)
            )
            self.divided[reader] = result
        node.replace_input_with(0, self.divided[reader])

    def _insert_behind(self, value: ir.Value, node: ir.Node) -> None:
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)

    def _drop_unused(self, value: ir.Value | None) -> None:
        """Remove an unused weight, and the nodes that it passed through."""
        while value is not None and not value.uses() and not value.is_graph_output():
            producer = value.producer()
            if producer is None:
                if value.is_initializer() and value.name:
                    self.graph.initializers.pop(value.name)
                return
            value = producer.inputs[0]
            self.graph.remove(producer, safe=True)

    def _zero(self) -> ir.Value:
        if self._zero_point is None:
            array = np.zeros((), self.dtype.numpy())
            name = f"zero_point__{_SUFFIX[self.dtype]}"
            self._zero_point = self.names.initializer(name, ir.Tensor(array, dtype=self.dtype))
        return self._zero_point
