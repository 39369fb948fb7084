"""Operators of ONNX Runtime on the GPU, against its own values and PyTorch's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.contrib_cases import ONNXRUNTIME, torch_cases

from trt_native import BuildConfig, Precision, Session, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
pytest.importorskip("torch")

CASES = ONNXRUNTIME | torch_cases()
LIMITS = {Precision.FP32: 2e-4, Precision.FP16: 2e-2}


@pytest.mark.parametrize("precision", LIMITS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(tmp_path, name, precision):
    case = CASES[name]
    path = tmp_path / "m.onnx"
    onnx.save(case.model(), path)
    quantized = case.operator[0] == "Q"
    given = Precision.AUTO if quantized else precision  # quantized types stay as they are
    plan = build_plan(path, BuildConfig(precision=given))
    with Session(plan) as session:
        found = session.run(case.batch)
    for index, expected in enumerate(case.outputs):
        if quantized:  # a sum may be rounded either way
            assert np.abs(found[f"o{index}"].astype(int) - expected).max() <= 1
            continue
        limit = LIMITS[precision] * max(1.0, np.abs(expected.astype(np.float32)).max())
        values = np.asarray(found[f"o{index}"], np.float32), expected.astype(np.float32)
        np.testing.assert_allclose(*values, atol=limit)
