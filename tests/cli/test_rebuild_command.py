"""The command line that builds a plan again, from its manifest."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.header_plans import ADA, header_plan

from trt_native.cli.rebuild_command import rebuild_command
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    ProfilingVerbosity,
    QuantizationSpec,
    RuntimePlatform,
)
from trt_native.errors import PlanError
from trt_native.shapes import ProfileSpec


@pytest.fixture
def plan():
    return header_plan()


def test_the_rebuild_command_has_every_option(plan, tmp_path):
    """Parsed by the real command line, it gives the configuration that the manifest records."""
    from typer.main import get_command

    from trt_native.cli.app import app

    config = BuildConfig(
        profiles=(ProfileSpec.parse(["a b=1:2:4"], ["x=1x1:2x1:4x1"]),),
        fixed_inputs={"sr": 16000, "a=b": True, "rate": -0.5},
        add_opt_shape_profiles=True,
        fast_at=[{"batch": 2, "height": 8}, "x=1x3x8x8"],
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
        io_formats=("x=hwc8", "y=chw32"),
        keep_fp32=("*/norm*", "op:Resize; rm -rf"),
        break_fusions=("/norm/out put", "x"),
        workspace_bytes=1 << 30,
        optimization_level=2,
        max_aux_streams=1,
        tf32=False,
        sparse_weights=True,
        refit=True,
        refit_weights=("w*",),
        strip_weights=True,
        weight_streaming=True,
        in_place_caches=True,
        plugins=("libx.so", "plugins.py:register"),
        replacement_map=tmp_path / "map.json",
        serialize_plugins=True,
        version_compatible=True,
        exclude_lean_runtime=True,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        runtime_platform=RuntimePlatform.WINDOWS_AMD64,
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
        elif name == "replacement_map":
            assert str(repeated[name]) == value
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
def test_malformed_options_give_no_command(plan, tmp_path, options):
    manifest = dataclasses.replace(plan.manifest, options=options)
    with pytest.raises(PlanError, match="malformed manifest: "):
        rebuild_command(manifest, tmp_path / "m.plan")
