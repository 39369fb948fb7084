"""Models that TensorRT's parser miscompiles, on the GPU, against NumPy and PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.passes import pass_records

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.shapes import ProfileSpec

pytest.importorskip("torch")
from helpers.miscompiled_models import CASES

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.AUTO], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(tmp_path, name, precision):
    case = CASES[name]()
    half = case.expected[0].dtype == np.float16
    if half and precision is Precision.FP32:
        pytest.skip("the model is in FP16")
    path = tmp_path / "m.onnx"
    onnx.save(case.model, path)
    profiles = (ProfileSpec.parse(case.dims),) if case.dims else ()
    plan = build_plan(path, BuildConfig(precision=precision, profiles=profiles))
    records = pass_records(plan.manifest)
    passes = ("lower_operators", "lower_recurrent", "parser_workarounds")
    done = next(records[one] for one in passes if one in records)
    assert done["nodes"] == {case.operator: 1}
    with Session(plan) as session:
        found = session.run(case.inputs)
    tolerance = 1e-4 if precision is Precision.FP32 else 5e-3
    for output, expected in zip(case.model.graph.output, case.expected, strict=True):
        assert found[output.name].shape == expected.shape
        np.testing.assert_allclose(found[output.name], expected, rtol=tolerance, atol=tolerance)
