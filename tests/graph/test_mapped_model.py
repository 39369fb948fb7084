from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_native.errors import ModelError
from trt_native.graph.mapped_model import load_mapped, release_pages
from trt_native.graph.onnx_file import read_model

SIDE = 260
TYPES = ("float32", "float16", "float64", "int8", "int64", "bool", "bfloat16", "float8_e4m3fn")


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    kinds = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in TYPES}
    large = {
        f"large_{name}": rng.integers(0, 2 if name == "bool" else 100, (SIDE, SIDE)).astype(kind)
        for name, kind in kinds.items()
    }
    return {**large, "small": np.arange(3, dtype=np.float32)}


def made(path, tensors):
    nodes = [
        helper.make_node("Identity", [tensor.name], [f"y_{tensor.name}"], name=tensor.name)
        for tensor in tensors
    ]
    outputs = [
        helper.make_tensor_value_info(f"y_{tensor.name}", tensor.data_type, list(tensor.dims))
        for tensor in tensors
    ]
    graph = helper.make_graph(nodes, "graph", [], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.fixture
def path(tmp_path):
    return made(
        tmp_path / "m.onnx", [numpy_helper.from_array(a, name) for name, a in weights().items()]
    )


def arrays_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name
        assert found[name].shape == array.shape, name


def test_weights_are_those_of_the_file(path, tmp_path):
    model = read_model(path)
    assert_equal(arrays_of(model), weights())
    release_pages(model)
    assert_equal(arrays_of(model), weights())
    ir.save(model, tmp_path / "again.onnx")
    stored = {t.name: t.raw_data for t in onnx.load(tmp_path / "again.onnx").graph.initializer}
    assert stored == {t.name: t.raw_data for t in onnx.load(path).graph.initializer}


def test_large_weights_are_not_copied(path):
    mapped = load_mapped(path)
    assert set(mapped.weights) == {name for name in weights() if name != "small"}
    assert mapped.proto.ByteSize() < 4096
    without = onnx.load(path)
    for tensor in without.graph.initializer:
        if tensor.name != "small":
            tensor.ClearField("raw_data")
    assert mapped.proto == without  # and all the rest is there


def test_the_values_outlive_the_file(path):
    model = read_model(path)
    path.unlink()
    assert_equal(arrays_of(model), weights())


def test_forms_that_are_copied(tmp_path):
    rng = np.random.default_rng(1)
    array = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    fields = helper.make_tensor("fields", TensorProto.FLOAT, array.shape, array.ravel().tolist())
    packed = helper.make_tensor(
        "packed", TensorProto.INT4, (2 * SIDE, SIDE), array.tobytes()[: SIDE * SIDE], raw=True
    )
    path = made(tmp_path / "m.onnx", [fields, packed])
    assert not load_mapped(path).weights
    expected = {t.name: ir.from_proto(t).numpy() for t in (fields, packed)}
    assert_equal(arrays_of(read_model(path)), expected)


def test_the_form_of_text(tmp_path):
    path = made(tmp_path / "m.onnx", [numpy_helper.from_array(np.ones(2, np.float32), "w")])
    text = tmp_path / "m.textproto"
    onnx.save(onnx.load(path), text, format="textproto")
    assert load_mapped(text).proto == onnx.load(path)


def test_two_weights_of_a_name_are_read_as_by_onnx(tmp_path):
    tensor = numpy_helper.from_array(np.ones((SIDE, SIDE), np.float32), "w")
    path = made(tmp_path / "m.onnx", [tensor])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.save(model, path)
    assert load_mapped(path).proto == model


@pytest.mark.parametrize("dims", [(SIDE, SIDE + 1), (SIDE, SIDE - 1), (-SIDE, -SIDE)])
def test_a_shape_that_does_not_fit_is_an_error(tmp_path, dims):
    tensor = numpy_helper.from_array(np.ones((SIDE, SIDE), np.float32), "w")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(ModelError, match="malformed"):
        read_model(made(tmp_path / "m.onnx", [tensor]))


def test_truncations_are_errors(path):
    whole = path.read_bytes()
    for length in (*range(1, 64), *range(64, len(whole), 25_013), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_model(path)


def test_numbers_that_do_not_end_are_errors(path):
    path.write_bytes(b"\xff" * 100_000)
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_model(path)
