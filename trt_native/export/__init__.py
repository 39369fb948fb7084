"""PyTorch modules to ONNX.

Importing this package does not import torch; only the functions do.
"""

from __future__ import annotations

from trt_native.export.module import BFLOAT16_OPSET, DEFAULT_OPSET, ExportReport, export_module

__all__ = [
    "BFLOAT16_OPSET",
    "DEFAULT_OPSET",
    "ExportReport",
    "export_module",
]
