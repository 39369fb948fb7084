"""Sessions on a GPU against onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.tolerances import FP32_PRODUCTS
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Engine, Precision, ProfileSpec, Session, build_plan
from trt_native.errors import BuildError, ClosedError, SpecError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def build(path, *profiles, precision=Precision.FP32):
    return build_plan(path, BuildConfig(profiles=profiles, precision=precision))


def check(path, session, inputs, tolerance=1e-5):
    found = session.run(inputs)
    expected = ReferenceEvaluator(str(path)).run(None, inputs)
    names = [output.name for output in onnx.load(path).graph.output]
    assert list(found) == names
    for name, reference in zip(names, expected, strict=True):
        assert found[name].dtype == reference.dtype
        scale = np.abs(reference).max(initial=0, where=np.isfinite(reference))
        np.testing.assert_allclose(found[name], reference, rtol=tolerance, atol=tolerance * scale)


def test_changing_inputs_and_shapes(tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx")
    plan = build(path, ProfileSpec.parse(["batch=1:2:4", "height=8:8:16", "width=8:8:16"]))
    with Session(plan) as session:
        for shape in ((1, 3, 8, 8), (4, 3, 16, 9), (4, 3, 16, 9), (2, 3, 8, 16)):
            x = rng.standard_normal(shape, np.float32)
            check(path, session, {"x": x}, FP32_PRODUCTS)
            # An array that is not contiguous is the same values.
            check(path, session, {"x": np.asfortranarray(x)}, FP32_PRODUCTS)


def test_the_profile_follows_the_shapes(tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx")
    specs = [ProfileSpec.parse([f"batch={n}", "height=8", "width=8"]) for n in ("1", "2:4:8")]
    with Session(build(path, *specs)) as session:
        assert session.engine.profile_count == 2
        for batch in (1, 8, 1, 2):
            check(
                path,
                session,
                {"x": rng.standard_normal((batch, 3, 8, 8), np.float32)},
                FP32_PRODUCTS,
            )
        with pytest.raises(SpecError, match="cannot have the shape 9x3x8x8"):
            session.run({"x": np.zeros((9, 3, 8, 8), np.float32)})


def test_optimum_shapes_have_a_profile_of_their_own(tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx")
    profiles = (ProfileSpec.parse(["batch=1:2:4", "height=8:8:16", "width=8"]),)
    config = BuildConfig(profiles=profiles, add_opt_shape_profiles=True, precision=Precision.FP32)
    with Session(build_plan(path, config)) as session:
        assert session.engine.profile_count == 2
        for shape in ((2, 3, 8, 8), (4, 3, 16, 8), (2, 3, 8, 8), (2, 3, 8, 8)):
            check(path, session, {"x": rng.standard_normal(shape, np.float32)}, FP32_PRODUCTS)


def test_integers_booleans_and_scalars(tmp_path):
    nodes = [
        helper.make_node("Add", ["i", "i"], ["sum"]),
        helper.make_node("Not", ["b"], ["not"]),
        helper.make_node("Mul", ["s", "s"], ["square"]),
    ]
    t = TensorProto
    path = tiny_models.save(
        tmp_path / "m.onnx",
        nodes,
        [
            tiny_models.tensor("i", t.INT64, [3]),
            tiny_models.tensor("b", t.BOOL, [2]),
            tiny_models.tensor("s", t.FLOAT, []),
        ],
        [
            tiny_models.tensor("sum", t.INT64, [3]),
            tiny_models.tensor("not", t.BOOL, [2]),
            tiny_models.tensor("square", t.FLOAT, []),
        ],
    )
    inputs = {
        "i": np.array([1, -2, 1 << 40]),
        "b": np.array([True, False]),
        "s": np.array(1.5, np.float32),
    }
    with Session(build(path)) as session:
        check(path, session, inputs)


def test_an_input_that_is_a_shape(tmp_path):
    path = tiny_models.reshape_by_input(tmp_path / "m.onnx")
    plan = build(path, ProfileSpec.parse(["n=2:8:32"], ["shape=1x2:2x4:4x8"]))
    with Session(plan) as session:
        for shape in ([2, 4], [4, 8], [1, 2]):
            x = np.arange(np.prod(shape), dtype=np.float32)
            check(path, session, {"x": x, "shape": np.array(shape)})


def test_an_output_whose_shape_depends_on_data(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("NonZero", ["x"], ["y"])],
        [tiny_models.tensor("x", TensorProto.FLOAT, [4, 4])],
        [tiny_models.tensor("y", TensorProto.INT64, [2, "n"])],
    )
    try:
        plan = build(path)
    except BuildError as error:
        pytest.skip(f"this TensorRT builds no output whose shape depends on data: {error}")
    with Session(plan) as session:
        for x in (np.eye(4), np.ones((4, 4)), np.zeros((4, 4))):
            check(path, session, {"x": x.astype(np.float32)})


def test_nan_passes_through(tmp_path):
    path = tiny_models.coupled(tmp_path / "m.onnx")
    plan = build(path, ProfileSpec.parse(["batch=1", "frames=2"]))
    x = np.array([[[np.nan, np.inf, 0, 1], [1, 2, 3, 4]]], np.float32)
    with Session(plan) as session:
        check(path, session, {"x": x, "z": np.ones((2, 4), np.float32)})


def test_two_sessions_share_an_engine(tmp_path, rng):
    path = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    with Engine(build(path)) as engine, Session(engine) as one, Session(engine) as two:
        for _ in range(3):
            check(path, one, {"x": rng.standard_normal((1, 3, 8, 8), np.float32)}, FP32_PRODUCTS)
            check(path, two, {"x": rng.standard_normal((1, 3, 8, 8), np.float32)}, FP32_PRODUCTS)


def test_closing(tmp_path):
    session = Session(build(tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))))
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="the session is closed"):
        session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_layers_are_reported(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    with Engine(build(path, precision=Precision.TF32)) as engine:
        names = " ".join(layer["Name"] for layer in engine.layers())
    assert "conv" in names
