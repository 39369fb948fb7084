"""A build in a child process, so that the parent survives a crash of TensorRT.

The child reads its job from shared memory, as JSON, and sends lines of JSON through a pipe:
progress, log, and in the end the result or an error. A SIGINT cancels its build. It ends by itself
when its standard input does, which is when this process is gone. One that was started before its
model is there waits for a byte of that, and reads its job again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import trt_native.errors
from trt_native.builder.fallback import (
    RETRIES,
    Attempt,
    FallbackLadder,
    FusionError,
    ResourceError,
    RetryableError,
    resource_error,
)
from trt_native.builder.plan_cache import FOLDERS as CACHE_FOLDERS
from trt_native.builder.spare import LINE_BYTES, start_channels, take_spare
from trt_native.config import BuildConfig, as_config
from trt_native.errors import BuildError, TrtNativeError
from trt_native.files import as_path, open_standard_descriptors, remove_temporaries, with_ending
from trt_native.plans.manifest import Manifest
from trt_native.plans.plan import Plan
from trt_native.scratch import new_scratch_path, scratch_folder
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.builder.convert import ConvertedFile
    from trt_native.progress import Progress

__all__ = [
    "INTERRUPTED",
    "ChildBuild",
    "CrashError",
    "Job",
    "Outcome",
    "build_in_child",
    "build_isolated",
    "build_with_retries",
    "convert_in_child",
    "decide_in_child",
    "inspect_in_child",
    "warming_error",
]

INTERRUPTED = 130
"""Exit code of a child after an interrupt."""

CANCEL_GRACE_S = 10.0
"""Time in seconds that a cancelled child has to end before it is killed."""

_LOGGER = logging.getLogger(__name__)
_TAIL_LINES = 20
# A process sends these to itself. SIGABRT may come from outside, too. Not every system has all.
_CRASHES = tuple(
    getattr(signal, name, -1) for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT")
)
_ADVICE = {
    signal.SIGABRT: (
        "it gave up, or another program ended it: build again, or try another version or backend"
    ),
    getattr(signal, "SIGBUS", -1): (
        "a file was cut off while it was read, or its disk failed: build again once the model's"
        " files are complete"
    ),
}
_LONG_S = 3600.0
_RETRY_LARGER_HINT = "hint: a retry builds again with a larger workspace"
_RETRY_SMALLER_HINT = (
    "hint: a retry builds again with a smaller workspace and a lower optimization level; smaller"
    " maxima of the profiles need less memory, too"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job of a child process.

    Attributes:
        model: The ONNX file.
        target: The plan to write, with its manifest next to it.
        config: The configuration of the plan.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        cache: Folder of the cache; None to build without one.
        cache_bytes: Size limit of the cache; None for its default.
        warm: Whether to compile the plan's kernels once it is written; see
            :func:`trt_native.runtime.warming.warm_plan`.
        retry: Whether the settings that an earlier build of the same fell back to may be used.
        asked: The original configuration, where ``config`` is a fallback.
        failed: The attempts before ``config``.
        action: ``build``, ``decide`` (see :func:`decide_in_child`), ``inspect`` (see
            :func:`inspect_in_child`) or ``convert`` (see :func:`convert_in_child`).
        conversion: What to do to the model, for ``convert``: a ``ConversionConfig`` as JSON.
    """

    model: Path
    target: Path
    config: BuildConfig
    backend: str
    cache: Path | None
    cache_bytes: int | None
    warm: bool = False
    retry: bool = False
    asked: BuildConfig | None = None
    failed: tuple[Attempt, ...] = ()
    action: str = "build"
    conversion: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan that was written.

    Attributes:
        manifest: Its manifest.
        cached: Whether it came from the cache.
        attempts: The attempts that failed before.
        warming_s: Time in seconds that its kernels were compiled for; None where they were not.
    """

    manifest: Manifest
    cached: bool
    attempts: tuple[Attempt, ...] = ()
    warming_s: float | None = None


class CrashError(BuildError):
    """TensorRT ended the building process.

    Attributes:
        ending: The signal, such as ``SIGSEGV``, or the exit code.
    """

    def __init__(
        self,
        message: str,
        details: Sequence[str] = (),
        *,
        ending: str = "",
        options: Sequence[str] = (),
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(message, details, options=options, problems=problems)
        self.ending = ending


def build_with_retries(
    job: Job,
    progress: Progress | None,
    *,
    timeout_s: float | None = None,
    retry: bool = False,
    child: ChildBuild | None = None,
) -> Outcome:
    """Build in a child process; on lack of memory, workspace or an implementation, retry.

    With ``retry`` on a machine with a GPU the plan also runs once there. Where TensorRT has no
    kernel for a fusion in it, it is built again with that broken.

    Args:
        job: The build.
        progress: Receives progress callbacks.
        timeout_s: Longest time in seconds, for all attempts together.
        retry: Whether to build again with other settings; see :class:`FallbackLadder`.
        child: A process that waits for the job.

    Raises:
        TrtNativeError: the error that the build raised, and :class:`BuildError` where it
            crashed, was killed or took too long. Where it is about the kernels of a plan to be
            warmed, the plan is there.
        KeyboardInterrupt: it was interrupted, and has ended.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    job, asked = replace(job, retry=retry), job.config
    attempts: list[Attempt] = []
    ladder = FallbackLadder()
    while True:
        waiting, child = child, None
        try:
            return build_in_child(job, progress, deadline=deadline, child=waiting)
        except ResourceError as failure:
            if not retry:
                hint = _RETRY_SMALLER_HINT if failure.shortage is None else _RETRY_LARGER_HINT
                raise failure.restated(
                    failure.message, BuildError, details=[hint], options=["retry"]
                ) from None
            attempt = Attempt(failure.workspace_bytes, job.config.optimization_level, failure.cause)
            attempts.append(attempt)
            _LOGGER.warning("attempt %d failed with %s", len(attempts), attempt)
            config = ladder.next_config(job.config, failure)
            if config is None:
                raise _given_up(failure, attempts) from None
            config = replace(config, break_fusions=job.config.break_fusions)
            job = replace(job, config=config, asked=asked, failed=tuple(attempts))
        except FusionError as failure:
            attempts.append(
                Attempt(failure.workspace_bytes, job.config.optimization_level, failure.cause)
            )
            broken = job.config.break_fusions
            more = tuple(name for name in failure.tensors if name not in broken)
            if not more or len(attempts) > RETRIES:
                raise _given_up(failure, attempts) from None
            _LOGGER.warning(
                "attempt %d: %s; building again with fusions broken at %s",
                len(attempts),
                failure.cause,
                ", ".join(more),
            )
            config = replace(job.config, break_fusions=(*broken, *more))
            job = replace(job, config=config, asked=asked, failed=tuple(attempts))


