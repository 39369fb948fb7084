"""The driver's calls, their errors, and what GPU there is."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trt_native.errors import ClosedError, CudaError, SpecError

__all__ = [
    "CURRENT",
    "GpuInfo",
    "bindings",
    "check",
    "device_ordinal",
    "gpu_info",
    "make_current",
    "memory_info",
    "require_gpu",
    "select_gpu",
    "translated",
]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CURRENT = threading.local()
"""``ordinal`` of the GPU that :func:`make_current` last made current on a thread."""


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU and its driver.

    Attributes:
        name: Marketing name.
        compute_capability: Such as ``9.0``.
        driver: CUDA version the driver supports, such as ``13.0``.
        total_bytes: Size of the device memory.
        free_bytes: How much of it was free when asked.
    """

    name: str
    compute_capability: str
    driver: str
    total_bytes: int
    free_bytes: int


def device_ordinal(device: str | int) -> int:
    """Return the CUDA ordinal of a device: ``cuda:1``, ``1``, or ``cuda``, which is ``cuda:0``.

    Raises:
        SpecError: it is none of these.
    """
    found = re.fullmatch(r"(?:cuda:)?([0-9]{1,4})|cuda", str(device))
    if found is None or isinstance(device, bool):
        raise SpecError(f"device {device!r}: give cuda:N or N, such as cuda:0")
    return int(found[1] or 0)


def select_gpu(device: str | int) -> None:
    """Make a GPU the only one, with ordinal 0, of this process and of those that it starts.

    Sets ``CUDA_VISIBLE_DEVICES``, among whose GPUs it counts; CUDA reads it once.

    Raises:
        SpecError: the device is malformed.
        CudaError: there is no driver or no such GPU, or the process uses CUDA already.
    """
    ordinal = device_ordinal(device)
    action = f"select cuda:{ordinal}"
    with translated(action):
        if int(bindings().cuDeviceGetCount()[0]) == 0:
            raise CudaError("this process uses CUDA already; set CUDA_VISIBLE_DEVICES before")
    before = os.environ.get(_VISIBLE)
    listed = before.split(",") if before is not None else None
    if listed is None or ordinal < len(listed):
        os.environ[_VISIBLE] = listed[ordinal] if listed else str(ordinal)
        with translated(action):
            code = int(bindings().cuInit(0)[0])
            if code not in (0, _NO_DEVICE):
                check(bindings().cuInit(0))
            if code == 0 and check(bindings().cuDeviceGetCount())[0]:
                return
    limit = f" among those of {_VISIBLE}={before}" if before is not None else ""
    raise CudaError(f"cannot {action}: there is no such GPU{limit}; nvidia-smi -L lists them")


def gpu_info(ordinal: int = 0) -> GpuInfo | None:
    """Describe a GPU; None where there is no driver or no such GPU.

    Makes the GPU's primary context current, which takes some of its memory.
    """
    try:
        return require_gpu(ordinal)
    except CudaError:
        return None


def require_gpu(ordinal: int = 0) -> GpuInfo:
    """Make a GPU's primary context current on this thread and describe it.

    Raises:
        CudaError: there is no driver or no such GPU.
    """
    with translated("find a GPU"):
        from cuda.bindings import driver

        check(driver.cuInit(0))  # without a driver this ends here, before the larger import
        device = make_current(ordinal)
        major, minor = device.compute_capability
        version = check(driver.cuDriverGetVersion())[0]
    free, total = memory_info()
    return GpuInfo(
        name=str(device.name),
        compute_capability=f"{major}.{minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        total_bytes=total,
        free_bytes=free,
    )


def make_current(ordinal: int) -> Any:
    """Make a GPU's primary context current on this thread; returns its ``cuda.core.Device``."""
    from cuda.core import Device

    device = Device(ordinal)
    device.set_current()
    CURRENT.ordinal = ordinal
    return device


def memory_info() -> tuple[int, int]:
    """Free and total bytes of the memory of this thread's current GPU.

    Raises:
        CudaError: no GPU is current.
    """
    with translated("ask for the free GPU memory"):
        from cuda.bindings import driver

        free, total = check(driver.cuMemGetInfo())
    return int(free), int(total)


@functools.cache
def bindings() -> Any:
    """``cuda.bindings.driver``, for calls made so often that the import statement would count."""
    from cuda.bindings import driver

    return driver


def check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check the return code that leads every result of cuda.bindings; return the rest.

    Raises:
        CudaError: the code is not ``CUDA_SUCCESS``.
    """
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"{code.name} (code {int(code)})", code=int(code))
    return tuple(values)


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn any error of cuda-python into a :class:`CudaError` that names the action."""
    try:
        yield
    except ClosedError as error:
        raise ClosedError(f"cannot {action}: {error}") from None
    except CudaError as error:
        raise CudaError(f"cannot {action}: {error}", code=error.code) from None
    except ImportError as error:
        raise CudaError(f"cannot {action}: cuda-python does not import: {error}") from None
    except Exception as error:  # cuda-python's own errors have no base class but this
        text = " ".join(str(error).split())
        if "driver library" in text:
            text = "this machine has no NVIDIA driver (libcuda)"
        code = next((number for name, number in _NAMED.items() if name in text), 0)
        raise CudaError(f"cannot {action}: {text or type(error).__name__}", code=code) from None


_NAMED = {
    "CUDA_ERROR_OUT_OF_MEMORY": 2,
    "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
    "CUDA_ERROR_MISALIGNED_ADDRESS": 716,
    "CUDA_ERROR_LAUNCH_FAILED": 719,
}
