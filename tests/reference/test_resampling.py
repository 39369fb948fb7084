"""Resize, Upsample, GridSample and RoiAlign, against PyTorch and newer versions of the same."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node
from onnx import helper
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch")
F = torch.nn.functional


def original(operator, *inputs, opset, **attributes):
    """The output of a node by onnx.reference as it is."""
    arrays = {f"i{n}": array for n, array in enumerate(inputs) if array is not None}
    names = [f"i{n}" if array is not None else "" for n, array in enumerate(inputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        "node",
        [helper.make_tensor_value_info(name, 1, None) for name in arrays],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    return ReferenceEvaluator(graph, opsets={"": opset}).run(None, arrays)[0]


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(
    ("opset", "mode", "torch_mode"),
    [
        (16, "bilinear", "bilinear"),
        (16, "nearest", "nearest"),
        (16, "bicubic", "bicubic"),
        (20, "linear", "bilinear"),
        (20, "cubic", "bicubic"),
    ],
)
def test_grid_sample(padding_mode, align, opset, mode, torch_mode, rng):
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    grid = rng.uniform(-1.6, 1.6, (2, 6, 7, 2)).astype(np.float32)
    options = {"padding_mode": padding_mode, "align_corners": int(align)}
    found = run_node("GridSample", x, grid, opset=opset, mode=mode, **options)[0]
    expected = F.grid_sample(torch.tensor(x), torch.tensor(grid), torch_mode, padding_mode, align)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_grid_sample_by_default_is_linear(rng):
    x = rng.standard_normal((1, 1, 5, 4)).astype(np.float32)
    grid = rng.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)
    expected = F.grid_sample(torch.tensor(x), torch.tensor(grid), align_corners=False)
    for opset in (16, 20, 22):
        found = run_node("GridSample", x, grid, opset=opset)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_grid_sample_of_volumes(mode, padding_mode, rng):
    x = rng.standard_normal((1, 2, 3, 5, 4)).astype(np.float32)
    grid = rng.uniform(-1.4, 1.4, (1, 2, 3, 4, 3)).astype(np.float32)
    found = run_node("GridSample", x, grid, mode=mode, padding_mode=padding_mode)[0]
    torch_mode = "bilinear" if mode == "linear" else mode
    expected = F.grid_sample(torch.tensor(x), torch.tensor(grid), torch_mode, padding_mode, False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


SCALES = np.array([1, 1, 2, 1.5], np.float32)


def upsamplings(x, mode, scales=SCALES):
    """By the three spellings of before opset 11."""
    yield run_node("Upsample", x, opset=8, mode=mode, scales=scales.tolist())[0]
    yield run_node("Upsample", x, scales, opset=9, mode=mode)[0]
    yield run_node("Resize", x, scales, opset=10, mode=mode)[0]


def test_upsampling_to_the_nearest(rng):
    x = rng.standard_normal((1, 2, 3, 4)).astype(np.float32)
    expected = F.interpolate(torch.tensor(x), scale_factor=(2, 1.5), mode="nearest")
    for found in upsamplings(x, "nearest"):
        np.testing.assert_array_equal(found, expected)


def test_linear_upsampling_before_opset_11(rng):
    x = rng.standard_normal((1, 2, 3, 4)).astype(np.float32)
    expected = original(
        "Resize",
        x,
        None,
        SCALES,
        opset=13,
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    )
    for found in upsamplings(x, "linear"):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_reducing_to_the_nearest_before_opset_11(rng):
    x = rng.standard_normal((1, 1, 4, 9)).astype(np.float32)
    scales = np.array([1, 1, 0.5, 1 / 3], np.float32)
    found = run_node("Resize", x, scales, opset=10)[0]
    np.testing.assert_array_equal(found, x[:, :, ::2, ::3])
    with pytest.raises(NotImplementedError, match="not specified which value is nearest"):
        run_node("Resize", x, np.array([1, 1, 1, 0.6], np.float32), opset=10)


@pytest.mark.parametrize("nearest_mode", ["floor", "round_prefer_floor"])
@pytest.mark.parametrize("scale", [0.6, 1.7, 2.0])
def test_half_pixels_of_tensorflow(nearest_mode, scale, rng):
    x = rng.standard_normal((1, 1, 7)).astype(np.float32)
    scales = np.array([1, 1, scale], np.float32)
    found = run_node(
        "Resize",
        x,
        np.array([], np.float32),
        scales,
        opset=11,
        mode="nearest",
        nearest_mode=nearest_mode,
        coordinate_transformation_mode="tf_half_pixel_for_nn",
    )[0]
    place = (np.arange(int(7 * scales[2])) + 0.5) / scales[2]
    index = np.floor(place) if nearest_mode == "floor" else np.ceil(place - 0.5)
    np.testing.assert_array_equal(found[0, 0], x[0, 0, index.clip(0, 6).astype(int)])


def test_half_pixels_of_tensorflow_that_are_refused():
    x, scales = np.ones((1, 1, 4), np.float32), np.array([1, 1, 2], np.float32)
    with pytest.raises(NotImplementedError, match="tf_half_pixel_for_nn with nearest ceil"):
        run_node(
            "Resize",
            x,
            np.array([], np.float32),
            scales,
            opset=11,
            mode="nearest",
            nearest_mode="ceil",
            coordinate_transformation_mode="tf_half_pixel_for_nn",
        )


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_one_element_by_half_pixels_of_pytorch_is_the_first(mode, rng):
    x = rng.standard_normal((1, 2, 4, 3)).astype(np.float32)
    options = {"mode": mode, "coordinate_transformation_mode": "pytorch_half_pixel"}
    sizes = run_node("Resize", x, None, None, np.array([1, 2, 1, 6]), **options)[0]
    scales = run_node("Resize", x, None, np.array([1, 1, 0.3, 2], np.float32), **options)[0]
    expected = original(
        "Resize", x[:, :, :1], None, np.array([1, 1, 1, 2], np.float32), opset=19, **options
    )
    if mode == "nearest":
        expected = x[:, :, :1].repeat(2, axis=3)
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("options", [{}, {"axes": [2]}, {"mode": "cubic", "antialias": 1}])
def test_other_resizing_is_as_in_onnx(coordinates, options, rng):
    x = rng.standard_normal((1, 2, 5, 6)).astype(np.float32)
    sizes = np.array([3] if "axes" in options else [1, 2, 3, 9])
    given = {"mode": "linear", "coordinate_transformation_mode": coordinates, **options}
    found = run_node("Resize", x, None, None, sizes, opset=19, **given)[0]
    expected = original("Resize", x, None, None, sizes, opset=19, **given)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_10_knows_no_half_pixels(mode, rng):
    x = rng.standard_normal((2, 2, 6, 6)).astype(np.float32)
    rois = np.array([[0, 0, 3, 4], [1, 2, 5, 5.5]], np.float32)
    batch = np.array([1, 0])
    options = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "mode": mode}
    found = run_node("RoiAlign", x, rois, batch, opset=10, **options)[0]
    expected = original(
        "RoiAlign",
        x,
        rois,
        batch,
        opset=16,
        coordinate_transformation_mode="output_half_pixel",
        **options,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    half = original("RoiAlign", x, rois, batch, opset=16, **options)
    assert np.abs(found - half).max() > 0.01
