"""What FP16 and BF16 cannot hold, in plans on the GPU, against onnx.reference in FP32."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from helpers.autocast_checks import run
from helpers.metrics import relative_error
from helpers.reduced_kinds import KINDS
from helpers.text_models import model

from trt_native import BuildConfig, Precision, Session, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]
TOLERANCE = {Precision.FP16: 1e-2, Precision.BF16: 3e-2}


@pytest.mark.parametrize("precision", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_values(tmp_path, name, precision):
    text, weights, inputs = KINDS[name]
    original = model(text, opset=22, **weights)
    ir.save(original, tmp_path / "m.onnx")
    plan = build_plan(tmp_path / "m.onnx", BuildConfig(precision=precision))
    with Session(plan) as session:
        found = session.run(inputs)
    for output, expected in zip(original.graph.outputs, run(original, **inputs), strict=True):
        assert relative_error(found[output.name], expected) < TOLERANCE[precision]
