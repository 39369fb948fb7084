#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120: its ONNX parser takes a Range of floating-point limits where it knows them to
# follow from a shape, and refuses the same node, by an assertion, where a limit is an input of the
# model. So a node that is asked about alone may be refused, and yet parse in its model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 \
  tensorrt-rtx==1.6.1.120
"$work/venv/bin/python" - <<'PY'
import onnx
import tensorrt_rtx as trt

HEADER = '<ir_version: 8, opset_import: ["": 17]> g '
CONSTANTS = """zero = Constant <value = float {0.0}> () one = Constant <value = float {1.0}> ()
    step = Identity (one)"""
FROM_SHAPE = f"""(float[n, 6] x) => (float[m] y) {{ {CONSTANTS}
    s = Shape <start = 0, end = 1> (x) k = Squeeze (s) limit = Cast <to = 1> (k)
    y = Range (zero, limit, step) }}"""
FROM_INPUT = f"(float limit) => (float[m] y) {{ {CONSTANTS} y = Range (zero, limit, step) }}"


def parses(text):
    model = onnx.parser.parse_model(HEADER + text)
    onnx.checker.check_model(model)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network()
    parser = trt.OnnxParser(network, logger)
    done = parser.parse(model.SerializeToString())
    print("parsed" if done else f"refused: {parser.get_error(0).desc()}")
    return done


print(trt.__version__)
assert trt.__version__ == "1.6.1.120"
assert parses(FROM_SHAPE)
assert not parses(FROM_INPUT), "the parser has changed"
PY
