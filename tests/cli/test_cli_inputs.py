"""Inputs from the command line: files, shapes, random values against NumPy's generator."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.made_plans import TWO, X, tensor

from trt_native.arrays import StoredArray
from trt_native.cli.inputs import (
    check_not_fixed,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
)
from trt_native.errors import SpecError

FLAG = tensor("flag", "input", "bool", shape=(64,))
STEP = tensor("step", "input", "int64", shape=(100,))
SIZE = tensor("size", "input", "int64", shape=(2,), values=("1x2:3x4:5x6",))

FILE_INPUTS = {
    "x": tensor("x", "input", "float32", shape=(2, 3)),
    "y": tensor("y", "input", "int64", shape=(1,)),
    "z": tensor("z", "input", "float32", "1x3:1x3:4x3"),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.int64)
    np.save("x.npy", x)
    np.savez("all.npz", x=x, y=y)
    return {"x": x, "y": y}


class TestFiles:
    @pytest.mark.parametrize(
        ("entries", "sources"),
        [
            ([], {}),
            (["x=x.npy"], {"x": "x"}),
            (["all.npz"], {"x": "x", "y": "y"}),
            (["all.npz", "z=x.npy"], {"x": "x", "y": "y", "z": "x"}),
        ],
    )
    def test_arrays_come_by_name(self, files, entries, sources):
        with open_inputs(entries) as given:
            assert given.names == tuple(sources)
            found = given.read([FILE_INPUTS[name] for name in "zyx"])
        for name, source in sources.items():
            np.testing.assert_array_equal(found[name], files[source])

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (["x.npy"], "--input 'x.npy': write NAME=FILE.npy, or name an .npz file"),
            (["=x.npy"], "write NAME=FILE.npy"),
            (["x=all.npz"], "all.npz: holds several arrays by name; write one to an .npy file"),
            (["all.npz", "x=x.npy"], "--input 'x=x.npy': x was given before"),
            (["all.npz", "all.npz"], "--input 'all.npz': x, y was given before"),
            (["x=none.npy"], "none.npy: cannot be read: No such file"),
        ],
    )
    @pytest.mark.usefixtures("files")
    def test_entries_that_do_not_fit(self, entries, message):
        with pytest.raises(SpecError) as caught, open_inputs(entries):
            pass
        assert message in str(caught.value)

    def test_a_single_array_under_the_name_of_an_archive(self, tmp_path, files):
        np.save(tmp_path / "one.npy", files["x"])
        (tmp_path / "one.npy").rename(tmp_path / "one.npz")
        with (
            pytest.raises(SpecError, match="holds one array without a name"),
            open_inputs(["one.npz"]),
        ):
            pass

    @pytest.mark.parametrize(
        ("inputs", "problem"),
        [
            ("x", "'y' is not an input"),
            ("xyz", None),
            ([tensor("x", "input", "float16", shape=(2, 3)), "y"], "'x' needs float16"),
            ([tensor("x", "input", "float32", shape=(2, 4)), "y"], "'x' cannot have the shape 2x3"),
            (
                [
                    tensor("x", "input", "float32", "1x3", "2x3"),
                    tensor("y", "input", "int64", "1", "8"),
                ],
                "no single profile allows these shapes together",
            ),
        ],
    )
    @pytest.mark.usefixtures("files")
    def test_arrays_are_inflated_only_where_all_fit(self, monkeypatch, inputs, problem):
        read = []
        whole = StoredArray.read
        monkeypatch.setattr(StoredArray, "read", lambda a: read.append(a.shape) or whole(a))
        tensors = [FILE_INPUTS[i] if isinstance(i, str) else i for i in inputs]
        with open_inputs(["all.npz"]) as given:
            if problem is None:
                given.read(tensors)
                given.read(tensors)
                assert read == [(2, 3), (1,)]
                return
            with pytest.raises(SpecError) as caught:
                given.read(tensors)
        assert problem in str(caught.value)
        assert read == []

    def test_warnings_name_inputs_that_are_not_finite(self, tmp_path, capsys):
        arrays = {
            "fine": np.ones(2, np.float32),
            "count": np.array([2**62]),
            "flag": np.array([True]),
            "a[b]": np.array([1, np.nan], np.float16),
        }
        np.savez(tmp_path / "a.npz", **arrays)
        inputs = [tensor(n, "input", a.dtype.name, shape=a.shape) for n, a in arrays.items()]
        with open_inputs([f"{tmp_path}/a.npz"]) as given:
            for _ in range(2):
                given.read(inputs)
        assert capsys.readouterr().err.splitlines() == [
            "warning: input 'a[b]' has NaN or infinite values",
        ]


class TestShapes:
    def test_a_name_may_hold_the_separator(self):
        assert read_shapes(["x=1x3", "a=b=4", "t=scalar"]) == {
            "x": (1, 3),
            "a=b": (4,),
            "t": (),
        }

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (["1x3"], "--shape '1x3': write NAME=1x3x8x8"),
            (["=1x3"], "--shape '=1x3': write NAME=1x3x8x8"),
            (["x=1", "x=2"], "--shape 'x=2': x was given before"),
            (["x=1xa"], "not a shape: '1xa'"),
        ],
    )
    def test_entries_that_do_not_fit(self, entries, message):
        with pytest.raises(SpecError) as caught:
            read_shapes(entries)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("seed", "shapes", "message"),
    [(-1, {}, "--random -1: a seed must not be negative"), (None, {"x": (1,)}, "no effect")],
)
def test_seeds_that_do_not_fit(seed, shapes, message):
    with pytest.raises(SpecError, match=message):
        check_seed(seed, shapes)


@pytest.mark.parametrize(("seed", "shapes"), [(None, {}), (0, {}), (3, {"x": (1,)})])
def test_seeds_that_fit(seed, shapes):
    check_seed(seed, shapes)


def test_inputs_that_are_constants_of_the_plan():
    check_not_fixed({"x": X}, {"sr": 16000})
    with pytest.raises(SpecError, match="built with sr = 16000 and has no such input"):
        check_not_fixed({"x": X, "sr": X}, {"sr": 16000})


class TestRandom:
    def test_floats_are_those_of_the_generator_in_the_optimal_shape(self):
        found = fill_random([X], {}, {}, np.random.default_rng(5))
        expected = np.random.default_rng(5).standard_normal((4, 3, 16, 8), np.float32)
        np.testing.assert_array_equal(found["x"], expected)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_floats_are_rounded(self, dtype):
        narrow = tensor("x", "input", dtype, shape=(8, 8))
        found = fill_random([narrow], {}, {}, np.random.default_rng(5))["x"]
        expected = np.random.default_rng(5).standard_normal((8, 8), np.float32)
        assert found.dtype.name == dtype
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-8)

    def test_integers_and_flags_are_zero_or_one(self):
        found = fill_random([STEP, FLAG], {}, {}, np.random.default_rng(0))
        assert (found["step"].dtype, found["flag"].dtype) == (np.int64, np.bool_)
        assert set(found["step"].tolist()) == {0, 1}
        assert set(found["flag"].tolist()) == {False, True}

    def test_a_shape_in_values_is_the_optimal_one(self):
        found = fill_random([SIZE], {}, {}, np.random.default_rng(0))["size"]
        assert (found.tolist(), found.dtype) == ([3, 4], np.int64)

    def test_given_arrays_stay(self):
        given = {"x": np.zeros((1, 3, 8, 8), np.float32)}
        found = fill_random([X, STEP], given, {}, np.random.default_rng(0))
        assert found["x"] is given["x"]
        assert set(found) == {"x", "step"}
        assert set(given) == {"x"}

    def test_a_shape_of_any_profile_is_taken(self):
        found = fill_random([TWO], {}, {"x": (8, 3)}, np.random.default_rng(0))
        assert found["x"].shape == (8, 3)

    @pytest.mark.parametrize(
        ("shapes", "given", "message"),
        [
            ({"y": (1,), "a": (1,)}, {}, "--shape a, y: the inputs are x"),
            ({"x": (1, 3)}, {"x": np.zeros((1, 3))}, "--shape x: no effect, as --input gives"),
            ({"x": (5, 3)}, {}, "--shape x=5x3: outside 1x3:2x3:4x3 or 8x3"),
            ({"x": ()}, {}, "--shape x=scalar: outside"),
        ],
    )
    def test_shapes_that_do_not_fit(self, shapes, given, message):
        with pytest.raises(SpecError) as caught:
            fill_random([TWO], given, shapes, np.random.default_rng(0))
        assert message in str(caught.value)
