"""Operators that the parser refuses, written as plain ones, against ONNX's values and formulas."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.backends import backend_or_skip
from helpers.operator_cases import (
    RESIZES,
    cases,
    first_alone,
    one_node,
    reference,
    resize_model,
    with_batch,
)
from onnx import TensorProto

from trt_native.backends.parser_support import WRITTEN_WHERE
from trt_native.config import BuildConfig
from trt_native.passes import lower_operators
from trt_native.passes.array_builder import ArrayBuilder, Site
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_operators import LowerOperators
from trt_native.passes.normalize import normalize
from trt_native.passes.replacement import NameAuthority
from trt_native.passes.rules_resize import RULES
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import Profile, ShapeRange

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def lowering():
    backend = backend_or_skip("rtx")
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision(), backend=backend)
    return LowerOperators(context)


def computed(lowering, proto, inputs):
    """The outputs of a model after the pass; None where it leaves it as it is."""
    graph = ir.from_proto(proto)
    normalize(graph)
    if not lowering.needed(graph):
        return None
    before = [(value.name, value.dtype, value.shape) for value in graph.graph.outputs]
    lowering(graph)  # it checks that it is not needed any more
    assert [(value.name, value.dtype, value.shape) for value in graph.graph.outputs] == before
    rewritten = ir.to_proto(graph)
    onnx.checker.check_model(rewritten)
    names = {value.name for value in rewritten.graph.input}
    return evaluator(rewritten.graph, graph.opset_imports).run(
        None, {name: array for name, array in inputs.items() if name in names}
    )


def check(found, expected, name):
    for one, want in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (want.shape, want.dtype), name
        wide = np.asarray(one, np.float64), np.asarray(want, np.float64)
        limit = 1e-4 if "roialign" in name else 1e-5  # ONNX has four digits of those
        np.testing.assert_allclose(*wide, limit, limit, err_msg=name)


def written(lowering, module, change):
    """How many tests of a module are written, all with the values of the reference."""
    count = 0
    for case, inputs, expected in cases(module):
        proto, given = change(case.model, inputs)
        found = computed(lowering, proto, given)
        if found is not None:
            expected = expected if given is inputs else reference(proto, given)
            check(found, expected, case.name)
            count += 1
    return count


@pytest.mark.parametrize(
    ("module", "constants", "batches"),
    [
        ("col2im", 5, 5),
        ("compress", 5, 5),
        ("cumprod", 9, 2),
        ("deformconv", 4, 4),
        ("det", 2, 1),
        ("dft", 10, 10),
        ("matmul", 1, 1),
        ("maxpool", 1, 1),
        ("maxunpool", 2, 2),
        ("nonmaxsuppression", 10, 0),
        ("reducemax", 2, 2),
        ("reducemin", 1, 1),
        ("resize", 17, 15),
        ("roialign", 3, 3),
        ("scatterelements", 4, 4),
        ("scatternd", 6, 6),
        ("spacetodepth", 1, 1),
        ("tensorscatter", 3, 3),
        ("tfidfvectorizer", 7, 3),
    ],
)
def test_values_of_onnx(lowering, module, constants, batches):
    assert written(lowering, module, lambda proto, x: (first_alone(proto, x), x)) == constants
    assert written(lowering, module, partial(with_batch, module)) == batches


@pytest.mark.parametrize(
    ("module", "count"), [("scatterelements", 4), ("scatternd", 6), ("tensorscatter", 3)]
)
def test_indices_that_are_inputs(lowering, module, count):
    assert written(lowering, module, lambda *unchanged: unchanged) == count


def test_extents_that_all_profiles_fix(lowering):
    kinds = {"x": (TensorProto.FLOAT, ["n", "t"])}
    proto = one_node("CumProd", kinds, {"y": kinds["x"]}, 26, {"axis": np.array(1)})
    inputs = {"x": np.random.default_rng(0).random((3, 5), np.float32)}
    assert computed(lowering, proto, inputs) is None
    profiles = tuple(
        Profile({"x": ShapeRange((1, 5), (most, 5), (most, 5))}, {}) for most in (2, 4)
    )
    bound = LowerOperators(dataclasses.replace(lowering.context, profiles=profiles))
    np.testing.assert_allclose(computed(bound, proto, inputs), reference(proto, inputs), 1e-6)


JOINS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@pytest.mark.parametrize("reduction", JOINS)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_scattered_elements_that_repeat(lowering, reduction, constant, kind):
    """Places from behind, and in a part of the other axes; by NumPy's formula."""
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.integers(1, 9, (3, 4, 5)).astype(kind),
        "i": rng.integers(-4, 4, (2, 7, 3)),
        "u": rng.integers(1, 9, (2, 7, 3)).astype(kind),
    }
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    kinds = {"x": (number, ["n", 4, "k"]), "i": (TensorProto.INT64, ["a", "b", "c"]),
             "u": (number, ["a", "b", "c"])}  # fmt: skip
    constants = {"i": inputs["i"]} if constant else {}
    free = {name: one for name, one in kinds.items() if name not in constants}
    proto = one_node(
        "ScatterElements", free, {"y": kinds["x"]}, 18, constants,
        order=["x", "i", "u"], axis=1, reduction=reduction,
    )  # fmt: skip
    expected = inputs["x"].copy()
    first, _, last = np.indices(inputs["i"].shape)
    JOINS[reduction].at(expected, (first, inputs["i"], last), inputs["u"])
    (found,) = computed(lowering, proto, inputs)
    np.testing.assert_allclose(found, expected, 1e-5)


