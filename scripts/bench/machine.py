"""What a measurement was made with: the GPU's state and the versions of packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from trt_native.backends.registry import load_backend

__all__ = ["clocks", "gpu_facts", "versions"]

_PACKAGES = ("torch", "numpy", "cuda-core", "cuda-bindings", "trt-native")


def clocks() -> dict[str, str]:
    """Query nvidia-smi for the GPU's clocks and driver."""
    return gpu_facts("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw")


def gpu_facts(*names: str) -> dict[str, str]:
    """Query nvidia-smi about the first GPU, without a CUDA context; empty without the program."""
    command = ("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(names, map(str.strip, printed.splitlines()[0].split(",")), strict=False))


def versions(others: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python, TensorRT, and the measured packages, and of others."""
    found = {"python": sys.version.split()[0]}
    for name in (*_PACKAGES, *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    backend = load_backend("auto")
    return {**found, backend.product: backend.version}
