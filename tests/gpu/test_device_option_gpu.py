"""``--device`` of the commands, each in a process of its own, with two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cuda.bindings import driver
from helpers import tiny_models
from helpers.program import DIMS

from trt_native.cuda import require_gpu
from trt_native.cuda.driver import check

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


@pytest.fixture(autouse=True)
def _two_gpus():
    require_gpu()
    if check(driver.cuDeviceGetCount())[0] < 2:
        pytest.skip("needs two GPUs")


def memory_used(ordinal):
    info = require_gpu(ordinal)
    require_gpu(0)
    return info.total_bytes - info.free_bytes


def run(folder, *words, visible=None):
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": visible} if visible else {})}
    return subprocess.run(
        [sys.executable, "-m", "trt_native", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=300,
        check=False,
    )


def test_every_command_with_the_second_gpu(tmp_path):
    tiny_models.conv(tmp_path / "m.onnx")
    device = ("--device", "cuda:1")
    built = run(tmp_path, "build", "m.onnx", *DIMS, "--refit", "--retry", "--no-cache", *device)
    assert built.returncode == 0, built.stderr
    for words in (
        ("run", "m.plan", "--random", "0", "-o", "one.npz", *device),
        ("run", "m.plan", "--random", "0", "-o", "zero.npz"),
        ("verify", "m.plan", "--against", "m.onnx", "--random", "0", *device),
        ("bench", "m.plan", "--duration", "0.05", *device),
        ("refit", "m.plan", "--from", "m.onnx", "-o", "n.plan", *device),
        ("doctor", "m.plan", *device),
    ):
        done = run(tmp_path, *words)
        assert done.returncode == 0, (words, done.stderr)
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "zero.npz") as zero:
        np.testing.assert_array_equal(one["y"], zero["y"])


def test_warming_is_for_the_gpu_that_is_named(tmp_path):
    tiny_models.conv(tmp_path / "m.onnx")
    words = ("build", "m.onnx", *DIMS, "--no-cache", "--backend", "rtx", "--warm", "--device", "1")
    done = run(tmp_path, *words)
    if "is not installed" in done.stderr:
        pytest.skip("needs TensorRT-RTX")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.plan.cache").is_file()


def test_devices_count_among_the_visible_ones(tmp_path):
    ended = run(tmp_path, "doctor", "--json", "--device", "1", visible="1")
    assert ended.returncode == 1
    assert "no such GPU among those of CUDA_VISIBLE_DEVICES=1" in ended.stderr
    found = json.loads(run(tmp_path, "doctor", "--json", "--device", "0", visible="1").stdout)
    assert found["gpu"]["name"] == require_gpu(1).name
    require_gpu(0)


def test_a_gpu_that_does_not_exist(tmp_path):
    tiny_models.conv(tmp_path / "m.onnx")
    done = run(tmp_path, "build", "m.onnx", *DIMS, "--device", "cuda:99")
    assert done.returncode == 1
    assert "cannot select cuda:99: there is no such GPU" in done.stderr
    assert not (tmp_path / "m.plan").exists()


def test_only_the_second_gpu_gets_a_context(tmp_path):
    code = (
        "import sys; from trt_native.cuda import select_gpu, require_gpu; select_gpu('cuda:1');"
        "require_gpu(); print('ready', flush=True); sys.stdin.read()"
    )
    before = memory_used(0), memory_used(1)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        used = memory_used(0) - before[0], memory_used(1) - before[1]
        process.stdin.close()
    assert used[0] < 32 << 20 < used[1]
