"""Which machines load a plan, and the reasons against it."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from helpers.header_plans import ADA, plan_bytes

from trt_native.plans.compatibility import compatibility
from trt_native.plans.header import PlanHeader
from trt_native.plans.host_code import LEAN_RUNTIME, HostCode

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
        ((10, 3, 0, 26), "10.16.1.11", {"version_compatible": False}, False),
    ],
)
def test_versions_of_tensorrt(plan, built, here, options, loads):
    header = PlanHeader.parse(plan_bytes(b"ftrt", built))
    environment = dataclasses.replace(TENSORRT, libraries={"TensorRT": here})
    manifest = dataclasses.replace(plan.manifest, options=options)
    carried = HostCode(
        carried=(LEAN_RUNTIME,) * bool(options.get("version_compatible")), allowed=True
    )
    assert compatibility(header, manifest, environment, carried).loads == loads


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


@pytest.mark.parametrize(("system", "loads"), [("linux", False), ("win32", True)])
def test_plans_for_windows(plan, monkeypatch, system, loads):
    monkeypatch.setattr(sys, "platform", system)
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 16, 1, 11)))
    report = check(plan, TENSORRT, header, options={"runtime_platform": "windows_amd64"})
    assert report.loads == loads
    assert loads or "for Windows on x86_64" in report.errors[0]


def test_another_gpu_of_the_same_kind_is_a_warning(plan):
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 16, 1, 11)))
    report = check(plan, TENSORRT, header, gpu="NVIDIA RTX 6000 Ada")
    assert report.warnings == (
        "it was built and tuned on NVIDIA RTX 6000 Ada, and may be slower on NVIDIA L4"
        " (compute capability 8.9)",
    )
