"""The configuration file for DeepStream, against the keys that its documentation lists."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re

import pytest
from helpers.made_plans import make_plan, tensor
from helpers.program import trt_native

from trt_native.deploy.deepstream import (
    DeepStreamConfig,
    NetworkType,
    deepstream_config,
    deploy_deepstream,
)
from trt_native.errors import SpecError, UnsupportedError

# "Property Group Supported Keys" of
# https://docs.nvidia.com/metropolis/deepstream/dev-guide/text/DS_plugin_gst-nvinfer.html,
# as far as a plan has to do with them: the type and range that the table gives.
INTEGER, FLOAT = r"\d+", r"\d+(\.\d+)?(e-?\d+)?"
KEYS = {
    "gie-unique-id": r"[1-9]\d*",
    "process-mode": "[12]",
    "gpu-id": INTEGER,
    "model-engine-file": r"[^;\n]+",
    "labelfile-path": r"[^;\n]+",
    "batch-size": r"[1-9]\d*",
    "network-mode": "[012]",
    "infer-dims": rf"{INTEGER};{INTEGER};{INTEGER}",
    "model-color-format": "[012]",
    "net-scale-factor": FLOAT,
    "offsets": rf"{FLOAT}(;{FLOAT})*",
    "maintain-aspect-ratio": "[01]",
    "network-type": "[0123]|100",
    "num-detected-classes": r"[1-9]\d*",
    "output-blob-names": r"[^;\n]+(;[^;\n]+)*",
    "output-tensor-meta": "[01]",
    "custom-lib-path": r"/[^;\n]+",
    "parse-bbox-func-name": r"\w+",
    "parse-bbox-instance-mask-func-name": r"\w+",
    "parse-classifier-func-name": r"\w+",
}

IMAGE = tensor("images", "input", "float32", "1x3x320x320:4x3x640x640:8x3x640x960")
OUT = tensor("output0", "output", "float32", shape=(-1, 84, -1))
BOXES = tensor("output_bbox/BiasAdd", "output", "float32", shape=(-1, 4, 34, 60))
COVERAGE = tensor("output_cov/Sigmoid", "output", "float16", shape=(-1, 1, 34, 60))


def read(text):
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str
    parser.read_string(text)
    assert parser.sections() == ["property"]
    found = dict(parser["property"])
    for key, value in found.items():
        assert re.fullmatch(KEYS[key], value), (key, value)
    return found


def configure(*tensors, precision=None, **options):
    config = DeepStreamConfig(name="m", **options)
    model = deepstream_config(tensors, config, precision=precision)
    return read(model.config), model


def test_outputs_as_tensor_meta():
    found, model = configure(IMAGE, OUT, precision="fp16")
    assert found == {
        "gie-unique-id": "1",
        "process-mode": "1",
        "gpu-id": "0",
        "model-engine-file": "model.plan",
        "batch-size": "8",
        "infer-dims": "3;640;640",
        "model-color-format": "0",
        "net-scale-factor": "1.0",
        "maintain-aspect-ratio": "0",
        "network-type": "100",
        "output-blob-names": "output0",
        "output-tensor-meta": "1",
        "network-mode": "2",
    }
    assert (model.labels, model.batch) == (None, 8)


def test_preprocessing():
    found, _ = configure(
        IMAGE, OUT, color="bgr", scale=0.017352, offsets=(123.675, 116.28, 103.53),
        batch=2, size=(320, 960), keep_aspect_ratio=True, unique_id=3, gpu=1, precision="bf16",
    )  # fmt: skip
    assert found["model-color-format"] == "1"
    assert float(found["net-scale-factor"]) == 0.017352
    assert [float(x) for x in found["offsets"].split(";")] == [123.675, 116.28, 103.53]
    assert found["infer-dims"] == "3;320;960"
    assert (found["batch-size"], found["gie-unique-id"], found["gpu-id"]) == ("2", "3", "1")
    assert found["maintain-aspect-ratio"] == "1"
    assert "network-mode" not in found
    gray = tensor("x", "input", "float32", shape=(4, 1, 28, 28))
    static = tensor("y", "output", "float32", shape=(4, 10))
    found, model = configure(gray, static, precision="int8")
    assert (found["model-color-format"], found["infer-dims"]) == ("2", "1;28;28")
    assert (found["network-mode"], model.batch) == ("1", 4)


def test_types_of_networks():
    labels = ("person", "traffic light")
    found, model = configure(
        IMAGE, BOXES, COVERAGE, network_type=NetworkType.DETECTOR, labels=labels, tensor_meta=False
    )
    assert (found["network-type"], found["num-detected-classes"]) == ("0", "2")
    assert found["output-blob-names"] == "output_bbox/BiasAdd;output_cov/Sigmoid"
    assert (found["output-tensor-meta"], model.labels) == ("0", "person\ntraffic light\n")
    found, model = configure(IMAGE, OUT, network_type=NetworkType.CLASSIFIER, labels=labels)
    assert (found["network-type"], model.labels) == ("1", "person;traffic light\n")
    assert "num-detected-classes" not in found
    found, _ = configure(IMAGE, OUT, network_type=NetworkType.SEGMENTATION, labels=labels)
    assert found["network-type"] == "2"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (NetworkType.DETECTOR, "parse-bbox-func-name"),
        (NetworkType.INSTANCE_SEGMENTATION, "parse-bbox-instance-mask-func-name"),
        (NetworkType.CLASSIFIER, "parse-classifier-func-name"),
    ],
)
def test_functions_that_parse(tmp_path, kind, key):
    options = {"network_type": kind, "labels": ("a",)}
    if kind is not NetworkType.CLASSIFIER:
        with pytest.raises(SpecError, match=r"no parser of its own .* \(output0\)"):
            configure(IMAGE, OUT, **options)
    library = tmp_path / "libparse.so"
    found, _ = configure(IMAGE, OUT, **options, custom_library=library, parse_function="parse")
    assert (found["custom-lib-path"], found[key]) == (str(library), "parse")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ((IMAGE, tensor("s", "input", "float32", shape=(1,)), OUT), "it has 2 inputs"),
        ((tensor("x", "input", "float32", shape=(1, 3)), OUT), "'x' has 2 axes instead of"),
        ((tensor("x", "input", "float32", shape=(1, 8, 8, 3)), OUT), "'x' has 8 channels"),
        ((tensor("x", "input", "float16", shape=(1, 3, 8, 8)), OUT), "'x' is float16"),
        ((dataclasses.replace(IMAGE, format="HWC8"), OUT), "'images' has the layout HWC8"),
        ((IMAGE, dataclasses.replace(OUT, dtype="int64")), "'output0' is int64"),
        ((IMAGE, dataclasses.replace(OUT, alias="images")), "in the memory of input 'images'"),
        ((IMAGE, dataclasses.replace(OUT, name="a;b")), "'a;b' has a name"),
        (
            (tensor("x", "input", "float32", shape=(1, 3, 8, 8)), OUT),
            "the shape of output 'output0' depends on data",
        ),
        (
            (IMAGE, dataclasses.replace(OUT, data_dependent=True)),
            "the shape of output 'output0' depends on data",
        ),
    ],
    ids=str,
)
def test_plans_that_nvinfer_cannot_run(tensors, problem):
    with pytest.raises(UnsupportedError, match="Gst-nvinfer cannot run this plan") as caught:
        configure(*tensors)
    assert problem in str(caught.value.problems)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "names a folder"),
        ({"color": "cmyk"}, "'cmyk' is none of: rgb, bgr, gray"),
        ({"color": "gray"}, "gray has 1 channels, and input 'images' has 3"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": float("nan")}, "scale nan"),
        ({"offsets": (1.0,)}, "1 offsets: there are 3 channels"),
        ({"offsets": (1.0, 2.0, float("inf"))}, "must be finite"),
        ({"batch": 9}, "batch 9: the plan's first profile has 1 to 8"),
        ({"batch": 0}, "batch 0"),
        ({"size": (640, 1000)}, "size 640x1000: the plan's first profile has 320x320 to 640x960"),
        ({"unique_id": 0}, "counts from 1"),
        ({"gpu": -1}, "counts from 0"),
        ({"tensor_meta": False}, "reach nobody"),
        ({"network_type": NetworkType.CLASSIFIER}, "a classifier needs labels"),
        ({"labels": ("a;b",)}, "label 'a;b'"),
        ({"parse_function": "f"}, "give both, or neither"),
        ({"parse_function": "f", "custom_library": "l.so"}, "no parse function for other"),
    ],
    ids=str,
)
def test_requests_that_do_not_fit(options, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        deepstream_config((IMAGE, OUT), DeepStreamConfig(**{"name": "m", **options}))


def test_plans_of_tensorrt_rtx_are_refused(tmp_path):
    plan = make_plan(tmp_path / "m.plan", (IMAGE, OUT))
    rtx = dataclasses.replace(plan, data=b"vtrt" + bytes(plan.data[4:]))
    with pytest.raises(UnsupportedError, match=r"this one is for TensorRT-RTX .*; build it with"):
        deploy_deepstream(rtx, tmp_path / "out", DeepStreamConfig(name="m"))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    make_plan(tmp_path / "net.plan", (IMAGE, OUT))
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    command = ("deploy", "deepstream", "net.plan", "-o", "models")
    result = trt_native(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "TensorRT 10.16.1.11" in result.stdout
    folder = tmp_path / "models" / "net"
    assert sorted(p.name for p in folder.iterdir()) == ["config_infer.txt", "model.plan"]
    assert (folder / "model.plan").samefile(tmp_path / "net.plan")
    options = ("--network-type", "classifier", "--labels", "names.txt", "--offset", 1, "--offset")
    more = (*command, *options, 2, "--offset", 3, "--size", "320x320", "--scale", 0.5)
    refused = trt_native(*more, cwd=tmp_path)
    assert refused.returncode == 1
    assert "already exists and differs (config_infer.txt" in refused.stderr
    result = trt_native(*more, "--force", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["config"] == (folder / "config_infer.txt").read_text()
    found = read(report["config"])
    assert (found["offsets"], found["infer-dims"]) == ("1.0;2.0;3.0", "3;320;320")
    assert (folder / found["labelfile-path"]).read_text() == "cat;dog\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network-type", "gan"), "is none of: detector"),
        (("--size", "640"), "write HxW"),
        (("--labels", "none.txt"), "cannot read none.txt: No such file"),
    ],
)
def test_bad_options(tmp_path, options, message):
    make_plan(tmp_path / "m.plan", (IMAGE, OUT))
    result = trt_native("deploy", "deepstream", "m.plan", "-o", "models", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "models").exists()


def test_ultralytics_metadata(tmp_path):
    plan = make_plan(tmp_path / "m.plan", (IMAGE, OUT))
    metadata = json.dumps({"task": "detect", "names": {"0": "person", "1": "car"}}).encode()
    content = len(metadata).to_bytes(4, "little") + metadata + bytes(plan.data)
    (tmp_path / "yolo.engine").write_bytes(content)
    (tmp_path / "m.plan.json").rename(tmp_path / "yolo.engine.json")
    result = trt_native(
        "deploy", "deepstream", "yolo.engine", "-o", "models", "--json", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (tmp_path / "models/yolo/model.plan").read_bytes() == bytes(plan.data)
    assert report["labels"] == "person\ncar\n"
    assert float(read(report["config"])["net-scale-factor"]) == 1 / 255
