#!/usr/bin/env bash
# onnx 1.23.2: the version converter returns a model without the model-local functions that its
# nodes call; what it returns no longer runs, and the call raised nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import onnx
from onnx import TensorProto, helper, version_converter
from onnx.reference import ReferenceEvaluator

x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
body = [helper.make_node("Relu", ["a"], ["b"])]
function = helper.make_function("local", "Positive", ["a"], ["b"], body, opsets[:1])
call = helper.make_node("Positive", ["x"], ["y"], domain="local")
graph = helper.make_graph([call], "g", [x], [y])
model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
onnx.checker.check_model(model, full_check=True)

converted = version_converter.convert_version(model, 18)
print("functions before:", len(model.functions), "after:", len(converted.functions))
assert len(converted.functions) == 0, "the converter keeps functions now"
assert converted.graph.node[0].domain == "local"
ReferenceEvaluator(model)
try:
    ReferenceEvaluator(converted)
except Exception as error:
    print("the converted model:", type(error).__name__)
else:
    raise SystemExit("the converted model runs now")
PY
