"""Group norms as TensorRT computes them, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_models
from helpers.passes import pass_records
from onnx import TensorProto, helper

from trt_native import BuildConfig, Precision, ProfileSpec, Session, build_plan

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.backend]

CHANNELS = 8


def group_norm(path, groups, opset, between):
    """A group norm, alone or between two convolutions that change nothing."""
    count = CHANNELS if opset >= 21 else groups
    random = np.random.default_rng(groups)
    parameters = {name: random.standard_normal(count).astype(np.float32) for name in "sb"}
    norm = helper.make_node("GroupNormalization", ["a", "s", "b"], ["n"], num_groups=groups)
    if between:
        eye = np.eye(CHANNELS, dtype=np.float32)[..., None, None]
        nodes = [
            helper.make_node("Conv", ["x", "eye"], ["a"]),
            norm,
            helper.make_node("Conv", ["n", "eye"], ["y"]),
        ]
        constants = {**parameters, "eye": eye}
    else:
        norm.input[0], norm.output[0] = "x", "y"
        nodes, constants = [norm], parameters
    shape = ["batch", CHANNELS, "height", 16]
    tiny_models.save(
        path,
        nodes,
        [tiny_models.tensor("x", TensorProto.FLOAT, shape)],
        [tiny_models.tensor("y", TensorProto.FLOAT, shape)],
        constants,
        opset=opset,
    )
    return [torch.tensor(np.repeat(p, CHANNELS // count)) for p in parameters.values()]


@pytest.mark.parametrize("between", [False, True], ids=["alone", "between"])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16], ids=str)
@pytest.mark.parametrize(("opset", "groups"), [(18, 1), (21, 1), (21, 2), (21, CHANNELS)])
def test_values(tmp_path, rng, groups, opset, precision, between):
    path = tmp_path / "m.onnx"
    scale, bias = group_norm(path, groups, opset, between)
    profile = ProfileSpec.parse(["batch=1:2:3", "height=8:16:16"])
    plan = build_plan(path, BuildConfig(precision=precision, profiles=(profile,)))
    assert ("parser_workarounds" in pass_records(plan.manifest)) == (groups == 1)
    with Session(plan) as session:
        for shape in ((2, CHANNELS, 16, 16), (3, CHANNELS, 8, 16)):
            x = rng.standard_normal(shape, np.float32)
            x[:, 0] += 4  # channels differ, so that statistics of each would be others
            expected = torch.nn.functional.group_norm(torch.tensor(x), groups, scale, bias).numpy()
            found = session.run({"x": x})["y"]
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < (1e-5 if precision is Precision.FP32 else 3e-3)
