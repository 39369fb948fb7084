"""Progress of builds and exports: bars on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from trt_native.errors import SpecError
from trt_native.progress import ByteProgress, Progress
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "AnyProgress",
    "BuildProgress",
    "ExportProgress",
    "shows_byte_progress",
    "shows_progress",
]

AnyProgress = Any
"""What may be given to receive progress: ``True`` (bars on standard error), ``tqdm`` or a class or
bar like it, a :class:`~trt_native.progress.Progress`, or a function that takes the phase, the
number of steps or bytes done, and their total (a :data:`~trt_native.progress.ByteProgress`)."""

_F = TypeVar("_F", bound=Callable[..., Any])

_BAR_INTERVAL = 0.05
_FEW = 30  # so few steps that each is shown
_LINE_INTERVAL = 5.0


def _started_bars(console: Console, counter: Any) -> Any:
    """Bars of rich, with a column of its own for what is counted; they vanish in the end."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        counter,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    bars.start()
    return bars


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
            from rich.progress import MofNCompleteColumn

            self._bars = _started_bars(self._console, MofNCompleteColumn())
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
            from rich.progress import DownloadColumn

            self._bar = _started_bars(self._console, DownloadColumn(binary_units=True))
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


class _TqdmProgress:
    """A :class:`trt_native.progress.Progress` that shows bars of tqdm's interface.

    Args:
        make_bar: Makes the bar of a phase of its ``total`` and description ``desc``.
    """

    def __init__(self, make_bar: Callable[..., Any]) -> None:
        self._make_bar = make_bar
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> _TqdmProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        for phase in list(self._bars):
            self.phase_finish(phase)

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
        self._bars[phase] = self._make_bar(total=steps, desc=phase)

    def step_complete(self, phase: str, step: int) -> None:
        bar = self._bars[phase]
        bar.update(step + 1 - bar.n)

    def phase_finish(self, phase: str) -> None:
        self._bars.pop(phase).close()


class _BarOfPhases:
    """One bar of tqdm's interface that the caller made, which shows one phase after the other."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, *, total: int, desc: str) -> Any:
        self._bar.reset(total=total)
        self._bar.set_description(desc)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def close(self) -> None:
        """Nothing: the caller closes it."""


class _StepsAsBytes:
    """A :class:`trt_native.progress.Progress` that calls a :data:`ByteProgress` with steps."""

    def __init__(self, report: ByteProgress) -> None:
        self._report = report
        self._totals: dict[str, int] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
        self._totals[phase] = steps
        self._report(phase, 0, steps)

    def step_complete(self, phase: str, step: int) -> None:
        self._report(phase, step + 1, self._totals[phase])

    def phase_finish(self, phase: str) -> None:
        del self._totals[phase]


class _BytesAsSteps:
    """A :data:`ByteProgress` that reports bytes as the steps of a phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase: str | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self.close()
            self._phase = phase
            self._progress.phase_start(phase, None, total or 1)
        if done:
            self._progress.step_complete(phase, done - 1)

    def close(self) -> None:
        if self._phase is not None:
            self._progress.phase_finish(self._phase)
            self._phase = None


@contextlib.contextmanager
def _opened(given: AnyProgress, own: type[Any]) -> Iterator[Any]:
    """What is given, ready to receive progress; ``own`` is the kind of bars that ``True`` means."""
    makes_bars = isinstance(given, type | functools.partial)
    if given is None or given is False:
        yield None
    elif given is True:
        from rich.console import Console

        with own(Console(stderr=True)) as bars:
            yield bars
    elif makes_bars and callable(given):
        with _TqdmProgress(given) as progress:
            yield progress
    elif hasattr(given, "update") and hasattr(given, "set_description"):
        with _TqdmProgress(_BarOfPhases(given)) as progress:
            yield progress
    elif hasattr(given, "phase_start") or callable(given):
        yield given
    else:
        raise SpecError(
            f"progress: {given!r} receives none; give True, tqdm, a Progress or a function",
            options=("progress",),
        )


def shows_progress(function: _F) -> _F:
    """Let a function that takes a :class:`Progress` as ``progress`` take any that is like one."""

    @functools.wraps(function)
    def run(*args: Any, progress: AnyProgress = None, **options: Any) -> Any:
        with _opened(progress, BuildProgress) as found:
            steps = found is None or hasattr(found, "phase_start")
            receiver = found if steps else _StepsAsBytes(found)
            return function(*args, progress=receiver, **options)

    return run  # type: ignore[return-value]


def shows_byte_progress(function: _F) -> _F:
    """As :func:`shows_progress`, for a function that takes a :data:`ByteProgress`."""

    @functools.wraps(function)
    def run(*args: Any, progress: AnyProgress = None, **options: Any) -> Any:
        with _opened(progress, ExportProgress) as found, contextlib.ExitStack() as ends:
            if hasattr(found, "phase_start"):
                found = _BytesAsSteps(found)
                ends.callback(found.close)
            return function(*args, progress=found, **options)

    return run  # type: ignore[return-value]
