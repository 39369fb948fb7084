"""The search for nodes that must stay FP32, measured by onnx.reference."""

from __future__ import annotations

import json

import pytest
from helpers import tiny_models
from helpers.cancelling_layers import cancelling_layers
from helpers.program import failing, trt_native
from helpers.tiny_models import FLOAT, tensor
from onnx import helper

from trt_native.debug.precision import Candidate, candidates, find_fp32_nodes, patterns
from trt_native.errors import UnsupportedError


def chain(count, cost=lambda index: 1):
    return tuple(
        Candidate(
            f"n{i}",
            "MatMul",
            cost(i),
            frozenset(f"n{j}" for j in (i - 1, i + 1) if 0 <= j < count),
        )
        for i in range(count)
    )


class Error:
    """An error that is large until all of one of some sets are in FP32."""

    def __init__(self, *enough):
        self.enough = [set(names) for names in enough]
        self.asked = 0

    def __call__(self, kept):
        self.asked += 1
        return 1e-4 if any(names <= {*kept} for names in self.enough) else 0.5


def test_two_nodes_of_many_are_found_in_few_measurements():
    error = Error(["n40", "n41"], [f"n{i}" for i in range(200)], ["op:MatMul"])
    found = find_fp32_nodes(chain(200), error, 0.01)
    assert found.kept == ("n40", "n41")
    assert found.patterns == ("n40", "n41")
    assert (found.error, found.reduced_error) == (1e-4, 0.5)
    assert found.cost_share == pytest.approx(2 / 200)
    assert found.measured == error.asked < 25


def test_of_two_remedies_the_cheap_one_is_taken():
    def cost(index):
        return 1000 if index < 10 else 1

    error = Error(["n3"], ["n50"], ["op:MatMul"])
    assert find_fp32_nodes(chain(100, cost), error, 0.01).kept == ("n50",)


def test_an_error_that_many_nodes_add_to_holds_with_about_as_few_as_it_takes():
    def measure(kept):
        return 0 if "op:MatMul" in kept else 0.01 * (100 - len(kept))

    found = find_fp32_nodes(chain(100), measure, 0.705)
    assert found.error <= 0.705
    assert len(found.kept) == 30


def test_nothing_is_kept_where_the_error_holds_already():
    found = find_fp32_nodes(chain(5), lambda kept: 1e-3, 0.01)
    assert (found.kept, found.patterns, found.cost_share, found.measured) == ((), (), 0, 1)


def test_an_error_that_fp32_does_not_mend_is_said():
    with pytest.raises(UnsupportedError, match=r"with all nodes in FP32 the error is 0\.5"):
        find_fp32_nodes(chain(5), lambda kept: 0.5, 0.01)


def test_patterns_name_whole_operators_and_escape_names():
    nodes = [
        Candidate("a[0]", "Exp", 1, frozenset()),
        Candidate("b", "Mul", 1, frozenset()),
        Candidate("c", "Mul", 1, frozenset()),
    ]
    assert patterns(nodes, nodes) == ["op:Mul", "a[[]0]"]
    assert patterns(nodes[:2], nodes) == ["a[[]0]", "b"]


@pytest.fixture
def cancelling(tmp_path):
    return cancelling_layers(tmp_path / "m.onnx")


def test_candidates_have_costs_and_neighbours(cancelling):
    found = {node.name: node for node in candidates(cancelling, {"x": (3, 16)})}
    assert len(found) == 15
    assert found["l0"].cost == 3 * 16 * 16
    assert found["mid/same"].cost == 3 * 16
    assert found["mid/same"].neighbours == {"mid/sum", "mid/back"}
    assert found["mid/sum"].operator == "Add"
    assert found["mid/sum"].cost == 3 * 16


def test_the_command_finds_the_cancellation_and_prints_what_to_paste(cancelling, tmp_path):
    words = ("debug", "precision", cancelling, "--max-error", "0.01", "--measure", "cpu")
    shape = ("--shape", "x=3x16")
    result = trt_native(*words, *shape, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert not printed["reduced_error"] <= 0.01
    assert printed["error"] <= 0.01
    assert printed["kept"]
    assert all(name.startswith("mid/") for name in printed["kept"])
    assert printed["cost_share"] < 0.1
    shown = trt_native(*words, "--dim", "n=3", width=80)
    line = shown.stdout.strip().splitlines()[-1]
    assert line.startswith("--keep-fp32 ")
    converted = trt_native(
        "convert", cancelling, "-o", tmp_path / "c.onnx", "--precision", "fp16",
        *line.split(), *shape, "--json",
    )  # fmt: skip
    assert json.loads(converted.stdout)["error"][0]["relative_l2"] <= 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-error", "-1"], "--max-error -1.0: must be 0 or more"),
        (["--max-error", "0.1", "--precision", "fp32"], "choose fp16, bf16, int8, fp8, int8-w"),
        (["--max-error", "0.1", "--measure", "tpu"], "choose auto, cpu or gpu"),
        (
            ["--max-error", "0.1", "--measure", "cpu", "--shape", "z=1"],
            "input 'z' is not one of the model's",
        ),
        (
            ["--max-error", "0.1", "--measure", "cpu", "--dim", "n=4", "--shape", "x=3x16"],
            "input 'x' has the shape 3x16, but dimension 'n' was given as 4",
        ),
    ],
)
def test_bad_requests_are_refused(cancelling, words, message):
    assert message in failing("debug", "precision", cancelling, *words)


def test_nodes_without_names_are_said(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    shape = [2, 2]
    model = tiny_models.save(
        tmp_path / "m.onnx", [node], [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)]
    )
    message = failing("debug", "precision", model, "--max-error", "0.1", "--measure", "cpu")
    assert "no node has a name of its own" in message
