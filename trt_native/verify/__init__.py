"""Whether a plan computes what its model does: outputs, and tensors inside, against a reference.

The reference is the ONNX file run by ``onnx.reference``, a Python callable such as a PyTorch
module, or stored arrays.
"""

from trt_native.arrays import Batch
from trt_native.verify.check import Verification, open_session, verify_plan
from trt_native.verify.first_mismatch import find_first_mismatch
from trt_native.verify.layer_report import HiddenFault, LayerReport, TensorResult
from trt_native.verify.metrics import (
    OutputComparison,
    Thresholds,
    compare_outputs,
    default_thresholds,
)
from trt_native.verify.models import compare_models
from trt_native.verify.observed_plans import open_with_debug_tensors, open_with_extra_outputs
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
    "GoldenFile",
    "HiddenFault",
    "LayerReport",
    "OnnxReference",
    "OutputComparison",
    "Reference",
    "TensorResult",
    "Thresholds",
    "Verification",
    "compare_models",
    "compare_outputs",
    "default_thresholds",
    "find_first_mismatch",
    "open_reference",
    "open_session",
    "open_with_debug_tensors",
    "open_with_extra_outputs",
    "verify_plan",
]
