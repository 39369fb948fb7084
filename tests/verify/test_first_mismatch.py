"""Searches in models where the first mismatch is known, because it was put there."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.backends.base import DebugTensor
from trt_native.calibration.reference_runner import ReferenceRunner
from trt_native.config import BuildConfig, CpuRuntime, Precision
from trt_native.errors import CudaError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.shapes import ProfileSpec
from trt_native.verify import (
    Thresholds,
    find_first_mismatch,
    observed_plans,
    open_with_extra_outputs,
)
from trt_native.verify.check import OpenPlan
from trt_native.verify.observed_plans import model_tensor

LIMITS = Thresholds(max_relative_error=1e-3)


class Runs:
    """Runs a model by ``onnx.reference`` with what a plan of it would return, and counts."""

    def __init__(self, path, outputs):
        self.path = path
        self.outputs = outputs
        self.extra_outputs = []

    @contextlib.contextmanager
    def __call__(self, names):
        self.extra_outputs.append(list(names))
        runner = ReferenceRunner(read_model(self.path), [*names, *self.outputs])
        yield lambda batch: dict(runner(batch))


def chain(path, length=100):
    """So many linear layers, each with a tanh, of width 8: t0, t1, ..."""
    random = np.random.default_rng(0)
    nodes, weights = [], {}
    for i in range(length):
        weights[f"w{i}"] = np.linalg.qr(random.standard_normal((8, 8)))[0].astype(np.float32)
        nodes.append(
            helper.make_node(
                "MatMul", [f"t{i - 1}" if i else "x", f"w{i}"], [f"m{i}"], name=f"mm{i}"
            )
        )
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh{i}"))
    shapes = [tiny_models.tensor(n, TensorProto.FLOAT, [4, 8]) for n in ("x", f"t{length - 1}")]
    return tiny_models.save(path, nodes, shapes[:1], shapes[1:], weights)


def perturbed(path, weight, factor=1.05):
    """A copy of the model with one weight scaled."""
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == weight:
            array = numpy_helper.to_array(initializer) * np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(array, weight))
    copy = path.with_name("perturbed.onnx")
    onnx.save(model, copy)
    return copy


@pytest.fixture
def x(rng):
    return {"x": rng.standard_normal((4, 8)).astype(np.float32)}


@pytest.mark.parametrize("layer", [0, 1, 37, 98, 99])
@pytest.mark.parametrize("tensors_per_plan", [1, 7, 1000])
def test_the_first_mismatch_is_found_with_few_plans(tmp_path, x, layer, tensors_per_plan):
    model = chain(tmp_path / "m.onnx")
    runs = Runs(perturbed(model, f"w{layer}"), ["t99"])
    memory = tensors_per_plan * 4 * 8 * 4
    report = find_first_mismatch(
        model, x, runs, LIMITS, reference=model, memory_bytes=memory, runtime=CpuRuntime.ONNX
    )
    assert (report.first.name, report.first.node) == (f"m{layer}", f"mm{layer}")
    assert report.first.operator == "MatMul"
    assert all(len(names) <= tensors_per_plan for names in runs.extra_outputs)
    # 200 tensors: one by one they need 8 halvings; and in the end what the node reads.
    most = {1: 9, 7: 4, 1000: 1}[tensors_per_plan]
    assert report.plans == len(runs.extra_outputs) <= most
    assert report.tensors == 200
    assert report.compared <= 200
    # The numbers are those of the two models, run as a whole.
    whole = [
        ReferenceEvaluator(str(path)).run(None, x, intermediate=True)[f"m{layer}"].astype(float)
        for path in (runs.path, model)
    ]
    error = np.linalg.norm(whole[0] - whole[1]) / np.linalg.norm(whole[1])
    assert report.first.comparison.relative_l2 == pytest.approx(error, rel=1e-9)
    assert not report.first.agrees
    errors = [probe.comparison.relative_l2 for probe in report.worst]
    assert errors == sorted(errors, reverse=True)
    assert len(report.worst) == min(10, report.compared)


def test_no_mismatch(tmp_path, x):
    model = chain(tmp_path / "m.onnx", 20)
    report = find_first_mismatch(model, x, Runs(model, ["t19"]), LIMITS)
    assert report.first is None
    assert (report.plans, report.compared) == (1, 40)
    assert report.to_json()["first"] is None


class FusedRuns(Runs):
    """As a plan whose outputs are wrong unless one of these tensors is an output of it."""

    def __init__(self, path, outputs, mending):
        super().__init__(path, outputs)
        self.mending = set(mending)

    @contextlib.contextmanager
    def __call__(self, names):
        with super().__call__(names) as run:

            def wrong(batch):
                factor = 1 if self.mending & set(names) else 1.5
                found = run(batch)
                return {n: a * factor if n in self.outputs else a for n, a in found.items()}

            yield wrong


class TestRemedies:
    @pytest.mark.parametrize("mending", ["m0", "t7", "m18"])
    def test_the_tensor_that_as_an_output_hides_the_fault(self, tmp_path, x, mending):
        model = chain(tmp_path / "m.onnx", 20)
        runs, broken = (FusedRuns(model, ["t19"], [mending]) for _ in range(2))
        report = find_first_mismatch(model, x, runs, LIMITS, open_broken=broken)
        assert report.first is None
        assert report.break_fusion == mending
        assert broken.extra_outputs == [[mending]]
        assert report.plans == len(runs.extra_outputs) + 1
        # 39 tensors: six that are seen alone, to locate the fault, and six halvings.
        assert report.plans <= 2 + 6 + 2 * 6 + 1
        assert report.to_json()["break_fusion"] == mending

    def test_what_only_hides_the_fault_is_not_proposed(self, tmp_path, x):
        model = chain(tmp_path / "m.onnx", 20)
        runs, broken = FusedRuns(model, ["t19"], ["t7"]), FusedRuns(model, ["t19"], [])
        report = find_first_mismatch(model, x, runs, LIMITS, open_broken=broken)
        assert report.break_fusion is None
        assert broken.extra_outputs[0] == ["t7"]
        assert report.hidden.tried == tuple(name for (name,) in broken.extra_outputs)
        assert report.hidden.untried not in report.hidden.tried

    def test_what_the_first_wrong_node_reads(self, tmp_path, x):
        """A fault that stays where its tensors are outputs."""
        model = chain(tmp_path / "m.onnx", 20)
        runs = Runs(perturbed(model, "w5"), ["t19"])
        broken = FusedRuns(model, ["t19"], ["t4"])
        report = find_first_mismatch(model, x, runs, LIMITS, reference=model, open_broken=broken)
        assert (report.first.name, report.break_fusion) == ("m5", "t4")

    def test_a_plan_whose_model_is_right(self, tmp_path, x):
        model = chain(tmp_path / "m.onnx", 4)
        runs, broken = Runs(model, ["t3"]), Runs(model, ["t3"])
        report = find_first_mismatch(model, x, runs, LIMITS, open_broken=broken)
        assert report.break_fusion is None
        assert broken.extra_outputs == []


class FusedKernel:
    """As plans in which one fused kernel is wrong, unless a tensor inside it is an output."""

    def __init__(self, model, wrong, outputs, inside):
        self.right, self.wrong = (Runs(path, outputs) for path in (model, wrong))
        self.inside = {*inside}
        self.opened = []

    def __call__(self, names):
        self.opened.append(list(names))
        return (self.right if self.inside & {*names} else self.wrong)(names)

    @contextlib.contextmanager
    def debug(self, made=None):
        """Gives out what is stored between kernels, by TensorRT's names for it."""
        graph = read_model(self.wrong.path).graph
        names = [str(v.name) for node in graph for v in node.outputs if v.name not in self.inside]
        runner = ReferenceRunner(read_model(self.wrong.path), names)

        def run(batch, receive):
            for number, (name, values) in enumerate(runner(batch)):
                receive(debug_tensor(f"{name}__fp16.{number}", values.astype(np.float16)))
            for tensor in made or ():
                receive(tensor)

        yield run


