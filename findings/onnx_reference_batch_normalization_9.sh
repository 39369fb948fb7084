#!/usr/bin/env bash
# onnx 1.23.2: BatchNormalization of opset 9 with one output uses the given mean and variance; the
# reference evaluator blends in a tenth of the batch's own statistics (momentum 0.9), as training
# would.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(0)
values = rng.standard_normal((2, 3, 4)).astype(np.float32) + 5
constants = {"scale": 1, "bias": 0, "mean": 0, "variance": 1}
weights = [numpy_helper.from_array(np.full(3, c, np.float32), n) for n, c in constants.items()]
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])
node = helper.make_node("BatchNormalization", ["x", *constants], ["y"])
graph = helper.make_graph([node], "g", [x], [y], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
onnx.checker.check_model(model, full_check=True)

(found,) = ReferenceEvaluator(model).run(None, {"x": values})
inference = values / np.sqrt(1 + 1e-5)
mean = 0.1 * values.mean(axis=(0, 2), keepdims=True)
variance = 0.9 + 0.1 * values.var(axis=(0, 2), keepdims=True)
blended = (values - mean) / np.sqrt(variance + 1e-5)
print("largest difference to inference with the given statistics:", np.abs(found - inference).max())
print("largest difference to blended statistics:", np.abs(found - blended).max())
assert np.abs(found - inference).max() > 0.1, "the evaluator has changed"
assert np.abs(found - blended).max() < 1e-4
PY
