"""User-facing build configuration: plain, frozen data."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from trt_native.errors import SpecError, UnsupportedError, close_names
from trt_native.io_formats import IO_FORMATS
from trt_native.shapes import DimRange, ProfileSpec, ShapeRange
from trt_native.units import INT64_MAX, parse_bytes

__all__ = [
    "BLOCK_SIZES",
    "QUANTIZED_OPS",
    "BuildConfig",
    "CalibrationMethod",
    "CalibrationRunner",
    "CommandOption",
    "CpuRuntime",
    "FixedValues",
    "HardwareCompatibility",
    "IoPrecision",
    "Observation",
    "Precision",
    "ProfilingVerbosity",
    "QuantizationSpec",
    "RuntimePlatform",
    "as_config",
    "parse_ops",
    "with_known_names",
]
QUANTIZED_OPS = ("Conv", "MatMul", "Gemm")
"""Operators whose inputs Q/DQ nodes are written for."""

BLOCK_SIZES = (16, 32, 64, 128)
"""Numbers of weights that may share a scale in INT4."""

FixedValues = Mapping[str, bool | int | float]
"""The values of inputs that are constants of a plan, by name."""

_MIN_WORKSPACE = 2**20
_E = TypeVar("_E", bound="_Choice")
_T = TypeVar("_T")


class _Choice(str, Enum):
    @classmethod
    def parse(cls: type[_E], text: str) -> _E:
        """Read one of the values, in any case.

        Raises:
            SpecError: the text is none of them.
        """
        wanted = text.lower().replace("-", "_") if isinstance(text, str) else None
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
    FP32 graph in FP16. ``INT8_WEIGHTS`` and ``INT4_WEIGHTS``: FP16 arithmetic on weights that are
    stored in INT8, or in blocks of INT4.
    """

    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"

    @property
    def quantized(self) -> bool:
        """Whether Q/DQ nodes are written for it."""
        return self.needs_ranges or self in (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)

    @property
    def needs_ranges(self) -> bool:
        """Whether activations are quantized, for which calibration must find the ranges."""
        return self in (Precision.INT8, Precision.FP8)

    @property
    def takes_samples(self) -> bool:
        """Whether calibration data, which it does not need, makes its weights better."""
        return self is Precision.INT4_WEIGHTS

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
        if str(text).lower() in _WITHOUT_WRITER:
            formats = ", ".join(one.value for one in cls if one.quantized)
            raise UnsupportedError(
                f"precision {text} is not available: {_WITHOUT_WRITER[str(text).lower()]}; use one"
                f" of {formats}, or an ONNX file that has Q/DQ nodes"
            )
        try:
            return super().parse(text)
        except SpecError as error:
            best = "or best, which chooses between plans"
            raise SpecError(f"{error.message}, {best}") from None


_WITHOUT_WRITER = {
    "int4": "TensorRT multiplies nothing in INT4, it only stores weights so (int4-weights)",
    "fp4": "this version writes no FP4",
    "nvfp4": "this version writes no FP4",
    "mxfp8": "this version writes no MXFP8",
}


class KernelSpecialization(_Choice):
    """Kernels that TensorRT-RTX compiles for a shape in the range of a profile, where it runs.

    ``EAGER``: those of the shape, when it is first run, which takes seconds. ``LAZY``: the same in
    the background; until then, those of the whole range run, which are slower. ``NONE``: those of
    the whole range alone.
    """

    EAGER = "eager"
    LAZY = "lazy"
    NONE = "none"


class IoPrecision(_Choice):
    """Type of a plan's floating-point inputs and outputs; ``KEEP`` is the ONNX file's."""

    KEEP = "keep"
    FP32 = "fp32"
    FP16 = "fp16"


class CalibrationMethod(_Choice):
    """Method by which a tensor's range follows from its values."""

    ENTROPY = "entropy"
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class CalibrationRunner(_Choice):
    """The runtime that runs a model to calibrate it.

    ``ENGINE``: TensorRT engines with extra outputs, on the GPU, in the model's own types.
    ``ENGINE_FP16``: the same in FP16, for a model whose FP32 engine the GPU has no room for.
    ``REFERENCE``: ``onnx.reference``, on the CPU. ``OPENVINO``: OpenVINO, on the CPU. ``AUTO``: an
    engine where there is a GPU, in FP16 where the weights are large; else OpenVINO where it is
    installed and right, and the reference.
    """

    AUTO = "auto"
    ENGINE = "engine"
    ENGINE_FP16 = "engine-fp16"
    REFERENCE = "reference"
    OPENVINO = "openvino"


