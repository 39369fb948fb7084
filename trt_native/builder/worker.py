"""The child process of an isolated build; started by :mod:`trt_native.builder.isolated`."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trt_native import errors
from trt_native._lazy import HEAVY_MODULES, delay_imports
from trt_native.builder.fallback import Attempt
from trt_native.builder.isolated import INTERRUPTED, Job, folders_written
from trt_native.builder.spare import LINE_BYTES
from trt_native.files import remove_temporaries, set_temporary_tag
from trt_native.scratch import hold_folder, remove_abandoned

if TYPE_CHECKING:
    from trt_native.backends.base import Backend
    from trt_native.builder.plan_cache import BuiltPlan, EngineCache
    from trt_native.config import BuildConfig
    from trt_native.plans.plan import Plan
    from trt_native.plans.plan_file import PlanFile

__all__ = ["main"]

_LOGGER = logging.getLogger(__name__)
_STEP_INTERVAL_S = 0.05
_FALLBACK_FIELDS = (
    "workspace_bytes",
    "optimization_level",
    "break_fusions",
)  # what a retry changes
_FEW = 30  # so few steps that each is reported


def main(request_file: int) -> None:
    """Run the requested build, and end the process.

    Args:
        request_file: Descriptor of a file that holds the request.
    """
    delay_imports(*HEAVY_MODULES)
    # A background job may ignore SIGINT, which the parent sends to cancel.
    signal.signal(signal.SIGINT, _cancel)
    request = _read_request(request_file)
    report = _Report(request["events"])
    try:
        _record_lines(request["record"])
        while request["waits"]:
            _prepare(request, report)
            if not os.read(sys.stdin.fileno(), 1):  # the parent is gone
                _leave(1)
            request = _read_request(request_file)
        job, scratch = _job(request), Path(request["scratch"])
        _log_to(report, request["log_level"])
        set_temporary_tag(request["token"])
        threading.Thread(
            target=_end_with_parent, args=(scratch, job, request["token"]), daemon=True
        ).start()
        _build(job, scratch, report)
    except KeyboardInterrupt:  # the parent sent it
        _leave(INTERRUPTED)
    except errors.TrtNativeError as error:
        _LOGGER.debug("", exc_info=True)
        _report_error(report, error)
    except MemoryError:
        report("error", {"type": "MemoryError"})
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
        _report_error(report, errors.BuildError(message))
    except Exception:  # a defect of this package: the parent reads the traceback
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _read_request(descriptor: int) -> dict[str, Any]:
    """Read the request, which may be written again; the position in the file is the parent's."""
    size = os.fstat(descriptor).st_size
    return dict(json.loads(os.pread(descriptor, size, 0)))


def _job(request: dict[str, Any]) -> Job:
    from cattrs import Converter

    return Converter().structure(request["job"], Job)


def _prepare(request: dict[str, Any], report: _Report) -> None:
    """Import what a build needs, and check what can be without its model."""
    from trt_native.builder import build, plan_cache  # noqa: F401
    from trt_native.cuda import gpu_info

    if request["job"] is None:
        gpu_info()
        return
    _log_to(report, request["log_level"])
    job = _job(request)
    backend = _checked_backend(job)
    build.check_config(job.config, backend)
    gpu_info()
    report("ready")


def _checked_backend(job: Job) -> Backend:
    from trt_native.backends.registry import load_backend

    backend = load_backend(job.backend)
    if job.warm:
        from trt_native.runtime.warming import check_warming

        check_warming(backend, job.target, job.config)
    return backend


def _cancel(*_: Any) -> NoReturn:
    from trt_native.backends.building import CancelRequest

    raise CancelRequest


