"""Conditionals of a dynamic shape above the optimum, on the GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.passes.lower_conditionals import LowerConditionals
from trt_native.shapes import ProfileSpec

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

TEXT = """<ir_version: 8, opset_import: ["": 16]> g (bool c, float[n,3,7,2] x) => (float[n,3,7,2] y)
    { y = If (c) <then_branch = t () => (a) { a = Tanh (x) },
      else_branch = e () => (b) { b = Neg (x) }> }"""


def error_of(path, rng):
    onnx.save(onnx.parser.parse_model(TEXT), path)
    config = BuildConfig(precision=Precision.FP32, profiles=(ProfileSpec.parse(["n=3:3:5"]),))
    worst = 0.0
    with Session(build_plan(path, config, backend="rtx"), cuda_graphs=0) as session:
        for count in (3, 5):
            x = rng.standard_normal((count, 3, 7, 2), np.float32)
            inputs = {"c": np.array(True), "x": x}
            expected = ReferenceEvaluator(str(path)).run(None, inputs)[0]
            found = session.run(inputs)["y"]
            worst = max(worst, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return worst


def test_they_are_right(tmp_path, rng):
    assert error_of(tmp_path / "m.onnx", rng) < 1e-5


def test_the_defect_is_still_there(tmp_path, rng, monkeypatch):
    """Where this fails, the pass is not needed for this TensorRT any more."""
    monkeypatch.setattr(LowerConditionals, "needed", lambda *_: False)
    assert error_of(tmp_path / "m.onnx", rng) > 1e-3