@pytest.mark.parametrize("reduction", JOINS)
@pytest.mark.parametrize("constant", [False, True])
def test_scattered_parts_that_repeat(lowering, reduction, constant):
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.integers(1, 9, (3, 2, 4)).astype(np.float32),
        "i": np.stack([rng.integers(-3, 3, (5, 2)), rng.integers(-2, 2, (5, 2))], axis=-1),
        "u": rng.integers(1, 9, (5, 2, 4)).astype(np.float32),
    }
    kinds = {"x": (TensorProto.FLOAT, [3 if constant else "n", 2, 4]),
             "i": (TensorProto.INT64, ["a", "b", 2]),
             "u": (TensorProto.FLOAT, ["a", "b", 4])}  # fmt: skip
    constants = {"i": inputs["i"]} if constant else {}
    free = {name: one for name, one in kinds.items() if name not in constants}
    proto = one_node(
        "ScatterND", free, {"y": kinds["x"]}, 18, constants,
        order=["x", "i", "u"], reduction=reduction,
    )  # fmt: skip
    expected = inputs["x"].copy()
    JOINS[reduction].at(expected, (inputs["i"][..., 0], inputs["i"][..., 1]), inputs["u"])
    (found,) = computed(lowering, proto, inputs)
    np.testing.assert_allclose(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("limits", "options", "more"),
    [
        ([("most", 4), ("overlap", 0.3), ("least", 0.2)], {}, 0),
        ([("most", 30), ("overlap", 0.5)], {"center_point_box": 1}, 0),
        ([("most", 2), ("overlap", 0.0)], {}, 0),
        ([("most", 4), ("overlap", 0.3), ("least", 0.6)], {}, 5),
        ([("most", 4), ("overlap", 0.3), ("least", 0.2)], {}, -3),
    ],
)
def test_suppression(lowering, limits, options, more):
    """Rows behind fewer boxes than promised are -1, and all where there are more."""
    rng = np.random.default_rng(0)
    inputs = {
        "boxes": rng.random((2, 20, 4)).astype(np.float32),
        "scores": (rng.integers(0, 50, (2, 3, 20)) / 50).astype(np.float32),  # some equal
    }
    constants = {
        name: np.array([limit], np.int64 if name == "most" else np.float32)
        for name, limit in limits
    }
    shapes = {name: (TensorProto.FLOAT, array.shape) for name, array in inputs.items()}
    free = one_node(
        "NonMaxSuppression", shapes, {"y": (TensorProto.INT64, ["r", 3])}, 11, constants, **options
    )
    assert computed(lowering, free, inputs) is None
    expected = reference(free, inputs)[0]
    rows = len(expected) + more
    absent = np.full((rows if more < 0 else more, 3), -1)
    expected = absent if more < 0 else np.concatenate([expected, absent])
    promised = one_node(
        "NonMaxSuppression", shapes, {"y": (TensorProto.INT64, [rows, 3])}, 11, constants, **options
    )
    np.testing.assert_array_equal(computed(lowering, promised, inputs), [expected])
    assert "-1 behind fewer boxes" in lowering.summarize(lowering.record)


