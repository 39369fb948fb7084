"""The TensorRT libraries that can be loaded as a backend."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

from trt_native.backends.base import Backend
from trt_native.errors import UnsupportedError
from trt_native.installing import install_command

__all__ = ["BACKEND_VARIABLE", "BackendInfo", "available_backends", "load_backend"]


BACKEND_VARIABLE = "TRT_NATIVE_BACKEND"
"""Environment variable that names the backend where no argument does."""

_INSTALL_RTX = f"{install_command('rtx')} (TensorRT-RTX, builds without a GPU too)"
_INSTALL_TENSORRT = f"{install_command('tensorrt11')} or {install_command('tensorrt')}"
_INSTALL = f"install one: {_INSTALL_RTX}, or {_INSTALL_TENSORRT}"
_INSTALL_ONE = {"tensorrt": _INSTALL_TENSORRT, "rtx": _INSTALL_RTX}


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Package of a backend, which shows whether it can be loaded without loading it.

    Attributes:
        package: The module to import.
        extra: The extra of this package that installs it.
        note: Short description for users.
    """

    package: str
    extra: str
    note: str


BACKENDS = {
    "tensorrt": BackendInfo(
        "tensorrt", "tensorrt11", "data-centre and desktop GPUs; builds need one"
    ),
    "rtx": BackendInfo("tensorrt_rtx", "rtx", "RTX GPUs from Turing on; builds on any machine"),
}


def available_backends() -> dict[str, bool]:
    """Backend names, and whether the package of each is installed."""
    return {
        name: importlib.util.find_spec(info.package) is not None for name, info in BACKENDS.items()
    }


def load_backend(name: str | Backend = "auto") -> Backend:
    """Import a TensorRT.

    Args:
        name: ``tensorrt``, ``rtx`` or ``auto``. ``auto`` takes the value of the environment
            variable ``TRT_NATIVE_BACKEND``, or else ``tensorrt`` where it imports, or else
            ``rtx``. A loaded backend is returned as it is.

    Raises:
        UnsupportedError: the name is unknown, or no such library imports; says what to install.
    """
    if not isinstance(name, str) and hasattr(name, "capabilities"):
        return name
    if name == "auto":
        name = os.environ.get(BACKEND_VARIABLE, "auto")
    if name not in ("auto", *BACKENDS):
        raise UnsupportedError(f"no backend {name!r}; the backends are auto, tensorrt and rtx")
    import_errors: list[str] = []
    for candidate in BACKENDS if name == "auto" else (name,):
        try:
            module = importlib.import_module(BACKENDS[candidate].package)
        except Exception as error:  # a broken installation raises all kinds
            import_errors.append(f"{candidate}: {' '.join(str(error).split())}")
        else:
            return _wrap(candidate, module)
    if name == "auto":
        raise UnsupportedError(f"no TensorRT is installed; {_INSTALL}", import_errors)
    raise UnsupportedError(
        f"backend {name!r} is not installed; install it: {_INSTALL_ONE[name]}", import_errors
    )


@functools.cache  # one for each library: TensorRT keeps the first logger it is given for good
def _wrap(name: str, module: Any) -> Backend:
    version = str(module.__version__)
    major = int(version.split(".")[0])
    if name == "rtx":
        from trt_native.backends.rtx import RtxBackend

        return RtxBackend(module)
    if major == 10:
        from trt_native.backends.trt10 import TensorRT10Backend

        return TensorRT10Backend(module)
    if major == 11:
        from trt_native.backends.trt11 import TensorRT11Backend

        return TensorRT11Backend(module)
    raise UnsupportedError(
        f"TensorRT {version} is not supported; use 10.3 or later, or 11.x: {_INSTALL}"
    )
