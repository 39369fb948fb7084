"""The search for products that must not be quantized, measured by onnx.reference."""

from __future__ import annotations

import contextlib
import json
import shlex
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.passes import pass_records
from helpers.program import failing, trt_native
from helpers.tiny_models import FLOAT, tensor
from onnx import helper
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig, Precision, QuantizationSpec
from trt_native.debug import precision as precision_search
from trt_native.debug.precision import Candidate
from trt_native.debug.quantization import (
    QuantizedNodes,
    calibrated,
    find_unquantized_nodes,
    measure_quantized_on_gpu,
    quantized_nodes,
)
from trt_native.debug.rounding_errors import rounding_errors
from trt_native.errors import ModelError, UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.onnx_file import read_model
from trt_native.passes.quantize_rules import ProductSelection

CLIPPED = {**{f"h{i}": 4.0 for i in range(9)}, "h3": 0.01}
"""Ranges of layers, of which the input of the fourth is cut off."""


@pytest.fixture
def dense(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx", layers=8)


@pytest.fixture
def cache(dense, tmp_path):
    return tiny_models.calibration(dense, tmp_path / "m.calib", CLIPPED)


@pytest.fixture
def x(rng):
    return {"h0": rng.standard_normal((4, 64)).astype(np.float32)}


def config(cache=None, precision=Precision.INT8, **options):
    return BuildConfig(
        precision=precision,
        quantization=QuantizationSpec(calibration_cache=cache, **options),
    )


def chain(count, error=lambda index: 0.1, cost=lambda index: 1):
    return tuple(Candidate(f"n{i}", "MatMul", cost(i), frozenset(), error(i)) for i in range(count))


class TestSearch:
    def test_what_rounds_most_for_its_cost_is_tried_first(self):
        """Errors that add up, of which two make most."""

        def error(index):
            return 0.3 if index in (20, 70) else 0.01

        nodes = chain(100, error)
        asked = []

        def measure(excluded):
            asked.append(excluded)
            left = [n for n in nodes if n.name not in excluded and "op:MatMul" not in excluded]
            return float(np.sqrt(sum(node.error**2 for node in left)))

        found = find_unquantized_nodes(QuantizedNodes(nodes, 0), measure, 0.15)
        assert found.kept == ("n20", "n70")
        assert found.measured == len(asked) <= 12

    def test_of_equal_errors_the_cheap_ones_are_taken(self):
        nodes = chain(20, cost=lambda index: 100 if index % 2 else 1)

        def measure(excluded):
            if "op:MatMul" in excluded:
                return 0.0
            return 0.1 * (20 - len(excluded))

        found = find_unquantized_nodes(QuantizedNodes(nodes, 0), measure, 1.0)
        assert len(found.kept) == 10
        assert all(int(name[1:]) % 2 == 0 for name in found.kept)

    def test_an_error_of_the_rest_is_said(self):
        with pytest.raises(UnsupportedError, match=r"no node quantized the error is 0\.5.*FP32 fi"):
            find_unquantized_nodes(QuantizedNodes(chain(3), 0), lambda kept: 0.5, 0.1)
        with pytest.raises(UnsupportedError, match=r"but 2 without names of their own.*name the"):
            find_unquantized_nodes(QuantizedNodes(chain(3), 2), lambda kept: 0.5, 0.1)

    def test_nothing_is_quantized_without_the_products(self):
        nodes = QuantizedNodes(
            (
                *chain(2),
                Candidate("add", "Add", 1, frozenset()),
                *(Candidate("g", "Gemm", 1, frozenset()),),
            ),
            0,
        )
        assert nodes.includes_all(["op:MatMul", "g"])
        assert nodes.includes_all(["n[01]", "g"])
        assert not nodes.includes_all(["op:MatMul", "add"])
        assert not QuantizedNodes(chain(2), 1).includes_all(["op:MatMul"])


class TestNodes:
    def test_products_with_costs_neighbours_and_errors(self, dense, cache, x):
        found = quantized_nodes(dense, config(cache), x)
        nodes = {node.name: node for node in found.candidates}
        assert [*nodes] == [f"/dense.{i}" for i in range(8)]
        assert found.unnamed == 0
        assert {node.cost for node in nodes.values()} == {4 * 64 * 64}
        assert nodes["/dense.3"].neighbours == {"/dense.2", "/dense.4"}  # past a Relu
        assert nodes["/dense.3"].error > 0.9
        assert all(node.error < 0.3 for name, node in nodes.items() if name != "/dense.3")
        left = quantized_nodes(dense, config(cache, exclude=("/dense.[0-3]",)), x)
        assert [node.name for node in left.candidates] == [f"/dense.{i}" for i in range(4, 8)]

    def test_those_that_share_an_input_and_the_skip_paths_of_sums(self, tmp_path, rng):
        kernel = rng.standard_normal((16, 16, 1, 1)).astype(np.float32)
        nodes = [
            helper.make_node("Conv", ["x", "k"], ["a"], name="a"),
            helper.make_node("Conv", ["x", "k"], ["b"], name="b"),
            helper.make_node("Conv", ["b", "k"], ["c"]),
            helper.make_node("Add", ["x", "c"], ["s"], name="sum"),
            helper.make_node("Add", ["a", "s"], ["y"], name="join"),
        ]
        shape = [1, 16, 4, 4]
        model = tiny_models.save(
            tmp_path / "m.onnx",
            nodes,
            [tensor("x", FLOAT, shape)],
            [tensor("y", FLOAT, shape)],
            {"k": kernel},
        )
        cache = tiny_models.calibration(model, tmp_path / "m.calib", 4.0)
        x = {"x": rng.standard_normal(shape).astype(np.float32)}
        found = quantized_nodes(model, config(cache), x)
        names = {node.name: node for node in found.candidates}
        assert {"a", "b"} <= {*names}
        assert names["a"].neighbours >= {"b"}
        assert found.unnamed == 1
        assert names["sum"].operator == "Add"
        assert names["sum"].cost == 16 * 4 * 4

    def test_models_that_cannot_be_searched(self, dense, cache, tmp_path, x):
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        model = tiny_models.save(
            tmp_path / "n.onnx",
            [node],
            [tensor("x", FLOAT, [2, 16])],
            [tensor("y", FLOAT, [2, 16])],
            {"w": np.ones((16, 16), np.float32)},
        )
        weights = config(precision=Precision.INT8_WEIGHTS)
        with pytest.raises(UnsupportedError, match="no node that is quantized has a name of its"):
            quantized_nodes(model, weights, {"x": np.ones((2, 16), np.float32)})
        made = trt_native(
            "quantize", dense, "-o", tmp_path / "q.onnx", "--calibration-cache", cache
        )
        assert made.returncode == 0, made.stderr
        with pytest.raises(ModelError, match="Q/DQ"):
            quantized_nodes(tmp_path / "q.onnx", weights, x)

    @pytest.mark.parametrize("precision", [p for p in Precision if p.quantized], ids=str)
    def test_errors_are_those_of_onnxs_own_quantizers(self, dense, x, precision):
        """Of both inputs of the first layer, by QuantizeLinear of onnx.reference."""
        model = read_model(dense)
        infer_values(model)
        amax = float(np.abs(x["h0"]).max())
        selection = ProductSelection(
            model, {"h0": amax}, format=precision.value, ops=("MatMul",), skip=(), preset="default"
        )
        errors = rounding_errors(model, selection, {"h0": amax}, precision, x)
        ((weight,),) = [[w for w in onnx.load(dense).graph.initializer if w.name == "w0"]]
        weight = onnx.numpy_helper.to_array(weight)
        kind, largest = np.int8, 127
        if precision is Precision.FP8:
            kind, largest = ml_dtypes.float8_e4m3fn, 448
        elif precision is Precision.INT4_WEIGHTS:
            kind, largest = ml_dtypes.int4, 7
        code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))

        def squared_error(array, scale, **axis):
            nodes = [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **axis),
            ]
            zero = helper.make_tensor("z", code, scale.shape, np.zeros(scale.size))
            graph = helper.make_graph(
                nodes,
                "g",
                [tensor("x", FLOAT, array.shape), tensor("s", FLOAT, scale.shape)],
                [tensor("y", FLOAT, array.shape)],
                [zero],
            )
            proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
            (found,) = ReferenceEvaluator(proto).run(None, {"x": array, "s": scale})
            return (np.linalg.norm(found - array) / np.linalg.norm(array)) ** 2

        if precision is Precision.INT4_WEIGHTS:
            amax_of_blocks = np.abs(weight).reshape(2, 32, 64).max(1)
            scales = amax_of_blocks / np.float32(largest)
            expected = squared_error(weight, scales, axis=0, block_size=32)
        else:
            expected = squared_error(weight, np.abs(weight).max(0) / np.float32(largest), axis=1)
        if precision.needs_ranges:
            expected += squared_error(x["h0"], np.float32(amax / largest).reshape(()))
        first = next(node for node in errors if node.name == "/dense.0")
        assert errors[first] == pytest.approx(np.sqrt(expected), rel=1e-4)
        assert isinstance(first, ir.Node)


