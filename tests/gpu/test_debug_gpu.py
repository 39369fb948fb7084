"""Models whose plans compute wrong results: the part that does, and the nodes to keep in FP32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.cancelling_layers import cancelling_layers
from helpers.program import trt_native
from helpers.tiny_models import FLOAT, tensor
from onnx import helper

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def test_the_node_that_fp16_overflows_is_what_is_left(tmp_path):
    """1e6 times the input is beyond FP16, and within FP32."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], {"huge": np.full((32,), 1e6, np.float32)}, "x"
    for number in range(40):
        if number == 25:
            nodes.append(helper.make_node("Mul", [value, "huge"], ["h"], name="overflow"))
            nodes.append(helper.make_node("Div", ["h", "huge"], ["d"], name="back"))
            value = "d"
        weights[f"w{number}"] = (rng.standard_normal((32, 32)) / 6).astype(np.float32)
        made = f"t{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [made]))
        value = made
    model = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tensor("x", FLOAT, [4, 32])],
        [tensor(value, FLOAT, [4, 32])],
        weights,
    )
    result = trt_native(
        "debug", "reduce", model, "--fails", "verify", "--precision", "fp16",
        "--max-relative-error", "0.5", "--json",
    )  # fmt: skip
    if "does not fail" in result.stderr:
        pytest.skip("this build keeps the products in FP32")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["nodes_after"] <= 5
    assert printed["last"]["kind"] == "wrong results"
    left = {node.name for node in onnx.load(printed["path"]).graph.node}
    assert left & {"overflow", "back"}


def test_the_nodes_that_fp16_needs_in_fp32_are_found_with_plans(tmp_path):
    model = cancelling_layers(tmp_path / "m.onnx")
    shape = ("--shape", "x=8x16")
    result = trt_native(
        "debug", "precision", model, "--max-error", "0.02", "--measure", "gpu", *shape, "--json"
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["measured_on"] == "gpu"
    assert printed["error"] <= 0.02
    if printed["reduced_error"] <= 0.02:
        pytest.skip("this TensorRT computes the sum in FP32 already")
    assert printed["kept"]
    words = [word for pattern in printed["patterns"] for word in ("--keep-fp32", pattern)]
    plan = tmp_path / "m.plan"
    built = trt_native("build", model, "-o", plan, "--precision", "fp16", "--dim", "n=8", *words)
    assert built.returncode == 0, built.stderr
    verified = trt_native(
        "verify", plan, "--against", model, "--random", "0", "--max-relative-error", "0.02"
    )
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_products_that_must_not_be_quantized_are_found_with_plans(tmp_path, rng, precision):
    """A layer whose input its range cuts off; the plan without its Q/DQ pair agrees."""
    model = tiny_models.dense(tmp_path / "m.onnx", layers=8)
    ranges = {**{f"h{i}": 4.0 for i in range(9)}, "h3": 0.01}
    cache = tiny_models.calibration(model, tmp_path / "m.calib", ranges)
    np.savez(tmp_path / "x.npz", h0=rng.standard_normal((4, 64)).astype(np.float32))
    quantized = ("--precision", precision, "--calibration-cache", cache)
    result = trt_native(
        "debug", "precision", model, "--max-error", "0.12", "--measure", "gpu", *quantized,
        "--input", tmp_path / "x.npz", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["measured_on"] == "gpu"
    assert printed["reduced_error"] > 0.5
    assert "/dense.3" in printed["kept"]
    assert len(printed["kept"]) <= 2
    words = [word for pattern in printed["patterns"] for word in (printed["option"], pattern)]
    plan = tmp_path / "m.plan"
    built = trt_native("build", model, "-o", plan, "--dim", "batch=4", *quantized, *words)
    assert built.returncode == 0, built.stderr
    verified = trt_native(
        "verify", plan, "--against", model, "--input", tmp_path / "x.npz",
        "--max-relative-error", "0.12",
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout
