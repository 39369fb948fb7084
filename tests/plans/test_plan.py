from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_native import files
from trt_native.cli.rebuild_command import rebuild_command
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    ProfilingVerbosity,
    QuantizationSpec,
)
from trt_native.errors import PlanError, SpecError
from trt_native.files import atomic_write, check_writable, remove_temporaries
from trt_native.plans.compatibility import Environment, compatibility
from trt_native.plans.header import PlanHeader
from trt_native.plans.manifest import Manifest, PlanTensor, find_model
from trt_native.plans.plan import Plan
from trt_native.shapes import ProfileSpec, ShapeRange


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
        passes=({"name": "autocast", "summary": "fp16: 2 nodes", "nodes": {"Conv": 2}},),
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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with atomic_write(path) as file:
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
        with pytest.raises(
            PlanError, match=r"No space left on device.*no partial file was written"
        ):
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


ADA = Environment(
    libraries={"TensorRT-RTX": "1.6.1.120"},
    targets={"TensorRT-RTX": ("8.6", "8.9")},
    gpu="NVIDIA L4",
    compute_capability="8.9",
    driver="13.0",
    total_bytes=24 << 30,
    free_bytes=20 << 30,
)
TENSORRT = dataclasses.replace(ADA, libraries={"TensorRT": "10.16.1.11"}, targets={})


def check(plan, environment, header=None, **changes):
    manifest = dataclasses.replace(plan.manifest, **changes)
    return compatibility(header or plan.header, manifest, environment)


def test_a_plan_at_home_loads_without_warnings(plan):
    report = compatibility(plan.header, plan.manifest, ADA)
    assert report.loads
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("environment", "changes", "error"),
    [
        ({"libraries": {}}, {}, "needs TensorRT-RTX 1.6.1.120, which is not installed"),
        ({"libraries": {"TensorRT": "11.1.0"}}, {}, "found: TensorRT 11.1.0"),
        ({"libraries": {"TensorRT-RTX": "1.7.1.116"}}, {}, "built by TensorRT-RTX 1.6.1.120"),
        ({"gpu": None, "compute_capability": None}, {}, "needs a GPU"),
        ({"compute_capability": "8.6"}, {}, "for compute capability 8.9, this GPU is NVIDIA L4"),
        ({"total_bytes": 100}, {"plan_bytes": 2000}, "the GPU has 100 B of memory"),
    ],
)
def test_errors_that_prevent_loading(plan, environment, changes, error):
    report = check(plan, dataclasses.replace(ADA, **environment), **changes)
    assert not report.loads
    assert len(report.errors) == 1
    assert error in report.errors[0]


@pytest.mark.parametrize(
    ("environment", "changes", "warning"),
    [
        ({"compute_capability": "9.0"}, {"compute_capabilities": ()}, "does not officially"),
        ({"driver": "12.8"}, {"driver": "13.0"}, "a driver for CUDA 13.0, here it is for CUDA"),
        ({"free_bytes": 100}, {"plan_bytes": 2000}, "2.0 KiB, the GPU has 100 B free"),
        ({}, {"options": {"strip_weights": True}}, "refit it before it is run"),
    ],
)
def test_warnings(plan, environment, changes, warning):
    report = check(plan, dataclasses.replace(ADA, **environment), **changes)
    assert report.loads
    assert len(report.warnings) == 1
    assert warning in report.warnings[0]


def test_streamed_weights_need_not_fit(plan):
    small = dataclasses.replace(ADA, total_bytes=100, free_bytes=10)
    assert check(plan, small, plan_bytes=2000, options={"weight_streaming": True}).loads


@pytest.mark.parametrize(
    ("built", "here", "options", "loads"),
    [
        ((10, 16, 1, 11), "10.16.1.11", {}, True),
        ((10, 3, 0, 26), "10.16.1.11", {}, False),
        ((10, 3, 0, 26), "10.16.1.11", {"version_compatible": True}, True),
        ((10, 3, 0, 26), "11.1.0.106", {"version_compatible": True}, True),
        ((11, 1, 0, 106), "10.16.1.11", {"version_compatible": True}, False),
        ((10, 3, 0, 26), "10.16.1.11", None, True),  # not known: a warning
        ((10, 3, 0, 26), "11.1.0.106", None, False),
    ],
)
def test_versions_of_tensorrt(plan, built, here, options, loads):
    header = PlanHeader.parse(plan_bytes(b"ftrt", built))
    environment = dataclasses.replace(TENSORRT, libraries={"TensorRT": here})
    if options is None:
        report = compatibility(header, None, environment)
        assert any("version compatible" in warning for warning in report.warnings) == loads
    else:
        report = check(plan, environment, header, options=options)
    assert report.loads == loads


