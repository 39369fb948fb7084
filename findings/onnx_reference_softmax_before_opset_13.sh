#!/usr/bin/env bash
# onnx 1.23.2: before opset 13 Softmax flattens its input to two dimensions at `axis` and
# normalizes each row; the reference evaluator normalizes along the one axis instead, as from
# opset 13 on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4])
node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
graph = helper.make_graph([node], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
onnx.checker.check_model(model, full_check=True)

values = np.arange(12, dtype=np.float32).reshape(1, 3, 4) / 4
(found,) = ReferenceEvaluator(model).run(None, {"x": values})
exponentials = np.exp(values)
specified = exponentials / exponentials.sum(axis=(1, 2), keepdims=True)
print("sum over the flattened rows, specified:", specified.sum(axis=(1, 2)))
print("sum over the flattened rows, evaluator:", found.sum(axis=(1, 2)))
assert np.allclose(specified.sum(axis=(1, 2)), 1)
assert np.allclose(found.sum(axis=(1, 2)), 4), "the evaluator has changed"
assert np.allclose(found.sum(axis=1), 1)
PY