@pytest.mark.parametrize(
    "text",
    [
        "y = NonMaxSuppression (b, s, most) z = Gather (b, y)",
        """y = If (c) <then_branch = t () => (int64[3, 3] u) { u = NonMaxSuppression (b, s, most) },
            else_branch = e () => (int64[3, 3] v) { v = NonMaxSuppression (s2, s, most) }>
        z = Identity (y)""",
    ],
)
def test_boxes_that_other_nodes_read_are_not_suppressed(lowering, text):
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 13]> g (
        float[1, 6, 4] b, float[1, 6, 4] s2, float[1, 1, 6] s, bool c) => (int64[3, 3] y, z)
        <int64[1] most = {{4}}> {{ {text} }}""")
    assert not lowering.needed(ir.from_proto(proto))


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("skips", [0, 2, 9])
def test_n_grams(lowering, mode, skips):
    proto = one_node(
        "TfIdfVectorizer",
        {"x": (TensorProto.INT64, ["n", 12])},
        {"y": (TensorProto.FLOAT, ["n", 5])},
        9,
        mode=mode,
        min_gram_length=1,
        max_gram_length=3,
        max_skip_count=skips,
        ngram_counts=[0, 2, 6],
        ngram_indexes=[0, 1, 2, 3, 4],
        pool_int64s=[1, 2, 1, 2, 2, 1, 0, 1, 2],
        weights=[0.5, 2.0, 3.0, 4.0, 0.25],
    )
    x = np.random.default_rng(0).integers(0, 3, (4, 12))
    expected = reference(proto, {"x": x})
    np.testing.assert_allclose(computed(lowering, proto, {"x": x}), expected, 1e-6)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("IJ,JK->IK", [(2, 3), (3, 4)]),
        ("bA,aA", [(2, 3), (4, 3)]),
        ("...i,...i->...", [(5, 2, 3), (2, 3)]),
        ("Z...,b...->...bZ", [(5, 2, 3), (4, 3)]),
    ],
)
def test_letters_of_einsum(lowering, equation, shapes):
    inputs = {f"x{i}": np.random.default_rng(i).random(s, np.float32) for i, s in enumerate(shapes)}
    kinds = {name: (TensorProto.FLOAT, array.shape) for name, array in inputs.items()}
    expected = np.einsum(equation, *inputs.values())
    output = {"y": (TensorProto.FLOAT, expected.shape)}
    proto = one_node("Einsum", kinds, output, 17, equation=equation)
    np.testing.assert_allclose(computed(lowering, proto, inputs)[0], expected, 1e-5)


@pytest.mark.parametrize("extent", [1, None])
def test_an_ellipsis_that_is_repeated_stays(lowering, extent):
    kinds = {name: (TensorProto.FLOAT, [n, 3]) for name, n in (("a", extent), ("b", 2))}
    kinds["c"] = (TensorProto.FLOAT, [3])
    proto = one_node("Einsum", kinds, {"y": (TensorProto.FLOAT, None)}, 17, equation="...Z,...Z,Z")
    graph = ir.from_proto(proto)
    assert not lowering.needed(graph)


def test_a_node_whose_shape_is_known_once_another_is_written(lowering, rng):
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[1,1,4] x) => (float y) {
        c = Constant <value = bool[1] {1}> () i = Constant <value = int64[2] {0, 0}> ()
        j = Constant <value = int64[2] {1, 1}> () k = Constant <value = int64[2] {0, 1}> ()
        v = Compress <axis = -3> (x, c) f = Flatten <axis = 1> (v)
        s = Slice (f, i, j, k) y = Det (s) }"""
    x = rng.normal(size=(1, 1, 4)).astype(np.float32)
    (found,) = computed(lowering, onnx.parser.parse_model(text), {"x": x})
    np.testing.assert_allclose(found, np.linalg.det(x[0, :1, :1]), 1e-5)


