"""Kernels that plans of TensorRT-RTX list, against the models that they were built from."""

from __future__ import annotations

import random

import pytest
from helpers.page_models import blocks_model

from trt_native import BuildConfig, Plan, ProfileSpec, build_plan
from trt_native.graph.onnx_file import save_temporary
from trt_native.plans import stored_kernels as module
from trt_native.plans.engine_layers import parse_layers, precision_mix
from trt_native.plans.stored_kernels import stored_kernels

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of three blocks in several precisions, in files."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("plans")
    save_temporary(blocks_model(3, 64), folder / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:4:8"])
    made = {}
    for precision in ("fp32", "fp16", "bf16"):
        config = BuildConfig(profiles=(profile,), precision=precision)
        plan = build_plan(folder / "m.onnx", config, backend="rtx")
        made[precision] = Plan.open(plan.save(folder / f"{precision}.plan"))
    return made


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_product_is_in_a_kernel_of_the_precision(plans, precision):
    kernels = parse_layers(stored_kernels(plans[precision].content))
    products = [f"blocks.{number}.mlp/MatMul" for number in range(3)]
    computing = {name: [k for k in kernels if name in k.nodes] for name in products}
    assert all(computing.values())
    found = set(precision_mix(kernels))
    assert {"fp32", precision} <= found  # the softmax is in FP32
    assert found <= {"fp32", precision, "bf16"}  # as FP32 products are split into BF16
    assert {k.kind for found in computing.values() for k in found} <= {
        "FusedProduct",
        "MatrixProduct",
        "Pointwise",
        "Reduction",
    }


def test_kernels_read_what_earlier_ones_wrote(plans):
    kernels = parse_layers(stored_kernels(plans["fp16"].content))
    written = set()
    outside = set()
    for kernel in kernels:
        outside |= {tensor.name for tensor in kernel.inputs} - written
        written |= {tensor.name for tensor in kernel.outputs}
    assert {name.partition(".")[0] for name in outside} == {"x"}
    (last,) = kernels[-1].outputs
    assert (last.name.partition(".")[0], last.precision, last.shape) == (
        "probabilities",
        "fp32",
        (-1, 64),
    )


def test_each_profile_has_kernels_of_its_own(plans, tmp_path):
    save_temporary(blocks_model(3, 64), tmp_path / "m.onnx")
    profiles = tuple(ProfileSpec.parse([f"batch={text}"]) for text in ("1", "2:4:8"))
    plan = build_plan(tmp_path / "m.onnx", BuildConfig(profiles=profiles), backend="rtx")
    kernels = parse_layers(stored_kernels(plan.data))
    for profile, extent in ((0, 1), (1, -1)):
        own = [kernel for kernel in kernels if kernel.profile == profile]
        assert {f"blocks.{n}.mlp/MatMul" for n in range(3)} <= {n for k in own for n in k.nodes}
        assert {t.shape[0] for k in own for t in k.outputs} == {extent}
    assert "unknown" not in precision_mix(kernels)


@pytest.mark.parametrize("chunk", [4096, 65537])
def test_programs_across_the_chunks_that_are_read(plans, monkeypatch, chunk):
    whole = stored_kernels(plans["fp16"].data)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert stored_kernels(plans["fp16"].data) == whole
    assert stored_kernels(plans["fp16"].content) == whole


def test_damaged_plans_are_read_as_far_as_they_go(plans):
    data = bytes(plans["fp16"].data)
    place = data.index(b"descriptors {\n")
    rng = random.Random(0)
    for _ in range(300):
        changed = bytearray(data[: place + 40_000])
        for _ in range(rng.randrange(1, 200)):
            changed[rng.randrange(place - 500, len(changed))] = rng.choice(b'\0\n{}" =x\xff')
        parse_layers(stored_kernels(bytes(changed)) or [])


@pytest.mark.parametrize("data", [b"", b"ftrt" + bytes(200), b"header {\n" * 3, b"header {\n\0"])
def test_bytes_without_kernels(data):
    assert stored_kernels(data) is None
