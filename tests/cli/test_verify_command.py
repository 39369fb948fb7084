"""``trt-native verify``, with ``onnx.reference`` of a chosen model in place of plans."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.html_reader import Collector
from helpers.made_plans import make_plan, tensor
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.backends.base import DebugTensor
from trt_native.backends.registry import load_backend
from trt_native.calibration.reference_runner import ReferenceRunner
from trt_native.config import BuildConfig, Precision
from trt_native.files import sha256_of_file
from trt_native.graph.onnx_file import read_model
from trt_native.shapes import ProfileSpec
from trt_native.verify import check, observed_plans
from trt_native.verify.check import OpenPlan

ONNX = ("--reference-runner", "onnx")
H0 = tensor("h0", "input", "float32", "1x64:2x64:4x64", dims=("batch", None))
H2 = tensor("h2", "output", "float32", shape=(-1, 64), dims=("batch", None))


def scaled(path, copy, weight, factor):
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == weight:
            array = numpy_helper.to_array(initializer) * np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, copy)
    return copy


@pytest.fixture
def model(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx")


@pytest.fixture
def plan(tmp_path):
    precision = {"requested": "fp16", "applied": "fp16", "tf32": True}
    return make_plan(tmp_path / "m.plan", (H0, H2), precision=precision).path


@pytest.fixture
def runs(monkeypatch):
    """Let plans compute the outputs of an ONNX file."""

    def put_in(path):
        @contextlib.contextmanager
        def open_session(plan):
            outputs = [tensor.name for tensor in plan.manifest.outputs]
            runner = ReferenceRunner(read_model(path), outputs)
            yield OpenPlan(plan.manifest.inputs, plan.manifest.outputs, lambda b: dict(runner(b)))

        monkeypatch.setattr(check, "open_session", open_session)
        monkeypatch.setattr(observed_plans, "open_session", open_session)

    return put_in


@pytest.fixture
def verify(main_in_process):
    return functools.partial(main_in_process, "verify")


def test_a_plan_that_agrees(model, plan, runs, verify):
    runs(model)
    code, out, err = verify(plan, "--against", model, "--random", 0)
    assert (code, err) == (0, "")
    assert (
        "Limits: relative L2 <= 0.01; the relative error is the default for a plan in fp16." in out
    )
    assert "2x64" in out
    assert out.endswith("PASSED: all outputs are within the tolerance.\n")


def test_the_report_as_json(model, plan, runs, verify, tmp_path):
    wrong = scaled(model, tmp_path / "wrong.onnx", "w1", 1.02)
    runs(wrong)
    np.save(tmp_path / "h0.npy", np.random.default_rng(3).standard_normal((3, 64), np.float32))
    given = ("--input", f"h0={tmp_path / 'h0.npy'}")
    code, out, _ = verify(plan, "--against", model, *given, "--json")
    report = json.loads(out)
    assert (code, report["passed"]) == (1, False)
    inputs = {"h0": np.load(tmp_path / "h0.npy")}
    p, r = (ReferenceEvaluator(str(path)).run(None, inputs)[0] for path in (wrong, model))
    p, r = p.astype(np.float64), r.astype(np.float64)
    (output,) = report["outputs"]
    assert output["name"] == "h2"
    assert output["shape"] == [3, 64]
    error = np.linalg.norm(p - r) / np.linalg.norm(r)
    assert error == pytest.approx(0.02, rel=1e-3)
    assert output["relative_l2"] == pytest.approx(error)
    assert output["max_abs"] == pytest.approx(np.abs(p - r).max())
    assert output["problems"] == ["relative L2 0.02 > 0.01"]
    assert report["thresholds"]["max_relative_error"] == 0.01
    assert report["layers"] is None


def test_the_page(model, plan, runs, verify, tmp_path):
    wrong = scaled(model, tmp_path / "wrong.onnx", "w1", 1.02)
    runs(wrong)
    page = tmp_path / "v.html"
    code, _, err = verify(plan, "--against", model, "--random", 0, "--html", page)
    assert (code, err) == (1, f"written to {page}\n")
    text = Collector(page.read_text()).text
    assert "FAILED: 1 of 1 outputs exceed the tolerance." in text
    assert any(line.startswith("h2: relative L2 0.02 > 0.01") for line in text)
    assert any(line.startswith("The model's nodes are not shown: ") for line in text)
    code, _, err = verify(plan, "--against", model, "--random", 0, "--html", plan)
    assert code == 1
    assert f"cannot write {plan}" in err


def test_the_page_shows_the_reference_that_the_plan_was_built_from(model, tmp_path, runs, verify):
    runs(model)
    source = {"file": "gone.onnx", "bytes": 1, "sha256": sha256_of_file(model), "external": []}
    plan = make_plan(tmp_path / "m.plan", (H0, H2), model=source).path
    page = tmp_path / "v.html"
    code, _, _ = verify(plan, "--against", model, "--random", 0, "--html", page)
    assert code == 0
    assert '"k":"MatMul"' in page.read_text()


def test_limits(model, plan, runs, verify, tmp_path):
    runs(scaled(model, tmp_path / "wrong.onnx", "w1", 1.02))
    base = (plan, "--against", model, "--random", 0)
    code, out, _ = verify(*base, "--max-relative-error", 0.03)
    assert code == 0
    assert "relative L2 <= 0.03; the relative error is as given" in out
    for option, passing, failing in (
        ("--max-absolute-error", 1, 1e-3),
        ("--min-cosine", 0.999, 1),
        ("--min-psnr", 20, 80),
    ):
        lenient = (*base, "--max-relative-error", "inf")
        assert verify(*lenient, option, passing)[0] == 0
        code, out, _ = verify(*lenient, option, failing)
        assert code == 1
        assert "h2 fails: " in out


def test_several_batches_and_a_golden_file(model, plan, runs, verify, tmp_path):
    runs(model)
    golden = tmp_path / "golden.npz"
    given = ("--random", 7, "--seeds", 3, "--shape", "h0=4x64")
    code, out, err = verify(plan, "--against", model, *given, "--save", golden)
    assert (code, err) == (0, f"written to {golden}\n")
    assert "the worst of 3 batches" in out
    with np.load(golden) as stored:
        assert len(stored.files) == 6
        first, last = stored["batch_0000/h0"], stored["batch_0002/h0"]
        assert not np.array_equal(first, last)
        expected = ReferenceEvaluator(str(model)).run(None, {"h0": last})[0]
        np.testing.assert_allclose(stored["batch_0002/h2"], expected, rtol=1e-6)
    model.unlink()
    assert verify(plan, "--against", golden)[0] == 1  # the plan runs by the model
    tiny_models.dense(model)
    assert verify(plan, "--against", golden)[0] == 0
    runs(scaled(model, tmp_path / "wrong.onnx", "w1", 1.02))
    code, out, _ = verify(plan, "--against", golden)
    assert code == 1
    assert "(batch 0); relative L2 0.02 > 0.01 (batch 1); relative L2" in out


@pytest.fixture
def run_shapes(monkeypatch, model):
    """Shapes that a plan was run with; its outputs are those of the model."""
    shapes = []

    @contextlib.contextmanager
    def open_session(plan):
        runner = ReferenceRunner(read_model(model), ["h2"])

        def run(batch):
            shapes.append(batch["h0"].shape)
            return dict(runner(batch))

        yield OpenPlan(plan.manifest.inputs, plan.manifest.outputs, run)

    monkeypatch.setattr(check, "open_session", open_session)
    return shapes


def test_random_inputs_go_to_the_corners(model, plan, run_shapes, verify):
    report = json.loads(verify(plan, "--against", model, "--random", 5, "--json")[1])
    assert run_shapes == [(n, 64) for n in (2, 2, 1, 1, 4, 4)]
    assert report["labels"] == [
        f"{corner}, seed {seed}" for corner in ("opt", "batch=1", "batch=4") for seed in (5, 6)
    ]
    assert report["skipped"] == {}
    errors = [batch[0]["relative_l2"] for batch in report["batches"]]
    assert len(errors) == 6


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (["--seeds", 1], [2, 1, 4]),
        (["--no-corners"], [2, 2]),
        (["--no-corners", "--seeds", 3], [2, 2, 2]),
        (["--shape", "h0=3x64"], [3, 3]),
        (["--corners", "--seeds", 1], [2, 1, 4]),
    ],
)
def test_what_decides_on_the_corners(model, plan, run_shapes, verify, options, shapes):
    assert verify(plan, "--against", model, "--random", 0, *options)[0] == 0
    assert run_shapes == [(n, 64) for n in shapes]


def test_a_fault_at_one_corner(model, plan, runs, verify, monkeypatch):
    runs(model)
    right = check.open_session

    @contextlib.contextmanager
    def wrong_at_four(plan):
        with right(plan) as opened:

            def run(batch):
                factor = np.float32(1.5 if batch["h0"].shape[0] == 4 else 1)
                return {name: array * factor for name, array in opened.run(batch).items()}

            yield OpenPlan(opened.inputs, opened.outputs, run)

    monkeypatch.setattr(check, "open_session", wrong_at_four)
    code, out, _ = verify(plan, "--against", model, "--random", 0)
    assert code == 1
    fails = "h2 fails: relative L2 0.5 > 0.01 (batch=4, seed 0); relative L2 0.5 > 0.01 (batch=4,"
    assert fails in " ".join(out.split())
    assert verify(plan, "--against", model, "--random", 0, "--no-corners")[0] == 0


def test_batches_of_data(model, plan, runs, verify, tmp_path, rng):
    runs(model)
    (tmp_path / "data").mkdir()
    for number in range(3):
        array = rng.standard_normal((1 + number, 64))
        np.savez(tmp_path / "data" / f"{number}.npz", h0=array)
    base = (plan, "--against", model, "--data", tmp_path / "data", "--json")
    report = json.loads(verify(*base)[1])
    assert [batch[0]["shape"] for batch in report["batches"]] == [[1, 64], [2, 64], [3, 64]]
    assert len(json.loads(verify(*base, "--batches", 2)[1])["batches"]) == 2


def test_against_a_function(model, plan, runs, verify, tmp_path):
    runs(model)
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(model).graph.initializer}
    np.savez(tmp_path / "weights.npz", **weights)
    code = """
        import numpy as np, pathlib
        W = np.load(pathlib.Path(__file__).parent / "weights.npz")
        def net(h0):
            h0 = np.asarray(h0)  # or a tensor, where another test has imported torch
            return np.maximum(np.maximum(h0 @ W["w0"], 0) @ W["w1"], 0)
        def off(h0):
            return 1.1 * net(h0)
        def broken(h0):
            return net(h0) * np.nan
        """
    (tmp_path / "ref.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    base = (plan, "--random", 0, "--against")
    assert verify(*base, f"{tmp_path}/ref.py:net")[0] == 0
    assert verify(*base, f"{tmp_path}/ref.py:off")[0] == 1
    code, out, _ = verify(*base, f"{tmp_path}/ref.py:broken")
    assert code == 1
    assert "0 / 896" in out  # of 2 seeds at 2, 1 and 4 rows
    assert "h2 fails: 128 NaN or infinite on one side alone (opt, seed 0)" in out


@pytest.fixture
def built(tmp_path):
    """A plan that TensorRT-RTX built from a copy of the model with another weight."""
    pytest.importorskip("tensorrt_rtx")
    from trt_native import build_plan

    model = tiny_models.dense(tmp_path / "m.onnx", layers=3)
    wrong = scaled(model, tmp_path / "wrong.onnx", "w1", 1.1)
    profile = ProfileSpec.parse(["batch=1:2:4"])
    config = BuildConfig(profiles=(profile,), precision=Precision.FP32)
    return build_plan(wrong, config, backend="rtx").save(tmp_path / "m.plan")


@pytest.mark.backend
class TestLayers:
    def test_they_name_the_node(self, built, runs, verify, tmp_path):
        runs(tmp_path / "wrong.onnx")
        base = (built, "--against", tmp_path / "m.onnx", "--random", 0, "--layers", *ONNX)
        code, out, err = verify(*base)
        assert code == 1
        assert (
            "First mismatch: p1 (output of Gemm '/dense.1'); all inputs of that node match." in out
        )
        # One of the tensors, one of none, and two in which a fusion around the node is broken.
        assert "Compared 6 of 6 tensors; plans built: 4." in out
        assert "warning" not in err
        # Room for one tensor at a time: more plans, the same answer.
        document = json.loads(verify(*base, "--memory", "512", "--json")[1])
        report = document["layers"]
        assert report["first"]["node"] == "/dense.1"
        assert report["plans"] > 1
        runner = f"onnx.reference {onnx.__version__}"
        assert document["reference_runner"] == runner
        assert report["reference"] == f"{tmp_path / 'm.onnx'}, run by {runner}"

    def test_a_golden_file_needs_the_model_next_to_the_plan(self, built, runs, verify, tmp_path):
        runs(tmp_path / "wrong.onnx")
        golden = tmp_path / "g.npz"
        base = (built, "--against")
        verify(*base, tmp_path / "m.onnx", "--random", 0, "--save", golden)
        code, out, _ = verify(*base, golden, "--layers")
        assert code == 1
        assert "No intermediate tensor exceeds the tolerance when it is marked as an output" in out
        shutil.move(tmp_path / "wrong.onnx", tmp_path / "elsewhere.onnx")
        code, _, err = verify(*base, golden, "--layers")
        assert code == 1
        assert "wrong.onnx (SHA-256" in err
        assert "or name the ONNX file with --model" in err
        runs(tmp_path / "elsewhere.onnx")
        code, out, err = verify(*base, golden, "--layers", "--model", tmp_path / "elsewhere.onnx")
        assert "No intermediate tensor exceeds the tolerance" in out
        assert "warning" not in err

    def test_a_model_that_is_not_the_plans(self, built, runs, verify, tmp_path):
        runs(tmp_path / "wrong.onnx")
        base = (built, "--against", tmp_path / "m.onnx", "--random", 0, "--layers", *ONNX)
        code, _, err = verify(*base, "--model", tmp_path / "m.onnx")
        assert code == 1
        assert "warning: the plan was not built from" in err

    def test_what_layers_need(self, built, plan_of_others, verify, tmp_path):
        base = ("--against", tmp_path / "m.onnx", "--random", 0)
        assert "no manifest" in verify(plan_of_others, *base, "--layers")[2]
        assert "for --layers, which is not given" in verify(built, *base, "--memory", "1GiB")[2]
        assert "not a size" in verify(built, *base, "--layers", "--memory", "lots")[2]
        assert (
            "--memory must be at least 1 byte"
            in verify(built, *base, "--layers", "--memory", "0")[2]
        )
        missing = verify(built, *base, "--layers", "--model", tmp_path / "none.onnx")[2]
        assert "none.onnx: cannot be read: No such file" in missing

    def test_a_fusion_to_break(self, built, verify, tmp_path, monkeypatch):
        """Plans whose output is wrong unless they were built without the fusion across p1."""
        model = tmp_path / "wrong.onnx"

        @contextlib.contextmanager
        def open_session(plan):
            names = [tensor.name for tensor in plan.manifest.outputs]
            broken = "p1" in plan.manifest.options.get("break_fusions", ())
            runner = ReferenceRunner(read_model(model), names)

            def run(batch):
                factor = np.float32(1 if broken or "p1" in names else 2)
                found = runner(batch)
                return {n: a * factor if n == "h3" else a for n, a in found}

            yield OpenPlan(plan.manifest.inputs, plan.manifest.outputs, run)

        monkeypatch.setattr(check, "open_session", open_session)
        monkeypatch.setattr(observed_plans, "open_session", open_session)
        base = (built, "--against", model, "--random", 0, "--seeds", 1, "--no-corners")
        code, out, _ = verify(*base, "--layers")
        assert code == 1
        assert (
            "The outputs match where TensorRT does not fuse nodes across p1: build the plan with"
            " --break-fusion p1" in out
        )
        assert json.loads(verify(*base, "--layers", "--json")[1])["layers"]["break_fusion"] == "p1"

    def test_a_hidden_fault_is_located(self, built, verify, tmp_path, monkeypatch):
        """Plans that are wrong from p1 on, unless h1, inside of a kernel, is an output."""
        model, wrong = tmp_path / "wrong.onnx", tmp_path / "worse.onnx"
        scaled(model, wrong, "w1", 1.5)

        @contextlib.contextmanager
        def open_session(plan):
            names = [tensor.name for tensor in plan.manifest.outputs]
            right = "h1" in (*names, *plan.manifest.options.get("break_fusions", ()))
            runner = ReferenceRunner(read_model(model if right else wrong), names)
            yield OpenPlan(plan.manifest.inputs, plan.manifest.outputs, lambda b: dict(runner(b)))

        monkeypatch.setattr(check, "open_session", open_session)
        monkeypatch.setattr(observed_plans, "open_session", open_session)
        base = (built, "--against", model, "--random", 0, "--seeds", 1, "--no-corners", "--layers")
        code, out, _ = verify(*base)
        assert code == 1
        assert (
            "Only without the further outputs there is a mismatch, so a fusion is at fault: between"
            " p0 (MatMul '/dense.0'; as only output: matches) and p1 (Gemm '/dense.1'; as only"
            " output: does not match)." in out
        )
        assert "build the plan with --break-fusion h1" in out
        page = tmp_path / "page.html"
        verify(*base, "--html", page)
        assert "so a fusion is at fault" in page.read_text()

    def test_debug_tensors(self, built, runs, verify, tmp_path, monkeypatch):
        """TensorRT-RTX builds plans with the marks; who gives out their tensors is replaced."""
        runs(tmp_path / "wrong.onnx")
        backend = load_backend("rtx")
        has_them = dataclasses.replace(backend.capabilities, debug_tensors=True)
        monkeypatch.setattr(backend, "capabilities", has_them)
        marked, build = [], backend.build

        def keep(request, *arguments):
            marked.append(request.debug_tensors)
            return build(request, *arguments)

        monkeypatch.setattr(backend, "build", keep)

        class Session:
            def __init__(self, plan):
                assert plan.manifest.backend == "rtx"

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                pass

            def debug_tensors(self, batch, receive):
                runner = ReferenceRunner(read_model(tmp_path / "wrong.onnx"), ["p0", "p1", "p2"])
                for name, array in runner(batch):
                    receive(DebugTensor(f"{name}.1", str(array.dtype), array.shape, array.copy))

        monkeypatch.setattr(observed_plans, "Session", Session)
        base = (built, "--against", tmp_path / "m.onnx", "--random", 0, "--layers", *ONNX)
        code, out, _ = verify(*base)
        assert code == 1
        assert "First mismatch: p1 (output of Gemm '/dense.1'); all inputs of that" in out
        assert "Compared 6 of 6 tensors, 3 as debug tensors; plans built: 5." in out
        assert marked == [True, False, False, False, False]
        code, out, _ = verify(*base, "--observe", "debug-tensors")
        assert "First mismatch: between p0 (MatMul '/dense.0'; as debug tensor: matches) and" in out
        assert "Compared 3 of 6 tensors, 3 as debug tensors;" in out
        marked.clear()
        report = json.loads(verify(*base, "--observe", "outputs", "--json")[1])["layers"]
        assert (report["debug_tensors"], any(marked)) == (0, False)
        assert {row["observed"] for row in report["worst"]} == {"output"}

    def test_ways_to_observe_that_there_are_not(self, built, runs, verify, tmp_path):
        runs(tmp_path / "wrong.onnx")
        base = (built, "--against", tmp_path / "m.onnx", "--random", 0)
        assert "for --layers, which is not" in verify(*base, "--observe", "outputs")[2]
        assert "'x' is none of: auto, outputs" in verify(*base, "--layers", "--observe", "x")[2]
        code, _, err = verify(*base, "--layers", "--observe", "debug-tensors")
        assert code == 1
        assert "gives out no debug tensors; leave it out, or use outputs" in err

    @pytest.fixture
    def plan_of_others(self, built, tmp_path):
        copy = tmp_path / "other.plan"
        shutil.copy(built, copy)
        return copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--against", "m.onnx"],
            "no inputs: give --input NAME=FILE.npy, --random SEED, or --data",
        ),
        (["--against", "none.onnx", "--random", "0"], "none.onnx: cannot be read: No such file"),
        (["--against", "m.pt", "--random", "0"], "reference m.pt: no such file; name an ONNX file"),
        (["--against", "nothing:f", "--random", "0"], "there is no module nothing"),
        (["--against", "none.npz"], "none.npz: cannot be read: No such file"),
        (["--against", "g.npz", "--random", "0"], "leave --input, --random and --data out"),
        (["--against", "g.npz", "--save", "h.npz"], "--save: --against names stored outputs"),
        (["--against", "g.npz"], "h2 is missing"),
        (["--against", "m.onnx", "--input", "g.npz", "--input", "g.npz"], "h0 was given before"),
        (
            ["--against", "m.onnx", "--random", "0", "--shape", "h0=1x64", "--shape", "h0=1x64"],
            "h0 was given before",
        ),
        (["--against", "m.onnx", "--random", "-1"], "--random -1: a seed must not be negative"),
        (["--against", "m.onnx", "--data", "d", "--batches", "0"], "0: must be at least 1"),
        (["--against", "m.onnx", "--random", "0", "--batches", "2"], "--batches: no effect"),
        (["--against", "m.onnx", "--random", "0", "--seeds", "0"], "0: must be at least 1"),
        (["--against", "m.onnx", "--input", "g.npz", "--seeds", "2"], "--seeds: no effect"),
        (["--against", "m.onnx", "--input", "g.npz", "--corners"], "--corners: no effect without"),
        (
            ["--against", "m.onnx", "--random", "0", "--shape", "h0=1x64", "--corners"],
            "--corners: no effect with --input or --shape",
        ),
        (["--against", "m.onnx", "--input", "g.npz", "--batches", "2"], "--batches: no effect"),
        (["--against", "m.onnx", "--random", "0", "--data", "d"], "leave --input and --random out"),
        (["--against", "m.onnx", "--data", "d"], "d: no such calibration data"),
        (["--against", "m.onnx", "--random", "0", "--shape", "h0"], "write NAME=1x3x8x8"),
        (["--against", "m.onnx", "--random", "0", "--shape", "h0=9x64"], "outside 1x64:2x64:4x64"),
        (
            ["--against", "m.onnx", "--random", "0", "--shape", "q=9"],
            "--shape q: the inputs are h0",
        ),
        (
            ["--against", "m.onnx", "--shape", "h0=1x64", "--input", "g.npz"],
            "no effect without --ra",
        ),
        (["--against", "m.onnx", "--random", "0", "--min-cosine", "2"], "lies between -1 and 1"),
        (["--against", "m.onnx", "--random", "0", "--max-relative-error", "-1"], "at least 0"),
        (["--against", "m.onnx", "--random", "0", "--save", "none/h.npz"], "none"),
        (
            ["--against", "other.onnx", "--random", "0"],
            "has no tensor 'h2', which the plan returns",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input(model, plan, runs, verify, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    runs(model)
    tiny_models.norm(tmp_path / "other.onnx")
    np.savez(tmp_path / "g.npz", h0=np.ones((2, 64), np.float32))
    before = sorted(os.listdir(tmp_path))
    code, out, err = verify(plan, *options)
    assert (code, out) == (1, "")
    assert message in " ".join(err.split())
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_but_nan_does_not_agree(model, plan, runs, verify, tmp_path):
    runs(model)
    np.save(tmp_path / "h0.npy", np.full((2, 64), np.nan, np.float32))
    code, out, err = verify(plan, "--against", model, "--input", f"h0={tmp_path / 'h0.npy'}")
    assert code == 1
    assert "h2 fails: nothing to compare: no value is finite" in out
    assert err == "warning: input 'h0' has NaN or infinite values\n"


def test_wrong_usage_is_exit_code_2(plan, verify):
    assert verify(plan)[0] == 2
    assert verify(plan, "--against", "m.onnx", "--min-psnr", "loud")[0] == 2


def test_names_of_70_kilobytes(runs, verify, tmp_path):
    name = "h" * 70_000
    model = tiny_models.dense(tmp_path / "m.onnx", name=name)
    tensors = (dataclasses.replace(H0, name=f"{name}0"), dataclasses.replace(H2, name=f"{name}2"))
    plan = make_plan(tmp_path / "m.plan", tensors).path
    runs(model)
    code, out, _ = verify(plan, "--against", model, "--random", 0)
    assert code == 0
    assert len(out) < 5000
    found = json.loads(verify(plan, "--against", model, "--random", 0, "--json")[1])
    assert found["outputs"][0]["name"] == f"{name}2"
    np.savez(tmp_path / "g.npz", h0=np.zeros((1, 64), np.float32))
    code, out, err = verify(plan, "--against", tmp_path / "g.npz")
    assert code == 1
    assert len(err) < 8000
    code, out, err = verify(plan, "--against", model, "--random", 0, "--save", tmp_path / "s.npz")
    assert code == 1
    assert "is too long for an .npz file" in err
    assert not (tmp_path / "s.npz").exists()
