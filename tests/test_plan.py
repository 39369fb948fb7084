from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import subprocess

import pytest

from trt_native.errors import PlanError, SpecError
from trt_native.plan import Manifest, Plan, PlanHeader, PlanTensor, check_writable, replacing
from trt_native.spec import ShapeRange


def plan_bytes(tag=b"vtrt", version=(1, 6, 1, 120), payload=b"payload " * 8):
    """The layout of a plan's first bytes; the rest is anything."""
    length = 32 + len(payload)
    return struct.pack("<4s12xQ4B4x", tag, length, *version) + payload


@pytest.fixture
def plan():
    data = plan_bytes()
    manifest = Manifest(
        producer="trt-native 0.1.0",
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        backend="rtx",
        backend_version="1.6.1.120",
        gpu=None,
        compute_capabilities=("8.9",),
        driver=None,
        model={"file": "m.onnx", "sha256": "0" * 64, "bytes": 9, "external": []},
        tensors=(
            PlanTensor(
                "x",
                "input",
                "float16",
                (-1, 3),
                ("batch", None),
                (ShapeRange.parse("1x3:2x3:4x3"),),
            ),
            PlanTensor("y", "output", "float32", (), ()),
        ),
        precision={"requested": "auto", "applied": "fp16"},
        options={"refit": True},
        seconds={"build": 1.5},
        created="2026-01-01T00:00:00+00:00",
    )
    return Plan(data, manifest)


def test_round_trip_is_exact(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    assert path.read_bytes() == plan.data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]
    loaded = Plan.load(path)
    assert loaded.data == plan.data
    assert loaded.manifest == plan.manifest


def test_manifest_json_is_stable(plan):
    data = plan.manifest.to_json()
    assert next(iter(data)) == "schema"
    assert data["tensors"][0]["profiles"] == ["1x3:2x3:4x3"]
    assert Manifest.from_json(json.loads(json.dumps(data))) == plan.manifest


def test_header(plan):
    header = plan.header
    assert (header.product, header.version_text) == ("TensorRT-RTX", "1.6.1.120")
    assert header.declared_bytes == len(plan.data)
    assert PlanHeader.parse(plan_bytes(b"ftrt", (10, 16, 1, 11))).product == "TensorRT"


@pytest.mark.parametrize(
    ("product", "version", "fits"),
    [
        ("TensorRT-RTX", "1.6.1.120", True),
        ("TensorRT-RTX", "1.6.1.376", True),  # the header keeps the build number modulo 256
        ("TensorRT-RTX", "1.7.1.116", False),
        ("TensorRT", "1.6.1.120", False),
    ],
)
def test_an_rtx_plan_fits_its_own_version_only(plan, product, version, fits):
    assert (plan.header.mismatch(product, version) is None) == fits


def test_a_tensorrt_plan_may_be_version_compatible_within_its_major_version():
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 3, 0, 26)))
    assert header.mismatch("TensorRT", "10.16.1.11") is None
    assert "built by TensorRT 10.3.0.26" in header.mismatch("TensorRT", "11.4.0.106")


@pytest.mark.parametrize("data", [b"", b"vtrt", b"ONNX" * 20, bytes(100)])
def test_what_is_no_plan(tmp_path, data):
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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing(tmp_path, plan):
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", full],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(PlanError, match=r"No space left on device.*nothing was left"):
            Plan(plan_bytes(payload=bytes(1 << 20)), plan.manifest).save(full / "m.plan")
        assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", full], check=True)  # noqa: S607


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new.plan")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpecError, match="No such file"):
        check_writable(tmp_path / "missing" / "m.plan")
    with pytest.raises(SpecError, match="is a folder"):
        check_writable(tmp_path)
