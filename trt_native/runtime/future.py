"""Results that are not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from trt_native.cuda import Event

__all__ = ["InferenceFuture"]


class InferenceFuture:
    """What :meth:`~trt_native.runtime.Session.submit` returns: a run on its way.

    It may be collected from any thread, and awaited: ``outputs = await session.submit(inputs)``.
    """

    __slots__ = ("_complete", "_event", "_failed", "_held", "_outputs")

    def __init__(
        self,
        outputs: dict[str, Any],
        event: Event,
        held: Any,
        failed: Callable[[Exception], None],
    ) -> None:
        self._outputs = outputs
        self._event = event
        self._held = held
        self._failed = failed
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether it is known, without asking the GPU, that the run is done."""
        return self._complete

    @property
    def event(self) -> Event:
        """What tells that the run is done; from then on it may be recorded for another."""
        return self._event

    def done(self) -> bool:
        """Whether the outputs are complete.

        Raises:
            CudaError: the run failed on the GPU.
        """
        if self._complete:
            return True
        try:
            if self._event.done():
                self._finish()
        except Exception as error:
            self._failed(error)
            raise
        return self._complete

    def result(self) -> dict[str, Any]:
        """Wait for the run and return its outputs by name; the same ones at every call.

        Raises:
            CudaError: the run failed on the GPU.
        """
        if not self._complete:
            try:
                self._event.synchronize()
            except Exception as error:
                self._failed(error)
                raise
            self._finish()
        return self._outputs

    def _finish(self) -> None:
        self._complete, self._held = True, None

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        """Wait without holding up the event loop."""
        if not self.done():
            loop = asyncio.get_running_loop()
            yield from loop.run_in_executor(None, self.result).__await__()
        return self._outputs