def _given_up(failure: BuildError, attempts: Sequence[Attempt]) -> TrtNativeError:
    tried = [f"attempt {i}: {attempt}" for i, attempt in enumerate(attempts, 1)]
    return failure.restated(failure.message, BuildError, details=tried)


def warming_error(plan: Path, failure: TrtNativeError) -> TrtNativeError:
    """The error for a plan that is built, but could not be warmed."""
    return failure.restated(
        f"{plan} is built, but not all its kernels are compiled, so that its first run will do it:"
        f" {failure.message}",
        BuildError if isinstance(failure, RetryableError) else type(failure),
    )


def build_isolated(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str = "auto",
    progress: Progress | None = None,
    timeout_s: float | None = None,
    retry: bool = False,
) -> Plan:
    """Build a plan in a child process, which may crash, be killed or be stopped after a time.

    Args:
        model: Path of the ONNX file.
        config: The configuration of the plan.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        progress: Receives progress callbacks.
        timeout_s: Longest time in seconds, for all attempts together.
        retry: Build again with other settings where memory, workspace or an implementation is
            lacking; see :class:`~trt_native.builder.fallback.FallbackLadder`.

    Returns:
        The plan with its manifest, not yet saved. The plan owns its data, which is a mapping of a
        file that has no name any more: its disk space is freed with the plan.

    Raises:
        TrtNativeError, KeyboardInterrupt: as :func:`build_with_retries`.
    """
    with scratch_folder() as folder:
        job = Job(
            model=as_path(model),
            target=folder / "model.plan",
            config=as_config(config),
            backend=backend,
            cache=None,
            cache_bytes=None,
        )
        build_with_retries(job, progress, timeout_s=timeout_s, retry=retry)
        return replace(Plan.load(job.target, plugins=job.config.plugins), path=None)


def build_in_child(
    job: Job,
    progress: Progress | None,
    *,
    deadline: float | None = None,
    child: ChildBuild | None = None,
) -> Outcome:
    """Build once, in a child process.

    Args:
        job: The build.
        progress: Receives progress callbacks.
        deadline: Time to give up, by ``time.monotonic``.
        child: A process that waits for the job.

    Raises:
        TrtNativeError, KeyboardInterrupt: as :func:`build_with_retries`.
    """
    result = _result(job, progress, deadline, child)
    failed = (Attempt(**attempt) for attempt in result["failed"])
    manifest = Manifest.from_json(result["manifest"])
    return Outcome(manifest, bool(result["cached"]), tuple(failed), result.get("warming_s"))


