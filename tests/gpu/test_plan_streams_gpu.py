"""Plans that TensorRT writes to a file and loads from it, without the whole of them in memory."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trt_native import BuildConfig, Engine, Plan, Session
from trt_native.builder.isolated import Job, build_in_child
from trt_native.errors import PlanError
from trt_native.plans.stored_content import ContentReader

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

SIDE, COUNT = 2048, 18  # 302 MB in FP32

# The most memory that loading takes beyond what a process with a loaded TensorRT has.
LOADING = """
import json, sys
from trt_native import Engine, Plan
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
small, large = sys.argv[1:3]
with Engine(small):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    engine = Engine(large) if sys.argv[3] == "open" else Engine(Plan.load(large))
    print(json.dumps(status("VmHWM") - before))
"""


def chain(path, count, side):
    rng = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(
            (rng.standard_normal((side, side), np.float32) / np.float32(side**0.5)), f"w{i}"
        )
        for i in range(count)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, side])
        for name in ("x0", f"x{count}")
    )
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    target = path.with_suffix(".plan")
    job = Job(
        model=path, target=target, config=BuildConfig(precision="tf32"), backend="auto",
        cache=None, cache_bytes=None,
    )  # fmt: skip
    build_in_child(job, None)
    return target


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("small") / "m.onnx", 1, 64)


def test_a_large_plan_is_loaded_without_a_copy(small, tmp_path):
    large = chain(tmp_path / "m.onnx", COUNT, SIDE)
    size, taken = large.stat().st_size, {}
    assert size > COUNT * SIDE * SIDE * 4
    for way in ("open", "load"):
        words = [sys.executable, "-c", LOADING, small, large, way]
        taken[way] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    print({way: f"{memory / size:.3f} x the plan" for way, memory in taken.items()})
    assert taken["open"] <= 1.1 * size
    x = np.random.default_rng(5).standard_normal((4, SIDE), np.float32)
    expected = x
    for weight in onnx.load(large.with_suffix(".onnx")).graph.initializer:
        expected = expected @ numpy_helper.to_array(weight)
    with Session(large) as session:
        (found,) = session.run({"x0": x}).values()
    with Session(Plan.load(large)) as session:
        (same,) = session.run({"x0": x}).values()
    np.testing.assert_array_equal(found, same)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_what_reading_raises_is_raised_again(small, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(ContentReader, "read", fail)
        plan = Plan.open(small, ignore_manifest=True)
        patch.setattr(type(plan.content), "head", lambda self, size: small.read_bytes()[:size])
        with pytest.raises(ZeroDivisionError, match="planted"):
            Engine(plan)
    with Engine(small) as engine:
        assert engine.plan.path == small


def test_a_plan_that_changed_since_it_was_opened_is_not_loaded(small, tmp_path):
    path = Plan.load(small).save(tmp_path / "m.plan")
    plan = Plan.open(path)
    Plan.load(small).save(path)
    with pytest.raises(PlanError, match="changed since it was opened"):
        Engine(plan)
