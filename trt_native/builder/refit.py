"""New weights in an existing plan, without a build."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

from trt_native._version import __version__
from trt_native.backends.base import Backend
from trt_native.builder.build import (
    LoweredModel,
    PreparedBuild,
    lower,
    precision_record,
    prepare,
    refit_record,
)
from trt_native.config import BuildConfig, CalibrationRunner, FixedValues
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.graph.fixed_inputs import check_fixed_inputs
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.graph.refit_record import RefitRecord
from trt_native.graph.refit_signature import differences, fold_sources
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.progress import phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.runtime.engine import Engine, backend_for
from trt_native.shapes import ProfileSpec, ShapeRange, TensorSpec

__all__ = ["refit_plan"]


@shows_progress
def refit_plan(
    plan: Plan | str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    calibration_cache: str | os.PathLike[str] | None = None,
    backend: str | Backend = "auto",
    ordinal: int = 0,
    progress: AnyProgress = None,
) -> Plan:
    """Put the weights of another ONNX file of the same architecture into a plan.

    The ONNX file goes through the same rewriting, to FP16 or with Q/DQ nodes, that the plan's own
    went through; the plan's manifest has the options. A plan that was built without its weights
    gets them, and is complete then.

    Args:
        plan: A plan that was built with :attr:`~trt_native.config.BuildConfig.refit` or
            :attr:`~trt_native.config.BuildConfig.strip_weights`, with its manifest, or its path.
            With ``strip_weights`` alone it takes no other weights than it was built with.
        model: Path of the ONNX file with the weights.
        calibration_cache: A calibration cache of ``model``, for a plan of precision INT8 or FP8.
        backend: ``auto`` takes the library that the plan's header names.
        ordinal: CUDA ordinal of the GPU to load the plan on.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        The plan with the weights, and a manifest of its own, not yet saved.

    Raises:
        PlanError: the plan has no manifest, cannot be loaded, or its weights cannot be replaced.
        ModelError: the ONNX file is missing or damaged.
        SpecError: names, types or shapes of the weights, or the architecture, differ; all problems
            in one error.
        CalibrationError: the calibration cache cannot be read, or was made for another model.
        UnsupportedError: the TensorRT that the plan needs is not installed, or the plan's ranges
            were found by TensorRT itself.
        CudaError: there is no GPU.
    """
    started = time.perf_counter()
    source = plan if isinstance(plan, Plan) else Plan.open(plan)
    known = RefitRecord.of(source)
    manifest = source.manifest
    assert manifest is not None  # noqa: S101  # for the type checker
    chosen = _backend(source, backend)
    config = manifest.build_config()
    inputs = _check_interface(manifest, Path(model), config.fixed_values())
    rewriting = replace(
        _rewriting(config, manifest, calibration_cache), profiles=_profiles(manifest, inputs)
    )
    prepared = prepare(model, rewriting, backend=chosen, progress=progress)
    with lower(prepared, progress) as lowered:
        with phase(progress, "Reading the weights"):
            graph = read_model(lowered.path)
            found = refit_record(prepared, lowered, graph)
        changed = _check_weights(known, found, prepared.path, only_same=not config.refit)
        with phase(progress, "Loading the plan"):
            engine = Engine(source, backend=chosen, ordinal=ordinal)
        with engine, phase(progress, "Refitting"):
            refitting = time.perf_counter()
            try:
                data = chosen.refit(
                    engine.native,
                    lowered.path,
                    changed=changed - fold_sources(graph),
                    refittable=config.refit,
                )
            except PlanError as error:
                # TensorRT's objects go now, before the engine that they work on.
                traceback.clear_frames(error.__traceback__)
                raise
    seconds = {"refit": time.perf_counter() - refitting, "total": time.perf_counter() - started}
    kept = replace(found, marked=known.marked)
    refitted = _manifest(manifest, prepared, lowered, kept, data, seconds)
    return Plan(data, refitted, plugins=source.plugins)


def _backend(plan: Plan, backend: str | Backend) -> Backend:
    chosen = backend_for(plan, backend)
    problem = plan.header.mismatch(chosen.product, chosen.version)
    if problem:
        raise PlanError(f"{plan.path or 'the plan'} cannot be refitted here: {problem}")
    return chosen


def _profiles(manifest: Manifest, inputs: tuple[TensorSpec, ...]) -> tuple[ProfileSpec, ...]:
    """The plan's profiles as shapes: dimensions may have other names in another model."""
    symbolic = {spec.name for spec in inputs if not spec.is_static}
    tensors = [t for t in manifest.inputs if t.profiles or t.values or t.name in symbolic]
    count = max((len(t.profiles or t.values) for t in tensors), default=0) or bool(tensors)
    return tuple(
        ProfileSpec(shapes={tensor.name: _range(tensor, index) for tensor in tensors})
        for index in range(count)
    )


def _range(tensor: PlanTensor, profile: int) -> ShapeRange:
    ranges = tensor.profiles or tensor.values
    return ranges[profile] if ranges else ShapeRange(*[tensor.shape] * 3)