def _leave(code: int) -> NoReturn:
    """End the process, but not regularly: TensorRT may be at work in a thread, and crash then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _build(job: Job, scratch: Path, report: _Report) -> None:
    remove_abandoned()
    scratch.mkdir(mode=0o700)
    try:
        with hold_folder(scratch):
            os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
            _build_and_save(job, report)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build_and_save(job: Job, report: _Report) -> None:
    from trt_native.backends.building import default_workspace
    from trt_native.builder.plan_cache import EngineCache
    from trt_native.cuda import gpu_info
    from trt_native.plans.plan_file import PlanFile

    backend = _checked_backend(job)
    if job.action != "build":
        report("backend", f"{backend.product} {backend.version}", 0, False)
        report("result", _ACTIONS[job.action](job, backend, report))
        return
    cache = None if job.cache is None else EngineCache(job.cache, job.cache_bytes)
    config, failed = job.config, [attempt.to_json() for attempt in job.failed]
    if cache is not None and job.retry and not failed:
        config, failed = _reuse_fallback(cache, job, backend)
    workspace = config.workspace_bytes or default_workspace(gpu_info())
    has_levels = "optimization_level" not in backend.capabilities.unsupported_options
    report("backend", f"{backend.product} {backend.version}", workspace, has_levels)
    progress = _Progress(report)
    with PlanFile(job.target) as output:
        built = _built(job.model, config, backend, cache, progress, output)
        compiled = b""
        if job.retry:
            compiled = _check_kernels(job.model, built.plan, report, progress)
        if cache is not None and job.asked is not None:
            content = {"failed": failed, **{f: getattr(config, f) for f in _FALLBACK_FIELDS}}
            cache.record_fallback(job.model, job.asked, content, backend=backend)
        # From here on a cancel comes too late: the plan is named, and the parent reads the result.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        built.plan.save(job.target, written=output)
    result = {"manifest": built.manifest.to_json(), "cached": built.cached, "failed": failed}
    report("result", result)
    if job.warm:
        _warm(replace(built.plan, path=job.target), compiled, report, progress)


def _warm(plan: Plan, compiled: bytes, report: _Report, progress: _Progress) -> None:
    """Compile the kernels of a plan that is written."""
    from trt_native.progress import phase
    from trt_native.runtime.warming import warm_plan

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent removes what this leaves
    started = time.perf_counter()
    with phase(progress, "Compiling kernels for the GPU"):
        warm_plan(plan, compiled=compiled)
    report("warmed", time.perf_counter() - started)


def _built(
    model: Path,
    config: BuildConfig,
    backend: Backend,
    cache: EngineCache | None,
    progress: _Progress,
    output: PlanFile,
) -> BuiltPlan:
    if cache is not None:
        return cache.build_plan(model, config, backend=backend, progress=progress, output=output)
    from trt_native.builder.build import build_prepared, prepare
    from trt_native.builder.plan_cache import BuiltPlan

    prepared = prepare(model, config, backend=backend, progress=progress)
    return BuiltPlan(build_prepared(prepared, progress=progress, output=output))


def _decide(job: Job, backend: Backend, report: _Report) -> dict[str, Any]:
    from trt_native.builder.build import decide

    decisions = decide(job.model, job.config, backend=backend, progress=_Progress(report))
    return {"backend": backend.name, "version": backend.version, **decisions.to_json()}


def _inspect(job: Job, backend: Backend, report: _Report) -> dict[str, Any]:  # noqa: ARG001
    from trt_native.builder.model_support import model_support

    return model_support(job.model, backend=backend).to_json()


def _convert(job: Job, backend: Backend, report: _Report) -> dict[str, Any]:
    from cattrs import Converter

    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.builder.convert import convert_onnx

    config = Converter().structure(job.conversion, ConversionConfig)
    progress = _Progress(report)
    return convert_onnx(job.model, job.target, config, backend=backend, progress=progress).to_dict()


_ACTIONS = {"convert": _convert, "decide": _decide, "inspect": _inspect}


def _check_kernels(model: Path, plan: Plan, report: _Report, progress: _Progress) -> bytes:
    """Run a plan once on this machine's GPU, and report a fusion without a kernel.

    Returns:
        The kernels that were compiled for it.

    Raises:
        BuildError: there is one.
    """
    from trt_native.backends.missing_kernels import missing_kernel
    from trt_native.builder.trial_run import run_once
    from trt_native.graph.onnx_file import read_model
    from trt_native.passes.normalize import normalize
    from trt_native.progress import phase

    try:
        with phase(progress, "Trying the plan"):
            return run_once(plan)
    except errors.TrtNativeError as error:
        missing = missing_kernel(error.details)
        if missing is None:  # too little memory, or a plan for another GPU: not the plan's fault
            _LOGGER.info("the plan cannot be tried here: %s", error.message)
            return b""
        graph = read_model(model)
        normalize(graph)
        report("missing_kernel", str(missing), missing.tensors(graph))
        raise errors.BuildError(error.message, error.details, options=error.options) from error


def _reuse_fallback(
    cache: EngineCache, job: Job, backend: Backend
) -> tuple[BuildConfig, list[dict[str, Any]]]:
    """The settings that an earlier build of the same fell back to, and its failed attempts."""
    fallback = cache.find_fallback(job.model, job.config, backend=backend)
    if fallback is None:
        return job.config, []
    settings = {name: fallback[name] for name in _FALLBACK_FIELDS}
    settings["break_fusions"] = tuple(settings["break_fusions"])  # JSON has lists
    config = replace(job.config, **settings)
    used = Attempt(config.workspace_bytes or 0, config.optimization_level, "it worked")
    _LOGGER.warning(
        "reusing the settings that worked in an earlier build (%s); clear the cache to retry the"
        " original settings",
        used,
    )
    return config, list(fallback["failed"])


def _report_error(report: _Report, error: errors.TrtNativeError) -> None:
    content = {name: getattr(error, name) for name in ("message", "details", "options", "problems")}
    report("error", {"type": type(error).__name__, **content})


def _end_with_parent(scratch: Path, job: Job, token: str) -> None:
    """Wait for the end of standard input, which is the parent's, and remove temporary files."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    for _ in range(3):  # the build goes on writing meanwhile
        shutil.rmtree(scratch, ignore_errors=True)
    for folder in folders_written(job):
        remove_temporaries(folder, token)
    os._exit(1)