def debug_tensor(name, values):
    return DebugTensor(name, values.dtype.name, values.shape, values.copy)


class TestHiddenFaults:
    """w8 is wrong where the kernel that makes m8 from t6 is fused, as m7 and t7 are no outputs."""

    @pytest.fixture
    def model(self, tmp_path):
        return chain(tmp_path / "m.onnx", 20)

    @pytest.fixture
    def fused(self, model):
        return FusedKernel(model, perturbed(model, "w8"), ["t19"], ["m7", "t7"])

    def test_they_are_located_by_tensors_that_are_outputs_alone(self, model, x, fused):
        report = find_first_mismatch(
            model, x, fused, LIMITS, open_broken=lambda names: fused(names)
        )
        assert report.first is None
        hidden = report.hidden
        assert (hidden.last_match.name, hidden.mismatch.name) == ("t6", "m8")
        assert {hidden.last_match.observed, hidden.mismatch.observed} == {"only output"}
        assert {*hidden.hiding} <= {"m7", "t7"}
        assert hidden.between == ("t7", "m7", "t6")
        assert report.break_fusion == hidden.hiding[0]
        assert (report.plans, report.debug_tensors) == (len(fused.opened), 0)
        assert report.plans <= 2 + 8 + 1
        document = report.to_json()["hidden"]
        assert (document["last_match"]["name"], document["mismatch"]["name"]) == ("t6", "m8")

    def test_they_are_located_by_debug_tensors_in_one_plan(self, model, x, fused):
        report = find_first_mismatch(
            model, x, fused, LIMITS, open_broken=fused, open_debug=fused.debug
        )
        assert report.first is None
        hidden = report.hidden
        assert (hidden.last_match.name, hidden.mismatch.name) == ("t6", "m8")
        assert {hidden.last_match.observed, hidden.mismatch.observed} == {"debug tensor"}
        assert (report.compared, report.debug_tensors) == (40, 38)
        seen = {result.observed for result in report.worst}
        assert seen == {"debug tensor"}  # whose errors are larger than those of outputs
        assert report.break_fusion in {"m7", "t7"}

    def test_debug_tensors_alone(self, model, x, fused):
        report = find_first_mismatch(
            model, x, fused, LIMITS, open_broken=fused, open_debug=fused.debug, extra_outputs=False
        )
        assert (report.first.name, report.first.observed) == ("m8", "debug tensor")
        assert (report.hidden.last_match.name, report.hidden.mismatch.name) == ("t6", "m8")
        assert report.break_fusion == "t7"
        assert report.plans == 3  # debug tensors, none, and without the fusion
        assert fused.opened == [[], ["t7"]]

    def test_a_plan_that_is_right(self, model, x):
        right = FusedKernel(model, model, ["t19"], ["m7"])
        report = find_first_mismatch(model, x, right, LIMITS, open_debug=right.debug)
        assert (report.first, report.hidden, report.break_fusion) == (None, None, None)
        assert (report.debug_tensors, report.compared, report.plans) == (39, 40, 2)

    def test_no_debug_tensors(self, model, x, fused):
        """Where all is fused, the other way is used, or an error says so."""

        @contextlib.contextmanager
        def nothing():
            yield lambda batch, receive: None

        report = find_first_mismatch(model, x, fused, LIMITS, open_broken=fused, open_debug=nothing)
        assert report.hidden.mismatch.observed == "only output"
        with pytest.raises(UnsupportedError, match="gave out none of the model's tensors"):
            find_first_mismatch(model, x, fused, LIMITS, open_debug=nothing, extra_outputs=False)

    def test_what_is_none_of_the_models_tensors_is_not_read(self, model, x):
        def refuse():
            raise AssertionError

        made = [
            DebugTensor("__mye123", "float32", (4, 8), refuse),
            DebugTensor("t3.1", "int64", (4, 8), refuse),
            DebugTensor("t4", "float32", (4, 9), refuse),
            DebugTensor("x", "float32", (4, 8), refuse),
        ]
        right = FusedKernel(model, model, ["t19"], [])
        report = find_first_mismatch(
            model, x, right, LIMITS, open_debug=lambda: right.debug(made), extra_outputs=False
        )
        assert (report.debug_tensors, report.first) == (40, None)

    def test_values_in_another_order_are_not_judged(self, model, x):
        """TensorRT does not say whether a tensor has its channels last."""
        values = dict(ReferenceRunner(read_model(model), ["t3"])(x))["t3"]
        right = FusedKernel(model, model, ["t19"], ["t3"])

        def results(array):
            return find_first_mismatch(
                model,
                x,
                right,
                LIMITS,
                open_debug=lambda: right.debug([debug_tensor("t3.1", array)]),
                extra_outputs=False,
            )

        assert results(values.reshape(8, 4)).debug_tensors == 40
        assert results(values.T).debug_tensors == 39
        assert results(values * 2).first.name == "t3"

    def test_the_exception_of_a_run_is_raised(self, model, x, fused):
        @contextlib.contextmanager
        def fail():
            raise CudaError("out of memory")
            yield

        with pytest.raises(CudaError, match="out of memory"):
            find_first_mismatch(model, x, fused, LIMITS, open_debug=fail)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t1", "t1"),
        ("t1.1", "t1"),
        ("t1__fp16.12", "t1"),
        ("t1__fp16__fp32", "t1"),
        ("a.1", "a.1"),
        ("a.1.1", "a.1"),
        ("t12", None),
        ("__mye36366", None),
        ("t1_output", None),
        (".1", None),
    ],
)
def test_names_of_debug_tensors(name, expected):
    assert model_tensor(name, {"t1", "a.1"}) == expected


