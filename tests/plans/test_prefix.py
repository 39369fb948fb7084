"""Plans with metadata in front, in the layout that Ultralytics' exporter writes."""

from __future__ import annotations

import json

import pytest
from helpers.header_plans import plan_bytes

from trt_native.errors import PlanError
from trt_native.inspection import read_report
from trt_native.plans.plan import Plan

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
    assert '{"0": "person"}' in out
    code, out, _ = main_in_process("doctor", path, "--json")
    assert json.loads(out)["bytes"] == len(plan)


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
