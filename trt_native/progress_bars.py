"""Progress of long work for people: bars on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from trt_native.errors import SpecError, on_one_line, shortened
from trt_native.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "AnyProgress",
    "ProgressDisplay",
    "open_progress",
    "shows_progress",
]

AnyProgress = Any
"""What may be given to receive progress: ``True`` (bars on standard error), ``tqdm`` or a class or
bar like it, a :class:`~trt_native.progress.Progress`, or a function that takes the phase, the
number of steps done, and their total (0: not known)."""

_F = TypeVar("_F", bound=Callable[..., Any])

_BAR_INTERVAL = 0.05
_FEW = 30  # so few steps that each is shown
_LINE_INTERVAL = 10.0


def _started_bars(console: Console) -> Any:
    """Bars of rich, which vanish in the end."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
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
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    bars.start()
    return bars


@dataclass(slots=True)
class _Work:
    """A phase that is going on."""

    phase: str
    total: int
    started: float
    done: int = 0
    bar: Any = None


class ProgressDisplay:
    """A :class:`trt_native.progress.Progress` for people.

    On a terminal there are bars with a moving sign. TensorRT reports thousands of steps, so at most
    20 a second of a long phase are shown. Elsewhere a thread writes a line whenever none was
    written for ten seconds: what is being done, how far, and how long the rest may take.

    Args:
        console: The console to write to.
        brief: Whether to write nothing elsewhere but these lines, none where a phase begins.
    """

    def __init__(self, console: Console, *, brief: bool = False) -> None:
        self._console = console
        self._brief = brief
        self._bars: Any = None
        self._work: list[_Work] = []
        self._started = self._shown = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._bars = _started_bars(self._console)
        else:
            threading.Thread(target=self._report_waits, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._bars is not None:
            self._bars.stop()

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """See :class:`trt_native.progress.Progress`."""
        work = _Work(phase, steps, time.monotonic())
        if self._bars is not None:
            work.bar = self._bars.add_task(_label(phase), total=steps or None)
        elif parent is None and not self._brief:
            self._write(phase)
        self._work.append(work)

    def step_complete(self, phase: str, step: int) -> None:
        """See :class:`trt_native.progress.Progress`."""
        work = next((work for work in reversed(self._work) if work.phase == phase), None)
        if work is None:
            return
        work.done = step + 1
        if self._bars is not None:
            now = time.monotonic()
            if work.total <= _FEW or now - self._shown >= _BAR_INTERVAL:
                self._shown = now
                self._bars.update(work.bar, completed=work.done)

    def phase_finish(self, phase: str) -> None:
        """See :class:`trt_native.progress.Progress`."""
        for work in [work for work in self._work if work.phase == phase]:
            self._work.remove(work)
            if self._bars is not None:
                self._bars.remove_task(work.bar)

    def _report_waits(self) -> None:
        while not self._ended.wait(max(self._shown + _LINE_INTERVAL - time.monotonic(), 0.01)):
            if time.monotonic() - self._shown >= _LINE_INTERVAL:
                innermost = self._work[-1:]  # in one step: the other thread changes the list
                self._write(_state(innermost[0]) if innermost else "working")

    def _write(self, text: str) -> None:
        self._shown = time.monotonic()
        line = f"[{self._shown - self._started:6.1f} s] {shortened(on_one_line(text))}"
        self._console.print(line, markup=False, highlight=False)


def _state(work: _Work) -> str:
    """A phase, how far it is, and how long its rest may take."""
    seconds = time.monotonic() - work.started
    if not work.done:
        return f"{work.phase} ({seconds:.0f} s so far)"
    if not work.total:
        return f"{work.phase}: {work.done:,}"
    rest = seconds * (work.total - work.done) / work.done
    return f"{work.phase}: {work.done:,} of {work.total:,}, about {rest:.0f} s left"


def _label(phase: str) -> str:
    """A phase's name beside its bar: TensorRT puts names of the model into some."""
    return shortened(on_one_line(phase), 100)


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
        self._bars[phase] = self._make_bar(total=steps or None, desc=_label(phase))

    def step_complete(self, phase: str, step: int) -> None:
        bar = self._bars[phase]
        bar.update(step + 1 - bar.n)

    def phase_finish(self, phase: str) -> None:
        self._bars.pop(phase).close()


class _BarOfPhases:
    """One bar of tqdm's interface that the caller made, which shows one phase after the other."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, *, total: int | None, desc: str) -> Any:
        self._bar.reset(total=total)
        self._bar.set_description(desc)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def close(self) -> None:
        """Nothing: the caller closes it."""


class _CallsOfSteps:
    """A :class:`trt_native.progress.Progress` that calls a function at each step."""

    def __init__(self, report: Callable[[str, int, int], None]) -> None:
        self._report = report
        self._totals: dict[str, int] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
        self._totals[phase] = steps
        self._report(phase, 0, steps)

    def step_complete(self, phase: str, step: int) -> None:
        self._report(phase, step + 1, self._totals[phase])

    def phase_finish(self, phase: str) -> None:
        del self._totals[phase]


@contextlib.contextmanager
def open_progress(given: AnyProgress) -> Iterator[Progress | None]:
    """What is given to receive progress, as a :class:`Progress`, for the time of a block.

    Raises:
        SpecError: it receives none.
    """
    makes_bars = isinstance(given, type | functools.partial)
    if given is None or given is False:
        yield None
    elif given is True:
        from rich.console import Console

        with ProgressDisplay(Console(stderr=True)) as bars:
            yield bars
    elif makes_bars and callable(given):
        with _TqdmProgress(given) as progress:
            yield progress
    elif hasattr(given, "update") and hasattr(given, "set_description"):
        with _TqdmProgress(_BarOfPhases(given)) as progress:
            yield progress
    elif hasattr(given, "phase_start"):
        yield given
    elif callable(given):
        yield _CallsOfSteps(given)
    else:
        raise SpecError(
            f"progress: {given!r} receives none; give True, tqdm, a Progress or a function",
            options=("progress",),
        )


def shows_progress(function: _F) -> _F:
    """Let a function that takes a :class:`Progress` as ``progress`` take any that is like one."""

    @functools.wraps(function)
    def run(*args: Any, progress: AnyProgress = None, **options: Any) -> Any:
        with open_progress(progress) as receiver:
            return function(*args, progress=receiver, **options)

    return run  # type: ignore[return-value]