@pytest.mark.parametrize("weight", ["left3", "right3", "join"])
@pytest.mark.parametrize("tensors_per_plan", [1, 3, 1000])
def test_branches(tmp_path, x, weight, tensors_per_plan):
    """Two chains that meet: what agrees on one says nothing of the other."""
    random = np.random.default_rng(1)
    sides = [f"{side}{i}" for i in range(8) for side in ("left", "right")]
    weights = {
        name: np.linalg.qr(random.standard_normal((8, 8)))[0].astype(np.float32)
        for name in (*sides, "join")
    }
    nodes = []
    for name in sides:
        side, i = name[:-1], int(name[-1])
        read = f"{side}{i - 1}_out" if i else "x"
        nodes.append(helper.make_node("MatMul", [read, name], [f"{name}_out"], name=name))
    nodes.append(helper.make_node("Concat", ["left7_out", "right7_out"], ["both"], axis=0))
    nodes.append(helper.make_node("MatMul", ["both", "join"], ["y"], name="join"))
    model = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [tiny_models.tensor("x", TensorProto.FLOAT, [4, 8])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [8, 8])],
        weights,
    )
    runs = Runs(perturbed(model, weight), ["y"])
    memory = max(tensors_per_plan * 4 * 8 * 4, 8 * 8 * 4)
    report = find_first_mismatch(model, x, runs, LIMITS, reference=model, memory_bytes=memory)
    assert report.first.node == weight
    assert report.plans <= 8


