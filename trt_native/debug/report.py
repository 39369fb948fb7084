"""The report of a failure, to be pasted into an issue."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import onnx

from trt_native._version import __version__
from trt_native.backends.registry import load_backend
from trt_native.cuda import gpu_info
from trt_native.debug.graph_text import graph_lines
from trt_native.debug.reduce import REDUCED, Reduction
from trt_native.debug.trials import CANDIDATE
from trt_native.errors import UnsupportedError, on_one_line, shortened
from trt_native.files import sha256_of_file
from trt_native.units import format_bytes

__all__ = ["environment", "report"]

_PACKAGES = ("onnx", "onnx-ir", "numpy")
_MOST_LINES = 30
_LONGEST_LINE = 300


def environment(backend: str) -> dict[str, str]:
    """The versions and the GPU of this machine.

    Args:
        backend: ``auto``, ``tensorrt`` or ``rtx``; where there is none, that is said.
    """
    found = {"trt-native": __version__}
    try:
        loaded = load_backend(backend)
        found[loaded.product] = loaded.version
    except UnsupportedError:
        found["TensorRT"] = "not installed"
    gpu = gpu_info()
    found["GPU"] = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else "none"
    if gpu:
        found["driver"] = f"CUDA {gpu.driver}"
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return {**found, "Python": platform.python_version(), "system": platform.platform()}


def report(reduction: Reduction, name: str, command: str, machine: Mapping[str, str]) -> str:
    """Write the report of a reduced model, in Markdown.

    Args:
        reduction: The reduction.
        name: Name of the model that was reduced.
        command: The command that shows the failure of the reduced model.
        machine: What :func:`environment` returns.
    """
    return "\n".join(_lines(reduction, name, command, machine)) + "\n"


def _lines(
    reduction: Reduction, name: str, command: str, machine: Mapping[str, str]
) -> Iterator[str]:
    graph = onnx.load(reduction.path, load_external_data=False)
    operators = ", ".join(dict.fromkeys(node.op_type for node in graph.graph.node))
    yield f"# {reduction.last.kind}: {shortened(operators, _LONGEST_LINE)}"
    yield ""
    yield "```console"
    yield f"$ {command}"
    yield from _block([line.replace(CANDIDATE, REDUCED) for line in reduction.last.lines])
    yield "```"
    yield ""
    yield "## Model"
    yield ""
    opsets = ", ".join(f"{o.domain or 'ONNX'} {o.version}" for o in graph.opset_import)
    yield f"`{reduction.path.name}`, opset {opsets}:"
    yield ""
    yield "```"
    yield from _block(graph_lines(graph.graph))
    yield "```"
    yield ""
    yield "## Versions"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {key} | {value} |" for key, value in machine.items())
    yield ""
    yield "## Files"
    yield ""
    for file in _files(reduction.path):
        size = format_bytes(file.stat().st_size)
        yield f"- `{file.name}`, {size}, SHA-256 `{sha256_of_file(file)}`"
    yield ""
    checks = reduction.checks + reduction.recalled
    yield (
        f"Reduced from the {reduction.nodes_before} nodes of `{name}` ({reduction.form.value}) to"
        f" {reduction.nodes_after}, by {checks} checks."
        + (" There it was:" if reduction.first.lines else "")
    )
    if reduction.first.lines:
        yield ""
        yield "```"
        yield from _block(reduction.first.lines)
        yield "```"


def _files(path: Path) -> Iterator[Path]:
    yield path
    data = Path(f"{path}.data")
    if data.exists():
        yield data


def _block(lines: tuple[str, ...] | list[str]) -> Iterator[str]:
    yield from (shortened(on_one_line(line), _LONGEST_LINE) for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"... and {len(lines) - _MOST_LINES} more lines"
