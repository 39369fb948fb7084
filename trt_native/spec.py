"""The words a user speaks in: shapes, profiles, precisions and the build configuration.

Everything here is plain, frozen data. Each type that a person may write on a command line or in a
file has a ``parse`` that reads it and a message that says what was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from trt_native.errors import SpecError, UnsupportedError

__all__ = [
    "QUANTIZED_OPS",
    "ActivationsBy",
    "BuildConfig",
    "ByteProgress",
    "CalibrationMethod",
    "DimRange",
    "HardwareCompatibility",
    "IoPrecision",
    "Precision",
    "Profile",
    "ProfileSpec",
    "ProfilingVerbosity",
    "QuantizationSpec",
    "Shape",
    "ShapeRange",
    "TensorSpec",
    "format_bytes",
    "no_progress",
    "parse_bytes",
    "parse_duration",
    "parse_shape",
]

Shape = tuple[int, ...]
"""Extents in elements, outermost axis first; ``()`` is a scalar."""

ByteProgress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and of how many (0: not known)."""

QUANTIZED_OPS = ("Conv", "MatMul", "Gemm")
"""Operators whose inputs Q/DQ nodes are written for."""

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SECONDS = (86400, 3600, 60, 1)
_MOST = 2**63 - 1
_EXTENT = r"[0-9]{1,19}"
_E = TypeVar("_E", bound="_Choice")


def no_progress(phase: str, done: int, total: int) -> None:
    """A :data:`ByteProgress` that nobody looks at."""


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``8GiB``, ``512 MiB``, ``2GB`` or a plain number of bytes.

    Raises:
        SpecError: the text is not a number with one of the known units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].lower() not in _UNITS or len(match[1]) > 100:
        raise SpecError(f"not a size: {text!r}; write for example 8GiB, 512MiB or 4000000000")
    count = int(float(match[1]) * _UNITS[match[2].lower()])
    if count > _MOST:
        raise SpecError(f"not a size: {text!r}; that is more than any machine has")
    return count


def format_bytes(count: int) -> str:
    """Write a size in bytes with the largest binary unit that keeps it at 1 or more."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_duration(text: str) -> float:
    """Read a duration such as ``90``, ``90s``, ``15m``, ``1h30m`` or ``7d``; returns seconds.

    Raises:
        SpecError: the text has another form, or is no time at all.
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(
        rf"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s?)?",
        "".join(text.lower().split()),
    )
    counts = match.groups() if match else ()
    seconds = sum(float(n or 0) * unit for n, unit in zip(counts, _SECONDS, strict=False))
    if not 0 < seconds < _MOST:
        raise SpecError(f"not a duration: {text!r}; write for example 90s, 15m or 1h30m")
    return seconds


def parse_shape(text: str) -> Shape:
    """Read ``1x3x8x8``; ``scalar`` (or nothing) is the empty shape.

    Raises:
        SpecError: an axis is not a whole number of at least 0, or none that 64 bits hold.
    """
    text = text.strip()
    if text in ("", "scalar"):
        return ()
    axes = [axis.strip() for axis in re.split(r"[x,]", text)]
    if not all(re.fullmatch(_EXTENT, axis) and int(axis) <= _MOST for axis in axes):
        raise SpecError(f"not a shape: {text!r}; write for example 1x3x8x8")
    return tuple(int(axis) for axis in axes)


def _split_range(text: str, example: str) -> tuple[str, str, str]:
    parts = str(text).split(":")
    if len(parts) == 1:
        return (parts[0], parts[0], parts[0])
    if len(parts) == 3:
        return (parts[0], parts[1], parts[2])
    raise SpecError(f"not a range: {text!r}; write one value, or MIN:OPT:MAX such as {example}")


