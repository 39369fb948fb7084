"""The interface of a rewrite of an ONNX graph."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from trt_native.backends.base import Backend
from trt_native.calibration.model_ranges import NO_RANGES, Ranges
from trt_native.config import BuildConfig, Precision
from trt_native.graph.inference import infer_types
from trt_native.shapes import Profile

__all__ = ["AS_IN_THE_MODEL", "GraphPass", "PassContext", "ResolvedPrecision", "count_text"]

AS_IN_THE_MODEL = "as in the model"
"""The precision of a plan whose types are those of the graph, as a manifest has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPrecision:
    """A requested precision, resolved for one model and one backend.

    Attributes:
        applied: Arithmetic of the plan; None where the types of the graph stay as they are.
        strongly_typed: Whether types come from the graph rather than from builder flags.
        lowered_to: FP16 or BF16, to which FP32 arithmetic of the graph is reduced; None where it
            stays.
        writes_qdq: Whether Q/DQ nodes are written.
        calibrates: Whether TensorRT itself finds the ranges and chooses the layers in INT8.
    """

    applied: Precision | None = None
    strongly_typed: bool = True
    lowered_to: Precision | None = None
    writes_qdq: bool = False
    calibrates: bool = False

    @property
    def builder_flags(self) -> Precision:
        """The reduced type that a weakly typed network may use."""
        if self.calibrates or self.applied is None:
            return Precision.FP16
        return self.applied

    def __str__(self) -> str:
        return AS_IN_THE_MODEL if self.applied is None else str(self.applied)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassContext:
    """Input of passes besides the graph.

    Attributes:
        config: The configuration that was requested.
        precision: What its precision means for the model.
        backend: The TensorRT that builds; None where an ONNX file is written for any.
        profiles: The resolved optimization profiles.
        ranges: The ranges of the activations, for quantization.
        extra_outputs: Names of tensors to return besides the model's outputs.
        opset: The opset that an ONNX file is to have; None for the model's own.
    """

    config: BuildConfig
    precision: ResolvedPrecision
    backend: Backend | None = None
    profiles: tuple[Profile, ...] = ()
    ranges: Ranges = field(default=NO_RANGES)
    extra_outputs: tuple[str, ...] = ()
    opset: int | None = None


class GraphPass(ir.passes.InPlacePass, abc.ABC):
    """One rewrite of a graph, in place.

    A pass keeps the model's interface: names, types and shapes of its inputs and outputs, apart
    from what its documentation says. Applied to its own result it changes nothing.

    Args:
        context: What to do.

    Attributes:
        name: Key in the manifest.
        title: What the pass does, as a phase of the build.
        early: Whether it runs while passes are selected, because later decisions rest on it.
        typed: Whether it needs the types of all values.
        rewrites: Whether TensorRT must read the changed graph rather than the file.
        context: As given.
        record: What it did, as JSON can hold it; empty before it ran.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    early: ClassVar[bool] = False
    typed: ClassVar[bool] = False
    rewrites: ClassVar[bool] = True

    def __init__(self, context: PassContext) -> None:
        super().__init__()
        self.context = context
        self.record: dict[str, Any] = {}

    @abc.abstractmethod
    def needed(self, model: ir.Model) -> bool:
        """Whether the model needs the pass.

        Raises:
            UnsupportedError: it does, and the pass cannot help.
        """

    @abc.abstractmethod
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Change the model; returns what was done, with ``nodes`` by operator where it counts."""

    def preview(self, model: ir.Model) -> Mapping[str, Any]:  # noqa: ARG002
        """Predict the report of :meth:`rewrite`, as far as possible without changing the model."""
        return {}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """One line about a record, or about a preview; empty where there is nothing to say."""
        if "nodes" not in record:
            return self.title
        counted = count_text(record["nodes"])
        return f"{self.title}: {counted}" if counted else ""

    def requires(self, model: ir.Model) -> None:
        """Check that the graph is normalized; fill in types where the pass needs them.

        Raises:
            PreconditionError: the model has functions, which :class:`Normalize` inlines.
            ModelError: the type of a value is unknown.
        """
        if model.functions:
            raise ir.passes.PreconditionError(f"{self.name}: the model has functions")
        if self.typed:
            infer_types(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model, and record it."""
        self.record = dict(self.rewrite(model))
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that the pass is not needed any more.

        Raises:
            PostconditionError: it is.
        """
        if self.needed(model):
            raise ir.passes.PostconditionError(f"{self.name}: the model still needs the pass")


def count_text(nodes: Mapping[str, int]) -> str:
    """Write counts by operator as ``2 Mean, 1 Trilu``."""
    return ", ".join(f"{count} {operator}" for operator, count in nodes.items())
