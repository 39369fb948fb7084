"""``trt-native inspect``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from trt_native.cli.console import guarded, print_json, stdout, table
from trt_native.errors import CudaError, ModelError, TrtNativeError
from trt_native.spec import TensorSpec, format_bytes

__all__ = ["inspect"]

_PLAN_TAGS = (b"ftrt", b"vtrt")


@guarded
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file or a plan.")],
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Tell what an ONNX file or a plan contains."""
    try:
        with file.open("rb") as opened:
            is_plan = opened.read(4) in _PLAN_TAGS
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    if is_plan or file.suffix == ".plan":
        _inspect_plan(file, json)
    else:
        _inspect_onnx(file, json)


def _inspect_onnx(path: Path, json: bool) -> None:
    from trt_native.graph.onnx_file import read_model, summarize

    summary = summarize(path, read_model(path))
    if json:
        data = {name: getattr(summary, name) for name in summary.__dataclass_fields__}
        for side in ("inputs", "outputs"):
            data[side] = [
                {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape}
                for tensor in data[side]
            ]
        print_json({"kind": "onnx", "path": str(path), **data})
        return
    opsets = ", ".join(f"{domain or 'ai.onnx'} {opset}" for domain, opset in summary.opsets.items())
    rows = [
        ("producer", summary.producer or "unknown"),
        ("opset", opsets),
        ("parameters", f"{summary.parameters:,} ({format_bytes(summary.weight_bytes)})"),
        ("file", format_bytes(summary.file_bytes)),
        *((f"metadata {key}", value) for key, value in summary.metadata.items()),
    ]
    table(str(path), ("", ""), rows)
    tensors = [("input", t) for t in summary.inputs] + [("output", t) for t in summary.outputs]
    table(
        "Tensors",
        ("", "name", "dtype", "shape"),
        ((m, t.name, t.dtype, _axes(t)) for m, t in tensors),
    )
    table(
        f"Operators ({sum(summary.operators.values())} nodes)",
        ("operator", "count"),
        summary.operators.items(),
    )


def _axes(tensor: TensorSpec) -> str:
    if tensor.shape is None:
        return "unknown rank"
    return " x ".join("?" if axis is None else str(axis) for axis in tensor.shape) or "scalar"


def _inspect_plan(path: Path, json: bool) -> None:
    from trt_native.plan import Plan

    plan = Plan.load(path)
    header, manifest = plan.header, plan.manifest
    layers, why_not = _layers(plan)
    if json:
        print_json(
            {
                "kind": "plan",
                "path": str(path),
                "product": header.product,
                "version": header.version_text,
                "bytes": len(plan.data),
                "manifest": manifest.to_json() if manifest else None,
                "layers": layers,
                "layers_unreadable": why_not,
            }
        )
        return
    rows = [
        ("made by", f"{header.product} {header.version_text}"),
        ("size", format_bytes(len(plan.data))),
    ]
    if manifest:
        targets = ", ".join(manifest.compute_capabilities) or "every GPU the backend supports"
        rows += [
            ("producer", manifest.producer),
            ("built", f"{manifest.created} on {manifest.gpu or 'a machine without a GPU'}"),
            ("for", targets),
            ("model", f"{manifest.model['file']} (SHA-256 {manifest.model['sha256'][:16]}...)"),
            ("precision", str(manifest.precision["applied"])),
            *((f"option {name}", str(value)) for name, value in manifest.options.items()),
        ]
    else:
        rows.append(("manifest", "none beside the plan"))
    table(str(path), ("", ""), rows)
    if manifest:
        from trt_native.cli.build import print_tensors

        print_tensors(manifest)
    if layers is None:
        stdout.print(f"Layers cannot be read here: {why_not}", markup=False, highlight=False)
    else:
        _print_layers(layers)


def _layers(plan: Any) -> tuple[list[dict[str, Any]] | None, str | None]:
    """The layers, or the reason why they cannot be read on this machine."""
    from trt_native.cuda import require_gpu
    from trt_native.engine import Engine

    try:
        require_gpu()
        with Engine(plan) as engine:
            return engine.layers(), None
    except CudaError as error:
        return None, f"only a machine with a GPU can load a plan ({error.message})"
    except TrtNativeError as error:
        return None, error.message


def _print_layers(layers: list[dict[str, Any]]) -> None:
    precisions = Counter(_precision(layer) for layer in layers)
    mix = ", ".join(f"{count} {name}" for name, count in precisions.most_common())
    rows = (
        (layer.get("Name", ""), layer.get("LayerType", ""), _precision(layer)) for layer in layers
    )
    table(f"Layers ({len(layers)}: {mix})", ("name", "type", "output"), rows)


def _precision(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs") or [{}]
    return str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", "unknown")))
