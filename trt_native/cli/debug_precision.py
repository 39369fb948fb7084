"""``trt-native debug precision``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stderr, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    check_seed,
    fill_random,
    open_inputs,
    read_extents,
    read_shapes,
)
from trt_native.cli.options import BackendOption, completing, read_fields, with_fields
from trt_native.config import BuildConfig, Precision, QuantizationSpec
from trt_native.errors import SpecError

if TYPE_CHECKING:
    from trt_native.arrays import Array, Batch
    from trt_native.debug.precision import Candidate, Measure, Placement

__all__ = ["precision"]

_INPUTS, _QUANTIZATION = "Inputs", "Quantization (int8, fp8, int8-weights, int4-weights)"
_LISTED = 30
_KEEP, _EXCLUDE = "--keep-fp32", "--quantize-exclude"
_NAMES = ("fp16", "bf16", "int8", "fp8", "int8-weights", "int4-weights")
_FIELDS = (
    "calibration_cache",
    "calibration_method",
    "calibration_runner",
    "calibration_memory_bytes",
    "ops",
    "exclude",
    "preset",
    "block_size",
)


@report_errors
@with_fields(QuantizationSpec, before="inputs", flags=dict.fromkeys(_FIELDS, ""))
def precision(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model, in FP32.")],
    max_error: Annotated[
        float,
        typer.Option(help="Largest relative L2 error of an output, against the model as it is."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--precision",
            help="What the other nodes are computed in: fp16 or bf16; or int8, fp8, int8-weights or"
            " int4-weights, to search for nodes that must not be quantized.",
            autocompletion=completing(*_NAMES),
        ),
    ] = "fp16",
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of nodes that stay FP32 in any case. Repeatable."),
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            help="gpu: plans are built and run; cpu: the reduced ONNX model is run, which rounds as"
            " its types say, but not as TensorRT's fusions do; auto: gpu where there is one.",
            autocompletion=completing("auto", "cpu", "gpu"),
        ),
    ] = "auto",
    backend: BackendOption = "auto",
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE.npz|FILE.py:FUNCTION",
            help="Calibration data to find the ranges with, once, instead of a cache.",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help=INPUT_HELP, rich_help_panel=_INPUTS)
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help=RANDOM_HELP + " \\[default: the first batch of --calibration-data, else 0]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="Extent of a dynamic dimension. Repeatable. \\[default: 2]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of a random input, NAME=1x3x8x8.", rich_help_panel=_INPUTS),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    **options: Any,
) -> None:
    r"""Find the few and cheap nodes that must stay FP32, or not quantized, for an error to hold.

    $ trt-native debug precision net.onnx --max-error 0.01
    $ trt-native debug precision net.onnx --max-error 0.05 \
        --precision int8 --calibration-data batches/
    """
    if not max_error >= 0:
        raise SpecError(f"--max-error {max_error}: must be 0 or more")
    options["calibration_data"] = calibration_data
    config = _config(to, tuple(keep_fp32 or ()), options)
    on_gpu = _on_gpu(measure)
    search = _search_quantized if config.precision.quantized else _search_reduced
    given = _Inputs(inputs or [], random, shape or [], read_extents(dim or []))
    placement, nodes = search(model, config, on_gpu, backend, given, max_error)
    option = _EXCLUDE if config.precision.quantized else _KEEP
    if json:
        document = {**asdict(placement), "option": option}
        print_json({**document, "measured_on": "gpu" if on_gpu else "cpu"})
        return
    _print(placement, nodes, on_gpu, option)


def _config(to: str, keep_fp32: tuple[str, ...], options: dict[str, Any]) -> BuildConfig:
    """The configuration of plans in which nothing is left as it is yet."""
    found = Precision.parse(to)
    if str(found) not in _NAMES:
        raise SpecError(f"--precision {to}: choose {', '.join(_NAMES[:-1])} or {_NAMES[-1]}")
    spec = QuantizationSpec(**read_fields(QuantizationSpec, options))
    if not found.quantized and spec != QuantizationSpec():
        raise SpecError(
            f"options of calibration and quantization have no effect on {found}; leave them out, or"
            " choose precision int8, fp8, int8-weights or int4-weights"
        )
    if not found.needs_ranges and spec.calibration_cache is not None:
        raise SpecError(
            f"--calibration-cache: no effect on {found}, which needs no ranges; leave it out"
        )
    return BuildConfig(precision=found, keep_fp32=keep_fp32, quantization=spec)


def _search_reduced(
    model: Path,
    config: BuildConfig,
    on_gpu: bool,
    backend: str,
    given: _Inputs,
    max_error: float,
) -> tuple[Placement, Sequence[Candidate]]:
    """Search the nodes that must stay FP32."""
    from trt_native.debug.precision import (
        candidates,
        find_fp32_nodes,
        measure_on_cpu,
        measure_on_gpu,
    )

    arrays = given.arrays(model)
    nodes = candidates(model, {name: array.shape for name, array in arrays.items()})
    if on_gpu:
        measure = measure_on_gpu(model, config, backend, arrays)
    else:
        measure = measure_on_cpu(model, config.precision, arrays, config.keep_fp32)
    return find_fp32_nodes(nodes, _reporting(measure, "in FP32"), max_error), nodes


def _search_quantized(
    model: Path,
    config: BuildConfig,
    on_gpu: bool,
    backend: str,
    given: _Inputs,
    max_error: float,
) -> tuple[Placement, Sequence[Candidate]]:
    """Search the nodes that must not be quantized."""
    from trt_native.backends.registry import load_backend
    from trt_native.builder.activation_ranges import check_ranges
    from trt_native.debug import quantization
    from trt_native.progress_bars import ProgressDisplay

    check_ranges(config)
    with (
        ProgressDisplay(stderr) as progress,
        quantization.calibrated(model, config, backend, progress) as (ranged, batch),
    ):
        arrays = given.arrays(model, batch)
        builder = load_backend(backend) if on_gpu else None
        nodes = quantization.quantized_nodes(model, ranged, arrays, builder)
        if on_gpu:
            measure = quantization.measure_quantized_on_gpu(model, ranged, nodes, backend, arrays)
        else:
            measure = quantization.measure_quantized_on_cpu(model, ranged, nodes, arrays)
        measure = _reporting(measure, "not quantized")
        found = quantization.find_unquantized_nodes(nodes, measure, max_error)
    return found, nodes.candidates


def _on_gpu(measure: str) -> bool:
    from trt_native.cuda import gpu_info, require_gpu

    if measure not in ("auto", "cpu", "gpu"):
        raise SpecError(f"--measure {measure}: choose auto, cpu or gpu")
    if measure == "gpu":
        require_gpu()
    return measure == "gpu" or (measure == "auto" and gpu_info() is not None)


class _Inputs(NamedTuple):
    """What the command line says about the inputs."""

    entries: list[str]
    seed: int | None
    shapes: list[str]
    dims: dict[str, int]

    def arrays(self, model: Path, batch: Batch | None = None) -> dict[str, Array]:
        """The inputs to measure with.

        Args:
            model: The ONNX file.
            batch: What to take where nothing is said.
        """
        import numpy as np

        from trt_native.verify.models import model_inputs

        if batch is not None and self == _Inputs([], None, [], {}):
            return dict(batch)
        given_shapes = read_shapes(self.shapes)
        check_seed(0 if self.seed is None else self.seed, given_shapes)
        with open_inputs(self.entries) as given:
            tensors = model_inputs(model, {**given_shapes, **given.shapes}, self.dims)
            arrays = given.read(tensors)
        left = {name: shape for name, shape in given_shapes.items() if name not in arrays}
        return fill_random(tensors, arrays, left, np.random.default_rng(self.seed or 0))


def _reporting(measure: Measure, left: str) -> Measure:
    """The measure, which says on standard error what it finds."""
    count = 0

    def reporting(kept: Any) -> float:
        nonlocal count
        found = measure(kept)
        count += 1
        patterns = "1 pattern" if len(kept) == 1 else f"{len(kept)} patterns"
        stderr.print(f"measurement {count}: {patterns} {left}: error {found:.3g}", highlight=False)
        return found

    return reporting


def _print(placement: Placement, nodes: Sequence[Candidate], on_gpu: bool, option: str) -> None:
    where = "plans on the GPU" if on_gpu else "the reduced ONNX model on the CPU"
    operators = {node.name: node.operator for node in nodes}
    listed = [f"{name} ({operators[name]})" for name in placement.kept[:_LISTED]]
    if len(placement.kept) > _LISTED:
        listed.append(f"and {len(placement.kept) - _LISTED} more")
    table(
        "Precision",
        ("", ""),
        [
            ("error without", f"{placement.reduced_error:.3g}"),
            ("error with", f"{placement.error:.3g}"),
            (
                "in FP32" if option == _KEEP else "not quantized",
                tuple(listed) or "no node is needed",
            ),
            ("their work", f"{placement.cost_share:.1%} of the operations"),
            ("measured", f"{placement.measured} times, by {where}"),
        ],
    )
    if placement.patterns:
        words = [word for pattern in placement.patterns for word in (option, pattern)]
        print_command(shlex.join(words))
