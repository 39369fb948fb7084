"""Files with TensorRT's own quantizers, as ModelOpt writes them, built for real as they are."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trt_native import BuildConfig, Precision, build_plan
from trt_native.errors import BuildError, SpecError
from trt_native.graph.onnx_file import read_model
from trt_native.graph.types import is_reduced, reduced_types

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
E2M1, E4M3, E8M0 = TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E8M0
N = 64


def raw(name, kind, shape, data):
    tensor = onnx.TensorProto(name=name, data_type=kind, raw_data=data)
    tensor.dims.extend(shape)
    return tensor


def scalar(name, kind):
    return raw(name, kind, [], np.asarray(0.01, helper.tensor_dtype_to_np_dtype(kind)).tobytes())


def nvfp4(kind, *, activations):
    """E2M1 in blocks of 16, whose scales are E4M3 times one number."""
    nodes = [
        helper.make_node("DequantizeLinear", ["ws", "g"], ["scales"]),
        helper.make_node("DequantizeLinear", ["w", "scales"], ["real"], axis=0, block_size=16),
    ]
    ones = np.ones((N // 16, N), ml_dtypes.float8_e4m3fn).tobytes()
    weights = [
        raw("w", E2M1, [N, N], bytes([0x12]) * (N * N // 2)),
        raw("ws", E4M3, [N // 16, N], ones),
        scalar("g", kind),
    ]
    x = "x"
    if activations:
        options = {"axis": -1, "block_size": 16, "scale_type": E4M3}
        nodes += [
            helper.make_node(
                "TRT_FP4DynamicQuantize", ["x", "g"], ["xq", "xs"], domain="trt", **options
            ),
            helper.make_node("DequantizeLinear", ["xs", "g"], ["xscales"]),
            helper.make_node("DequantizeLinear", ["xq", "xscales"], ["xd"], axis=1, block_size=16),
        ]
        x = "xd"
    return saved_model([*nodes, helper.make_node("MatMul", [x, "real"], ["y"])], kind, weights)


def mxfp8(kind, *, activations):
    """E4M3 in blocks of 32, whose scales are powers of two, in a byte each."""
    options = {"axis": -1, "block_size": 32}
    nodes = [dequantized("w", "ws", "real", {**options, "axis": -2}, kind)]
    weights = [
        raw("w", E4M3, [N, N], bytes([0x38]) * (N * N)),
        raw("ws", TensorProto.UINT8, [N // 32, N], bytes([120]) * (N // 32 * N)),
    ]
    x = "x"
    if activations:
        names = ["x"], ["xq", "xs"]
        nodes += [
            helper.make_node(
                "TRT_MXFP8DynamicQuantize", *names, domain="trt", output_dtype=E4M3, **options
            ),
            dequantized("xq", "xs", "xd", options, kind),
        ]
        x = "xd"
    return saved_model([*nodes, helper.make_node("MatMul", [x, "real"], ["y"])], kind, weights)


def dequantized(numbers, scales, result, options, kind):
    operator, names = "TRT_MXFP8DequantizeLinear", ([numbers, scales], [result])
    return helper.make_node(operator, *names, domain="trt", output_dtype=kind, **options)


def saved_model(nodes, kind, weights, opset=23):
    x, y = (helper.make_tensor_value_info(name, kind, [8, N]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=12)


@pytest.mark.parametrize("kind", [FLOAT, FLOAT16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("activations", [False, True], ids=["weights", "both"])
@pytest.mark.parametrize("make", [nvfp4, mxfp8])
def test_a_file_is_built_as_it_is(tmp_path, make, activations, kind):
    onnx.save(make(kind, activations=activations), tmp_path / "m.onnx")
    plan = build_plan(tmp_path / "m.onnx", backend="rtx")
    types = {"nvfp4": ["float4e2m1", "float8e4m3fn"], "mxfp8": ["float8e4m3fn"]}[make.__name__]
    assert plan.manifest.precision["quantized_in_model"] == types
    assert "quantized" in reduced_types(read_model(tmp_path / "m.onnx"))
    if activations or make is mxfp8:
        assert is_reduced(read_model(tmp_path / "m.onnx"))
        assert plan.manifest.precision["applied"] == "as in the model"
        with pytest.raises(SpecError, match="has Q/DQ nodes already"):
            build_plan(
                tmp_path / "m.onnx", BuildConfig(precision=Precision.INT4_WEIGHTS), backend="rtx"
            )


def test_scales_in_e8m0_of_onnx_are_refused_by_tensorrt(tmp_path):
    """TensorRT takes them as bytes, of its own operator alone."""
    weights = [
        raw("w", E4M3, [N, N], bytes([0x38]) * (N * N)),
        raw("s", E8M0, [N // 32, N], bytes([120]) * (N // 32 * N)),
    ]
    options = {"axis": 0, "block_size": 32, "output_dtype": FLOAT16}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["real"], **options),
        helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    onnx.save(saved_model(nodes, FLOAT16, weights, opset=24), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="does not support these operators"):
        build_plan(tmp_path / "m.onnx", backend="rtx")
