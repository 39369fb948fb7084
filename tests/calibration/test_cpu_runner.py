"""The choice of what runs a model on the CPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx_ir as ir
import pytest
from helpers import tiny_models

from trt_native.calibration import cpu_runner
from trt_native.calibration.cpu_runner import CpuRunner, expected_runtime
from trt_native.config import CpuRuntime
from trt_native.errors import UnsupportedError
from trt_native.graph.onnx_file import read_model


@pytest.fixture
def without(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    cpu_runner._hint.cache_clear()
    yield
    cpu_runner._hint.cache_clear()


def test_without_openvino_the_reference_runs_and_a_long_wait_has_a_hint(
    without, tmp_path, monkeypatch, caplog
):
    model = read_model(tiny_models.dense(tmp_path / "m.onnx"))
    run = CpuRunner(model, ["h1"])
    batch = {"h0": np.ones((1, 64), np.float32)}
    assert list(dict(run(batch))) == ["h1"]
    assert run.program == expected_runtime(CpuRuntime.AUTO) == "onnx.reference"
    assert not caplog.text
    monkeypatch.setattr(cpu_runner, "_LONG_S", 0)
    for _ in range(2):
        dict(run(batch))
    assert caplog.text.count("pip install 'openvino>=2026.4,<2026.5'") == 1


def test_openvino_can_be_required(without, tmp_path):
    with pytest.raises(UnsupportedError, match="OpenVINO is not installed: pip install 'openvino"):
        expected_runtime(CpuRuntime.OPENVINO)
    assert expected_runtime(CpuRuntime.ONNX) == "onnx.reference"
    assert isinstance(CpuRunner(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), []), CpuRunner)
