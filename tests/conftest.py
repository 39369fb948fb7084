from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import textwrap
import zipfile
from importlib import resources

import numpy as np
import pytest
from helpers.forked_builds import ForkServer
from helpers.program import HAS_GPU

from trt_native.builder import isolated
from trt_native.cuda import require_gpu
from trt_native.errors import CudaError
from trt_native.plans.manifest import Manifest

# Ray listens on the loopback interface alone, needs a token, and reports nothing. It reads some of
# this when it is imported, whichever test does that first.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Thousands of graphs and modules stay in a process that runs tests: looking through them for
# garbage as often as Python does takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items):
    # Long files first, so that no process waits for another at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    try:
        require_gpu()
    except CudaError as error:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=error.message))


@pytest.fixture(autouse=True, scope="session")
def _forked_builds():
    """Builds have processes of their own that start in no time."""
    if HAS_GPU:  # CUDA does not survive a fork
        yield
        return
    server = ForkServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "subprocess", server)
        yield
    server.end()


@pytest.fixture
def started_builds(monkeypatch):
    """Builds have processes of their own that start as they do for a user."""
    monkeypatch.setattr(isolated, "subprocess", subprocess)


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


@pytest.fixture(scope="session")
def golden_onnx(tmp_path_factory):
    """The golden U-Net in FP32."""
    pytest.importorskip("torch")
    from helpers import golden_unet

    return golden_unet.export(tmp_path_factory.mktemp("golden") / "unet.onnx")


@pytest.fixture(scope="session")
def deepcache_onnx(tmp_path_factory):
    """DeepCache's two graphs of the golden U-Net in FP32, alone in a folder, and their sizes."""
    pytest.importorskip("torch")
    from helpers import DATA

    from trt_native.models.latentsync.export import export_deepcache

    path = tmp_path_factory.mktemp("deepcache") / "unet.onnx"
    reports = export_deepcache(path, config="small", checkpoint=DATA / "unet_small.pt")
    return *(report.path for report in reports), [report.total_bytes for report in reports]


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


@pytest.fixture
def inflated(monkeypatch):
    """The bytes that were read from each member of a ZIP archive, headers included."""
    counts = {}
    read = zipfile.ZipExtFile.read

    def counting(self, size=-1):
        data = read(self, size)
        counts[self.name] = counts.get(self.name, 0) + len(data)
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    return counts
