"""``trt-native inspect``."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stdout, table
from trt_native.cli.inputs import read_extents
from trt_native.cli.options import (
    AllowHostCode,
    IgnoreManifest,
    LeanRuntime,
    PluginsOption,
    complete_backend,
    open_plan,
)
from trt_native.cli.pages import model_of, say_written, write_text
from trt_native.errors import BuildError, ModelError, PlanError, SpecError, UnsupportedError
from trt_native.plans.tables import TENSOR_COLUMNS, engine_layers_text, tensor_rows
from trt_native.shapes import TensorSpec
from trt_native.units import counted, format_bytes

if TYPE_CHECKING:
    from trt_native.graph.onnx_file import ModelSummary
    from trt_native.inspection import Layer, PlanReport
    from trt_native.plans.manifest import Manifest
    from trt_native.plans.plan import Plan

__all__ = ["inspect"]


@report_errors
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file or a plan.")],
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write one self-contained page to this file: facts, shares of operators, weights,"
            " multiply-adds and precisions, and the graph."
        ),
    ] = None,
    dims: Annotated[
        list[str] | None,
        typer.Option(
            "--dim",
            metavar="NAME=N",
            help="For an ONNX file with --html: extent of a dimension, at which multiply-adds are"
            " counted. Repeatable. \\[default: 1]",
        ),
    ] = None,
    netron: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="Write the graph alone, for viewers such as Netron: an ONNX file without its"
            " weights, or a plan's layers as nodes.",
        ),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(
            help="JSON with the times of a plan's layers, for --html and --netron: of a benchmark,"
            " or of trtexec --exportProfile."
        ),
    ] = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    backend: Annotated[
        str,
        typer.Option(
            help="For an ONNX file: the backend to ask what it refuses, auto, tensorrt or rtx.",
            autocompletion=complete_backend,
        ),
    ] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the contents of an ONNX file or a plan.

    $ trt-native inspect net.onnx
    $ trt-native inspect net.plan --html net.html
    """
    from trt_native.files import open_regular_file
    from trt_native.graph.outputs import check_outputs
    from trt_native.plans.prefix import is_plan_file

    if times is not None and html is None and netron is None:
        raise SpecError("--times: it is shown in the page of --html FILE, and with --netron FILE")
    if dims and html is None:
        raise SpecError("--dim: no effect without --html")
    try:
        with open_regular_file(file) as opened:
            is_plan = is_plan_file(opened, os.fstat(opened.fileno()).st_size)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    is_plan = is_plan or file.suffix == ".plan"
    written = [path for path in (html, netron) if path is not None]
    check_outputs(written, reads=[file, times], models=() if is_plan else [file])
    if is_plan:
        if dims:
            raise SpecError("--dim: a plan has profiles; it is for ONNX files")
        plan = open_plan(file, ignore_manifest, allow_host_code, lean_runtime, plugins)
        _inspect_plan(file, plan, html, netron, times, ignore_manifest, json)
    elif times is not None:
        raise SpecError("--times: only the layers of a plan have times")
    else:
        _inspect_onnx(file, html, netron, read_extents(dims or []), backend, json)


def _inspect_onnx(
    path: Path,
    html: Path | None,
    netron: Path | None,
    extents: dict[str, int],
    backend: str,
    json: bool,
) -> None:
    from trt_native.graph.onnx_file import read_model, summarize

    model = read_model(path)
    summary = summarize(path, model)
    rows, tensors = _onnx_rows(summary), _onnx_tensors(summary)
    if html is not None:
        from trt_native.page import model_page

        write_text(html, model_page(path, model, summary, extents))
    if netron is not None:
        from trt_native.page.netron import write_without_weights

        write_without_weights(model, netron)
        say_written(netron)
    support = _support(path, backend)
    if json:
        data = {name: getattr(summary, name) for name in summary.__dataclass_fields__}
        for side in ("inputs", "outputs"):
            data[side] = [
                {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape}
                for tensor in data[side]
            ]
        print_json({"kind": "onnx", "path": str(path), **data, "support": support})
        return
    table(str(path), ("", ""), rows)
    table("Tensors", ("", "name", "dtype", "shape"), tensors)
    table(
        f"Operators ({counted(sum(summary.operators.values()), 'node')})",
        ("operator", "count"),
        summary.operators.items(),
    )
    _print_support(path, backend, support)


def _support(path: Path, backend: str) -> dict[str, Any]:
    """What a backend makes of a model, or why that is not known."""
    from trt_native.backends.registry import available_backends
    from trt_native.builder.isolated import inspect_in_child

    if backend == "auto" and not any(available_backends().values()):
        return {"unknown": "no TensorRT is installed"}
    try:
        return inspect_in_child(path, backend)
    except (BuildError, UnsupportedError) as error:  # the parser crashed, or wants a GPU
        if isinstance(error, UnsupportedError) and backend != "auto":
            raise
        return {"unknown": error.message}


def _print_support(path: Path, backend: str, support: dict[str, Any]) -> None:
    if "unknown" in support:
        stdout.print(f"What a build would refuse is not known here: {support['unknown']}")
        return
    unranked = [f"{name} (with --shape, its rank is unknown)" for name in support["unranked"]]
    rewritten = tuple(line for text in support["rewritten"] for line in text.split("\n"))
    rows = [
        ("refused", tuple(support["refused"]) or "nothing"),
        ("rewritten", rewritten or "nothing"),
        ("dimensions to give", ", ".join((*support["dimensions"], *unranked)) or "none"),
    ]
    table(f"A build by {support['product']} {support['version']}", ("", ""), rows)
    if not support["refused"]:
        print_command(_build_line(path, backend, support))


