"""Reading calibration data, from every kind of source, good and bad."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest

from trt_native.calibration.batches import read_batches
from trt_native.calibration.folder import (
    DataManifest,
    check_new_folder,
    read_data_manifest,
    write_batches,
)
from trt_native.calibration.sources import load_function
from trt_native.errors import CalibrationError, SpecError
from trt_native.shapes import TensorSpec

INPUTS = (
    TensorSpec("x", "float32", ("batch", "frames", 4)),
    TensorSpec("step", "int64", (1,)),
    TensorSpec("z", "float16", ("batch*frames", 2)),
)
IMAGE = (TensorSpec("image", "float32", (1, 2, 2)),)


def batch(i=0, frames=3):
    rng = np.random.default_rng(i)
    return {
        "x": rng.standard_normal((2, frames, 4), np.float32),
        "step": np.array([i], np.int64),
        "z": rng.standard_normal((2 * frames, 2)).astype(np.float16),
    }


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name, array in other.items():
            assert one[name].dtype == array.dtype
            assert one[name].flags.c_contiguous
            np.testing.assert_array_equal(one[name], array)


def error_of(source, inputs=INPUTS, **options):
    with pytest.raises(CalibrationError) as caught:
        read_batches(source, inputs, **options)
    return str(caught.value)


class TestSources:
    def test_a_folder_of_npz_in_the_order_of_names(self, tmp_path):
        for name, i in (("b", 1), ("a", 0), ("c", 2)):
            np.savez(tmp_path / f"{name}.npz", **batch(i))
        (tmp_path / ".hidden.npz").write_bytes(b"")
        found = read_batches(tmp_path, INPUTS)
        assert found.manifest is None
        assert_same(found, [batch(0), batch(1), batch(2)])

    def test_a_written_folder(self, tmp_path):
        expected = [batch(2), batch(0), batch(1)]
        notes = [{"timestep": i} for i in (2, 0, 1)]
        write_batches(tmp_path / "d", expected, model="m", origin={"seed": 7}, notes=notes)
        found = read_batches(tmp_path / "d", INPUTS)
        assert_same(found, expected)
        assert found.manifest.model == "m"
        assert found.manifest.origin == {"seed": 7}
        assert [entry["timestep"] for entry in found.manifest.batches] == [2, 0, 1]
        assert found.manifest.inputs == (
            TensorSpec("x", "float32", (2, 3, 4)),
            TensorSpec("step", "int64", (1,)),
            TensorSpec("z", "float16", (6, 2)),
        )

    def test_a_folder_of_npy_by_batch_and_input(self, tmp_path):
        for i in range(2):
            for name, array in batch(i).items():
                np.save(tmp_path / f"v1.{i}.{name}.npy", array)
        assert_same(read_batches(tmp_path, INPUTS), [batch(0), batch(1)])

    def test_a_folder_of_npy_for_one_input(self, tmp_path):
        arrays = [np.full((1, 2, 2), i, np.float32) for i in range(3)]
        for i, array in enumerate(arrays):
            np.save(tmp_path / f"{i}.npy", array)
        assert_same(read_batches(tmp_path, IMAGE), [{"image": array} for array in arrays])

    def test_one_npz_is_one_batch(self, tmp_path):
        np.savez(tmp_path / "b.npz", **batch())
        assert_same(read_batches(tmp_path / "b.npz", INPUTS), [batch()])

    def test_one_npz_with_an_axis_more_is_many(self, tmp_path):
        scalar = TensorSpec("t", "float32", ())
        several = [{**batch(i), "t": np.array(i, np.float32)} for i in range(4)]
        stacked = {name: np.stack([b[name] for b in several]) for name in several[0]}
        np.savez(tmp_path / "b.npz", **stacked)
        found = read_batches(tmp_path / "b.npz", (*INPUTS, scalar))
        assert_same(found, several)
        assert isinstance(found[1]["t"], np.ndarray)
        assert_same(read_batches(tmp_path / "b.npz", (*INPUTS, scalar), limit=2), several[:2])

    def test_a_function(self, tmp_path):
        (tmp_path / "helper.py").write_text("COUNT = 3\n")
        (tmp_path / "data.py").write_text(
            "from __future__ import annotations\n"
            "import dataclasses, torch\n"
            "import helper\n"
            "@dataclasses.dataclass\n"
            "class Setting:\n"
            "    count: int = helper.COUNT\n"
            "def images():\n"
            "    for i in range(Setting().count):\n"
            "        yield {'image': torch.full((1, 2, 2), float(i))}\n"
        )
        expected = [{"image": np.full((1, 2, 2), i, np.float32)} for i in range(3)]
        found = read_batches(f"{tmp_path}/data.py:images", IMAGE)
        assert_same(found, expected)
        assert_same(found, expected)  # a second pass
        assert_same(found[1:], expected[1:])
        assert_same([found[2]], [expected[2]])

    def test_a_function_that_never_ends_needs_a_limit(self, tmp_path):
        (tmp_path / "data.py").write_text(
            "import itertools, numpy as np\n"
            "def images():\n"
            "    return ({'image': np.full((1, 2, 2), i, 'f')} for i in itertools.count())\n"
        )
        assert len(read_batches(f"{tmp_path}/data.py:images", IMAGE, limit=2)) == 2

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

    def test_inputs_of_any_name(self, tmp_path):
        arrays = {"file": np.ones(2, np.float32), "model/x:0": np.ones(2, np.float32)}
        write_batches(tmp_path / "d", [arrays], model="m")
        inputs = [TensorSpec(name, "float32", (2,)) for name in arrays]
        assert_same(read_batches(tmp_path / "d", inputs), [arrays])


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


class TestFaults:
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

    def test_the_error_for_images_as_one_batch_explains_stacking(self, tmp_path):
        np.savez(tmp_path / "b.npz", image=np.zeros((500, 2, 2), np.float32))
        assert "one more axis than the input, first" in error_of(tmp_path / "b.npz", IMAGE)

    def test_stacks_of_different_lengths(self, tmp_path):
        stacked = {name: np.stack([array] * 2) for name, array in batch().items()}
        stacked["step"] = stacked["step"][:1]
        np.savez(tmp_path / "b.npz", **stacked)
        assert "different numbers of batches" in error_of(tmp_path / "b.npz")

    def test_damaged_and_missing_files(self, tmp_path):
        folder = tmp_path / "d"
        write_batches(folder, [batch(i) for i in range(3)], model="m")
        (folder / "batch_0000.npz").unlink()
        content = (folder / "batch_0001.npz").read_bytes()
        (folder / "batch_0001.npz").write_bytes(content[: len(content) // 2])
        text = error_of(folder)
        assert "batch_0000.npz: cannot be read: No such file" in text
        assert re.search(r"batch_0001\.npz: not a NumPy file, or damaged", text)

    def test_pickles_are_not_loaded(self, tmp_path):
        np.save(tmp_path / "0.npy", np.array([{}], object), allow_pickle=True)
        assert "not a NumPy file" in error_of(tmp_path, IMAGE)

    @pytest.mark.parametrize(
        ("files", "problem"),
        [
            ((), "has no .npz and no .npy files; give a folder of"),
            (("a.npz", "a.npy"), "has both .npz and .npy files"),
            (("0001.latents.npy",), "0001.latents.npy: name it BATCH.INPUT.npy"),
        ],
    )
    def test_folders_of_something_else(self, tmp_path, files, problem):
        for name in files:
            np.save((tmp_path / name).open("wb"), np.zeros(1))
        assert problem in error_of(tmp_path)

    def test_sources_that_are_none(self, tmp_path):
        (tmp_path / "cal.txt").touch()
        assert "no such calibration data; give a folder" in error_of(tmp_path / "nowhere")
        assert "not calibration data; give a folder" in error_of(tmp_path / "cal.txt")
        with pytest.raises(SpecError, match="at least 1"):
            read_batches(tmp_path, INPUTS, limit=0)

    def test_no_batches(self, tmp_path):
        (tmp_path / "data.py").write_text("def none():\n    return iter(())\n")
        assert "there are no batches" in error_of(f"{tmp_path}/data.py:none")

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            ("yield {'image': [[1, 2], [3]]}", "'image' cannot be read as an array"),
            ("yield [1]", "must yield {input name: array}, found a list"),
            ("return 5", "raised TypeError: 'int' object is not iterable"),
            ("yield {'image': __import__('numpy').zeros((1, 2, 2), 'f')}\n    1 / 0",
             "raised ZeroDivisionError: division by zero (batch 1)"),
        ],
    )  # fmt: skip
    def test_functions_that_fail(self, tmp_path, body, problem):
        (tmp_path / "data.py").write_text(f"def images():\n    {body}\n")
        assert problem in error_of(f"{tmp_path}/data.py:images", IMAGE)

    def test_functions_that_are_not_there(self, tmp_path):
        (tmp_path / "data.py").write_text("def images(): ...\n")
        (tmp_path / "bad.py").write_text("import no_such_module\n")
        text = error_of(f"{tmp_path}/data.py:image")
        assert "has no function 'image'; its functions are images" in text
        with pytest.raises(CalibrationError, match=r"data\.py: write FILE\.py:FUNCTION"):
            load_function(f"{tmp_path}/data.py")
        assert "other.py: no such file" in error_of(f"{tmp_path}/other.py:image")
        text = error_of(f"{tmp_path}/bad.py:image")
        assert "bad.py raised ModuleNotFoundError: No module named 'no_such_module'" in text

    def test_a_function_must_yield_the_same_every_time(self, tmp_path):
        (tmp_path / "data.py").write_text(
            "import numpy as np\n"
            "rng = np.random.default_rng(0)\n"
            "def images():\n"
            "    yield {'image': rng.standard_normal((1, 2, 2))}\n"
            "rest = [1, 1, 1]\n"
            "def fewer():\n"
            "    rest.pop()\n"
            "    for i in rest: yield {'image': np.zeros((1, 2, 2), 'f')}\n"
        )
        found = read_batches(f"{tmp_path}/data.py:images", IMAGE)
        with pytest.raises(CalibrationError, match=r"batch 0 is not what it was .* so seed it"):
            list(found)
        found = read_batches(f"{tmp_path}/data.py:fewer", IMAGE)
        with pytest.raises(CalibrationError, match="yields fewer batches than when"):
            list(found)

    def test_files_must_not_change_between_passes(self, tmp_path):
        np.savez(tmp_path / "b.npz", image=np.zeros((1, 2, 2), "f"))
        found = read_batches(tmp_path / "b.npz", IMAGE)
        np.savez(tmp_path / "b.npz", image=np.zeros((1, 2, 3), "f"))
        with pytest.raises(CalibrationError, match="batch 0 changed while it was in use"):
            list(found)


class TestManifest:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"schema": 2}, "manifest of schema 2, this version reads 1"),
            ({"batches": [{}]}, "malformed manifest: KeyError: 'file'"),
            ({"batches": [{"file": "../x.npz"}]}, "'../x.npz' is not a file in its folder"),
            ({"inputs": 3}, "malformed manifest: TypeError"),
        ],
    )
    def test_malformed(self, tmp_path, change, problem):
        write_batches(tmp_path / "d", [batch()], model="m")
        path = tmp_path / "d" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert problem in error_of(tmp_path / "d")

    def test_not_json(self, tmp_path):
        (tmp_path / "manifest.json").write_text("{")
        assert "manifest.json: cannot be read" in error_of(tmp_path)

    def test_round_trip(self):
        manifest = DataManifest(
            model="m",
            inputs=(TensorSpec("x", "float32", (1, None)), TensorSpec("y", "int64", None)),
            batches=({"file": "a.npz", "timestep": 3},),
            origin={"seed": 1},
        )
        assert DataManifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


class TestWriting:
    def test_the_same_batches_give_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            write_batches(tmp_path / name, [batch(0), batch(1)], model="m")
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

    def test_all_or_nothing(self, tmp_path):
        def failing():
            yield batch()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_batches(tmp_path / "d", failing(), model="m")
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_one_set(self, tmp_path):
        other = {"x": np.ones(1, np.int32)}
        with pytest.raises(CalibrationError, match="batch 1 has x: int32, those before have x: fl"):
            write_batches(tmp_path / "d", [{"x": np.ones(1)}, other], model="m")
        with pytest.raises(CalibrationError, match="there are no batches to write"):
            write_batches(tmp_path / "d", [], model="m")
        assert list(tmp_path.iterdir()) == []

    def test_where_something_is_already(self, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        (tmp_path / "empty").mkdir()
        check_new_folder(tmp_path / "empty")
        for taken in ("full", "full/file"):
            with pytest.raises(SpecError, match="it is there already; name a new folder"):
                write_batches(tmp_path / taken, [batch()], model="m")
        with pytest.raises(SpecError, match="No such file or directory"):
            write_batches(tmp_path / "no" / "where", [batch()], model="m")
        write_batches(tmp_path / "empty", [batch()], model="m")
        assert len(read_batches(tmp_path / "empty", INPUTS)) == 1
