"""User-facing build configuration: plain, frozen data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from trt_native.errors import SpecError, UnsupportedError
from trt_native.shapes import ProfileSpec
from trt_native.units import INT64_MAX

__all__ = [
    "QUANTIZED_OPS",
    "BuildConfig",
    "CalibrationMethod",
    "CalibrationRunner",
    "HardwareCompatibility",
    "IoPrecision",
    "Precision",
    "ProfilingVerbosity",
    "QuantizationSpec",
]
QUANTIZED_OPS = ("Conv", "MatMul", "Gemm")
"""Operators whose inputs Q/DQ nodes are written for."""

_E = TypeVar("_E", bound="_Choice")


class _Choice(str, Enum):
    @classmethod
    def parse(cls: type[_E], text: str) -> _E:
        """Read one of the values, in any case.

        Raises:
            SpecError: the text is none of them.
        """
        wanted = str(text).lower().replace("-", "_")
        for choice in cls:
            if choice.value.replace("-", "_") == wanted:
                return choice
        known = ", ".join(choice.value for choice in cls)
        raise SpecError(f"{text!r} is none of: {known}")

    def __str__(self) -> str:
        return str(self.value)


class Precision(_Choice):
    """Arithmetic of the plan's layers.

    ``AUTO``: FP16 for a graph in FP32, with or without Q/DQ nodes, else the graph's own. ``INT8``
    and ``FP8``: matrix products in that, with ranges from a calibration cache, and the rest of an
    FP32 graph in FP16. ``INT8_WEIGHTS``: FP16 arithmetic on weights that are stored in INT8.
    """

    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT8_WEIGHTS = "int8-weights"

    @property
    def quantized(self) -> bool:
        """Whether Q/DQ nodes are written for it."""
        return self in (Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS)

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are quantized, for which calibration must tell their ranges."""
        return self in (Precision.INT8, Precision.FP8)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read a precision by name.

        Raises:
            UnsupportedError: a precision that only a graph can have.
            SpecError: the text is no precision.
        """
        if str(text).lower() == "best":
            raise UnsupportedError(
                "precision best is not that of one plan, but a choice between plans: use"
                " trt_native.builder.select_precision.select_precision"
            )
        if str(text).lower() in ("int4", "fp4"):
            raise UnsupportedError(
                f"precision {text} is not available: this version quantizes to int8, fp8 and"
                " int8-weights; use one of these, or an ONNX file that has Q/DQ nodes"
            )
        return super().parse(text)


class IoPrecision(_Choice):
    """Type of a plan's floating-point inputs and outputs; ``KEEP`` is the ONNX file's."""

    KEEP = "keep"
    FP32 = "fp32"
    FP16 = "fp16"


class CalibrationMethod(_Choice):
    """How a tensor's range follows from the values it takes."""

    ENTROPY = "entropy"
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class CalibrationRunner(_Choice):
    """What runs a model to calibrate it.

    ``ENGINE``: TensorRT engines with extra outputs, on the GPU, in the model's own types.
    ``ENGINE_FP16``: the same in FP16, for a model whose FP32 engine the GPU has no room for.
    ``REFERENCE``: ``onnx.reference``, on the CPU. ``AUTO``: an engine where there is a GPU, in FP16
    where the weights are large; else the reference.
    """

    AUTO = "auto"
    ENGINE = "engine"
    ENGINE_FP16 = "engine-fp16"
    REFERENCE = "reference"


class ProfilingVerbosity(_Choice):
    """How much of its layers a plan remembers for the engine inspector."""

    NONE = "none"
    LAYER_NAMES_ONLY = "layer_names_only"
    DETAILED = "detailed"


