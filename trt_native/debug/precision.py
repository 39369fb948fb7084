"""The nodes that must stay FP32 for a reduced model to be accurate enough."""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.builder.conversion_config import ConversionConfig
from trt_native.builder.convert import convert_onnx
from trt_native.builder.isolated import build_isolated
from trt_native.config import BuildConfig, CpuRuntime, Precision
from trt_native.debug.search import remove_in_chunks, smallest_failing
from trt_native.errors import UnsupportedError
from trt_native.graph.functions import inline_functions
from trt_native.graph.inference import infer_values
from trt_native.graph.macs import multiply_adds, static_shapes
from trt_native.graph.nodes import PRODUCTS, is_fp32
from trt_native.graph.onnx_file import read_model
from trt_native.scratch import scratch_folder
from trt_native.shapes import ProfileSpec, Shape, ShapeRange
from trt_native.verify.check import open_session
from trt_native.verify.metrics import compare_outputs
from trt_native.verify.reference import OnnxReference

__all__ = [
    "Candidate",
    "Measure",
    "Placement",
    "candidates",
    "find_fp32_nodes",
    "find_nodes",
    "measure_conversions",
    "measure_on_cpu",
    "measure_on_gpu",
    "measure_plans",
    "node_cost",
    "patterns",
]

_MOST_NEEDED = 6  # nodes found one by one; for more, what is not needed is removed in chunks
_FINEST_CHUNK = 64  # parts of the model that are tried without each other then

Measure = Callable[[Sequence[str]], float]
"""The largest relative L2 error of an output, with nodes of these patterns left as they are."""


@dataclass(frozen=True)
class Candidate:
    """A node that may stay as it is: in FP32, or without quantization.

    Attributes:
        name: Its name, which no other has.
        operator: Its operator.
        cost: Multiply-adds of a product, else elements of its outputs; 1 where they are unknown.
        neighbours: Names of the candidates that it exchanges a value with.
        error: An estimate of the error that it makes where it is not left as it is; 0 where there
            is none.
    """

    name: str
    operator: str
    cost: int
    neighbours: frozenset[str]
    error: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What is tried first has least: much of the square of the error for its cost, or cheap."""
        return -(self.error**2) / self.cost, self.cost


@dataclass(frozen=True)
class Placement:
    """Nodes to leave as they are.

    Attributes:
        kept: Names of the nodes; none where the reduced model is accurate enough as it is.
        patterns: The same for ``keep_fp32``, or ``exclude`` of a quantization.
        error: The error with them.
        reduced_error: The error without.
        cost_share: Their part of the cost of all candidates, from 0 to 1.
        measured: Number of measurements.
    """

    kept: tuple[str, ...]
    patterns: tuple[str, ...]
    error: float
    reduced_error: float
    cost_share: float
    measured: int


def candidates(path: Path, shapes: Mapping[str, Shape]) -> tuple[Candidate, ...]:
    """The nodes of a model that can be kept in FP32 by name.

    Args:
        path: The ONNX file.
        shapes: The shape of each input, to know what the nodes cost.

    Raises:
        ModelError: the file cannot be read.
        UnsupportedError: no node has a name of its own and makes FP32 values.
    """
    model = read_model(path)
    inline_functions(model)
    infer_values(model)
    known = static_shapes(model, shapes)
    counts = Counter(node.name for node in model.graph)
    nodes = [
        node
        for node in model.graph
        if node.name
        and counts[node.name] == 1
        and node.op_type != "Constant"
        and any(is_fp32(value) for value in node.outputs)
    ]
    if not nodes:
        raise UnsupportedError(
            f"{path.name}: no node has a name of its own and makes FP32 values, so that none can be"
            " kept in FP32 by name; name the nodes, or give an FP32 model"
        )
    names = {str(node.name) for node in nodes}
    return tuple(
        Candidate(
            str(node.name), node.op_type, node_cost(node, known), frozenset(_near(node) & names)
        )
        for node in nodes
    )


def _near(node: ir.Node) -> set[str]:
    sources = [value.producer() for value in node.inputs if value is not None]
    readers = [user for value in node.outputs for user, _ in value.uses()]
    return {str(other.name) for other in (*sources, *readers) if other is not None}


def node_cost(node: ir.Node, shapes: Mapping[str, Shape]) -> int:
    """Multiply-adds of a product, else elements of a node's outputs; 1 where they are unknown."""
    found = multiply_adds(node, shapes) if node.op_type in PRODUCTS else None
    if found:
        return found
    made = [shapes[str(value.name)] for value in node.outputs if str(value.name) in shapes]
    return max(1, sum(math.prod(shape) for shape in made))


