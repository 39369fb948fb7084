#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120 (parser only, no GPU needed): ConvTranspose with auto_pad VALID loses its
# output_padding: 9 elements where ONNX has stride * (n - 1) + output_padding + kernel = 10. The
# same with explicit pads of zero is 10.
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


weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
x, y = value("x", TensorProto.FLOAT, [1, 1, 4, 4]), value("y", TensorProto.FLOAT, [None] * 4)
shapes = {}
for name, padding in {"VALID": {"auto_pad": "VALID"}, "pads": {"pads": [0, 0, 0, 0]}}.items():
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_padding=[1, 1], **padding
    )
    _, outputs, log = parse(model_of(node, [x], [y], [weight]))
    shapes[name] = outputs[0][2]
    print(f"{name}: {shapes[name]}, warnings: {log}")
assert shapes["pads"] == (1, 1, 10, 10)
assert shapes["VALID"] == (1, 1, 9, 9), "the parser has changed"
PY
