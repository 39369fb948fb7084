"""Broken calibration caches, calibration data, inputs and cache entries."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile

import numpy as np
import pytest
from helpers import tiny_models
from helpers.made_plans import X, Y, make_plan
from helpers.mutations import BYTES, HOSTILE_VALUES, attempt, json_broken, json_edited

from trt_native.builder import plan_cache
from trt_native.builder.plan_cache import EngineCache
from trt_native.calibration.batches import read_batches
from trt_native.calibration.caches import CalibrationCache
from trt_native.calibration.folder import write_batches
from trt_native.errors import CalibrationError
from trt_native.graph.onnx_file import read_model, tensor_specs

CALIBRATION_CACHES = 60
CALIBRATION_DATA = 60
INPUTS = 58
CACHE_ENTRIES = 22


def mutant(rng, number, data):
    """Changed bytes, or where they are JSON, mostly a changed document."""
    try:
        document = json.loads(data)
    except ValueError:
        return BYTES[number % len(BYTES)](rng, data)
    return (json_edited, json_edited, json_broken)[number % 3](rng, document)


@pytest.mark.timeout(120)
def test_calibration_caches(command, tmp_path):
    """One of the two files is broken; each command that reads them says so, or gets them right."""
    model = tiny_models.dense(tmp_path / "m.onnx", width=32)
    good = tiny_models.calibration(model, tmp_path / "good.calib", 2.0, shapes={"h0": ("4x32",)})
    files = {suffix: good.with_name(good.name + suffix).read_bytes() for suffix in ("", ".json")}
    path = tmp_path / "m.calib"
    rng = random.Random(4)
    for number in range(CALIBRATION_CACHES):
        broken = ("", ".json")[number % 2]
        for suffix, data in files.items():
            content = mutant(rng, number // 2, data) if suffix == broken else data
            path.with_name(path.name + suffix).write_bytes(content)
        shown = command("calibrate", "--show", path, *("--json",) * (number % 2))
        assert command("calibrate", "--diff", path, good).exit_code == shown.exit_code
        precision = ("int8", "fp8")[number // 2 % 2]
        quantized = command(
            "quantize",
            model,
            "-o",
            tmp_path / "q.onnx",
            "--calibration-cache",
            path,
            "--format",
            precision,
        )
        if shown.exit_code:
            assert quantized.exit_code == 1
            with pytest.raises(CalibrationError):
                CalibrationCache.load(path)
        elif broken == ".json":  # without its description a cache is still what it is
            assert CalibrationCache.load(path).scales == CalibrationCache.load(good).scales


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def hostile_arrays(rng):
    """Files that are whole, but hold what no input is."""
    header = str({"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)})
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    member = io.BytesIO()
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("../x.npy", npy(np.ones(3, np.float32)))
        archive.writestr("x.txt", "no array")
    return rng.choice(
        (
            npy(np.array([print, None], object)),  # would be a pickle
            npz({"x": np.array(["a", "b"])}),
            npz({"x": np.zeros((0, 3), np.float32)}),
            npz({"x": np.full((2, 64), np.nan, np.float32)}),
            npz({"x": np.zeros((1, 64), "datetime64[s]")}),
            npz({"x": np.zeros((1, 64), [("a", "f4")])}),
            npz({"": np.zeros(3)}),
            huge,
            member.getvalue(),
        )
    )


@pytest.mark.timeout(120)
def test_calibration_data(tmp_path):
    """A broken file, or a broken manifest, in a folder of batches."""
    inputs, _ = tensor_specs(read_model(tiny_models.dense(tmp_path / "m.onnx", width=64)))
    rng = random.Random(5)
    batches = [{"h0": np.full((2, 64), number, np.float32)} for number in range(3)]
    write_batches(tmp_path / "good", batches, model="m", origin={"seed": 1})
    files = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    right = 0
    for number in range(CALIBRATION_DATA):
        folder = tmp_path / str(number)
        folder.mkdir()
        broken = ("manifest.json", "batch_0001.npz")[number % 2]
        for name, data in files.items():
            content = data if name != broken else mutant(rng, number // 2, data)
            if name == broken and name.endswith("z") and number % 6 == 1:
                content = hostile_arrays(rng)
            (folder / name).write_bytes(content)
        found, error = attempt(read_batches, folder, inputs, kind=CalibrationError)
        if error is not None:
            assert str(folder) in error.message
            continue
        right += 1
        assert found
        for batch in found:  # which ones there are, a changed manifest decides
            assert any((batch["h0"] == original["h0"]).all() for original in batches)
    assert 0 < right < CALIBRATION_DATA


@pytest.mark.parametrize(
    "name", ["../secret.npz", "/secret.npz", "..", ".", "", "a\0b", "link.npz"]
)
def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path, name):
    inputs, _ = tensor_specs(read_model(tiny_models.dense(tmp_path / "m.onnx", width=64)))
    batches = [{"h0": np.zeros((2, 64), np.float32)}]
    write_batches(tmp_path / "data", batches, model="m")
    (tmp_path / "data" / "batch_0000.npz").rename(tmp_path / "secret.npz")
    (tmp_path / "data" / "link.npz").symlink_to("../secret.npz")
    manifest = tmp_path / "data" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["batches"][0]["file"] = name
    manifest.write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match=r"not a file in its folder|outside the folder"):
        read_batches(tmp_path / "data", inputs)


@pytest.mark.timeout(120)
def test_inputs_of_run(command, tmp_path):
    """A broken input is named, before anything asks for a GPU."""
    plan = make_plan(tmp_path / "m.plan", (X, Y)).path
    one = npy(np.ones((2, 3), np.float32))
    several = npz({"x": np.ones((2, 3), np.float32), "z": np.ones(3, np.int64)})
    rng = random.Random(6)
    for number in range(INPUTS):
        data, suffix = ((one, ".npy"), (several, ".npz"))[number % 2]
        path = tmp_path / f"{number}{suffix}"
        content = hostile_arrays(rng) if number % 10 > 7 else mutant(rng, number // 2, data)
        path.write_bytes(content)
        for word in (f"x={path}", str(path)):
            result = command("run", plan, "--input", word)
            assert result.exit_code == 1
            named = (str(path), "the inputs do not fit", "GPU", "libcuda")
            assert any(text in result.stderr for text in named)


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "folder", "loop"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_inputs_that_are_no_files(command, tmp_path, kind, suffix):
    path = tmp_path / f"x{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else kind)
    plan = make_plan(tmp_path / "m.plan", (X, Y)).path
    for word in (f"x={path}", str(tmp_path / "x.npz")):
        result = command("run", plan, "--input", word)
        assert "cannot be read" in result.stderr or "write NAME=FILE.npy" in result.stderr
    assert command("calibrate", "--show", path).exit_code == 1


@pytest.mark.backend
@pytest.mark.timeout(300)
def test_engine_cache_entries(command, tmp_path, monkeypatch):
    """A broken entry is built again, and never taken."""
    monkeypatch.setattr(plan_cache, "_SETTLED_NS", 0)  # keep the hash of a file that is new
    model = tiny_models.external_weights(tmp_path / "m.onnx")
    folder = tmp_path / "cache"
    good = EngineCache(folder).build_plan(model, backend="rtx")
    entry = {path.name: path.read_bytes() for path in (folder / "engines").iterdir()}
    rng = random.Random(7)
    for number in range(CACHE_ENTRIES):
        broken = (".plan", ".json")[number % 2]
        for name, data in entry.items():
            content = mutant(rng, number // 2, data) if name.endswith(broken) else data
            (folder / "engines" / name).write_bytes(content)
        listed = command("cache", "list", "--cache", folder, *("--json",) * (number % 2))
        assert listed.exit_code == 0
        built = EngineCache(folder).build_plan(model, backend="rtx")
        unchanged = {p.name: p.read_bytes() for p in (folder / "engines").iterdir()} == entry
        assert not built.cached or unchanged
        assert built.manifest.tensors == good.manifest.tensors
        assert len(built.plan.data) == built.manifest.plan_bytes
        if number % 10 == 0:
            assert command("cache", "prune", "--cache", folder).exit_code == 0
    hashes = list((folder / "hashes").iterdir())
    for file, value in zip(hashes, HOSTILE_VALUES, strict=False):
        file.write_text(json.dumps({"content": value, "sha256": "0" * 64}))
    assert EngineCache(folder).hash_file(model) == good.manifest.model["sha256"]
