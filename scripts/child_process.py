"""Work in child processes that outlives their crashes and hangs."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Child", "Lost", "for_each"]

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Lost:
    """What is left of a task whose child did not answer.

    Attributes:
        status: ``crashed`` or ``stuck``.
        detail: The exit code, or how long the parent waited.
    """

    status: str
    detail: str


class Child:
    """A process that applies one function to tasks; a new one takes its place after a loss.

    Args:
        work: The function; a process imports it by its name.
        patience_s: How long to wait for an answer.
        lifetime: Number of tasks after which a process is replaced.
    """

    def __init__(
        self, work: Callable[[Any], Any], patience_s: float, lifetime: int = 1_000_000
    ) -> None:
        self._work, self._patience_s, self._lifetime = work, patience_s, lifetime
        self._process: Any = None
        self._pipe: Connection | None = None
        self._asked = 0

    def ask(self, task: Any, patience_s: float | None = None) -> Any:
        """Return ``work(task)``, or a :class:`Lost`."""
        patience_s = patience_s or self._patience_s
        if self._asked >= self._lifetime:
            self.close()
        pipe = self._pipe or self._start()
        self._asked += 1
        try:
            pipe.send(task)
            if pipe.poll(patience_s):
                return pipe.recv()
            lost = Lost("stuck", f"for {patience_s:g} s")
        except (EOFError, ConnectionError, BrokenPipeError):
            self._process.join()
            lost = Lost("crashed", f"exit code {self._process.exitcode}")
        self._process.kill()
        self._forget()
        return lost

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.join(10)
            self._process.kill()
        self._forget()

    def _start(self) -> Connection:
        self._pipe, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_answer, args=(other, self._work), daemon=True)
        self._process.start()
        other.close()
        self._asked = 0
        return self._pipe

    def _forget(self) -> None:
        self._process = self._pipe = None


def for_each(
    serve: Callable[[Child, Any], None],
    tasks: Iterable[Any],
    work: Callable[[Any], Any],
    *,
    jobs: int,
    patience_s: float,
    lifetime: int = 1_000_000,
) -> None:
    """Call ``serve(child, task)`` for each task, in ``jobs`` threads with a child each."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()
    for task in tasks:
        waiting.put(task)
    for _ in range(jobs):
        waiting.put(end)
    failures: list[BaseException] = []

    def thread() -> None:
        child = Child(work, patience_s, lifetime)
        try:
            while (task := waiting.get()) is not end:
                serve(child, task)
        except BaseException as error:  # raised again by the caller's thread
            failures.append(error)
        finally:
            child.close()

    threads = [threading.Thread(target=thread, daemon=True) for _ in range(jobs)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]


def _answer(pipe: Connection, work: Callable[[Any], Any]) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(work(task))
