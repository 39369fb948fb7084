#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator ignores the LSTM's sequence_lens input (what follows a
# sequence's end should be zero, and Y_h the state at the end) and its clip attribute, without a
# word.
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
weights = [
    numpy_helper.from_array(rng.standard_normal((1, 8, 3)).astype(np.float32), "w"),
    numpy_helper.from_array(rng.standard_normal((1, 8, 2)).astype(np.float32), "r"),
    numpy_helper.from_array(np.array([2], np.int32), "lengths"),
]
values = rng.standard_normal((4, 1, 3)).astype(np.float32)


def run(inputs, **attributes):
    info = helper.make_tensor_value_info
    node = helper.make_node("LSTM", inputs, ["y", "h"], hidden_size=2, **attributes)
    outputs = [info("y", TensorProto.FLOAT, [4, 1, 1, 2]), info("h", TensorProto.FLOAT, [1, 1, 2])]
    x = info("x", TensorProto.FLOAT, [4, 1, 3])
    used = [weight for weight in weights if weight.name in inputs]
    graph = helper.make_graph([node], "g", [x], outputs, used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, {"x": values})


whole = run(["x", "w", "r"])
short = run(["x", "w", "r", "", "lengths"])
clipped = run(["x", "w", "r"], clip=0.01)
print("a sequence of 2 in 4 steps, largest output after its end:", np.abs(short[0][2:]).max())
print("equal to a sequence of 4:", all(map(np.array_equal, short, whole)))
print("equal with gates clipped at 0.01:", all(map(np.array_equal, clipped, whole)))
assert all(map(np.array_equal, short, whole)), "sequence_lens is used now"
assert all(map(np.array_equal, clipped, whole)), "clip is used now"
PY
