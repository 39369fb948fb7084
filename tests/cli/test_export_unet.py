"""``trt-native export latentsync --build``: export and build in one command."""

from __future__ import annotations

import json
import os

import pytest
from helpers.program import HAS_GPU, failing, trt_native

from trt_native.plans.plan import Plan

TINY = {
    "in_channels": 3,
    "out_channels": 2,
    "block_out_channels": [4],
    "down_block_types": ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "use_motion_module": False,
    "add_audio_layer": False,
}
DIMS = ("--dim", "batch=1", "--dim", "frames=1:1:2", "--dim", "height=4", "--dim", "width=4")
TIMES = ("seconds", "created")


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return ("export", "latentsync", "--random-weights", 0, "--config", "tiny.json")


def succeeds(*arguments):
    result = trt_native(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def facts(plan):
    return {k: v for k, v in plan.manifest.to_json().items() if k not in TIMES}


@pytest.mark.backend
class TestBuild:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_one_command_builds_what_two_do(self, words, tmp_path):
        build = ("--dim", "frames=2", *DIMS[:2], *DIMS[4:], "--backend", "rtx", "--no-cache")
        os.mkdir("one")
        out = succeeds(*words, "-o", "one/unet.onnx", "--build", "one/unet.plan", *build, "--json")
        os.mkdir("two")
        succeeds(*words, "-o", "two/unet.onnx")
        succeeds("build", "two/unet.onnx", *build)
        one, two = (Plan.load(tmp_path / folder / "unet.plan") for folder in ("one", "two"))
        assert bytes(one.data) == bytes(two.data)
        assert facts(one) == facts(two)
        assert (tmp_path / "one/unet.onnx").read_bytes() == (
            tmp_path / "two/unet.onnx"
        ).read_bytes()
        document = json.loads(out)
        assert [report["path"] for report in document["exported"]] == ["one/unet.onnx"]
        (built,) = document["built"]
        assert built == {
            "path": "one/unet.plan", "cached": False, "failed_attempts": [],
            **one.manifest.to_json(),
        }  # fmt: skip

    def test_both_steps_of_deepcache_without_their_onnx(self, words, tmp_path):
        static = ("--static", "batch=1,frames=1,height=4,width=4", "--precision", "fp16")
        plan = ("--build", "unet.plan", "--backend", "rtx")
        out = succeeds(*words, *static, "--deepcache", *plan)
        files = {"unet.plan", "unet.plan.json", "unet.shallow.plan", "unet.shallow.plan.json"}
        assert set(os.listdir()) == {"tiny.json", *files}
        full, shallow = (Plan.load(name) for name in ("unet.plan", "unet.shallow.plan"))
        assert [t.name for t in full.manifest.tensors] == [
            "latents", "timestep", "noise_pred", "deep_features",
        ]  # fmt: skip
        assert [t.name for t in shallow.manifest.tensors] == [
            "latents", "timestep", "deep_features", "noise_pred",
        ]  # fmt: skip
        assert full.manifest.model["file"] == "unet.onnx"
        assert "Exported" not in out
        assert out.count("Built") == 2
        again = json.loads(succeeds(*words, *static, "--deepcache", *plan, "--json"))
        assert again["exported"] == []
        assert [built["cached"] for built in again["built"]] == [True, True]

    def test_a_build_that_fails_leaves_the_onnx(self, words):
        failing(*words, "-o", "unet.onnx", "--build", "unet.plan", *DIMS, "--keep-fp32", "nothing*")
        assert set(os.listdir()) == {"tiny.json", "unet.onnx"}
        failing(*words, "--build", "unet.plan", *DIMS, "--keep-fp32", "nothing*")
        assert set(os.listdir()) == {"tiny.json", "unet.onnx"}


BUILD = ("-o", "unet.onnx", "--build", "unet.plan", *DIMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give the ONNX file to write, a plan to build, or both (--output, --build)"),
        (("-o", "u.onnx", "--warm"), "no effect where no plan is built (--warm, --build)"),
        (
            ("-o", "u.onnx", "--dim", "batch=1", "--backend", "rtx", "--workspace", "1GiB"),
            "no effect where no plan is built (--workspace, --dim, --backend, --build)",
        ),
        (("--build", "u.plan"), "dimension 'batch' has no range"),
        (("--build", "u.plan", *DIMS, "--dim", "depth=1"), "'depth' is not one of the model's"),
        (
            ("--build", "u.plan", *DIMS, "--fast-at", "frames=3"),
            "outside of the ranges of the profiles",
        ),
        (("--build", "u.plan", *DIMS, "--build-precision", "fp7"), "(--build-precision)"),
        (("--build", "missing/u.plan", *DIMS), "cannot write missing/u.plan"),
        (("-o", "u.x", "--build", "u.x", *DIMS), "two outputs have this name"),
        (("-o", "u.onnx", "--build", "tiny.json", *DIMS), "it is one of the files to read"),
        ((*BUILD, "--backend", "vulkan"), "no backend 'vulkan'"),
        ((*BUILD, "--build-precision", "int8"), "precision int8 needs the ranges"),
        ((*BUILD, "--timeout", "soon"), "soon"),
        pytest.param(
            (*BUILD, "--warm", "--backend", "rtx"),
            "cannot find a GPU: this machine has no NVIDIA driver (libcuda) (--warm)",
            marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
        ),
    ],
)
def test_what_is_refused_before_the_export(words, options, message):
    if "rtx" in options:
        pytest.importorskip("tensorrt_rtx")
    assert message in failing(*words, *options)
    assert os.listdir() == ["tiny.json"]
