"""Runs in flight: futures, and the events that mark their ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from trt_native.cuda import Event

__all__ = ["InferenceFuture", "RunTracker", "StartedRun"]


class StartedRun:
    """A run that was enqueued.

    Attributes:
        outputs: Array for every output, by name.
        event: Recorded after the run; None where only the order of ``stream`` marks its end.
        stream: Handle of the stream on which the outputs are complete.
    """

    __slots__ = ("event", "outputs", "stream")

    def __init__(self, outputs: dict[str, Any], event: Event | None, stream: int) -> None:
        self.outputs = outputs
        self.event = event
        self.stream = stream


class InferenceFuture:
    """A run in flight, as returned by :meth:`~trt_native.runtime.Session.submit`.

    Any thread may take its result, or await it: ``outputs = await session.submit(inputs)``.
    """

    __slots__ = ("_complete", "_event", "_held", "_on_error", "_outputs")

    def __init__(
        self,
        outputs: dict[str, Any],
        event: Event,
        held: Any,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._outputs = outputs
        self._event = event
        self._held = held
        self._on_error = on_error
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the run is known to be done, without a query to the GPU."""
        return self._complete

    @property
    def event(self) -> Event:
        """The event recorded after the run; free for reuse once :attr:`complete`."""
        return self._event

    def done(self) -> bool:
        """Query whether the outputs are complete.

        Raises:
            CudaError: the run failed on the GPU.
        """
        if self._complete:
            return True
        try:
            if self._event.done():
                self._finish()
        except Exception as error:
            self._on_error(error)
            raise
        return self._complete

    def result(self) -> dict[str, Any]:
        """Wait for the run and return its outputs by name, the same ones in every call.

        Raises:
            CudaError: the run failed on the GPU.
        """
        if not self._complete:
            try:
                self._event.synchronize()
            except Exception as error:
                self._on_error(error)
                raise
            self._finish()
        return self._outputs

    def _finish(self) -> None:
        self._complete, self._held = True, None

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        """Wait without blocking the event loop."""
        if not self.done():
            loop = asyncio.get_running_loop()
            yield from loop.run_in_executor(None, self.result).__await__()
        return self._outputs


class RunTracker:
    """Runs in flight, whose inputs and outputs it keeps alive, and events for reuse.

    Args:
        ordinal: CUDA ordinal of the GPU.
        on_error: Called with the error of a run that failed on the GPU.

    Attributes:
        futures: The runs, first started first.
    """

    def __init__(self, ordinal: int, on_error: Callable[[Exception], None]) -> None:
        self.futures: deque[InferenceFuture] = deque()
        self._ordinal = ordinal
        self._on_error = on_error
        self._idle: list[Event] = []

    def take_event(self) -> Event:
        """Return an event that no run in flight uses."""
        return self._idle.pop() if self._idle else Event(ordinal=self._ordinal)

    def recycle(self, event: Event) -> None:
        """Reuse an event that the host has seen reached."""
        self._idle.append(event)

    def track(self, run: StartedRun, held: Any) -> InferenceFuture:
        """Return a future of a run, and keep ``held`` and the outputs alive until it is done."""
        event = run.event
        if event is None:
            event = self.take_event()
            event.record(run.stream)
        future = InferenceFuture(run.outputs, event, held, self._on_error)
        self.futures.append(future)
        return future

    def reap(self, *, query: bool) -> None:
        """Forget the first runs that are complete.

        Args:
            query: Ask the GPU for those that are not known to be.
        """
        futures = self.futures
        while futures and (futures[0].complete or (query and futures[0].done())):
            self._idle.append(futures.popleft().event)
