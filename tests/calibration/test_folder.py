"""Folders of batches with a manifest: writing and reading."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers.calibration_data import INPUTS, assert_same, batch, error_of

from trt_native.calibration.batches import read_batches
from trt_native.calibration.folder import (
    DataManifest,
    check_new_folder,
    write_batches,
)
from trt_native.errors import CalibrationError, SpecError
from trt_native.shapes import TensorSpec


class TestReading:
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

    def test_inputs_of_any_name(self, tmp_path):
        arrays = {"file": np.ones(2, np.float32), "model/x:0": np.ones(2, np.float32)}
        write_batches(tmp_path / "d", [arrays], model="m")
        inputs = [TensorSpec(name, "float32", (2,)) for name in arrays]
        assert_same(read_batches(tmp_path / "d", inputs), [arrays])

    def test_damaged_and_missing_files(self, tmp_path):
        folder = tmp_path / "d"
        write_batches(folder, [batch(i) for i in range(3)], model="m")
        (folder / "batch_0000.npz").unlink()
        content = (folder / "batch_0001.npz").read_bytes()
        (folder / "batch_0001.npz").write_bytes(content[: len(content) // 2])
        text = error_of(folder)
        assert "batch_0000.npz: cannot be read: No such file" in text
        assert re.search(r"batch_0001\.npz: not a NumPy file, or damaged", text)


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
