"""PyTorch modules to ONNX: any module, and the LatentSync U-Net.

Importing this package does not import torch; only the functions do.
"""

from __future__ import annotations

from trt_native.export.latentsync import AUDIO_TOKENS, export_deepcache, export_latentsync
from trt_native.export.module import BFLOAT16_OPSET, DEFAULT_OPSET, ExportReport, export_module

__all__ = [
    "AUDIO_TOKENS",
    "BFLOAT16_OPSET",
    "DEFAULT_OPSET",
    "ExportReport",
    "export_deepcache",
    "export_latentsync",
    "export_module",
]