def random_graph(path, random, length=40):
    """Nodes that read one or two of the values before them, and hide nothing of either."""
    nodes, weights, names = [], {}, ["x"]
    for i in range(length):
        weights[f"w{i}"] = np.linalg.qr(random.standard_normal((8, 8)))[0].astype(np.float32)
        read = [names[j] for j in random.integers(max(0, len(names) - 6), len(names), 2)]
        if random.random() < 0.4:
            nodes.append(helper.make_node("Add", read, [f"a{i}"], name=f"add{i}"))
            names.append(f"a{i}")
            read = names[-1:]
        nodes.append(helper.make_node("MatMul", [read[0], f"w{i}"], [f"m{i}"], name=f"mm{i}"))
        names.append(f"m{i}")
    unread = set(names) - {name for node in nodes for name in node.input}
    shapes = [tiny_models.tensor(n, TensorProto.FLOAT, [4, 8]) for n in ("x", *sorted(unread))]
    tiny_models.save(path, nodes, shapes[:1], shapes[1:], weights)
    return sorted(unread)


@pytest.mark.parametrize("seed", range(12))
def test_any_graph(tmp_path, x, seed):
    random = np.random.default_rng(seed)
    model = tmp_path / "m.onnx"
    outputs = random_graph(model, random)
    layer, memory = random.integers(40), random.integers(1, 9) * 4 * 8 * 4
    runs = Runs(perturbed(model, f"w{layer}", 1.2), outputs)
    report = find_first_mismatch(model, x, runs, LIMITS, reference=model, memory_bytes=memory)
    assert report.first.node == f"mm{layer}"
    assert report.plans <= 10
    assert report.compared < report.tensors


