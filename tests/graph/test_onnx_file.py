from __future__ import annotations

import hashlib
import os

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper

from trt_native.errors import BuildError, ModelError
from trt_native.graph import onnx_file
from trt_native.graph.dims import resolve_profiles
from trt_native.graph.onnx_file import (
    file_states,
    hash_files,
    model_files,
    operator_names,
    read_model,
    save_model,
    save_temporary,
    summarize,
)
from trt_native.shapes import ProfileSpec


def test_summary(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    summary = summarize(path, read_model(path))
    assert [str(t) for t in summary.inputs] == ["x: float32(batch, 3, height, width)"]
    assert [str(t) for t in summary.outputs] == ["y: float32(batch, 8, height, width)"]
    assert summary.opsets == {"": 18}
    assert summary.operators == {"Relu": 1, "Conv": 1}
    assert (summary.parameters, summary.weight_bytes) == (8 * 3 * 3 * 3, 8 * 3 * 3 * 3 * 4)
    assert summary.file_bytes == path.stat().st_size


@pytest.mark.parametrize("threads", [1, 4])
def test_weights_are_written_whole_by_any_number_of_threads(tmp_path, monkeypatch, threads):
    names, random = [f"w{i}" for i in range(40)], np.random.default_rng(0)
    arrays = {
        name: random.standard_normal((i + 1, 300), np.float32) for i, name in enumerate(names)
    }
    nodes = [helper.make_node("Sum", names[:1], ["y"])]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [*nodes, *(helper.make_node("Identity", [name], [f"o{name}"]) for name in names)],
        [],
        [tiny_models.tensor("y", TensorProto.FLOAT, [1, 300])],
        arrays,
    )
    monkeypatch.setattr(onnx_file, "_MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(onnx_file, "_MOST_THREADS", threads)
    monkeypatch.setattr(onnx_file, "_IN_FLIGHT_BYTES", 50_000)
    synchronized, progress = [], []
    monkeypatch.setattr(os, "fsync", synchronized.append)
    model = read_model(path)
    written = tmp_path / "written.onnx"
    for durable in (False, True):
        data, size = save_model(model, written, Steps(progress), durable=durable)
        assert bool(synchronized) == durable
    assert data.stat().st_size + written.stat().st_size == size
    found = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(written).graph.initializer}
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert progress[0] == progress[-1] == 0


class Steps:
    """Progress whose phases have one step, of less than a MiB."""

    def __init__(self, steps):
        self._steps = steps

    def phase_start(self, phase, parent, steps):
        assert steps == 1

    def step_complete(self, phase, step):
        self._steps.append(step)

    def phase_finish(self, phase):
        pass


def test_ai_onnx_is_the_standard_domain(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Softmax", ["x"], ["y"], domain="ai.onnx")],
        [tiny_models.tensor("x", TensorProto.FLOAT, [2, 3])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [2, 3])],
    )
    proto = onnx.load(path)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    onnx.save(proto, path)
    model = read_model(path)
    assert summarize(path, model).opsets == {"": 12}
    assert [node.domain for node in model.graph] == [""]


def test_operators_of_subgraphs_and_other_domains_count(tmp_path):
    def body(operator, name, domain=""):
        node = helper.make_node(operator, ["x"], [name], name=f"in_{name}", domain=domain)
        out = tiny_models.tensor(name, TensorProto.FLOAT, [4])
        return helper.make_graph([node], name, [], [out])

    node = helper.make_node(
        "If",
        ["c"],
        ["y"],
        name="if",
        then_branch=body("Abs", "t"),
        else_branch=body("Warp", "e", "com.example"),
    )
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [node],
        [
            tiny_models.tensor("x", TensorProto.FLOAT, [4]),
            tiny_models.tensor("c", TensorProto.BOOL, []),
        ],
        [tiny_models.tensor("y", TensorProto.FLOAT, [4])],
    )
    model = read_model(path)
    assert operator_names(model) == {"If": "if", "Abs": "in_t", "com.example::Warp": "in_e"}
    assert summarize(path, model).operators == {"If": 1, "Abs": 1, "com.example::Warp": 1}


