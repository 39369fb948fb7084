"""References against the model run as a whole, torch, and NumPy."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.contrib_cases import ONNXRUNTIME
from helpers.made_plans import tensor
from helpers.text_models import model
from onnx.reference import ReferenceEvaluator

from trt_native.config import CpuRuntime
from trt_native.errors import ModelError, SpecError
from trt_native.progress_bars import open_progress
from trt_native.verify import CallableReference, GoldenFile, OnnxReference, open_reference
from trt_native.verify.reference import golden_writer


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """Writes a module of the user's in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(text, name="mine_to_verify"):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_an_onnx_file(tmp_path, rng):
    path = tiny_models.norm(tmp_path / "m.onnx")
    reference = open_reference(str(path), runtime=CpuRuntime.ONNX)
    assert isinstance(reference, OnnxReference)
    evaluator = ReferenceEvaluator(str(path))
    for batch in (1, 3):
        x = rng.standard_normal((batch, 16)).astype(np.float32)
        whole = evaluator.run(None, {"x": x}, intermediate=True)
        for names in (["y"], ["m", "y"], ["y"]):
            found = reference({"x": x}, names)
            assert sorted(found) == names
            for name in names:
                np.testing.assert_array_equal(found[name], whole[name])


def test_progress_receives_every_node(tmp_path):
    calls = []
    path = tiny_models.norm(tmp_path / "m.onnx")
    count = len(onnx.load(path).graph.node)
    with open_progress(lambda *call: calls.append(call)) as progress:
        OnnxReference(path, runtime=CpuRuntime.ONNX)(
            {"x": np.ones((1, 16), np.float32)}, ["y"], progress
        )
    assert calls == [("Running the reference", done, count) for done in range(count + 1)]
    calls.clear()
    with open_progress(lambda *call: calls.append(call)) as progress:
        CallableReference("builtins:dict")({"y": np.ones(1)}, ["y"], progress)
    assert calls == [("Calling builtins:dict", 0, 1)]


def test_a_fused_operator_is_computed_by_a_formula_of_this_package_and_named(tmp_path, rng):
    case = ONNXRUNTIME["attention_past"]
    path = tmp_path / "m.onnx"
    onnx.save(case.model(), path)
    reference = OnnxReference(path)
    program = f"onnx.reference {onnx.__version__} with formulas of trt_native for Attention"
    assert reference.runner == program
    assert reference.name == f"{path}, run by {program}"
    found = reference(case.batch, ["o0", "o1"])
    case.check([found["o0"], found["o1"]])


def test_an_output_that_is_a_weight_or_an_input(tmp_path):
    path = tiny_models.norm(tmp_path / "m.onnx")
    x = np.ones((1, 16), np.float32)
    found = OnnxReference(path)({"x": x}, ["x", "scale"])
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["scale"], np.ones(16))


def test_inputs_that_are_constants_of_the_plan(tmp_path, user_code):
    path = tmp_path / "m.onnx"
    text = "(float[2] x, int64 sr) => (float[2] y) { r = Cast <to = 1> (sr) y = Mul(x, r) }"
    onnx.save(ir.to_proto(model(text)), path)
    x = np.float32([1, -2])
    found = open_reference(str(path), {"sr": 3, "other": 4})({"x": x}, ["y"])
    np.testing.assert_array_equal(found["y"], 3 * x)
    user_code("def scaled(x, sr):\n    return x * sr\n")
    found = open_reference("mine_to_verify:scaled", {"sr": 3})({"x": x}, ["y"])
    np.testing.assert_array_equal(found["y"], 3 * x)


def test_an_onnx_file_of_another_model(tmp_path):
    path = tiny_models.norm(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="has no tensor 'z', which the plan returns; its outputs"):
        OnnxReference(path, runtime=CpuRuntime.ONNX)({"x": np.ones((1, 16), np.float32)}, ["z"])


