"""``trt-native quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.config import Precision, QuantizationSpec
from trt_native.errors import SpecError
from trt_native.shapes import ProfileSpec
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.quantize_file import QuantizedFile

__all__ = [
    "CALIBRATION_CACHE_HELP",
    "COVERAGE_HELP",
    "EXCLUDE_HELP",
    "MEMORY_HELP",
    "OPS_HELP",
    "PRESET_HELP",
    "RUNNER_HELP",
    "engine_layers_text",
    "parse_ops",
    "quantize",
]

_NAMED = 10
CALIBRATION_CACHE_HELP = "Calibration cache with the ranges of the activations."
RUNNER_HELP = (
    "What runs the model with the data: engine (TensorRT, on the GPU), engine-fp16, reference"
    " (onnx.reference, on the CPU), or auto: an engine where there is a GPU."
)
MEMORY_HELP = (
    "GPU memory for the activations of one engine, which decides how many engines it takes."
    " \\[default: 8GiB, or half of what is free]"
)
OPS_HELP = "Operators to quantize, such as Conv,MatMul,Gemm. \\[default: what suits the format]"
EXCLUDE_HELP = (
    "Shell pattern of nodes to leave alone, such as '*/to_out*' or 'op:Gemm'. Repeatable."
)
PRESET_HELP = "default, or diffusion-unet: leave a denoiser's sensitive layers alone."
COVERAGE_HELP = "Fail if less than this share of the multiply-adds is quantized, 0 to 1."


@report_errors
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    calibration_cache: Annotated[Path | None, typer.Option(help=CALIBRATION_CACHE_HELP)] = None,
    format: Annotated[  # noqa: A002
        str,
        typer.Option(help="int8, fp8, or int8-weights: only the weights, without calibration."),
    ] = "int8",
    ops: Annotated[str | None, typer.Option("--quantize-ops", help=OPS_HELP)] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--quantize-exclude", help=EXCLUDE_HELP)
    ] = None,
    preset: Annotated[str, typer.Option("--quantize-preset", help=PRESET_HELP)] = "default",
    min_coverage: Annotated[
        float, typer.Option("--quantize-min-coverage", help=COVERAGE_HELP)
    ] = 0.0,
    dim: Annotated[
        list[str] | None,
        typer.Option(
            help="Extent to count multiply-adds for: NAME=N. Repeatable. \\[default: calibration's]"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write Q/DQ nodes into an ONNX model, for any TensorRT to build in INT8 or FP8."""
    spec = QuantizationSpec(
        calibration_cache=calibration_cache,
        ops=parse_ops(ops),
        exclude=tuple(exclude or ()),
        preset=preset,
        min_coverage=min_coverage,
    )
    precision = _parse_format(format)
    if calibration_cache is not None and not precision.needs_ranges:
        raise SpecError(
            f"--calibration-cache: no effect on {precision}, which needs no ranges; leave it out"
        )
    from trt_native.builder.quantize_file import quantize_onnx

    dims = ProfileSpec.parse(dim) if dim else None
    with stderr.status(f"quantizing to {precision}") as status:
        result = quantize_onnx(model, output, precision, spec, dims=dims)
        status.stop()
    if json:
        print_json(result.to_dict())
    else:
        _print(result)


def parse_ops(text: str | None) -> tuple[str, ...]:
    """Read ``Conv,MatMul``; None is no choice.

    Raises:
        SpecError: no operator is named.
    """
    if text is None:
        return ()
    ops = tuple(filter(None, (operator.strip() for operator in text.split(","))))
    if not ops:
        raise SpecError(
            f"{text!r} names no operator; write for example Conv,MatMul,Gemm",
            options=("ops",),
        )
    return ops


def _parse_format(text: str) -> Precision:
    known = [precision for precision in Precision if precision.quantized]
    for precision in known:
        if text.lower().replace("_", "-") == precision.value:
            return precision
    raise SpecError(f"--format {text!r} is none of: {', '.join(map(str, known))}")


def engine_layers_text(record: Mapping[str, Any] | None) -> str:
    """How many layers of an engine compute in INT8 or FP8, from its manifest."""
    if record is None:
        return "unknown: the engine could not be asked where it was built, or does not tell"
    counts = {precision.upper(): len(record.get(precision, ())) for precision in ("int8", "fp8")}
    found = " and ".join(f"{count} in {name}" for name, count in counts.items() if count)
    return f"{found or 'none'} of {record['layers']} layers"


def _print(result: QuantizedFile) -> None:
    report = result.report
    before, after = map(format_bytes, (report.model_bytes_before, report.model_bytes_after))
    rows = [
        ("ONNX", f"{result.path} ({format_bytes(result.total_bytes)})"),
        ("weights", str(result.external_data or "inside the ONNX file")),
        ("format", report.format),
        ("quantized", report.coverage_text()),
        ("left alone", report.explain()),
        ("size of weights", f"{before} before, {after} after"),
    ]
    if report.without_range:
        names = ", ".join(report.without_range[:_NAMED])
        more = len(report.without_range) - _NAMED
        rows.append(("no range for", names + (f" and {more} more" if more > 0 else "")))
    if report.opset is not None:
        rows.append(("opset", f"raised to {report.opset}"))
    rows.append(("time", f"{result.seconds:.1f} s"))
    table("Quantized", ("", ""), rows)
