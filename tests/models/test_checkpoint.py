"""Checkpoints of the U-Net: their formats, damaged files, keys that do not fit."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from helpers import DATA
from safetensors.torch import save_file

from trt_native.errors import ModelError
from trt_native.models.latentsync import (
    UNet,
    UNetConfig,
    checkpoint,
    load_checkpoint,
    load_into,
)


class TestCheckpoint:
    @pytest.fixture
    def state(self):
        return load_checkpoint(DATA / "unet_small.pt").state_dict

    def test_the_real_format(self):
        raw = torch.load(DATA / "unet_small.pt", weights_only=True)
        loaded = load_checkpoint(DATA / "unet_small.pt")
        assert loaded.global_step == raw["global_step"]
        assert loaded.config is None
        assert {k: v.shape for k, v in loaded.state_dict.items()} == {
            k: v.shape for k, v in raw["state_dict"].items()
        }

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("kind", ["bare", "with config", "prefixed"])
    def test_other_formats(self, tmp_path, state, kind, legacy):
        path = tmp_path / "c.pt"
        data = {
            "bare": dict(state),
            "with config": {"config": {"in_channels": 13}, "state_dict": dict(state)},
            "prefixed": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        }[kind]
        torch.save(data, path, _use_new_zipfile_serialization=not legacy)
        loaded = load_checkpoint(path)
        assert loaded.config == ({"in_channels": 13} if kind == "with config" else None)
        assert loaded.state_dict.keys() == state.keys()
        assert all(torch.equal(loaded.state_dict[k], state[k]) for k in state)

    def test_safetensors(self, tmp_path, state):
        path = tmp_path / "c.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, path)
        loaded = load_checkpoint(path)
        assert all(torch.equal(loaded.state_dict[k], state[k]) for k in state)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("c.pt", None, "No such file"),
            ("c.pt", b"", "is empty"),
            ("c.pt", b"hello world", "not a checkpoint: torch.save writes other first bytes$"),
            ("c.pt", b"\x08\x0a an ONNX file", "not a checkpoint: torch.save writes other first"),
            ("c.safetensors", b"hello world", "not a safetensors file"),
        ],
    )
    def test_bad_files(self, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("name", ["c.pt", "c.safetensors", "/dev/zero"])
    def test_paths_that_are_not_files(self, tmp_path, name):
        path = tmp_path / name
        if not path.exists():
            os.mkfifo(path)
        with pytest.raises(ModelError, match="is a pipe or a device"):
            load_checkpoint(path)

    @pytest.mark.parametrize("key", ["config", "global_step"])
    def test_deep_json_in_the_metadata(self, tmp_path, state, key):
        path = tmp_path / "c.safetensors"
        save_file({"w": torch.zeros(1)}, path, {key: "[" * 100_000})
        with pytest.raises(ModelError, match=f"the metadata entry '{key}' is not JSON"):
            load_checkpoint(path)

    def test_a_truncated_file(self, tmp_path):
        whole = (DATA / "unet_small.pt").read_bytes()
        path = tmp_path / "c.pt"
        for length in (10, 1000, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError, match=r"damaged|not a checkpoint"):
                load_checkpoint(path)

    def test_pickled_code_is_refused_and_not_run(self, tmp_path):
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (ran,))

        path = tmp_path / "c.pt"
        torch.save({"state_dict": Evil()}, path, pickle_module=pickle)
        with pytest.raises(ModelError, match=r"holds a pickled \S*(touch|getattr)"):
            load_checkpoint(path)
        assert not ran.exists()

    def test_an_interrupt_waits_for_the_import_of_pytorch(self, monkeypatch):
        raised = []
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = [signal.getsignal(kind) for kind in kinds]
        with checkpoint._held_interrupts():
            for kind in kinds:  # no signals: libraries may have left no stack for them
                signal.getsignal(kind)(kind, None)
            assert raised == []
        assert raised == [signal.SIGTERM]
        assert [signal.getsignal(kind) for kind in kinds] == before

    def test_progress_counts_all_bytes(self):
        reported = {}

        def progress(phase, done, total):
            assert done <= total
            reported[phase] = (done, total)

        path = DATA / "unet_small.pt"
        loaded = load_checkpoint(path, progress=progress)
        load_into(UNet(UNetConfig.load("small")), loaded.state_dict, progress=progress)
        size = path.stat().st_size
        weights = sum(t.numel() * t.element_size() for t in loaded.state_dict.values())
        read, converted = (-(-count // 2**20) for count in (size, weights))
        assert reported == {
            "Hashing the checkpoint (MiB)": (read, read),
            "Converting the weights (MiB)": (converted, converted),
        }

    def test_every_key_that_does_not_fit_is_reported(self, state):
        wrong = dict(state)
        del wrong["conv_in.bias"]
        wrong["extra.weight"] = torch.zeros(1)
        wrong["conv_out.bias"] = torch.zeros(7)
        unet = UNet(UNetConfig.load("small"))
        with pytest.raises(ModelError) as caught:
            load_into(unet, wrong)
        text = str(caught.value)
        for part in (
            "1 missing: conv_in.bias",
            "1 unexpected: extra.weight",
            "conv_out.bias (found (7,), expected (4,))",
        ):
            assert part in text
        report = load_into(unet, wrong, strict=False)
        assert report.missing == ("conv_in.bias",)
        assert torch.equal(unet.conv_in.weight, state["conv_in.weight"])