def cancelling(path, factor):
    """The tiny difference of two nearly equal tensors, then moved about."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["a"], name="a"),
        helper.make_node("Sub", ["a", "x"], ["difference"], name="sub"),
        helper.make_node("Relu", ["difference"], ["moved"], name="relu"),
        helper.make_node("Transpose", ["moved"], ["turned"], name="turn"),
        helper.make_node("Add", ["moved", "x"], ["y"], name="add"),
    ]
    shapes = [tiny_models.tensor(n, TensorProto.FLOAT, [4, 8]) for n in "xy"]
    weights = {"factor": np.array(factor, np.float32)}
    return tiny_models.save(path, nodes, shapes[:1], shapes[1:], weights)


def test_cancellation_is_not_a_mismatch(tmp_path, x):
    model, other = (cancelling(tmp_path / f"{i}.onnx", 1 + 2.0**-20 * (1 + i)) for i in range(2))
    report = find_first_mismatch(model, x, Runs(other, ["y"]), LIMITS, reference=model)
    assert report.compared == 5
    assert report.first is None
    # Not because such tensors are never judged: one as wrong as its operands are large is.
    wrong = cancelling(tmp_path / "wrong.onnx", 1.01)
    report = find_first_mismatch(model, x, Runs(wrong, ["y"]), LIMITS, reference=model)
    assert report.first.name == "a"


def test_nonfinite_values_mismatch(tmp_path, x):
    model = chain(tmp_path / "m.onnx", 6)
    report = find_first_mismatch(
        model, x, Runs(perturbed(model, "w2", np.inf), ["t5"]), LIMITS, reference=model
    )
    assert report.first.name == "m2"
    assert report.worst[0].comparison.nonfinite_differs
    assert math.isfinite(report.first.comparison.relative_l2)


def test_tensors_larger_than_the_memory_are_named(tmp_path, x):
    model = tiny_models.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Concat", ["x"] * 9, ["large"], axis=0),
            helper.make_node("ReduceMean", ["large", "axes"], ["y"], name="mean"),
        ],
        [tiny_models.tensor("x", TensorProto.FLOAT, [4, 8])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [1, 8])],
        {"axes": np.array([0])},
    )
    report = find_first_mismatch(model, x, Runs(model, ["y"]), LIMITS, memory_bytes=500)
    assert (report.too_large, report.compared, report.tensors) == (("large",), 1, 2)
    with pytest.raises(SpecError, match="memory of 8 B: none of the 2 tensors is so small"):
        find_first_mismatch(model, x, Runs(model, ["y"]), LIMITS, memory_bytes=8)


def test_models_with_nothing_in_common(tmp_path, x):
    one, other = chain(tmp_path / "m.onnx", 3), tiny_models.norm(tmp_path / "n.onnx")
    with pytest.raises(SpecError, match="no tensor names in common"):
        find_first_mismatch(one, x, Runs(one, []), LIMITS, reference=other)
    with pytest.raises(SpecError, match="no limit is given"):
        find_first_mismatch(one, x, Runs(one, []), Thresholds())


def test_too_little_gpu_memory_says_what_to_lower(tmp_path, x):
    @contextlib.contextmanager
    def fail(names):
        raise CudaError("out of memory")
        yield

    with pytest.raises(CudaError, match=r"out of memory \(with 6 tensors of 768 B .*lower the mem"):
        find_first_mismatch(chain(tmp_path / "m.onnx", 3), x, fail, LIMITS)


def test_tensors_in_functions_and_bodies(tmp_path):
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18, "mine": 1]>
        g (float[4] x, bool c) => (float[4] y) {
            a = Relu(x)
            b = If(c) <
                then_branch = t () => (float[4] then) { then = Exp(a) },
                else_branch = e () => (float[4] else) { else = Identity(a) }
            >
            y = mine.twice(b)
        }
        <domain: "mine", opset_import: ["": 18]>
        twice (p) => (q) { r = Neg(p)  q = Sub(p, r) }
    """)
    onnx.save(proto, tmp_path / "m.onnx")
    for value in proto.graph.node[0].output:
        assert value == "a"
    proto.graph.node[1].attribute[0].g.node[0].op_type = "Sin"
    onnx.save(proto, tmp_path / "wrong.onnx")

    @contextlib.contextmanager
    def run(names):
        from trt_native.verify.reference import read_inlined

        runner = ReferenceRunner(read_inlined(tmp_path / "wrong.onnx"), [*names, "y"])
        yield lambda batch: dict(runner(batch))

    batch = {"x": np.ones(4, np.float32), "c": np.array(True)}
    model = tmp_path / "m.onnx"
    report = find_first_mismatch(model, batch, run, LIMITS, memory_bytes=16)
    assert (report.first.name, report.first.operator) == ("b", "If")
    assert report.tensors == 4  # a, b, y and what the function's first node makes


