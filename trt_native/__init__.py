"""Build native TensorRT plans from PyTorch and ONNX models, and run them.

Importing this package imports neither torch nor TensorRT, and touches no GPU: each public name is
loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_native._lazy import lazy_exports
from trt_native._version import __version__

if TYPE_CHECKING:
    from trt_native.builder.build_plan import build_plan as build_plan
    from trt_native.builder.conversion_config import ConversionConfig as ConversionConfig
    from trt_native.builder.convert import convert_onnx as convert_onnx
    from trt_native.builder.plan_cache import EngineCache as EngineCache
    from trt_native.builder.quantize_file import quantize_onnx as quantize_onnx
    from trt_native.builder.refit import refit_plan as refit_plan
    from trt_native.compilation.compiled_module import CompiledModule as CompiledModule
    from trt_native.compilation.compiling import compile as compile  # noqa: A004
    from trt_native.compilation.compiling import compile_plan as compile_plan
    from trt_native.config import BuildConfig as BuildConfig
    from trt_native.config import IoPrecision as IoPrecision
    from trt_native.config import KernelSpecialization as KernelSpecialization
    from trt_native.config import Precision as Precision
    from trt_native.config import QuantizationSpec as QuantizationSpec
    from trt_native.errors import TrtNativeError as TrtNativeError
    from trt_native.models.latentsync.engines import (
        LatentSyncPipelineEngines as LatentSyncPipelineEngines,
    )
    from trt_native.models.latentsync.pipeline import LatentSyncUNet as LatentSyncUNet
    from trt_native.models.latentsync.vae_pipeline import LatentSyncVAE as LatentSyncVAE
    from trt_native.plans.manifest import Manifest as Manifest
    from trt_native.plans.plan import Plan as Plan
    from trt_native.runtime import ActivationMemory as ActivationMemory
    from trt_native.runtime import EngineSessionPool as EngineSessionPool
    from trt_native.runtime import Session as Session
    from trt_native.runtime import SessionPool as SessionPool
    from trt_native.runtime.engine import Engine as Engine
    from trt_native.runtime.torch_module import TensorRTModule as TensorRTModule
    from trt_native.runtime.warming import warm_plan as warm_plan
    from trt_native.shapes import DimRange as DimRange
    from trt_native.shapes import ProfileSpec as ProfileSpec
    from trt_native.shapes import ShapeRange as ShapeRange

_LAZY_EXPORTS = {
    "BuildConfig": "config",
    "CompiledModule": "compilation.compiled_module",
    "ConversionConfig": "builder.conversion_config",
    "DimRange": "shapes",
    "Engine": "runtime.engine",
    "EngineSessionPool": "runtime.engine_session_pool",
    "EngineCache": "builder.plan_cache",
    "IoPrecision": "config",
    "KernelSpecialization": "config",
    "LatentSyncPipelineEngines": "models.latentsync.engines",
    "LatentSyncUNet": "models.latentsync.pipeline",
    "LatentSyncVAE": "models.latentsync.vae_pipeline",
    "Manifest": "plans.manifest",
    "Plan": "plans.plan",
    "Precision": "config",
    "ProfileSpec": "shapes",
    "QuantizationSpec": "config",
    "Session": "runtime.session",
    "SessionPool": "runtime.session_pool",
    "ShapeRange": "shapes",
    "ActivationMemory": "runtime.activation_memory",
    "TensorRTModule": "runtime.torch_module",
    "TrtNativeError": "errors",
    "build_plan": "builder.build_plan",
    "compile": "compilation.compiling",
    "compile_plan": "compilation.compiling",
    "convert_onnx": "builder.convert",
    "quantize_onnx": "builder.quantize_file",
    "refit_plan": "builder.refit",
    "warm_plan": "runtime.warming",
}

__all__ = [*_LAZY_EXPORTS, "__version__"]

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
