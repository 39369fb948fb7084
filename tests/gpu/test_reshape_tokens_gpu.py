"""Transformers with convolutions over their tokens, in FP16, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.passes import pass_records

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.export import export_module
from trt_native.shapes import ProfileSpec

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dim", ["b=2", "b=1:2:4"])
def test_blocks_with_several_heads(tmp_path, dim):
    from helpers.token_blocks import SIDE, WIDTH, two_blocks

    module = two_blocks()
    example = torch.randn(2, SIDE * SIDE, WIDTH)
    path = tmp_path / "m.onnx"
    export_module(module, (example,), path=path, dynamic={"x": {0: "b"}}, input_names=["x"])
    config = BuildConfig(precision=Precision.FP16, profiles=(ProfileSpec.parse([dim]),))
    plan = build_plan(path, config)
    assert pass_records(plan.manifest)["reshape_tokens"]["nodes"] == {"Reshape": 2}
    with Session(plan) as session:
        for batch in [2] if dim == "b=2" else [1, 2, 3, 4]:
            x = torch.randn(batch, SIDE * SIDE, WIDTH)
            (found,) = session.run({"x": x.numpy()}).values()
            expected = module(x).detach().numpy()
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < 5e-3, batch
