"""Outputs never replace what a command reads, nor what is not from this package."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from helpers import tiny_models

from trt_native.errors import ModelError, PlanError, SpecError
from trt_native.files import save_with_json
from trt_native.graph.onnx_file import read_model, save_model
from trt_native.graph.outputs import check_outputs
from trt_native.runtime.runtime_cache import RuntimeCacheFile


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with its weights in ``weights.bin``, data, a plan's files, and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    proto = onnx.load(tiny_models.conv(tmp_path / "inline.onnx"))
    onnx.save(proto, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez("x.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    os.mkdir("data")
    shutil.copy("x.npz", "data/batch_0.npz")
    for name in ("m.plan", "m.plan.json", "m.plan.cache", "ranges.calib", "times.json", "u.pt"):
        (tmp_path / name).write_bytes(b"ftrt precious")
    os.link("weights.bin", "hard.bin")
    os.symlink("weights.bin", "soft.bin")
    return tmp_path


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "line",
    [
        "build m.onnx -o weights.bin",
        "build m.onnx -o hard.bin",
        "build m.onnx -o soft.bin",
        "build m.onnx --timing-cache weights.bin",
        "build m.onnx --timing-cache m.onnx",
        "build m.onnx -o new.plan --timing-cache new.plan",
        "build m.onnx -o data/batch_0.npz --precision best --calibration-data data",
        "calibrate m.onnx --data data -o weights.bin",
        "calibrate m.onnx --data data -o data/batch_0.npz",
        "quantize m.onnx --format int8-weights -o weights.bin",
        "refit m.plan --from m.onnx -o weights.bin",
        "inspect m.onnx --html weights.bin",
        "inspect m.plan --html m.plan.json",
        "inspect m.plan --html times.json --times times.json",
        "bench m.plan --html m.plan",
        "bench m.plan --html m.plan.cache",
        "bench m.plan --input x.npz --html x.npz",
        "bench inline.onnx --compare m.plan --html m.plan",
        "run m.plan --input x.npz -o x.npz",
        "run m.plan --random 0 -o m.plan.json",
        "export latentsync u.pt -o u.pt",
        "export latentsync u.shallow.pt -o u.pt --deepcache",
    ],
)
def test_a_file_that_is_read_stays(line, folder, main_in_process):
    shutil.copy("u.pt", "u.shallow.pt")
    before = contents(folder)
    code, _, error = main_in_process(*line.split())
    assert code == 1
    assert "it is one of the files to read" in error or "two outputs have this name" in error
    assert contents(folder) == before


def test_a_model_is_not_read_where_a_plan_is_replaced(folder, monkeypatch):
    def read(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("trt_native.graph.onnx_file.read_model", read)
    plan, described = folder / "n.plan", folder / "n.plan.json"
    save_with_json(plan, b"vtrt", described, {"producer": "trt-native 1"})
    check_outputs([plan], models=[folder / "m.onnx"], companions=[described])
    for output in (folder / "weights.bin", folder / "soft.bin", folder / "data/batch_0.npz"):
        with pytest.raises(ZeroDivisionError):
            check_outputs([plan, output], models=[folder / "m.onnx"], companions=[described])
    with pytest.raises(SpecError, match="it is one of the files to read"):
        check_outputs([plan], models=[plan])
    with pytest.raises(SpecError, match="it is one of the files to read"):
        check_outputs([plan], reads=[plan])


def test_a_json_file_of_another_program_stays(folder):
    theirs = b'{"learning_rate": 0.1}'
    for name in ("new.plan.json", "t.json"):
        (folder / name).write_bytes(theirs)
    with pytest.raises(SpecError, match=r"new.plan.json is there and is not from trt-native"):
        check_outputs([folder / "new.plan"], companions=[folder / "new.plan.json"])
    with pytest.raises(FileExistsError):
        save_with_json(folder / "t", b"plan", folder / "t.json", {"producer": "trt-native"})
    save_with_json(folder / "t", b"plan", folder / "t.json", None)
    assert (folder / "t.json").read_bytes() == theirs
    for document in ({"producer": "trt-native 1"}, {"producer": "trt-native 2"}):
        save_with_json(folder / "own", b"plan", folder / "own.json", document)
        assert json.loads((folder / "own.json").read_text()) == document
    save_with_json(folder / "own", b"plan", folder / "own.json", None)
    assert not (folder / "own.json").exists()


def test_kernels_do_not_replace_a_file_of_another_program(folder):
    plan_cache = folder / "m.plan.cache"
    with pytest.raises(PlanError, match="not a runtime cache; move it"):
        RuntimeCacheFile(plan_cache, {"kernels_of": "0" * 64}).write(b"kernels")
    assert plan_cache.read_bytes() == b"ftrt precious"
    plan_cache.unlink()
    for kernels in (b"kernels", b"more kernels"):
        RuntimeCacheFile(plan_cache, {"kernels_of": "0" * 64}).write(kernels)
        assert plan_cache.read_bytes().endswith(b"\n" + kernels)


def external(name, data):
    onnx.save(
        onnx.load("inline.onnx"), name, save_as_external_data=True, location=data, size_threshold=0
    )


def test_weights_go_only_with_the_one_model_that_had_them(folder, main_in_process):
    external("fp32.onnx", "model.onnx.data")
    code, _, error = main_in_process(
        "quantize", "fp32.onnx", "--format", "int8-weights", "-o", "model.onnx"
    )
    assert code == 1
    assert "cannot write model.onnx.data: it is one of the files to read" in error
    shutil.copy("fp32.onnx", "model.onnx")
    model = read_model(folder / "inline.onnx")
    save_model(model, folder / "model.onnx")
    assert (folder / "model.onnx.data").exists(), "fp32.onnx reads it"
    read_model(folder / "fp32.onnx")
    shutil.copy("fp32.onnx", "model.onnx")
    (folder / "fp32.onnx").unlink()
    save_model(model, folder / "model.onnx")
    assert not (folder / "model.onnx.data").exists(), "only the replaced model read it"
    (folder / "lone.onnx.data").touch()
    save_model(model, folder / "lone.onnx")
    assert (folder / "lone.onnx.data").exists(), "no model read it"


def test_weights_of_another_model_are_not_replaced(folder, monkeypatch):
    monkeypatch.setattr("trt_native.graph.onnx_file._MAX_INLINE_BYTES", 0)
    external("shallow.onnx", "model.onnx.data")
    before = contents(folder)
    with pytest.raises(SpecError, match=r"shallow.onnx next to it has its weights there"):
        save_model(read_model(folder / "inline.onnx"), folder / "model.onnx")
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "/"])
@pytest.mark.parametrize(
    "line",
    [
        "build NAME",
        "build NAME --dry-run",
        "build m.onnx -o NAME",
        "build m.onnx --timing-cache NAME",
        "calibrate NAME --data data",
        "calibrate m.onnx --data data -o NAME",
        "calibrate m.onnx --data NAME",
        "quantize NAME -o q.onnx --format int8-weights",
        "quantize m.onnx -o NAME --format int8-weights",
        "refit NAME --from m.onnx -o r.plan",
        "refit m.plan --from NAME -o r.plan",
        "refit m.plan --from m.onnx -o NAME",
        "inspect NAME",
        "inspect m.onnx --html NAME",
        "run NAME --random 0",
        "bench NAME",
        "bench m.plan --html NAME",
        "diff NAME NAME",
        "verify NAME --against m.onnx --random 0",
        "deploy trtexec NAME",
        "export latentsync --random-weights 0 --config small -o NAME",
        "export latentsync --random-weights 0 --config small --deepcache -o NAME",
        "export latentsync NAME -o u.onnx",
        "export latentsync-vae NAME -o v.onnx",
    ],
)
def test_paths_without_a_file_name(line, name, folder, main_in_process):
    before = contents(folder)
    words = [name if word == "NAME" else word for word in line.split()]
    code, _, error = main_in_process(*words)
    assert code == 1
    assert "error: " in error
    assert contents(folder) == before


def test_a_folder_is_not_the_name_of_an_autoencoder(folder, main_in_process):
    code, _, error = main_in_process("export", "latentsync-vae", "--random-weights", 0, "-o", "")
    assert code == 1
    assert "it is a folder; name a file in it" in error


def test_a_folder_is_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="is a folder, not an ONNX file"):
        check_outputs([tmp_path / "m.plan"], models=[tmp_path])
