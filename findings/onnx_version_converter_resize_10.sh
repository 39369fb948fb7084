#!/usr/bin/env bash
# onnx 1.23.2: the version converter turns Resize of opset 10 into one of opset 11 or later without
# coordinate_transformation_mode, whose default is half_pixel. An engine that computes opset 10 as
# x / scale (ONNX Runtime 1.32.0 here) then gives other numbers, and nobody is warned.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 numpy==2.4.6 onnxruntime==1.32.0
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])
scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
node = helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")
graph = helper.make_graph([node], "g", [x], [y], [scales])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
onnx.checker.check_model(model, full_check=True)

converted = version_converter.convert_version(model, 18)
(resize,) = (node for node in converted.graph.node if node.op_type == "Resize")
modes = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
values = np.array([[[[0, 1], [2, 3]]]], np.float32)
before, after = (
    onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": values})[0]
    for m in (model, converted)
)
print("attributes of the converted node:", modes)
print("first row before:", before[0, 0, 0], "after:", after[0, 0, 0])
assert "coordinate_transformation_mode" not in modes, "the converter has changed"
assert not np.allclose(before, after)
PY
