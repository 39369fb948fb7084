#!/usr/bin/env bash
# onnx 1.23.2: onnx.reference takes other elements for the nearest than the operator's text and ONNX
# Runtime 1.32.0. Resize of 7 elements by a scale of 0.5 in half_pixel_symmetric has its first place at
# exactly 1 (3.5 * (1 - 3 / 3.5) + 0.5 / 0.5 - 0.5); the reference has a little less and takes element
# 0, for both ways of rounding to the nearest. And where a scale of 0.25 leaves one element,
# pytorch_half_pixel has its place at 0; the reference compares the length before it is rounded down
# (1.75) with 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 \
  numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

x = np.arange(7, dtype=np.float32)


def resized(scale, coordinates, rounding):
    node = helper.make_node(
        "Resize", ["x", "", "scales"], ["y"], mode="nearest",
        coordinate_transformation_mode=coordinates, nearest_mode=rounding,
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([scale], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results = ReferenceEvaluator(model).run(None, {"x": x}), session.run(None, {"x": x})
    return [one[0].astype(int).tolist() for one in results]


for scale, coordinates, rounding, reference, runtime in (
    (0.5, "half_pixel_symmetric", "round_prefer_floor", [0, 3, 5], [1, 3, 5]),
    (0.5, "half_pixel_symmetric", "round_prefer_ceil", [0, 3, 5], [1, 3, 5]),
    (0.25, "pytorch_half_pixel", "round_prefer_floor", [1], [0]),
):
    found = resized(scale, coordinates, rounding)
    print(f"{coordinates} by {scale}, {rounding}: reference {found[0]}, ONNX Runtime {found[1]}")
    assert found == [reference, runtime], "one of them has changed"
PY
