"""Configurations of the U-Net: presets, files, errors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from helpers import DATA

from trt_native.errors import SpecError
from trt_native.models.latentsync import UNET_PRESETS, UNetConfig

COUNTS = ("sample_size", "in_channels", "out_channels", "norm_num_groups", "cross_attention_dim")
REALS = ("norm_eps", "mid_block_scale_factor")


class TestConfig:
    def test_positions_of_an_odd_number_of_channels(self):
        motion = {"num_attention_heads": 1, "temporal_attention_dim_div": 32}
        small = UNetConfig.load("small").to_dict()
        message = "modules of 32 channels have an odd number inside"
        with pytest.raises(SpecError, match=message):
            UNetConfig.from_mapping({**small, "motion_module_kwargs": motion})
        without = {**motion, "temporal_position_encoding": False}
        UNetConfig.from_mapping({**small, "motion_module_kwargs": without})

    def test_frequencies_that_do_not_exist(self):
        with pytest.raises(SpecError, match=r"freq_shift must be below .* / 2, found 16"):
            UNetConfig.from_mapping({**UNetConfig.load("small").to_dict(), "freq_shift": 16})

    def test_round_trip(self):
        for preset in UNET_PRESETS:
            config = UNetConfig.load(preset)
            assert UNetConfig.from_mapping(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize("eps", ["1e-5", 1e-5])
    def test_yaml_1_1_readers_make_a_text_of_1e_5(self, eps):
        data = {**json.loads((DATA / "unet_small.json").read_text()), "norm_eps": eps}
        assert UNetConfig.from_mapping(data).norm_eps == 1e-5

    def test_yaml_with_a_model_section(self, tmp_path):
        section = json.loads((DATA / "unet_small.json").read_text())
        lines = [f"  {key}: {json.dumps(value)}" for key, value in section.items()]
        text = "\n".join(lines).replace("1e-05", "1e-5")
        path = tmp_path / "unet.yaml"
        path.write_text(f"data: {{num_frames: 16}}\nmodel:\n{text}\n")
        assert UNetConfig.load(path) == UNetConfig.load("small")

    def test_keys_of_latentsync_1_0_alone(self):
        own = {
            "custom_audio_layer": False,
            "audio_condition_method": "cross_attn",
            "unet_use_cross_frame_attention": False,
            "unet_use_temporal_attention": False,
        }
        same = UNetConfig.load("latentsync-1.0")
        assert UNetConfig.from_mapping({**same.to_dict(), **own}) == same
        others = dict(zip(own, (True, "group_norm", True, True), strict=True))
        with pytest.raises(SpecError) as caught:
            UNetConfig.from_mapping({**same.to_dict(), **others})
        for name in others:
            assert f"{name}={others[name]!r} is not supported, only {own[name]!r}" in str(
                caught.value
            )

    def test_all_problems_come_at_once(self):
        data = {**json.loads((DATA / "unet_small.json").read_text())}
        data.update(in_chanels=4, out_channels="four", act_fn="gelu", norm_num_groups=7)
        with pytest.raises(SpecError) as caught:
            UNetConfig.from_mapping(data)
        text = str(caught.value)
        for part in ("in_chanels", "out_channels", "act_fn"):
            assert part in text

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            *((name, n, f"{name} must be at most") for name in COUNTS for n in (2**17, 10**400)),
            *((name, n, f"{name} must be at least 1") for name in COUNTS for n in (0, -(10**18))),
            ("layers_per_block", 1000, "layers_per_block must be at most 64"),
            ("freq_shift", -(10**18), "freq_shift must be at most"),
            ("block_out_channels", [32] * 20_000, "has 20000 entries, at most 64"),
            ("attention_head_dim", [4] * 65, "has 65 entries, at most 64"),
            ("motion_module_kwargs", {"num_transformer_block": 10**9}, "must be at most 64"),
            ("motion_module_kwargs", {"attention_block_types": ["Temporal_Self"] * 65}, "at most"),
            ("motion_module_kwargs", {"temporal_position_encoding_max_len": 10**9}, "at most"),
            *((name, x, f"{name} must be") for name in REALS for x in (-0.0, 1e300, "inf", "nan")),
        ],
    )
    def test_absurd_numbers(self, key, value, message):
        data = json.loads((DATA / "unet_small.json").read_text())
        with pytest.raises(SpecError, match=re.escape(message)) as caught:
            UNetConfig.from_mapping({**data, key: value})
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("none.yaml", None, "no such file, and not a preset"),
            ("c.json", "{", "not valid YAML or JSON"),
            ("c.yaml", "a: [", "not valid YAML or JSON"),
            ("c.yaml", "- 1", "c.yaml"),
            ("c.yaml", "[" * 2_000, "not valid YAML or JSON"),
            ("c.json", "[" * 200_000, "not valid YAML or JSON"),
            ("c.yaml", "in_channels: .inf\nnorm_num_groups: 1e999", "whole number, found inf"),
            ("c.yaml", "in_channels: &a [*a]", "needs a whole number, found"),
        ],
    )
    def test_bad_files(self, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SpecError, match=message):
            UNetConfig.load(tmp_path / name)

    @pytest.mark.timeout(60)
    def test_a_list_of_a_million_million_entries_is_abbreviated(self, tmp_path):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
        path = tmp_path / "c.yaml"
        path.write_text("\n".join([*lines, "in_channels: *a11"]))
        with pytest.raises(SpecError, match="in_channels needs a whole number") as caught:
            UNetConfig.load(path)
        assert len(str(caught.value)) < 2000

    @pytest.mark.timeout(60)
    def test_paths_that_are_not_files(self, tmp_path):
        os.mkfifo(tmp_path / "c.yaml")
        for path in (tmp_path / "c.yaml", Path("/dev/zero"), tmp_path):
            with pytest.raises(SpecError, match=r"is a pipe or a device|directory"):
                UNetConfig.load(path)
