"""Interface between the benchmark and a machine: clocks, a GPU, and sessions on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from trt_native import cuda
from trt_native.arrays import Array
from trt_native.config import KernelSpecialization
from trt_native.cuda import GpuInfo, require_gpu
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.runtime.engine import Engine

__all__ = [
    "Array",
    "CudaMachine",
    "Inputs",
    "LoadedEngine",
    "Machine",
    "MeasurableSession",
    "TimedExecution",
    "TimingEvent",
    "TimingStream",
]

Inputs = Mapping[str, Array]


class TimingEvent(Protocol):
    """A timestamp in a stream."""

    def synchronize(self) -> object:
        """Wait until the GPU has reached it."""

    def elapsed_ms(self, since: Any, /) -> float:
        """Milliseconds from another event to this one, by the GPU's clock."""


class TimingStream(Protocol):
    """Work that the GPU does in order."""

    def record(self, event: Any, /) -> object:
        """Record an event after the work so far."""

    def synchronize(self) -> object:
        """Wait until the work is done."""


class TimedExecution(Protocol):
    """One execution with memory of its own; see ``Session.create_execution``."""

    @property
    def input_bytes(self) -> int:
        """Number of bytes that :meth:`upload` copies."""

    @property
    def output_bytes(self) -> int:
        """Number of bytes that the last :meth:`download` copied."""

    def upload(self, stream: Any, /) -> object:
        """Copy the inputs to the GPU, asynchronously."""

    def enqueue(self, stream: Any, /, *, graph: bool) -> object:
        """Execute, asynchronously."""

    def download(self, stream: Any, /) -> object:
        """Copy the outputs from the GPU, asynchronously."""

    def close(self) -> object:
        """Free its memory; before the session is closed."""


class MeasurableSession(Protocol):
    """The part of :class:`~trt_native.runtime.Session` that the benchmark uses."""

    @property
    def compute_stream(self) -> Any:
        """The stream to execute on."""

    def create_execution(self, inputs: Inputs, /) -> Any:
        """A :class:`TimedExecution` with these inputs."""

    def run(self, inputs: Inputs, /) -> object:
        """Execute from host memory to host memory and wait."""

    def map(self, iterable: Iterable[Inputs], /, *, depth: int) -> Iterator[Any]:
        """Execute for each of the inputs, ``depth`` of them at a time."""

    def profile_layers(
        self, inputs: Inputs, /, *, iterations: int
    ) -> Mapping[str, Sequence[float]]:
        """Milliseconds of each layer in each iteration, in the order of the layers."""

    def close(self) -> object:
        """Free everything."""


class LoadedEngine(Protocol):
    """The part of :class:`~trt_native.runtime.engine.Engine` that the benchmark uses."""

    @property
    def inputs(self) -> Sequence[PlanTensor]:
        """The tensors to be supplied."""

    @property
    def activation_bytes(self) -> int:
        """Device memory that a context needs."""

    def close(self) -> object:
        """Free everything."""


class Machine(Protocol):
    """The clocks, the GPU and the way to load plans."""

    def describe(self) -> GpuInfo:
        """The GPU. Called first: it makes the CUDA context current."""

    def now(self) -> float:
        """Seconds, by the host's clock."""

    def used_bytes(self) -> int:
        """Device memory in use by all processes."""

    def event(self) -> TimingEvent:
        """A new event."""

    def load(self, plan: Plan, /) -> LoadedEngine:
        """Deserialize a plan."""

    def session(self, engine: Any, /) -> MeasurableSession:
        """A new session of an engine."""


class CudaMachine:
    """The :class:`Machine` of a real GPU.

    Args:
        ordinal: CUDA ordinal of the GPU.
        kernel_specialization: As for :class:`~trt_native.runtime.engine.Engine`.
    """

    def __init__(
        self, ordinal: int = 0, *, kernel_specialization: KernelSpecialization | str | None = None
    ) -> None:
        self._ordinal = ordinal
        self._specialization = kernel_specialization

    def describe(self) -> GpuInfo:
        """The GPU.

        Raises:
            CudaError: there is none.
        """
        return require_gpu(self._ordinal)

    def now(self) -> float:
        """Seconds, by a clock that never goes back."""
        return time.perf_counter()

    def used_bytes(self) -> int:
        """Device memory in use by all processes."""
        info = require_gpu(self._ordinal)
        return info.total_bytes - info.free_bytes

    def event(self) -> TimingEvent:
        """A new CUDA event with a time."""
        return cuda.Event(timing=True, ordinal=self._ordinal)

    def load(self, plan: Plan) -> Engine:
        """Deserialize a plan."""
        return Engine(plan, ordinal=self._ordinal, kernel_specialization=self._specialization)

    def session(self, engine: Engine) -> MeasurableSession:
        """A new session of an engine."""
        return Session(engine)
