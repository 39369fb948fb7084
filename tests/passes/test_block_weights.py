"""Weights in INT4, against the formula of the format and onnx.reference on both graphs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from helpers.quantized_models import attention, model, node, quantize
from helpers.text_models import normal
from onnx.reference import ReferenceEvaluator

from trt_native.calibration.collect import ReferenceActivations
from trt_native.calibration.rows import RowReader
from trt_native.config import CpuRuntime
from trt_native.errors import ModelError
from trt_native.passes.autocast import autocast
from trt_native.passes.block_arrays import block_scales, fit_blocks, quantize_blocks, whole_block

FLOAT, FP16, BF16, INT4 = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT4,
)  # fmt: skip

PRODUCTS = {
    "MatMul": ("MatMul(x, w)", (2, 3, 96), (96, 20)),
    "Gemm": ("Gemm(x, w, b)", (3, 96), (96, 20)),
    "MatMul of a transposed weight": ("MatMul(x, t)", (2, 3, 96), (20, 96)),
    "Gemm, transposed": ("Gemm<transB = 1, alpha = 0.5>(x, w, b)", (3, 96), (20, 96)),
    "Gemm of a transposed input": ("Gemm<transA = 1>(x, w, b)", (96, 3), (96, 20)),
    "Conv": ("Conv<pads = [1, 1, 1, 1]>(x, w, b)", (2, 16, 4, 4), (20, 16, 3, 3)),
    "grouped Conv": ("Conv<group = 2>(x, w, b)", (2, 32, 4, 4), (20, 16, 3, 3)),
    "Conv along one axis": ("Conv(x, w, b)", (2, 16, 9), (20, 16, 4)),
}


def product(name: str, opset: int = 17) -> tuple[ir.Model, np.ndarray]:
    expression, shape, kernel = PRODUCTS[name]
    weights = {"w": normal(1, *kernel)}
    if "b)" in expression:
        weights["b"] = normal(3, 20)
    dims = ", ".join(map(str, shape))
    rank = 2 if "Gemm" in name else len(shape)
    out = ", ".join("abcd"[:rank])
    turned = "t = Transpose<perm = [1, 0]>(w)" if "t)" in expression else ""
    text = f"(float[{dims}] x) => (float[{out}] y) {{ {turned} [p] y = {expression} }}"
    return model(text, opset, **weights), normal(4, *shape, scale=1.5)


def summed_axis(name: str) -> int:
    """Of the weight as a matrix."""
    return 0 if name in ("MatMul", "Gemm", "Gemm of a transposed input") else 1


def faked(weight: np.ndarray, axis: int, block: int) -> np.ndarray:
    """The rule: s = max|w| / 7 of each block, q = round(w / s), from -8 to 7."""
    matrix = weight.reshape(weight.shape[0], -1)
    lines = matrix.T if axis == 0 else matrix
    result = np.empty_like(lines)
    for line, target in zip(lines, result, strict=True):
        for start in range(0, line.size, block):
            part = line[start : start + block]
            scale = np.float32(np.abs(part).max() / np.float32(7))
            steps = [min(max(round(float(v)), -8), 7) for v in part / scale]
            target[start : start + block] = np.float32(steps) * scale
    return (result.T if axis == 0 else result).reshape(weight.shape)


def run(graph: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)[0])


@pytest.mark.parametrize("name", PRODUCTS)
def test_equals_blocks_rounded_to_nearest(name):
    original, x = product(name)
    weight = original.graph.initializers["w"].const_value.numpy()
    extent = weight.shape[0] if summed_axis(name) == 0 else weight[0].size
    block = {96: 32, 144: 16, 64: 32}[extent]
    quantized, report = quantize(original, {}, format="int4-weights")
    reference = ir.from_proto(ir.to_proto(original))
    expected = ir.tensor(faked(weight, summed_axis(name), block), name="w")
    reference.graph.initializers["w"].const_value = expected
    np.testing.assert_allclose(run(quantized, x=x), run(reference, x=x), rtol=1e-5, atol=1e-5)
    assert report.quantized == {node(original, "p").op_type: 1}
    assert report.blocks == {str(block): 1}
    error = np.linalg.norm(expected.numpy() - weight) / np.linalg.norm(weight)
    assert report.errors == {"w": {"weight": pytest.approx(error, rel=1e-5)}}
    assert report.error_text() == (
        f"relative L2 error of weights {error:.2g} in the mean, at most {error:.2g} (w)"
    )


@pytest.mark.parametrize("name", ["MatMul", "Gemm, transposed", "Conv"])
def test_what_the_nodes_hold(name):
    quantized, report = quantize(product(name)[0], {}, format="int4-weights", block_sizes=(8, 16))
    value = node(quantized, "p").inputs[1]
    reader = value.producer()
    if name == "Conv":
        assert reader.op_type == "Reshape"
        assert tuple(value.shape) == (20, 16, 3, 3)
        reader = reader.inputs[0].producer()
    stored, scales = (v.const_value for v in reader.inputs)
    shape = {"MatMul": (96, 20), "Gemm, transposed": (20, 96), "Conv": (20, 144)}[name]
    axis = summed_axis(name)
    assert reader.op_type == "DequantizeLinear"
    assert reader.attributes["axis"].as_int() == axis
    assert reader.attributes["block_size"].as_int() == 16
    assert (stored.dtype, tuple(stored.shape.numpy())) == (INT4, shape)
    assert stored.nbytes == np.prod(shape) // 2
    assert tuple(scales.shape.numpy()) == tuple(
        n // 16 if i == axis else n for i, n in enumerate(shape)
    )
    assert quantized.opset_imports[""] == 21
    assert report.raised.opset == 21


@pytest.mark.parametrize(
    ("extent", "sizes", "found"),
    [(128, (8, 16, 32, 64), 64), (64, (32, 64), 32), (64, (64, 128), 0), (117, (8, 16), 0),
     (24, (8, 16, 32), 8), (320, (64, 128), 64), (16, (8, 16), 8), (8, (8,), 0)],
)  # fmt: skip
def test_a_weight_has_two_whole_blocks_or_more(extent, sizes, found):
    assert whole_block(extent, sizes) == found


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("MatMul(x, w)", (117, 20)),  # no block divides 117
        ("MatMul(x, w)", (96, 21)),  # two numbers of a byte would be of two rows
        ("MatMul(x, w)", (2, 96, 20)),  # not a matrix
    ],
)
def test_what_has_no_whole_blocks_stays(text, weight):
    shape = f"2, 3, {weight[-2]}"
    both = model(
        f"(float[{shape}] x) => (float[2, 3, n] y) {{ z = {text} y = MatMul(z, v) }}",
        17, w=normal(1, *weight), v=normal(2, weight[-1], 32),
    )  # fmt: skip
    sizes = (8, 16, 32, 64) if weight[-1] == 20 else (7, 8)
    _, report = quantize(both, {}, format="int4-weights", block_sizes=(*sizes, 10, 7))
    assert report.skipped == {"blocks": {"MatMul": 1}}
    assert report.explain() == "1 MatMul (no whole blocks)"
    assert report.quantized == {"MatMul": 1}


@pytest.mark.parametrize("product", ["MatMul(v, x)", "Gemm(v, x)", "Gemm<transA = 1>(v, x)"])
def test_weights_from_the_left_stay(product):
    """TensorRT-RTX 1.5 to 1.7 end the process with them."""
    text = f"(float[96, 32] x) => (float[a, b] y) {{ z = {product} y = MatMul(z, w) }}"
    original = model(text, 17, v=normal(1, 96, 96), w=normal(2, 32, 32))
    _, report = quantize(original, {}, format="int4-weights")
    assert report.skipped == {"left": {product[: product.find("(")].partition("<")[0]: 1}}
    assert report.quantized == {"MatMul": 1}


def test_weights_that_hold_nan():
    broken = normal(1, 96, 20)
    broken[3, 4] = np.nan
    text = "(float[3, 96] x) => (float[3, 20] y) { [p] y = MatMul(x, w) }"
    with pytest.raises(ModelError, match=r"weights hold NaN or infinity: 'w' \(node 'p'\)"):
        quantize(model(text, 17, w=broken), {}, format="int4-weights")


def test_a_block_of_zeros_has_a_scale():
    matrix = np.zeros((32, 2), np.float32)
    matrix[16:, 1] = 3.5
    scales = block_scales(matrix, 16)
    np.testing.assert_array_equal(scales, [[1, 1], [1, 0.5]])
    np.testing.assert_array_equal(quantize_blocks(matrix, scales, 16)[16:, 1], [7] * 16)


# Weights that are fitted to samples


def rows_of(original: ir.Model, readers: list[RowReader], **inputs: np.ndarray):
    source = ReferenceActivations(CpuRuntime.ONNX)
    copy = ir.from_proto(ir.to_proto(original))
    return source.rows(copy, readers, [inputs], None)


def with_outliers(x: np.ndarray, axis: int) -> np.ndarray:
    """A few channels are much larger than the others, as those of language models are."""
    factors = np.ones(x.shape[axis], np.float32)
    factors[::13] = 30
    return x * factors.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


CONV = RowReader("x", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))


@pytest.mark.parametrize(
    ("name", "reader", "axis"),
    [
        ("MatMul", RowReader("x"), -1),
        ("Gemm, transposed", RowReader("x"), -1),
        ("Conv", CONV, 1),
    ],
)
def test_fitted_weights_have_less_error_with_outlier_channels(name, reader, axis):
    original, x = product(name)
    x = with_outliers(x, axis)
    expected = run(original, x=x)
    rows = rows_of(original, [reader], x=x)
    nearest, _ = quantize(original, {}, format="int4-weights")
    fitted, report = quantize(original, {}, format="int4-weights", rows=rows)

    def error(graph: ir.Model) -> float:
        return float(np.linalg.norm(run(graph, x=x) - expected))

    assert error(fitted) < 0.7 * error(nearest)
    assert report.scaled == 1
    found = report.errors["w"]
    assert found["products"] < 0.7 * found["nearest"]
    # All of the input was sampled, and a bias takes no part.
    if name == "MatMul":
        size = np.linalg.norm(expected)
        assert found["products"] == pytest.approx(error(fitted) / size, rel=1e-3)
        assert found["nearest"] == pytest.approx(error(nearest) / size, rel=1e-3)
        assert "; rounded to nearest: " in report.error_text()


@pytest.mark.parametrize("seed", range(8))
def test_fitted_weights_are_never_worse(seed):
    rows, matrix = normal(seed, 40, 64), normal(seed + 100, 64, 24)
    rows[:, : 8 * seed] *= 10**-seed
    fit = fit_blocks([matrix, 2 * matrix[:, :8]], rows, [16, 32])
    assert fit.error <= fit.nearest
    zeros = fit_blocks([matrix], 0 * rows, [16])
    assert (zeros.error, zeros.nearest, zeros.channels) == (0, 0, None)


def test_products_of_one_activation_share_its_factors():
    original = attention()
    x = with_outliers(normal(7, 2, 32, 32), -1)
    rows = rows_of(original, [RowReader("x"), RowReader("o")], x=x)
    quantized, report = quantize(original, {}, format="int4-weights", rows=rows)
    readers = {node(quantized, n.name).inputs[0].name for n in quantized.graph if n.name == "out"}
    assert readers <= {"o", "o__divided"}
    divided = [n for n in quantized.graph if n.op_type == "Mul" and n.inputs[0].name == "x"]
    assert len(divided) == 1
    assert len(divided[0].outputs[0].uses()) == 3
    assert report.scaled == len([n for n in quantized.graph if "__divided" in (n.name or "")])
    expected = run(original, x=x)
    plain, _ = quantize(original, {}, format="int4-weights")
    errors = [np.linalg.norm(run(graph, x=x) - expected) for graph in (quantized, plain)]
    assert errors[0] < errors[1]


def test_a_weight_of_several_activations_follows_from_itself():
    text = """(float[3, 96] x) => (float[3, 20] y, float[3, 20] z) {
        a = Relu(x)
        y = MatMul(x, w)
        z = MatMul(a, w)
    }"""
    original = model(text, 17, w=normal(1, 96, 20))
    x = with_outliers(normal(2, 3, 96), -1)
    rows = rows_of(original, [RowReader("x"), RowReader("a")], x=x)
    _, report = quantize(original, {}, format="int4-weights", rows=rows)
    assert report.errors.keys() == {"w"}
    assert report.errors["w"].keys() == {"weight"}
    assert report.weights == 1


@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("name", ["MatMul", "Conv"])
def test_reduced_models(name, target):
    original, x = product(name)
    x = with_outliers(x, 1 if name == "Conv" else -1)
    rows = rows_of(original, [CONV if name == "Conv" else RowReader("x")], x=x)
    autocast(original, target)
    rows = {reader: rows[reader] for reader in rows}
    value = node(original, "p").inputs[0]
    rows = {
        RowReader(value.name, r.kernel, r.strides, r.pads, r.dilations): a for r, a in rows.items()
    }
    quantized, report = quantize(original, {}, format="int4-weights", rows=rows)
    product_node = node(quantized, "p")
    assert {v.dtype for v in product_node.inputs[:2]} == {target}
    assert report.scaled == 1
    expected, found = (run(graph, x=x).astype(np.float32) for graph in (original, quantized))
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_weights_are_read_one_by_one(tmp_path):
    names = [f"w{i}" for i in range(12)]
    nodes = "\n".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(12))
    text = f"(float[2, 512] h0) => (float[2, 512] h12) {{ {nodes} }}"
    big = model(text, 21, **{name: normal(i, 512, 512) for i, name in enumerate(names)})
    ir.save(big, tmp_path / "m.onnx", external_data="m.data")
    del big
    loaded = ir.load(tmp_path / "m.onnx")
    one = 512 * 512 * 4
    tracemalloc.start()
    try:
        from trt_native.passes.quantize import quantize_model

        quantize_model(loaded, {}, format="int4-weights")
        ir.save(loaded, tmp_path / "q.onnx", external_data="q.data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7 * one, "of 12 weights"
    assert (tmp_path / "q.data").stat().st_size < 12 * one / 6


@pytest.mark.parametrize("count", [4, 16, 256])
def test_few_rows_do_not_mislead(count):
    """Measured with rows that the weights were not fitted to, half of whose values are zeros."""
    weight = normal(1, 256, 64)
    original = model("(float[n, 256] x) => (float[n, 64] y) { [p] y = MatMul(x, w) }", 17, w=weight)
    samples, other = np.maximum(normal(2, count, 256), 0), np.maximum(normal(3, 500, 256), 0)
    nearest, _ = quantize(original, {}, format="int4-weights")
    fitted, _ = quantize(original, {}, format="int4-weights", rows={RowReader("x"): samples})
    expected = run(original, x=other)
    errors = [np.linalg.norm(run(graph, x=other) - expected) for graph in (fitted, nearest)]
    assert errors[0] < errors[1] * (1.1 if count == 4 else 0.95)
