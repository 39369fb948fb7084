"""``trt-native debug precision``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stderr, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
)
from trt_native.cli.options import BackendOption, completing
from trt_native.config import BuildConfig, Precision
from trt_native.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

    from trt_native.debug.precision import Candidate, Measure, Placement

__all__ = ["precision"]

_INPUTS = "Inputs"
_LISTED = 30


@report_errors
def precision(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model, in FP32.")],
    max_error: Annotated[
        float,
        typer.Option(help="Largest relative L2 error of an output, against the model in FP32."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp16 or bf16: what the other nodes are computed in.",
            autocompletion=completing("fp16", "bf16"),
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
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help=INPUT_HELP, rich_help_panel=_INPUTS)
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="SEED", help=RANDOM_HELP + " \\[default: 0]", rich_help_panel=_INPUTS),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of a random input, NAME=1x3x8x8. \\[default: 2 for a dynamic extent]",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Find the few and cheap nodes that must stay FP32 for an error to hold.

    $ trt-native debug precision net.onnx --max-error 0.01
    """
    from trt_native.debug.precision import candidates, find_fp32_nodes

    if not max_error >= 0:
        raise SpecError(f"--max-error {max_error}: must be 0 or more")
    reduced = _reduced(to)
    on_gpu = _on_gpu(measure)
    arrays = _arrays(model, inputs or [], random, shape or [])
    nodes = candidates(model, {name: array.shape for name, array in arrays.items()})
    chosen = _measure(model, reduced, on_gpu, backend, arrays, tuple(keep_fp32 or ()))
    placement = find_fp32_nodes(nodes, _reporting(chosen), max_error)
    if json:
        print_json({**asdict(placement), "measured_on": "gpu" if on_gpu else "cpu"})
        return
    _print(placement, nodes, on_gpu)


def _reduced(text: str) -> Precision:
    found = Precision.parse(text)
    if found not in (Precision.FP16, Precision.BF16):
        raise SpecError(f"--precision {text}: choose fp16 or bf16")
    return found


def _on_gpu(measure: str) -> bool:
    from trt_native.cuda import gpu_info, require_gpu

    if measure not in ("auto", "cpu", "gpu"):
        raise SpecError(f"--measure {measure}: choose auto, cpu or gpu")
    if measure == "gpu":
        require_gpu()
    return measure == "gpu" or (measure == "auto" and gpu_info() is not None)


def _arrays(
    model: Path, entries: list[str], seed: int | None, shapes: list[str]
) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    from trt_native.verify.models import model_inputs

    given_shapes = read_shapes(shapes)
    check_seed(0 if seed is None else seed, given_shapes)
    with open_inputs(entries) as given:
        tensors = model_inputs(model, {**given_shapes, **given.shapes})
        arrays = given.read(tensors)
    left = {name: shape for name, shape in given_shapes.items() if name not in arrays}
    return fill_random(tensors, arrays, left, np.random.default_rng(seed or 0))


def _measure(
    model: Path,
    reduced: Precision,
    on_gpu: bool,
    backend: str,
    arrays: dict[str, np.ndarray[Any, Any]],
    keep_fp32: tuple[str, ...],
) -> Measure:
    from trt_native.debug.precision import measure_on_cpu, measure_on_gpu

    if not on_gpu:
        return measure_on_cpu(model, reduced, arrays, keep_fp32)
    config = BuildConfig(precision=reduced, keep_fp32=keep_fp32)
    return measure_on_gpu(model, config, backend, arrays)


def _reporting(measure: Measure) -> Measure:
    """The measure, which says on standard error what it finds."""
    count = 0

    def reporting(kept: Any) -> float:
        nonlocal count
        found = measure(kept)
        count += 1
        patterns = "1 pattern" if len(kept) == 1 else f"{len(kept)} patterns"
        stderr.print(f"measurement {count}: {patterns} in FP32: error {found:.3g}", highlight=False)
        return found

    return reporting


def _print(placement: Placement, nodes: tuple[Candidate, ...], on_gpu: bool) -> None:
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
            ("in FP32", tuple(listed) or "no node is needed"),
            ("their work", f"{placement.cost_share:.1%} of the operations"),
            ("measured", f"{placement.measured} times, by {where}"),
        ],
    )
    if placement.patterns:
        words = [word for pattern in placement.patterns for word in ("--keep-fp32", pattern)]
        print_command(shlex.join(words))
