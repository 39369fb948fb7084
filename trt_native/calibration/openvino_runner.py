"""A model run on the CPU by OpenVINO, as far as that computes what ONNX says."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.arrays import Array, Batch
from trt_native.calibration.free_memory import memory_limit
from trt_native.calibration.openvino_operators import trusted_nodes
from trt_native.calibration.reference_runner import (
    ReferenceRunner,
    convert_batch,
    cut_model,
    values_read,
)
from trt_native.graph.inference import infer_types
from trt_native.graph.onnx_file import tensor_specs
from trt_native.scratch import scratch_folder

__all__ = [
    "MOST_BYTES",
    "BatchError",
    "EngineError",
    "OpenVinoModel",
    "OpenVinoRunner",
    "openvino_version",
]

MOST_BYTES = 4 * 2**30
"""Tensors that one run of OpenVINO returns, at most; a quarter of the free memory where less."""

_CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


class EngineError(Exception):
    """OpenVINO cannot run a model."""


class BatchError(EngineError):
    """OpenVINO is not trusted with the values of a batch."""


def openvino_version() -> str:
    """Version of the installed OpenVINO, as in 2026.4.1; does not import it."""
    return importlib.metadata.version("openvino")


class OpenVinoModel:
    """A model compiled for the CPU, in FP32.

    Args:
        model: The model, of ONNX's own operators; left as it is.

    Raises:
        Exception: of any class, where OpenVINO cannot compile it.
    """

    def __init__(self, model: ir.Model) -> None:
        import openvino  # optional, and 0.2 s

        core = openvino.Core()
        with scratch_folder() as folder:
            path = folder / "model.onnx"
            ir.save(model, path, external_data="weights")  # maps them, and has no limit of 2 GB
            self._model = core.read_model(path)
            self._request = core.compile_model(self._model, "CPU", _CONFIG).create_infer_request()
        self._outputs = len(model.graph.outputs)

    def output_bytes(self, inputs: Batch) -> int:
        """Size of the outputs, as far as it is known, for inputs of these shapes."""
        shaped = self._model.clone()
        shaped.reshape({name: list(array.shape) for name, array in inputs.items()})
        shapes = [output.get_partial_shape() for output in shaped.outputs]
        return 4 * sum(int(np.prod(shape.to_shape())) for shape in shapes if shape.is_static)

    def __call__(self, inputs: Batch) -> list[Array]:
        """Run it.

        Returns:
            The outputs in their order, in memory that the next run overwrites.

        Raises:
            Exception: of any class, where OpenVINO fails.
        """
        found = self._request.infer(dict(inputs), share_outputs=True)
        return [found[number] for number in range(self._outputs)]


@dataclass(slots=True)
class _Stage:
    """Nodes that run together.

    Attributes:
        model: The nodes.
        trusted: Whether OpenVINO runs them; else the reference evaluator.
        fits: The shapes of inputs whose outputs are known to fit into memory together.
        run: Runs them, where that is kept.
    """

    model: ir.Model
    trusted: bool
    fits: set[tuple[tuple[int, ...], ...]] = field(default_factory=set)
    run: OpenVinoModel | ReferenceRunner | None = None

    def inputs(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The values that the nodes read."""
        return {str(v.name): values[str(v.name)] for v in self.model.graph.inputs}

    def outputs(self) -> list[str]:
        """Names of the values that are wanted of it, or read later."""
        return [str(value.name) for value in self.model.graph.outputs]