def test_ranges_are_found_once(dense, tmp_path, rng):
    batches = [rng.standard_normal((4, 64)).astype(np.float32) for _ in range(2)]
    np.savez(tmp_path / "d.npz", h0=np.concatenate(batches))
    wanted = BuildConfig(
        precision=Precision.INT8,
        quantization=QuantizationSpec(calibration_data=str(tmp_path / "d.npz")),
    )
    with calibrated(dense, wanted, "auto") as (found, batch):
        spec = found.quantization
        assert spec.calibration_data is None
        assert spec.calibration_cache.read_text().startswith("TRT-")
        assert batch["h0"].shape[1:] == (64,)
    assert not spec.calibration_cache.exists()
    given = config(tmp_path / "m.calib")
    with calibrated(dense, given, "auto") as found:
        assert found == (given, None)


@pytest.mark.backend
def test_plans_are_built_without_pairs_around_what_is_excluded(dense, cache, x, monkeypatch):
    """Plans of TensorRT-RTX; what they compute is the model's, as nothing runs them here."""
    pytest.importorskip("tensorrt_rtx")
    built = []

    @contextlib.contextmanager
    def open_session(plan):
        built.append(plan.manifest)
        (output,) = ReferenceEvaluator(str(dense)).run(None, x)
        yield SimpleNamespace(run=lambda inputs: {"h8": output})

    monkeypatch.setattr(precision_search, "open_session", open_session)
    nodes = quantized_nodes(dense, config(cache), x)
    measure = measure_quantized_on_gpu(dense, config(cache), nodes, "rtx", x)
    for excluded in ([], ["/dense.3"], ["op:Gemm", "op:MatMul"]):
        assert measure(excluded) < 1e-5
    assert [manifest.precision["applied"] for manifest in built] == ["int8", "int8", "fp16"]
    counts = [pass_records(manifest).get("quantize", {}).get("nodes") for manifest in built]
    assert counts == [{"MatMul": 4, "Gemm": 4}, {"MatMul": 4, "Gemm": 3}, None]
    assert {str(manifest.inputs[0].profiles[0]) for manifest in built} == {"4x64"}


