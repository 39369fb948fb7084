"""Exports of any module, run by onnx.reference at shapes other than those exported with."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.metrics import relative_error
from helpers.onnx_dims import dims
from onnx.reference import ReferenceEvaluator
from torch import nn

from trt_native.errors import ExportError, SpecError
from trt_native.export import export_module
from trt_native.graph import onnx_file


class Block(nn.Module):
    """Joins (batch, frames, 8) and (batch*frames, 8) through a convolution and a norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, audio):
        flat = x.flatten(0, 1) + audio
        return self.drop(self.norm(self.first(flat))).reshape(x.shape)


def example(batch=2, frames=3):
    return {"x": torch.randn(batch, frames, 8), "audio": torch.randn(batch * frames, 8)}


DYNAMIC = {"x": [torch.export.Dim("batch"), "frames", None], "audio": {0: "batch*frames"}}


@pytest.fixture(scope="module")
def block_onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("block") / "m.onnx"
    export_module(
        Block(), example(), path=path, dynamic=DYNAMIC, output_names="y", metadata={"note": "n"}
    )
    return path


def test_values_at_other_shapes(block_onnx):
    block = Block().eval()
    for batch, frames in ((1, 1), (4, 5)):
        inputs = example(batch, frames)
        expected = block(**inputs).detach().numpy()
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        (found,) = ReferenceEvaluator(str(block_onnx)).run(None, arrays)
        assert relative_error(found, expected) <= 1e-5


def test_names_dimensions_and_metadata(block_onnx):
    onnx.checker.check_model(block_onnx, full_check=True)
    assert dims(block_onnx) == {
        "x": ["batch", "frames", 8],
        "audio": ["batch*frames", 8],
        "y": ["batch", "frames", 8],
    }
    model = onnx.load(block_onnx)
    assert model.producer_name == "trt-native"
    assert {p.key: p.value for p in model.metadata_props} == {"note": "n"}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert any("norm/LayerNormalization" in name for name in names)
    # Torch's metadata would carry the paths of this machine.
    assert str(Path(__file__).parent).encode() not in block_onnx.read_bytes()


def test_a_static_export_has_no_symbols(tmp_path):
    path = tmp_path / "m.onnx"
    report = export_module(Block(), example(), path=path, output_names=["y"])
    assert dims(path) == {"x": [2, 3, 8], "audio": [6, 8], "y": [2, 3, 8]}
    assert report.parameters == 8 * 8 + 8 + 8 + 8
    assert report.total_bytes == path.stat().st_size
    json.dumps(report.to_dict())


def test_the_module_keeps_its_mode(tmp_path):
    block = Block().train()
    export_module(block, example(), path=tmp_path / "m.onnx")
    assert block.training
    assert block.drop.training


def test_large_weights_go_to_one_file_and_none_is_left_behind(tmp_path, monkeypatch):
    path, wide, x = tmp_path / "m.onnx", nn.Linear(32, 32), torch.randn(2, 32)
    monkeypatch.setattr(onnx_file, "_MAX_INLINE_BYTES", 100)
    report = export_module(wide, [x], path=path, output_names=["y"])
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    assert report.external_data == tmp_path / "m.onnx.data"
    assert report.external_data.stat().st_size >= 32 * 32 * 4
    (found,) = ReferenceEvaluator(str(path)).run(None, {"input": x.numpy()})
    assert relative_error(found, wide(x).detach()) <= 1e-5
    monkeypatch.undo()
    export_module(wide, [x], path=path)
    assert os.listdir(tmp_path) == ["m.onnx"]


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))

    def forward(self, x):
        return self.down(x).flatten(2)


