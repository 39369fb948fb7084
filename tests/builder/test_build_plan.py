"""Builds from Python: in a thread, in another process, and their errors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import onnx
import pytest
from helpers import tiny_models
from helpers.planted_builds import PLANT

from trt_native.builder.build_plan import build_plan
from trt_native.config import BuildConfig, Precision
from trt_native.errors import BuildError, SpecError
from trt_native.shapes import ProfileSpec


class TestFromPython:
    CONFIG = BuildConfig(profiles=(ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"]),))

    def test_a_build_in_a_thread(self, model):
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(
                build_plan, model, self.CONFIG, backend="rtx", isolated=True, retry=True
            )
            assert future.result(300).manifest.backend == "rtx"

    @pytest.fixture
    def model(self, tmp_path):
        return tiny_models.conv(tmp_path / "m.onnx")

    def test_the_plan_is_that_of_a_build_in_this_process(self, model, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
        (tmp_path / "scratch").mkdir()
        plan = build_plan(model, self.CONFIG, backend="rtx", isolated=True, timeout_s=300)
        assert os.listdir(tmp_path / "scratch") == []
        assert plan.path is None
        assert sha256(plan.data).hexdigest() == plan.manifest.plan_sha256
        here = build_plan(model, self.CONFIG, backend="rtx")
        assert plan.manifest.tensors == here.manifest.tensors
        assert plan.manifest.options == here.manifest.options

    @pytest.mark.parametrize("read", [onnx.load, Path.read_bytes], ids=["ModelProto", "bytes"])
    def test_a_model_in_memory(self, model, monkeypatch, tmp_path, read):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
        (tmp_path / "scratch").mkdir()
        manifest = build_plan(read(model), self.CONFIG, backend="rtx").manifest
        assert os.listdir(tmp_path / "scratch") == []
        assert manifest.model["file"] == "model.onnx"
        assert [t.name for t in manifest.tensors] == ["x", "y"]
        if read is Path.read_bytes:
            assert manifest.model["sha256"] == sha256(model.read_bytes()).hexdigest()

    def test_models_that_are_not(self, model):
        with pytest.raises(SpecError, match="expected the path of a file, found list"):
            build_plan([model])
        apart = onnx.load(model)
        apart.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        with pytest.raises(SpecError, match="in other files; give the path"):
            build_plan(apart)

    def test_errors_keep_their_type_and_options(self, model):
        config = BuildConfig(precision=Precision.INT8, profiles=self.CONFIG.profiles)
        with pytest.raises(SpecError, match="needs the ranges") as caught:
            build_plan(model, config, backend="rtx", isolated=True)
        assert caught.value.options == ("calibration_cache", "calibration_data")

    def test_a_time_limit(self, model, plant, monkeypatch):
        slow = plant(PLANT.format(body="cancelled.wait(); return build()"))
        monkeypatch.setenv("PYTHONPATH", slow["PYTHONPATH"])
        with pytest.raises(BuildError, match="took too long") as caught:
            build_plan(model, self.CONFIG, backend="rtx", isolated=True, timeout_s=3)
        assert caught.value.options == ("timeout_s",)

    @pytest.mark.parametrize(
        "options",
        [{"timeout_s": "1s"}, {"retry": True}, {"isolated": True, "extra_outputs": "x"}],
        ids=["time", "retry", "outputs"],
    )
    def test_options_that_do_not_fit(self, model, options):
        with pytest.raises(SpecError, match="isolated"):
            build_plan(model, self.CONFIG, backend="rtx", **options)
