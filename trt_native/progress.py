"""Progress callbacks of long operations."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Protocol

__all__ = ["Progress", "byte_phase", "phase"]

_MIB = 1 << 20


class Progress(Protocol):
    """Receives progress callbacks of long work, on the working thread; must return quickly."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps (0: not known) begins inside ``parent``."""

    def step_complete(self, phase: str, step: int) -> None:
        """A step, counted from 0, is done."""

    def phase_finish(self, phase: str) -> None:
        """A phase ends, possibly before its last step."""


@contextlib.contextmanager
def phase(
    progress: Progress | None, name: str, steps: int = 1, *, parent: str | None = None
) -> Iterator[Callable[[int], None]]:
    """Report the work of a block as a phase; gives a function that reports a step as done."""
    if progress is None:
        yield lambda step: None  # noqa: ARG005
        return
    progress.phase_start(name, parent, steps)
    yield functools.partial(progress.step_complete, name)
    progress.phase_finish(name)


@contextlib.contextmanager
def byte_phase(progress: Progress | None, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Report the work of a block on ``total`` bytes as a phase with a step for each MiB.

    Gives a function that takes the number of bytes that are done.
    """
    with phase(progress, f"{name} (MiB)", -(-total // _MIB) or 1) as step:
        reported = 0

        def report(done: int) -> None:
            nonlocal reported
            count = -(-done // _MIB)
            if count > reported:
                reported = count
                step(count - 1)

        yield report