class _Report:
    """Sends lines to the parent, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, kind: str, *values: Any) -> None:
        line = memoryview(json.dumps([kind, *values]).encode() + b"\n")
        with self._lock, contextlib.suppress(BrokenPipeError):  # _end_with_parent will notice
            while line:
                line = line[os.write(self._descriptor, line) :]


class _Progress:
    """A :class:`trt_native.progress.Progress` that reports to the parent, but not every step."""

    def __init__(self, report: _Report) -> None:
        self._report = report
        self._steps: dict[str, int] = {}
        self._reported = 0.0

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._steps[phase] = steps
        self._report("phase_start", phase, parent, steps)

    def step_complete(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if self._steps[phase] <= _FEW or now - self._reported >= _STEP_INTERVAL_S:
            self._reported = now
            self._report("step", phase, step)

    def phase_finish(self, phase: str) -> None:
        self._report("phase_finish", phase)


class _LogHandler(logging.Handler):
    def __init__(self, report: _Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._report("log", record.levelno, record.name, self.format(record))
        except Exception:
            self.handleError(record)


def _log_to(report: _Report, level: int) -> None:
    logger = logging.getLogger("trt_native")
    logger.handlers[:] = [_LogHandler(report)]
    logger.setLevel(level)
    logger.propagate = False


def _record_lines(descriptor: int) -> None:
    """Keep the node that TensorRT parses and the last line of its log where a crash leaves them."""
    from trt_native.backends.callbacks import Log

    memory = mmap.mmap(descriptor, 2 * LINE_BYTES)

    def record(text: str) -> None:
        line = text.encode(errors="replace")[: LINE_BYTES - 1] + b"\0"
        memory[LINE_BYTES : LINE_BYTES + len(line)] = line
        if "arsing node: " in text[:40]:
            node = line.partition(b"arsing node: ")[2]
            memory[: len(node)] = node

    Log.recorder = staticmethod(record)
