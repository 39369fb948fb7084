"""The execution contexts of an engine, which must stand still while its weights are replaced."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["ContextRegistry", "PausableContext"]


class PausableContext(Protocol):
    """An execution context, as far as the weights of its engine concern it."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while the context is used."""

    def finish_runs(self) -> None:
        """Wait until the runs that were started are done."""

    def follow(self, stream: int) -> None:
        """Let later runs wait for what a stream has by now, and forget captured runs."""

    def drop(self) -> None:
        """Free TensorRT's context and the captured runs."""

    def recreate(self) -> None:
        """Make another context of TensorRT's, of the engine as it is now."""


class ContextRegistry:
    """The open execution contexts of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._contexts: weakref.WeakSet[PausableContext] = weakref.WeakSet()

    @contextlib.contextmanager
    def adding(self, context: PausableContext) -> Iterator[None]:
        """Make a context in the block, during which the weights are not replaced."""
        with self._lock:
            yield
            self._contexts.add(context)

    def remove(self, context: PausableContext) -> None:
        """Forget a context that is closed."""
        with self._lock:
            self._contexts.discard(context)

    @contextlib.contextmanager
    def paused(self) -> Iterator[list[PausableContext]]:
        """Keep runs from being started in the block, and wait for those that were."""
        with self._lock, contextlib.ExitStack() as stack:
            contexts = list(self._contexts)
            for context in contexts:
                stack.enter_context(context.lock)
            for context in contexts:
                context.finish_runs()
            yield contexts
