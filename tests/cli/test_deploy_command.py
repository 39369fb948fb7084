"""``trt-native deploy`` as a user meets it."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from helpers.made_plans import STATIC, TWO, X, Y, make_plan
from helpers.program import trt_native
from helpers.triton_message import parse_model_config


def test_triton(tmp_path):
    make_plan(tmp_path / "unet.v2.plan", (X, Y))
    command = ("deploy", "triton", "unet.v2.plan", "--repository", "repo")
    result = trt_native(*command, "--instances", 2, "--batching-delay", 100, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "hard link" in result.stdout
    assert "TensorRT 10.16.1.11" in result.stdout
    config = parse_model_config((tmp_path / "repo/unet.v2/config.pbtxt").read_text())
    assert (config.name, config.max_batch_size) == ("unet.v2", 8)
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    again = trt_native(*command, "--max-batch", 2, cwd=tmp_path)
    assert again.returncode == 1
    assert "or replace it (--name, --force)" in again.stderr
    forced = trt_native(*command, "--max-batch", 2, "--force", "--json", cwd=tmp_path)
    report = json.loads(forced.stdout)
    assert report["max_batch_size"] == 2
    assert report["linked"]
    assert report["config"] == (tmp_path / "repo/unet.v2/config.pbtxt").read_text()


def test_triton_with_gpus_limits_and_inputs(tmp_path, rng):
    make_plan(tmp_path / "m.plan", (X, Y))
    x = rng.standard_normal((2, 3, 16, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = ("deploy", "triton", "m.plan", "--repository", "repo", "--input", "x=x.npy")
    limits = ("--rate-resource", "memory=4", "--rate-resource", "r=1", "--rate-priority", 2)
    result = trt_native(*command, "--gpu", 1, "--gpu", 0, *limits, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--rate-limit=execution_count" in " ".join(result.stdout.split())
    folder = tmp_path / "repo/m"
    config = parse_model_config((folder / "config.pbtxt").read_text())
    (group,) = config.instance_group
    assert list(group.gpus) == [1, 0]
    assert [(r.name, r.count) for r in group.rate_limiter.resources] == [("memory", 4), ("r", 1)]
    file = config.model_warmup[1].inputs["x"].input_data_file
    assert (folder / "warmup" / file).read_bytes() == x[0].tobytes()


def test_triton_says_why_it_forms_no_batches(tmp_path):
    make_plan(tmp_path / "m.plan", STATIC)
    result = trt_native("deploy", "triton", "m.plan", "--repository", "repo", cwd=tmp_path)
    assert "0: the first axis of 'x' is not dynamic" in result.stdout


def test_trtexec(tmp_path):
    make_plan(tmp_path / "it's.plan", (TWO, *STATIC[1:]), version=(11, 1, 0, 106))
    result = trt_native("deploy", "trtexec", "it's.plan", "--shape", "x=4x3", cwd=tmp_path)
    assert shlex.split(result.stdout) == ["trtexec", "--loadEngine=it's.plan", "--shapes=x:4x3"]
    assert result.stderr == "for the trtexec of TensorRT 11.1.0.106\n"
    as_json = trt_native("deploy", "trtexec", "it's.plan", "--profile", 1, "--json", cwd=tmp_path)
    assert json.loads(as_json.stdout)["words"][-1] == "--useProfile=1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("triton", "m.plan", "--repository", "r", "--name", "a/b"), "it names a folder"),
        (("triton", "m.plan", "--repository", "m.plan"), "File exists"),
        (("triton", "m.plan", "--repository", "/proc/x"), "cannot write /proc/x"),
        (("triton", "none.plan", "--repository", "r"), "cannot read none.plan"),
        (("triton", "m.plan", "--repository", "r", "--rate-resource", "a"), "write NAME=COUNT"),
        (("triton", "m.plan", "--repository", "r", "--rate-priority", 0), "1 is the highest"),
        (("triton", "m.plan", "--repository", "r", "--gpu", -1), "from 0 on"),
        (("trtexec", "m.plan", "--shape", "x"), "write NAME=1x3x8x8"),
        (("trtexec", "m.plan", "--profile", "7"), "profile 7: the plan has 0 alone"),
        (("trtexec", "m.plan.json"), "not a TensorRT plan"),
    ],
    ids=str,
)
def test_bad_input(tmp_path, arguments, message):
    make_plan(tmp_path / "m.plan", STATIC)
    result = trt_native("deploy", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]
