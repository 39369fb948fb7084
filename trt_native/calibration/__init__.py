"""Calibration: the data, the ranges found in it, and TensorRT's cache of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_native._lazy import lazy_exports

if TYPE_CHECKING:
    from trt_native.calibration.batches import Batches as Batches
    from trt_native.calibration.batches import read_batches as read_batches
    from trt_native.calibration.caches import CalibrationCache as CalibrationCache
    from trt_native.calibration.capturing import capture as capture
    from trt_native.calibration.collect import calibrate as calibrate

_LAZY_EXPORTS = {
    "Batches": "batches",
    "CalibrationCache": "caches",
    "calibrate": "collect",
    "capture": "capturing",
    "read_batches": "batches",
}

__all__ = [*_LAZY_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