def test_hardmax_of_a_vector(lowering):
    kinds = {"x": (TensorProto.FLOAT, ["n"])}
    proto = one_node("Hardmax", kinds, {"y": (TensorProto.FLOAT, ["n"])}, 17, axis=0)
    inputs = {"x": np.array([1, 3, 3, 2], np.float32)}
    np.testing.assert_array_equal(computed(lowering, proto, inputs), [[0, 1, 0, 0]])


@pytest.mark.parametrize(
    ("operator", "opset", "arrays"),
    [
        ("Unique", 11, {"x": np.array([3, 1, 3], np.float32)}),
        ("NonZero", 13, {"x": np.array([[1, 0], [1, 1]], np.float32)}),
        (
            "MelWeightMatrix",
            17,
            dict(zip("abcde", map(np.array, (8, 16, 8192, np.float32(0), np.float32(4096))),
                     strict=True)),
        ),
    ],
)  # fmt: skip
def test_what_is_known_becomes_a_constant(lowering, operator, opset, arrays):
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    shape = {"Unique": [2], "NonZero": [2, 3], "MelWeightMatrix": [9, 8]}[operator]
    proto = one_node(operator, {}, {"y": (kind, shape)}, opset, arrays)
    np.testing.assert_array_equal(computed(lowering, proto, {}), reference(proto, {}))


@pytest.mark.parametrize("limits", [(0.6, 2.3), (4, 9), (1, 1)])
@pytest.mark.parametrize("options", RESIZES)
def test_resize(limits, options):
    """With the rule itself, as the parser takes some of them."""
    proto = resize_model(limits, options)
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 7)).astype(np.float32)
    graph = ir.from_proto(proto)
    normalize(graph)
    (node,) = graph.graph
    write = RULES["Resize"](Site(node, None, 19))
    write(ArrayBuilder(node, NameAuthority(graph), 19))
    expected = reference(proto, {"x": x})
    np.testing.assert_allclose(reference(ir.to_proto(graph), {"x": x}), expected, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("extent", "scale", "mode", "written"),
    [
        (7, 0.35, "nearest", True),
        (7, 2.0, "nearest", False),
        (7, 0.35, "linear", False),
        ("w", 0.35, "nearest", False),
    ],
)
def test_nearest_elements_by_scales_of_parts_are_selected(lowering, extent, scale, mode, written):
    proto = one_node(
        "Resize",
        {"x": (TensorProto.FLOAT, [2, extent])},
        {"y": (TensorProto.FLOAT, [2, "v"])},
        19,
        {"scales": np.array([1, scale], np.float32)},
        order=["x", "", "scales"],
        mode=mode,
    )
    x = np.arange(14, dtype=np.float32).reshape(2, 7)
    found = computed(lowering, proto, {"x": x})
    assert (found is not None) == written
    if found is not None:
        np.testing.assert_array_equal(found, reference(proto, {"x": x}))


def test_coordinates_that_are_whole(lowering):
    """In FP64 the first one would be a little more than 1."""
    proto = one_node(
        "Resize",
        {"x": (TensorProto.FLOAT, [1, 7])},
        {"y": (TensorProto.FLOAT, [1, 3])},
        19,
        {"scales": np.array([1, 0.5], np.float32)},
        order=["x", "", "scales"],
        mode="nearest",
        nearest_mode="ceil",
        coordinate_transformation_mode="half_pixel_symmetric",
    )
    x = np.arange(7, dtype=np.float32).reshape(1, 7)
    np.testing.assert_array_equal(computed(lowering, proto, {"x": x}), reference(proto, {"x": x}))


