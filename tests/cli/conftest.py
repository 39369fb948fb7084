"""Models that several commands are tested with."""

from __future__ import annotations

import pytest
from helpers import tiny_models


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx")


@pytest.fixture
def dense(tmp_path):
    model = tiny_models.dense(tmp_path / "d.onnx")
    tiny_models.calibration(model, tmp_path / "d.calib", 4.0, shapes={"h0": ("3x64",)})
    return model
