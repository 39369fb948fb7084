"""Each kind of source of calibration data: folders of arrays, files of many batches, functions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.calibration_data import IMAGE, INPUTS, assert_same, batch, error_of

from trt_native.calibration.batches import read_batches
from trt_native.calibration.sources import load_function
from trt_native.errors import CalibrationError, SpecError
from trt_native.shapes import TensorSpec


class TestSources:
    def test_a_folder_of_npz_in_the_order_of_names(self, tmp_path):
        for name, i in (("b", 1), ("a", 0), ("c", 2)):
            np.savez(tmp_path / f"{name}.npz", **batch(i))
        (tmp_path / ".hidden.npz").write_bytes(b"")
        found = read_batches(tmp_path, INPUTS)
        assert found.manifest is None
        assert_same(found, [batch(0), batch(1), batch(2)])

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


class TestErrors:
    def test_the_error_for_images_as_one_batch_explains_stacking(self, tmp_path):
        np.savez(tmp_path / "b.npz", image=np.zeros((500, 2, 2), np.float32))
        assert "one more axis than the input, first" in error_of(tmp_path / "b.npz", IMAGE)

    def test_stacks_of_different_lengths(self, tmp_path):
        stacked = {name: np.stack([array] * 2) for name, array in batch().items()}
        stacked["step"] = stacked["step"][:1]
        np.savez(tmp_path / "b.npz", **stacked)
        assert "different numbers of batches" in error_of(tmp_path / "b.npz")

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

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            ("yield {'image': [[1, 2], [3]]}", "'image' cannot be read as an array"),
            ("yield [1]", "must yield {input name: array}, found a list"),
            ("return 5", "raised TypeError: 'int' object is not iterable"),
            ("yield {'image': __import__('numpy').zeros((1, 2, 2), 'f')}\n    1 / 0",
             "raised ZeroDivisionError: division by zero (batch 1)"),
            ("yield {'image': __import__('numpy').zeros((1, 2, 2), 'f')}\n    exit()",
             "raised SystemExit: None (batch 1)"),
            ("__import__('sys').exit(0)\n    yield", "raised SystemExit: 0"),
            ("pass\nraise SystemExit", "data.py raised SystemExit: when it was loaded"),
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
