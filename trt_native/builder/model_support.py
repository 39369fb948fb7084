"""What a backend would refuse of an ONNX model, and what would be rewritten, before any build."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_native.backends.base import Backend
from trt_native.backends.parser_support import reads_computed_shape, refusal_lines, refused_nodes
from trt_native.backends.registry import load_backend
from trt_native.builder.build import resolve_precision
from trt_native.config import BuildConfig
from trt_native.errors import SpecError, UnsupportedError
from trt_native.graph.dims import dimension_symbols
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes
from trt_native.graph.onnx_file import operator_names, read_model, tensor_specs
from trt_native.passes.base import PassContext
from trt_native.passes.pipelines import BUILD, run_passes, select_passes

__all__ = ["ModelSupport", "model_support", "refused_operators"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSupport:
    """Support of a model by a backend, for a build with the default options.

    Attributes:
        backend: Name of the backend.
        product: ``TensorRT`` or ``TensorRT-RTX``.
        version: Its version.
        refused: What stops a build, one line each; empty where the parser takes the model.
        rewritten: What passes would rewrite, one summary each.
        dimensions: Symbolic dimensions of the inputs, which a build must be given.
        unranked: Inputs of which not even the rank is known; a build must be given their shapes.
    """

    backend: str
    product: str
    version: str
    refused: tuple[str, ...]
    rewritten: tuple[str, ...]
    dimensions: tuple[str, ...]
    unranked: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``trt-native inspect --json`` prints it."""
        return asdict(self)


def model_support(
    model: str | os.PathLike[str], *, backend: str | Backend = "auto"
) -> ModelSupport:
    """Apply the passes to a model and ask the parser about its nodes; nothing is built.

    Nodes that read a shape which the model computes are not asked: a dry run of the build parses
    the whole model.

    Args:
        model: Path of the ONNX file.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend.

    Raises:
        UnsupportedError: no TensorRT is installed, or it cannot work on this machine.
        ModelError: the ONNX file is missing or damaged.
    """
    chosen, path = load_backend(backend), Path(model)
    graph = read_model(path)
    inputs, _ = tensor_specs(graph)
    named = [axis for spec in inputs for axis in spec.shape or () if isinstance(axis, str)]
    chosen.check(BuildConfig())
    refused: list[str] = []
    records: list[dict[str, Any]] = []
    try:
        context = PassContext(
            config=BuildConfig(),
            precision=resolve_precision(graph, BuildConfig(), chosen, path),
            backend=chosen,
        )
        records = run_passes(select_passes(BUILD, graph, context), graph)
    except (UnsupportedError, SpecError) as error:
        refused += error.problems or (error.message,)
    refused += refused_operators(graph, chosen)
    return ModelSupport(
        backend=chosen.name,
        product=chosen.product,
        version=chosen.version,
        refused=tuple(refused),
        rewritten=tuple(record["summary"] for record in records if record["summary"]),
        dimensions=tuple(sorted({name for axis in named for name in dimension_symbols(axis)})),
        unranked=tuple(spec.name for spec in inputs if spec.shape is None),
    )


def refused_operators(graph: ir.Model, backend: Backend) -> list[str]:
    """What a backend's parser refuses of a graph that the passes were applied to, one line each.

    Nodes that read a shape which the model computes are not asked about. Fills in missing types and
    shapes.
    """
    infer_values(graph)
    elsewhere = backend.capabilities.operators_elsewhere
    lacking = {name: node for name, node in operator_names(graph).items() if name in elsewhere}
    nodes = [node for node in all_nodes(graph.graph) if not reads_computed_shape(node)]
    return refusal_lines(refused_nodes(nodes, graph.opset_imports, backend), lacking, backend)
