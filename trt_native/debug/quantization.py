"""Products that quantization must leave alone for an INT8 or FP8 model to be accurate enough."""

from __future__ import annotations

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trt_native.arrays import Batch
from trt_native.backends.base import Backend
from trt_native.builder.activation_ranges import any_ranges, cached_ranges, calibration_batches
from trt_native.builder.conversion_config import ConversionConfig
from trt_native.builder.engine_calibration import activation_source
from trt_native.calibration.collect import calibrate
from trt_native.config import (
    QUANTIZED_OPS,
    BuildConfig,
    CalibrationMethod,
    Precision,
    QuantizationSpec,
)
from trt_native.debug.precision import (
    Candidate,
    Measure,
    Placement,
    find_nodes,
    measure_conversions,
    measure_plans,
    node_cost,
)
from trt_native.debug.rounding_errors import rounding_errors
from trt_native.errors import UnsupportedError
from trt_native.graph.functions import inline_functions
from trt_native.graph.inference import infer_values
from trt_native.graph.macs import static_shapes
from trt_native.graph.onnx_file import hash_files, read_model, tensor_specs
from trt_native.graph.types import is_reduced
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.quantize import Quantize, check_not_quantized
from trt_native.progress import Progress
from trt_native.scratch import scratch_folder

__all__ = [
    "QuantizedNodes",
    "calibrated",
    "find_unquantized_nodes",
    "measure_quantized_on_cpu",
    "measure_quantized_on_gpu",
    "quantized_nodes",
]

_MOST_NEAR = 8  # nodes behind a value that are taken for those next to its reader


@dataclass(frozen=True)
class QuantizedNodes:
    """The nodes in front of which Q/DQ pairs are written.

    Attributes:
        candidates: Those that can be excluded by name.
        unnamed: The number of the others.
    """

    candidates: tuple[Candidate, ...]
    unnamed: int

    def includes_all(self, excluded: Sequence[str]) -> bool:
        """Whether nothing is quantized without the nodes of these patterns.

        The skip path of a sum is quantized for the product that it is added to, never alone.
        """
        products = [node for node in self.candidates if node.operator in QUANTIZED_OPS]
        return not self.unnamed and all(_is_named(node, excluded) for node in products)


def _is_named(node: Candidate, named: Sequence[str]) -> bool:
    return any(
        pattern == f"op:{node.operator}" or fnmatch.fnmatchcase(node.name, pattern)
        for pattern in named
    )


@contextlib.contextmanager
def calibrated(
    model: Path, config: BuildConfig, backend: str, progress: Progress | None = None
) -> Iterator[tuple[BuildConfig, Batch | None]]:
    """Find the ranges once, where calibration data is given, for as long as a block runs.

    Yields:
        The configuration, with a calibration cache in place of the data; and the first batch of
        the data, None where there is none.

    Raises:
        CalibrationError, UnsupportedError, ModelError: as a build with this configuration.
    """
    graph = read_model(model)
    batches = calibration_batches(config, tensor_specs(graph)[0], progress)
    if batches is None:
        yield config, None
        return
    spec = config.quantization
    if not config.precision.needs_ranges:
        yield _with(config, calibration_data=None), next(iter(batches))
        return
    method = spec.calibration_method or CalibrationMethod.MSE
    if config.precision is Precision.FP8:
        method = CalibrationMethod.MINMAX
    source = activation_source(
        spec.calibration_runner, backend=backend, memory_bytes=spec.calibration_memory_bytes
    )
    cache = calibrate(model, batches, method=method, source=source, progress=progress)
    with scratch_folder() as folder:
        saved = cache.save(folder / "ranges.calib")
        found = _with(
            config, calibration_cache=saved, calibration_data=None, calibration_method=None
        )
        yield found, next(iter(batches))


def _with(config: BuildConfig, **changes: object) -> BuildConfig:
    return replace(config, quantization=replace(config.quantization, **changes))  # type: ignore[arg-type]