class CpuRuntime(_Choice):
    """The runtime that runs a model on the CPU as a reference.

    ``ONNX``: ``onnx.reference``, node by node in NumPy. ``OPENVINO``: OpenVINO in FP32, but for the
    operators that it has wrong. ``AUTO``: OpenVINO where it is installed and right, else the other.
    """

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNX = "onnx"


class Observation(_Choice):
    """The way by which tensors inside a plan are seen, to find the first that is wrong.

    ``OUTPUTS``: as further outputs, which prevent fusions. ``DEBUG_TENSORS``: as debug tensors,
    which do not, but are only what TensorRT stores between kernels. ``AUTO``: both, where the
    TensorRT has debug tensors, else outputs.
    """

    AUTO = "auto"
    OUTPUTS = "outputs"
    DEBUG_TENSORS = "debug-tensors"


class ProfilingVerbosity(_Choice):
    """Layer information that a plan keeps for the engine inspector."""

    NONE = "none"
    LAYER_NAMES_ONLY = "layer_names_only"
    DETAILED = "detailed"


class HardwareCompatibility(_Choice):
    """Other GPUs that a plan of TensorRT 10 or 11 may run on."""

    NONE = "none"
    AMPERE_PLUS = "ampere_plus"
    SAME_COMPUTE_CAPABILITY = "same_compute_capability"


class RuntimePlatform(_Choice):
    """The system that a plan of TensorRT 10 or 11 runs on; it does not run where it was built."""

    SAME_AS_BUILD = "same_as_build"
    WINDOWS_AMD64 = "windows_amd64"


_TYPES, _TUNING, _TARGET = "Precision", "Memory and tuning", "Target"
_MEASURING = {"calibration_data", "calibration_runner", "calibration_memory_bytes"}
_QUANTIZATION = "Quantization (int8, fp8, int8-weights, int4-weights)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOption:
    """Command-line declaration of a field of :class:`BuildConfig` or :class:`QuantizationSpec`.

    Attributes:
        help: One or two sentences.
        panel: Title of the group of options that it is listed in.
        type: Type of the word, or of each word, before ``parse``.
        parse: Reads the field's value from it.
        flag: Name of the flag without its dashes. Empty: the field's name, with dashes.
        metavar: Placeholder for the word. Empty: what the flag has in every command.
        default_text: Description of the default where its value does not say it.
        repeatable: Each use of the flag adds an item.
        separator: Between the items of one word.
        negatable: For a boolean: there is a flag for False, too.
    """

    help: str
    panel: str
    type: type = str
    parse: Callable[[Any], Any] | None = None
    flag: str = ""
    metavar: str = ""
    default_text: str = ""
    repeatable: bool = False
    separator: str = ""
    negatable: bool = True


def _option(help: str, panel: str, **details: Any) -> dict[str, Any]:  # noqa: A002
    """Metadata of a field with a :class:`CommandOption`."""
    return {"option": CommandOption(help=help, panel=panel, **details)}


def parse_ops(text: str) -> tuple[str, ...]:
    """Read ``Conv,MatMul``.

    Raises:
        SpecError: no operator is named.
    """
    ops = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not ops:
        raise SpecError(
            f"{text!r} names no operator; write for example Conv,MatMul,Gemm", options=("ops",)
        )
    return ops


def _read_fields(config: BuildConfig | QuantizationSpec) -> None:
    """Read, in a new configuration, choices from their texts, sizes, paths and lists.

    Raises:
        SpecError: a choice is unknown, or a value is not of its field's type.
    """
    for name, described in config.__dataclass_fields__.items():
        option, value = described.metadata.get("option"), getattr(config, name)
        if option is None or (described.default is None and value is None):
            continue
        try:
            value = _read_field(option, described.default, value)
        except SpecError as error:
            raise SpecError(f"{name}: {error.message}", options=(name,)) from None
        object.__setattr__(config, name, value)


def _read_field(option: CommandOption, default: Any, value: Any) -> Any:
    choices = getattr(option.parse, "__self__", None)
    if isinstance(choices, type) and issubclass(choices, _Choice):
        return choices.parse(value)
    if isinstance(default, tuple):
        return _read_texts(option, value)
    if option.parse is parse_bytes:
        return parse_bytes(value) if isinstance(value, str) else _whole_number(value)
    return _READERS[option.type](value)


