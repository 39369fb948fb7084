"""Converted ONNX files, and the plans that are built from them."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
import torch
from helpers import seed_models, tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native import ConversionConfig, build_plan, convert_onnx, quantize_onnx
from trt_native.builder import convert
from trt_native.config import BuildConfig, Precision, QuantizationSpec
from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.graph import onnx_file
from trt_native.graph.onnx_file import read_model
from trt_native.graph.types import reduced_types


def run(path, **inputs):
    return ReferenceEvaluator(str(path)).run(None, inputs)[0]


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def onnx_of(module, x, path, dynamic=None):
    """The file of a module, by PyTorch's exporter."""
    with pytest.warns():
        torch.onnx.export(
            module, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=False,
            opset_version=17, dynamic_axes=dynamic,
        )  # fmt: skip
    return path


class Block(torch.nn.Module):
    """A transformer's block."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = torch.nn.LayerNorm(32), torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(1, 2) / 8, -1) @ v)


class Recurrent(torch.nn.Module):
    """An LSTM in both directions."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(16, 16, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Positions(torch.nn.Module):
    """Phases of large positions, which FP16 does not hold."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x):
        places = torch.cumsum(torch.ones_like(x[..., :1]), 1) * 700.3
        return self.linear(x + torch.sin(places * torch.arange(1, 17)))


def convolutions():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(16)
    norm.running_mean.normal_()
    layers = torch.nn.Conv2d(3, 16, 3), norm, torch.nn.SiLU(), torch.nn.Conv2d(16, 8, 3, 2)
    return torch.nn.Sequential(*layers)


KINDS = {
    "convolutions of any batch": (convolutions, (2, 3, 12, 12), {"x": {0: "batch"}}),
    "attention": (Block, (2, 6, 32), None),
    "recurrent": (Recurrent, (2, 5, 16), None),
    "positions": (Positions, (2, 40, 16), None),
}


@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_computes_what_pytorch_does_and_builds_the_same_plan(kind, tmp_path):
    make, shape, dynamic = KINDS[kind]
    torch.manual_seed(1)
    module, x = make().eval(), torch.randn(*shape)
    model = onnx_of(module, x, tmp_path / "m.onnx", dynamic)
    result = convert_onnx(model, tmp_path / "h.onnx", {"precision": "fp16"})
    onnx.checker.check_model(str(result.path), full_check=True)
    assert "float16" in reduced_types(read_model(result.path))
    assert result.weight_bytes_after < 0.7 * result.weight_bytes_before
    with torch.inference_mode():
        assert error(run(result.path, x=x.numpy()), module(x).numpy()) < 2e-3
    given = [value.type.tensor_type.elem_type for value in onnx.load(result.path).graph.input]
    assert given == [onnx.TensorProto.FLOAT]
    shapes = {"profiles": {"dims": {"batch": "1:2:4"}}} if dynamic else {}
    if kind in ("convolutions of any batch", "positions"):
        direct = build_plan(model, {"precision": "fp16", **shapes}, backend="rtx")
        assert bytes(build_plan(result.path, shapes, backend="rtx").data) == bytes(direct.data)


@pytest.fixture
def dense(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx")


@pytest.fixture
def cache(dense, tmp_path):
    return tiny_models.calibration(dense, tmp_path / "m.calib", 4.0, shapes={"h0": ("3x64",)})


def test_quantizing_alone_writes_what_quantize_does(dense, cache, tmp_path):
    spec = QuantizationSpec(calibration_cache=cache)
    quantize_onnx(dense, tmp_path / "q.onnx", Precision.INT8, spec)
    convert_onnx(dense, tmp_path / "c.onnx", {"quantize": "int8", "quantization": spec})
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()


@pytest.mark.backend
def test_quantized_and_in_fp16_it_builds_the_plan_of_a_quantized_build(dense, cache, tmp_path):
    spec = {"calibration_cache": cache}
    shapes = {"profiles": {"dims": {"batch": 3}}}
    config = {"quantize": "fp8", "precision": "fp16", "quantization": spec}
    result = convert_onnx(dense, tmp_path / "c.onnx", config, backend="rtx")
    onnx.checker.check_model(str(result.path), full_check=True)
    direct = build_plan(
        dense, BuildConfig(precision="fp8", quantization=spec, **shapes), backend="rtx"
    )
    built = build_plan(result.path, shapes, backend="rtx")
    assert bytes(built.data) == bytes(direct.data)
    names = [record["name"] for record in direct.manifest.passes]
    assert [record["name"] for record in result.passes] == names == ["quantize", "autocast"]
    assert built.manifest.passes == ()


def test_bf16_beside_int8_weights_needs_the_opset_that_it_gets(dense, tmp_path):
    config = {"quantize": "int8-weights", "precision": "bf16"}
    result = convert_onnx(dense, tmp_path / "c.onnx", config)
    assert result.opset == 19
    assert reduced_types(read_model(result.path)) == {"bfloat16", "quantized"}
    with pytest.raises(UnsupportedError, match=r"cannot be lowered to opset 17: .*BFLOAT16"):
        convert_onnx(dense, tmp_path / "d.onnx", {**config, "opset": 17})
    assert not (tmp_path / "d.onnx").exists()


def test_sample_inputs_decide_what_fp16_holds(dense, tmp_path):
    x = np.full((2, 64), 3e4, np.float32)
    np.savez(tmp_path / "x.npz", h0=x)
    spec = {"calibration_data": str(tmp_path / "x.npz"), "calibration_runner": "reference"}
    config = {"precision": "fp16", "quantization": spec}
    (record,) = convert_onnx(dense, tmp_path / "c.onnx", config).passes
    assert record["measured"]["runner"].startswith("onnx.reference")
    assert record["overflows"]
    found = run(tmp_path / "c.onnx", h0=x)
    assert error(found, run(dense, h0=x)) < 2e-3


@pytest.mark.parametrize("seed", [seed_models.branches, seed_models.loop, seed_models.function])
def test_bodies_and_functions_compute_the_same(seed, tmp_path):
    model = seed(tmp_path / "m.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 8), np.float32)}
    if seed is seed_models.branches:
        inputs["c"] = np.array(True)
    for config in ({"precision": "fp16"}, {"opset": 21}, {"opset": 13}):
        result = convert_onnx(model, tmp_path / "c.onnx", config)
        onnx.checker.check_model(str(result.path), full_check=True)
        assert not onnx.load(result.path).functions
        assert error(run(result.path, **inputs), run(model, **inputs)) < 1e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_quantizers_of_16_bits_keep_their_digits(precision, tmp_path):
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (float[64] x) => (uint16[64] y) <float s = {0.01}, uint16 z = {7}>
        { a = Relu (x) y = QuantizeLinear (a, s, z) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    convert_onnx(tmp_path / "m.onnx", tmp_path / "c.onnx", {"precision": precision})
    x = np.linspace(0, 700, 64, dtype=np.float32)
    expected = run(tmp_path / "m.onnx", x=x)
    assert expected.max() == 65535
    np.testing.assert_array_equal(run(tmp_path / "c.onnx", x=x), expected)


def test_weights_stay_outside_where_they_were_or_have_no_room(dense, tmp_path, monkeypatch):
    model = tiny_models.external_weights(tmp_path / "e.onnx")
    result = convert_onnx(model, tmp_path / "c.onnx", {"precision": "fp16"})
    assert result.external_data == tmp_path / "c.onnx.data"
    assert result.total_bytes == sum(f.stat().st_size for f in tmp_path.glob("c.onnx*"))
    assert result.weight_bytes_after * 2 == result.weight_bytes_before
    again = convert_onnx(dense, tmp_path / "c.onnx", {"precision": "fp16"})
    assert again.external_data is None
    assert not (tmp_path / "c.onnx.data").exists()
    monkeypatch.setattr(onnx_file, "_MAX_INLINE_BYTES", 100)
    assert convert_onnx(dense, tmp_path / "c.onnx", {"opset": 20}).external_data is not None
    json.dumps(again.to_dict())


def test_dimensions_and_inputs_are_fixed_in_the_file(tmp_path):
    model = tiny_models.conv(tmp_path / "m.onnx")
    dims = {"batch": 2, "height": 5}
    convert_onnx(model, tmp_path / "c.onnx", {"dims": dims, "precision": "fp32"})
    shapes = [value.shape for value in read_model(tmp_path / "c.onnx").graph.inputs]
    assert list(map(str, shapes)) == ["[2,3,5,width]"]
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[4] x, float s) => (float[4] y) { y = Mul (x, s) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "s.onnx")
    convert_onnx(tmp_path / "s.onnx", tmp_path / "c.onnx", {"fixed_inputs": {"s": 2.5}})
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(run(tmp_path / "c.onnx", x=x), x * 2.5)


@pytest.mark.backend
def test_lowered_it_needs_no_more_passes(tmp_path):
    """Resize with antialiasing, which the parser refuses, and what it says of a dynamic one."""
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[1,1,n,m] x) => (float[1,1,p,q] y) <float[4] s = {1.0, 1.0, 0.6, 0.7}>
        { y = Resize <antialias = 1, mode = "linear"> (x, , s) }"""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), model)
    config = {"lower": True, "precision": "fp32", "dims": {"n": 10, "m": 20}}
    result = convert_onnx(model, tmp_path / "c.onnx", config, backend="rtx")
    assert result.passes[0]["nodes"] == {"Resize": 1}
    assert result.refused == ()
    assert result.backend.startswith("rtx 1.")
    x = np.random.default_rng(0).standard_normal((1, 1, 10, 20), np.float32)
    np.testing.assert_allclose(run(tmp_path / "c.onnx", x=x), run(model, x=x), atol=1e-6)
    left = convert_onnx(model, tmp_path / "d.onnx", {"lower": True}, backend="rtx")
    assert "Antialiasing is not supported" in left.refused[0]


