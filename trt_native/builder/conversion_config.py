"""Options of a conversion from ONNX to ONNX: plain, frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trt_native.config import (
    BuildConfig,
    IoPrecision,
    Precision,
    QuantizationSpec,
    with_known_names,
)
from trt_native.errors import SpecError

__all__ = ["ARITHMETIC", "ConversionConfig"]

ARITHMETIC = (Precision.FP32, Precision.FP16, Precision.BF16)
"""Precisions that the floating-point arithmetic of an ONNX file can have."""


@with_known_names
@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionConfig:
    """Options of :func:`~trt_native.builder.convert.convert_onnx`, apart from the files.

    Choices may be given as their texts. What a build has too means the same there; see
    :class:`~trt_native.config.BuildConfig`.

    Attributes:
        precision: Arithmetic of the nodes that are not quantized: FP32, FP16 or BF16. FP32 changes
            nothing in a graph in FP32, and is an error for any other. None: as in the model.
        quantize: INT8, FP8, INT8_WEIGHTS or INT4_WEIGHTS, for which Q/DQ nodes are written; None
            for none.
        quantization: What to quantize. Without ``quantize``, its calibration data, runner and
            memory serve FP16, where measured magnitudes replace estimates.
        io_precision: Type of the floating-point inputs and outputs; KEEP is the model's.
        keep_fp32: Shell patterns of ONNX node names, or of operators (``op:Resize``), that keep
            FP32 arithmetic.
        fixed_inputs: Inputs with one element that become constants, such as ``("sr=16000",)``.
        dims: Symbolic dimension to the extent that it has from now on.
        lower: Rewrite what the backend refuses or miscompiles, as a build does.
        opset: Version of ONNX's operators; None: the model's, or the one that the rest needs.
    """

    precision: Precision | None = None
    quantize: Precision | None = None
    quantization: QuantizationSpec = field(default_factory=QuantizationSpec)
    io_precision: IoPrecision = IoPrecision.KEEP
    keep_fp32: tuple[str, ...] = ()
    fixed_inputs: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    lower: bool = False
    opset: int | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            object.__setattr__(self, "precision", _choice("precision", self.precision, ARITHMETIC))
        if self.quantize is not None:
            quantized = tuple(one for one in Precision if one.quantized)
            object.__setattr__(self, "quantize", _choice("quantize", self.quantize, quantized))
        build = self.build_config()
        for name in ("quantization", "io_precision", "keep_fp32", "fixed_inputs"):
            object.__setattr__(self, name, getattr(build, name))
        types = {"dims": Mapping, "lower": bool, "opset": int | None}
        for name, kind in types.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                expected = {"dims": "a mapping of names to extents", "lower": "True or False"}
                raise SpecError(
                    f"{name}: not {expected.get(name, 'a whole number')}: {value!r}",
                    options=(name,),
                )
        for name, extent in self.dims.items():
            if not isinstance(name, str):
                raise SpecError(f"dims: not the name of a dimension: {name!r}", options=("dims",))
            if not isinstance(extent, int) or isinstance(extent, bool) or extent < 1:
                raise SpecError(
                    f"dimension {name!r}: {extent!r} is not one extent, of 1 or more; a range"
                    " belongs to a build",
                    options=("dims",),
                )
        changes = (
            self.precision,
            self.quantize,
            self.fixed_inputs,
            self.dims,
            self.lower,
            self.opset,
        )
        if not any(changes):
            raise SpecError(
                "nothing to convert: give a precision, a format to quantize to, an opset,"
                " dimensions or inputs to fix, or ask to lower what a backend refuses",
                options=("precision", "quantize", "opset", "dims", "fixed_inputs", "lower"),
            )

    def build_config(self) -> BuildConfig:
        """The configuration of a build that applies the same passes.

        Raises:
            SpecError: an option cannot be read, or has no effect on such a build.
        """
        return BuildConfig(
            precision=self.quantize or self.precision or Precision.AUTO,
            quantization=self.quantization,
            io_precision=self.io_precision,
            keep_fp32=self.keep_fp32,
            fixed_inputs=self.fixed_inputs,
        )


def _choice(name: str, value: Precision, known: tuple[Precision, ...]) -> Precision:
    text = str(value).lower().replace("_", "-")
    if text not in [str(one) for one in known]:
        others = known is ARITHMETIC and text in [str(one) for one in Precision if one.quantized]
        meant = "; it is a format to quantize to" if others else ""
        raise SpecError(
            f"{name} {text!r} is none of: {', '.join(map(str, known))}{meant}",
            options=(name, "quantize") if others else (name,),
        )
    return Precision(text)
