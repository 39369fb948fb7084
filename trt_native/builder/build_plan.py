"""Building a plan, in this process or in a child."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trt_native.backends.base import Backend
from trt_native.builder.build import build_prepared, prepare
from trt_native.builder.isolated import build_isolated
from trt_native.config import BuildConfig
from trt_native.errors import SpecError
from trt_native.plans.plan import Plan
from trt_native.progress import Progress

__all__ = ["build_plan"]


def build_plan(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
    extra_outputs: Sequence[str] = (),
    isolated: bool = False,
    timeout_s: float | None = None,
    retry: bool = False,
) -> Plan:
    """Build a TensorRT plan from an ONNX file.

    TensorRT runs in a thread of its own, so that Ctrl-C works: it cancels the build at TensorRT's
    next step and raises ``KeyboardInterrupt`` once the build has ended.

    Args:
        model: Path of the ONNX file; external weights are next to it.
        config: Configuration of the plan; see :class:`~trt_native.config.BuildConfig`.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend.
        progress: Receives progress callbacks.
        extra_outputs: Names of tensors inside the model that the plan returns too, in the type that
            they have there. Other passes do not depend on them, but how TensorRT fuses layers does.
        isolated: Build in a child process, so that a crash of TensorRT raises :class:`BuildError`;
            see :func:`trt_native.builder.isolated.build_isolated`. Neither ``extra_outputs`` nor a
            loaded backend can be given then.
        timeout_s: Longest time in seconds that an isolated build may take.
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
    if isolated:
        if extra_outputs or not isinstance(backend, str):
            raise SpecError(
                "an isolated build takes no extra outputs, and its backend by name",
                options=("isolated", "extra_outputs", "backend"),
            )
        return build_isolated(
            model, config, backend=backend, progress=progress, timeout_s=timeout_s, retry=retry
        )
    if timeout_s is not None or retry:
        raise SpecError(
            "a time limit and a retry need an isolated build: give isolated=True",
            options=("isolated", "timeout_s", "retry"),
        )
    prepared = prepare(
        model, config, backend=backend, progress=progress, extra_outputs=extra_outputs
    )
    return build_prepared(prepared, progress=progress)
