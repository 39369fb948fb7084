from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync.config import MotionConfig, UNetConfig

torch = pytest.importorskip("torch", reason="needs trt-native[export]")

from trt_native.models.latentsync import UNet, load_checkpoint, load_into  # noqa: E402

DATA = Path(__file__).parents[1] / "data"
SMALL = UNetConfig.load("small")


def published_shapes():
    """Every key of the published LatentSync 1.6 checkpoint, with shape and dtype."""
    text = gzip.decompress((DATA / "latentsync_1_6_state_dict.json.gz").read_bytes())
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}


def shapes_of(config):
    with torch.device("meta"):
        state = UNet(config).state_dict()
    return {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in state.items()}


def relative_l2(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they bring in a model this small, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA / "unet_small.npz")


@pytest.fixture(scope="module")
def small_checkpoint():
    return load_checkpoint(DATA / "unet_small.pt")


@pytest.fixture
def small(small_checkpoint):
    unet = UNet(SMALL).eval()
    load_into(unet, {k: t.clone() for k, t in small_checkpoint.state_dict.items()})
    return unet


def tensors(golden, case, dtype=torch.float32):
    latents, step, audio = (
        torch.from_numpy(golden[f"case{case}.{name}"])
        for name in ("latents", "timestep", "encoder_hidden_states")
    )
    return latents.to(dtype), step, audio.to(dtype)


# The module --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 1e-5), ("float16", 4e-3), ("bfloat16", 3e-2)]
)
def test_outputs_are_those_of_the_original_module(small, golden, case, dtype, limit):
    kind = getattr(torch, dtype)
    with torch.no_grad():
        noise = small.to(kind)(*tensors(golden, case, kind))
    assert noise.dtype == kind
    assert relative_l2(noise.float(), golden[f"case{case}.noise_pred"]) <= limit


def test_state_dict_is_that_of_the_published_checkpoint():
    assert shapes_of(UNetConfig.load("latentsync-1.6")) == published_shapes()


@pytest.mark.parametrize(
    ("changes", "is_gone"),
    [
        ({"use_motion_module": False}, lambda key: "motion_modules" in key),
        (
            {"motion_module_decoder_only": True},
            lambda key: key.startswith("down_blocks") and "motion_modules" in key,
        ),
        (
            {"motion_module_resolutions": (2, 4, 8)},
            lambda key: (
                key.startswith(("down_blocks.0.", "up_blocks.3.")) and "motion_modules" in key
            ),
        ),
        ({"add_audio_layer": False}, lambda key: "attn2" in key or ".norm2." in key),
        (
            {
                "motion_module_kwargs": MotionConfig(temporal_position_encoding=False),
            },
            lambda key: key.endswith("pos_encoder.pe"),
        ),
    ],
)
def test_switches_leave_out_their_part_of_the_published_model(changes, is_gone):
    expected = {
        key: value
        for key, value in published_shapes().items()
        if not is_gone(key) or ".resnets." in key
    }
    assert shapes_of(dataclasses.replace(UNetConfig(), **changes)) == expected


def test_mid_block_gets_a_motion_module_like_the_others():
    with_one = shapes_of(dataclasses.replace(UNetConfig(), motion_module_mid_block=True))
    added = with_one.keys() - published_shapes().keys()
    prefix = "mid_block.motion_modules.0."
    model = "down_blocks.3.motion_modules.0."  # of as many channels
    assert {key.replace(prefix, model): with_one[key] for key in added} == {
        key: value for key, value in published_shapes().items() if key.startswith(model)
    }


def test_positions_are_those_in_the_checkpoint(small_checkpoint):
    computed = UNet(SMALL).state_dict()
    names = [name for name in computed if name.endswith("pos_encoder.pe")]
    assert names
    for name in names:
        torch.testing.assert_close(computed[name], small_checkpoint.state_dict[name])


def test_timestep_may_be_a_number_a_scalar_or_one_per_sample(small):
    latents, audio = torch.randn(2, 13, 2, 16, 16), torch.randn(4, 5, 24)
    with torch.no_grad():
        both = small(latents, torch.tensor([7, 900]), audio)
        for index, step in enumerate((7, 900)):
            for form in (step, float(step), torch.tensor(step), torch.tensor([step])):
                found = small(latents, form, audio)[index]
                assert relative_l2(found, both[index]) <= 1e-4
    assert (
        relative_l2(small(latents, 7, audio).detach(), small(latents, 900, audio).detach()) > 0.01
    )