def _read_texts(option: CommandOption, value: Any) -> tuple[str, ...]:
    """A list of texts; one text is a list of itself."""
    if isinstance(value, str):
        return tuple(option.parse(value)) if option.separator and option.parse else (value,)
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise SpecError(f"not a list of texts: {value!r}")
    return tuple(value)


def _whole_number(value: Any) -> int:
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        return operator.index(value)
    raise SpecError(f"not a whole number: {value!r}")


def _number_of(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise SpecError(f"not a number: {value!r}")


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise SpecError(f"neither True nor False: {value!r}")


def _path_text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value
    raise SpecError(f"not a text: {value!r}")


_READERS: dict[type, Callable[[Any], Any]] = {
    int: _whole_number,
    float: _number_of,
    bool: _truth,
    str: _path_text,
    Path: lambda value: Path(_path_text(value)),
}


def with_known_names(declaring: type[_T]) -> type[_T]:
    """Make an unknown keyword a :class:`SpecError` that names the one that is meant."""
    initialize = declaring.__init__

    @functools.wraps(initialize)
    def __init__(self: Any, *values: Any, **named: Any) -> None:  # noqa: N807
        if values:
            raise SpecError(f"{values[0]!r}: options are given by name, as in precision='fp16'")
        for name in named:
            if name not in self.__dataclass_fields__:
                raise SpecError(_unknown_name(declaring, name))
        initialize(self, **named)

    declaring.__init__ = __init__  # type: ignore[method-assign]
    return declaring


def _fast_texts(given: Any) -> tuple[str, ...]:
    """The texts of shapes, of which each may be a mapping."""
    items = [given] if isinstance(given, str | Mapping) else given
    if not isinstance(items, Iterable):
        raise SpecError(f"fast at: not shapes: {given!r}", options=("fast_at",))
    return tuple(
        ",".join(f"{name}={_extents_text(value)}" for name, value in item.items())
        if isinstance(item, Mapping)
        else str(item)
        for item in items
    )


def _extents_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _unknown_name(declaring: type[Any], name: str) -> str:
    """The error about an option that a class does not have."""
    flags = {}
    for field_name, described in declaring.__dataclass_fields__.items():
        option = described.metadata.get("option")
        flags[option.flag.replace("-", "_") if option and option.flag else field_name] = field_name
    close = close_names(name, [*flags, *flags.values()])
    meant = f"; did you mean {flags.get(close[0], close[0])}?" if close else ""
    if declaring is BuildConfig and name in QuantizationSpec.__dataclass_fields__:
        meant = f"; it is one of quantization=QuantizationSpec({name}=...)"
    return f"{declaring.__name__} has no option {name}{meant}"


def as_config(config: BuildConfig | Mapping[str, Any] | None) -> BuildConfig:
    """The configuration that is given, as itself or as a mapping of its fields.

    Raises:
        SpecError: it is something else, or a field cannot be read.
    """
    if config is None:
        return BuildConfig()
    if isinstance(config, Mapping):
        return BuildConfig(**config)
    if not isinstance(config, BuildConfig):
        raise SpecError(f"config: not a BuildConfig: {config!r}", options=("config",))
    return config


def _read_profiles(value: Any) -> tuple[ProfileSpec, ...]:
    """Profiles, each as itself or as a mapping; one is a list of itself."""
    entries = [value] if isinstance(value, ProfileSpec | Mapping) else value
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise SpecError(f"profiles: not a list of ProfileSpec: {value!r}", options=("profiles",))
    return tuple(
        entry if isinstance(entry, ProfileSpec) else ProfileSpec.from_mapping(entry)
        for entry in entries
    )


def _capability_texts(value: Any) -> Any:
    """Compute capabilities as texts, where they are numbers or what torch returns for a GPU."""
    if isinstance(value, float):
        return (str(value),)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    if len(value) == 2 and all(type(item) is int for item in value):
        return (f"{value[0]}.{value[1]}",)
    return [".".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value]


@with_known_names
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSpec:
    """Quantization of a floating-point graph for a quantized :class:`Precision`.

    Attributes:
        calibration_cache: The calibration cache with the ranges of the activations.
        calibration_data: Calibration data to find the ranges with instead, or to fit INT4 weights
            to; see :func:`trt_native.calibration.batches.read_batches`.
        calibration_method: Method that derives the ranges from the data. None: entropy where
            TensorRT calibrates, else the mean squared error. FP8 always takes the largest
            magnitudes.
        calibration_runner: The runtime that runs the model with the data; see
            :class:`CalibrationRunner`.
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
        block_size: The most weights that share a scale in INT4, one of :data:`BLOCK_SIZES`. Where a
            weight has no whole blocks of that size, or only one, smaller ones are taken. None: 64.
    """

    calibration_cache: Path | None = field(
        default=None,
        metadata=_option(
            "Calibration cache with the ranges of the activations.", _QUANTIZATION, type=Path
        ),
    )
    calibration_data: str | None = field(
        default=None,
        metadata=_option(
            "Calibration data to find the ranges with, instead of a cache. For int4-weights: sample"
            " inputs that the weights are fitted to. For fp16: sample inputs that show which values"
            " FP16 cannot hold.",
            _QUANTIZATION,
            metavar="FOLDER|FILE.npz|FILE.py:FUNCTION",
        ),
    )
    calibration_method: CalibrationMethod | None = field(
        default=None,
        metadata=_option(
            "How ranges follow from the data: entropy, minmax, percentile or mse.",
            _QUANTIZATION,
            parse=CalibrationMethod.parse,
            default_text="entropy by TensorRT 10's own calibrator, else mse",
        ),
    )
    calibration_runner: CalibrationRunner = field(
        default=CalibrationRunner.AUTO,
        metadata=_option(
            "What runs the model with the data: engine (TensorRT, on the GPU), engine-fp16,"
            " reference (onnx.reference, on the CPU), openvino (on the CPU), or auto: an engine"
            " where there is a GPU, else openvino where it is installed.",
            _QUANTIZATION,
            parse=CalibrationRunner.parse,
        ),
    )
    calibration_memory_bytes: int | None = field(
        default=None,
        metadata=_option(
            "GPU memory for the activations of one engine, which decides how many engines it"
            " takes.",
            _QUANTIZATION,
            parse=parse_bytes,
            flag="calibration-memory",
            default_text="8GiB, or half of what is free",
        ),
    )
    ops: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Operators to quantize, such as Conv,MatMul,Gemm.",
            _QUANTIZATION,
            parse=parse_ops,
            flag="quantize-ops",
            default_text="what suits the format",
            separator=",",
        ),
    )
    exclude: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Shell pattern of nodes to leave alone, such as '*/to_out*' or 'op:Gemm'. Repeatable.",
            _QUANTIZATION,
            parse=tuple,
            flag="quantize-exclude",
            repeatable=True,
        ),
    )
    preset: str = field(
        default="default",
        metadata=_option(
            "default, or diffusion-unet: leave a denoiser's sensitive layers alone.",
            _QUANTIZATION,
            flag="quantize-preset",
        ),
    )
    min_coverage: float = field(
        default=0.0,
        metadata=_option(
            "Fail if less than this share of the multiply-adds is quantized, 0 to 1.",
            _QUANTIZATION,
            type=float,
            flag="quantize-min-coverage",
        ),
    )
    block_size: int | None = field(
        default=None,
        metadata=_option(
            "Most weights that share a scale in int4-weights: 16, 32, 64 or 128.",
            _QUANTIZATION,
            type=int,
            flag="quantize-block-size",
            default_text="64",
        ),
    )

    def __post_init__(self) -> None:
        _read_fields(self)
        unknown = [name for name in self.ops if name not in QUANTIZED_OPS]
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
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise SpecError(
                f"block size {self.block_size} is none of: {', '.join(map(str, BLOCK_SIZES))}",
                options=("block_size",),
            )


