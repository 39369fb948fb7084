"""``trt-native calibrate``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout, table
from trt_native.cli.options import complete_backend, read_fields, with_fields
from trt_native.config import CalibrationMethod, CalibrationRunner, QuantizationSpec
from trt_native.errors import SpecError
from trt_native.files import with_ending
from trt_native.progress import phase
from trt_native.progress_bars import ProgressDisplay
from trt_native.units import counted

if TYPE_CHECKING:
    from trt_native.calibration.caches import CalibrationCache

__all__ = ["calibrate"]

_LISTED = 8  # names of tensors in one line of the summary
_PANEL = "Existing caches"


@report_errors
@with_fields(
    QuantizationSpec,
    before="backend",
    flags={"calibration_runner": "", "calibration_memory_bytes": ""},
    panels=False,
)
def calibrate(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--calibration-data",
            "--data",
            metavar="FOLDER|FILE.npz|FILE.py:FUNCTION",
            help="Calibration data: a folder of .npz or .npy files, one .npz file, or"
            " FILE.py:FUNCTION that yields {input name: array}.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The cache to write. \\[default: MODEL.calib]"),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--calibration-method",
            help="How ranges follow from values: entropy (TensorRT's own), minmax, percentile or"
            " mse.",
        ),
    ] = "mse",
    percentile: Annotated[
        float | None,
        typer.Option(help="Percentage of values to cover. \\[default: 99.99]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--batches", metavar="N", help="Use only the first N batches.")
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Shell pattern of the tensors to calibrate. Repeatable. \\[default: all inputs of"
            " Conv, ConvTranspose, MatMul and Gemm]",
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="Backend of the engines: auto, tensorrt or rtx; auto as in build.",
            autocompletion=complete_backend,
        ),
    ] = "auto",
    trt_version: Annotated[
        str | None,
        typer.Option(help="The TensorRT that the cache's header names. \\[default: 10.16.1]"),
    ] = None,
    show: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="List a cache's ranges.", rich_help_panel=_PANEL),
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two caches.", rich_help_panel=_PANEL),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    **options: Any,
) -> None:
    r"""Find the ranges that INT8 and FP8 need, by running a model on sample inputs.

    On a GPU, engines with extra outputs run the model; elsewhere OpenVINO does where it is
    installed, or onnx.reference, which suits small models. The cache is in TensorRT's own text
    format; its provenance is written to a .json file next to it.

    $ trt-native calibrate net.onnx \
        --calibration-data samples/ -o net.calib
    $ trt-native calibrate --show net.calib
    """
    if [model is not None, show is not None, diff is not None].count(True) != 1:
        raise SpecError(
            "give one of: MODEL.onnx with --calibration-data FOLDER, --show FILE, or --diff A B"
        )
    running = read_fields(QuantizationSpec, options)
    by = running["calibration_runner"]
    memory_bytes = running.get("calibration_memory_bytes")
    for_model = (data, output, percentile, limit, tensor, memory_bytes, trt_version)
    if model is None and (any(for_model) or by is not CalibrationRunner.AUTO or backend != "auto"):
        raise SpecError("--show and --diff read caches: they take no option but --json")
    if show is not None:
        _show(show, json)
    elif diff is not None:
        _diff(*diff, json)
    elif model is not None:
        if data is None:
            raise SpecError(f"no calibration data for {model.name}: give --calibration-data FOLDER")
        chosen = CalibrationMethod.parse(method)
        if percentile is not None and chosen is not CalibrationMethod.PERCENTILE:
            raise SpecError(f"--percentile: no effect with --calibration-method {chosen}")
        _calibrate(
            model,
            data,
            output or with_ending(model, ".calib"),
            limit,
            json,
            (by, backend, memory_bytes),
            {
                "method": chosen,
                "patterns": tensor or (),
                **({} if percentile is None else {"percentile": percentile}),
                **({} if trt_version is None else {"version": trt_version}),
            },
        )


def _calibrate(
    model: Path,
    data: str,
    output: Path,
    limit: int | None,
    json: bool,
    running: tuple[CalibrationRunner, str, int | None],
    options: dict[str, Any],
) -> None:
    from trt_native.builder.engine_calibration import activation_source
    from trt_native.calibration.batches import read_batches
    from trt_native.calibration.collect import calibrate
    from trt_native.graph.onnx_file import read_model, tensor_specs
    from trt_native.graph.outputs import check_outputs

    check_outputs([output], reads=[data], models=[model], companions=[Path(f"{output}.json")])
    started = time.perf_counter()
    with ProgressDisplay(stderr) as progress:
        inputs, _ = tensor_specs(read_model(model))
        with phase(progress, "Reading the calibration data"):
            batches = read_batches(data, inputs, limit=limit)
        by, backend, memory_bytes = running
        source = activation_source(by, backend=backend, memory_bytes=memory_bytes)
        slow = " on the CPU: slow for large models" if source.name == "onnx.reference" else ""
        stderr.print(f"running the model with {source.name}{slow}", highlight=False)
        cache = calibrate(model, batches, source=source, progress=progress, **options)
    cache.save(output)
    seconds = time.perf_counter() - started
    if json:
        print_json({**_as_json(output, cache), "seconds": round(seconds, 3)})
        return
    table("Calibrated", ("", ""), [*_origin(output, cache), ("time", f"{seconds:.1f} s")])


def _origin(path: Path, cache: CalibrationCache) -> list[tuple[str, str]]:
    """A cache and its provenance, as rows of a table."""
    rows = [("cache", f"{path} ({cache.header})"), ("tensors", f"{len(cache.scales)}")]
    origin = cache.provenance
    if origin is None:
        return [*rows, ("origin", "unknown: no .json file next to the cache")]
    for reason in dict.fromkeys(origin.skipped.values()):
        names = [name for name, found in origin.skipped.items() if found == reason]
        rows.append(("without a range", f"{_some(names)}: {reason}"))
    shapes = (f"{name} {' or '.join(found)}" for name, found in origin.shapes.items())
    return [
        *rows,
        ("model", f"{origin.model['file']} (SHA-256 {origin.model['sha256'][:16]}...)"),
        ("method", origin.method),
        ("activations from", origin.runner),
        ("data", f"{counted(origin.batches, 'batch', 'es')}: {', '.join(shapes)}"),
        ("made", f"{origin.created} by {origin.producer}"),
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _as_json(path: Path, cache: CalibrationCache) -> dict[str, Any]:
    origin = cache.provenance.to_json() if cache.provenance else None
    return {
        "path": str(path),
        "header": cache.header,
        "provenance": origin,
        "tensors": [
            {
                "name": name,
                "scale": scale,
                "threshold": cache.threshold(name),
                "amax": cache.amax(name),
            }
            for name, scale in cache.scales.items()
        ],
    }


def _show(path: Path, json: bool) -> None:
    from trt_native.calibration.caches import CalibrationCache

    cache = CalibrationCache.load(path)
    if json:
        print_json(_as_json(path, cache))
        return
    table(str(path), ("", ""), _origin(path, cache))
    table(
        f"Ranges ({counted(len(cache.scales), 'tensor')})",
        ("tensor", "range +/-", "largest value", "covered", "scale"),
        (
            (name, f"{cache.threshold(name):.6g}", *_coverage(cache, name), f"{scale:.6g}")
            for name, scale in cache.scales.items()
        ),
    )


def _coverage(cache: CalibrationCache, name: str) -> tuple[str, str]:
    amax = cache.amax(name)
    if amax is None:
        return "unknown", "unknown"
    return f"{amax:.6g}", f"{min(cache.threshold(name) / amax, 1):.1%}"


def _diff(first: Path, second: Path, json: bool) -> None:
    from trt_native.calibration.caches import CalibrationCache

    a, b = CalibrationCache.load(first), CalibrationCache.load(second)
    only_a = [name for name in a.scales if name not in b.scales]
    only_b = [name for name in b.scales if name not in a.scales]
    ratios = {name: b.scales[name] / scale for name, scale in a.scales.items() if name in b.scales}
    worst = sorted(ratios, key=lambda name: -abs(math.log(ratios[name])))
    if json:
        print_json(
            {
                "a": str(first),
                "b": str(second),
                "only_a": only_a,
                "only_b": only_b,
                "tensors": [
                    {
                        "name": name,
                        "a": a.threshold(name),
                        "b": b.threshold(name),
                        "ratio": ratios[name],
                    }
                    for name in worst
                ],
            }
        )
        return
    table("A", ("", ""), _origin(first, a))
    table("B", ("", ""), _origin(second, b))
    for title, names in (("Only in A", only_a), ("Only in B", only_b)):
        if names:
            table(f"{title} ({len(names)})", ("tensor",), ((name,) for name in names))
    differing = [name for name in worst if ratios[name] != 1]
    if differing:
        table(
            f"Different ranges ({len(differing)} of {len(worst)} tensors in both)",
            ("tensor", "A +/-", "B +/-", "B / A"),
            (
                (
                    name,
                    f"{a.threshold(name):.6g}",
                    f"{b.threshold(name):.6g}",
                    f"{ratios[name]:.4f}",
                )
                for name in differing
            ),
        )
    else:
        stdout.print(f"Same ranges in both: {counted(len(worst), 'tensor')}.", highlight=False)