def quantized_nodes(
    path: Path, config: BuildConfig, inputs: Batch, backend: Backend | None = None
) -> QuantizedNodes:
    """The products of a model, and its residual sums, that a configuration quantizes.

    Args:
        path: The ONNX file.
        config: The configuration, with a calibration cache where its precision needs ranges.
        inputs: The model's inputs by name. It is run once, on the CPU, to estimate the errors.
        backend: The TensorRT that builds them; None for any.

    Raises:
        ModelError: the file cannot be read, or has Q/DQ nodes already.
        CalibrationError: the cache cannot be read, or was made for another model.
        UnsupportedError: no node that is quantized has a name of its own.
        SpecError: a pattern matches nothing.
    """
    model = read_model(path)
    check_not_quantized(model)
    ranges = cached_ranges(config, hash_files(path, model))
    inline_functions(model)
    infer_values(model)
    if not config.precision.needs_ranges:
        ranges = any_ranges(model)
    context = PassContext(
        config=config, precision=ResolvedPrecision(), backend=backend, ranges=ranges
    )
    selection = Quantize(context).selection(model)
    chosen = [product.node for product in selection.chosen]
    chosen += [add for add, _ in selection.residuals]
    counts = Counter(node.name for node in model.graph)
    named = [node for node in chosen if node.name and counts[node.name] == 1]
    if not named:
        raise UnsupportedError(
            f"{path.name}: no node that is quantized has a name of its own, so that none can be"
            " excluded by name; name the nodes"
        )
    known = static_shapes(model, {name: array.shape for name, array in inputs.items()})
    near = _neighbours(model.graph, named)
    errors = rounding_errors(model, selection, ranges.amax, config.precision, inputs)
    return QuantizedNodes(
        tuple(
            Candidate(
                str(node.name),
                node.op_type,
                node_cost(node, known),
                frozenset(str(other.name) for other in near[node]),
                errors[node],
            )
            for node in named
        ),
        len(chosen) - len(named),
    )


def _neighbours(graph: ir.Graph, nodes: Sequence[ir.Node]) -> dict[ir.Node, set[ir.Node]]:
    """For each node those that read what it makes, past other nodes, or read what it reads."""
    near: dict[ir.Node, set[ir.Node]] = {node: set() for node in nodes}
    behind: dict[ir.Value, list[ir.Node]] = {}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        values = [value for value in node.inputs if value is not None]
        upstream = list(dict.fromkeys(n for value in values for n in behind.get(value, ())))
        if node in near:
            sharing = [n for value in values for n in readers.get(value, ())]
            for other in (*upstream, *sharing):
                near[node].add(other)
                near[other].add(node)
            for value in values:
                readers.setdefault(value, []).append(node)
            upstream = [node]
        for made in node.outputs:
            behind[made] = upstream[-_MOST_NEAR:]
    return near


def find_unquantized_nodes(nodes: QuantizedNodes, measure: Measure, max_error: float) -> Placement:
    """Find few and cheap nodes without whose quantization an error holds.

    See :func:`~trt_native.debug.precision.find_nodes`.

    Raises:
        UnsupportedError: the error does not hold without quantization either.
    """
    unnamed = f" but {nodes.unnamed} without names of their own" if nodes.unnamed else ""
    return find_nodes(
        nodes.candidates,
        measure,
        max_error,
        everything=f"no node quantized{unnamed}",
        advice=(
            "name the nodes"
            if unnamed
            else "it comes from the arithmetic of the rest: find the nodes that must stay FP32"
            " first, with precision fp16, and keep them in FP32"
        ),
    )


def measure_quantized_on_cpu(
    model: Path, config: BuildConfig, nodes: QuantizedNodes, inputs: Batch
) -> Measure:
    """Measure by ``onnx.reference`` the model with Q/DQ nodes, and with the rest as in a build.

    Args:
        model: The ONNX file.
        config: The configuration; its precision, quantization and nodes in FP32 count.
        nodes: The nodes that it quantizes.
        inputs: The model's inputs by name.
    """
    rest = None if is_reduced(read_model(model)) else Precision.FP16

    def configure(excluded: Sequence[str]) -> ConversionConfig | None:
        if nodes.includes_all(excluded):
            return ConversionConfig(precision=rest, keep_fp32=config.keep_fp32) if rest else None
        return ConversionConfig(
            precision=rest,
            quantize=config.precision,
            quantization=_excluding(config, excluded),
            keep_fp32=config.keep_fp32,
        )

    return measure_conversions(model, configure, inputs)


def measure_quantized_on_gpu(
    model: Path, config: BuildConfig, nodes: QuantizedNodes, backend: str, inputs: Batch
) -> Measure:
    """Measure plans, as :func:`~trt_native.debug.precision.measure_plans`.

    Args:
        model: The ONNX file.
        config: The configuration.
        nodes: The nodes that it quantizes.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        inputs: The model's inputs by name.
    """
    rest = Precision.AUTO if is_reduced(read_model(model)) else Precision.FP16

    def configure(excluded: Sequence[str]) -> BuildConfig:
        if nodes.includes_all(excluded):
            return replace(config, precision=rest, quantization=QuantizationSpec())
        return replace(config, quantization=_excluding(config, excluded))

    return measure_plans(model, configure, backend, inputs)


def _excluding(config: BuildConfig, excluded: Sequence[str]) -> QuantizationSpec:
    spec = config.quantization
    return replace(spec, exclude=(*spec.exclude, *excluded))
