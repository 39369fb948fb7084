"""Launches: the ways to start a run, by where its arrays are and whether they are known."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trt_native.cuda import DeviceArray, DeviceBuffer, Event, Stream
from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.execution import BoundShapes, ExecutionContext
from trt_native.runtime.future import RunTracker, StartedRun
from trt_native.runtime.input_checks import check_aliases, check_outputs, read_inputs
from trt_native.runtime.staging import HostExecution, StagingPipeline
from trt_native.runtime.tensor_views import (
    ALIGNMENT,
    TensorView,
    empty_like_factory,
    foreign_result,
    nbytes_of,
    read,
    torch_dtype,
    torch_from_host,
    torch_record_stream,
    torch_stream,
)
from trt_native.shapes import Shape

__all__ = [
    "CheckedLaunch",
    "DeviceLaunch",
    "HostLaunch",
    "Launch",
    "LaunchResources",
    "input_signature",
]

_NO_INPUT = read(np.zeros(0))


class Launch(Protocol):
    """A way to start a run."""

    def start(self, inputs: Mapping[str, Any], stream: int | None, *, spread: bool) -> StartedRun:
        """Enqueue a run.

        Args:
            inputs: The inputs by name.
            stream: Handle of the caller's stream; None for the session's choice.
            spread: Without ``stream``, copy inputs and outputs that are all on the host on streams
                of their own, so that runs overlap.
        """


@dataclass(frozen=True, slots=True)
class LaunchResources:
    """Resources shared by the launches of one session.

    Attributes:
        context: Runs the engine.
        pipeline: Stages arrays that are on the host.
        tracker: Keeps arrays alive while they are in use.
        hop: Event that makes one stream wait for another.
    """

    context: ExecutionContext
    pipeline: StagingPipeline
    tracker: RunTracker
    hop: Event


class DeviceLaunch:
    """Runs torch tensors on the GPU that pass the same checks as those of an earlier run.

    Args:
        resources: Those of the session.
        bound: Shapes of the tensors.
        outputs: Outputs of the earlier run, in the engine's order.
    """

    __slots__ = ("_aliases", "_context", "_hop", "_input_names", "_ordinal", "_outputs", "_shapes")

    def __init__(
        self, resources: LaunchResources, bound: BoundShapes, outputs: Mapping[str, Any]
    ) -> None:
        self._context = resources.context
        self._hop = resources.hop
        self._ordinal = resources.context.engine.ordinal
        self._shapes = bound
        self._input_names = tuple(tensor.name for tensor in resources.context.device_inputs)
        self._aliases = resources.context.aliases
        self._outputs = tuple(
            (name, self._aliases.get(name), empty_like_factory(y)) for name, y in outputs.items()
        )

    def start(
        self,
        inputs: Mapping[str, Any],
        stream: int | None,
        *,
        spread: bool,  # noqa: ARG002  (nothing is copied)
    ) -> StartedRun:
        """See :meth:`Launch.start`.

        Raises:
            SpecError: two inputs share memory that the engine writes.
        """
        if self._aliases:
            check_aliases(self._aliases, read_inputs(inputs)[0], {}, on_device=True)
        current = torch_stream(self._ordinal)
        compute = current if stream is None else stream
        outputs: dict[str, Any] = {}
        addresses = [inputs[name].data_ptr() for name in self._input_names]
        for name, alias, make in self._outputs:
            value = outputs[name] = make() if alias is None else inputs[alias]
            addresses.append(value.data_ptr())
        if compute != current:
            self._hop.pass_on(current, compute)
            for value in (*inputs.values(), *outputs.values()):
                torch_record_stream(value, compute)
        self._context.launch(self._shapes, tuple(addresses), compute)
        return StartedRun(outputs, None, compute)


class HostLaunch:
    """Runs NumPy arrays that pass the same checks as those of an earlier run.

    Args:
        resources: Those of the session.
        bound: Shapes of the arrays.
    """

    __slots__ = ("_context", "_pipeline", "_shapes", "_tracker")

    def __init__(self, resources: LaunchResources, bound: BoundShapes) -> None:
        self._context = resources.context
        self._pipeline = resources.pipeline
        self._tracker = resources.tracker
        self._shapes = bound

    def start(self, inputs: Mapping[str, Any], stream: int | None, *, spread: bool) -> StartedRun:
        """See :meth:`Launch.start`."""
        pipeline, shapes = self._pipeline, self._shapes
        compute = self._context.stream.handle if stream is None else stream
        execution = pipeline.next_execution(compute)
        if not execution.refill(shapes, inputs):
            execution.fill(shapes, read_inputs(inputs)[0], {})
        event = self._tracker.take_event()
        last = pipeline.run(execution, compute, event, spread=spread and stream is None)
        run = StartedRun(execution.results(), event, last)
        if stream is not None:
            self._tracker.track(run, None)
        return run


class CheckedLaunch:
    """Runs arrays of any kind, after all checks.

    Args:
        resources: Those of the session.
        out: See :meth:`~trt_native.runtime.Session.run`, as the rest.
        device: The same.
        cast: The same.
        cacheable: The inputs have an :func:`input_signature`, and nothing but them is given.

    Attributes:
        cached: After :meth:`start`, the launch for inputs of equal signature, if there is one.
    """

    def __init__(
        self,
        resources: LaunchResources,
        out: Mapping[str, Any] | None = None,
        device: str | None = None,
        cast: bool = False,
        *,
        cacheable: bool = False,
    ) -> None:
        self.cached: Launch | None = None
        self._resources = resources
        self._engine = resources.context.engine
        self._out = out or {}
        self._device = device
        self._cast = cast
        self._cacheable = cacheable

    def start(self, inputs: Mapping[str, Any], stream: int | None, *, spread: bool) -> StartedRun:
        """See :meth:`Launch.start`.

        Raises:
            SpecError: names, dtypes, shapes or buffers do not fit; one error lists all problems.
            CudaError: the GPU has too little memory, or TensorRT failed.
        """
        context = self._resources.context
        views, problems = read_inputs(inputs)
        if self._cast:
            _cast(self._engine.inputs, views, frozenset(context.aliases.values()))
        bound = context.shapes_for(views, problems)
        lead = next((view for view in views.values() if view.on_device), None)
        on_device = _wants_device(self._device, lead)
        buffers = {name: read(value) for name, value in self._out.items()}
        if buffers:
            check_outputs(self._engine.outputs, bound.outputs, buffers, self._engine.ordinal)
        if context.aliases:
            check_aliases(context.aliases, views, buffers, on_device=on_device)
        compute = self._compute_stream(lead, stream)
        held = (*views.values(), *buffers.values())
        if lead is not None or buffers:
            self._await_producers(held, compute)
        outputs = {name: view.value for name, view in buffers.items()}
        pointers = {name: view.pointer for name, view in buffers.items() if view.on_device}
        if on_device:
            for name, alias in context.aliases.items():
                if name not in outputs:
                    outputs[name], pointers[name] = views[alias].value, views[alias].pointer
            self._allocate(bound, lead, compute, outputs, pointers)
        staged = any(views[tensor.name].host is not None for tensor in context.device_inputs)
        if not staged and bound.replayable and len(pointers) == len(self._engine.outputs):
            addresses = [views[tensor.name].pointer for tensor in context.device_inputs]
            addresses += [pointers[tensor.name] for tensor in self._engine.outputs]
            context.launch(bound, tuple(addresses), compute)
            outputs = {tensor.name: outputs[tensor.name] for tensor in self._engine.outputs}
            run = StartedRun(outputs, None, compute)
            if stream is not None and any(view.kind == "foreign" for view in held):
                self._resources.tracker.track(run, held)
            if self._cacheable:
                self.cached = DeviceLaunch(self._resources, bound, outputs)
            return run
        execution = self._resources.pipeline.next_execution(compute)
        execution.fill(bound, views, pointers)
        event = self._resources.tracker.take_event()
        into = {name: view.host for name, view in buffers.items() if view.host is not None}
        spread = spread and stream is None and lead is None
        last = self._resources.pipeline.run(execution, compute, event, into, spread=spread)
        self._collect(execution, lead or next(iter(views.values()), _NO_INPUT), outputs)
        run = StartedRun({t.name: outputs[t.name] for t in self._engine.outputs}, event, last)
        if stream is not None:
            self._resources.tracker.track(run, held)
        if self._cacheable and lead is None and not context.host_names:
            self.cached = HostLaunch(self._resources, bound)
        return run

    def _compute_stream(self, lead: TensorView | None, stream: int | None) -> int:
        if stream is not None:
            return stream
        if lead is not None and lead.kind == "torch":
            return torch_stream(lead.value.device.index)
        return self._resources.context.stream.handle

    def _await_producers(self, views: Iterable[TensorView], compute: int) -> None:
        """Make the run wait for the streams that produce its arrays, where it is on another.

        Torch's allocator learns of that stream then: the caller may drop a tensor before it is
        read.
        """
        producers = {view.producer for view in views if view.producer is not None}
        tensors = [view.value for view in views if view.kind == "torch" and view.on_device]
        if tensors:
            current = torch_stream(self._engine.ordinal)
            producers.add(current)
            if current != compute:
                for tensor in tensors:
                    torch_record_stream(tensor, compute)
        for producer in producers - {compute}:
            self._resources.hop.pass_on(producer, compute)

    def _allocate(
        self,
        bound: BoundShapes,
        lead: TensorView | None,
        compute: int,
        outputs: dict[str, Any],
        pointers: dict[str, int],
    ) -> None:
        """Allocate the outputs on the GPU whose shape is known."""
        for tensor in self._engine.outputs:
            shape = bound.outputs[tensor.name]
            if tensor.name in outputs or tensor.name in self._resources.context.host_names:
                continue
            if -1 in shape:
                pointers[tensor.name] = 0  # allocated during the run
                continue
            if lead is not None and lead.kind == "torch":
                value = lead.value.new_empty(shape, dtype=torch_dtype(tensor.dtype))
                if compute != torch_stream(lead.value.device.index):
                    torch_record_stream(value, compute)
                outputs[tensor.name], pointers[tensor.name] = value, value.data_ptr()
                continue
            buffer = DeviceBuffer()
            pointers[tensor.name] = buffer.reserve(
                nbytes_of(shape, tensor.dtype), Stream.borrowed(compute)
            )
            outputs[tensor.name] = self._wrap(buffer, shape, tensor, lead)

    def _wrap(
        self, buffer: DeviceBuffer, shape: Shape, tensor: PlanTensor, like: TensorView | None
    ) -> Any:
        array = DeviceArray(buffer.release(), shape, tensor.dtype, self._engine.ordinal)
        return array if like is None else foreign_result(like.value, array)

    def _collect(self, execution: HostExecution, like: TensorView, outputs: dict[str, Any]) -> None:
        """Add the outputs of a staged run, as arrays of the input's library."""
        for name, array in execution.results().items():
            if name not in outputs:
                outputs[name] = torch_from_host(array) if like.kind == "torch" else array
        for tensor in self._engine.outputs:
            if tensor.name not in outputs:  # on the GPU, of data-dependent shape
                buffer, shape = self._resources.context.take_dynamic_output(tensor.name)
                outputs[tensor.name] = self._wrap(buffer, shape, tensor, like)


