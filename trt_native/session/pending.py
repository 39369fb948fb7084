"""Results that are not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from trt_native.cuda import Event

__all__ = ["Pending"]


class Pending:
    """What :meth:`~trt_native.session.Session.submit` returns: a run on its way.

    It may be collected from any thread, and awaited: ``outputs = await session.submit(inputs)``.
    """

    def __init__(
        self, outputs: dict[str, Any], event: Event, failed: Callable[[Exception], None]
    ) -> None:
        self._outputs = outputs
        self._event: Event | None = event
        self._failed = failed

    def settle(self) -> None:
        """The run is done, and its event will be used for another."""
        self._event = None

    def done(self) -> bool:
        """Whether the outputs are complete.

        Raises:
            CudaError: the run failed on the GPU.
        """
        event = self._event
        try:
            return event is None or event.done()
        except Exception as error:
            self._failed(error)
            raise

    def result(self) -> dict[str, Any]:
        """Wait for the run and return its outputs by name; the same ones at every call.

        Raises:
            CudaError: the run failed on the GPU.
        """
        event = self._event
        try:
            if event is not None:
                event.synchronize()
        except Exception as error:
            self._failed(error)
            raise
        return self._outputs

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        """Wait without holding up the event loop."""
        if not self.done():
            loop = asyncio.get_running_loop()
            yield from loop.run_in_executor(None, self.result).__await__()
        return self._outputs