@pytest.mark.parametrize(
    ("built", "here", "compatible_with", "loads"),
    [
        ("8.9", "8.9", "none", True),
        ("8.6", "8.9", "none", False),
        ("8.0", "8.9", "ampere_plus", True),
        ("8.9", "7.5", "ampere_plus", False),
        ("8.6", "8.9", "same_compute_capability", False),
    ],
)
def test_hardware_compatibility(plan, built, here, compatible_with, loads):
    report = check(
        plan,
        dataclasses.replace(TENSORRT, compute_capability=here),
        PlanHeader.parse(plan_bytes(b"ftrt", (10, 16, 1, 11))),
        compute_capabilities=(built,),
        options={"hardware_compatibility": compatible_with},
    )
    assert report.loads == loads


def test_another_gpu_of_the_same_kind_is_a_warning(plan):
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 16, 1, 11)))
    report = check(plan, TENSORRT, header, gpu="NVIDIA RTX 6000 Ada")
    assert report.warnings == (
        "it was built and tuned on NVIDIA RTX 6000 Ada, and may be slower on NVIDIA L4"
        " (compute capability 8.9)",
    )


def test_the_rebuild_command_has_every_option(plan, tmp_path):
    """Parsed by the real command line, it gives the configuration that the manifest records."""
    from typer.main import get_command

    from trt_native.cli.app import app

    config = BuildConfig(
        profiles=(ProfileSpec.parse(["a b=1:2:4"], ["x=1x1:2x1:4x1"]),),
        add_opt_shape_profiles=True,
        precision=Precision.INT8,
        quantization=QuantizationSpec(
            calibration_data="my data",
            calibration_method=CalibrationMethod.MSE,
            ops=("Conv", "MatMul"),
            exclude=("*/to_out*", "op:Gemm"),
            preset="diffusion-unet",
            min_coverage=0.25,
        ),
        io_precision=IoPrecision.FP32,
        keep_fp32=("*/norm*", "op:Resize; rm -rf"),
        workspace_bytes=1 << 30,
        optimization_level=2,
        max_aux_streams=1,
        tf32=False,
        sparse_weights=True,
        refit=True,
        strip_weights=True,
        weight_streaming=True,
        version_compatible=True,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        compute_capabilities=("8.6", "8.9"),
        timing_cache=tmp_path / "timing.cache",
        profiling_verbosity=ProfilingVerbosity.NONE,
    )
    assert set(config.options()) == set(BuildConfig.__dataclass_fields__)
    manifest = dataclasses.replace(plan.manifest, options=json.loads(json.dumps(config.options())))
    words = shlex.split(rebuild_command(manifest, tmp_path / "it's.plan"))
    assert words[:2] == ["trt-native", "build"]
    command = get_command(app).commands["build"]
    given = command.make_context("build", words[2:]).params
    assert given["output"] == tmp_path / "it's.plan"
    assert given["model"] == tmp_path / "m.onnx"
    assert ProfileSpec.parse(given["dims"], given["shapes"]) == config.profiles[0]
    spelled = {"workspace": "workspace_bytes", "compute_capability": "compute_capabilities"}
    repeated = {spelled.get(name, name): value for name, value in given.items()}
    options = config.options()
    options |= options.pop("quantization") | {"ops": "Conv,MatMul"}
    for name, value in options.items():
        if name == "timing_cache":
            assert repeated[name] is None
        elif name == "workspace_bytes":
            assert int(repeated[name]) == value
        elif name != "profiles":
            found = repeated[name]
            assert (list(found) if isinstance(value, list) else found) == value


