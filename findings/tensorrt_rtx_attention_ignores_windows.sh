#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120 (builds without a GPU): its parser takes an Attention of opset 25 with
# left_window_size and right_window_size and makes the plan of one without them, byte for byte, with
# no warning. is_causal, for comparison, makes another plan.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 tensorrt-rtx==1.6.1.120
"$work/venv/bin/python" - <<'PY'
import hashlib

import onnx
import tensorrt_rtx as trt

lines = []


class Log(trt.ILogger):
    """Keeps warnings and errors, except that this machine may have no GPU."""

    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.WARNING and "CUDA" not in text:
            lines.append(text)


def plan(attributes):
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["": 25]>
        g (float16[1, 2, 64, 64] x) => (float16[1, 2, 64, 64] y) {{
            y = Attention {attributes} (x, x, x) }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), lines
    data = builder.build_serialized_network(network, builder.create_builder_config())
    return hashlib.sha256(bytes(data)).hexdigest()


whole = plan("")
windowed = plan("<left_window_size = 4, right_window_size = 0>")
causal = plan("<is_causal = 1>")
print("without a window:", whole[:16])
print("with a window:   ", windowed[:16])
print("causal:          ", causal[:16])
print("warnings:", lines)
assert windowed == whole, "the parser reads the windows now"
assert causal != whole
assert not any("window" in line for line in lines)
PY
