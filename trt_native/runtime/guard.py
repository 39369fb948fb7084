"""Exclusive-use guard of a session."""

from __future__ import annotations

import threading

from trt_native.cuda import require_gpu
from trt_native.cuda.driver import CURRENT
from trt_native.errors import ClosedError, CudaError, SpecError

__all__ = ["SessionGuard"]


class SessionGuard:
    """Context manager of each use of a session, by one thread at a time.

    Entering makes the GPU's context current on the thread.

    Args:
        ordinal: CUDA ordinal of the GPU.

    Attributes:
        closed: Whether the session was closed.

    Raises:
        SpecError: when entered, another thread is using the session.
        ClosedError: when entered, the session was closed.
        CudaError: when entered, an earlier error has broken the session.
    """

    def __init__(self, ordinal: int) -> None:
        self.closed = False
        self._ordinal = ordinal
        self._lock = threading.Lock()
        self._broken: CudaError | None = None

    def note(self, error: BaseException) -> None:
        """Mark the session broken if the GPU cannot be used after the error."""
        if isinstance(error, CudaError) and error.sticky and self._broken is None:
            self._broken = error

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise SpecError(
                "this session is being used by another thread: give each thread a session of its"
                " own, or take them from an EngineSessionPool"
            )
        try:
            if self.closed or self._broken is not None:
                self._refuse()
            if getattr(CURRENT, "ordinal", None) != self._ordinal:
                require_gpu(self._ordinal)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._lock.release()
        if error is not None:
            self.note(error)

    def _refuse(self) -> None:
        if self.closed or self._broken is None:
            raise ClosedError("the session is closed")
        raise CudaError(
            f"the session is broken since an earlier error ({self._broken.message}): restart the"
            " process to use the GPU",
            code=self._broken.code,
        )