def decide_in_child(job: Job, progress: Progress | None) -> dict[str, Any]:
    """Decide what a job would build, in a child process, where TensorRT's parser may crash.

    Returns:
        ``backend`` and ``version``, and what
        :meth:`~trt_native.builder.build.BuildDecisions.to_json` returns.

    Raises:
        TrtNativeError, KeyboardInterrupt: as :func:`build_with_retries`.
    """
    return _result(replace(job, action="decide"), progress, None)


def inspect_in_child(model: Path, backend: str) -> dict[str, Any]:
    """Find out how a backend supports a model, in a child process.

    Returns:
        What :meth:`~trt_native.builder.model_support.ModelSupport.to_json` returns.

    Raises:
        TrtNativeError, KeyboardInterrupt: as :func:`build_with_retries`.
    """
    job = Job(
        model=model, target=with_ending(model, ".plan"), config=BuildConfig(), backend=backend,
        cache=None, cache_bytes=None, action="inspect",
    )  # fmt: skip
    return _result(job, None, None)


def convert_in_child(
    model: Path,
    output: Path,
    config: ConversionConfig,
    backend: str,
    progress: Progress | None = None,
) -> ConvertedFile:
    """Convert an ONNX file in a child process, where TensorRT's parser may crash.

    Args:
        model: As for :func:`~trt_native.builder.convert.convert_onnx`, like the rest.
        output: The same.
        config: The same.
        backend: The same, by name.
        progress: Receives progress callbacks.

    Raises:
        TrtNativeError, KeyboardInterrupt: as :func:`build_with_retries`.
    """
    from cattrs import Converter

    from trt_native.builder import convert

    converter = Converter()
    job = Job(
        model=model, target=output, config=BuildConfig(), backend=backend,
        cache=None, cache_bytes=None, action="convert",
        conversion=converter.unstructure(config),
    )  # fmt: skip
    return converter.structure(_result(job, progress, None), convert.ConvertedFile)


def _result(
    job: Job, progress: Progress | None, deadline: float | None, child: ChildBuild | None = None
) -> dict[str, Any]:
    with child or ChildBuild(job) as child:
        try:
            child.begin(job, progress)
            in_time = child.listen(deadline)
        except KeyboardInterrupt:
            child.cancel("interrupted: {}; press Ctrl-C again to abort immediately")
            raise
        if not in_time:
            child.cancel("the time is up: {}")
        return child.result(timed_out=not in_time)


