"""Progress of builds and exports: bars on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from trt_native.units import format_bytes

__all__ = ["BuildProgress", "ExportProgress"]

_BAR_INTERVAL = 0.05
_FEW = 30  # so few steps that each is shown
_LINE_INTERVAL = 5.0


class BuildProgress:
    """A :class:`trt_native.progress.Progress` for people.

    TensorRT calls it thousands of times from the building thread. So on a terminal at most 20 steps
    a second of a long phase are shown, and elsewhere at most one line in 5 seconds.

    Args:
        console: The console to write to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._steps: dict[str, int] = {}
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> BuildProgress:
        if self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """See :class:`trt_native.progress.Progress`."""
        self._steps[phase] = steps
        if self._bars is not None:
            self._tasks[phase] = self._bars.add_task(phase, total=steps)
        elif parent is None:
            self._line(phase)

    def step_complete(self, phase: str, step: int) -> None:
        """See :class:`trt_native.progress.Progress`."""
        now = time.monotonic()
        if self._bars is not None:
            if self._steps[phase] <= _FEW or now - self._shown >= _BAR_INTERVAL:
                self._shown = now
                self._bars.update(self._tasks[phase], completed=step + 1)
        elif now - self._shown >= _LINE_INTERVAL:
            self._line(f"{phase} {step + 1}/{self._steps[phase]}")

    def phase_finish(self, phase: str) -> None:
        """See :class:`trt_native.progress.Progress`."""
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(phase))

    def _line(self, text: str) -> None:
        self._shown = time.monotonic()
        elapsed = self._shown - self._started
        self._console.print(f"[{elapsed:6.1f} s] {text}", markup=False, highlight=False)


class ExportProgress:
    """A :data:`trt_native.progress.ByteProgress` for people: one bar, or a line for each phase.

    Args:
        console: The console to write to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Any = None
        self._phase = ""
        self._started = time.monotonic()

    def __enter__(self) -> ExportProgress:
        if self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """See :data:`trt_native.progress.ByteProgress`."""
        begins, self._phase = phase != self._phase, phase
        if self._bar is not None:
            for task in self._bar.task_ids if begins else ():
                self._bar.remove_task(task)
            task = self._bar.add_task(phase) if begins else self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=total or None)
        elif begins:
            elapsed = time.monotonic() - self._started
            size = f" ({format_bytes(total)})" if total else ""
            self._console.print(f"[{elapsed:6.1f} s] {phase}{size}", markup=False, highlight=False)