def test_audio_may_have_batch_and_frames_apart(small, golden):
    latents, step, audio = tensors(golden, 0)
    with torch.no_grad():
        expected = small(latents, step, audio)
        assert torch.equal(small(latents, step, audio.unflatten(0, (1, 2))), expected)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (11, 5)])
def test_sizes_need_not_be_divisible(small, size):
    with torch.no_grad():
        noise = small(torch.ones(1, 13, 2, *size), 5, torch.ones(2, 50, 24))
    assert noise.shape == (1, 4, 2, *size)
    assert noise.isfinite().all()


def test_norm_over_a_clip_is_group_norm_over_the_video():
    from trt_native.models.latentsync.unet import _GroupNorm

    norm = _GroupNorm(4, 8, 1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(6, 8, 5, 7)
    video = x.unflatten(0, (2, 3)).transpose(1, 2).double()
    args = 4, norm.weight.double(), norm.bias.double(), 1e-5
    expected = torch.nn.functional.group_norm(video, *args).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(norm(x, (2, 3)), expected.float(), rtol=1e-5, atol=1e-5)
    expected = torch.nn.functional.group_norm(x.double(), *args)
    torch.testing.assert_close(norm(x), expected.float(), rtol=1e-5, atol=1e-5)


def test_norm_statistics_do_not_overflow_in_half_precision():
    from trt_native.models.latentsync.unet import _GroupNorm, _LayerNorm

    x = 1000 * torch.randn(2, 32, 4, 4)  # squares are beyond FP16
    group, layer = _GroupNorm(32, 32, 1e-5), _LayerNorm(4)
    expected_group, expected_layer = group(x), layer(x)
    torch.testing.assert_close(group.half()(x.half()).float(), expected_group, rtol=0.01, atol=0.01)
    torch.testing.assert_close(layer.half()(x.half()).float(), expected_layer, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 13, 25, 8, 8), 1, (25, 50, 24)), "25 frames, the model has positions for 24"),
        (((1, 12, 2, 8, 8), 1, (2, 50, 24)), r"latents need \(batch, 13, .* \(1, 12, 2, 8, 8\)"),
        (((13, 2, 8, 8), 1, (2, 50, 24)), "latents need"),
        (((1, 13, 2, 8, 8), 1, (3, 50, 24)), r"need \(2, tokens, 24\), found \(3, 50, 24\)"),
        (((1, 13, 2, 8, 8), 1, (2, 50, 23)), r"found \(2, 50, 23\)"),
        (((1, 13, 2, 8, 8), 1, (2, 1, 50, 24)), r"found \(2, 1, 50, 24\)"),
        (((1, 13, 2, 8, 8), 1, None), "encoder_hidden_states are needed"),
        (((1, 13, 2, 8, 8), torch.tensor([1, 2]), (2, 50, 24)), "timestep needs 1 or 1 values"),
    ],
)
def test_wrong_shapes_are_named(small, arguments, message):
    latents, step, audio = arguments
    audio = None if audio is None else torch.zeros(audio)
    with pytest.raises(SpecError, match=message) as caught:
        small(torch.zeros(latents), step, audio)
    assert "\n" not in str(caught.value)


def test_wrong_dtype_is_named(small):
    with pytest.raises(SpecError, match=r"latents are torch\.float16, the model is torch\.float32"):
        small(torch.zeros(1, 13, 2, 8, 8).half(), 1, torch.zeros(2, 50, 24))


def test_model_without_audio_needs_none():
    unet = UNet(dataclasses.replace(SMALL, add_audio_layer=False)).eval()
    with torch.no_grad():
        assert unet(torch.ones(1, 13, 2, 8, 8), 1).shape == (1, 4, 2, 8, 8)
    assert unet.add_audio_layer is False


def test_random_weights_depend_on_the_seed_alone():
    def output(seed):
        with torch.device("meta"):
            unet = UNet(SMALL)
        unet.to_empty(device="cpu").eval().init_random(seed)
        with torch.no_grad():
            return unet(torch.ones(1, 13, 2, 8, 8), 500, torch.ones(2, 50, 24))

    first = output(1)
    assert first.isfinite().all()
    assert 0.01 < first.std() < 10
    assert torch.equal(output(1), first)
    assert not torch.allclose(output(2), first, rtol=0.1)


