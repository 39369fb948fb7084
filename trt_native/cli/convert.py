"""``trt-native convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    check_not_fixed,
    open_inputs,
    read_extents,
    read_shapes,
    split_entry,
)
from trt_native.cli.options import complete_backend, completing, read_fields, with_fields
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.builder.convert import ConvertedFile
    from trt_native.cli.conversion_comparison import ConversionComparison
    from trt_native.progress import Progress

__all__ = ["convert"]

_COMPARISON, _TARGET = "Comparison with the original", "Target"
_OWN = ("io_precision", "keep_fp32", "fixed_inputs")
_QUANTIZATION = tuple(QuantizationSpec.__dataclass_fields__)


@report_errors
@with_fields(BuildConfig, before="quantize", flags=dict.fromkeys((*_OWN, *_QUANTIZATION), ""))
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp16, bf16 or fp32: arithmetic of what is not quantized."
            " \\[default: as in the model]",
            autocompletion=completing("fp16", "bf16", "fp32"),
            rich_help_panel="Precision",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="int8, fp8, int8-weights or int4-weights: write Q/DQ nodes, as trt-native"
            " quantize does."
            " \\[default: none]",
            autocompletion=completing("int8", "fp8", "int8-weights", "int4-weights"),
            rich_help_panel="Precision",
        ),
    ] = None,
    dims: Annotated[
        list[str] | None,
        typer.Option(
            "--dim",
            metavar="NAME=N",
            help="Fix a symbolic dimension. Repeatable.",
            rich_help_panel="Shapes",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Version of ONNX's operators, 13 or later; refused where an operator has no equal"
            " form there. \\[default: the model's, or what the precision needs]",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    lower: Annotated[
        bool,
        typer.Option(
            "--lower",
            help="Rewrite what the backend refuses or miscompiles, as build does.",
            rich_help_panel=_TARGET,
        ),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            help="auto, tensorrt or rtx: the TensorRT that --lower is for, and --quantize."
            " \\[default: any; for --lower auto]",
            autocompletion=complete_backend,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help=INPUT_HELP, rich_help_panel=_COMPARISON)
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help=RANDOM_HELP + " \\[default: 0 where the CPU takes seconds]",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of a random input, NAME=1x3x8x8. \\[default: 2 for a dynamic extent]",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    **options: Any,
) -> None:
    r"""Write an ONNX model as a build would change it, for any tool: in FP16, BF16, INT8, FP8.

    $ trt-native convert net.onnx -o net.fp16.onnx \
        --precision fp16
    """
    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.cli.conversion_comparison import ConversionSamples
    from trt_native.progress_bars import ProgressDisplay

    config = ConversionConfig(
        precision=precision,  # type: ignore[arg-type]  # which it reads
        quantize=quantize,  # type: ignore[arg-type]
        quantization=QuantizationSpec(**read_fields(QuantizationSpec, options)),
        dims=read_extents(dims or []),
        lower=lower,
        opset=opset,
        **read_fields(BuildConfig, options),
    )
    fixed = config.build_config().fixed_values()
    with open_inputs(inputs or []) as given, ProgressDisplay(stderr, brief=True) as progress:
        check_not_fixed(given.names, fixed)
        samples = ConversionSamples(given, random, read_shapes(shape or []))
        _check_not_overwritten(output, inputs or [])
        samples.check(model)
        result = _convert(model, output, config, backend, progress)
        compared = samples.compare(model, result, config, progress)
    if json:
        print_json({**result.to_dict(), **compared.to_dict()})
        return
    _print(result, compared)
    for problem in compared.problems:
        stderr.print(f"warning: {problem}", markup=False, highlight=False)


def _check_not_overwritten(output: Path, inputs: list[str]) -> None:
    from trt_native.graph.outputs import check_outputs

    files = [file for _, file in map(split_entry, inputs)]
    check_outputs([output, Path(f"{output}.data")], reads=files)


def _convert(
    model: Path,
    output: Path,
    config: ConversionConfig,
    backend: str | None,
    progress: Progress,
) -> ConvertedFile:
    if config.lower:  # asks TensorRT's parser, which may crash
        from trt_native.builder.isolated import convert_in_child

        return convert_in_child(model, output, config, backend or "auto", progress)
    from trt_native.builder.convert import convert_onnx

    result: ConvertedFile = convert_onnx(model, output, config, backend=backend, progress=progress)
    return result


def _print(result: ConvertedFile, compared: ConversionComparison) -> None:
    before, after = map(format_bytes, (result.weight_bytes_before, result.weight_bytes_after))
    rows: list[tuple[str, object]] = [
        ("ONNX", f"{result.path} ({format_bytes(result.total_bytes)})"),
        ("weights", str(result.external_data or "inside the ONNX file")),
        ("for", result.backend or "any tool"),
        ("opset", result.opset),
        *(
            (record["name"], tuple(record["summary"].split("\n")))
            for record in result.passes
            if record["summary"]
        ),
        *([("still refused", result.refused)] if result.refused else []),
        ("size of weights", f"{before} before, {after} after"),
        ("error", compared.lines()),
        ("time", f"{result.seconds:.1f} s"),
    ]
    table("Converted", ("", ""), rows)
