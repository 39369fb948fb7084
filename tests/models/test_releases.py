"""Checkpoints of LatentSync 1.0, and those without some motion modules."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers import DATA
from helpers.metrics import relative_error
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ModelError
from trt_native.models.latentsync import UNetConfig, load_unet
from trt_native.models.latentsync.export import export_latentsync
from trt_native.models.latentsync.releases import without_absent_motion


@pytest.fixture(scope="module")
def state():
    return torch.load(DATA / "unet_small.pt", weights_only=True)["state_dict"]


def test_only_the_motion_modules_that_a_checkpoint_has():
    config = replace(UNetConfig(), motion_module_mid_block=True)
    down = [f"down_blocks.{n}.motion_modules.0.x" for n in range(4)]
    up = [f"up_blocks.{n}.motion_modules.2.x" for n in range(4)]
    mid = ["mid_block.motion_modules.0.x"]
    for names, changes in (
        ([*down, *up, *mid], {}),
        ([*down, *up], {"motion_module_mid_block": False}),
        ([*up, *mid], {"motion_module_decoder_only": True}),
        (mid, {"motion_module_resolutions": (), "motion_module_decoder_only": True}),
        ([*down[:2], *up[2:], *mid], {"motion_module_resolutions": (1, 2)}),
        (["conv_in.weight"], {"use_motion_module": False}),
    ):
        assert without_absent_motion(config, names) == replace(config, **changes)
    without = UNetConfig.load("latentsync-1.0")
    assert without_absent_motion(without, [*down, *up]) == without


def without_motion(state):
    return {name: tensor for name, tensor in state.items() if ".motion_modules." not in name}


@pytest.fixture(scope="module")
def old(state):
    """The checkpoint as 1.0 would have it."""
    named = {
        re.sub(r"\.(norm|attn)2\.", r".audio_cross_attn.\1.", name)
        if ".attentions." in name
        else name: tensor
        for name, tensor in without_motion(state).items()
    }
    assert sum("audio_cross_attn.norm." in name for name in named) > 10
    return named


def test_the_written_graph_of_a_checkpoint_of_latentsync_1_0(tmp_path, old, caplog):
    path = tmp_path / "unet.onnx"
    export_latentsync(path, config="small", checkpoint=old)
    assert "has no weights for the motion modules: they are left out" in caplog.text
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(entries["trt_native.config"])["use_motion_module"] is False
    generator = np.random.default_rng(0)
    inputs = {
        "latents": generator.standard_normal((1, 13, 2, 16, 16), np.float32),
        "timestep": np.array([7]),
        "encoder_hidden_states": generator.standard_normal((2, 50, 24), np.float32),
    }
    (found,) = ReferenceEvaluator(str(path)).run(None, inputs)
    unet, _ = load_unet(config="small", checkpoint=old)
    expected = unet(*map(torch.from_numpy, inputs.values()))
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize("allow_mismatch", [False, True])
@pytest.mark.parametrize("preset", ["small", "without motion"])
def test_a_checkpoint_of_latentsync_1_0(old, caplog, preset, allow_mismatch):
    config = UNetConfig.load("small")
    if preset != "small":
        config = replace(config, use_motion_module=False)
    unet, _ = load_unet(config=config, checkpoint=old, allow_mismatch=allow_mismatch)
    inputs, expected = np.load(DATA / "unet_small.npz"), np.load(DATA / "unet_1_0_small.npz")
    for name in ("case0", "case1", "case2"):
        given = [inputs[f"{name}.{i}"] for i in ("latents", "timestep", "encoder_hidden_states")]
        found = unet(*map(torch.from_numpy, given))
        assert relative_error(found, torch.from_numpy(expected[f"{name}.noise_pred"])) <= 1e-5
    assert unet.config.use_motion_module is False
    assert unet.config.max_frames is None
    warned = "has no weights for the motion modules: they are left out" in caplog.text
    assert warned == (preset == "small")
    assert "does not fit" not in caplog.text


def test_a_name_of_1_0_beside_todays_is_unexpected(state):
    name = next(name for name in state if ".attentions." in name and ".norm2.weight" in name)
    old = name.replace("norm2", "audio_cross_attn.norm")
    with pytest.raises(ModelError, match=rf"1 unexpected: {re.escape(old)}"):
        load_unet(config="small", checkpoint={**state, old: state[name]})


def test_a_motion_module_with_some_weights_missing_is_an_error(state):
    part = next(name for name in state if "motion_modules" in name and "proj_out" in name)
    with pytest.raises(ModelError, match=rf"1 missing: {re.escape(part)}"):
        load_unet(config="small", checkpoint={k: v for k, v in state.items() if k != part})
    module = part.partition(".temporal_transformer.")[0]
    others = {name: tensor for name, tensor in state.items() if not name.startswith(module)}
    with pytest.raises(ModelError, match=rf"missing: {re.escape(module)}"):
        load_unet(config="small", checkpoint=others)


def test_a_decoder_without_an_encoders_motion_modules(state, caplog):
    decoder = {
        name: tensor for name, tensor in state.items() if not re.match(r"down.*motion", name)
    }
    unet, _ = load_unet(config="small", checkpoint=decoder)
    assert unet.config == replace(UNetConfig.load("small"), motion_module_decoder_only=True)
    assert "has no weights for some of the motion modules" in caplog.text
