"""Wrapper of TensorRT's execution context: sets shapes and addresses, enqueues or replays."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np

from trt_native.arrays import Array
from trt_native.backends.base import DebugTensor
from trt_native.config import KernelSpecialization
from trt_native.cuda import DeviceBuffer, Event, Graph, Stream, is_capturing
from trt_native.errors import ClosedError, CudaError, UnsupportedError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.activation_memory import ActivationMemory, StreamSerializer
from trt_native.runtime.engine import Engine, check_kernels
from trt_native.runtime.graph_cache import GraphCache
from trt_native.runtime.input_checks import check_views, host_values, native_order
from trt_native.runtime.packed_tensors import PackedTensors
from trt_native.runtime.tensor_views import TensorView
from trt_native.shapes import Shape

__all__ = ["BoundShapes", "ExecutionContext"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_STREAMS = (0, 1, 2)  # null, legacy and per-thread: nothing can be captured on them
_MAX_KNOWN_SHAPES = 256


@dataclass(eq=False, slots=True)
class BoundShapes:
    """One set of input shapes, and what follows from it in TensorRT.

    Attributes:
        profile: Number of the optimization profile.
        inputs: Shape of each input, in the engine's order.
        outputs: Shape of each output by name; with -1 where it depends on data.
        host: Inputs that TensorRT reads on the host, by name.
        has_dynamic_outputs: Whether the shape of an output depends on data.
        replayable: Whether the run can be captured into a CUDA graph.
        warm: Whether it was run before, so that TensorRT has allocated everything it needs.
    """

    profile: int
    inputs: tuple[Shape, ...]
    outputs: dict[str, Shape] = field(default_factory=dict)
    host: dict[str, Array] = field(default_factory=dict)
    has_dynamic_outputs: bool = False
    replayable: bool = True
    warm: bool = False


class ExecutionContext:
    """Runs an engine on device memory that the caller owns.

    Args:
        engine: The engine.
        graphs: How many CUDA graphs to keep; 0 for none. None are kept where kernels come later.
        activation_memory: Shared memory for activations; ``shapes`` for memory of its own that is
            as large as the shapes of its runs need, None for as much as the profiles may need.

    Attributes:
        stream: The default stream of runs.
        serializer: Orders the runs on the GPU.
        device_inputs: Inputs that TensorRT reads on the GPU, in the engine's order.
        host_names: Names of the inputs and outputs that are in host memory.
        aliases: The outputs that the engine writes into the memory of an input, with its name.
        lock: Held while TensorRT's context is used.
    """

    def __init__(
        self,
        engine: Engine,
        graphs: int,
        activation_memory: ActivationMemory | Literal["shapes"] | None = None,
    ) -> None:
        self._context: Any = None
        self._is_ready = False  # to run
        self._closed = False
        self._profiler: Any = None
        self._listener: Any = None
        self._fitted = DeviceBuffer() if activation_memory == "shapes" else None
        if isinstance(activation_memory, ActivationMemory):
            activation_memory.check(engine)
        else:
            activation_memory = None
        self.engine = engine
        self.host_names = frozenset(t.name for t in engine.tensors if engine.is_host_tensor(t.name))
        self._outputs = engine.outputs
        self.aliases = {t.name: t.alias for t in engine.outputs if t.alias is not None}
        self.device_inputs = tuple(t for t in engine.inputs if t.name not in self.host_names)
        self.stream = Stream(engine.ordinal)
        self._uncapturable = {*_DEFAULT_STREAMS, self.stream.handle}
        self._long_lived = {0, self.stream.handle}
        self._capture_stream = Stream(engine.ordinal)
        has_formats = any(tensor.format is not None for tensor in engine.tensors)
        self._packed = PackedTensors(self.stream) if has_formats else None
        self._empty = DeviceBuffer()  # an address for empty tensors: TensorRT takes no null
        self._empty.reserve(1, self.stream)
        self._hop = Event(ordinal=engine.ordinal)
        self._activation_memory = activation_memory  # keeps it alive
        self.serializer = (
            activation_memory.serializer if activation_memory else StreamSerializer(engine.ordinal)
        )
        self.lock = threading.RLock()  # the collector may close a session anywhere
        self._known_shapes: OrderedDict[Hashable, BoundShapes] = OrderedDict()
        lazy = engine.kernel_specialization is KernelSpecialization.LAZY
        self._graphs = GraphCache(0 if lazy else graphs)
        self._dynamic_outputs: dict[str, DeviceBuffer] = {}
        self._host_outputs: dict[str, Array] = {}
        self._allocator = engine.backend.output_allocator(self._allocate)
        with engine.contexts.adding(self):
            self._create()

    def _create(self) -> None:
        memory = self._activation_memory
        user_managed = memory is not None or self._fitted is not None
        self._context = self.engine.create_context(user_managed=user_managed)
        if memory is not None:
            self._context.set_device_memory(memory.pointer, memory.nbytes)
        if self._profiler is not None:
            self._context.profiler = self._profiler
        self._profile = int(self._context.active_optimization_profile)
        self._applied: BoundShapes | None = None
        self._addresses: dict[str, int] = {}
        self._is_ready = self.engine.weights_loaded

    @property
    def activation_bytes(self) -> int:
        """GPU memory for activations, in bytes, shared or not."""
        if self._fitted is not None:
            return self._fitted.nbytes
        memory = self._activation_memory
        return self.engine.activation_bytes if memory is None else memory.nbytes

    @property
    def graph_count(self) -> int:
        """Number of CUDA graphs held."""
        return len(self._graphs)

    def shapes_for(self, views: Mapping[str, TensorView], problems: list[str]) -> BoundShapes:
        """Choose the profile for inputs, and let TensorRT infer the output shapes.

        Args:
            views: The inputs.
            problems: Known problems of the inputs.

        Raises:
            SpecError: the inputs do not fit the engine; one error lists all problems.
        """
        key = _signature(views, self.host_names)
        known = self._known_shapes.get(key)
        if known is not None and not problems:
            return known
        inputs = self.engine.inputs
        count = self.engine.profile_count
        ordinal = self.engine.ordinal
        profile = check_views(inputs, count, views, self.host_names, problems, ordinal)
        bound = BoundShapes(
            profile,
            tuple(views[tensor.name].shape for tensor in inputs),
            host={
                name: native_order(views[name].host) for name in self.host_names if name in views
            },
        )
        with self.lock:
            if self._context is None:
                self._refuse()
            self._apply(bound)
            bound.outputs = {t.name: self._output_shape(t) for t in self._outputs}
        self._check_formats(bound)
        bound.has_dynamic_outputs = any(-1 in shape for shape in bound.outputs.values())
        bound.replayable = not bound.has_dynamic_outputs and not any(
            t.name in self.host_names for t in self._outputs
        )
        self._known_shapes[key] = bound
        if len(self._known_shapes) > _MAX_KNOWN_SHAPES:
            self._known_shapes.popitem(last=False)
        return bound

    def _check_formats(self, bound: BoundShapes) -> None:
        for tensor in self._outputs:
            if tensor.format is not None and -1 in bound.outputs[tensor.name]:
                raise UnsupportedError(
                    f"output {tensor.name!r} has the format {tensor.format}, and a shape that"
                    " depends on data, which cannot be read here; build it with linear outputs"
                )

    def launch(
        self, bound: BoundShapes, addresses: tuple[int, ...], stream: int, *, graph: bool = True
    ) -> None:
        """Enqueue one run on a stream.

        Args:
            bound: Result of :meth:`shapes_for`.
            addresses: Device addresses of :attr:`device_inputs`, then of the outputs; 0 for an
                output whose shape depends on data, or that is on the host.
            stream: Handle of the stream.
            graph: Replay the CUDA graph of these arguments; capture one when they recur.

        Raises:
            CudaError: TensorRT or the driver failed.
        """
        with self.lock:
            if not self._is_ready:
                self._refuse()
            if self.is_captured(stream):
                self._launch_captured(bound, addresses, stream)
                return
            ready = None
            if graph and bound.replayable:
                ready = self._graphs.find((bound, addresses))
                if ready is None and self._graphs.seen_before((bound, addresses)):
                    ready = self._capture(bound, addresses)
            if ready is None:
                self._bind(bound, addresses)  # may put a change of profile on a stream
            long_lived = stream in self._long_lived
            self.serializer.acquire(stream, long_lived=long_lived)
            if ready is not None:
                ready.launch(stream)
            else:
                self._run(stream)
                bound.warm = True
            self.serializer.release(stream, long_lived=long_lived)

    def is_captured(self, stream: int) -> bool:
        """Whether the caller is capturing the stream into a CUDA graph."""
        return stream not in self._uncapturable and is_capturing(stream)

    def take_dynamic_output(self, name: str) -> tuple[DeviceBuffer, Shape]:
        """Return an output of data-dependent shape, in memory that the caller then owns."""
        shape = self._allocator.shape(name)
        return self._dynamic_outputs.pop(name, DeviceBuffer()), shape

    def host_output(self, name: str) -> Array:
        """Return the output that TensorRT wrote on the host in the last run."""
        return self._host_outputs[name]

    def attach_profiler(self, report: Callable[[str, float], None]) -> Any:
        """Time each layer of every later run; see ``Backend.profiler``."""
        with self.lock:
            if self._context is None:
                self._refuse()
            self._profiler = self.engine.backend.profiler(report)
            self._context.profiler = self._profiler
        return self._profiler

    def attach_debug_listener(self, receive: Callable[[DebugTensor], None]) -> Any:
        """Pass the debug tensors of every later run on; see ``Backend.listen``.

        For contexts without CUDA graphs, whose replays call no listener.
        """
        with self.lock:
            if self._context is None:
                self._refuse()
            self._listener = self.engine.backend.listen(self._context, receive)
        return self._listener

    def finish_runs(self) -> None:
        """See :meth:`trt_native.runtime.context_registry.PausableContext.finish_runs`."""
        self.serializer.synchronize()
        self.stream.synchronize()

    def follow(self, stream: int) -> None:
        """See :meth:`trt_native.runtime.context_registry.PausableContext.follow`."""
        if not self._closed:
            self._graphs.close()
            self.serializer.release(stream)
            self._is_ready = self._context is not None

    def drop(self) -> None:
        """See :meth:`trt_native.runtime.context_registry.PausableContext.drop`."""
        self._graphs.close()
        self._context = None
        self._is_ready = False
        if self._fitted is not None:
            self._fitted.close()

    def recreate(self) -> None:
        """See :meth:`trt_native.runtime.context_registry.PausableContext.recreate`."""
        if not self._closed:
            for bound in self._known_shapes.values():
                bound.warm = False
            self._create()

    def close(self) -> None:
        """Free the context and all graphs once the runs are done. Idempotent."""
        self.engine.contexts.remove(self)
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.finish_runs()
            self.drop()
        for buffer in (*self._dynamic_outputs.values(), self._empty):
            buffer.close()
        if self._packed is not None:
            self._packed.close()
        self._capture_stream.close()
        self.stream.close()

    def _refuse(self) -> NoReturn:
        self.engine.check_runnable()
        raise ClosedError("the session has no execution context left")

    def _launch_captured(self, bound: BoundShapes, addresses: tuple[int, ...], stream: int) -> None:
        """Add the run to the CUDA graph that the caller is capturing, which orders it."""
        if not bound.warm:
            raise CudaError(
                "this stream is being captured into a CUDA graph, and the engine has not run with"
                " these shapes yet: run it once before you capture it"
            )
        if bound.has_dynamic_outputs:
            raise CudaError("an engine whose output shapes depend on data cannot be captured")
        self._bind(bound, addresses)
        self._enqueue(stream)

    def _capture(self, bound: BoundShapes, addresses: tuple[int, ...]) -> Graph | None:
        handle = self._capture_stream.handle
        self._bind(bound, addresses)
        try:
            graph = Graph(self._capture_stream, lambda: self._enqueue(handle))
        except CudaError as error:
            if error.sticky:
                raise
            bound.replayable = False
            _LOGGER.debug("running without a CUDA graph: %s", error)
            return None
        dropped = self._graphs.add((bound, addresses), graph)
        if dropped is not None:
            self.serializer.synchronize()
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
        if self._packed is not None:
            self._packed.pack(stream)
        with self.engine.backend.collected_errors() as errors:
            if not self._context.execute_async_v3(stream):
                check_kernels(errors, self.engine.backend.product)
                raise CudaError("TensorRT failed to run the engine", errors)
        if self._packed is not None:
            self._packed.unpack(stream)

    def _bind(self, bound: BoundShapes, addresses: tuple[int, ...]) -> None:
        self._apply(bound)
        if self._packed is not None:
            addresses = self._bind_packed(self._packed, bound, addresses)
        count = len(self.device_inputs)
        for tensor, address in zip(self.device_inputs, addresses[:count], strict=True):
            self._set_address(tensor.name, address or self._empty.pointer)
        for tensor, address in zip(self._outputs, addresses[count:], strict=True):
            if tensor.name in self.host_names:
                array: Array = np.empty(bound.outputs[tensor.name], tensor.dtype)
                self._host_outputs[tensor.name] = array
                self._set_address(tensor.name, array.ctypes.data)
            elif -1 in bound.outputs[tensor.name]:
                self._context.set_output_allocator(tensor.name, self._allocator)
            else:
                self._set_address(tensor.name, address or self._empty.pointer)

    def _bind_packed(
        self, packed: PackedTensors, bound: BoundShapes, addresses: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The addresses for TensorRT, of memory in its layouts where it has others than C order."""
        names = (tensor.name for tensor in self.engine.inputs)
        shapes = {**dict(zip(names, bound.inputs, strict=True)), **bound.outputs}
        packed.reset()
        tensors = zip((*self.device_inputs, *self._outputs), addresses, strict=True)
        return tuple(packed.bind(tensor, shapes[tensor.name], at) for tensor, at in tensors)

    def _apply(self, bound: BoundShapes) -> None:
        """Set profile, input shapes and shape values on the context."""
        if bound is self._applied:
            return
        self._applied = None
        with self.engine.backend.collected_errors() as errors:
            self._use_profile(bound.profile, errors)
            for tensor, shape in zip(self.engine.inputs, bound.inputs, strict=True):
                if not self._context.set_input_shape(tensor.name, shape):
                    raise CudaError(f"TensorRT refused shape {shape} of {tensor.name!r}", errors)
            for name, array in bound.host.items():
                self._set_address(name, array.ctypes.data)
            if self._fitted is not None:
                self._fit(self._fitted, errors)
        self._applied = bound

    def _fit(self, memory: DeviceBuffer, errors: list[str]) -> None:
        """Give TensorRT memory for the activations of the shapes that are set."""
        needed = int(self._context.update_device_memory_size_for_shapes())
        if needed < 0:
            raise CudaError("TensorRT did not say what memory these shapes need", errors)
        if memory.nbytes < max(needed, 1):
            self.finish_runs()
            self._graphs.close()  # they were captured with the memory that is freed
            memory.reserve(needed, self.stream)
            self.stream.synchronize()
        self._context.set_device_memory(memory.pointer, memory.nbytes)

    def _use_profile(self, profile: int, errors: list[str]) -> None:
        if profile == self._profile:
            return
        handle = self.stream.handle
        self.serializer.acquire(handle)
        if not self._context.set_optimization_profile_async(profile, handle):
            raise CudaError(f"TensorRT did not switch to profile {profile}", errors)
        self.serializer.release(handle)
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
        buffer = self._dynamic_outputs[name] = DeviceBuffer()
        buffer.reserve(nbytes, self.stream)
        self.stream.synchronize()  # the run may be on another stream
        return buffer.pointer


def _signature(views: Mapping[str, TensorView], on_host: frozenset[str]) -> Hashable:
    """Hashable key, equal for inputs that pass the same checks and give the same shapes."""
    return (
        tuple(
            (
                name,
                view.shape,
                view.dtype,
                view.host is None,
                view.ordinal,
                view.contiguous and view.aligned,
            )
            for name, view in views.items()
        ),
        host_values(views, on_host) if on_host else (),
    )
