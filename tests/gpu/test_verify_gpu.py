"""Real plans against the models they were built from, and against another."""

from __future__ import annotations

import contextlib
import functools
import json
import re

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.tolerances import FP32_PRODUCTS, TF32_PRODUCTS
from onnx import TensorProto, helper, numpy_helper

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

TORCH_CODE = """
import pathlib
import numpy as np
import torch
import torch.nn.functional as F

W = {k: torch.from_numpy(v) for k, v in
     np.load(pathlib.Path(__file__).parent / "weights.npz").items()}

def net(x):
    x = F.silu(F.conv2d(x, W["k0"], padding=1))
    x = F.silu(F.conv2d(x, W["k1"], padding=1))
    return {"y": F.conv2d(x, W["k2"], padding=1)}
"""


def conv_net(path):
    """Three convolutions with SiLU between them."""
    random = np.random.default_rng(0)
    sizes = [(16, 3), (16, 16), (8, 16)]
    weights = {
        f"k{i}": random.standard_normal((o, c, 3, 3), np.float32) / (3 * c**0.5)
        for i, (o, c) in enumerate(sizes)
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = []
    for i in range(3):
        result = f"c{i}" if i < 2 else "y"
        read = f"s{i - 1}" if i else "x"
        nodes.append(
            helper.make_node("Conv", [read, f"k{i}"], [result], name=f"/conv.{i}", pads=[1] * 4)
        )
        if i < 2:
            nodes.append(helper.make_node("Sigmoid", [result], [f"g{i}"], name=f"/sigmoid.{i}"))
            nodes.append(helper.make_node("Mul", [result, f"g{i}"], [f"s{i}"], name=f"/silu.{i}"))
    shapes = [
        tiny_models.tensor(name, TensorProto.FLOAT, ["batch", channels, 16, 16])
        for name, channels in (("x", 3), ("y", 8))
    ]
    return tiny_models.save(path, nodes, shapes[:1], shapes[1:], weights)


def perturbed(path):
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.name == "k1":
            array = numpy_helper.to_array(weight) * np.float32(1.2)
            weight.CopyFrom(numpy_helper.from_array(array, "k1"))
    copy = path.with_name("perturbed.onnx")
    onnx.save(model, copy)
    return copy


@pytest.fixture
def model(tmp_path):
    path = conv_net(tmp_path / "m.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    np.savez(tmp_path / "weights.npz", **weights)
    (tmp_path / "ref.py").write_text(TORCH_CODE)
    return path


def build(path, precision):
    profile = ProfileSpec.parse(["batch=1:2:4"])
    plan = build_plan(path, BuildConfig(profiles=(profile,), precision=precision))
    return plan.save(path.with_suffix(".plan"))


@pytest.fixture
def verify(main_in_process):
    return functools.partial(main_in_process, "verify")


def relative_error(out):
    return json.loads(out)["outputs"][0]["relative_l2"]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_plan_agrees_with_its_model_and_with_torch(model, tmp_path, verify, precision):
    plan = build(model, precision)
    limit = ("--max-relative-error", FP32_PRODUCTS) if precision is Precision.FP32 else ()
    given = ("--random", 0, "--seeds", 2, "--shape", "x=3x3x16x16", "--json", *limit)
    golden = tmp_path / "g.npz"
    code, out, err = verify(plan, "--against", model, *given, "--save", golden)
    assert code == 0, out + err
    error = relative_error(out)
    # Not by the limit being wide: rounding is there, and no more than that.
    least, most = (0, FP32_PRODUCTS) if precision is Precision.FP32 else (1e-5, 3e-3)
    assert least <= error < most
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401

        code, out, err = verify(plan, "--against", f"{tmp_path}/ref.py:net", *given)
        assert code == 0, out + err
        assert relative_error(out) == pytest.approx(error, rel=0.3, abs=1e-6)
    code, out, err = verify(plan, "--against", golden, "--json", *limit)
    assert code == 0, out + err
    assert relative_error(out) == pytest.approx(error, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("memory", [[], ["--memory", "40000"]], ids=["one plan", "several"])
def test_layers_name_the_perturbed_node(model, verify, tmp_path, precision, memory):
    plan = build(perturbed(model), precision)
    products = FP32_PRODUCTS if precision is Precision.FP32 else TF32_PRODUCTS
    limit = ("--max-relative-error", 2 * products)
    page = tmp_path / "page.html"
    given = ("--random", 0, "--layers", *limit, *memory, "--html", page)
    code, out, err = verify(plan, "--against", model, *given)
    assert code == 1, out + err
    assert "y fails: relative L2" in out
    assert "First mismatch: c1 (output of Conv '/conv.1'); all inputs of that node match." in out
    assert page.read_text().count('"d":"first mismatch"') == 1
    plans = int(re.search(r"plans built: (\d+)", out)[1])
    tries = 1 + 2  # without tensors, and without the fusion with what the node reads or makes
    assert plans == 1 + tries if not memory else 1 < plans - tries <= 4


def test_layers_of_a_plan_that_agrees(model, verify):
    plan = build(model, Precision.FP16)
    code, out, err = verify(plan, "--against", model, "--random", 0, "--layers")
    assert code == 0, out + err
    assert "No mismatch: all tensors are within the tolerance." in out
    assert "Compared 7 of 7 tensors; plans built: 1." in out


def test_inputs_that_do_not_fit(model, tmp_path, verify):
    plan = build(model, Precision.FP32)
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 16, 16)))
    code, out, err = verify(plan, "--against", model, "--input", f"x={tmp_path / 'x.npy'}")
    assert (code, out) == (1, "")
    assert "'x' needs float32, found float64" in err
    (tmp_path / "double.py").write_text("def f(x):\n    return x\n")
    code, _, err = verify(plan, "--against", f"{tmp_path}/double.py:f", "--random", 0)
    assert code == 1
    assert "output 'y' has the shape 2x8x16x16 in the plan and 2x3x16x16 in the reference" in err
