"""``trt-native quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.options import complete_backend, completing, read_fields, with_fields
from trt_native.config import Precision, QuantizationSpec
from trt_native.errors import SpecError
from trt_native.progress_bars import ProgressDisplay
from trt_native.shapes import ProfileSpec
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.quantize_file import QuantizedFile

__all__ = ["quantize"]

_NAMED = 10
_FORMATS = tuple(precision.value for precision in Precision if precision.quantized)
_FIELDS = (
    "calibration_cache",
    "calibration_data",
    "calibration_runner",
    "calibration_memory_bytes",
    "ops",
    "exclude",
    "preset",
    "min_coverage",
    "block_size",
)


@report_errors
@with_fields(QuantizationSpec, before="dims", flags=dict.fromkeys(_FIELDS, ""), panels=False)
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="int8, fp8, or only the weights: int8-weights, int4-weights.",
            autocompletion=completing(*_FORMATS),
        ),
    ] = "int8",
    dims: Annotated[
        list[str] | None,
        typer.Option(
            "--dim",
            metavar="NAME=N",
            help="Extent to count multiply-adds for. Repeatable. \\[default: calibration's]",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="auto, tensorrt or rtx: leave alone what that TensorRT does not build in the"
            " format. \\[default: quantize for any]",
            autocompletion=complete_backend,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    **options: Any,
) -> None:
    r"""Write Q/DQ nodes into an ONNX model, for any TensorRT to build in INT8 or FP8.

    $ trt-native quantize net.onnx -o net.int8.onnx \
        --calibration-cache net.calib
    $ trt-native quantize net.onnx -o net.int4.onnx \
        --format int4-weights
    """
    spec = QuantizationSpec(**read_fields(QuantizationSpec, options))
    precision = _parse_format(format)
    if spec.calibration_cache is not None and not precision.needs_ranges:
        raise SpecError(
            f"--calibration-cache: no effect on {precision}, which needs no ranges; leave it out"
        )
    from trt_native.builder.quantize_file import quantize_onnx

    extents = ProfileSpec.parse(dims) if dims else None
    with ProgressDisplay(stderr) as progress:
        result = quantize_onnx(
            model, output, precision, spec, dims=extents, backend=backend, progress=progress
        )
    if json:
        print_json(result.to_dict())
    else:
        _print(result)


def _parse_format(text: str) -> Precision:
    wanted = text.lower().replace("_", "-")
    if wanted in _FORMATS:
        return Precision(wanted)
    raise SpecError(f"--format {text!r} is none of: {', '.join(_FORMATS)}")


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
    if report.errors:
        error, _, nearest = report.error_text().partition("; rounded to nearest: ")
        rows.append(("error", error))
        if nearest:
            rows.append(("rounded to nearest", nearest))
    if report.without_range:
        names = ", ".join(report.without_range[:_NAMED])
        more = len(report.without_range) - _NAMED
        rows.append(("no range for", names + (f" and {more} more" if more > 0 else "")))
    if report.raised is not None:
        rows.append(("opset", str(report.raised)))
    rows.append(("time", f"{result.seconds:.1f} s"))
    table("Quantized", ("", ""), rows)
