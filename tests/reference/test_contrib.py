"""Operators of the domain com.microsoft, against ONNX Runtime and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.contrib_cases import ONNXRUNTIME, Case, torch_cases

from trt_native.reference.evaluator import evaluator

torch = pytest.importorskip("torch")
TORCH = torch_cases()


def run(case, opset=17):
    graph = case.model(opset).graph
    return evaluator(graph, {"": opset, "com.microsoft": 1}).run(None, case.batch)


@pytest.mark.parametrize("name", ONNXRUNTIME)
def test_outputs_are_those_of_onnx_runtime(name):
    ONNXRUNTIME[name].check(run(ONNXRUNTIME[name]))


@pytest.mark.parametrize("name", TORCH)
def test_outputs_are_those_of_pytorch(name):
    TORCH[name].check(run(TORCH[name]), 2e-5)


def test_norms_before_onnx_had_them(rng):
    x, scale, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (4,), (4,)))
    layer = torch.nn.functional.layer_norm
    expected = layer(*map(torch.tensor, (x,)), (4,), *map(torch.tensor, (scale, bias)), 1e-3)
    case = Case("LayerNormalization", {"epsilon": 1e-3}, [x, scale, bias], [expected.numpy()], "")
    case.check(run(case, 11), 2e-5)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("multi_head_bias", {"unidirectional": 1}, "unidirectional with other keys"),
        ("grouped", {"causal": 0}, "bidirectional"),
        ("grouped", {"qk_output": 1}, "qk_output"),
        ("rotary", {"is_packed_batching": 1}, "is_packed_batching"),
        ("bits_4", {"weight_prepacked": 1}, "weight_prepacked"),
    ],
)
def test_what_is_not_computed_is_an_error(name, attributes, message):
    case = ONNXRUNTIME[name]
    other = Case(case.operator, {**case.attributes, **attributes}, case.inputs, case.outputs)
    with pytest.raises(NotImplementedError, match=message):
        run(other)