@pytest.mark.parametrize(
    ("sizes", "coordinates", "written"),
    [
        ([4, 12], "half_pixel", True),  # third element: (1.5 / 3) - 0.5 is whole
        ([2, 10], "pytorch_half_pixel", True),
        ([4, 8], "half_pixel", False),  # steps that FP32 holds
        ([5, 7], "half_pixel", True),
        ([5, 8], "half_pixel", False),  # no coordinate is whole
        ([4, 12], "asymmetric", False),
    ],
)
def test_coordinates_that_are_rounded_up(lowering, sizes, coordinates, written):
    proto = one_node(
        "Resize",
        {"x": (TensorProto.FLOAT, [2, sizes[0]])},
        {"y": (TensorProto.FLOAT, [2, sizes[1]])},
        19,
        {"sizes": np.array([2, sizes[1]])},
        order=["x", "", "", "sizes"],
        mode="nearest",
        nearest_mode="ceil",
        coordinate_transformation_mode=coordinates,
    )
    x = np.arange(2 * sizes[0], dtype=np.float32).reshape(2, -1)
    found = computed(lowering, proto, {"x": x})
    assert (found is not None) == written
    if found is not None:
        np.testing.assert_array_equal(found, reference(proto, {"x": x}))


@pytest.mark.parametrize(
    ("sizes", "written"),
    [
        ("b = Slice (s, zero, two, zero) t = Concat <axis = 0> (b, new)", True),
        ("n = Gather (s, zero) c = Gather (s, one) t = Concat <axis = 0> (n, c, new)", True),
        ("b = Shape <start = 0, end = 2> (x) t = Concat <axis = 0> (b, new)", True),
        ("b = Slice (s, one, two, zero) t = Concat <axis = 0> (b, b, new)", False),
        ("b = Shape <start = 1, end = 3> (x) t = Concat <axis = 0> (b, new)", False),
        ("b = Neg (s) c = Slice (b, zero, two, zero) t = Concat <axis = 0> (c, new)", False),
    ],
)
def test_resize_to_a_size_of_any_batch(lowering, sizes, written):
    """As exporters of PyTorch write it."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[n, c, 8, 6] x) => (float[n, c, 3, 4] y) {{ s = Shape (x) {sizes}
        y = Resize <mode = "linear", antialias = 1> (x, , , t) }}""")
    values = {"zero": [0], "one": [1], "two": [2], "new": [3, 4]}
    for name, numbers in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(numbers), name))
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)}
    found = computed(lowering, proto, inputs)
    assert (found is not None) == written
    if written:
        np.testing.assert_allclose(found, reference(proto, inputs), 1e-5, 1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_with_antialiasing_as_in_pytorch(lowering, mode):
    """PyTorch leaves out what is outside."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 16, 18)).astype(np.float32)
    proto = one_node(
        "Resize",
        {"x": (TensorProto.FLOAT, ["n", 2, 16, 18])},
        {"y": (TensorProto.FLOAT, ["n", 2, 5, 7])},
        19,
        {"sizes": np.array([5, 7])},
        order=["x", "", "", "sizes"],
        axes=[2, 3],
        mode={"bilinear": "linear", "bicubic": "cubic"}[mode],
        antialias=1,
        exclude_outside=1,
        cubic_coeff_a=-0.5,
    )
    (found,) = computed(lowering, proto, {"x": x})
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(x), (5, 7), mode=mode, antialias=True, align_corners=False
    )
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)


def test_where_an_operator_is_written_is_said():
    """The others have a form wherever they are refused, or their reason is said elsewhere."""
    others = {"Einsum", "Hardmax", "MatMul", "ReduceMax", "ReduceMin", "SpaceToDepth", "Range"}
    assert set(WRITTEN_WHERE) == {*lower_operators._RULES, *lower_operators._CONSTANT} - others
