from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import textwrap
from importlib import resources

import filelock
import numpy as np
import pytest

from trt_native.cuda import require_gpu
from trt_native.errors import CudaError
from trt_native.plans.manifest import Manifest


def pytest_collection_modifyitems(items):
    # Long files first, so that no process waits for another at the end. Those of different exports
    # are at the head, so that two processes do not wait for the same one.
    marks = {"deepcache_onnx": 0, "golden_onnx": 1, "slow": 2}
    ranks = {}
    for item in items:
        found = [marks[name] for name in (*item.fixturenames, *item.keywords) if name in marks]
        ranks[item.path] = min([ranks.get(item.path, 3), *found])
    items.sort(key=lambda item: ranks[item.path])
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    try:
        require_gpu()
    except CudaError as error:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=error.message))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """No test sees what another one, or the user, has built."""
    monkeypatch.setenv("TRT_NATIVE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TRT_NATIVE_CACHE_SIZE", raising=False)


@pytest.fixture
def plant(tmp_path_factory):
    """Python code to run at the start of every Python process that gets this environment.

    So a test changes what happens in the process that builds, which is two processes away.
    """

    def environment(code, **variables):
        folder = tmp_path_factory.mktemp("plant")
        (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        return {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", **variables}

    return environment


@pytest.fixture
def main_in_process(capsys, monkeypatch):
    """Runs the program in this process; returns exit code, standard output and error."""
    from trt_native.cli import console, main

    monkeypatch.setattr(console.stdout, "width", 200)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


@contextlib.contextmanager
def untraced():
    """Measure no coverage: it makes PyTorch's export take three times as long."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """Make a folder of files once for all processes of this run, which only read it.

    ``shared_folder(name, make)`` calls ``make(folder)`` unless another process has.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def shared(name, make):
        folder = base / f"shared-{name}"
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                made = tmp_path_factory.mktemp(name)
                with untraced():
                    make(made)
                made.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session")
def golden_onnx(shared_folder):
    """The golden U-Net in FP32."""
    pytest.importorskip("torch")
    from helpers import golden_unet

    return shared_folder("golden", lambda to: golden_unet.export(to / "unet.onnx")) / "unet.onnx"


@pytest.fixture(scope="session")
def deepcache_onnx(shared_folder):
    """DeepCache's two graphs of the golden U-Net in FP32, alone in a folder, and their sizes."""
    pytest.importorskip("torch")
    from helpers import DATA

    from trt_native.models.latentsync.export import export_deepcache

    def make(to):
        (to / "alone").mkdir()
        reports = export_deepcache(
            to / "alone" / "unet.onnx", config="small", checkpoint=DATA / "unet_small.pt"
        )
        totals = [report.total_bytes for report in reports]
        (to / "totals.json").write_text(json.dumps(totals))

    folder = shared_folder("deepcache", make)
    totals = json.loads((folder / "totals.json").read_text())
    return folder / "alone" / "unet.onnx", folder / "alone" / "unet.shallow.onnx", totals


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch with one thread: more gain a small model nothing, and lose much on a busy CPU."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="session")
def _every_manifest_is_valid():
    """Checks each manifest that is written in this process against the JSON Schema."""
    try:
        import jsonschema
    except ImportError:  # test_plan_manifest.py fails then; GPU tests may go without
        yield
        return
    text = (resources.files("trt_native") / "include" / "plan_manifest.schema.json").read_text()
    validator = jsonschema.Draft202012Validator(json.loads(text))
    write = Manifest.to_json

    @functools.wraps(write)
    def to_json(manifest):
        data = write(manifest)
        validator.validate(json.loads(json.dumps(data)))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "to_json", to_json)
        yield
