"""Extents of the example that are built into an export, found by another one."""

from __future__ import annotations

import logging
import os

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as f

from trt_native import export
from trt_native.errors import ExportError
from trt_native.export import export_module
from trt_native.export.second_extent import differences
from trt_native.graph.onnx_file import read_model


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


X = torch.linspace(-1, 1, 16).reshape(2, 8)
DYNAMIC = {"x": {0: "batch", 1: "n"}}


def hint(x, axis=1):
    """The example's own extent, as code that looks inside of torch's symbols gets it."""
    extent = x.shape[axis]
    return extent.node.hint if isinstance(extent, torch.SymInt) else extent


@pytest.mark.parametrize(
    ("function", "message", "problem"),
    [
        (
            lambda x: f.adaptive_avg_pool1d(x[:, None], 4),
            r"at batch=4, n=16 .*: output 0 has the shape 4x1x8 instead of 4x1x4\.",
            "kernel_shape of /AveragePool: [1, 2] against [1, 4]",
        ),
        (
            lambda x: x * hint(x),
            "output 0 has other values",
            "an input of /Mul: 8.0 against 16.0",
        ),
        (
            lambda x: x * torch.ones(hint(x)).cumsum(0).sum(),
            "output 0 has other values",
            "an input of /Mul: 36.0 against 136.0",
        ),
        (
            lambda x: sum(x * i for i in range(hint(x))),
            "output 0 has other values",
            "no node against Mul '/Mul_8'",
        ),
    ],
)
def test_constants_of_the_example_are_refused(tmp_path, function, message, problem):
    with pytest.raises(ExportError, match=message) as caught:
        export_module(Calls(function), X, path=tmp_path / "m.onnx", dynamic=DYNAMIC)
    assert problem in "\n".join(caught.value.problems)
    assert os.listdir(tmp_path) == []
    export_module(Calls(function), X, path=tmp_path / "static.onnx")


class Limited(nn.Module):
    """Positions for as many elements as the example has, and no more."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.linspace(0, 1, 10))

    def forward(self, x):
        assert x.shape[1] <= 10
        return x + self.positions[: x.shape[1]]


@pytest.mark.parametrize(
    "module",
    [
        Calls(lambda x: f.adaptive_avg_pool1d(x[:, None], 1)),
        Calls(lambda x: x * x.shape[1]),
        Calls(lambda x: x * 2 if x.shape[1] > 10 else x + x),  # another graph, the same values
        Calls(lambda x: f.interpolate(x[:, None], size=(x.shape[1] * 2,))),
        Calls(lambda x: x.reshape(x.shape[0] * x.shape[1])),
        Limited(),
    ],
)
def test_what_is_right_at_other_extents_is_taken(tmp_path, module):
    path = tmp_path / "m.onnx"
    export_module(module, X, path=path, dynamic=DYNAMIC)
    for shape in ((2, 8), (3, 5), (1, 9)):
        x = torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)
        (found,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x).detach())


def test_the_line_that_fixes_an_extent_is_named(tmp_path):
    def fixing(x):
        return x * int(x.shape[1])

    line = fixing.__code__.co_firstlineno + 1
    for call in ([X], {"x": X}):
        with pytest.raises(ExportError) as caught:
            export_module(Calls(fixing), call, path=tmp_path / "m.onnx", dynamic=DYNAMIC)
        assert f"n (axis 1 of x) is always 8, by {__file__}:{line};" in caught.value.message


def test_an_example_of_extent_1_is_repeated(tmp_path):
    """Also where a product of dimensions follows from it."""

    class Block(nn.Module):
        def forward(self, x, y):
            return x.flatten(0, 1) * y

    x, y, path = torch.randn(1, 3, 4), torch.randn(3, 4), tmp_path / "m.onnx"
    axes = {"x": {0: "b", 1: "f"}, "y": {0: "b*f"}}
    export_module(Block(), [x, y], path=path, dynamic=axes)
    for b, frames in ((1, 3), (5, 2)):
        x, y = torch.randn(b, frames, 4), torch.randn(b * frames, 4)
        (found,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy(), "y": y.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), x.flatten(0, 1) * y)


def test_large_inputs_are_left_out_with_a_warning(tmp_path, caplog, monkeypatch):
    x, path = torch.zeros(2, 1 << 23), tmp_path / "m.onnx"
    with caplog.at_level(logging.WARNING, "trt_native"):
        export_module(nn.ReLU(), x, path=path, dynamic={"input": {0: "b"}})
        assert not caplog.text
        module = Calls(lambda x: x * x.shape[0] * (1 + hint(x, 0)))
        export_module(module, x, path=path, dynamic={"x": {0: "b"}})
    assert "an export at b=4 differs, and is too large to run: ['an input of /Mul" in caplog.text
    monkeypatch.setattr(export.module, "_MOST_TRACED", 3)
    with caplog.at_level(logging.WARNING, "trt_native"):
        export_module(nn.ReLU(), torch.ones(2), path=path, dynamic={"input": {0: "b"}})
    assert "not checked at twice the extents" in caplog.text


def test_differences_of_graphs(tmp_path):
    def model(**changes):
        made = {"op": "LeakyRelu", "alpha": 0.5, "weight": [1.0, 2.0], "last": "Neg", **changes}
        nodes = [
            onnx.helper.make_node(made["op"], ["x"], ["h"], name="a", alpha=made["alpha"]),
            onnx.helper.make_node("Add", ["h", "w"], ["s"], name="b"),
            onnx.helper.make_node(made["last"], ["s"], ["y"], name="c"),
        ]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"])
            for name in ("x", "y")
        ]
        weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], made["weight"])
        graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
        path = tmp_path / "m.onnx"
        onnx.save(onnx.helper.make_model(graph), path)
        return read_model(path)

    first = model()
    assert differences(first, model()) == []
    assert differences(first, model(alpha=0.25)) == ["alpha of a: 0.5 against 0.25"]
    assert differences(first, model(weight=[1.0, 3.0])) == [
        "an input of b: [1.0, 2.0] against [1.0, 3.0]"
    ]
    assert differences(first, model(last="Abs")) == ["Neg 'c' against Abs 'c'"]
    assert differences(first, model(op="Elu")) == ["LeakyRelu 'a' against Elu 'a'"]