def test_a_function_of_numpy_arrays(user_code, rng):
    user_code("def double(x, z):\n    return {'y': 2 * x, 'unused': z}\n")
    x = rng.standard_normal(4)
    for text in ("mine_to_verify:double", "mine_to_verify.py:double"):
        found = CallableReference(text)({"x": x, "z": np.zeros(1)}, ["y"])
        assert list(found) == ["y"]
        np.testing.assert_array_equal(found["y"], 2 * x)


def test_a_torch_module_gets_tensors_of_the_same_type(user_code, rng):
    torch = pytest.importorskip("torch")
    user_code(
        "import torch\n"
        "seen = {}\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x, flag, half):\n"
        "        inference = torch.is_inference_mode_enabled()\n"
        "        seen.update(x=x, flag=flag, half=half, inference=inference)\n"
        "        return x.double().sin(), half * 2\n"
        "net = Net()\n"
    )
    x = np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32))
    x.flags.writeable = False
    half = rng.standard_normal(5).astype(ml_dtypes.bfloat16)
    reference = CallableReference("mine_to_verify:net")
    found = reference({"x": x, "flag": np.array(True), "half": half}, ["s", "h"])
    seen = sys.modules["mine_to_verify"].seen
    assert [seen[name].dtype for name in ("x", "flag", "half")] == [
        torch.float32,
        torch.bool,
        torch.bfloat16,
    ]
    np.testing.assert_array_equal(seen["x"].numpy(), x)
    np.testing.assert_allclose(found["s"], np.sin(x.astype(np.float64)), rtol=1e-12)
    np.testing.assert_array_equal(found["h"], 2 * half.astype(np.float32))
    assert seen["inference"]


def test_float8_tensors():
    torch = pytest.importorskip("torch")
    from trt_native.verify.reference import _tensor

    values = np.array([0.5, -448, 3], ml_dtypes.float8_e4m3fn)
    found = _tensor(torch, values)
    assert found.dtype == torch.float8_e4m3fn
    np.testing.assert_array_equal(found.float().numpy(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x", r"returned 1 values for the 2 outputs y, z"),
        ("return x, x, x", r"returned 3 values for the 2 outputs y, z"),
        ("return {'y': x}", r"returned y; the plan also has the output z"),
        ("return {}", r"returned nothing; the plan also has the output y, z"),
        ("return None, x", r"output 'y' is a NoneType, not an array or tensor"),
        ("return [[1], [1, 2]], x", r"output 'y' cannot be read as an array"),
        (
            "return 1 / 0",
            r"raised ZeroDivisionError: division by zero; it is called with .*x=float",
        ),
        ("raise SystemExit(0)", r"raised SystemExit: 0; it is called with"),
    ],
)
def test_functions_that_return_something_else(user_code, body, message):
    user_code(f"def f(x):\n    {body}\n")
    with pytest.raises(SpecError, match=message):
        CallableReference("mine_to_verify:f")({"x": np.ones(2)}, ["y", "z"])


def test_other_parameter_names(user_code):
    user_code("def f(sample):\n    return sample\n")
    with pytest.raises(SpecError, match=r"unexpected keyword argument 'x'; it is called with"):
        CallableReference("mine_to_verify:f")({"x": np.ones(2)}, ["y"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing_here:f", "there is no module nothing_here"),
        ("nothing_here.deep:f", "there is no module nothing_here.deep"),
        ("none.py:f", "none.py: no such file"),
        ("good:g", "good has no function 'g'; its functions are f"),
        ("good:f.x", "good has no function 'f.x'"),
        ("good:", "write FILE.py:FUNCTION or package.module:FUNCTION"),
        ("bad:f", "bad raised SyntaxError"),
        ("bad.py:f", "bad.py raised SyntaxError"),
        ("lacking:f", "lacking raised ModuleNotFoundError: No module named 'nothing_there'"),
        ("leaving:f", "leaving raised SystemExit: 0 when it was loaded"),
        ("model.pt", "no such file; name an ONNX file"),
        ("good.py", "no reference; name an ONNX file"),
    ],
)
def test_what_names_no_reference(user_code, text, message):
    user_code("def f(x):\n    return x\n", "good")
    user_code("def f(x:\n", "bad")
    user_code("import nothing_there\n", "lacking")
    user_code("raise SystemExit(0)\n", "leaving")
    with pytest.raises(SpecError, match=message):
        open_reference(text)


