#!/usr/bin/env python3
"""Peak memory of a build, its processes together, against a script of nothing but TensorRT-RTX.

Memory is the proportional set size (PSS): what processes share counts once. Linux only.
"""

from __future__ import annotations

import json as json_module
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import helper, numpy_helper

from trt_native.cli.console import report_errors, table
from trt_native.errors import TrtNativeError
from trt_native.units import format_bytes

__all__ = ["BARE", "peak_memory"]

_INTERVAL_S = 0.002
_LAYERS, _SIDE = 19, 2000
BARE = """
import sys, tensorrt_rtx as trt
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
assert parser.parse_from_file(sys.argv[1])
data = builder.build_serialized_network(network, builder.create_builder_config())
open(sys.argv[2], "wb").write(data)
"""


@report_errors
def compare(
    layers: Annotated[int, typer.Option(help="Products of 2000 x 2000, 16 MB each in FP32.")] = (
        _LAYERS
    ),
    runs: Annotated[
        int,
        typer.Option(help="Times that each is run; the most counts, as a sample may miss a peak."),
    ] = 3,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Build a chain of products in each precision, and print both peaks and their ratio."""
    figures, rows = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, precision in (("float32", "tf32"), ("float16", "auto")):
            model = _chain(folder / f"{kind}.onnx", layers, np.dtype(kind))
            plan = folder / "m.plan"
            ways: dict[str, list[str | Path]] = {
                "bare": [sys.executable, "-c", BARE, model, plan],
                "build": [
                    sys.executable, "-m", "trt_native", "build", model, "-o", plan,
                    "--backend", "rtx", "--precision", precision, "--no-cache",
                ],
            }  # fmt: skip
            peaks = {
                way: max(peak_memory(words) for _ in range(runs)) for way, words in ways.items()
            }
            figures[kind] = {**peaks, "ratio": peaks["build"] / peaks["bare"]}
            sizes = (format_bytes(peaks[way]) for way in ways)
            size = format_bytes(model.stat().st_size)
            rows.append((kind, size, *sizes, f"{figures[kind]['ratio']:.2f}"))
    table("Peak memory", ("weights", "ONNX", "TensorRT alone", "build", "ratio"), rows)
    if json is not None:
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


def peak_memory(words: list[str | Path], *, sampled: bool = True) -> int:
    """The most memory in bytes that a command and its children had together.

    Args:
        words: The command.
        sampled: Whether to look at all; not where its time is taken.

    Raises:
        TrtNativeError: the command failed.
    """
    most = 0
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while sampled and process.poll() is None:
            most = max(most, sum(map(_memory, _family(process.pid))))
            time.sleep(_INTERVAL_S)
        if process.wait():
            lines = process.stderr.read().decode().splitlines() if process.stderr else []
            raise TrtNativeError(f"{words[:4]} failed", lines[-5:])
    return most


def _family(pid: int) -> Iterator[int]:
    """A process, and all that it started."""
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))
    except OSError:  # it has just ended
        return


def _memory(pid: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _chain(path: Path, layers: int, kind: np.dtype[np.floating]) -> Path:
    """A chain of products and activations of random weights."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        weight = rng.standard_normal((_SIDE, _SIDE), np.float32) / np.float32(_SIDE**0.5)
        weights.append(numpy_helper.from_array(weight.astype(kind), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"], name=f"m{i}"),
            helper.make_node("Relu", [f"m{i}"], [f"x{i + 1}"], name=f"r{i}"),
        ]
    element = helper.np_dtype_to_tensor_dtype(kind)
    x, y = (
        helper.make_tensor_value_info(name, element, [8, _SIDE]) for name in ("x0", f"x{layers}")
    )
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


if __name__ == "__main__":
    typer.run(compare)
