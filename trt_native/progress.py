"""Progress callbacks of long operations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    pass

__all__ = ["ByteProgress", "Progress", "no_progress", "phase"]


ByteProgress = Callable[[str, int, int], None]
"""Called with the activity, the number of bytes done, and their total (0: unknown)."""


def no_progress(phase: str, done: int, total: int) -> None:
    """A :data:`ByteProgress` that does nothing."""


class Progress(Protocol):
    """Receives progress callbacks of a build, on the building thread; must return quickly."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins inside ``parent``."""

    def step_complete(self, phase: str, step: int) -> None:
        """A step, counted from 0, is done."""

    def phase_finish(self, phase: str) -> None:
        """A phase ends, possibly before its last step."""


@contextlib.contextmanager
def phase(progress: Progress | None, name: str) -> Iterator[None]:
    """Report the work of a block as a phase of one step."""
    if progress is not None:
        progress.phase_start(name, None, 1)
    yield
    if progress is not None:
        progress.phase_finish(name)