@with_known_names
@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Options of a build, apart from the model and the backend.

    Choices may be given as their texts (``precision="fp16"``), sizes as ``"8GiB"``, tuples as lists
    or as the one item that they have (``keep_fp32="op:Gemm"``), profiles and ``quantization`` as
    mappings.

    Attributes:
        profiles: Optimization profiles; none are needed where every input is static.
        fixed_inputs: Inputs with one element that have one value in the plan, such as
            ``("sr=16000",)``; a mapping of name to value is taken, too. The plan has no such input.
        add_opt_shape_profiles: Add to each profile with ranges one of its optimum shapes alone, for
            which the plan then has the kernels of a static plan. Sessions select it automatically.
        fast_at: Shapes in the ranges of a profile for which the plan also has the kernels of a
            static plan, such as ``("batch=2,height=512", "x=1x3x8x8")``; mappings of dimensions or
            inputs to extents or shapes are taken, too. Dimensions that are not named have their
            optimum. Sessions select the profile of such a shape automatically.
        precision: See :class:`Precision`.
        io_precision: See :class:`IoPrecision`.
        keep_fp32: Shell patterns of ONNX node names (``*/norm*``) or operators (``op:Resize``)
            that keep FP32 arithmetic in a reduced-precision plan.
        quantization: See :class:`QuantizationSpec`; for a quantized ``precision``. Its calibration
            data, runner and memory also serve FP16, where measured magnitudes replace estimates.
        break_fusions: Names of tensors in the model across which TensorRT must not fuse nodes, as a
            fused kernel would be wrong or is missing for the GPU.
        workspace_bytes: Upper limit for the scratch memory of one layer, at least 1 MiB. With
            TensorRT-RTX, which compiles a network as a whole, it holds for all activations. None is
            8 GiB, or where the GPU has less free, the largest power of two that fits.
        optimization_level: 0 (fastest build) to 5 (most thorough). None is TensorRT's default.
        max_aux_streams: Extra streams one inference may use. None lets TensorRT decide.
        tf32: Whether FP32 layers may use TF32. None: yes, unless ``precision`` is FP32. Where it is
            off, operands of FP32 products are split for TensorRT-RTX, which on some GPUs has
            those in TF32 only.
        sparse_weights: Use 2:4 structured sparsity where the weights have it.
        refit: Make the weights replaceable after the build.
        refit_weights: Shell patterns of the names of weights in the model (``decoder.*.weight``);
            only these are replaceable, and the plan may run faster than if all are. Sets ``refit``.
        strip_weights: Leave the weights out of the plan; they are refitted before use.
        weight_streaming: Let the engine keep part of its weights in host memory.
        io_formats: Layouts in memory of inputs and outputs, as ``NAME=FORMAT``; see
            :data:`trt_native.io_formats.IO_FORMATS`. For programs that have their data so: sessions
            take and return arrays in C order all the same.
        in_place_caches: Update caches that the model takes and returns (``TensorScatter``) in the
            memory of the input, as TensorRT does without a copy. The updated cache is then the
            caller's own array. Otherwise each run writes whole new ones.
        plugins: Plugins to build with: paths of libraries, ``FILE.py:FUNCTION`` or
            ``package.module:FUNCTION``; a function registers them. They are code that runs.
        replacement_map: JSON file that names groups of nodes, and the plugin that takes their
            place; see :class:`trt_native.graph.subgraphs.Replacement`.
        serialize_plugins: Put the libraries into the plan, which is then loaded without them, where
            its code may run.
        version_compatible: Make the plan loadable by later versions of TensorRT.
        exclude_lean_runtime: Leave the lean runtime, which loads a version compatible plan, out of
            it. Later versions then need the library of that runtime beside the plan.
        hardware_compatibility: See :class:`HardwareCompatibility`.
        runtime_platform: See :class:`RuntimePlatform`.
        compute_capabilities: GPUs that a TensorRT-RTX plan targets, such as ``("8.6", "8.9")``.
            Empty: every GPU the backend supports.
        timing_cache: File with layer timings, read before and written after the build.
        profiling_verbosity: See :class:`ProfilingVerbosity`.
    """

    profiles: tuple[ProfileSpec, ...] = ()
    fixed_inputs: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "NAME=VALUE: build the input NAME in as a constant, such as sr=16000 or"
            " training=false. For inputs with one element; there is no such input then."
            " Repeatable.",
            "Shapes",
            parse=tuple,
            flag="fix",
            metavar="NAME=VALUE",
            repeatable=True,
        ),
    )
    add_opt_shape_profiles: bool = field(
        default=False,
        metadata=_option(
            "Add to each profile with ranges one of its OPT shapes alone: these then run as"
            " fast as in a static plan.",
            "Shapes",
            type=bool,
            negatable=False,
        ),
    )
    fast_at: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "A shape to run as fast as in a static plan, such as batch=2,height=512 or"
            " x=2x3x512x512; dimensions that it lacks have their OPT. Repeatable.",
            "Shapes",
            parse=tuple,
            metavar="NAME=N[,NAME=N...]",
            repeatable=True,
        ),
    )
    precision: Precision = field(
        default=Precision.AUTO,
        metadata=_option(
            "auto, fp32, tf32, fp16, bf16, int8, fp8, int8-weights or int4-weights. auto: FP16 for"
            " an FP32 model, else the model's own.",
            _TYPES,
            parse=Precision.parse,
        ),
    )
    io_precision: IoPrecision = field(
        default=IoPrecision.KEEP,
        metadata=_option(
            "keep, fp32 or fp16: type of floating-point inputs and outputs.",
            _TYPES,
            parse=IoPrecision.parse,
        ),
    )
    keep_fp32: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Shell pattern of nodes that stay FP32, such as '*/norm*' or 'op:Resize'. Norm"
            " and softmax statistics always do. Repeatable.",
            _TYPES,
            parse=tuple,
            repeatable=True,
        ),
    )
    quantization: QuantizationSpec = QuantizationSpec()
    break_fusions: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Tensor of the model across which TensorRT must not fuse nodes. Repeatable.",
            _TUNING,
            parse=tuple,
            flag="break-fusion",
            metavar="TENSOR",
            repeatable=True,
        ),
    )
    workspace_bytes: int | None = field(
        default=None,
        metadata=_option(
            "Most scratch memory one layer may take; with TensorRT-RTX, most memory that all"
            " activations may take. At least 1MiB.",
            _TUNING,
            parse=parse_bytes,
            flag="workspace",
            default_text="8GiB, or as much as is free",
        ),
    )
    optimization_level: int | None = field(
        default=None, metadata=_option("0 (fast build) to 5 (fast plan).", _TUNING, type=int)
    )
    max_aux_streams: int | None = field(
        default=None, metadata=_option("Extra streams one inference may use.", _TUNING, type=int)
    )
    tf32: bool | None = field(
        default=None,
        metadata=_option(
            "TF32 in FP32 layers: faster, 11 bits.",
            _TYPES,
            type=bool,
            default_text="yes, but for precision fp32",
        ),
    )
    sparse_weights: bool = field(
        default=False, metadata=_option("Use 2:4 sparse weights.", _TUNING, type=bool)
    )
    refit: bool = field(
        default=False, metadata=_option("Weights can be replaced later.", _TARGET, type=bool)
    )
    refit_weights: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Shell pattern of the only weights that can be replaced later, such as"
            " 'decoder.*.weight'. Repeatable.",
            _TARGET,
            parse=tuple,
            metavar="PATTERN",
            repeatable=True,
        ),
    )
    strip_weights: bool = field(
        default=False, metadata=_option("Leave the weights out of the plan.", _TARGET, type=bool)
    )
    weight_streaming: bool = field(
        default=False, metadata=_option("Weights may stay in host memory.", _TARGET, type=bool)
    )
    io_formats: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Layout in memory of an input or output: NAME=FORMAT with hwc, hwc8, hwc16, chw2, chw4,"
            " chw32, dhwc, dhwc8 or cdhw32. Repeatable.",
            _TYPES,
            parse=tuple,
            flag="io-format",
            metavar="NAME=FORMAT",
            repeatable=True,
        ),
    )
    in_place_caches: bool = field(
        default=False,
        metadata=_option(
            "Update caches that the model takes and returns (TensorScatter) in the memory of the"
            " input.",
            _TARGET,
            type=bool,
        ),
    )
    plugins: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "Library of plugins, or FILE.py:FUNCTION or package.module:FUNCTION that registers"
            " some. Repeatable.",
            _TARGET,
            parse=tuple,
            flag="plugin",
            metavar="LIB|FILE.py:FUNCTION",
            repeatable=True,
        ),
    )
    replacement_map: Path | None = field(
        default=None,
        metadata=_option(
            "JSON file that names groups of nodes, and the plugin that takes their place.",
            _TARGET,
            type=Path,
            metavar="FILE.json",
        ),
    )
    serialize_plugins: bool = field(
        default=False,
        metadata=_option("Put the libraries of plugins into the plan.", _TARGET, type=bool),
    )
    version_compatible: bool = field(
        default=False, metadata=_option("Loads in later versions of TensorRT.", _TARGET, type=bool)
    )
    exclude_lean_runtime: bool = field(
        default=False,
        metadata=_option(
            "For a version compatible plan: leave the runtime out of it, which is code for the CPU;"
            " later versions then need its library.",
            _TARGET,
            type=bool,
        ),
    )
    hardware_compatibility: HardwareCompatibility = field(
        default=HardwareCompatibility.NONE,
        metadata=_option(
            "none, ampere_plus or same_compute_capability.",
            _TARGET,
            parse=HardwareCompatibility.parse,
        ),
    )
    runtime_platform: RuntimePlatform = field(
        default=RuntimePlatform.SAME_AS_BUILD,
        metadata=_option(
            "same_as_build or windows_amd64: the system that runs the plan.",
            _TARGET,
            parse=RuntimePlatform.parse,
        ),
    )
    compute_capabilities: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "GPU the plan targets, such as 8.9 (TensorRT-RTX). Repeatable.",
            _TARGET,
            parse=tuple,
            flag="compute-capability",
            default_text="every one it supports",
            repeatable=True,
        ),
    )
    timing_cache: Path | None = field(
        default=None, metadata=_option("Layer timings to read and extend.", _TUNING, type=Path)
    )
    profiling_verbosity: ProfilingVerbosity = field(
        default=ProfilingVerbosity.DETAILED,
        metadata=_option(
            "detailed, layer_names_only or none: layer information kept in the plan.",
            _TUNING,
            parse=ProfilingVerbosity.parse,
        ),
    )

    def __post_init__(self) -> None:
        if isinstance(self.fixed_inputs, Mapping):
            texts = tuple(f"{name}={value}" for name, value in self.fixed_inputs.items())
            object.__setattr__(self, "fixed_inputs", texts)
        object.__setattr__(self, "fast_at", _fast_texts(self.fast_at))
        if isinstance(self.quantization, Mapping):
            object.__setattr__(self, "quantization", QuantizationSpec(**self.quantization))
        if not isinstance(self.quantization, QuantizationSpec):
            raise SpecError(
                f"quantization: not a QuantizationSpec: {self.quantization!r}",
                options=("quantization",),
            )
        object.__setattr__(self, "profiles", _read_profiles(self.profiles))
        capabilities = _capability_texts(self.compute_capabilities)
        object.__setattr__(self, "compute_capabilities", capabilities)
        _read_fields(self)
        if self.refit_weights:
            object.__setattr__(self, "refit", True)
        self.fixed_values()
        self.fast_shapes()
        self.tensor_formats()
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
        if self.workspace_bytes is not None:
            _check_workspace(self.workspace_bytes)
        if self.precision is Precision.TF32 and self.tf32 is False:
            raise SpecError(
                "precision tf32 contradicts tf32=False; use precision fp32",
                options=("precision", "tf32"),
            )
        if self.serialize_plugins and not any(map(_is_library, self.plugins)):
            raise SpecError(
                "serialize_plugins: no library of plugins is named",
                options=("serialize_plugins", "plugins"),
            )
        if self.exclude_lean_runtime and not self.version_compatible:
            raise SpecError(
                "exclude_lean_runtime: only a version compatible plan has a lean runtime",
                options=("exclude_lean_runtime", "version_compatible"),
            )
        foreign = self.runtime_platform is not RuntimePlatform.SAME_AS_BUILD
        if foreign and self.version_compatible and not self.exclude_lean_runtime:
            raise SpecError(
                "a version compatible plan for another system cannot carry its lean runtime: leave"
                " that out",
                options=("runtime_platform", "exclude_lean_runtime"),
            )
        self._check_quantization()
        for text in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", text):
                raise SpecError(
                    f"compute capability {text!r}: write it as 8.6, 8.9 or 12.0",
                    options=("compute_capabilities",),
                )

    def _check_quantization(self) -> None:
        spec, changed = self.quantization, list(_changed(self.quantization))
        if self.precision in (Precision.AUTO, Precision.FP16):
            self._check_measuring()
            changed = [name for name in changed if name not in _MEASURING]
        if not self.precision.quantized and changed:
            raise SpecError(
                f"{', '.join(changed)}: no effect at precision {self.precision}; this is"
                " for precision int8, fp8, int8-weights and int4-weights, and calibration data for"
                " fp16, too",
                options=("precision", *changed),
            )
        if not self.precision.quantized:
            return
        data = spec.calibration_data if not self.precision.takes_samples else None
        if (spec.calibration_cache or data) and not self.precision.needs_ranges:
            takes = "; it takes calibration data" if self.precision.takes_samples else ""
            raise SpecError(
                f"calibration: no effect at precision {self.precision}, which needs no"
                f" ranges{takes}",
                options=("precision", "calibration_cache", "calibration_data"),
            )
        if spec.calibration_method is not None and not self.precision.needs_ranges:
            raise SpecError(
                f"calibration method: no effect at precision {self.precision}, which needs no"
                " ranges",
                options=("precision", "calibration_method"),
            )
        if spec.block_size is not None and self.precision is not Precision.INT4_WEIGHTS:
            raise SpecError(
                f"block size: no effect at precision {self.precision}; int4-weights has blocks",
                options=("precision", "block_size"),
            )

    def _check_measuring(self) -> None:
        if self.quantization.calibration_runner is CalibrationRunner.ENGINE_FP16:
            raise SpecError(
                "calibration runner engine-fp16 cannot show what FP16 does not hold; use engine",
                options=("calibration_runner",),
            )

    def tensor_formats(self) -> dict[str, str]:
        """The formats of :attr:`io_formats`, in TensorRT's words, by the names of tensors.

        Raises:
            SpecError: an entry is not one, its format is unknown, or a tensor has two.
        """
        found: dict[str, str] = {}
        for text in self.io_formats:
            name, _, layout = text.rpartition("=")
            if not name or layout.upper() not in IO_FORMATS:
                known = ", ".join(IO_FORMATS).lower()
                raise SpecError(
                    f"I/O format {text!r}: write NAME=FORMAT, with one of: {known}",
                    options=("io_formats",),
                )
            if name in found:
                raise SpecError(f"I/O format: {name!r} has two", options=("io_formats",))
            found[name] = layout.upper()
        return found

    def fixed_values(self) -> FixedValues:
        """The values of :attr:`fixed_inputs`, by name.

        Raises:
            SpecError: an entry is not ``NAME=VALUE``, or an input is there twice.
        """
        found: dict[str, bool | int | float] = {}
        for text in self.fixed_inputs:
            name, equals, value = str(text).rpartition("=")
            try:
                number = _number(value)
            except ValueError:
                equals = ""
            if not name or not equals:
                raise SpecError(
                    f"{text!r} is not NAME=VALUE with a number, true or false; write for example"
                    " sr=16000",
                    options=("fixed_inputs",),
                )
            if found.setdefault(name, number) != number:
                raise SpecError(f"{name!r} is fixed to two values", options=("fixed_inputs",))
        return found

    def fast_shapes(self) -> tuple[ProfileSpec, ...]:
        """The shapes of :attr:`fast_at`: a dimension or an input to the one that it has.

        Raises:
            SpecError: an entry is not ``NAME=N`` or ``NAME=SHAPE``, several separated by commas.
        """
        found = []
        for text in self.fast_at:
            entries = str(text).split(",")
            dims = [entry for entry in entries if re.fullmatch(r".*=\s*\d+\s*", entry)]
            try:
                spec = ProfileSpec.parse(dims, [entry for entry in entries if entry not in dims])
            except SpecError as error:
                raise SpecError(
                    f"fast at {text!r}: {error.message}",
                    error.details,
                    problems=error.problems,
                    options=("fast_at",),
                ) from None
            ranges: list[DimRange | ShapeRange] = [*spec.dims.values(), *spec.shapes.values()]
            if any(r.min != r.max for r in ranges):
                raise SpecError(
                    f"fast at {text!r}: has a range; give one shape, such as batch=2,height=512",
                    options=("fast_at",),
                )
            found.append(spec)
        return tuple(found)

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


def _is_library(plugin: str) -> bool:
    return not plugin.rpartition(":")[2].isidentifier() or ":" not in plugin


def _number(text: str) -> bool | int | float:
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    return int(word) if re.fullmatch(r"[+-]?[0-9]{1,19}", word) else float(word)


def _check_workspace(count: int) -> None:
    if _MIN_WORKSPACE <= count <= INT64_MAX:
        return
    meant = f"; {count}{'GiB' if count < 1024 else 'MiB'}?" if 0 < count < _MIN_WORKSPACE else ""
    raise SpecError(
        f"workspace of {count} bytes: it must be at least 1 MiB{meant}",
        options=("workspace_bytes",),
    )


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