def test_several_profiles_go_into_a_file(plan, tmp_path):
    from trt_native.graph.dims import read_profile_file

    profiles = tuple(ProfileSpec.parse([f"b={n}"], ["it's=1x2:1x3:1x4"]) for n in ("1", "2:4:8"))
    options = json.loads(json.dumps(BuildConfig(profiles=profiles).options()))
    manifest = dataclasses.replace(plan.manifest, options=options)
    command = rebuild_command(manifest, tmp_path / "m.plan")
    write, build = command.split(" && ")
    subprocess.run(["bash", "-c", write], check=True)  # noqa: S607
    file = Path(shlex.split(build)[-1])
    assert shlex.split(build)[-2] == "--profile"
    assert read_profile_file(file) == profiles


def test_a_rebuild_is_for_the_gpu_that_is_here(plan, tmp_path):
    manifest = dataclasses.replace(plan.manifest, options={"compute_capabilities": ["8.6"]})
    manifest = dataclasses.replace(manifest, compute_capabilities=("8.6",))
    assert rebuild_command(manifest, tmp_path / "m.plan", ADA).endswith("compute-capability 8.9")
    here = dataclasses.replace(ADA, compute_capability="8.6")
    assert rebuild_command(manifest, tmp_path / "m.plan", here).endswith("compute-capability 8.6")


@pytest.mark.parametrize(
    "options", [{"profiles": [3]}, {"profiles": [{"dims": [1]}]}, {"output": "/etc/passwd"}]
)
def test_options_that_are_none_are_no_command(plan, tmp_path, options):
    manifest = dataclasses.replace(plan.manifest, options=options)
    with pytest.raises(PlanError, match="malformed manifest: "):
        rebuild_command(manifest, tmp_path / "m.plan")


def test_the_model_is_looked_for_beside_the_plan_alone(plan, tmp_path):
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


def test_a_manifest_can_be_ignored(tmp_path, plan):
    path = plan.save(tmp_path / "m.plan")
    for text in ("{", json.dumps(dict(plan.manifest.to_json(), plan_sha256="0" * 64))):
        (tmp_path / "m.plan.json").write_text(text)
        with pytest.raises(PlanError, match="or ignore"):
            Plan.load(path)
        loaded = Plan.load(path, ignore_manifest=True)
        assert (loaded.data, loaded.manifest) == (plan.data, None)


class TestTemporaries:
    @pytest.fixture(params=["unnamed", "named"])
    def unnamed(self, request, monkeypatch):
        if request.param == "named":  # as on a filesystem that has no files without a name
            monkeypatch.setattr(files, "_open_unnamed", lambda folder: None)
        elif files._open_unnamed(Path(tempfile.gettempdir())) is None:
            pytest.skip("the filesystem of the temporary folder has no files without a name")
        return request.param == "unnamed"

    def test_a_file_appears_when_it_is_complete(self, tmp_path, unnamed):
        path = tmp_path / "m.plan"
        path.write_bytes(b"old")
        with atomic_write(path) as file:
            file.write(b"new")
            file.flush()
            assert (os.listdir(tmp_path) == ["m.plan"]) == unnamed
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["m.plan"]

    def test_its_mode_is_that_of_any_new_file(self, tmp_path, unnamed):
        before = os.umask(0o027)
        try:
            with atomic_write(tmp_path / "m.plan") as file:
                file.write(b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "m.plan").stat().st_mode) == 0o640

    def test_temporaries_of_a_dead_process_are_found_by_their_tag(self, tmp_path):
        # Ended without cleaning up, on a filesystem that needs names.
        script = (
            "import os, sys; from pathlib import Path; from trt_native import files\n"
            "files._open_unnamed = lambda folder: None\n"
            "files.set_temporary_tag(sys.argv[1])\n"
            "with files.atomic_write(Path(sys.argv[2])) as file: os._exit(0)"
        )
        for token in ("aaaa", "bbbb"):
            subprocess.run([sys.executable, "-c", script, token, tmp_path / "m.plan"], check=True)
        (tmp_path / "m.plan").touch()
        assert len(os.listdir(tmp_path)) == 3
        remove_temporaries(tmp_path, "aaaa")
        (left,) = set(os.listdir(tmp_path)) - {"m.plan"}
        assert ".bbbb-" in left
        remove_temporaries(tmp_path / "none", "aaaa")
