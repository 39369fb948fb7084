"""Sessions: run an engine on the caller's arrays, synchronously or overlapped."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from trt_native.backends.base import DebugTensor
from trt_native.config import KernelSpecialization
from trt_native.cuda import Event, Stream, require_gpu, stream_handle
from trt_native.errors import CudaError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.activation_memory import ActivationMemory
from trt_native.runtime.engine import Engine
from trt_native.runtime.execution import ExecutionContext
from trt_native.runtime.future import InferenceFuture, RunTracker, StartedRun
from trt_native.runtime.guard import SessionGuard
from trt_native.runtime.input_checks import read_inputs, zeros_for
from trt_native.runtime.launch import CheckedLaunch, Launch, LaunchResources, input_signature
from trt_native.runtime.staging import HostExecution, StagingPipeline

__all__ = ["Session", "until_failure"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_GRAPHS = 32
_MAX_LAUNCHES = 256
_Item = TypeVar("_Item")


class Session:
    """One execution context of an engine, with streams and buffers of its own.

    Only one thread at a time may use a session; give each its own, of one shared engine
    (:class:`~trt_native.runtime.EngineSessionPool`).

    Results are arrays of the inputs' library: NumPy arrays for NumPy arrays, torch tensors for
    torch tensors, on the GPU if any input is there. Arrays on the GPU are never copied: the engine
    reads and writes them in place. Results on the host are in page-locked memory, which is not
    reused while the result or a view of it exists.

    An output that the engine writes in the memory of an input, such as a cache of keys and values
    (:attr:`~trt_native.plans.manifest.PlanTensor.alias`), is that input: given on the GPU, the
    array is changed, and returned as the output. An array on the host stays as it is.

    Args:
        engine: An engine, or a plan or its path, which the session then loads and owns.
        backend: See :class:`~trt_native.runtime.engine.Engine`; only for a plan.
        kernel_specialization: The same.
        cuda_graphs: Number of CUDA graphs to keep, each for one combination of shapes and
            addresses; 0 runs without. One is captured when a combination recurs.
        activation_memory: Memory for activations, shared with other sessions; None for memory of
            its own that is enough for every shape of the profiles; ``shapes`` for memory of its own
            that grows with the shapes that are run.

    Attributes:
        engine: The engine.

    Raises:
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.engine.Engine`.
        SpecError: the activation memory is too small, or on another GPU.
    """

    def __init__(
        self,
        engine: Engine | Plan | str | os.PathLike[str],
        *,
        backend: str = "auto",
        kernel_specialization: KernelSpecialization | str | None = None,
        cuda_graphs: int = _DEFAULT_GRAPHS,
        activation_memory: ActivationMemory | Literal["shapes"] | None = None,
    ) -> None:
        if cuda_graphs < 0:
            raise SpecError(f"cuda_graphs={cuda_graphs}: must be 0 or more")
        if isinstance(activation_memory, str) and activation_memory != "shapes":
            raise SpecError(
                f"activation memory {activation_memory!r}: give an ActivationMemory, 'shapes' or"
                " None",
                options=("activation_memory",),
            )
        owned = not isinstance(engine, Engine)
        if isinstance(engine, Engine):
            if kernel_specialization is not None:
                raise SpecError(
                    "kernel_specialization: an engine has one; give it to Engine, or give a plan",
                    options=("kernel_specialization",),
                )
            self.engine = engine
        else:
            self.engine = Engine(
                engine, backend=backend, kernel_specialization=kernel_specialization
            )
        require_gpu(self.engine.ordinal)
        ordinal = self.engine.ordinal
        self._guard = SessionGuard(ordinal)
        self._context = ExecutionContext(self.engine, cuda_graphs, activation_memory)
        self._pipeline = StagingPipeline(self._context)
        self._tracker = RunTracker(ordinal, self._guard.note)
        self._resources = LaunchResources(
            self._context, self._pipeline, self._tracker, Event(ordinal=ordinal)
        )
        self._launches: dict[Hashable, Launch] = {}
        self._finalizer = weakref.finalize(
            self, _close, self._context, self._pipeline, self._tracker, self.engine, owned
        )

    def __repr__(self) -> str:
        closed = "closed, " if self._guard.closed else ""
        return f"Session({closed}{self.engine!r})"

    @property
    def activation_bytes(self) -> int:
        """GPU memory for the activations of the session's runs, in bytes, shared or not."""
        return self._context.activation_bytes

    @property
    def inputs(self) -> tuple[PlanTensor, ...]:
        """The engine's inputs, in its order."""
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[PlanTensor, ...]:
        """The engine's outputs, in its order."""
        return self.engine.outputs

    @property
    def compute_stream(self) -> Stream:
        """The stream of runs for which the caller names none."""
        return self._context.stream

    @property
    def graph_count(self) -> int:
        """Number of CUDA graphs held."""
        return self._context.graph_count

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
                must be contiguous and its address a multiple of 256.
            out: Buffers for some or all outputs, of their dtype and shape, on the GPU or the host.
            device: Where to allocate the other outputs: ``cpu`` or ``cuda``.
            stream: A stream (see :func:`trt_native.cuda.stream_handle`) that produces the inputs on
                the GPU and consumes the outputs. The call then returns at once, and the outputs,
                also those on the host, are complete in that stream's order. Without one, the run
                waits on the GPU for torch's current stream, and the outputs are complete when the
                call returns.
            cast: Copy inputs of another dtype, or not contiguous or aligned on the GPU, instead of
                raising an error.

        Returns:
            An array for every output, by name.

        Raises:
            SpecError: names, dtypes, shapes or buffers do not fit; one error lists all problems.
            CudaError: the GPU has too little memory, or TensorRT failed.
            ClosedError: the session was closed.
        """
        with self._guard:
            handle = None if stream is None else stream_handle(stream)
            run = self._start(inputs, out, device, handle, cast, spread=False)
            if stream is None:
                if run.event is None:
                    self._context.serializer.synchronize()
                else:
                    run.event.synchronize()
                    self._tracker.recycle(run.event)
        return run.outputs

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
        on the host, uploads, runs and downloads have streams of their own, and those of several
        submitted runs overlap.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        with self._guard:
            run = self._start(inputs, out, device, None, cast, spread=True)
            return self._tracker.track(run, tuple(inputs.values()))

    def map(
        self, iterable: Iterable[Mapping[str, Any]], *, depth: int = 2
    ) -> Iterator[dict[str, Any]]:
        """Run the engine for each of many inputs, overlapped, and yield results in order.

        Uploads, runs and downloads overlap; nothing else may use the session meanwhile. Input
        arrays may be changed as soon as the next ones are requested. An error in the inputs, or of
        the iterable, is raised after the results of all inputs before it.

        Args:
            iterable: Inputs as for :meth:`run`; consumed only as results are requested.
            depth: Number of runs submitted ahead of the one whose result is awaited; 1 or more.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        if depth < 1:
            raise SpecError(f"depth={depth}: must be at least 1")
        self._pipeline.limit = max(self._pipeline.limit, depth + 1)
        failure: Exception | None = None
        ahead: deque[InferenceFuture] = deque()
        for run in until_failure(map(self.submit, iterable)):
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

    def warm_up(self, shapes: Iterable[Mapping[str, Any]] | None = None) -> None:
        """Run with zeros of some shapes, so that later runs with them wait for nothing.

        TensorRT-RTX compiles its kernels for a shape when that is first run, which takes seconds;
        they are then written to the runtime cache, if the engine has one. CUDA graphs of runs with
        arrays on the host are captured. With kernel specialization ``lazy`` this only begins.

        Args:
            shapes: For each run, input name to its shape, or to an array where the values matter.
                Inputs that are left out have their optimum in the first profile. None: the optimum
                of every profile.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        if shapes is None:
            profiles = range(self.engine.profile_count)
            runs = [zeros_for(self.inputs, {}, profile) for profile in profiles]
        else:
            runs = [zeros_for(self.inputs, given) for given in shapes]
        # The largest come first: where buffers grow, graphs of smaller shapes would be lost.
        for inputs in sorted(runs, key=lambda one: sum(array.nbytes for array in one.values()))[
            ::-1
        ]:
            for _ in range(2):  # the second captures a CUDA graph
                self.run(inputs)
        self.engine.save_runtime_cache()

    def create_execution(self, inputs: Mapping[str, Any]) -> HostExecution:
        """Allocate and fill the memory of repeated runs with inputs like these, for measurements.

        The caller owns it, enqueues its steps on streams, and closes it before the session.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        with self._guard:
            return self._filled(self._context, inputs)

    def profile_layers(
        self, inputs: Mapping[str, Any], *, iterations: int = 10
    ) -> dict[str, list[float]]:
        """Time each layer, in a separate context.

        Args:
            inputs: As for :meth:`run`.
            iterations: Number of timed runs, after one untimed run.

        Returns:
            Layer name to milliseconds in each run, in the engine's order.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
        """
        times: defaultdict[str, list[float]] = defaultdict(list)
        with self._guard, contextlib.closing(ExecutionContext(self.engine, 0)) as context:
            execution = self._filled(context, inputs)
            execution.upload(context.stream)
            execution.enqueue(context.stream)
            context.stream.synchronize()
            profiler = context.attach_profiler(lambda layer, ms: times[layer].append(ms))
            for _ in range(iterations):
                execution.enqueue(context.stream)
                context.stream.synchronize()
            execution.close()
            if profiler.failure is not None:
                raise profiler.failure
        return dict(times)

    def debug_tensors(
        self, inputs: Mapping[str, Any], receive: Callable[[DebugTensor], None]
    ) -> None:
        """Run once, in a separate context, and pass on the tensors between the plan's kernels.

        The plan must have been built for it: ``debug_tensors`` of
        :func:`~trt_native.builder.build_plan.build_plan`.

        Args:
            inputs: As for :meth:`run`.
            receive: Called for each tensor, as it is made. It reads the values of those that it
                wants, which are then copied to the host; the run goes on when it returns. What it
                raises is raised after the run.

        Raises:
            SpecError, CudaError, ClosedError: as :meth:`run`.
            UnsupportedError: TensorRT takes no listener, or the plan was not built for it.
        """
        with self._guard, contextlib.closing(ExecutionContext(self.engine, 0)) as context:
            execution = self._filled(context, inputs)
            listener = context.attach_debug_listener(receive)
            try:
                execution.upload(context.stream)
                execution.enqueue(context.stream)
                context.stream.synchronize()
            except CudaError as error:
                raise listener.failure or error from error
            finally:
                execution.close()
            if listener.failure is not None:
                raise listener.failure

    def close(self) -> None:
        """Free the context, the buffers and, if the session loaded it, the engine.

        Waits for work in flight. Idempotent.
        """
        self._guard.closed = True
        self._finalizer()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _filled(self, context: ExecutionContext, inputs: Mapping[str, Any]) -> HostExecution:
        views, problems = read_inputs(inputs)
        execution = HostExecution(context, self._pipeline.pool)
        execution.fill(context.shapes_for(views, problems), views, {})
        return execution

    def _start(
        self,
        inputs: Mapping[str, Any],
        out: Mapping[str, Any] | None,
        device: str | None,
        stream: int | None,
        cast: bool,
        *,
        spread: bool,
    ) -> StartedRun:
        """Enqueue a run, without checks where inputs of equal signature were run before."""
        in_flight = self._tracker.futures
        if in_flight:
            many = len(in_flight) > self._pipeline.limit
            self._tracker.reap(query=many or stream is not None)
        key = input_signature(inputs) if out is None and device is None else None
        known = self._launches.get(key)
        if known is not None:
            return known.start(inputs, stream, spread=spread)
        cacheable = key is not None and not cast
        launch = CheckedLaunch(self._resources, out, device, cast, cacheable=cacheable)
        run = launch.start(inputs, stream, spread=spread)
        if launch.cached is not None:
            if len(self._launches) >= _MAX_LAUNCHES:
                self._launches.clear()
            self._launches[key] = launch.cached
        return run


def until_failure(items: Iterable[_Item]) -> Iterator[_Item | Exception]:
    """Yield the items, then the error that ended them, if any."""
    try:
        yield from items
    except Exception as error:
        yield error


def _close(
    context: ExecutionContext,
    pipeline: StagingPipeline,
    tracker: RunTracker,
    engine: Engine,
    owned: bool,
) -> None:
    """Free everything a session has, also at the end of the process, when the GPU may be lost."""
    steps: list[Callable[[], object]] = [stream.synchronize for stream in pipeline.streams]
    steps += [future.result for future in tracker.futures]
    steps += [execution.close for execution in pipeline.executions]
    steps += [
        context.close,
        *(stream.close for stream in pipeline.streams),
        pipeline.pool.close,
        engine.save_runtime_cache,
    ]
    if owned:
        steps.append(engine.close)
    for step in steps:
        try:
            step()
        except CudaError as error:
            _LOGGER.debug("closing a session: %s", error)
    tracker.futures.clear()
