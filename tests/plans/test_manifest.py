"""The manifest's JSON Schema, and the promise that it makes to readers."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import jsonschema
import pytest
from helpers import DATA

from trt_native.backends.base import NUMPY_DTYPES
from trt_native.errors import PlanError
from trt_native.plans.manifest import MANIFEST_SCHEMA, Manifest, PlanTensor, find_model
from trt_native.shapes import ShapeRange

GOLDEN = json.loads((DATA / "plan_manifest_2.json").read_text())
# What readers of schema 2 rely on. A change here without a new number breaks them.
REQUIRED = {
    "": "schema producer plan_sha256 plan_bytes backend backend_version gpu compute_capabilities"
    " driver model tensors precision passes options seconds created",
    "model": "file bytes sha256 external",
    "external": "file bytes sha256",
    "precision": "requested applied",
    "pass": "name summary",
    "tensor": "name mode dtype shape dims profiles values",
}


def objects(schema):
    model = schema["properties"]["model"]
    return {
        "": schema,
        "model": model,
        "external": model["properties"]["external"]["items"],
        "precision": schema["properties"]["precision"],
        "pass": schema["properties"]["passes"]["items"],
        "tensor": schema["$defs"]["tensor"],
    }


def test_the_schema_is_itself_valid_and_numbered(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["enum"] == [2, MANIFEST_SCHEMA]
    assert schema["$id"].endswith(f":{MANIFEST_SCHEMA}")


def test_readers_of_schema_2_are_kept(schema):
    assert MANIFEST_SCHEMA == 3, "copy the golden file and REQUIRED for the new number"
    assert {name: set(o["required"]) for name, o in objects(schema).items()} == {
        name: set(names.split()) for name, names in REQUIRED.items()
    }
    closed = {name for name, o in objects(schema).items() if o["additionalProperties"] is False}
    assert closed == {"external", "tensor"}
    for name in closed:
        new = {"alias", "format", "data_dependent"} if name == "tensor" else set()
        assert set(objects(schema)[name]["properties"]) - new == set(REQUIRED[name].split())


@pytest.mark.parametrize(
    ("index", "name", "value"),
    [(2, "alias", "x"), (0, "format", "HWC8"), (2, "data_dependent", True)],
)
def test_schema_3_is_for_plans_that_readers_of_schema_2_would_feed_wrongly(
    validator, index, name, value
):
    data = copy.deepcopy(GOLDEN)
    data["tensors"][index][name] = value
    if name == "alias":
        data["tensors"][index] |= {"dtype": "float32", "shape": data["tensors"][0]["shape"]}
        data["tensors"][index] |= {"dims": []}
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(data)
    manifest = Manifest.from_json({**data, "schema": 3})
    assert getattr(manifest.tensors[index], name) == value
    document = manifest.to_json()
    assert document == {**data, "schema": 3}
    validator.validate(document)


@pytest.mark.parametrize(
    ("index", "alias"), [(0, "size"), (2, "y"), (2, "x"), (2, 3), (2, "nothing")]
)
def test_an_alias_is_an_input_like_the_output(index, alias):
    data = copy.deepcopy(GOLDEN)
    data["tensors"][index]["alias"] = alias
    with pytest.raises(PlanError, match="alias"):
        Manifest.from_json({**data, "schema": 3})


@pytest.mark.parametrize("value", [False, 1, "yes", None])
def test_a_shape_is_data_dependent_or_nothing_is_said(value):
    data = copy.deepcopy(GOLDEN)
    data["tensors"][2]["data_dependent"] = value
    with pytest.raises(PlanError, match="data_dependent of tensor"):
        Manifest.from_json({**data, "schema": 3})


def test_the_golden_manifest_of_schema_2_stays_valid_and_loads_the_same(validator):
    validator.validate(GOLDEN)
    manifest = Manifest.from_json(GOLDEN)
    assert manifest.tensors == (
        PlanTensor(
            "x",
            "input",
            "float32",
            (-1, 3, -1, 8),
            ("batch", None, "height", "width"),
            (
                ShapeRange((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 16, 8)),
                ShapeRange((8, 3, 8, 8), (8, 3, 8, 8), (8, 3, 8, 8)),
            ),
        ),
        PlanTensor(
            "size",
            "input",
            "int64",
            (2,),
            (None,),
            values=(ShapeRange((1, 2), (2, 4), (4, 8)), ShapeRange((1, 2), (1, 2), (1, 2))),
        ),
        PlanTensor("y", "output", "float16", ()),
    )
    assert manifest.compute_capabilities == ("8.6", "8.9")
    assert manifest.model["external"][0]["bytes"] == 864
    assert manifest.to_json() == GOLDEN


def test_open_objects_take_more_and_readers_ignore_it(validator):
    more = copy.deepcopy(GOLDEN)
    more["quantization"] = more["precision"]["int8"] = {"scales": 3}
    more["options"]["new_option"] = more["model"]["opset"] = 17
    more["seconds"]["retry"] = 1.5
    validator.validate(more)
    assert Manifest.from_json(more).tensors == Manifest.from_json(GOLDEN).tensors


def test_a_manifest_without_export_metadata_has_none():
    assert "metadata" not in GOLDEN["model"]
    assert Manifest.from_json(GOLDEN).metadata == {}


def test_the_element_types_are_those_of_the_backends(schema):
    assert set(schema["$defs"]["tensor"]["properties"]["dtype"]["enum"]) == set(
        NUMPY_DTYPES.values()
    )


def changed(path, value):
    data = copy.deepcopy(GOLDEN)
    *parents, last = path
    node = data
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(((name,), None) for name in REQUIRED[""].split()),
        *((("model", name), None) for name in REQUIRED["model"].split()),
        *((("precision", name), None) for name in REQUIRED["precision"].split()),
        *((("tensors", 0, name), None) for name in REQUIRED["tensor"].split()),
        (("schema",), 4),
        (("tensors", 0, "mode"), "inout"),
        (("tensors", 0, "shape"), [-2]),
        (("tensors", 0, "shape"), "1x3"),
        (("tensors", 0, "profiles"), ["1:2"]),
        (("tensors", 0), "x"),
        (("model", "external", 0), "weights.bin"),
        (("model", "external", 0, "sha256"), None),
        (("plan_bytes",), "12"),
        (("model",), "m.onnx"),
        (("model", "metadata"), []),
        (("model", "metadata"), {"trt_native.config": {}}),
        (("tensors",), {}),
        (("options",), []),
        (("gpu",), 7),
        *((("precision", "engine_layers"), odd) for odd in (5, "x", [], {"layers": "x"})),
        *((("precision", "engine_layers"), {"layers": 3, name: 5}) for name in ("int8", "fp8")),
    ],
    ids=str,
)
def test_values_that_the_schema_and_the_reader_both_refuse(validator, path, value):
    data = changed(path, value)
    assert not validator.is_valid(data)
    with pytest.raises(PlanError, match="manifest"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tensors", 0, "profiles"), ["1x3x8x8"]),  # the other input has two
        (("tensors", 0, "profiles"), ["1x3x8", "1x3x8"]),
        (("tensors", 0, "profiles"), []),
        (("tensors", 0, "dims"), ["batch"]),
        (("producer",), "half a pair: \ud800"),
    ],
    ids=str,
)
def test_contradictions_that_only_the_reader_sees(path, value):
    with pytest.raises(PlanError, match="malformed manifest"):
        Manifest.from_json(changed(path, value))


@pytest.mark.parametrize("name", ["/etc/passwd", "../m.onnx", "a/../../m.onnx", "C:m", "a\\b", ""])
def test_file_names_stay_in_their_folder(validator, name):
    assert not validator.is_valid(changed(("model", "file"), name))
    assert not validator.is_valid(changed(("model", "external", 0, "file"), name))


def test_manifest_json_is_stable(plan):
    data = plan.manifest.to_json()
    assert next(iter(data)) == "schema"
    assert data["tensors"][0]["profiles"] == ["1x3:2x3:4x3"]
    assert Manifest.from_json(json.loads(json.dumps(data))) == plan.manifest


def test_the_model_is_looked_for_next_to_the_plan_only(plan, tmp_path):
    (tmp_path / "a").mkdir()
    outside = tmp_path / "m.onnx"
    outside.write_bytes(b"outside")
    where = tmp_path / "a" / "m.plan"

    def look(name):
        return find_model(dataclasses.replace(plan.manifest, model={**model, "file": name}), where)

    model = {"bytes": 7, "sha256": hashlib.sha256(b"outside").hexdigest(), "external": []}
    for name in ("../m.onnx", str(outside), "b/../../m.onnx"):
        assert look(name) == (
            None,
            f"{name!r} lies outside the plan's folder, which is not followed",
        )
    (tmp_path / "a" / "link.onnx").symlink_to(outside)
    assert look("link.onnx")[0] is None
    assert "is not next to the plan" in look("m.onnx")[1]
    inside = tmp_path / "a" / "m.onnx"
    inside.write_bytes(b"outside")
    assert look("m.onnx") == (inside, "m.onnx next to it is the file that it was built from")
    inside.write_bytes(b"changed")
    assert look("m.onnx") == (inside, "m.onnx next to it has changed since the plan was built")
    with pytest.raises(PlanError, match="cannot read"):
        look("m\0.onnx")