def test_hashes_cover_external_weights(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    weights = (tmp_path / "weights.bin").read_bytes()
    files = hash_files(path, read_model(path))
    assert files["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files["external"] == [
        {
            "file": "weights.bin",
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
    ]


def test_external_weights_stay_on_disk(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    summary = summarize(path, read_model(path))
    assert summary.weight_bytes == 64 * 64 * 4
    assert summary.file_bytes < 1024


@pytest.mark.parametrize("content", [b"", b"hello", bytes(64), b"\x08\x07", b"vtrt" + bytes(40)])
def test_files_that_are_not_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"empty|not an ONNX") as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_an_error(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_model(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        read_model(tmp_path)


def test_external_weights_missing(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights.bin is missing \(first needed by 'w'\)"):
        read_model(path)


def test_external_weights_too_short(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelError, match="'w' needs 16384 bytes, the file has 100"):
        read_model(path)


def test_external_weights_outside_the_folder_are_not_followed(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = tiny_models.external_weights(folder / "m.onnx")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    content = path.read_bytes().replace(b"weights.bin", b"../weights1")
    path.write_bytes(content)
    with pytest.raises(ModelError, match="lies outside the model's folder"):
        read_model(path)


@pytest.mark.parametrize("axis", ["?", "", "-1", -1])
def test_placeholders_are_axes_that_are_named_after_their_input(tmp_path, axis):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Exp", ["x"], ["y"]), helper.make_node("Exp", ["z"], ["w"])],
        [tiny_models.tensor(name, TensorProto.FLOAT, [axis, 3]) for name in ("x", "z")],
        [tiny_models.tensor(name, TensorProto.FLOAT, [axis, 3]) for name in ("y", "w")],
    )
    summary = summarize(path, read_model(path))
    assert [t.shape for t in summary.inputs] == [("x_0", 3), ("z_0", 3)]
    assert {t.shape for t in summary.outputs} == {(None, 3)}


def test_names_of_axes_are_their_own(tmp_path):
    names = ("1.x", "a")
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("Exp", [name], [f"{name}_out"]) for name in names],
        [
            tiny_models.tensor("1.x", TensorProto.FLOAT, [None, "a_1*2"]),
            tiny_models.tensor("a", TensorProto.FLOAT, ["n", None]),
        ],
        [tiny_models.tensor(f"{name}_out", TensorProto.FLOAT, [None, None]) for name in names],
    )
    inputs = summarize(path, read_model(path)).inputs
    assert [t.shape for t in inputs] == [("input1_x_0", "a_1*2"), ("n", "a_1_")]
    (profile,) = resolve_profiles(
        inputs, [ProfileSpec.parse(["input1_x_0=1", "a_1=2", "n=3", "a_1_=5"])]
    )
    assert [str(r) for r in profile.shapes.values()] == ["1x4", "3x5"]


def test_states_change_with_the_files(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    model = read_model(path)
    before = file_states(model_files(path, model))
    assert len(before) == 2
    assert file_states(before) == before
    data = next(file for file in before if file != path)
    data.write_bytes(bytes(len(data.read_bytes())))
    changed = file_states(before)
    assert changed[path] == before[path]
    assert changed[data] != before[data]
    path.unlink()
    assert file_states([path]) == {path: (0, 0, 0)}


@pytest.fixture
def hub(tmp_path):
    """A download in the cache of Hugging Face: links to files that are named by their content."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    proto = onnx.load(tiny_models.conv(tmp_path / "inline.onnx"))
    onnx.save(
        proto, blobs / "h1", save_as_external_data=True, location="m.onnx_data", size_threshold=0
    )
    (blobs / "m.onnx_data").rename(blobs / "h2")
    (snapshot / "m.onnx").symlink_to("../../../blobs/h1")
    (snapshot / "m.onnx_data").symlink_to("../../../blobs/h2")
    return snapshot / "m.onnx"


def test_links_of_a_cache_of_downloads_are_followed(hub, tmp_path):
    model = read_model(hub)
    weight = model.graph.initializers["kernel"].const_value
    expected = onnx.load(tmp_path / "inline.onnx").graph.initializer[0]
    np.testing.assert_array_equal(weight.numpy(), onnx.numpy_helper.to_array(expected))
    data = hub.resolve().with_name("h2")
    assert model_files(hub, model) == (hub, data)
    (external,) = hash_files(hub, model)["external"]
    assert external["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()


def test_links_to_other_folders_are_not_followed(hub, tmp_path):
    elsewhere = tmp_path / "secret"
    hub.resolve().with_name("h2").rename(elsewhere)
    data = hub.with_name("m.onnx_data")
    data.unlink()
    data.symlink_to(elsewhere)
    with pytest.raises(ModelError, match=r"m.onnx_data lies outside the model's folder"):
        read_model(hub)


@pytest.mark.parametrize(
    ("location", "inside"), [("a/../weigh", True), ("a/../../we", False), ("../weights", False)]
)
def test_locations_with_dots(hub, tmp_path, location, inside):
    folder = tmp_path / "dots"
    (folder / "a").mkdir(parents=True)
    location = f"{location}_"  # as long as the one that it replaces
    content = hub.read_bytes().replace(b"m.onnx_data", location.encode())
    (folder / "m.onnx").write_bytes(content)
    (folder / location).write_bytes(hub.with_name("m.onnx_data").read_bytes())
    if inside:
        assert read_model(folder / "m.onnx").graph.initializers["kernel"].const_value.numpy().any()
    else:
        with pytest.raises(ModelError, match="lies outside the model's folder"):
            read_model(folder / "m.onnx")


def test_a_git_lfs_pointer_is_called_that(hub):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    hub.resolve().with_name("h2").write_bytes(pointer)
    with pytest.raises(ModelError, match=r"m.onnx: external weights: .*Git LFS pointer"):
        read_model(hub)
    hub.resolve().write_bytes(pointer)
    with pytest.raises(ModelError, match=r"m.onnx: .*is a Git LFS pointer; .*git lfs pull"):
        read_model(hub)


def test_a_plan_is_called_that(tmp_path):
    (tmp_path / "m.plan").write_bytes(b"ftrt" + bytes(60))
    with pytest.raises(
        ModelError, match=r"m\.plan: not an ONNX file, but a TensorRT plan; name the ONNX file"
    ):
        read_model(tmp_path / "m.plan")


def test_a_temporary_model_has_its_weights_next_to_it(tmp_path):
    source = tiny_models.dense(tmp_path / "m.onnx")
    (tmp_path / "scratch").mkdir()
    target = tmp_path / "scratch" / "g.onnx"
    save_temporary(read_model(source), target)
    assert sorted(os.listdir(target.parent)) == ["g.onnx", "g.onnx.data"]
    before, after = (
        {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
        for path in (source, target)
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    assert target.stat().st_size < 64 * 64 * 4 < (target.parent / "g.onnx.data").stat().st_size


def test_a_folder_that_cannot_be_written_to(tmp_path):
    model = read_model(tiny_models.dense(tmp_path / "m.onnx"))
    missing = tmp_path / "none"
    with pytest.raises(
        BuildError, match=f"cannot write the rewritten model to {missing}: .*TMPDIR"
    ):
        save_temporary(model, missing / "g.onnx")
