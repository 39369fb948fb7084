"""``trt_native.compile``: a module as an engine, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from trt_native.arrays import Array
from trt_native.backends.registry import load_backend
from trt_native.builder.build import check_config
from trt_native.builder.plan_cache import EngineCache
from trt_native.calibration.folder import write_batches
from trt_native.compilation.dynamic_axes import read_dynamic
from trt_native.config import BuildConfig, Precision, as_config
from trt_native.cuda import require_gpu
from trt_native.errors import (
    USER_CODE_ERRORS,
    BuildError,
    CudaError,
    SpecError,
    UnsupportedError,
)
from trt_native.export.module import eager_module, evaluating, require_torch
from trt_native.export.structure import CallStructure, OutputStructure, arguments_of
from trt_native.passes.base import AS_IN_THE_MODEL
from trt_native.plans.plan import Plan
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.scratch import scratch_folder
from trt_native.verify.metrics import (
    OutputComparison,
    Thresholds,
    compare_outputs,
    default_thresholds,
    relative_limit,
)

require_torch()

import torch  # noqa: E402

from trt_native.compilation.compiled_module import CompiledModule  # noqa: E402
from trt_native.compilation.compiled_plan import CompiledPlan, Recipe, find_or_build  # noqa: E402

__all__ = ["compile", "compile_plan"]

_Cache = EngineCache | str | os.PathLike[str] | bool


@shows_progress
def compile(  # noqa: A001  (as torch.compile)
    module: torch.nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    precision: Precision | str | None = None,
    calibration: Any = None,
    refit: bool = False,
    config: BuildConfig | Mapping[str, Any] | None = None,
    backend: str = "auto",
    opset: int | None = None,
    cache: _Cache = True,
    verify: bool = True,
    max_error: float | None = None,
    progress: AnyProgress = None,
) -> CompiledModule:
    """Compile a module, in evaluation mode, to an engine that is called as the module is.

    The module is exported to ONNX, built, loaded, and compared with the module on the inputs given.
    The plan is kept, and found again as long as the weights, settings and code of the module, the
    inputs, the options and all versions are the same; then nothing is exported or built. Where
    only the code is another one, the module is exported, and a plan of the same ONNX model is
    found.

    Args:
        module: The module, on the CPU or a GPU. Its mode is restored afterwards.
        inputs: Example arguments for ``forward``: a sequence by position, a mapping by parameter
            name, or one tensor. Tensors may be nested in mappings, lists, tuples and dataclasses.
            What is not a tensor, such as a flag, becomes a constant of the engine.
        kwargs: Further arguments by parameter name.
        dynamic: For each input tensor the axes that stay dynamic, such as
            ``{"x": {0: "batch=1:8:32"}}`` with the least extent, the one to tune for, and the most.
            A dimension is a name with such a range, a name alone (1 to the example's extent, tuned
            for that), or a ``torch.export.Dim`` with its bounds. One name in several places is one
            dimension; products such as ``"batch*frames"`` have no range of their own. Nested
            tensors are named by parameter and keys or fields, joined by ``_``. All other axes have
            the extents of the example.
        precision: See :class:`~trt_native.config.Precision`. None: that of ``config``, where
            the default is FP16 for a module in FP32, and the module's own type for any other.
        calibration: Calibration data for INT8 and FP8: an iterable of inputs, each like ``inputs``;
            or files, as :attr:`~trt_native.config.QuantizationSpec.calibration_data` names them.
        refit: Let :meth:`CompiledModule.refit` replace the weights.
        config: All other options of the build.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        opset: ONNX operator-set version; None for the export's own.
        cache: Whether to keep the plan, and look for it, in the user's cache; or the cache or its
            folder.
        verify: Whether to compare the engine with the module on the inputs.
        max_error: Largest relative L2 error of an output. None: a limit for the precision.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        The engine as a module. The caller closes it, or leaves that to the end of the process.

    Raises:
        CudaError: there is no GPU; :func:`compile_plan` needs none.
        SpecError: inputs, dimensions or options do not fit the module or each other, or the module
            raises an error for the inputs.
        ExportError: torch cannot export the module.
        CalibrationError: the calibration data cannot be used.
        UnsupportedError: torch or TensorRT is not installed, or lacks something asked for.
        BuildError: TensorRT rejected the module or failed to build it, or the engine differs from
            the module by more than the limit.
    """
    module = eager_module(module)
    call, tensors = CallStructure.of(module, inputs, kwargs)
    ordinal = next((t.device.index or 0 for t in tensors.values() if t.is_cuda), 0)
    _check_gpu(ordinal)
    with phase(progress, "Running the module"):
        output, expected = OutputStructure.of(module, _called(module, call, tensors))
    check = _Check(
        None if max_error is None else Thresholds(max_relative_error=max_error),
        expected if verify else (),
    )
    with _recipe(
        module, call, tensors, dynamic, precision, calibration, refit, config, backend, opset
    ) as recipe:
        kept = _cache(cache)
        compiled = find_or_build(recipe, kept, progress)
        try:
            return _opened(recipe, compiled, output, ordinal, check, progress)
        except BuildError:
            if compiled.exported:
                raise
        # The code may have changed in a way that its files do not show.
        compiled = find_or_build(recipe, kept, progress, fresh=True)
        return _opened(recipe, compiled, output, ordinal, check, progress)


@shows_progress
def compile_plan(
    module: torch.nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    precision: Precision | str | None = None,
    calibration: Any = None,
    refit: bool = False,
    config: BuildConfig | Mapping[str, Any] | None = None,
    backend: str = "auto",
    opset: int | None = None,
    cache: _Cache = True,
    progress: AnyProgress = None,
) -> Plan:
    """Build the plan of :func:`compile`, without running it.

    With TensorRT-RTX no GPU is needed. Arguments and errors are those of :func:`compile`; an engine
    of the plan has the tensors inside the arguments as its inputs, by name.

    Returns:
        The plan with its manifest, not yet saved.
    """
    module = eager_module(module)
    call, tensors = CallStructure.of(module, inputs, kwargs)
    with _recipe(
        module, call, tensors, dynamic, precision, calibration, refit, config, backend, opset
    ) as recipe:
        return find_or_build(recipe, _cache(cache), progress).plan


# From the arguments to a recipe ------------------------------------------------------------------


@contextmanager
def _recipe(
    module: torch.nn.Module,
    call: CallStructure,
    tensors: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, Any] | None,
    precision: Precision | str | None,
    calibration: Any,
    refit: bool,
    config: BuildConfig | Mapping[str, Any] | None,
    backend: str,
    opset: int | None,
) -> Iterator[Recipe]:
    """Make the recipe; calibration data is in temporary files for as long as the block runs."""
    options = as_config(config)
    axes, profiles = read_dynamic(dynamic or {}, tensors, has_profiles=bool(options.profiles))
    changes: dict[str, Any] = {"profiles": profiles} if profiles else {}
    if precision is not None:
        changes["precision"] = precision
    if refit:
        changes["refit"] = True
    with _calibration_files(module, call, calibration) as files:
        if files is not None:
            changes["quantization"] = replace(options.quantization, calibration_data=files)
        options, chosen = replace(options, **changes), load_backend(backend)
        check_config(options, chosen)  # before the export
        yield Recipe(module, call, tensors, axes, options, chosen, opset)


@contextmanager
def _calibration_files(
    module: torch.nn.Module, call: CallStructure, calibration: Any
) -> Iterator[str | None]:
    """The calibration data as files."""
    if calibration is None or isinstance(calibration, str | os.PathLike):
        yield None if calibration is None else os.fspath(calibration)
        return
    if not isinstance(calibration, Iterable) or isinstance(calibration, Mapping):
        raise SpecError(
            "calibration: give an iterable of inputs, or name files; found a"
            f" {type(calibration).__name__}",
            options=("calibration",),
        )
    with scratch_folder() as folder:
        target = folder / "batches-given-to-compile"  # the manifest's name of them
        write_batches(target, _batches(call, calibration), model=type(module).__name__)
        yield str(target)


def _batches(call: CallStructure, calibration: Iterable[Any]) -> Iterator[dict[str, Array]]:
    for number, batch in enumerate(calibration):
        try:
            args, kwargs = arguments_of(batch)
            tensors = call.flatten(args, kwargs)
        except SpecError as error:
            raise SpecError(
                f"calibration: batch {number}: {error.message}",
                problems=error.problems,
                options=("calibration",),
            ) from None
        yield {name: _array(tensor) for name, tensor in tensors.items()}


def _cache(cache: _Cache) -> EngineCache | None:
    if isinstance(cache, bool):
        return EngineCache() if cache else None
    return cache if isinstance(cache, EngineCache) else EngineCache(cache)


def _check_gpu(ordinal: int) -> None:
    """Refuse a machine without a GPU before the work.

    Raises:
        CudaError: there is none.
    """
    try:
        require_gpu(ordinal)
    except CudaError as error:
        advice = "trt_native.compile_plan builds the plan on a machine without one"
        raise CudaError(f"{error.message}; {advice}", error.details, error.code) from None


# From the plan to a module -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Check:
    """The results that an engine must agree with.

    Attributes:
        limits: The largest differences; None for those of the precision.
        expected: What the module returned, in order; nothing where it is not compared.
    """

    limits: Thresholds | None
    expected: tuple[torch.Tensor, ...]


def _called(
    module: torch.nn.Module, call: CallStructure, tensors: Mapping[str, torch.Tensor]
) -> Any:
    """Run the module on the example."""
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    args, kwargs = call.rebuild(copies)
    try:
        with evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]), _exact_fp32():
            return module(*args, **kwargs)
    except USER_CODE_ERRORS as error:  # the module's code may raise any
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise SpecError(
            f"{type(module).__name__} raised {reason}; it was called with the inputs"
        ) from error


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Let PyTorch compute FP32 without TF32 on the GPU for the time of a block."""
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    try:
        before = [one.allow_tf32 for one in settings]
    except RuntimeError:  # the program chose by PyTorch's newer settings, which these must not mix
        yield
        return
    try:
        for one in settings:
            one.allow_tf32 = False
        yield
    finally:
        for one, allowed in zip(settings, before, strict=True):
            one.allow_tf32 = allowed


