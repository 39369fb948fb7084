"""Streams and events."""

from __future__ import annotations

import contextlib
from typing import Any

from trt_native.cuda.driver import bindings, check, make_current, translated
from trt_native.errors import ClosedError, SpecError

__all__ = ["Event", "Stream", "is_capturing", "stream_handle"]


_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Event:
    """A point in a stream's work that others can wait for.

    Args:
        timing: Keep the time at which it was reached, for :meth:`elapsed_ms`.
        ordinal: CUDA ordinal of its GPU.
    """

    def __init__(self, *, timing: bool = False, ordinal: int = 0) -> None:
        # Every submitted run takes one: cuda.core would need several microseconds to make it.
        with translated("create an event"):
            self._driver = bindings()
            make_current(ordinal)
            flags = 0 if timing else _DISABLE_TIMING
            # Kept as the driver's own type, which an integer would be turned into at every call.
            self._handle: Any = check(self._driver.cuEventCreate(flags))[0]
        self._recorded = 0
        self._seen = 0  # which recording the host has seen reached: it may be an earlier one

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # never made, or the process ends
            self._driver.cuEventDestroy(self._handle)

    def record(self, stream: int) -> int:
        """Put the event behind the work that a stream, given by its handle, has by now.

        Returns:
            A number for :meth:`passed`.
        """
        code = self._driver.cuEventRecord(self._handle, stream)
        if code[0]:
            check(code)
        self._recorded += 1
        return self._recorded

    def passed(self, recording: int) -> bool:
        """Whether the host knows, without asking, that the work before a recording is done.

        Only for events that nobody records again before the host has seen them reached.
        """
        return self._seen == recording or self._recorded != recording

    def hold(self, stream: int) -> None:
        """Let what is put on a stream, given by its handle, from now on wait for the event."""
        if self._seen == self._recorded:
            return
        code = self._driver.cuStreamWaitEvent(stream, self._handle, 0)
        if code[0]:
            check(code)

    def pass_on(self, producer: int, consumer: int) -> None:
        """Let a stream wait for the work that another has by now; both given by their handles."""
        self.record(producer)
        self.hold(consumer)

    def done(self) -> bool:
        """Whether the work before it is done; True if it was never recorded.

        Raises:
            CudaError: some of that work failed.
        """
        recorded = self._recorded
        if self._seen == recorded:
            return True
        (code,) = self._driver.cuEventQuery(self._handle)
        if code == self._driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        check((code,))
        self._seen = recorded
        return True

    def synchronize(self) -> None:
        """Wait until the work before it is done.

        Raises:
            CudaError: some of that work failed.
        """
        recorded = self._recorded
        if self._seen == recorded:
            return
        code = self._driver.cuEventSynchronize(self._handle)
        if code[0]:
            with translated("finish the work on the GPU"):
                check(code)
        self._seen = recorded

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds from ``since`` to this event; both with timing, both reached."""
        with translated("read the time between two events"):
            return float(check(self._driver.cuEventElapsedTime(since._handle, self._handle))[0])


class Stream:
    """A CUDA stream of its own, not ordered with the default stream.

    Raises:
        CudaError: no GPU was found, or the stream cannot be created.
    """

    def __init__(self, ordinal: int = 0) -> None:
        with translated("create a stream"):
            self._stream: Any = make_current(ordinal).create_stream()
            self._handle = int(self._stream.handle)

    @classmethod
    def borrowed(cls, handle: int) -> Stream:
        """A stream that somebody else made and keeps alive, by its handle."""
        with translated("use a stream"):
            from cuda.core import Stream as CoreStream

            stream = cls.__new__(cls)
            stream._stream = CoreStream.from_handle(handle)
            stream._handle = handle
        return stream

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as an integer."""
        if self._stream is None:
            raise ClosedError("the stream is closed")
        return self._handle

    @property
    def core(self) -> Any:
        """The ``cuda.core`` stream."""
        if self._stream is None:
            raise ClosedError("the stream is closed")
        return self._stream

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version and handle, as cuda-python's protocol has it."""
        return (0, self.handle)

    def record(self, event: Event) -> None:
        """Put an event behind the work that the stream has by now."""
        event.record(self.handle)

    def wait(self, event: Event) -> None:
        """Let what is put on the stream from now on wait for an event."""
        event.hold(self.handle)

    def synchronize(self) -> None:
        """Wait until all work of the stream is done.

        Raises:
            CudaError: some of that work failed.
        """
        with translated("finish the work of a stream"):
            self.core.sync()

    def close(self) -> None:
        """Destroy the stream once its work is done. May be called again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def stream_handle(stream: Any) -> int:
    """The ``cudaStream_t`` of any object that stands for a stream.

    Args:
        stream: An integer, or an object with ``__cuda_stream__`` (cuda.core, this package), with
            ``cuda_stream`` (PyTorch) or with ``ptr`` (CuPy).

    Raises:
        SpecError: it is none of these.
    """
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr"):
        handle = getattr(stream, attribute, None)
        if isinstance(handle, int):
            return handle
    raise SpecError(
        f"stream: {type(stream).__name__} is no CUDA stream; give its handle, a torch.cuda.Stream,"
        " or an object with __cuda_stream__"
    )


def is_capturing(handle: int) -> bool:
    """Whether the work put on a stream is being captured into a graph instead of being run."""
    code, status = bindings().cuStreamIsCapturing(handle)
    if code:
        check((code,))
    return bool(status)
