"""``trt-native export FILE.py:NAME``, against PyTorch by onnx.reference."""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import pytest
import torch
from helpers.metrics import relative_error
from helpers.onnx_dims import dims
from helpers.program import trt_native
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file

CODE = """
import functools

import torch
from torch import nn

print("printed by the file")

class Net(nn.Module):
    def __init__(self, width=4, depth=1):
        super().__init__()
        torch.manual_seed(depth)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x, mode="plain", *, scale=1.0):
        for layer in self.layers:
            x = layer(x)
        return x * scale if mode == "plain" else -x * scale

class Nested(nn.Module):
    def forward(self, batch, /, parts, *rest, **more):
        total = batch["image"] + batch["mask"].float() + parts[0] + parts[1] + sum(rest)
        return {"y": total * more["gain"]}

class Pooling(nn.Module):
    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2)

class Fixing(nn.Module):
    def forward(self, x):
        return x * int(x.shape[0])

net = Net()
partial = functools.partial(Net, depth=2)

def make(**options):
    return Net(**options)

def failing():
    raise ValueError("two\\nlines")

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made(folder):
    """The names in the file."""
    names = {}
    with contextlib.redirect_stdout(None):
        exec(compile(CODE, "net.py", "exec"), names)  # noqa: S102
    return names


@pytest.fixture
def export(folder, main_in_process):
    def call(*words):
        code, out, err = main_in_process("export", *words)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def fails(folder, main_in_process):
    def call(*words):
        before = sorted(os.listdir(folder))
        code, out, err = main_in_process("export", *words)
        assert code == 1
        assert out == ""
        assert sorted(os.listdir(folder)) == before
        return err

    return call


def run(**inputs):
    return ReferenceEvaluator("m.onnx").run(None, inputs)[0]


def agrees(net, *args, **kwargs):
    """Whether the file computes what a module does."""
    x = torch.randn(*args)
    with torch.no_grad():
        return relative_error(run(x=x.numpy()), net(x, **kwargs)) <= 1e-5


def test_a_module_of_a_file(export, made):
    out = export("net.py:net", "--input", "x=1x4", "--dynamic", "x=0:batch", "-o", "m.onnx")
    assert "batch x 4" in out
    assert "printed" not in out
    assert dims("m.onnx") == {"x": ["batch", 4], "output": ["batch", 4]}
    assert agrees(made["net"], 1, 4)
    assert agrees(made["net"], 5, 4)


def test_a_factory_with_arguments_and_constants(export, made):
    words = [
        "--arg",
        "width=6",
        "--arg",
        "depth=2",
        "--constant",
        "mode=neg",
        "--constant",
        "scale=2",
    ]
    for target in ("net.py:make", "net.py:Net"):
        report = json.loads(export(target, "--input", "x=3x6", *words, "-o", "m.onnx", "--json"))
        assert report["parameters"] == 2 * (6 * 6 + 6)
        assert agrees(made["Net"](6, 2), 3, 6, mode="neg", scale=2)


def test_a_module_of_a_package_in_any_order_of_the_words(export):
    words = ["-o", "m.onnx", "--input", "input=2x3", "--arg", "in_features=3"]
    export(*words, "torch.nn:Linear", "--arg", "out_features=5", "--arg", "bias=false")
    assert dims("m.onnx") == {"input": [2, 3], "output": [2, 5]}
    export("module", "net:net", "--input", "x=3x4", "-o", "module")
    assert dims("module")["x"] == [3, 4]


def test_nested_inputs_of_several_types_and_files(export, made):
    np.save("mask.npy", np.array([[True], [False]]))
    np.savez("parts.npz", **{"parts.0": np.float32([1, 2, 3]), "parts.1": np.float32([4])})
    words = ["--input", "batch.image=2x3", "--input", "batch.mask=mask.npy", "--input", "parts.npz"]
    words += ["--input", "rest.0=3", "--input", "rest.1=scalar", "--input", "gain=1:float32"]
    dynamic = ["--dynamic", "batch.image=0:n", "--dynamic", "batch_mask=0:n"]
    export("net.py:Nested", *words, *dynamic, "-o", "m.onnx")
    assert dims("m.onnx") == {
        "batch_image": ["n", 3], "batch_mask": ["n", 1], "parts_0": [3], "parts_1": [1],
        "rest_0": [3], "rest_1": [], "gain": [1], "y": ["n", 3],
    }  # fmt: skip
    image, mask = torch.randn(4, 3), torch.tensor([[True], [False], [True], [True]])
    parts, rest, gain = [torch.randn(3), torch.randn(1)], [torch.randn(3), torch.tensor(2.0)], 3
    expected = made["Nested"]()({"image": image, "mask": mask}, parts, *rest, gain=gain)["y"]
    found = run(
        batch_image=image.numpy(), batch_mask=mask.numpy(), gain=np.float32([gain]),
        **{f"parts_{i}": part.numpy() for i, part in enumerate(parts)},
        **{f"rest_{i}": one.numpy() for i, one in enumerate(rest)},
    )  # fmt: skip
    assert relative_error(found, expected) <= 1e-6


def _lightning(state):
    torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 3}, "w.ckpt")
    return "w.ckpt"


def _bare(state):
    torch.save(state, "w.pt")
    return "w.pt"


def _model(state):
    torch.save({"model": state, "optimizer": {}}, "w.pth")
    return "w.pth"


def _parallel(state):
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "w.pt")
    return "w.pt"


def _safetensors(state):
    save_file(state, "w.safetensors")
    return "w.safetensors"


@pytest.mark.parametrize("save", [_bare, _lightning, _model, _parallel, _safetensors])
def test_checkpoints(export, made, save):
    other = made["Net"](4, 1)
    torch.nn.init.normal_(other.layers[0].bias)
    path = save(other.state_dict())
    export("net.py:net", "--input", "x=3x4", "--weights", path, "-o", "m.onnx")
    assert agrees(other, 3, 4)
    assert not agrees(made["net"], 3, 4)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_types(export, precision, dtype):
    report = json.loads(
        export("net.py:net", "--input", "x=3x4", "--precision", precision, "-o", "m.onnx", "--json")
    )
    assert [one["dtype"] for one in report["inputs"] + report["outputs"]] == [dtype] * 2


X = ("--input", "x=3x4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("net.py:nope", "has no module, class or function 'nope'; there are Fixing, Nested, Net"),
        ("nope.py:net", "nope.py: no such file"),
        ("nope.mod:net", "nope.mod:net: there is no module nope.mod"),
        ("latentsink", "latentsink: not an export that there is, and not FILE.py:NAME or"),
        ("net.py:", "net.py:: write FILE.py:NAME or package.module:NAME"),
        ("net.py:number", "net.py:number returned a int, not a torch.nn.Module"),
        ("net.py:failing", "net.py:failing raised ValueError: two lines"),
        ("net.py:make --arg size=3", "unexpected keyword argument 'size' (--arg)"),
        ("net.py:net --arg width=3", "is a module, which takes no arguments"),
        ("net.py:make --arg width", "'width' is not NAME=VALUE (--arg)"),
        ("net.py:make --arg width=3 --arg width=4", "width is given twice (--arg)"),
        ("net.py:net --constant x=3", "x is an input and a constant (--input, --constant)"),
        ("net.py:net --input x=3x4", "x is given twice (--input)"),
        ("net.py:net --input x.y=3", "x is given twice (--input)"),
        ("net.py:net --input z=3", "z: Net.forward takes x, mode, scale (--input)"),
        ("net.py:net --input z=3y", "'z=3y': not a shape: '3y'"),
        ("net.py:net --input z=3:real", "'z=3:real': no type 'real'; write float32"),
        ("net.py:net --input z=99999999x9999999", "too large for this machine's memory"),
        ("net.py:net --input z", "'z': write NAME=1x3x224x224"),
        ("net.py:net --input z=z.npy", "z.npy: cannot be read: No such file"),
        ("net.py:net --dynamic x", "'x' is not NAME=AXIS:DIMENSION; write for example"),
        ("net.py:net --dynamic x=0:n,0:m", "axis 0 has two names (--dynamic)"),
        ("net.py:net --dynamic y=0:n", "'y' is not an input"),
        ("net.py:net --dynamic x=1:n", "n (axis 1 of x) is always 4"),
        ("net.py:Fixing --dynamic x=0:n", "n (axis 0 of x) is always 3, by"),
        ("net.py:net --precision int8", "'int8' is none of: fp32, fp16, bf16 (--precision)"),
        ("net.py:net --opset 99", "opset 99: choose one from"),
        ("net.py:net --weights none.pt", "none.pt: cannot be read: No such file"),
        ("net.py:net --weights net.py", "net.py: not a checkpoint"),
        ("net.py:net --weights w.pt", "w.pt does not fit Net: 2 of another shape: layers.0.weight"),
        ("net.py:make --arg depth=2 --weights w.pt", "w.pt does not fit Net: 2 missing: layers.1"),
    ],
)
def test_what_cannot_be_exported(fails, made, words, message):
    torch.save(made["Net"](5).state_dict(), "w.pt")
    error = fails(*words.split(), *X, "-o", "m.onnx")
    assert message in " ".join(error.split())


def test_other_inputs_than_the_module_has(fails):
    assert "missing a required argument: 'x'" in fails("net.py:net", "-o", "m.onnx")
    assert "needs at least one tensor" in fails("net.py:net", "-o", "m.onnx", "--constant", "x=3")


def test_extents_that_the_translation_builds_in(fails):
    words = ["--input", "x=1x1x8x8", "--dynamic", "x=2:height"]
    error = " ".join(fails("net.py:Pooling", *words, "-o", "m.onnx").split())
    assert "at height=16 the exported graph would not compute what the module does" in error
    assert "- kernel_shape of /AveragePool: [4, 4] against [8, 4]" in error


@pytest.mark.parametrize("output", ["net.py", "x.npy", "w.pt", "nowhere/m.onnx"])
def test_files_that_cannot_be_written(fails, made, output):
    np.save("x.npy", np.zeros((3, 4), np.float32))
    torch.save(made["net"].state_dict(), "w.pt")
    words = ["--input", "x=x.npy", "--weights", "w.pt"]
    assert f"cannot write {output}" in fails("net.py:net", *words, "-o", output)


def test_as_a_program(folder):
    """What the user's file prints is not part of the report."""
    done = trt_native("export", "net.py:net", *X, "-o", "m.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "m.onnx"
    assert "printed by the file" in done.stderr
    missing = trt_native("export", "net.py:net", *X)
    assert missing.returncode == 2
    assert "Missing option '--output'" in missing.stderr
    listed = trt_native("export", "--help")
    assert all(name in listed.stdout for name in ("module", "latentsync", "latentsync-vae"))