def _build_line(path: Path, backend: str, support: dict[str, Any]) -> str:
    words = ["trt-native", "build", str(path)]
    words += [] if backend == "auto" else ["--backend", backend]
    for name in support["dimensions"]:
        words += ["--dim", f"{name}=MIN:OPT:MAX"]
    for name in support["unranked"]:
        words += ["--shape", f"{name}=MIN:OPT:MAX"]
    return shlex.join(words)


def _onnx_rows(summary: ModelSummary) -> list[tuple[str, str]]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {opset}" for domain, opset in summary.opsets.items())
    return [
        ("producer", summary.producer or "unknown"),
        ("opset", opsets),
        ("parameters", f"{summary.parameters:,} ({format_bytes(summary.weight_bytes)})"),
        ("file", format_bytes(summary.file_bytes)),
        *((f"metadata {key}", value) for key, value in summary.metadata.items()),
    ]


def _onnx_tensors(summary: ModelSummary) -> list[tuple[str, str, str, str]]:
    tensors = [("input", t) for t in summary.inputs] + [("output", t) for t in summary.outputs]
    return [(mode, t.name, t.dtype, _axes(t)) for mode, t in tensors]


def _axes(tensor: TensorSpec) -> str:
    if tensor.shape is None:
        return "unknown rank"
    return " x ".join("?" if axis is None else str(axis) for axis in tensor.shape) or "scalar"


def _inspect_plan(
    path: Path,
    plan: Plan,
    html: Path | None,
    netron: Path | None,
    times: Path | None,
    ignore_manifest: bool,
    json: bool,
) -> None:
    from trt_native.inspection import inspect_plan, read_layer_times
    from trt_native.plans.prefix import describe_prefix

    layer_times = read_layer_times(times) if times is not None else None
    report = inspect_plan(plan)
    if html is not None:
        from trt_native.page import plan_page

        write_text(html, plan_page(report, layer_times, *model_of(report.manifest, path)))
    if netron is not None:
        _write_layers(report, netron, layer_times)
    if json:
        print_json(report.to_json())
        return
    manifest = report.manifest
    rows: list[tuple[str, str | tuple[str, ...]]] = [
        ("made by", f"{report.product} {report.version}"),
        ("size", format_bytes(report.plan_bytes)),
    ]
    if report.activation_bytes is not None:
        rows.append(("activations", f"{format_bytes(report.activation_bytes)} in each context"))
    if manifest:
        targets = ", ".join(manifest.compute_capabilities) or "every GPU the backend supports"
        rows += [
            ("producer", manifest.producer),
            ("built", f"{manifest.created} on {manifest.gpu or 'a machine without a GPU'}"),
            ("for", targets),
            ("model", f"{manifest.model['file']} (SHA-256 {manifest.model['sha256'][:16]}...)"),
            ("precision", manifest.arithmetic),
            *_running(manifest),
            *((f"option {name}", lines) for name, lines in manifest.option_lines()),
        ]
    else:
        rows.append(("manifest", "ignored" if ignore_manifest else "none next to the plan"))
    if report.carries:
        carried = " and ".join(report.carries)
        rows.append(("carries", f"{carried}: code that is run to load it"))
    rows += [
        ("plugins", f"{record['file']} (SHA-256 {str(record['sha256'])[:16]}...)")
        for record in (manifest.plugins if manifest else ())
    ]
    rows += describe_prefix(report.prefix)
    table(str(path), ("", ""), rows)
    if report.tensors is not None:
        table("Tensors", TENSOR_COLUMNS, tensor_rows(report.tensors))
    if report.layers is None:
        error = report.layers_error
        stdout.print(f"Layers cannot be read here: {error}", markup=False, highlight=False)
        if report.kernels is not None:
            _print_kernels(report.kernels)
    else:
        _print_layers(report.layers)


def _write_layers(report: PlanReport, path: Path, times: dict[str, float] | None) -> None:
    from trt_native.page.netron import write_layers_as_onnx

    layers = report.layers or report.kernels
    if layers is None:
        raise PlanError(
            f"{report.path}: the plan's layers are not known, and it lists no kernels:"
            f" {report.layers_error}"
        )
    write_layers_as_onnx(layers, path, times=times)
    say_written(path)


def _print_kernels(kernels: tuple[Layer, ...]) -> None:
    from trt_native.inspection import precision_mix

    kinds = Counter(kernel.kind for kernel in kernels)
    rows = [(kind, str(count)) for kind, count in kinds.most_common()]
    mix = ", ".join(f"{count} {name}" for name, count in precision_mix(kernels).items())
    table(f"Kernels that the plan lists ({len(kernels)}: {mix})", ("type", "count"), rows)


def _running(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Rows about the engine of a quantized plan, from its manifest."""
    if "engine_layers" in manifest.precision:
        yield "computes in it", engine_layers_text(manifest.precision["engine_layers"])


def _print_layers(layers: tuple[Layer, ...]) -> None:
    from trt_native.inspection import precision_mix

    mix = ", ".join(f"{count} {name}" for name, count in precision_mix(layers).items())
    rows = (
        (
            layer.name,
            layer.kind,
            layer.precision,
            ", ".join(tensor.name for tensor in layer.inputs),
            ", ".join(tensor.name for tensor in layer.outputs),
            layer.tactic or "",
        )
        for layer in layers
    )
    columns = ("name", "type", "precision", "inputs", "outputs", "tactic")
    table(f"Layers ({len(layers)}: {mix})", columns, rows)
