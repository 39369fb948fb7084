"""Building a plan, in this process or in a child."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from trt_native.backends.base import Backend
from trt_native.builder.build import build_prepared, prepare
from trt_native.builder.isolated import build_isolated
from trt_native.config import BuildConfig
from trt_native.errors import SpecError
from trt_native.files import as_path
from trt_native.plans.plan import Plan
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.scratch import scratch_folder
from trt_native.units import parse_duration

__all__ = ["build_plan"]


@shows_progress
def build_plan(
    model: str | os.PathLike[str] | onnx.ModelProto | bytes,
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: AnyProgress = None,
    extra_outputs: Sequence[str] | str = (),
    debug_tensors: bool = False,
    isolated: bool = False,
    timeout_s: float | str | None = None,
    retry: bool = False,
) -> Plan:
    """Build a TensorRT plan from an ONNX file.

    TensorRT runs in a thread of its own, so that Ctrl-C works: it cancels the build at TensorRT's
    next step and raises ``KeyboardInterrupt`` once the build has ended.

    Args:
        model: Path of the ONNX file; external weights are next to it. Or the model itself, with its
            weights inside, as a ``ModelProto`` or as the bytes of a file.
        config: Configuration of the plan; see :class:`~trt_native.config.BuildConfig`.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.
        extra_outputs: Names of tensors inside the model that the plan returns too, in the type that
            they have there. Other passes do not depend on them, but how TensorRT fuses layers does.
        debug_tensors: Let :meth:`~trt_native.runtime.Session.debug_tensors` see the tensors between
            the plan's kernels. How TensorRT fuses layers does not depend on it.
        isolated: Build in a child process, so that a crash of TensorRT raises :class:`BuildError`;
            see :func:`trt_native.builder.isolated.build_isolated`. Neither ``extra_outputs`` nor
            ``debug_tensors`` nor a loaded backend can be given then.
        timeout_s: Longest time that an isolated build may take, in seconds or as ``"15m"``.
        retry: Repeat an isolated build with a smaller workspace and a lower optimization level
            where memory or an implementation is lacking, with a larger workspace where that is.

    Returns:
        The plan with its manifest, not yet saved. To reuse built plans, call
        :meth:`trt_native.builder.plan_cache.EngineCache.build_plan`.

    Raises:
        UnsupportedError: no TensorRT is installed, or it lacks something asked for.
        ModelError: the ONNX file is missing or damaged.
        SpecError: the shapes or types asked for do not fit the model.
        CalibrationError: the calibration cache cannot be read, or was made for another model.
        BuildError: TensorRT rejected the model or failed to build it.
    """
    extra_outputs = (extra_outputs,) if isinstance(extra_outputs, str) else extra_outputs
    timeout_s = parse_duration(timeout_s) if isinstance(timeout_s, str) else timeout_s
    if isolated:
        if extra_outputs or debug_tensors or not isinstance(backend, str):
            raise SpecError(
                "an isolated build takes neither extra outputs nor debug tensors, and its backend"
                " by name",
                options=("isolated", "extra_outputs", "debug_tensors", "backend"),
            )
        with _model_file(model) as path:
            return build_isolated(
                path, config, backend=backend, progress=progress, timeout_s=timeout_s, retry=retry
            )
    if timeout_s is not None or retry:
        raise SpecError(
            "a time limit and a retry need an isolated build: give isolated=True",
            options=("isolated", "timeout_s", "retry"),
        )
    with _model_file(model) as path:
        prepared = prepare(
            path,
            config,
            backend=backend,
            progress=progress,
            extra_outputs=extra_outputs,
            debug_tensors=debug_tensors,
        )
        return build_prepared(prepared, progress=progress)


@contextlib.contextmanager
def _model_file(model: str | os.PathLike[str] | onnx.ModelProto | bytes) -> Iterator[Path]:
    """The file of a model; for one in memory, a temporary file for as long as the block runs."""
    if not isinstance(model, onnx.ModelProto | bytes | bytearray):
        yield as_path(model)
        return
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes | bytearray) else _serialized(model))
        yield path


def _serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a model's file.

    Raises:
        SpecError: its weights are in other files, or too large for one.
    """
    external = onnx.TensorProto.EXTERNAL
    if any(tensor.data_location == external for tensor in model.graph.initializer):
        raise SpecError("the model's weights are in other files; give the path of the ONNX file")
    if model.ByteSize() >= 2**31:  # where Protobuf ends
        raise SpecError("the model has 2 GiB or more; save it to a file with external weights")
    return bytes(model.SerializeToString())
