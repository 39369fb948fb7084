"""The random graphs of ``scripts/fuzz_graphs.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from fuzzing.graphs import random_model
    from fuzzing.templates import TEMPLATES

    yield lambda seed, **options: random_model(seed, TEMPLATES, 6, **options)
    forget_scripts()


def forget_scripts():
    for name in [name for name in sys.modules if name.partition(".")[0] == "fuzzing"]:
        del sys.modules[name]


def test_a_seed_alone_determines_a_graph(draw):
    for seed in range(5):
        first, second = draw(seed), draw(seed)
        assert first.model.SerializeToString() == second.model.SerializeToString()
        for one, other in zip(first.inputs, second.inputs, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len({draw(seed).model.SerializeToString() for seed in range(5)}) == 5


def test_dense_graphs_have_few_operators_and_many_outputs(draw):
    def shares(**options):
        models = [made.model.graph for seed in range(40) if (made := draw(seed, **options))]
        nodes = sum(len(graph.node) for graph in models)
        operators = sum(len({node.op_type for node in graph.node}) for graph in models)
        return operators / nodes, sum(len(graph.output) for graph in models) / nodes

    (operators, outputs), (fewer, more) = shares(), shares(dense=True)
    assert fewer < operators
    assert more > 1.5 * outputs


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_graphs_compute_what_they_were_built_from(draw):
    operators, dynamic, inputs = set(), 0, set()
    for seed in range(40):
        made = draw(seed, quantized=seed % 4 == 0)
        if made is None:
            continue
        onnx.checker.check_model(made.model, full_check=True)
        operators |= {node.op_type for node in made.model.graph.node}
        dynamic += bool(made.dims)
        inputs.add(len(made.inputs[0]))
        evaluator = ReferenceEvaluator(made.model)
        for given, expected in zip(made.inputs, made.expected, strict=True):
            found = evaluator.run(None, given)
            for array, wanted in zip(found, expected.values(), strict=True):
                np.testing.assert_array_equal(array, wanted)
    assert len(operators) > 60
    assert dynamic > 5
    assert len(inputs) > 1


def test_references_that_round_disagree_where_two_values_are_nearly_equal(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from fuzzing.judging import PRECISIONS, rounded_model

    text = """<ir_version: 8, opset_import: ["": 18]> g (float[8,2] x) => (float[8,2] y, int64[8] i)
        { y = Neg (x) i = ArgMax <axis = 1, keepdims = 0> (y) }"""
    model = onnx.parser.parse_model(text)
    x = np.float32([1, 1 + 2**-13]) * np.float32([[k + 1] for k in range(8)])
    found = []
    for seed in range(4):
        made = rounded_model(model, PRECISIONS["fp16"], seed)
        onnx.checker.check_model(made, full_check=True)
        y, indices = ReferenceEvaluator(made).run(None, {"x": x})
        np.testing.assert_array_equal(y, y.astype(np.float16))
        np.testing.assert_allclose(y, -x, rtol=2**-8)
        found.append(indices)
    assert not found[0].any()  # a tie, of which the first counts
    assert any(indices.any() for indices in found[1:])
    forget_scripts()
