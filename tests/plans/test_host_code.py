"""The lean runtime in a plan: where its table of sections names it, and who may run it."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from helpers.header_plans import ADA, ENGINE, LEAN, WEIGHTS, plan_bytes, section_plan

from trt_native.plans.compatibility import compatibility
from trt_native.plans.header import PlanHeader
from trt_native.plans.host_code import HEAD_BYTES, HostCode, carries_lean_runtime
from trt_native.plans.plan import Plan

CARRYING, PLAIN = section_plan(LEAN, ENGINE, WEIGHTS), section_plan(ENGINE, WEIGHTS)


@pytest.mark.parametrize(
    ("data", "carried"),
    [
        (CARRYING, True),
        (PLAIN, False),
        (section_plan(ENGINE, (b"THGW", b"")), False),
        (CARRYING + b"NAEL", True),
        (CARRYING[:-1], None),  # a section ends behind the plan
        (CARRYING[:70], None),
        (plan_bytes(b"ftrt", payload=bytes(200)), None),  # no sections
        (struct.pack("<4s4xQ", b"ftrt", 2**63).ljust(200, b"\0"), None),
        (PLAIN.replace(struct.pack("<Q", 64 + 48), bytes(8)), None),  # a section in the header
        (b"ftrt", None),
    ],
)
def test_the_table_of_sections(data, carried):
    assert carries_lean_runtime(data[:HEAD_BYTES], len(data)) is carried


@pytest.mark.parametrize(
    ("data", "options", "asked", "expected"),
    [
        (CARRYING, None, {}, HostCode(carried=True)),
        (CARRYING, None, {"allow_host_code": True}, HostCode(carried=True, allowed=True)),
        (PLAIN, None, {}, HostCode(carried=False)),
        (plan_bytes(b"ftrt"), None, {}, HostCode(carried=None)),
        (CARRYING, {}, {}, HostCode(carried=True)),
        (CARRYING, {"version_compatible": True}, {}, HostCode(carried=True, allowed=True)),
        (
            PLAIN,
            {"version_compatible": True, "exclude_lean_runtime": True},
            {},
            HostCode(carried=False, allowed=True),
        ),
    ],
)
@pytest.mark.parametrize("load", [Plan.load, Plan.open])
def test_the_manifest_or_the_caller_allows_it(tmp_path, plan, load, data, options, asked, expected):
    saved = Plan(data, None)
    if options is not None:
        manifest = dataclasses.replace(
            plan.manifest, plan_sha256=saved.sha256, plan_bytes=len(data), options=options
        )
        saved = Plan(data, manifest)
    path = saved.save(tmp_path / "m.plan")
    assert load(path, **asked).host_code == expected
    if options:
        assert not load(path, ignore_manifest=True).host_code.allowed


OWN, LATER = "10.3.0.26", "11.4.0.106"
LIBRARY = "libnvinfer_lean.so.10"


@pytest.mark.parametrize(
    ("version", "host_code", "error", "options"),
    [
        (OWN, {"carried": False}, None, ()),
        (OWN, {"carried": None}, None, ()),
        (OWN, {"carried": True}, "carries the lean runtime of TensorRT 10.3", ("allow_host_code",)),
        (OWN, {"carried": True, "allowed": True}, None, ()),
        (LATER, {"carried": True}, "carries the lean runtime", ("allow_host_code",)),
        (LATER, {"carried": True, "allowed": True}, None, ()),
        (LATER, {"carried": False}, "may have been built version compatible", ("lean_runtime",)),
        (LATER, {"carried": False, "allowed": True}, "may have been", ("lean_runtime",)),
        (LATER, {"carried": False, "lean_runtime": LIBRARY}, None, ()),
        (LATER, {"carried": None}, "if it was built version compatible", ("allow_host_code",)),
        (LATER, {"carried": None, "allowed": True}, None, ()),
        ("10.2.0.1", {"carried": True, "allowed": True}, "load in later versions only", ()),
    ],
)
def test_plans_of_other_tools(version, host_code, error, options):
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 3, 0, 26)))
    environment = dataclasses.replace(ADA, libraries={"TensorRT": version}, targets={})
    report = compatibility(header, None, environment, HostCode(**host_code))
    assert report.options == options
    assert len(report.errors) == (error is not None)
    assert error is None or error in report.errors[0]
    carried = bool(host_code["carried"]) and host_code.get("allowed", False) and error is None
    assert any("whose code is run" in warning for warning in report.warnings) == carried


def test_a_plan_that_its_manifest_says_to_lack_its_lean_runtime(plan):
    header = PlanHeader.parse(plan_bytes(b"ftrt", (10, 3, 0, 26)))
    environment = dataclasses.replace(ADA, libraries={"TensorRT": LATER}, targets={})
    options = {"version_compatible": True, "exclude_lean_runtime": True}
    manifest = dataclasses.replace(plan.manifest, options=options)
    without = HostCode(carried=False, allowed=True)
    report = compatibility(header, manifest, environment, without)
    assert "it was built version compatible without its lean runtime" in report.errors[0]
    given = dataclasses.replace(without, lean_runtime=LIBRARY)
    assert compatibility(header, manifest, environment, given).loads
