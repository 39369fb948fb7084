"""``trt-native doctor``."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from trt_native.cli.console import guarded, print_json, stdout, table

__all__ = ["doctor"]

_PACKAGES = ("numpy", "onnx", "onnx-ir", "cuda-core", "cuda-bindings", "torch", "onnxscript")


@guarded
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell what this machine has and what can be done on it."""
    findings = _examine()
    if json:
        print_json(findings)
        return
    packages = ((name, found or "not installed") for name, found in findings["packages"].items())
    table("Python", ("", ""), [("python", findings["python"]), *packages])
    gpu = findings["gpu"]
    rows = gpu.items() if gpu else [("", f"none usable: {findings['gpu_fault']}")]
    table("GPU", ("", ""), rows)
    table(
        "Backends",
        ("backend", "found", "good for", "to install"),
        (
            (
                name,
                "\n".join(filter(None, (b["version"], b["fault"]))),
                b["note"],
                f"pip install 'trt-native[{b['extra']}]'",
            )
            for name, b in findings["backends"].items()
        ),
    )
    stdout.print(findings["verdict"], style="bold", markup=False, highlight=False)
    if not findings["can_build"]:
        raise typer.Exit(1)


def _examine() -> dict[str, Any]:
    from trt_native.backends.base import PROBERS
    from trt_native.cuda import require_gpu
    from trt_native.errors import CudaError
    from trt_native.spec import format_bytes

    gpu, gpu_fault = None, None
    try:
        info = require_gpu()
        gpu = {
            "name": info.name,
            "compute capability": info.compute_capability,
            "driver": f"CUDA {info.driver}",
            "memory": f"{format_bytes(info.free_bytes)} free of {format_bytes(info.total_bytes)}",
        }
    except CudaError as error:
        gpu_fault = error.message
    backends = {name: _try_backend(name) for name in PROBERS}
    builders = [b["library"] for b in backends.values() if b["builds"]]
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpu": gpu,
        "gpu_fault": gpu_fault,
        "backends": backends,
        "can_build": bool(builders),
        "can_run": bool(gpu and builders),
        "can_export": bool(_version("torch") and _version("onnxscript")),
        "verdict": _verdict(builders, gpu is not None),
    }


def _try_backend(name: str) -> dict[str, Any]:
    from trt_native.backends.base import PROBERS, load_backend
    from trt_native.errors import UnsupportedError
    from trt_native.spec import BuildConfig

    prober = PROBERS[name]
    found: dict[str, Any] = {
        "version": None,
        "library": None,
        "builds": False,
        "fault": "not installed",
        "note": prober.note,
        "extra": prober.extra,
    }
    try:
        backend = load_backend(name)
        found.update(version=backend.version, library=f"{backend.product} {backend.version}")
        backend.check(BuildConfig())
        found.update(builds=True, fault=None)
    except UnsupportedError as error:
        found["fault"] = error.message if found["version"] else "not installed"
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _verdict(builders: list[str], has_gpu: bool) -> str:
    if not builders:
        return "Cannot build plans here: no TensorRT that works. pip install 'trt-native[rtx]'"
    done = f"Builds plans with {' and '.join(builders)}"
    return f"{done}, and runs them." if has_gpu else f"{done}; running them needs a GPU."
