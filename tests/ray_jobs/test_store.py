"""Stores of plans: a folder, and another file system of fsspec."""

from __future__ import annotations

import hashlib
import json
import secrets

import pytest

from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.ray import BuildStore
from trt_native.ray.store import FileSet

KEY = "a1" * 32


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        url = str(tmp_path / "store")
    else:
        url = f"memory://{secrets.token_hex(8)}"
    made = BuildStore(url)
    made.open()
    return made


@pytest.fixture
def plan(tmp_path):
    """Files such as a build leaves."""
    path = tmp_path / "net.plan"
    path.write_bytes(b"plan" * 100)
    (tmp_path / "net.plan.json").write_bytes(b"{}")
    (tmp_path / "net.plan.cache").write_bytes(b"kernels")
    return path


def read(store, name):
    return store._files.cat_file(store._at(name))


def overwrite(store, name, content):
    store._files.pipe_file(store._at(name), content)


def files(paths):
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    return FileSet(next(iter(paths)), hashes)


def test_a_plan_is_there_with_all_its_files(store, plan):
    assert store.find(KEY) is None
    assert store.entries() == {}
    entry = store.keep(KEY, plan, build_s=1.5, node="n")
    assert (entry.sha256, entry.bytes) == (hashlib.sha256(b"plan" * 100).hexdigest(), 400)
    assert store.find(KEY) == entry
    assert BuildStore(store.url).entries() == {KEY: entry}
    for ending, content in (("", b"plan" * 100), (".json", b"{}"), (".cache", b"kernels")):
        assert read(store, entry.plan + ending) == content
    assert store.path_of(entry) == f"{store.url}/plans/{KEY}/net.plan"
    names = store._files.find(store._root)
    assert len(names) == 5  # with store.json and the entry; nothing temporary


@pytest.mark.parametrize("damage", ["shorter plan", "no plan", "no manifest", "entry"])
def test_what_is_not_whole_is_not_there(store, plan, damage):
    entry = store.keep(KEY, plan, build_s=1.5, node="n")
    if damage == "shorter plan":
        overwrite(store, entry.plan, b"plan")
    elif damage == "entry":
        overwrite(store, f"builds/{KEY}.json", b'{"key": "')
    else:
        store._files.rm_file(store._at(entry.plan + ("" if damage == "no plan" else ".json")))
    assert store.find(KEY) is None
    assert store.entries() == {}
    assert store.keep(KEY, plan, build_s=1.5, node="n") == entry
    assert store.entries() == {KEY: entry}


def test_inputs_are_copied_once_and_found(store, tmp_path):
    source = tmp_path / "source"
    (source / "weights").mkdir(parents=True)
    paths = {"net.onnx": source / "net.onnx", "weights/w.bin": source / "weights/w.bin"}
    for name, path in paths.items():
        path.write_bytes(name.encode())
    described = files(paths)
    store.put_inputs(described, paths)
    for path in paths.values():
        path.write_bytes(b"x" * path.stat().st_size)
    store.put_inputs(described, paths)  # they are there: not read again
    target = tmp_path / "target"
    target.mkdir()
    found = store.fetch_inputs(described, target)
    assert found.read_bytes() == b"net.onnx"
    assert (found.parent / "weights/w.bin").read_bytes() == b"weights/w.bin"


def test_a_file_that_changed_is_not_copied(store, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")
    described = files({"net.onnx": path})
    path.write_bytes(b"two")
    with pytest.raises(SpecError, match=r"net\.onnx: changed while it was read"):
        store.put_inputs(described, {"net.onnx": path})
    assert [name.rpartition("/")[2] for name in store._files.find(store._root)] == ["store.json"]


def test_inputs_that_are_damaged_on_their_way(tmp_path):
    store = BuildStore(f"memory://{secrets.token_hex(8)}")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")
    described = files({"net.onnx": path})
    store.put_inputs(described, {"net.onnx": path})
    overwrite(store, f"inputs/{described.digest}/net.onnx", b"two")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(PlanError, match=r"net\.onnx is damaged; remove it"):
        store.fetch_inputs(described, target)


def test_inputs_that_are_not_there(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.fetch_inputs(FileSet("net.onnx", {"net.onnx": "0" * 64}), tmp_path)


def test_the_identity_of_a_store_stays(store):
    assert store.open() == store.identity() == BuildStore(store.url).open()


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(SpecError, match="is not a store of trt-native, and not empty"):
        BuildStore(tmp_path).open()
    with pytest.raises(SpecError, match="is not a store of trt-native"):
        BuildStore(tmp_path / "thesis.txt").open()


def test_a_store_of_a_later_version_is_refused(store):
    overwrite(store, "store.json", json.dumps({"layout": 2, "id": "x"}).encode())
    with pytest.raises(SpecError, match="has layout 2, and this version knows 1"):
        store.open()
    overwrite(store, "store.json", b"{")
    with pytest.raises(SpecError, match=r"store\.json is damaged"):
        store.open()


def test_urls_that_cannot_be_used():
    with pytest.raises(SpecError, match=r"store 's4://x': Protocol not known"):
        BuildStore("s4://x")
    with pytest.raises(UnsupportedError, match=r"store 'gcs://x': "):
        BuildStore("gcs://x")  # whose library no extra installs
