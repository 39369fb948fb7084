"""Running an engine: from the caller's arrays to results, synchronous, asynchronous, pipelined."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from trt_native.cuda import (
    DeviceArray,
    DeviceBuffer,
    Event,
    PinnedPool,
    Stream,
    require_gpu,
    stream_handle,
)
from trt_native.errors import CudaError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.activation_memory import ActivationMemory, StreamSerializer
from trt_native.runtime.engine import Engine
from trt_native.runtime.execution import BoundShapes, ExecutionContext
from trt_native.runtime.fast_path import CachedLaunch, input_signature
from trt_native.runtime.future import InferenceFuture
from trt_native.runtime.guard import SessionGuard
from trt_native.runtime.input_checks import check_outputs, read_inputs
from trt_native.runtime.staging import HostExecution
from trt_native.runtime.tensor_views import (
    Array,
    TensorView,
    foreign_result,
    nbytes_of,
    read,
    torch_dtype,
    torch_from_host,
    torch_record_stream,
    torch_stream,
)
from trt_native.shapes import Shape

__all__ = ["Session"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_GRAPHS = 32
_DEFAULT_CALLS = 4
_MOST_KNOWN = 256
_NO_INPUT = read(np.zeros(0))
_Item = TypeVar("_Item")


class Session:
    """One execution context of an engine, with streams and buffers of its own.

    A session belongs to one thread at a time; give every thread its own, of one shared engine
    (:class:`~trt_native.runtime.SessionPool`).

    Results are of the kind of the inputs: NumPy arrays for NumPy arrays, torch tensors for torch
    tensors, on the GPU if any input is there. Arrays on the GPU are never copied: the engine reads
    and writes them where they are. Results on the host lie in page-locked memory that belongs to
    the caller for as long as the result or a view of it exists.

    Args:
        engine: An engine, or a plan or its path, which the session then loads and owns.
        backend: See :class:`~trt_native.runtime.engine.Engine`; only for a plan.
        cuda_graphs: How many CUDA graphs to keep, each for one combination of shapes and addresses;
            0 runs without. One is captured when a combination comes for the second time.
        memory: Memory for activations shared with other sessions, instead of own.

    Attributes:
        engine: The engine.

    Raises:
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.engine.Engine`.
        SpecError: the shared memory is too small.
    """

    def __init__(
        self,
        engine: Engine | Plan | str | os.PathLike[str],
        *,
        backend: str = "auto",
        cuda_graphs: int = _DEFAULT_GRAPHS,
        memory: ActivationMemory | None = None,
    ) -> None:
        if cuda_graphs < 0:
            raise SpecError(f"cuda_graphs={cuda_graphs}: a number of graphs is not negative")
        owned = not isinstance(engine, Engine)
        self.engine = engine if isinstance(engine, Engine) else Engine(engine, backend=backend)
        require_gpu(self.engine.ordinal)
        self._turn = SessionGuard(self.engine.ordinal)
        self._pool = PinnedPool()
        self._upload_stream = Stream(self.engine.ordinal)
        self._download_stream = Stream(self.engine.ordinal)
        self._runner = ExecutionContext(self.engine, cuda_graphs, memory)
        self._hop = Event(ordinal=self.engine.ordinal)
        self._calls: deque[HostExecution] = deque()
        self._most_calls = _DEFAULT_CALLS
        self._known: dict[Hashable, CachedLaunch | BoundShapes] = {}
        self._idle: list[Event] = []
        self._in_flight: deque[InferenceFuture] = deque()
        self._finalizer = weakref.finalize(
            self,
            _close,
            self._runner,
            self._calls,
            self._in_flight,
            (self._upload_stream, self._download_stream),
            self._pool,
            self.engine,
            owned,
        )

    @property
    def compute_stream(self) -> Stream:
        """The stream that runs what the caller names no stream for."""
        return self._runner.stream

    @property
    def graph_count(self) -> int:
        """How many CUDA graphs the session holds now."""
        return self._runner.graph_count

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        out: Mapping[str, Any] | None = None,
        device: str | None = None,
        stream: Any = None,
        cast: bool = False,
    ) -> dict[str, Any]:
        """Run the engine once.

        Args:
            inputs: For every input a NumPy array, a torch tensor, or an object with
                ``__cuda_array_interface__`` or ``__dlpack__``, mixed as you like, of exactly the
                input's dtype, with a shape that one of the engine's profiles allows. On the GPU it
                must be contiguous and its address a multiple of 256; on the host it need not.
            out: Buffers for some or all outputs, of their dtype and shape, on the GPU or the host.
            device: ``cpu`` or ``cuda``: where the other outputs are to be.
            stream: A stream (see :func:`trt_native.cuda.stream_handle`) on which the inputs on the
                GPU are made and the outputs are wanted. The call then returns at once, with the
                outputs complete in that stream's order, those on the host too. Without one, work on
                torch's current stream is waited for on the GPU, and the outputs are complete when
                the call returns.
            cast: Copy inputs of another dtype, or on the GPU not contiguous or aligned, instead of
                refusing them.

        Returns:
            An array for every output, by name.

        Raises:
            SpecError: names, dtypes, shapes or buffers do not fit; all faults in one error.
            CudaError: the GPU has too little memory, or TensorRT failed.
            ClosedError: the session was closed.
        """
        with self._turn:
            handle = None if stream is None else stream_handle(stream)
            outputs, last, _ = self._start(inputs, out, device, handle, cast, spread=False)
            if stream is None:
                last.synchronize()
                if isinstance(last, Event):
                    self._idle.append(last)
        return outputs

    def submit(
        self,
        inputs: Mapping[str, Any],
        *,
        out: Mapping[str, Any] | None = None,
        device: str | None = None,
        cast: bool = False,
    ) -> InferenceFuture:
        """Start a run and return at once. Arguments as for :meth:`run`.

        Host arrays are copied before this returns, so the caller may change them. With all inputs
        on the host, copies to the GPU, the run and copies back are on streams of their own, and
        those of several submitted runs overlap.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        with self._turn:
            outputs, last, stream = self._start(inputs, out, device, None, cast, spread=True)
            return self._pending(outputs, tuple(inputs.values()), last, stream)

    def map(
        self, iterable: Iterable[Mapping[str, Any]], *, depth: int = 2
    ) -> Iterator[dict[str, Any]]:
        """Run the engine for each of many inputs, several at a time, and yield results in order.

        Copies to the GPU, runs and copies back overlap; nothing else may use the session meanwhile.
        Arrays may be changed, or filled again, as soon as others are asked for. An error in the
        inputs, or of what yields them, comes after the results of all before.

        Args:
            iterable: Inputs as for :meth:`run`; taken only as results are asked for.
            depth: How many runs are submitted ahead of the one whose result is awaited; 1 or more.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        if depth < 1:
            raise SpecError(f"depth={depth}: at least 1 run must be ahead")
        self._most_calls = max(self._most_calls, depth + 1)
        failure: Exception | None = None
        ahead: deque[InferenceFuture] = deque()
        for run in _until_failure(map(self.submit, iterable)):
            if isinstance(run, Exception):
                failure = run
                break
            ahead.append(run)
            if len(ahead) > depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, run  # whose traceback holds this frame

    def prepare(self, inputs: Mapping[str, Any]) -> HostExecution:
        """Memory for repeated runs with inputs like these, filled with them; for measuring.

        The caller owns it, puts its steps on streams, and closes it before the session.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        with self._turn:
            return self._filled(self._runner, inputs)

    def profile_layers(
        self, inputs: Mapping[str, Any], *, iterations: int = 10
    ) -> dict[str, list[float]]:
        """Time each layer, in a context of its own.

        Args:
            inputs: As for :meth:`run`.
            iterations: How many runs to time, after one that is not.

        Returns:
            Layer name to milliseconds in each run, in the engine's order.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        times: defaultdict[str, list[float]] = defaultdict(list)
        with self._turn, contextlib.closing(ExecutionContext(self.engine, 0, None)) as runner:
            call = self._filled(runner, inputs)
            call.upload(runner.stream)
            call.enqueue(runner.stream)
            runner.stream.synchronize()
            profiler = runner.attach_profiler(lambda layer, ms: times[layer].append(ms))
            for _ in range(iterations):
                call.enqueue(runner.stream)
                runner.stream.synchronize()
            call.close()
            if profiler.failure is not None:
                raise profiler.failure
        return dict(times)

    def close(self) -> None:
        """Free the context, the buffers and, if the session loaded it, the engine.

        Waits for work in flight. May be called again.
        """
        self._turn.closed = True
        self._finalizer()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _pending(
        self, outputs: dict[str, Any], held: Any, last: Event | StreamSerializer, stream: int
    ) -> InferenceFuture:
        """A run, with what tells its end, or the stream that it is the last on.

        What it uses is held until it is done.
        """
        if isinstance(last, Event):
            event = last
        else:
            event = self._event()
            event.record(stream)
        pending = InferenceFuture(outputs, event, held, self._turn.note)
        self._in_flight.append(pending)
        return pending

    def _reap(self, *, ask: bool) -> None:
        """Let go of runs that were collected, and ask for others if there are many."""
        runs = self._in_flight
        ask = ask or len(runs) > self._most_calls
        while runs and (runs[0].complete or (ask and runs[0].done())):
            self._idle.append(runs.popleft().event)

    def _event(self) -> Event:
        return self._idle.pop() if self._idle else Event(ordinal=self.engine.ordinal)

    def _filled(self, runner: ExecutionContext, inputs: Mapping[str, Any]) -> HostExecution:
        operands, faults = read_inputs(inputs)
        call = HostExecution(runner, self._pool)
        call.fill(runner.layout(operands, faults), operands, {})
        return call

    def _start(
        self,
        inputs: Mapping[str, Any],
        out: Mapping[str, Any] | None,
        device: str | None,
        stream: int | None,
        cast: bool,
        *,
        spread: bool,
    ) -> tuple[dict[str, Any], Event | StreamSerializer, int]:
        """Put a run on its streams.

        Returns:
            The outputs, what to wait for until they are complete, and the stream on which they are.
        """
        if self._in_flight:
            self._reap(ask=stream is not None)
        key = input_signature(inputs) if out is None and device is None else None
        if key is not None:
            known = self._known.get(key)
            if isinstance(known, CachedLaunch):
                return self._start_tensors(known, list(inputs.values()), stream)
            if known is not None:
                return self._start_arrays(known, inputs, stream, spread=spread)
        operands, faults = read_inputs(inputs)
        if cast:
            self._cast(operands)
        layout = self._runner.layout(operands, faults)
        lead = next((o for o in operands.values() if o.on_device), None)
        on_device = _is_cuda(device, lead)
        given = {name: read(value) for name, value in (out or {}).items()}
        if given:
            check_outputs(self.engine.outputs, layout.outputs, given, self.engine.ordinal)
        compute = self._compute_handle(lead, stream)
        held = (*operands.values(), *given.values())
        if lead is not None or given:
            self._await_producers(held, compute)
        outputs = {name: operand.value for name, operand in given.items()}
        pointers = {name: operand.pointer for name, operand in given.items() if operand.on_device}
        if on_device:
            self._allocate(layout, lead, compute, outputs, pointers)
        staged = any(operands[t.name].host is not None for t in self._runner.device_inputs)
        if not staged and layout.replayable and len(pointers) == len(self.engine.outputs):
            addresses = [operands[t.name].pointer for t in self._runner.device_inputs]
            addresses += [pointers[t.name] for t in self.engine.outputs]
            self._runner.launch(layout, tuple(addresses), compute)
            if stream is not None and any(operand.kind == "foreign" for operand in held):
                self._pending(outputs, held, self._runner.order, compute)
            if key is not None and not cast:
                names = [tensor.name for tensor in self._runner.device_inputs]
                self._remember(key, CachedLaunch.of(layout, names, inputs, outputs))
            return outputs, self._runner.order, compute
        call = self._next_call(compute)
        streams = self._streams(compute, spread and stream is None and lead is None)
        call.fill(layout, operands, pointers)
        self._stage(call, streams, {n: o.host for n, o in given.items() if o.host is not None})
        kind = (lead or next(iter(operands.values()), None)) or _NO_INPUT
        self._collect(call, kind, outputs)
        if stream is not None:
            self._pending(outputs, held, call.finished, stream)
        if key is not None and not cast and lead is None and not self._runner.host_names:
            self._remember(key, layout)
        return {t.name: outputs[t.name] for t in self.engine.outputs}, call.finished, streams[2]

    def _remember(self, key: Hashable, known: CachedLaunch | BoundShapes) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = known

    def _start_arrays(
        self, layout: BoundShapes, inputs: Mapping[str, Array], stream: int | None, *, spread: bool
    ) -> tuple[dict[str, Any], Event, int]:
        """As :meth:`_start`, for NumPy arrays like those of an earlier run."""
        compute = self._compute_handle(None, stream)
        call = self._next_call(compute)
        if not call.refill(layout, inputs):
            call.fill(layout, read_inputs(inputs)[0], {})
        streams = self._streams(compute, spread and stream is None)
        self._stage(call, streams, {})
        outputs = call.results()
        if stream is not None:
            self._pending(outputs, None, call.finished, stream)
        return outputs, call.finished, streams[2]

    def _start_tensors(
        self, known: CachedLaunch, tensors: list[Any], stream: int | None
    ) -> tuple[dict[str, Any], Event | StreamSerializer, int]:
        """As :meth:`_start`, for torch tensors on the GPU like those of an earlier run."""
        current = torch_stream(tensors[0].device.index)
        compute = current if stream is None else stream
        outputs = {}
        addresses = [tensors[index].data_ptr() for index in known.order]
        for name, make in known.outputs:
            value = outputs[name] = make()
            addresses.append(value.data_ptr())
        if compute != current:
            self._hop.pass_on(current, compute)
            for value in (*tensors, *outputs.values()):
                torch_record_stream(value, compute)
        self._runner.launch(known.layout, tuple(addresses), compute)
        return outputs, self._runner.order, compute

    def _stage(
        self, call: HostExecution, streams: tuple[int, int, int], into: Mapping[str, Array]
    ) -> None:
        """Copies to the GPU, the run, and copies back, each on its stream, after one another."""
        up, compute, down = streams
        if call.busy:  # with its previous run, whose buffers these are
            call.finished.hold(compute)
            if up != compute:
                call.computed.hold(up)
        try:
            call.upload(up)
            call.uploaded.record(up)
            if up != compute:
                call.uploaded.hold(compute)
            call.enqueue(compute)
            call.computed.record(compute)
            if down != compute:
                call.computed.hold(down)
            call.download(down, into)
            call.record_end(self._event(), down)
        except BaseException:
            for handle in set(streams):  # nothing tells when the memory is free again
                with contextlib.suppress(CudaError):
                    Stream.borrowed(handle).synchronize()
            raise

    def _streams(self, compute: int, spread: bool) -> tuple[int, int, int]:
        if not spread:
            return compute, compute, compute
        return self._upload_stream.handle, compute, self._download_stream.handle

    def _next_call(self, compute: int) -> HostExecution:
        """A call whose memory is free, or else the one that was started first.

        Raises:
            CudaError: the stream that it is for is being captured.
        """
        if self._runner.is_captured(compute):
            raise CudaError(
                "this stream is being captured into a CUDA graph, which takes inputs and outputs on"
                " the GPU only, of shapes that do not depend on data"
            )
        if not self._calls or (len(self._calls) < self._most_calls and not self._calls[0].done()):
            self._calls.append(HostExecution(self._runner, self._pool))
        else:
            self._calls.rotate(-1)
        return self._calls[-1]

    def _compute_handle(self, lead: TensorView | None, stream: int | None) -> int:
        if stream is not None:
            return stream
        if lead is not None and lead.kind == "torch":
            return torch_stream(lead.value.device.index)
        return self._runner.stream.handle

    def _await_producers(self, operands: tuple[TensorView, ...], compute: int) -> None:
        """Let the run wait for streams on which arrays are made ready, where it is on another.

        Torch's memory is lent to it then: the caller may let go of a tensor before it was read.
        """
        producers = {o.producer for o in operands if o.producer is not None}
        tensors = [o.value for o in operands if o.kind == "torch" and o.on_device]
        if tensors:
            current = torch_stream(self.engine.ordinal)
            producers.add(current)
            if current != compute:
                for tensor in tensors:
                    torch_record_stream(tensor, compute)
        for producer in producers - {compute}:
            self._hop.pass_on(producer, compute)

    def _cast(self, operands: dict[str, TensorView]) -> None:
        for tensor in self.engine.inputs:
            operand = operands.get(tensor.name)
            if operand is not None and (
                operand.dtype != tensor.dtype or not (operand.contiguous and operand.aligned)
            ):
                operands[tensor.name] = operand.converted(tensor.dtype)

    def _allocate(
        self,
        layout: BoundShapes,
        lead: TensorView | None,
        compute: int,
        outputs: dict[str, Any],
        pointers: dict[str, int],
    ) -> None:
        """Make the outputs that are to be on the GPU and whose shape is known."""
        for tensor in self.engine.outputs:
            shape = layout.outputs[tensor.name]
            if tensor.name in outputs or tensor.name in self._runner.host_names:
                continue
            if -1 in shape:
                pointers[tensor.name] = 0  # the run makes it
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
            outputs[tensor.name] = self._wrapped(buffer, shape, tensor, lead)

    def _wrapped(
        self, buffer: DeviceBuffer, shape: Shape, tensor: PlanTensor, lead: TensorView | None
    ) -> Any:
        array = DeviceArray(buffer.release(), shape, tensor.dtype, self.engine.ordinal)
        return array if lead is None else foreign_result(lead.value, array)

    def _collect(self, call: HostExecution, kind: TensorView, outputs: dict[str, Any]) -> None:
        """Gather the outputs of a staged call as the caller wants them."""
        for name, array in call.results().items():
            if name not in outputs:
                outputs[name] = torch_from_host(array) if kind.kind == "torch" else array
        for tensor in self.engine.outputs:
            if tensor.name not in outputs:  # on the GPU, of a shape that only the run has told
                buffer, shape = self._runner.take_dynamic_output(tensor.name)
                outputs[tensor.name] = self._wrapped(buffer, shape, tensor, kind)


def _until_failure(items: Iterable[_Item]) -> Iterator[_Item | Exception]:
    """The items, and then the error that ended them, if one did."""
    try:
        yield from items
    except Exception as error:
        yield error


def _is_cuda(device: str | None, lead: TensorView | None) -> bool:
    if device not in (None, "cpu", "cuda"):
        raise SpecError(f"device={device!r}: outputs can be on cpu or cuda")
    return lead is not None if device is None else device == "cuda"


def _close(
    runner: ExecutionContext,
    calls: deque[HostExecution],
    in_flight: deque[InferenceFuture],
    streams: tuple[Stream, ...],
    pool: PinnedPool,
    engine: Engine,
    owned: bool,
) -> None:
    """Free everything a session has, also when the process ends; a lost GPU is no news by then."""
    steps: list[Callable[[], object]] = [stream.synchronize for stream in streams]
    steps += [pending.result for pending in in_flight]
    steps += [call.close for call in calls]
    steps += [
        runner.close,
        *(stream.close for stream in streams),
        pool.close,
        engine.save_runtime_cache,
    ]
    if owned:
        steps.append(engine.close)
    for step in steps:
        try:
            step()
        except CudaError as error:
            _LOGGER.debug("closing a session: %s", error)
    in_flight.clear()
