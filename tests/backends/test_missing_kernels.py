"""Lines of TensorRT-RTX 1.6.1 on an H100 about fusions without a kernel."""

from __future__ import annotations

import onnx
import pytest
from helpers.passes import normalized

from trt_native.backends.missing_kernels import MissingKernel, missing_kernel
from trt_native.errors import CudaError
from trt_native.runtime.engine import check_kernels

FUSED = (
    "ICudaEngine::createExecutionContext: Error Code 1: Myelin ([myelin_graph.h:1259:"
    " attachExceptionMsgToGraph] MyelinCheckException: cudnn_graph_utils.h:429: CHECK(false)"
    " failed. cuDNN graph compilation failed: No valid engine configs for ConvBwdData_ADD_\n"
    '{"engineId":9,"smVersion":900}'
)
NAMED = (
    "IExecutionContext::enqueueV3: Error Code 1: Myelin (CHECK(false) failed. cuDNN graph"
    " compilation failed: [cudnn_frontend] Error: No valid execution plans built. for"
    " pooling:insn:AveragePool_0:ixn_cudnn_graph_ss_params_t:cudnn_graph_params_t"
)
MODEL = """<ir_version: 8, opset_import: ["": 18]>
    g (float[1,1,4,4] x, float[1,1,1,1] w) => (float[1,1,4,4] y)
    {
      [first] a = ConvTranspose (x, w)
      [AveragePool_0] b = AveragePool <kernel_shape = [1, 1]> (a)
      [other] c = AveragePool <kernel_shape = [1, 1]> (b)
      [last] y = ConvTranspose (c, w)
    }"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (FUSED, MissingKernel("ConvBwdData_ADD", "")),
        (NAMED, MissingKernel("pooling", "AveragePool_0")),
        ("Error Code 2: OutOfMemory", None),
    ],
)
def test_lines(line, expected):
    assert missing_kernel(["Error Code 4: something else", line]) == expected


@pytest.mark.parametrize(
    ("missing", "tensors"),
    [
        (MissingKernel("ConvBwdData_ADD", ""), ("a",)),  # nothing reads y
        (MissingKernel("pooling", "AveragePool_0"), ("b",)),
        (MissingKernel("pooling", "renamed"), ("b", "c")),
        (MissingKernel("Unheard_OF", ""), ()),
    ],
)
def test_tensors(missing, tensors):
    assert missing.tensors(normalized(onnx.parser.parse_model(MODEL))) == tensors


def test_an_output_with_a_bias():
    text = """<ir_version: 8, opset_import: ["": 18]>
        g (float[1,1,4] x, float[1,1,1] w, float[1] b) => (float[1,1,4] y) { y = Conv (x, w, b) }"""
    model = normalized(onnx.parser.parse_model(text))
    assert MissingKernel("ConvFwd_ADD", "").tensors(model) == ("y",)


def test_the_error_names_the_fusion():
    check_kernels(["Error Code 2: OutOfMemory"], "TensorRT-RTX")
    with pytest.raises(CudaError, match="no kernel on this GPU for the fusion pooling") as caught:
        check_kernels([NAMED], "TensorRT-RTX")
    assert "(AveragePool_0)" in caught.value.message
    assert caught.value.options == ("break_fusions", "retry")
    assert caught.value.details == (NAMED,)