def _rewriting(
    config: BuildConfig, manifest: Manifest, calibration_cache: str | os.PathLike[str] | None
) -> BuildConfig:
    """The options of a plan that decide how a model is rewritten, for another model."""
    if "calibrated" in manifest.precision:
        raise UnsupportedError(
            "the plan's INT8 ranges were found by TensorRT's calibrator during its build, and may"
            " not suit other weights; build it again"
        )
    if config.precision.needs_ranges and calibration_cache is None:
        raise SpecError(
            f"the plan is of precision {config.precision}: give a calibration cache of the new"
            " model too",
            options=("calibration_cache",),
        )
    if calibration_cache is not None and not config.precision.needs_ranges:
        raise SpecError(
            f"a calibration cache has no effect on a plan of precision {config.precision}",
            options=("calibration_cache",),
        )
    spec = config.quantization
    if config.precision.needs_ranges:  # else its data is run through the new model, too
        spec = replace(
            spec,
            calibration_cache=None if calibration_cache is None else Path(calibration_cache),
            calibration_data=None,
            calibration_method=None,
            calibration_runner=CalibrationRunner.AUTO,
            calibration_memory_bytes=None,
        )
    return BuildConfig(
        fixed_inputs=config.fixed_inputs,
        precision=config.precision,
        io_precision=config.io_precision,
        keep_fp32=config.keep_fp32,
        break_fusions=config.break_fusions,
        quantization=spec,
        tf32=config.tf32,
        compute_capabilities=config.compute_capabilities,
        weight_streaming=config.weight_streaming,
        in_place_caches=config.in_place_caches,
        replacement_map=config.replacement_map,
    )


def _check_interface(manifest: Manifest, model: Path, fixed: FixedValues) -> tuple[TensorSpec, ...]:
    """The model's inputs, after a comparison: with others the profiles' errors would mislead."""
    inputs, outputs = tensor_specs(read_model(model))
    inputs = check_fixed_inputs(inputs, fixed)
    problems = [
        *_tensor_problems("input", manifest.inputs, inputs, model.name),
        *_tensor_problems("output", manifest.outputs, outputs, model.name),
    ]
    if problems:
        raise SpecError(f"{model} is not of the plan's architecture:", problems=problems)
    return inputs


def _tensor_problems(
    kind: str, planned: tuple[PlanTensor, ...], found: tuple[TensorSpec, ...], model: str
) -> Iterator[str]:
    have = {spec.name: spec for spec in found}
    for tensor in planned:
        spec = have.pop(tensor.name, None)
        if spec is None:
            yield f"{kind} {tensor.name!r} is missing in {model}"
        elif spec.shape is not None and not _may_be(tensor, spec.shape):
            yield f"{kind} {spec} does not have the plan's shape {tensor.describe_shape()}"
    for name in have:
        yield f"{kind} {name!r} is unknown to the plan"


def _may_be(tensor: PlanTensor, shape: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(tensor.shape) and all(
        extent == axis or not isinstance(axis, int)
        for extent, axis in zip(tensor.shape, shape, strict=True)
    )


def _check_weights(
    old: RefitRecord, new: RefitRecord, model: Path, *, only_same: bool
) -> frozenset[str]:
    """The names of the weights that differ, in a model whose weights fit."""
    problems = differences(old.signature, new.signature, model.name)
    if problems:
        raise SpecError(f"the weights of {model} do not fit the plan:", problems=problems)
    before, after = old.signature.weights, new.signature.weights
    changed = sorted(name for name, text in after.items() if text != before[name])
    if only_same and changed:
        raise SpecError(
            f"{model} has other weights than the plan was built with, and a plan whose weights were"
            " stripped takes those only, unless it was built as refittable too. They differ in:",
            problems=[repr(name) for name in changed],
            options=("strip_weights", "refit"),
        )
    if unmarked := old.unmarked(frozenset(changed)):
        raise SpecError(
            f"{model} has other values of weights that the plan was built to keep; build the plan"
            " again with these as replaceable, too:",
            problems=[_origin(name, new) for name in unmarked],
            options=("refit_weights",),
        )
    return frozenset(changed)


def _origin(name: str, record: RefitRecord) -> str:
    """A weight of the rewritten graph, and what it is called in the ONNX file."""
    sources = record.sources.made_of(name) if record.sources else frozenset[str]()
    made = ", ".join(map(repr, sorted(sources - {name})))
    return f"{name!r}, made of {made}" if made else repr(name)


def _manifest(
    old: Manifest,
    prepared: PreparedBuild,
    lowered: LoweredModel,
    weights: RefitRecord,
    data: memoryview,
    seconds: Mapping[str, float],
) -> Manifest:
    options = {name: value for name, value in old.options.items() if name != "strip_weights"}
    if prepared.config.precision.needs_ranges:
        options["quantization"] = prepared.config.options()["quantization"]
    return replace(
        old,
        producer=f"trt-native {__version__}",
        plan_sha256=sha256(data).hexdigest(),
        plan_bytes=len(data),
        model=prepared.files,
        precision=precision_record(prepared),
        passes=lowered.passes,
        options=options,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        refit=weights.to_json() if old.options.get("refit") else None,
        refitted_from={"plan_sha256": old.plan_sha256, "model": old.model},
    )