@pytest.mark.parametrize(
    ("config", "backend", "message"),
    [
        ({}, None, "nothing to convert"),
        ({"io_precision": "fp16"}, None, "nothing to convert"),
        ({"precision": "tf32"}, None, "precision 'tf32' is none of: fp32, fp16, bf16$"),
        ({"precision": "fp8"}, None, "it is a format to quantize to"),
        ({"quantize": "fp16"}, None, "quantize 'fp16' is none of: int8, fp8, int8-weights"),
        ({"quantize": "fp8"}, None, "precision fp8 needs the ranges of the activations"),
        ({"presision": "fp16"}, None, "did you mean precision"),
        ({"opset": "17"}, None, "opset: not a whole number: '17'"),
        ({"opset": True}, None, "opset: not a whole number: True"),
        ({"lower": "yes"}, None, "lower: not True or False: 'yes'"),
        ({"dims": [("batch", 1)]}, None, "dims: not a mapping of names to extents"),
        ({"dims": {1: 2}}, None, "dims: not the name of a dimension: 1"),
        ({"opset": 12}, None, "opset 12: models are converted to opsets 13 to"),
        ({"dims": {"batch": 0}}, None, "dimension 'batch': 0 is not one extent"),
        ({"dims": {"batsh": 1}}, None, "did you mean 'batch'"),
        ({"fixed_inputs": "h=1"}, None, "'h' is not an input of the model"),
        ({"opset": 20, "keep_fp32": "op:Gemm"}, None, "keep_fp32: no effect, because the types"),
        ({"precision": "fp16", "keep_fp32": "zz"}, None, "pattern 'zz' matches no node"),
        (
            {"quantize": "int8-weights", "io_precision": "fp16"},
            None,
            "io_precision: no effect",
        ),
        ({"precision": "fp16"}, "rtx", "backend: no effect on a file for any tool"),
        ("fp16", None, "config: not a ConversionConfig: 'fp16'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(dense, tmp_path, config, backend, message):
    with pytest.raises(SpecError, match=message):
        convert_onnx(dense, tmp_path / "c.onnx", config, backend=backend)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_file_that_is_read_is_not_written(dense, cache, tmp_path):
    model = tiny_models.external_weights(tmp_path / "e.onnx")
    config = ConversionConfig(
        quantize="int8", quantization=QuantizationSpec(calibration_cache=cache)
    )
    (weights,) = (f for f in onnx_file.model_files(model, read_model(model)) if f != model)
    for read, output in ((model, model), (model, weights), (dense, cache)):
        before = output.read_bytes()
        with pytest.raises(SpecError, match="it is one of the files to read"):
            convert_onnx(read, output, config)
        assert output.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["\udcff.onnx", "a" * 300, "a" * 252], ids=["bytes", "long", "data"]
)
def test_names_that_cannot_be_are_refused(dense, tmp_path, name):
    with pytest.raises(SpecError, match=r"cannot write .*(not UTF-8|File name too long)"):
        convert_onnx(dense, tmp_path / name, {"precision": "fp16"})
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_types_that_the_model_has_are_not_taken_back(dense, tmp_path):
    convert_onnx(dense, tmp_path / "h.onnx", {"precision": "fp16", "io_precision": "fp16"})
    assert {v.dtype.name for v in read_model(tmp_path / "h.onnx").graph.inputs} == {"FLOAT16"}
    for precision in ("fp32", "bf16"):
        with pytest.raises(SpecError, match=f"float16 types, which precision {precision} does not"):
            convert_onnx(tmp_path / "h.onnx", tmp_path / "c.onnx", {"precision": precision})
    convert_onnx(tmp_path / "h.onnx", tmp_path / "c.onnx", {"quantize": "int8-weights"})
    with pytest.raises(SpecError, match="has Q/DQ nodes already"):
        convert_onnx(tmp_path / "c.onnx", tmp_path / "d.onnx", {"quantize": "int8-weights"})


def test_operators_of_sequences_that_did_not_change_are_lowered(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x) => (float[4,3] y) {
            e = SequenceEmpty () s = SequenceInsert (e, x) t = SequenceInsert (s, x)
            y = ConcatFromSequence <axis = 0> (t)
        }"""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), model)
    result = convert_onnx(model, tmp_path / "c.onnx", {"opset": 13})
    onnx.checker.check_model(str(result.path), full_check=True)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(result.path, x=x), run(model, x=x))


@pytest.mark.parametrize("config", [{"precision": "fp16"}, {"precision": "fp32"}, {"opset": 17}])
def test_weights_of_the_oldest_files_need_not_be_inputs(tmp_path, config):
    """Until IR version 3 every initializer is an input, too."""
    text = """<ir_version: 3, opset_import: ["": 11]>
        g (float[2,3] x, float[3] w) => (float[2,3] y) <float[3] w = {1.5, 2.0, 3.0}>
        { y = Mul (x, w) }"""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), model)
    result = convert_onnx(model, tmp_path / "c.onnx", config)
    onnx.checker.check_model(str(result.path), full_check=True)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(result.path, x=x), run(model, x=x))


def test_no_file_is_left_of_a_model_that_changed_meanwhile(tmp_path, monkeypatch):
    model = tiny_models.external_weights(tmp_path / "e.onnx")
    select = convert.select_passes

    def meddle(*args):
        os.utime(model, ns=(1, 1))
        return select(*args)

    monkeypatch.setattr(convert, "select_passes", meddle)
    with pytest.raises(ModelError, match=r"e\.onnx changed while c\.onnx was written"):
        convert_onnx(model, tmp_path / "c.onnx", {"precision": "fp16"})
    assert not list(tmp_path.glob("c.onnx*"))
