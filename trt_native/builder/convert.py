"""From an ONNX file to another one, by the passes of a build."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trt_native.backends.base import Backend
from trt_native.backends.registry import load_backend
from trt_native.builder.activation_ranges import (
    cached_ranges,
    calibrated_ranges,
    calibration_batches,
    check_ranges,
    with_ranges,
)
from trt_native.builder.build import resolve_precision
from trt_native.builder.conversion_config import ConversionConfig
from trt_native.builder.model_support import refused_operators
from trt_native.builder.quantize_file import save_result
from trt_native.config import BuildConfig, IoPrecision, Precision
from trt_native.errors import SpecError
from trt_native.files import as_path
from trt_native.graph.fixed_inputs import check_fixed_inputs
from trt_native.graph.nodes import opset_of
from trt_native.graph.onnx_file import (
    check_name,
    file_states,
    hash_files,
    model_files,
    read_model,
    tensor_specs,
)
from trt_native.graph.outputs import check_outputs
from trt_native.graph.set_dims import set_dims
from trt_native.graph.validity import all_tensors
from trt_native.passes.autocast import can_be_reduced
from trt_native.passes.base import GraphPass, PassContext, ResolvedPrecision
from trt_native.passes.lower_opset import OLDEST_OPSET
from trt_native.passes.pipelines import CONVERT, LOWER, run_passes, select_passes
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.shapes import TensorSpec

__all__ = ["ConvertedFile", "convert_onnx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedFile:
    """Result of :func:`convert_onnx`.

    Attributes:
        path: The ONNX file.
        external_data: The file with its weights next to it; None if they are inside.
        total_bytes: Size of both.
        opset: Version of ONNX's operators.
        backend: Name and version of the backend that it is for; None for any tool.
        refused: What the backend still refuses of it, where it was lowered, one line each.
        passes: What each pass did, in order, with its ``name`` and a ``summary``.
        weight_bytes_before: Size of the weights in the file that was read.
        weight_bytes_after: Size of the weights as written.
        seconds: Duration.
    """

    path: Path
    external_data: Path | None
    total_bytes: int
    opset: int
    backend: str | None
    refused: tuple[str, ...]
    passes: tuple[Mapping[str, Any], ...]
    weight_bytes_before: int
    weight_bytes_after: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        external = str(self.external_data) if self.external_data else None
        return {**dataclasses.asdict(self), "path": str(self.path), "external_data": external}


@shows_progress
def convert_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ConversionConfig | Mapping[str, Any] | None = None,
    *,
    backend: str | Backend | None = None,
    progress: AnyProgress = None,
) -> ConvertedFile:
    """Write what the passes of a build make of an ONNX file to another one, whole or not at all.

    The result is plain ONNX, for any tool: functions are inlined, sparse weights dense, and
    operators of ONNX Runtime's own written as ONNX's. ``lower`` makes it that of one backend. A
    build leaves the types of such a file as they are.

    Args:
        model: The file to convert; external weights are next to it.
        output: The file to write. Weights go to ``<name>.data`` next to it where they are above
            2 GB, or external in the file to convert.
        config: What to do; see :class:`ConversionConfig`.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend: the TensorRT to lower for
            (``auto`` if None), and to quantize no operator for that it does not build (any if
            None).
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Raises:
        UnsupportedError: no such TensorRT is installed, or it does not take the model; or an
            operator has no equal form in the opset.
        SpecError: an option cannot be read, does not fit the model, or has no effect; or the output
            cannot be written, or is a file that is read.
        CalibrationError: the ranges or the calibration data cannot be used.
        ModelError: the model cannot be read, or the output cannot be written.
    """
    started = time.perf_counter()
    config = _as_config(config)
    _check_opset(config.opset)
    path, target = as_path(model), as_path(output)
    check_name(target)
    build = config.build_config()
    check_ranges(build)
    chosen = _backend(config, backend)
    if chosen is not None:
        chosen.check(build)
    spec = config.quantization
    check_outputs(
        [target, Path(f"{target}.data")],
        reads=[spec.calibration_cache, spec.calibration_data],
        models=[path],
    )
    with phase(progress, "Reading the model"):
        states = file_states([path])
        graph = read_model(path)
        states = {**file_states(model_files(path, graph)), **states}
        is_external = len(states) > 1
        bytes_before = sum(tensor.nbytes for tensor in all_tensors(graph))
        inputs = check_fixed_inputs(tensor_specs(graph)[0], build.fixed_values())
        set_dims(graph, config.dims)
        context = PassContext(
            config=build,
            precision=_resolve(graph, config, build, path),
            backend=chosen,
            opset=config.opset,
        )
        passes = select_passes(LOWER if config.lower else CONVERT, graph, context)
    passes = _with_found_ranges(path, graph, passes, inputs, build, chosen, progress)
    records = run_passes(passes, graph, progress)
    refused: list[str] = []
    if config.lower and chosen is not None:
        refused = refused_operators(graph, chosen)
    external, total_bytes = save_result(
        graph, target, path, external=is_external, states=states, progress=progress
    )
    return ConvertedFile(
        path=target,
        external_data=external,
        total_bytes=total_bytes,
        opset=opset_of(graph),
        backend=f"{chosen.name} {chosen.version}" if chosen else None,
        refused=tuple(refused),
        passes=tuple(records),
        weight_bytes_before=bytes_before,
        weight_bytes_after=sum(tensor.nbytes for tensor in all_tensors(graph)),
        seconds=time.perf_counter() - started,
    )


def _as_config(config: ConversionConfig | Mapping[str, Any] | None) -> ConversionConfig:
    if config is None or isinstance(config, Mapping):
        return ConversionConfig(**(config or {}))
    if not isinstance(config, ConversionConfig):
        raise SpecError(f"config: not a ConversionConfig: {config!r}", options=("config",))
    return config


def _check_opset(opset: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise SpecError(
            f"opset {opset}: models are converted to opsets {OLDEST_OPSET} to {newest}",
            options=("opset",),
        )


def _backend(config: ConversionConfig, backend: str | Backend | None) -> Backend | None:
    if backend is None:
        return load_backend("auto") if config.lower else None
    if not config.lower and config.quantize is None:
        raise SpecError(
            "backend: no effect on a file for any tool; lower for it, or quantize",
            options=("backend",),
        )
    return load_backend(backend)


def _resolve(
    graph: ir.Model, config: ConversionConfig, build: BuildConfig, path: Path
) -> ResolvedPrecision:
    """Find out what the options mean for a model.

    Raises:
        SpecError: one has no effect on it.
    """
    resolved = ResolvedPrecision()
    if config.precision is not None or config.quantize is not None:
        resolved = resolve_precision(graph, build, None, path)
    if config.quantize is not None:
        wanted = None if config.precision is Precision.FP32 else config.precision
        is_kept = wanted is None or not can_be_reduced(graph)
        resolved = dataclasses.replace(resolved, lowered_to=None if is_kept else wanted)
    useless = {
        "keep_fp32": config.keep_fp32 and config.quantize is None,
        "io_precision": config.io_precision is not IoPrecision.KEEP,
        "calibration_data": config.quantization.calibration_data and config.quantize is None,
    }
    named = " and ".join(name for name, given in useless.items() if given)
    if resolved.lowered_to is None and named:
        raise SpecError(
            f"{named}: no effect, because the types of {path.name} stay as they are; this is for"
            " FP32 models that are converted to FP16 or BF16",
            options=tuple(name for name, given in useless.items() if given),
        )
    return resolved


def _with_found_ranges(
    path: Path,
    graph: ir.Model,
    passes: Sequence[GraphPass],
    inputs: Sequence[TensorSpec],
    build: BuildConfig,
    backend: Backend | None,
    progress: Progress | None,
) -> tuple[GraphPass, ...]:
    """The passes, with the ranges of the activations that they need."""
    spec = build.quantization
    batches = calibration_batches(build, inputs, progress)
    if batches is not None:
        found = calibrated_ranges(
            path, graph, passes, batches, config=build, backend=backend or "auto", progress=progress
        )
    elif spec.calibration_cache is not None:
        found = cached_ranges(build, hash_files(path, read_model(path)))
    else:
        return tuple(passes)
    return with_ranges(passes, found)
