"""Whisper's audio encoder, its export and its drop-in, against PyTorch's own transformer."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.denoising import TorchStepRunner
from helpers.made_plans import tensor
from helpers.metrics import relative_error
from helpers.original_latentsync import original_audio_encoder
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from trt_native.errors import ClosedError, ModelError, SpecError
from trt_native.models.latentsync.whisper import WhisperConfig, WhisperEncoder, load_whisper
from trt_native.models.latentsync.whisper_export import export_whisper
from trt_native.models.latentsync.whisper_pipeline import LatentSyncWhisperEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = WhisperConfig(n_mels=8, n_audio_ctx=12, n_audio_state=16, n_audio_head=2, n_audio_layer=2)


@pytest.fixture(scope="module")
def encoder():
    return load_whisper(config=SMALL, random_seed=3)[0]


def spectrogram():
    random = torch.Generator().manual_seed(0)
    return torch.randn(1, SMALL.n_mels, 2 * SMALL.n_audio_ctx, generator=random)


def pytorchs(encoder, mel):
    """The same by torch.nn.TransformerEncoderLayer."""
    channels = SMALL.n_audio_state
    x = functional.gelu(encoder.conv2(functional.gelu(encoder.conv1(mel)))).transpose(1, 2)
    place = np.arange(SMALL.n_audio_ctx)[:, None] / 10000 ** (
        np.arange(channels // 2) / (channels // 2 - 1)
    )
    x = x + torch.from_numpy(np.concatenate([np.sin(place), np.cos(place)], axis=1)).float()
    found = [x]
    for block in encoder.blocks:
        attn = block.attn
        layer = torch.nn.TransformerEncoderLayer(
            *(channels, SMALL.n_audio_head, 4 * channels, 0.0, "gelu"),
            batch_first=True,
            norm_first=True,
        ).eval()
        bias = torch.cat([attn.query.bias, torch.zeros(channels), attn.value.bias])
        parts = {
            "self_attn.in_proj_weight": torch.cat(
                [attn.query.weight, attn.key.weight, attn.value.weight]
            ),
            "self_attn.in_proj_bias": bias,
        }
        for theirs, ours in {
            "self_attn.out_proj": attn.out,
            "linear1": block.mlp[0],
            "linear2": block.mlp[2],
            "norm1": block.attn_ln,
            "norm2": block.mlp_ln,
        }.items():
            parts |= {f"{theirs}.weight": ours.weight, f"{theirs}.bias": ours.bias}
        layer.load_state_dict(parts)
        x = layer(x)
        found.append(x)
    features = functional.layer_norm(x, (channels,), encoder.ln_post.weight, encoder.ln_post.bias)
    return features, torch.stack(found, dim=1)


@torch.no_grad()
def test_it_computes_what_pytorch_does(encoder):
    for found, expected in zip(
        encoder(spectrogram()), pytorchs(encoder, spectrogram()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_computes_what_latentsync_does(encoder, monkeypatch):
    theirs = original_audio_encoder(monkeypatch)(*dataclasses.astuple(SMALL))
    theirs.load_state_dict(encoder.state_dict())
    expected = theirs(spectrogram(), include_embeddings=True)
    found = drop_in(encoder)(spectrogram(), include_embeddings=True)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 3e-3)])
def test_the_export(encoder, tmp_path, precision, most):
    pytest.importorskip("onnxscript")  # LatentSync's own environment has none
    path = tmp_path / "whisper.pt"
    text = {"decoder.ln.weight": torch.ones(2), "decoder.ln.bias": torch.ones(2)}
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    dims = {**dataclasses.asdict(SMALL), "n_vocab": 5}
    torch.save({"dims": dims, "model_state_dict": {**weights, **text}}, path)
    report = export_whisper(tmp_path / "w.onnx", checkpoint=path, precision=precision)
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    found = ReferenceEvaluator(str(report.path)).run(
        None, {"mel": spectrogram().numpy().astype(dtype)}
    )
    for ours, expected in zip(found, pytorchs(encoder, spectrogram()), strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, expected.detach()) <= most


class TestRefusals:
    def test_files(self, tmp_path, encoder):
        path = tmp_path / "other.pt"
        torch.save(encoder.state_dict(), path)
        with pytest.raises(ModelError, match=r"not a checkpoint of OpenAI's Whisper, .* lack n_me"):
            load_whisper(checkpoint=path)
        torch.save({"dims": dataclasses.asdict(SMALL), "model_state_dict": weights()}, path)
        with pytest.raises(ModelError, match="missing"):
            load_whisper(checkpoint=path)
        with pytest.raises(SpecError, match="either a checkpoint or a random_seed"):
            load_whisper()

    @pytest.mark.parametrize("changes", [{"n_mels": 0}, {"n_audio_head": 3}, {"n_mels": "80"}])
    def test_dimensions(self, changes):
        with pytest.raises(SpecError, match="Whisper's"):
            WhisperConfig.from_mapping({**dataclasses.asdict(SMALL), **changes})

    def test_presets(self, tmp_path):
        pytest.importorskip("onnxscript")  # without it no export gets so far
        with pytest.raises(SpecError, match=r"large: not a preset of Whisper \(tiny, small\)"):
            export_whisper(tmp_path / "w.onnx", config="large", random_seed=0)


def weights():
    return {"encoder.conv1.weight": torch.zeros(1)}


def drop_in(encoder, dtype="float32"):
    length, channels = SMALL.n_audio_ctx, SMALL.n_audio_state
    tensors = [
        tensor("mel", "input", dtype, shape=(1, SMALL.n_mels, 2 * length)),
        tensor("features", "output", dtype, shape=(1, length, channels)),
        tensor("embeddings", "output", dtype, shape=(1, 3, length, channels)),
    ]
    runner = TorchStepRunner("whisper.encoder.plan", encoder, tensors)
    return LatentSyncWhisperEncoder(runner, config=SMALL)


class TestDropIn:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_types_are_converted(self, encoder, dtype):
        module = drop_in(encoder)
        given = spectrogram().to(dtype)
        features, embeddings = module(given, include_embeddings=True)
        assert features.dtype is dtype
        expected = encoder(given.float())
        assert relative_error(features.float(), expected[0]) <= 1e-3
        assert relative_error(embeddings, expected[1]) <= 1e-3
        assert isinstance(embeddings, np.ndarray)
        assert torch.equal(module(given), features)

    def test_results_are_the_callers(self, encoder):
        module = drop_in(encoder)
        features, embeddings = module(spectrogram(), include_embeddings=True)
        before = features.clone(), embeddings.copy()
        module(spectrogram() * 2, include_embeddings=True)
        assert torch.equal(features, before[0])
        assert np.array_equal(embeddings, before[1])

    def test_other_segments(self, encoder):
        module = drop_in(encoder)
        with pytest.raises(SpecError, match=r"takes a spectrogram of 1x8x24 .* found 1x8x22"):
            module(spectrogram()[..., :-2])
        module.close()
        with pytest.raises(ClosedError):
            module(spectrogram())

    def test_another_plan(self, encoder):
        runner = SimpleNamespace(name="x.plan", tensors=(tensor("x", "input", "int8"),))
        with pytest.raises(SpecError, match=r"does not turn mel into .* found x \(input\)"):
            LatentSyncWhisperEncoder(runner, config=SMALL)


def test_it_is_what_openais_files_hold():
    """Names and shapes of Whisper tiny, by LatentSync's model.py."""
    with torch.device("meta"):
        names = {
            name: tuple(t.shape) for name, t in WhisperEncoder(WhisperConfig()).state_dict().items()
        }
    assert len(names) == 4 + 1 + 4 * 15 + 2
    assert names["positional_embedding"] == (1500, 384)
    assert names["blocks.3.mlp.2.weight"] == (384, 1536)
    assert "blocks.0.attn.key.bias" not in names
