"""The C++ loader, compiled and run wherever TENSORRT_ROOT names a TensorRT with headers.

On a machine without headers CPP_LOADER may name one that was compiled elsewhere; scripts/cpp_loader
says how.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.cached_models import FEATURES, HEADS, LENGTH, attention_step
from helpers.tolerances import FP32_PRODUCTS
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, ProfileSpec, Session, build_plan
from trt_native.errors import TrtNativeError

SOURCE = Path(__file__).parents[1] / "scripts" / "cpp_loader"


def test_it_is_short():
    files = [*SOURCE.glob("*.cpp"), *SOURCE.glob("*.h")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 400


REPACK = r"""
#include <cstdio>
#include <cstdlib>
#include "layouts.h"
int main(int, char** argv) {  // item, spatial, channels, last, pack, extents...
  std::vector<int64_t> shape;
  for (char** extent = argv + 6; *extent; ++extent) shape.push_back(std::atoll(*extent));
  std::vector<char> from;
  for (int byte; (byte = std::getchar()) != EOF;) from.push_back(static_cast<char>(byte));
  Layout const layout{std::atoi(argv[2]), std::atoll(argv[3]), argv[4][0] == '1'};
  auto const to = repack(from, shape, std::atoi(argv[1]), layout, argv[5][0] == '1');
  std::fwrite(to.data(), 1, to.size(), stdout);
}
"""


@pytest.fixture(scope="module")
def repacker(tmp_path_factory):
    """A program that packs standard input as the loader does; it needs no TensorRT."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source = tmp_path_factory.mktemp("repack") / "repack.cpp"
    source.write_text(REPACK)
    program = source.with_suffix("")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    return program


@pytest.mark.parametrize(
    ("shape", "spatial", "channels", "last"),
    [
        ((2, 5, 3, 4), 2, 1, True),
        ((2, 5, 3, 4), 2, 8, True),
        ((2, 17, 3, 4), 2, 16, True),
        ((2, 5, 2, 3, 4), 3, 8, True),
        ((2, 5, 3, 4), 2, 2, False),
        ((1, 33, 3, 4), 2, 32, False),
        ((2, 33, 2, 3, 4), 3, 32, False),
        ((5, 3, 4), 2, 4, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_layouts(repacker, rng, shape, spatial, channels, last, dtype):
    x = (100 * rng.standard_normal(shape)).astype(dtype)
    axis = x.ndim - spatial - 1
    width = [(0, 0)] * x.ndim
    width[axis] = (0, -x.shape[axis] % channels)
    padded = np.pad(x, width)
    if last:
        packed = np.moveaxis(padded, axis, -1)
    else:
        vectors = padded.shape[axis] // channels
        split = padded.reshape(*shape[:axis], vectors, channels, *shape[axis + 1 :])
        packed = np.moveaxis(split, axis + 1, -1)
    layout = (x.itemsize, spatial, channels, int(last))
    for pack, source, expected in ((1, x, packed), (0, packed, x)):
        command = [repacker, *map(str, (*layout, pack, *shape))]
        done = subprocess.run(command, input=source.tobytes(), capture_output=True, check=True)
        assert done.stdout == expected.tobytes()


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


@pytest.mark.gpu
@pytest.mark.backend
def test_it_skips_what_is_in_front_of_a_plan(loader, tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx", shape=(1, 3, 8, 8))
    plan = build(path)
    metadata = json.dumps({"task": "detect"}).encode()
    prefixed = tmp_path / "m.engine"
    prefixed.write_bytes(len(metadata).to_bytes(4, "little") + metadata + bytes(plan.data))
    x = rng.standard_normal((1, 3, 8, 8), np.float32)
    compare(loader, tmp_path, path, prefixed, {"x": x})


@pytest.mark.gpu
@pytest.mark.backend
@pytest.mark.parametrize(
    ("dtype", "formats"),
    [
        ("float16", ("x=hwc8", "y=chw16")),
        ("float16", ("x=chw2", "y=hwc16")),
        ("float32", ("x=chw32", "y=hwc")),
    ],
    ids=str,
)
def test_it_packs_other_layouts(loader, tmp_path, rng, dtype, formats):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [[tiny_models.tensor(name, kind, [2, 5, 4, 6])] for name in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = tiny_models.save(tmp_path / "m.onnx", nodes, *ends)
    precision = "tf32" if dtype == "float32" else "auto"
    plan = build_plan(path, BuildConfig(precision=precision, io_formats=formats))
    x = rng.standard_normal((2, 5, 4, 6)).astype(dtype)
    compare(loader, tmp_path, path, plan.save(tmp_path / "m.plan"), {"x": x})


@pytest.mark.gpu
@pytest.mark.backend
def test_it_binds_caches_in_place(loader, tmp_path, rng):
    path = attention_step(tmp_path / "m.onnx", "float32")
    plan = build_plan(path, BuildConfig(precision="fp32", in_place_caches=True))
    caches = (rng.standard_normal((1, HEADS, LENGTH, FEATURES), np.float32) for _ in range(2))
    x = rng.standard_normal((1, 1, HEADS * FEATURES), np.float32)
    inputs = {"x": x, "index": np.array([3]), **dict(zip(("keys", "values"), caches, strict=True))}
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}_in.npy", array)
    files = [f"{name}={tmp_path / name}_in.npy" for name in inputs]
    result = run(loader, plan.save(tmp_path / "m.plan"), tmp_path, *files)
    assert result.returncode == 0, result.stderr
    with Session(plan) as session:
        assert {tensor.alias for tensor in session.outputs} >= {"keys", "values"}
        for name, expected in session.run(inputs).items():
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


@pytest.mark.gpu
@pytest.mark.backend
def test_it_replaces_weights(loader, tmp_path, rng):
    path = tiny_models.dense(tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4"])
    plan = build_plan(path, BuildConfig(profiles=(profile,), precision="tf32", refit=True))
    saved = plan.save(tmp_path / "m.plan")
    x = rng.standard_normal((2, 64), np.float32)
    weight = rng.standard_normal((64, 64), np.float32)
    for name, array in (("x", x), ("w0", weight), ("small", weight[:3])):
        np.save(tmp_path / f"{name}_in.npy", array)
    given = (saved, tmp_path, f"h0={tmp_path}/x_in.npy", "--refit")
    result = run(loader, *given, f"w0={tmp_path}/w0_in.npy")
    assert result.returncode == 0, result.stderr
    with Session(plan) as session:
        before = session.run({"h0": x})["h2"]
        session.engine.refit({"w0": weight})
        expected = session.run({"h0": x})["h2"]
    assert not np.array_equal(before, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "h2.npy"), expected)
    for wrong, message in (
        (f"w0={tmp_path}/small_in.npy", "needs 4096 elements of type <f4"),
        (f"w9={tmp_path}/w0_in.npy", "'w9' is not a weight"),
    ):
        assert message in run(loader, *given, wrong).stderr
