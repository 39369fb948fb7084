"""Checks and conversion of batches against the inputs of a model."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers.calibration_data import IMAGE, INPUTS, assert_same, batch, error_of

from trt_native.calibration.batches import read_batches
from trt_native.calibration.folder import (
    read_data_manifest,
    write_batches,
)
from trt_native.errors import CalibrationError
from trt_native.shapes import TensorSpec


class TestReading:
    def test_slices_read_only_their_files(self, tmp_path):
        write_batches(tmp_path / "d", [batch(i) for i in range(5)], model="m")
        found = read_batches(tmp_path / "d", INPUTS)
        (tmp_path / "d" / "batch_0000.npz").unlink()
        assert_same(found[1::2], [batch(1), batch(3)])
        assert_same(found[1:][1:], [batch(i) for i in (2, 3, 4)])
        assert_same([found[-1]], [batch(4)])
        with pytest.raises(CalibrationError, match=r"batch_0000\.npz: cannot be read: No such"):
            found[0]
        with pytest.raises(IndexError):
            found[5]
        with pytest.raises(ValueError, match="forwards"):
            found[::-1]

    def test_floats_take_the_type_of_the_input(self, tmp_path):
        given = {**batch(), "x": batch()["x"].astype(np.float16), "z": np.ones((6, 2))}
        given["step"] = given["step"].astype(np.int32)
        np.savez(tmp_path / "b.npz", **given)
        expected = {**given, "x": given["x"].astype(np.float32), "z": np.ones((6, 2), np.float16)}
        assert_same(read_batches(tmp_path / "b.npz", INPUTS), [{**expected, "step": np.array([0])}])

    def test_bfloat16_inputs(self, tmp_path):
        values = np.array([1.0, 2.5, -3.0], ml_dtypes.bfloat16)
        write_batches(tmp_path / "d", [{"x": values}], model="m")
        assert read_data_manifest(tmp_path / "d").inputs[0].dtype == "float32"
        found = read_batches(tmp_path / "d", [TensorSpec("x", "bfloat16", (3,))])
        assert_same(found, [{"x": values}])


class TestShapes:
    def test_common_ones(self, tmp_path):
        write_batches(tmp_path / "d", [batch(0), batch(1)], model="m")
        common = read_batches(tmp_path / "d", INPUTS).common_shapes()
        assert common == {"x": (2, 3, 4), "step": (1,), "z": (6, 2)}

    def test_differing_ones_are_read_but_not_common(self, tmp_path):
        manifest = write_batches(tmp_path / "d", [batch(0), batch(1, frames=2)], model="m")
        assert manifest.inputs[0].shape == (2, None, 4)
        found = read_batches(tmp_path / "d", INPUTS)
        assert [shapes["z"] for shapes in found.shapes] == [(6, 2), (4, 2)]
        with pytest.raises(CalibrationError, match="same shapes") as caught:
            found.common_shapes()
        assert "'z' has the shapes 6x2, 4x2" in str(caught.value)
        assert found[1:].common_shapes()["z"] == (4, 2)


class TestInflating:
    """A megabyte of zeros is a kilobyte in a file."""

    @pytest.mark.parametrize(
        ("x", "problem"),
        [
            (np.zeros((2, 1 << 17, 5), np.float32), "needs 4 on axis 2"),
            (np.zeros((2, 1 << 17, 4), np.int32), "'x' needs float32, found int32"),
            (np.zeros((1 << 18, 4), np.float32), "needs 3 axes"),
        ],
    )
    def test_what_does_not_fit_is_not_inflated(self, tmp_path, inflated, x, problem):
        np.savez_compressed(tmp_path / "b.npz", **{**batch(), "x": x, "stpe": x})
        text = error_of(tmp_path / "b.npz")
        assert problem in text
        assert "'stpe' is not an input of the model; did you mean 'step'?" in text
        assert inflated["x.npy"] < 1000
        assert "stpe.npy" not in inflated

    def test_stacks_are_read_batch_by_batch(self, tmp_path, inflated):
        stacked = np.zeros((64, 1, 1 << 7, 1 << 7), np.float32)
        np.savez_compressed(tmp_path / "b.npz", image=stacked)
        found = read_batches(tmp_path / "b.npz", [TensorSpec("image", "float32", (1, 128, 128))])
        assert len(found) == 64
        assert stacked.nbytes <= inflated["image.npy"] < stacked.nbytes + 1000
        inflated.clear()
        for _, array in zip(range(4), found, strict=False):
            assert array["image"].shape == (1, 128, 128)
        assert inflated["image.npy"] < stacked.nbytes // 8

    def test_values_are_checked_in_pieces(self, tmp_path, monkeypatch):
        x = np.zeros((2, 1 << 19, 4), np.float32)
        x[1, -1] = np.inf, np.nan, 1, 2
        np.savez_compressed(tmp_path / "b.npz", x=x)
        sizes = []
        finite = np.isfinite
        monkeypatch.setattr(np, "isfinite", lambda a: sizes.append(np.size(a)) or finite(a))
        text = error_of(tmp_path / "b.npz", [INPUTS[0]])
        assert f"'x' has values that are NaN or infinite, 2 of {x.size}" in text
        assert max(sizes) == 1 << 20


class TestErrors:
    def test_all_of_them_in_one_error(self, tmp_path):
        good = batch()
        write_batches(
            tmp_path / "d",
            [
                {**good, "x": np.full((2, 3, 4), np.nan, np.float32)},
                {**good, "z": np.full((5, 2), 1, np.float16)},
            ],
            model="m",
        )
        np.savez(tmp_path / "d" / "stray.npz", **good)
        np.savez(tmp_path / "d" / "batch_0001.npz", x=good["x"], stpe=good["step"], z=[[1]])
        text = error_of(tmp_path / "d")
        for problem in (
            "stray.npz is in the folder but not in its manifest.json",
            "'x' has values that are NaN or infinite, 24 of 24 (batch_0000.npz)",
            "'stpe' is not an input of the model; did you mean 'step'? (batch_0001.npz)",
            "'step' is missing (batch_0001.npz)",
            "'z' needs float16, found int64 (batch_0001.npz)",
            "z: float16(batch*frames, 2) needs 2 on axis 1, found 1x1 (batch_0001.npz)",
            "z[0] needs batch*frames = 6 (batch=2, frames=3), found 1 (batch_0001.npz)",
            "x: float32(batch, frames, 4)",
        ):
            assert f"- {problem}\n" in text + "\n"

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"x": np.zeros((2, 3, 4, 1), "f")}, "needs 3 axes, found 2x3x4x1"),
            ({"x": np.zeros((2, 3, 5), "f")}, "needs 4 on axis 2, found 2x3x5"),
            ({"x": np.zeros((2, 3, 4), np.int32)}, "'x' needs float32, found int32"),
            ({"x": np.array(["a"])}, "'x' needs float32, found <U1"),
            ({"x": np.zeros((0, 3, 4), "f")}, "'x' is empty"),
            ({"x": np.full((2, 3, 4), np.inf)}, "'x' has values that are NaN or infinite"),
            ({"step": np.zeros(1, np.float32)}, "'step' needs int64, found float32"),
            ({"step": np.zeros(1, np.uint64)}, "'step' needs int64, found uint64"),
            ({"z": np.full((6, 2), 1e6, "f")}, "'z' has values up to 1e+06, too large for float16"),
            ({"z": np.zeros((4, 2), np.float16)}, "z[0] needs batch*frames = 6"),
        ],
    )
    def test_one_array(self, tmp_path, change, problem):
        np.savez(tmp_path / "b.npz", **{**batch(), **change})
        assert problem in error_of(tmp_path / "b.npz")

    def test_a_dimension_that_differs_between_inputs(self, tmp_path):
        inputs = [TensorSpec("a", "float32", ("n", 2)), TensorSpec("b", "float32", (None, "n"))]
        np.savez(tmp_path / "b.npz", a=np.ones((3, 2)), b=np.ones((9, 4)))
        assert "dimension 'n' is 3 in a[0], but 4 in b[1]" in error_of(tmp_path / "b.npz", inputs)

    def test_a_problem_of_several_batches_is_listed_once(self, tmp_path):
        write_batches(tmp_path / "d", [{"x": np.ones(1)} for _ in range(9)], model="m")
        text = error_of(tmp_path / "d")
        assert text.count("'z' is missing") == 1
        assert "'z' is missing (batch_0000.npz and 8 more)" in text

    def test_no_batches(self, tmp_path):
        (tmp_path / "data.py").write_text("def none():\n    return iter(())\n")
        assert "there are no batches" in error_of(f"{tmp_path}/data.py:none")

    def test_files_must_not_change_between_passes(self, tmp_path):
        np.savez(tmp_path / "b.npz", image=np.zeros((1, 2, 2), "f"))
        found = read_batches(tmp_path / "b.npz", IMAGE)
        np.savez(tmp_path / "b.npz", image=np.zeros((1, 2, 3), "f"))
        with pytest.raises(CalibrationError, match="batch 0 changed while it was in use"):
            list(found)
