"""Exports of the U-Net, run by onnx.reference against outputs of the original module."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers import DATA
from helpers.denoising import with_cached_modules
from helpers.golden_unet import two_level_config
from helpers.metrics import relative_error
from helpers.onnx_dims import dims
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ModelError, SpecError
from trt_native.graph.onnx_file import read_model
from trt_native.models.latentsync import UNet, UNetConfig, load_checkpoint, load_into
from trt_native.models.latentsync.export import export_latentsync
from trt_native.passes.autocast import autocast


class TestUNet:
    @staticmethod
    def errors(path, *cases):
        evaluator = ReferenceEvaluator(str(path))
        arrays = np.load(DATA / "unet_small.npz")
        for case in cases:
            inputs = {
                "latents": arrays[f"{case}.latents"],
                "timestep": arrays[f"{case}.timestep"].reshape(1),
                "encoder_hidden_states": arrays[f"{case}.encoder_hidden_states"],
            }
            (found,) = evaluator.run(None, inputs)
            yield relative_error(found, arrays[f"{case}.noise_pred"])

    @pytest.mark.slow
    def test_golden_outputs_through_onnx(self, golden_onnx):
        assert max(self.errors(golden_onnx, "case0", "case1", "case2")) <= 1e-4

    @pytest.mark.slow
    def test_golden_outputs_of_the_graph_rewritten_in_fp16(self, golden_onnx, tmp_path):
        model = read_model(golden_onnx)
        autocast(model, ir.DataType.FLOAT16)
        path = tmp_path / "fp16.onnx"
        ir.save(model, path)
        # NumPy multiplies FP16 slowly; the GPU tests have all cases.
        assert max(self.errors(path, "case0")) <= 1e-2

    def test_the_contract(self, tmp_path):
        path, checkpoint, config = (tmp_path / name for name in ("u.onnx", "u.pt", "u.json"))
        config.write_text(json.dumps(two_level_config()))
        state = UNet(UNetConfig.load(config)).state_dict()
        torch.save({"global_step": 1, "state_dict": state}, checkpoint)
        report = export_latentsync(path, config=config, checkpoint=checkpoint, precision="fp16")
        onnx.checker.check_model(path)
        assert dims(path) == {
            "latents": ["batch", 13, "frames", "height", "width"],
            "timestep": [1],
            "encoder_hidden_states": ["batch*frames", 50, 24],
            "noise_pred": ["batch", 4, "frames", "height", "width"],
        }
        assert [t.dtype for t in (*report.inputs, *report.outputs)] == [
            "float16",
            "int64",
            "float16",
            "float16",
        ]
        metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert metadata["trt_native.checkpoint_sha256"] == load_checkpoint(checkpoint).sha256
        assert metadata["trt_native.max.frames"] == "24"
        recorded = json.loads(metadata["trt_native.config"])
        assert UNetConfig.from_mapping(recorded) == UNetConfig.load(config)

    def test_the_command(self, tmp_path, main_in_process):
        path = tmp_path / "u.onnx"
        words = ["export", "latentsync", "--config", "small", "--random-weights", 3, "-o", path]
        status, out, _ = main_in_process(*words, "--float-timestep", "--opset", 17, "--json")
        assert status == 0
        report = json.loads(out)
        assert report["opset"] == 17
        assert report["parameters"] == 1668100
        assert report["total_bytes"] == path.stat().st_size
        found = {tensor["name"]: tensor["dtype"] for tensor in report["inputs"]}
        assert found["timestep"] == "float32"
        metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert metadata["trt_native.random_seed"] == "3"

    def test_bad_arguments(self, tmp_path):
        path = tmp_path / "unet.onnx"
        small = {"config": "small", "random_seed": 0}
        with pytest.raises(SpecError, match="either a checkpoint or a random_seed"):
            export_latentsync(path, config="small")
        with pytest.raises(SpecError, match="use fp32, fp16 or bf16"):
            export_latentsync(path, **small, precision="int8")
        with pytest.raises(SpecError, match="positions for 24"):
            export_latentsync(path, **small, static={"frames": 25})
        with pytest.raises(ModelError, match="do not fit the model's configuration"):
            export_latentsync(path, config="latentsync-1.6", checkpoint=DATA / "unet_small.pt")
        with pytest.raises(SpecError, match="use int64 or float32"):
            export_latentsync(path, **small, timestep_dtype="int32")
        missing = tmp_path / "missing.pt"  # the opset is checked first
        for precision, opset, message in (
            ("fp32", 16, "opset 16: choose one from 17, the first with LayerNormalization, to"),
            ("bf16", 21, "opset 21: choose one from 22, the first with BF16 convolutions, to"),
            ("fp32", 999, r"opset 999: .*; the default is 18"),
        ):
            with pytest.raises(SpecError, match=message):
                export_latentsync(path, checkpoint=missing, precision=precision, opset=opset)
        assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_deepcache_steps(deepcache_onnx):
    path, shallow_path, (full_bytes, shallow_bytes) = deepcache_onnx
    names = ["unet.deepcache.data", "unet.onnx", "unet.shallow.onnx"]
    assert sorted(os.listdir(path.parent)) == names
    sizes = [(path.parent / name).stat().st_size for name in names]
    assert full_bytes == sizes[0] + sizes[1]
    assert shallow_bytes == sizes[2]

    shallow_onnx = onnx.load(shallow_path, load_external_data=False)
    inside = [w for w in shallow_onnx.graph.initializer if not w.external_data]
    assert max(math.prod(w.dims) for w in inside) < 1000
    onnx.checker.check_model(shallow_path)

    unet = UNet(UNetConfig.load("small")).eval().requires_grad_(False)
    load_into(unet, load_checkpoint(DATA / "unet_small.pt").state_dict)
    timesteps = [900, 850, 800, 750]
    reference = with_cached_modules(unet, interval=3, timesteps=timesteps)
    full = ReferenceEvaluator(str(path))
    shallow = ReferenceEvaluator(str(shallow_path))
    torch.manual_seed(0)
    audio = torch.randn(2, 50, 24)
    features = None
    for step, timestep in enumerate(timesteps):
        inputs = {
            "latents": torch.randn(1, 13, 2, 16, 16),
            "timestep": torch.tensor([timestep]),
            "encoder_hidden_states": audio,
        }
        expected = reference(**inputs)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        if step % 3 == 0:
            found, features = full.run(None, arrays)
        else:
            (found,) = shallow.run(None, {**arrays, "deep_features": features})
        assert relative_error(found, expected) <= 1e-4
