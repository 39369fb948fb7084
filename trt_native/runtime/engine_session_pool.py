"""Sessions of one engine for the threads of a server."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trt_native.errors import ClosedError, SpecError
from trt_native.runtime.engine import Engine
from trt_native.runtime.session import Session

__all__ = ["EngineSessionPool"]


class EngineSessionPool:
    """A number of sessions of one engine, each for one thread at a time.

    Thread-safe; a thread that finds no session free waits for one.

    Args:
        engine: The shared engine, which must stay open until the pool is closed.
        size: Number of sessions; each takes ``engine.activation_bytes`` of GPU memory.
        options: As for :class:`~trt_native.runtime.Session`.

    Raises:
        SpecError: ``size`` is below 1.
        CudaError: the GPU has too little memory for this many.
    """

    def __init__(self, engine: Engine, size: int, **options: Any) -> None:
        if size < 1:
            raise SpecError(f"a pool of {size} sessions: at least 1 is needed")
        self._sessions: list[Session] = []
        self._free: queue.LifoQueue[Session | None] = queue.LifoQueue()
        self._closed = False
        try:
            for _ in range(size):
                self._sessions.append(Session(engine, **options))
        except BaseException:
            self.close()
            raise
        for session in self._sessions:
            self._free.put(session)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Reserve a session for this thread, until the end of the block.

        Raises:
            ClosedError: the pool was closed.
        """
        session = self._free.get()
        if session is None or self._closed:
            self._free.put(None)  # for the next thread that waits
            raise ClosedError("the session pool is closed")
        try:
            yield session
        finally:
            self._free.put(session)

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Run :meth:`Session.run <trt_native.runtime.Session.run>` in a free session."""
        with self.session() as session:
            return session.run(inputs, **options)

    def close(self) -> None:
        """Close all sessions once their runs are done. Idempotent."""
        self._closed = True
        self._free.put(None)
        for session in self._sessions:
            session.close()

    def __enter__(self) -> EngineSessionPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