def find_fp32_nodes(nodes: Sequence[Candidate], measure: Measure, max_error: float) -> Placement:
    """Find few and cheap nodes with which in FP32 an error holds; see :func:`find_nodes`.

    Raises:
        UnsupportedError: the error does not hold with all candidates in FP32 either.
    """
    return find_nodes(
        nodes,
        measure,
        max_error,
        everything="all nodes in FP32",
        advice="it does not come from the precision of nodes: verify the plan layer by layer",
    )


def find_nodes(
    nodes: Sequence[Candidate], measure: Measure, max_error: float, *, everything: str, advice: str
) -> Placement:
    """Find few and cheap nodes with which left as they are an error holds.

    More such nodes are taken to give no larger error. Of all sets that hold, one is found without
    the last nodes, by their ranks, that any of those before make unnecessary, and of which no node
    can be left out.

    Args:
        nodes: The candidates.
        measure: Measures the error.
        max_error: The largest error.
        everything: What it means that all candidates are left as they are, for the error.
        advice: What else the error may come from.

    Raises:
        UnsupportedError: the error does not hold with all candidates left as they are either.
    """
    ordered = sorted(nodes, key=lambda node: node.rank)
    index = {node.name: i for i, node in enumerate(ordered)}
    errors: dict[frozenset[int], float] = {}

    def error_of(kept: frozenset[int]) -> float:
        if kept not in errors:
            errors[kept] = measure(patterns([ordered[i] for i in sorted(kept)], nodes))
        return errors[kept]

    def holds(kept: frozenset[int]) -> bool:
        return error_of(kept) <= max_error

    whole = frozenset(range(len(ordered)))
    kept = frozenset[int]()
    if not holds(kept):
        if not holds(whole):
            raise UnsupportedError(
                f"with {everything} the error is {error_of(whole):.3g}, above {max_error:g};"
                f" {advice}",
                options=("max_error",),
            )
        kept = _needed(ordered, index, holds)
    total = sum(node.cost for node in ordered)
    chosen = [ordered[i] for i in sorted(kept)]
    return Placement(
        kept=tuple(node.name for node in nodes if index[node.name] in kept),
        patterns=tuple(patterns(chosen, nodes)),
        error=error_of(kept),
        reduced_error=error_of(frozenset()),
        cost_share=sum(node.cost for node in chosen) / total,
        measured=len(errors),
    )


