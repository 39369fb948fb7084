"""Plans with metadata in front, in the layout that Ultralytics' exporter writes."""

from __future__ import annotations

import json

import pytest
from helpers.header_plans import plan_bytes
from helpers.made_plans import STATIC, make_plan

from trt_native.errors import PlanError
from trt_native.inspection import read_report
from trt_native.plans.plan import Plan
from trt_native.plans.prefix import describe_prefix

METADATA = {"stride": 32, "task": "detect", "names": {"0": "person"}, "imgsz": [640, 640]}


def exported(path, text, plan):
    with path.open("wb") as file:  # as engine/exporter.py does
        file.write(len(text).to_bytes(4, byteorder="little", signed=True))
        file.write(text)
        file.write(plan)
    return path


@pytest.fixture
def plan():
    return plan_bytes(payload=b"payload " * 40)


@pytest.mark.parametrize("size", [0, 300])  # 379 bytes begin with the byte of an opening brace
def test_the_plan_and_the_metadata_are_told_apart(tmp_path, plan, size):
    metadata = {**METADATA, "description": "x" * size}
    text = json.dumps(metadata).encode()
    if size:
        text = text.ljust(379 if len(text) < 379 else 379 + 256)
        assert len(text).to_bytes(4, "little")[:1] == b"{"
    path = exported(tmp_path / "yolo.engine", text, plan)
    loaded = Plan.load(path)
    assert bytes(loaded.data) == plan
    assert loaded.prefix == metadata
    report = read_report(path)
    assert report.prefix == metadata
    assert report.plan_bytes == len(plan)
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report

    loaded.save(tmp_path / "yolo.plan")
    assert (tmp_path / "yolo.plan").read_bytes() == plan
    assert Plan.load(tmp_path / "yolo.plan").prefix is None


def test_the_commands_read_it(tmp_path, plan, main_in_process):
    path = exported(tmp_path / "yolo.engine", json.dumps(METADATA).encode(), plan)
    code, out, _ = main_in_process("inspect", path)
    assert code == 0
    assert "in front: task" in out
    assert "0: person" in out
    code, out, _ = main_in_process("inspect", path, "--html", tmp_path / "page.html")
    assert "<dt>in front: imgsz</dt><dd>640, 640</dd>" in (tmp_path / "page.html").read_text()
    code, out, _ = main_in_process("doctor", path)
    assert "in front: stride" in out
    code, out, _ = main_in_process("doctor", path, "--json")
    assert json.loads(out)["bytes"] == len(plan)
    assert json.loads(out)["prefix"] == METADATA
    other = exported(tmp_path / "other.engine", json.dumps({"stride": 16}).encode(), plan)
    code, out, _ = main_in_process("diff", path, other, "--json")
    assert code == 1
    assert {
        "section": "plan", "name": "in front: stride", "left": "32", "right": "16"
    } in json.loads(out)["differences"]  # fmt: skip


def test_long_and_deep_metadata_is_shortened():
    names = {str(number): f"class {number}" for number in range(80)}
    deep = json.loads("[" * 500 + "]" * 500)
    found = dict(describe_prefix({"names": names, "deep": deep, "half": True, "none": {}}))
    assert found == {
        "in front: names": "80: 0: class 0, 1: class 1, 2: class 2, ... 79: class 79",
        "in front: deep": "...",
        "in front: half": "true",
        "in front: none": "",
    }
    assert list(describe_prefix(None)) == []


def with_manifest(path, tag=b"ftrt", version=(10, 16, 1, 11)):
    plan = make_plan(path, STATIC, tag=tag, version=version)
    data = bytes(plan.data)
    exported(path, json.dumps(METADATA).encode(), data)
    return data


def test_triton_gets_the_plan_alone(tmp_path, main_in_process):
    plan = with_manifest(tmp_path / "yolo.engine")
    repository = tmp_path / "models"
    arguments = ("deploy", "triton", tmp_path / "yolo.engine", "--repository", repository)
    code, out, error = main_in_process(*arguments, "--json")
    assert code == 0, error
    assert (repository / "yolo" / "1" / "model.plan").read_bytes() == plan
    assert json.loads(out)["linked"] is False


def test_trtexec_gets_a_file_with_the_plan_alone(tmp_path, main_in_process):
    plan = with_manifest(tmp_path / "yolo.engine")
    arguments = ("deploy", "trtexec", tmp_path / "yolo.engine")
    code, _, error = main_in_process(*arguments)
    assert code == 1
    assert "there is metadata in front of the plan, which trtexec does not read" in error
    assert "(--output)" in error
    alone = tmp_path / "yolo.plan"
    code, out, _ = main_in_process(*arguments, "-o", alone)
    assert code == 0
    assert f"--loadEngine={alone}" in out
    assert alone.read_bytes() == plan
    assert Plan.load(alone).manifest == Plan.load(tmp_path / "yolo.engine").manifest


@pytest.mark.parametrize("text", [b"not JSON", b"[1, 2]", b"\xff\xfe", b"[" * 100_000])
def test_other_bytes_in_front(tmp_path, plan, text):
    path = exported(tmp_path / "yolo.engine", text, plan)
    with pytest.raises(PlanError, match=r"yolo\.engine: the \d+ bytes in front of the plan are"):
        Plan.load(path)


@pytest.mark.parametrize("cut", [3, 40, -200])
def test_files_cut_short(tmp_path, plan, cut):
    whole = exported(tmp_path / "yolo.engine", json.dumps(METADATA).encode(), plan).read_bytes()
    (tmp_path / "cut.engine").write_bytes(whole[:cut])
    with pytest.raises(PlanError, match=r"cut\.engine: (not a TensorRT plan|damaged)"):
        Plan.load(tmp_path / "cut.engine")
