"""Layers as TensorRT's engine inspector writes them, and how plans are compared."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from helpers.made_plans import LAYERS, STATIC, TWO, X, Y, make_plan

from trt_native.errors import PlanError, SpecError
from trt_native.inspection import (
    Difference,
    LayerTensor,
    PlanReport,
    diff_plans,
    inspect_plan,
    parse_layers,
    precision_mix,
    read_layer_times,
    read_report,
)


def with_layers(report, layers):
    return dataclasses.replace(report, raw_layers=layers, layers_error=None)


@pytest.fixture
def report(tmp_path):
    return inspect_plan(make_plan(tmp_path / "m.plan", (X, Y), options={"refit": True}))


def test_parse_layers():
    conv, cast, name = parse_layers(LAYERS)
    assert (conv.name, conv.kind, conv.precision) == ("conv1 + relu1", "CaskConvolution", "fp16")
    assert conv.tactic == "sm80_xmma_fprop_implicit_gemm"
    assert conv.inputs == (LayerTensor("x", "int8", (16, 512, 28, 28)),)
    assert conv.outputs == (LayerTensor("a", "fp16", (16, 256, 28, 28)),)
    assert cast.inputs == (LayerTensor("a", "fp16", None),)
    assert (cast.precision, cast.tactic) == ("unknown", None)
    assert (name.kind, name.precision, name.outputs) == ("", "unknown", ())
    assert precision_mix((conv, cast, name)) == {"unknown": 2, "fp16": 1}


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("FP8", "fp8"),
        ("E4M3 FP8", "fp8"),
        ("Int64", "int64"),
        ("UInt8", "uint8"),
        ("Bool", "bool"),
    ],
)
def test_precisions(text, precision):
    layer = {"Name": "l", "Outputs": [{"Name": "y", "Format/Datatype": text}]}
    assert parse_layers([layer])[0].precision == precision
    layer["Outputs"][0] = {"Name": "y", "Format": "Row major", "Datatype": text}
    assert parse_layers([layer])[0].precision == precision


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (None, ()),
        ("y", ()),
        (["y"], (LayerTensor("y", "unknown", None),)),
        ([{"Name": "y", "Dimensions": None}], (LayerTensor("y", "unknown", None),)),
        ([{"Name": "y", "Dimensions": [2, "n"]}], (LayerTensor("y", "unknown", None),)),
        ([{"Dimensions": [], "Datatype": None}], (LayerTensor("", "unknown", ()),)),
    ],
)
def test_missing_inspector_fields(tensors, expected):
    assert parse_layers([{"Name": "l", "Inputs": tensors}])[0].inputs == expected


def test_a_report_survives_json(report, tmp_path):
    full = with_layers(report, LAYERS)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(full.to_json()))
    assert read_report(path) == full


@pytest.mark.parametrize("change", [{"tensors": 3}, {"layers": ["x"]}, {"layers": 3}])
def test_files_that_are_not_reports(report, tmp_path, change):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**report.to_json(), **change}))
    with pytest.raises(PlanError, match="not a report"):
        read_report(path)
    for text, message in (("{", "nor JSON"), ("{}", "not a report"), ("x", "not a TensorRT plan")):
        path.write_text(text)
        with pytest.raises(PlanError, match=message):
            read_report(path)


def test_the_same_plan(report):
    found = diff_plans(report, report)
    assert (found.differences, found.same_bytes, found.not_compared) == ((), True, ())


def test_differences_by_section(report, tmp_path):
    other = make_plan(
        tmp_path / "other.plan",
        (dataclasses.replace(X, dtype="float16"), *STATIC[1:]),
        version=(10, 16, 1, 12),
        options={"refit": True, "tf32": False},
        precision={"requested": "fp32", "applied": "fp32"},
    )
    found = diff_plans(report, inspect_plan(other))
    assert found.differences == (
        Difference("plan", "made by", "TensorRT 10.16.1.11", "TensorRT 10.16.1.12"),
        Difference("options", "precision applied", "fp16", "fp32"),
        Difference("options", "tf32", None, "false"),
        Difference(
            "tensors",
            "input x",
            "float32 n x 3 x h x 8 1x3x8x8:4x3x16x8:8x3x32x8",
            "float16 n x 3 x h x 8 1x3x8x8:4x3x16x8:8x3x32x8",
        ),
        Difference("tensors", "output y", "float16 n x 5", "int64 2 x 3"),
    )
    assert found.same_bytes is False
    assert found.not_compared[0].startswith("layers: ")


def test_layers_that_appear_go_and_change(report):
    layers = copy.deepcopy(LAYERS)
    layers[0]["TacticName"] = "another"
    del layers[2]
    layers.append(layers[1])
    found = diff_plans(with_layers(report, LAYERS), with_layers(report, layers))
    assert {(d.name, d.left, d.right) for d in found.differences} == {
        (
            "layer conv1 + relu1",
            "CaskConvolution fp16 sm80_xmma_fprop_implicit_gemm",
            "CaskConvolution fp16 another",
        ),
        ("layer only a name", "unknown", None),
        ("layer __myl_Cast #2", None, "kgen unknown"),
    }


def test_sections_that_cannot_be_compared(report, tmp_path):
    without_manifest = make_plan(tmp_path / "f.plan", (TWO,), version=(10, 1, 0, 0))
    without_manifest = inspect_plan(dataclasses.replace(without_manifest, manifest=None))
    found = diff_plans(report, without_manifest)
    assert [d.name for d in found.differences] == ["made by"]
    assert [line.split(":")[0] for line in found.not_compared] == [
        "model and options",
        "tensors",
        "layers",
    ]


def test_times_of_layers(tmp_path):
    path = tmp_path / "times.json"
    trtexec = [{"count": 9}, {"name": "a", "timeMs": 90, "averageMs": 10.5, "medianMs": 10.25}]
    for data, expected in (
        (trtexec, {"a": 10.25}),
        ({"layers": [{"name": "a", "mean_ms": 1, "median_ms": 2}, {"name": "b"}]}, {"a": 2.0}),
    ):
        path.write_text(json.dumps(data))
        assert read_layer_times(path) == expected
    for text in ("{", "[]", "{}", '{"layers": 3}', '[{"name": "a", "timeMs": 9}]'):
        path.write_text(text)
        with pytest.raises(SpecError, match=r"not JSON|no layer times"):
            read_layer_times(path)
    with pytest.raises(SpecError, match="cannot read"):
        read_layer_times(tmp_path / "none")


def test_a_report_is_complete_without_a_gpu(report):
    assert isinstance(report, PlanReport)
    assert report.tensors == (X, Y)
    assert report.layers is None
    assert report.layers_error
