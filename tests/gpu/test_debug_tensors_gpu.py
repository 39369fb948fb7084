"""Tensors inside plans that run, seen without a change to them, and a fault that outputs hide."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.backends.registry import load_backend
from trt_native.passes.reshape_tokens import ReshapeTokens
from trt_native.shapes import ProfileSpec
from trt_native.verify.observed_plans import model_tensor

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def test_debug_tensors_have_their_values(tmp_path, rng, monkeypatch):
    """Also of TensorRT-RTX, which gives them out under names of its compiler."""
    backend = load_backend("auto")
    has_them = dataclasses.replace(backend.capabilities, debug_tensors=True)
    monkeypatch.setattr(backend, "capabilities", has_them)
    path = tiny_models.dense(tmp_path / "m.onnx", layers=4)
    config = BuildConfig(profiles=(ProfileSpec.parse(["batch=1:3:4"]),))
    x = {"h0": rng.standard_normal((3, 64)).astype(np.float32)}
    expected = ReferenceEvaluator(str(path)).run(None, x, intermediate=True)
    given, seen = [], {}

    def receive(tensor):
        given.append(tensor.name)
        if name := model_tensor(tensor.name, expected):
            seen[name] = tensor.read().astype(np.float64)

    plain, marked = (
        build_plan(path, config, backend=backend, debug_tensors=on) for on in (False, True)
    )
    with Session(plain) as session:
        found = session.run(x)["h4"]
    with Session(marked) as session:
        np.testing.assert_array_equal(session.run(x)["h4"], found)
        session.debug_tensors(x, receive)
        np.testing.assert_array_equal(session.run(x)["h4"], found)
    assert {"h0", "h4"} < {*seen}, given
    for name, values in seen.items():
        error = np.linalg.norm(values - expected[name]) / np.linalg.norm(expected[name])
        assert error < 5e-3, name


def test_a_fault_that_outputs_hide_is_located(tmp_path, main_in_process, monkeypatch):
    """Attention and depthwise convolutions in FP16, without the pass that prevents the fault."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from helpers.token_blocks import SIDE, WIDTH, two_blocks

    from trt_native.export import export_module

    monkeypatch.setattr(ReshapeTokens, "needed", lambda *_: False)
    path = tmp_path / "m.onnx"
    example = torch.randn(2, SIDE * SIDE, WIDTH)
    export_module(two_blocks(), (example,), path=path, input_names=["x"])
    config = BuildConfig(precision=Precision.FP16)
    plan = build_plan(path, config).save(tmp_path / "m.plan")
    verify = functools.partial(main_in_process, "verify")
    code, out, err = verify(plan, "--against", path, "--random", 0, "--layers", "--json")
    assert code == 1, out + err
    document = json.loads(out)
    print(json.dumps(document["layers"], indent=1))
    assert document["outputs"][0]["relative_l2"] > 0.05
    report = document["layers"]
    assert report["first"] is None  # as outputs, all tensors match
    hidden = report["hidden"]
    made = {name: node for node in onnx.load(path).graph.node for name in node.output}
    inside = {made[n].op_type for n in (*hidden["between"], hidden["mismatch"]["name"])}
    assert inside & {"Transpose", "Reshape"}
    assert hidden["mismatch"]["agrees"] is False
    assert hidden["last_match"] is None or hidden["last_match"]["agrees"]
    if report["break_fusion"] is not None:
        broken = dataclasses.replace(config, break_fusions=(report["break_fusion"],))
        plan = build_plan(path, broken).save(tmp_path / "broken.plan")
        code, out, err = verify(plan, "--against", path, "--random", 0)
        assert code == 0, out + err
