"""The VAE and its exports, against diffusers' module."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.metrics import relative_error
from helpers.onnx_dims import dims
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync.vae import VaeConfig, VaeDecoder, VaeEncoder, load_vae
from trt_native.models.latentsync.vae_export import export_vae, vae_paths

pytest.importorskip("diffusers")
from helpers.autoencoders import SMALL, diffusers_vae

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """diffusers' module, and the folder that it saved itself to."""
    torch.manual_seed(5)
    vae, folder = diffusers_vae(), tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return vae, folder


def images(frames=3, height=32, width=48):
    return torch.randn(frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def latents(frames=3, height=4, width=6):
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_block": 2, "latent_channels": 16, "block_out_channels": (8, 16)},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
    ],
)
def test_it_computes_what_diffusers_does(changes, tmp_path):
    levels = len(changes.get("block_out_channels", SMALL.block_out_channels))
    kinds = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    theirs = diffusers_vae(**kinds, **changes)
    theirs.save_pretrained(tmp_path)
    ours, sha256 = load_vae(folder=tmp_path)
    assert len(sha256) == 64
    moments = theirs.encode(images()).latent_dist.parameters
    torch.testing.assert_close(VaeEncoder(ours)(images()), moments, rtol=1e-5, atol=1e-5)
    z = moments.chunk(2, dim=1)[0]
    torch.testing.assert_close(VaeDecoder(ours)(z), theirs.decode(z).sample, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 3e-3)])
def test_the_exports(precision, most, tmp_path):
    torch.manual_seed(6)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2}
    kinds |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": (8, 16)}
    vae = diffusers_vae(**kinds)
    vae.save_pretrained(tmp_path)
    reports = export_vae(tmp_path / "vae.onnx", folder=tmp_path, precision=precision)
    encoder, decoder = vae_paths(tmp_path / "vae.onnx")
    assert [report.path for report in reports] == [encoder, decoder]
    assert sum(report.parameters for report in reports) == vae.num_parameters()
    assert dims(encoder)["image"] == ["frames", 3, "height", "width"]
    assert dims(decoder)["latents"] == ["frames", 4, "height", "width"]
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    (moments,) = ReferenceEvaluator(str(encoder)).run(
        None, {"image": images().numpy().astype(dtype)}
    )
    assert moments.dtype == dtype
    assert relative_error(moments, vae.encode(images()).latent_dist.parameters) <= most
    given = {"latents": latents().numpy().astype(dtype)}
    (image,) = ReferenceEvaluator(str(decoder)).run(None, given)
    assert relative_error(image, vae.decode(latents()).sample) <= most


class TestFolder:
    def test_names_of_attention_before_diffusers_0_14(self, saved, tmp_path):
        vae, folder = saved
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        renamed = {}
        for name, value in load_file(folder / WEIGHTS).items():
            for today, before in old.items():
                name = name.replace(f".{today}.", f".{before}.")
            renamed[name] = value
        assert any(".proj_attn." in name for name in renamed)
        save_file(renamed, tmp_path / WEIGHTS)
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        ours, _ = load_vae(folder=tmp_path)
        expected = vae.encode(images()).latent_dist.parameters
        torch.testing.assert_close(VaeEncoder(ours)(images()), expected, rtol=1e-5, atol=1e-5)

    def test_the_folder_of_a_pipeline(self, saved, tmp_path):
        vae, _ = saved
        vae.save_pretrained(tmp_path / "vae")
        assert load_vae(folder=tmp_path)[0].config == load_vae(folder=tmp_path / "vae")[0].config

    def test_weights_of_another_configuration(self, saved, tmp_path):
        _, folder = saved
        (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
        with pytest.raises(ModelError, match=r"do not fit the model's configuration: .* missing"):
            load_vae(folder=tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(ModelError, match="not a folder of diffusers' AutoencoderKL"):
            load_vae(folder=tmp_path)
        with pytest.raises(SpecError, match="either a folder or a random_seed"):
            load_vae()


class TestConfig:
    def test_it_is_read_back(self):
        assert VaeConfig.from_mapping(SMALL.to_dict()) == SMALL

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"_class_name": "AutoencoderTiny"}, "_class_name='AutoencoderTiny' is not supported"),
            ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "has AttnDownEncoderBlock2D"),
            ({"latents_mean": [0.1]}, "latents_mean"),
            ({"act_fn": "gelu"}, "act_fn='gelu'"),
            ({"block_out_channels": [8, 10]}, "not divisible by norm_num_groups"),
            ({"block_out_channels": 8}, "must be 1 or more"),
            ({"layers_per_block": 0}, "must be 1 or more"),
            ({"latent_channels": "4"}, "must be 1 or more"),
        ],
    )
    def test_what_is_not_implemented(self, changes, message):
        with pytest.raises(SpecError, match=message):
            VaeConfig.from_mapping({**SMALL.to_dict(), **changes})

    def test_files(self, tmp_path):
        with pytest.raises(SpecError, match="no such file, and not a preset"):
            VaeConfig.load(tmp_path / "none.json")
        (tmp_path / "text.json").write_text("[")
        with pytest.raises(SpecError, match=r"text\.json: not JSON"):
            VaeConfig.load(tmp_path / "text.json")
        (tmp_path / "list.json").write_text("[]")
        with pytest.raises(SpecError, match=r"list\.json: the VAE configuration .* AutoencoderKL"):
            VaeConfig.load(tmp_path / "list.json")


def test_random_weights_depend_on_the_seed_alone():
    one, two, other = (load_vae(config=SMALL, random_seed=seed)[0] for seed in (1, 1, 2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.encoder.conv_in.weight, other.encoder.conv_in.weight)


def test_bad_arguments(tmp_path):
    pytest.importorskip("onnxscript")  # LatentSync's own environment has none
    with pytest.raises(SpecError, match="use fp32, fp16 or bf16"):
        export_vae(tmp_path / "v.onnx", random_seed=0, precision="int8")
    with pytest.raises(SpecError, match="has a configuration of its own"):
        export_vae(tmp_path / "v.onnx", folder=tmp_path, config="small")
    assert list(tmp_path.iterdir()) == []
