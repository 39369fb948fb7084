"""Activation memory shared by sessions, and the serializer of the runs that use it."""

from __future__ import annotations

from typing import Any

from trt_native.cuda import DeviceBuffer, Event, Stream
from trt_native.errors import ClosedError, SpecError
from trt_native.runtime.engine import Engine
from trt_native.units import format_bytes

__all__ = ["ActivationMemory", "StreamSerializer"]


class StreamSerializer:
    """Serializes runs that use the same memory, on any streams."""

    def __init__(self, ordinal: int = 0) -> None:
        self._event = Event(ordinal=ordinal)
        self._stream: int | None = None
        self._is_recorded = True

    def acquire(self, stream: int, *, long_lived: bool = False) -> None:
        """Make a stream wait for the last run, if that was on another one.

        Args:
            stream: Handle of the stream.
            long_lived: As for :meth:`release`. Any other handle may belong to a new stream by now.
        """
        if self._stream is not None and (self._stream != stream or not long_lived):
            self._record()
            self._event.hold(stream)

    def release(self, stream: int, *, long_lived: bool = False) -> None:
        """Note that a run was enqueued on a stream.

        Args:
            stream: Handle of the stream.
            long_lived: The stream lives until :meth:`synchronize`: the event, which costs the GPU
                a microsecond, is recorded only when it is waited for.
        """
        self._stream, self._is_recorded = stream, False
        if not long_lived:
            self._record()

    def synchronize(self) -> None:
        """Wait until the last run is done."""
        self._record()
        self._event.synchronize()

    def _record(self) -> None:
        if not self._is_recorded and self._stream is not None:
            self._event.record(self._stream)
            self._is_recorded = True


class ActivationMemory:
    """Device memory for activations that sessions use in turn.

    Sessions that share it never run concurrently: each run waits, on the GPU, for the one before.
    All of them must be used from one thread at a time. It must stay open until they are closed.

    Args:
        engines: The engines whose sessions will use it; the largest one determines its size.

    Attributes:
        nbytes: Size in bytes.
        pointer: Device address.
        ordinal: CUDA ordinal of the GPU.
        serializer: Orders the runs that use it.

    Raises:
        SpecError: no engine was given, or they are on different GPUs.
        CudaError: the GPU has too little memory.
    """

    def __init__(self, *engines: Engine) -> None:
        ordinals = {engine.ordinal for engine in engines}
        if len(ordinals) != 1:
            raise SpecError("activation memory: name the engines that will use it, all on one GPU")
        self.ordinal = ordinals.pop()
        self.nbytes = max(engine.activation_bytes for engine in engines)
        self.serializer = StreamSerializer(self.ordinal)
        self._buffer: Any = DeviceBuffer()
        with Stream(self.ordinal) as stream:
            self.pointer = self._buffer.reserve(self.nbytes, stream)
            stream.synchronize()

    def check(self, engine: Engine) -> None:
        """Check that sessions of an engine can use the memory.

        Raises:
            SpecError: the memory is too small, or on another GPU.
            ClosedError: it was closed.
        """
        if self._buffer is None:
            raise ClosedError("the activation memory is closed")
        if engine.ordinal != self.ordinal:
            raise SpecError(
                f"activation memory on GPU {self.ordinal}, engine on GPU {engine.ordinal}"
            )
        if engine.activation_bytes > self.nbytes:
            raise SpecError(
                f"activation memory of {format_bytes(self.nbytes)}, the engine needs"
                f" {format_bytes(engine.activation_bytes)}: name it among the engines"
            )

    def close(self) -> None:
        """Free the memory once the last run is done. Idempotent."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.serializer.synchronize()
            buffer.close()

    def __enter__(self) -> ActivationMemory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