@dataclass(frozen=True, slots=True)
class DimRange:
    """Extents one symbolic dimension may take: ``min <= opt <= max``, in elements."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise SpecError(f"not ordered: {self}; a range needs 0 <= MIN <= OPT <= MAX")
        if self.max > _MOST:
            raise SpecError(f"too large: {self}; an extent has 64 bits")

    @classmethod
    def parse(cls, text: str | int) -> DimRange:
        """Read ``2`` (fixed) or ``1:2:4`` (min:opt:max).

        Raises:
            SpecError: the text has neither form, or is not ordered.
        """
        parts = [part.strip() for part in _split_range(str(text), "1:2:4")]
        if not all(re.fullmatch(_EXTENT, part) for part in parts):
            raise SpecError(f"not a range of extents: {text!r}; write for example 2 or 1:2:4")
        return cls(int(parts[0]), int(parts[1]), int(parts[2]))

    def __str__(self) -> str:
        fixed = self.min == self.opt == self.max
        return str(self.min) if fixed else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes one input may take: ``min <= opt <= max`` on every axis, in elements."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise SpecError(f"ranks differ: {self}; MIN, OPT and MAX need the same number of axes")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise SpecError(f"not ordered: {self}; every axis needs MIN <= OPT <= MAX")

    @classmethod
    def parse(cls, text: str) -> ShapeRange:
        """Read ``1x3x8x8`` (static) or ``1x3x8x8:4x3x8x8:8x3x8x8`` (min:opt:max).

        Raises:
            SpecError: the text has neither form, or an axis is not ordered.
        """
        low, best, high = (parse_shape(part) for part in _split_range(text, "1x8:2x8:4x8"))
        return cls(low, best, high)

    @property
    def is_static(self) -> bool:
        """Whether only one shape is allowed."""
        return self.min == self.max

    def contains(self, shape: Shape) -> bool:
        """Whether ``shape`` has this rank and lies between ``min`` and ``max`` on every axis."""
        return len(shape) == len(self.min) and all(
            low <= extent <= high
            for low, extent, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        texts = ["x".join(map(str, shape)) or "scalar" for shape in (self.min, self.opt, self.max)]
        return texts[0] if self.is_static else ":".join(texts)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: The tensor's name, as in the ONNX file and in the plan.
        dtype: The element type, by its NumPy or ml_dtypes name (``float32``, ``bfloat16``, ...).
        shape: One entry per axis: an extent, the text of a symbolic dimension (a name or an
            expression of names), or None where the extent is unknown and has no name. None
            instead of a tuple means that even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_static(self) -> bool:
        """Whether every extent is a number."""
        return self.shape is not None and all(isinstance(axis, int) for axis in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of unknown rank"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}({axes})"


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimization profile, resolved: a range for every input that has a dynamic shape.

    Attributes:
        shapes: Input name to the shapes it may take.
        values: Name of an input that *is* a shape to the values it may take.
    """

    shapes: Mapping[str, ShapeRange]
    values: Mapping[str, ShapeRange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """One optimization profile as a user asks for it.

    Attributes:
        dims: Symbolic dimension to its range.
        shapes: Input name to its shapes. Wins over ``dims``, and binds the symbolic dimensions
            of that input, so that other inputs follow.
    """

    dims: Mapping[str, DimRange] = field(default_factory=dict)
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)

    def overridden_by(self, later: ProfileSpec) -> ProfileSpec:
        """This profile with every entry that ``later`` names replaced by ``later``'s."""
        return ProfileSpec({**self.dims, **later.dims}, {**self.shapes, **later.shapes})

    @classmethod
    def parse(cls, dims: Iterable[str] = (), shapes: Iterable[str] = ()) -> ProfileSpec:
        """Read ``NAME=MIN:OPT:MAX`` texts.

        Raises:
            SpecError: an entry lacks ``NAME=`` or its range cannot be read; all faults at once.
        """
        faults: list[str] = []
        spec = cls(
            _parse_entries(dims, DimRange.parse, "batch=1:2:4", faults),
            _parse_entries(shapes, ShapeRange.parse, "x=1x8:2x8:4x8", faults),
        )
        _raise_faults(faults)
        return spec

    @classmethod
    def from_mapping(cls, data: object) -> ProfileSpec:
        """Read one profile of a profile file: a mapping with ``dims`` and/or ``shapes``.

        Raises:
            SpecError: the mapping has other keys, or a range cannot be read.
        """
        if not isinstance(data, Mapping) or not set(data) <= {"dims", "shapes", "name"}:
            found = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise SpecError(f"a profile needs the keys 'dims' and/or 'shapes', found {found}")
        entries: dict[str, list[str]] = {}
        for key in ("dims", "shapes"):
            section = data.get(key) or {}
            if not isinstance(section, Mapping):
                raise SpecError(
                    f"'{key}' of a profile needs NAME: RANGE entries, found a"
                    f" {type(section).__name__}"
                )
            entries[key] = [f"{name}={_range_text(value)}" for name, value in section.items()]
        return cls.parse(**entries)


def _range_text(value: Any) -> str:
    """Undo what YAML and TOML make of a range: ``[1, 2, 4]`` as well as the text ``1:2:4``."""
    if isinstance(value, list):
        return ":".join(
            "x".join(map(_scalar, v)) if isinstance(v, list) else _scalar(v) for v in value
        )
    return _scalar(value)


def _scalar(value: Any) -> str:
    """Not the text of a collection: in YAML it may hold itself, a million times over."""
    if isinstance(value, (list, Mapping, set)):
        return type(value).__name__
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return "a number far too large"


