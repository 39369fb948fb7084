"""The C++ loader, compiled and run wherever TENSORRT_ROOT names a TensorRT with headers.

On a machine without headers CPP_LOADER may name one that was compiled elsewhere; scripts/cpp_loader
says how.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.tolerances import FP32_PRODUCTS
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, ProfileSpec, Session, build_plan
from trt_native.errors import TrtNativeError

SOURCE = Path(__file__).parents[1] / "scripts" / "cpp_loader"


def test_it_is_short():
    assert len((SOURCE / "loader.cpp").read_text().splitlines()) < 250


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    if os.environ.get("CPP_LOADER"):
        return Path(os.environ["CPP_LOADER"]).absolute()
    if not os.environ.get("TENSORRT_ROOT"):
        pytest.skip("TENSORRT_ROOT does not name a TensorRT with headers")
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    folder = tmp_path_factory.mktemp("loader")
    for command in (["cmake", "-S", SOURCE, "-B", folder], ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return folder / "loader"


def run(loader, *arguments):
    return subprocess.run(
        [loader, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def npy(path, header, data=b""):
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is unreadable"),
        (b"hello, this is text", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr': ", "header is too long"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(20), "header is too long"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }", "cannot be read"),
        (GOOD.replace(b"(1, 2)", b"(1, 2"), "cannot be read"),
        (GOOD.replace(b"(1, 2)", b"(1, 1, 1, 1, 1, 1, 1, 1, 1)"), "more axes than TensorRT"),
        (GOOD.replace(b"False", b"True"), "Fortran order"),
    ],
    ids=range(9),
)
def test_what_is_no_npy_file(loader, tmp_path, content, message):
    path = tmp_path / "x.npy"
    if content is not None and content.startswith(b"{"):
        npy(path, content)
    elif content is not None:
        path.write_bytes(content)
    result = run(loader, "m.plan", tmp_path, f"x={path}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: loader PLAN OUTPUT_FOLDER"),
        (("m.plan", ".", "x"), "'x': write INPUT=FILE.npy"),
        (("none.plan", "."), "none.plan"),
        ((SOURCE, "."), "cpp_loader"),
        ((SOURCE / "loader.cpp", "."), "TensorRT"),
    ],
    ids=range(5),
)
def test_wrong_usage_and_what_is_no_plan(loader, arguments, message):
    result = run(loader, *arguments)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def build(path, *profiles):
    try:
        return build_plan(path, BuildConfig(profiles=profiles, precision=Precision.FP32))
    except TrtNativeError as error:
        pytest.skip(f"no plan can be built here: {error.message}")


def compare(loader, folder, model, plan, inputs):
    """Run the loader, a session and onnx.reference on the same inputs."""
    for name, array in inputs.items():
        np.save(folder / f"{name}_in.npy", array)
    files = [f"{name}={folder / name}_in.npy" for name in inputs]
    result = run(loader, plan, folder, *files)
    assert result.returncode == 0, result.stderr
    with Session(plan) as session:
        ours = session.run(inputs)
    reference = ReferenceEvaluator(str(model))
    for name, expected in zip(reference.output_names, reference.run(None, inputs), strict=True):
        found = np.load(folder / f"{name}.npy")
        assert found.dtype == expected.dtype
        most = FP32_PRODUCTS * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=most)
        np.testing.assert_allclose(found, ours[name], rtol=0, atol=most)


@pytest.mark.gpu
@pytest.mark.backend
def test_it_runs_dynamic_plans(loader, tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx")
    specs = [ProfileSpec.parse([f"batch={n}", "height=8", "width=8"]) for n in ("1", "2:4:8")]
    plan = build(path, *specs).save(tmp_path / "m.plan")
    for batch in (1, 4, 8):
        x = rng.standard_normal((batch, 3, 8, 8), np.float32)
        compare(loader, tmp_path, path, plan, {"x": x})
    x = rng.standard_normal((9, 3, 8, 8), np.float32)
    for array, message in (
        (x, "no profile of the plan allows these shapes"),
        (x[:1].astype(np.float16), "needs the type <f4, its file has <f2"),
    ):
        np.save(tmp_path / "bad.npy", array)
        result = run(loader, plan, tmp_path, f"x={tmp_path}/bad.npy")
        assert message in result.stderr
    assert "input 'x' is missing" in run(loader, plan, tmp_path).stderr


@pytest.mark.gpu
@pytest.mark.backend
def test_it_runs_shape_inputs_and_data_dependent_outputs(loader, tmp_path):
    path = tiny_models.reshape_by_input(tmp_path / "r.onnx")
    plan = build(path, ProfileSpec.parse(["n=2:8:32"], ["shape=1x2:2x4:4x8"]))
    saved = plan.save(tmp_path / "r.plan")
    inputs = {"x": np.arange(8, dtype=np.float32), "shape": np.array([2, 4])}
    compare(loader, tmp_path, path, saved, inputs)
    path = tiny_models.save(
        tmp_path / "n.onnx",
        [helper.make_node("NonZero", ["x"], ["y"])],
        [tiny_models.tensor("x", TensorProto.FLOAT, [4, 4])],
        [tiny_models.tensor("y", TensorProto.INT64, [2, "n"])],
    )
    saved = build(path).save(tmp_path / "n.plan")
    for x in (np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)):
        compare(loader, tmp_path, path, saved, {"x": x})