def input_signature(inputs: Mapping[str, Any]) -> Hashable:
    """Key of the properties that are checked, cheap to compute and compare.

    Returns:
        A key if all are NumPy arrays, or all are torch tensors on the GPU that need no copy: inputs
        with equal keys pass the same checks. None for anything else.
    """
    key: list[Any] = []
    kind: Any = None
    tensor_type: Any = None
    for name, value in inputs.items():
        if type(value) is not kind:
            if kind is not None:
                return None
            kind = type(value)
            key.append(kind)
        if kind is np.ndarray:
            key += (name, value.shape, value.dtype)
            continue
        if tensor_type is None:
            tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
        if kind is not tensor_type:
            return None
        if not value.is_cuda or not value.is_contiguous() or value.data_ptr() % ALIGNMENT:
            return None
        key += (name, value.shape, value.dtype, value.get_device())
    return tuple(key) or None


def _cast(
    tensors: Iterable[PlanTensor], views: dict[str, TensorView], written: frozenset[str]
) -> None:
    for tensor in tensors:
        view = views.get(tensor.name)
        if view is None or (view.dtype == tensor.dtype and view.contiguous and view.aligned):
            continue
        if tensor.name in written and view.on_device:
            raise SpecError(
                f"{tensor.name!r} is written in place, so no copy of it can be taken: give it"
                f" contiguous, {ALIGNMENT}-byte aligned and of type {tensor.dtype}"
            )
        views[tensor.name] = view.converted(tensor.dtype)


def _wants_device(device: str | None, lead: TensorView | None) -> bool:
    if device not in (None, "cpu", "cuda"):
        raise SpecError(f"device={device!r}: outputs can be on cpu or cuda")
    return lead is not None if device is None else device == "cuda"
