"""PyTorch and ONNX models to native TensorRT plans, and the plans run.

Importing this package imports neither torch nor TensorRT, and touches no GPU: each public name is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_native.builder import build_plan as build_plan
    from trt_native.cache import EngineCache as EngineCache
    from trt_native.engine import Engine as Engine
    from trt_native.errors import TrtNativeError as TrtNativeError
    from trt_native.latentsync_unet import LatentSyncUNet as LatentSyncUNet
    from trt_native.plan import Manifest as Manifest
    from trt_native.plan import Plan as Plan
    from trt_native.quantize import quantize_onnx as quantize_onnx
    from trt_native.refit import refit_plan as refit_plan
    from trt_native.session import Session as Session
    from trt_native.session import SessionPool as SessionPool
    from trt_native.session import SharedMemory as SharedMemory
    from trt_native.spec import BuildConfig as BuildConfig
    from trt_native.spec import DimRange as DimRange
    from trt_native.spec import IoPrecision as IoPrecision
    from trt_native.spec import Precision as Precision
    from trt_native.spec import ProfileSpec as ProfileSpec
    from trt_native.spec import QuantizationSpec as QuantizationSpec
    from trt_native.spec import ShapeRange as ShapeRange
    from trt_native.torch_module import TensorRTModule as TensorRTModule

__version__ = "0.1.0"

_HOMES = {
    "BuildConfig": "spec",
    "DimRange": "spec",
    "Engine": "engine",
    "EngineCache": "cache",
    "IoPrecision": "spec",
    "LatentSyncUNet": "latentsync_unet",
    "Manifest": "plan",
    "Plan": "plan",
    "Precision": "spec",
    "ProfileSpec": "spec",
    "QuantizationSpec": "spec",
    "Session": "session",
    "SessionPool": "session",
    "ShapeRange": "spec",
    "SharedMemory": "session",
    "TensorRTModule": "torch_module",
    "TrtNativeError": "errors",
    "build_plan": "builder",
    "quantize_onnx": "quantize",
    "refit_plan": "refit",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
