"""``trt-native doctor`` of this machine and of plans."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.header_plans import ADA, ENGINE, LEAN, section_plan
from helpers.program import DIMS, HAS_GPU, trt_native
from helpers.program import failing as fails


def test_doctor_prints_a_summary():
    result = trt_native("doctor", "--json")
    findings = json.loads(result.stdout)
    assert findings["packages"]["numpy"] == np.__version__
    assert result.returncode == (0 if findings["can_build"] else 1)
    assert (findings["gpu"] is not None) == HAS_GPU
    assert findings["summary"]


@pytest.mark.backend
class TestDoctorOfAPlan:
    @pytest.fixture
    def plan(self, model, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        from trt_native import BuildConfig, ProfileSpec, build_plan

        profile = ProfileSpec.parse(DIMS[1::2])
        built = build_plan(model, BuildConfig(profiles=(profile,)), backend="rtx")
        return built.save(tmp_path / "my plan.plan")

    def test_it_prints_the_verdict(self, plan):
        result = trt_native("doctor", plan)
        assert result.returncode == (0 if HAS_GPU else 1)
        assert result.stderr == ""
        assert "TensorRT-RTX" in result.stdout
        verdict = result.stdout.strip().splitlines()[-1]
        # Where there is no GPU, no other plan would load either.
        assert verdict == "Loads here." if HAS_GPU else "- loading a plan needs a GPU" in verdict

    def test_the_command_that_builds_a_damaged_plan_again(self, plan, tmp_path):
        plan.write_bytes(plan.read_bytes()[:-1])
        command = trt_native("doctor", plan).stdout.strip().splitlines()[-1].strip()
        before = json.loads((tmp_path / "my plan.plan.json").read_text())
        plan.unlink()
        subprocess.run(
            ["bash", "-c", command.replace("trt-native", f"{sys.executable} -m trt_native", 1)],  # noqa: S607
            check=True,
            capture_output=True,
        )
        after = json.loads((tmp_path / "my plan.plan.json").read_text())
        assert after["options"] == before["options"]
        assert after["tensors"] == before["tensors"]

    def test_a_damaged_plan_can_be_built_again(self, plan):
        data = bytearray(plan.read_bytes())
        data[-1] ^= 1
        plan.write_bytes(data)
        result = trt_native("doctor", plan, "--json")
        findings = json.loads(result.stdout)
        assert result.returncode == 1
        assert not findings["loads"]
        assert "SHA-256 differs" in findings["errors"][0]
        assert findings["rebuild"].startswith("trt-native build ")
        for command in ("inspect", "run"):
            arguments = ("--random", "0") if command == "run" else ()
            assert "SHA-256 differs" in fails(command, plan, *arguments)

    def test_a_foreign_plan(self, plan, tmp_path):
        (tmp_path / "my plan.plan.json").unlink()
        findings = json.loads(trt_native("doctor", plan, "--json").stdout)
        assert findings["rebuild"] is None
        assert findings["made_by"].startswith("TensorRT-RTX")
        (tmp_path / "my plan.plan.json").write_text("another tool's")
        assert "cannot be read" in trt_native("doctor", plan).stdout
        assert "cannot be read" not in trt_native("doctor", plan, "--no-manifest").stdout

    def test_no_plan(self, tmp_path):
        assert "No such file" in fails("doctor", tmp_path / "none.plan")
        (tmp_path / "text").write_text("hello")
        assert "not a TensorRT plan" in trt_native("doctor", tmp_path / "text").stdout


def test_a_plan_that_carries_code(tmp_path, main_in_process, monkeypatch):
    here = dataclasses.replace(ADA, libraries={"TensorRT": "11.4.0.106"}, targets={})
    monkeypatch.setattr("trt_native.cli.doctor._environment", lambda: here)
    path = tmp_path / "m.plan"
    path.write_bytes(section_plan(LEAN, ENGINE))
    code, out, _ = main_in_process("doctor", path)
    assert code == 1
    assert "- it carries TensorRT's lean runtime, code that would run" in out
    assert "- to load it: --allow-host-code\n" in out
    code, out, _ = main_in_process("doctor", path, "--allow-host-code")
    assert code == 0
    assert "Loads here." in out
    assert "- note: it carries TensorRT's lean runtime, whose code is run" in out
    path.write_bytes(section_plan(ENGINE))
    code, out, _ = main_in_process("doctor", path, "--json")
    assert json.loads(out)["options"] == ["--lean-runtime FILE"]
    code, out, _ = main_in_process("doctor", path, "--lean-runtime", tmp_path / "lean.so")
    assert code == 0
