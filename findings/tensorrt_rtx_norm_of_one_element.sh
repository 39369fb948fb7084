#!/usr/bin/env bash
# TensorRT-RTX 1.6.1.120 (no GPU needed): its parser says that it supports an InstanceNormalization of
# images of one pixel, whose result is the bias, and parses it. The builder then ends with an error:
# "Total number of elements within given the first two dimensions must be > 1". A GroupNormalization of
# as many groups as channels is refused likewise, a LayerNormalization of one element is built. With a
# range of shapes that begins at one pixel, the instance norm is built.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 tensorrt-rtx==1.6.1.120
"$work/venv/bin/python" - <<'PY'
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


def build(norm, shape, ranges=None):
    """Whether a plan came about, and TensorRT's errors."""
    rank = shape.count(",") + 1
    axes = ", ".join("abcd"[:rank])
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[{shape}] x) => (float[{axes}] y)
        <float[4] s = {{1, 2, 3, 4}}, float[4] b = {{1, 2, 3, 4}}, float[1] o = {{2}}> {{ y = {norm} }}"""
    )
    onnx.checker.check_model(model, full_check=True)
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.supports_model_v2(model.SerializeToString())
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), log.lines
    config = builder.create_builder_config()
    if ranges:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *ranges)
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None, log.lines


print("tensorrt_rtx", trt.__version__)
for norm in ("InstanceNormalization (x, s, b)", "GroupNormalization <num_groups = 4> (x, s, b)"):
    built, errors = build(norm, "2, 4, 1, 1")
    print(norm, "of one pixel:", "built" if built else errors[0].splitlines()[-1])
    assert not built, "the builder has changed"
    assert "must be > 1" in errors[0]
built, _ = build("LayerNormalization <axis = 3> (x, o)", "2, 4, 3, 1")
print("LayerNormalization of one element:", "built" if built else "refused")
assert built
pixels = [(2, 4, 1, 1), (2, 4, 2, 2), (2, 4, 4, 4)]
built, _ = build("InstanceNormalization (x, s, b)", "2, 4, h, w", pixels)
print("InstanceNormalization of one to 16 pixels:", "built" if built else "refused")
assert built
PY
