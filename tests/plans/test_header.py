"""The first bytes of a plan, and the TensorRT that they name."""

from __future__ import annotations

import pytest
from helpers.header_plans import plan_bytes

from trt_native.plans.header import PlanHeader


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
