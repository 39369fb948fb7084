#!/usr/bin/env python3
"""A dynamic plan at shapes of ``--fast-at`` against static plans; sizes alone without a GPU.

Each pair of plans gets the same inputs, their outputs are compared, and then they run in turns.
"""

from __future__ import annotations

import json as json_module
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from trt_native.bench import BenchOptions, bench_plan
from trt_native.builder.build_plan import build_plan
from trt_native.cli.console import report_errors, table
from trt_native.config import BuildConfig, Precision
from trt_native.cuda import gpu_info
from trt_native.errors import TrtNativeError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.shapes import ProfileSpec

_CHANNELS, _LAYERS = 256, 16
_DIMS = ("batch=1:2:8", "height=32:64:128", "width=32:64:128")
_SHAPES = (
    "batch=1,height=32,width=32",
    "batch=1,height=128,width=128",
    "batch=2,height=96,width=64",
    "batch=4,height=64,width=64",
    "batch=8,height=128,width=96",
)


@report_errors
def compare(
    model: Annotated[Path | None, typer.Option(help="ONNX file; by default 16 layers.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="As for trt-native build.")] = None,
    fast_at: Annotated[list[str] | None, typer.Option(help="As for trt-native build.")] = None,
    precision: str = "auto",
    duration: Annotated[float, typer.Option(help="Seconds for each phase.")] = 0.3,
    limit: Annotated[float, typer.Option(help="Largest relative L2 difference.")] = 2e-3,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Build the plans, compare sizes and outputs, and on a GPU times."""
    dims, shapes = dim or list(_DIMS), fast_at or list(_SHAPES)
    gpu = gpu_info()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = model or _convolutions(folder / "m.onnx")
        range_ = (ProfileSpec.parse(dims),)
        kind = Precision.parse(precision)

        def build(name: str, **options: Any) -> Plan:
            plan = build_plan(path, BuildConfig(precision=kind, **options))
            return Plan.open(plan.save(folder / f"{name}.plan"))

        plain = build("plain", profiles=range_)
        fast = build("fast", profiles=range_, fast_at=shapes)
        statics = [
            build(f"static{i}", profiles=BuildConfig(fast_at=(shape,)).fast_shapes())
            for i, shape in enumerate(shapes)
        ]
        figures: dict[str, Any] = {
            "bytes": {"dynamic": plain.size, "fast_at": fast.size, "static": statics[0].size},
            "file_ratio": fast.size / plain.size,
            "file_ratio_static": fast.size / max(plan.size for plan in statics),
            "gpu": gpu.name if gpu else None,
            "shapes": {},
        }
        rows = []
        for shape, static in zip(shapes, statics, strict=True) if gpu else ():
            found = _measured(plain, fast, static, duration, limit)
            figures["shapes"][shape] = found
            rows.append((shape, *(f"{value:.4g}" for value in found.values())))
    print(f"file: {figures['file_ratio']:.3f} x without --fast-at", end=", ")
    print(f"{figures['file_ratio_static']:.3f} x a static plan's")
    if rows:
        columns = ("shape", "fast_at / static", "plain / static", "fast_at ms", "difference")
        table(gpu.name if gpu else "", columns, rows)
    if json is not None:
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


def _measured(
    plain: Plan, fast: Plan, static: Plan, duration: float, limit: float
) -> dict[str, float]:
    """GPU compute of the dynamic plans in multiples of a static one, at its shape."""
    (spec,) = static.manifest.inputs if static.manifest else ()
    x = np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)

    def inputs(_: Sequence[PlanTensor]) -> dict[str, Any]:
        return {spec.name: x}

    difference = max(_difference(plan, static, {spec.name: x}) for plan in (fast, plain))
    if not difference <= limit:
        raise TrtNativeError(f"the outputs at {spec.shape} differ by {difference:.2g}")
    options = BenchOptions(duration_s=duration)
    ratios, milliseconds = [], 0.0
    for plan in (fast, plain):
        report = bench_plan(plan, inputs, options, other=static)
        assert report.comparison is not None  # noqa: S101  # for the type checker
        (ratio,) = (r for r in report.comparison.ratios if r.phase == "gpu_compute")
        ratios.append(1 / ratio.speedup)
        milliseconds = milliseconds or float(np.median(report.samples["gpu_compute"]))
    return dict(
        zip(("fast", "plain", "ms", "difference"), (*ratios, milliseconds, difference), strict=True)
    )


def _difference(plan: Plan, other: Plan, inputs: dict[str, Any]) -> float:
    """Relative L2 difference of the outputs of two plans, the largest of all outputs."""
    with Session(plan) as one, Session(other) as two:
        found, wanted = one.run(inputs), two.run(inputs)
        pairs = [
            (found[name].astype(np.float64), wanted[name].astype(np.float64)) for name in found
        ]
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def _convolutions(path: Path) -> Path:
    """A chain of residual convolutions of 38 MB in FP32, of any batch and size."""
    rng = np.random.default_rng(1)
    nodes, weights = [], []
    for i in range(_LAYERS):
        weight = rng.standard_normal((_CHANNELS, _CHANNELS, 3, 3), np.float32)
        weight *= np.float32(0.5 / (9 * _CHANNELS) ** 0.5)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes += [
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], pads=[1] * 4, name=f"c{i}"),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"r{i}"),
            helper.make_node("Add", [f"x{i}", f"r{i}"], [f"x{i + 1}"], name=f"a{i}"),
        ]
    axes: list[str | int | None] = ["batch", _CHANNELS, "height", "width"]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
        for name in ("x0", f"x{_LAYERS}")
    )
    graph = helper.make_graph(nodes, "convolutions", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


if __name__ == "__main__":
    typer.run(compare)
