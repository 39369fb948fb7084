"""Plans with inputs and outputs in other layouts than C order, through sessions that have that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx import helper

from trt_native import BuildConfig, Engine, Plan, ProfileSpec, Session, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

IMAGES, VOLUMES = ("batch", 5, 4, 6), ("batch", 5, 2, 4, 6)
CASES = [
    ("float32", "HWC", IMAGES),
    ("float32", "CHW32", IMAGES),
    ("float32", "DHWC", VOLUMES),
    ("float16", "CHW2", IMAGES),
    ("float16", "CHW32", IMAGES),
    ("float16", "HWC8", IMAGES),
    ("float16", "HWC16", IMAGES),
    ("float16", "DHWC8", VOLUMES),
    ("float16", "CDHW32", VOLUMES),
    ("int8", "CHW4", IMAGES),
    ("int8", "CHW32", IMAGES),
    ("int8", "HWC16", IMAGES),
]


def copying(path, dtype, shape):
    """``y = max(x, 0)``, or ``y = x`` for whole numbers: exact in every type."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    operator = "Identity" if dtype == "int8" else "Relu"
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "copying", [x], [y])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def build(path, dtype, shape, **formats):
    config = BuildConfig(
        profiles=(ProfileSpec.parse(["batch=1:2:4"]),),
        precision="tf32" if dtype == "float32" else "auto",
        io_formats=tuple(f"{name}={layout}" for name, layout in formats.items()),
    )
    return build_plan(copying(path, dtype, shape), config)


def values(rng, dtype, batch, shape):
    return (rng.standard_normal((batch, *shape[1:])) * 40).astype(dtype)


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(("dtype", "layout", "shape"), CASES)
def test_arrays_are_in_c_order(tmp_path, rng, dtype, layout, shape, side):
    torch = pytest.importorskip("torch")
    plan = build(tmp_path / "m.onnx", dtype, shape, **{side: layout})
    alone = plan.save(tmp_path / "m.plan")
    (tmp_path / "m.plan.json").unlink()  # the engine itself says it
    with Session(Plan.open(alone)) as session:
        formats = {t.name: t.format for t in session.engine.tensors}
        assert formats == {"x": None, "y": None, side: layout}
        for batch in (2, 2, 2, 4, 1, 2):
            x = values(rng, dtype, batch, shape)
            expected = x if dtype == "int8" else np.maximum(x, 0)
            np.testing.assert_array_equal(session.run({"x": x})["y"], expected)
            on_gpu = session.run({"x": torch.from_numpy(x).cuda()})["y"]
            np.testing.assert_array_equal(on_gpu.cpu().numpy(), expected)
        out = torch.empty_like(on_gpu)
        tensor = torch.from_numpy(x).cuda()
        for _ in range(4):  # a CUDA graph, with the copies inside
            session.run({"x": tensor}, out={"y": out})
            np.testing.assert_array_equal(out.cpu().numpy(), expected)
            out.zero_()
        assert session.graph_count >= 1


def test_a_convolution_in_hwc8_equals_the_linear_one(tmp_path, rng):
    model = tiny_models.lone_conv(tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4", "height=8:16:32", "width=16"])
    plain = {"profiles": (profile,), "precision": "fp16", "io_precision": "fp16"}
    linear = build_plan(model, BuildConfig(**plain))
    packed = build_plan(model, BuildConfig(**plain, io_formats=("x=hwc8", "y=hwc8")))
    with Session(linear) as one, Session(packed) as other:
        for batch, height in ((2, 16), (1, 8), (4, 32), (2, 16)):
            x = rng.standard_normal((batch, 3, height, 16)).astype(np.float16)
            expected, found = (session.run({"x": x})["y"] for session in (one, other))
            np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)


def test_the_callers_own_graph(tmp_path, rng):
    torch = pytest.importorskip("torch")
    plan = build(tmp_path / "m.onnx", "float16", IMAGES, x="HWC8", y="CHW2")
    with Session(plan) as session:
        x = torch.from_numpy(values(rng, "float16", 2, IMAGES)).cuda()
        y = torch.empty_like(x)
        session.run({"x": x}, out={"y": y})
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            session.run({"x": x}, out={"y": y}, stream=torch.cuda.current_stream())
        session.run({"x": torch.zeros(4, *IMAGES[1:], dtype=x.dtype, device="cuda")})
        for _ in range(3):
            x.copy_(torch.from_numpy(values(rng, "float16", 2, IMAGES)))
            y.zero_()
            graph.replay()
            torch.cuda.synchronize()
            np.testing.assert_array_equal(y.cpu().numpy(), np.maximum(x.cpu().numpy(), 0))


def test_no_memory_grows(tmp_path, rng):
    torch = pytest.importorskip("torch")
    plan = build(tmp_path / "m.onnx", "float16", IMAGES, x="HWC8", y="CHW2")
    with Engine(plan) as engine, Session(engine) as session:
        inputs = [values(rng, "float16", batch, IMAGES) for batch in (1, 2, 3, 4)]
        for x in inputs * 3:
            session.run({"x": x})
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        for x in inputs * 100:
            session.run({"x": x})
        torch.cuda.synchronize()
        assert torch.cuda.mem_get_info()[0] >= before - (1 << 20)