def _opened(
    recipe: Recipe,
    compiled: CompiledPlan,
    output: OutputStructure,
    ordinal: int,
    check: _Check,
    progress: Progress | None,
) -> CompiledModule:
    """Load a plan, and compare it with the module.

    Raises:
        BuildError: they differ.
        UnsupportedError: the export has other outputs.
    """
    if len(compiled.outputs) != output.count:
        owner = type(recipe.module).__name__
        raise UnsupportedError(
            f"{owner} returns {output.count} tensors, and its export has {len(compiled.outputs)}"
            " outputs; return tensors in the place of numbers that depend on shapes"
        )
    with phase(progress, "Loading the plan"):
        made = CompiledModule(recipe, compiled, output, ordinal)
    try:
        if check.expected:
            with phase(progress, "Comparing with the module"):
                made.comparison = _compared(made, recipe, compiled, check)
        made.session.engine.save_runtime_cache()
    except BaseException:
        made.close()
        raise
    return made


def _compared(
    made: CompiledModule, recipe: Recipe, compiled: CompiledPlan, check: _Check
) -> tuple[OutputComparison, ...]:
    """The differences between an engine and its module on the example.

    Raises:
        BuildError: they are beyond the limits.
    """
    limits, why = check.limits, "as asked for"
    if limits is None:
        limits, why = _default_limits(recipe.module, compiled.plan)
    with torch.no_grad():
        # Copies are contiguous and aligned, as an engine's inputs are.
        copies = {n: t.detach().contiguous().clone() for n, t in recipe.tensors.items()}
        found = made.run_named(copies)
    compared, problems = [], []
    for name, expected in zip(compiled.outputs, check.expected, strict=True):
        try:
            one = compare_outputs(name, _array(found[name]), _array(expected), floor=limits.floor)
        except SpecError as error:
            problems.append(error.message)
            continue
        compared.append(one)
        problems += [f"{name}: {problem}" for problem in limits.problems(one)]
    if problems:
        raise BuildError(
            f"the engine differs from {type(recipe.module).__name__} on the inputs given (limits:"
            f" {limits}, {why}); compile with precision='fp32', find the first node that"
            " differs by verifying the layers of an export, or accept it with max_error:",
            problems=problems,
            options=("max_error", "precision"),
        )
    return tuple(compared)


def _default_limits(module: torch.nn.Module, plan: Plan) -> tuple[Thresholds, str]:
    """The limits for a plan's precision, or for that of a module whose types it has."""
    own = plan.manifest is not None and plan.manifest.precision["applied"] == AS_IN_THE_MODEL
    if own and any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):
        return Thresholds(max_relative_error=relative_limit("bf16")), "the default for BF16"
    return default_thresholds(plan.manifest)


def _array(tensor: torch.Tensor) -> Array:
    """A tensor as an array of NumPy, which has no BF16."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
        tensor = tensor.float()
    found: Array = tensor.numpy()
    return found
