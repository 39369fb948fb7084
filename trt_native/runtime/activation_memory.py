"""Activation memory that several sessions share, and the order in which they use it."""

from __future__ import annotations

from typing import Any

from trt_native.cuda import DeviceBuffer, Event, Stream
from trt_native.errors import ClosedError, SpecError
from trt_native.runtime.engine import Engine
from trt_native.units import format_bytes

__all__ = ["ActivationMemory", "StreamSerializer"]


class StreamSerializer:
    """Keeps runs that use the same memory one after the other, whatever streams they are on."""

    def __init__(self, ordinal: int = 0) -> None:
        self._event = Event(ordinal=ordinal)
        self._stream: int | None = None
        self._is_recorded = True

    def acquire(self, stream: int, *, long_lived: bool = False) -> None:
        """Let a stream wait for the last run, if that was on another one.

        A handle that is not long_lived may be another stream's by now.
        """
        if self._stream is not None and (self._stream != stream or not long_lived):
            self._record()
            self._event.hold(stream)

    def release(self, stream: int, *, long_lived: bool = False) -> None:
        """Say that a run was just put on a stream.

        Args:
            stream: Handle of the stream.
            long_lived: The stream lives until :meth:`synchronize`: the event, which costs the GPU
                a microsecond, is recorded when somebody waits for it.
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
    """Device memory for activations that sessions use in turn, so that it is needed only once.

    Sessions that share it never run at once: each run waits, on the GPU, for the one before. All of
    them must be used from one thread at a time. It must stay open until they are closed.

    Args:
        engines: The engines whose sessions will use it; it is as large as the largest needs.

    Attributes:
        nbytes: Its size.
        pointer: Its device address.

    Raises:
        SpecError: no engine was given, or they are on different GPUs.
        CudaError: the GPU has not that much memory left.
    """

    def __init__(self, *engines: Engine) -> None:
        ordinals = {engine.ordinal for engine in engines}
        if len(ordinals) != 1:
            raise SpecError("shared memory: name the engines that will use it, all on one GPU")
        self.ordinal = ordinals.pop()
        self.nbytes = max(engine.activation_bytes for engine in engines)
        self.serializer = StreamSerializer(self.ordinal)
        self._buffer: Any = DeviceBuffer()
        with Stream(self.ordinal) as stream:
            self.pointer = self._buffer.reserve(self.nbytes, stream)
            stream.synchronize()

    def check(self, engine: Engine) -> None:
        """Check that a session of an engine can use it.

        Raises:
            SpecError: it is too small, or on another GPU.
            ClosedError: it was closed.
        """
        if self._buffer is None:
            raise ClosedError("the shared memory is closed")
        if engine.ordinal != self.ordinal:
            raise SpecError(f"shared memory on GPU {self.ordinal}, engine on GPU {engine.ordinal}")
        if engine.activation_bytes > self.nbytes:
            raise SpecError(
                f"shared memory of {format_bytes(self.nbytes)}, the engine needs"
                f" {format_bytes(engine.activation_bytes)}: name it among the engines"
            )

    def close(self) -> None:
        """Give the memory back once the last run is done. May be called again."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self.serializer.synchronize()
            buffer.close()

    def __enter__(self) -> ActivationMemory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
