"""Whether a plan computes what its model does: outputs, and tensors inside, against a reference.

The reference is the ONNX file run by ``onnx.reference``, a Python callable such as a PyTorch
module, or stored arrays.
"""

from trt_native.verify.check import Batch, Verification, open_session, verify
from trt_native.verify.layers import LayerReport, find_departure, open_exposed
from trt_native.verify.metrics import Comparison, Thresholds, compare, default_thresholds
from trt_native.verify.reference import (
    CallableReference,
    GoldenFile,
    OnnxReference,
    Reference,
    open_reference,
)

__all__ = [
    "Batch",
    "CallableReference",
    "Comparison",
    "GoldenFile",
    "LayerReport",
    "OnnxReference",
    "Reference",
    "Thresholds",
    "Verification",
    "compare",
    "default_thresholds",
    "find_departure",
    "open_exposed",
    "open_reference",
    "open_session",
    "verify",
]