class HardwareCompatibility(_Choice):
    """Which other GPUs a plan of TensorRT 10 or 11 may run on."""

    NONE = "none"
    AMPERE_PLUS = "ampere_plus"
    SAME_COMPUTE_CAPABILITY = "same_compute_capability"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """How a floating-point graph is quantized for precision INT8, FP8 or INT8_WEIGHTS.

    Attributes:
        calibration_cache: The calibration cache with the ranges of the activations.
        calibration_data: Calibration data to find the ranges with instead; see
            :func:`trt_native.calibration.batches.read_batches`.
        calibration_method: How the ranges follow from the data. None: entropy where TensorRT
            calibrates, else the mean squared error. FP8 always takes the largest magnitudes.
        calibration_runner: What runs the model with the data; see :class:`CalibrationRunner`.
        calibration_memory_bytes: GPU memory for the activations of one engine with extra outputs.
            None is 8 GiB, or half of what is free where that is less.
        ops: Operators to quantize, some of :data:`QUANTIZED_OPS`. Empty: those that suit the
            precision and the preset, as far as the backend builds them.
        exclude: Shell patterns of ONNX node names (``*/to_out*``) or operators (``op:Gemm``) that
            are not quantized.
        preset: ``default``, or ``diffusion-unet``, which leaves the layers alone that a denoiser's
            error comes from.
        min_coverage: Fail if less than this share of the matrix products' multiply-adds is
            quantized, from 0 to 1.
    """

    calibration_cache: Path | None = None
    calibration_data: str | None = None
    calibration_method: CalibrationMethod | None = None
    calibration_runner: CalibrationRunner = CalibrationRunner.AUTO
    calibration_memory_bytes: int | None = None
    ops: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    preset: str = "default"
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        unknown = [operator for operator in self.ops if operator not in QUANTIZED_OPS]
        if unknown:
            raise SpecError(
                f"operators to quantize: {', '.join(unknown)}; choose from"
                f" {', '.join(QUANTIZED_OPS)}",
                options=("ops",),
            )
        if self.calibration_cache is not None and self.calibration_data is not None:
            raise SpecError(
                "both a calibration cache and calibration data: give one of them",
                options=("calibration_cache", "calibration_data"),
            )
        if (
            self.calibration_memory_bytes is not None
            and not 0 < self.calibration_memory_bytes <= INT64_MAX
        ):
            raise SpecError(
                f"memory of {self.calibration_memory_bytes} bytes: it must be positive",
                options=("calibration_memory_bytes",),
            )
        measures = (
            self.calibration_runner is not CalibrationRunner.AUTO
            or self.calibration_memory_bytes is not None
        )
        if measures and self.calibration_data is None:
            raise SpecError(
                "calibration runner and memory have no effect without calibration data",
                options=("calibration_runner", "calibration_memory_bytes"),
            )
        if not 0 <= self.min_coverage <= 1:
            raise SpecError(
                f"minimum coverage {self.min_coverage}: it is a share from 0 to 1",
                options=("min_coverage",),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Everything that decides what a plan becomes, apart from the model and the backend.

    Attributes:
        profiles: Optimization profiles; none are needed where every input is static.
        add_opt_shape_profiles: Add to each profile with ranges one of its optimum shapes alone, for
            which the plan then has the kernels of a static plan. Sessions select it automatically.
        precision: See :class:`Precision`.
        io_precision: See :class:`IoPrecision`.
        keep_fp32: Shell patterns of ONNX node names (``*/norm*``) or operators (``op:Resize``)
            that keep FP32 arithmetic in a reduced-precision plan.
        quantization: See :class:`QuantizationSpec`; for a quantized ``precision`` alone.
        workspace_bytes: Upper limit for scratch memory of one layer. None is 8 GiB, or where the
            GPU has less free, the largest power of two that fits.
        optimization_level: 0 (fastest build) to 5 (most thorough). None is TensorRT's default.
        max_aux_streams: Extra streams one inference may use. None lets TensorRT decide.
        tf32: Whether FP32 layers may use TF32. None: yes, unless ``precision`` is FP32. Where it is
            off, operands of FP32 products are split for TensorRT-RTX, which on some GPUs has
            those in TF32 only.
        sparse_weights: Use 2:4 structured sparsity where the weights have it.
        refit: Make the weights replaceable after the build.
        strip_weights: Leave the weights out of the plan; they are refitted before use.
        weight_streaming: Let the engine keep part of its weights in host memory.
        version_compatible: Make the plan loadable by later minor versions of TensorRT.
        hardware_compatibility: See :class:`HardwareCompatibility`.
        compute_capabilities: GPUs that a TensorRT-RTX plan targets, such as ``("8.6", "8.9")``.
            Empty: every GPU the backend supports.
        timing_cache: File with layer timings, read before and written after the build.
        profiling_verbosity: See :class:`ProfilingVerbosity`.
    """

    profiles: tuple[ProfileSpec, ...] = ()
    add_opt_shape_profiles: bool = False
    precision: Precision = Precision.AUTO
    io_precision: IoPrecision = IoPrecision.KEEP
    keep_fp32: tuple[str, ...] = ()
    quantization: QuantizationSpec = QuantizationSpec()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    max_aux_streams: int | None = None
    tf32: bool | None = None
    sparse_weights: bool = False
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    profiling_verbosity: ProfilingVerbosity = ProfilingVerbosity.DETAILED

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise SpecError(
                f"optimization level {self.optimization_level}: it goes from 0 to 5",
                options=("optimization_level",),
            )
        if self.max_aux_streams is not None and not 0 <= self.max_aux_streams < 2**31:
            raise SpecError(
                f"max_aux_streams {self.max_aux_streams}: it cannot be negative, or above 2^31",
                options=("max_aux_streams",),
            )
        if self.workspace_bytes is not None and not 0 < self.workspace_bytes <= INT64_MAX:
            raise SpecError(
                f"workspace of {self.workspace_bytes} bytes: it must be positive",
                options=("workspace_bytes",),
            )
        if self.precision is Precision.TF32 and self.tf32 is False:
            raise SpecError(
                "precision tf32 contradicts tf32=False; use precision fp32",
                options=("precision", "tf32"),
            )
        self._check_quantization()
        for text in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", text):
                raise SpecError(
                    f"compute capability {text!r}: write it as 8.6, 8.9 or 12.0",
                    options=("compute_capabilities",),
                )

    def _check_quantization(self) -> None:
        if not self.precision.quantized and self.quantization != QuantizationSpec():
            given = ", ".join(_changed(self.quantization))
            raise SpecError(
                f"{given}: no effect at precision {self.precision}; this is for precision int8,"
                " fp8 and int8-weights",
                options=("precision", *_changed(self.quantization)),
            )
        spec = self.quantization
        if (spec.calibration_cache or spec.calibration_data) and not self.precision.needs_ranges:
            raise SpecError(
                f"calibration: no effect at precision {self.precision}, which needs no ranges",
                options=("precision", "calibration_cache", "calibration_data"),
            )

    @property
    def allows_tf32(self) -> bool:
        """Whether FP32 layers may use TF32 in this build."""
        return self.tf32 if self.tf32 is not None else self.precision is not Precision.FP32

    def options(self) -> dict[str, Any]:
        """Every field that differs from its default, as JSON can hold it."""
        return {name: _jsonable(value) for name, value in _changed(self).items()}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> BuildConfig:
        """The inverse of :meth:`options`.

        Raises:
            SpecError: an option is unknown, or its value cannot be read.
        """
        from cattrs import Converter

        converter = Converter(forbid_extra_keys=True, detailed_validation=False)
        converter.register_structure_hook(
            ProfileSpec, lambda data, _: ProfileSpec.from_mapping(data)
        )
        try:
            return converter.structure(options, cls)
        except SpecError:
            raise
        except Exception as error:  # cattrs and what it converts to raise many kinds
            raise SpecError(f"build options cannot be read: {error}") from None


def _changed(config: BuildConfig | QuantizationSpec) -> dict[str, Any]:
    """The fields that differ from their default."""
    default = type(config)()
    names = config.__dataclass_fields__
    return {n: getattr(config, n) for n in names if getattr(config, n) != getattr(default, n)}


def _jsonable(value: Any) -> Any:
    if isinstance(value, ProfileSpec):
        return {
            "dims": {name: str(r) for name, r in value.dims.items()},
            "shapes": {name: str(r) for name, r in value.shapes.items()},
        }
    if isinstance(value, QuantizationSpec):
        return {name: _jsonable(item) for name, item in _changed(value).items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, (Path, _Choice)):
        return str(value)
    return value
