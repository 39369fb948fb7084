#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120 (parser only, no GPU needed): QuantizeLinear without a zero point makes uint8
# in ONNX; the network's output is int8, without a warning. The same with an explicit zero point of
# uint8 is int8 as well, but there a warning says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 tensorrt-rtx==1.6.1.120
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper


class Log(trt.ILogger):
    """Keeps warnings and errors, except that this machine may have no GPU."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.WARNING and "CUDA" not in text:
            self.lines.append(text)


def parse(model):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), log.lines
    described = [
        [(t.name, str(t.dtype), tuple(t.shape)) for t in map(get, range(count))]
        for get, count in (
            (network.get_input, network.num_inputs),
            (network.get_output, network.num_outputs),
        )
    ]
    return *described, log.lines


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(node, inputs, outputs, weights=(), opset=18):
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


scale = numpy_helper.from_array(np.float32(0.1), "scale")
zero = numpy_helper.from_array(np.uint8(0), "zero")
x, y = value("x", TensorProto.FLOAT, [2, 3]), value("y", TensorProto.UINT8, [2, 3])
node = helper.make_node("QuantizeLinear", ["x", "scale"], ["y"])
_, outputs, log = parse(model_of(node, [x], [y], [scale]))
print("ONNX: uint8; TensorRT-RTX:", outputs, "warnings:", log)
assert outputs == [("y", "DataType.INT8", (2, 3))], "the parser has changed"
assert log == []

node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
_, outputs, log = parse(model_of(node, [x], [y], [scale, zero]))
print("with a zero point:", outputs, "warnings:", log)
assert outputs == [("y", "DataType.INT8", (2, 3))] and "UINT8" in log[0]
PY
