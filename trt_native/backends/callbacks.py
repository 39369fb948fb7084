"""Objects that TensorRT calls back: log, progress monitor, output allocator, streams, profiler.

TensorRT swallows what they raise and goes on with less, so none of them ever raises: an exception
is kept, the work is stopped where that is possible, and the caller raises it afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from trt_native.plans.stored_content import ContentReader
from trt_native.progress import Progress

__all__ = [
    "Log",
    "make_log",
    "make_monitor",
    "make_output_allocator",
    "make_profiler",
    "make_stream_reader",
    "make_stream_writer",
    "stream_reader_class",
]

_LOGGER = logging.getLogger("trt_native.tensorrt")
_HARMLESS = re.compile(r"Make sure (?:input|output) .* has Int64 binding")
# TensorRT's severities 0 to 4: internal error, error, warning, info, verbose.
_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


class Log:
    """Collects what TensorRT logs and passes it on to ``logging``.

    TensorRT keeps the first logger it is given for the whole process, so there is one of these for
    each library.

    Attributes:
        recorder: Receives every line of the process, regardless of the levels ``logging`` shows.
    """

    recorder: Callable[[str], None] | None = None

    def __init__(self) -> None:
        self.tensorrt_logger: Any = None
        self._sinks: list[tuple[list[str], re.Pattern[str] | None]] = []
        self._quiet = False
        self.interrupt: BaseException | None = None

    def write(self, severity: int, message: str) -> None:
        """Log one line; severity 0 is the most severe."""
        text = message.strip()
        if self.recorder is not None:
            self.recorder(text)
        level = _LEVELS[min(severity, 4)]
        error = level == logging.ERROR
        for sink, also in list(self._sinks):
            if (error or (also is not None and also.search(text))) and text not in sink:
                sink.append(text)
        if self._quiet or (error and self._sinks):
            level = logging.DEBUG  # errors reach the user with the exception that follows
        elif _HARMLESS.search(text):
            level = logging.INFO
        _LOGGER.log(level, "%s", text)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Log everything at the lowest level while the block runs, because errors are expected."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @contextlib.contextmanager
    def collect_errors(self, also: re.Pattern[str] | None = None) -> Iterator[list[str]]:
        """Collect errors, each once, while the block runs.

        Args:
            also: Lines of lower severity to collect too, because they explain an error.

        Raises a KeyboardInterrupt that came meanwhile in one of TensorRT's calls to the log.
        """
        sink: list[str] = []
        self._sinks.append((sink, also))
        try:
            yield sink
        finally:
            # By identity: two empty lists are equal.
            self._sinks = [entry for entry in self._sinks if entry[0] is not sink]
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            raise interrupt


def make_log(trt: Any) -> Log:
    """A log with a ``trt.ILogger`` that feeds it."""
    log = Log()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            try:
                log.write(int(severity), message)
            except Exception:  # a handler of the user's failed: the build goes on
                _LOGGER.debug("a log handler failed", exc_info=True)
            except BaseException as error:  # Ctrl-C, which collect_errors() raises again
                log.interrupt = error

    log.tensorrt_logger = Logger()
    return log


def make_monitor(trt: Any, progress: Progress | None, cancelled: threading.Event) -> Any:
    """A ``trt.IProgressMonitor`` that reports to ``progress`` and stops the build once cancelled.

    Its attribute ``failure`` holds the first exception ``progress`` raised, which also stops it.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None

        def _notify(self, method: str, *arguments: Any) -> None:
            if progress is None or self.failure is not None:
                return
            try:
                getattr(progress, method)(*arguments)
            except BaseException as error:  # of any kind; kept for the caller
                self.failure = error
                cancelled.set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._notify("phase_start", phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._notify("step_complete", phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._notify("phase_finish", phase_name)

    return Monitor()


def make_output_allocator(trt: Any, allocate: Callable[[str, int], int]) -> Any:
    """A ``trt.IOutputAllocator`` over ``allocate(tensor name, bytes) -> device address``.

    Its method ``shape(name)`` returns the shape TensorRT reported, or re-raises what ``allocate``
    raised.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._failure: BaseException | None = None

        def _allocate(self, name: str, size: int) -> int:
            try:
                return allocate(name, size)
            except BaseException as error:  # kept for shape()
                self._failure = error
                return 0

        def reallocate_output(self, name: str, _memory: int, size: int, _alignment: int) -> int:
            return self._allocate(name, size)

        def reallocate_output_async(
            self, name: str, _memory: int, size: int, _alignment: int, _stream: int
        ) -> int:
            return self._allocate(name, size)

        def notify_shape(self, name: str, shape: Any) -> None:
            self._shapes[name] = tuple(shape)

        def shape(self, name: str) -> tuple[int, ...]:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            return self._shapes[name]

    return Allocator()


def make_stream_writer(trt: Any, write: Callable[[bytes], None], cancelled: threading.Event) -> Any:
    """A ``trt.IStreamWriter`` that passes a plan's bytes on, and takes none once cancelled.

    Its attribute ``failure`` holds the first exception ``write`` raised, which also stops it.
    """

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.failure: BaseException | None = None

        def write(self, data: bytes) -> int:
            if self.failure is not None or cancelled.is_set():
                return 0
            try:
                write(data)
            except BaseException as error:  # of any kind; kept for the caller
                self.failure = error
                return 0
            return len(data)

    return Writer()


def stream_reader_class(trt: Any) -> Any:
    """The base class of streams that plans are loaded from; None where there is none."""
    return getattr(trt, "IStreamReaderV2", None) or getattr(trt, "IStreamReader", None)


def make_stream_reader(trt: Any, source: ContentReader) -> Any:
    """A stream that TensorRT loads a plan from: an ``IStreamReaderV2`` where it has that.

    Its attribute ``failure`` holds the first exception that reading raised, which also ends it.
    """
    base = stream_reader_class(trt)

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.failure: BaseException | None = None

        def read(self, size: int, _stream: int = 0) -> bytes:
            try:
                return source.read(size)
            except BaseException as error:  # of any kind; kept for the caller
                self.failure = self.failure or error
                return b""

        def seek(self, offset: int, where: Any) -> bool:
            try:
                return source.seek(offset, int(where))
            except BaseException as error:
                self.failure = self.failure or error
                return False

    return Reader()


def make_profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    """A ``trt.IProfiler`` that calls ``report(layer name, milliseconds)``.

    Its attribute ``failure`` holds the first exception ``report`` raised.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.failure: BaseException | None = None

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            if self.failure is not None:
                return
            try:
                report(layer_name, ms)
            except BaseException as error:  # of any kind; kept for the caller
                self.failure = error

    return Profiler()
