"""An output of data-dependent shape behind a dynamic input, which TensorRT 10 and 11 build."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper

from trt_native import BuildConfig, ProfileSpec, Session, build_plan
from trt_native.deploy import TritonConfig, triton_config
from trt_native.errors import BuildError, UnsupportedError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def test_the_manifest_says_so_and_triton_is_refused(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Relu", ["x"], ["y"])],
        [tiny_models.tensor("x", TensorProto.FLOAT, ["batch", 4])],
        [
            tiny_models.tensor("n", TensorProto.INT64, [2, "count"]),
            tiny_models.tensor("y", TensorProto.FLOAT, ["batch", 4]),
        ],
    )
    config = BuildConfig(profiles=ProfileSpec(dims={"batch": "1:3:6"}), precision="fp32")
    try:
        plan = build_plan(path, config)
    except BuildError as error:
        pytest.skip(f"this TensorRT builds no output whose shape depends on data: {error}")
    assert {t.name: t.data_dependent for t in plan.manifest.outputs} == {"n": True, "y": False}
    with pytest.raises(UnsupportedError, match="the shape of output 'n' depends on data"):
        triton_config(plan.manifest.tensors, TritonConfig(name="m"))
    with Session(plan) as session:
        for x in (np.eye(4, dtype=np.float32)[:3], np.ones((3, 4), np.float32)):
            np.testing.assert_array_equal(session.run({"x": x})["n"], np.stack(np.nonzero(x)))
