"""Builds for a target with a GPU, warmed there, on a Ray of this machine alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native import Session
from trt_native.cuda import gpu_info
from trt_native.plans.manifest import runtime_cache_path
from trt_native.ray import build_all, read_matrix

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


@pytest.fixture
def ray():
    """A Ray with this machine's GPU, on the loopback interface alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        module = pytest.importorskip("ray")
        module.init(
            address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False
        )
        yield module
        module.shutdown()


def test_a_plan_is_built_and_warmed_on_its_gpu(ray, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    model = tiny_models.conv(tmp_path / "net.onnx", (1, 3, 16, 16))
    path = tmp_path / "matrix.yaml"
    path.write_text(
        "store: store\nmodels: [net.onnx]\nprecisions: [fp32]\n"
        "targets: [{name: here, backend: rtx, gpu: any, warm: true}, {name: any, backend: rtx}]\n"
    )
    matrix = read_matrix(path)
    here, anywhere = build_all(matrix).rows
    assert [row.failure for row in (here, anywhere)] == [None, None]
    assert here.plan.key != anywhere.plan.key
    with Session(here.path) as session:
        assert session.engine.plan.manifest.gpu == gpu_info().name
        x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
        expected = ReferenceEvaluator(str(model)).run(None, {"x": x})[0]
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    kernels = [runtime_cache_path(Path(row.path)).exists() for row in (here, anywhere)]
    assert kernels == [True, False]
    assert build_all(matrix).counts == {"built": 0, "cached": 2, "failed": 0}
