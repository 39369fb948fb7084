"""The lean runtime in a plan: where its table of sections names it, and who may run it."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from helpers.header_plans import ADA, ENGINE, LEAN, LIBRARY, WEIGHTS, plan_bytes, section_plan

from trt_native.plans.compatibility import compatibility
from trt_native.plans.header import PlanHeader
from trt_native.plans.host_code import HEAD_BYTES, LEAN_RUNTIME, PLUGINS, HostCode, carried_code
from trt_native.plans.plan import Plan

CARRYING, PLAIN = section_plan(LEAN, ENGINE, WEIGHTS), section_plan(ENGINE, WEIGHTS)
WITH_PLUGINS = section_plan(LIBRARY, ENGINE, WEIGHTS)
RUNTIME = (LEAN_RUNTIME,)


@pytest.mark.parametrize(
    ("data", "carried"),
    [
        (CARRYING, RUNTIME),
        (PLAIN, ()),
        (section_plan(ENGINE, (b"THGW", b"")), ()),
        (CARRYING + b"NAEL", RUNTIME),
        (WITH_PLUGINS, (PLUGINS,)),
        (section_plan(LIBRARY, LEAN, ENGINE), (LEAN_RUNTIME, PLUGINS)),
        (CARRYING[:-1], None),  # a section ends behind the plan
        (CARRYING[:70], None),
        (plan_bytes(b"ftrt", payload=bytes(200)), None),  # no sections
        (struct.pack("<4s4xQ", b"ftrt", 2**63).ljust(200, b"\0"), None),
        (PLAIN.replace(struct.pack("<Q", 64 + 48), bytes(8)), None),  # a section in the header
        (b"ftrt", None),
    ],
)
def test_the_table_of_sections(data, carried):
    assert carried_code(data[:HEAD_BYTES], len(data)) == carried


SERIALIZED = {"plugins": ["libx.so"], "serialize_plugins": True}


@pytest.mark.parametrize(
    ("data", "options", "asked", "expected"),
    [
        (CARRYING, None, {}, HostCode(carried=RUNTIME)),
        (CARRYING, None, {"allow_host_code": True}, HostCode(carried=RUNTIME, allowed=True)),
        (PLAIN, None, {}, HostCode(carried=())),
        (plan_bytes(b"ftrt"), None, {}, HostCode(carried=None)),
        (CARRYING, {}, {}, HostCode(carried=RUNTIME)),
        (WITH_PLUGINS, {}, {}, HostCode(carried=(PLUGINS,))),
        (WITH_PLUGINS, SERIALIZED, {}, HostCode(carried=(PLUGINS,), allowed=True)),
        (WITH_PLUGINS, {"version_compatible": True}, {}, HostCode(carried=(LEAN_RUNTIME, PLUGINS))),
        (CARRYING, SERIALIZED, {}, HostCode(carried=(PLUGINS, LEAN_RUNTIME))),
        (CARRYING, {"version_compatible": True}, {}, HostCode(carried=RUNTIME, allowed=True)),
        (
            PLAIN,
            {"version_compatible": True, "exclude_lean_runtime": True},
            {},
            HostCode(carried=(), allowed=True),
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
        (OWN, {"carried": ()}, None, ()),
        (OWN, {"carried": None}, None, ()),
        (
            OWN,
            {"carried": RUNTIME},
            "carries TensorRT's lean runtime, code that",
            ("allow_host_code",),
        ),
        (OWN, {"carried": RUNTIME, "allowed": True}, None, ()),
        (LATER, {"carried": RUNTIME}, "carries TensorRT's lean runtime", ("allow_host_code",)),
        (LATER, {"carried": RUNTIME, "allowed": True}, None, ()),
        (LATER, {"carried": ()}, "may have been built version compatible", ("lean_runtime",)),
        (LATER, {"carried": (), "allowed": True}, "may have been", ("lean_runtime",)),
        (LATER, {"carried": (), "lean_runtime": LIBRARY}, None, ()),
        (LATER, {"carried": None}, "if it was built version compatible", ("allow_host_code",)),
        (LATER, {"carried": None, "allowed": True}, None, ()),
        ("10.2.0.1", {"carried": RUNTIME, "allowed": True}, "load in later versions only", ()),
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
    without = HostCode(carried=(), allowed=True)
    report = compatibility(header, manifest, environment, without)
    assert "it was built version compatible without its lean runtime" in report.errors[0]
    given = dataclasses.replace(without, lean_runtime=LIBRARY)
    assert compatibility(header, manifest, environment, given).loads


@pytest.mark.parametrize("product", ["TensorRT", "TensorRT-RTX"])
def test_libraries_of_plugins_in_a_plan(product):
    tag, version = (b"ftrt", (10, 3, 0, 26)) if product == "TensorRT" else (b"vtrt", (1, 6, 1, 120))
    header = PlanHeader.parse(plan_bytes(tag, version))
    environment = dataclasses.replace(ADA, libraries={product: header.version_text}, targets={})
    report = compatibility(header, None, environment, HostCode(carried=(PLUGINS,)))
    assert (
        "it carries a library of plugins, code that would run in this process" in report.errors[0]
    )
    assert report.options == ("allow_host_code",)
    allowed = HostCode(carried=(PLUGINS,), allowed=True)
    report = compatibility(header, None, environment, allowed)
    assert report.loads
    assert report.warnings[0] == "it carries a library of plugins, whose code is run"