# Checkpoints -------------------------------------------------------------------------------------


@pytest.fixture
def weights():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def assert_holds(checkpoint, weights):
    assert checkpoint.state_dict.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.state_dict[name], tensor)


def test_published_format(tmp_path, weights):
    path = tmp_path / "unet.pt"
    torch.save({"global_step": 12, "state_dict": weights}, path)
    checkpoint = load_checkpoint(path)
    assert_holds(checkpoint, weights)
    assert (checkpoint.global_step, checkpoint.config) == (12, None)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_formats_of_torch(tmp_path, weights):
    path = tmp_path / "unet.pt"
    torch.save({"config": {"in_channels": 13}, "state_dict": weights}, path)
    assert load_checkpoint(path).config == {"in_channels": 13}
    torch.save(weights, path)
    assert_holds(load_checkpoint(path), weights)
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, path)
    assert_holds(load_checkpoint(path), weights)
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert_holds(load_checkpoint(path), weights)


def test_safetensors(tmp_path, weights):
    from safetensors.torch import save_file

    path = tmp_path / "unet.safetensors"
    save_file(weights, path, {"config": json.dumps({"in_channels": 13}), "global_step": "5"})
    checkpoint = load_checkpoint(path)
    assert_holds(checkpoint, weights)
    assert (checkpoint.config, checkpoint.global_step) == ({"in_channels": 13}, 5)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="truncated"):
        load_checkpoint(path)


class RunsCode:
    def __reduce__(self):
        return print, ("this must not run",)


def write_damaged(kind, path):
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<!DOCTYPE html>\nnot found\n")
    elif kind == "code":
        torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": RunsCode()}, path)
    elif kind == "no tensors":
        torch.save({"state_dict": {"a": 1}}, path)
    elif kind == "a list":
        torch.save([torch.ones(1)], path)
    elif kind.startswith("cut"):
        torch.save({"a": torch.ones(1000)}, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * float(kind.split()[1]))])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("empty", "is empty"),
        ("text", "not a checkpoint"),
        ("code", "refused: it holds pickled objects"),
        ("no tensors", "no state dict"),
        ("a list", "no state dict"),
        ("cut 0.001", "not a checkpoint"),
        ("cut 0.1", "not a checkpoint"),
        ("cut 0.9", "not a checkpoint"),
        ("cut 0.99", "not a checkpoint"),
    ],
)
def test_unusable_files_are_one_line(tmp_path, capfd, kind, message):
    path = tmp_path / "unet.pt"
    write_damaged(kind, path)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "must not run" not in capfd.readouterr().out


def test_every_mismatch_is_in_one_error(small_checkpoint):
    state = dict(small_checkpoint.state_dict)
    del state["conv_out.bias"], state["conv_in.bias"]
    state["surplus"] = torch.ones(1)
    state["conv_in.weight"] = torch.ones(32, 9, 3, 3)
    unet = UNet(SMALL)
    before = unet.conv_in.weight.clone()
    with pytest.raises(ModelError) as caught:
        load_into(unet, state)
    message = str(caught.value)
    assert "2 missing: conv_in.bias, conv_out.bias" in message
    assert "1 unexpected: surplus" in message
    assert "conv_in.weight (found (32, 9, 3, 3), expected (32, 13, 3, 3))" in message
    assert torch.equal(unet.conv_in.weight, before)

    report = load_into(unet, state, strict=False)
    assert set(report.missing) == {"conv_in.bias", "conv_out.bias"}
    assert report.unexpected == ("surplus",)
    assert len(report.mismatched) == 1
    assert torch.equal(unet.conv_in.weight, before)
    assert torch.equal(unet.conv_out.weight, state["conv_out.weight"])


def test_long_lists_are_shortened(small_checkpoint):
    half = dict(list(small_checkpoint.state_dict.items())[::2])
    with pytest.raises(ModelError, match=r"389 missing: ") as caught:
        load_into(UNet(SMALL), half)
    assert len(str(caught.value)) < 800


def test_weights_are_taken_over_without_a_copy(small_checkpoint):
    with torch.device("meta"):
        unet = UNet(SMALL)
    load_into(unet, small_checkpoint.state_dict)
    for name, tensor in unet.state_dict().items():
        assert tensor.data_ptr() == small_checkpoint.state_dict[name].data_ptr()


