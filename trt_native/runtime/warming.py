"""Compilation of a plan's kernels before it is used."""

from __future__ import annotations

import os
from pathlib import Path

from trt_native.backends.base import Backend
from trt_native.config import BuildConfig
from trt_native.cuda import require_gpu
from trt_native.errors import CudaError, SpecError, UnsupportedError
from trt_native.files import check_writable
from trt_native.plans.manifest import runtime_cache_path
from trt_native.plans.plan import Plan
from trt_native.runtime.engine import Engine, backend_for
from trt_native.runtime.runtime_cache import RuntimeCacheFile
from trt_native.runtime.session import Session

__all__ = ["check_warming", "warm_plan"]


def check_warming(backend: Backend, target: Path, config: BuildConfig) -> None:
    """Check before a build that the kernels of its plan can be compiled here.

    Args:
        backend: The TensorRT that will build.
        target: Where the plan will be.
        config: The configuration of the plan.

    Raises:
        UnsupportedError: the backend compiles no kernels where a plan runs.
        SpecError: the plan could not run here, or the runtime cache would replace another file.
        CudaError: there is no GPU.
    """
    _check_compiles(backend)
    if config.strip_weights:
        raise SpecError(
            "kernels are compiled in a run, and a plan without weights cannot run: warm it after"
            " its weights are put in",
            options=("warm", "strip_weights"),
        )
    try:
        gpu = require_gpu()
    except CudaError as error:
        raise error.restated(
            f"kernels are compiled on the GPU that runs them: {error.message}",
            CudaError,
            options=("warm",),
        ) from None
    targets = config.compute_capabilities
    if targets and gpu.compute_capability not in targets:
        raise SpecError(
            f"a plan for compute capability {' and '.join(targets)} cannot be warmed on {gpu.name}"
            f" ({gpu.compute_capability}); warm it where it will run",
            options=("warm", "compute_capabilities"),
        )
    path = runtime_cache_path(target)
    check_writable(path)
    RuntimeCacheFile(path, {}).check()


def warm_plan(plan: Plan | str | os.PathLike[str], *, compiled: bytes = b"") -> Path | None:
    """Compile the kernels of a saved plan for this machine's GPU, and keep them next to it.

    Later processes read them from the runtime cache, and compile none for the optimum shapes of the
    plan's profiles, which include those that it was built to be fast at.

    Args:
        plan: The plan's path, or the plan that is there.
        compiled: Some of its kernels, as :meth:`Engine.compiled_kernels` returns them.

    Returns:
        The runtime cache; None where there was nothing to compile.

    Raises:
        UnsupportedError: its TensorRT is not installed, or compiles no kernels where plans run.
        SpecError: the plan is not in a file.
        PlanError: the plan is damaged, for another GPU or without weights; or the runtime cache
            cannot be written.
        CudaError: there is no GPU, it has too little memory, or TensorRT failed.
    """
    plan = plan if isinstance(plan, Plan) else Plan.open(plan)
    backend = backend_for(plan, "auto")
    _check_compiles(backend)
    cache = RuntimeCacheFile.of(plan, backend, require_gpu())
    if cache is None:
        raise SpecError("the plan is not in a file, next to which its kernels could be; save it")
    cache.check()
    cache.write(compiled)
    with Engine(plan, backend=backend) as engine:
        with Session(engine, cuda_graphs=0) as session:
            session.warm_up()
        kernels = engine.compiled_kernels()
    cache.read()
    cache.write(kernels)  # an error where the engine could not
    return cache.path if kernels else None


def _check_compiles(backend: Backend) -> None:
    if not backend.capabilities.specializes_kernels:
        raise UnsupportedError(
            f"{backend.product} has its kernels in the plan: there are none to compile on the GPU"
            " before it is used; leave this out, or build with TensorRT-RTX (backend rtx)",
            options=("warm", "backend"),
        )