def _parse_entries(
    entries: Iterable[str], parse: Any, example: str, faults: list[str]
) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for entry in entries:
        # A symbolic expression may hold a comparison, so the last '=' separates.
        name, separator, text = entry.rpartition("=")
        if not separator or not name.strip():
            faults.append(f"{entry!r} is not NAME=RANGE; write for example {example}")
            continue
        try:
            parsed[name.strip()] = parse(text)
        except SpecError as error:
            faults.append(f"{name.strip()}: {error}")
    return parsed


def _raise_faults(faults: list[str]) -> None:
    if len(faults) == 1:
        raise SpecError(faults[0])
    if faults:
        raise SpecError(f"{len(faults)} faults:", faults)


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
                "precision best is not that of one plan, but a choice between plans: use trt-native"
                " build --precision best, or trt_native.selection.build_fastest"
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


class ActivationsBy(_Choice):
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
        calibration: The calibration cache with the ranges of the activations.
        data: Calibration data to find the ranges with instead; see
            :func:`trt_native.calibration.batches.read_batches`.
        method: How the ranges follow from the data. None: entropy where TensorRT calibrates, else
            the mean squared error. FP8 takes the largest magnitudes whatever this says.
        activations: What runs the model with the data; see :class:`ActivationsBy`.
        memory_bytes: GPU memory for the activations that an engine hands out at a time. None is
            8 GiB, or half of what is free where that is less.
        ops: Operators to quantize, some of :data:`QUANTIZED_OPS`. Empty: those that suit the
            precision and the preset, as far as the backend builds them.
        skip: Shell patterns of ONNX node names (``*/to_out*``) or operators (``op:Gemm``) that are
            not quantized.
        preset: ``default``, or ``diffusion-unet``, which leaves the layers alone that a denoiser's
            error comes from.
        min_coverage: Fail if less than this share of the matrix products' multiply-adds is
            quantized, from 0 to 1.
    """

    calibration: Path | None = None
    data: str | None = None
    method: CalibrationMethod | None = None
    activations: ActivationsBy = ActivationsBy.AUTO
    memory_bytes: int | None = None
    ops: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    preset: str = "default"
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        unknown = [operator for operator in self.ops if operator not in QUANTIZED_OPS]
        if unknown:
            raise SpecError(
                f"operators to quantize: {', '.join(unknown)}; choose from"
                f" {', '.join(QUANTIZED_OPS)}"
            )
        if self.calibration is not None and self.data is not None:
            raise SpecError("both a calibration cache and calibration data: give one of them")
        if self.memory_bytes is not None and not 0 < self.memory_bytes <= _MOST:
            raise SpecError(f"memory of {self.memory_bytes} bytes: it must be positive")
        measures = self.activations is not ActivationsBy.AUTO or self.memory_bytes is not None
        if measures and self.data is None:
            raise SpecError(
                "activations, memory: no effect without calibration data, which is what is run"
            )
        if not 0 <= self.min_coverage <= 1:
            raise SpecError(f"minimum coverage {self.min_coverage}: it is a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Everything that decides what a plan becomes, apart from the model and the backend.

    Attributes:
        profiles: Optimization profiles; none are needed where every input is static.
        opt_profile: Add to each profile with ranges one of its optimum shapes alone, for which the
            plan then has the kernels of a static plan. Sessions choose it by themselves.
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
    opt_profile: bool = False
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
            raise SpecError(f"optimization level {self.optimization_level}: it goes from 0 to 5")
        if self.max_aux_streams is not None and not 0 <= self.max_aux_streams < 2**31:
            raise SpecError(
                f"max_aux_streams {self.max_aux_streams}: it cannot be negative, or above 2^31"
            )
        if self.workspace_bytes is not None and not 0 < self.workspace_bytes <= _MOST:
            raise SpecError(f"workspace of {self.workspace_bytes} bytes: it must be positive")
        if self.precision is Precision.TF32 and self.tf32 is False:
            raise SpecError("precision tf32 contradicts --no-tf32; use precision fp32")
        self._check_quantization()
        for text in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", text):
                raise SpecError(f"compute capability {text!r}: write it as 8.6, 8.9 or 12.0")

    def _check_quantization(self) -> None:
        if not self.precision.quantized and self.quantization != QuantizationSpec():
            given = ", ".join(_changed(self.quantization))
            raise SpecError(
                f"{given}: no effect at precision {self.precision}; this is for precision int8,"
                " fp8 and int8-weights"
            )
        spec = self.quantization
        if (spec.calibration or spec.data) and not self.precision.needs_ranges:
            raise SpecError(
                f"calibration: no effect at precision {self.precision}, which needs no ranges"
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
