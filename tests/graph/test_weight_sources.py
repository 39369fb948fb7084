"""Where the weights of rewritten graphs come from, against rewriting with other weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper, numpy_helper

from trt_native import BuildConfig, ProfileSpec
from trt_native.builder.build import lower, prepare, refit_record
from trt_native.graph.onnx_file import read_model
from trt_native.graph.weight_sources import WeightSource, convert_weight

pytestmark = pytest.mark.backend
FLOAT = TensorProto.FLOAT
BATCH = ProfileSpec.parse(["batch=1:2:4"])
RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def model(path, nodes, weights, x=(2, 4, 8, 8), out=None, opset=18):
    nodes = [helper.make_node(*node[:3], name=f"/{i}", **node[3]) for i, node in enumerate(nodes)]
    inputs, outputs = (
        [tiny_models.tensor(name, FLOAT, shape)] for name, shape in (("x", x), ("y", out or x))
    )
    return tiny_models.save(path, nodes, inputs, outputs, weights, opset=opset)


def grouped(path):
    """Convolutions whose weights are split by groups, or as they are."""
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"group": 2, "pads": [1] * 4}),
        ("ConvTranspose", ["a", "t"], ["y"], {"group": 2, "pads": [1] * 4}),
    ]
    return model(path, nodes, {"w": random(4, 2, 3, 3), "t": random(4, 2, 3, 3)})


def batch_norm(path):
    nodes = [
        ("BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["n"], {}),
        ("Conv", ["n", "w"], ["y"], {"pads": [1] * 4}),
    ]
    weights = {name: random(4) for name in ("scale", "bias", "mean")}
    return model(path, nodes, {**weights, "variance": random(4) ** 2, "w": random(4, 4, 3, 3)})


def shared(path):
    """A weight that is read in FP16 and in FP32, and one that is turned before it is read."""
    nodes = [
        ("MatMul", ["x", "w"], ["a"], {}),
        ("LayerNormalization", ["a", "w"], ["n"], {"axis": -2}),
        ("Transpose", ["u"], ["v"], {"perm": [1, 0]}),
        ("MatMul", ["n", "v"], ["b"], {}),
        ("MatMul", ["b", "u"], ["y"], {}),
    ]
    return model(path, nodes, {"w": random(8, 8), "u": random(8, 8)})


def group_norm(path):
    """A GroupNormalization of an opset in which its parameters are those of groups."""
    nodes = [("GroupNormalization", ["x", "scale", "bias"], ["y"], {"num_groups": 2})]
    return model(path, nodes, {"scale": random(2), "bias": random(2)})


def constants(path):
    """Weights as outputs of Constant nodes."""
    nodes = [
        ("Constant", [], ["w"], {"value": numpy_helper.from_array(random(8, 8))}),
        ("MatMul", ["x", "w"], ["y"], {}),
    ]
    return model(path, nodes, {})


def lowered(path, config):
    """The record of a build, and the weights that TensorRT would parse."""
    prepared = prepare(path, config, backend="rtx")
    with lower(prepared) as made:
        graph = read_model(made.path)
        record = refit_record(prepared, made, graph)
        values = {value.name: value for g in graph.graphs() for value in g.initializers.values()}
        values |= {value.name: value for node in graph.graph for value in node.outputs}
        names = record.signature.weights
        tensors = {name: values[name].const_value for name in names}
        return record, {n: None if t is None else np.array(t.numpy()) for n, t in tensors.items()}


def changed(path, source, name):
    """The model with other values of one weight, all of which FP16 holds."""
    proto = onnx.load(source)
    tensors = {one.name: one for one in proto.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"}
    array = (numpy_helper.to_array(tensors[name]) * 1.75 + 0.25).astype(np.float32)
    tensors[name].CopyFrom(numpy_helper.from_array(array, tensors[name].name))
    onnx.save(proto, path)
    return array


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("make", "profiles"),
    [
        (tiny_models.norm, BATCH),
        (tiny_models.conv_and_dense, BATCH),
        (tiny_models.external_weights, ()),
        (grouped, ()),
        (batch_norm, ()),
        (shared, ()),
        (group_norm, ()),
        (constants, ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_follows_from_a_weight(tmp_path, make, profiles, precision):
    """Each weight in turn gets other values: what changes must be known to come from it."""
    (tmp_path / "new").mkdir()
    path = make(tmp_path / "m.onnx")
    config = BuildConfig(profiles=profiles, precision=precision)
    record, before = lowered(path, config)
    proto = onnx.load(path)
    names = [one.name for one in proto.graph.initializer]
    names += [node.output[0] for node in proto.graph.node if node.op_type == "Constant"]
    for weight in names:
        array = changed(tmp_path / "new" / "m.onnx", path, weight)
        again, after = lowered(tmp_path / "new" / "m.onnx", config)
        texts = record.signature.weights
        moved = {name for name, text in again.signature.weights.items() if texts[name] != text}
        known = {name for name in before if weight in record.sources.made_of(name)}
        assert moved
        assert moved <= known
        if weight in record.sources.rewritten:
            continue
        assert moved == known
        for name in known:
            source, dtype = record.sources.sources[name], texts[name].partition(" ")[0]
            made = convert_weight(array, dtype, source.split)
            if after[name] is not None:
                np.testing.assert_array_equal(made.view(np.uint8), after[name].view(np.uint8))


def test_the_weights_that_are_converted_alone(tmp_path):
    """They are not said to be rewritten for no reason."""
    for make in (grouped, tiny_models.norm, constants):
        profiles = BATCH if make is tiny_models.norm else ()
        for precision in ("fp32", "fp16"):
            config = BuildConfig(profiles=profiles, precision=precision)
            assert lowered(make(tmp_path / "m.onnx"), config)[0].sources.rewritten == {}
    sources = lowered(shared(tmp_path / "m.onnx"), BuildConfig())[0].sources
    assert sources.sources["w__fp16"] == WeightSource("w")
    assert "u" in sources.rewritten or sources.made_of("u") == {"u"}


def test_a_weight_is_rounded_to_nearest_even():
    array = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 1e6, -np.inf], np.float32)
    np.testing.assert_array_equal(
        convert_weight(array, "float16", None),
        np.array([1, 1 + 2.0**-9, np.inf, -np.inf], np.float16),
    )
    assert convert_weight(array, "bfloat16", None).dtype == ml_dtypes.bfloat16
