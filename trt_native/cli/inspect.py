"""``trt-native inspect``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stderr, stdout, table
from trt_native.cli.html import TENSOR_COLUMNS, GraphNode, page, plan_page, tensor_rows
from trt_native.cli.options import (
    AllowHostCode,
    IgnoreManifest,
    LeanRuntime,
    PluginsOption,
    complete_backend,
)
from trt_native.cli.quantize import engine_layers_text
from trt_native.errors import BuildError, ModelError, SpecError, UnsupportedError
from trt_native.shapes import TensorSpec
from trt_native.units import counted, format_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from trt_native.graph.onnx_file import ModelSummary
    from trt_native.inspection import Layer
    from trt_native.plans.manifest import Manifest
    from trt_native.plans.plan import Plan

__all__ = ["inspect"]

_ONNX_PRECISIONS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "int8": "int8",
}


@report_errors
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file or a plan.")],
    html: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained page with the graph to this file."),
    ] = None,
    times: Annotated[
        Path | None,
        typer.Option(
            help="JSON with the times of a plan's layers, for --html: of a benchmark, or of"
            " trtexec --exportProfile."
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

    if times is not None and html is None:
        raise SpecError("--times: it is shown in the page of --html FILE")
    try:
        with open_regular_file(file) as opened:
            is_plan = is_plan_file(opened, os.fstat(opened.fileno()).st_size)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    is_plan = is_plan or file.suffix == ".plan"
    if html is not None:
        check_outputs([html], reads=[file, times], models=() if is_plan else [file])
    if is_plan:
        from trt_native.plans.plan import Plan

        plan = Plan.open(
            file,
            ignore_manifest=ignore_manifest,
            allow_host_code=allow_host_code,
            lean_runtime=lean_runtime,
            plugins=plugins or (),
        )
        _inspect_plan(file, plan, html, times, ignore_manifest, json)
    elif times is not None:
        raise SpecError("--times: only the layers of a plan have times")
    else:
        _inspect_onnx(file, html, backend, json)


def _write_html(path: Path, text: str) -> None:
    from trt_native.files import atomic_write

    with atomic_write(path) as opened:
        opened.write(text.encode(errors="replace"))
    stderr.print(f"written to {path}", markup=False, highlight=False)


def _inspect_onnx(path: Path, html: Path | None, backend: str, json: bool) -> None:
    from trt_native.graph.onnx_file import read_model, summarize

    model = read_model(path)
    summary = summarize(path, model)
    rows, tensors = _onnx_rows(summary), _onnx_tensors(summary)
    if html is not None:
        listing = ("Tensors", ("", "name", "dtype", "shape"), tensors)
        _write_html(html, page(str(path), (("", ("", ""), rows), listing), _graph_nodes(model)))
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


def _graph_nodes(model: ir.Model) -> list[GraphNode]:
    """The nodes of the main graph; shapes where the file records them."""
    from trt_native.graph.onnx_file import value_spec

    return [
        GraphNode(
            name=node.name or "",
            kind=node.op_type,
            inputs=tuple(value.name or "" for value in node.inputs if value is not None),
            outputs=tuple(value.name or "" for value in node.outputs),
            shape=" ".join((spec.dtype, _axes(spec))) if spec.shape is not None else "",
            precision=_ONNX_PRECISIONS.get(spec.dtype, ""),
        )
        for node in model.graph
        for spec in (value_spec(node.outputs[0]) if node.outputs else TensorSpec("", "", None),)
    ]


def _axes(tensor: TensorSpec) -> str:
    if tensor.shape is None:
        return "unknown rank"
    return " x ".join("?" if axis is None else str(axis) for axis in tensor.shape) or "scalar"


def _inspect_plan(
    path: Path,
    plan: Plan,
    html: Path | None,
    times: Path | None,
    ignore_manifest: bool,
    json: bool,
) -> None:
    from trt_native.inspection import inspect_plan, read_layer_times
    from trt_native.plans.prefix import describe_prefix

    layer_times = read_layer_times(times) if times is not None else None
    report = inspect_plan(plan)
    if html is not None:
        _write_html(html, plan_page(report, layer_times))
    if json:
        print_json(report.to_json())
        return
    manifest = report.manifest
    rows = [
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
            *((f"option {name}", str(value)) for name, value in manifest.options.items()),
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
    else:
        _print_layers(report.layers)


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
