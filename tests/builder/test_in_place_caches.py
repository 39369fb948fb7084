"""Plans that update caches in the memory of their inputs, and plans of other layouts."""

from __future__ import annotations

import json

import pytest
from helpers import tiny_models
from helpers.cached_models import FEATURES, HEADS, LENGTH, attention_step, cache_update
from helpers.passes import pass_records

from trt_native import BuildConfig, Plan, ProfileSpec, build_plan
from trt_native.errors import SpecError, UnsupportedError

pytestmark = pytest.mark.backend
SHAPE = (1, HEADS, LENGTH, FEATURES)


def build(path, *dims, **options):
    profiles = (ProfileSpec.parse(dims),) if dims else ()
    return build_plan(path, BuildConfig(profiles=profiles, **options))


def aliases(plan):
    return {t.name: t.alias for t in plan.manifest.tensors if t.alias is not None}


@pytest.mark.parametrize(
    ("cache_type", "precision"),
    [
        ("float32", "fp32"),
        ("float32", "tf32"),
        ("float32", "fp16"),
        ("float32", "bf16"),
        ("float16", "fp16"),
        ("float16", "auto"),
    ],
)
def test_caches_are_outputs_in_the_memory_of_inputs(tmp_path, precision, cache_type):
    model = attention_step(tmp_path / "m.onnx", cache_type)
    plan = build(model, precision=precision, in_place_caches=True)
    assert aliases(plan) == {"new_keys": "keys", "new_values": "values"}
    assert {t.dtype for t in plan.manifest.tensors if t.name.endswith("s")} == {cache_type}
    assert "lower_operators" not in pass_records(plan.manifest)
    saved = plan.save(tmp_path / "m.plan")
    document = json.loads((tmp_path / "m.plan.json").read_text())
    assert document["schema"] == 3
    assert Plan.load(saved).manifest == plan.manifest
    assert "output new_keys:" in Plan.load(saved).summary()
    assert f"{cache_type} (in keys) 1 x {HEADS} x {LENGTH}" in plan.summary()


def test_without_the_option_a_run_writes_new_caches(tmp_path):
    plan = build(attention_step(tmp_path / "m.onnx"))
    assert aliases(plan) == {}
    assert pass_records(plan.manifest)["lower_operators"]["nodes"] == {"TensorScatter": 2}
    assert plan.manifest.schema == 2


def test_a_dynamic_batch(tmp_path):
    plan = build(cache_update(tmp_path / "m.onnx"), "batch=1:2:4", in_place_caches=True)
    assert aliases(plan) == {"present": "past"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "circular", "shape": SHAPE}, "its mode is not linear"),
        ({"axis": 1, "shape": SHAPE}, "it does not write along the third axis"),
        ({"axis": -1, "shape": SHAPE}, "it does not write along the third axis"),
        ({"shape": (1, LENGTH, 8)}, "does not have the four axes batch, heads, sequence and"),
        ({"shape": (1, HEADS, "length", 8)}, "the extent of the cache's third axis is not fixed"),
    ],
)
def test_what_cannot_be_in_place_is_refused(tmp_path, changes, reason):
    model = cache_update(tmp_path / "m.onnx", **changes)
    dims = ("length=1:4:8",) if "length" in str(changes) else ()
    with pytest.raises(UnsupportedError) as caught:
        build(model, *dims, in_place_caches=True)
    assert any(
        line.startswith("'write' (TensorScatter): it is not updated in place: ") and reason in line
        for line in caught.value.problems
    )


def test_caches_keep_their_type(tmp_path):
    model = attention_step(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="a cache has the type that the model gives it, not fp16"):
        build(model, in_place_caches=True, io_precision="fp16")


CONV = ("batch=1:2:4", "height=8", "width=8")


def test_layouts_of_inputs_and_outputs(tmp_path):
    model = tiny_models.lone_conv(tmp_path / "m.onnx")
    wanted = {"x": "hwc8", "y": "CHW32"}
    entries = tuple(f"{name}={layout}" for name, layout in wanted.items())
    plan = build(model, *CONV, precision="fp16", io_precision="fp16", io_formats=entries)
    assert {t.name: t.format for t in plan.manifest.tensors} == {"x": "HWC8", "y": "CHW32"}
    assert "x: float16 (HWC8) batch x 3" in plan.summary()
    linear = build(model, *CONV, precision="fp16", io_precision="fp16")
    assert bytes(linear.data) != bytes(plan.data)


def test_layouts_that_do_not_fit(tmp_path):
    model = tiny_models.lone_conv(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match=r"I/O format of 'z': m\.onnx has no such .* but x, y"):
        build(model, *CONV, io_formats=("z=hwc",))
    with pytest.raises(UnsupportedError, match=r"'x': in float16 the memory of chw4 is not as"):
        build(model, *CONV, precision="fp16", io_precision="fp16", io_formats=("x=chw4",))
    for text in ("x", "x=", "=hwc", "x=nhwc"):
        with pytest.raises(SpecError, match=r"write NAME=FORMAT, with one of: chw2"):
            BuildConfig(io_formats=(text,))
    with pytest.raises(SpecError, match="'x' has two"):
        BuildConfig(io_formats=("x=hwc", "x=hwc8"))