class OpenVinoRunner:
    """Runs a model on the CPU by OpenVINO in FP32, and what that has wrong by the reference.

    The nodes that OpenVINO runs are those of
    :func:`~trt_native.calibration.openvino_operators.trusted_nodes`; the graph is cut where it goes
    to others and back.

    Args:
        model: As for :class:`~trt_native.calibration.reference_runner.ReferenceRunner`.
        tensors: Names of values of the main graph.
        most_bytes: Tensors that one run returns; :data:`MOST_BYTES` if None. Where there are more,
            the model is compiled and run in parts, for every batch.

    Attributes:
        others: The operators that the reference runs.

    Raises:
        EngineError: OpenVINO has none of the operators right.
        ModelError: the type of a value is unknown.
        UnsupportedError: the reference lacks an operator that OpenVINO does not run either.
    """

    def __init__(
        self, model: ir.Model, tensors: Sequence[str], *, most_bytes: int | None = None
    ) -> None:
        cut_model(model, tensors)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        infer_types(model)
        self._graph = model.graph
        self._wanted = frozenset(tensors)
        self._inputs = tensor_specs(model)[0]
        self._most_bytes = memory_limit(MOST_BYTES) if most_bytes is None else most_bytes
        trusted = trusted_nodes(model)
        if not trusted:
            raise EngineError("none of its operators, in these types, is known to be right")
        self.others = tuple(sorted({n.op_type for n in model.graph if n not in trusted}))
        self._stages = _stages(model, trusted, self._wanted)
        self._in_parts = False

    def __call__(self, batch: Batch) -> Iterable[tuple[str, Array]]:
        """Run a batch.

        Returns:
            Names and values, in any order, in memory that the next run overwrites: a list, or an
            iterator that computes on where the values do not fit into memory together.

        Raises:
            CalibrationError: an input is missing, unknown, or of another type or shape.
            BatchError: an integer has more than 32 bits, or a number is not finite.
            EngineError: OpenVINO fails.
            UnsupportedError: the reference cannot run a node with these values.
        """
        values = convert_batch(batch, self._inputs)
        for name, array in values.items():
            if array.dtype.kind in "iu" and array.size and not _fits_int32(array):
                raise BatchError(f"input {name!r} has integers beyond 32 bits")
            _check_finite(name, array)
        if not self._in_parts:
            try:
                return list(self._run(values))
            except _TooLargeError:
                self._in_parts = True
                for stage in self._stages:
                    stage.run = None
        return self._run(values)

    def _run(self, values: dict[str, Array]) -> Iterator[tuple[str, Array]]:
        constants = {n: v.const_value.numpy() for n, v in self._graph.initializers.items()
                     if n in self._wanted and v.const_value is not None}  # fmt: skip
        for name in self._wanted & {*values, *constants}:
            yield name, constants[name] if name in constants else values[name]
        values = dict(values)
        last = {str(v.name): n for n, s in enumerate(self._stages) for v in s.model.graph.inputs}
        for number, stage in enumerate(self._stages):
            inputs = stage.inputs(values)
            for name, array in self._outputs(stage, inputs):
                _check_finite(name, array)
                if last.get(name, 0) > number:
                    values[name] = array
                if name in self._wanted:
                    yield name, array
            for name in inputs:
                if last[name] == number:
                    del values[name]

    def _outputs(self, stage: _Stage, inputs: Batch) -> Iterator[tuple[str, Array]]:
        if not stage.trusted:
            if not isinstance(stage.run, ReferenceRunner):
                stage.run = ReferenceRunner(stage.model, stage.outputs())
            yield from stage.run(inputs)
            return
        try:
            if self._in_parts:
                yield from self._parts(stage, inputs)
                return
            if not isinstance(stage.run, OpenVinoModel):
                stage.run = OpenVinoModel(stage.model)
            self._check_size(stage, stage.run, inputs)
            yield from zip(stage.outputs(), stage.run(inputs), strict=True)
        except _TooLargeError:
            raise
        except Exception as error:  # OpenVINO's own have no kinds
            raise EngineError(" ".join(str(error).split())[-300:]) from error

    def _check_size(self, stage: _Stage, run: OpenVinoModel, inputs: Batch) -> None:
        key = tuple(array.shape for array in inputs.values())
        if key not in stage.fits and run.output_bytes(inputs) > self._most_bytes:
            raise _TooLargeError
        stage.fits.add(key)

    def _parts(self, stage: _Stage, inputs: Batch) -> Iterator[tuple[str, Array]]:
        """The outputs by as many models as it takes, each of them only for a moment."""
        pending = [stage.outputs()]
        while pending:
            names = pending.pop()
            part = OpenVinoModel(_extracted(stage.model, list(inputs), names))
            if len(names) > 1 and part.output_bytes(inputs) > self._most_bytes:
                half = len(names) // 2
                pending += [names[half:], names[:half]]
                continue
            for name, array in zip(names, part(inputs), strict=True):
                yield name, array.copy()


class _TooLargeError(Exception):
    """The tensors of a run take more memory than allowed."""


def _check_finite(name: str, array: Array) -> None:
    """Refuse NaN and infinity, which OpenVINO loses in some operators."""
    if array.dtype.kind != "f" or not array.size:
        return
    if not (math.isfinite(array.max()) and math.isfinite(array.min())):
        raise BatchError(f"tensor {name!r} has values that are not finite")


def _fits_int32(array: Array) -> bool:
    """Whether OpenVINO has these integers, which it computes in 32 bits."""
    return int(array.min()) >= -(2**31) and int(array.max()) < 2**31


def _stages(model: ir.Model, trusted: set[ir.Node], wanted: frozenset[str]) -> list[_Stage]:
    """The nodes in stages of OpenVINO's and the reference's in turns, as few as there can be."""
    level: dict[ir.Node, int] = {}
    readers: dict[ir.Value, int] = {}  # the last stage that reads a value
    for node in model.graph:
        own = node not in trusted  # even stages are OpenVINO's
        above = [level[p] for v in values_read(node) if (p := v.producer()) is not None]
        level[node] = max([own, *(n + (n % 2 != own) for n in above)])
        for value in values_read(node):
            readers[value] = max(readers.get(value, 0), level[node])
    stages = []
    for number in sorted(set(level.values())):
        nodes = [node for node, at in level.items() if at == number]
        reads = dict.fromkeys(value for node in nodes for value in values_read(node))
        inside = set(nodes)
        inputs = [v for v in reads if not v.is_initializer() and v.producer() not in inside]
        made = [value for node in nodes for value in node.outputs if value.name]
        outputs = [v for v in made if v.name in wanted or readers.get(v, 0) > number]
        stages.append(_Stage(_extracted(model, inputs, outputs), number % 2 == 0))
    return stages


def _extracted(
    model: ir.Model, inputs: Sequence[ir.Value | str], outputs: Sequence[ir.Value | str]
) -> ir.Model:
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.opset_imports.update(model.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version)