def _needed(
    ordered: Sequence[Candidate],
    index: Mapping[str, int],
    holds: Callable[[frozenset[int]], bool],
) -> frozenset[int]:
    """A set that holds, of nodes in the order of their ranks; all of them do."""
    neighbours = [{index[name] for name in node.neighbours} for node in ordered]
    found = smallest_failing(neighbours, [1.0] * len(ordered), holds, most=_MOST_NEEDED)
    finest = 1 if found.is_minimal else max(1, len(found.nodes) // _FINEST_CHUNK)
    removed = remove_in_chunks(
        sorted(found.nodes, reverse=True), lambda some: holds(found.nodes - some), smallest=finest
    )
    return found.nodes - removed


def patterns(kept: Sequence[Candidate], nodes: Sequence[Candidate]) -> list[str]:
    """The shortest list of ``keep_fp32`` patterns that names just these of the nodes."""
    names = {node.name for node in kept}
    of_operator: dict[str, set[str]] = {}
    for node in nodes:
        of_operator.setdefault(node.operator, set()).add(node.name)
    whole = [op for op, own in of_operator.items() if len(own) > 1 and own <= names]
    covered = set().union(*(of_operator[operator] for operator in whole))
    single = [glob.escape(node.name) for node in kept if node.name not in covered]
    return [*(f"op:{operator}" for operator in whole), *single]


def measure_on_cpu(
    model: Path, precision: Precision, inputs: Batch, keep_fp32: Sequence[str] = ()
) -> Measure:
    """Measure by ``onnx.reference``, which rounds as the types of the reduced model say.

    Args:
        model: The ONNX file, in FP32.
        precision: FP16 or BF16.
        inputs: Its inputs by name.
        keep_fp32: Patterns of nodes that stay FP32 in any case.
    """

    def configure(kept: Sequence[str]) -> ConversionConfig:
        return ConversionConfig(precision=precision, keep_fp32=(*keep_fp32, *kept))

    return measure_conversions(model, configure, inputs)


def measure_conversions(
    model: Path, configure: Callable[[Sequence[str]], ConversionConfig | None], inputs: Batch
) -> Measure:
    """Measure what a model is converted to by ``onnx.reference``, which rounds as its types say.

    Args:
        model: The ONNX file; its own outputs, on the CPU, are the reference.
        configure: Patterns of nodes that stay as they are to the conversion; None for none.
        inputs: The model's inputs by name.
    """
    outputs = [str(value.name) for value in read_model(model).graph.outputs]
    expected = OnnxReference(model)(inputs, outputs)

    def measure(kept: Sequence[str]) -> float:
        config = configure(kept)
        if config is None:
            return 0.0
        with scratch_folder() as folder:
            converted = convert_onnx(model, folder / "reduced.onnx", config)
            found = OnnxReference(converted.path, None, CpuRuntime.ONNX)(inputs, outputs)
        return _worst(found, expected)

    return measure


def measure_on_gpu(model: Path, config: BuildConfig, backend: str, inputs: Batch) -> Measure:
    """Measure by building plans, in child processes, and running them on the GPU.

    The reference is the ONNX file on the CPU, which is run once.

    Args:
        model: The ONNX file, in FP32.
        config: The configuration; the profile is that of the inputs.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        inputs: Its inputs by name.
    """

    def configure(kept: Sequence[str]) -> BuildConfig:
        return replace(config, keep_fp32=(*config.keep_fp32, *kept))

    return measure_plans(model, configure, backend, inputs)


def measure_plans(
    model: Path, configure: Callable[[Sequence[str]], BuildConfig], backend: str, inputs: Batch
) -> Measure:
    """Measure plans, which are built in child processes and run on the GPU.

    Args:
        model: The ONNX file; its own outputs, on the CPU, are the reference.
        configure: Patterns of nodes that stay as they are to the configuration of the plan, whose
            profile is that of the inputs.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        inputs: The model's inputs by name.
    """
    dynamic = {v.name for v in read_model(model).graph.inputs if not _is_static(v)}
    spec = ProfileSpec(
        shapes={name: ShapeRange.parse("x".join(map(str, array.shape)))
                for name, array in inputs.items() if name in dynamic}
    )  # fmt: skip
    profiles = (spec,) if spec.shapes else ()
    outputs = [str(value.name) for value in read_model(model).graph.outputs]
    expected = OnnxReference(model, configure(()).fixed_values())(inputs, outputs)

    def measure(kept: Sequence[str]) -> float:
        chosen = replace(configure(kept), profiles=profiles)
        plan = build_isolated(model, chosen, backend=backend)
        with open_session(plan) as opened:
            found = opened.run(inputs)
        return _worst(found, expected)

    return measure


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _worst(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest error of an output."""
    compared = [compare_outputs(name, found[name], expected[name]) for name in expected]
    return max(
        math.inf if one.nonfinite_differs or math.isnan(one.relative_l2) else one.relative_l2
        for one in compared
    )