def test_an_example_that_shrinks_to_one_pixel_is_refused(tmp_path):
    dynamic = {"x": {2: "height", 3: "width"}}
    with pytest.raises(ExportError, match=r"a dynamic extent is 1 inside down\.1"):
        export_module(
            Narrow(), [torch.zeros(2, 3, 4, 4)], path=tmp_path / "m.onnx", dynamic=dynamic
        )
    export_module(Narrow(), [torch.zeros(2, 3, 4, 4)], path=tmp_path / "static.onnx")
    export_module(Narrow(), [torch.zeros(2, 3, 8, 8)], path=tmp_path / "m.onnx", dynamic=dynamic)
    assert dims(tmp_path / "m.onnx")["x"] == [2, 3, "height", "width"]


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) * 1


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic", "error", "message"),
    [
        (Branches(), {"x": torch.ones(2)}, None, ExportError, "torch cannot trace Branches"),
        (Block(), {"x": torch.ones(2)}, None, SpecError, "do not fit Block.forward"),
        (Block(), example(), {"z": {0: "n"}}, SpecError, "'z' is not an input"),
        (Block(), example(), {"x": {5: "n"}}, SpecError, "no axis 5"),
        (Block(), example(), {"x": {"0": "n"}}, SpecError, "no axis 0"),
        (Block(), example(), {"x": "batch"}, SpecError, "'x': found 'batch'; write for"),
        (Block(), example(), ["batch"], SpecError, "the axes of each input by name"),
        (Block(), example(), {"x": {2: "width"}}, ExportError, "width .* is always 8"),
    ],
)
def test_what_cannot_be_exported(tmp_path, module, inputs, dynamic, error, message):
    with pytest.raises(error, match=message):
        export_module(module, inputs, path=tmp_path / "m.onnx", dynamic=dynamic)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_module(Block(), example(), path=path)
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("opset", [0, -1, 5, 999])
def test_an_opset_that_does_not_exist_is_refused_before_the_work(tmp_path, opset):
    class Untraceable(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("it was traced")

    with pytest.raises(SpecError, match=f"opset {opset}: choose one from 7 to"):
        export_module(Untraceable(), [torch.zeros(2)], path=tmp_path / "m.onnx", opset=opset)


class Difference(nn.Module):
    def forward(self, a, b):
        return a - b


def run(path, *inputs):
    evaluator = ReferenceEvaluator(str(path))
    arrays = dict(zip(evaluator.input_names, (x.numpy() for x in inputs), strict=True))
    return dict(zip(evaluator.output_names, evaluator.run(None, arrays), strict=True))


def test_one_tensor_as_the_example_of_two_inputs(tmp_path):
    x, a, b = torch.randn(3, 2, 3)
    export_module(Difference(), {"a": x, "b": x}, path=tmp_path / "m.onnx")
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", a, b)["output"], a - b)


@dataclasses.dataclass
class Scores:
    score: torch.Tensor
    missing: torch.Tensor | None
    boxes: tuple[torch.Tensor, torch.Tensor]


class Outputs(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: {"logits": x + 1, "hidden": (x + 2, {"last": x + 3})}, None),
        (lambda x: Scores(x + 1, None, (x + 2, x + 3)), ["score", "boxes_0", "boxes_1"]),
        (lambda x: (x + 1, [x + 2, x + 3]), ["output_0", "output_1_0", "output_1_1"]),
        (lambda x: {"x": x + 1, 7: x + 2, "z": x + 3}, ["x_output", "7", "z"]),
    ],
)
def test_outputs_are_named_by_their_keys(tmp_path, make, names):
    path = tmp_path / "m.onnx"
    export_module(Outputs(make), [torch.zeros(2)], path=path)
    found = run(path, torch.zeros(2))
    assert list(found) == (names or ["logits", "hidden_0", "hidden_1_last"])
    assert [array.tolist() for array in found.values()] == [[1, 1], [2, 2], [3, 3]]


def test_an_output_cannot_have_the_name_of_an_input(tmp_path):
    with pytest.raises(SpecError, match="output_names: x is the name of an input"):
        export_module(
            Outputs(lambda x: x + 1),
            [torch.zeros(2)],
            path=tmp_path / "m.onnx",
            output_names=["x"],
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x * int(x.shape[0]), r"n \(axis 0 of x\) is always 4"),
        (lambda x: x * 2 if x.shape[0] == 1 else x * 3, r"at n=1 .* right only where Ne\(n, 1\)"),
        (lambda x: x * 2 if x.shape[0] > 3 else x * 3, "at n=1 .* right only where n > 3"),
        (lambda x: x * 2 if x.shape[0] < 100 else x * 3, "at n=100 .* right only where n < 100"),
        (lambda x: x * 2 if x.shape[0] % 2 == 0 else x * 3, r"right only where Eq\(Mod\(n, 2\)"),
        (lambda x: torch.cat([t * i for i, t in enumerate(x.split(2))]), "at n=1 .* right only"),
    ],
)
def test_code_that_depends_on_a_dynamic_extent_is_refused(tmp_path, make, message):
    with pytest.raises(ExportError, match=message):
        export_module(
            Outputs(make),
            [torch.randn(4, 3)],
            path=tmp_path / "m.onnx",
            dynamic={"x": {0: "n"}},
        )
    assert os.listdir(tmp_path) == []


def test_dimensions_that_are_always_a_multiple(tmp_path):
    """Code for others is not traced, and need not be."""
    make = lambda x: x * 2 if x.shape[0] % 2 == 0 else x * 3  # noqa: E731
    path = tmp_path / "m.onnx"
    export_module(Outputs(make), [torch.ones(4, 3)], path=path, dynamic={"x": {0: "n*2"}})
    assert dims(path)["x"] == ["n*2", 3]
    np.testing.assert_array_equal(run(path, torch.ones(6, 3))["output"], np.full((6, 3), 2))
    with pytest.raises(SpecError, match=r"n\*3 is 4 in the examples, and not such a multiple"):
        export_module(Outputs(make), [torch.ones(4, 3)], path=path, dynamic={"x": {0: "n*3"}})
    with pytest.raises(ExportError, match=r"at n\*3=3 .* as such \(h\*8\)"):
        export_module(Outputs(make), [torch.ones(6, 3)], path=path, dynamic={"x": {0: "n*3"}})


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.reshape(4, -1),  # fails at other extents, as the module does
        lambda x: x * 2 if x.shape[0] > 3 else x + x,
        lambda x: nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 8)),
    ],
)
def test_assumptions_that_change_nothing_are_taken(tmp_path, make):
    path = tmp_path / "m.onnx"
    export_module(Outputs(make), [torch.randn(4, 3)], path=path, dynamic={"x": {0: "n"}})
    for extent in (4, 12):
        x = torch.randn(extent, 3)
        np.testing.assert_allclose(run(path, x)["output"], make(x), rtol=1e-6)
