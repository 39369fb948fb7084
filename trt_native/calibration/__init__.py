"""Calibration: the data, the ranges found in it, and TensorRT's cache of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_native.calibration.batches import Batches as Batches
    from trt_native.calibration.batches import read_batches as read_batches
    from trt_native.calibration.cache import CalibrationCache as CalibrationCache
    from trt_native.calibration.capturing import capture as capture
    from trt_native.calibration.collect import calibrate as calibrate

_HOMES = {
    "Batches": "batches",
    "CalibrationCache": "cache",
    "calibrate": "collect",
    "capture": "capturing",
    "read_batches": "batches",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