@pytest.mark.backend
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_extra_outputs_of_real_plans(tmp_path, rng, monkeypatch, precision):
    """TensorRT-RTX builds each plan; what it parsed for it runs by ``onnx.reference``."""
    pytest.importorskip("tensorrt_rtx")
    from trt_native.backends.registry import load_backend
    from trt_native.config import QuantizationSpec

    model = tiny_models.dense(tmp_path / "m.onnx", layers=4)
    calib = tiny_models.calibration(model, tmp_path / "m.calib", 4.0)
    wrong = perturbed(model, "w2", 1.5)
    tiny_models.calibration(wrong, calib, 4.0)
    backend = load_backend("rtx")
    parsed, plans = [], []
    build = backend.build

    def keep(request, *arguments):
        parsed.append(onnx.load(request.onnx))
        return build(request, *arguments)

    @contextlib.contextmanager
    def open_kept(plan):
        plans.append(plan)
        outputs = [tensor.name for tensor in plan.manifest.outputs]
        assert outputs == [value.name for value in parsed[-1].graph.output]
        runner = ReferenceRunner(ir.from_proto(parsed[-1]), outputs)
        yield OpenPlan(plan.manifest.inputs, plan.manifest.outputs, lambda b: dict(runner(b)))

    monkeypatch.setattr(backend, "build", keep)
    monkeypatch.setattr(observed_plans, "open_session", open_kept)
    quantized = precision is Precision.INT8
    config = BuildConfig(
        precision=precision,
        profiles=(ProfileSpec.parse(["batch=1:3:4"]),),
        quantization=QuantizationSpec(calibration_cache=calib) if quantized else QuantizationSpec(),
    )
    limits = Thresholds(max_relative_error=0.1 if quantized else 5e-3)
    report = find_first_mismatch(
        model,
        {"h0": rng.standard_normal((3, 64)).astype(np.float32)},
        lambda names: open_with_extra_outputs(wrong, config, names, backend=backend),
        limits,
        reference=model,
        memory_bytes=2 * 3 * 64 * 4,
    )
    assert (report.first.name, report.first.node) == ("p2", "/dense.2")
    assert len(plans) == report.plans > 1
    assert {tensor.dtype for plan in plans for tensor in plan.manifest.outputs} == (
        {"float32"} if precision is Precision.FP32 else {"float16", "float32"}
    )
    for plan in plans:
        assert plan.manifest.precision["applied"] == str(precision)
