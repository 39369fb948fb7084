"""Whether a model fails, each found out in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import onnx

from trt_native.builder.isolated import ChildBuild, CrashError, Job, build_in_child
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, SpecError, TrtNativeError
from trt_native.graph.dims import dimension_symbols
from trt_native.shapes import ProfileSpec

__all__ = [
    "SUCCESS",
    "BuildCheck",
    "Check",
    "CommandCheck",
    "Outcome",
    "VerifyCheck",
    "config_for",
    "is_same_failure",
]

SUCCESS = "exit code 0"
"""Kind of the outcome of a command that finds nothing."""

_MOST_TEXT = 20_000  # characters of what a command prints, from the end
_SKIPPED = 125  # as for git bisect: cannot be judged
_PLACE = "{}"
_NAMES = re.compile(r"""'[^']*'|"[^"]*"|\{[^}]*\}|\[[^]]*\]|\S*[/\d]\S*|\S*\.onnx\b""")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a check.

    Attributes:
        failed: Whether the model fails.
        kind: How: the class of an error, a signal, an exit code.
        lines: What was said.
        signs: What tells this failure from others of its kind, without the names and numbers of
            one model. Failures without any are the same.
        seconds: Duration.
    """

    failed: bool
    kind: str = ""
    lines: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    seconds: float = 0.0


class Check(Protocol):
    """A way to find out whether a model fails."""

    def run(self, model: Path, timeout_s: float | None) -> Outcome:
        """Check a model; one that takes longer does not fail, unless that is the failure."""

    def close(self) -> None:
        """End the processes that wait."""

    def identity(self) -> dict[str, Any]:
        """What tells this check from others, as JSON holds it."""


def is_same_failure(found: Outcome, first: Outcome, pattern: str | None) -> bool:
    """Whether a model fails as the first one did.

    Args:
        found: Its outcome.
        first: Outcome of the first.
        pattern: Regular expression that is in what is said, in the place of a comparison.
    """
    if not found.failed:
        return False
    if pattern is not None:
        return re.search(pattern, "\n".join(found.lines)) is not None
    same = bool({*found.signs} & {*first.signs}) or not (found.signs or first.signs)
    return found.kind == first.kind and same


def _masked(line: str) -> str:
    """A line without the names and numbers of one model."""
    return _NAMES.sub("_", line)


class CommandCheck:
    """A command that ends with another exit code than 0 on a model that fails.

    The exit code and signal must be those of the first model; 125 says that a model cannot be
    judged.

    Args:
        command: The command line, for ``/bin/sh``; ``{}`` is the model's path, or it follows.
    """

    def __init__(self, command: str) -> None:
        if not command.strip():
            raise SpecError("the check is empty; give a command", options=("check",))
        self._command = command

    def run(self, model: Path, timeout_s: float | None) -> Outcome:
        """Run the command."""
        started = time.monotonic()
        with tempfile.TemporaryFile() as printed:  # a pipe may outlive the command
            process = subprocess.Popen(
                ["/bin/sh", "-c", self.line(model)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timeout", seconds=time.monotonic() - started)
            finally:
                _end_group(process)
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - _MOST_TEXT))
            text = printed.read().decode(errors="replace")
        return Outcome(
            code not in (0, _SKIPPED),
            _ending(code),
            tuple(filter(str.strip, text.splitlines())),
            seconds=time.monotonic() - started,
        )

    def close(self) -> None:
        """Nothing waits."""

    def identity(self) -> dict[str, Any]:
        """The command."""
        return {"check": self._command}

    def line(self, model: Path) -> str:
        """The command line for a model."""
        path = shlex.quote(str(model))
        if _PLACE in self._command:
            return self._command.replace(_PLACE, path)
        return f"{self._command} {path}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(code: int) -> str:
    """How a command ended; a shell gives 128 and the signal of what it ran."""
    number = -code if code < 0 else code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(number).name
    return f"exit code {code}"


class BuildCheck:
    """A build that fails, crashes, or takes too long.

    Args:
        config: The configuration. Profiles and options that name inputs are cut down to those that
            a model has.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        whole: The model that parts are of; the configuration is for it.
        folder: Where plans are written to.
        failure: ``build``, ``crash`` or ``slow``.
        slow_s: Time in seconds that a slow build exceeds.
    """

    def __init__(
        self,
        config: BuildConfig,
        backend: str,
        whole: Path,
        folder: Path,
        failure: str = "build",
        slow_s: float | None = None,
    ) -> None:
        if failure == "slow" and slow_s is None:
            raise SpecError(
                "a slow build needs a time that it exceeds; give it", options=("slow_s",)
            )
        self._jobs = _Jobs(config, backend, whole, folder)
        self._failure, self._slow_s = failure, slow_s
        self._waiting: ChildBuild | None = None

    def run(self, model: Path, timeout_s: float | None) -> Outcome:
        """Build a model; a process for the next one starts meanwhile."""
        job = self._jobs.job(model)
        limit = self._slow_s if self._failure == "slow" else timeout_s
        waiting, self._waiting = self._waiting, ChildBuild(job)
        self._waiting.start()
        started = time.monotonic()
        try:
            build_in_child(
                job, None, deadline=None if limit is None else started + limit, child=waiting
            )
        except TrtNativeError as error:
            seconds = time.monotonic() - started
            return self._judged(error, seconds, limit is not None and seconds >= limit)
        finally:
            job.target.unlink(missing_ok=True)
            Path(f"{job.target}.json").unlink(missing_ok=True)
        return Outcome(False, seconds=time.monotonic() - started)

    def _judged(self, error: TrtNativeError, seconds: float, timed_out: bool) -> Outcome:
        if timed_out and self._failure == "slow":
            line = f"the build takes longer than {self._slow_s:g} s"
            return Outcome(True, "slow build", (line,), seconds=seconds)
        if timed_out or self._failure == "slow":
            kind = "timeout" if timed_out else type(error).__name__
            return Outcome(False, kind, (error.message, *error.lines), seconds=seconds)
        crash = next((e for e in (error, error.__cause__) if isinstance(e, CrashError)), None)
        if crash is not None:
            said = (crash.message, *crash.lines)
            return Outcome(True, crash.ending, said, seconds=seconds)
        native = [line for line in error.details if not line.startswith("hint:")]
        own = error.problems or (native if isinstance(error, BuildError) else ())
        own = own or (error.message,)
        return Outcome(
            # A request that does not fit is not a failure of the model.
            self._failure == "build" and not isinstance(error, SpecError),
            type(error).__name__,
            (error.message, *error.lines),
            tuple(map(_masked, own)),
            seconds,
        )

    def close(self) -> None:
        """End the process that waits."""
        if self._waiting is not None:
            with self._waiting:
                self._waiting = None

    def identity(self) -> dict[str, Any]:
        """The failure and the options."""
        return {**self._jobs.identity(), "fails": self._failure, "slow_s": self._slow_s}


class VerifyCheck:
    """A plan whose results for random inputs are not those of its model on the CPU.

    Args:
        config: As for :class:`BuildCheck`.
        backend: The same.
        whole: The same.
        folder: The same.
        max_relative_error: Relative L2 error that a right result has at most; None: by precision.
    """

    def __init__(
        self,
        config: BuildConfig,
        backend: str,
        whole: Path,
        folder: Path,
        max_relative_error: float | None = None,
    ) -> None:
        self._jobs = _Jobs(config, backend, whole, folder)
        self._limit = max_relative_error

    def run(self, model: Path, timeout_s: float | None) -> Outcome:
        """Build and verify a model, each in a process."""
        started = time.monotonic()
        job = self._jobs.job(model)
        plan = job.target
        deadline = None if timeout_s is None else started + timeout_s
        try:
            build_in_child(job, None, deadline=deadline)
            found = self._verified(model, plan, deadline)
        except TrtNativeError as error:
            found = Outcome(False, type(error).__name__, (error.message, *error.lines))
        except subprocess.TimeoutExpired:
            found = Outcome(False, "timeout")
        finally:
            for file in (plan, Path(f"{plan}.json"), Path(f"{plan}.cache")):
                file.unlink(missing_ok=True)
        return replace(found, seconds=time.monotonic() - started)

    def _verified(self, model: Path, plan: Path, deadline: float | None) -> Outcome:
        words = ["verify", plan, "--against", model, "--random", 0, "--seeds", 1, "--no-corners"]
        words += [] if self._limit is None else ["--max-relative-error", self._limit]
        done = subprocess.run(
            [sys.executable, "-m", "trt_native", *map(str, words), "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
            timeout=None if deadline is None else max(1.0, deadline - time.monotonic()),
        )
        try:
            report = json.loads(done.stdout)
        except ValueError:  # it crashed
            text = done.stderr.decode(errors="replace")[-_MOST_TEXT:]
            return Outcome(False, _ending(done.returncode), tuple(text.splitlines()))
        if "error" in report:
            return Outcome(False, report["error"]["kind"], (report["error"]["message"],))
        lines = tuple(
            f"{output['name']}: {problem}"
            for output in report["outputs"]
            for problem in output["problems"]
        )
        return Outcome(not report["passed"], "wrong results", lines)

    def close(self) -> None:
        """Nothing waits."""

    def identity(self) -> dict[str, Any]:
        """The options."""
        return {
            **self._jobs.identity(),
            "fails": "verify",
            "max_relative_error": self._limit,
        }


def _search_path() -> list[str]:
    """Where a child finds what this process does."""
    return list(filter(None, (os.environ.get("PYTHONPATH"), *sys.path)))


@dataclass(frozen=True)
class _Jobs:
    """Builds of a model and of its parts."""

    config: BuildConfig
    backend: str
    whole: Path
    folder: Path

    def job(self, model: Path) -> Job:
        return Job(
            model=model,
            target=self.folder / "candidate.plan",
            config=self.config if model == self.whole else config_for(self.config, model),
            backend=self.backend,
            cache=None,
            cache_bytes=None,
        )

    def identity(self) -> dict[str, Any]:
        from cattrs import Converter

        from trt_native.backends.registry import load_backend

        loaded = load_backend(self.backend)
        options = Converter().unstructure(self.config)
        found = {"backend": [loaded.name, loaded.version], "config": options}
        return dict(json.loads(json.dumps(found, default=str)))


def config_for(config: BuildConfig, model: Path) -> BuildConfig:
    """A configuration without the shapes and options of inputs and tensors that a part lacks."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    symbols = {name: _symbols(value) for name, value in inputs.items()}
    present = set().union(*symbols.values())
    tensors = {name for node in graph.node for name in node.output} | set(inputs)
    profiles = tuple(
        ProfileSpec(
            {name: extents for name, extents in spec.dims.items() if name in present},
            {name: shapes for name, shapes in spec.shapes.items() if symbols.get(name)},
        )
        for spec in config.profiles
    )
    fixed = tuple(e for e in config.fixed_inputs if e.partition("=")[0].strip() in inputs)
    return replace(
        config,
        profiles=profiles if present else (),
        fixed_inputs=fixed,
        fast_at=config.fast_at if present else (),
        add_opt_shape_profiles=config.add_opt_shape_profiles and bool(present),
        keep_fp32=tuple(p for p in config.keep_fp32 if _matches(p, graph)),
        break_fusions=tuple(name for name in config.break_fusions if name in tensors),
    )


def _symbols(value: onnx.ValueInfoProto) -> set[str]:
    """The dimensions that an input names, and its own name for those without one."""
    found: set[str] = set()
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            found |= dimension_symbols(dim.dim_param) if dim.dim_param else {value.name}
    return found


def _matches(pattern: str, graph: onnx.GraphProto) -> bool:
    if pattern.startswith("op:"):
        return any(fnmatchcase(node.op_type, pattern[3:]) for node in graph.node)
    return any(fnmatchcase(node.name, pattern) for node in graph.node)
