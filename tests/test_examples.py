"""The examples run, on the CPU as far as that goes, and do what their pages say."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT
from helpers.triton_message import parse_model_config

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/run.sh"))
pytestmark = pytest.mark.slow
PROGRAMS = {
    "trt-native": f'exec "{sys.executable}" -m trt_native "$@"',
    "python": f'exec "{sys.executable}" "$@"',
}


@pytest.fixture
def run(tmp_path):
    """Runs an example in a copy of its folder; returns the folder and what was printed."""
    pytest.importorskip("torch")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)

    def call(name, **variables):
        folder = tmp_path / "examples" / name
        shutil.copytree(ROOT / "examples" / name, folder)
        (tmp_path / "scripts").symlink_to(ROOT / "scripts")
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split()]),
            "COLUMNS": "80",
            **variables,
        }
        command = [folder / "run.sh"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder, done.stdout

    return call


def without_gpu(run, name):
    return run(name, CUDA_VISIBLE_DEVICES="", TENSORRT_ROOT="", TRT_NATIVE_BACKEND="rtx")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_has_the_commands_of_the_script(name):
    folder = ROOT / "examples" / name
    pattern = r"^(?:\$ | *)((?:trt-native|python show_config.py) .*)$"
    blocks = re.findall(r"^```console\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    page = re.findall(r"^\$ ((?:trt-native|python show_config.py) .*)$", "".join(blocks), re.M)
    script = re.findall(pattern, (folder / "run.sh").read_text(), re.MULTILINE)
    assert sorted(page) == sorted(script)


def test_the_first_page_has_this_network():
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "docs/index.md").read_text(), re.M | re.S)
    assert (ROOT / "examples/own_net/net.py").read_text().endswith(f'"""\n\n{code[1]}')


@pytest.mark.backend
def test_own_net(run):
    folder, printed = without_gpu(run, "own_net")
    assert (folder / "net.plan.json").is_file()
    error = re.search(r"relative L2 (\S+),", printed)[1]
    said = re.search(r"relative L2 error of ([\d.]+)", (folder / "README.md").read_text())[1]
    assert float(error) == pytest.approx(float(said), rel=0.2)


@pytest.mark.backend
def test_int8(run):
    folder, printed = without_gpu(run, "int8")
    assert (folder / "one.plan").read_bytes() == (folder / "three.plan").read_bytes()
    assert "2 of 3 matrix products, 97.0% of their" in printed
    assert float(re.search(r"relative L2 (\S+),", printed)[1]) == pytest.approx(0.015, rel=0.2)


@pytest.mark.backend
def test_kv_cache(run, monkeypatch):
    from onnx.reference import ReferenceEvaluator

    from trt_native import Plan

    folder, printed = without_gpu(run, "kv_cache")
    assert "float32 (in" in printed
    manifest = Plan.load(folder / "decoder.plan").manifest
    aliases = {t.alias: t.name for t in manifest.outputs if t.alias}
    assert aliases == {t.name: f"new_{t.name}" for t in manifest.inputs[2:]}
    # The step in ONNX generates what the module does.
    monkeypatch.syspath_prepend(folder)
    decoder = __import__("decoder")
    step, prompt = ReferenceEvaluator(str(folder / "decoder.onnx")), [7, 42, 3, 11]
    ids, caches = list(prompt), {}
    for t in manifest.inputs[2:]:
        caches[t.name] = np.zeros(t.shape, t.dtype)
    for index in range(19):
        inputs = {"token": np.array([ids[index]]), "index": np.array([index]), **caches}
        token, *new = step.run(None, inputs)
        caches = dict(zip(caches, new, strict=True))
        if index + 1 == len(ids):
            ids.append(int(token[0]))
    assert ids == decoder.Decoder().generate(prompt, 16)


@pytest.mark.backend
def test_triton(run):
    folder, printed = without_gpu(run, "triton")
    assert not (folder / "models").exists()
    config = parse_model_config(printed[printed.index('name: "net"') :])
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 32)
    assert [list(x.dims) for x in config.input] == [[3, 32, 32]]
    assert config.instance_group[0].count == 2


@pytest.mark.backend
def test_ray(run, monkeypatch):
    folder, printed = without_gpu(run, "ray")
    assert "2 builds: 2 built, 0 cached, 0 failed" in printed
    report = json.loads((folder / "report.json").read_text())
    plan = next(b["plan"] for b in report["builds"] if b["precision"] == "fp16")
    assert hashlib.sha256((folder / "net.plan").read_bytes()).hexdigest() == plan["sha256"]
    monkeypatch.syspath_prepend(folder)
    files, video = importlib.import_module("files"), importlib.import_module("video")
    sample = folder / "samples/002.npz"
    with np.load(sample) as arrays:
        rows = list(files.rows({"path": str(sample)}))
        np.testing.assert_array_equal([row["image"] for row in rows], arrays["image"])
        np.testing.assert_array_equal([row["label"] for row in rows], arrays["label"])
    frames = list(video.frames({"path": str(folder / "videos/clip.mp4")}))
    assert [frame["frame"] for frame in frames] == list(range(50))
    image = video.normalized({"pixels": np.stack([frame["pixels"] for frame in frames])})["image"]
    brightness = np.arange(50) * 5 / 255
    np.testing.assert_allclose(image.mean((1, 2, 3)), brightness, atol=0.02)
    assert (image.shape, image.dtype) == ((50, 3, 64, 64), np.float32)


@pytest.mark.backend
def test_cpp(run, tmp_path):
    folder, printed = without_gpu(run, "cpp")
    assert "--loadEngine=net.plan --shapes=image:8x3x32x32" in printed
    assert np.load(folder / "image.npy").shape == (8, 3, 32, 32)
    compare = [sys.executable, folder / "compare.py", folder / "outputs", folder / "expected"]
    expected = np.load(folder / "expected/logits.npy")
    (folder / "outputs").mkdir()
    for factor, code in ((1.001, 0), (1.02, 1), (np.nan, 1)):
        np.save(folder / "outputs/logits.npy", expected * np.float32(factor))
        done = subprocess.run(compare, capture_output=True, text=True)
        assert done.returncode == code, done.stdout
        assert done.stdout.startswith("logits: relative L2 error ")
        assert done.stderr == ("error: more than FP16 explains (0.01)\n" if code else "")
    np.save(folder / "outputs/logits.npy", expected[:1])
    done = subprocess.run(compare, capture_output=True, text=True)
    assert done.stderr == "error: logits.npy has the shape (1, 10), expected (8, 10)\n"


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXAMPLES)
def test_on_a_gpu(run, name):
    _, printed = run(name)
    if name in ("own_net", "int8"):
        assert "PASSED: all outputs are within the tolerance." in printed
        assert re.search(r"^bound by (compute|transfer|enqueue): ", printed, re.MULTILINE)