def test_a_missing_onnx_file():
    with pytest.raises(ModelError, match="No such file"):
        open_reference("none.onnx")


X = tensor("x", "input", "bfloat16", shape=(2, 3))
N = tensor("n", "input", "int64", shape=(1,))
Y = tensor("y", "output", "float32", shape=(-1,))


def read(path):
    with GoldenFile.open(path, (X, N), (Y,)) as golden:
        return [(inputs, outputs()) for inputs, outputs in golden.cases()]


@pytest.mark.parametrize("count", [1, 12])
def test_golden_files_come_back_as_they_were(tmp_path, rng, count):
    path = tmp_path / "g.npz"
    cases = [
        (
            {
                "x": rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
                "n": np.array([number], np.int64),
            },
            {"y": rng.standard_normal(4)},
        )
        for number in range(count)
    ]
    with golden_writer(path, several=count > 1) as write:
        for case in cases:
            write(*case)
    found = read(path)
    assert len(found) == count
    for (inputs, outputs), (own_inputs, own_outputs) in zip(found, cases, strict=True):
        for name, array in {**own_inputs, **own_outputs}.items():
            got = {**inputs, **outputs}[name]
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array)


def test_a_golden_file_that_numpy_wrote(tmp_path):
    np.savez(tmp_path / "g.npz", x=np.ones((2, 3)), n=np.array([1]), y=np.ones(4))
    ((inputs, outputs),) = read(tmp_path / "g.npz")
    assert inputs["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(outputs["y"], np.ones(4))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": 1, "n": 1}, "y is missing"),
        ({"x": 1, "n": 1, "y": 1, "Y": 2}, "Y is not an input or output of the plan"),
        ({"batch_1/x": 1, "batch_1/n": 1}, "batch_1/y is missing"),
        ({}, "holds no arrays"),
        ({"x": np.ones((2, 3)), "n": 1, "y": 1}, "'n' cannot have the shape scalar"),
        ({"x": np.ones((2, 3), int), "n": [1], "y": [1]}, "'x' needs bfloat16, found int64"),
        (
            {"x": np.ones((2, 3)), "n": [1], "y": [[1]]},
            "y has the shape 1x1, the plan's output \\?",
        ),
        (
            {f"batch_1/{n}": v for n, v in (("x", [[1.0]]), ("n", [1]), ("y", [1]))},
            r"\(batch_1\): ",
        ),
    ],
    ids=str,
)
def test_golden_files_of_another_plan(tmp_path, arrays, message):
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(SpecError, match=message):
        read(tmp_path / "g.npz")


def test_golden_files_that_are_none(tmp_path):
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        read(tmp_path / "g.npz")
    (tmp_path / "g.npz").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(SpecError, match="not a NumPy file, or damaged"):
        read(tmp_path / "g.npz")
    np.savez(tmp_path / "g.npz", x=np.ones((2, 3)), n=np.array([1]), y=np.ones(40))
    data = bytearray((tmp_path / "g.npz").read_bytes())
    data[data.index(b"y.npy") + 200] ^= 1
    (tmp_path / "g.npz").write_bytes(data)
    with pytest.raises(SpecError, match="not a NumPy file, or damaged"):
        read(tmp_path / "g.npz")
    with (tmp_path / "g.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(SpecError, match="one array without a name"):
        read(tmp_path / "g.npz")


def test_a_golden_file_is_whole_or_not_there(tmp_path):
    def fail():
        with golden_writer(tmp_path / "g.npz", several=False) as write:
            write({"x": np.ones(3)}, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
