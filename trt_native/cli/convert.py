"""``trt-native convert``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    GivenInputs,
    check_not_fixed,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
    split_entry,
)
from trt_native.cli.options import complete_backend, completing, read_fields, with_fields
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import SpecError, TrtNativeError, UnsupportedError
from trt_native.shapes import ProfileSpec, Shape
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.builder.convert import ConvertedFile
    from trt_native.progress import Progress
    from trt_native.verify import OutputComparison

__all__ = ["convert"]

_COMPARISON, _TARGET = "Comparison with the original", "Target"
_OWN = ("io_precision", "keep_fp32", "fixed_inputs")
_QUANTIZATION = tuple(QuantizationSpec.__dataclass_fields__)
_CHEAP = 4e8  # multiply-adds that the reference does in a few seconds


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
            help="int8, fp8 or int8-weights: write Q/DQ nodes, as trt-native quantize does."
            " \\[default: none]",
            autocompletion=completing("int8", "fp8", "int8-weights"),
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
    """Write an ONNX model as a build would change it, for any tool: in FP16, BF16, INT8, FP8."""
    from trt_native.builder.conversion_config import ConversionConfig
    from trt_native.progress_bars import ProgressDisplay

    config = ConversionConfig(
        precision=precision,  # type: ignore[arg-type]  # which it reads
        quantize=quantize,  # type: ignore[arg-type]
        quantization=QuantizationSpec(**read_fields(QuantizationSpec, options)),
        dims=_extents(dims or []),
        lower=lower,
        opset=opset,
        **read_fields(BuildConfig, options),
    )
    fixed = config.build_config().fixed_values()
    with open_inputs(inputs or []) as given, ProgressDisplay(stderr, brief=True) as progress:
        check_not_fixed(given.names, fixed)
        samples = _Samples(given, random, read_shapes(shape or []))
        _check_not_overwritten(output, inputs or [])
        result = _convert(model, output, config, backend, progress)
        compared = samples.compare(model, result, config, progress)
    if json:
        print_json({**result.to_dict(), **compared.to_dict()})
        return
    _print(result, compared)
    for problem in compared.problems:
        stderr.print(f"warning: {problem}", markup=False, highlight=False)


def _extents(dims: list[str]) -> dict[str, int]:
    ranges = ProfileSpec.parse(dims).dims
    for name, extents in ranges.items():
        if extents.min != extents.max:
            raise SpecError(
                f"--dim {name}={extents}: an ONNX file has no ranges; give one extent, or leave"
                " the dimension as it is"
            )
    return {name: extents.opt for name, extents in ranges.items()}


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


@dataclass(frozen=True, slots=True)
class _Compared:
    """Comparison of the result with the original.

    Attributes:
        outputs: The comparison of each output; empty where there is none.
        inputs: Description of the inputs, or the reason why nothing was compared.
        problems: Outputs beyond the error that the precision explains.
    """

    outputs: tuple[OutputComparison, ...]
    inputs: str
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        if not self.outputs:
            return {"error": None, "not_compared": self.inputs}
        keys = ("name", "relative_l2", "max_abs", "nonfinite_differs")
        outputs = [{key: found.to_json()[key] for key in keys} for found in self.outputs]
        return {"error": outputs, "compared_with": self.inputs, "problems": list(self.problems)}

    def lines(self) -> tuple[str, ...]:
        """What was found, for people."""
        if not self.outputs:
            return (f"not compared: {self.inputs}",)
        worst = max(self.outputs, key=lambda found: found.relative_l2)
        of = f", the largest of {len(self.outputs)} outputs" if len(self.outputs) > 1 else ""
        return (
            f"relative L2 {worst.relative_l2:.2g}, at most {worst.max_abs:.2g} ({worst.name}{of})",
            f"on the CPU, with {self.inputs}",
        )


class _Samples:
    """The inputs to compare with, from the options."""

    def __init__(self, given: GivenInputs, seed: int | None, shapes: Mapping[str, Shape]) -> None:
        self._seed = 0 if seed is None and shapes else seed
        check_seed(self._seed, dict(shapes))
        self._given, self._shapes = given, shapes

    def compare(
        self, model: Path, result: ConvertedFile, config: ConversionConfig, progress: Progress
    ) -> _Compared:
        try:
            return self._compare(model, result, config, progress)
        except TrtNativeError as error:
            if self._seed is not None or self._given.names:
                raise
            is_missing = isinstance(error, UnsupportedError)
            hint = "" if is_missing else "; give other inputs with --input or --shape"
            return _Compared((), f"{error.message}{hint}")

    def _compare(
        self, model: Path, result: ConvertedFile, config: ConversionConfig, progress: Progress
    ) -> _Compared:
        import numpy as np

        from trt_native.verify.metrics import Thresholds, relative_limit
        from trt_native.verify.models import (
            compare_models,
            model_inputs,
            product_size,
            random_operators,
        )

        if drawing := random_operators(model):
            return _Compared((), f"the model draws random numbers ({', '.join(drawing)})")
        fixed = config.build_config().fixed_values()
        tensors = model_inputs(result.path, {**self._shapes, **self._given.shapes})
        described = f"random inputs (seed {self._seed or 0})"
        if self._given.names:
            described = "the inputs given"
        elif self._seed is None:
            size = product_size(model, {t.name: t.shape for t in tensors}, fixed)
            if size is None or size > _CHEAP:
                counted = "an unknown number of" if size is None else f"{size:.1e}"
                return _Compared(
                    (), f"{counted} multiply-adds take the CPU long; compare with --random 0"
                )
        arrays = self._given.read(tensors)
        if self._seed is not None or not self._given.names:
            arrays = fill_random(tensors, arrays, {}, np.random.default_rng(self._seed or 0))
        found = compare_models(model, result.path, arrays, fixed_inputs=fixed, progress=progress)
        limit = Thresholds(max_relative_error=relative_limit(_arithmetic(model, config)))
        problems = [
            f"output {output.name!r}: {problem}"
            for output in found
            for problem in limit.problems(output)
        ]
        return _Compared(found, described, tuple(problems))


def _arithmetic(model: Path, config: ConversionConfig) -> str:
    """What the error of the result is due to."""
    if config.quantize is not None or config.precision is not None:
        return str(config.quantize or config.precision)
    from trt_native.graph.onnx_file import read_model
    from trt_native.graph.types import reduced_types

    types = reduced_types(read_model(model))
    return "bf16" if "bfloat16" in types else "fp16" if types else "fp32"


def _print(result: ConvertedFile, compared: _Compared) -> None:
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
