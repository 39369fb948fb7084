"""One execution context: shapes and addresses set, the engine put on a stream or replayed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.cuda import DeviceBuffer, Event, Graph, Stream, is_capturing
from trt_native.errors import CudaError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.activation_memory import ActivationMemory, StreamSerializer
from trt_native.runtime.engine import Engine
from trt_native.runtime.graph_cache import GraphCache
from trt_native.runtime.input_checks import check_operands, host_values, native_order
from trt_native.runtime.tensor_views import TensorView
from trt_native.shapes import Shape

__all__ = ["BoundShapes", "ExecutionContext"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_STREAMS = (0, 1, 2)  # null, legacy and per-thread: nothing can be captured on them
_MAX_LAYOUTS = 256


@dataclass(eq=False, slots=True)
class BoundShapes:
    """What TensorRT is told, and says, of one set of input shapes.

    Attributes:
        profile: Number of the optimization profile.
        inputs: Shape of each input, in the engine's order.
        outputs: Shape of each output by name; with -1 where it depends on data.
        host: Inputs that TensorRT reads on the host, by name.
        deferred: Whether the shape of an output depends on data.
        replayable: Whether a CUDA graph of ours can stand for the run.
        warm: Whether it was run before, so that TensorRT has made all that it makes at first.
    """

    profile: int
    inputs: tuple[Shape, ...]
    outputs: dict[str, Shape] = field(default_factory=dict)
    host: dict[str, Array] = field(default_factory=dict)
    deferred: bool = False
    replayable: bool = True
    warm: bool = False


class ExecutionContext:
    """Runs an engine on device memory that others own.

    Args:
        engine: The engine.
        graphs: How many CUDA graphs to keep; 0 for none.
        memory: Memory for activations, if the context shall not have its own.

    Attributes:
        stream: The stream for what the caller gives no stream for.
        order: Keeps the runs one after the other.
    """

    def __init__(self, engine: Engine, graphs: int, memory: ActivationMemory | None) -> None:
        self._context: Any = None
        self._profiler: Any = None
        if memory is not None:
            memory.check(engine)
        self.engine = engine
        self._host_names = frozenset(
            t.name for t in engine.tensors if engine.is_host_tensor(t.name)
        )
        self._outputs = engine.outputs
        self._device_inputs = tuple(t for t in engine.inputs if t.name not in self._host_names)
        self.stream = Stream(engine.ordinal)
        self._uncapturable = {*_DEFAULT_STREAMS, self.stream.handle}
        self._lasting = {0, self.stream.handle}
        self._capture_stream = Stream(engine.ordinal)
        self._nothing = DeviceBuffer()  # an address for empty tensors: TensorRT takes no null
        self._nothing.reserve(1, self.stream)
        self._hop = Event(ordinal=engine.ordinal)
        self._memory = memory  # keeps it alive
        self.order = memory.order if memory else StreamSerializer(engine.ordinal)
        self._context = engine.create_context(user_managed=memory is not None)
        if memory is not None:
            self._context.set_device_memory(memory.pointer, memory.nbytes)
        self._profile = int(self._context.active_optimization_profile)
        self._layouts: OrderedDict[Hashable, BoundShapes] = OrderedDict()
        self._graphs = GraphCache(graphs)
        self._bound: BoundShapes | None = None
        self._addresses: dict[str, int] = {}
        self._deferred: dict[str, DeviceBuffer] = {}
        self._host_outputs: dict[str, Array] = {}
        self._allocator = engine.backend.output_allocator(self._allocate)

    @property
    def device_inputs(self) -> tuple[PlanTensor, ...]:
        """The inputs that TensorRT reads on the GPU, in the engine's order."""
        return self._device_inputs

    @property
    def host_names(self) -> frozenset[str]:
        """The inputs and outputs that TensorRT reads and writes on the host."""
        return self._host_names

    @property
    def graph_count(self) -> int:
        """How many CUDA graphs there are now."""
        return len(self._graphs)

    def layout(self, operands: Mapping[str, TensorView], faults: list[str]) -> BoundShapes:
        """The layout for inputs.

        Raises:
            SpecError: the inputs do not fit the engine; all faults in one error.
        """
        key = _signature(operands, self._host_names)
        known = self._layouts.get(key)
        if known is not None and not faults:
            return known
        inputs = self.engine.inputs
        count = self.engine.profile_count
        ordinal = self.engine.ordinal
        profile = check_operands(inputs, count, operands, self._host_names, faults, ordinal)
        layout = BoundShapes(
            profile,
            tuple(operands[tensor.name].shape for tensor in inputs),
            host={
                name: native_order(operands[name].host)
                for name in self._host_names
                if name in operands
            },
        )
        self._apply(layout)
        layout.outputs = {t.name: self._output_shape(t) for t in self._outputs}
        layout.deferred = any(-1 in shape for shape in layout.outputs.values())
        layout.replayable = not layout.deferred and not any(
            t.name in self._host_names for t in self._outputs
        )
        self._layouts[key] = layout
        if len(self._layouts) > _MAX_LAYOUTS:
            self._layouts.popitem(last=False)
        return layout

    def launch(
        self, layout: BoundShapes, addresses: tuple[int, ...], stream: int, *, graph: bool = True
    ) -> None:
        """Put one run on a stream.

        Args:
            layout: What :meth:`layout` returned.
            addresses: Device addresses of :attr:`device_inputs`, then of the outputs; 0 for an
                output of which the layout does not know the shape, or that is on the host.
            stream: Handle of the stream.
            graph: Replay a CUDA graph where there is one, or make one where it pays.

        Raises:
            CudaError: TensorRT or the driver failed.
        """
        if self.is_captured(stream):
            self._launch_captured(layout, addresses, stream)
            return
        ready = None
        if graph and layout.replayable:
            ready = self._graphs.find((layout, addresses))
            if ready is None and self._graphs.seen_before((layout, addresses)):
                ready = self._capture(layout, addresses)
        if ready is None:
            self._bind(layout, addresses)  # may put a change of profile on a stream
        lasting = stream in self._lasting
        self.order.before(stream, lasting=lasting)
        if ready is not None:
            ready.launch(stream)
        else:
            self._run(stream)
            layout.warm = True
        self.order.after(stream, lasting=lasting)

    def is_captured(self, stream: int) -> bool:
        """Whether the caller captures a stream into a graph of its own."""
        return stream not in self._uncapturable and is_capturing(stream)

    def take_dynamic_output(self, name: str) -> tuple[DeviceBuffer, Shape]:
        """The output whose shape the run told, in memory that is the caller's from now on."""
        shape = self._allocator.shape(name)
        return self._deferred.pop(name, DeviceBuffer()), shape

    def host_output(self, name: str) -> Array:
        """The output that TensorRT wrote on the host in the last run."""
        return self._host_outputs[name]

    def attach_profiler(self, report: Callable[[str, float], None]) -> Any:
        """Let TensorRT time each layer of each run from now on; see ``Backend.profiler``."""
        self._profiler = self.engine.backend.profiler(report)
        self._context.profiler = self._profiler
        return self._profiler

    def close(self) -> None:
        """Free the context and all graphs once the runs are done. May be called again."""
        if self._context is None:
            return
        self.order.synchronize()
        self.stream.synchronize()
        self._graphs.close()
        self._context = None
        for buffer in (*self._deferred.values(), self._nothing):
            buffer.close()
        self._capture_stream.close()
        self.stream.close()

    def _launch_captured(
        self, layout: BoundShapes, addresses: tuple[int, ...], stream: int
    ) -> None:
        """Put the run into a graph that the caller captures; its order is the caller's affair."""
        if not layout.warm:
            raise CudaError(
                "this stream is being captured into a CUDA graph, and the engine has not run with"
                " these shapes yet: run it once before you capture it"
            )
        if layout.deferred:
            raise CudaError("an engine whose output shapes depend on data cannot be captured")
        self._bind(layout, addresses)
        self._enqueue(stream)

    def _capture(self, layout: BoundShapes, addresses: tuple[int, ...]) -> Graph | None:
        handle = self._capture_stream.handle
        self._bind(layout, addresses)
        try:
            graph = Graph(self._capture_stream, lambda: self._enqueue(handle))
        except CudaError as error:
            if error.sticky:
                raise
            layout.replayable = False
            _LOGGER.debug("running without a CUDA graph: %s", error)
            return None
        dropped = self._graphs.add((layout, addresses), graph)
        if dropped is not None:
            self.order.synchronize()
            dropped.close()
        return graph

    def _run(self, stream: int) -> None:
        if stream in _DEFAULT_STREAMS:  # there TensorRT would synchronize by itself
            own = self.stream.handle
            self._hop.pass_on(stream, own)
            self._enqueue(own)
            self._hop.pass_on(own, stream)
        else:
            self._enqueue(stream)

    def _enqueue(self, stream: int) -> None:
        with self.engine.backend.collected_errors() as errors:
            if not self._context.execute_async_v3(stream):
                raise CudaError("TensorRT did not run the engine", errors)

    def _bind(self, layout: BoundShapes, addresses: tuple[int, ...]) -> None:
        self._apply(layout)
        count = len(self._device_inputs)
        for tensor, address in zip(self._device_inputs, addresses[:count], strict=True):
            self._set_address(tensor.name, address or self._nothing.pointer)
        for tensor, address in zip(self._outputs, addresses[count:], strict=True):
            if tensor.name in self._host_names:
                array: Array = np.empty(layout.outputs[tensor.name], tensor.dtype)
                self._host_outputs[tensor.name] = array
                self._set_address(tensor.name, array.ctypes.data)
            elif -1 in layout.outputs[tensor.name]:
                self._context.set_output_allocator(tensor.name, self._allocator)
            else:
                self._set_address(tensor.name, address or self._nothing.pointer)

    def _apply(self, layout: BoundShapes) -> None:
        """Tell the context profile, shapes and the values that shapes come from."""
        if layout is self._bound:
            return
        self._bound = None
        with self.engine.backend.collected_errors() as errors:
            self._use_profile(layout.profile, errors)
            for tensor, shape in zip(self.engine.inputs, layout.inputs, strict=True):
                if not self._context.set_input_shape(tensor.name, shape):
                    raise CudaError(f"TensorRT refused shape {shape} of {tensor.name!r}", errors)
            for name, array in layout.host.items():
                self._set_address(name, array.ctypes.data)
        self._bound = layout

    def _use_profile(self, profile: int, errors: list[str]) -> None:
        if profile == self._profile:
            return
        handle = self.stream.handle
        self.order.before(handle)
        if not self._context.set_optimization_profile_async(profile, handle):
            raise CudaError(f"TensorRT did not switch to profile {profile}", errors)
        self.order.after(handle)
        self._profile = profile

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) == address:
            return
        if not self._context.set_tensor_address(name, address):
            raise CudaError(f"TensorRT refused the address of {name!r}")
        self._addresses[name] = address

    def _output_shape(self, tensor: PlanTensor) -> Shape:
        return tuple(int(extent) for extent in self._context.get_tensor_shape(tensor.name))

    def _allocate(self, name: str, nbytes: int) -> int:
        buffer = self._deferred[name] = DeviceBuffer()
        buffer.reserve(nbytes, self.stream)
        self.stream.synchronize()  # the run may be on another stream
        return buffer.pointer


def _signature(operands: Mapping[str, TensorView], on_host: frozenset[str]) -> Hashable:
    """Equal for inputs that are checked alike and lead to the same layout."""
    return (
        tuple(
            (
                name,
                operand.shape,
                operand.dtype,
                operand.host is None,
                operand.ordinal,
                operand.contiguous and operand.aligned,
            )
            for name, operand in operands.items()
        ),
        host_values(operands, on_host) if on_host else (),
    )