def error_of(model, quantized, x):
    (expected,) = ReferenceEvaluator(str(model)).run(None, x)
    (found,) = ReferenceEvaluator(str(quantized)).run(None, x)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_command_finds_the_layer_and_prints_what_to_paste(dense, cache, tmp_path, x, precision):
    np.savez(tmp_path / "x.npz", **x)
    words = (
        "debug", "precision", dense, "--max-error", "0.12", "--measure", "cpu", "--precision",
        precision, "--calibration-cache", cache, "--input", tmp_path / "x.npz",
    )  # fmt: skip
    result = trt_native(*words, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["reduced_error"] > 0.5
    assert printed["error"] <= 0.12
    assert (printed["kept"], printed["option"]) == (["/dense.3"], "--quantize-exclude")
    assert printed["cost_share"] == pytest.approx(1 / 8)
    line = trt_native(*words, width=80).stdout.strip().splitlines()[-1]
    assert line == "--quantize-exclude /dense.3"
    quantize = ("quantize", dense, "--format", precision, "--calibration-cache", cache, "-o")
    assert trt_native(*quantize, tmp_path / "all.onnx").returncode == 0
    made = trt_native(*quantize, tmp_path / "most.onnx", *shlex.split(line))
    assert made.returncode == 0, made.stderr
    assert error_of(dense, tmp_path / "all.onnx", x) > 0.5
    assert error_of(dense, tmp_path / "most.onnx", x) < 0.12


def test_the_command_for_int4_weights(dense, tmp_path, x):
    np.savez(tmp_path / "x.npz", **x)
    words = (
        "debug", "precision", dense, "--max-error", "0.1", "--measure", "cpu", "--precision",
        "int4-weights", "--quantize-block-size", "16", "--input", tmp_path / "x.npz",
    )  # fmt: skip
    result = trt_native(*words, width=80)
    assert result.returncode == 0, result.stderr
    line = result.stdout.strip().splitlines()[-1]
    assert line.startswith("--quantize-exclude /dense.")
    quantize = ("quantize", dense, "--format", "int4-weights", "--quantize-block-size", "16", "-o")
    assert trt_native(*quantize, tmp_path / "all.onnx").returncode == 0
    made = trt_native(*quantize, tmp_path / "most.onnx", *shlex.split(line))
    assert made.returncode == 0, made.stderr
    assert error_of(dense, tmp_path / "all.onnx", x) > 0.1
    assert error_of(dense, tmp_path / "most.onnx", x) <= 0.1


def test_the_command_with_calibration_data(dense, tmp_path, rng):
    np.savez(tmp_path / "d.npz", h0=rng.standard_normal((4, 64)).astype(np.float32))
    words = ("debug", "precision", dense, "--measure", "cpu", "--precision", "int8")
    data = ("--calibration-data", tmp_path / "d.npz")
    result = trt_native(*words, *data, "--max-error", "0.02", "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert 0.02 < printed["reduced_error"] < 0.1
    assert printed["error"] <= 0.02
    assert 0 < len(printed["kept"]) < 8
    # Nothing but what FP16 rounds is left where all is excluded.
    message = failing(*words, *data, "--max-error", "1e-5")
    assert "with no node quantized the error is" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "precision int8 needs the ranges of the activations"),
        (["--precision", "int4"], "int4"),
        (["--quantize-ops", "Conv"], "have no effect on fp16"),
        (
            ["--precision", "int8-weights", "--calibration-cache", "m.calib"],
            "--calibration-cache: no effect on int8-weights, which needs no ranges",
        ),
        (
            ["--precision", "int8-weights", "--quantize-exclude", "nothing*"],
            "nothing*",
        ),
    ],
)
def test_bad_requests_are_refused(dense, words, message):
    given = ("debug", "precision", dense, "--max-error", "0.1", "--measure", "cpu")
    assert message in failing(*given, *words)
