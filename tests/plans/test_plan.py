"""Plans as files: saved, loaded and checked against their manifests."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.header_plans import plan_bytes

from trt_native.errors import PlanError
from trt_native.plans.plan import Plan

FACTS = "96 B, m.onnx, fp16, rtx 1.6.1.120"


def test_round_trip_is_exact(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    assert path.read_bytes() == plan.data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]
    loaded = Plan.load(path)
    assert loaded.data == plan.data
    assert loaded.manifest == plan.manifest


@pytest.mark.parametrize("data", [b"", b"vtrt", b"ONNX" * 20, bytes(100)])
def test_files_that_are_not_plans(tmp_path, data):
    path = tmp_path / "m.plan"
    path.write_bytes(data)
    with pytest.raises(PlanError, match="not a TensorRT plan"):
        Plan.load(path)


def test_truncated_without_a_manifest(tmp_path, plan):
    path = tmp_path / "m.plan"
    path.write_bytes(plan.data[:-5])
    with pytest.raises(PlanError, match=f"says {len(plan.data)} bytes, the file has"):
        Plan.load(path)


def test_one_flipped_bit_is_noticed(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    damaged = bytearray(plan.data)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(PlanError, match="SHA-256 differs"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "schema"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1}', "malformed"),
    ],
)
def test_broken_manifests(tmp_path, plan, text, message):
    path = plan.save(tmp_path / "m.plan")
    (tmp_path / "m.plan.json").write_text(text)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def test_missing(tmp_path):
    with pytest.raises(PlanError, match="cannot read"):
        Plan.load(tmp_path / "none.plan")


def test_saving_without_a_manifest_removes_the_old_one(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    dataclasses.replace(plan, manifest=None).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.plan"]


def test_a_link_has_the_manifest_of_its_target(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    link = tmp_path / "link.plan"
    link.symlink_to(path.name)
    assert Plan.load(link).manifest == plan.manifest
    (tmp_path / "m.plan.json").unlink()
    assert Plan.load(link).manifest is None


def test_a_full_disk_leaves_nothing(small_disk, plan):
    with pytest.raises(PlanError, match=r"No space left on device.*no partial file was written"):
        Plan(plan_bytes(payload=bytes(1 << 20)), plan.manifest).save(small_disk / "m.plan")
    assert list(small_disk.iterdir()) == []


def test_a_manifest_can_be_ignored(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    for text in ("{", json.dumps(dict(plan.manifest.to_json(), plan_sha256="0" * 64))):
        (tmp_path / "m.plan.json").write_text(text)
        with pytest.raises(PlanError, match="or ignore"):
            Plan.load(path)
        loaded = Plan.load(path, ignore_manifest=True)
        assert (loaded.data, loaded.manifest) == (plan.data, None)


def test_a_plan_describes_itself(tmp_path, plan):
    hostile = dataclasses.replace(plan.manifest.tensors[0], name="<b>x\n")
    manifest = dataclasses.replace(plan.manifest, tensors=(hostile,))
    plan = dataclasses.replace(plan, manifest=manifest, path=tmp_path / "m.plan")
    assert repr(plan) == f"Plan({str(tmp_path / 'm.plan')!r}, {FACTS})"
    assert repr(dataclasses.replace(plan, manifest=None, path=None)) == "Plan(96 B)"
    first, second = plan.summary().splitlines()
    assert first == f"{str(tmp_path / 'm.plan')!r}, {FACTS}"
    assert second == r"  input  <b>x\n: float16 batch x 3 (1x3:2x3:4x3)"
    assert "&lt;b&gt;x" in plan._repr_html_()
    assert repr(manifest) == f"Manifest({FACTS.partition(', ')[2]})"
