#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120 (no GPU needed): its parser says that it supports a ConvTranspose with strides
# and dilations, and parses it. The builder then ends with "Strided & Dilated Deconv are currently not
# supported". Each of the two alone is built.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 tensorrt-rtx==1.6.1.120
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import tensorrt_rtx as trt


class Log(trt.ILogger):
    """Keeps errors, except that this machine may have no GPU."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.ERROR and "CUDA" not in text:
            self.lines.append(text)


def build(attributes):
    """Whether a plan came about, and TensorRT's errors."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[1, 4, 5, 6] x) => (float[a, b, c, d] y)
        {{ y = ConvTranspose <{attributes}> (x, w) }}"""
    )
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 2), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.checker.check_model(model, full_check=True)
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.supports_model_v2(model.SerializeToString())
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), log.lines
    return builder.build_serialized_network(network, builder.create_builder_config()), log.lines


print("tensorrt_rtx", trt.__version__)
for attributes in ("strides = [2, 2]", "dilations = [2, 2]"):
    plan, errors = build(attributes)
    print(attributes, "built" if plan is not None else errors)
    assert plan is not None
plan, errors = build("strides = [2, 2], dilations = [2, 2]")
print("both:", "built" if plan is not None else errors[0])
assert plan is None, "the builder has changed"
assert "Strided & Dilated Deconv" in errors[0]
PY