class ChildBuild:
    """The building process; it is killed, and its files are removed, when the block ends.

    Args:
        job: Its job, or what is known of that before the model is there. A process that was started
            with it imports what a build needs and checks the options meanwhile, and waits.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._progress: Progress | None = None
        self._is_started = self._is_ready = False
        self._token = secrets.token_hex(4)
        self._scratch = new_scratch_path(self._token)
        self._phases: list[str] = []
        self._backend = "TensorRT"
        self._workspace_bytes = 0
        self._has_levels = False  # nothing is known of the backend yet
        self._result: dict[str, Any] | None = None
        self._is_cold = job.warm and job.action == "build"
        self._error: dict[str, Any] | None = None
        self._missing: tuple[str, list[str]] | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def __enter__(self) -> ChildBuild:
        return self

    def start(self) -> None:
        """Start the process before its model is there."""
        self._start(waits=True)

    def wait_until_ready(self) -> None:
        """Wait until a process that was started is done with what it does before the model.

        Raises:
            TrtNativeError: the build would be refused.
        """
        self.listen(None, until_ready=True)
        if not self._is_ready:
            self._fail(timed_out=False)

    def begin(self, job: Job, progress: Progress | None) -> None:
        """Give the process its job, and start it if it is not."""
        self._job, self._progress = job, progress
        self._is_cold = job.warm and job.action == "build"
        if not self._is_started:
            self._start(waits=False)
            return
        self._send(waits=False)

    def _start(self, *, waits: bool) -> None:
        open_standard_descriptors()
        spare = take_spare()
        self._channels = spare or start_channels(self._request(waits=waits))
        self._process = self._channels.process
        self._streams = {
            self._channels.events: _Lines(self._on_message),
            self._channels.output: _Lines(self._on_output),
        }
        self._is_started = True
        if spare is not None:
            self._send(waits=waits)

    def _request(self, *, waits: bool) -> dict[str, object]:
        from cattrs import Converter

        return {
            "job": Converter().unstructure(self._job),
            "waits": waits,
            "token": self._token,
            "scratch": str(self._scratch),
            "log_level": logging.getLogger("trt_native").getEffectiveLevel(),
        }

    def _send(self, *, waits: bool) -> None:
        """Give a process that waits its job."""
        self._channels.write(self._request(waits=waits))
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            os.write(self._process.stdin.fileno(), b"\n")  # type: ignore[union-attr]

    def __exit__(self, *exception: object) -> None:
        if not self._is_started:
            return
        self._is_started = False
        with _uninterrupted():
            self._process.kill()
            self._channels.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
            for folder in folders_written(self._job):
                remove_temporaries(folder, self._token)
            for phase in reversed(self._phases):  # it ended inside them
                if self._progress is not None:
                    self._progress.phase_finish(phase)

    def listen(self, deadline: float | None, *, until_ready: bool = False) -> bool:
        """Follow the child until it ends (or is ready: True), or until the deadline (False)."""
        with selectors.DefaultSelector() as selector:
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            while self._channels.events in selector.get_map() and not (
                until_ready and self._is_ready
            ):
                left = _LONG_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(min(left, _LONG_S)):
                    chunk = os.read(key.fd, 1 << 16)
                    if chunk:
                        self._streams[key.fd].take(chunk)
                    else:
                        selector.unregister(key.fd)
        return True

    def cancel(self, notice: str) -> None:
        """Ask the child to stop; return when it has ended or its grace is over.

        Args:
            notice: A warning about it, with a place for what happens now.
        """
        self._progress = None  # it may have been interrupted half-way
        waiting = f"cancelling after the current TensorRT step, in {CANCEL_GRACE_S:g} s at most"
        _LOGGER.warning("%s", notice.format(waiting))
        self._process.send_signal(signal.SIGINT)
        self.listen(time.monotonic() + CANCEL_GRACE_S)

    def result(self, *, timed_out: bool) -> dict[str, Any]:
        """What the child reported as its result.

        Raises:
            TrtNativeError: it failed.
            MemoryError: Python had too little memory for it.
        """
        if self._result is not None and not self._is_cold:
            return self._result
        try:
            self._fail(timed_out=timed_out)
        except TrtNativeError as failure:
            if self._result is None:
                raise
            raise warming_error(self._job.target, failure) from None

    def _fail(self, *, timed_out: bool) -> NoReturn:
        """Raise the error of a child that did not do all of its job."""
        if timed_out:
            lower = ", or lower the optimization level" if self._has_levels else ""
            raise BuildError(
                f"the build took too long and was stopped {self._place()}; allow more time{lower}",
                options=("timeout_s", *(["optimization_level"] if self._has_levels else [])),
            )
        if self._error is not None:
            self._raise(self._error)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=CANCEL_GRACE_S)
        self._read_remaining_output()
        code = self._process.returncode
        ended = self._ended_from_outside(code)
        if ended is not None:
            raise ended
        if code == -signal.SIGKILL:
            raise ResourceError(
                self._killed(),
                "killed for lack of memory",
                self._workspace_bytes,
                has_levels=self._has_levels,
            )
        crash = self._crashed(code)
        failure = self._lacking(crash)
        raise failure from (None if failure is crash else crash)

    def _raise(self, error: dict[str, Any]) -> NoReturn:
        if error["type"] == "MemoryError":
            raise MemoryError
        kind = getattr(trt_native.errors, error["type"])
        failure = kind(
            error["message"],
            error["details"],
            options=error["options"],
            problems=error["problems"],
        )
        if self._missing is not None:
            fusion, tensors = self._missing
            raise FusionError(failure, fusion, tuple(tensors), self._workspace_bytes)
        raise self._lacking(failure)

    def _lacking(self, failure: TrtNativeError) -> TrtNativeError:
        """The failure, as a :class:`ResourceError` if a retry may help."""
        if not isinstance(failure, BuildError):
            return failure
        found = resource_error(failure, self._workspace_bytes, has_levels=self._has_levels)
        return found or failure

    def _read_remaining_output(self) -> None:
        """Read the rest of a dead child's standard output."""
        os.set_blocking(self._channels.output, False)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._channels.output, 1 << 16):
                self._streams[self._channels.output].take(chunk)
        self._streams[self._channels.output].take(b"\n")

    def _place(self) -> str:
        """Describe how far the build had come."""
        if self._phases:
            return f"in phase {' > '.join(self._phases)!r}"
        node = self._recorded(0)
        return f"after it began to parse node {node}" if node else "before it parsed a node"

    def _recorded(self, slot: int) -> str:
        line = os.pread(self._channels.record, LINE_BYTES, slot * LINE_BYTES)
        return line.partition(b"\0")[0].decode(errors="replace")

    def _ended_from_outside(self, code: int | None) -> BuildError | None:
        """The error for a signal that no defect of a model or of TensorRT sends; else None."""
        number = signal.SIGINT if code == INTERRUPTED else -(code or 0)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and _cpu_time_is_up()):
            return BuildError(
                f"the building process reached its limit of CPU time {self._place()}; raise the"
                " limit (ulimit -t)"
            )
        if number <= 0 or number in (signal.SIGKILL, *_CRASHES):
            return None
        return BuildError(
            f"the building process was ended from outside with {_signal_text(number)}"
            f" {self._place()}; build again"
        )

    def _killed(self) -> BuildError:
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return BuildError(
            f"the building process was killed (SIGKILL) {self._place()}. Unless it was killed on"
            f" purpose, the machine ran out of memory: it held {format_bytes(used)}. Close other"
            " programs, add memory or swap, or build on a larger machine",
        )

    def _crashed(self, code: int | None) -> CrashError:
        last = self._recorded(1)
        details = list(self._tail)
        if last:
            details.append(f"TensorRT's last line: {last}")
        ending = f"exit code {code}"
        if code is not None and code < 0:
            failure = f"crashed with {_signal_text(-code)}"
            ending = _signal_text(-code).partition(" (")[0]
            advice = _ADVICE.get(
                -code,
                "the model is damaged, or meets a defect of this TensorRT: check the model, or"
                " try another version or backend",
            )
        else:
            failure = f"ended the building process with exit code {code}"
            advice = "see its output below"
        return CrashError(
            f"{self._backend} {failure} {self._place()}; {advice}", details, ending=ending
        )

    # Messages of the child

    def _on_message(self, line: str) -> None:
        try:
            kind, *values = json.loads(line)
        except ValueError:  # cut off by a cancel
            return
        getattr(self, f"_on_{kind}")(*values)

    def _on_output(self, line: str) -> None:
        if line.strip():
            self._tail.append(line.rstrip())
            _LOGGER.info("%s", line.rstrip())

    def _on_phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases.append(phase)
        if self._progress is not None:
            self._progress.phase_start(phase, parent, steps)

    def _on_step(self, phase: str, step: int) -> None:
        if self._progress is not None:
            self._progress.step_complete(phase, step)

    def _on_phase_finish(self, phase: str) -> None:
        with contextlib.suppress(ValueError):
            self._phases.remove(phase)
        if self._progress is not None:
            self._progress.phase_finish(phase)

    def _on_log(self, level: int, name: str, text: str) -> None:
        logging.getLogger(name).log(level, "%s", text)

    def _on_backend(self, name: str, workspace_bytes: int, has_levels: bool) -> None:
        self._backend, self._workspace_bytes = name, workspace_bytes
        self._has_levels = has_levels

    def _on_ready(self) -> None:
        self._is_ready = True

    def _on_missing_kernel(self, fusion: str, tensors: list[str]) -> None:
        self._missing = fusion, tensors

    def _on_result(self, result: dict[str, Any]) -> None:
        self._result = result

    def _on_warmed(self, seconds: float) -> None:
        self._is_cold = False
        if self._result is not None:
            self._result["warming_s"] = seconds

    def _on_error(self, error: dict[str, Any]) -> None:
        self._error = error


def _signal_text(number: int) -> str:
    """A signal by name, such as ``SIGTERM (Terminated)``; some have none."""
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


def _cpu_time_is_up() -> bool:
    """Whether the children of this process may have been killed at the hard limit of CPU time."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    return bool(most != resource.RLIM_INFINITY and used.ru_utime + used.ru_stime >= most - 1)


class _Lines:
    """Cuts a stream into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def take(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Clean up to the end, however often Ctrl-C is pressed."""
    if threading.current_thread() is not threading.main_thread():  # signals interrupt only that one
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def folders_written(job: Job) -> set[Path]:
    """The folders that a job writes files to."""
    folders = {job.target.parent}
    if job.config.timing_cache is not None:
        folders.add(job.config.timing_cache.parent)
    if job.cache is not None:
        folders |= {job.cache / name for name in CACHE_FOLDERS}
    return folders