def test_weights_are_converted_to_the_modules_dtype(small_checkpoint):
    with torch.device("meta"):
        unet = UNet(SMALL).half()
    load_into(unet, small_checkpoint.state_dict)
    expected = small_checkpoint.state_dict["conv_in.weight"].half()
    assert torch.equal(unet.conv_in.weight, expected)
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.float16}


# Configuration -----------------------------------------------------------------------------------


def test_preset_small_is_the_golden_configuration():
    assert UNetConfig.load(DATA / "unet_small.json") == SMALL


PUBLISHED_YAML = """
data: {num_frames: 16}
model:
  act_fn: silu
  add_audio_layer: true
  attention_head_dim: 8
  block_out_channels: [320, 640, 1280, 1280]
  center_input_sample: false
  cross_attention_dim: 384
  down_block_types:
    ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"]
  mid_block_type: UNetMidBlock3DCrossAttn
  up_block_types: ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"]
  downsample_padding: 1
  flip_sin_to_cos: true
  freq_shift: 0
  in_channels: 13 # 49
  layers_per_block: 2
  mid_block_scale_factor: 1
  norm_eps: 1e-5
  norm_num_groups: 32
  out_channels: 4 # 16
  sample_size: 64
  resnet_time_scale_shift: default
  use_motion_module: true
  motion_module_resolutions: [1, 2, 4, 8]
  motion_module_mid_block: false
  motion_module_decoder_only: false
  motion_module_type: Vanilla
  motion_module_kwargs:
    num_attention_heads: 8
    num_transformer_block: 1
    attention_block_types: [Temporal_Self, Temporal_Self]
    temporal_position_encoding: true
    temporal_position_encoding_max_len: 24
    temporal_attention_dim_div: 1
    zero_initialize: true
"""


def test_yaml_of_the_published_layout(tmp_path):
    path = tmp_path / "stage2_512.yaml"
    path.write_text(PUBLISHED_YAML)
    config = UNetConfig.load(path)
    assert config == UNetConfig.load("latentsync-1.6")
    assert config.norm_eps == 1e-5  # a text in YAML 1.1


def test_config_round_trips_through_json(tmp_path):
    config = dataclasses.replace(SMALL, attention_head_dim=(2, 4, 4, 2), sample_size=None)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert UNetConfig.load(path) == config


def test_all_faults_of_a_config_are_in_one_error():
    with pytest.raises(SpecError) as caught:
        UNetConfig.from_mapping(
            {
                "in_chanels": 13,
                "layers_per_block": "two",
                "use_motion_module": 1,
                "norm_num_groups": 32.5,
                "block_out_channels": 320,
                "use_linear_projection": True,
                "motion_module_kwargs": {"num_attention_heads": None, "depth": 3},
            }
        )
    message = str(caught.value)
    for part in (
        "in_chanels is not a known key",
        "layers_per_block needs a whole number, found 'two'",
        "use_motion_module needs true or false, found 1",
        "norm_num_groups needs a whole number, found 32.5",
        "block_out_channels needs a list of whole numbers, found 320",
        "use_linear_projection=True is not supported, only False",
        "motion_module_kwargs.num_attention_heads needs a whole number, found None",
        "motion_module_kwargs.depth is not a known key",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 0}, "layers_per_block must be at least 1, found 0"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        ({"block_out_channels": (320, 640)}, "down_block_types has 4 entries"),
        ({"attention_head_dim": 7}, r"320 channels are not divisible by attention_head_dim \(7\)"),
        ({"down_block_types": ("Flat",) * 4}, "down_block_types has Flat, only CrossAttn"),
        ({"block_out_channels": ()}, "block_out_channels is empty"),
    ],
)
def test_contradictions_in_a_config(changes, message):
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(UNetConfig(), **changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.yaml", None, "no such file, and not a preset either"),
        ("bad.yaml", b"model: [1, 2", "not valid YAML or JSON"),
        ("bad.json", b"{", "not valid YAML or JSON"),
        ("bytes.yaml", b"\xff\xfe\x00\x01", "not valid YAML or JSON"),
        ("text.yaml", b"just words", "a U-Net configuration is a mapping, found str"),
        ("wrong.yaml", b"model: {a: 1}", "a is not a known key"),
    ],
)
def test_unusable_config_files_are_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        UNetConfig.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_does_not_need_torch():
    code = "import sys, trt_native.models.latentsync.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
